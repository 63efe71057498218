"""Any Gymnasium environment, untouched: its spaces become ours here, or are refused in a sentence.

Observations: a Box is a float32 vector, or a picture when it is one (uint8 of 2 or 3 dimensions, or 3
dimensions with bounds [0, 1] or [0, 255]). Its channels come first or last: an environment may say which,
``metadata = {"channels": "last"}``, and otherwise their number tells. Discrete and MultiDiscrete are one-hot, a
MultiBinary is a vector of 0 and 1; Dict and Tuple nest, their keys joined by slashes. A lone entry is called
"image" or "vector".

Actions: a bounded Box is scaled from [-1, 1]; Discrete and MultiDiscrete are one-hot groups, and each entry
of a MultiBinary is a group of two.
"""

import difflib
import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs import robotics
from reverie.envs.base import Env, Goals, Rules, after, check_action, first, hushed
from reverie.envs.pixels import MuJoCoCamera, choose_gl, choose_sdl, preset
from reverie.types import ActionSpace, ReverieError, Space, Step

# Names of a row's other parts, and of an agent's other losses: a loss is called after what it predicts.
TAKEN: tuple[str, ...] = (
    "is_first",
    "is_last",
    "is_terminal",
    "reward",
    "action",
    "prev_action",
    "env_steps",
)
TAKEN += ("kl", "dyn", "rep", "cont", "overshooting", "actor", "critic", "replay")
Reader = Callable[[Any], np.ndarray]  # the environment's entry -> our array
Entry = tuple[str, Space, tuple[Any, ...], Reader]  # key, our space, path into the raw observation, reader


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
        self._entries = _entries(env.observation_space, self.name, (env.metadata or {}).get("channels", ""))
        self.obs_space = {key: space for key, space, _, _ in self._entries}
        self.act_space, self._theirs = _action(env.action_space, self.name)
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


# Spaces of observations -----------------------------------------------------------------------------------


def _entries(space: Any, name: str, channels: str) -> list[Entry]:
    """Every entry of an observation space, flat. ``channels`` of pictures: "first", "last", or "" if nobody says."""
    found: list[Entry] = []

    def visit(space: Any, key: str, path: tuple[Any, ...]) -> None:
        children: Any = None
        if isinstance(space, spaces.Dict):
            children = space.spaces.items()
        elif isinstance(space, spaces.Tuple):
            children = enumerate(space.spaces)
        if children is not None:
            for child, inner in children:
                visit(inner, f"{key}/{child}" if key else str(child), (*path, child))
            return
        ours, read = _leaf(space, key, name, channels)
        if 0 not in ours.shape:
            found.append((key or ("image" if ours.is_image else "vector"), ours, path, read))

    visit(space, "", ())
    keys = [key for key, *_ in found]
    if not keys:
        raise ReverieError(f"{name} shows nothing: its observation space {space} has no entries.")
    for key in keys:
        if key in TAKEN or keys.count(key) > 1:
            raise ReverieError(
                f"{name}: the observation key {key!r} is taken; rename it, e.g. with "
                "gymnasium.wrappers.TransformObservation."
            )
    return found


