"""The cross-entropy method: draw candidates, keep the best few (``elites``), refit, and again.

::

    mean, std      N(0, 1) for every step and action entry, anew at every decision
    repeat I times:
        candidates ~ N(mean, std), clipped to [-1, 1]
        elites     = the K candidates with the largest returns
        mean, std  = those of the clipped elites
    plan           = mean: not the best candidate

PlaNet (Hafner et al. 2019), Algorithm 2, with the spread of its code: the population std, 1e-6 added to the
variance, where the paper prints a mean absolute deviation. PlaNet has no discrete actions; for them the
method keeps its shape: probabilities take the place of mean and std, the elites' frequencies are the refit.

With ``bounded`` the candidates are PETS' (Chua et al. 2018): normals cut at two std, and the std at half of the
way to the nearer bound, so that none needs clipping. They shrink faster, and a mean reaches a bound slowly.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.planners import (
    Candidates,
    Plan,
    Returns,
    Rollout,
    check_found,
    check_settings,
    draw_bounded,
    draw_normal,
    draw_one_hot,
    evaluate,
    even,
    most_probable,
)
from reverie.types import ActionSpace, ReverieError


@dataclass(frozen=True)
class CEM:
    """The cross-entropy method; the defaults are PlaNet's."""

    horizon: int = 12  # H
    iterations: int = 10  # I
    candidates: int = 1000  # J in the paper, our N
    elites: int = 100  # K
    std: float = 1.0  # of the first candidates (continuous)
    min_var: float = 1e-6  # added to the elites' variance (continuous), planet/control/planning.py
    momentum: float = 0.0  # share of the old mean and variance kept at a refit; PETS has 0.1
    smoothing: float = 0.01  # share of the probability spread evenly over a group at a refit (discrete)
    bounded: bool = False  # continuous: candidates reach to two std and no further, as in PETS
    enough: float = (
        0.0  # continuous: a stream searches no further once its variances are below; PETS has 0.001
    )

    def __post_init__(self) -> None:
        check_settings(self, iterations=self.iterations, candidates=self.candidates, elites=self.elites)
        if self.elites > self.candidates:
            raise ReverieError(f"CEM cannot keep {self.elites} elites of {self.candidates} candidates")

    def __call__(
        self,
        rollout: Rollout,
        batch: int,
        action_space: ActionSpace,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        guess: Plan | None = None,
    ) -> Plan:
        """The final mean (discrete: the most probable choices) of each stream.

        A ``guess`` is the first mean; if actions are discrete, it gets half of the first probability.
        """
        groups = action_space.groups
        shape = (self.horizon, batch, 1, action_space.size)
        numbers = len(groups) or action_space.size  # of noise, for one action
        noise = torch.empty(self.horizon, 1, self.candidates, numbers, device=device)
        start = None if guess is None else guess.transpose(0, 1).unsqueeze(2)  # H B 1 A

        if action_space.discrete:
            uniform = even(groups, device).expand(shape)
            probs = uniform if start is None else (start + uniform) / 2
            for _ in range(self.iterations):
                elites, returns = self._elites(rollout, draw_one_hot(probs, groups, noise, generator))
                refit = torch.lerp(elites.mean(2, keepdim=True), uniform, self.smoothing)
                probs = torch.lerp(refit, probs, self.momentum)
            plan = most_probable(probs, groups)
        else:
            mean = torch.zeros(shape, device=device) if start is None else start
            var = torch.full(shape, self.std**2, device=device)
            for _ in range(self.iterations):
                open_ = var.amax((0, 3), keepdim=True) >= self.enough  # 1 B 1 1: streams still searching
                if not bool(open_.any()):
                    break
                if self.bounded:
                    candidates = draw_bounded(mean, var.sqrt(), noise, generator)
                else:
                    candidates = draw_normal(mean, var.sqrt(), noise, generator)
                elites, returns = self._elites(rollout, candidates)
                elite_var, elite_mean = torch.var_mean(elites, 2, correction=0, keepdim=True)
                mean = torch.where(open_, torch.lerp(elite_mean, mean, self.momentum), mean)
                var = torch.where(open_, torch.lerp(elite_var + self.min_var, var, self.momentum), var)
            plan = mean

        check_found(returns)
        return plan.squeeze(2).transpose(0, 1)

    def _elites(self, rollout: Rollout, candidates: Candidates) -> tuple[Float[Tensor, "H B K A"], Returns]:
        returns = evaluate(rollout, candidates)
        best = returns.topk(self.elites, dim=1, sorted=False).indices  # B K
        index = best[None, :, :, None].expand(candidates.shape[0], -1, -1, candidates.shape[3])
        return candidates.gather(2, index), returns
