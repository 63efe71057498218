"""Wrappers around our own ``Env``, in the order ``make_env`` lays them:

    physics -> TimeLimit -> ActionRepeat -> Pixels or Resize

The clock counts env steps, the repeat hides all but the last of R rows, and only what is left is drawn: a
picture is made once per decision, never on a hidden frame.
"""

import numpy as np

from reverie.envs.base import YES, Env
from reverie.envs.pixels import resize
from reverie.types import ReverieError, Space, Step


class Wrapper(Env):
    """An ``Env`` that passes everything on; subclasses change one thing."""

    def __init__(self, env: Env) -> None:
        self.env = env
        self.obs_space, self.act_space, self.goals = env.obs_space, env.act_space, env.goals
        self.rules = env.rules

    def reset(self, seed: int) -> Step:
        return self.env.reset(seed)

    def step(self, action: np.ndarray) -> Step:
        return self.env.step(action)

    def render(self) -> np.ndarray:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


class TimeLimit(Wrapper):
    """Ends an episode after ``limit`` env steps: ``is_last``, and not ``is_terminal`` unless it is."""

    def __init__(self, env: Env, limit: int) -> None:
        if limit < 1:
            raise ReverieError(f"a time limit must be at least 1 env step, got {limit}.")
        super().__init__(env)
        self.limit, self.taken = limit, 0

    def reset(self, seed: int) -> Step:
        self.taken = 0
        return self.env.reset(seed)

    def step(self, action: np.ndarray) -> Step:
        if self.taken >= self.limit:
            raise ReverieError(f"the episode ended at its limit of {self.limit} env steps; call reset(seed).")
        row = self.env.step(action)
        self.taken += int(row.env_steps)
        if self.taken >= self.limit:
            row.is_last = YES
        return row


class ActionRepeat(Wrapper):
    """Takes each action ``repeat`` times: rewards add up, the last row is kept, an end stops it early."""

    def __init__(self, env: Env, repeat: int) -> None:
        if repeat < 1:
            raise ReverieError(f"an action repeat must be at least 1, got {repeat}.")
        super().__init__(env)
        self.repeat, self.goals, self.rules = repeat, None, None  # they know one env step, not several

    def step(self, action: np.ndarray) -> Step:
        row = self.env.step(action)
        reward, steps = float(row.reward), int(row.env_steps)
        for _ in range(self.repeat - 1):
            if row.is_last:
                break
            row = self.env.step(action)
            reward, steps = reward + float(row.reward), steps + int(row.env_steps)
        row.reward, row.env_steps = np.array(reward, np.float32), np.array(steps, np.int64)
        return row


class Pixels(Wrapper):
    """Nothing but pictures is observed: the environment's own if it has any, else ``render()`` as "image"."""

    def __init__(self, env: Env, size: int | None) -> None:
        super().__init__(env)
        self.size, self.rules = size, env.rules if len(env.obs_space) == 1 else None
        self.own = {key: space for key, space in env.obs_space.items() if space.is_image}
        if self.own:
            self.obs_space = self.own
        elif size is not None:
            self.obs_space = {"image": Space((size, size, 3), "uint8")}
        else:
            env.reset(0)
            self.obs_space = {"image": Space(env.render().shape, "uint8")}

    def reset(self, seed: int) -> Step:
        return self._look(self.env.reset(seed))

    def step(self, action: np.ndarray) -> Step:
        return self._look(self.env.step(action))

    def _look(self, row: Step) -> Step:
        if self.own:
            row.obs = {key: row.obs[key] for key in self.own}
        else:
            frame = self.env.render()
            row.obs = {"image": frame if self.size is None else resize(frame, self.size)}
        return row


class Resize(Wrapper):
    """Every picture becomes ``size`` x ``size`` by area averaging; vectors pass."""

    def __init__(self, env: Env, size: int) -> None:
        super().__init__(env)
        self.size, self.rules = size, None
        self.keys = [key for key, space in env.obs_space.items() if space.is_image]
        grown = {key: Space((size, size, env.obs_space[key].shape[2]), "uint8") for key in self.keys}
        self.obs_space = {**env.obs_space, **grown}

    def reset(self, seed: int) -> Step:
        return self._resize(self.env.reset(seed))

    def step(self, action: np.ndarray) -> Step:
        return self._resize(self.env.step(action))

    def _resize(self, row: Step) -> Step:
        for key in self.keys:
            row.obs[key] = resize(row.obs[key], self.size)
        return row
