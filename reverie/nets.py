"""The networks every learned world is built from: layers, the image encoder and decoder, GRU cell and LSTM.

Images keep their "h w c" order in memory from the camera to the loss: a convolution reads them as
channels-last views, nothing is transposed. The encoder and decoder are those of PlaNet and Dreamer (first
used by Ha & Schmidhuber 2018), sixty-four pixels to a side.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reverie.types import ReverieError

Net = TypeVar("Net", bound=nn.Module)
Act = Callable[..., object]  # a function of a tensor (F.elu), or a module class (nn.ELU)

SIDE = 64  # pixels
ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # inference only; not in every build


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
            elif isinstance(layer, Conv | Deconv | GridConv):
                out, height, width, into = parameter.shape
                bound = (6 / (height * width * (out + into))) ** 0.5
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
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


class Linear(nn.Linear):
    """``nn.Linear``, Glorot-initialised. Where no gradient is asked for, the product is oneDNN's, which on narrow
    layers runs closer to the matrix rate than the default (benchmarks/update.py, the planner's decision)."""

    def reset_parameters(self) -> None:
        glorot_(self)

    def forward(self, x: Float[Tensor, "*B I"], act: Act | None = None) -> Float[Tensor, "*B O"]:
        return product(x, self.weight, self.bias, act)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, act: Act | None = None) -> Tensor:
    """act(x W' + b), by the faster of two libraries; oneDNN does a ReLU on the way. A ``rounded`` W is met by an
    x rounded for the product alone."""
    if weight.dtype != x.dtype:
        out, done = F.linear(x.to(weight.dtype), weight).to(x.dtype), False
        out = out if bias is None else out.add_(bias)
    elif not _by_onednn(x):
        out, done = F.linear(x, weight, bias), False
    else:
        done = act is F.relu
        out = ONEDNN(x, weight, bias, "relu" if done else "none", [], "")
    return out if act is None or done else act(out)  # type: ignore[return-value]


def _by_onednn(x: Tensor) -> bool:
    return not torch.is_grad_enabled() and ONEDNN is not None and len(x) >= 64 and _ours(x)


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


def _check_side(shape: tuple[int, ...], who: str) -> None:
    if len(shape) != 3 or tuple(shape[:2]) != (SIDE, SIDE):
        raise ReverieError(
            f"{who} needs images of shape ({SIDE}, {SIDE}, channels), got {tuple(shape)}; "
            f"wrap the environment in Resize to make them so"
        )


class Conv(nn.Module):
    """A convolution of stride 2 without padding on "n h w c" images; weight "o k k i", bias "o"."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, kernel, kernel, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        glorot_(self)

    def forward(self, x: Float[Tensor, "n h w i"]) -> Float[Tensor, "n h2 w2 o"]:
        if _ours(x):
            return _Conv.apply(x, self.weight, self.bias)
        return _nhwc(F.conv2d(_nchw(x), _nchw(self.weight), self.bias, 2))


class Deconv(nn.Module):
    """A transposed convolution of stride 2 on "n h w c": h -> 2h + k - 2; weight "i k k o", bias "o"."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, kernel, kernel, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        glorot_(self)

    def forward(self, x: Float[Tensor, "n h w i"]) -> Float[Tensor, "n h2 w2 o"]:
        if _ours(x):
            return _Deconv.apply(x, self.weight, self.bias)
        return _nhwc(F.conv_transpose2d(_nchw(x), _nchw(self.weight), self.bias, 2))


class GridConv(nn.Module):
    """A convolution on "n h w c" pictures of any size; weight "o k k i", bias "o".

    ``same`` pads with zeros to h / stride, rounded up, the odd one below and right (TensorFlow's SAME); else no
    padding.
    """

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
        return _nhwc(F.conv2d(_nchw(x), _nchw(self.weight), self.bias, self.stride))


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


# What follows is the arithmetic of torch.nn's layers, arranged for a CPU; benchmarks/layers.py measures it.
# Images are "n h w c" and kernels "o k k i" throughout. The gradient of either layer to its input is the
# other layer, and both have the same gradient to the kernel.


