"""Dreamer V3: "Mastering Diverse Domains through World Models", Hafner et al. 2023 (arXiv 2301.04104), as revised for
"Mastering diverse control tasks through world models", Nature 640, 2025.

The idea. Dreamer, made to work on any task without tuning: what may be of any size (observations, rewards,
values, returns, gradients) is squashed, binned, normalised or clipped, and nothing else is left to choose but how
large the networks are and how often they are trained.

How it differs from its neighbour. The losses keep ``dreamer_v2.py``'s order. New are: symlog of vectors; two-hot
rewards and values; free nats under each row's KL, and 1% of every categorical spread evenly; a memory in eight
blocks; RMS norms everywhere; returns divided by their range; score-function gradients for all actions; a slow
critic that the critic is held near to, in place of a target network; a critic that also learns from the replayed
rows; one optimiser (LaProp, adaptive clipping) for everything; and replayed sequences that go on from the latent
state that was stored before their first row.

Where the equations are (of the 2025 article)::

    world model, Eq. 1-3    model_loss        reconstruction, reward, cont; KL towards the prior and the posterior
    imagination             DreamerV3.dream   H steps from every posterior state, H + 1 states with the start
    returns, Eq. 4          ops.returns       lambda-returns of rewards that arrive with the next state
    actor, Eq. 6            actor_loss        REINFORCE with normalised advantages, and entropy
    return scale, Eq. 7     ops.scalars       moving range of 5% to 95% of the returns
    critic, Eq. 5           critic_loss       two-hot cross-entropy, to the returns and to the slow critic
                            replay_loss       the same on the replayed rows, with their rewards and ends

Command: ``reverie train dreamer_v3 --env dmc/cartpole_swingup --preset laptop --no-pixels --run runs/cartpole``.

Defaults are the newest released code's: the 200m size. Sizes are presets (``1m`` .. ``400m``).
Deviations. Actions are stored cut off at +-1, where the release stores what was sampled: the world model cuts them
off all the same, and the actor learns from imagined ones only. The actor's categoricals keep the 1% of the paper,
which the newest code drops. Products are taken in float32 unless ``precision`` says bfloat16, and in the recurrence
along replayed rows even then. Latents are kept as float16 and class numbers. Learning begins at a count of env steps.
Discrete observations are taken as the one-hot vectors that the environment adapters make of them. ``standardize`` is
ours, for short runs: vectors are seen less their mean, and what varies by less than 1 by its deviation. An entry that
varies by a tenth beside others that vary by one is learned last otherwise (Reacher's ``to_target``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.checkpoint import check_sizes
from reverie.dists import MSE, Bernoulli, Normal, OneHot, SymlogMSE, TwoHot
from reverie.heads import split_space
from reverie.imagine import look
from reverie.machine import check_memory
from reverie.models.latent_world import LatentWorld
from reverie.models.rssm import BlockRSSM, Categorical, State
from reverie.nets import (
    Affine,
    BlockLinear,
    Dense,
    GridConv,
    Normalizer,
    NormMLP,
    RMSNorm,
    doubled,
    halved,
    lower,
    truncated_,
)
from reverie.ops.returns import td_lambda_returns
from reverie.ops.scalars import range_scale, symexp_bins, symlog, track_range
from reverie.optim import Follow, LaProp, step
from reverie.parallel import of_all
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace, ReverieError


@dataclass(frozen=True)
class Config:
    """The newest released code's values (its configs.yaml); the article's Extended Data Table 3 has the same."""

    # Environment and schedule
    pixels: bool = True  # observe nothing but the picture
    image_size: int = 64  # pixels to a side
    action_repeat: int = 1  # env steps per decision
    steps: int = 1_100_000  # env steps in all
    prefill: int = 1_100  # env steps before the first update: 1,024 places to begin a sequence
    random_prefill: bool = False  # act at random until then; else the untrained actor, which nearly does
    pretrain: int = 0  # updates made when learning begins, beside those due
    train_ratio: float = 32.0  # replayed rows per decision
    batch_size: int = 16  # B
    batch_length: int = 64  # T
    fresh_first: bool = True  # every row is replayed once soon after it came

    # World model
    deter: int = 8192  # size of h_t
    hidden: int = 1024  # width of the RSSM's layers
    stoch: int = 32  # latents
    classes: int = 64  # of each latent
    blocks: int = 8  # of the memory
    depth: int = 64  # channels of the convolutions are 2, 3, 4, 4 times this
    units: int = 1024  # width of all other layers
    vector_layers: int = 3  # of encoder and decoder
    standardize: bool = False  # small vectors, beside symlog for large ones
    reward_layers: int = 1
    cont_layers: int = 1
    unimix: float = 0.01  # share of the latents' probability that is spread evenly
    bins: int = 255  # of rewards and values
    free_nats: float = 1.0  # KL of a row below this is free
    recon_scale: float = 1.0  # beta_pred
    reward_scale: float = 1.0
    cont_scale: float = 1.0
    dyn_scale: float = 1.0  # beta_dyn
    rep_scale: float = 0.1  # beta_rep

    # Behaviour
    horizon: int = 15  # H
    discount: float = 1 - 1 / 333  # gamma, per decision; learned by the cont head
    lambda_: float = 0.95
    actor_layers: int = 3
    critic_layers: int = 3
    actor_unimix: float = 0.01  # for discrete actions
    min_std: float = 0.1  # of continuous actions
    max_std: float = 1.0
    entropy_scale: float = 3e-4  # eta
    return_rate: float = 0.01  # of the returns' moving range
    slow_rate: float = 0.02  # of the slow critic
    actor_scale: float = 1.0
    critic_scale: float = 1.0
    replay_scale: float = 0.3  # beta_repval
    eval_action: Literal["sample", "mode"] = "sample"  # the article scores the acting policy

    # Optimiser
    lr: float = 4e-5
    warmup: int = 1_000  # updates until then
    adam_eps: float = 1e-20
    clip: float = 0.3  # of a tensor's gradient, relative to the tensor
    precision: Literal["float32", "bfloat16"] = "float32"  # of matrix products; the release: bfloat16

    @property
    def updates_per_step(self) -> Fraction:
        """Updates that fall due with every env step."""
        ratio = Fraction(self.train_ratio).limit_denominator(1_000)
        return ratio / (self.batch_size * self.batch_length * self.action_repeat)

    @property
    def train_every(self) -> int:
        """Env steps between two bursts of updates."""
        return self.updates_per_step.denominator if self.train_ratio else 1_000

    @property
    def train_updates(self) -> int:
        """Updates in a burst."""
        return self.updates_per_step.numerator


class Encoder(nn.Module):
    """Images in 0 .. 1, "*B h w c", and vectors "*B n" to an embedding "*B E": the vectors' part, then the images'."""

    def __init__(self, space: ObsSpace, config: Config):
        super().__init__()
        images, vectors = split_space(space)
        self.image_keys, self.vector_keys = list(images), list(vectors)
        width = sum(s.shape[0] for s in vectors.values())
        self.vectors = NormMLP(width, config.units, config.vector_layers) if vectors else None
        self.embed = config.units if vectors else 0
        if images:
            height, wide, channels = picture(space)
            widths = [channels, *(config.depth * k for k in (2, 3, 4, 4))]
            self.convs = nn.ModuleList(convolution(a, b) for a, b in pairwise(widths))
            self.norms = nn.ModuleList(RMSNorm(b) for b in widths[1:])
            self.embed += height // 16 * (wide // 16) * widths[-1]

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        parts = []
        if self.vectors is not None:
            parts.append(self.vectors(symlog(torch.cat([obs[key] for key in self.vector_keys], -1))))
        if self.image_keys:
            x = torch.cat([obs[key] for key in self.image_keys], -1)
            lead, x = x.shape[:-3], x.flatten(0, -4) - 0.5
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = F.silu(norm(halved(conv(x))))
            parts.append(x.reshape(*lead, -1))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


class Decoder(nn.Module):
    """Features [h, s] "*B F" to every observation: pictures as points in 0 .. 1, vectors as points in symlog."""

    def __init__(self, space: ObsSpace, config: Config):
        super().__init__()
        c, images_vectors = config, split_space(space)
        images, vectors = images_vectors
        self.deter, stoch = c.deter, c.stoch * c.classes
        self.sizes = {key: s.shape[0] for key, s in vectors.items()}
        width = sum(self.sizes.values())
        self.vectors = NormMLP(c.deter + stoch, c.units, c.vector_layers, width) if vectors else None
        self.channels = {key: s.shape[2] for key, s in images.items()}
        if images:
            height, wide, channels = picture(space)
            self.shape = (height // 16, wide // 16, 4 * c.depth)
            self.from_deter = BlockLinear(c.deter, int(np.prod(self.shape)), c.blocks)
            self.from_stoch = nn.Sequential(
                Dense(stoch, 2 * c.units), Affine(2 * c.units, int(np.prod(self.shape)))
            )
            widths = [*(c.depth * k for k in (4, 4, 3, 2)), channels]
            self.convs = nn.ModuleList(convolution(a, b) for a, b in pairwise(widths))
            self.norms = nn.ModuleList(RMSNorm(a) for a in widths[:-1])

    def forward(self, feat: Tensor) -> dict[str, MSE | SymlogMSE]:
        dists: dict[str, MSE | SymlogMSE] = {}
        if self.vectors is not None:
            parts = self.vectors(feat).split(list(self.sizes.values()), -1)
            dists |= {key: SymlogMSE(part, event=1) for key, part in zip(self.sizes, parts, strict=True)}
        if self.channels:
            x = self.stem(feat.reshape(-1, feat.shape[-1]))
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = conv(doubled(F.silu(norm(x))))
            parts = (
                torch.sigmoid(x).reshape(*feat.shape[:-1], *x.shape[1:]).split([*self.channels.values()], -1)
            )
            dists |= {key: MSE(part, event=3) for key, part in zip(self.channels, parts, strict=True)}
        return dists

    def stem(self, feat: Tensor) -> Tensor:
        """The smallest picture: each block of the memory has its own channels of it."""
        height, wide, channels = self.shape
        deter, stoch = feat[:, : self.deter], feat[:, self.deter :]
        blocks = self.from_deter.weight.shape[0]
        own = self.from_deter(deter).view(-1, blocks, height, wide, channels // blocks)
        return own.permute(0, 2, 3, 1, 4).flatten(3) + self.from_stoch(stoch).view(-1, *self.shape)


def convolution(inputs: int, outputs: int, kernel: int = 5) -> GridConv:
    """Of stride 1, with the weights that all layers here begin with."""
    layer = GridConv(inputs, outputs, kernel)
    truncated_(layer.weight, kernel * kernel * inputs)
    return layer


def same(x: Tensor) -> Tensor:
    return x


def picture(space: ObsSpace) -> tuple[int, int, int]:
    """Height, width and channels of all images of a space together."""
    images, _ = split_space(space)
    sides = {s.shape[:2] for s in images.values()}
    height, wide = min(sides)
    if len(sides) > 1 or height % 16 or wide % 16:
        raise ReverieError(
            f"dreamer_v3 needs images of one size, with sides that 16 divides, got {sorted(sides)}; "
            f"wrap the environment in Resize to make them so"
        )
    return height, wide, sum(s.shape[2] for s in images.values())


class Number(nn.Module):
    """Features "*B F" to one number, as weights of bins; the last layer begins at zero, and so does the number."""

    bins: Tensor

    def __init__(self, features: int, units: int, layers: int, bins: int):
        super().__init__()
        self.mlp = NormMLP(features, units, layers, bins, scale=0.0)
        self.register_buffer("bins", symexp_bins(bins), persistent=False)

    def forward(self, feat: Tensor) -> TwoHot:
        return TwoHot(self.mlp(feat), self.bins)


class Cont(nn.Module):
    """Features "*B F" to the discounted probability that the episode goes on."""

    def __init__(self, features: int, units: int, layers: int):
        super().__init__()
        self.mlp = NormMLP(features, units, layers, 1)

    def forward(self, feat: Tensor) -> Bernoulli:
        return Bernoulli(self.mlp(feat).squeeze(-1))


class Actor(nn.Module):
    """pi(a | feat): a Gaussian whose mean and standard deviation are bounded, or one-hot groups."""

    def __init__(self, features: int, space: ActionSpace, config: Config):
        super().__init__()
        self.space, self.config = space, config
        outputs = space.size if space.discrete else 2 * space.size
        self.mlp = NormMLP(features, config.units, config.actor_layers, outputs, scale=0.01)

    def forward(self, feat: Tensor) -> Normal | OneHot:
        out, c = self.mlp(feat), self.config
        if self.space.discrete:
            return OneHot(out, self.space.groups, c.actor_unimix)
        mean, std = out.chunk(2, -1)
        return Normal(torch.tanh(mean), (c.max_std - c.min_std) * torch.sigmoid(std + 2.0) + c.min_std)


class Parts(NamedTuple):
    """Everything that learns; the slow critic only follows."""

    encoder: Encoder
    rssm: BlockRSSM
    decoder: Decoder
    reward: Number
    cont: Cont
    actor: Actor
    critic: Number


def parts(obs_space: ObsSpace, act_space: ActionSpace, c: Config) -> Parts:
    encoder = Encoder(obs_space, c)
    latent = Categorical(c.stoch, c.classes, c.unimix)
    rssm = BlockRSSM(encoder.embed, act_space.size, latent, c.deter, c.hidden, c.blocks)
    return Parts(
        encoder,
        rssm,
        Decoder(obs_space, c),
        Number(rssm.features, c.units, c.reward_layers, c.bins),
        Cont(rssm.features, c.units, c.cont_layers),
        Actor(rssm.features, act_space, c),
        Number(rssm.features, c.units, c.critic_layers, c.bins),
    )


class DreamerV3:
    """The agent. One optimiser owns everything but the slow critic, which follows the critic."""

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
            make = lambda: parts(obs_space, act_space, c)
            copies = 5  # weights, gradients, two moments, a step
            check_memory("dreamer_v3", make, copies, self.device, "--preset 12m")
            torch.manual_seed(seed)  # the initial weights
            made = make()
            self.slow_critic = Number(made.rssm.features, c.units, c.critic_layers, c.bins)
        self.modules = nn.ModuleDict(made._asdict() | {"slow_critic": self.slow_critic}).to(self.device)
        if c.precision == "bfloat16":
            lower(self.modules, torch.bfloat16)
        sizes = made.decoder.sizes if c.standardize else {}
        self.normalizers = {key: Normalizer(n, bounds=(0.01, 1.0)) for key, n in sizes.items()}
        if self.normalizers:
            self.modules["normalizers"] = nn.ModuleList(self.normalizers.values()).to(self.device)
        self.encoder, self.rssm, self.decoder, self.reward, self.cont, self.actor, self.critic = made
        self.slow_critic.requires_grad_(False).load_state_dict(self.critic.state_dict())
        self.opt = LaProp(made._asdict(), c.lr, c.adam_eps, c.clip, c.warmup)
        self.follow = Follow({self.slow_critic: self.critic}, c.slow_rate)
        self.range = torch.zeros(2, device=self.device)  # of the returns: their 5% and 95% marks
        self.reread: dict[str, Tensor] = {}  # what is remembered, "B T ...", at the rows of the last update
        self.updates = 0
        # One stream of randomness for each use: how often one is called cannot shift another.
        self.generators = {
            use: torch.Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train", "eval", "dream"))
        }

    @property
    def world(self) -> LatentWorld:
        return LatentWorld(
            self.rssm,
            self.encoder,
            self.decoder,
            lambda feat: self.reward(feat).mean,
            lambda feat: (self.cont(feat).mean / self.config.discount).clamp(max=1),
            self.scale,
            self.unscale,
            self.generators["dream"],
        )

    def scale(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images from 0..255 to 0..1; vectors as they are, or standardised."""
        return {
            key: obs[key].float().div_(255.0) if space.is_image else self.normalizers.get(key, same)(obs[key])
            for key, space in self.obs_space.items()
        }

    def unscale(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        back = {key: normalizer.back for key, normalizer in self.normalizers.items()}
        return {
            key: (value.clamp(0, 1) * 255).round().byte()
            if self.obs_space[key].is_image
            else back.get(key, same)(value)
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
        action = action.clamp(-1.0, 1.0)
        return action.cpu().numpy(), (state, action)

    def draw(self, dist: Normal | OneHot, generator: torch.Generator) -> Tensor:
        return dist.draw(generator) if isinstance(dist, OneHot) else dist.sample(generator)

    # What is kept with every replayed row

    @property
    def context(self) -> np.dtype:
        """Columns of a row's memory: h in half precision, and the numbers of the classes of s, from 1; 0 for none."""
        c = self.config
        return np.dtype([("deter", np.float16, (c.deter,)), ("stoch", np.uint8, (c.stoch,))])

    def remember(self, carry: tuple[State, Tensor]) -> dict[str, np.ndarray]:
        return {name: value.cpu().numpy() for name, value in self.packed(carry[0]).items()}

    def packed(self, state: State) -> dict[str, Tensor]:
        hot = state.stoch.unflatten(-1, (self.config.stoch, self.config.classes))
        number = (hot.argmax(-1) + 1) * (hot.amax(-1) > 0)
        return {"deter": state.deter.half(), "stoch": number.byte()}

    def unpacked(self, context: Mapping[str, Tensor]) -> State:
        hot = F.one_hot(context["stoch"].long(), self.config.classes + 1)[..., 1:].flatten(-2).float()
        return State(context["deter"].float(), hot, torch.zeros_like(hot))

    # Learning

    def update(self, batch: Batch) -> Metrics:
        """One loss of all parts, one gradient, one step."""
        metrics = self.learn_on_device(batch.to(self.device))
        self.updates += 1
        return metrics

    def learn_on_device(self, batch: Batch) -> Metrics:
        """What the device does in an update: all that changes is changed in place, and no number is waited for."""
        c, generator = self.config, self.generators["learn"]
        for key, normalizer in self.normalizers.items():
            normalizer.see(of_all(batch.obs[key]).flatten(0, 1))
        obs = self.scale(batch.obs)
        embed = self.encoder(obs)
        before = None if batch.context is None else self.unpacked(batch.context)
        post, prior = self.rssm.observe(embed, batch.prev_action, batch.is_first, generator, before)
        feat = self.rssm.feat(post)
        losses, metrics = model_loss(self, feat, post, prior, obs, batch)

        dream, action = self.dream(post, generator)
        value = self.critic(dream)
        with torch.no_grad():
            reward, cont, guess = self.reward(dream[1:]).mean, self.cont(dream).mean, value.mean
            target = td_lambda_returns(reward, guess[1:], cont[1:], c.lambda_)
            weight = cont.cumprod(0)[:-1]  # the start counts as far as it is no end itself
            range_ = track_range(self.range, of_all(target), c.return_rate)
            advantage = (target - guess[:-1]) / range_scale(range_)
            slow = self.slow_critic(dream[:-1]).mean
            slow_replay = self.slow_critic(feat[:, :-1]).mean
        policy = self.actor(dream[:-1])
        losses["actor"] = c.actor_scale * actor_loss(policy, action, advantage, weight, c.entropy_scale)
        losses["critic"] = c.critic_scale * critic_loss(value, target, slow, weight)
        boot = target[0].view_as(batch.reward)
        losses["replay"] = c.replay_scale * replay_loss(
            self.critic(feat[:, :-1]), boot, slow_replay, batch, c
        )

        gradient = self.opt.gradient(torch.stack([loss.mean() for loss in losses.values()]).sum())
        step(gradient)
        self.follow()
        self.range.copy_(range_)
        self.reread = self.packed(post.detach())
        return {
            **{f"loss/{name}": loss.detach().mean() for name, loss in losses.items()},
            **metrics,
            "grad/all": gradient.norm,
            "dream/reward": reward.mean(),
            "dream/value": guess.mean(),
            "dream/target": target.mean(),
            "dream/scale": range_scale(range_),
            "actor/entropy": policy.entropy().detach().mean(),
        }

    def dream(self, post: State, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """H steps from every posterior state: features "H+1 N F", the start's first, and actions "H N A"."""
        policy = lambda feat: self.draw(self.actor(feat), generator)
        imagined = self.rssm.imagine(post.flatten(), policy, self.config.horizon, generator, with_start=True)
        return imagined.feat, imagined.action

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Open loop: ``context`` rows seen, the rest imagined; and the reconstruction of every row."""
        return look(self.world, batch.to(self.device), context)

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "opt": self.opt.state_dict(),
            "range": self.range,
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_sizes(self.modules.state_dict(), state["modules"])
        self.modules.load_state_dict(state["modules"])
        self.opt.load_state_dict(state["opt"])
        self.range.copy_(state["range"])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])
        self.updates = state["updates"]


# The losses, in the paper's order; each unreduced.


def model_loss(
    agent: DreamerV3, feat: Tensor, post: State, prior: Tensor, obs: dict[str, Tensor], batch: Batch
) -> tuple[dict[str, Tensor], Metrics]:
    """Eq. 1-3: what arrived with each row, "B T" each, and the KL in its two directions of learning.

    ::

        row        0      1      2          every row counts, the first too: its reward is 0
        feat      f0     f1     f2          f_t has seen o_0..o_t and a_0..a_{t-1}
        predicts  o0 r0  o1 r1  o2 r2       the reward of the state reached, not of the state left
    """
    c = agent.config
    losses = {key: c.recon_scale * dist.loss(obs[key]) for key, dist in agent.decoder(feat).items()}
    losses["reward"] = c.reward_scale * agent.reward(feat).loss(batch.reward)
    goes_on = c.discount * (1.0 - batch.is_terminal.float())  # a soft label: the head's mean contains gamma
    losses["cont"] = c.cont_scale * agent.cont(feat).loss(goes_on)
    dist = agent.rssm.latent.dist
    dyn, rep = dist(post.stats.detach()).kl(dist(prior)), dist(post.stats).kl(dist(prior.detach()))
    losses["dyn"] = c.dyn_scale * dyn.clamp(min=c.free_nats)  # moves the prior towards what was seen
    losses["rep"] = c.rep_scale * rep.clamp(
        min=c.free_nats
    )  # and, less, what is kept of it towards the prior
    with torch.no_grad():
        metrics = {
            "model/kl": dyn.mean(),
            "model/prior_entropy": dist(prior).entropy().mean(),
            "model/post_entropy": dist(post.stats).entropy().mean(),
        }
    return losses, metrics


def actor_loss(
    policy: Normal | OneHot, action: Tensor, advantage: Tensor, weight: Tensor, entropy_scale: float
) -> Tensor:
    """Eq. 6: -w_t [log pi(a_t | z_t) A_t + eta H(pi(z_t))] for t = 0 .. H-1, "H N"; A and w carry no gradient."""
    return -weight * (policy.log_prob(action) * advantage + entropy_scale * policy.entropy())


def critic_loss(value: TwoHot, target: Tensor, slow: Tensor, weight: Tensor) -> Tensor:
    """Eq. 5: cross-entropy of v_0 .. v_{H-1} to the returns and, as much, to what the slow critic says, "H N".

    ::

        imagined      z_0 ─a_0→ z_1 ─a_1→ z_2  ..  z_{H-1} ─a→ z_H        z_0 was observed
        reward                  r_1       r_2  ..  r_{H-1}     r_H        arrives with the state reached
        target        R_0       R_1       R_2  ..  R_{H-1}                R_t = r_{t+1} + c_{t+1} (.. v_{t+1}, R_{t+1})
        weight        c_0       c_0 c_1        ..                         no gradient
    """
    return weight * value[:-1].loss(target, slow)


def replay_loss(value: TwoHot, boot: Tensor, slow: Tensor, batch: Batch, c: Config) -> Tensor:
    """The same for rows 0 .. T-2 of the batch, "B T-1"; its gradient goes on into the world model.

    ::

        row          0      1      2   ..  T-1
        reward              r1     r2      r_{T-1}       as it was, not as it is imagined
        boot         b0     b1     b2      b_{T-1}       the return of a dream begun there
        target       R0     R1     R2  ..                R_{T-1} := b_{T-1}; a last row has no next one: no loss
    """
    target = replay_returns(batch.reward, batch.is_last, batch.is_terminal, boot, c.discount, c.lambda_)
    return (1.0 - batch.is_last[:, :-1].float()) * value.loss(target, slow)


def replay_returns(
    reward: Tensor, is_last: Tensor, is_terminal: Tensor, boot: Tensor, discount: float, lambda_: float
) -> Tensor:
    """R_t = r_{t+1} + d_{t+1} [(1 - l_{t+1}) b_{t+1} + l_{t+1} R_{t+1}] with d = discount, 0 at a terminal row, and
    l = lambda, 0 at a last one; all "B T", the returns "B T-1"."""
    live = discount * (1.0 - is_terminal.to(boot.dtype))
    mix = lambda_ * (1.0 - is_last.to(boot.dtype))
    now, decay, target = reward + (1 - mix) * live * boot, live * mix, boot[:, -1]
    targets = []
    for t in reversed(range(1, reward.shape[1])):
        target = torch.addcmul(now[:, t], decay[:, t], target)
        targets.append(target)
    return torch.stack(targets[::-1], 1)
