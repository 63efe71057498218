"""Random shooting: try N random action sequences, take the best. The simplest planner, and the yardstick."""

from dataclasses import dataclass

import torch

from reverie.planners import Plan, Rollout, check_found, check_settings, draw_one_hot, evaluate, even
from reverie.types import ActionSpace


@dataclass(frozen=True)
class Shooting:
    """Best of N sequences, uniform over the action space: [-1, 1], or each choice of a group alike.

    Nagabandi et al. 2018 (MBMF); the defaults are those of its half-cheetah.
    """

    horizon: int = 20  # H
    candidates: int = 1000  # K in the paper, our N

    def __post_init__(self) -> None:
        check_settings(self, candidates=self.candidates)

    def __call__(
        self,
        rollout: Rollout,
        batch: int,
        action_space: ActionSpace,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        guess: Plan | None = None,
    ) -> Plan:
        """The best sequence of each stream. A ``guess`` takes the place of the first candidate."""
        groups = action_space.groups
        numbers = len(groups) or action_space.size  # of noise, for one action
        noise = torch.empty(self.horizon, 1, self.candidates, numbers, device=device)
        if action_space.discrete:
            uniform = even(groups, device).expand(self.horizon, 1, 1, -1)
            candidates = draw_one_hot(uniform, groups, noise, generator)
        else:
            candidates = noise.uniform_(-1, 1, generator=generator)
        candidates = candidates.repeat(1, batch, 1, 1)
        if guess is not None:
            candidates[:, :, 0] = guess.transpose(0, 1)
        returns = evaluate(rollout, candidates)
        check_found(returns)
        best = returns.argmax(1)
        return candidates[:, torch.arange(batch, device=best.device), best].transpose(0, 1)
