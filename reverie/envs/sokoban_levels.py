"""Levels of Sokoban: read from Boxoban's files, made by reverse play, kept in banks, solved by search.

A level is an array of cell codes, uint8 "h w"::

    0 # wall        2 . target           4 $ box       6 + player on a target
    1   floor       3 * box on a target  5 @ player

Levels are made as in Racanière, Weber et al. 2017 (appendix D.4): a walk digs a room, player and targets are put
down at random, a box on each target, and the game is played backwards, by pulling, for the state with the highest

    room score = box swaps * sum over boxes of |box - its own target|_1,  0 if a box or the player is on a target

Playing those pulls forwards solves the level, so every one can be solved. Three settings are not the paper's: the
walk is longer (``WALK`` and not 1.5 steps per row and column), the search is shorter (``NODES`` and not a million
states), and a placement that leads nowhere is given up with its room (there, after ten). So 10x10 levels with four
boxes are made fast, and have about the floor and the shortest solutions of the released Boxoban levels.
"""

import contextlib
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reverie.envs.compiled import below, compiled, streams, uniform
from reverie.types import ReverieError

SYMBOLS = "# .*$@+"
WALL, FLOOR, TARGET, BOX_ON_TARGET, BOX, PLAYER, PLAYER_ON_TARGET = range(len(SYMBOLS))

WALK = 2.2  # steps of the digging walk per row and column
NODES = 2000  # states that reverse play looks at
DEPTH = 300  # steps of the longest reverse play
TURN = 0.35  # probability that the walk turns
ROOMS = 1000  # that are tried before giving up
VERSION = 1  # of the levels made: what changes them raises it

# What the walk digs around itself, one of five at random.
STENCILS = np.array(
    [
        [0, 0, 0, 1, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 0, 1, 0],
    ]
)


# Text and files -------------------------------------------------------------------------------------------


def parse(rows: Sequence[str], name: str = "the level") -> np.ndarray:
    """The level, uint8 "h w", that ``rows`` of ``SYMBOLS`` draw.

    Raises ``ReverieError``, which calls it ``name``, for other symbols and rows of unequal length.
    """
    for number, row in enumerate(rows, 1):
        strange = sorted(set(row) - set(SYMBOLS))
        if strange:
            raise ReverieError(
                f"{name}: row {number} has {strange[0]!r}, which means nothing in Sokoban; cells are {SYMBOLS!r}"
            )
        if len(row) != len(rows[0]):
            raise ReverieError(
                f"{name}: row {number} has {len(row)} cells and the first row {len(rows[0])}; is it cut short?"
            )
    if not rows:
        raise ReverieError(f"{name}: there are no rows; is it cut short?")
    return np.array([[SYMBOLS.index(symbol) for symbol in row] for row in rows], np.uint8)


def draw(level: np.ndarray) -> str:
    """A level in symbols, a line per row."""
    return "\n".join("".join(SYMBOLS[code] for code in row) for row in level)


