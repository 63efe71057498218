"""Matrix products: initial weights, and fast paths against plain sums."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reverie.nets import (
    MLP,
    Ensemble,
    glorot_,
    rounded,
)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1e-12)


def test_glorot_bounds_and_zeros():
    for layer, bound in [
        (nn.Linear(30, 50), (6 / 80) ** 0.5),
        (nn.Conv2d(3, 32, 4), (6 / (16 * 35)) ** 0.5),
        (nn.ConvTranspose2d(64, 32, 6), (6 / (36 * 96)) ** 0.5),
    ]:
        glorot_(layer)
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert (layer.bias == 0).all()


def test_same_generator_same_weights():
    one = glorot_(MLP(3, 8, 2, 2), torch.Generator().manual_seed(7))
    two = glorot_(MLP(3, 8, 2, 2), torch.Generator().manual_seed(7))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("act", [F.elu, nn.ELU])
def test_mlp_is_linear_act_linear(act):
    mlp = MLP(3, 5, 2, 2, act)
    x = torch.randn(4, 2, 3)
    y = x
    for layer in mlp.hidden:
        y = F.elu(layer(y))
    close(mlp(x), mlp.out(y))
    assert MLP(3, 5, 2, None, act)(x).shape == (4, 2, 5)
    assert MLP(3, 5, 0, 2, act)(x).shape == (4, 2, 2)


@given(
    members=st.integers(1, 3),
    units=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    own=st.booleans(),
    seed=st.integers(0, 99),
)
def test_an_ensemble_is_its_members_side_by_side(members, units, own, seed):
    """Values and all gradients, in double precision, beside plain layers; and ``through``, with the input's alone."""
    torch.manual_seed(seed)
    net = Ensemble(3, units, 2, members).double()
    x = torch.randn(*([members] if own else []), 4, 3, dtype=torch.float64, requires_grad=True)
    parameters = list(net.parameters())

    def plain(m):
        h = x[m] if own else x
        for i, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            h = F.linear(h, weight[m], bias[m])
            h = h if i == len(units) else F.relu(h)
        return h

    expected, out, through = torch.stack([plain(m) for m in range(members)]), net(x), net.through(x)
    assert out.shape == (members, 4, 2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(through, expected)
    torch.testing.assert_close(net.through(x, 1), expected[:1])
    weight = torch.randn_like(out)
    theirs = torch.autograd.grad(expected, [x, *parameters], weight)
    for a, b in zip(torch.autograd.grad(out, [x, *parameters], weight), theirs, strict=True):
        torch.testing.assert_close(a, b)
    alone = torch.autograd.grad(through, [x, *parameters], weight, allow_unused=True)
    torch.testing.assert_close(alone[0], theirs[0])
    assert all(g is None for g in alone[1:])


def test_an_ensembles_fast_path_is_the_same_sums():
    """64 rows of float32 and more go through another library."""
    net = Ensemble(5, (32, 32), 1, 2)
    x = torch.randn(128, 5)
    out = net(x)
    expected = torch.cat([net(part) for part in x.split(32)], 1)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    weight = torch.randn_like(out)
    a = torch.autograd.grad(out, list(net.parameters()), weight)
    b = torch.autograd.grad(expected, list(net.parameters()), weight)
    for x_grad, y_grad in zip(a, b, strict=True):
        torch.testing.assert_close(x_grad, y_grad, atol=1e-4, rtol=1e-3)


def test_an_ensemble_starts_fan_in_uniform():
    net = Ensemble(16, (64, 64), 8, 2, last=0.01)
    for weight, bias, bound in zip(net.weights, net.biases, (0.25, 0.125, 0.01), strict=True):
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound
        assert float(bias.detach().abs().max()) <= bound
    assert not torch.equal(net.weights[0][0], net.weights[0][1])


def test_rounded_matrices_predict_nearly_the_same_and_leave_the_net_alone():
    net = MLP(6, 32, 2, 3)
    x, before = torch.randn(70, 6), [p.clone() for p in net.parameters()]
    coarse = rounded(net)
    with torch.no_grad():
        exact, told = net(x), coarse(x)
    assert told.dtype == torch.float32 and not torch.equal(exact, told)
    torch.testing.assert_close(told, exact, atol=0.05, rtol=0.05)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not any(p.requires_grad for p in coarse.parameters())


# Layers with norms


def test_an_ensembles_layers_are_normalised_if_asked():
    torch.manual_seed(0)
    net = Ensemble(3, (4,), 2, 2, norm=True)
    for group in (net.scales, net.shifts):
        torch.nn.init.normal_(group[0])
    x = torch.randn(5, 3)
    for m, told in enumerate(net(x)):
        h = x @ net.weights[0][m].T + net.biases[0][m]
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        h = (h * net.scales[0][m] + net.shifts[0][m]).relu()
        torch.testing.assert_close(told, h @ net.weights[1][m].T + net.biases[1][m])
    net.through(x.requires_grad_()).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in net.parameters())
    assert len(Ensemble(3, (4,), 2).scales) == 0
