"""The policy's weights on their way from the learner to the actor: versions in a folder, whole or not at all."""

import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reverie import checkpoint
from reverie.run.asynchronous.clock import Clock
from reverie.run.asynchronous.settings import LOOK
from reverie.run.collector import to_act
from reverie.types import Agent, ReverieError


def publish(folder: Path, agent: Agent, updates: int, rows: int) -> int:
    """Put the policy there as the next version, whole or not at all; its number."""
    known = checkpoint.paths(folder)
    version = int(known[-1].name.split(".")[0]) + 1 if known else 1
    checkpoint.save(folder, version, {"agent": to_act(agent.state_dict()), "updates": updates, "rows": rows})
    return version


class Policies:
    """The newest policy there is: loaded beside the clock into a second agent, swapped in between two decisions.

    What can not be read is warned of once, and the policy at hand stays.
    """

    def __init__(self, folder: Path, agent: Agent, spare: Agent, clock: Clock, aside: bool = True):
        self.folder, self.agent, self._spare, self.clock = folder, agent, spare, clock
        self.aside = aside  # load in a thread; False: at once, while a virtual clock stands still
        self.version = self.updates = self.rows = 0
        self.arrived = self._looked = clock.now()
        self._loaded: tuple[int, Mapping[str, Any]] | None = None
        self._thread: threading.Thread | None = None
        self._bad = 0  # a version that could not be read

    @property
    def age(self) -> float:
        """Seconds since the newest weights came."""
        return self.clock.now() - self.arrived

    def look(self) -> bool:
        """Called between two decisions; whether there is a new policy."""
        now = self.clock.now()
        busy = self._thread is not None and self._thread.is_alive()
        if self._loaded is None and not busy and now - self._looked >= LOOK:
            self._looked = now
            if self.aside:
                self._thread = threading.Thread(target=self._load, name="weights", daemon=True)
                self._thread.start()
            else:
                self._load()
        if self._loaded is None or (self.aside and self._thread is not None and self._thread.is_alive()):
            return False
        self.version, state = self._loaded
        self.updates, self.rows = int(state["updates"]), int(state["rows"])
        self.agent, self._spare, self._loaded = self._spare, self.agent, None
        self.arrived = now
        return True

    def _load(self) -> None:
        for path in reversed(checkpoint.paths(self.folder)):
            version = int(path.name.split(".")[0])
            if version <= self.version:
                return
            try:
                _, state = checkpoint.load_path(path)
                self._spare.load_state_dict({**self._spare.state_dict(), **state["agent"]})
            except (ReverieError, KeyError, RuntimeError) as error:
                if version != self._bad and path.exists():  # else it was removed for a newer one
                    self._bad = version
                    warnings.warn(f"{error}; the robot keeps the policy it has", stacklevel=2)
                continue
            self._loaded = version, state
            return
