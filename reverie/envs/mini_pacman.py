"""MiniPacman of I2A (Racanière, Weber et al. 2017): one maze, five tasks that differ in what is worth what.

::

    task       step   food  pill  ghost  killed   next level when
    regular       0      1     2      5       0   all food is eaten
    avoid       0.1   -0.1    -5    -10     -20   128 steps were survived, or all food is eaten
    hunt          0      0     1     10     -20   all ghosts are eaten, or after 80 steps
    ambush        0   -0.1     0     10     -20   all ghosts are eaten, or after 80 steps
    rush          0   -0.1    10      0       0   both pills are eaten

What happens in one step adds up. An episode ends with the first death; the clock truncates it after 3000 steps. A
level begins with food in every corridor, two pills, Pacman and the ghosts at random places, the ghosts not near
Pacman. A pill gives power for 20 steps, in which ghosts flee and can be eaten, one a step.

In one step Pacman moves and eats what lies there; then each ghost meets Pacman, moves, and meets Pacman. In a
corridor a ghost goes on; at a junction it does not turn back and takes the way that leads most towards Pacman, or
with power away.

The paper's text and the code a co-author published differ; the code is followed, with the 80 steps from the
text. There, ghosts move with probability 0.5 in level 1, 0.1 more in each later level, and half that while
there is power; at a junction one in 20 goes by chance; there are 1, 1, 2, 2, 3, .. ghosts (here never more than
20). ``faithful_paper`` follows the text: ghosts always move and never by chance, there are 1, 2, 2, 3, 3, .. of
them, and with power Pacman moves two cells in a step (or one, if the next is a wall) and eats in both.

As in that code, a level that the clock ends is still in the picture of that step, while the next has begun.

Actions: 0 nothing, 1 right, 2 up, 3 left, 4 down. Observations: ``planes``, uint8 "15 19 7" of 0 and 1, wall,
floor, food, pill, Pacman, ghost, ghost to be eaten; or ``pixels``, a pixel per cell, uint8 "15 19 3", in which
ghosts turn from yellow to red as power fades. How much power is left cannot be seen without a ghost in sight:
``power_bar`` shows it, a cell for every step of it from the left of the lowest wall, in a plane of its own.

``info["events"]`` counts "n 5" what happened: steps, food, pills, ghosts eaten, deaths. A reward is the task's
row above times these.
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode

from reverie.envs.compiled import below, compiled, uniform
from reverie.envs.grids import Grid, Grids
from reverie.types import ReverieError

MAX_STEPS = 3000
POWER = 20  # steps a pill lasts
PILLS, GHOSTS, NEAR = 2, 20, 5  # pills; ghosts at most; rows and columns around Pacman where none begins
SPEED, FASTER, SLOWED, CHANCE = (
    0.5,
    0.1,
    0.5,
    0.05,
)  # of ghosts: level 1, each level more, with power, at junctions
WALL, FLOOR, FOOD, PILL, PACMAN, GHOST = range(6)  # codes; GHOST + p is a ghost to be eaten for p more steps
BAR = GHOST + POWER + 1
SYMBOLS = "# .oCM" + "m" * POWER + "="

UPPER = (
    "###################",
    "#...#.........#...#",
    "#.#.#.#######.#.#.#",
    "#.................#",
    "#.#.#.#######.#.#.#",
    "#.#.............#.#",
    "#.####.#####.####.#",
    "#......#####......#",
)
MAZE = np.array([[cell == "." for cell in row] for row in (*UPPER, *UPPER[-2::-1])])  # bool "15 19"
HEIGHT, WIDTH = MAZE.shape
CELLS = HEIGHT * WIDTH
CORRIDORS = np.flatnonzero(MAZE)
# Where each action leads from each cell, "cells 5"; into a wall is nowhere.
NEXT = np.array(
    [
        [cell + d if MAZE.ravel()[(cell + d) % CELLS] else cell for d in (0, 1, -WIDTH, -1, WIDTH)]
        for cell in range(CELLS)
    ]
)


class Task(NamedTuple):
    """What an event is worth, and what else ends a level."""

    worth: tuple[float, float, float, float, float]  # a step, food, a pill, a ghost, a death
    all_food: bool = False
    all_pills: bool = False
    all_ghosts: bool = False
    steps: int = 0  # 0: no limit


TASKS = {
    "regular": Task((0.0, 1.0, 2.0, 5.0, 0.0), all_food=True),
    "avoid": Task((0.1, -0.1, -5.0, -10.0, -20.0), all_food=True, steps=128),
    "hunt": Task((0.0, 0.0, 1.0, 10.0, -20.0), all_ghosts=True, steps=80),
    "ambush": Task((0.0, -0.1, 0.0, 10.0, -20.0), all_ghosts=True, steps=80),
    "rush": Task((0.0, -0.1, 10.0, 0.0, 0.0), all_pills=True),
}


def _colours() -> np.ndarray:
    """A colour for every code, uint8 "codes 3"."""
    fading = [(255, round(255 * p / POWER), 0) for p in range(POWER + 1)]
    first = [(255, 255, 255), (0, 0, 0), (0, 0, 255), (0, 255, 255), (0, 255, 0)]
    return np.array([*first, *fading, (255, 255, 0)], np.uint8)


COLOURS = _colours()
KINDS = np.array([*range(GHOST + 1), *[GHOST + 1] * POWER, GHOST + 2])  # the plane of every code


class MiniPacmans(Grids):
    """``num_envs`` games of one ``task`` in one batch; ``Grids`` says what all such worlds do.

    Raises ``ReverieError`` for a task that does not exist.
    """

    arrays: ClassVar[tuple[str, ...]] = (
        "food",
        "pills",
        "pacman",
        "ghosts",
        "ways",
        "power",
        "stage",
        "timer",
        "events",
        "seen",
    )

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: str = "regular",
        obs: str = "planes",
        power_bar: bool = False,
        faithful_paper: bool = False,
        max_episode_steps: int | None = MAX_STEPS,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        copy: bool = True,
    ) -> None:
        if task not in TASKS:
            raise ReverieError(f"MiniPacman has the tasks {', '.join(TASKS)}; got {task!r}")
        if obs not in ("planes", "pixels"):
            raise ReverieError(f"MiniPacman shows planes or pixels, got obs {obs!r}")
        self.task, self.power_bar, self.faithful_paper = TASKS[task], power_bar, faithful_paper
        planes = np.eye(GHOST + 3, dtype=np.uint8)[KINDS, None, None, : GHOST + 2 + power_bar]
        tiles = planes if obs == "planes" else COLOURS[:, None, None]
        sprites = np.repeat(np.repeat(COLOURS[:, None, None], 8, 1), 8, 2)
        super().__init__(
            num_envs, tiles, (HEIGHT, WIDTH), sprites, max_episode_steps, autoreset_mode, render_mode, copy
        )
        self._worth = np.array(self.task.worth)
        self._ends = np.array([*self.task[1:]], np.int64)
        n = num_envs
        self.food = np.zeros((n, CELLS), bool)
        self.pills = np.full((n, PILLS), -1)  # cells; -1: eaten
        self.pacman = np.zeros(n, np.int64)  # a cell
        self.ghosts = np.full((n, GHOSTS), -1)  # cells; -1: eaten, or there are no more
        self.ways = np.zeros((n, GHOSTS), np.int64)  # 0 right, 1 up, 2 left, 3 down
        self.power = np.zeros(n, np.int64)  # steps that it lasts
        self.stage = np.zeros(n, np.int64)  # the level, from 1
        self.timer = np.zeros(n, np.int64)  # steps of the level
        self.events = np.zeros((n, 5), np.int64)
        self.seen = np.zeros((n, CELLS), np.uint8)

    @property
    def codes(self) -> np.ndarray:
        return self.seen

    def _board(self) -> tuple[np.ndarray, ...]:
        return self.random, self.food, self.pills, self.pacman, self.ghosts, self.ways, self.power, self.timer

    def _begin(self, rows: np.ndarray) -> None:
        self.stage[rows], self.events[rows] = 1, 0
        begin(rows, self.stage, self.faithful_paper, *self._board())
        show(rows, self.seen, self.power_bar, *self._board()[1:7])

    def _advance(self, action: np.ndarray, asleep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        killed = np.empty(self.num_envs, bool)
        play(
            action,
            asleep,
            killed,
            self.events,
            self.seen,
            self.power_bar,
            self._ends,
            self.stage,
            self.faithful_paper,
            *self._board(),
        )
        return self.events @ self._worth, killed

    def _info(self) -> dict[str, Any]:
        return {"events": self.events.copy(), "_events": np.ones(self.num_envs, bool)}

    def text(self, row: int) -> str:
        codes = self.seen[row].reshape(HEIGHT, WIDTH)
        return "\n".join("".join(SYMBOLS[code] for code in line) for line in codes)


class MiniPacman(Grid):
    """One game. Options are those of ``MiniPacmans``, without the clock: ``gymnasium.make`` brings it."""

    def __init__(self, *, render_mode: str | None = None, **options: Any) -> None:
        mode = AutoresetMode.DISABLED
        super().__init__(
            MiniPacmans(1, max_episode_steps=None, autoreset_mode=mode, render_mode=render_mode, **options)
        )


@compiled
def begin(rows, stage, faithful_paper, random, food, pills, pacman, ghosts, ways, power, timer):
    """Begin the level ``stage`` of each of ``rows``."""
    for i in rows:
        for cell in CORRIDORS:
            food[i, cell] = True
        power[i], timer[i] = 0, 0
        pacman[i] = CORRIDORS[below(random[i], len(CORRIDORS))]
        for k in range(PILLS):
            pills[i, k] = CORRIDORS[below(random[i], len(CORRIDORS))]
        row, column = pacman[i] // WIDTH, pacman[i] % WIDTH
        many = min(1 + (stage[i] if faithful_paper else stage[i] - 1) // 2, GHOSTS)
        for g in range(GHOSTS):
            ghosts[i, g], ways[i, g] = -1, 0
            while g < many and ghosts[i, g] < 0:
                cell = CORRIDORS[below(random[i], len(CORRIDORS))]
                down, right = cell // WIDTH - row, cell % WIDTH - column
                if not (-NEAR <= down < NEAR and -NEAR <= right < NEAR):
                    ghosts[i, g], ways[i, g] = cell, below(random[i], 4)


@compiled
def play(
    action,
    asleep,
    killed,
    events,
    seen,
    power_bar,
    ends,
    stage,
    faithful_paper,
    random,
    food,
    pills,
    pacman,
    ghosts,
    ways,
    power,
    timer,
):
    """The rules: one step of every row that is not ``asleep``; what happened in ``events`` and ``killed``."""
    one = np.zeros(1, np.int64)
    for i in range(len(action)):
        events[i, :] = 0
        killed[i] = False
        if asleep[i]:
            continue
        one[0] = i
        events[i, 0] = 1
        timer[i] += 1
        power[i] = max(0, power[i] - 1)
        ate_pill, ate_ghost, cleared = False, False, False
        for move in range(2 if faithful_paper and power[i] > 0 else 1):
            to = NEXT[pacman[i], action[i]]
            if move == 1 and to == pacman[i]:
                break
            if move == 1:  # whom it passes, it meets
                for g in range(GHOSTS):
                    if ghosts[i, g] == pacman[i] and not ate_ghost:
                        ghosts[i, g] = -1
                        ate_ghost = True
            pacman[i] = to
            if food[i, to]:
                food[i, to] = False
                events[i, 1] += 1
            for k in range(PILLS):
                if pills[i, k] == to and not ate_pill:
                    pills[i, k] = -1
                    ate_pill = True
                    power[i] = POWER
        events[i, 2] = ate_pill
        for g in range(GHOSTS):
            for moved in range(2):
                if ghosts[i, g] >= 0 and moved == 1:
                    chase(i, g, stage[i], faithful_paper, random, pacman, ghosts, ways, power)
                if ghosts[i, g] >= 0 and ghosts[i, g] == pacman[i]:
                    if power[i] == 0:
                        killed[i] = True
                        break
                    if not ate_ghost:
                        ghosts[i, g] = -1
                        ate_ghost = True
            if killed[i]:
                break
        events[i, 3], events[i, 4] = ate_ghost, killed[i]
        if not killed[i]:
            cleared = (
                (ends[0] > 0 and events[i, 1] > 0 and not food[i].any())
                or (ends[1] > 0 and ate_pill and pills[i].max() < 0)
                or (ends[2] > 0 and ate_ghost and ghosts[i].max() < 0)
            )
        late = not killed[i] and not cleared and timer[i] == ends[3]
        if late:
            show(one, seen, power_bar, food, pills, pacman, ghosts, ways, power)
        if cleared or late:
            stage[i] += 1
            begin(one, stage, faithful_paper, random, food, pills, pacman, ghosts, ways, power, timer)
        if not late:
            show(one, seen, power_bar, food, pills, pacman, ghosts, ways, power)


@compiled
def chase(i, g, stage, faithful_paper, random, pacman, ghosts, ways, power):
    """Move ghost ``g`` of row ``i``, or not."""
    if not faithful_paper:
        speed = SPEED + FASTER * (stage - 1)
        if uniform(random[i]) >= (SLOWED * speed if power[i] > 0 else speed):
            return
    here = ghosts[i, g]
    exits = 0
    for way in range(4):
        exits += NEXT[here, 1 + way] != here
    back = (ways[i, g] + 2) % 4
    if exits == 1:
        for way in range(4):
            if NEXT[here, 1 + way] != here:
                ways[i, g] = way
    elif exits == 2:
        if NEXT[here, 1 + ways[i, g]] == here:
            for way in range(3, -1, -1):  # the first that is not back
                if NEXT[here, 1 + way] != here and way != back:
                    ways[i, g] = way
    else:
        down, right = pacman[i] // WIDTH - here // WIDTH, pacman[i] % WIDTH - here % WIDTH
        towards = (right, -down, -right, down)
        choices = exits - 1 if NEXT[here, 1 + back] != here else exits
        by_chance = -1
        if not faithful_paper and power[i] == 0 and uniform(random[i]) < CHANCE:
            by_chance = below(random[i], choices)
        best, value, passed = 0, -2 * CELLS, 0
        for way in range(4):
            if NEXT[here, 1 + way] == here or way == back:
                continue
            worth = -towards[way] if power[i] > 0 else towards[way]
            if passed == by_chance if by_chance >= 0 else worth > value:
                best, value = way, worth
            passed += 1
        ways[i, g] = best
    ghosts[i, g] = NEXT[here, 1 + ways[i, g]]


@compiled
def show(rows, seen, power_bar, food, pills, pacman, ghosts, ways, power):
    """What is in every cell of ``rows``: Pacman before ghosts, pills, food."""
    for i in rows:
        for cell in range(CELLS):
            seen[i, cell] = FLOOR if MAZE[cell // WIDTH, cell % WIDTH] else WALL
        for spot in CORRIDORS:
            if food[i, spot]:
                seen[i, spot] = FOOD
        for k in range(PILLS):
            if pills[i, k] >= 0:
                seen[i, pills[i, k]] = PILL
        for g in range(GHOSTS):
            if ghosts[i, g] >= 0:
                seen[i, ghosts[i, g]] = GHOST + power[i]
        seen[i, pacman[i]] = PACMAN
        if power_bar:
            for k in range(min(power[i], WIDTH)):
                seen[i, CELLS - WIDTH + k] = BAR
