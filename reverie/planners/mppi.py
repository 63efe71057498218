"""Model-predictive path integral control: every candidate counts, the better ones exponentially more.

::

    candidates ~ N(mean, std), clipped to [-1, 1]
    weight     = softmax(return / temperature)
    mean       = sum of weight * candidate

Where CEM narrows its search, MPPI keeps its std and trusts the weights: a small ``temperature`` listens to
the best few candidates, a large one to all. It has the unit of a return, so it must suit the task's rewards.

Williams et al. 2017, "Information theoretic MPC for model-based reinforcement learning", with returns alone
in the weights (no term for the cost of control) and the update done several times per decision. The paper's
own way is ``iterations=1`` with the last plan, shifted by one step, as ``guess``.
"""

from dataclasses import dataclass

import torch

from reverie.planners import (
    Plan,
    Rollout,
    check_found,
    check_settings,
    draw_normal,
    draw_one_hot,
    evaluate,
    even,
    most_probable,
)
from reverie.types import ActionSpace, ReverieError


@dataclass(frozen=True)
class MPPI:
    """Path integral control. Temperature and std belong to the task; the budget is that of ``CEM``."""

    horizon: int = 12
    iterations: int = 10
    candidates: int = 1000  # K in the paper, our N
    temperature: float = 1.0  # lambda
    std: float = 0.5  # the root of Sigma (continuous)
    smoothing: float = 0.01  # share of the probability spread evenly over a group at an update (discrete)

    def __post_init__(self) -> None:
        check_settings(self, iterations=self.iterations, candidates=self.candidates)
        if self.temperature <= 0:
            raise ReverieError(
                f"MPPI needs a temperature > 0, in the unit of a return, got {self.temperature}"
            )

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
        mean = torch.zeros(shape, device=device) if guess is None else guess.transpose(0, 1).unsqueeze(2)
        std = torch.full(shape, self.std, device=device)
        if action_space.discrete:  # the mean of one-hot candidates is a probability
            uniform = even(groups, device).expand(shape)
            mean = uniform if guess is None else (mean + uniform) / 2

        for _ in range(self.iterations):
            if action_space.discrete:
                candidates = draw_one_hot(mean, groups, noise, generator)
            else:
                candidates = draw_normal(mean, std, noise, generator)
            returns = evaluate(rollout, candidates)
            weight = (returns / self.temperature).softmax(1)  # B N
            mean = torch.einsum("bn,hbna->hba", weight, candidates).unsqueeze(2)
            if action_space.discrete:
                mean = torch.lerp(mean, uniform, self.smoothing)

        check_found(returns)
        plan = most_probable(mean, groups) if action_space.discrete else mean
        return plan.squeeze(2).transpose(0, 1)
