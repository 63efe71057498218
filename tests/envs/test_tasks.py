"""Several tasks as one environment."""

import numpy as np
import pytest

from reverie.envs import make_env
from reverie.envs.base import Env, after, first
from reverie.envs.tasks import Tasks
from reverie.types import ActionSpace, ReverieError, Space


class Wide(Env):
    """Remembers the action it was given."""

    def __init__(self, size: int) -> None:
        self.obs_space, self.act_space = {"vector": Space((1,))}, ActionSpace(size)
        self.taken = np.zeros(0)

    def reset(self, seed):
        return first({"vector": np.zeros(1, np.float32)})

    def step(self, action):
        self.taken = action
        return after({"vector": np.zeros(1, np.float32)}, 0.0, False, False)

    def render(self):
        return np.zeros((2, 2, 3), np.uint8)


@pytest.fixture
def both():
    env = make_env("Pendulum-v1+MountainCarContinuous-v0", pixels=True)
    yield env
    env.close()


def test_each_episode_is_of_the_task_its_seed_picks(both):
    alone = [make_env(name, pixels=True) for name in ("Pendulum-v1", "MountainCarContinuous-v0")]
    for seed in (4, 7):
        env = alone[seed % 2]
        a, b = both.reset(seed), env.reset(seed)
        for _ in range(3):
            np.testing.assert_array_equal(a.obs["image"], b.obs["image"])
            assert a.reward == b.reward
            action = np.array([0.5], np.float32)
            a, b = both.step(action), env.step(action)
    for env in alone:
        env.close()


def test_actions_are_as_wide_as_the_widest_and_a_task_takes_its_share():
    made = [Wide(1), Wide(3)]
    env = Tasks(made, ["one", "three"])
    assert env.act_space.size == 3
    env.reset(0)
    env.step(np.array([0.1, 0.2, 0.3], np.float32))
    env.reset(1)
    env.step(np.array([0.1, 0.2, 0.3], np.float32))
    assert [len(e.taken) for e in made] == [1, 3]


def test_tasks_that_look_different_are_refused():
    with pytest.raises(ReverieError, match="same observations"):
        make_env("Pendulum-v1+MountainCarContinuous-v0", pixels=False)
