"""TD3: "Addressing Function Approximation Error in Actor-Critic Methods", Fujimoto et al. 2018 (arXiv 1802.09477).

The idea. An actor that climbs a critic finds the critic's errors, so Q is over-estimated and the policy follows
it. Three cures: two critics, of which the target believes the lower; an actor that moves only every other
update, when the critics have settled; and noise on the target's action, so that a narrow peak of Q counts for
little.

How it differs from its neighbours. It is ``ddpg.py`` with these three lines changed, and white noise in place of
a process. ``sac.py`` keeps the two critics and lets the policy itself be random.

Where the equations are::

    smoothed target, Sec. 5.3          TD3.target     mu'(s') + clip(N(0, sigma~), -c, c)
    clipped double Q, Eq. 10          TD3.target     y = r + gamma min(Q1', Q2')
    critics, Alg. 1                   critic_loss    both against the same y
    delayed actor, Sec. 5.2, Alg. 1   TD3.update     every d-th update, through Q1
    targets, Alg. 1                   optim.Follow   when the actor moves

Command: ``reverie train td3 --env Pendulum-v1 --preset laptop``.

Defaults are those of the paper's Table 3; the code released later has layers of 256, batches of 256 and learning
rates of 3e-4. Deviation: the clock ends an episode but not the world, as in the authors' code.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.data.transitions import Transitions, continuous, join_arrays, transitions, vectors
from reverie.nets import Ensemble
from reverie.optim import Follow, Optimizer, step
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace


@dataclass(frozen=True)
class Config:
    """The paper's values (App. C, Table 3)."""

    # Environment and schedule
    action_repeat: int = 1  # env steps per decision
    steps: int = 1_000_000  # env steps in all (Sec. 6.1)
    prefill: int = 10_000  # env steps of uniformly random actions; 1,000 where episodes end early (Sec. 6.1)
    train_every: int = 1  # env steps between two bursts of updates (Alg. 1)
    train_updates: int = 1  # updates in a burst (Alg. 1)
    batch_size: int = 100  # N

    # Learning
    units: tuple[int, ...] = (400, 300)  # widths of actor and critics
    discount: float = 0.99  # gamma, per decision
    tau: float = 0.005  # how far the targets go
    delay: int = 2  # d, updates of the critics for one of the actor
    target_noise: float = 0.2  # sigma~, on the target's action
    target_noise_clip: float = 0.5  # c
    exploration_noise: float = 0.1  # std of the Gaussian added to actions

    # Optimisers
    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    adam_eps: float = 1e-8


class Actor(nn.Module):
    """mu(s): ReLU layers, then tanh."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.net = Ensemble(inputs, config.units, actions)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(obs)[0])


class Critics(nn.Module):
    """Q1(s, a) and Q2(s, a), "2 N"."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.net = Ensemble(inputs + actions, config.units, 1, members=2)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([obs, action], -1))[..., 0]

    def climbed(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q1 alone, "N", with no gradient to its parameters: what the actor climbs."""
        return self.net.through(torch.cat([obs, action], -1), members=1)[0, :, 0]


class TD3:
    """The agent. Two optimisers own the actor and both critics; their targets are moved by averaging alone."""

    def __init__(
        self,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        config: Config = Config(),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        self.obs_space, self.act_space, self.config = obs_space, act_space, config
        self.device = torch.device(device)
        self.keys, inputs = vectors(obs_space, "td3")
        actions, c = continuous(act_space, "td3"), config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.actor = Actor(inputs, actions, c).to(self.device)
            self.critics = Critics(inputs, actions, c).to(self.device)
        self.target_actor, self.target_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.modules = nn.ModuleDict(
            {
                "actor": self.actor,
                "critics": self.critics,
                "target_actor": self.target_actor,
                "target_critics": self.target_critics,
            }
        )
        self.actor_opt = Optimizer({"actor": self.actor}, c.actor_lr, c.adam_eps)
        self.critic_opt = Optimizer({"critics": self.critics}, c.critic_lr, c.adam_eps)
        self.follow = Follow({self.target_actor: self.actor, self.target_critics: self.critics}, c.tau)
        self.updates = 0
        self.generators = {
            use: torch.Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train"))
        }

    # Acting

    def initial(self, n: int) -> tuple[()]:
        """Nothing is remembered."""
        return ()

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, np.ndarray], carry: tuple[()], mode: Mode
    ) -> tuple[np.ndarray, tuple[()]]:
        action = self.actor(join_arrays(obs, self.keys).to(self.device))
        if mode == "train":
            noise = torch.randn(action.shape, generator=self.generators["train"], device=self.device)
            action = (action + self.config.exploration_noise * noise).clamp(-1.0, 1.0)
        return action.cpu().numpy(), carry

    # Learning

    def sample(self, replay: Any, rng: np.random.Generator) -> Batch:
        return replay.transitions(self.config.batch_size, rng)

    def update(self, batch: Batch) -> Metrics:
        """Alg. 1: the critics' step; every d-th time the actor's too, and the targets follow."""
        t = transitions(batch.to(self.device), self.keys)
        value = self.critics(t.obs, t.action)
        loss = critic_loss(value, self.target(t))
        critic = self.critic_opt.gradient(loss)
        step(critic)
        self.updates += 1
        metrics = {
            "loss/critic": loss.detach(),
            "grad/critic": critic.norm,
            "critic/value": value.detach().mean(),
        }
        if self.updates % self.config.delay:
            return metrics
        climb = actor_loss(self.critics.climbed(t.obs, self.actor(t.obs)))
        actor = self.actor_opt.gradient(climb)
        step(actor)
        self.follow()
        return {**metrics, "loss/actor": climb.detach(), "grad/actor": actor.norm}

    @torch.no_grad()
    def target(self, t: Transitions) -> Tensor:
        """Eq. 10 and Sec. 5.3, "N": y = r + gamma min_i Qi'(s', a~), where the world goes on."""
        c = self.config
        noise = torch.randn(t.action.shape, generator=self.generators["learn"], device=self.device)
        noise = (c.target_noise * noise).clamp(-c.target_noise_clip, c.target_noise_clip)
        action = (self.target_actor(t.next_obs) + noise).clamp(-1.0, 1.0)
        after = self.target_critics(t.next_obs, action).amin(0)
        return t.reward + c.discount * t.cont * after

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Nothing: there is no world to look into."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "actor_opt": self.actor_opt.state_dict(),
            "critic_opt": self.critic_opt.state_dict(),
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        for name in ("actor_opt", "critic_opt"):
            getattr(self, name).load_state_dict(state[name])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])
        self.updates = state["updates"]


# The losses, in the paper's order.


def critic_loss(value: Tensor, target: Tensor) -> Tensor:
    """Alg. 1: the mean squared errors of Q1 and Q2, "2 N", against one target "N", added up."""
    return len(value) * F.mse_loss(value, target.expand_as(value))


def actor_loss(value: Tensor) -> Tensor:
    """Alg. 1: minus the mean of Q1(s, mu(s)) "N"."""
    return -value.mean()
