"""Repeats, clocks and pictures: who counts what, and what is drawn when."""

import numpy as np
import pytest

from reverie.envs import make_env
from reverie.envs.base import Env, after, first
from reverie.envs.wrappers import ActionRepeat, Pixels, TimeLimit
from reverie.types import ActionSpace, ReverieError, Space, Step


class Counter(Env):
    """Pays 1 a step, ends (or not) after ``length`` and counts how often it is drawn."""

    def __init__(self, length: int = 10, terminal: bool = True) -> None:
        self.obs_space, self.act_space = {"vector": Space((1,))}, ActionSpace(1)
        self.length, self.terminal, self.t, self.drawn = length, terminal, 0, 0

    def reset(self, seed: int) -> Step:
        self.t = 0
        return first({"vector": np.zeros(1, np.float32)})

    def step(self, action: np.ndarray) -> Step:
        self.t += 1
        end = self.t >= self.length
        return after({"vector": np.array([self.t], np.float32)}, 1.0, end and self.terminal, end)

    def render(self) -> np.ndarray:
        self.drawn += 1
        return np.full((8, 8, 3), self.t, np.uint8)


def run(env: Env) -> list[Step]:
    rows = [env.reset(0)]
    while not rows[-1].is_last:
        rows.append(env.step(np.zeros(env.act_space.size, np.float32)))
    return rows


def test_repeat_adds_rewards_and_stops_at_the_end() -> None:
    rows = run(ActionRepeat(Counter(10), 4))
    assert [int(row.env_steps) for row in rows] == [0, 4, 4, 2]
    assert [float(row.reward) for row in rows] == [0, 4, 4, 2]
    assert [float(row.obs["vector"][0]) for row in rows] == [0, 4, 8, 10]
    assert rows[-1].is_terminal


@pytest.mark.parametrize(
    ("limit", "repeat", "steps"), [(7, 1, 7), (7, 2, 7), (7, 10, 7), (10, 3, 10), (99, 4, 10)]
)
def test_the_clock_counts_env_steps(limit: int, repeat: int, steps: int) -> None:
    rows = run(ActionRepeat(TimeLimit(Counter(10), limit), repeat))
    assert sum(int(row.env_steps) for row in rows) == steps
    assert len(rows) == 1 + -(-steps // repeat)
    assert rows[-1].is_last and bool(rows[-1].is_terminal) == (limit >= 10)
    assert not any(row.is_last for row in rows[:-1])


def test_no_step_after_the_clock() -> None:
    env = TimeLimit(Counter(), 1)
    run(env)
    with pytest.raises(ReverieError, match="call reset"):
        env.step(np.zeros(1, np.float32))


def test_hidden_frames_are_never_drawn() -> None:
    counter = Counter(10)
    rows = run(Pixels(ActionRepeat(counter, 4), 4))
    assert counter.drawn == len(rows) == 4
    assert [int(row.obs["image"][0, 0, 0]) for row in rows] == [0, 4, 8, 10]
    assert list(rows[0].obs) == ["image"] and rows[0].obs["image"].shape == (4, 4, 3)


def test_pictures_keep_their_size_without_a_size() -> None:
    env = Pixels(Counter(), None)
    assert env.obs_space == {"image": Space((8, 8, 3), "uint8")} and env.reset(0).obs["image"].shape == (
        8,
        8,
        3,
    )


def test_dmc_at_repeat_two_has_501_rows_and_1000_env_steps() -> None:
    pytest.importorskip("dm_control")
    env = make_env("dmc/cartpole_swingup", action_repeat=2)
    rows = run(env)
    env.close()
    assert len(rows) == 501
    assert sum(int(row.env_steps) for row in rows) == 1000
    assert rows[-1].is_last and not any(row.is_terminal for row in rows)


def test_a_time_limit_replaces_the_environments_own() -> None:
    assert len(run(make_env("Pendulum-v1"))) == 201
    assert len(run(make_env("Pendulum-v1", time_limit=300))) == 301
    rows = run(make_env("Pendulum-v1", time_limit=3))
    assert len(rows) == 4 and rows[-1].is_last and not rows[-1].is_terminal
    pytest.importorskip("dm_control")
    assert len(run(make_env("dmc/cartpole_swingup", time_limit=1003))) == 1004


def test_a_real_end_is_terminal() -> None:
    rows = run(make_env("CartPole-v1"))
    assert rows[-1].is_last and rows[-1].is_terminal


def test_the_quadruped_gets_its_own_bounds() -> None:
    pytest.importorskip("dm_control")
    env = make_env("dmc/quadruped_walk")
    sent = []
    inner = env._env
    inner_step = inner.step
    inner.step = lambda action: sent.append(action) or inner_step(action)
    spec = inner.action_spec()
    env.reset(0)
    for sign, bound in ((1, spec.maximum), (-1, spec.minimum)):
        env.step(np.full(12, sign, np.float32))
        np.testing.assert_allclose(sent[-1], bound)
    assert (spec.maximum != 1).any()


def test_dmc_vectors_and_scalars() -> None:
    pytest.importorskip("dm_control")
    env = make_env("dmc/hopper_hop")
    assert env.obs_space == {"position": Space((6,)), "velocity": Space((7,)), "touch": Space((2,))}
    assert make_env("dmc/walker_walk").obs_space["height"] == Space((1,))
