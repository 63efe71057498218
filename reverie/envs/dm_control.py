"""The DeepMind Control Suite (Tassa et al. 2018), ``dmc/<domain>_<task>``.

Nearly every task runs 1,000 env steps and ends by the clock: discount 1, so ``is_last`` and not
``is_terminal``. Camera 0, but camera 2 for the quadruped, which camera 0 loses. Actions are scaled from [-1,
1] to each dimension's bounds; only the quadruped's differ.
"""

import difflib
from typing import Any

import numpy as np

from reverie.envs.base import Env, after, check_action, first, hushed
from reverie.envs.pixels import MuJoCoCamera, choose_gl
from reverie.types import ActionSpace, ReverieError, Space, Step

ALIASES = {"cup_catch": "ball_in_cup_catch"}


class DMControl(Env):
    """One task of the suite; observations are its dictionary as float32 vectors (a scalar has length 1).

    ``size``, ``renderer`` and ``camera`` say how ``render()`` draws; ``endless`` takes the task's clock away.
    Raises ``ReverieError`` for a task that is not there, or when dm_control is not installed.
    """

    def __init__(
        self,
        task: str,
        *,
        size: int = 64,
        renderer: str = "near",
        camera: int | str | None = None,
        endless: bool = False,
    ) -> None:
        self.name = f"dmc/{task}"
        self._env = _load(task, endless)
        self._taken, self._running = 0, False
        spec = self._env.action_spec()
        low, high = np.broadcast_to(spec.minimum, spec.shape), np.broadcast_to(spec.maximum, spec.shape)
        self._centre, self._half = (low + high) / 2, (high - low) / 2
        self.act_space = ActionSpace(int(np.prod(spec.shape)))
        self.obs_space = {
            key: Space((max(1, int(np.prod(entry.shape))),))
            for key, entry in self._env.observation_spec().items()
            if 0 not in entry.shape
        }
        if camera is None:
            camera = 2 if task.startswith("quadruped") else 0
        physics = self._env.physics
        self._camera = MuJoCoCamera(physics.model.ptr, physics.data.ptr, size, renderer, camera)

    def reset(self, seed: int) -> Step:
        self._env.task.random.seed(seed)
        self._taken, self._running = 0, True
        return first(self._obs(self._env.reset()))

    def step(self, action: np.ndarray) -> Step:
        if not self._running:
            raise ReverieError(f"{self.name}: step() before reset(), or after a last row; call reset(seed).")
        action = np.clip(check_action(action, self.act_space, self.name), -1.0, 1.0)
        moment = self._env.step(self._centre + self._half * action)
        self._taken += 1
        terminated = bool(moment.last() and moment.discount == 0.0)
        self._running = not moment.last()
        reward = moment.reward
        if reward is None or not np.isfinite(reward):
            raise ReverieError(f"{self.name}: the reward at step {self._taken} is {reward}, not a number.")
        return after(self._obs(moment), float(reward), terminated, moment.last())

    def _obs(self, moment: Any) -> dict[str, np.ndarray]:
        obs = {}
        for key, space in self.obs_space.items():
            value = np.array(moment.observation[key], np.float32).reshape(space.shape)
            if not np.isfinite(value).all():
                raise ReverieError(f"{self.name}: observation {key!r} is not finite at step {self._taken}.")
            obs[key] = value
        return obs

    def render(self) -> np.ndarray:
        return self._camera()

    def close(self) -> None:
        self._camera.close()
        self._env.close()


def _load(task: str, endless: bool) -> Any:
    choose_gl()
    try:
        with hushed("absl"):
            from dm_control import suite
    except ImportError as error:
        raise ReverieError(
            f"dmc/{task} needs the DeepMind Control Suite: pip install 'reverie[dmc]' ({error})."
        ) from error
    names = {f"{domain}_{name}": (domain, name) for domain, name in suite.ALL_TASKS}
    task = ALIASES.get(task, task)
    if task not in names:
        close = difflib.get_close_matches(task, names, n=3, cutoff=0.5)
        known = [f"dmc/{name}" for name in close or names]
        hint = f"did you mean {' or '.join(known)}?" if close else f"there are {', '.join(known)}."
        raise ReverieError(f"the DeepMind Control Suite has no task {task!r}; {hint}")
    options: dict[str, Any] = {"random": 0}
    if endless:
        options["time_limit"] = float("inf")
    with hushed("absl"):
        return suite.load(*names[task], task_kwargs=options)
