"""Recurrent cells: GRUs as Keras and Dreamer V2 have them, and an LSTM."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reverie.nets.linear import Linear, glorot_, on_cpu, product

MANY = 64  # rows, from which on passes over memory count


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
        if x.ndim == 2 and len(x) >= MANY and on_cpu(x) and not torch.is_grad_enabled():
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
        gates = product(x, self.kernel[:ru], self.bias[:ru] + self.bias_recurrent[:ru])
        r, u = gates.addmm_(h, self.recurrent[:ru].t()).sigmoid_().chunk(2, -1)
        hn = product(h, self.recurrent[ru:], self.bias_recurrent[ru:])
        n = torch.addcmul(product(x, self.kernel[ru:], self.bias[ru:]), r, hn)
        return torch.lerp(n.mul_(2).sigmoid_().mul_(2).sub_(1), h, u)


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

    def cell(self) -> "LSTMCell":
        """``step`` with the weights of this moment and no gradient, for many steps one after the other."""
        return LSTMCell(self)


class LSTMCell:
    """One step of an LSTM as one product and one sigmoid: PyTorch's tanh takes several times as long on a CPU, and
    tanh(x) = 2 sig(2x) - 1. What is learned after it was made does not reach it."""

    def __init__(self, lstm: LSTM) -> None:
        with torch.no_grad():
            twice = torch.ones_like(lstm.shift)
            twice[lstm.units : 2 * lstm.units] = 2.0  # j's
            kernel = torch.cat([lstm.kernel, lstm.recurrent], 1)
            self.kernel = kernel * twice[:, None].to(kernel.dtype)
            self.bias = (lstm.bias + lstm.shift) * twice

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "n I"], h: Float[Tensor, "n U"], c: Float[Tensor, "n U"]
    ) -> tuple[Float[Tensor, "n U"], Float[Tensor, "n U"]]:
        """h' and c'."""
        gates = product(torch.cat([x, h], -1), self.kernel, self.bias).sigmoid_()
        i, j, f, o = gates.chunk(4, -1)
        c = torch.mul(f, c).addcmul_(i, j, value=2.0).sub_(i)  # j stands for 2 sig(2x)
        return torch.addcmul(o.neg(), o, (2.0 * c).sigmoid_(), value=2.0), c


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
