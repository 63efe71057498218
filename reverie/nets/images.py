"""Convolutions, and the image encoder and decoder.

Images keep their "h w c" order in memory from the camera to the loss: a convolution reads them as
channels-last views, nothing is transposed. The encoder and decoder are those of PlaNet and Dreamer (first
used by Ha & Schmidhuber 2018), sixty-four pixels to a side.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reverie.nets.linear import Act, Kernels, glorot_, on_cpu
from reverie.types import ReverieError

SIDE = 64  # pixels


class Conv(Kernels):
    """A convolution of stride 2 without padding on "n h w c" images; weight "o k k i", bias "o"."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, kernel, kernel, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        glorot_(self)

    def forward(self, x: Float[Tensor, "n h w i"]) -> Float[Tensor, "n h2 w2 o"]:
        if on_cpu(x):
            return _Conv.apply(x, self.weight, self.bias)
        return _nhwc(F.conv2d(_nchw(x), _nchw(self.weight), self.bias, 2))


class Deconv(Kernels):
    """A transposed convolution of stride 2 on "n h w c": h -> 2h + k - 2; weight "i k k o", bias "o"."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, kernel, kernel, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        glorot_(self)

    def forward(self, x: Float[Tensor, "n h w i"]) -> Float[Tensor, "n h2 w2 o"]:
        if on_cpu(x):
            return _Deconv.apply(x, self.weight, self.bias)
        return _nhwc(F.conv_transpose2d(_nchw(x), _nchw(self.weight), self.bias, 2))


class GridConv(Kernels):
    """A convolution on "n h w c" pictures of any size; weight "o k k i", bias "o".

    ``same`` pads with zeros to h / stride, rounded up, the odd one below and right (TensorFlow's SAME); else no
    padding.
    """

    low: torch.dtype | None = None  # of products; see ``linear.lower``

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, same: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, kernel, kernel, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.kernel, self.stride, self.same = kernel, stride, same
        glorot_(self)

    def side(self, size: int) -> int:
        """Pixels that come out for ``size`` that go in; may be below 1, where the picture is too small."""
        return -(-size // self.stride) if self.same else (size - self.kernel) // self.stride + 1

    def forward(self, x: Float[Tensor, "n h w i"]) -> Float[Tensor, "n h2 w2 o"]:
        if self.same:
            pads: list[int] = []
            for size in (x.shape[2], x.shape[1]):
                lacking = max((self.side(size) - 1) * self.stride + self.kernel - size, 0)
                pads += [lacking // 2, lacking - lacking // 2]
            x = F.pad(x, (0, 0, *pads))
        if self.low is None:
            return _nhwc(F.conv2d(_nchw(x), _nchw(self.weight), self.bias, self.stride))
        low = (_nchw(x).to(self.low), _nchw(self.weight).to(self.low), self.bias.to(self.low))
        return _nhwc(F.conv2d(*low, self.stride)).to(x.dtype)


class Convs(nn.Module):
    """Convolutions, a ReLU after each: "n h w c" to "n h2 w2 o"; ``shape`` is what comes out.

    Raises ``ReverieError`` for pictures of which nothing would be left, and for lists of unequal lengths.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: tuple[int, ...],
        kernels: tuple[int, ...],
        strides: tuple[int, ...],
        same: bool = True,
    ) -> None:
        super().__init__()
        if not len(channels) == len(kernels) == len(strides):
            raise ReverieError(
                f"every convolution needs channels, a kernel and a stride; got {channels}, {kernels} and {strides}"
            )
        (h, w, inputs), made = shape, []
        for outputs, kernel, stride in zip(channels, kernels, strides, strict=True):
            conv = GridConv(inputs, outputs, kernel, stride, same)
            h, w, inputs = conv.side(h), conv.side(w), outputs
            made.append(conv)
        if min(h, w) < 1:
            raise ReverieError(
                f"pictures of {shape[0]}x{shape[1]} are too small for convolutions of kernels {kernels} and strides "
                f"{strides} without padding; give smaller ones, or larger pictures"
            )
        self.convs, self.shape = nn.ModuleList(made), (h, w, inputs)

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    def forward(self, x: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h2 w2 o"]:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x


def halved(x: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h2 w2 c"]:
    """The largest of every 2 x 2 pixels."""
    return _nhwc(F.max_pool2d(_nchw(x), 2))


def doubled(x: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h2 w2 c"]:
    """Every pixel four times."""
    return _nhwc(F.interpolate(_nchw(x), scale_factor=2, mode="nearest"))


class ImageEncoder(nn.Module):
    """Four convolutions, kernel 4, stride 2, no padding: 64 -> 31 -> 14 -> 6 -> 2 pixels to a side.

    ``embed`` is 32 * depth wide, its entries in the order "h w c" of the last layer's 2 x 2 x 8 depth.
    """

    def __init__(self, shape: tuple[int, ...], depth: int = 32, act: Act = F.relu) -> None:
        super().__init__()
        _check_side(shape, "ImageEncoder")
        self.shape, self.embed = tuple(shape), 32 * depth
        widths = [shape[2], depth, 2 * depth, 4 * depth, 8 * depth]
        self.convs = nn.ModuleList(Conv(a, b, 4) for a, b in pairwise(widths))
        self.act = _activation(act)

    def forward(self, image: Float[Tensor, "*B h w c"]) -> Float[Tensor, "*B E"]:
        x = image.reshape(-1, *self.shape)
        for conv in self.convs:
            x = self.act(conv(x))
        return x.reshape(*image.shape[:-3], self.embed)


class ImageDecoder(nn.Module):
    """A linear layer to 32 * depth, then four transposed convolutions: 1 -> 5 -> 13 -> 30 -> 64 pixels."""

    def __init__(self, feat: int, shape: tuple[int, ...], depth: int = 32, act: Act = F.relu) -> None:
        super().__init__()
        _check_side(shape, "ImageDecoder")
        self.shape = tuple(shape)
        self.dense = nn.Linear(feat, 32 * depth)
        widths = [32 * depth, 4 * depth, 2 * depth, depth, shape[2]]
        layers = [Deconv(a, b, k) for (a, b), k in zip(pairwise(widths), (5, 5, 6, 6), strict=True)]
        self.first, self.deconvs = layers[0], nn.ModuleList(layers[1:])
        self.act = _activation(act)
        glorot_(self.dense)

    def forward(self, feat: Float[Tensor, "*B F"]) -> Float[Tensor, "*B h w c"]:
        x = self._first(feat.reshape(-1, feat.shape[-1]))
        for deconv in self.deconvs:
            x = deconv(self.act(x))
        return x.reshape(*feat.shape[:-1], *self.shape)

    def _first(self, feat: Float[Tensor, "n F"]) -> Float[Tensor, "n 5 5 o"]:
        """The dense layer and the first transposed convolution, which sees one pixel: two linear maps in a
        row. For many images it is cheaper to multiply the two matrices first."""
        kernel, bias = self.first.weight.flatten(1), self.first.bias.repeat(25)
        n, (inner, inputs), outputs = len(feat), self.dense.weight.shape, kernel.shape[1]
        if n * inner * (inputs + outputs) < n * inputs * outputs + inputs * inner * outputs:
            x = torch.addmm(bias, self.dense(feat), kernel)
        else:
            bias = torch.addmv(bias, kernel.t(), self.dense.bias)
            x = torch.addmm(bias, feat, self.dense.weight.t() @ kernel)
        return x.view(n, 5, 5, -1)


def _check_side(shape: tuple[int, ...], who: str) -> None:
    if len(shape) != 3 or tuple(shape[:2]) != (SIDE, SIDE):
        raise ReverieError(
            f"{who} needs images of shape ({SIDE}, {SIDE}, channels), got {tuple(shape)}; "
            f"wrap the environment in Resize to make them so"
        )


def _activation(act: Act) -> nn.Module:
    if isinstance(act, type) and issubclass(act, nn.Module):
        return act()
    return _Apply(act)  # type: ignore[arg-type]


class _Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# What follows is the arithmetic of torch.nn's layers, arranged for a CPU; benchmarks/layers.py measures it.
# Images are "n h w c" and kernels "o k k i" throughout. The gradient of either layer to its input is the
# other layer, and both have the same gradient to the kernel.


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _pairs(x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """An image, a kernel and the stride between them. Where both are of even width, two neighbouring columns
    become one of twice the channels, which is a view and leaves half the steps, each twice as long."""
    even = x.shape[2] % 2 == 0 and kernel.shape[2] % 2 == 0
    x, kernel = (t.reshape(*t.shape[:2], t.shape[2] // 2, -1) if even else t for t in (x, kernel))
    return _nchw(x), _nchw(kernel), [2, 1] if even else [2, 2]


def _down(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution of stride 2."""
    x, kernel, stride = _pairs(x, kernel)
    return _nhwc(F.conv2d(x, kernel, bias, stride))


def _up(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Transposed convolution of stride 2."""
    (n, s, _, o), (_, k, _, i) = x.shape, kernel.shape
    side = 2 * s + k - 2
    if k % 2:
        return _nhwc(F.conv_transpose2d(_nchw(x), _nchw(kernel), bias, 2))
    if i >= 8:
        bias = None if bias is None else bias.repeat(2)
        y = F.conv_transpose2d(_nchw(x), _nchw(kernel.reshape(o, k, k // 2, 2 * i)), bias, (2, 1))
        return _nhwc(y).reshape(n, side, side, i)
    # So few channels fill no vector: the output's four phases are the channels of one plain convolution, and some more
    # that are zero, until they do.
    more = -4 * i % 8
    bias = None if bias is None else F.pad(bias.repeat(4), (0, more))
    taps = kernel.reshape(o, k // 2, 2, k // 2, 2, i).flip(1, 3).permute(2, 4, 5, 1, 3, 0)
    taps = F.pad(taps.reshape(4 * i, k // 2, k // 2, o), (0, 0, 0, 0, 0, 0, 0, more))
    y = _nhwc(F.conv2d(_nchw(x), _nchw(taps), bias, padding=k // 2 - 1))[..., : 4 * i]
    return y.reshape(n, side // 2, side // 2, 2, 2 * i).transpose(2, 3).reshape(n, side, side, i)


def _kernel_grad(wide: Tensor, narrow: Tensor, kernel: Tensor) -> Tensor:
    x, w, stride = _pairs(wide, kernel)
    plain = (stride, [0, 0], [1, 1], False, [0, 0], 1)  # no padding, dilation, transposition or groups
    # Asked for the bias's gradient too, this would take up to twice as long.
    grads = torch.ops.aten.convolution_backward(_nchw(narrow), x, w, None, *plain, [False, True, False])
    return _nhwc(grads[1]).reshape(kernel.shape)


def _bias_grad(grad: Tensor) -> Tensor:
    rows = grad.view(len(grad) * grad.shape[1], -1).sum(0)  # long rows add fast, three channels would not
    return rows.view(-1, grad.shape[-1]).sum(0)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, kernel)
        return _down(x, kernel, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        grad, to_x = grad.contiguous(), None
        if ctx.needs_input_grad[0]:
            to_x = _up(grad, kernel, None)
            rest = x.shape[1] - to_x.shape[1]  # the last row and column, if no window saw them
            to_x = F.pad(to_x, (0, 0, 0, rest, 0, rest)) if rest else to_x
        return to_x, _kernel_grad(x, grad, kernel), _bias_grad(grad)


class _Deconv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, kernel)
        return _up(x, kernel, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        grad = grad.contiguous()
        to_x = _down(grad, kernel, None) if ctx.needs_input_grad[0] else None
        return to_x, _kernel_grad(grad, x, kernel), _bias_grad(grad)
