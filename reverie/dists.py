"""Distributions that know their own loss, with the noise always passed in or drawn from a given generator.

Each has ``mode``, ``sample``, ``log_prob``, ``entropy`` and, where a loss needs it, ``kl`` and ``loss``. Values
are per element unless ``event`` says how many trailing dimensions are one event and are summed over. Samples
carry gradient (reparameterised, or straight-through for one-hot vectors): that is part of what a distribution
is. Where gradient must stop is decided in the agent files.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

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

        The component is the one in whose share of [0, total weight) a uniform number falls. Component by component:
        every step is over whole arrays, as fast where the entries lie side by side as a copy."""
        logits = self.logits.detach()
        weights = (logits - logits.amax(-1, keepdim=True)).div_(temperature).exp_().unbind(-1)
        shares = [weights[0]]
        for weight in weights[1:]:
            shares.append(shares[-1] + weight)
        at = torch.empty_like(shares[0], memory_format=torch.contiguous_format)
        at.uniform_(generator=generator).mul_(shares[-1])
        mean, *means = self.mean.unbind(-1)
        log_std, *log_stds = self.log_std.unbind(-1)
        for share, next_mean, next_log_std in zip(shares, means, log_stds, strict=False):
            beyond = at >= share
            mean, log_std = torch.where(beyond, next_mean, mean), torch.where(beyond, next_log_std, log_std)
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


class OneHot:
    """One-hot groups laid side by side: a categorical for each of ``groups``, summed over groups."""

    def __init__(self, logits: Float[Tensor, "*B A"], groups: tuple[int, ...] | None = None):
        self.groups = groups or (logits.shape[-1],)
        self.log_probs = torch.cat([part.log_softmax(-1) for part in logits.split(self.groups, -1)], -1)

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
