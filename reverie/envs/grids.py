"""Worlds made of cells, n of them stepped in one batch by compiled rules, and one of them alone.

``Grids`` is what such worlds share: Gymnasium's vector interface, seeds, the clock, pictures made of tiles, and
copies of the state for whoever searches with the true rules. A world (``sokoban.py``, ``mini_pacman.py``) adds
its arrays, how an episode begins and what a step does.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from reverie.envs.base import Rules
from reverie.envs.compiled import compiled, say_if_slow, streams
from reverie.types import ReverieError

State = dict[str, np.ndarray]  # every array of a Grids, rows first


class Tiles:
    """Pictures "n h*s w*s c" of grids of codes, from one tile "s s c" per code.

    Only cells that changed since the last picture are drawn.
    """

    def __init__(self, n: int, height: int, width: int, tiles: np.ndarray) -> None:
        self.tiles, side, channels = tiles, tiles.shape[1], tiles.shape[3]
        self.shape = (height * side, width * side, channels)
        self._canvas = np.zeros((n, height, side, width, side, channels), np.uint8)
        self._drawn = np.full((n, height * width), 255, np.uint8)  # no code

    def __call__(self, codes: np.ndarray, copy: bool = True) -> np.ndarray:
        """The pictures of codes uint8 "n h*w": an array of their own, or the one that is drawn on next time."""
        draw(self._canvas, self._drawn, codes, self.tiles)
        pictures = self._canvas.reshape(-1, *self.shape)
        return pictures.copy() if copy else pictures


@compiled
def draw(canvas, drawn, codes, tiles):
    """Bring ``canvas`` "n h s w s c", which shows the codes ``drawn`` "n h*w", up to ``codes``."""
    side, width, channels = tiles.shape[1], canvas.shape[3], tiles.shape[3]
    for i in range(codes.shape[0]):
        for cell in range(codes.shape[1]):
            code = codes[i, cell]
            if code != drawn[i, cell]:
                drawn[i, cell] = code
                row, column = cell // width, cell % width
                for y in range(side):
                    for x in range(side):
                        for c in range(channels):
                            canvas[i, row, y, column, x, c] = tiles[code, y, x, c]


@compiled
def undraw(canvas, tiles, codes):
    """The codes "n h*w" of the tiles that make up ``canvas`` "n h s w s c"; how many cells show none of them."""
    side, width, channels = tiles.shape[1], canvas.shape[3], tiles.shape[3]
    strange = 0
    for i in range(codes.shape[0]):
        for cell in range(codes.shape[1]):
            row, column = cell // width, cell % width
            strange += 1
            for code in range(len(tiles)):
                same = True
                for y in range(side):
                    for x in range(side):
                        for c in range(channels):
                            same = same and canvas[i, row, y, column, x, c] == tiles[code, y, x, c]
                if same:
                    codes[i, cell] = code
                    strange -= 1
                    break
    return strange


class Grids(VectorEnv):
    """``num_envs`` worlds of one kind in one batch.

    Observations are one array "n h w c", its own, or without ``copy`` the one that the next step writes into, which
    is several times faster for sprites. Row i of ``reset(seed=s)`` is what the same world alone shows after
    ``reset(seed=s + i)``, and stays so, step by step; a list has a seed for each. An episode is truncated after
    ``max_episode_steps`` (None: never) unless it ended with that step.

    ``autoreset_mode`` is one of Gymnasium's: the row after an episode's last begins a new one and its action
    counts for nothing (NEXT_STEP), the last row is replaced by it and found in ``final_obs`` (SAME_STEP), or
    whoever steps resets the rows named in ``options={"reset_mask": bool "n"}`` (DISABLED).
    """

    arrays: ClassVar[tuple[str, ...]] = ()  # what a world's state is made of, besides the three below
    actions = 5
    fps = 8

    def __init__(
        self,
        num_envs: int,
        tiles: np.ndarray,
        shape: tuple[int, int],
        sprites: np.ndarray,
        max_episode_steps: int | None,
        autoreset_mode: AutoresetMode | str,
        render_mode: str | None,
        copy: bool,
    ) -> None:
        if num_envs < 1 or (max_episode_steps is not None and max_episode_steps < 1):
            raise ReverieError(
                f"these worlds need num_envs >= 1 and max_episode_steps >= 1 or None, got {num_envs} and "
                f"{max_episode_steps}"
            )
        if render_mode not in (None, "rgb_array", "ansi"):
            raise ReverieError(f"render_mode should be rgb_array, ansi or None, got {render_mode!r}")
        say_if_slow()
        self.num_envs, self.max_episode_steps, self.render_mode = num_envs, max_episode_steps, render_mode
        self.copy = copy
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {
            "render_modes": ["rgb_array", "ansi"],
            "render_fps": self.fps,
            "autoreset_mode": self.autoreset_mode,
            "channels": "last",
        }
        self.height, self.width = shape
        self._tiles, self._sprites = Tiles(num_envs, *shape, tiles), sprites
        low_high = (0, 1) if tiles.max() == 1 else (0, 255)
        self.single_observation_space = spaces.Box(*low_high, self._tiles.shape, np.uint8)
        self.single_action_space = spaces.Discrete(self.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.random = np.zeros((num_envs, 2), np.int64)
        self.clock = np.zeros(num_envs, np.int64)  # steps of each row's episode
        self.over = np.zeros(
            num_envs, bool
        )  # rows whose episode ended with the last step, and were not reset
        self._begun = False

    # What a world adds

    @property
    @abstractmethod
    def codes(self) -> np.ndarray:
        """What is in every cell, uint8 "n h*w"."""

    @abstractmethod
    def _begin(self, rows: np.ndarray) -> None:
        """A new episode in each of ``rows``, by its own randomness."""

    @abstractmethod
    def _advance(self, action: np.ndarray, asleep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Step every row that is not ``asleep``: rewards float64 "n" (0 there) and ends bool "n"."""

    @abstractmethod
    def text(self, row: int) -> str:
        """Row ``row`` in characters, a line per row of cells."""

    def _info(self) -> dict[str, Any]:
        return {}

    @property
    def rules(self) -> Rules | None:
        """How a world goes on from a picture, if that shows all there is."""
        return None

    # Gymnasium's interface

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin all episodes, or those of ``options["reset_mask"]``; the others are shown as they are."""
        mask = self._mask((options or {}).get("reset_mask"))
        seeds = None
        if isinstance(seed, Sequence):
            seeds = [int(one) for one in seed]
            if len(seeds) != self.num_envs:
                raise ReverieError(f"{self.num_envs} worlds need as many seeds, got {len(seeds)}")
        elif seed is not None:
            super().reset(seed=seed)
            seeds = [seed + i for i in range(self.num_envs)]
        elif not self._begun:
            seeds = self.np_random.integers(2**31, size=self.num_envs).tolist()
        rows = np.flatnonzero(mask)
        if seeds is not None:
            self.random[rows] = streams([seeds[i] for i in rows])
        self._start(rows)
        self._begun = True
        return self.look(), self._info()

    def _mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, bool)
        fits = isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.num_envs,)
        if not fits or not mask.any():
            raise ReverieError(
                f"reset_mask should be a bool array of shape ({self.num_envs},) with a True in it, got {mask!r}"
            )
        if not self._begun and not mask.all():
            raise ReverieError("worlds must all be begun once before some of them are: call reset() first")
        return mask

    def _start(self, rows: np.ndarray) -> None:
        self._begin(rows)
        self.clock[rows], self.over[rows] = 0, False

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if not self._begun:
            raise ReverieError("these worlds have not begun: call reset() first")
        action = self._check(actions)
        asleep = self.over.copy()  # nobody under SAME_STEP
        if self.autoreset_mode is AutoresetMode.DISABLED and asleep.any():
            raise ReverieError(
                f"{asleep.sum()} of {self.num_envs} episodes ended with the last step, the first is row "
                f'{asleep.argmax()}: call reset() before the next step, with options={{"reset_mask": ...}} for '
                "these alone"
            )
        reward, terminated = self._advance(action, asleep)
        self.clock += 1
        if self.max_episode_steps is None:
            truncated = np.zeros(self.num_envs, bool)
        else:
            truncated = (self.clock >= self.max_episode_steps) & ~terminated & ~asleep
        self.over = terminated | truncated
        info = self._info()
        if asleep.any():
            self._start(np.flatnonzero(asleep))
        obs = self.look()
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self.over.any():
            ended = np.flatnonzero(self.over)
            info |= self._final(obs, ended)
            self._start(ended)
            obs = self.look()
        return obs, reward, terminated, truncated, info

    def _check(self, actions: Any) -> np.ndarray:
        action = np.asarray(actions)
        if action.shape != (self.num_envs,) or action.dtype.kind not in "iu":
            raise ReverieError(
                f"{self.num_envs} worlds need as many actions, whole numbers; got {action.dtype} {action.shape}"
            )
        if action.min() < 0 or action.max() >= self.actions:
            raise ReverieError(
                f"actions should be from 0 to {self.actions - 1}, got {action.min()} to {action.max()}"
            )
        return action.astype(np.int64, copy=False)

    def _final(self, obs: np.ndarray, ended: np.ndarray) -> dict[str, Any]:
        """Last observations as Gymnasium hands them out: an array of objects, None where nothing ended."""
        final = np.full(self.num_envs, None, object)
        for i in ended:
            final[i] = obs[i].copy()
        mask = self.over.copy()
        return {"final_obs": final, "_final_obs": mask, "final_info": {}, "_final_info": mask.copy()}

    def look(self) -> np.ndarray:
        """The present observations "n h w c"."""
        return self._tiles(self.codes, self.copy)

    def render(self) -> Any:
        """A picture uint8 "h w 3", or text, for every row; None without a render mode."""
        if self.render_mode is None:
            return None
        if self.render_mode == "ansi":
            return tuple(self.text(i) for i in range(self.num_envs))
        return tuple(Tiles(self.num_envs, self.height, self.width, self._sprites)(self.codes))

    # Copies of the state

    def get_state(self, rows: np.ndarray | None = None) -> State:
        """A copy of all that decides what comes next, randomness and clock included, of ``rows`` or of all."""
        chosen = slice(None) if rows is None else rows
        return {name: getattr(self, name)[chosen].copy() for name in self._names()}

    def set_state(self, state: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> None:
        """Put a copy of ``state``, of this or another batch of the same world, into ``rows`` or into all.

        ``look()`` shows where that is. Raises ``ReverieError`` for the state of something else.
        """
        names = self._names()
        chosen = np.arange(self.num_envs) if rows is None else np.asarray(rows)
        if set(state) != set(names):
            raise ReverieError(f"a state of this world has {', '.join(names)}; got {', '.join(state)}")
        for name in names:
            expected = (len(chosen), *getattr(self, name).shape[1:])
            if state[name].shape != expected:
                raise ReverieError(
                    f"{len(chosen)} rows need {name!r} of shape {expected}, got {state[name].shape}"
                )
        for name in names:
            getattr(self, name)[chosen] = state[name]
        self._begun = True

    def _names(self) -> tuple[str, ...]:
        return (*self.arrays, "random", "clock", "over")


class Grid(gymnasium.Env):
    """One world of cells: ``Grids`` with one row, which nothing resets but whoever steps it."""

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array", "ansi"],
        "render_fps": Grids.fps,
        "pixels": {"obs": "pixels"},  # for make_env(pixels=True)
        "channels": "last",  # a small board may have as many planes
    }

    def __init__(self, grids: Grids) -> None:
        self.grids = grids
        self.observation_space, self.action_space = grids.single_observation_space, grids.single_action_space
        self.render_mode = grids.render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        obs, info = self.grids.reset(seed=seed)
        return obs[0], _first(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.grids.step(np.reshape(action, 1))
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)

    def render(self) -> Any:
        frames = self.grids.render()
        return None if frames is None else frames[0]

    def text(self) -> str:
        """The present moment in characters, a line per row of cells."""
        return self.grids.text(0)

    @property
    def rules(self) -> Rules | None:
        """How this world goes on from a picture, if that shows all there is."""
        return self.grids.rules

    def get_state(self) -> State:
        """A copy of all that decides what comes next; the clock of a TimeLimit around this is not in it."""
        return self.grids.get_state()

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go back, or over, to a copied state."""
        self.grids.set_state(state)


def _first(info: dict[str, Any]) -> dict[str, Any]:
    """The one row of a batch's info."""
    return {name: value[0] for name, value in info.items() if not name.startswith("_")}
