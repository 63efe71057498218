"""Distributions that know their own loss, with the noise always passed in or drawn from a given generator.

Each has ``mode``, ``sample``, ``log_prob``, ``entropy`` and, where a loss needs it, ``kl`` and ``loss``. Values
are per element unless ``event`` says how many trailing dimensions are one event and are summed over. Samples
carry gradient (reparameterised, or straight-through for one-hot vectors): that is part of what a distribution
is. Where gradient must stop is decided in the agent files.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from reverie.ops.scalars import neighbours, symexp, symlog, symmetric_mean

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)  # 0.918939


def sum_last(x: Tensor, dims: int) -> Tensor:
    """Sum over the last ``dims`` dimensions; none for 0."""
    return x.flatten(-dims).sum(-1) if dims else x


def noise_like(x: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


class Normal:
    """Diagonal Gaussian. ``mean`` "*B ..." and ``std`` of the same shape; ``event`` trailing dims are summed."""

    def __init__(self, mean: Float[Tensor, "..."], std: Float[Tensor, "..."], event: int = 1):
        self.mean, self.std, self.event = mean, std, event

    @property
    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: Generator | None = None) -> Tensor:
        return self.mean + self.std * noise_like(self.mean, generator)

    def log_prob(self, value: Tensor) -> Tensor:
        z = (value - self.mean) / self.std
        return sum_last(-0.5 * z * z - self.std.log() - LOG_SQRT_2PI, self.event)

    def entropy(self) -> Tensor:
        return sum_last(self.std.log() + 0.5 + LOG_SQRT_2PI, self.event)

    def kl(self, other: "Normal") -> Tensor:
        """KL(self || other) = ln(s2/s1) + (s1^2 + (m1-m2)^2) / (2 s2^2) - 1/2, summed over the event."""
        ratio = self.std / other.std
        shift = (self.mean - other.mean) / other.std
        return sum_last(0.5 * (ratio * ratio + shift * shift - 1.0) - ratio.log(), self.event)


class UnitNormal:
    """Gaussian of standard deviation 1 around ``mean``: half the squared error, plus a constant, as a loss."""

    def __init__(self, mean: Float[Tensor, "..."], event: int = 0):
        self.mean, self.event = mean, event

    @property
    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, value: Tensor) -> Tensor:
        return -self.loss(value)

    def loss(self, target: Tensor) -> Tensor:
        """Negative log-likelihood 0.5 (x - mean)^2 + 0.9189 per entry, summed over the event."""
        entries = math.prod(target.shape[target.ndim - self.event :])
        squares = F.mse_loss(
            self.mean, target, reduction="none"
        )  # half the passes over a picture of x - mean
        return 0.5 * sum_last(squares, self.event) + entries * LOG_SQRT_2PI


class MSE:
    """A point; its loss is the squared error, summed over the event, without halves or constants."""

    def __init__(self, mean: Float[Tensor, "..."], event: int = 0):
        self.mean, self.event = mean, event

    @property
    def mode(self) -> Tensor:
        return self.mean

    def loss(self, target: Tensor) -> Tensor:
        return sum_last(F.mse_loss(self.mean, target, reduction="none"), self.event)


class SymlogMSE:
    """A point whose symlog is ``mean``; its loss is the squared error between symlogs, summed over the event."""

    def __init__(self, mean: Float[Tensor, "..."], event: int = 0):
        self.mean, self.event = mean, event

    @property
    def mode(self) -> Tensor:
        return symexp(self.mean)

    def loss(self, target: Tensor) -> Tensor:
        return MSE(self.mean, self.event).loss(symlog(target))


class TwoHot:
    """One number as weights of ``bins``: the mean is theirs, the loss a cross-entropy against the target's two-hot
    weights. ``bins`` "K" are antisymmetric (``ops.scalars.symexp_bins``). The mean carries no gradient."""

    def __init__(self, logits: Float[Tensor, "*B K"], bins: Float[Tensor, "K"]):
        self.logits, self.bins = logits, bins
        with torch.no_grad():  # what mean and loss both need, in as few passes as can be
            self.top = logits.amax(-1, keepdim=True)
            self.weights = (logits - self.top).exp_()
            self.total = self.weights.sum(-1, keepdim=True)

    def __getitem__(self, index: Any) -> "TwoHot":
        """Some of them, without another pass over the logits."""
        part = object.__new__(TwoHot)
        part.logits, part.bins = self.logits[index], self.bins
        part.top, part.weights, part.total = self.top[index], self.weights[index], self.total[index]
        return part

    @property
    def mean(self) -> Float[Tensor, "*B"]:
        return symmetric_mean(self.weights, self.bins) / self.total.squeeze(-1)

    @property
    def mode(self) -> Float[Tensor, "*B"]:
        return self.mean

    def loss(self, *targets: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """The sum of the cross-entropies against ``targets``, with one pass over the logits for all of them."""
        places, shares = [], []
        for target in targets:
            below, above = neighbours(target, self.bins)
            places += [below, below + 1]
            shares += [1 - above, above]
        index, share = torch.stack(places, -1), torch.stack(shares, -1)
        return _CrossEntropy.apply(
            self.logits, self.top, self.weights, self.total, index, share, len(targets)
        )


class _CrossEntropy(torch.autograd.Function):
    """Against ``targets`` targets that are zero but for a few classes: targets logsumexp(logits) - shares logits."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        top: Tensor,
        weights: Tensor,
        total: Tensor,
        index: Tensor,
        share: Tensor,
        targets: int,
    ) -> Tensor:
        ctx.save_for_backward(weights, total, index, share)
        ctx.targets = targets
        norm = (top + total.log()).squeeze(-1)
        return targets * norm - (logits.gather(-1, index) * share).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, total, index, share = ctx.saved_tensors
        out = weights * (ctx.targets * grad[..., None] / total)
        return out.scatter_add_(-1, index, -share * grad[..., None]), None, None, None, None, None, None


