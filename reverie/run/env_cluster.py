"""Environments stepped on many machines, by Ray, for one learner.

::

    ray start --head --port 6379                  on one machine, and on each of the others
    ray start --address first-machine:6379
    reverie train ... --envs 64 --workers 16 --cluster first-machine:6379

Every machine needs Reverie and the environment's packages. Rows are the same as in one process. An actor that dies,
alone or with its machine, costs the episodes it was in: another is asked for in its place, and if there is no room for
one the others step its environments.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from reverie.envs.base import Env
from reverie.envs.vector import Envs, Job, Outcome, Stream, WorkerDied, portable, settings_of_parent
from reverie.logger import one_line, plural
from reverie.run.cluster import import_ray, join
from reverie.types import ActionSpace, ReverieError, Space

ROOM = 60.0  # seconds until an actor that has not answered is thought to have found no room


class ClusterEnvs(Envs):
    """n environments in ``workers`` Ray actors of one CPU each. Without an ``address`` Ray is started on this machine,
    and ended with it; a Ray that this process has already joined is used as it is."""

    def __init__(
        self, factory: Callable[[], Env], n: int, seed: int, workers: int, address: str | None = None
    ) -> None:
        if min(n, workers) < 1:
            raise ReverieError(
                f"a cluster steps at least 1 environment in 1 worker, got {n} in {workers}: say --workers 1"
            )
        self._ray, self._count = import_ray(), min(workers, n)
        self._ours = not self._ray.is_initialized()
        self._of = [i % self._count for i in range(n)]  # whose stream i is
        self._actors: list[Any] = [None] * self._count
        self._closed = False
        if self._ours:
            join(self._ray, self._count, address)
        try:
            self._factory = self._ray.put(factory)
            self._kind = self._ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(Actor)
            greetings = [self._start(w) for w in range(self._count)]
            spaces = [self._greet(w, greeting) for w, greeting in enumerate(greetings)]
        except BaseException:
            self.close()
            raise
        super().__init__(n, seed, *spaces[0])

    def _start(self, w: int) -> Any:
        """Ask for an actor; what it will say when it is up."""
        self._actors[w] = self._kind.remote(self._factory, settings_of_parent())
        return self._actors[w].spaces.remote()

    def _greet(self, w: int, greeting: Any) -> tuple[Mapping[str, Space], ActionSpace]:
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(greeting, timeout=ROOM)
        except errors.GetTimeoutError:
            room = plural(int(self._ray.cluster_resources().get("CPU", 0)), "CPU")
            raise ReverieError(
                f"worker {w} found no room in the cluster for {ROOM:.0f} seconds: it has {room}, and every worker "
                f"needs one; say --workers with fewer, or start another node"
            ) from None
        except errors.RayError as error:
            raise ReverieError(f"worker {w} died while it started; Ray says: {one_line(error)}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _run(self, jobs: dict[int, Job]) -> dict[int, Outcome]:
        shares: dict[int, dict[int, Job]] = {}
        for i, job in jobs.items():
            shares.setdefault(self._of[i], {})[i] = job
        answers = {w: self._actors[w].run.remote(share) for w, share in shares.items()}
        outcomes: dict[int, Outcome] = {}
        for w, share in shares.items():
            try:
                outcomes |= self._ray.get(answers[w])
            except self._ray.exceptions.RayTaskError:
                raise  # ours answer with what goes wrong; this is a mistake in them
            except self._ray.exceptions.RayError as error:
                died = WorkerDied(f"its worker died; Ray says: {one_line(error)}")
                self._lost |= {i for i in range(self.n) if self._of[i] == w} - set(share)
                outcomes |= dict.fromkeys(share, died)
                self._replace(w)
        return outcomes

    def _replace(self, w: int) -> None:
        """Another actor in the place of ``w``; where there is no room, the others take its streams."""
        self._end(w)
        try:
            self._greet(w, self._start(w))
        except ReverieError:
            self._end(w)
            others = [other for other in range(self._count) if self._actors[other] is not None]
            if not others:
                raise
            for k, i in enumerate(i for i in range(self.n) if self._of[i] == w):
                self._of[i] = others[k % len(others)]

    def _end(self, w: int) -> None:
        actor, self._actors[w] = self._actors[w], None
        if actor is not None:
            with contextlib.suppress(Exception):  # it is dead, or Ray is
                self._ray.kill(actor)

    def _close(self) -> None:
        for w in range(self._count):
            self._end(w)
        if self._ours:
            self._ray.shutdown()


class Actor:
    """What a worker does: it makes environments as they are asked for, and steps them."""

    def __init__(self, factory: Callable[[], Env], settings: Mapping[str, str]):
        os.environ.update(settings)
        self.factory, self.streams = factory, dict[int, Stream]()

    def spaces(self) -> tuple[Mapping[str, Space], ActionSpace] | Exception:
        try:
            with contextlib.closing(self.factory()) as env:
                return env.obs_space, env.act_space
        except Exception as error:
            return told(error)

    def run(self, jobs: dict[int, Job]) -> dict[int, Outcome]:
        outcomes: dict[int, Outcome] = {}
        for i, job in jobs.items():
            try:
                outcomes[i] = self.streams.setdefault(i, Stream(self.factory)).run(job)
            except Exception as error:
                outcomes[i] = told(error)
        return outcomes


def told(error: Exception) -> Exception:
    """As it is told on another machine: our own in its sentence alone."""
    return ReverieError(str(error)) if isinstance(error, ReverieError) else portable(error)
