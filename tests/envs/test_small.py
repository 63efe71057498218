"""The tiny worlds: what the best, the forgetful and the random get in each."""

import warnings
from collections import deque

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import reverie.envs  # noqa: F401  (registers the worlds)
from reverie.envs.small import Dials, Recall, Rooms
from reverie.types import ReverieError


@pytest.mark.parametrize("name", ["Catch", "DynaMaze", "Recall", "Rooms", "Dials"])
def test_gymnasiums_checker(name: str) -> None:
    env = gymnasium.make(f"reverie/{name}-v0").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)


def test_the_cue_is_seen_once_and_asked_for_later() -> None:
    env = Recall(cues=3, delay=4)
    obs, _ = env.reset(seed=0)
    cue = int(obs[:3].argmax())
    assert obs.sum() == 1 and obs[3] == 0
    for _ in range(4):
        obs, reward, terminated, *_ = env.step(1)
        assert not obs.any() and reward == 0 and not terminated
    obs, reward, terminated, *_ = env.step(cue)
    assert obs.tolist() == [0, 0, 0, 1] and reward == 0 and not terminated
    _, reward, terminated, truncated, _ = env.step(cue)
    assert reward == 1 and terminated and not truncated


def test_without_memory_recall_is_luck() -> None:
    env, scores, cues = Recall(), [], []
    for seed in range(400):
        obs, _ = env.reset(seed=seed)
        cues.append(int(obs[:4].argmax()))
        over = False
        while not over:
            _, reward, over, _, _ = env.step(2)
        scores.append(reward)
    assert np.mean(scores) == pytest.approx(2 / 4 - 1, abs=0.15)
    assert np.bincount(cues, minlength=4).min() > 70


def shortest(env: Rooms) -> list[int]:
    """The fewest moves to the goal."""
    found, ways = deque([env.at]), {env.at: []}
    while found:
        cell = found.popleft()
        if cell == env.goal:
            return ways[cell]
        for action, (row, column) in enumerate(env.moves):
            to = cell[0] + row, cell[1] + column
            if env.plan[to[0]][to[1]] == "." and to not in ways:
                ways[to] = [*ways[cell], action]
                found.append(to)
    raise AssertionError("the goal cannot be reached")


def test_every_goal_is_in_another_room_and_can_be_reached() -> None:
    env = Rooms()
    assert len(env.goals) == 27
    for goal in env.goals:
        env.reset(seed=0)
        env.goal = goal
        way = shortest(env)
        assert 5 <= len(way) <= 12
        steps = [env.step(action) for action in way]
        assert [step[1] for step in steps] == [0.0] * (len(way) - 1) + [1.0]
        assert steps[-1][2] and not any(step[2] or step[3] for step in steps[:-1])


def test_walls_hold_and_the_clock_stops() -> None:
    env = Rooms()
    first, _ = env.reset(seed=1)
    for step in range(1, 101):
        obs, reward, terminated, truncated, _ = env.step(0)
        assert np.array_equal(obs, first) and reward == 0 and not terminated and truncated == (step == 100)
    assert first.shape == (63, 63, 3) and len(np.unique(first.reshape(-1, 3), axis=0)) == 4


def test_the_reward_of_rooms_is_rarely_met_by_chance() -> None:
    env, rng, met = Rooms(), np.random.default_rng(0), 0
    for seed in range(80):
        env.reset(seed=seed)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(rng.integers(4))
            over = terminated or truncated
        met += reward == 1
    assert 2 < met < 32


def test_dials_are_turned_together() -> None:
    env = Dials(dials=3, marks=5, steps=4)
    env.reset(seed=0)
    env.at, env.goal = np.array([0, 2, 4]), np.array([2, 2, 0])
    obs, reward, terminated, truncated, _ = env.step(np.array([2, 1, 0]))
    assert env.at.tolist() == [1, 2, 3] and reward == pytest.approx(1 - (1 + 0 + 3) / 3 / 4)
    assert (
        obs.tolist() == pytest.approx([0.25, 0.5, 0.75, 0.5, 0.5, 0.0]) and not terminated and not truncated
    )
    assert env.step(np.array([2, 1, 0]))[1] == pytest.approx(1 - 2 / 3 / 4)
    assert env.step(np.array([1, 1, 0]))[1] == pytest.approx(1 - 1 / 3 / 4)
    _, reward, terminated, truncated, _ = env.step(np.array([1, 1, 0]))
    assert reward == 1 and truncated and not terminated
    env.at = np.array([0, 4, 4])
    env.step(np.array([0, 2, 1]))
    assert env.at.tolist() == [0, 4, 4]  # no dial turns over its end


@pytest.mark.parametrize(
    ("make", "options"),
    [(Recall, {"cues": 1}), (Recall, {"delay": -1}), (Dials, {"marks": 1}), (Dials, {"dials": 0})],
)
def test_bad_settings_get_one_sentence(make: type, options: dict) -> None:
    with pytest.raises(ReverieError, match="needs"):
        make(**options)