class Bernoulli:
    """Yes or no, from a logit. Targets may be soft (0.99): the loss is a cross-entropy, not an event's density."""

    def __init__(self, logit: Float[Tensor, "..."]):
        self.logit = logit

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logit)

    @property
    def mode(self) -> Tensor:
        return (self.logit > 0).to(self.logit.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return -self.loss(value)

    def loss(self, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.logit, target, reduction="none")


class Mixture:
    """Of Gaussians: every entry has ``K`` of its own, with weights of its own. ``logits``, ``mean`` and
    ``log_std`` are "... K"; a density is per entry, "..."."""

    def __init__(
        self, logits: Float[Tensor, "... K"], mean: Float[Tensor, "... K"], log_std: Float[Tensor, "... K"]
    ):
        self.logits, self.mean, self.log_std = logits, mean, log_std

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        z = (value[..., None] - self.mean) * torch.exp(-self.log_std)
        log_weights = self.logits.log_softmax(-1)
        return torch.logsumexp(log_weights - 0.5 * z * z - self.log_std, -1) - LOG_SQRT_2PI

    def loss(self, target: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -self.log_prob(target)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Float[Tensor, "..."]:
        """Weights raised to 1/temperature, standard deviations times its root; no gradient to the weights.

        The component is the one in whose share of [0, 1) a uniform number falls. Component by component:
        every step is over whole arrays, as fast where the entries lie side by side as a copy. A step of 0 or 1 along
        the way to the next component (``lerp``) is exact, and several times as fast as ``where``."""
        k = max(-2, -self.logits.ndim)  # along the last dimension a softmax of a few takes many times as long
        weights = (self.logits.detach() / temperature).movedim(-1, k).softmax(k).unbind(k)
        at = torch.rand(weights[0].shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        mean, *means = self.mean.unbind(-1)
        log_std, *log_stds = self.log_std.unbind(-1)
        share, beyond = torch.zeros_like(at), torch.empty_like(at)
        for weight, next_mean, next_log_std in zip(weights, means, log_stds, strict=False):
            share += weight
            torch.ge(at, share, out=beyond)
            mean, log_std = torch.lerp(mean, next_mean, beyond), torch.lerp(log_std, next_log_std, beyond)
        return mean + math.sqrt(temperature) * torch.exp(log_std) * noise_like(mean, generator)


class TanhNormal:
    """tanh of a Gaussian, summed over the last dimension (Dreamer V1's actor).

    The density is worked out from the value before the tanh: float32 tanh rounds to exactly 1 from 9.01 on,
    where an inverse tanh would be infinite.
    """

    def __init__(self, mean: Float[Tensor, "*B A"], std: Float[Tensor, "*B A"]):
        self.mean, self.std = mean, std

    def sample(self, generator: Generator | None = None) -> Tensor:
        return torch.tanh(self.mean + self.std * noise_like(self.mean, generator))

    def log_prob_of(self, raw: Float[Tensor, "... A"]) -> Float[Tensor, "..."]:
        """Log-density of tanh(raw): log N(raw) less log|d tanh / d raw| = 2 (ln 2 - x - softplus(-2x))."""
        z = (raw - self.mean) / self.std
        slope = 2.0 * (math.log(2.0) - raw - F.softplus(-2.0 * raw))
        return (-0.5 * z * z - self.std.log() - LOG_SQRT_2PI - slope).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        limit = 1.0 - 6e-8  # the largest float32 below 1, whose inverse tanh is 8.66
        return self.log_prob_of(torch.atanh(value.clamp(-limit, limit)))

    def entropy(self, generator: Generator | None = None) -> Float[Tensor, "*B"]:
        """Estimated from one draw, with its gradient: there is no closed form."""
        return -self.log_prob_of(self.mean + self.std * noise_like(self.mean, generator))

    @property
    def mode(self) -> Tensor:
        """tanh of the Gaussian's mean; not the mode of the density, which piles up at +-1 for a large std."""
        return torch.tanh(self.mean)

    def sample_mode(self, generator: Generator | None = None, samples: int = 100) -> Tensor:
        """The likeliest of ``samples`` draws, chosen for each batch entry by itself."""
        shape = (samples, *self.mean.shape)
        noise = torch.randn(shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        raw = self.mean + self.std * noise
        best = self.log_prob_of(raw).argmax(0)
        index = best[None, ..., None].expand(1, *self.mean.shape)
        return torch.tanh(raw.gather(0, index)[0])


class TruncatedNormal:
    """Gaussian cut off at -1 and 1 and made whole again, summed over the last dimension (Dreamer V2's actor).

    Samples stay ``margin`` inside the ends; the gradient passes as if they did not have to.
    """

    margin = 1e-6

    def __init__(self, mean: Float[Tensor, "*B A"], std: Float[Tensor, "*B A"]):
        self.mean, self.std = mean, std
        self.low, self.high = (-1.0 - mean) / std, (1.0 - mean) / std
        self.below, above = torch.special.ndtr(self.low), torch.special.ndtr(self.high)
        self.mass = above - self.below

    @property
    def mode(self) -> Tensor:
        return self.mean.clamp(-1.0, 1.0)

    def sample(self, generator: Generator | None = None) -> Tensor:
        u = torch.rand(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        place = (self.below + u * self.mass).clamp(1e-7, 1 - 1e-7)
        raw = self.mean + self.std * torch.special.ndtri(place)
        return raw + (raw.clamp(self.margin - 1, 1 - self.margin) - raw).detach()

    def log_prob(self, value: Tensor) -> Float[Tensor, "..."]:
        z = (value - self.mean) / self.std
        return (-0.5 * z * z - self.std.log() - LOG_SQRT_2PI - self.mass.log()).sum(-1)

    def entropy(self, generator: Generator | None = None) -> Float[Tensor, "*B"]:
        density = lambda z: torch.exp(-0.5 * z * z - LOG_SQRT_2PI)
        ends = (self.low * density(self.low) - self.high * density(self.high)) / (2 * self.mass)
        return (0.5 + LOG_SQRT_2PI + self.std.log() + self.mass.log() + ends).sum(-1)


class OneHot:
    """One-hot groups laid side by side: a categorical for each of ``groups``, summed over groups. A share ``unimix``
    of every group's probability is spread evenly."""

    def __init__(
        self, logits: Float[Tensor, "*B A"], groups: tuple[int, ...] | None = None, unimix: float = 0.0
    ):
        self.groups = groups or (logits.shape[-1],)
        parts = logits.split(self.groups, -1)
        logs = [unimixed(part, unimix).log() if unimix else part.log_softmax(-1) for part in parts]
        self.log_probs = torch.cat(logs, -1)

    @property
    def probs(self) -> Tensor:
        return self.log_probs.exp()

    @property
    def mode(self) -> Tensor:
        return self._one_hot(part.argmax(-1) for part in self.log_probs.split(self.groups, -1))

    def draw(self, generator: Generator | None = None) -> Tensor:
        """One-hot sample without gradient: the shortest of exponential waiting times with rates ``probs``.

        Unlike ``torch.multinomial`` it lets what is not finite through, to where gradients are checked.
        """
        picks = []
        for part in self.probs.detach().split(self.groups, -1):
            wait = torch.empty_like(part, memory_format=torch.contiguous_format)
            picks.append((part / wait.exponential_(generator=generator)).argmax(-1))
        return self._one_hot(picks)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Straight-through: one-hot in value, the gradient of the probabilities."""
        return self.draw(generator) + (self.probs - self.probs.detach())

    def score_sample(self, generator: Generator | None = None) -> Tensor:
        """Score function (DiCE): one-hot times exp(log p - stopped log p), 1 in value, grad log p in gradient."""
        hot = self.draw(generator)
        ratio = [
            h * (lp := (h * logp).sum(-1, keepdim=True)).sub(lp.detach()).exp()
            for h, logp in zip(hot.split(self.groups, -1), self.log_probs.split(self.groups, -1), strict=True)
        ]
        return torch.cat(ratio, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        return (value * self.log_probs).sum(-1)

    def entropy(self, generator: Generator | None = None) -> Tensor:
        return -(self.probs * self.log_probs).sum(-1)

    def _one_hot(self, picks) -> Tensor:
        hot = [F.one_hot(pick, k) for pick, k in zip(picks, self.groups, strict=True)]
        return torch.cat(hot, -1).to(self.log_probs.dtype)


def unimixed(logits: Float[Tensor, "*B K"], unimix: float) -> Float[Tensor, "*B K"]:
    """(1 - unimix) softmax(logits) + unimix / K: no class is ever out of the question."""
    return torch.softmax(logits, -1) * (1.0 - unimix) + unimix / logits.shape[-1]


class Categoricals:
    """S one-hot groups of K classes each, summed over groups; "*B S*K" as one vector. ``unimix`` as in OneHot."""

    def __init__(self, logits: Float[Tensor, "*B SK"], classes: int, unimix: float = 0.0):
        logits = logits.unflatten(-1, (-1, classes))
        self.log_probs = unimixed(logits, unimix).log() if unimix else logits.log_softmax(-1)

    @property
    def probs(self) -> Tensor:
        return self.log_probs.exp()

    @property
    def mode(self) -> Tensor:
        return F.one_hot(self.log_probs.argmax(-1), self.log_probs.shape[-1]).flatten(-2).to(self.log_probs)

    def log_prob(self, value: Tensor) -> Tensor:
        return (value.unflatten(-1, self.log_probs.shape[-2:]) * self.log_probs).sum((-2, -1))

    def entropy(self) -> Tensor:
        return -(self.probs * self.log_probs).sum((-2, -1))

    def kl(self, other: "Categoricals") -> Tensor:
        """KL(self || other), summed over the groups."""
        return (self.probs * (self.log_probs - other.log_probs)).sum((-2, -1))


FEW = 8  # classes that are worth a pass over all groups each


def draw_few(
    logits: Float[Tensor, "*B S K"], uniform: Float[Tensor, "*B S"], unimix: float = 0.0
) -> Float[Tensor, "*B S K"]:
    """``draw_one_hot`` from so few classes that each is better one long pass: over rows of two to eight numbers a
    softmax, a running sum and a comparison are several times slower. Without a gradient."""
    classes = logits.shape[-1]
    running = logits.reshape(-1, classes).t().clone(memory_format=torch.contiguous_format)
    running.sub_(running.amax(0)).exp_()
    if unimix:
        running.mul_(1.0 - unimix).add_(running.sum(0), alpha=unimix / ((1.0 - unimix) * classes))
    for k in range(1, classes):
        running[k] += running[k - 1]
    passed = (running > uniform.reshape(-1) * running[-1]).to(logits.dtype)
    passed[-1] = 1.0
    hot = logits.new_empty(logits.shape)
    out = hot.view(-1, classes).t()
    torch.sub(passed[1:], passed[:-1], out=out[1:])
    out[0] = passed[0]
    return hot


def draw_one_hot(weights: Float[Tensor, "*B S K"], uniform: Float[Tensor, "*B S"]) -> Float[Tensor, "*B S K"]:
    """One-hot samples by inversion: the class at which the running sum of ``weights``, which need not add up to 1,
    passes ``uniform`` in [0, 1) times their sum.

    One number a group suffices, and the result is one-hot whatever rounding does to the sum.
    """
    running = weights.cumsum(-1)
    passed = (running > uniform[..., None] * running[..., -1:]).to(weights.dtype)
    passed[..., -1] = 1.0
    passed[..., 1:] -= passed[..., :-1].clone()
    return passed
