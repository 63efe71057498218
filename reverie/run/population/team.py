"""Workers that may die, wherever they are: each is a player, is asked for a turn, and answers with what it finished."""

import os
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from reverie.envs.vector import PATIENCE
from reverie.envs.vector import portable as picklable
from reverie.machine import prepare
from reverie.run.evaluate import Interrupted
from reverie.run.population.base import Job, Population, Recipe, Result, ignore
from reverie.run.population.player import Player
from reverie.types import ReverieError

TURN = 0.5  # seconds a worker plays between two answers
LONELY = 60.0  # seconds without any worker before it is said


class Turn(NamedTuple):
    """A worker's answer."""

    round: int  # number of the evaluation it was asked in
    results: list[Result]


class Died:
    """In place of an answer: the worker is no more."""

    def __init__(self, why: str):
        self.why = why


class Worker:
    """A player on one thread that answers instead of raising."""

    def __init__(self, recipe: Recipe, settings: Mapping[str, str]):
        self.recipe, self.settings = recipe, settings
        self.player: Player | None = None

    def hello(self) -> int | Exception:
        """Make the player; the numbers of an individual."""
        os.environ.update(self.settings)
        os.environ.setdefault("LP_NUM_THREADS", "0")  # software GL stays on this worker's core
        prepare(threads=1)
        try:
            self.player = Player(self.recipe)
        except Exception as error:
            return portable(error)
        return self.player.size

    def turn(
        self, round: int, world: bytes | None, thetas: np.ndarray | None, jobs: list[Job] | None
    ) -> Turn | Exception:
        """Take up ``jobs``, if any are given, else go on; V and M first, if they are new."""
        assert self.player is not None
        try:
            if world is not None:
                self.player.set_world(world)
            if jobs is not None and thetas is not None:
                self.player.begin(thetas, jobs)
            return Turn(round, self.player.turn(TURN))
        except Exception as error:
            return portable(error)

    def close(self) -> None:
        if self.player is not None:
            self.player.close()


def portable(error: Exception) -> Exception:
    return ReverieError(str(error)) if isinstance(error, ReverieError) else picklable(error)


