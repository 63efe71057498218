"""An ensemble of probabilistic one-step models: p(reward, next obs | obs, action), M networks side by side.

::

    x      = [obs, action], standardised                                  "M n I"
    x      = silu(x W + b)      as often as there are layers              each W is "M i o": one product for all M
    mean, log_var, end = x W + b                                          of reward and next_obs - obs

Each network says how noisy the world is (``log_var``); how far the networks disagree says how little is known
there. Chua et al. 2018 (PETS, arXiv 1805.12114), Lakshminarayanan et al. 2017. The bounds of the log variance
are learned: outside of the data it would otherwise say anything.

What goes in and what comes out is standardised by running statistics, so that no task needs its own scale.
PETS and MBPO standardise inputs alone.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from reverie.dists import noise_like
from reverie.nets import Normalizer
from reverie.types import NotFinite


class Networks(nn.Module):
    """``layers`` times (linear, ``act``), then linear: M times over, each with weights of its own."""

    def __init__(
        self,
        members: int,
        inputs: int,
        units: int,
        layers: int,
        outputs: int,
        act: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        super().__init__()
        widths = [inputs] + [units] * layers + [outputs]
        self.weights = nn.ParameterList(torch.empty(members, a, b) for a, b in pairwise(widths))
        self.biases = nn.ParameterList(torch.zeros(members, 1, b) for b in widths[1:])
        for weight in self.weights:  # of PETS' and MBPO's code
            std = 0.5 * weight.shape[1] ** -0.5
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        self.act = act

    def forward(self, x: Float[Tensor, "M n I"]) -> Float[Tensor, "M n O"]:
        *hidden, (weight, bias) = zip(self.weights, self.biases, strict=True)
        for w, b in hidden:
            x = self.act(torch.baddbmm(b, x, w))
        return torch.baddbmm(bias, x, weight)

    def decay(self, scales: tuple[float, ...]) -> Tensor:
        """Sum over layers of scale * |W|^2 / 2; biases are left alone."""
        terms = [c * w.square().sum() / 2 for c, w in zip(scales, self.weights, strict=True)]
        return torch.stack(terms).sum()


class Prediction(NamedTuple):
    """Of M networks for n pairs each, in standardised units; the first entry of O is the reward."""

    mean: Float[Tensor, "M n O"]
    log_var: Float[Tensor, "M n O"]
    end: Float[Tensor, "M n"] | None  # logit of the episode ending there


class Imagination(NamedTuple):
    """One step on, in the world's units."""

    reward: Tensor
    obs: Tensor
    cont: Tensor  # probability of going on


class Dynamics(nn.Module):
    """``obs`` and ``actions`` are lengths of vectors. Without ``ends`` no episode ever ends; without ``noisy`` the
    models are deterministic, and their log variance is 0."""

    def __init__(
        self,
        obs: int,
        actions: int,
        members: int = 5,
        units: int = 200,
        layers: int = 4,
        act: Callable[[Tensor], Tensor] = F.silu,
        noisy: bool = True,
        ends: bool = False,
    ) -> None:
        super().__init__()
        self.members, self.noisy, self.ends = members, noisy, ends
        self.size = 1 + obs
        outputs = self.size * (1 + noisy) + ends
        self.net = Networks(members, obs + actions, units, layers, outputs, act)
        if noisy:
            self.max_log_var = nn.Parameter(torch.full((self.size,), 0.5))
            self.min_log_var = nn.Parameter(torch.full((self.size,), -10.0))
        self.inputs, self.outputs = Normalizer(obs + actions), Normalizer(self.size)

    def see(self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor) -> None:
        """Take these rows "n ..." into the statistics. Raises ``NotFinite`` before anything is changed."""
        inputs = torch.cat([obs, action], -1)
        outputs = torch.cat([reward[:, None], next_obs - obs], -1)
        for name, rows in (("inputs", inputs), ("outputs", outputs)):
            if rows.device.type == "cpu" and not torch.isfinite(rows).all():
                raise NotFinite(f"what would become dynamics.{name}.mean")
        self.inputs.see(inputs)
        self.outputs.see(outputs)

    def forget(self) -> None:
        """Let the next rows be the first that count in the statistics."""
        self.inputs.forget()
        self.outputs.forget()

    def forward(self, obs: Float[Tensor, "M n O"], action: Float[Tensor, "M n A"]) -> Prediction:
        out = self.net(self.inputs(torch.cat([obs, action], -1)))
        mean, end = out[..., : self.size], out[..., -1] if self.ends else None
        if not self.noisy:
            return Prediction(mean, torch.zeros_like(mean), end)
        return Prediction(mean, self.bounded(out[..., self.size : 2 * self.size]), end)

    def bounded(self, raw: Tensor) -> Tensor:
        """Softly between the learned bounds."""
        log_var = self.max_log_var - F.softplus(self.max_log_var - raw)
        return self.min_log_var + F.softplus(log_var - self.min_log_var)

    def spread(self) -> Tensor:
        """Sum of upper less lower bounds of the log variance, to be kept small."""
        return (self.max_log_var - self.min_log_var).sum()

    def target(self, obs: Tensor, reward: Tensor, next_obs: Tensor) -> Float[Tensor, "*B O"]:
        """What a prediction's mean should be."""
        return self.outputs(torch.cat([reward[..., None], next_obs - obs], -1))

    def imagine(
        self,
        obs: Float[Tensor, "M n O"],
        action: Float[Tensor, "M n A"],
        generator: Generator | None = None,
        temperature: float = 1.0,
    ) -> Imagination:
        """One step of every network on its own rows, drawn from what it predicts."""
        told = self(obs, action)
        out = told.mean
        if self.noisy:
            std = torch.exp(0.5 * told.log_var) * temperature**0.5
            out = torch.addcmul(out, std, noise_like(out, generator))
        out = self.outputs.back(out)
        cont = torch.ones_like(out[..., 0]) if told.end is None else torch.sigmoid(-told.end)
        return Imagination(out[..., 0], obs + out[..., 1:], cont)

    def folded(self) -> "Folded":
        """The same networks with all statistics inside of their weights: for imagining much without gradient."""
        return Folded(self)

    def imagine_by(
        self,
        member: Int[Tensor, "n"],
        obs: Float[Tensor, "n O"],
        action: Float[Tensor, "n A"],
        generator: Generator | None = None,
        temperature: float = 1.0,
    ) -> Imagination:
        """One step of n rows, each by the network whose number it carries."""
        rows = route(member, self.members)
        told = self.imagine(obs[rows.slots], action[rows.slots], generator, temperature)
        return Imagination(*(part[rows.member, rows.place] for part in told))


