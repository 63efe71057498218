"""An ensemble of one-step models as the ``World`` that a dream can be made of.

Each stream believes in one network of the ensemble, drawn when its episode begins, and keeps it (PETS' TS-inf):
many streams from one start spread as far as the networks disagree.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from reverie.models.dynamics import Dynamics
from reverie.types import ObsSpace


class Belief(NamedTuple):
    """What a stream knows or imagines."""

    obs: Tensor  # "n O", all vectors side by side
    reward: Tensor  # "n", expected with it
    cont: Tensor  # "n"
    member: Tensor  # "n" int64, the network it believes in


class DynamicsWorld:
    """``temperature`` may be set at any time; it widens or narrows what each network draws."""

    def __init__(
        self,
        dynamics: Dynamics,
        obs_space: ObsSpace,
        generator: Generator | None = None,
        temperature: float = 1.0,
    ):
        self.dynamics, self.generator, self.temperature = dynamics, generator, temperature
        self.keys = sorted(obs_space)
        self.sizes = [obs_space[key].shape[0] for key in self.keys]

    def initial(self, n: int) -> Belief:
        like = self.dynamics.inputs.mean
        zeros = torch.zeros(n, device=like.device)
        return Belief(
            torch.zeros(n, sum(self.sizes), device=like.device),
            zeros,
            zeros + 1,
            self.members(n, like.device),
        )

    def members(self, n: int, device: torch.device) -> Tensor:
        return torch.randint(self.dynamics.members, (n,), generator=self.generator, device=device)

    @torch.no_grad()
    def observe(
        self, obs: Mapping[str, Tensor], prev_action: Tensor, is_first: Tensor, carry: Belief
    ) -> Belief:
        """Seeing is believing: only the reward and the end are what the network expected on the way here."""
        told = self.imagine(carry, prev_action)
        member = torch.where(is_first, self.members(len(is_first), is_first.device), carry.member)
        reward = torch.where(is_first, 0.0, told.reward)
        cont = torch.where(is_first, 1.0, told.cont)
        return Belief(torch.cat([obs[key] for key in self.keys], -1), reward, cont, member)

    @torch.no_grad()
    def imagine(self, carry: Belief, action: Tensor) -> Belief:
        step = self.dynamics.imagine_by(carry.member, carry.obs, action, self.generator, self.temperature)
        return Belief(step.obs, step.reward, step.cont, carry.member)

    def features(self, carry: Belief) -> Tensor:
        return carry.obs

    def decode(self, carry: Belief) -> dict[str, Tensor]:
        return dict(zip(self.keys, carry.obs.split(self.sizes, -1), strict=True))

    def reward(self, carry: Belief) -> Tensor:
        return carry.reward

    def cont(self, carry: Belief) -> Tensor:
        return carry.cont

    def take(self, carry: Belief, index: Tensor) -> Belief:
        return Belief(*(part[index] for part in carry))

    def put(self, carry: Belief, index: Tensor, part: Belief) -> Belief:
        return Belief(*(whole.index_put((index,), new) for whole, new in zip(carry, part, strict=True)))
