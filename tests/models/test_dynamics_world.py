"""The ensemble as a World: it sees, believes, imagines, and can be dreamt in."""

import numpy as np
import pytest
import torch

from reverie.dream import Dreams
from reverie.imagine import prediction_error
from reverie.models.dynamics import Dynamics
from reverie.models.dynamics_world import DynamicsWorld
from reverie.types import ActionSpace, Batch, Space, World

SPACE = {"b": Space((2,)), "a": Space((1,))}  # side by side in the order of their names


def make(noisy=True, seed=0, members=4):
    torch.manual_seed(seed)
    dynamics = Dynamics(3, 1, members=members, units=8, layers=1, noisy=noisy)
    dynamics.see(torch.randn(50, 3), torch.randn(50, 1), torch.randn(50), torch.randn(50, 3))
    return DynamicsWorld(dynamics, SPACE, torch.Generator().manual_seed(seed))


def seen(n, seed=0):
    rng = np.random.default_rng(seed)
    return {k: torch.from_numpy(rng.normal(size=(n, *s.shape)).astype(np.float32)) for k, s in SPACE.items()}


def yes(n):
    return torch.ones(n, dtype=torch.bool)


def test_seeing_is_believing():
    world = make()
    assert isinstance(world, World)
    obs = seen(5)
    carry = world.observe(obs, torch.zeros(5, 1), yes(5), world.initial(5))
    for key, value in world.decode(carry).items():
        assert torch.equal(value, obs[key])
    assert torch.equal(world.features(carry), torch.cat([obs["a"], obs["b"]], -1))
    assert world.reward(carry).tolist() == [0.0] * 5 and world.cont(carry).tolist() == [1.0] * 5


def test_a_stream_keeps_its_network_until_its_episode_begins_anew():
    world = make()
    carry = world.observe(seen(64), torch.zeros(64, 1), yes(64), world.initial(64))
    member = carry.member.clone()
    assert len(set(member.tolist())) == 4
    for _ in range(3):
        carry = world.imagine(carry, torch.zeros(64, 1))
    carry = world.observe(seen(64, 1), torch.zeros(64, 1), ~yes(64), carry)
    assert torch.equal(carry.member, member)
    half = torch.arange(64) < 32
    carry = world.observe(seen(64, 2), torch.zeros(64, 1), half, carry)
    assert torch.equal(carry.member[32:], member[32:]) and not torch.equal(carry.member[:32], member[:32])


def test_the_reward_of_what_is_seen_is_what_was_expected_on_the_way():
    world = make(noisy=False)
    carry = world.observe(seen(5), torch.zeros(5, 1), yes(5), world.initial(5))
    action = torch.rand(5, 1)
    expected = world.imagine(carry, action)
    carry = world.observe(seen(5, 1), action, ~yes(5), carry)
    assert torch.equal(world.reward(carry), world.reward(expected))


def test_some_streams_taken_out_and_put_back():
    world = make()
    carry = world.observe(seen(5), torch.zeros(5, 1), yes(5), world.initial(5))
    index = torch.tensor([4, 1])
    part = world.take(carry, index)
    assert torch.equal(part.obs, carry.obs[index]) and torch.equal(part.member, carry.member[index])
    other = world.put(carry, index, world.imagine(part, torch.zeros(2, 1)))
    assert torch.equal(other.obs[[0, 2, 3]], carry.obs[[0, 2, 3]])
    assert not torch.equal(other.obs[index], carry.obs[index])
    assert torch.equal(carry.obs[index], part.obs)  # the one given stays as it is


def batch_of(obs, action, first):
    prev = torch.cat([torch.zeros_like(action[:, :1]), action[:, :-1]], 1)
    no = torch.zeros_like(first)
    return Batch(obs, action, prev, torch.zeros(first.shape), first, no, no)


def walk(n=6, time=12, seed=0):
    """Rows of a world in which every entry moves by the action."""
    rng = np.random.default_rng(seed)
    action = torch.from_numpy(rng.uniform(-1, 1, (n, time, 1)).astype(np.float32))
    at = torch.cat([torch.zeros(n, 1, 1), action[:, :-1].cumsum(1)], 1)
    start = torch.from_numpy(rng.normal(size=(n, 1, 3)).astype(np.float32))
    rows = start + at
    first = torch.zeros(n, time, dtype=torch.bool)
    first[:, 0] = True
    return batch_of({"a": rows[..., :1], "b": rows[..., 1:]}, action, first)


class Truth:
    """A world that knows: entries move by the action, and a little more for every second stream."""

    temperature = 1.0

    def __init__(self, drift=0.0):
        self.drift = drift

    def initial(self, n):
        return torch.zeros(n, 3), torch.arange(n)

    def observe(self, obs, prev_action, is_first, carry):
        return torch.cat([obs["a"], obs["b"]], -1), carry[1]

    def imagine(self, carry, action):
        return carry[0] + action + self.drift * (2.0 * (carry[1][:, None] % 2) - 1), carry[1]

    def decode(self, carry):
        return {"a": carry[0][:, :1], "b": carry[0][:, 1:]}

    def take(self, carry, index):
        return carry[0][index], torch.arange(len(index))

    def put(self, carry, index, part):
        raise NotImplementedError

    reward = cont = features = initial


def test_a_world_that_knows_makes_no_error():
    found = prediction_error(Truth(), walk(), context=3, samples=4)
    assert len(found.error) == 9
    np.testing.assert_allclose(found.error, 0, atol=1e-5)
    np.testing.assert_allclose(found.spread, 0, atol=1e-5)
    assert found.still[-1] > 0.1


def test_spread_is_that_of_the_samples_and_errors_are_of_their_mean():
    found = prediction_error(Truth(drift=0.1), walk(), context=2, samples=4)
    scale = torch.cat([walk().obs["a"], walk().obs["b"]], -1).flatten(0, 1).std(0, correction=0)
    expected = 0.1 * np.arange(1, 11) * (1 / scale).square().mean().sqrt().item()
    np.testing.assert_allclose(found.spread, expected, rtol=1e-4)
    np.testing.assert_allclose(found.error, 0, atol=1e-4)  # half of the samples drift up, half down


def test_what_follows_a_new_episode_does_not_count():
    batch = walk()
    first = batch.is_first.clone()
    first[0, 6] = True
    wild = {k: v.clone() for k, v in batch.obs.items()}
    wild["a"][0, 6:] = 1e3
    moved = prediction_error(Truth(), batch._replace(obs=wild, is_first=first), context=3, samples=2)
    assert moved.error.max() < 1e-3 and moved.rows.tolist() == [6, 6, 6, 5, 5, 5, 5, 5, 5]


def test_an_ensemble_can_be_dreamt_in():
    world, batch = make(), walk(n=5, time=4)
    dreams = Dreams(world, SPACE, ActionSpace(1), batch, 16, steps=10, seed=0)
    obs, _ = dreams.reset(seed=3)
    assert obs.shape == (16, 3)
    after, reward, *_ = dreams.step(np.zeros((16, 1), np.float32))
    assert np.isfinite(after).all() and reward.shape == (16,) and not np.array_equal(obs, after)
    again, _ = dreams.reset(seed=3)
    np.testing.assert_array_equal(obs, again)
    dreams.close()


@pytest.mark.parametrize("samples", [1, 3])
def test_the_ensembles_own_error_is_finite_and_grows_from_nothing(samples):
    found = prediction_error(make(), walk(), context=2, samples=samples)
    assert np.isfinite(found.error).all() and (found.error > 0).all()
