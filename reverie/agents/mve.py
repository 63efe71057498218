"""MVE: "Model-Based Value Expansion for Efficient Model-Free RL", Feinberg et al. 2018 (arXiv 1803.00101), and as a
preset STEVE: "Sample-Efficient RL with Stochastic Ensemble Value Expansion", Buckman et al. 2018 (arXiv 1807.01675).

The idea. A critic's target looks one step ahead and then trusts the critic. A model can look H steps ahead first, so
that errors of the critic count gamma^H times less; errors of the model count more. MVE fixes H. STEVE imagines with an
ensemble to every depth up to H and weights the depths by how well the ensemble agrees.

How it differs from its neighbours. Actor, critic and their slow copies are ``ddpg.py``'s; only the target is another,
and the states it is for: where the critic is asked about imagined states, it has to be taught on them (the TD-k
trick). ``mbpo.py`` uses its model to make data, MVE to make targets.

Where the equations are::

    value expansion, Sec. 3          expansion       y_t = r_t + gamma y_{t+1}, from Q' at the end of the dream
    TD-k trick, Sec. 3.1             td_k_loss       every imagined state is regressed on its own expansion
    actor                            actor_loss      on real states alone
    STEVE, Eq. 9-11                  steve_target    inverse-variance weights over depths
    dynamics, App.                   model_loss      next_obs - obs, and the reward

Command: ``reverie train mve --env Pendulum-v1 --preset laptop``.

Deviations. The model is taught alone when learning begins, the code does it over the last 5,000 random env steps. The
reward is learned beside the dynamics, where MVE is given it and STEVE has networks of their own for
it: so a candidate of STEVE has M x Q values, each network rolling out with its own reward. Exploration is Gaussian,
not of parameters; the tail of an imagined state t is discounted by gamma^(H-t), as in the
authors' code (the paper prints gamma^H). STEVE's targets are averaged, not copied.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.data.transitions import Transitions, continuous, join_arrays, transitions, vectors
from reverie.models.dynamics import Dynamics, bootstrap, gaussian_loss
from reverie.models.dynamics_world import DynamicsWorld
from reverie.nets import Ensemble
from reverie.optim import Follow, Optimizer, step
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace, ReverieError


@dataclass(frozen=True)
class Config:
    """The authors' values for the half-cheetah, of the text and its code."""

    # Environment and schedule
    action_repeat: int = 1
    steps: int = 1_500_000  # env steps in all
    prefill: int = 10_000  # env steps of uniformly random actions
    pretrain: int = (
        20_000  # updates of the model alone before the first burst: the code's 5,000 env steps of them
    )
    train_every: int = 1
    train_updates: int = 4  # of the model, and of actor and critic
    model_batch: int = 512
    batch_size: int = 64  # of the same rows, for actor and critic

    # World model
    members: int = 1  # M; STEVE has 4
    model_units: int = 128
    model_layers: int = 8
    ends: bool = False  # learn when episodes end; STEVE does

    # Learning
    horizon: int = 10  # H; 0 is DDPG
    expand: Literal["td_k", "last", "steve"] = "td_k"  # last: the real state's target alone, an ablation
    critics: int = 1  # Q functions; STEVE has 4
    units: tuple[int, ...] = (64, 64)
    norm: bool = True  # normalise the layers of actor and critic
    discount: float = 0.99  # gamma, per decision
    tau: float = 1e-2  # how far the targets go at every update
    noise: float = 0.2  # std of the Gaussian added while training

    # Optimisers
    model_lr: float = 1e-3
    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    adam_eps: float = 1e-8


class Actor(nn.Module):
    """mu(s): ReLU layers, then tanh."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.net = Ensemble(inputs, config.units, actions, last=3e-3, norm=config.norm)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(obs)[0])


class Critics(nn.Module):
    """Q functions, "Q N"."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.net = Ensemble(inputs + actions, config.units, 1, config.critics, last=3e-3, norm=config.norm)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([obs, action], -1))[..., 0]

    def climbed(self, obs: Tensor, action: Tensor) -> Tensor:
        """The same, with no gradient to the parameters: for the actor."""
        return self.net.through(torch.cat([obs, action], -1))[..., 0]


class Dream(NamedTuple):
    """What each of M networks imagines from N real next states; no gradient."""

    obs: Tensor  # "H+1 M N O": s_0, the real one, .. s_H
    action: Tensor  # "H+1 M N A", the target actor's
    reward: Tensor  # "H M N"
    cont: Tensor  # "H M N"


