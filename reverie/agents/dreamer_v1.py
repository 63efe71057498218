"""Dreamer V1: "Dream to Control: Learning Behaviors by Latent Imagination", Hafner et al. 2020 (arXiv 1912.01603).

The idea. Learn a latent world from pictures; imagine short futures from every state of the batch; train an
actor by the gradient of its imagined returns *through* the learned dynamics, and a critic that sees beyond the
imagined horizon.

How it differs from its neighbour. The world is PlaNet's (``planet.py``), with ELU and reward scale 1. PlaNet
searches for actions at every decision; Dreamer pays for the search once, in its actor, and adds a value
function, so that acting is cheap and sight is long.

Where the equations are::

    world model, Eq. 10     model_loss       image, reward and cont likelihoods, KL with free nats
    imagination, Alg. 1     RSSM.imagine     H steps from every posterior state
    value targets, Eq. 6    ops.returns      lambda-returns
    actor, Eq. 7            actor_loss       climbs the targets
    critic, Eq. 8           critic_loss      regresses on the targets

Command: ``reverie train dreamer_v1 --env dmc/cartpole_swingup --preset laptop --run runs/cartpole``.

Defaults are those of the author's released code where it and the paper differ (head sizes, the weights of the
losses, the start state left out of them): it has a checkable parameter count and produced the curves.
Deviations. Sequences are uniform over all rows and may cross an episode's start, where state and action are
zeroed; the released code cuts them within episodes. With the cont head, starts that are terminal get weight 0
instead of the last row of every sequence being dropped. Adam adds epsilon after the bias correction. Vector
observations and several discrete actions at once are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.dists import Bernoulli, OneHot, TanhNormal, UnitNormal
from reverie.heads import Decoder, Encoder, Scalar
from reverie.imagine import look
from reverie.models.latent_world import LatentWorld
from reverie.models.rssm import RSSM, Gaussian, Imagined, State
from reverie.nets import MLP, GRUCell
from reverie.ops.returns import imagination_weights, lambda_returns
from reverie.optim import Optimizer, step
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace
from reverie.when import linear


@dataclass(frozen=True)
class Config:
    """The released code's values; table and section numbers are the paper's."""

    # Environment and schedule
    pixels: bool = True  # observe nothing but the picture (Sec. 6)
    image_size: int = 64  # pixels to a side (App. A)
    action_repeat: int = 2  # R, env steps per decision (Sec. 6)
    steps: int = 5_000_000  # env steps in all (Sec. 6)
    prefill: int = 5_000  # env steps of uniformly random actions: S = 5 episodes (Alg. 1)
    pretrain: int = 0  # updates of the world model alone, before the first burst
    train_every: int = 1_000  # env steps between two bursts of updates
    train_updates: int = 100  # C, updates in a burst (Alg. 1)
    batch_size: int = 50  # B (Alg. 1)
    batch_length: int = 50  # L (Alg. 1)

    # World model (App. A)
    depth: int = 32  # channels of the first convolution
    stoch: int = 30  # size of s_t
    deter: int = 200  # size of h_t, and of the RSSM's hidden layers
    min_std: float = 0.1  # floor of the state's standard deviation
    units: int = 400  # width of reward, cont, actor and critic
    reward_layers: int = 2
    kl_scale: float = 1.0  # beta; 0.1 for discrete actions (App. A)
    free_nats: float = 3.0  # KL below this is free (Eq. 10)
    free_nats_each: bool = False  # True: subtracted from every element's KL; False: floor under their mean
    reward_transform: Literal["none", "tanh"] = "none"  # tanh for discrete tasks (App. A)
    reward_scale: float = 1.0  # what rewards are multiplied by before they are learned
    cont: bool = False  # learn when episodes end (App. A, "early termination")
    cont_layers: int = 3
    cont_scale: float = 10.0

    # Behaviour (Sec. 3, App. A)
    horizon: int = 15  # H; 10 for discrete actions
    starts: int = 0  # states imagined from per update, drawn from the batch; 0 for all of them
    discount: float = 0.99  # gamma, per decision
    lambda_: float = 0.95
    actor_layers: int = 4
    critic_layers: int = 3
    init_std: float = 5.0  # the actor's standard deviation before training
    mean_scale: float = 5.0  # the actor's mean is mean_scale * tanh(u / mean_scale)
    actor_min_std: float = 1e-4
    entropy_scale: float = 0.0  # of the policy's entropy, in standard deviations of the targets; ours
    action_gradient: Literal["straight_through", "score"] = "straight_through"  # discrete actions (Sec. 3)
    eval_action: Literal["sample_mode", "tanh_mean"] = "sample_mode"
    exploration_noise: float = 0.3  # std of the Gaussian added to continuous actions (App. A)
    epsilon_start: float = 0.4  # random discrete actions (App. A)
    epsilon_end: float = 0.1
    epsilon_updates: int = 150_000  # until epsilon_end; the released code's slope, the paper says 200,000

    # Optimisers (App. A)
    model_lr: float = 6e-4
    actor_lr: float = 8e-5
    critic_lr: float = 8e-5
    decay_after: int = 0  # updates with these three rates; then they fall in a straight line. Ours
    decay_updates: int = 0  # over so many updates; 0: they never fall, as in the paper
    decay_to: float = 0.1  # to this share of themselves
    adam_eps: float = 1e-7
    clip: float = 100.0  # global norm, each optimiser for itself


class Actor(nn.Module):
    """pi(a | feat): a squashed Gaussian, or one-hot groups (App. A)."""

    def __init__(self, features: int, space: ActionSpace, config: Config):
        super().__init__()
        self.space, self.config = space, config
        outputs = space.size if space.discrete else 2 * space.size
        self.mlp = MLP(features, config.units, config.actor_layers, outputs)
        self.raw_std = float(np.log(np.expm1(config.init_std)))  # softplus(raw_std) = init_std

    def forward(self, feat: Tensor) -> TanhNormal | OneHot:
        out = self.mlp(feat)
        if self.space.discrete:
            return OneHot(out, self.space.groups)
        mean, std = out.chunk(2, -1)
        scale = self.config.mean_scale
        return TanhNormal(
            scale * torch.tanh(mean / scale), F.softplus(std + self.raw_std) + self.config.actor_min_std
        )


class DreamerV1:
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
            self.encoder = Encoder(obs_space, c.depth, c.deter)
            self.rssm = RSSM(
                self.encoder.embed,
                act_space.size,
                Gaussian(c.stoch, c.min_std),
                GRUCell(c.deter, c.deter),
                c.deter,
                F.elu,
            )
            features = self.rssm.features
            self.decoder = Decoder(features, obs_space, c.depth, c.deter)
            self.reward = Scalar(features, c.units, c.reward_layers)
            self.cont = Scalar(features, c.units, c.cont_layers) if c.cont else None
            self.actor = Actor(features, act_space, c)
            self.critic = Scalar(features, c.units, c.critic_layers)

        model = {"encoder": self.encoder, "rssm": self.rssm, "decoder": self.decoder, "reward": self.reward}
        if self.cont is not None:
            model["cont"] = self.cont
        self.modules = nn.ModuleDict(model | {"actor": self.actor, "critic": self.critic}).to(self.device)
        self.model_opt = Optimizer(model, c.model_lr, c.adam_eps, c.clip)
        self.actor_opt = Optimizer({"actor": self.actor}, c.actor_lr, c.adam_eps, c.clip)
        self.critic_opt = Optimizer({"critic": self.critic}, c.critic_lr, c.adam_eps, c.clip)
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
            lambda feat: self.reward(feat) / self.config.reward_scale,
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
        action = self.explore(dist, generator) if mode == "train" else self.exploit(dist, generator)
        return action.cpu().numpy(), (state, action)

    def explore(self, dist: TanhNormal | OneHot, generator: torch.Generator) -> Tensor:
        """A sample, with Gaussian noise and clipped; or one-hot, each group random with probability epsilon."""
        c = self.config
        if isinstance(dist, TanhNormal):
            action = dist.sample(generator)
            noise = torch.randn(action.shape, generator=generator, device=action.device)
            return (action + c.exploration_noise * noise).clamp(-1.0, 1.0)
        epsilon = linear(c.epsilon_start, c.epsilon_end, c.epsilon_updates)(self.updates)
        greedy, uniform = dist.draw(generator), OneHot(torch.zeros_like(dist.log_probs), dist.groups)
        random = uniform.draw(generator)
        shape = (*greedy.shape[:-1], len(dist.groups))
        coin = torch.rand(shape, generator=generator, device=greedy.device) < epsilon
        groups = torch.tensor(dist.groups, device=greedy.device)
        return torch.where(coin.repeat_interleave(groups, -1), random, greedy)

    def exploit(self, dist: TanhNormal | OneHot, generator: torch.Generator) -> Tensor:
        if isinstance(dist, TanhNormal) and self.config.eval_action == "sample_mode":
            return dist.sample_mode(generator)
        return dist.mode

    # Learning

    def update(self, batch: Batch) -> Metrics:
        """The algorithm box (Alg. 1): all three gradients from the same parameters, then all three steps."""
        c, generator = self.config, self.generators["learn"]
        batch = batch.to(self.device)
        obs = self.scale(batch.obs)
        embed = self.encoder(obs)
        post, prior = self.rssm.observe(embed, batch.prev_action, batch.is_first, generator)
        feat = self.rssm.feat(post)
        losses, metrics = model_loss(self, feat, post, prior, obs, batch)
        if c.decay_updates:
            share = linear(1.0, c.decay_to, c.decay_updates)(self.updates - c.decay_after)
            self.model_opt.lr, self.actor_opt.lr, self.critic_opt.lr = (
                share * lr for lr in (c.model_lr, c.actor_lr, c.critic_lr)
            )
        model = self.model_opt.gradient(torch.stack([*losses.values()]).sum())

        if self.updates < c.pretrain:
            step(model)
            self.updates += 1
            named = {f"loss/{name}": loss.detach() for name, loss in losses.items()}
            return {**named, **metrics, "grad/model": model.norm}

        start, weight_0 = self.imagination_starts(post, batch, generator)
        dream = self.rssm.imagine(start, self.policy, c.horizon, generator)
        reward, value, discount = self.reward(dream.feat), self.critic(dream.feat), self.discounts(dream)
        target = lambda_returns(reward, value, discount, c.lambda_)
        weight = (imagination_weights(discount) * weight_0).detach()
        loss = actor_loss(target, weight)
        if c.entropy_scale:
            entropy = self.actor(dream.feat[:-1].detach()).entropy(generator)
            loss = loss - c.entropy_scale * target.detach().std() * (weight * entropy).mean()
        actor = self.actor_opt.gradient(loss, keep_graph=True)
        critic = self.critic_opt.gradient(critic_loss(value, target.detach(), weight))

        step(model, actor, critic)
        self.updates += 1
        return {
            **{f"loss/{name}": loss.detach() for name, loss in losses.items()},
            **metrics,
            "loss/actor": loss.detach(),
            "grad/model": model.norm,
            "grad/actor": actor.norm,
            "grad/critic": critic.norm,
            "dream/reward": reward.detach().mean(),
            "dream/value": value.detach().mean(),
            "dream/target": target.detach().mean(),
        }

    def policy(self, feat: Tensor) -> Tensor:
        """The actor as a player in the dream: it reads the features, but sends no gradient into them."""
        dist = self.actor(feat.detach())
        generator = self.generators["learn"]
        if isinstance(dist, OneHot) and self.config.action_gradient == "score":
            return dist.score_sample(generator)
        return dist.sample(generator)

    def imagination_starts(
        self, post: State, batch: Batch, generator: torch.Generator
    ) -> tuple[State, Tensor]:
        """Posterior states to imagine from, without gradient, and their weights: 0 where the episode had ended."""
        start = post.detach().flatten()
        weight = (
            1.0 - batch.is_terminal.flatten().float() if self.cont is not None else start.deter.new_ones(1)
        )
        n = self.config.starts
        if 0 < n < len(start.deter):
            pick = torch.randperm(len(start.deter), generator=generator, device=self.device)[:n]
            return start.take(pick), weight.expand(len(start.deter))[pick]
        return start, weight

    def discounts(self, dream: Imagined) -> Tensor:
        """gamma, or what the cont head predicts: it was trained on gamma and contains it."""
        if self.cont is None:
            return torch.full(dream.feat.shape[:-1], self.config.discount, device=self.device)
        return torch.sigmoid(self.cont(dream.feat))

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
    agent: DreamerV1, feat: Tensor, post: State, prior: Tensor, obs: dict[str, Tensor], batch: Batch
) -> tuple[dict[str, Tensor], Metrics]:
    """Eq. 10: likelihood of what arrived with each row, and the KL from the prior to the posterior.

    ::

        row        0      1      2          every row counts, the first too: its reward is 0
        feat      f0     f1     f2          f_t has seen o_0..o_t and a_0..a_{t-1}
        predicts  o0 r0  o1 r1  o2 r2       the reward of the state reached, not of the state left
    """
    c = agent.config
    losses = {key: dist.loss(obs[key]).mean() for key, dist in agent.decoder(feat).items()}
    reward = c.reward_scale * (torch.tanh(batch.reward) if c.reward_transform == "tanh" else batch.reward)
    losses["reward"] = UnitNormal(agent.reward(feat)).loss(reward).mean()
    if agent.cont is not None:
        goes_on = c.discount * (
            1.0 - batch.is_terminal.float()
        )  # a soft label: the head's mean contains gamma
        losses["cont"] = c.cont_scale * Bernoulli(agent.cont(feat)).loss(goes_on).mean()
    posterior, before = agent.rssm.latent.dist(post.stats), agent.rssm.latent.dist(prior)
    kl = posterior.kl(before)
    losses["kl"] = c.kl_scale * (
        (kl - c.free_nats).clamp(min=0).mean() if c.free_nats_each else kl.mean().clamp(min=c.free_nats)
    )
    with torch.no_grad():
        metrics = {
            "model/kl": kl.mean(),
            "model/prior_entropy": before.entropy().mean(),
            "model/post_entropy": posterior.entropy().mean(),
        }
    return losses, metrics


def actor_loss(target: Tensor, weight: Tensor) -> Tensor:
    """Eq. 7: minus the mean weighted lambda-return. Its gradient runs through rewards, values and dynamics.

    ::

        imagined      z_0 ─a_0→ z_1 ─a_1→ z_2  ..  z_{H-1} ─a→ z_H
        target                  V_1       V_2  ..  V_{H-1}            "H-1 N"; V_H = v_H only bootstraps
        weight                  1         d_1  ..  d_1..d_{H-2}       "H-1 N", no gradient
    """
    return -(weight * target).mean()


def critic_loss(value: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Eq. 8: half the squared error of v_1 .. v_{H-1} against the targets, which carry no gradient."""
    return (weight * UnitNormal(value[:-1]).loss(target)).mean()
