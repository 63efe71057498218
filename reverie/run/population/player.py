"""One player: rollouts side by side, one batch of the agent for each decision; and a population that it plays alone.

The results hold to the last bit. A row of a matrix product depends on how many rows there are, though not on which
they are: so a player always shows the agent the same number of rows, those without a job left empty. (Measured for 4,
8, 16 and 32 rows on one thread; with 2 or 3 rows the place of a row counts too. Other machines, other last bits.)
"""

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from reverie import presets
from reverie.envs.base import Env
from reverie.envs.vector import PATIENCE
from reverie.logger import one_line
from reverie.run.evaluate import Interrupted
from reverie.run.population.base import Job, Population, Recipe, Result, pack
from reverie.types import ReverieError


class Slot:
    """A place in a player's batch: an environment, and the rollout that is under way in it."""

    def __init__(self) -> None:
        self.env: Env | None = None
        self.job: Job | None = None

    def begin(self, job: Job) -> None:
        self.job, self.rng = job, np.random.default_rng([job.seed, 7])
        self.score, self.length, self.env_steps = 0.0, 0, 0

    def drop(self) -> None:
        env, self.env = self.env, None
        if env is not None:
            with contextlib.suppress(Exception):  # a broken environment may also fail to close
                env.close()


class Player:
    """Plays rollouts, ``recipe.envs`` side by side, one batch of the agent for each decision.

    An environment that breaks is made anew and its rollout begun again; a rollout in which it breaks three times
    raises ``ReverieError``, as does at once whatever a user can mend.
    """

    def __init__(self, recipe: Recipe):
        if recipe.envs < 1:
            raise ReverieError(f"a player needs at least 1 environment, got {recipe.envs}")
        self.recipe = recipe
        self.slots = [Slot() for _ in range(recipe.envs)]
        env = self.slots[0].env = recipe.env()
        cls = presets.agent_class(recipe.agent)
        if not hasattr(cls, "play"):
            raise ReverieError(
                f"{recipe.agent} is not evolved: a population needs an agent with a controller"
            )
        self.agent = cls(env.obs_space, env.act_space, recipe.config, recipe.seed)
        self.size: int = self.agent.controller.size  # numbers of an individual
        n = recipe.envs
        self.obs = {key: np.zeros((n, *space.shape), space.dtype) for key, space in env.obs_space.items()}
        self.is_first = np.ones(n, bool)
        self.theta = torch.zeros(n, self.size)
        self.noise = np.zeros((n, recipe.config.latents), np.float32)
        self.begin(np.zeros((0, self.size), np.float32), ())

    def set_world(self, world: bytes) -> None:
        """V and M, as ``pack`` makes them."""
        try:
            self.agent.modules.load_state_dict(safetensors.torch.load(world))
        except RuntimeError as error:
            raise ReverieError(
                f"these weights do not fit {self.recipe.agent} with this config: {one_line(error)}"
            ) from error

    def begin(self, thetas: np.ndarray, jobs: Sequence[Job]) -> None:
        """Take up ``jobs`` of the individuals ``thetas`` "P n"; those under way are given up."""
        self.thetas, self.queue = torch.tensor(thetas, dtype=torch.float32), deque(jobs)
        self.breaks: dict[Job, int] = {}
        self.carry = self.agent.initial(len(self.slots))
        for i in range(len(self.slots)):
            self.leave(i)

    @property
    def busy(self) -> bool:
        return bool(self.queue) or any(slot.job is not None for slot in self.slots)

    def turn(self, seconds: float) -> list[Result]:
        """Play for about so long; what was finished."""
        end, results = time.monotonic() + seconds, []
        while self.busy:
            results += self.step()
            if time.monotonic() >= end:
                break
        return results

    def step(self) -> list[Result]:
        """One decision of every rollout under way, after the free slots have begun new ones; what it finished."""
        for i, slot in enumerate(self.slots):
            if slot.job is None and self.queue:
                self.enter(i, self.queue.popleft())
        active = [(i, slot) for i, slot in enumerate(self.slots) if slot.job is not None]
        if not active:
            return []
        for i, slot in active:
            self.noise[i] = slot.rng.standard_normal(self.noise.shape[1], np.float32)
        obs = {**self.obs, "is_first": self.is_first}
        action, self.carry = self.agent.play(obs, self.carry, self.theta, torch.from_numpy(self.noise))
        results = []
        for i, slot in active:
            job = slot.job
            assert job is not None
            with self.breaking(i) as env:
                row = env.step(action[i])
                slot.score += float(row.reward)
                slot.env_steps += int(row.env_steps)
                slot.length += 1
                self.show(i, row)
                if row.is_last:
                    results.append(Result(job.individual, job.trial, slot.score, slot.length, slot.env_steps))
                    self.leave(i)
        return results

    def enter(self, i: int, job: Job) -> None:
        """Begin a job in slot i."""
        self.slots[i].begin(job)
        self.theta[i] = self.thetas[job.individual]
        with self.breaking(i) as env:
            self.show(i, env.reset(job.seed))

    def leave(self, i: int) -> None:
        """Nothing is under way in slot i: its row stays in the batch, forever at a start."""
        self.slots[i].job = None
        self.is_first[i] = True

    def show(self, i: int, row: Any) -> None:
        for key, value in self.obs.items():
            value[i] = row.obs[key]
        self.is_first[i] = row.is_first

    @contextlib.contextmanager
    def breaking(self, i: int) -> Iterator[Env]:
        """The environment of slot i; when it breaks, the job goes back to the queue."""
        slot = self.slots[i]
        job = slot.job
        assert job is not None
        try:
            slot.env = slot.env or self.recipe.env()
            yield slot.env
        except ReverieError:
            raise
        except Exception as error:
            slot.drop()
            self.leave(i)
            self.breaks[job] = self.breaks.get(job, 0) + 1
            what = f"{type(error).__name__}: {error}"
            if self.breaks[job] >= PATIENCE:
                raise ReverieError(
                    f"the environment broke {PATIENCE} times in the rollout of seed {job.seed}: {what}"
                ) from error
            warnings.warn(f"an environment broke ({what}); its rollout is begun again", RuntimeWarning, 2)
            self.queue.appendleft(job)

    def close(self) -> None:
        for slot in self.slots:
            slot.drop()


class Here(Population):
    """In this process, with as many threads as it has."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.player = Player(recipe)
        self.size = self.player.size

    def set_world(self, state: Mapping[str, Tensor]) -> None:
        self.player.set_world(pack(state))

    def _play(
        self,
        thetas: np.ndarray,
        jobs: Sequence[Job],
        take: Callable[[Result], None],
        stop: Callable[[], bool],
    ) -> None:
        self.player.begin(thetas, jobs)
        while self.player.busy:
            if stop():
                raise Interrupted
            for result in self.player.step():
                take(result)

    def _close(self) -> None:
        self.player.close()
