"""Numbers of any size made learnable: symlog, two-hot targets, and the range of returns.

Every function is one equation: no parameters, no randomness, no stop-gradient.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def symlog(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """sign(x) ln(1 + |x|): the identity near 0, a logarithm far from it (Hafner et al. 2023, Eq. 9)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """sign(x) (exp|x| - 1), the inverse of ``symlog``."""
    return x.sign() * x.abs().expm1()


def symexp_bins(count: int = 255, limit: float = 20.0) -> Float[Tensor, "K"]:
    """``count`` (odd) values from symexp(-limit) to symexp(limit), evenly spaced as symlogs; exactly antisymmetric."""
    below = symexp(torch.linspace(-limit, 0.0, count // 2 + 1, dtype=torch.float64)).float()
    return torch.cat([below, -below[:-1].flip(0)])


def two_hot(x: Float[Tensor, "*B"], bins: Float[Tensor, "K"]) -> Float[Tensor, "*B K"]:
    """Weights of the two bins next to ``x`` whose mean is ``x``; beyond the outermost bin, that bin alone."""
    below, weight = neighbours(x, bins)
    weights = torch.zeros(*x.shape, len(bins), dtype=bins.dtype, device=x.device)
    weights.scatter_(-1, below[..., None], 1 - weight[..., None])
    return weights.scatter_(-1, below[..., None] + 1, weight[..., None])


def neighbours(
    x: Float[Tensor, "*B"], bins: Float[Tensor, "K"]
) -> tuple[Int[Tensor, "*B"], Float[Tensor, "*B"]]:
    """The bin below each ``x`` and the weight of the one above it; both always name two bins that exist."""
    above = torch.searchsorted(bins, x.contiguous(), right=True).clamp(1, len(bins) - 1)
    low, high = bins[above - 1], bins[above]
    return above - 1, ((x - low) / (high - low)).clamp(0.0, 1.0)


def symmetric_mean(probs: Float[Tensor, "*B K"], bins: Float[Tensor, "K"]) -> Float[Tensor, "*B"]:
    """The mean of antisymmetric ``bins``, an odd number of them, added up in pairs.

    So uniform ``probs`` give exactly 0, where a plain sum would be left with what millions did not cancel.
    """
    half = len(bins) // 2
    return (probs[..., half + 1 :] - probs[..., :half].flip(-1)) @ bins[half + 1 :]


def track_range(
    past: Float[Tensor, "2"], x: Float[Tensor, "..."], rate: float, low: float = 0.05, high: float = 0.95
) -> Float[Tensor, "2"]:
    """Moving averages of two quantiles of ``x``: ``past`` moved by ``rate`` towards them.

    It begins at 0 and is not debiased (Hafner et al. 2025, "Actor critic learning").
    """
    rows = x.flatten().sort().values
    marks = torch.stack([quantile(rows, low), quantile(rows, high)])
    return torch.lerp(past, marks, rate)


def quantile(rows: Float[Tensor, "n"], share: float) -> Float[Tensor, ""]:
    """Of numbers in rising order, between the two nearest. ``torch.quantile`` looks at its arguments, which on a GPU
    means to wait."""
    place = share * (len(rows) - 1)
    below = min(int(place), len(rows) - 2) if len(rows) > 1 else 0
    return torch.lerp(rows[below], rows[min(below + 1, len(rows) - 1)], place - below)


def range_scale(range_: Float[Tensor, "2"]) -> Float[Tensor, ""]:
    """max(1, high - low): what large returns are divided by; small ones are not blown up."""
    return (range_[1] - range_[0]).clamp(min=1.0)
