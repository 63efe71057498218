"""Several environments as one, for an agent that learns them all with one model: ``a+b+c``.

Each episode is of one task, the one its seed picks, so that any episode can be brought back from its seed alone.
The agent is not told which task it is in: it must see it. All must show the same observations; actions are as
wide as the widest, and a task ignores the entries it has no use for.
"""

from collections.abc import Sequence

import numpy as np

from reverie.envs.base import Env
from reverie.types import ActionSpace, ReverieError, Step


def task_of(names: Sequence[str], seed: int) -> str:
    """Which of the tasks the episode with this seed is of."""
    return names[seed % len(names)]


class Tasks(Env):
    """The environments of ``envs``, one per episode."""

    def __init__(self, envs: Sequence[Env], names: Sequence[str]) -> None:
        self.envs, self.names = list(envs), list(names)
        self.obs_space = self.envs[0].obs_space
        for env, name in zip(self.envs, self.names, strict=True):
            if dict(env.obs_space) != dict(self.obs_space):
                raise ReverieError(
                    f"tasks learned together must show the same observations: {self.names[0]} shows "
                    f"{dict(self.obs_space)}, {name} shows {dict(env.obs_space)}; --pixels makes them alike."
                )
            if env.act_space.discrete and env.act_space != self.envs[0].act_space:
                raise ReverieError(
                    f"discrete tasks learned together must have the same actions; {name} has others."
                )
        if self.envs[0].act_space.discrete:
            self.act_space = self.envs[0].act_space
        else:
            self.act_space = ActionSpace(max(env.act_space.size for env in self.envs))
        self.current = self.envs[0]

    def reset(self, seed: int) -> Step:
        self.current = self.envs[self.names.index(task_of(self.names, seed))]
        return self.current.reset(seed)

    def step(self, action: np.ndarray) -> Step:
        return self.current.step(action[: self.current.act_space.size])

    def render(self) -> np.ndarray:
        return self.current.render()

    def close(self) -> None:
        for env in self.envs:
            env.close()
