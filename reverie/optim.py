"""An optimiser that owns what it moves.

Built with the modules it may change, it takes the gradient of a loss for those alone: a loss may pass its
gradient *through* another module without moving it, and nothing has to be frozen and thawed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adam import adam  # the function: the class imports a compiler, seconds at every start

from reverie.parallel import averaged
from reverie.types import NotFinite


class Owner(ABC):
    """The parameters of ``modules``, by name, and the gradients of losses for them alone.

    ``gradient(loss)`` and ``step(...)`` are apart so that an agent can take all gradients from the same
    parameters before any of them moves.
    """

    def __init__(self, modules: Mapping[str, nn.Module]):
        named = [(f"{name}.{key}", p) for name, m in modules.items() for key, p in m.named_parameters()]
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]

    def gradient(self, loss: Tensor, keep_graph: bool = False) -> "Gradient":
        """d loss / d own parameters, zeros where the loss does not reach one; the mean over all processes that learn
        together."""
        tensors = torch.autograd.grad(
            loss, self.parameters, retain_graph=keep_graph, allow_unused=True, materialize_grads=True
        )
        tensors = averaged(tensors)
        return Gradient(self, tensors, torch.nn.utils.get_total_norm(tensors))

    @abstractmethod
    def move(self, gradient: "Gradient") -> None:
        """Take one step."""

    def first_bad(self, tensors: Iterable[Tensor]) -> str:
        for name, tensor in zip(self.names, tensors, strict=True):
            if not torch.isfinite(tensor).all():
                return name
        return "no single parameter (their norm overflows)"


class Optimizer(Owner):
    """Adam on the parameters of ``modules``, with the gradient clipped to a global norm ``clip``, and each of its
    entries to ``clip_value``. ``decay`` times the parameters is added to it after that (L2);
    ``shrink`` is the share of every parameter that a step first takes away, whatever the learning rate.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        lr: float,
        eps: float,
        clip: float = math.inf,
        betas=(0.9, 0.999),
        clip_value: float = math.inf,
        decay: float = 0.0,
        shrink: float = 0.0,
    ):
        super().__init__(modules)
        self.lr, self.eps, self.clip, self.betas, self.clip_value = lr, eps, clip, betas, clip_value
        self.decay, self.shrink = decay, shrink
        like = torch.zeros_like
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]
        self.means = [like(p, requires_grad=False) for p in self.parameters]  # of gradients
        self.squares = [like(p, requires_grad=False) for p in self.parameters]  # of gradients, squared

    @torch.no_grad()
    def move(self, gradient: "Gradient") -> None:
        """Clip to the global norm and take one step."""
        if self.clip < math.inf:
            scale = torch.clamp(self.clip / (gradient.norm + 1e-6), max=1.0)
            torch._foreach_mul_(gradient.tensors, scale)
        if self.clip_value < math.inf:
            torch._foreach_clamp_min_(gradient.tensors, -self.clip_value)
            torch._foreach_clamp_max_(gradient.tensors, self.clip_value)
        if self.shrink:
            torch._foreach_mul_(self.parameters, 1.0 - self.shrink)
        self.descend(list(gradient.tensors))

    def descend(self, tensors: list[Tensor]) -> None:
        """One Adam step along clipped gradients."""
        adam(
            self.parameters,
            tensors,
            self.means,
            self.squares,
            [],
            self.steps,
            fused=tensors[0].device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr,
            weight_decay=self.decay,
            eps=self.eps,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments and step counts by parameter name."""
        rows = zip(self.names, self.steps, self.means, self.squares, strict=True)
        return {name: {"step": n, "exp_avg": mean, "exp_avg_sq": square} for name, n, mean, square in rows}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy such a state; what it does not know begins anew."""
        for name, *own in zip(self.names, self.steps, self.means, self.squares, strict=True):
            found = state.get(name)
            for tensor, key in zip(own, ("step", "exp_avg", "exp_avg_sq"), strict=True):
                tensor.zero_() if found is None else tensor.copy_(found[key])


class RMSProp(Optimizer):
    """The same with RMSProp's step: the gradient over the root of its mean square.

    ::

        s' = decay s + (1 - decay) g^2          step = lr g / sqrt(s' + eps)     ``inside``, Mnih et al. 2016, Eq. S1
                                                step = lr g / (sqrt(s') + eps)   else: another eps means the same
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        lr: float,
        eps: float,
        clip: float = math.inf,
        decay: float = 0.99,
        inside: bool = True,
    ):
        super().__init__(modules, lr, eps, clip)
        self.decay, self.inside = decay, inside

    def descend(self, tensors: list[Tensor]) -> None:
        torch._foreach_add_(self.steps, 1)
        torch._foreach_mul_(self.squares, self.decay)
        torch._foreach_addcmul_(self.squares, tensors, tensors, 1 - self.decay)
        scale = (
            torch._foreach_add(self.squares, self.eps) if self.inside else torch._foreach_sqrt(self.squares)
        )
        torch._foreach_sqrt_(scale) if self.inside else torch._foreach_add_(scale, self.eps)
        torch._foreach_addcdiv_(self.parameters, tensors, scale, -self.lr)


class LaProp(Owner):
    """LaProp (Ziyin et al. 2020) with adaptive gradient clipping (Brock et al. 2021, over whole tensors)::

        g <- g min(1, clip max(1e-3, |p|) / |g|)        |.| of each tensor by itself
        v <- b2 v + (1 - b2) g^2                        u = g / (sqrt(v / (1 - b2^t)) + eps)
        m <- b1 m + (1 - b1) u                          p <- p - lr m / (1 - b1^t)

    Normalised first and averaged then, so that eps can be tiny. The learning rate rises from 0, at the first
    step, to ``lr`` after ``warmup`` steps.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        lr: float,
        eps: float = 1e-20,
        clip: float = 0.3,
        warmup: int = 1000,
        betas=(0.9, 0.999),
    ):
        super().__init__(modules)
        self.lr, self.eps, self.clip, self.warmup, self.betas = lr, eps, clip, warmup, betas
        self.sizes = [parameter.numel() for parameter in self.parameters]
        # On the device, as all that changes: a recorded update reads it there.
        self.steps = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)
        # One after the other in one tensor: a step is then a few long operations.
        self.mean = self.parameters[0].new_zeros(sum(self.sizes), requires_grad=False)
        self.square = torch.zeros_like(self.mean)

    @torch.no_grad()
    def move(self, gradient: "Gradient") -> None:
        """Clip each tensor's gradient to its parameter's size and take one step."""
        b1, b2 = self.betas
        lr = self.lr * (self.steps / self.warmup).clamp(max=1.0) if self.warmup else self.lr
        self.steps.add_(1)
        norms = torch.stack(torch._foreach_norm(gradient.tensors))
        sizes = torch.stack(torch._foreach_norm(self.parameters)).clamp(min=1e-3)
        factors = (self.clip * sizes / norms).clamp(max=1.0)
        scaled = torch._foreach_mul(gradient.tensors, list(factors.unbind()))
        flat = torch.cat([tensor.reshape(-1) for tensor in scaled])
        self.square.mul_(b2).addcmul_(flat, flat, value=1 - b2)
        unit = flat.div_((self.square / (1 - b2**self.steps)).sqrt_().add_(self.eps))
        self.mean.lerp_(unit, 1 - b1)
        steps = (self.mean * (lr / (1 - b1**self.steps))).split(self.sizes)
        torch._foreach_sub_(
            self.parameters, [s.view_as(p) for s, p in zip(steps, self.parameters, strict=True)]
        )

    def state_dict(self) -> dict[str, Any]:
        """The moments by parameter name, and the number of steps."""
        rows = zip(self.names, self.mean.split(self.sizes), self.square.split(self.sizes), strict=True)
        return {"steps": int(self.steps)} | {
            name: {"mean": mean, "square": square} for name, mean, square in rows
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy such a state; what it does not know begins anew."""
        self.steps.fill_(state["steps"])
        own = zip(self.names, self.mean.split(self.sizes), self.square.split(self.sizes), strict=True)
        for name, mean, square in own:
            found = state.get(name)
            mean.zero_() if found is None else mean.copy_(found["mean"])
            square.zero_() if found is None else square.copy_(found["square"])


class Gradient(NamedTuple):
    """The gradient of one loss for the parameters of one optimiser, and its global norm before clipping."""

    optimizer: Owner
    tensors: tuple[Tensor, ...]
    norm: Tensor


def step(*gradients: Gradient) -> None:
    """Take all steps, or none: raises ``NotFinite``, naming the first bad gradient, before anything has moved.

    On CUDA the check would stall the device at every update and is left to whoever reads the metrics.
    """
    for optimizer, tensors, norm in gradients:
        if norm.device.type == "cpu" and not torch.isfinite(norm):
            raise NotFinite(f"the gradient of {optimizer.first_bad(tensors)}")
    for gradient in gradients:
        gradient.optimizer.move(gradient)


class Follow:
    """Slow copies of networks: a call moves every parameter of a key of ``pairs`` by ``rate`` of the way to that of
    its value (Polyak averaging)."""

    def __init__(self, pairs: Mapping[nn.Module, nn.Module], rate: float):
        self.slow: list[Tensor] = [p for slow in pairs for p in slow.parameters()]
        self.fast: list[Tensor] = [p for fast in pairs.values() for p in fast.parameters()]
        self.rate = rate

    @torch.no_grad()
    def __call__(self) -> None:
        torch._foreach_lerp_(self.slow, self.fast, self.rate)
