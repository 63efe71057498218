"""DayDreamer: "World Models for Physical Robot Learning", Wu et al. 2022 (arXiv 2206.14176).

The idea. Dreamer learns fast enough for the real world: a quadruped rolls off its back, stands and walks within an
hour of its own time, arms pick and place from a camera and a sparse reward. The robot never waits: an actor decides
at a fixed rate with the newest policy there is, and a learner trains beside it from what has arrived
(``run/asynchronous/``). That is the novelty; the agent is its authors' Dreamer between V2 and V3.

How it differs from its neighbour. Against ``dreamer_v2.py``: layer norms everywhere, a deeper prior, latents and
discrete actions mixed with a share of the uniform, rewards and values learned as symlogs, and a learned start.
Instead of scales to tune it has targets: the KL's scale is adapted until the KL is 3.5 nats, the entropy's until the
policy has half of the entropy it could have; advantages are normalised. Every observation, pictures and vectors
alike, goes into one latent and is rebuilt from it.

Where the equations are::

    world model, Eq. 1-2    model_loss       likelihoods of all sensors, reward, cont; adapted, balanced KL
    imagination             RSSM.imagine     H steps from every posterior state
    targets, Eq. 4          ops.returns      lambda-returns of the target critic, rewards of the states reached
    actor, Eq. 5            actor_loss       normalised advantages, through the dynamics or by REINFORCE; entropy
    critic, Eq. 3           critic_loss      symlog regression on the targets
    scales                  adapted          up or down by a tenth, towards a target

Command: ``reverie robot daydreamer --robot a1 --preset laptop --run runs/a1``.

Defaults are the released code's for the A1; ``arm`` and ``ball`` are its settings for the others. The release trains as
often as its GPU can; ``train_every`` matters to ``reverie train`` alone and is ours.
Deviations. Sequences are uniform over all rows and may cross an episode's start; the release draws an episode first and
its end more often, and drops those shorter than 32 rows. Everything is float32. Adam adds epsilon after the bias
correction. Continuous actions are cut off at +-1 before they are recorded, and in the dream (the gradient passes); the
release records and dreams them as drawn, and cuts them off on the robot. Several discrete actions at once are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from reverie.dists import MSE, Bernoulli, Normal, OneHot, SymlogMSE
from reverie.heads import split_space
from reverie.imagine import look
from reverie.models.latent_world import LatentWorld
from reverie.models.rssm import Categorical, StartedRSSM, State
from reverie.nets import NORM_EPS, Conv, Deconv, LayerMLP
from reverie.ops.returns import td_lambda_returns
from reverie.ops.scalars import symexp
from reverie.optim import Gradient, Optimizer, step
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace, ReverieError


@dataclass(frozen=True)
class Config:
    """The released code's values for the A1; its appendix lists the same but where noted."""

    # Environment and schedule
    pixels: bool = False  # observe all sensors, not the picture alone
    image_size: int = 64  # pixels to a side
    action_repeat: int = 1  # env steps per decision
    steps: int = 72_000  # env steps in all: one hour at 20 Hz
    prefill: int = 5_000  # env steps of uniformly random actions
    pretrain: int = 0  # updates made when learning begins, beside those due
    train_every: int = 4  # env steps between two bursts; ours, the release learns without a limit
    train_updates: int = 1  # updates in a burst
    batch_size: int = 32  # B
    batch_length: int = 32  # L

    # World model
    depth: int = 64  # channels of the first convolution
    stoch: int = 32  # latents
    classes: int = 32  # of each latent
    unimix: float = 0.01  # share of the uniform in each latent's probabilities
    deter: int = 256  # size of h_t, and of the RSSM's hidden layers; 512 for the other robots
    prior_layers: int = 3
    units: int = 512  # width of all other layers
    layers: int = 4  # of each of them
    kl_balance: float = 0.8  # the prior's share of the KL's gradient
    kl_target: float = 3.5  # nats
    kl_limits: tuple[float, float] = (1e-3, 1.0)  # of the scale, which begins at 1

    # Behaviour
    horizon: int = 15  # H
    discount: float = 0.995  # gamma, per decision
    lambda_: float = 0.95
    min_std: float = 0.1  # of continuous actions; the most is 1
    actor_unimix: float = 0.1  # share of the uniform in discrete actions
    entropy_target: float = 0.5  # of the entropy's range, 0 to 1; 0.4 for the other robots
    entropy_limits: tuple[float, float] = (1e-5, 1.0)  # of the scale, which begins at 1
    adapt: float = 0.1  # both scales move by this share
    norm_rate: float = 0.01  # of the advantages' moving mean and standard deviation
    target_every: int = 100  # updates between two copies of the critic to its target

    # Optimisers
    lr: float = 1e-4  # of all three
    adam_eps: float = 1e-6
    clip: float = 100.0  # global norm, each optimiser for itself
    decay: float = 1e-2  # times the learning rate: the share of every kernel taken away by a step


