"""Layers with a norm: linear, norm, activation, in this order; and the block GRU made of them."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reverie.nets.linear import product, times
from reverie.types import ReverieError

RMS_EPS = 1e-4


def truncated_(
    weight: Float[Tensor, "..."], fan_in: int, scale: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """In place: normal numbers cut off at two standard deviations, of variance ``scale``^2 / ``fan_in`` once cut."""
    if scale == 0.0:
        return nn.init.zeros_(weight)
    std = 1.1368 * scale / fan_in**0.5  # a normal cut at +-2 has standard deviation 0.8796
    return nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator)


class Affine(nn.Linear):
    """``nn.Linear`` with ``truncated_`` weights, scaled by ``scale``, and zero biases."""

    low: torch.dtype | None = None  # of products; see ``linear.lower``

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0) -> None:
        self.scale = scale
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        truncated_(self.weight, self.in_features, self.scale)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        rows = x.reshape(-1, x.shape[-1])
        if torch.is_grad_enabled():
            out = _Affine.apply(rows, self.weight, self.bias, self.low)
        else:
            out = product(rows, self.weight, self.bias, low=self.low)
        return out.view(*x.shape[:-1], -1)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-4) * scale over the last dimension (Zhang & Sennrich 2019); no shift."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(units))

    def forward(self, x: Float[Tensor, "*B U"]) -> Float[Tensor, "*B U"]:
        return x * inverse_rms(x) * self.scale


def inverse_rms(x: Float[Tensor, "*B U"]) -> Float[Tensor, "*B 1"]:
    return (x * x).mean(-1, keepdim=True).add(RMS_EPS).rsqrt()


class Dense(nn.Module):
    """SiLU(RMSNorm(W x + b)). One node of the graph, with its gradient written out: half the passes over memory."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm = Affine(inputs, outputs), RMSNorm(outputs)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        weight, bias, scale = self.linear.weight, self.linear.bias, self.norm.scale
        rows, low = x.reshape(-1, x.shape[-1]), self.linear.low
        if torch.is_grad_enabled():
            out = _Dense.apply(rows, weight, bias, scale, low)
        else:
            out = norm_silu_(product(rows, weight, bias, low=low), scale)
        return out.view(*x.shape[:-1], -1)


def norm_silu_(x: Float[Tensor, "*B U"], scale: Float[Tensor, "U"]) -> Float[Tensor, "*B U"]:
    """SiLU(RMSNorm(x)), in the place of x; without a gradient."""
    return F.silu(x.mul_(inverse_rms(x)).mul_(scale), inplace=True)


