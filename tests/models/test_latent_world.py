"""A latent world says what its parts say, in the protocol's words and without gradient."""

import pytest
import torch

from reverie.heads import Decoder, Encoder, Scalar
from reverie.models.latent_world import LatentWorld
from reverie.models.rssm import RSSM, Gaussian
from reverie.nets import GRUCell
from reverie.types import Space, World

SPACE = {"image": Space((64, 64, 3), "uint8"), "speed": Space((2,))}


class Parts:
    def __init__(self, cont=True):
        torch.manual_seed(0)
        self.encoder = Encoder(SPACE, 1, 6)
        self.rssm = RSSM(self.encoder.embed, 2, Gaussian(3), GRUCell(6, 6), 6)
        self.decoder = Decoder(9, SPACE, 1, 6)
        self.reward = Scalar(9, 5, 1)
        self.cont = (lambda feat: torch.sigmoid(feat.sum(-1))) if cont else None
        self.generator = torch.Generator().manual_seed(0)
        self.world = LatentWorld(
            self.rssm,
            self.encoder,
            self.decoder,
            self.reward,
            self.cont,
            self.scale,
            self.unscale,
            self.generator,
        )

    def scale(self, obs):
        return {"image": obs["image"].float() / 255, "speed": obs["speed"] * 10}

    def unscale(self, obs):
        return {"image": (obs["image"] * 255).clamp(0, 255).byte(), "speed": obs["speed"] / 10}


def look(n=4):
    obs = {"image": torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8), "speed": torch.randn(n, 2)}
    return obs, torch.randn(n, 2), torch.zeros(n, dtype=torch.bool)


def test_it_is_a_world():
    parts = Parts()
    world = parts.world
    assert isinstance(world, World)
    carry = world.initial(4)
    carry = world.observe(*look(), carry)
    carry = world.imagine(carry, torch.zeros(4, 2))
    seen = world.decode(carry)
    assert seen["image"].shape == (4, 64, 64, 3)
    assert seen["image"].dtype == torch.uint8
    assert seen["speed"].shape == (4, 2)
    assert seen["speed"].dtype == torch.float32
    assert world.reward(carry).shape == world.cont(carry).shape == (4,)
    assert world.features(carry).shape == (4, 9)


def test_observing_is_scaling_encoding_and_one_posterior_step():
    parts = Parts()
    obs, prev_action, is_first = look()
    is_first[1] = True
    state = parts.rssm.img_step(parts.rssm.initial(4), torch.ones(4, 2), torch.Generator().manual_seed(1))
    after = parts.world.observe(obs, prev_action, is_first, state)
    embed = parts.encoder(parts.scale(obs))
    expected = parts.rssm.obs_step(state, prev_action, embed, is_first, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))


def test_imagining_is_one_step_of_the_prior():
    parts = Parts()
    action = torch.randn(4, 2)
    after = parts.world.imagine(parts.world.initial(4), action)
    expected = parts.rssm.img_step(parts.rssm.initial(4), action, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))


def test_what_it_says_of_a_state_comes_from_the_heads():
    parts = Parts()
    carry = parts.world.observe(*look(), parts.world.initial(4))
    feat = parts.rssm.feat(carry)
    heads = {key: dist.mode for key, dist in parts.decoder(feat).items()}
    for key, value in parts.unscale(heads).items():
        assert torch.equal(parts.world.decode(carry)[key], value)
    assert torch.equal(parts.world.features(carry), feat)
    assert torch.equal(parts.world.reward(carry), parts.reward(feat))
    assert torch.equal(parts.world.cont(carry), parts.cont(feat))


def test_temperature_bears_on_what_is_imagined_and_not_on_what_is_seen():
    told = {}
    for temperature in (1.0, 4.0):
        world = Parts().world
        world.temperature = temperature
        torch.manual_seed(1)
        seen = world.observe(*look(), world.initial(4))
        told[temperature] = seen, world.imagine(seen, torch.ones(4, 2))
    (seen, dreamt), (seen_hot, hot) = told[1.0], told[4.0]
    assert all(torch.equal(a, b) for a, b in zip(seen, seen_hot, strict=True))
    assert torch.equal(dreamt.stats, hot.stats)
    mean = dreamt.stats.chunk(2, -1)[0]
    torch.testing.assert_close(hot.stoch - mean, 2 * (dreamt.stoch - mean))


def test_streams_can_be_taken_out_and_put_in():
    world = Parts().world
    carry, other = (world.imagine(world.initial(4), torch.randn(4, 2)) for _ in range(2))
    index = torch.tensor([3, 1])
    part = world.take(other, index)
    assert torch.equal(part.stats, other.stats[index])
    before = carry.deter.clone()
    mixed = world.put(carry, index, part)
    for now, new, old in zip(mixed, other, carry, strict=True):
        assert torch.equal(now[[1, 3]], new[[1, 3]]) and torch.equal(now[[0, 2]], old[[0, 2]])
    assert torch.equal(carry.deter, before)


def test_without_a_cont_head_it_never_ends():
    world = Parts(cont=False).world
    assert world.cont(world.initial(5)).tolist() == [1.0] * 5


@pytest.mark.parametrize("word", ["observe", "imagine", "features", "decode", "reward", "cont"])
def test_nothing_it_says_carries_gradient(word):
    world = Parts().world
    carry = world.initial(4)
    said = {
        "observe": lambda: world.observe(*look(), carry),
        "imagine": lambda: world.imagine(carry, torch.zeros(4, 2, requires_grad=True)),
        "features": lambda: (world.features(carry),),
        "decode": lambda: tuple(world.decode(carry).values()),
        "reward": lambda: (world.reward(carry),),
        "cont": lambda: (world.cont(carry),),
    }[word]()
    assert not any(part.requires_grad for part in said)
