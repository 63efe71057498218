"""Minari data sets in and out: the shift of rewards, and every kind of space."""

import importlib.util
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from reverie.data import minari as border
from reverie.data.replay import Replay
from reverie.envs.gymnasium import Gymnasium
from reverie.types import ActionSpace, ReverieError

needs_minari = pytest.mark.skipif(importlib.util.find_spec("minari") is None, reason="needs minari")
quiet = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def test_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ReverieError, match=r'run pip install "reverie\[minari\]"'):
        border.load("anything")


@needs_minari
@quiet
def test_shift(home):
    """Worked by hand: three steps as Minari keeps them, four rows as we do."""
    import minari
    from minari.data_collector import EpisodeBuffer

    minari.create_dataset_from_buffers(
        "mine/shift-v0",
        [
            EpisodeBuffer(
                observations=np.array([[10.0], [11], [12], [13]], np.float32),
                actions=np.array([[0.0], [2], [4]], np.float32),
                rewards=[1.0, 2.0, 3.0],
                terminations=[False, False, True],
                truncations=[False, False, False],
            )
        ],
        observation_space=spaces.Box(-99, 99, (1,)),
        action_space=spaces.Box(0, 4, (1,)),
    )
    obs_space, act_space, found = border.load("mine/shift-v0")
    (rows,) = found
    assert list(obs_space) == ["vector"] and act_space == ActionSpace(1)
    assert rows["obs/vector"].tolist() == [[10], [11], [12], [13]]
    assert rows["action"].tolist() == [[-1], [0], [1], [0]]
    assert rows["reward"].tolist() == [0, 1, 2, 3]
    assert rows["is_first"].tolist() == [True, False, False, False]
    assert rows["is_last"].tolist() == [False, False, False, True]
    assert rows["is_terminal"].tolist() == [False, False, False, True]
    border.save("mine/back-v0", [rows], act_space)
    (back,) = minari.load_dataset("mine/back-v0").iterate_episodes()
    assert back.rewards.tolist() == [1, 2, 3] and back.actions.tolist() == [[-1], [0], [1]]
    assert back.observations["vector"].tolist() == [[10], [11], [12], [13]]
    assert back.terminations.tolist() == [False, False, True] and not back.truncations.any()


@needs_minari
@quiet
@pytest.mark.parametrize("act_space", [ActionSpace(2), ActionSpace(3, (3,)), ActionSpace(5, (2, 3))])
def test_out_and_in(home, act_space):
    rng = np.random.default_rng(0)
    given = []
    for n in (3, 6):
        given.append(
            {
                "obs/image": rng.integers(256, size=(n, 40, 40, 3), dtype=np.uint8),
                "obs/arm/pos": rng.normal(size=(n, 2)).astype(np.float32),
                "obs/arm/vel": rng.normal(size=(n, 1)).astype(np.float32),
                "action": act_space.sample(rng, n) * (np.arange(n) < n - 1)[:, None].astype(np.float32),
                "reward": rng.normal(size=n).astype(np.float32) * (np.arange(n) > 0).astype(np.float32),
                "env_steps": np.array([0] + [1] * (n - 1)),
                "is_first": np.arange(n) == 0,
                "is_last": np.arange(n) == n - 1,
                "is_terminal": (np.arange(n) == n - 1) & (n == 3),
            }
        )
    border.save("mine/round-v0", given, act_space, author="me")
    obs_space, found_act, found = border.load("mine/round-v0")
    found = list(found)
    assert found_act == act_space and len(found) == 2
    for a, b in zip(given, found, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_allclose(b[key], a[key], rtol=1e-6, err_msg=key)
    from reverie.data.episodes import fill

    replay = Replay(obs_space, act_space, 50)
    assert fill(replay, found) == 9 and replay.episodes == 2


@needs_minari
def test_unknown_name(home):
    with pytest.raises(ReverieError, match=r"'mine/nothing-v0' can not be loaded .* downloaded"):
        border.load("mine/nothing-v0")


@needs_minari
def test_nothing_to_save(home):
    with pytest.raises(ReverieError, match="would be empty"):
        border.save("mine/empty-v0", [], ActionSpace(2))


class Silent(gymnasium.Env):
    observation_space = spaces.Box(0, 1, (1,))

    def __init__(self, action_space):
        self.action_space, self.last = action_space, None

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.last = action
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(np.array([-2.0, 0.0]), np.array([1.0, 10.0])),
        spaces.Box(-1, 1, (2, 3)),
        spaces.Discrete(4, start=3),
        spaces.MultiDiscrete([2, 5, 3]),
        spaces.MultiBinary(4),
    ],
)
def test_actions_there_and_back(space):
    """What the adapter makes of our form of an action is that action."""
    theirs = Silent(space)
    env = Gymnasium(theirs)
    env.reset(seed=0)
    space.seed(0)
    for _ in range(20):
        action = space.sample()
        env.step(border._ours(space)(action))
        np.testing.assert_allclose(theirs.last, action, atol=1e-5)


def test_keys_nest():
    assert border._nested({"a": 1, "b/c": 2, "b/d/e": 3}) == {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    with pytest.raises(ReverieError, match="can not both be"):
        border._nested({"a": 1, "a/b": 2})