class Scalar(LayerMLP):
    """Features "*B F" to one number each, "*B"; near 0 before training."""

    def __init__(self, features: int, units: int, layers: int):
        super().__init__(features, units, layers, F.elu, 1, scale=0.1)

    def forward(self, feat: Tensor) -> Tensor:
        return super().forward(feat).squeeze(-1)


class Encoder(nn.Module):
    """All sensors to one embedding "*B E": pictures as channels of one, vectors side by side."""

    def __init__(self, space: ObsSpace, c: Config):
        super().__init__()
        images, vectors = split_space(space)
        self.images, self.vectors = list(images), list(vectors)
        if any(s.shape[:2] != (64, 64) for s in images.values()):
            raise ReverieError("daydreamer needs pictures of 64x64; say --image-size 64")
        channels = [sum(s.shape[2] for s in images.values()), *(c.depth * k for k in (1, 2, 4, 8))]
        convs = [Conv(a, b, 4) for a, b in pairwise(channels)] if images else []
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.LayerNorm(conv.weight.shape[0], NORM_EPS) for conv in convs)
        for conv in convs:  # the kernel's area is not counted
            out, _, _, into = conv.weight.shape
            bound = (6 / (out + into)) ** 0.5
            nn.init.uniform_(conv.weight, -bound, bound)
        width = sum(s.shape[0] for s in vectors.values())
        self.net = LayerMLP(width, c.units, c.layers, F.elu) if vectors else None
        self.embed = (32 * c.depth if images else 0) + (c.units if vectors else 0)

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        parts = []
        if self.images:
            x = torch.cat([obs[key] for key in self.images], -1)
            lead, x = x.shape[:-3], x.flatten(0, -4)
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = F.elu(norm(conv(x)))
            parts.append(x.reshape(*lead, -1))
        if self.net is not None:
            parts.append(self.net(torch.cat([obs[key] for key in self.vectors], -1)))
        return torch.cat(parts, -1)


class Decoder(nn.Module):
    """Features "*B F" to every sensor: pictures between 0 and 1, vectors in their own units."""

    def __init__(self, features: int, space: ObsSpace, c: Config):
        super().__init__()
        images, vectors = split_space(space)
        self.channels = {key: s.shape[2] for key, s in images.items()}
        self.sizes = {key: s.shape[0] for key, s in vectors.items()}
        widths = [features, *(c.depth * k for k in (4, 2, 1)), sum(self.channels.values())]
        pairs = zip(pairwise(widths), (5, 5, 6, 6), strict=True) if images else ()
        self.deconvs = nn.ModuleList(Deconv(a, b, k) for (a, b), k in pairs)
        self.norms = (
            nn.ModuleList(nn.LayerNorm(w, NORM_EPS) for w in widths[1:4]) if images else nn.ModuleList()
        )
        width = sum(self.sizes.values())
        self.net = LayerMLP(features, c.units, c.layers, F.elu, width) if vectors else None

    def forward(self, feat: Tensor) -> dict[str, MSE]:
        found: dict[str, MSE] = {}
        if self.channels:
            x = feat.reshape(-1, 1, 1, feat.shape[-1])
            for deconv, norm in zip(self.deconvs, self.norms, strict=False):
                x = F.elu(norm(deconv(x)))
            x = torch.sigmoid(self.deconvs[-1](x))
            x = x.reshape(*feat.shape[:-1], *x.shape[1:])
            parts = x.split([*self.channels.values()], -1)
            found |= {key: MSE(part, 3) for key, part in zip(self.channels, parts, strict=True)}
        if self.net is not None:
            parts = self.net(feat).split([*self.sizes.values()], -1)
            found |= {key: MSE(part, 1) for key, part in zip(self.sizes, parts, strict=True)}
        return found