def _leaf(space: Any, key: str, name: str, channels: str) -> tuple[Space, Reader]:
    if isinstance(space, spaces.Box):
        return _picture(space, channels) or _vector(space.shape)
    if isinstance(space, spaces.Discrete):
        return _one_hot(np.array([space.n]), np.array([space.start]))
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot(np.ravel(space.nvec), np.ravel(getattr(space, "start", np.zeros_like(space.nvec))))
    if isinstance(space, spaces.MultiBinary):
        return _vector(space.shape)
    raise ReverieError(
        f"{name}: its observation{f' {key!r}' if key else ''} is a {type(space).__name__} space, which has "
        "no fixed size; make it a Box with gymnasium.wrappers.TransformObservation, or leave it out with "
        "FilterObservation."
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
    offsets = np.cumsum(counts) - counts
    total = int(counts.sum())

    def read(raw: Any) -> np.ndarray:
        pick = np.asarray(raw).reshape(-1) - start
        if pick.shape != counts.shape or (pick < 0).any() or (pick >= counts).any():
            raise ValueError(
                f"expected from {start.tolist()} up to {(start + counts - 1).tolist()}, got {raw}"
            )
        value = np.zeros(total, np.float32)
        value[offsets + pick.astype(np.int64)] = 1.0
        return value

    return Space((total,)), read


def _picture(space: Any, channels: str) -> tuple[Space, Reader] | None:
    """The space and reader of a Box that is a picture, or None if it is none."""
    shape = space.shape
    if len(shape) not in (2, 3) or 0 in shape:
        return None
    bounds = {
        float(space.low.min()),
        float(space.low.max()),
        float(space.high.min()),
        float(space.high.max()),
    }
    if space.dtype != np.uint8 and not (len(shape) == 3 and bounds in ({0.0, 1.0}, {0.0, 255.0})):
        return None
    scale = np.float32(255.0 if bounds == {0.0, 1.0} else 1.0)
    turned = len(shape) == 3 and (channels == "first" if channels else _channels_first(*shape))
    ours = (*shape, 1) if len(shape) == 2 else (*shape[1:], shape[0]) if turned else shape
    essence = tuple(n for n in shape if n != 1)

    def read(raw: Any) -> np.ndarray:
        value = np.asarray(raw)
        if tuple(n for n in value.shape if n != 1) != essence:
            raise ValueError(f"expected shape {shape}, got {value.shape}")
        if value.dtype != np.uint8 or scale != 1.0:
            value = value.astype(np.float32) * scale
            if not np.isfinite(value).all():
                raise ValueError("it is not finite (NaN or infinite)")
            low, high = float(value.min() / scale), float(value.max() / scale)
            if low * scale < -1.0 or high * scale > 256.0:  # a rounding error may pass, not another scale
                raise ValueError(f"expected values in [0, {255 / scale:g}], got {low:g} to {high:g}")
            value = np.clip(np.rint(value), 0, 255)
        if turned:
            value = value.reshape(shape).transpose(1, 2, 0)
        return np.array(value, np.uint8, order="C").reshape(ours)

    return Space(tuple(int(n) for n in ours), "uint8"), read


def _channels_first(first: int, middle: int, last: int) -> bool:
    """A guess: 1, 3 or 4 at the end are channels; what is left of a square are channels; and so are few before many.
    A small board with a plane for each kind of thing is none of these, and stays as it is."""
    if last in (1, 3, 4) or first == middle:
        return False
    return middle == last or 2 * first <= min(middle, last)


# Spaces of actions ----------------------------------------------------------------------------------------


def _action(space: Any, name: str) -> tuple[ActionSpace, Callable[[np.ndarray], Any]]:
    """Our action space, and the function from our actions to the environment's."""
    if isinstance(space, spaces.Box):
        return _scaled(space, name)
    if isinstance(space, spaces.Discrete):
        start, n = space.start, int(space.n)
        return ActionSpace(n, (n,)), lambda action: start + action.argmax()
    if isinstance(space, spaces.MultiDiscrete):
        return _groups(space.nvec, getattr(space, "start", np.zeros_like(space.nvec)), space)
    if isinstance(space, spaces.MultiBinary):
        return _groups(np.full(space.shape, 2), np.zeros(space.shape, np.int64), space)
    raise ReverieError(
        f"{name}: actions from a {type(space).__name__} space are not supported; make them one Box, "
        "Discrete, MultiDiscrete or MultiBinary with gymnasium.wrappers.TransformAction."
    )


def _scaled(space: Any, name: str) -> tuple[ActionSpace, Callable[[np.ndarray], Any]]:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if low.size == 0:
        raise ReverieError(f"{name}: its action space {space} is empty; an agent needs at least one action.")
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ReverieError(
            f"{name}: its actions have no bounds ({space}) to scale [-1, 1] to; give them some, e.g. with "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, "
            f"gymnasium.spaces.Box(-1.0, 1.0, {space.shape}))."
        )
    centre, half = ((low + high) / 2).ravel(), ((high - low) / 2).ravel()
    whole = np.issubdtype(space.dtype, np.integer)

    def theirs(action: np.ndarray) -> np.ndarray:
        value = (centre + half * np.clip(action, -1.0, 1.0)).reshape(space.shape)
        return (np.rint(value) if whole else value).astype(space.dtype)

    return ActionSpace(int(low.size)), theirs


def _groups(
    counts: np.ndarray, start: np.ndarray, space: Any
) -> tuple[ActionSpace, Callable[[np.ndarray], Any]]:
    groups = tuple(int(n) for n in np.ravel(counts))
    ends = [int(end) for end in np.cumsum(groups)]
    slices = [slice(end - n, end) for n, end in zip(groups, ends, strict=True)]

    def theirs(action: np.ndarray) -> np.ndarray:
        picks = np.array([action[part].argmax() for part in slices])
        return (picks.reshape(counts.shape) + start).astype(space.dtype)

    return ActionSpace(sum(groups), groups), theirs
