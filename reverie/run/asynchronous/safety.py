"""What stands between a policy and a machine: a guard for every action, and a watchdog for the actor itself."""

import threading
import time
from typing import Any

import numpy as np

from reverie.robots.filters import Butterworth
from reverie.types import ActionSpace


class Guard:
    """Makes an action fit to be sent, whatever the policy said.

    Discrete: the largest entry of each group. Continuous, in this order: a low-pass of ``cutoff`` Hz (0: none), a
    change of at most ``max_change`` a decision (0: any), the limits [-1, 1]. What is not finite is refused.
    """

    def __init__(self, space: ActionSpace, rate: float, max_change: float = 0.0, cutoff: float = 0.0):
        self.space, self.max_change = space, max_change
        self.filter = Butterworth(cutoff, rate, space.size) if cutoff and not space.discrete else None
        self.limited = self.refused = 0  # how often
        self.begin()

    def begin(self) -> None:
        """After a stop: the next action is where it starts from."""
        self.last: np.ndarray | None = None

    def __call__(self, action: np.ndarray) -> np.ndarray | None:
        """What may be sent for ``action`` "A", float32; None if it is not finite."""
        action = np.asarray(action, np.float64)
        if action.shape != (self.space.size,) or not np.isfinite(action).all():
            self.refused += 1
            return None
        if self.space.discrete:
            return one_hot(action, self.space)
        safe = np.clip(action, -1.0, 1.0)
        if self.last is None:
            self.last = safe
            if self.filter is not None:
                self.filter.reset(safe)
        wanted = safe if self.filter is None else self.filter(safe)
        if self.max_change:
            limited = np.clip(wanted, self.last - self.max_change, self.last + self.max_change)
            self.limited += int(not np.array_equal(limited, wanted))
            wanted = limited
        self.last = np.clip(wanted, -1.0, 1.0)
        return self.last.astype(np.float32)


def one_hot(action: np.ndarray, space: ActionSpace) -> np.ndarray:
    """The largest entry of each group as 1, the others as 0; float32 "A"."""
    ends = np.cumsum(space.groups)
    parts = [np.eye(n)[action[end - n : end].argmax()] for n, end in zip(space.groups, ends, strict=True)]
    return np.concatenate(parts).astype(np.float32)


class Watchdog:
    """Stops the robot if nobody has said for ``patience`` seconds that all is well. Counts how often it had to.

    It watches over the actor, in a thread of its own: a policy that hangs, a disk that does not answer. It can not
    watch over the process; a machine must stop by itself when commands cease to come.
    """

    def __init__(self, robot: Any, patience: float):
        self.robot, self.patience, self.barked = robot, patience, 0
        self._due: float | None = None
        self._lock, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if patience > 0:
            self._thread.start()

    def pat(self) -> None:
        """All is well."""
        with self._lock:
            asleep, self._due = self._due is None, time.monotonic() + self.patience
            if asleep:
                self._lock.notify()

    def rest(self) -> None:
        """The robot stands still: there is nothing to watch."""
        with self._lock:
            self._due = None

    def _watch(self) -> None:
        with self._lock:
            while not self._closed:
                if self._due is None:
                    self._lock.wait()
                elif (left := self._due - time.monotonic()) > 0:
                    self._lock.wait(left)
                else:
                    self._due = None
                    self.barked += 1
                    self._lock.release()
                    try:
                        self.robot.stop()
                    finally:
                        self._lock.acquire()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join(2)