def check(levels: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
    """The same levels "k h w", if every one can be played.

    Raises ``ReverieError`` with the name of the first that cannot: not one player, not as many boxes as
    targets, a border that is open, or nothing left to do. Whether it can be solved is for ``solve`` to say.
    """
    levels = np.asarray(levels)
    if levels.ndim != 3 or levels.dtype != np.uint8 or 0 in levels.shape or levels.max() >= len(SYMBOLS):
        raise ReverieError(
            f"levels should be cell codes 0 to {len(SYMBOLS) - 1}, uint8 of shape (k, h, w); got {levels.dtype} of "
            f"shape {levels.shape}"
        )

    def count(*codes: int) -> np.ndarray:
        return np.isin(levels, codes).sum((1, 2))

    players, boxes = count(PLAYER, PLAYER_ON_TARGET), count(BOX, BOX_ON_TARGET)
    targets = count(TARGET, BOX_ON_TARGET, PLAYER_ON_TARGET)
    rim = np.ones(levels.shape[1:], bool)
    rim[1:-1, 1:-1] = False
    for wrong, words in (
        (players == 0, "has no player"),
        (players > 1, "has {players} players; there should be one"),
        (boxes == 0, "has no box"),
        (boxes > targets, "has more boxes ({boxes}) than targets ({targets})"),
        (boxes < targets, "has fewer boxes ({boxes}) than targets ({targets}); there should be one for each"),
        ((levels[:, rim] != WALL).any(1), "is not walled in; its outermost rows and columns should be walls"),
        (count(BOX) == 0, "is solved already: every box is on a target"),
    ):
        if wrong.any():
            i = int(wrong.argmax())
            words = words.format(players=players[i], boxes=boxes[i], targets=targets[i])
            raise ReverieError(f"{names[i] if names is not None else f'level {i}'} {words}")
    return levels


def read_boxoban(path: str | Path) -> np.ndarray:
    """The levels "k h w" of a Boxoban file, or of all ``.txt`` files of a folder, in order.

    A file has, for every level, a line ``; number``, the rows, and an empty line. Raises ``ReverieError`` with
    the file and the level's number for a level that is cut short or cannot be played.
    """
    path = Path(path).expanduser()
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise ReverieError(f"the folder {path} has no level files: their names should end in .txt")
    levels: list[np.ndarray] = []
    names: list[str] = []
    for file in files:
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ReverieError(f"the level file {file} cannot be read: {error}") from error
        for number, rows in _split(lines):
            names.append(f"level {number} of {file}")
            levels.append(parse(rows, names[-1]))
            if levels[-1].shape != levels[0].shape:
                sizes = ["{} by {}".format(*level.shape) for level in (levels[-1], levels[0])]
                raise ReverieError(
                    f"{names[-1]} is {sizes[0]} cells and {names[0]} is {sizes[1]}; is it cut short?"
                )
    if not levels:
        raise ReverieError(f"there is no level in {path}")
    return check(np.stack(levels), names)


def _split(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The number and the rows of every level of a file."""
    found: list[tuple[str, list[str]]] = []
    fresh = True
    for line in lines:
        if line.startswith(";"):
            found.append((line[1:].strip() or str(len(found)), []))
            fresh = False
        elif not line.strip():
            fresh = fresh or bool(found and found[-1][1])
        else:
            if fresh or not found:
                found.append((str(len(found)), []))
                fresh = False
            found[-1][1].append(line.rstrip("\r\n"))
    return found


# Made by reverse play -------------------------------------------------------------------------------------


def make_level(
    random: np.ndarray,
    height: int = 10,
    width: int = 10,
    boxes: int = 4,
    walk: int | None = None,
    nodes: int = NODES,
) -> np.ndarray:
    """A new level, uint8 "h w", by the random state ``random``, which moves on.

    ``walk`` steps dig the room (None: ``WALK`` per row and column), and reverse play looks at ``nodes`` states.
    Raises ``ReverieError`` for a size without space, and where none of ``ROOMS`` rooms is worth playing.
    """
    height, width, boxes = int(height), int(width), int(boxes)
    inside = (height - 2) * (width - 2)
    if height < 3 or width < 3 or boxes < 1 or inside < 2 * boxes + 1:
        raise ReverieError(
            f"Sokoban in {height} by {width} cells with {boxes} boxes has no solvable level: within its walls "
            f"are {max(height - 2, 0) * max(width - 2, 0)} cells, and boxes, targets and a player need {2 * boxes + 1}"
        )
    if nodes < 2 or (walk is not None and walk < 1):
        raise ReverieError(f"levels need nodes >= 2 and walk >= 1, got {nodes} and {walk}")
    steps = round(WALK * (height + width)) if walk is None else walk
    keys, table = _keys(height * width), np.empty(1 << (2 * nodes).bit_length(), np.int64)
    level = np.empty(height * width, np.uint8)
    if _make(random, height, width, boxes, steps, nodes, keys, table, level) == 0:
        raise ReverieError(
            f"no solvable level of {height} by {width} cells with {boxes} boxes was found in {ROOMS} rooms; ask for "
            "fewer boxes or a larger size"
        )
    return level.reshape(height, width)


@lru_cache
def _keys(cells: int) -> np.ndarray:
    """A random number for the player, and one for a box, in each cell: states are told apart by their xor."""
    return np.random.default_rng(0).integers(2**62, size=(2, cells))


@compiled
def _make(random, height, width, boxes, walk, nodes, keys, table, level):
    """Write a level into ``level`` "h*w"; its room score, 0 if none was found."""
    floor = np.zeros(height * width, np.bool_)
    spots = np.zeros(height * width, np.int64)
    box = np.zeros(boxes, np.int64)
    best = np.zeros(boxes + 1, np.int64)  # boxes, then the player
    for _ in range(ROOMS):
        _dig(random, height, width, walk, floor)
        n = 0
        for cell in range(height * width):
            if floor[cell]:
                spots[n] = cell
                n += 1
        if n <= boxes + 1:
            continue
        for k in range(boxes + 1):
            other = k + below(random, n - k)
            spots[k], spots[other] = spots[other], spots[k]
        box[:] = spots[:boxes]
        score = _reverse_play(random, width, floor, box, spots[boxes], nodes, keys, table, best)
        if score > 0:
            for cell in range(height * width):
                level[cell] = FLOOR if floor[cell] else WALL
            for k in range(boxes):
                level[spots[k]] = TARGET
            for k in range(boxes):
                level[best[k]] = BOX
            level[best[boxes]] = PLAYER
            return score
    return 0


@compiled
def _dig(random, height, width, walk, floor):
    """Dig a room into ``floor`` bool "h*w": a walk of ``walk`` steps that digs a stencil at each."""
    floor[:] = False
    row, column, way = 1 + below(random, height - 2), 1 + below(random, width - 2), below(random, 4)
    for _ in range(walk):
        if uniform(random) < TURN:
            way = below(random, 4)
        if way < 2:
            row = min(max(row + 2 * way - 1, 1), height - 2)
        else:
            column = min(max(column + 2 * way - 5, 1), width - 2)
        stencil = below(random, 5)
        for k in range(9):
            if STENCILS[stencil, k]:
                y, x = row + k // 3 - 1, column + k % 3 - 1
                if 0 < y < height - 1 and 0 < x < width - 1:
                    floor[y * width + x] = True


@compiled
def _reverse_play(random, width, floor, box, player, nodes, keys, table, best):
    """Pull the boxes ``box`` off their targets, depth first; the highest room score, its state in ``best``.

    An action is one of four steps, with or without pulling the box behind. ``box`` is moved about.
    """
    boxes = len(box)
    home = box.copy()
    at = np.full(len(floor), -1)  # which box is in a cell
    target = np.zeros(len(floor), np.bool_)
    table[:] = -1
    mask = len(table) - 1
    key = keys[0, player]
    for k in range(boxes):
        at[box[k]] = k
        target[box[k]] = True
        key ^= keys[1, box[k]]
    table[key & mask] = key
    seen, highest = 1, 0
    swaps, last, far, on = 0, -1, 0, boxes  # box swaps, the box pulled last, distances, boxes on targets
    order = np.empty((DEPTH + 1, 8), np.int64)
    turn = np.zeros(DEPTH + 1, np.int64)
    # What each step changed, to take it back: player, key, box or -1, swaps, last, distances, boxes on targets.
    undo = np.empty((DEPTH + 1, 7), np.int64)
    depth = 0
    for k in range(8):
        order[0, k] = k
    while depth >= 0:
        if turn[depth] == 8 or depth == DEPTH:
            if depth > 0:
                pulled = undo[depth, 2]
                if pulled >= 0:
                    behind = 2 * undo[depth, 0] - player  # where it was pulled from
                    at[undo[depth, 0]] = -1
                    at[behind] = pulled
                    box[pulled] = behind
                player, key, swaps = undo[depth, 0], undo[depth, 1], undo[depth, 3]
                last, far, on = undo[depth, 4], undo[depth, 5], undo[depth, 6]
            depth -= 1
            continue
        k = turn[depth]
        other = k + below(random, 8 - k)
        action = order[depth, other]
        order[depth, other] = order[depth, k]
        turn[depth] += 1
        way = action % 4
        d = -width if way == 0 else width if way == 1 else -1 if way == 2 else 1
        to = player + d
        if not floor[to] or at[to] >= 0:
            continue
        pulled = at[player - d] if action >= 4 else -1
        new = key ^ keys[0, player] ^ keys[0, to]
        if pulled >= 0:
            new ^= keys[1, player - d] ^ keys[1, player]
        slot = new & mask
        while table[slot] != -1 and table[slot] != new:
            slot = (slot + 1) & mask
        if table[slot] == new:
            continue
        if seen == nodes:
            break
        table[slot] = new
        seen += 1
        depth += 1
        undo[depth, 0], undo[depth, 1], undo[depth, 2], undo[depth, 3] = player, key, pulled, swaps
        undo[depth, 4], undo[depth, 5], undo[depth, 6] = last, far, on
        if pulled >= 0:
            goal = home[pulled]
            far -= abs(box[pulled] // width - goal // width) + abs(box[pulled] % width - goal % width)
            far += abs(player // width - goal // width) + abs(player % width - goal % width)
            on += int(target[player]) - int(target[player - d])
            at[player - d] = -1
            at[player] = pulled
            box[pulled] = player
            if pulled != last:
                swaps += 1
                last = pulled
        player, key = to, new
        if on == 0 and not target[player] and swaps * far > highest:
            highest = swaps * far
            best[:boxes] = box
            best[boxes] = player
        turn[depth] = 0
        for k in range(8):
            order[depth, k] = k
    return highest


# Banks ----------------------------------------------------------------------------------------------------


@lru_cache(8)
def bank(
    n: int,
    height: int = 10,
    width: int = 10,
    boxes: int = 4,
    walk: int | None = None,
    nodes: int = NODES,
    seed: int = 0,
) -> np.ndarray:
    """``n`` levels "n h w", made once and kept on disk; level k depends on ``seed`` and k alone.

    Banks of different seeds have nothing to do with each other: learn with one, test with another. They are in
    ``cache_folder()``; where that cannot be written to, they are made again by every process.
    """
    if n < 1 or seed < 0:
        raise ReverieError(f"a bank needs n >= 1 levels and seed >= 0, got {n} and {seed}")
    steps = round(WALK * (height + width)) if walk is None else walk
    name = f"sokoban-{height}x{width}-{boxes}-walk{steps}-nodes{nodes}-seed{seed}-v{VERSION}.npz"
    path = cache_folder() / name
    levels = _load(path, (height, width))
    if len(levels) < n:
        fresh = []
        told = time.monotonic() + 1.0
        for k in range(len(levels), n):
            if time.monotonic() > told:
                told = float("inf")
                size = f"{height} by {width} cells with {boxes} boxes"
                print(f"reverie: making {n} Sokoban levels of {size}, to be kept in {path}", file=sys.stderr)
            fresh.append(make_level(streams([seed], k)[0], height, width, boxes, steps, nodes))
        levels = np.concatenate([levels, np.stack(fresh)])
        with contextlib.suppress(OSError):
            _save(path, levels)
    levels = levels[:n]
    levels.flags.writeable = False  # shared by all who ask
    return levels


def cache_folder() -> Path:
    """Where banks are kept: ``$REVERIE_CACHE``, else ``reverie`` in the user's folder for such files."""
    chosen = os.environ.get("REVERIE_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "reverie"


def _load(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The levels of a bank's file; none if there is no such file, or it is broken."""
    try:
        with np.load(path, allow_pickle=False) as file:
            levels = file["levels"]
        return check(levels) if levels.shape[1:] == shape else np.zeros((0, *shape), np.uint8)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, ReverieError):
        return np.zeros((0, *shape), np.uint8)


def _save(path: Path, levels: np.ndarray) -> None:
    """Write a bank's file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, levels=levels)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise


# Solved by search -----------------------------------------------------------------------------------------


class Solution(NamedTuple):
    """The shortest way: actions 1 to 4 of ``Sokobans``, and the states that were looked at to find it."""

    actions: list[int]
    looked_at: int


def solve(level: np.ndarray, nodes: int = 4_000_000) -> Solution | None:
    """The fewest steps that solve ``level`` "h w", by breadth-first search; None if nothing does.

    Raises ``ReverieError`` if ``nodes`` states did not decide it.
    """
    check(level[None], ["the level"])
    codes = level.ravel()
    box = np.flatnonzero((codes == BOX) | (codes == BOX_ON_TARGET))
    target = (codes == TARGET) | (codes == BOX_ON_TARGET) | (codes == PLAYER_ON_TARGET)
    player = int(np.flatnonzero((codes == PLAYER) | (codes == PLAYER_ON_TARGET))[0])
    live = ~dead_cells(level).ravel() & (codes != WALL)
    if not live[box].all():
        return None
    limit = 1 << 14
    while True:  # small memory first: most levels need little
        limit = min(limit, nodes)
        way = np.empty(limit, np.int64)
        length, looked_at = _search(
            codes, box, player, target, live, level.shape[1], _keys(codes.size), way, limit
        )
        if length >= 0:
            return Solution(way[:length].tolist(), looked_at)
        if length == -1:
            return None
        if limit == nodes:
            raise ReverieError(
                f"{nodes} states did not decide whether this level can be solved; allow more nodes"
            )
        limit *= 16


def dead_cells(level: np.ndarray) -> np.ndarray:
    """Where a box can be pushed from to no target, whatever stands elsewhere: bool "h w", False for walls."""
    open_, width = (level != WALL).ravel(), level.shape[1]
    live = ((level == TARGET) | (level == BOX_ON_TARGET) | (level == PLAYER_ON_TARGET)).ravel()
    found = np.flatnonzero(live).tolist()
    while found:
        cell = found.pop()
        for d in (-width, width, -1, 1):  # a box here came from there, pushed by a player behind it
            if open_[cell - d] and not live[cell - d] and open_[cell - 2 * d]:
                live[cell - d] = True
                found.append(cell - d)
    return (open_ & ~live).reshape(level.shape)


@compiled
def _search(codes, box, player, target, live, width, keys, way, limit):
    """Breadth-first search over (boxes, player): the length of the solution in ``way``, and states looked at.

    -1 if there is none, -2 if ``limit`` states were not enough. Two states with the same 62-bit key count as
    one; a solution is right whatever happens.
    """
    boxes = len(box)
    size = 4
    while size < 2 * limit:
        size *= 2
    table = np.full(size, -1)
    mask = size - 1
    where = np.empty((limit, boxes + 1), np.int16)  # boxes, then the player
    parent = np.empty(limit, np.int32)
    action = np.empty(limit, np.int8)
    key = np.empty(limit, np.int64)
    at = np.full(len(codes), -1)
    first = keys[0, player]
    for k in range(boxes):
        where[0, k] = box[k]
        first ^= keys[1, box[k]]
    where[0, boxes] = player
    parent[0], action[0], key[0] = -1, 0, first
    table[first & mask] = first
    seen, head = 1, 0
    while head < seen:
        player = int(where[head, boxes])
        for k in range(boxes):
            at[where[head, k]] = k
        for a in range(1, 5):
            d = -width if a == 1 else width if a == 2 else -1 if a == 3 else 1
            to = player + d
            if codes[to] == WALL:
                continue
            pushed = at[to]
            new = key[head] ^ keys[0, player] ^ keys[0, to]
            if pushed >= 0:
                beyond = to + d
                if not live[beyond] or at[beyond] >= 0:
                    continue
                new ^= keys[1, to] ^ keys[1, beyond]
            slot = new & mask
            while table[slot] != -1 and table[slot] != new:
                slot = (slot + 1) & mask
            if table[slot] == new:
                continue
            if seen == limit:
                return -2, seen
            table[slot] = new
            where[seen] = where[head]
            where[seen, boxes] = to
            parent[seen], action[seen], key[seen] = head, a, new
            if pushed >= 0:
                where[seen, pushed] = to + d
                solved = True
                for k in range(boxes):
                    solved = solved and target[where[seen, k]]
                if solved:
                    length, node = 0, seen
                    while node > 0:
                        length += 1
                        node = parent[node]
                    node = seen
                    for k in range(length):
                        way[length - 1 - k] = action[node]
                        node = parent[node]
                    return length, seen + 1
            seen += 1
        for k in range(boxes):
            at[where[head, k]] = -1
        head += 1
    return -1, seen
