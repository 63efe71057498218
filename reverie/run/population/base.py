"""The jobs of a population and what comes of them, whoever plays them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
from torch import Tensor

from reverie.envs.base import Env
from reverie.types import ReverieError


@dataclass(frozen=True)
class Job:
    """One rollout of one individual. ``seed`` decides its episode and its noise."""

    individual: int  # row of the thetas
    trial: int  # number of the rollout among the individual's
    seed: int


class Result(NamedTuple):
    """What came of a job."""

    individual: int
    trial: int
    score: float  # undiscounted return
    length: int  # decisions
    env_steps: int


@dataclass(frozen=True)
class Recipe:
    """What a player is made from. It can be pickled, and so can travel; V and M come later (``set_world``)."""

    agent: str  # name of the agent; it needs ``play``, as that of world_models.py
    config: Any
    env: Callable[[], Env]
    seed: int = 0  # of the agent
    envs: int = 16  # each player steps side by side; from 4 on, results are alike to the last bit


def pack(state: Mapping[str, Tensor]) -> bytes:
    """A module's state as safetensors, to be sent."""
    return safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in state.items()})


def ignore(result: Result) -> None: ...


def never() -> bool:
    return False


class Population(ABC):
    """Plays the rollouts of a population. ``size`` is how many numbers an individual has."""

    size: int

    def __init__(self) -> None:
        self._world: bytes | None = None
        self._closed = False

    def set_world(self, state: Mapping[str, Tensor]) -> None:
        """The V and M to play with from now on: ``agent.modules.state_dict()``."""
        self._world = pack(state)

    def evaluate(
        self,
        thetas: np.ndarray,
        jobs: Sequence[Job],
        on_result: Callable[[Result], None] = ignore,
        stop: Callable[[], bool] = never,
    ) -> list[Result]:
        """Play ``jobs`` of the individuals ``thetas`` "P n": a result for each, by individual, then trial.

        ``on_result`` is told of each once, as it comes. Raises ``Interrupted`` when ``stop()`` says so, and
        ``ReverieError`` for what does not fit or can not be played.
        """
        if self._closed:
            raise ReverieError("this population is closed; make a new one")
        thetas = self._check(np.asarray(thetas), jobs)
        results: dict[tuple[int, int], Result] = {}

        def take(result: Result) -> None:
            if results.setdefault(result[:2], result) is result:
                on_result(result)

        if jobs:
            self._play(thetas, jobs, take, stop)
        return [results[key] for key in sorted(results)]

    def _check(self, thetas: np.ndarray, jobs: Sequence[Job]) -> np.ndarray:
        if thetas.ndim != 2 or thetas.shape[1] != self.size:
            raise ReverieError(
                f"an individual of this agent is {self.size} numbers: thetas must have shape "
                f"(individuals, {self.size}), got {thetas.shape}"
            )
        if not np.isfinite(thetas).all():
            raise ReverieError("some numbers of these individuals are not finite; look at what evolves them")
        if len({(job.individual, job.trial) for job in jobs}) < len(jobs):
            raise ReverieError("two jobs are the same trial of the same individual; number the trials")
        for job in jobs:
            if not 0 <= job.individual < len(thetas) or job.seed < 0:
                raise ReverieError(
                    f"{job} can not be played: individuals are 0..{len(thetas) - 1}, seeds count from 0"
                )
        return np.asarray(thetas, np.float32)

    def close(self) -> None:
        """Give back environments and workers; may be called twice."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> "Population":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @abstractmethod
    def _play(
        self,
        thetas: np.ndarray,
        jobs: Sequence[Job],
        take: Callable[[Result], None],
        stop: Callable[[], bool],
    ) -> None:
        """Give ``take`` the result of every job."""

    @abstractmethod
    def _close(self) -> None: ...
