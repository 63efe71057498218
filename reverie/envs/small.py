"""Three tiny worlds of our own: ``reverie/Catch-v0`` for a first minute, and two that check the plumbing.

They are ordinary Gymnasium environments, so they go through the same adapter as everyone else's.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


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


for _world in (Catch, Probe, Everything):
    if f"reverie/{_world.__name__}-v0" not in gymnasium.registry:
        gymnasium.register(f"reverie/{_world.__name__}-v0", f"{__name__}:{_world.__name__}")
