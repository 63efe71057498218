"""A population's rollouts on many machines, by Ray: ``population.py`` has the rest.

::

    ray start --head --port 6379                  on one machine, and on each of the others
    ray start --address first-machine:6379
    Cluster(recipe, workers=64, address="first-machine:6379")

Every machine needs Reverie and the environment's packages. What is large, V and M, is put into Ray's store once, and
fetched once by each machine. An actor that dies, alone or with its machine, costs the rollouts it had not finished:
one is asked for in its place, and until there is room for that the others play them.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from reverie.envs.vector import settings_of_parent
from reverie.logger import plural
from reverie.run.population import Died, Job, Recipe, Team, Worker, one_line
from reverie.types import ReverieError


class Cluster(Team):
    """``workers`` Ray actors of one CPU each. Without an ``address`` Ray is started on this machine, and ended with
    it; a Ray that this process has already joined is used as it is."""

    def __init__(self, recipe: Recipe, workers: int, address: str | None = None):
        super().__init__(recipe, workers)
        self._ray = import_ray()
        self._ours = not self._ray.is_initialized()
        if self._ours:
            join(self._ray, workers, address)
        room = int(self._ray.cluster_resources().get("CPU", 0))
        if room < workers:
            warnings.warn(
                f"the cluster has {plural(room, 'CPU')} for {plural(workers, 'worker')} of one each; those that "
                f"find no room wait until there is some, and the others play for them",
                RuntimeWarning,
                stacklevel=2,
            )
        self._actor = self._ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(Worker)
        self._recipe_there = self._ray.put(recipe)
        self._world_there: Any = None
        self._thetas_there: tuple[int, Any] = (-1, None)  # the round they are of
        self._actors: list[Any] = [None] * workers
        self._answers: list[Any] = [None] * workers  # what is to come
        self._open()

    def set_world(self, state: Mapping[str, Tensor]) -> None:
        super().set_world(state)
        self._world_there = self._ray.put(self._world)

    def _start(self, w: int) -> None:
        self._actors[w] = self._actor.remote(self._recipe_there, settings_of_parent())
        self._answers[w] = self._actors[w].hello.remote()

    def _ask(self, w: int, new: bool, jobs: list[Job] | None) -> None:
        if self._thetas_there[0] != self._round:
            self._thetas_there = (self._round, self._ray.put(self._thetas))
        world = self._world_there if new else None
        thetas = None if jobs is None else self._thetas_there[1]
        self._answers[w] = self._actors[w].turn.remote(self._round, world, thetas, jobs)

    def _hear(self, seconds: float) -> list[tuple[int, Any]]:
        asked = {self._answers[w]: w for w in range(self.count) if self._asked[w]}
        ready, _ = self._ray.wait(list(asked), timeout=seconds)
        return [(asked[answer], self._read(answer)) for answer in ready]

    def _read(self, answer: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(answer)
        except errors.RayTaskError:
            raise  # ours answer with what goes wrong; this is a mistake in them
        except errors.RayError as error:
            return Died(f"Ray says: {one_line(error)}")

    def _end(self, w: int) -> None:
        actor, self._actors[w], self._answers[w] = self._actors[w], None, None
        if actor is not None:
            with contextlib.suppress(Exception):  # it is dead, or Ray is
                self._ray.kill(actor)

    def _close(self) -> None:
        super()._close()
        if self._ours:
            self._ray.shutdown()


def import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ReverieError("a cluster needs Ray: pip install 'reverie[cluster]'") from error
    return ray


def join(ray: Any, workers: int, address: str | None) -> None:
    """Join the Ray at ``address``, or start one with a CPU for each worker."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone unless asked for
    settings: dict[str, Any] = dict(log_to_driver=False, logging_level=logging.ERROR)
    if address is None:
        settings |= dict(address="local", num_cpus=workers, include_dashboard=False)
    else:
        knock(address)
        settings |= dict(address=address)
    try:
        with keeping_signals():
            ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "on this machine" if address is None else f"at {address!r}"
        raise ReverieError(f"there is no Ray {where} to join: {one_line(error)}") from error


def knock(address: str) -> None:
    """Find out in seconds whether anyone is at "host:port"; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or a name
    try:
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()
    except OSError as error:
        raise ReverieError(
            f"there is no Ray at {address!r} ({error}); start one there: ray start --head --port {port}"
        ) from error


@contextlib.contextmanager
def keeping_signals() -> Iterator[None]:
    """Ray puts a handler of its own in the place of ours, which would end a run without saving it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