class MVE:
    """The agent. Three optimisers own the dynamics, the actor and the critics."""

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
        self.keys, inputs = vectors(obs_space, "mve")
        actions, c = continuous(act_space, "mve"), config
        if c.expand != "steve" and (c.members > 1 or c.critics > 1):
            raise ReverieError(
                f"--expand {c.expand} believes in one network and one critic, got --members {c.members} and --critics "
                f"{c.critics}; several are for --expand steve"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.dynamics = Dynamics(
                inputs, actions, c.members, c.model_units, c.model_layers, F.relu, noisy=False, ends=c.ends
            ).to(self.device)
            self.actor = Actor(inputs, actions, c).to(self.device)
            self.critics = Critics(inputs, actions, c).to(self.device)
        self.target_actor, self.target_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.modules = nn.ModuleDict(
            {
                "dynamics": self.dynamics,
                "actor": self.actor,
                "critics": self.critics,
                "target_actor": self.target_actor,
                "target_critics": self.target_critics,
            }
        )
        self.model_opt = Optimizer({"dynamics": self.dynamics}, c.model_lr, c.adam_eps)
        self.actor_opt = Optimizer({"actor": self.actor}, c.actor_lr, c.adam_eps)
        self.critic_opt = Optimizer({"critics": self.critics}, c.critic_lr, c.adam_eps)
        self.follow = Follow({self.target_actor: self.actor, self.target_critics: self.critics}, c.tau)
        self.updates = 0
        self.generators = {
            use: torch.Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train", "dream"))
        }

    @property
    def world(self) -> DynamicsWorld:
        return DynamicsWorld(self.dynamics, self.obs_space, self.generators["dream"])

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
            action = (action + self.config.noise * noise).clamp(-1.0, 1.0)
        return action.cpu().numpy(), carry

    # Learning

    def sample(self, replay: Any, rng: np.random.Generator) -> Batch:
        return replay.transitions(self.config.model_batch, rng)

    def update(self, batch: Batch) -> Metrics:
        """The model's step on all rows; then, once it is pretrained, the critic's and the actor's on the first of them.

        Targets of a model that knows nothing yet would drive the actor into its corners, where it stays."""
        c = self.config
        rows = transitions(batch.to(self.device), self.keys)
        self.dynamics.see(rows.obs, rows.action, rows.reward, rows.next_obs)
        fit, ends = model_loss(self.dynamics, rows, self.generators["learn"])
        model = self.model_opt.gradient(fit + ends)
        step(model)
        self.updates += 1
        if self.updates <= c.pretrain:
            return {"loss/model": fit.detach(), "grad/model": model.norm}

        t = Transitions(*(part[: c.batch_size] for part in rows))
        dream = self.imagine(t.next_obs)
        if c.expand == "steve":
            target, weight = steve_target(self.candidates(t, dream))
            value = self.critics(t.obs, t.action)
            loss = c.critics * F.mse_loss(value, target.expand_as(value))
        else:
            targets = self.targets(t, dream)
            value = self.critics(t.obs, t.action)
            loss = td_k_loss(self.values(value, dream), targets, t.cont)
        critic = self.critic_opt.gradient(loss)
        step(critic)
        climb = actor_loss(self.critics.climbed(t.obs, self.actor(t.obs)))
        actor = self.actor_opt.gradient(climb)
        step(actor)
        self.follow()
        metrics = {
            "loss/model": fit.detach(),
            "loss/critic": loss.detach(),
            "loss/actor": climb.detach(),
            "grad/model": model.norm,
            "grad/critic": critic.norm,
            "grad/actor": actor.norm,
            "critic/value": value.detach().mean(),
        }
        if c.expand == "steve":
            metrics["steve/depth"] = (weight * torch.arange(len(weight))[:, None].to(weight)).sum(0).mean()
        return metrics

    @torch.no_grad()
    def imagine(self, start: Tensor) -> Dream:
        """H steps of each network from the real next states, by the target actor."""
        members = self.config.members
        obs = start.expand(members, *start.shape)
        action = self.act_slowly(obs)
        rows: tuple[list[Tensor], ...] = ([obs], [action], [], [])
        for _ in range(self.config.horizon):
            told = self.dynamics.imagine(obs, action)
            obs, action = told.obs, self.act_slowly(told.obs)
            for column, part in zip(rows, (obs, action, told.reward, told.cont), strict=True):
                column.append(part)
        nothing = start.new_zeros(0, members, len(start))
        return Dream(*(torch.stack(column) if column else nothing for column in rows))

    def act_slowly(self, obs: Tensor) -> Tensor:
        """The target actor's actions "M N A"."""
        return self.target_actor(obs.flatten(0, 1)).view(*obs.shape[:2], -1)

    @torch.no_grad()
    def targets(self, t: Transitions, dream: Dream) -> Tensor:
        """y_{-1} of the real transition, y_0 .. y_{H-1} of the imagined ones, "H+1 N"."""
        (last,) = self.target_critics(dream.obs[-1, 0], dream.action[-1, 0])
        reward, cont = dream.reward[:, 0], dream.cont[:, 0]
        return expansion(t.reward, t.cont, reward, cont, last, self.config.discount)

    def values(self, real: Tensor, dream: Dream) -> Tensor:
        """Q of the real pairs, and with the TD-k trick of the imagined ones before the last, "H+1 Q N"."""
        h = self.config.horizon if self.config.expand == "td_k" else 0
        if h == 0:
            return real[None]
        obs, action = dream.obs[:h, 0], dream.action[:h, 0]
        told = self.critics(obs.flatten(0, 1), action.flatten(0, 1))
        return torch.cat([real[None], told.unflatten(1, (h, -1)).transpose(0, 1)])

    @torch.no_grad()
    def candidates(self, t: Transitions, dream: Dream) -> Tensor:
        """STEVE's T_0 .. T_H: the real reward, i imagined ones, then each Q'; "H+1 M*Q N"."""
        flat = dream.obs.flatten(0, 2), dream.action.flatten(0, 2)
        after = self.target_critics(*flat).unflatten(1, dream.obs.shape[:3])  # Q H+1 M N
        told, discount = [], self.config.discount
        reward, alive = t.reward.expand(dream.obs.shape[1:3]), discount * t.cont.expand(dream.obs.shape[1:3])
        for i in range(self.config.horizon + 1):
            told.append((reward + alive * after[:, i]).flatten(0, 1))
            if i < self.config.horizon:
                reward = reward + alive * dream.reward[i]
                alive = alive * discount * dream.cont[i]
        return torch.stack(told)

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Nothing: it sees no pictures."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "model_opt": self.model_opt.state_dict(),
            "actor_opt": self.actor_opt.state_dict(),
            "critic_opt": self.critic_opt.state_dict(),
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        for name in ("model_opt", "actor_opt", "critic_opt"):
            getattr(self, name).load_state_dict(state[name])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])
        self.updates = state["updates"]


