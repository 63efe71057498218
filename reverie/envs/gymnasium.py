"""Any Gymnasium environment, untouched: its spaces become ours here, or are refused in a sentence.

Observations: a Box is a float32 vector, or a picture when it is one (uint8 of 2 or 3 dimensions, or 3 dimensions with
bounds [0, 1] or [0, 255]; channels may come first or last); Discrete and MultiDiscrete are one-hot, MultiBinary is
a vector of 0 and 1; Dict and Tuple nest, their keys joined by slashes. A lone entry is called "image" or "vector".

Actions: a bounded Box is scaled from [-1, 1]; Discrete and MultiDiscrete are one-hot groups, each entry of a MultiBinary
a group of two.
"""

import difflib
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs.base import Env, after, check_action, first
from reverie.envs.pixels import MuJoCoCamera, choose_gl, preset
from reverie.types import ActionSpace, ReverieError, Space, Step

FLAGS = ("is_first", "is_last", "is_terminal", "reward", "action", "prev_action")
Reader = Callable[[Any], np.ndarray]


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
            raise ReverieError(
                f"expected a gymnasium.Env, got {type(env).__module__}.{type(env).__name__}; an environment of the old "
                "gym can be wrapped with shimmy's GymV26CompatibilityV0."
            )
        self.env = env
        self.name = name or (env.spec.id if env.spec else type(env.unwrapped).__name__)
        self._count, self._running = 0, False
        self._read = _readers(env.observation_space, self.name)
        self.obs_space = {key: space for key, space, _, _ in self._read}
        self.act_space, self._foreign = _action(env.action_space, self.name)
        preset(renderer)
        self._drawing = (size or 64, renderer, camera)
        self._camera: MuJoCoCamera | None = None
        if size and renderer != "reference" and isinstance(getattr(env.unwrapped, "screen_dim", None), int):
            env.unwrapped.screen_dim = 2 * size  # type: ignore[attr-defined]  # it draws to scale: same picture, less paint

    def reset(self, seed: int) -> Step:
        answer = self.env.reset(seed=seed)
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise ReverieError(f"{self.name}: reset() must return (observation, info), as Gymnasium's do.")
        self._count, self._running = 0, True
        return first(self._obs(answer[0]))

    def step(self, action: np.ndarray) -> Step:
        if not self._running:
            raise ReverieError(f"{self.name}: step() before reset(), or after a last row; call reset(seed).")
        answer = self.env.step(self._foreign(check_action(action, self.act_space, self.name)))
        if not (isinstance(answer, tuple) and len(answer) == 5):
            raise ReverieError(
                f"{self.name}: step() must return (observation, reward, terminated, truncated, info), as Gymnasium's do."
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
                f"{self.name}: the reward {reward!r} at step {self._count} is not a number."
            ) from None
        if not abs(number) <= 3.4e38:
            raise ReverieError(
                f"{self.name}: the reward is {number} at step {self._count}; expected a finite number."
            )
        return number

    def _obs(self, raw: Any) -> dict[str, np.ndarray]:
        obs = {}
        for key, space, path, read in self._read:
            try:
                value = raw
                for part in path:
                    value = value[part]
                value = read(value)
            except Exception as error:
                raise ReverieError(
                    f"{self.name}: the observation {key!r} at step {self._count} does not fit its space: {error}."
                ) from error
            if space.dtype == "float32" and not np.isfinite(value).all():
                raise ReverieError(
                    f"{self.name}: the observation {key!r} is not finite (NaN or infinite) at step {self._count}."
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
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy") if _headless() else None
        frame = self.env.render()
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


def make(name: str, *, time_limit: int | None = None, **drawing: Any) -> Gymnasium:
    """The environment registered with Gymnasium as ``name``, able to draw itself where it can.

    ``time_limit`` in env steps replaces the registered one. Raises ``ReverieError`` for unknown names, with close
    ones, and for packages that are missing.
    """
    name = name.removeprefix("gym/")
    if _headless():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    choose_gl()
    options: dict[str, Any] = {"disable_env_checker": True}
    if time_limit is not None:
        options["max_episode_steps"] = -1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = _make(name, options)
    except gymnasium.error.UnregisteredEnv as error:
        raise ReverieError(_unknown(name)) from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise ReverieError(f"{name} needs a package that is not here: {error}{_extra(name)}") from error
    except gymnasium.error.Error as error:
        raise ReverieError(f"Gymnasium cannot make {name!r}: {error}") from error
    return Gymnasium(env, name, **drawing)


def _make(name: str, options: dict[str, Any]) -> Any:
    modes: list[str] = []
    module, _, plain = name.rpartition(":")
    if module:
        __import__(module)
    spec = gymnasium.spec(plain)
    if spec.entry_point is not None:
        creator: Any = spec.entry_point
        if isinstance(creator, str):
            creator = gymnasium.envs.registration.load_env_creator(creator)
        modes = (getattr(creator, "metadata", None) or {}).get("render_modes", [])
    if "rgb_array" in modes:
        options = {**options, "render_mode": "rgb_array"}
    return gymnasium.make(plain, **options)


def _unknown(name: str) -> str:
    known = [key for key in gymnasium.registry if not key.startswith(("phys2d/", "tabular/"))]
    lower = {key.lower(): key for key in known}
    close = [lower[key] for key in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else "try Pendulum-v1, CartPole-v1 or dmc/cartpole_swingup."
    )
    return f"there is no environment {name!r}; {hint}"


def _extra(name: str) -> str:
    spec = gymnasium.registry.get(name.rpartition(":")[2])
    entry = str(spec.entry_point) if spec else ""
    for word in ("mujoco", "box2d"):
        if word in entry:
            return f" (pip install 'reverie[{word}]')"
    return " (pip install 'reverie[atari]')" if name.startswith("ALE/") else ""


def _headless() -> bool:
    return sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def _viewpoint(world: Any, camera: int | str | None) -> Any:
    """The camera asked for, else "track" where the model has it, else the environment's own free camera."""
    import mujoco

    if camera is not None:
        return camera
    if mujoco.mj_name2id(world.model, mujoco.mjtObj.mjOBJ_CAMERA, "track") >= 0:
        return "track"
    free = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(world.model, free)
    settings = getattr(getattr(world, "mujoco_renderer", None), "default_cam_config", None) or {}
    for key, value in settings.items():
        if isinstance(value, np.ndarray):
            getattr(free, key)[:] = value
        else:
            setattr(free, key, value)
    return free


# Spaces of observations ------------------------------------------------------------------------------------------


def _readers(space: Any, name: str) -> list[tuple[str, Space, tuple[Any, ...], Reader]]:
    """(key, our space, path into the raw observation, raw entry -> our array) of every entry."""
    found: list[tuple[str, Space, tuple[Any, ...], Reader]] = []

    def visit(space: Any, key: str, path: tuple[Any, ...]) -> None:
        if isinstance(space, spaces.Dict):
            children = list(space.spaces.items())
        elif isinstance(space, spaces.Tuple):
            children = list(enumerate(space.spaces))
        else:
            ours, read = _entry(space, key, name)
            if 0 in ours.shape:
                return
            found.append((key or ("image" if ours.is_image else "vector"), ours, path, read))
            return
        for child, inner in children:
            visit(inner, f"{key}/{child}" if key else str(child), (*path, child))

    visit(space, "", ())
    keys = [key for key, *_ in found]
    if not keys:
        raise ReverieError(f"{name} shows nothing: its observation space {space} has no entries.")
    for key in keys:
        if key in FLAGS or keys.count(key) > 1:
            raise ReverieError(
                f"{name}: the observation key {key!r} is taken; rename it with gymnasium.wrappers.TransformObservation."
            )
    return found


def _entry(space: Any, key: str, name: str) -> tuple[Space, Reader]:
    where = f"the observation {key!r}" if key else "the observation"
    if isinstance(space, spaces.Box):
        return _picture(space) or _vector(space.shape)
    if isinstance(space, spaces.Discrete):
        return _one_hot(np.array([space.n]), np.array([space.start]))
    if isinstance(space, spaces.MultiDiscrete):
        start = getattr(space, "start", np.zeros_like(space.nvec))
        return _one_hot(np.asarray(space.nvec).ravel(), np.asarray(start).ravel())
    if isinstance(space, spaces.MultiBinary):
        return _vector(space.shape)
    raise ReverieError(
        f"{name}: {where} is a {type(space).__name__} space, which has no fixed-size array; turn it into a Box with "
        "gymnasium.wrappers.TransformObservation, or drop it with FilterObservation."
    )


def _vector(shape: tuple[int, ...]) -> tuple[Space, Reader]:
    size = int(np.prod(shape))

    def read(raw: Any) -> np.ndarray:
        value = np.array(raw, np.float32).reshape(-1)
        if value.size != size:
            raise ValueError(f"expected shape {shape}, got {np.shape(raw)}")
        return value

    return Space((size,)), read


def _one_hot(counts: np.ndarray, start: np.ndarray) -> tuple[Space, Reader]:
    offsets = np.concatenate([[0], np.cumsum(counts)[:-1]])
    total = int(counts.sum())

    def read(raw: Any) -> np.ndarray:
        pick = np.asarray(raw).reshape(-1) - start
        if pick.shape != counts.shape or (pick < 0).any() or (pick >= counts).any():
            raise ValueError(
                f"expected {len(counts)} numbers below {counts.tolist()} from {start.tolist()}, got {raw}"
            )
        value = np.zeros(total, np.float32)
        value[offsets + pick.astype(np.int64)] = 1.0
        return value

    return Space((total,)), read


def _picture(space: Any) -> tuple[Space, Reader] | None:
    """The space and reader of a Box that is a picture, or None if it is none."""
    shape, low, high = space.shape, space.low, space.high
    if len(shape) not in (2, 3) or space.dtype.kind == "c" or not np.size(low):
        return None
    bounds = (float(low.min()), float(low.max()), float(high.min()), float(high.max()))
    unit = bounds == (0.0, 0.0, 1.0, 1.0)
    if space.dtype != np.uint8 and not (len(shape) == 3 and (unit or bounds == (0.0, 0.0, 255.0, 255.0))):
        return None
    turned = len(shape) == 3 and shape[2] not in (1, 3, 4) and shape[0] < min(shape[1:])
    ours = (*shape, 1) if len(shape) == 2 else (*shape[1:], shape[0]) if turned else shape
    scale = 255.0 if unit else 1.0

    def read(raw: Any) -> np.ndarray:
        value = np.asarray(raw)
        if value.shape != shape and (
            value.size != np.prod(shape) or value.squeeze().shape != tuple(d for d in shape if d != 1)
        ):
            raise ValueError(f"expected shape {shape}, got {value.shape}")
        if value.dtype != np.uint8 or scale != 1.0:
            value = value.astype(np.float32) * np.float32(scale)
            if not np.isfinite(value).all():
                raise ValueError("it is not finite (NaN or infinite)")
            if value.min() < -1.0 or value.max() > 256.0:
                raise ValueError(
                    f"expected values in [0, {255 / scale:g}], got {value.min() / scale:g} to {value.max() / scale:g}"
                )
            value = np.clip(np.rint(value), 0, 255)
        if turned:
            value = value.reshape(shape).transpose(1, 2, 0)
        return np.array(value, np.uint8, order="C").reshape(ours)

    return Space(tuple(int(n) for n in ours), "uint8"), read


# Spaces of actions -----------------------------------------------------------------------------------------------


def _action(space: Any, name: str) -> tuple[ActionSpace, Callable[[np.ndarray], Any]]:
    """Our action space, and the function from our actions to the environment's."""
    if isinstance(space, spaces.Box):
        return _scaled(space, name)
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return ActionSpace(int(space.n), (int(space.n),)), lambda action: start + int(action.argmax())
    if isinstance(space, spaces.MultiDiscrete):
        start = np.broadcast_to(getattr(space, "start", 0), space.nvec.shape)
        return _groups(tuple(int(n) for n in space.nvec.ravel()), space.shape, space.dtype, start)
    if isinstance(space, spaces.MultiBinary):
        return _groups((2,) * int(np.prod(space.shape)), space.shape, space.dtype, np.zeros(space.shape))
    raise ReverieError(
        f"{name}: actions from a {type(space).__name__} space are not supported; make them one Box, Discrete, MultiDiscrete "
        "or MultiBinary with gymnasium.wrappers.TransformAction."
    )


def _scaled(space: Any, name: str) -> tuple[ActionSpace, Callable[[np.ndarray], Any]]:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ReverieError(
            f"{name}: its actions are unbounded ({space}), so there is nothing to scale [-1, 1] to; give them bounds, e.g. "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box(-1.0, 1.0, shape))."
        )
    if low.size == 0:
        raise ReverieError(f"{name}: its action space {space} is empty; an agent needs at least one action.")
    centre, half = ((low + high) / 2).ravel(), ((high - low) / 2).ravel()
    whole = np.issubdtype(space.dtype, np.integer)

    def foreign(action: np.ndarray) -> np.ndarray:
        value = (centre + half * np.clip(action, -1.0, 1.0)).reshape(space.shape)
        return (np.rint(value) if whole else value).astype(space.dtype)

    return ActionSpace(int(low.size)), foreign


def _groups(
    groups: tuple[int, ...], shape: tuple[int, ...], dtype: Any, start: np.ndarray
) -> tuple[ActionSpace, Callable[[np.ndarray], Any]]:
    ends = np.cumsum(groups)

    def foreign(action: np.ndarray) -> np.ndarray:
        pick = [int(action[end - n : end].argmax()) for n, end in zip(groups, ends, strict=True)]
        return (np.array(pick).reshape(shape) + start).astype(dtype)

    return ActionSpace(sum(groups), groups), foreign
