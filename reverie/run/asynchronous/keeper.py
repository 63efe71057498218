"""The learner in a process of its own beside the actor's, and who keeps it running."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reverie.logger import plural
from reverie.machine import CORES, prepare
from reverie.run.asynchronous.clock import RealClock
from reverie.run.asynchronous.learner import make_learner
from reverie.run.asynchronous.settings import RobotConfig
from reverie.run.folder import Plan
from reverie.run.parts import Parts
from reverie.types import NotFinite, ReverieError

RESTARTS = 5  # of a learner that ends by itself


def process(folder: Path, plan: Plan, settings: RobotConfig, parent: int, end: Any) -> None:
    """The learner's process: until it is told to ``end`` (an event, or SIGTERM), or ``parent`` is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the actor's, who tells us
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)  # where both want a core, the robot has it
    prepare(settings.threads or max(1, CORES - 1))
    with Parts() as parts:
        learner = patiently(lambda: make_learner(plan, settings, folder, RealClock(), parts))

        def stop(*_: Any) -> None:
            learner.stopping = True

        signal.signal(signal.SIGTERM, stop)
        try:
            learner.loop(alive=lambda: not end.is_set() and os.getppid() == parent)
        except NotFinite as error:
            raise SystemExit(
                f"reverie: the learner stopped after {plural(learner.updates, 'update')}: {error}"
            ) from None


def patiently(make: Callable[[], Any], seconds: float = 60.0) -> Any:
    """An earlier learner may still be saving: wait for it."""
    until = time.monotonic() + seconds
    while True:
        try:
            return make()
        except ReverieError as error:
            if "another process" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.5)


class Keeper:
    """Keeps a learner's process running: one that ends by itself is started again, a few times."""

    def __init__(self, folder: Path, plan: Plan, settings: RobotConfig, say: Callable[[str], None]):
        self._context, self._say = multiprocessing.get_context("spawn"), say
        self._end = self._context.Event()
        self._args = (folder, plan, settings, os.getpid(), self._end)
        self.restarts = 0
        self._closing = threading.Event()
        self._start()
        threading.Thread(target=self._watch, name="keeper", daemon=True).start()

    def _start(self) -> None:
        self.process = self._context.Process(target=process, args=self._args, name="reverie-learner")
        self.process.start()

    def _watch(self) -> None:
        while not self._closing.wait(0.5):
            if self.process.exitcode is None:
                continue
            if self.restarts >= RESTARTS:
                self._say(f"The learner ended {RESTARTS + 1} times; the robot goes on with its last policy.")
                return
            self.restarts += 1
            self._say(f"The learner ended (exit code {self.process.exitcode}); it is started again.")
            self._start()

    def close(self) -> None:
        """Let it take in the rest and save."""
        self._closing.set()
        self._end.set()
        self.process.join(300)
        if self.process.exitcode is None:
            self.process.kill()
