"""Matrix products, and the networks that are nothing else."""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)
Act = Callable[..., object]  # a function of a tensor (F.elu), or a module class (nn.ELU)


class Kernels(nn.Module):
    """A layer whose weight is "o k k i": its fans are those of a convolution."""


def glorot_(module: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Keras' initial weights, in place: Glorot-uniform kernels, zero biases, orthogonal recurrent kernels.

    Fans are counted as Keras does, k*k*channels for plain and transposed convolutions alike.
    """
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.ndim < 2:
                nn.init.zeros_(parameter)
            elif name.startswith(("recurrent", "weight_hh")):
                nn.init.orthogonal_(parameter, generator=generator)
            elif isinstance(layer, Kernels):
                out, height, width, into = parameter.shape
                bound = (6 / (height * width * (out + into))) ** 0.5
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
            else:
                nn.init.xavier_uniform_(parameter, generator=generator)
    return module


class Linear(nn.Linear):
    """``nn.Linear``, Glorot-initialised, with an activation on the way if it is told one."""

    def reset_parameters(self) -> None:
        glorot_(self)

    def forward(self, x: Float[Tensor, "*B I"], act: Act | None = None) -> Float[Tensor, "*B O"]:
        return product(x, self.weight, self.bias, act)


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, act: Act | None = None, low: torch.dtype | None = None
) -> Tensor:
    """act(x W' + b). A ``rounded`` W is met by an x rounded for the product alone; with ``low`` both are rounded to
    that."""
    if low is not None:
        out = F.linear(x.to(low), weight.to(low), None if bias is None else bias.to(low)).to(x.dtype)
    elif weight.dtype != x.dtype:
        out = F.linear(x.to(weight.dtype), weight).to(x.dtype)
        out = out if bias is None else out.add_(bias)
    else:
        out = F.linear(x, weight, bias)
    if act is F.relu and not torch.is_grad_enabled():
        return out.relu_()
    return out if act is None else act(out)  # type: ignore[return-value]


def times(a: Tensor, b: Tensor, low: torch.dtype | None = None) -> Tensor:
    """The matrix product of two of one type, rounded to ``low`` for it if that is given."""
    return a @ b if low is None else (a.to(low) @ b.to(low)).to(a.dtype)


def lower(module: nn.Module, low: torch.dtype) -> None:
    """Let every layer below ``module`` that can (it has a ``low``) take its products in that type, their gradients
    too. Parameters, results and all else stay as they are."""
    for layer in module.modules():
        if hasattr(layer, "low"):
            layer.low = low  # type: ignore[assignment]


def on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def rounded(module: Net) -> Net:
    """A copy to predict with, its matrices in bfloat16: products of 8 bits, everything else as it was.

    Where the processor has instructions for it (AVX512-BF16, AMX) products take a fraction of the time.
    """
    module = copy.deepcopy(module).requires_grad_(False)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.bfloat16()
    return module


class MLP(nn.Module):
    """``layers`` times (linear, ``act``), then a linear layer to ``outputs`` unless that is None."""

    def __init__(
        self, inputs: int, units: int, layers: int, outputs: int | None = None, act: Act = F.elu
    ) -> None:
        super().__init__()
        widths = [inputs] + [units] * layers
        self.hidden = nn.ModuleList(Linear(a, b) for a, b in pairwise(widths))
        self.out = None if outputs is None else Linear(widths[-1], outputs)
        self.act = act() if isinstance(act, type) else act
        self.outputs = widths[-1] if outputs is None else outputs

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        for layer in self.hidden:
            x = layer(x, self.act)
        return x if self.out is None else self.out(x)


class Ensemble(nn.Module):
    """``members`` networks of one shape side by side, each with weights of its own: ReLU layers of widths
    ``units``, then a linear one. Weights are "M O I", biases "M O". With ``norm``, layers are normalised before their
    ReLU (Ba et al. 2016), with scales and shifts "M O".

    Weights and biases start uniform in +-1/sqrt(inputs), those of the last layer in +-``last`` if given. Products are
    taken member by member: batched, they were slower.
    """

    def __init__(
        self,
        inputs: int,
        units: Sequence[int],
        outputs: int,
        members: int = 1,
        last: float | None = None,
        norm: bool = False,
    ) -> None:
        super().__init__()
        widths, empty = [inputs, *units, outputs], torch.empty
        self.weights = nn.ParameterList(nn.Parameter(empty(members, o, i)) for i, o in pairwise(widths))
        self.biases = nn.ParameterList(nn.Parameter(empty(members, o)) for o in widths[1:])
        hidden = widths[1:-1] if norm else []
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(members, o)) for o in hidden)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(members, o)) for o in hidden)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = last if last is not None and bias is self.biases[-1] else weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: Tensor) -> Float[Tensor, "M B O"]:
        """Of one input "B I" that all members share, or of one for each, "M B I"."""
        return self._run(x, *(list(group) for group in self._groups()))

    def through(self, x: Tensor, members: int | None = None) -> Float[Tensor, "M B O"]:
        """The same, or the first ``members`` alone, with a gradient to ``x`` and none to the parameters."""
        return self._run(x, *([p.detach()[:members] for p in group] for group in self._groups()))

    def _groups(self) -> tuple[nn.ParameterList, ...]:
        return self.weights, self.biases, self.scales, self.shifts

    @staticmethod
    def _run(
        x: Tensor, weights: list[Tensor], biases: list[Tensor], scales: list[Tensor], shifts: list[Tensor]
    ) -> Tensor:
        apart = lambda p: [p.squeeze(0)] if len(p) == 1 else p.unbind(0)
        layers = list(zip(map(apart, weights), map(apart, biases), strict=True))
        norms = list(zip(map(apart, scales), map(apart, shifts), strict=True))
        outs = []
        for m in range(len(weights[0])):
            h = x if x.ndim == 2 else x[m]
            for i, (weight, bias) in enumerate(layers):
                h = F.linear(h, weight[m], bias[m])
                if norms and i < len(layers) - 1:
                    scale, shift = norms[i]
                    h = F.layer_norm(h, h.shape[-1:], scale[m], shift[m])
                h = h if i == len(layers) - 1 else h.relu_()
            outs.append(h)
        return torch.stack(outs) if len(outs) > 1 else outs[0][None]
