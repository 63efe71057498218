"""Two rooms and a corridor: cells, goals and rewards, and that the table is the world."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import reverie.envs
from reverie.envs.two_rooms import BEFORE, CELLS, GOALS, TwoRooms, table
from reverie.types import ReverieError


def test_cells_goals_and_what_a_step_brings():
    assert len(CELLS) == 32 and len(GOALS) == 24
    follows, reward, ends = table()
    assert follows.shape == (32 * 6, 5) and reward.shape == ends.shape == (24, 32 * 6, 5)
    at = lambda r, c: CELLS.index((r, c)) * BEFORE
    assert follows[at(4, 4), 4] == at(4, 5) + 5 and follows[at(4, 4) + 3, 3] == at(4, 3) + 4
    assert follows[at(4, 4), 1] == at(4, 4) + 2  # a wall: nobody moves, but that it was tried is remembered
    task = GOALS.index((3, 2))
    assert reward[task, at(4, 2), 1] == pytest.approx(0.9) and ends[task, at(4, 2), 1]
    assert reward[task, at(4, 4), 1] == pytest.approx(-0.6) and not ends[task, at(4, 4)].any()
    assert reward[task, at(4, 4), 3] == pytest.approx(-0.1)


def test_the_world_walks_through_its_table():
    env = TwoRooms(24)
    follows, reward, ends = table()
    rng = np.random.default_rng(0)
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        assert obs["state"][:-1].sum() == 2 and obs["state"][len(CELLS)] == 1 and obs["state"][-1] == 0
        task = int(obs["task"].argmax())
        for _ in range(60):
            before, action = env.state, int(rng.integers(5))
            obs, earned, end, _, _ = env.step(action)
            assert env.state == follows[before, action] and end == ends[task, before, action]
            assert earned == pytest.approx(reward[task, before, action])
            assert obs["state"][: len(CELLS)].argmax() == env.state // BEFORE
            assert obs["state"][-1] == pytest.approx(earned)
            if end:
                assert CELLS[env.state // BEFORE] == GOALS[task]
                break


def test_gymnasiums_checker_and_our_form():
    check_env(gymnasium.make("reverie/TwoRooms-v0").unwrapped, skip_render_check=True)
    env = reverie.envs.make_env("reverie/TwoRooms-v0")
    assert {key: space.shape for key, space in env.obs_space.items()} == {"state": (39,), "task": (8,)}
    row = env.reset(3)
    assert np.array_equal(env.reset(3).obs["state"], row.obs["state"])
    assert (
        gymnasium.make("reverie/TwoRooms-v0", render_mode="rgb_array").unwrapped.tasks
        == env.env.unwrapped.tasks
    )
    env.close()


def test_every_task_comes_and_no_episode_begins_at_its_goal():
    env, seen = TwoRooms((0, 5)), set()
    for seed in range(200):
        obs, _ = env.reset(seed=seed)
        seen.add(int(obs["task"].argmax()))
        assert CELLS[env.state // BEFORE] != GOALS[env.tasks[env.task]]
    assert seen == {0, 1}
    picture = env.render()
    assert picture.shape == (72, 80, 3) and picture.dtype == np.uint8


@pytest.mark.parametrize("tasks", [0, (24,), (-1,)])
def test_tasks_that_are_not_there_are_refused(tasks):
    with pytest.raises(ReverieError, match="tasks are numbers from 0 to 23"):
        TwoRooms(tasks)