class Folded:
    """A ``Dynamics`` as it is now, for ``imagine`` alone.

    (x - mean) / std goes into the first layer, out * std + mean into the last: a step of a small network costs what
    its operations cost to start, and this halves their number.
    """

    @torch.no_grad()
    def __init__(self, dynamics: Dynamics):
        d, size = dynamics, dynamics.size
        self.noisy, self.ends, self.size, self.act = d.noisy, d.ends, size, d.net.act
        weights, biases = list(d.net.weights), list(d.net.biases)
        shift = -(d.inputs.mean.float() / d.inputs.std).expand(d.members, 1, -1)
        biases[0] = torch.baddbmm(biases[0], shift, weights[0])
        weights[0] = weights[0] / d.inputs.std[:, None]
        scale, center = torch.ones_like(biases[-1]), torch.zeros_like(biases[-1])
        scale[..., :size], center[..., :size] = d.outputs.std, d.outputs.mean.float()
        weights[-1], biases[-1] = weights[-1] * scale, biases[-1] * scale + center
        self.layers = list(zip(weights, biases, strict=True))
        if d.noisy:
            self.max, self.min, self.log_scale = d.max_log_var, d.min_log_var, 2 * d.outputs.std.log()

    @torch.no_grad()
    def imagine(
        self,
        obs: Float[Tensor, "M n O"],
        action: Float[Tensor, "M n A"],
        generator: Generator | None = None,
    ) -> Imagination:
        """One step of every network on its own rows, drawn from what it predicts."""
        x, size = torch.cat([obs, action], -1), self.size
        for weight, bias in self.layers[:-1]:
            x = self.act(torch.baddbmm(bias, x, weight))
        x = torch.baddbmm(self.layers[-1][1], x, self.layers[-1][0])
        out = x[..., :size]
        if self.noisy:
            log_var = self.max - F.softplus(self.max - x[..., size : 2 * size])
            log_var = F.softplus(log_var - self.min).add_(self.min + self.log_scale)
            out = torch.addcmul(out, log_var.mul_(0.5).exp_(), noise_like(out, generator))
        cont = torch.sigmoid(-x[..., -1]) if self.ends else x.new_ones(1).expand(x.shape[:2])
        return Imagination(out[..., 0], obs + out[..., 1:], cont)


class Route(NamedTuple):
    """Where each of n rows goes in a table of M lines, and the row in each place of it (0 where none is)."""

    slots: Int[Tensor, "M k"]
    member: Int[Tensor, "n"]
    place: Int[Tensor, "n"]


def route(member: Int[Tensor, "n"], members: int) -> Route:
    """The rows of each network side by side, in their order."""
    order = torch.argsort(member, stable=True)
    counts = torch.bincount(member, minlength=members)
    begins = counts.cumsum(0) - counts
    place = torch.empty_like(member)
    place[order] = torch.arange(len(member), device=member.device) - begins[member[order]]
    slots = member.new_zeros(members, int(counts.max()))
    slots[member, place] = torch.arange(len(member), device=member.device)
    return Route(slots, member, place)


def bootstrap(n: int, draws: int, members: int, generator: Generator | None = None) -> Int[Tensor, "M draws"]:
    """For each network ``draws`` of n rows, with replacement: with as many draws as rows, 63.2 % of them."""
    device = generator.device if generator is not None else "cpu"
    return torch.randint(n, (members, draws), generator=generator, device=device)


def gaussian_loss(told: Prediction, target: Float[Tensor, "M n O"]) -> Float[Tensor, "M"]:
    """(mean - y)^2 e^-log_var + log_var, averaged over rows and entries: twice the negative log-likelihood, less a
    constant. With log variance 0 it is the squared error."""
    error = (told.mean - target).square()
    return (error * torch.exp(-told.log_var) + told.log_var).mean((1, 2))
