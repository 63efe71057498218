"""Layers with a norm against the same in plain torch, and their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reverie.nets import Affine, BlockGRU, BlockLinear, Dense, RMSNorm, lower, truncated_
from reverie.types import ReverieError


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def scatter_biases(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, -0.3, 0.3)


def test_root_mean_square_norm():
    norm = RMSNorm(2).double()
    assert norm(torch.tensor([3.0, 4.0], dtype=torch.float64)).tolist() == pytest.approx(
        [0.84852474, 1.13136632], abs=1e-8
    )
    assert [name for name, _ in norm.named_parameters()] == ["scale"]


def test_truncated_weights_have_the_wished_variance_and_end_at_two_deviations():
    weight = truncated_(torch.empty(400, 500), 25, generator=torch.Generator().manual_seed(0))
    assert weight.std().item() == pytest.approx(0.2, rel=0.01)
    assert weight.abs().max().item() == pytest.approx(2 * 1.1368 * 0.2, rel=0.01)
    assert (truncated_(torch.ones(3, 3), 3, 0.0) == 0).all()


def test_dense_is_linear_norm_silu_and_so_is_its_gradient():
    layer = Dense(5, 7).double()
    nn.init.uniform_(layer.norm.scale, 0.5, 1.5)
    scatter_biases(layer.linear)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    plain = F.silu(layer.norm(F.linear(x, layer.linear.weight, layer.linear.bias)))
    torch.testing.assert_close(layer(x), plain)
    leaves, direction = [x, *layer.parameters()], torch.randn_like(plain)
    ours = torch.autograd.grad((layer(x) * direction).sum(), leaves)
    theirs = torch.autograd.grad((plain * direction).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain)


def test_a_block_layer_is_a_block_diagonal_matrix():
    layer = BlockLinear(6, 4, 2)
    scatter_biases(layer)
    x = torch.randn(3, 5, 6)
    whole = torch.block_diag(*layer.weight)
    torch.testing.assert_close(layer(x), x @ whole + layer.bias)
    with pytest.raises(ReverieError, match="widths that 4 divides"):
        BlockLinear(6, 4, 4)


def test_block_layers_begin_as_small_as_full_ones():
    layer = BlockLinear(512, 512, 8)
    assert layer.weight.std().item() == pytest.approx(512**-0.5, rel=0.02)


def test_block_gru_counts():
    """Size 1m with six actions, as the sheet of the release splits it."""
    cell = BlockGRU(128, 6, 512, 64, 8)
    assert count(cell.from_deter) == 32_896 and count(cell.from_stoch) == 8_320
    assert count(cell.mix) + count(cell.norm) == 132_096 and count(cell.gates) == 99_840


@pytest.mark.parametrize(
    "make", [lambda: Affine(48, 32), lambda: Dense(48, 32), lambda: BlockLinear(48, 32, 4)]
)
def test_products_in_bfloat16_are_near_and_leave_everything_else_as_it_is(make):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(64, 48, requires_grad=True)
    direction, leaves = torch.randn(64, 32), [x, *layer.parameters()]

    def told():
        out = layer(x)
        return [out.detach(), *torch.autograd.grad((out * direction).sum(), leaves)]

    exact = told()
    lower(layer, torch.bfloat16)
    for a, b in zip(exact, told(), strict=True):
        assert b.dtype == torch.float32
        distance = float((a - b).norm() / a.norm())
        assert 0 <= distance < 0.01  # eight bits: 0.4% at most of each factor, most of it averaged away
    assert all(parameter.dtype == torch.float32 for parameter in layer.parameters())
    rough = layer(x)
    assert not torch.equal(rough, exact[0])
    with torch.no_grad():
        torch.testing.assert_close(layer(x), rough)


def test_the_block_gru_in_bfloat16():
    torch.manual_seed(0)
    cell = BlockGRU(24, 2, 32, 16, 4)
    given = (torch.rand(9, 24), torch.rand(9, 2), torch.rand(9, 32))
    exact = cell(*given)
    lower(cell, torch.bfloat16)
    with torch.no_grad():
        apart = cell(*given)
    for rough in (cell(*given), apart):
        assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
        torch.testing.assert_close(rough, exact, atol=0.01, rtol=0)
