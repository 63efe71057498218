"""Layers with a layer norm, worked by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from reverie.nets import Layer, LayerGRU, LayerMLP


def test_a_layer_norms_before_it_bends():
    layer = Layer(2, 2, F.silu)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        found = layer(torch.tensor([[3.0, 4.0]]))[0]
    z = 0.998006  # half a unit from the mean, by sqrt(1/4 + 1e-3)
    silu = lambda x: x / (1 + math.exp(-x))
    assert found.tolist() == pytest.approx([silu(-z), silu(z)], abs=1e-6)


def test_no_bias_before_a_norm_and_one_without():
    net = LayerMLP(3, 4, 2, F.elu, 5)
    assert sum(p.numel() for p in net.parameters()) == 3 * 4 + 8 + 4 * 4 + 8 + 4 * 5 + 5
    assert LayerMLP(3, 4, 2, F.elu)(torch.randn(2, 6, 3)).shape == (2, 6, 4)
    assert (LayerMLP(3, 4, 2, F.elu, 5, scale=0.0)(torch.randn(2, 3)) == 0).all()


@pytest.mark.parametrize(
    ("gates", "h", "expected"), [((0, 0, 0), 1.0, 0.73105858), ((0.5, 1, 2), 0.3, 0.48483944)]
)
def test_gates_by_hand(gates, h, expected):
    """Reset, candidate and update as they leave the norm."""
    cell = LayerGRU(1, 1)
    with torch.no_grad():
        cell.weight.zero_()
        cell.norm.bias.copy_(torch.tensor(gates, dtype=torch.float32))
    assert cell(torch.zeros(1, 1), torch.full((1, 1), h)).item() == pytest.approx(expected, abs=1e-6)