# The losses and targets, in the papers' order.


def model_loss(dynamics: Dynamics, t: Transitions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Squared error of reward and next_obs - obs, standardised, and the cross-entropy of the end; summed over
    networks, of which each (if there are several) draws its own rows."""
    if dynamics.members == 1:
        index = torch.arange(len(t.obs), device=t.obs.device)[None]
    else:
        index = bootstrap(len(t.obs), len(t.obs), dynamics.members, generator)
    obs, reward, next_obs = t.obs[index], t.reward[index], t.next_obs[index]
    told = dynamics(obs, t.action[index])
    fit = gaussian_loss(told, dynamics.target(obs, reward, next_obs)).sum()
    if told.end is None:
        return fit, torch.zeros_like(fit)
    return fit, F.binary_cross_entropy_with_logits(told.end, 1 - t.cont[index]) * dynamics.members


def expansion(
    reward: Tensor, cont: Tensor, rewards: Tensor, conts: Tensor, last: Tensor, discount: float
) -> Tensor:
    """H-step targets of every state of a dream, "H+1 ... N"; the first is the real transition's.

    ::

        real           s_-1 ─r→ s_0
        imagined                s_0 ─r_0→ s_1 ─r_1→ ..  s_H       last = Q'(s_H, mu'(s_H))
        y_H = last     y_t = r_t + gamma cont_t y_{t+1}            y_-1 = r + gamma cont y_0
    """
    y = [last]
    for r, c in zip(rewards.flip(0), conts.flip(0), strict=True):
        y.append(r + discount * c * y[-1])
    y[0] = reward + discount * cont * y[-1]  # takes the place of y_H, which nothing is regressed on
    return torch.stack([y[0], *reversed(y[1:])])


def td_k_loss(values: Tensor, targets: Tensor, cont: Tensor) -> Tensor:
    """The mean over rows of 1/H times the squared errors of H + 1 states, for each Q; values "K Q N", K <= H + 1.

    The imagined states of a row whose real step was the end do not count.
    """
    horizon = max(len(targets) - 1, 1) if len(values) > 1 else 1
    error = (values - targets[: len(values), None]).square()
    return (error[0].mean(-1) + (cont * error[1:]).mean(-1).sum(0)).sum() / horizon


def actor_loss(value: Tensor) -> Tensor:
    """Minus the mean of Q(s, mu(s)) at real states."""
    return -value.mean()


def steve_target(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Of candidates "H+1 K N": their means weighted by 1 / (variance over K + 1e-8), "N"; and the weights "H+1 N"."""
    var, mean = torch.var_mean(candidates, 1, correction=0)
    weight = 1 / (var + 1e-8)
    weight = weight / weight.sum(0)
    return (weight * mean).sum(0), weight
