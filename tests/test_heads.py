"""Encoder, decoder and scalar heads: sizes from the spaces alone, and the papers' parameter counts."""

import pytest
import torch
import torch.nn.functional as F

from reverie.dists import UnitNormal
from reverie.heads import Decoder, Encoder, Scalar, split_space
from reverie.nets import MLP
from reverie.types import ReverieError, Space

IMAGE = {"image": Space((64, 64, 3), "uint8")}
VECTOR = {"position": Space((3,))}
MIXED = {
    "velocity": Space((2,)),
    "image": Space((64, 64, 3), "uint8"),
    "map": Space((64, 64, 1), "uint8"),
    "position": Space((3,)),
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def batch(space, *lead):
    return {key: torch.randn(*lead, *s.shape) for key, s in space.items()}


def test_counts_of_the_papers_heads():
    assert count(Encoder(IMAGE, 32, 200)) == 690_144
    assert count(Decoder(230, IMAGE, 32, 200)) == 3_795_555
    assert count(Scalar(230, 400, 2)) == 253_201  # Dreamer's reward
    assert count(Scalar(230, 400, 3)) == 413_601  # value, cont
    assert count(Scalar(230, 300, 3)) == 250_201  # PlaNet's reward, final code
    assert count(Scalar(230, 200, 2)) == 86_601  # the paper's
    assert count(Scalar(230, 100, 2)) == 33_301  # the first release's
    assert count(MLP(230, 400, 4, 9)) == 577_209  # actors of 9 and 18 choices
    assert count(MLP(230, 400, 4, 18)) == 580_818


def test_images_and_vectors_are_told_apart_in_the_order_of_their_names():
    images, vectors = split_space(MIXED)
    assert list(images) == ["image", "map"]
    assert list(vectors) == ["position", "velocity"]
    with pytest.raises(ReverieError, match="empty"):
        split_space({})


@pytest.mark.parametrize(
    ("space", "embed"),
    [(IMAGE, 32 * 2), (VECTOR, 7), (MIXED, 2 * 32 * 2 + 7)],
    ids=["image", "vector", "mixed"],
)
@pytest.mark.parametrize("lead", [(3,), (2, 4)])
def test_every_space_is_encoded_and_decoded(space, embed, lead):
    encoder, decoder = Encoder(space, 2, 7), Decoder(11, space, 2, 7)
    out = encoder(batch(space, *lead))
    assert out.shape == (*lead, embed) == (*lead, encoder.embed)
    heads = decoder(torch.randn(*lead, 11))
    assert set(heads) == set(space)
    for key, dist in heads.items():
        assert isinstance(dist, UnitNormal)
        assert dist.mode.shape == (*lead, *space[key].shape)
        assert dist.loss(dist.mode + 1).shape == lead  # one number for each row


def test_a_picture_is_one_event_and_so_is_a_vector():
    heads = Decoder(11, MIXED, 2, 7)(torch.randn(2, 11))
    for key, entries in (("image", 64 * 64 * 3), ("map", 64 * 64), ("position", 3), ("velocity", 2)):
        loss = heads[key].loss(heads[key].mode + 1.0)
        assert loss.tolist() == pytest.approx([entries * (0.5 + 0.918939)] * 2, rel=1e-5)


def test_vectors_keep_their_names():
    """Decoded parts are cut in the order in which they were joined, whatever the dict's order."""
    decoder = Decoder(4, MIXED, 1, 5)
    with torch.no_grad():
        for parameter in decoder.vectors.parameters():
            parameter.zero_()
        decoder.vectors.out.bias.copy_(torch.arange(5.0))
    heads = decoder(torch.randn(1, 4))
    assert heads["position"].mode.tolist() == [[0, 1, 2]]
    assert heads["velocity"].mode.tolist() == [[3, 4]]


def test_encoding_does_not_depend_on_the_order_of_the_dict():
    encoder, obs = Encoder(MIXED, 1, 5), batch(MIXED, 2)
    turned = dict(reversed(obs.items()))
    assert torch.equal(encoder(obs), encoder(turned))


@pytest.mark.parametrize("key", sorted(MIXED))
def test_every_entry_is_seen_and_predicted(key):
    encoder, obs = Encoder(MIXED, 2, 7), batch(MIXED, 2)
    other = obs | {key: torch.randn_like(obs[key])}
    assert not torch.equal(encoder(obs), encoder(other))
    feat = torch.randn(2, 11, requires_grad=True)
    (grad,) = torch.autograd.grad(Decoder(11, MIXED, 2, 7)(feat)[key].mode.square().sum(), feat)
    assert (grad != 0).any()


@pytest.mark.parametrize("lead", [(), (3,), (2, 4, 5)])
def test_scalar_heads_give_one_number_each(lead):
    head = Scalar(6, 5, 2, F.relu)
    feat = torch.randn(*lead, 6)
    assert head(feat).shape == lead
    assert torch.equal(head(feat), head.mlp(feat)[..., 0])
