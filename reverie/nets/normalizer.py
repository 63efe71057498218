"""Numbers brought to mean 0 and deviation 1, by the moments of all that was seen."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Mean and variance of all rows seen, in float64; beyond ``window`` rows the oldest fade.

    Deviations are taken to be within ``bounds``: with (0.01, 1), say, large numbers stay as large as they are.
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    def __init__(
        self, size: int, window: int = 1_000_000, bounds: tuple[float, float] = (0.0, float("inf"))
    ) -> None:
        super().__init__()
        self.window, self.bounds = window, bounds
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))

    @torch.no_grad()
    def see(self, x: Float[Tensor, "n I"]) -> None:
        """Merge the moments of these rows with those before (Chan, Golub & LeVeque 1979)."""
        x, n = x.double(), len(x)
        var, mean = torch.var_mean(x, 0, correction=0)
        share = n / (self.count + n)
        shift = mean - self.mean
        self.var.copy_((1 - share) * self.var + share * var + share * (1 - share) * shift.square())
        self.mean.add_(share * shift)
        self.count.add_(n).clamp_(max=self.window)

    def forget(self) -> None:
        """Let the next rows count as the first."""
        self.count.zero_()

    @property
    def std(self) -> Tensor:
        """Never zero: without a lower bound, what has not varied is left as it is."""
        std = self.var.sqrt().clamp(*self.bounds)
        return torch.where(std > 1e-6, std, 1.0).float()

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B I"]:
        return (x - self.mean.float()) / self.std

    def back(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B I"]:
        return torch.addcmul(self.mean.float(), x, self.std)
