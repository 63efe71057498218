"""An optimiser that owns what it moves.

Built with the modules it may change, it takes the gradient of a loss for those alone: a loss may pass its
gradient *through* another module without moving it, and nothing has to be frozen and thawed.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reverie.types import NotFinite


class Optimizer:
    """Adam on the parameters of ``modules``, with the gradient clipped to a global norm.

    ``gradient(loss)`` and ``step(...)`` are apart so that an agent can take all gradients from the same
    parameters before any of them moves.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], lr: float, eps: float, clip: float, betas=(0.9, 0.999)
    ):
        named = [(f"{name}.{key}", p) for name, m in modules.items() for key, p in m.named_parameters()]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.clip = clip
        fused = self.parameters[0].device.type in ("cpu", "cuda")
        self.adam = torch.optim.Adam(self.parameters, lr=lr, betas=betas, eps=eps, fused=fused)

    def gradient(self, loss: Tensor, keep_graph: bool = False) -> "Gradient":
        """d loss / d own parameters; zeros where the loss does not reach one."""
        tensors = torch.autograd.grad(
            loss, self.parameters, retain_graph=keep_graph, allow_unused=True, materialize_grads=True
        )
        return Gradient(self, tensors, torch.nn.utils.get_total_norm(tensors))

    @torch.no_grad()
    def move(self, gradient: "Gradient") -> None:
        """Clip to the global norm and take one Adam step."""
        scale = torch.clamp(self.clip / (gradient.norm + 1e-6), max=1.0)
        torch._foreach_mul_(gradient.tensors, scale)
        for parameter, tensor in zip(self.parameters, gradient.tensors, strict=True):
            parameter.grad = tensor
        self.adam.step()
        for parameter in self.parameters:
            parameter.grad = None

    def first_bad(self, tensors: Iterable[Tensor]) -> str:
        for name, tensor in zip(self.names, tensors, strict=True):
            if not torch.isfinite(tensor).all():
                return name
        return "no single parameter (their norm overflows)"

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments and step counts by parameter name."""
        return {
            name: dict(self.adam.state[parameter])
            for name, parameter in zip(self.names, self.parameters, strict=True)
            if parameter in self.adam.state
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.adam.state.clear()
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if name in state:
                self.adam.state[parameter] = {
                    key: value.to(parameter.device, copy=True) for key, value in state[name].items()
                }


class Gradient(NamedTuple):
    """The gradient of one loss for the parameters of one optimiser, and its global norm before clipping."""

    optimizer: Optimizer
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
