"""Layers with a layer norm (Ba et al. 2016) and no bias before it, the norm's own standing for it; and a GRU of one.

DayDreamer's, and those of Dreamer V3's first release. Weights begin Glorot-uniform.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NORM_EPS = 1e-3


class Layer(nn.Module):
    """act(norm(W x))."""

    def __init__(self, inputs: int, outputs: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.norm, self.act = nn.LayerNorm(outputs, NORM_EPS), act
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return self.act(self.norm(F.linear(x, self.weight)))


class LayerMLP(nn.Module):
    """``layers`` of ``units``, then a linear one to ``outputs`` unless that is None, its first weights of ``scale``
    times the variance."""

    def __init__(
        self,
        inputs: int,
        units: int,
        layers: int,
        act: Callable[[Tensor], Tensor],
        outputs: int | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.hidden = nn.Sequential(*(Layer(a, b, act) for a, b in pairwise([inputs] + [units] * layers)))
        self.out = None if outputs is None else nn.Linear(units, outputs)
        if self.out is not None:
            nn.init.xavier_uniform_(self.out.weight, scale**0.5)
            nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        x = self.hidden(x)
        return x if self.out is None else self.out(x)


class LayerGRU(nn.Module):
    """``NormGRUCell`` without a bias; its kernel is over [x, h]."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * units, inputs + units))
        self.norm = nn.LayerNorm(3 * units, NORM_EPS)
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Float[Tensor, "*B I"], h: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        r, c, u = self.norm(F.linear(torch.cat([x, h], -1), self.weight)).chunk(3, -1)
        return torch.lerp(h, torch.tanh(torch.sigmoid(r) * c), torch.sigmoid(u - 1))
