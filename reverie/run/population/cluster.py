"""A population played on many machines, by Ray.

::

    ray start --head --port 6379                  on one machine, and on each of the others
    ray start --address first-machine:6379
    Cluster(recipe, workers=64, address="first-machine:6379")

Every machine needs Reverie and the environment's packages. What is large, V and M, is put into Ray's store once, and
fetched once by each machine. An actor that dies, alone or with its machine, costs the rollouts it had not finished:
one is asked for in its place, and until there is room for that the others play them.
"""

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from reverie.envs.vector import settings_of_parent
from reverie.logger import one_line, plural
from reverie.run.cluster import import_ray, join
from reverie.run.population.base import Job, Recipe
from reverie.run.population.team import Died, Team, Worker


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
