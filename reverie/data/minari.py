"""Minari data sets in and out (extra ``minari``); the clocks differ, and are set at this border.

Minari keeps a reward beside the action that earned it, and one more observation than actions::

    Minari    observations   o0   o1   o2   o3          ours    obs      o0   o1   o2   o3
              actions        a0   a1   a2                       action   a0   a1   a2   --
              rewards        r1   r2   r3                       reward    0   r1   r2   r3
              terminations    0    0  0/1                       is_terminal 0  0    0  0/1

Spaces become ours as if the data set were an environment (``envs/gymnasium.py``): actions are scaled to
[-1, 1] or one-hot, pictures are uint8 "h w c". Data sets are HDF5 and JSON; nothing is unpickled.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.data.episodes import Episode, check
from reverie.envs.gymnasium import Gymnasium
from reverie.types import ActionSpace, ObsSpace, ReverieError


def load(name: str, download: bool = False) -> tuple[ObsSpace, ActionSpace, Iterator[Episode]]:
    """Spaces and episodes of the data set called ``name``, for example "D4RL/door/human-v2"."""
    minari = _minari()
    try:
        dataset = minari.load_dataset(name, download=download)
    except Exception as error:
        hint = "look at the name" if download else "look at the name, or let it be downloaded"
        raise ReverieError(f"the Minari data set {name!r} can not be loaded ({error}); {hint}") from error
    repeat = _Repeat(dataset.observation_space, dataset.action_space)
    env = Gymnasium(repeat, name)
    return env.obs_space, env.act_space, _rows(dataset, repeat, env)


def save(name: str, episodes: Iterable[Episode], act_space: ActionSpace, **about: Any) -> None:
    """Make a local Minari data set called ``name`` (for example "mine/catch/random-v0") of whole episodes.

    ``about`` goes to ``minari.create_dataset_from_buffers``: ``env``, ``author``, ``description`` and others.
    Pictures are kept without loss. ``env_steps`` has no place there and is left out.
    """
    minari = _minari()
    from minari.data_collector import EpisodeBuffer

    buffers, obs_space = [], None
    for number, episode in enumerate(episodes):
        check(episode, f"episode {number}")
        obs = {key.removeprefix("obs/"): value for key, value in episode.items() if key.startswith("obs/")}
        obs_space = obs_space or _nested({key: _box(value) for key, value in obs.items()})
        last, terminal = episode["is_last"][1:], episode["is_terminal"][1:]
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=_nested(obs),
                actions=_picks(episode["action"][:-1], act_space),
                rewards=episode["reward"][1:],
                terminations=terminal,
                truncations=last & ~terminal,
            )
        )
    if obs_space is None:
        raise ReverieError(f"the Minari data set {name!r} would be empty; finish an episode first")
    minari.create_dataset_from_buffers(
        name,
        buffers,
        observation_space=_space(obs_space),
        action_space=_action_space(act_space),
        data_format="hdf5",
        jpeg_encoding=False,
        **about,
    )


class _Repeat(gymnasium.Env):
    """A data set's episode as an environment: it shows what was recorded, whatever is done."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space
        self.episode: Any = None
        self.now = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.now = 0
        return _at(self.episode.observations, 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        t, self.now = self.now, self.now + 1
        terminated = bool(self.episode.terminations[t])
        truncated = bool(self.episode.truncations[t]) or self.now == len(self.episode.rewards)
        reward = float(self.episode.rewards[t])
        return _at(self.episode.observations, self.now), reward, terminated, truncated, {}


def _rows(dataset: Any, repeat: _Repeat, env: Gymnasium) -> Iterator[Episode]:
    ours = _ours(dataset.action_space)
    idle = np.zeros(env.act_space.size, np.float32)
    for episode in dataset.iterate_episodes():
        ends = np.flatnonzero(np.asarray(episode.terminations) | np.asarray(episode.truncations))
        n = len(episode.rewards)
        if n == 0 or ends.tolist() not in ([], [n - 1]):
            raise ReverieError(
                f"episode {episode.id} of {dataset.id} has {n} steps and ends at {ends.tolist()}; "
                f"it should end once, at its last"
            )
        repeat.episode = episode
        steps = [env.reset(seed=0), *(env.step(idle) for _ in range(n))]
        rows = {f"obs/{key}": np.stack([step.obs[key] for step in steps]) for key in env.obs_space}
        for field in ("reward", "env_steps", "is_first", "is_last", "is_terminal"):
            rows[field] = np.stack([getattr(step, field) for step in steps])
        actions = np.stack([ours(episode.actions[t]) for t in range(n)])
        yield rows | {"action": np.concatenate([actions, idle[None]])}


def _at(tree: Any, t: int) -> Any:
    if isinstance(tree, dict):
        return {key: _at(value, t) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_at(value, t) for value in tree)
    return tree[t]


def _ours(space: Any) -> Callable[[Any], np.ndarray]:
    """From a recorded action to ours: the way back of what ``Gymnasium`` does with an agent's actions."""
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        centre, half = (low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)
        return lambda action: np.clip((action - centre) / half, -1, 1).astype(np.float32).ravel()
    if isinstance(space, spaces.Discrete):
        counts, start = np.array([space.n]), np.array([space.start])
    elif isinstance(space, spaces.MultiDiscrete):
        counts, start = space.nvec.ravel(), space.start.ravel()
    else:  # MultiBinary; Gymnasium has refused the others
        counts = np.full(int(np.prod(space.shape)), 2)
        start = np.zeros_like(counts)
    places = np.cumsum(counts) - counts - start

    def one_hot(action: Any) -> np.ndarray:
        vector = np.zeros(int(counts.sum()), np.float32)
        vector[places + np.asarray(action).ravel()] = 1
        return vector

    return one_hot


def _picks(actions: np.ndarray, space: ActionSpace) -> np.ndarray:
    """One-hot groups "n A" as the numbers of the choices."""
    if not space.discrete:
        return actions
    parts = np.split(actions, np.cumsum(space.groups)[:-1], axis=1)
    picks = np.stack([part.argmax(axis=1) for part in parts], axis=1)
    return picks[:, 0] if len(space.groups) == 1 else picks


def _action_space(space: ActionSpace) -> spaces.Space:
    if not space.discrete:
        return spaces.Box(-1.0, 1.0, (space.size,), np.float32)
    return (
        spaces.Discrete(space.groups[0])
        if len(space.groups) == 1
        else spaces.MultiDiscrete(list(space.groups))
    )


def _box(rows: np.ndarray) -> spaces.Space:
    if rows.dtype == np.uint8:
        return spaces.Box(0, 255, rows.shape[1:], np.uint8)
    return spaces.Box(-np.inf, np.inf, rows.shape[1:], np.float32)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Keys with slashes become dicts in dicts, as they were before ``Gymnasium`` joined them."""
    tree: dict[str, Any] = {}
    for head, group in itertools.groupby(sorted(flat), key=lambda key: key.partition("/")[0]):
        keys = list(group)
        inner = {key.partition("/")[2]: flat[key] for key in keys if "/" in key}
        if inner and head in keys:
            raise ReverieError(
                f"obs {head!r} and obs {keys[1]!r} can not both be in a Minari data set; rename one"
            )
        tree[head] = _nested(inner) if inner else flat[head]
    return tree


def _space(tree: Any) -> spaces.Space:
    return (
        spaces.Dict({key: _space(value) for key, value in tree.items()}) if isinstance(tree, dict) else tree
    )


def _minari() -> Any:
    try:
        import minari
    except ImportError:
        raise ReverieError('Minari is not installed; run pip install "reverie[minari]"') from None
    return minari
