"""Dreamer V3 as it was first released: "Mastering Diverse Domains through World Models", Hafner et al. 2023
(arXiv 2301.04104, first version).

The idea. One setting for every task: what may be of any size (observations, rewards, values, returns) is squashed,
binned or normalised, and nothing is tuned but how large the networks are and how often they are trained. The
published scores of proprioceptive control are of this revision; ``dreamer_v3.py`` is the one that came to be printed.

How it differs from its neighbours. Against ``dreamer_v2.py``: symlog of vectors; two-hot rewards and values; free
nats under each row's KL, and 1% of every categorical spread evenly; layer norms everywhere; a start that is learned;
rewards of the state reached; advantages divided by the range of the returns; a slow critic that the critic is held
near to, in place of a target network.
Against ``dreamer_v3.py``: layer norms where that has RMS norms, and one GRU where that has blocks; strided
convolutions; bins that are even as symlogs, whose mean is taken before the symexp; ends that are decided, not weighed,
in a dream; continuous actions that learn through the dynamics, the baseline's path too; three Adams; and neither
a loss of the critic on replayed rows nor a memory that is kept with them.

Where the equations are (by the paper's sections)::

    Symlog predictions      SymlogTwoHot   even bins of symlogs; ops.scalars
    World model learning    model_loss     reconstruction, reward, cont; KL towards the prior and the posterior
    Actor critic learning   dream          H steps from every posterior state, H + 1 states with the start
        returns             ops.returns    lambda-returns of rewards that arrive with the next state
        return scale        ops.scalars    moving range of 5% to 95% of the returns
        actor               actor_loss     through the dynamics, or REINFORCE where actions are choices; entropy
        critic              critic_loss    two-hot cross-entropy, to the returns and to the slow critic

Command: ``reverie train dreamer_v3_2023 --env dmc/cartpole_swingup --preset dmc_proprio --run runs/cartpole``.

Defaults are the released code's: the XL size. Sizes are presets (``xs`` .. ``xl``), as the paper's table has them; in
the release they do not reach the layers that read and write vectors, which are five of 1024 at every size, and so it
is in ``dmc_proprio``. The release keeps a million rows; here a run's ``--replay-size`` in bytes says how many.
Choices. Layers before a norm begin as truncated normals, all others Glorot-uniform, as in the release. A sequence
begins from the learned start and without an action, wherever it was cut; so it does in the release.
Deviations. Actions are stored cut off at +-1, where the release stores what was sampled and its world model shrinks it.
All three gradients are taken from the same parameters; in the release the model moves first, then the actor. The slow
critic is a copy from the start, not from the first update on. Everything is float32; the release computes in float16.
Several discrete actions at once are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from reverie.checkpoint import check_sizes
from reverie.dists import MSE, Bernoulli, Normal, OneHot, SymlogMSE, TwoHot
from reverie.heads import split_space
from reverie.imagine import look
from reverie.machine import check_memory
from reverie.models.latent_world import LatentWorld
from reverie.models.rssm import Categorical, StartedRSSM, State
from reverie.nets import NORM_EPS, LayerMLP, glorot_, truncated_
from reverie.nets.linear import Kernels
from reverie.ops.returns import td_lambda_returns
from reverie.ops.scalars import range_scale, symexp, symlog, symmetric_mean, track_range
from reverie.optim import Follow, Optimizer, step
from reverie.parallel import of_all
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace, ReverieError


@dataclass(frozen=True)
class Config:
    """The released code's values (its configs.yaml); the paper's table has the same but where noted."""

    # Environment and schedule
    pixels: bool = True  # observe nothing but the picture
    image_size: int = 64  # pixels to a side
    action_repeat: int = 1  # env steps per decision
    steps: int = 1_000_000  # env steps in all; ours, the release has no end
    prefill: int = 1_024  # env steps of uniformly random actions: as many decisions as an update has rows
    pretrain: int = 1  # updates made when learning begins, beside those due
    train_ratio: float = 32.0  # replayed rows per decision
    batch_size: int = 16  # B
    batch_length: int = 64  # T

    # World model
    deter: int = 4096  # size of h_t
    stoch: int = 32  # latents
    classes: int = 32  # of each latent
    depth: int = 96  # channels of the first convolution; each of the others has twice those before it
    units: int = 1024  # width of all layers, the RSSM's too, but those of vectors
    layers: int = 5  # of reward, cont, actor and critic
    vector_units: int = 1024  # width of what reads and writes vectors; the paper says the same as units
    vector_layers: int = 5  # the paper says the same as layers
    unimix: float = 0.01  # share of the latents' probability that is spread evenly
    bins: int = 255  # of rewards and values
    free_nats: float = 1.0  # KL of a row below this is free
    recon_scale: float = 1.0  # beta_pred
    reward_scale: float = 1.0
    cont_scale: float = 1.0
    dyn_scale: float = 0.5  # beta_dyn
    rep_scale: float = 0.1  # beta_rep

    # Behaviour
    horizon: int = 15  # H
    discount: float = 1 - 1 / 333  # gamma, per decision
    lambda_: float = 0.95
    actor_unimix: float = 0.01  # for discrete actions
    min_std: float = 0.1  # of continuous actions
    max_std: float = 1.0
    entropy_scale: float = 3e-4  # eta
    return_rate: float = 0.01  # of the returns' moving range
    slow_rate: float = 0.02  # of the slow critic
    eval_action: Literal["sample", "mode"] = "sample"  # the paper scores the acting policy

    # Optimisers
    model_lr: float = 1e-4
    model_eps: float = 1e-8
    model_clip: float = 1000.0  # global norm
    actor_lr: float = 3e-5
    critic_lr: float = 3e-5
    adam_eps: float = 1e-5  # of both
    clip: float = 100.0  # of each

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


class Halving(Kernels):
    """A convolution to half as many pixels a side: kernel 4, stride 2, one row of zeros around; weight "o 4 4 i"."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, 4, 4, inputs))
        glorot_(self)

    def forward(self, x: Float[Tensor, "n h w i"]) -> Float[Tensor, "n h2 w2 o"]:
        x, weight = x.permute(0, 3, 1, 2), self.weight.permute(0, 3, 1, 2)
        return F.conv2d(x, weight, stride=2, padding=1).permute(0, 2, 3, 1)


