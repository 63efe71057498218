"""Any Gymnasium environment, untouched: by its name, or as it is.

Its spaces become ours (``spaces.py``), its rows ours, and MuJoCo draws as it is asked to.
"""

import difflib
import importlib
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np

from reverie.envs import robotics
from reverie.envs.base import Env, Goals, Rules, after, check_action, first, hushed
from reverie.envs.pixels import MuJoCoCamera, choose_gl, choose_sdl, preset
from reverie.envs.spaces import actions, entries
from reverie.types import ReverieError, Step


class Gymnasium(Env):
    """A ``gymnasium.Env`` as ours. ``name`` is what error messages call it.

    ``size``, ``renderer`` and ``camera`` say how a MuJoCo environment is drawn; others draw themselves.
    Raises ``ReverieError`` for spaces without a canonical form and for observations that betray their space.
    """

    def __init__(
        self,
        env: Any,
        name: str | None = None,
        *,
        size: int | None = None,
        renderer: str = "near",
        camera: int | str | None = None,
    ) -> None:
        if not isinstance(env, gymnasium.Env):
            kind = f"{type(env).__module__}.{type(env).__name__}"
            raise ReverieError(
                f"expected a gymnasium.Env, got {kind}; wrap an environment of the old gym with shimmy's "
                "GymV26CompatibilityV0, and give vector environments one by one."
            )
        self.env = env
        self.name = name or (env.spec.id if env.spec else type(env.unwrapped).__name__)
        self._count, self._running = 0, False
        self._entries = entries(env.observation_space, self.name, (env.metadata or {}).get("channels", ""))
        self.obs_space = {key: space for key, space, _, _ in self._entries}
        self.act_space, self._theirs = actions(env.action_space, self.name)
        self.goals = _goals(env)
        rules = getattr(env.unwrapped, "rules", None)
        self.rules = rules if isinstance(rules, Rules) else None
        self._drawing = (size or 240, renderer, camera)
        self._camera: MuJoCoCamera | None = None
        scalable = isinstance(getattr(env.unwrapped, "screen_dim", None), int)
        if preset(renderer).shadowsize is not None and size and scalable:
            setattr(env.unwrapped, "screen_dim", 2 * size)  # noqa: B010 (it draws to scale: the same with less paint)

    def reset(self, seed: int) -> Step:
        answer = self.env.reset(seed=seed)
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise ReverieError(f"{self.name}: reset() must return (observation, info), as in Gymnasium.")
        self._count, self._running = 0, True
        return first(self._obs(answer[0]))

    def step(self, action: np.ndarray) -> Step:
        if not self._running:
            raise ReverieError(f"{self.name}: step() before reset(), or after a last row; call reset(seed).")
        answer = self.env.step(self._theirs(check_action(action, self.act_space, self.name)))
        if not (isinstance(answer, tuple) and len(answer) == 5):
            raise ReverieError(
                f"{self.name}: step() must return (observation, reward, terminated, truncated, info), "
                "as in Gymnasium."
            )
        raw, reward, terminated, truncated, _ = answer
        self._count += 1
        self._running = not (terminated or truncated)
        return after(self._obs(raw), self._number(reward), bool(terminated), bool(truncated))

    def _number(self, reward: Any) -> float:
        try:
            number = float(reward) if np.ndim(reward) == 0 else float(np.asarray(reward).item())
        except (TypeError, ValueError):
            raise ReverieError(
                f"{self.name}: the reward at step {self._count} is {reward!r}, not a number."
            ) from None
        if not abs(number) < 3.4e38:  # float32 ends here; NaN fails too
            raise ReverieError(f"{self.name}: the reward at step {self._count} is {number}, not finite.")
        return number

    def _obs(self, raw: Any) -> dict[str, np.ndarray]:
        obs = {}
        for key, space, path, read in self._entries:
            try:
                value = raw
                for part in path:
                    value = value[part]
                value = read(value)
            except Exception as error:
                raise ReverieError(
                    f"{self.name}: observation {key!r} at step {self._count} does not fit its space: {error}."
                ) from error
            if space.dtype == "float32" and not np.isfinite(value).all():
                raise ReverieError(
                    f"{self.name}: observation {key!r} is not finite (NaN or infinite) at step {self._count}."
                )
            obs[key] = value
        return obs

    def render(self) -> np.ndarray:
        if self._camera is None and self._is_mujoco():
            size, renderer, camera = self._drawing
            world: Any = self.env.unwrapped
            self._camera = MuJoCoCamera(world.model, world.data, size, renderer, _viewpoint(world, camera))
        if self._camera is not None:
            return self._camera()
        choose_sdl()
        with warnings.catch_warnings():  # without a render mode most only warn, and some draw all the same
            warnings.simplefilter("ignore")
            try:
                frame: Any = self.env.render()
            except NotImplementedError:
                frame = None
        if isinstance(frame, list) and frame:
            frame = frame[-1]
        if not (isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[2] == 3):
            raise ReverieError(
                f"{self.name} gives no picture: its render() returned {type(frame).__name__}; make it with "
                'render_mode="rgb_array", or train without pixels.'
            )
        return frame

    def _is_mujoco(self) -> bool:
        module = sys.modules.get("mujoco")
        return module is not None and isinstance(getattr(self.env.unwrapped, "model", None), module.MjModel)

    def close(self) -> None:
        if self._camera is not None:
            self._camera.close()
        self.env.close()


