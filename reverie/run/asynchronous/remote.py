"""A robot's learner on another machine, by Ray: ``link.py`` carries, this only says how the other side is reached.

::

    ray start --head --port 6379                  on the learner's machine; Reverie must be installed there
    reverie robot ... --cluster HOST:6379         on the robot's

The learner runs in an actor of Ray that needs one CPU, in a folder of its own beside where the run's would be on that
machine (RUN-learner), with its replay and its checkpoints. An actor that dies is started again by Ray, on the machine
it was on or on another; its folder is only on the first.
"""

import threading
from pathlib import Path
from typing import Any

from reverie.machine import prepare
from reverie.run.asynchronous.clock import RealClock
from reverie.run.asynchronous.learner import make_learner
from reverie.run.asynchronous.link import ABOUT, Courier, Mailbox
from reverie.run.asynchronous.settings import LINK, RobotConfig
from reverie.run.cluster import import_ray, join
from reverie.run.folder import Plan
from reverie.run.parts import Parts

PATIENCE = 10.0  # seconds that an answer may take; then the link is cut


class Learning(Mailbox):
    """What runs there: a mailbox, and a learner that reads from it as soon as it knows the robot."""

    def __init__(self, folder: Path, plan: Plan, settings: RobotConfig):
        super().__init__(folder / LINK)
        self.run, self.plan, self.settings = folder, plan, settings
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self.broken = ""  # why the learner ended, if it did by itself
        if (self.folder / ABOUT).exists():  # started again
            self._start()

    def begin(self, about: str) -> None:
        super().begin(about)
        self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._learn, name="learner", daemon=True)
            self._thread.start()

    def _learn(self) -> None:
        try:
            prepare(self.settings.threads)
            with Parts() as parts:
                learner = make_learner(self.plan, self.settings, self.run, RealClock(), parts)

                def alive() -> bool:
                    self.tidy()
                    return not self._ending.is_set()

                learner.loop(alive)
        except Exception as error:
            self.broken = f"{type(error).__name__}: {error}"

    def taken(self) -> int:
        if self.broken:
            raise RuntimeError(f"the learner ended: {self.broken}")
        return super().taken()

    def end(self) -> None:
        """Take in the rest and save."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()


class Remote:
    """Reaches such a learner; what ``link.Far`` promises. ``address`` is that of a Ray cluster."""

    def __init__(self, address: str, folder: Path, plan: Plan, settings: RobotConfig):
        self._ray = import_ray()
        self._ours = not self._ray.is_initialized()
        if self._ours:
            join(self._ray, 1, None if address == "local" else address)
        kind = self._ray.remote(num_cpus=1, max_restarts=5, max_concurrency=4)(Learning)
        there = folder.absolute().with_name(folder.name + "-learner")
        self._actor = kind.remote(there, plan, settings)

    def _ask(self, verb: str, *args: Any, seconds: float | None = PATIENCE) -> Any:
        return self._ray.get(getattr(self._actor, verb).remote(*args), timeout=seconds)

    def begin(self, about: str) -> None:
        self._ask("begin", about, seconds=120.0)  # it may be starting

    def sizes(self) -> dict[int, int]:
        return self._ask("sizes")

    def put(self, first: int, at: int, data: bytes) -> None:
        self._ask("put", first, at, data)

    def taken(self) -> int:
        return self._ask("taken")

    def weights(self, known: int) -> tuple[int, dict[str, bytes]] | None:
        return self._ask("weights", known)

    def close(self) -> None:
        """Let it take in the rest and save."""
        try:
            self._ask("end", seconds=300.0)
        finally:
            self._ray.kill(self._actor)
            if self._ours:
                self._ray.shutdown()


class Keeper:
    """The courier and the learner it carries to; as ``keeper.Keeper``, on another machine."""

    def __init__(self, address: str, folder: Path, plan: Plan, settings: RobotConfig, say: Any):
        self.remote = Remote(address, folder, plan, settings)
        self.courier = Courier(folder / LINK, self.remote)
        self.courier.start(say)
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                self.courier.close()
            finally:
                self.remote.close()
