"""Sokoban as in I2A (Racanière, Weber et al. 2017): push every box onto a target, in rooms never seen before.

A box is pushed by walking into it, if floor or a free target is behind it; nothing can be pulled. What cannot be
done leaves the world as it is, and is a step like any other::

    every step -0.1      a box onto a target +1      off a target -1      all boxes on targets +10, and the end

so that a step's reward is one of -1.1, -0.1, 0.9 and 10.9. The clock truncates an episode after 120 steps, a new
one has a new level. Nothing ends an episode that can no longer be solved.

Actions: 0 nothing, 1 up, 2 down, 3 left, 4 right. Observations: ``planes``, one for each of the seven codes of a
cell (``sokoban_levels.py``), uint8 "h w 7" of 0 and 1; or ``pixels``, 8x8 sprites, uint8 "8h 8w 3".
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode

from reverie.envs.base import Rules
from reverie.envs.compiled import below, compiled
from reverie.envs.grids import Grid, Grids, Tiles, undraw
from reverie.envs.sokoban_levels import (
    BOX,
    BOX_ON_TARGET,
    FLOOR,
    NODES,
    PLAYER,
    PLAYER_ON_TARGET,
    SYMBOLS,
    TARGET,
    WALL,
    bank,
    check,
    draw,
    make_level,
    read_boxoban,
)
from reverie.types import ReverieError

STEP, ON_TARGET, SOLVED = -0.1, 1.0, 10.0
MAX_STEPS = 120

COLOURS = {
    " ": (222, 214, 196),  # floor
    ",": (205, 196, 176),
    "#": (92, 92, 110),  # wall
    "-": (66, 66, 82),
    "o": (200, 60, 70),  # target
    "b": (176, 120, 60),  # box
    "B": (116, 74, 34),
    "g": (86, 160, 90),  # box in place
    "G": (44, 104, 56),
    "p": (54, 96, 176),  # player
    "P": (240, 200, 170),
}
SPRITES_IN_TEXT = (
    ("########", "###-####", "###-####", "--------", "#######-", "#######-", "#######-", "--------"),
    ("        ", "      , ", "        ", "  ,     ", "        ", "     ,  ", " ,      ", "        "),
    ("        ", "      , ", "   oo   ", "  o  o  ", "  o  o  ", "   oo   ", " ,      ", "        "),
    ("GGGGGGGG", "GggggggG", "GgGggGgG", "GggGGggG", "GggGGggG", "GgGggGgG", "GggggggG", "GGGGGGGG"),
    ("BBBBBBBB", "BbbbbbbB", "BbBbbBbB", "BbbBBbbB", "BbbBBbbB", "BbBbbBbB", "BbbbbbbB", "BBBBBBBB"),
    ("        ", "   PP , ", "   PP   ", "  pppp  ", " p pp p ", "   pp   ", " ,p  p  ", "  p  p  "),
    ("        ", "   PP , ", "   PP   ", " opppp  ", " p pp p ", "  oppo  ", " ,p  p  ", "  p  p  "),
)
SPRITES = np.array([[[COLOURS[c] for c in row] for row in sprite] for sprite in SPRITES_IN_TEXT], np.uint8)
PLANES = np.eye(len(SYMBOLS), dtype=np.uint8)[:, None, None]


class Sokobans(Grids):
    """``num_envs`` games in one batch; ``Grids`` says what all such worlds do.

    ``size`` is the room's with its walls, (h, w) or one number for both. ``levels`` says where levels come from:
    a number makes a bank of so many, once (``sokoban_levels.bank``, by ``level_seed``), 0 makes a new level for
    every episode; a path is a Boxoban file or folder; an array "k h w" of cell codes is played as it is. Every
    episode draws one at random. The last two bring their own size and boxes. ``walk`` and ``nodes`` are those of
    ``sokoban_levels.make_level``.

    Raises ``ReverieError`` for a size without solvable levels and for levels that cannot be played.
    """

    arrays: ClassVar[tuple[str, ...]] = ("cells", "player", "missing", "level")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        size: int | tuple[int, int] = 10,
        boxes: int = 4,
        levels: int | str | Path | np.ndarray = 10_000,
        level_seed: int = 0,
        walk: int | None = None,
        nodes: int = NODES,
        obs: str = "planes",
        max_episode_steps: int | None = MAX_STEPS,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        copy: bool = True,
    ) -> None:
        if obs not in ("planes", "pixels"):
            raise ReverieError(f"Sokoban shows planes or pixels, got obs {obs!r}")
        height, width = (size, size) if isinstance(size, int) else size
        self._how = (height, width, boxes, walk, nodes)
        self.levels: np.ndarray | None = None  # "k h w"; None: a new one for every episode
        if isinstance(levels, np.ndarray):
            self.levels = check(levels)
        elif isinstance(levels, (str, Path)):
            self.levels = _read(levels)
        elif levels:
            self.levels = bank(levels, *self._how, level_seed)
        else:
            make_level(np.ones(2, np.int64), *self._how)  # a size without levels is said now
        if self.levels is not None:
            height, width = self.levels.shape[1:]
        tiles = PLANES if obs == "planes" else SPRITES
        super().__init__(
            num_envs, tiles, (height, width), SPRITES, max_episode_steps, autoreset_mode, render_mode, copy
        )
        self.cells = np.zeros((num_envs, height * width), np.uint8)
        self.player = np.zeros(num_envs, np.int64)  # the cell it is in
        self.missing = np.zeros(num_envs, np.int64)  # boxes that are not on a target
        self.level = np.zeros(num_envs, np.int64)  # which of ``levels``; -1: one of no bank

    @property
    def codes(self) -> np.ndarray:
        return self.cells

    def _begin(self, rows: np.ndarray) -> None:
        if self.levels is None:
            for i in rows:
                self.cells[i] = make_level(self.random[i], *self._how).ravel()
            self.level[rows] = -1
        else:
            shelf = self.levels.reshape(len(self.levels), -1)
            pick(rows, self.random, shelf, self.level, self.cells)
        count(rows, self.cells, self.player, self.missing)

    def _advance(self, action: np.ndarray, asleep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reward, solved = np.empty(self.num_envs), np.empty(self.num_envs, bool)
        push(self.cells, self.player, self.missing, self.width, action, asleep, reward, solved)
        return reward, solved

    def text(self, row: int) -> str:
        return draw(self.cells[row].reshape(self.height, self.width))

    @property
    def rules(self) -> Rules:
        """What follows from any picture of this world, whatever its levels: planes as 0 and 255, or sprites."""
        tiles, shape = self._tiles.tiles, (self.height, self.width)
        tiles = tiles * np.uint8(255 if tiles.max() == 1 else 1)

        def read(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            """Cells, where the player is, and boxes that are not on a target."""
            n, side = len(pictures), tiles.shape[1]
            canvas = np.ascontiguousarray(pictures).reshape(n, shape[0], side, shape[1], side, tiles.shape[3])
            cells = np.zeros((n, shape[0] * shape[1]), np.uint8)
            player, missing = np.full(n, -1), np.zeros(n, np.int64)
            strange = undraw(canvas, tiles, cells)
            if not strange:
                count(np.arange(n), cells, player, missing)
            if strange or (player < 0).any():
                raise ReverieError(
                    "these pictures are none of Sokoban, and its rules do not say what follows"
                )
            return cells, player, missing

        def step(pictures: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            cells, player, missing = read(pictures)
            reward, solved = np.empty(len(cells)), np.empty(len(cells), bool)
            push(cells, player, missing, shape[1], action, missing == 0, reward, solved)
            return Tiles(len(cells), *shape, tiles)(cells), reward.astype(np.float32)

        return Rules(step, lambda pictures: read(pictures)[2] == 0)


class Sokoban(Grid):
    """One game. Options are those of ``Sokobans``, without the clock: ``gymnasium.make`` brings it."""

    def __init__(self, *, render_mode: str | None = None, **options: Any) -> None:
        mode = AutoresetMode.DISABLED
        super().__init__(
            Sokobans(1, max_episode_steps=None, autoreset_mode=mode, render_mode=render_mode, **options)
        )


@lru_cache(4)
def _read(path: str | Path) -> np.ndarray:
    return read_boxoban(path)


@compiled
def pick(rows, random, shelf, level, cells):
    """Put a level of ``shelf`` "k h*w", drawn by its own randomness, into each of ``rows``."""
    for i in rows:
        level[i] = below(random[i], len(shelf))
        cells[i] = shelf[level[i]]


@compiled
def count(rows, cells, player, missing):
    """Where the player of each of ``rows`` is, and how many boxes are not on a target."""
    for i in rows:
        missing[i] = 0
        for cell in range(cells.shape[1]):
            if cells[i, cell] == PLAYER or cells[i, cell] == PLAYER_ON_TARGET:
                player[i] = cell
            elif cells[i, cell] == BOX:
                missing[i] += 1


@compiled
def push(cells, player, missing, width, action, asleep, reward, solved):
    """The rules: one step of every row that is not ``asleep``."""
    for i in range(len(action)):
        reward[i], solved[i] = 0.0, False
        if asleep[i]:
            continue
        reward[i] = STEP
        a = action[i]
        if a == 0:
            continue
        d = -width if a == 1 else width if a == 2 else -1 if a == 3 else 1
        here = player[i]
        to = here + d
        there = cells[i, to]
        if there == WALL:
            continue
        if there in (BOX, BOX_ON_TARGET):
            beyond = cells[i, to + d]
            if beyond not in (FLOOR, TARGET):
                continue
            cells[i, to + d] = BOX if beyond == FLOOR else BOX_ON_TARGET
            gain = int(beyond == TARGET) - int(there == BOX_ON_TARGET)
            missing[i] -= gain
            reward[i] += ON_TARGET * gain
            if missing[i] == 0:
                reward[i] += SOLVED
                solved[i] = True
            there = FLOOR if there == BOX else TARGET
        cells[i, to] = PLAYER if there == FLOOR else PLAYER_ON_TARGET
        cells[i, here] = FLOOR if cells[i, here] == PLAYER else TARGET
        player[i] = to