class Doubling(Kernels):
    """Its transpose, to twice as many pixels a side, with a bias where no norm follows; weight "i 4 4 o"."""

    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, 4, 4, outputs))
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if bias else None)
        glorot_(self)

    def forward(self, x: Float[Tensor, "n h w i"]) -> Float[Tensor, "n h2 w2 o"]:
        x, weight = x.permute(0, 3, 1, 2), self.weight.permute(0, 3, 1, 2)
        return F.conv_transpose2d(x, weight, self.bias, stride=2, padding=1).permute(0, 2, 3, 1)


class Encoder(nn.Module):
    """Images in 0 .. 1, "*B h w c", and vectors "*B n" to an embedding "*B E": the images' part, then the vectors'."""

    def __init__(self, space: ObsSpace, config: Config):
        super().__init__()
        images, vectors = split_space(space)
        self.image_keys, self.vector_keys = list(images), list(vectors)
        self.embed = config.vector_units if vectors else 0
        if images:
            stages, channels = picture(space)
            widths = [channels, *(config.depth * 2**k for k in range(stages))]
            self.convs = nn.ModuleList(Halving(a, b) for a, b in pairwise(widths))
            self.norms = nn.ModuleList(nn.LayerNorm(b, NORM_EPS) for b in widths[1:])
            self.embed += 16 * widths[-1]
        width = sum(s.shape[0] for s in vectors.values())
        self.vectors = LayerMLP(width, config.vector_units, config.vector_layers, F.silu) if vectors else None

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        parts = []
        if self.image_keys:
            x = torch.cat([obs[key] for key in self.image_keys], -1)
            lead, x = x.shape[:-3], x.flatten(0, -4) - 0.5
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = F.silu(norm(conv(x)))
            parts.append(x.reshape(*lead, -1))
        if self.vectors is not None:
            parts.append(self.vectors(symlog(torch.cat([obs[key] for key in self.vector_keys], -1))))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


