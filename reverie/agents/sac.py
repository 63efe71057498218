"""SAC: "Soft Actor-Critic Algorithms and Applications", Haarnoja et al. 2018 (arXiv 1812.05905).

The idea. Ask for reward and for entropy: the best policy is then a random one, as random as the task allows, so
exploration is part of what is learned. How much entropy is worth, the temperature alpha, is tuned so that the
policy keeps a given amount of it.

How it differs from its neighbours. Like ``td3.py`` it believes the lower of two critics; its actor is a squashed
Gaussian that it samples, so it needs neither added noise nor a target actor. MBPO (``mbpo.py``) is this agent fed
by a model.

Where the equations are::

    soft value, Eq. 3       SAC.target         V(s') = min_i Qi'(s', a') - alpha log pi(a' | s')
    critics, Eq. 5          critic_loss        half the mean squared distance to r + gamma V(s')
    actor, Eq. 9            actor_loss         alpha log pi(a | s) - min_i Qi(s, a), a reparameterised
    temperature, Eq. 18     temperature_loss   of log alpha; alpha rises while the entropy is below its target
    squashing, App. C       dists.TanhNormal   log pi of tanh(u)

Command: ``reverie train sac --env Pendulum-v1 --preset laptop``.

Deviations. As in the authors' later code, log alpha is what is learned, its loss is linear in log alpha (Eq. 18 is
linear in alpha), and the actor's log standard deviation is clipped to [-20, 2]. The clock ends an episode but not
the world.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.data.transitions import Transitions, continuous, join_arrays, transitions, vectors
from reverie.dists import TanhNormal, noise_like
from reverie.nets import Ensemble
from reverie.optim import Follow, Optimizer, step
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace


@dataclass(frozen=True)
class Config:
    """The paper's values (App. D, Table 1), unless a line says otherwise."""

    # Environment and schedule
    action_repeat: int = 1  # env steps per decision
    steps: int = 3_000_000  # env steps in all (Fig. 1: HalfCheetah)
    prefill: int = 1_000  # env steps of uniformly random actions; the authors' code
    train_every: int = 1  # env steps between two bursts of updates
    train_updates: int = 1  # updates in a burst ("gradient steps")
    batch_size: int = 256

    # Learning
    units: tuple[int, ...] = (256, 256)  # widths of actor and critics
    discount: float = 0.99  # gamma, per decision
    tau: float = 0.005  # how far the critics' targets go at every update
    entropy: float | None = None  # H, what the policy keeps, in nats; None: -dim(A)
    init_alpha: float = 1.0  # the temperature before training; the authors' code
    learn_alpha: bool = True
    min_log_std: float = -20.0
    max_log_std: float = 2.0

    # Optimisers
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    alpha_lr: float = 3e-4
    adam_eps: float = 1e-8