class Actor(LayerMLP):
    """pi(a | feat): a Gaussian, or one-hot groups with a share of the uniform."""

    def __init__(self, features: int, space: ActionSpace, c: Config):
        outputs = space.size if space.discrete else 2 * space.size
        super().__init__(features, c.units, c.layers, F.elu, outputs, scale=0.1)
        self.space, self.min_std, self.unimix = space, c.min_std, c.actor_unimix

    def forward(self, feat: Tensor) -> Normal | OneHot:  # type: ignore[override]
        out = super().forward(feat)
        if self.space.discrete:
            return OneHot(out, self.space.groups, self.unimix)
        mean, std = out.chunk(2, -1)
        return Normal(torch.tanh(mean), (1 - self.min_std) * torch.sigmoid(std) + self.min_std)

    def spread(self, dist: Normal | OneHot) -> Tensor:
        """The policy's entropy as a part of what it could be, 0 to 1: of each continuous action "... A", or of all
        discrete ones together "... 1"."""
        if isinstance(dist, OneHot):
            return (dist.entropy() / sum(np.log(n) for n in self.space.groups))[..., None]
        return 1 - dist.std.log() / np.log(self.min_std)


class KernelDecay(Optimizer):
    """Adam that first takes a share ``decay`` times the learning rate from every kernel, not from biases or norms."""

    def __init__(self, modules: Mapping[str, nn.Module], c: Config):
        super().__init__(modules, c.lr, c.adam_eps, c.clip)
        self.kernels = [p for p in self.parameters if p.ndim > 1]
        self.kept = 1 - c.decay * c.lr

    @torch.no_grad()
    def move(self, gradient: Gradient) -> None:
        torch._foreach_mul_(self.kernels, self.kept)
        super().move(gradient)