class Decoder(nn.Module):
    """Features "*B F" to every observation: pictures as points near 0 .. 1, vectors as points in symlog."""

    def __init__(self, features: int, space: ObsSpace, config: Config):
        super().__init__()
        c = config
        images, vectors = split_space(space)
        self.channels = {key: s.shape[2] for key, s in images.items()}
        if images:
            stages, channels = picture(space)
            widths = [*(c.depth * 2**k for k in reversed(range(stages))), channels]
            self.stem = nn.Linear(features, 16 * widths[0])
            glorot_(self.stem)
            self.convs = nn.ModuleList(Doubling(a, b) for a, b in pairwise(widths[:-1]))
            self.norms = nn.ModuleList(nn.LayerNorm(b, NORM_EPS) for b in widths[1:-1])
            self.last = Doubling(widths[-2], channels, bias=True)
        self.vector_keys = list(vectors)
        self.vectors = LayerMLP(features, c.vector_units, c.vector_layers, F.silu) if vectors else None
        self.outs = nn.ModuleList(nn.Linear(c.vector_units, s.shape[0]) for s in vectors.values())
        glorot_(self.outs)

    def forward(self, feat: Tensor) -> dict[str, MSE | SymlogMSE]:
        dists: dict[str, MSE | SymlogMSE] = {}
        if self.channels:
            x = self.stem(feat.reshape(-1, feat.shape[-1]))
            x = x.view(len(x), 4, 4, -1)
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = F.silu(norm(conv(x)))
            x = self.last(x) + 0.5  # not bent: a picture may leave 0 .. 1
            parts = x.reshape(*feat.shape[:-1], *x.shape[1:]).split([*self.channels.values()], -1)
            dists |= {key: MSE(part, event=3) for key, part in zip(self.channels, parts, strict=True)}
        if self.vectors is not None:
            hidden = self.vectors(feat)
            for key, out in zip(self.vector_keys, self.outs, strict=True):
                dists[key] = SymlogMSE(out(hidden), event=1)
        return dists


def picture(space: ObsSpace) -> tuple[int, int]:
    """How often the images of a space are halved to 4 x 4 pixels, and the channels of all of them together."""
    images, _ = split_space(space)
    sides = {side for s in images.values() for side in s.shape[:2]}
    side = min(sides)
    if len(sides) > 1 or side < 8 or side & (side - 1):
        raise ReverieError(
            f"dreamer_v3_2023 needs square images of one size, a power of two and at least 8, got sides of "
            f"{sorted(sides)}; wrap the environment in Resize to make them so"
        )
    return side.bit_length() - 3, sum(s.shape[2] for s in images.values())