class Actor(nn.Module):
    """pi(a | s): a Gaussian squashed by tanh, its standard deviation learned per state."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.config = config
        self.net = Ensemble(inputs, config.units, 2 * actions)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the tanh, "N A" each."""
        mean, log_std = self.net(obs)[0].chunk(2, -1)
        return mean, log_std.clamp(self.config.min_log_std, self.config.max_log_std)

    def sample(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """An action "N A" and its log-density "N", with gradient (App. C)."""
        mean, log_std = self(obs)
        dist = TanhNormal(mean, log_std.exp())
        raw = mean + dist.std * noise_like(mean, generator)
        return torch.tanh(raw), dist.log_prob_of(raw)


class Critics(nn.Module):
    """Q1(s, a) and Q2(s, a), "2 N"."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.net = Ensemble(inputs + actions, config.units, 1, members=2)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([obs, action], -1))[..., 0]

    def climbed(self, obs: Tensor, action: Tensor) -> Tensor:
        """The same, with no gradient to the parameters: for the actor."""
        return self.net.through(torch.cat([obs, action], -1))[..., 0]


class Temperature(nn.Module):
    """log alpha."""

    def __init__(self, alpha: float):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(alpha)))


class SAC:
    """The agent. Three optimisers own the actor, both critics and the temperature."""

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
        self.keys, inputs = vectors(obs_space, "sac")
        actions, c = continuous(act_space, "sac"), config
        self.entropy = -float(actions) if c.entropy is None else c.entropy
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.actor = Actor(inputs, actions, c).to(self.device)
            self.critics = Critics(inputs, actions, c).to(self.device)
            self.temperature = Temperature(c.init_alpha).to(self.device)
        self.target_critics = copy.deepcopy(self.critics)
        self.modules = nn.ModuleDict(
            {
                "actor": self.actor,
                "critics": self.critics,
                "target_critics": self.target_critics,
                "temperature": self.temperature,
            }
        )
        self.actor_opt = Optimizer({"actor": self.actor}, c.actor_lr, c.adam_eps)
        self.critic_opt = Optimizer({"critics": self.critics}, c.critic_lr, c.adam_eps)
        self.alpha_opt = Optimizer({"temperature": self.temperature}, c.alpha_lr, c.adam_eps)
        self.follow = Follow({self.target_critics: self.critics}, c.tau)
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
        """A sample of the policy, or in eval mode the tanh of its mean."""
        mean, log_std = self.actor(join_arrays(obs, self.keys).to(self.device))
        if mode == "train":
            mean = mean + log_std.exp() * noise_like(mean, self.generators["train"])
        return torch.tanh(mean).cpu().numpy(), carry

    # Learning

    def sample(self, replay: Any, rng: np.random.Generator) -> Batch:
        return replay.transitions(self.config.batch_size, rng)

    def update(self, batch: Batch) -> Metrics:
        """Alg. 1: the temperature's and the critics' steps, then the actor's by the critics that have moved."""
        t, generator = transitions(batch.to(self.device), self.keys), self.generators["learn"]
        action, log_prob = self.actor.sample(t.obs, generator)
        alpha = self.temperature.log.detach().exp()
        value = self.critics(t.obs, t.action)
        loss = critic_loss(value, self.target(t, alpha))
        critic = self.critic_opt.gradient(loss)
        if self.config.learn_alpha:
            tuned = temperature_loss(self.temperature.log, log_prob.detach(), self.entropy)
            step(critic, self.alpha_opt.gradient(tuned))
        else:
            step(critic)
        climb = actor_loss(log_prob, self.critics.climbed(t.obs, action), alpha)
        actor = self.actor_opt.gradient(climb)
        step(actor)
        self.follow()
        return {
            "loss/critic": loss.detach(),
            "loss/actor": climb.detach(),
            "grad/critic": critic.norm,
            "grad/actor": actor.norm,
            "critic/value": value.detach().mean(),
            "actor/entropy": -log_prob.detach().mean(),
            "actor/alpha": alpha,
        }

    @torch.no_grad()
    def target(self, t: Transitions, alpha: Tensor) -> Tensor:
        """Eq. 2 and 3, "N": y = r + gamma (min_i Qi'(s', a') - alpha log pi(a' | s')), where the world goes on."""
        action, log_prob = self.actor.sample(t.next_obs, self.generators["learn"])
        after = self.target_critics(t.next_obs, action).amin(0) - alpha * log_prob
        return t.reward + self.config.discount * t.cont * after

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Nothing: there is no world to look into."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "actor_opt": self.actor_opt.state_dict(),
            "critic_opt": self.critic_opt.state_dict(),
            "alpha_opt": self.alpha_opt.state_dict(),
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        for name in ("actor_opt", "critic_opt", "alpha_opt"):
            getattr(self, name).load_state_dict(state[name])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])


# The losses, in the paper's order.


def critic_loss(value: Tensor, target: Tensor) -> Tensor:
    """Eq. 5: half the mean squared errors of Q1 and Q2, "2 N", against one target "N", added up."""
    return 0.5 * len(value) * F.mse_loss(value, target.expand_as(value))


def actor_loss(log_prob: Tensor, value: Tensor, alpha: Tensor) -> Tensor:
    """Eq. 9: alpha log pi(a | s) "N" less the lower of Q1(s, a), Q2(s, a) "2 N", averaged."""
    return (alpha * log_prob - value.amin(0)).mean()


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, entropy: float) -> Tensor:
    """Eq. 18, in log alpha: its gradient is the policy's entropy less the one it should keep."""
    return -log_alpha * (log_prob + entropy).mean()
