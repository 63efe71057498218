"""Cells against torch's own, and numbers worked by hand."""

import pytest
import torch
from torch import nn

from reverie.nets import (
    LSTM,
    GRUCell,
    NormGRUCell,
    rounded,
)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1e-12)


def scatter_biases(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, -0.3, 0.3)


def test_gru_of_zeros_halves_the_state():
    cell = GRUCell(3, 4)
    for parameter in cell.parameters():
        nn.init.zeros_(parameter)
    h = torch.randn(2, 4)
    assert torch.allclose(cell(torch.randn(2, 3), h), 0.5 * h)


def test_gru_worked_example():
    cell = GRUCell(2, 2)
    with torch.no_grad():
        cell.kernel.copy_(torch.tensor([[0.1, 0.2], [0.3, 0.4]]).repeat(3, 1))
        cell.recurrent.copy_(torch.tensor([[0.5, -0.3], [0.2, 0.1]]).repeat(3, 1))
    h = cell(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -0.5]]))
    assert torch.allclose(h, torch.tensor([[0.544864515, -0.184061970]]), atol=1e-7)


@pytest.mark.parametrize("lead", [(5,), (2, 3), ()])
def test_gru_equals_torchs_own(lead):
    ours, theirs = GRUCell(6, 4), nn.GRUCell(6, 4)
    scatter_biases(ours)
    with torch.no_grad():
        theirs.weight_ih.copy_(ours.kernel)
        theirs.weight_hh.copy_(ours.recurrent)
        theirs.bias_ih.copy_(ours.bias)
        theirs.bias_hh.copy_(ours.bias_recurrent)
    x, h = torch.randn(*lead, 6, requires_grad=True), torch.randn(*lead, 4, requires_grad=True)
    a = ours(x, h)
    b = theirs(x.reshape(-1, 6), h.reshape(-1, 4)).reshape(a.shape)
    close(a, b)
    weight = torch.randn_like(a)
    ours_grad = torch.autograd.grad(
        (a * weight).sum(), [x, h, ours.kernel, ours.recurrent, ours.bias, ours.bias_recurrent]
    )
    theirs_grad = torch.autograd.grad(
        (b * weight).sum(), [x, h, theirs.weight_ih, theirs.weight_hh, theirs.bias_ih, theirs.bias_hh]
    )
    for p, q in zip(ours_grad, theirs_grad, strict=True):
        close(p, q)


def test_lstm_is_its_step_in_a_loop_and_so_is_its_gradient():
    """Resets in the middle, the last cell read too; in double precision."""
    torch.manual_seed(0)
    lstm = LSTM(3, 5).double()
    x, w = (
        torch.randn(7, 4, 3, dtype=torch.double, requires_grad=True),
        torch.randn(7, 4, 5, dtype=torch.double),
    )
    h, c = (torch.randn(4, 5, dtype=torch.double, requires_grad=True) for _ in range(2))
    keep = (torch.rand(7, 4) > 0.3).double()

    def in_a_loop():
        out, now = [], (h, c)
        for t in range(7):
            now = lstm.step(x[t], *(part * keep[t][:, None] for part in now))
            out.append(now[0])
        return torch.stack(out), now

    found = []
    for hidden, (last_h, last_c) in (lstm(x, h, c, keep), in_a_loop()):
        loss = (hidden * w).sum() + last_c.square().sum() + last_h.sum()
        found.append([hidden, *torch.autograd.grad(loss, [x, h, c, *lstm.parameters()])])
    for ours, slow in zip(*found, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-12, atol=1e-12)


def test_an_lstms_cell_is_its_step_as_it_was():
    """To rounding in double precision; with bfloat16 kernels near it; and learning does not reach it."""
    torch.manual_seed(0)
    lstm = LSTM(3, 5).double()
    scatter_biases(lstm)
    x, h, c = (3 * torch.randn(6, n, dtype=torch.double) for n in (3, 5, 5))
    cell, low, before = lstm.cell(), rounded(lstm).cell(), lstm.step(x, h, c)
    assert low.kernel.dtype == torch.bfloat16
    with torch.no_grad():
        lstm.recurrent += 1.0
    for now, near, then in zip(cell(x, h, c), low(x, h, c), before, strict=True):
        torch.testing.assert_close(now, then, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(near, then, rtol=0, atol=0.1)
        assert not torch.equal(near, then) and not now.requires_grad


def test_gru_without_gradient_is_the_same_cell():
    torch.manual_seed(0)
    cell, x, h = GRUCell(7, 12), 3 * torch.randn(100, 7), torch.randn(100, 12)
    with torch.no_grad():
        fast = cell(x, h)
    torch.testing.assert_close(fast, cell(x, h), rtol=1e-5, atol=2e-6)


def test_recurrent_kernels_are_orthogonal():
    recurrent = GRUCell(5, 6).recurrent
    assert torch.allclose(recurrent.T @ recurrent, torch.eye(6), atol=1e-5)


def test_a_gru_with_a_norm():
    """The gates are normed together; with no kernel sig(-1) of the state is forgotten."""
    cell = NormGRUCell(3, 4).double()
    nn.init.zeros_(cell.kernel.weight)
    h = torch.ones(1, 4, dtype=torch.float64)
    assert cell(torch.zeros(1, 3, dtype=torch.float64), h)[0].tolist() == pytest.approx([0.73105858] * 4)
    norm = nn.LayerNorm(2, 1e-3).double()
    assert norm(torch.tensor([3.0, 4.0], dtype=torch.float64)).tolist() == pytest.approx(
        [-0.998006, 0.998006], abs=1e-6
    )
