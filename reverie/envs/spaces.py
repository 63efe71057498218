"""Spaces of Gymnasium as ours, or refused in a sentence.

Observations: a Box is a float32 vector, or a picture when it is one (uint8 of 2 or 3 dimensions, or 3
dimensions with bounds [0, 1] or [0, 255]). Its channels come first or last: an environment may say which,
``metadata = {"channels": "last"}``, and otherwise their number tells. Discrete and MultiDiscrete are one-hot, a
MultiBinary is a vector of 0 and 1; Dict and Tuple nest, their keys joined by slashes. A lone entry is called
"image" or "vector".

Actions: a bounded Box is scaled from [-1, 1]; Discrete and MultiDiscrete are one-hot groups, and each entry
of a MultiBinary is a group of two.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from reverie.types import ActionSpace, ReverieError, Space

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


def entries(space: Any, name: str, channels: str) -> list[Entry]:
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


# Actions


def actions(space: Any, name: str) -> tuple[ActionSpace, Callable[[np.ndarray], Any]]:
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