class SymlogTwoHot:
    """One number, whose symlog is the mean of ``bins`` "K" under a softmax of ``logits``; its loss is a cross-entropy
    against the two-hot weights of the target's symlog. The mean carries gradient: an actor learns through it."""

    def __init__(self, logits: Float[Tensor, "*B K"], bins: Float[Tensor, "K"]):
        self.two_hot = TwoHot(logits, bins)

    @property
    def mean(self) -> Float[Tensor, "*B"]:
        probs = torch.softmax(self.two_hot.logits, -1)
        return symexp(symmetric_mean(probs, self.two_hot.bins))

    def loss(self, *targets: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """The sum of the cross-entropies against ``targets``."""
        return self.two_hot.loss(*(symlog(target) for target in targets))


def even_bins(count: int = 255, limit: float = 20.0) -> Float[Tensor, "K"]:
    """``count`` (odd) values from -limit to limit, evenly spaced and exactly antisymmetric."""
    below = torch.linspace(-limit, 0.0, count // 2 + 1)
    return torch.cat([below, -below[:-1].flip(0)])


class Number(nn.Module):
    """Features "*B F" to one number, as weights of bins; the last layer begins at zero, and so does the number."""

    bins: Tensor

    def __init__(self, features: int, units: int, layers: int, bins: int):
        super().__init__()
        self.mlp = LayerMLP(features, units, layers, F.silu, bins, scale=0.0)
        self.register_buffer("bins", even_bins(bins), persistent=False)

    def forward(self, feat: Tensor) -> SymlogTwoHot:
        return SymlogTwoHot(self.mlp(feat), self.bins)


class Cont(nn.Module):
    """Features "*B F" to the probability that the episode goes on."""

    def __init__(self, features: int, units: int, layers: int):
        super().__init__()
        self.mlp = LayerMLP(features, units, layers, F.silu, 1)

    def forward(self, feat: Tensor) -> Bernoulli:
        return Bernoulli(self.mlp(feat).squeeze(-1))


class Actor(nn.Module):
    """pi(a | feat): a Gaussian whose mean and standard deviation are bounded, or one-hot groups."""

    def __init__(self, features: int, space: ActionSpace, config: Config):
        super().__init__()
        self.space, self.config = space, config
        self.hidden = LayerMLP(features, config.units, config.layers, F.silu)
        self.out = nn.Linear(config.units, space.size)
        self.std = None if space.discrete else nn.Linear(config.units, space.size)
        for layer in (self.out, self.std):
            if layer is not None:
                glorot_(layer)

    def forward(self, feat: Tensor) -> Normal | OneHot:
        x, c = self.hidden(feat), self.config
        if self.std is None:
            return OneHot(self.out(x), self.space.groups, c.actor_unimix)
        std = (c.max_std - c.min_std) * torch.sigmoid(self.std(x) + 2.0) + c.min_std
        return Normal(torch.tanh(self.out(x)), std)


class Parts(NamedTuple):
    """Everything that learns; the slow critic only follows."""

    encoder: Encoder
    rssm: StartedRSSM
    decoder: Decoder
    reward: Number
    cont: Cont
    actor: Actor
    critic: Number


def parts(obs_space: ObsSpace, act_space: ActionSpace, c: Config) -> Parts:
    encoder = Encoder(obs_space, c)
    latent = Categorical(c.stoch, c.classes, c.unimix)
    rssm = StartedRSSM(encoder.embed, act_space.size, latent, c.deter, c.units, F.silu)
    made = Parts(
        encoder,
        rssm,
        Decoder(rssm.features, obs_space, c),
        Number(rssm.features, c.units, c.layers, c.bins),
        Cont(rssm.features, c.units, c.layers),
        Actor(rssm.features, act_space, c),
        Number(rssm.features, c.units, c.layers, c.bins),
    )
    for part in made:
        drawn_(part)
    return made


def drawn_(module: nn.Module) -> None:
    """What has a weight and no bias is followed by a norm: draw that weight, in place, from a normal cut off at two
    deviations, of variance 1 / mean(fan in, fan out)."""
    for layer in module.modules():
        own = dict(layer.named_parameters(recurse=False))
        if "weight" in own and "bias" not in own:
            first, *area, last = own["weight"].shape
            truncated_(own["weight"], (first + last) * int(np.prod(area)), 2**0.5)


class DreamerV3of2023:
    """The agent. Three optimisers own, in turn, the world model, the actor and the critic; the slow critic follows."""

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
            copies = 4  # weights, gradients, two moments
            check_memory("dreamer_v3_2023", make, copies, self.device, "--preset s")
            torch.manual_seed(seed)  # the initial weights
            made = make()
            self.slow_critic = Number(made.rssm.features, c.units, c.layers, c.bins)
        self.modules = nn.ModuleDict(made._asdict() | {"slow_critic": self.slow_critic}).to(self.device)
        self.encoder, self.rssm, self.decoder, self.reward, self.cont, self.actor, self.critic = made
        self.slow_critic.requires_grad_(False).load_state_dict(self.critic.state_dict())
        model = {name: part for name, part in made._asdict().items() if name not in ("actor", "critic")}
        self.model_opt = Optimizer(model, c.model_lr, c.model_eps, c.model_clip)
        self.actor_opt = Optimizer({"actor": self.actor}, c.actor_lr, c.adam_eps, c.clip)
        self.critic_opt = Optimizer({"critic": self.critic}, c.critic_lr, c.adam_eps, c.clip)
        self.follow = Follow({self.slow_critic: self.critic}, c.slow_rate)
        self.range = torch.zeros(2, device=self.device)  # of the returns: their 5% and 95% marks
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
            lambda feat: self.cont(feat).mean,
            self.scale,
            self.unscale,
            self.generators["dream"],
        )

    def scale(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images from 0..255 to 0..1; vectors as they are."""
        return {
            key: obs[key].float().div_(255.0) if space.is_image else obs[key]
            for key, space in self.obs_space.items()
        }

    def unscale(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            key: (value.clamp(0, 1) * 255).round().byte() if self.obs_space[key].is_image else value
            for key, value in obs.items()
        }

    # Acting

    @torch.no_grad()
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

    def draw(self, dist: Normal | OneHot, generator: Generator) -> Tensor:
        return dist.draw(generator) if isinstance(dist, OneHot) else dist.sample(generator)

    # Learning

    def update(self, batch: Batch) -> Metrics:
        """All three gradients from the same parameters, then all three steps."""
        c, generator = self.config, self.generators["learn"]
        batch = batch.to(self.device)
        obs = self.scale(batch.obs)
        is_first = batch.is_first.clone()
        is_first[:, 0] = True  # a sequence begins from the learned start, whatever came before it
        post, prior = self.rssm.observe(self.encoder(obs), batch.prev_action, is_first, generator)
        feat = self.rssm.feat(post)
        losses, metrics = model_loss(self, feat, post, prior, obs, batch)
        model = self.model_opt.gradient(torch.stack([loss.mean() for loss in losses.values()]).sum())

        with torch.set_grad_enabled(
            not self.act_space.discrete
        ):  # REINFORCE needs no derivative of the world
            dream, action = self.dream(post, generator)
            reward, guess = self.reward(dream[1:]).mean, self.critic(dream).mean
            cont = self.conts(dream, batch)
            target = td_lambda_returns(reward, guess[1:], c.discount * cont[1:], c.lambda_)
        range_ = track_range(self.range, of_all(target.detach()), c.return_rate)
        advantage = (target - guess[:-1]) / range_scale(range_)
        weight = (c.discount * cont).cumprod(0)[:-1] / c.discount  # a start that is an end counts nothing
        policy = self.actor(dream[:-1].detach())
        losses["actor"] = actor_loss(policy, action.detach(), advantage, weight, c.entropy_scale)
        actor = self.actor_opt.gradient(losses["actor"].mean())
        seen = dream[:-1].detach()
        with torch.no_grad():
            slow = self.slow_critic(seen).mean
        losses["critic"] = critic_loss(self.critic(seen), target.detach(), slow, weight)
        critic = self.critic_opt.gradient(losses["critic"].mean())

        step(model, actor, critic)
        self.follow()
        self.range = range_
        self.updates += 1
        return {
            **{f"loss/{name}": loss.detach().mean() for name, loss in losses.items()},
            **metrics,
            "grad/model": model.norm,
            "grad/actor": actor.norm,
            "grad/critic": critic.norm,
            "dream/reward": reward.detach().mean(),
            "dream/value": guess.detach().mean(),
            "dream/target": target.detach().mean(),
            "dream/scale": range_scale(range_),
            "actor/entropy": policy.entropy().detach().mean(),
        }

    def dream(self, post: State, generator: Generator) -> tuple[Tensor, Tensor]:
        """H steps from every posterior state: features "H+1 N F", the start's first, and actions "H N A"."""
        start = post.detach().flatten()

        def policy(feat: Tensor) -> Tensor:  # reads the dream, does not shape it
            action = self.draw(self.actor(feat.detach()), generator)
            return action / action.detach().abs().clamp(
                min=1.0
            )  # the world knows none beyond 1; shrunk, not cut

        imagined = self.rssm.imagine(start, policy, self.config.horizon, generator)
        return torch.cat([self.rssm.feat(start)[None], imagined.feat]), imagined.action

    def conts(self, dream: Tensor, batch: Batch) -> Tensor:
        """1 where an episode goes on and 0 where it ends, "H+1 N": of the start, what the data say; of what is
        imagined, what is likelier. No gradient."""
        known = 1.0 - batch.is_terminal.flatten().float()
        return torch.cat([known[None], self.cont(dream[1:].detach()).mode])

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Open loop: ``context`` rows seen, the rest imagined; and the reconstruction of every row."""
        return look(self.world, batch.to(self.device), context)

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "model_opt": self.model_opt.state_dict(),
            "actor_opt": self.actor_opt.state_dict(),
            "critic_opt": self.critic_opt.state_dict(),
            "range": self.range,
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_sizes(self.modules.state_dict(), state["modules"])
        self.modules.load_state_dict(state["modules"])
        for name in ("model_opt", "actor_opt", "critic_opt"):
            getattr(self, name).load_state_dict(state[name])
        self.range = state["range"].to(self.device).clone()
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])
        self.updates = state["updates"]


# The losses, in the paper's order; each unreduced.


def model_loss(
    agent: DreamerV3of2023, feat: Tensor, post: State, prior: Tensor, obs: dict[str, Tensor], batch: Batch
) -> tuple[dict[str, Tensor], Metrics]:
    """What arrived with each row, "B T" each, and the KL in its two directions of learning.

    ::

        row        0      1      2          every row counts, the first too: its reward is 0
        feat      f0     f1     f2          f_t has seen o_0..o_t and a_0..a_{t-1}
        predicts  o0 r0  o1 r1  o2 r2       the reward of the state reached, not of the state left
    """
    c = agent.config
    losses = {key: c.recon_scale * dist.loss(obs[key]) for key, dist in agent.decoder(feat).items()}
    losses["reward"] = c.reward_scale * agent.reward(feat).loss(batch.reward)
    goes_on = 1.0 - batch.is_terminal.float()  # a hard label: gamma is not in it
    losses["cont"] = c.cont_scale * agent.cont(feat).loss(goes_on)
    dist = agent.rssm.latent.dist
    dyn, rep = dist(post.stats.detach()).kl(dist(prior)), dist(post.stats).kl(dist(prior.detach()))
    losses["dyn"] = c.dyn_scale * dyn.clamp(min=c.free_nats)  # moves the prior towards what was seen
    losses["rep"] = c.rep_scale * rep.clamp(min=c.free_nats)  # and, less, what is kept of it to the prior
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
    """-w_t [A_t + eta H(pi(z_t))] for t = 0 .. H-1, "H N", with log pi(a_t | z_t) A_t for A_t where actions are
    discrete; w carries no gradient, nor does A beside a log pi.

    Else A_t = (R_t - v(z_t)) / max(1, S) is climbed as it is: z_t followed from earlier actions, so these learn to
    lower the baseline too.
    """
    if isinstance(policy, OneHot):
        advantage = policy.log_prob(action) * advantage.detach()
    return -weight * (advantage + entropy_scale * policy.entropy())


def critic_loss(value: SymlogTwoHot, target: Tensor, slow: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of v_0 .. v_{H-1} to the returns and, as much, to what the slow critic says, "H N".

    ::

        imagined      z_0 ─a_0→ z_1 ─a_1→ z_2  ..  z_{H-1} ─a→ z_H       z_0 was observed
        reward                  r_1       r_2  ..  r_{H-1}     r_H       arrives with the state reached
        target        R_0       R_1       R_2  ..  R_{H-1}               R_t = r_{t+1} + γ c_{t+1} (.. v_{t+1}, R_{t+1})
        weight        c_0       γ c_0 c_1      ..                        no gradient
    """
    return weight * value.loss(target, slow)