def make(name: str, *, endless: bool = False, **drawing: Any) -> Gymnasium:
    """The environment registered with Gymnasium as ``name``, able to draw itself where it can.

    ``endless`` leaves its registered time limit out. Raises ``ReverieError`` for unknown names, with close
    ones, and for packages that are missing.
    """
    choose_sdl()
    choose_gl()
    name = name.removeprefix("gym/")
    module, _, plain = name.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        if plain.startswith(robotics.NAMES):
            robotics.register(name)
        with warnings.catch_warnings(), hushed("absl"):
            warnings.simplefilter("ignore")
            options: dict[str, Any] = {"disable_env_checker": True}
            if endless:
                options["max_episode_steps"] = -1
            metadata = _metadata(gymnasium.spec(plain))
            if "rgb_array" in metadata.get("render_modes", []):
                options["render_mode"] = "rgb_array"
            if drawing.get("size"):
                options |= metadata.get("pixels", {})  # how to ask a world of ours for pictures
            env = gymnasium.make(plain, **options)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        raise ReverieError(_unknown(name, plain)) from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise ReverieError(f"{name} needs a package that is missing{_extra(plain)}: {error}.") from error
    except gymnasium.error.Error as error:
        raise ReverieError(f"Gymnasium cannot make {name!r}: {error}") from error
    return Gymnasium(env, name, **drawing)


def _metadata(spec: Any) -> dict[str, Any]:
    creator = spec.entry_point
    if isinstance(creator, str):
        creator = gymnasium.envs.registration.load_env_creator(creator)
    return getattr(creator, "metadata", None) or {}


def _unknown(name: str, plain: str) -> str:
    known = [key for key in gymnasium.registry if not key.startswith(("phys2d/", "tabular/"))]
    lower = {key.lower(): key for key in known}
    close = [lower[key] for key in difflib.get_close_matches(plain.lower(), lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else "try Pendulum-v1 or dmc/cartpole_swingup."
    return f"there is no environment {name!r}; {hint}"


def _extra(plain: str) -> str:
    spec = gymnasium.registry.get(plain)
    entry = str(spec.entry_point) if spec else ""
    for word, extra in (("mujoco", "mujoco"), ("box2d", "box2d"), ("ale_py", "atari")):
        if word in entry:
            return f", pip install 'reverie[{extra}]'"
    return ", pip install 'reverie[atari]'" if plain.startswith("ALE/") else ""


def _viewpoint(world: Any, camera: int | str | None) -> Any:
    """The camera asked for, else "track" where the model has it, else the environment's own free camera.

    That one looks at the middle of all shapes; here of the model at rest, so that pictures do not depend on
    the episode that was drawn first.
    """
    import mujoco

    if camera is not None:
        return camera
    if mujoco.mj_name2id(world.model, mujoco.mjtObj.mjOBJ_CAMERA, "track") >= 0:
        return "track"
    rest = mujoco.MjData(world.model)
    mujoco.mj_forward(world.model, rest)
    free = mujoco.MjvCamera()
    free.type = mujoco.mjtCamera.mjCAMERA_FREE
    free.lookat[:] = np.median(rest.geom_xpos, axis=0)
    free.distance = world.model.stat.extent
    settings = getattr(getattr(world, "mujoco_renderer", None), "default_cam_config", None) or {}
    for key, value in settings.items():
        if isinstance(value, np.ndarray):
            getattr(free, key)[:] = value
        else:
            setattr(free, key, value)
    return free


# Goals ----------------------------------------------------------------------------------------------------


def _goals(env: Any) -> Goals | None:
    """How an environment of Gymnasium's goal interface judges; None where it has no ``compute_reward``."""
    if not env.has_wrapper_attr("compute_reward"):
        return None
    reward = env.get_wrapper_attr("compute_reward")
    ends = env.get_wrapper_attr("compute_terminated") if env.has_wrapper_attr("compute_terminated") else None

    def judge(function: Any, achieved: np.ndarray, desired: np.ndarray, dtype: Any) -> np.ndarray:
        answer = np.asarray(function(achieved, desired, {}))
        if answer.shape != (len(achieved),):  # it answers for one pair at a time
            answer = np.array([function(a, d, {}) for a, d in zip(achieved, desired, strict=True)])
        return answer.astype(dtype).reshape(len(achieved))

    def terminated(achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        return np.zeros(len(achieved), bool) if ends is None else judge(ends, achieved, desired, np.bool_)

    return Goals(lambda achieved, desired: judge(reward, achieved, desired, np.float32), terminated)
