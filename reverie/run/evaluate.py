"""Play whole episodes without learning, from start states that are the same every time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reverie.envs.tasks import task_of
from reverie.envs.vector import episode_seed
from reverie.types import Agent


class Interrupted(Exception):
    """An evaluation was left in the middle, because it was asked to stop."""


@dataclass
class Evaluation:
    """Returns and lengths (decisions) of ``len(returns)`` episodes, and the first one's pictures "t h w c"."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)  # of the episodes
    distances: list[float] = field(
        default_factory=list
    )  # of a goal environment: from the goal, at the end (L2)
    last_rewards: list[float] = field(default_factory=list)  # of a goal environment: those of the last rows

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        return float(np.std(self.returns))

    def by_task(self, env: str) -> dict[str, "Evaluation"]:
        """The episodes of each task of ``a+b``, by the last part of its name; nothing for a single task."""
        names = env.split("+")
        parts: dict[str, Evaluation] = {}
        for seed, score, length in zip(self.seeds, self.returns, self.lengths, strict=True):
            part = parts.setdefault(task_of(names, seed).split("/")[-1], Evaluation())
            part.returns.append(score)
            part.lengths.append(length)
            part.seeds.append(seed)
        return parts if len(names) > 1 else {}

    def as_dict(self) -> dict[str, Any]:
        """All but the pictures, for JSON."""
        return {"mean": self.mean, "std": self.std, "returns": self.returns, "lengths": self.lengths}


def evaluate(
    agent: Agent | None,
    envs: Any,
    episodes: int,
    rng: np.random.Generator | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Returns of ``agent`` in eval mode, or of the uniformly random policy if it is None.

    Episode k starts from the seed of episode k // n of stream k % n of ``envs``: each evaluation meets the same
    starts, so two of them differ by the policy alone. Raises ``Interrupted`` when ``stop()`` says so.
    """
    result, rng = Evaluation(), rng or np.random.default_rng(0)
    image = next((key for key in sorted(envs.obs_space) if envs.obs_space[key].is_image), None)
    goals = {"achieved_goal", "desired_goal"} <= set(envs.obs_space)
    nothing = np.zeros((envs.n, envs.act_space.size), np.float32)
    while len(result.returns) < episodes:
        block = len(result.returns) // envs.n
        running = streams = list(range(min(envs.n, episodes - len(result.returns))))
        for i in range(envs.n):
            envs.end(i, block - 1)
        rows = envs.step(nothing)  # all begin their episode number ``block``
        carry = None if agent is None else agent.initial(envs.n)
        score, length = np.zeros(envs.n), np.zeros(envs.n, np.int64)
        apart, paid = np.zeros(envs.n), np.zeros(envs.n)
        while running:
            if stop():
                raise Interrupted
            if image is not None and block == 0 and 0 in running:
                result.frames.append(rows.obs[image][0].copy())
            if agent is None:
                action = envs.act_space.sample(rng, envs.n)
            else:
                action, carry = agent.act({**rows.obs, "is_first": rows.is_first}, carry, "eval")
            rows = envs.step(action, running)
            score[running] += rows.reward[running]
            length[running] += 1
            paid[running] = rows.reward[running]
            if goals:
                apart[running] = np.linalg.norm(
                    rows.obs["achieved_goal"][running] - rows.obs["desired_goal"][running], axis=-1
                )
            running = [i for i in running if not rows.is_last[i]]
        result.returns += [float(score[i]) for i in streams]
        result.lengths += [int(length[i]) for i in streams]
        result.distances += [float(apart[i]) for i in streams if goals]
        result.last_rewards += [float(paid[i]) for i in streams if goals]
        result.seeds += [episode_seed(envs.seed, i, block) for i in streams]
    return result
