"""Planners choose actions by search, and are blind: they know neither models nor environments.

A planner proposes ``candidates`` (action sequences), is told how good each one is, and proposes again. Who
tells it is a ``Rollout``, a function made by the agent with the start states closed inside it. Plans are made
for B streams at once. All streams meet the same random numbers, so no plan depends on its neighbours.

Candidates are laid out with time first, "H B N A", because a rollout walks along H: each step is then one
contiguous block, ``candidates[t].flatten(0, 1)`` costs nothing, and N neighbours share a stream. Their start
states are therefore ``start.repeat_interleave(N, 0)``, not ``start.repeat(N, 1)``.

Planners search without gradients but do not switch them off: that is for the agent's ``act`` to do.

``shooting.Shooting`` tries N sequences and takes the best · ``cem.CEM`` refits to the best few ·
``mppi.MPPI`` averages all, the better ones counting more.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot, pad

from reverie.types import ActionSpace, NotFinite, ReverieError

Candidates = Float[Tensor, "H B N A"]  # continuous: in [-1, 1]; discrete: one-hot groups side by side
Returns = Float[Tensor, "B N"]  # how good each candidate is; not a number counts as worst
Plan = Float[Tensor, "B H A"]  # what each stream should do; its first action is plan[:, 0]
Rollout = Callable[[Candidates], Returns]


@runtime_checkable
class Planner(Protocol):
    """What all planners share. Each is a frozen dataclass of its settings."""

    @property
    def horizon(self) -> int: ...

    def __call__(
        self,
        rollout: Rollout,
        batch: int,
        action_space: ActionSpace,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        guess: Plan | None = None,
    ) -> Plan:
        """Search for ``batch`` streams; ``guess`` is a plan to start from, such as the last one, shifted."""


def evaluate(rollout: Rollout, candidates: Candidates) -> Returns:
    """The returns of the candidates, with -inf for those that are no finite number: they are never chosen.

    Raises ``ReverieError`` if the rollout answers in another shape than "B N".
    """
    returns = rollout(candidates)
    if returns.shape != candidates.shape[1:3]:
        expected = tuple(candidates.shape[1:3])
        raise ReverieError(
            f"a rollout must give one return for each candidate, shape (B, N) = {expected}, "
            f"got {tuple(returns.shape)}"
        )
    return torch.where(returns.isfinite(), returns, -torch.inf)


def check_found(returns: Returns) -> None:
    """Raise ``NotFinite`` if some stream had not a single candidate with a finite return."""
    if not bool(returns.isfinite().any(1).all()):
        raise NotFinite("the return of every candidate of a plan")


def draw_normal(
    mean: Float[Tensor, "H B 1 A"],
    std: Float[Tensor, "H B 1 A"],
    noise: Float[Tensor, "H 1 N A"],
    generator: torch.Generator | None,
) -> Candidates:
    """Continuous candidates: normal, then clipped to [-1, 1]. ``noise`` is a buffer, filled anew."""
    candidates = torch.addcmul(mean, std, noise.normal_(generator=generator)).clamp_(-1, 1)
    return candidates.contiguous()  # free, unless mean or std came in another layout


def draw_bounded(
    mean: Float[Tensor, "H B 1 A"],
    std: Float[Tensor, "H B 1 A"],
    noise: Float[Tensor, "H 1 N A"],
    generator: torch.Generator | None,
) -> Candidates:
    """Continuous candidates within two std of the mean and within [-1, 1], by cutting the normal and capping its std
    at half of the way to the nearer bound. ``noise`` is a buffer, filled anew."""
    inside = math.erf(2**0.5)  # probability of lying within two std
    std = torch.minimum(std, torch.minimum(mean + 1, 1 - mean).clamp(min=0) / 2)
    normal = noise.uniform_(-inside, inside, generator=generator).erfinv_().mul_(2**0.5)
    return torch.addcmul(mean, std, normal).contiguous()


def draw_one_hot(
    probs: Float[Tensor, "H B 1 A"],
    groups: tuple[int, ...],
    noise: Float[Tensor, "H 1 N G"],
    generator: torch.Generator | None,
) -> Candidates:
    """Discrete candidates: one choice in each of G groups, by ``probs``. ``noise`` is a buffer, filled anew.

    The choices of a group lie end to end on [0, 1), each as long as it is probable; a point falls on one.
    """
    points = noise.uniform_(generator=generator).split(1, -1)
    parts = []
    for prob, point in zip(probs.split(groups, -1), points, strict=True):
        right = prob.cumsum(-1)
        right = right / right[..., -1:]  # ends at 1 exactly
        left = pad(right[..., :-1], (1, 0))
        parts.append((left <= point) & (point < right))
    return torch.cat(parts, -1).float()


def most_probable(probs: Float[Tensor, "*batch A"], groups: tuple[int, ...]) -> Float[Tensor, "*batch A"]:
    """One-hot groups at the largest entry of each group."""
    parts = [one_hot(prob.argmax(-1), prob.shape[-1]) for prob in probs.split(groups, -1)]
    return torch.cat(parts, -1).float()


def even(groups: tuple[int, ...], device: torch.device | str) -> Float[Tensor, "A"]:
    """Every choice of a group equally probable."""
    return torch.cat([torch.full((n,), 1 / n, device=device) for n in groups])


def check_settings(planner: Planner, **at_least_one: int) -> None:
    """Raise ``ReverieError`` for a setting that must be at least 1 and is not."""
    for name, value in {"horizon": planner.horizon, **at_least_one}.items():
        if value < 1:
            raise ReverieError(f"{type(planner).__name__} needs {name} >= 1, got {value}")