class DayDreamer:
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
            self.encoder = Encoder(obs_space, c)
            latent = Categorical(c.stoch, c.classes, c.unimix)
            self.rssm = StartedRSSM(
                self.encoder.embed, act_space.size, latent, c.deter, c.deter, F.elu, c.prior_layers
            )
            features = self.rssm.features
            self.decoder = Decoder(features, obs_space, c)
            self.reward = Scalar(features, c.units, c.layers)
            self.cont = Scalar(features, c.units, c.layers)
            self.actor = Actor(features, act_space, c)
            self.critic = Scalar(features, c.units, c.layers)
            self.target_critic = Scalar(features, c.units, c.layers)

        model: dict[str, nn.Module] = {"encoder": self.encoder, "rssm": self.rssm, "decoder": self.decoder}
        model |= {"reward": self.reward, "cont": self.cont}
        self.target_critic.requires_grad_(False).load_state_dict(self.critic.state_dict())
        behaviour = {"actor": self.actor, "critic": self.critic, "target_critic": self.target_critic}
        self.modules = nn.ModuleDict(model | behaviour).to(self.device)
        self.model_opt = KernelDecay(model, c)
        self.actor_opt = KernelDecay({"actor": self.actor}, c)
        self.critic_opt = KernelDecay({"critic": self.critic}, c)
        spreads = 1 if act_space.discrete else act_space.size
        # What is neither learned by gradient nor drawn
        self.scales = {
            "kl": torch.ones((), device=self.device),
            "entropy": torch.ones(spreads, device=self.device),
            "advantage": torch.zeros(3, device=self.device),  # moving mean, mean square, and weight of both
        }
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
            lambda feat: symexp(self.reward(feat)),
            lambda feat: torch.sigmoid(self.cont(feat)),
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
        action = dist.mode if mode == "eval" else self.draw(dist, generator)
        if not self.act_space.discrete:
            action = action.clamp(-1.0, 1.0)
        return action.cpu().numpy(), (state, action)

    def draw(self, dist: Normal | OneHot, generator: Generator) -> Tensor:
        return dist.draw(generator) if isinstance(dist, OneHot) else dist.sample(generator)

    # Learning

    def update(self, batch: Batch) -> Metrics:
        """All three gradients from the same parameters, then all three steps."""
        c, generator, space = self.config, self.generators["learn"], self.act_space
        batch = batch.to(self.device)
        obs = self.scale(batch.obs)
        post, prior = self.rssm.observe(self.encoder(obs), batch.prev_action, batch.is_first, generator)
        feat = self.rssm.feat(post)
        losses, metrics, kl_scale = model_loss(self, feat, post, prior, obs, batch)
        model = self.model_opt.gradient(torch.stack([*losses.values()]).sum())

        with torch.set_grad_enabled(not space.discrete):  # REINFORCE needs no derivative of the world
            dream, action = self.dream(post, generator)  # "H+1 N F", "H N A"
            reward, value = symexp(self.reward(dream)), symexp(self.target_critic(dream))
            ends = torch.sigmoid(self.cont(dream[1:]))
            cont = torch.cat([1.0 - batch.is_terminal.flatten()[None].float(), ends])
            target = td_lambda_returns(reward[1:], value[1:], c.discount * cont[1:], c.lambda_)
        weight = (cont[:-1] * c.discount).cumprod(0).detach() / c.discount
        advantage, moments = normalised(target - value[:-1], self.scales["advantage"], c.norm_rate)
        policy = self.actor(dream[:-1].detach())
        spread = self.actor.spread(policy)
        entropy_scale = adapted(
            self.scales["entropy"],
            spread.detach().mean((0, 1)),
            c.entropy_target,
            c.adapt,
            c.entropy_limits,
            -1,
        )
        loss = actor_loss(policy, action.detach(), advantage, weight, (entropy_scale * spread).sum(-1))
        actor = self.actor_opt.gradient(loss, keep_graph=not space.discrete)
        critic_loss_ = critic_loss(self.critic(dream[:-1].detach()), target.detach(), weight)
        critic = self.critic_opt.gradient(critic_loss_)

        step(model, actor, critic)
        self.scales = {"kl": kl_scale, "entropy": entropy_scale, "advantage": moments}
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
            "actor/spread": spread.detach().mean(),
            "scale/kl": kl_scale,
            "scale/entropy": entropy_scale.mean(),
            "scale/advantage": moments_of(moments)[1],
        }

    def dream(self, post: State, generator: Generator) -> tuple[Tensor, Tensor]:
        """H steps from every posterior state: features "H+1 N F", the start's first, and actions "H N A"."""
        start = post.detach().flatten()

        def policy(feat: Tensor) -> Tensor:  # reads the dream, does not shape it
            dist = self.actor(feat.detach())
            if isinstance(dist, OneHot):
                return dist.draw(generator)
            action = dist.sample(generator)
            return action + (action.clamp(-1.0, 1.0) - action).detach()  # as the robot does it

        imagined = self.rssm.imagine(start, policy, self.config.horizon, generator)
        return torch.cat([self.rssm.feat(start)[None], imagined.feat]), imagined.action

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
            "scales": {name: scale.clone() for name, scale in self.scales.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        for name in ("model_opt", "actor_opt", "critic_opt"):
            getattr(self, name).load_state_dict(state[name])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])
        self.scales = {name: scale.to(self.device).clone() for name, scale in state["scales"].items()}
        self.updates = state["updates"]


