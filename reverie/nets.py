"""The networks every learned world is built from: layers, the image encoder and decoder, and the GRU cell.

Images keep their "h w c" order in memory from the camera to the loss: a convolution reads them as
channels-last views, nothing is transposed. The encoder and decoder are those of PlaNet and Dreamer (first
used by Ha & Schmidhuber 2018), sixty-four pixels to a side.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.types import ReverieError

Act = Callable[..., object]  # a function of a tensor (F.elu), or a module class (nn.ELU)

SIDE = 64  # pixels


def glorot_(module: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Keras' initial weights, in place: Glorot-uniform kernels, zero biases, orthogonal recurrent kernels.

    Fans are counted as Keras does, k*k*channels for plain and transposed convolutions alike.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            nn.init.zeros_(parameter)
        elif "recurrent" in name:
            for gate in parameter.data.chunk(3):
                nn.init.orthogonal_(gate, generator=generator)
        else:
            nn.init.xavier_uniform_(parameter, generator=generator)
    return module


class _Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _activation(act: Act) -> nn.Module:
    if isinstance(act, type) and issubclass(act, nn.Module):
        return act()
    return _Apply(act)  # type: ignore[arg-type]


class MLP(nn.Module):
    """``layers`` times (linear, ``act``), then a linear layer to ``outputs`` unless that is None."""

    def __init__(
        self, inputs: int, units: int, layers: int, outputs: int | None = None, act: Act = F.elu
    ) -> None:
        super().__init__()
        widths = [inputs] + [units] * layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.out = None if outputs is None else nn.Linear(widths[-1], outputs)
        self.act = _activation(act)
        self.outputs = widths[-1] if outputs is None else outputs
        glorot_(self)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        for layer in self.hidden:
            x = self.act(layer(x))
        return x if self.out is None else self.out(x)


def _check_side(shape: tuple[int, ...], who: str) -> None:
    if len(shape) != 3 or tuple(shape[:2]) != (SIDE, SIDE):
        raise ReverieError(
            f"{who} needs images of shape ({SIDE}, {SIDE}, channels), got {tuple(shape)}; "
            f"wrap the environment in Resize to make them so"
        )


class ImageEncoder(nn.Module):
    """Four convolutions, kernel 4, stride 2, no padding: 64 -> 31 -> 14 -> 6 -> 2 pixels to a side.

    ``embed`` is 32 * depth wide, its entries in the order "h w c" of the last layer's 2 x 2 x 8 depth.
    """

    def __init__(self, shape: tuple[int, ...], depth: int = 32, act: Act = F.relu) -> None:
        super().__init__()
        _check_side(shape, "ImageEncoder")
        self.shape, self.embed = tuple(shape), 32 * depth
        widths = [shape[2], depth, 2 * depth, 4 * depth, 8 * depth]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, 2) for a, b in pairwise(widths)).to(
            memory_format=torch.channels_last
        )  # type: ignore[call-overload]
        self.act = _activation(act)
        glorot_(self)

    def forward(self, image: Float[Tensor, "*B h w c"]) -> Float[Tensor, "*B E"]:
        x = image.reshape(-1, *self.shape).permute(0, 3, 1, 2)
        for conv in self.convs:
            x = self.act(conv(x))
        return x.permute(0, 2, 3, 1).reshape(*image.shape[:-3], self.embed)


class ImageDecoder(nn.Module):
    """A linear layer to 32 * depth, then four transposed convolutions: 1 -> 5 -> 13 -> 30 -> 64 pixels.

    The first of these sees one pixel, so it is a linear layer too; its weight "i (h w o)" is kept as one.
    """

    def __init__(self, feat: int, shape: tuple[int, ...], depth: int = 32, act: Act = F.relu) -> None:
        super().__init__()
        _check_side(shape, "ImageDecoder")
        self.shape, self.depth = tuple(shape), depth
        self.dense = nn.Linear(feat, 32 * depth)
        self.first = nn.Linear(32 * depth, 25 * 4 * depth, bias=False)
        self.first_bias = nn.Parameter(torch.zeros(4 * depth))
        self.deconvs = nn.ModuleList(
            [
                nn.ConvTranspose2d(4 * depth, 2 * depth, 5, 2),
                nn.ConvTranspose2d(2 * depth, depth, 6, 2),
                nn.ConvTranspose2d(depth, shape[2], 6, 2),
            ]
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.act = _activation(act)
        glorot_(self)
        # As a convolution its fans are 25 * (32 + 4) * depth, not a linear layer's (32 + 100) * depth.
        bound = (6 / (25 * 36 * depth)) ** 0.5
        nn.init.uniform_(self.first.weight, -bound, bound)

    def forward(self, feat: Float[Tensor, "*B F"]) -> Float[Tensor, "*B h w c"]:
        x = self.first(self.dense(feat.reshape(-1, feat.shape[-1])))
        x = x.view(-1, 5, 5, 4 * self.depth) + self.first_bias
        x = x.permute(0, 3, 1, 2)
        for deconv in self.deconvs:
            x = deconv(self.act(x))
        return x.permute(0, 2, 3, 1).reshape(*feat.shape[:-1], *self.shape)


class GRUCell(nn.Module):
    """h' = u h + (1 - u) tanh(W x + b + r (U h + c)): the reset gate acts after the recurrent product.

    The cell of Keras and of ``torch.nn.GRUCell``: gates stacked r, u, candidate; two sets of biases.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(3 * units, inputs))
        self.recurrent = nn.Parameter(torch.empty(3 * units, units))
        self.bias = nn.Parameter(torch.empty(3 * units))
        self.bias_recurrent = nn.Parameter(torch.empty(3 * units))
        self.inputs, self.units = inputs, units
        glorot_(self)

    def forward(self, x: Float[Tensor, "*B I"], h: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        gx = F.linear(x, self.kernel, self.bias)
        gh = F.linear(h, self.recurrent, self.bias_recurrent)
        xr, xu, xn = gx.chunk(3, -1)
        hr, hu, hn = gh.chunk(3, -1)
        n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
        return n + torch.sigmoid(xu + hu) * (h - n)
