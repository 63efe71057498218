"""A batch of worlds is, row for row, the worlds one by one: stepped, left out, brought back and begun anew."""

import numpy as np
import pytest

from reverie.envs import SerialEnvs, make_env
from reverie.envs.batch import BatchEnvs, batched
from reverie.types import ReverieError

NAME = "reverie/MiniPacman-v0"
FLAGS = ("reward", "is_first", "is_last", "is_terminal", "env_steps")


def both(n=3, limit=8, seed=3):
    serial = SerialEnvs(lambda: make_env(NAME, image_size=None, time_limit=limit), n, seed)
    return BatchEnvs(NAME, n, seed, limit), serial


def same(a, b):
    for name in FLAGS:
        left, right = getattr(a, name), getattr(b, name)
        assert np.array_equal(left, right) and left.dtype == right.dtype, name
    assert a.obs.keys() == b.obs.keys()
    assert all(np.array_equal(a.obs[key], b.obs[key]) for key in a.obs)


def test_rows_are_those_of_single_worlds():
    batch, serial = both()
    assert batch.obs_space == serial.obs_space and batch.act_space == serial.act_space
    rng = np.random.default_rng(0)
    ends = 0
    for t in range(50):
        action = batch.act_space.sample(rng, 3)
        only = None if t % 4 else rng.permutation(3)[: 1 + t % 3]
        a, b = batch.step(action, only), serial.step(action, only)
        same(a, b)
        ends += int(a.is_last.sum())
    assert ends > 3 and batch.episodes == serial.episodes
    batch.close(), serial.close()


def test_a_stream_is_brought_back_and_the_others_stay():
    batch, serial = both()
    rng = np.random.default_rng(1)
    for _ in range(6):
        action = batch.act_space.sample(rng, 3)
        before = batch.step(action)
        serial.step(action)
    actions = batch.act_space.sample(rng, 5)
    same(batch.restore(1, 2, actions), serial.restore(1, 2, actions))
    batch.end(0, 4), serial.end(0, 4)
    for _ in range(20):
        action = batch.act_space.sample(rng, 3)
        same(batch.step(action), serial.step(action))
    assert batch.episodes[0] >= 5 and before.obs.keys() == batch.obs_space.keys()
    with pytest.raises(ReverieError, match="the episode ended after"):
        batch.restore(1, 2, batch.act_space.sample(rng, 40))


def test_rows_handed_out_are_ones_own():
    batch, _ = both(limit=50)
    batch.step(np.zeros((3, 5), np.float32))
    row = batch.step(np.eye(5, dtype=np.float32)[:3])
    kept = {key: value.copy() for key, value in row.obs.items()}
    batch.step(np.eye(5, dtype=np.float32)[[1, 1, 1]])
    assert all(np.array_equal(row.obs[key], kept[key]) for key in kept)


def test_only_worlds_that_hand_out_their_state_are_batched():
    assert batched(NAME) is not None
    assert (
        batched("CartPole-v1") is None and batched("reverie/Catch-v0") is None and batched("nothing") is None
    )
    with pytest.raises(ReverieError, match="cannot be stepped as one batch"):
        BatchEnvs("reverie/Catch-v0", 2, 0)
    batch, _ = both()
    with pytest.raises(ReverieError, match=r"need actions of shape \(3, 5\)"):
        batch.step(np.zeros((2, 5), np.float32))