class Team(Population):
    """Gives the jobs to its workers. What they are, and how they are reached, is left to who inherits this.

    Job k is worker k's, modulo their number. A worker that dies costs the rollouts it had not finished: they wait
    for whoever is free first, one made in its place or another one. One that dies three times without finishing a
    rollout raises ``ReverieError``.
    """

    def __init__(self, recipe: Recipe, workers: int):
        super().__init__()
        if workers < 1:
            raise ReverieError(f"a population needs at least 1 worker, got {workers}")
        self.recipe, self.count = recipe, workers
        self._round = 0
        self._shares: list[list[Job]] = [[] for _ in range(workers)]  # not given out yet
        self._pool: list[Job] = []  # of the dead
        self._playing: list[dict[tuple[int, int], Job]] = [{} for _ in range(workers)]
        self._asked = [False] * workers  # an answer is to come
        self._alive = [False] * workers  # or about to be
        self._up = [False] * workers  # has said hello
        self._current = [False] * workers  # has the V and M of now
        self._deaths = [0] * workers  # since its last result
        self._heard = time.monotonic()

    def _open(self) -> None:
        """Start the workers and wait for the first; the others may come while it plays."""
        try:
            for w in range(self.count):
                self._begin(w)
            while not hasattr(self, "size"):
                self._attend(ignore)
        except BaseException:
            self.close()
            raise

    def set_world(self, state: Mapping[str, Tensor]) -> None:
        super().set_world(state)
        self._current = [False] * self.count

    def _play(
        self,
        thetas: np.ndarray,
        jobs: Sequence[Job],
        take: Callable[[Result], None],
        stop: Callable[[], bool],
    ) -> None:
        self._round += 1
        self._thetas = thetas
        self._shares = [list(jobs[w :: self.count]) for w in range(self.count)]
        self._pool, self._playing = [], [{} for _ in range(self.count)]
        self._heard = time.monotonic()
        try:
            for w in range(self.count):
                if not self._alive[w]:
                    self._begin(w)
            while any(self._shares) or self._pool or any(self._playing):
                if stop():
                    raise Interrupted
                self._give()
                self._attend(take)
        except Exception:
            raise  # what the others answer is of a round gone by, and not heard
        except BaseException:  # Ctrl-C may have come in the middle of a message
            self._end_all()
            raise

    def _give(self) -> None:
        """Something to do for everyone who waits for it."""
        for w in range(self.count):
            if not self._alive[w] or self._asked[w]:
                continue
            jobs = None
            if not self._playing[w]:
                jobs = self._next(w)
                if not jobs:
                    continue
                self._playing[w] = {(job.individual, job.trial): job for job in jobs}
            self._asked[w] = True
            new, self._current[w] = not self._current[w], True
            self._ask(w, new, jobs)

    def _next(self, w: int) -> list[Job]:
        """Its share; else a batch of what the dead have left, and then of what waits for those not up yet."""
        if self._shares[w]:
            jobs, self._shares[w] = self._shares[w], []
            return jobs
        for source in (self._pool, *(self._shares[v] for v in range(self.count) if not self._up[v])):
            if source:
                jobs = source[: self.recipe.envs]
                del source[: len(jobs)]
                return jobs
        return []

    def _attend(self, take: Callable[[Result], None]) -> None:
        """Hear who has answered."""
        answers = self._hear(0.2)
        for w, _ in answers:
            self._asked[w] = False  # of all, before one of them raises
            self._heard = time.monotonic()
        for w, answer in answers:
            if isinstance(answer, Died):
                self._replace(w, answer)
            elif isinstance(answer, Exception):
                self._current[w] = False
                raise answer
            elif isinstance(answer, int):
                self.size, self._up[w] = answer, True
            elif answer.round == self._round:
                for result in answer.results:
                    self._deaths[w] = 0
                    del self._playing[w][result[:2]]
                    take(result)
        if time.monotonic() > self._heard + LONELY:
            self._heard = time.monotonic()
            warnings.warn(f"no worker has answered for {LONELY:.0f} seconds; waiting", RuntimeWarning, 4)

    def _replace(self, w: int, died: Died) -> None:
        self._pool += [*self._playing[w].values(), *self._shares[w]]
        self._playing[w], self._shares[w] = {}, []
        self._stop(w)
        self._deaths[w] += 1
        if self._deaths[w] >= PATIENCE:
            self._deaths[w] = 0
            raise ReverieError(
                f"a worker died {PATIENCE} times without finishing one rollout: {died.why}; its own message, if "
                f'it had one, is above (a script with workers must start under `if __name__ == "__main__":`)'
            )
        warnings.warn(
            f"a worker died: {died.why}; what it had not finished is played again", RuntimeWarning, 5
        )
        self._begin(w)

    def _begin(self, w: int) -> None:
        self._start(w)
        self._alive[w] = self._asked[w] = True
        self._current[w] = self._world is None

    def _stop(self, w: int) -> None:
        self._alive[w] = self._asked[w] = self._up[w] = False
        self._end(w)

    def _end_all(self) -> None:
        self._dismiss()
        for w in range(self.count):
            self._stop(w)

    def _close(self) -> None:
        self._end_all()

    @abstractmethod
    def _start(self, w: int) -> None:
        """Make worker w; it answers with ``hello``."""

    @abstractmethod
    def _ask(self, w: int, new: bool, jobs: list[Job] | None) -> None:
        """Ask worker w for a turn, with ``self._world`` if it is new, with jobs of ``self._thetas`` if there are."""

    @abstractmethod
    def _hear(self, seconds: float) -> list[tuple[int, Any]]:
        """Answers of those that were asked, as they come; nothing after so many seconds."""

    @abstractmethod
    def _end(self, w: int) -> None:
        """End worker w, if there is one, dead or alive."""

    def _dismiss(self) -> None:
        """Tell all workers at once that it is over, so that they end side by side."""
