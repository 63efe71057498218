"""n environments stepped together, in this process or in workers, with the same rows either way.

Each episode is seeded on its own from (run seed, stream, episode number). So any moment of any stream can be
brought back from three things that are cheap to store: its episode number, that episode's actions, and the seed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from reverie.envs.base import Env
from reverie.types import ActionSpace, ReverieError, Space, Step


def episode_seed(seed: int, stream: int, episode: int) -> int:
    """The seed of one episode of one stream, in [0, 2^31): a pure function of its arguments."""
    if min(seed, stream, episode) < 0:
        raise ReverieError(f"seeds, streams and episodes are counted from 0, got {(seed, stream, episode)}.")
    return int(np.random.SeedSequence(seed, spawn_key=(stream, episode)).generate_state(1)[0] >> 1)


class Envs(ABC):
    """n streams of episodes. A stream that has none yet, or whose episode is over, begins its next one."""

    n: int
    obs_space: dict[str, Space]
    act_space: ActionSpace
    episodes: list[int]  # number of each stream's current episode, -1 before the first

    @abstractmethod
    def step(self, action: np.ndarray, only: Sequence[int] | None = None) -> Step:
        """The next row of every stream, or of those in ``only``; the others keep showing their last row."""

    @abstractmethod
    def restore(self, i: int, episode: int, actions: np.ndarray) -> Step:
        """Bring stream ``i`` to where ``actions`` "k A" led in its episode number ``episode``; that row."""

    @abstractmethod
    def close(self) -> None: ...


class SerialEnvs(Envs):
    """n environments one after another in this process."""

    def __init__(self, factory: Callable[[], Env], n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self.envs = [factory() for _ in range(n)]
        self.obs_space, self.act_space = self.envs[0].obs_space, self.envs[0].act_space
        self.episodes = [-1] * n
        self._rows: list[Step | None] = [None] * n

    def step(self, action: np.ndarray, only: Sequence[int] | None = None) -> Step:
        for i in range(self.n) if only is None else only:
            row = self._rows[i]
            if row is None or row.is_last:
                self.episodes[i] += 1
                self._rows[i] = self.envs[i].reset(episode_seed(self.seed, i, self.episodes[i]))
            else:
                self._rows[i] = self.envs[i].step(action[i])
        return stack(self._rows)  # type: ignore[arg-type]

    def restore(self, i: int, episode: int, actions: np.ndarray) -> Step:
        row = self.envs[i].reset(episode_seed(self.seed, i, episode))
        for action in actions:
            row = self.envs[i].step(action)
        self.episodes[i], self._rows[i] = episode, row
        return row

    def close(self) -> None:
        for env in self.envs:
            env.close()


def stack(rows: Sequence[Step]) -> Step:
    """Single rows side by side, leading axis n."""
    obs = {key: np.stack([row.obs[key] for row in rows]) for key in rows[0].obs}
    names = ("reward", "is_first", "is_last", "is_terminal", "env_steps")
    return Step(obs, *(np.stack([getattr(row, name) for row in rows]) for name in names))
