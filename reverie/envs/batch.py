"""n environments that are one: a native ``VectorEnv`` of ours, stepped as one batch, with the rows of ``SerialEnvs``.

Each episode of each stream is seeded on its own, as everywhere in this house, so a batch can be brought back, and
what it shows is row for row what the single environments would.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode

from reverie.envs.gymnasium import Gymnasium
from reverie.envs.vector import Envs, Job, Outcome, episode_seed
from reverie.types import ReverieError, Step


def batched(name: str) -> Any:
    """The class that steps many of ``name`` as one batch, or None.

    It must be registered with Gymnasium as a vector entry point, take a list of seeds and a ``reset_mask``, and hand
    out its state (``get_state``, ``set_state``); its worlds show one picture and take one choice.
    """
    spec = gymnasium.registry.get(name)
    entry = spec.vector_entry_point if spec is not None else None
    if entry is None or not str(entry).startswith("reverie."):
        return None
    made = load_env_creator(entry) if isinstance(entry, str) else entry
    return made if hasattr(made, "get_state") and hasattr(made, "set_state") else None


class BatchEnvs(Envs):
    """``n`` streams of the registered environment ``name``; ``time_limit`` replaces its own. Spaces are those that
    ``make_env(name, image_size=None)`` has."""

    def __init__(self, name: str, n: int, seed: int, time_limit: int | None = None) -> None:
        make, spec = batched(name), gymnasium.spec(name)
        if make is None:
            raise ReverieError(f"{name} cannot be stepped as one batch; use SerialEnvs")
        options = dict(spec.kwargs)
        limit = time_limit or spec.max_episode_steps
        self.env = make(n, max_episode_steps=limit, autoreset_mode=AutoresetMode.NEXT_STEP, **options)
        single = Gymnasium(gymnasium.make(name, disable_env_checker=True), name)
        super().__init__(n, seed, single.obs_space, single.act_space)
        single.close()
        space = self.env.single_observation_space
        fits = len(self.obs_space) == 1 and isinstance(space, spaces.Box) and space.dtype == np.uint8
        if not fits or len(self.act_space.groups) != 1:
            raise ReverieError(f"{name} cannot be stepped as one batch: it needs one picture and one choice")
        self.key = next(iter(self.obs_space))
        self.scale = np.uint8(255 if float(space.high.max()) == 1.0 else 1)
        self.env.reset(seed=0)

    def step(self, action: np.ndarray, only: Any = None) -> Step:
        begun = min(self.episodes) >= 0
        if only is not None and len({int(i) for i in only}) == self.n:
            only = None
        if only is not None or not begun or self._lost or self._closed:
            return super().step(action, only)
        action = np.asarray(action)
        if action.shape != (self.n, self.act_space.size):
            raise ReverieError(
                f"{self.n} streams need actions of shape {(self.n, self.act_space.size)}, got {action.shape}."
            )
        over = self._flags["is_last"].copy()
        obs, reward, terminated, truncated, _ = self.env.step(action.argmax(1))
        if over.any():
            obs = self._begin(np.flatnonzero(over))
        ended = (terminated | truncated) & ~over
        flags = {
            "reward": np.where(over, 0.0, reward).astype(np.float32),
            "is_first": over,
            "is_last": ended,
            "is_terminal": terminated & ended,
            "env_steps": (~over).astype(np.int64),
        }
        self._flags = flags
        self._obs[self.key] = obs * self.scale if self.scale > 1 else obs
        return Step(
            {self.key: self._obs[self.key].copy()}, **{key: value.copy() for key, value in flags.items()}
        )

    def _begin(self, rows: np.ndarray) -> np.ndarray:
        """The next episode of each of ``rows``; what all show then."""
        seeds, mask = [0] * self.n, np.zeros(self.n, bool)
        for i in rows:
            self.episodes[i] += 1
            seeds[i], mask[i] = episode_seed(self.seed, int(i), self.episodes[i]), True
        return self.env.reset(seed=seeds, options={"reset_mask": mask})[0]

    def _run(self, jobs: dict[int, Job]) -> dict[int, Outcome]:
        """The general case: some streams begin, some take actions, the others stay as they are."""
        flags = {
            i: {"reward": 0.0, "is_first": True, "is_last": False, "is_terminal": False, "env_steps": 0}
            for i in jobs
        }
        outcomes: dict[int, Outcome] = {}
        fresh = {i: seed for i, (seed, _) in jobs.items() if seed is not None}
        if fresh:
            mask = np.isin(np.arange(self.n), list(fresh))
            self.env.reset(seed=[fresh.get(i) or 0 for i in range(self.n)], options={"reset_mask": mask})
        for k in range(max((len(actions) for _, actions in jobs.values()), default=0)):
            moving = [i for i, (_, actions) in jobs.items() if k < len(actions)]
            for i in [i for i in moving if flags[i]["is_last"]]:
                moving.remove(i)
                outcomes[i] = ReverieError(
                    f"cannot take {len(jobs[i][1])} actions: the episode ended after {k}."
                )
            still = np.setdiff1d(np.arange(self.n), moving)
            kept = self.env.get_state(still)
            picks = np.zeros(self.n, np.int64)
            for i in moving:
                picks[i] = jobs[i][1][k].argmax()
            _, reward, terminated, truncated, _ = self.env.step(picks)
            self.env.set_state(kept, still)
            for i in moving:
                flags[i] = {
                    "reward": float(reward[i]),
                    "is_first": False,
                    "is_last": bool(terminated[i] or truncated[i]),
                    "is_terminal": bool(terminated[i]),
                    "env_steps": 1,
                }
        obs = self.env.look() * self.scale
        for i in jobs:
            if i not in outcomes:
                row = {key: np.array(value, self._flags[key].dtype) for key, value in flags[i].items()}
                outcomes[i] = Step({self.key: obs[i]}, **row)
        return outcomes

    def _close(self) -> None:
        self.env.close()
