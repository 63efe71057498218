"""Dreamer V2: "Mastering Atari with Discrete World Models", Hafner et al. 2021 (arXiv 2010.02193).

The idea. A world of choices instead of numbers: the latent is 32 categoricals of 32 classes, learned with
straight-through gradients, and the KL is balanced so that the prior is trained harder than the posterior is held
back. With that, an agent that learns in imagination alone plays Atari as well as the best that do not.

How it differs from its neighbour. Against ``dreamer_v1.py``: categorical latents; KL balancing; a GRU with a norm;
REINFORCE (rho = 1), dynamics gradients (rho = 0) or a mix of both; an entropy bonus; a target critic; weight
decay. The start of a dream is among the states that are learned from.

Where the equations are::

    world model, Eq. 2      model_loss       image, reward and discount likelihoods, balanced KL (Alg. 2)
    imagination             RSSM.imagine     H steps from every posterior state
    targets, Eq. 4          ops.returns      lambda-returns of the target critic
    actor, Eq. 6            actor_loss       rho REINFORCE + (1 - rho) dynamics + entropy
    critic, Eq. 5           critic_loss      regresses on the targets

Command: ``reverie train dreamer_v2 --env dmc/cartpole_swingup --preset dmc --run runs/cartpole``.

Defaults are the released code's for Atari; ``dmc`` is its setting for control from pixels.
Deviations. Sequences are uniform over all rows and may cross an episode's start, where state and action are
zeroed; the release cuts them within episodes, drops those shorter than 50 rows, and for Atari draws the ends of
episodes more often. Everything is float32; the release computes in float16. Adam adds epsilon after the bias
correction. Several discrete actions at once are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.dists import Bernoulli, OneHot, TruncatedNormal, UnitNormal
from reverie.heads import Decoder, Encoder, Scalar
from reverie.imagine import look
from reverie.models.latent_world import LatentWorld
from reverie.models.rssm import RSSM, Categorical, State
from reverie.nets import MLP, NormGRUCell
from reverie.ops.returns import imagination_weights, lambda_returns
from reverie.optim import Optimizer, step
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace


@dataclass(frozen=True)
class Config:
    """The released code's values for Atari; the paper's Table D.1 has the same but where noted."""

    # Environment and schedule
    pixels: bool = True  # observe nothing but the picture
    image_size: int = 64  # pixels to a side
    action_repeat: int = 4  # env steps per decision
    steps: int = 200_000_000  # env steps in all
    prefill: int = 200_000  # env steps of uniformly random actions: 50,000 decisions
    pretrain: int = 1  # updates made when learning begins, beside those due
    train_every: int = 64  # env steps between two bursts: 16 decisions, as the code counts; the paper says 4
    train_updates: int = 1  # updates in a burst
    batch_size: int = 16  # B; the paper says 50
    batch_length: int = 50  # L

    # World model
    depth: int = 48  # channels of the first convolution
    stoch: int = 32  # latents
    classes: int = 32  # of each latent
    deter: int = 600  # size of h_t, and of the RSSM's hidden layers
    units: int = 400  # width of reward, cont, actor, critic and vector layers
    layers: int = 4  # of each of them
    kl_scale: float = 0.1  # beta
    kl_balance: float = 0.8  # alpha: the prior's share of the KL's gradient
    free_nats: float = 0.0  # floor under each side's mean KL
    reward_transform: Literal["none", "tanh"] = "tanh"
    cont: bool = True  # learn when episodes end
    cont_scale: float = 5.0

    # Behaviour
    horizon: int = 15  # H
    discount: float = 0.999  # gamma, per decision; the paper says 0.995
    lambda_: float = 0.95
    rho: float = 1.0  # share of REINFORCE in the actor's gradient; the rest goes through the dynamics
    entropy_scale: float = 1e-3  # eta
    min_std: float = 0.1  # of continuous actions
    target_every: int = 100  # updates between two copies of the critic to its target
    eval_action: Literal["sample", "mode"] = "mode"

    # Optimisers
    model_lr: float = 2e-4
    actor_lr: float = 4e-5
    critic_lr: float = 1e-4
    adam_eps: float = 1e-5
    clip: float = 100.0  # global norm, each optimiser for itself
    decay: float = 1e-6  # share of every parameter taken away by a step


class Actor(nn.Module):
    """pi(a | feat): a Gaussian cut off at +-1, or one-hot groups."""

    def __init__(self, features: int, space: ActionSpace, config: Config):
        super().__init__()
        self.space, self.config = space, config
        outputs = space.size if space.discrete else 2 * space.size
        self.mlp = MLP(features, config.units, config.layers, outputs)

    def forward(self, feat: Tensor) -> TruncatedNormal | OneHot:
        out = self.mlp(feat)
        if self.space.discrete:
            return OneHot(out, self.space.groups)
        mean, std = out.chunk(2, -1)
        return TruncatedNormal(torch.tanh(mean), 2 * torch.sigmoid(std / 2) + self.config.min_std)


class DreamerV2:
    """The agent. Three optimisers own, in turn, the world model, the actor and the critic."""

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
        c = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.encoder = Encoder(obs_space, c.depth, c.units, c.layers, F.elu, F.elu)
            self.rssm = RSSM(
                self.encoder.embed,
                act_space.size,
                Categorical(c.stoch, c.classes),
                NormGRUCell(c.deter, c.deter),
                c.deter,
                F.elu,
            )
            features = self.rssm.features
            self.decoder = Decoder(features, obs_space, c.depth, c.units, c.layers, F.elu, F.elu)
            self.reward = Scalar(features, c.units, c.layers)
            self.cont = Scalar(features, c.units, c.layers) if c.cont else None
            self.actor = Actor(features, act_space, c)
            self.critic = Scalar(features, c.units, c.layers)
            self.target_critic = Scalar(features, c.units, c.layers)

        model = {"encoder": self.encoder, "rssm": self.rssm, "decoder": self.decoder, "reward": self.reward}
        if self.cont is not None:
            model["cont"] = self.cont
        self.target_critic.requires_grad_(False).load_state_dict(self.critic.state_dict())
        behaviour = {"actor": self.actor, "critic": self.critic, "target_critic": self.target_critic}
        self.modules = nn.ModuleDict(model | behaviour).to(self.device)
        own = dict(eps=c.adam_eps, clip=c.clip, shrink=c.decay)
        self.model_opt = Optimizer(model, c.model_lr, **own)
        self.actor_opt = Optimizer({"actor": self.actor}, c.actor_lr, **own)
        self.critic_opt = Optimizer({"critic": self.critic}, c.critic_lr, **own)
        self.updates = 0
        # One stream of randomness for each use: how often one is called cannot shift another.
        self.generators = {
            use: torch.Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train", "eval", "dream"))
        }

    @property
    def world(self) -> LatentWorld:
        cont = self.cont
        return LatentWorld(
            self.rssm,
            self.encoder,
            self.decoder,
            self.reward,
            None
            if cont is None
            else lambda feat: (torch.sigmoid(cont(feat)) / self.config.discount).clamp(max=1),
            self.scale,
            self.unscale,
            self.generators["dream"],
        )

    def scale(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images from 0..255 to -0.5..0.5; vectors as they are."""
        return {
            key: obs[key].float().div_(255.0).sub_(0.5) if space.is_image else obs[key]
            for key, space in self.obs_space.items()
        }

    def unscale(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            key: ((value + 0.5).clamp(0, 1) * 255).round().byte() if self.obs_space[key].is_image else value
            for key, value in obs.items()
        }

    # Acting

    def initial(self, n: int) -> tuple[State, Tensor]:
        return self.rssm.initial(n), torch.zeros(n, self.act_space.size, device=self.device)

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, np.ndarray], carry: tuple[State, Tensor], mode: Mode
    ) -> tuple[np.ndarray, tuple[State, Tensor]]:
        state, prev_action = carry
        generator = self.generators[mode]
        seen = {key: torch.as_tensor(obs[key], device=self.device) for key in self.obs_space}
        is_first = torch.as_tensor(obs["is_first"], device=self.device)
        embed = self.encoder(self.scale(seen))
        state = self.rssm.obs_step(state, prev_action, embed, is_first, generator)
        dist = self.actor(self.rssm.feat(state))
        sure = mode == "eval" and self.config.eval_action == "mode"
        action = dist.mode if sure else self.draw(dist, generator)
        return action.cpu().numpy(), (state, action)

    def draw(self, dist: TruncatedNormal | OneHot, generator: torch.Generator) -> Tensor:
        return dist.draw(generator) if isinstance(dist, OneHot) else dist.sample(generator)

    # Learning

    def update(self, batch: Batch) -> Metrics:
        """All three gradients from the same parameters, then all three steps."""
        c, generator = self.config, self.generators["learn"]
        batch = batch.to(self.device)
        obs = self.scale(batch.obs)
        embed = self.encoder(obs)
        post, prior = self.rssm.observe(embed, batch.prev_action, batch.is_first, generator)
        feat = self.rssm.feat(post)
        losses, metrics = model_loss(self, feat, post, prior, obs, batch)
        model = self.model_opt.gradient(torch.stack([*losses.values()]).sum())

        with torch.set_grad_enabled(c.rho < 1):  # REINFORCE needs no derivative of the world
            dream, action = self.dream(post, generator)
            reward, value, discount = (
                self.reward(dream),
                self.target_critic(dream),
                self.discounts(dream, batch),
            )
            target = lambda_returns(reward, value, discount, c.lambda_)
        weight = imagination_weights(discount).detach()
        policy = self.actor(dream[:-2].detach())
        loss = actor_loss(policy, action[:-1].detach(), target[1:], value[:-2], weight[:-1], c)
        actor = self.actor_opt.gradient(loss, keep_graph=c.rho < 1)
        guess = self.critic(dream[:-1].detach())
        critic_loss_ = critic_loss(guess, target.detach(), weight)
        critic = self.critic_opt.gradient(critic_loss_)

        step(model, actor, critic)
        if self.updates % c.target_every == 0:
            self.target_critic.load_state_dict(self.critic.state_dict())
        self.updates += 1
        return {
            **{f"loss/{name}": loss.detach() for name, loss in losses.items()},
            **metrics,
            "loss/actor": loss.detach(),
            "loss/critic": critic_loss_.detach(),
            "grad/model": model.norm,
            "grad/actor": actor.norm,
            "grad/critic": critic.norm,
            "dream/reward": reward.detach().mean(),
            "dream/value": value.detach().mean(),
            "dream/target": target.detach().mean(),
            "actor/entropy": policy.entropy().detach().mean(),
        }

    def dream(self, post: State, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """H steps from every posterior state: features "H+1 N F", the start's first, and actions "H N A"."""
        start = post.detach().flatten()
        policy = lambda feat: self.actor(feat.detach()).sample(
            generator
        )  # reads the dream, does not shape it
        imagined = self.rssm.imagine(start, policy, self.config.horizon, generator)
        return torch.cat([self.rssm.feat(start)[None], imagined.feat]), imagined.action

    def discounts(self, dream: Tensor, batch: Batch) -> Tensor:
        """gamma, or what the cont head predicts, which contains it; of the start, what the data say."""
        if self.cont is None:
            return torch.full(dream.shape[:-1], self.config.discount, device=self.device)
        known = self.config.discount * (1.0 - batch.is_terminal.flatten().float())
        return torch.cat([known[None], torch.sigmoid(self.cont(dream[1:]))])

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Open loop: ``context`` rows seen, the rest imagined; and the reconstruction of every row."""
        return look(self.world, batch.to(self.device), context)

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


# The losses, in the paper's order.


def model_loss(
    agent: DreamerV2, feat: Tensor, post: State, prior: Tensor, obs: dict[str, Tensor], batch: Batch
) -> tuple[dict[str, Tensor], Metrics]:
    """Eq. 2: likelihood of what arrived with each row, and the balanced KL from the prior to the posterior.

    ::

        row        0      1      2          every row counts, the first too: its reward is 0
        feat      f0     f1     f2          f_t has seen o_0..o_t and a_0..a_{t-1}
        predicts  o0 r0  o1 r1  o2 r2       the reward of the state reached, not of the state left
    """
    c = agent.config
    losses = {key: dist.loss(obs[key]).mean() for key, dist in agent.decoder(feat).items()}
    reward = torch.tanh(batch.reward) if c.reward_transform == "tanh" else batch.reward
    losses["reward"] = UnitNormal(agent.reward(feat)).loss(reward).mean()
    if agent.cont is not None:
        goes_on = c.discount * (
            1.0 - batch.is_terminal.float()
        )  # a soft label: the head's mean contains gamma
        losses["cont"] = c.cont_scale * Bernoulli(agent.cont(feat)).loss(goes_on).mean()
    dist = agent.rssm.latent.dist
    dyn, rep = dist(post.stats.detach()).kl(dist(prior)), dist(post.stats).kl(dist(prior.detach()))
    losses["kl"] = c.kl_scale * balanced_kl(dyn, rep, c.kl_balance, c.free_nats)
    with torch.no_grad():
        metrics = {
            "model/kl": dyn.mean(),
            "model/prior_entropy": dist(prior).entropy().mean(),
            "model/post_entropy": dist(post.stats).entropy().mean(),
        }
    return losses, metrics


def balanced_kl(dyn: Tensor, rep: Tensor, balance: float, free_nats: float) -> Tensor:
    """Alg. 2: alpha of the KL moves the prior, the rest the posterior; the floor is under each one's mean."""
    return balance * dyn.mean().clamp(min=free_nats) + (1 - balance) * rep.mean().clamp(min=free_nats)


def actor_loss(
    policy: TruncatedNormal | OneHot,
    action: Tensor,
    target: Tensor,
    baseline: Tensor,
    weight: Tensor,
    c: Config,
) -> Tensor:
    """Eq. 6: -w [rho log pi(a) (V - v) + (1 - rho) V + eta H[pi]], for the actions a_0 .. a_{H-2}.

    ::

        imagined      z_0 ─a_0→ z_1 ─a_1→ z_2  ..  z_{H-1} ─a→ z_H      z_0 was observed
        target        (V_0)     V_1       V_2  ..  V_{H-1}              a_t is to raise V_{t+1}; V_0 is beyond it
        weight        1         d_0       d_0 d_1  ..                   "H-1 N", no gradient
    """
    objective = c.entropy_scale * policy.entropy()
    if c.rho > 0:
        objective = objective + c.rho * policy.log_prob(action) * (target - baseline).detach()
    if c.rho < 1:
        objective = objective + (1 - c.rho) * target
    return -(weight * objective).mean()


def critic_loss(value: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Eq. 5: half the squared error of v_0 .. v_{H-1} against the targets, which carry no gradient."""
    return (weight * UnitNormal(value).loss(target)).mean()
