"""A robot of your own: a cart on a rail, to be brought to the middle. It learns with

    reverie robot sac --robot examples/toy_robot.py:Cart --preset laptop --steps 4000 --prefill 400 --sync-every 5

The cart here is a few lines of arithmetic. On yours, ``sense`` reads the sensors and ``send`` writes to the
motors; nothing else changes.
"""

import numpy as np

from reverie.robots import Reading, Robot
from reverie.types import ActionSpace, Space


class Cart(Robot):
    rate = 20.0  # decisions a second
    episode = 100  # decisions, then it is reset
    obs_space = {"vector": Space((2,))}  # noqa: RUF012  where it is in m, how fast in m/s
    act_space = ActionSpace(1)  # how hard to push, -1 to 1

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.place = self.speed = 0.0

    def reset(self) -> None:
        """Carry it to some place on the rail."""
        self.place, self.speed = self.rng.uniform(-1, 1), 0.0

    def sense(self) -> Reading:
        obs = np.array([self.place, self.speed], np.float32)
        return Reading({"vector": obs}, reward=1 - abs(self.place), over=abs(self.place) > 2)

    def send(self, action: np.ndarray) -> None:
        """What the motor does until the next command. A real one does it by itself, and ``send`` returns at once."""
        self.speed = 0.95 * self.speed + 0.1 * float(action[0])
        self.place += self.speed / self.rate * 2

    def stop(self) -> None:
        self.speed = 0.0