def _ours(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


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
    # So few channels fill no vector: the output's four phases are the channels of one plain convolution.
    bias = None if bias is None else bias.repeat(4)
    taps = kernel.reshape(o, k // 2, 2, k // 2, 2, i).flip(1, 3).permute(2, 4, 5, 1, 3, 0)
    taps = taps.reshape(4 * i, k // 2, k // 2, o)
    y = _nhwc(F.conv2d(_nchw(x), _nchw(taps), bias, padding=k // 2 - 1))
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
        if x.ndim == 2 and _by_onednn(x):
            return self._infer(x, h)
        gx = product(x, self.kernel, self.bias)
        gh = product(h, self.recurrent, self.bias_recurrent)
        xr, xu, xn = gx.chunk(3, -1)
        hr, hu, hn = gh.chunk(3, -1)
        n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
        return n + torch.sigmoid(xu + hu) * (h - n)

    def _infer(self, x: Tensor, h: Tensor) -> Tensor:
        """The same in half the passes over memory; tanh(n) as 2 sig(2n) - 1, which is four times faster here."""
        ru = 2 * self.units
        gates = product(x, self.kernel[:ru], self.bias[:ru])
        gates = ONEDNN.binary(h, gates, self.recurrent[:ru], self.bias_recurrent[:ru], "add").sigmoid_()
        r, u = gates.chunk(2, -1)
        hn = product(h, self.recurrent[ru:], self.bias_recurrent[ru:])
        n = torch.addcmul(product(x, self.kernel[ru:], self.bias[ru:]), r, hn)
        return torch.lerp(n.mul_(2).sigmoid_().mul_(2).sub_(1), h, u)


class LSTM(nn.Module):
    """Long short-term memory of one layer, time first::

        c' = f c + i j        h' = o tanh(c')        i, j, f, o = sig, tanh, sig, sig of (W x + U h + b)

    One bias; ``forget`` is added to f's before its sigmoid and is not a parameter. Gates are stacked i, j, f, o
    (TensorFlow's order), and W, U drawn as one Glorot-uniform kernel.
    """

    shift: Tensor

    def __init__(self, inputs: int, units: int, forget: float = 1.0) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(4 * units, inputs))
        self.recurrent = nn.Parameter(torch.empty(4 * units, units))
        self.bias = nn.Parameter(torch.zeros(4 * units))
        self.inputs, self.units = inputs, units
        shift = torch.zeros(4 * units)
        shift[2 * units : 3 * units] = forget
        self.register_buffer("shift", shift, persistent=False)
        bound = (6 / (inputs + units + 4 * units)) ** 0.5
        for kernel in (self.kernel, self.recurrent):
            nn.init.uniform_(kernel, -bound, bound)

    def forward(
        self,
        x: Float[Tensor, "T n I"],
        h: Float[Tensor, "n U"],
        c: Float[Tensor, "n U"],
        keep: Float[Tensor, "T n"] | None = None,
    ) -> tuple[Float[Tensor, "T n U"], tuple[Float[Tensor, "n U"], Float[Tensor, "n U"]]]:
        """All h' in order, and the last h' and c'. Where ``keep`` is 0, h and c are zeroed *before* that step."""
        gates = product(x, self.kernel, self.bias + self.shift)
        if keep is None:
            keep = x.new_ones(x.shape[:2])
        hidden, last = _LSTM.apply(gates, self.recurrent, h, c, keep[..., None])
        return hidden, (hidden[-1], last)

    def step(
        self, x: Float[Tensor, "n I"], h: Float[Tensor, "n U"], c: Float[Tensor, "n U"]
    ) -> tuple[Float[Tensor, "n U"], Float[Tensor, "n U"]]:
        """One step, h' and c'."""
        gates = product(x, self.kernel, self.bias + self.shift) + product(h, self.recurrent, None)
        i, j, f, o = gates.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(j)
        return torch.sigmoid(o) * torch.tanh(c), c


class _LSTM(torch.autograd.Function):
    """The recurrence, with the gradient of the recurrent kernel as one product over all of time: summed step by
    step, it is read and written as often as there are steps."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, h: Tensor, c: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor]:
        time, n, units = *x.shape[:2], h.shape[-1]
        gates = torch.empty_like(x)  # after their sigmoid or tanh
        before, cells, hidden = (x.new_empty(2, time, n, units), *x.new_empty(2, time, n, units))
        wide = kernel.t()
        for t in range(time):
            torch.mul(h, keep[t], out=before[0, t])
            torch.mul(c, keep[t], out=before[1, t])
            g = torch.addmm(x[t], before[0, t], wide, out=gates[t])
            i, j, f, o = g.chunk(4, -1)
            i.sigmoid_(), j.tanh_(), f.sigmoid_(), o.sigmoid_()
            c = torch.mul(f, before[1, t], out=cells[t]).addcmul_(i, j)
            h = torch.mul(o, c.tanh(), out=hidden[t])
        ctx.save_for_backward(kernel, gates, before, cells, keep)
        return hidden, cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_hidden: Tensor, to_last: Tensor) -> tuple[Tensor | None, ...]:
        kernel, gates, before, cells, keep = ctx.saved_tensors
        to_gates, to_h, to_c = torch.empty_like(gates), torch.zeros_like(to_last), to_last.clone()
        for t in reversed(range(len(gates))):
            to_h = to_h + to_hidden[t]
            i, j, f, o = gates[t].chunk(4, -1)
            to_i, to_j, to_f, to_o = to_gates[t].chunk(4, -1)
            bent = cells[t].tanh()
            torch.mul(to_h, bent, out=to_o).mul_(o).mul_(1 - o)
            to_c = to_c + to_h * o * (1 - bent * bent)
            torch.mul(to_c, j, out=to_i).mul_(i).mul_(1 - i)
            torch.mul(to_c, i, out=to_j).mul_(1 - j * j)
            torch.mul(to_c, before[1, t], out=to_f).mul_(f).mul_(1 - f)
            to_c = to_c * f * keep[t]
            to_h = (to_gates[t] @ kernel) * keep[t]
        to_kernel = to_gates.flatten(0, 1).t() @ before[0].flatten(0, 1)
        return to_gates, to_kernel, to_h, to_c, None


class Ensemble(nn.Module):
    """``members`` networks of one shape side by side, each with weights of its own: ReLU layers of widths
    ``units``, then a linear one. Weights are "M O I", biases "M O".

    Weights and biases start uniform in +-1/sqrt(inputs), those of the last layer in +-``last`` if given. Products are
    taken member by member: batched, they were slower.
    """

    def __init__(
        self, inputs: int, units: Sequence[int], outputs: int, members: int = 1, last: float | None = None
    ) -> None:
        super().__init__()
        widths, empty = [inputs, *units, outputs], torch.empty
        self.weights = nn.ParameterList(nn.Parameter(empty(members, o, i)) for i, o in pairwise(widths))
        self.biases = nn.ParameterList(nn.Parameter(empty(members, o)) for o in widths[1:])
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = last if last is not None and bias is self.biases[-1] else weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: Tensor) -> Float[Tensor, "M B O"]:
        """Of one input "B I" that all members share, or of one for each, "M B I"."""
        return self._run(x, list(self.weights), list(self.biases))

    def through(self, x: Tensor, members: int | None = None) -> Float[Tensor, "M B O"]:
        """The same, or the first ``members`` alone, with a gradient to ``x`` and none to the parameters."""
        weights, biases = ([p.detach()[:members] for p in group] for group in (self.weights, self.biases))
        return self._run(x, weights, biases)

    @staticmethod
    def _run(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        apart = lambda p: [p.squeeze(0)] if len(p) == 1 else p.unbind(0)
        layers = list(zip(map(apart, weights), map(apart, biases), strict=True))
        outs = []
        for m in range(len(weights[0])):
            h = x if x.ndim == 2 else x[m]
            for i, (weight, bias) in enumerate(layers):
                h = F.linear(h, weight[m], bias[m])
                h = h if i == len(layers) - 1 else h.relu_()
            outs.append(h)
        return torch.stack(outs) if len(outs) > 1 else outs[0][None]


# Layers with a norm: linear, norm, activation, in this order.

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

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0) -> None:
        self.scale = scale
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        truncated_(self.weight, self.in_features, self.scale)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        rows, apply = x.reshape(-1, x.shape[-1]), _Affine.apply if torch.is_grad_enabled() else product
        return apply(rows, self.weight, self.bias).view(*x.shape[:-1], -1)


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
        rows = x.reshape(-1, x.shape[-1])
        grad = torch.is_grad_enabled()
        out = (
            _Dense.apply(rows, weight, bias, scale)
            if grad
            else norm_silu_(product(rows, weight, bias), scale)
        )
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


class _Affine(torch.autograd.Function):
    """W x + b, by the library that ``product`` chooses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x = grad @ weight if ctx.needs_input_grad[0] else None
        return to_x, grad.t() @ x, grad.sum(0)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        normed = product(x, weight, bias)
        inverse = inverse_rms(normed)
        normed.mul_(inverse)
        ctx.save_for_backward(x, weight, scale, normed, inverse)
        return F.silu(normed * scale, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, normed, inverse = ctx.saved_tensors
        to_y, bent = norm_silu_back(grad, normed, inverse, scale)
        to_x = to_y @ weight if ctx.needs_input_grad[0] else None
        return to_x, to_y.t() @ x, to_y.sum(0), bent.mul_(normed).sum(0)


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
        out = torch.bmm(parts, self.weight).transpose(0, 1)
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
        v = torch.bmm(blocks.transpose(0, 1), own).transpose(0, 1).reshape(len(deter), -1)
        v = v + product(x, shared.t(), self.mix.bias)
        v = F.silu(self.norm(v)).view_as(blocks)
        gates = torch.bmm(v.transpose(0, 1), self.gates.weight).transpose(0, 1)
        r, c, u = (gates + self.gates.bias.view(self.blocks, -1)).chunk(3, -1)
        h = torch.lerp(blocks, torch.tanh(torch.sigmoid(r) * c), torch.sigmoid(u - 1))
        return h.reshape(len(deter), -1)

    def _infer(self, x: Tensor, deter: Tensor, own: Tensor, shared: Tensor) -> Tensor:
        """The same in place; each gate of all blocks lies together, so that bending it is one long pass."""
        blocked = lambda y: y.view(len(y), self.blocks, -1).transpose(0, 1)
        v = product(x, shared.t(), self.mix.bias)
        blocked(v).baddbmm_(blocked(deter), own)
        v = blocked(norm_silu_(v, self.norm.scale))
        biases = self.gates.bias.view(self.blocks, 3, 1, -1).unbind(1)
        gates = []
        for weight, bias in zip(self.gates.weight.chunk(3, -1), biases, strict=True):
            gates.append(torch.empty_like(deter))
            blocked(gates[-1]).copy_(bias.expand(-1, len(deter), -1)).baddbmm_(v, weight)
        r, c, u = gates
        n = r.sigmoid_().mul_(c).mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, four times faster here
        return torch.lerp(deter, n, u.sub_(1).sigmoid_())


class NormGRUCell(nn.Module):
    """A GRU with one kernel over [x, h] and a layer norm over all its gates, r, c, u (Hafner et al. 2021, App. A)::

    h' = sig(u - 1) tanh(sig(r) c) + (1 - sig(u - 1)) h
    """

    def __init__(self, inputs: int, units: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.kernel = Linear(inputs + units, 3 * units)
        self.norm = nn.LayerNorm(3 * units, eps)

    def forward(self, x: Float[Tensor, "*B I"], h: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        r, c, u = self.norm(self.kernel(torch.cat([x, h], -1))).chunk(3, -1)
        return torch.lerp(h, torch.tanh(torch.sigmoid(r) * c), torch.sigmoid(u - 1))
