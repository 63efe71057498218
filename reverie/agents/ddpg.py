"""DDPG: "Continuous Control with Deep Reinforcement Learning", Lillicrap et al. 2016 (arXiv 1509.02971).

The idea. Q-learning needs the best action at every update; where actions are numbers, let a second network, the
actor, know it. The critic learns Q from stored transitions, the actor climbs the critic by the chain rule, and
slow copies of both make the targets stand still.

How it differs from its neighbours. There is no model here: this is what TDM, HER and MVE each replace a line
of, and what they are measured against. ``td3.py`` mends its over-estimation, ``sac.py`` its exploration.

Where the equations are::

    target, Alg. 1        DDPG.target     y = r + gamma Q'(s', mu'(s'))
    critic, Eq. 4         critic_loss     the mean squared distance to y
    actor, Eq. 6          actor_loss      climbs Q(s, mu(s)); its gradient is the chain rule's
    targets, Alg. 1       optim.Follow    theta' <- tau theta + (1 - tau) theta'
    noise, Sec. 3, 7      DDPG.explore    an Ornstein-Uhlenbeck process of unit time step

Command: ``reverie train ddpg --env Pendulum-v1 --preset laptop``.

Deviations. No batch normalisation. The action enters the critic at its first layer, not at its second. Layers
start fan-in uniform as in the paper, biases of hidden layers too. The clock ends an episode but not the world: only
``is_terminal`` stops the sum of rewards.
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
    """The paper's values for low-dimensional observations (Sec. 7), unless a line says otherwise."""

    # Environment and schedule
    action_repeat: int = 1  # env steps per decision
    steps: int = 2_500_000  # env steps in all (Sec. 4)
    prefill: int = 1_000  # env steps of uniformly random actions; ours, the paper names none
    train_every: int = 1  # env steps between two bursts of updates (Alg. 1)
    train_updates: int = 1  # updates in a burst (Alg. 1)
    batch_size: int = 64  # N

    # Learning
    units: tuple[int, ...] = (400, 300)  # widths of actor and critic
    last_init: float = 3e-3  # the last layers start uniform in +-this
    discount: float = 0.99  # gamma, per decision
    tau: float = 0.001  # how far the targets go at every update
    noise_theta: float = 0.15  # of the Ornstein-Uhlenbeck process
    noise_sigma: float = 0.2

    # Optimisers
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    critic_decay: float = 1e-2  # L2 weight decay of Q
    adam_eps: float = 1e-8


class Actor(nn.Module):
    """mu(s): ReLU layers, then tanh."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.net = Ensemble(inputs, config.units, actions, last=config.last_init)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(obs)[0])


class Critic(nn.Module):
    """Q(s, a), "N"."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.net = Ensemble(inputs + actions, config.units, 1, last=config.last_init)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([obs, action], -1))[0, :, 0]

    def climbed(self, obs: Tensor, action: Tensor) -> Tensor:
        """The same, with no gradient to the parameters: for the actor."""
        return self.net.through(torch.cat([obs, action], -1))[0, :, 0]


class DDPG:
    """The agent. Two optimisers own actor and critic; their targets are moved by averaging alone."""

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
        self.keys, inputs = vectors(obs_space, "ddpg")
        actions, c = continuous(act_space, "ddpg"), config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.actor = Actor(inputs, actions, c).to(self.device)
            self.critic = Critic(inputs, actions, c).to(self.device)
        self.target_actor, self.target_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.modules = nn.ModuleDict(
            {
                "actor": self.actor,
                "critic": self.critic,
                "target_actor": self.target_actor,
                "target_critic": self.target_critic,
            }
        )
        self.actor_opt = Optimizer({"actor": self.actor}, c.actor_lr, c.adam_eps)
        self.critic_opt = Optimizer({"critic": self.critic}, c.critic_lr, c.adam_eps, decay=c.critic_decay)
        self.follow = Follow({self.target_actor: self.actor, self.target_critic: self.critic}, c.tau)
        self.generators = {"train": torch.Generator(self.device).manual_seed(1_000_003 * seed)}

    # Acting

    def initial(self, n: int) -> Tensor:
        """The noise of ``n`` streams, "n A"."""
        return torch.zeros(n, self.act_space.size, device=self.device)

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray], carry: Tensor, mode: Mode) -> tuple[np.ndarray, Tensor]:
        action = self.actor(join_arrays(obs, self.keys).to(self.device))
        if mode == "train":
            action, carry = self.explore(action, carry, obs["is_first"])
        return action.cpu().numpy(), carry

    def explore(self, action: Tensor, noise: Tensor, is_first: np.ndarray) -> tuple[Tensor, Tensor]:
        """x <- x - theta x + sigma N(0, 1), from 0 at an episode's start, added to the action and clipped."""
        c = self.config
        noise = noise * torch.from_numpy(~is_first).to(self.device)[:, None]
        fresh = torch.randn(noise.shape, generator=self.generators["train"], device=self.device)
        noise = (1.0 - c.noise_theta) * noise + c.noise_sigma * fresh
        return (action + noise).clamp(-1.0, 1.0), noise

    # Learning

    def sample(self, replay: Any, rng: np.random.Generator) -> Batch:
        return replay.transitions(self.config.batch_size, rng)

    def update(self, batch: Batch) -> Metrics:
        """Alg. 1: the critic's step, then the actor's by the critic that has moved, then the targets follow."""
        t = transitions(batch.to(self.device), self.keys)
        value = self.critic(t.obs, t.action)
        loss = critic_loss(value, self.target(t))
        critic = self.critic_opt.gradient(loss)
        step(critic)
        climb = actor_loss(self.critic.climbed(t.obs, self.actor(t.obs)))
        actor = self.actor_opt.gradient(climb)
        step(actor)
        self.follow()
        return {
            "loss/critic": loss.detach(),
            "loss/actor": climb.detach(),
            "grad/critic": critic.norm,
            "grad/actor": actor.norm,
            "critic/value": value.detach().mean(),
        }

    @torch.no_grad()
    def target(self, t: Transitions) -> Tensor:
        """y = r + gamma Q'(s', mu'(s')), "N"; r alone where the world ended, not where the clock did."""
        after = self.target_critic(t.next_obs, self.target_actor(t.next_obs))
        return t.reward + self.config.discount * t.cont * after

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Nothing: there is no world to look into."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "actor_opt": self.actor_opt.state_dict(),
            "critic_opt": self.critic_opt.state_dict(),
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        for name in ("actor_opt", "critic_opt"):
            getattr(self, name).load_state_dict(state[name])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])


# The losses, in the paper's order.


def critic_loss(value: Tensor, target: Tensor) -> Tensor:
    """Eq. 4: mean squared error of Q(s, a) "N" against targets that carry no gradient."""
    return F.mse_loss(value, target)


def actor_loss(value: Tensor) -> Tensor:
    """Eq. 6: minus the mean of Q(s, mu(s)) "N"; its gradient runs through the critic into the actor."""
    return -value.mean()