def norm_silu_back(grad: Tensor, normed: Tensor, inverse: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of SiLU(RMSNorm(x)) to x, and to what SiLU was given; ``normed`` is x times ``inverse``."""
    bent = torch.ops.aten.silu_backward(grad, normed * scale)
    inner = bent * scale
    along = (inner * normed).mean(-1, keepdim=True)
    return inner.addcmul_(normed, along, value=-1).mul_(inverse), bent


class NormMLP(nn.Module):
    """``layers`` times ``Dense``, then ``Affine`` to ``outputs``, its weights times ``scale``, unless that is None."""

    def __init__(
        self, inputs: int, units: int, layers: int, outputs: int | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        widths = [inputs] + [units] * layers
        self.hidden = nn.Sequential(*(Dense(a, b) for a, b in pairwise(widths)))
        self.out = None if outputs is None else Affine(widths[-1], outputs, scale)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        x = self.hidden(x)
        return x if self.out is None else self.out(x)


class BlockLinear(nn.Module):
    """A linear layer of ``blocks`` separate ones: each maps its share of the inputs to its share of the outputs.

    Weight "g i/g o/g". The initial weights are as small as those of a full layer: their fan is the whole input.
    """

    low: torch.dtype | None = None  # of products; see ``linear.lower``

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ReverieError(
                f"a block-diagonal layer of {blocks} blocks needs widths that {blocks} divides, "
                f"got {inputs} and {outputs}"
            )
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(outputs))
        truncated_(self.weight, inputs)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        blocks = self.weight.shape[0]
        parts = x.reshape(-1, blocks, x.shape[-1] // blocks).transpose(0, 1)
        out = times(parts, self.weight, self.low).transpose(0, 1)
        return out.reshape(*x.shape[:-1], -1) + self.bias


class BlockGRU(nn.Module):
    """A GRU whose memory lies in ``blocks`` that meet only through their input (Hafner et al. 2023, App. B)::

    x = [dense(h), dense(s), dense(a)]                  each of ``hidden`` units, the same for every block
    v_b = SiLU(norm(W_b [h_b, x]))                      the norm is over all blocks together
    r, c, u = G_b v_b
    h' = sig(u - 1) tanh(sig(r) c) + (1 - sig(u - 1)) h
    """

    def __init__(self, stoch: int, actions: int, deter: int, hidden: int, blocks: int = 8) -> None:
        super().__init__()
        self.blocks, self.deter, self.hidden = blocks, deter, hidden
        self.from_deter = Dense(deter, hidden)
        self.from_stoch = Dense(stoch, hidden)
        self.from_action = Dense(actions, hidden)
        self.mix = BlockLinear(deter + blocks * 3 * hidden, deter, blocks)
        self.norm = RMSNorm(deter)
        self.gates = BlockLinear(deter, 3 * deter, blocks)

    def split(self) -> tuple[Float[Tensor, "g d d"], Float[Tensor, "I D"]]:
        """The weights of ``mix``: each block's own, and those of x, which all blocks see, as one dense matrix."""
        own = self.deter // self.blocks
        shared = self.mix.weight[:, own:].transpose(0, 1).reshape(3 * self.hidden, self.deter)
        return self.mix.weight[:, :own], shared

    def forward(
        self, stoch: Float[Tensor, "n S"], action: Float[Tensor, "n A"], deter: Float[Tensor, "n D"]
    ) -> Float[Tensor, "n D"]:
        x = torch.cat([self.from_deter(deter), self.from_stoch(stoch), self.from_action(action)], -1)
        own, shared = self.split()
        if not torch.is_grad_enabled():
            return self._infer(x, deter, own, shared)
        blocks = deter.view(len(deter), self.blocks, -1)
        low = self.mix.low
        v = times(blocks.transpose(0, 1), own, low).transpose(0, 1).reshape(len(deter), -1)
        v = v + product(x, shared.t(), self.mix.bias, low=low)
        v = F.silu(self.norm(v)).view_as(blocks)
        gates = times(v.transpose(0, 1), self.gates.weight, low).transpose(0, 1)
        r, c, u = (gates + self.gates.bias.view(self.blocks, -1)).chunk(3, -1)
        h = torch.lerp(blocks, torch.tanh(torch.sigmoid(r) * c), torch.sigmoid(u - 1))
        return h.reshape(len(deter), -1)

    def _infer(self, x: Tensor, deter: Tensor, own: Tensor, shared: Tensor) -> Tensor:
        """The same in place. Products of all blocks at once want results that lie block by block; each gate lies
        together so, and bending it is one long pass."""
        blocked = lambda y: y.view(len(y), self.blocks, -1).transpose(0, 1)
        low = self.mix.low
        v = product(x, shared.t(), self.mix.bias, low=low)
        blocked(v).add_(times(blocked(deter), own, low))
        v = blocked(norm_silu_(v, self.norm.scale))
        biases = self.gates.bias.view(self.blocks, 3, 1, -1).unbind(1)
        weights = self.gates.weight.chunk(3, -1)
        add = torch.baddbmm if low is None else lambda bias, v, weight: times(v, weight, low).add_(bias)
        r, c, u = (add(bias, v, weight) for weight, bias in zip(weights, biases, strict=True))
        n = r.sigmoid_().mul_(c).mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, four times faster here
        h = torch.empty_like(deter)
        torch.lerp(blocked(deter), n, u.sub_(1).sigmoid_(), out=blocked(h))
        return h


class _Affine(torch.autograd.Function):
    """W x + b, by the library that ``product`` chooses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, low: torch.dtype | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.low = low
        return product(x, weight, bias, low=low)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x = times(grad, weight, ctx.low) if ctx.needs_input_grad[0] else None
        return to_x, times(grad.t(), x, ctx.low), grad.sum(0), None


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, low: torch.dtype | None
    ) -> Tensor:
        normed = product(x, weight, bias, low=low)
        ctx.low = low
        inverse = inverse_rms(normed)
        normed.mul_(inverse)
        ctx.save_for_backward(x, weight, scale, normed, inverse)
        return F.silu(normed * scale, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, normed, inverse = ctx.saved_tensors
        to_y, bent = norm_silu_back(grad, normed, inverse, scale)
        to_x = times(to_y, weight, ctx.low) if ctx.needs_input_grad[0] else None
        return to_x, times(to_y.t(), x, ctx.low), to_y.sum(0), bent.mul_(normed).sum(0), None
