"""Two rooms and a corridor: the grid world of Distral (Teh et al. 2017), one task for each goal.

::

    ##########
    #..####..#
    #..####..#        every step -0.1, into a wall another -0.5
    #..####..#        the goal +1, and the end
    #........#
    #..####..#
    #..####..#
    #..####..#
    ##########

Actions: 0 nothing, 1 up, 2 down, 3 left, 4 right. What is seen is where one is, what one did last and what it
brought: all that a policy that serves every task can go by. The task is shown beside it.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.types import ReverieError

ROWS = ("##########", *["#..####..#"] * 3, "#........#", *["#..####..#"] * 3, "##########")
CELLS = [(r, c) for r, row in enumerate(ROWS) for c, cell in enumerate(row) if cell == "."]
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
CORRIDOR = 4  # its row
GOALS = [cell for cell in CELLS if cell[0] != CORRIDOR]  # in the rooms, off the corridor's row
STEP, WALL, GOAL = -0.1, -0.5, 1.0
NONE = 0  # no previous action; else action + 1
BEFORE = len(MOVES) + 1


def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The world as arrays: the next state "S A", rewards "n S A" and ends "n S A" of every goal in ``GOALS``.

    A state is cell * 6 + previous action (0: none).
    """
    number = {cell: i for i, cell in enumerate(CELLS)}
    follows = np.zeros((len(CELLS), BEFORE, len(MOVES)), np.int64)
    bumps = np.zeros(follows.shape, bool)
    for i, (r, c) in enumerate(CELLS):
        for a, (down, right) in enumerate(MOVES):
            to = number.get((r + down, c + right))
            bumps[i, :, a] = to is None
            follows[i, :, a] = (i if to is None else to) * BEFORE + a + 1
    flat = follows.reshape(-1, len(MOVES))
    ends = flat // BEFORE == np.array([number[goal] for goal in GOALS])[:, None, None]
    return flat, STEP + GOAL * ends + WALL * bumps.reshape(flat.shape), ends


class TwoRooms(gymnasium.Env):
    """One of ``tasks`` in each episode, drawn by its seed; tasks are goals, numbered as in ``GOALS``.

    Observations: ``state``, one-hot cell and previous action with the previous reward; ``task``, one-hot. Episodes
    begin in any cell but the goal.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(self, tasks: int | tuple[int, ...] = 8, render_mode: str | None = None) -> None:
        spread = (
            np.linspace(0, len(GOALS) - 1, tasks).round().astype(int) if isinstance(tasks, int) else tasks
        )
        self.tasks, self.render_mode = tuple(int(task) for task in spread), render_mode
        if not self.tasks or not set(self.tasks) <= set(range(len(GOALS))):
            raise ReverieError(
                f"tasks are numbers from 0 to {len(GOALS) - 1}, or how many of them; got {tasks}"
            )
        self.follows, self.rewards, self.ends = table()
        self.observation_space = spaces.Dict(
            state=spaces.Box(-2.0, 2.0, (len(CELLS) + BEFORE + 1,), np.float32),
            task=spaces.Box(0.0, 1.0, (len(self.tasks),), np.float32),
        )
        self.action_space = spaces.Discrete(len(MOVES))
        self.task, self.state, self.earned = 0, 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.task = int(self.np_random.integers(len(self.tasks)))
        goal = CELLS.index(GOALS[self.tasks[self.task]])
        cell = int(self.np_random.integers(len(CELLS) - 1))
        self.state, self.earned = (cell + (cell >= goal)) * BEFORE + NONE, 0.0
        return self._see(), {}

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        place = self.tasks[self.task], self.state, int(action)
        self.earned, end = float(self.rewards[place]), bool(self.ends[place])
        self.state = int(self.follows[place[1:]])
        return self._see(), self.earned, end, False, {}

    def _see(self) -> dict[str, np.ndarray]:
        cell, before = divmod(self.state, BEFORE)
        seen = np.zeros(len(CELLS) + BEFORE + 1, np.float32)
        seen[cell] = seen[len(CELLS) + before] = 1.0
        seen[-1] = self.earned
        return {"state": seen, "task": np.eye(len(self.tasks), dtype=np.float32)[self.task]}

    def render(self) -> np.ndarray:
        picture = np.array(
            [[(66, 66, 82) if c == "#" else (222, 214, 196) for c in row] for row in ROWS], np.uint8
        )
        picture[GOALS[self.tasks[self.task]]] = (200, 60, 70)
        picture[CELLS[self.state // BEFORE]] = (54, 96, 176)
        return picture.repeat(8, 0).repeat(8, 1)


if "reverie/TwoRooms-v0" not in gymnasium.registry:
    gymnasium.register("reverie/TwoRooms-v0", f"{__name__}:TwoRooms", max_episode_steps=60)