# The losses, in the paper's order.


def model_loss(
    agent: DayDreamer, feat: Tensor, post: State, prior: Tensor, obs: dict[str, Tensor], batch: Batch
) -> tuple[dict[str, Tensor], Metrics, Tensor]:
    """Eq. 1 and 2: squared errors of every sensor, of the reward's symlog, cross-entropy of going on, and the KL, whose
    scale is adapted first; the new scale is the third value.

    ::

        row        0      1      2          every row counts, the first too: its reward is 0
        feat      f0     f1     f2          f_t has seen o_0..o_t and a_0..a_{t-1}
        predicts  o0 r0  o1 r1  o2 r2       the reward of the state reached, not of the state left
    """
    c = agent.config
    losses = {key: dist.loss(obs[key]).mean() for key, dist in agent.decoder(feat).items()}
    losses["reward"] = SymlogMSE(agent.reward(feat)).loss(batch.reward).mean()
    losses["cont"] = Bernoulli(agent.cont(feat)).loss(1.0 - batch.is_terminal.float()).mean()
    dist = agent.rssm.latent.dist
    dyn, rep = dist(post.stats.detach()).kl(dist(prior)), dist(post.stats).kl(dist(prior.detach()))
    kl = (c.kl_balance * dyn + (1 - c.kl_balance) * rep).mean()
    scale = adapted(agent.scales["kl"], kl.detach(), c.kl_target, c.adapt, c.kl_limits)
    losses["kl"] = scale * kl
    with torch.no_grad():
        metrics = {
            "model/kl": kl.detach(),
            "model/prior_entropy": dist(prior).entropy().mean(),
            "model/post_entropy": dist(post.stats).entropy().mean(),
        }
    return losses, metrics, scale


def adapted(
    scale: Tensor, value: Tensor, target: float, share: float, limits: tuple[float, float], sign: int = 1
) -> Tensor:
    """A scale moved by a ``share`` of itself while ``value`` is that far from its ``target``: up where it is above,
    with ``sign`` -1 where it is below."""
    above, below = value > target * (1 + share), value < target / (1 + share)
    up, down = (above, below) if sign > 0 else (below, above)
    scale = torch.where(up, scale * (1 + share), torch.where(down, scale / (1 + share), scale))
    return scale.clamp(*limits)


def normalised(x: Tensor, past: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """``x`` less its moving mean, by its moving standard deviation; and the moments, moved by ``rate``."""
    now = torch.stack([x.detach().mean(), x.detach().square().mean(), torch.ones_like(past[2])])
    moments = torch.lerp(past, now, rate)
    mean, std = moments_of(moments)
    return (x - mean) / std, moments


def moments_of(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, debiased: the weight of all that was seen is the third of ``moments``."""
    mean, square = moments[0] / moments[2], moments[1] / moments[2]
    return mean, (square - mean * mean).clamp(min=1e-8).sqrt()


def actor_loss(
    policy: Normal | OneHot, action: Tensor, advantage: Tensor, weight: Tensor, entropy: Tensor
) -> Tensor:
    """Eq. 5: -w [A + eta H], or -w [log pi(a) A + eta H] where actions are discrete.

    ::

        imagined      z_0 ─a_0→ z_1 ─a_1→ z_2  ..  z_{H-1} ─a→ z_H      z_0 was observed
        target        V_0       V_1       V_2  ..  V_{H-1}              V_t begins with the reward of z_{t+1}
        weight        c_0       c_0 γc_1  ..                            "H N", no gradient
    """
    if isinstance(policy, OneHot):
        advantage = policy.log_prob(action) * advantage.detach()
    return -(weight * (advantage + entropy)).mean()


def critic_loss(value: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Eq. 3: the squared error between symlogs of v_0 .. v_{H-1} and the targets, which carry no gradient."""
    return (weight * SymlogMSE(value).loss(target)).mean()
