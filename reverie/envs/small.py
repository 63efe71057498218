"""Tiny worlds of our own: ``reverie/Catch-v0`` for a first minute, ``reverie/DynaMaze-v0`` for a table, three that
each ask one thing more of an agent, ``reverie/Recall-v0`` (memory), ``reverie/Rooms-v0`` (a reward that is far away)
and ``reverie/Dials-v0`` (several choices at once), and two that check the plumbing.

They are ordinary Gymnasium environments, so they go through the same adapter as everyone else's.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.types import ReverieError


class Catch(gymnasium.Env):
    """A ball falls through ten rows, the paddle below moves left, stays or moves right.

    The picture is 64x64x3. The episode ends when the ball is down: reward 1 if it was caught, else -1.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 8,
    }
    cells = 10

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.ball, self.paddle = [0, 0], 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.ball, self.paddle = [0, int(self.np_random.integers(self.cells))], self.cells // 2
        return self._draw(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.ball[0] += 1
        self.paddle = min(max(self.paddle + int(action) - 1, 0), self.cells - 1)
        down = self.ball[0] == self.cells - 1
        reward = (1.0 if self.ball[1] == self.paddle else -1.0) if down else 0.0
        return self._draw(), reward, down, False, {}

    def render(self) -> np.ndarray:
        return self._draw()

    def _draw(self) -> np.ndarray:
        picture = np.zeros((64, 64, 3), np.uint8)
        for (row, column), colour in (
            (self.ball, (255, 190, 60)),
            ((self.cells - 1, self.paddle), (80, 170, 255)),
        ):
            picture[2 + 6 * row : 8 + 6 * row, 2 + 6 * column : 8 + 6 * column] = colour
        return picture


class DynaMaze(gymnasium.Env):
    """Sutton & Barto's maze (2nd ed., Fig. 8.2): nine columns, six rows, 47 free cells, the goal 14 moves away.

    The observation is the number of the cell, row by row from the top left; actions are up, down, left, right. A
    move into a wall or over the border stays. Reaching the goal ends the episode and is worth 1, all else 0.
    Nothing is random, and no clock runs.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 8,
    }
    rows, columns = 6, 9
    start, goal = (2, 0), (0, 8)
    walls = frozenset({(1, 2), (2, 2), (3, 2), (0, 7), (1, 7), (2, 7), (4, 5)})
    moves = ((-1, 0), (1, 0), (0, -1), (0, 1))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Discrete(self.rows * self.columns)
        self.action_space = spaces.Discrete(len(self.moves))
        self.at = self.start

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.at = self.start
        return self._cell(), {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict]:
        self.at = self.after(self.at, int(action))
        there = self.at == self.goal
        return self._cell(), float(there), there, False, {}

    def after(self, at: tuple[int, int], action: int) -> tuple[int, int]:
        """The cell that a move from ``at`` leads to."""
        row, column = at[0] + self.moves[action][0], at[1] + self.moves[action][1]
        inside = 0 <= row < self.rows and 0 <= column < self.columns
        return (row, column) if inside and (row, column) not in self.walls else at

    def render(self) -> np.ndarray:
        picture = np.full((self.rows, self.columns, 3), 235, np.uint8)
        for cells, colour in (
            (self.walls, (60, 64, 67)),
            ((self.start,), (200, 215, 230)),
            ((self.goal,), (0, 158, 115)),
            ((self.at,), (213, 94, 0)),
        ):
            for cell in cells:
                picture[cell] = colour
        picture = picture.repeat(24, 0).repeat(24, 1)
        picture[::24] = picture[:, ::24] = 255
        return picture

    def _cell(self) -> int:
        return self.at[0] * self.columns + self.at[1]


class Recall(gymnasium.Env):
    """One of ``cues`` is shown on the first row, ``delay`` empty rows follow, then the agent is asked which it was.

    The observation is the cue, one-hot or zeros, and 1 where the answer is awaited; actions before that do nothing.
    The right answer is worth 1, a wrong one -1. Who cannot remember gets 2 / ``cues`` - 1 on average.
    """

    def __init__(self, cues: int = 4, delay: int = 10) -> None:
        if cues < 2 or delay < 0:
            raise ReverieError(f"Recall needs cues >= 2 and delay >= 0, got {cues} and {delay}")
        self.cues, self.delay = cues, delay
        self.observation_space = spaces.Box(0.0, 1.0, (cues + 1,), np.float32)
        self.action_space = spaces.Discrete(cues)
        self.cue, self.t = 0, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.cue, self.t = int(self.np_random.integers(self.cues)), 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        if self.t <= self.delay + 1:
            return self._obs(), 0.0, False, False, {}
        return self._obs(), 1.0 if int(action) == self.cue else -1.0, True, False, {}

    def _obs(self) -> np.ndarray:
        obs = np.zeros(self.cues + 1, np.float32)
        if self.t == 0:
            obs[self.cue] = 1.0
        obs[-1] = self.t == self.delay + 1
        return obs


class Rooms(gymnasium.Env):
    """Four rooms with doors between them: from a corner to the goal, a free cell of another room that can be seen.

    The picture is 63x63x3; actions are up, down, left, right. A move into a wall stays. The goal is worth 1 and ends
    the episode, all else 0; the clock stops it after 100 steps.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 8,
    }
    plan = (
        "#########",
        "#...#...#",
        "#.......#",
        "#...#...#",
        "##.###.##",
        "#...#...#",
        "#.......#",
        "#...#...#",
        "#########",
    )
    moves = ((-1, 0), (1, 0), (0, -1), (0, 1))
    steps = 100

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (63, 63, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self.moves))
        inside = range(1, 8)
        far = [(row, column) for row in inside for column in inside if row > 4 or column > 4]
        self.goals = [cell for cell in far if self._free(cell) and 4 not in cell]
        self.at, self.goal, self.t = (1, 1), self.goals[0], 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.at, self.goal, self.t = (1, 1), self.goals[int(self.np_random.integers(len(self.goals)))], 0
        return self.render(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        row, column = self.moves[int(action)]
        to = self.at[0] + row, self.at[1] + column
        self.at = to if self._free(to) else self.at
        there = self.at == self.goal
        return self.render(), float(there), there, self.t >= self.steps and not there, {}

    def _free(self, cell: tuple[int, int]) -> bool:
        return self.plan[cell[0]][cell[1]] == "."

    def render(self) -> np.ndarray:
        picture = np.array(
            [[(60, 64, 67) if c == "#" else (235,) * 3 for c in row] for row in self.plan], np.uint8
        )
        picture[self.goal], picture[self.at] = (0, 158, 115), (213, 94, 0)
        return picture.repeat(7, 0).repeat(7, 1)


class Dials(gymnasium.Env):
    """``dials`` dials, each of which may be turned back, left alone or turned on in every step, by one action.

    The observation is where each stands and where each should, in [0, 1]. A step is worth 1 less the mean distance
    after it, in turns over the most that are possible, and the clock stops the episode after ``steps``.
    """

    def __init__(self, dials: int = 3, marks: int = 7, steps: int = 20) -> None:
        if min(dials, steps) < 1 or marks < 2:
            raise ReverieError(
                f"Dials needs dials, steps >= 1 and marks >= 2, got {dials}, {steps} and {marks}"
            )
        self.marks, self.steps = marks, steps
        self.observation_space = spaces.Box(0.0, 1.0, (2 * dials,), np.float32)
        self.action_space = spaces.MultiDiscrete([3] * dials)
        self.at, self.goal, self.t = np.zeros(dials, np.int64), np.zeros(dials, np.int64), 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.at, self.goal = self.np_random.integers(self.marks, size=(2, len(self.at)))
        self.t = 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        self.at = np.clip(self.at + np.asarray(action) - 1, 0, self.marks - 1)
        reward = 1.0 - float(np.abs(self.at - self.goal).mean()) / (self.marks - 1)
        return self._obs(), reward, False, self.t >= self.steps, {}

    def _obs(self) -> np.ndarray:
        return (np.concatenate([self.at, self.goal]) / (self.marks - 1)).astype(np.float32)


class Probe(gymnasium.Env):
    """Every pixel of row t is t, and the reward is the first component of the action just taken.

    Whatever misplaces a row, an action or a reward by one shows at once. Cut by the clock after ``length``
    steps.
    """

    def __init__(self, length: int = 10) -> None:
        self.observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.length, self.t = length, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return self._obs(), float(action[0]), False, self.t >= self.length, {}

    def _obs(self) -> np.ndarray:
        return np.full((64, 64, 3), self.t % 256, np.uint8)


class Everything(gymnasium.Env):
    """Random observations from every kind of space that has a canonical form; episodes of 5 steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            picture=spaces.Box(0, 255, (12, 20, 3), np.uint8),
            grey=spaces.Box(0, 255, (12, 20), np.uint8),
            first=spaces.Box(0.0, 1.0, (4, 16, 16), np.float32),
            vector=spaces.Box(-np.inf, np.inf, (3,), np.float64),
            matrix=spaces.Box(-1.0, 1.0, (2, 3), np.float32),
            number=spaces.Discrete(4, start=-1),
            pair=spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4))),
            deep=spaces.Dict(inner=spaces.Dict(value=spaces.Box(-5, 5, (), np.int32))),
        )
        self.action_space = spaces.MultiDiscrete([3, 2])
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.t += 1
        return self.observation_space.sample(), float(action.sum()), self.t == 5, False, {}


for _world in (Catch, DynaMaze, Recall, Rooms, Dials, Probe, Everything):
    if f"reverie/{_world.__name__}-v0" not in gymnasium.registry:
        gymnasium.register(f"reverie/{_world.__name__}-v0", f"{__name__}:{_world.__name__}")
