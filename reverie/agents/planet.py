"""PlaNet: "Learning Latent Dynamics for Planning from Pixels", Hafner et al. 2019 (arXiv 1811.04551).

The idea. Learn a latent world from pictures, with a deterministic and a stochastic path; at every decision
imagine a thousand action sequences in it, keep the best hundred, refit, ten times over; do the first action of
what remains.

How it differs from its neighbours. There is no policy network and no value: behaviour is searched for anew at
each decision, twelve steps deep. ``dreamer_v1.py`` keeps this world and replaces the search by an actor trained
in imagination.

Where the equations are::

    RSSM, Eq. 4                     models.rssm
    variational bound, Eq. 3        model_loss          likelihoods and KL with free nats
    latent overshooting, Eq. 7      overshooting_loss   off by default, as in the final agent
    planning, Alg. 2                planners.cem        told what a sequence is worth by ``rollout``

Command: ``reverie train planet --env dmc/cartpole_swingup --preset cartpole_swingup --run runs/planet``.

Defaults are the authors' final code, where it and the paper differ (reward head, reward scale). Deviations.
Sequences are uniform over all rows and may cross an episode's start, where state and action are zeroed; the
GRU's reset gate acts after the recurrent product; Adam adds epsilon after the bias correction. Discrete
actions (a categorical cross-entropy method, epsilon-greedy collection) and vector observations are ours.
PlaNet does not model the end of an episode: a terminal row is one more row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from reverie.dists import OneHot, UnitNormal
from reverie.heads import Decoder, Encoder, Scalar
from reverie.imagine import look
from reverie.models.latent_world import LatentWorld
from reverie.models.rssm import RSSM, Gaussian, Memoryless, State
from reverie.nets import GRUCell
from reverie.optim import Optimizer, step
from reverie.planners import Candidates, Planner, Returns
from reverie.planners.cem import CEM
from reverie.planners.mppi import MPPI
from reverie.planners.shooting import Shooting
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace
from reverie.when import linear


@dataclass(frozen=True)
class Config:
    """The final code's values; section and appendix numbers are the paper's."""

    # Environment and schedule
    pixels: bool = True  # observe nothing but the picture (Sec. 5)
    image_size: int = 64  # pixels to a side (Sec. 5)
    action_repeat: int = 2  # R; each task has its own: 8, 4 or 2 (App. A), see the presets
    steps: int = 1_000_000  # env steps in all: 1000 episodes (Sec. 5)
    prefill: int = 5_000  # env steps of uniformly random actions: S = 5 episodes (App. A)
    pretrain: int = 0  # updates before the first burst
    train_every: int = 1_000  # env steps between two bursts of updates: one episode
    train_updates: int = 100  # C (App. A)
    batch_size: int = 50  # B (App. A)
    batch_length: int = 50  # L (App. A)

    # World model (App. A)
    depth: int = 32  # channels of the first convolution
    stoch: int = 30  # size of s_t
    deter: int = 200  # size of h_t, and of the RSSM's hidden layers
    min_std: float = 0.1  # floor of the state's standard deviation
    model: Literal["rssm", "deterministic", "stochastic"] = "rssm"  # the last two are ablations (Fig. 4)
    reward_units: int = 300
    reward_layers: int = 3
    bits: int = 5  # of each colour channel that are kept
    reward_scale: float = 10.0
    kl_scale: float = 1.0
    free_nats: float = 3.0  # of each row's KL
    overshooting: int = 0  # D, the longest distance of latent overshooting (Eq. 7); 0 for none
    overshooting_scale: float = 1.0  # beta (Eq. 7)

    # Behaviour (Alg. 2, App. A)
    planner: Literal["cem", "shooting", "mppi"] = "cem"  # shooting is an ablation (Fig. 5)
    horizon: int = 12  # H, decisions
    candidates: int = 1000  # J
    elites: int = 100  # K
    iterations: int = 10  # I
    random_collection: bool = False  # act at random while training: an ablation (Fig. 5)
    exploration_noise: float = 0.3  # std of the Gaussian added to the plan
    epsilon: float = 0.1  # random discrete actions while training

    # Optimiser (App. A)
    lr: float = 1e-3
    adam_eps: float = 1e-4
    clip: float = 1000.0  # global norm
    decay_after: int = 0  # updates at this rate; then it falls in a straight line. Ours
    decay_updates: int = 0  # over so many updates; 0: it never falls, as in the paper
    decay_to: float = 0.1  # to this share of itself


class PlaNet:
    """The agent: one model, one optimiser, and a planner that knows neither."""

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
            latent = Gaussian(c.stoch, c.min_std, stochastic=c.model != "deterministic")
            cell = Memoryless() if c.model == "stochastic" else GRUCell(c.deter, c.deter)
            self.rssm = RSSM(self.encoder.embed, act_space.size, latent, cell, c.deter, F.relu)
            self.decoder = Decoder(self.rssm.features, obs_space, c.depth, c.deter)
            self.reward = Scalar(self.rssm.features, c.reward_units, c.reward_layers, F.relu)
        self.planner = make_planner(c)

        model = {"encoder": self.encoder, "rssm": self.rssm, "decoder": self.decoder, "reward": self.reward}
        self.modules = nn.ModuleDict(model).to(self.device)
        self.model_opt = Optimizer(model, c.lr, c.adam_eps, c.clip)
        self.updates = 0
        # One stream of randomness for each use: how often one is called cannot shift another.
        self.generators = {
            use: Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train", "eval", "dream"))
        }

    @property
    def world(self) -> LatentWorld:
        generator = self.generators["dream"]
        scale = lambda obs: self.scale(obs, generator)
        return LatentWorld(
            self.rssm, self.encoder, self.decoder, self.reward, None, scale, self.unscale, generator
        )

    def scale(self, obs: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Images quantised to ``bits`` a channel, with fresh uniform noise within each step, in [-0.5, 0.5).

        The noise has 256 levels: eight pixels' from one draw, which would else cost as much as a convolution.
        """
        bits = self.config.bits

        def picture(image: Tensor) -> Tensor:
            draws = torch.empty(-(-image.numel() // 8), dtype=torch.int64, device=image.device)
            noise = draws.random_(-(2**63), None, generator=generator).view(torch.uint8)[: image.numel()]
            fine = (image >> (8 - bits)).to(torch.int32).mul_(256).add_(noise.view(image.shape))
            return fine.float().add_(0.5).div_(2 ** (bits + 8)).sub_(0.5)

        return {
            key: picture(obs[key]) if space.is_image else obs[key] for key, space in self.obs_space.items()
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
        embed = self.encoder(self.scale(seen, generator))
        state = self.rssm.obs_step(state, prev_action, embed, is_first, generator)
        if mode == "train" and self.config.random_collection:
            action = self.explore(torch.zeros_like(prev_action), generator, noise=1.0, epsilon=1.0)
        else:
            action = self.plan(state, generator)
            if mode == "train":
                c = self.config
                action = self.explore(action, generator, c.exploration_noise, c.epsilon)
        return action.cpu().numpy(), (state, action)

    def plan(self, state: State, generator: Generator) -> Tensor:
        """The first action of the best plan found from each state, "n A"."""
        rollout = lambda candidates: self.rollout(state, candidates, generator)
        n = len(state.deter)
        return self.planner(rollout, n, self.act_space, generator, self.device)[:, 0]

    def rollout(self, start: State, candidates: Candidates, generator: Generator) -> Returns:
        """Sum of the mean rewards at s_{t+1} .. s_{t+H}, one sampled path per candidate (Alg. 2).

        All candidates of a stream start from the same posterior sample; the reward of the start itself is not
        counted: no plan can change it.
        """
        _, streams, n, _ = candidates.shape
        state = State(*(part.repeat_interleave(n, 0) for part in start))
        total = torch.zeros(streams * n, device=self.device)
        for action in candidates:
            state = self.rssm.img_step(state, action.flatten(0, 1), generator)
            total += self.reward(self.rssm.feat(state))
        return total.view(streams, n)

    def explore(self, action: Tensor, generator: Generator, noise: float, epsilon: float) -> Tensor:
        """Gaussian noise, clipped; or each discrete group at random with probability ``epsilon``."""
        groups = self.act_space.groups
        if not groups:
            gauss = torch.randn(action.shape, generator=generator, device=action.device)
            return (action + noise * gauss).clamp(-1.0, 1.0)
        random = OneHot(torch.zeros_like(action), groups).draw(generator)
        coin = torch.rand(len(action), len(groups), generator=generator, device=action.device) < epsilon
        return torch.where(
            coin.repeat_interleave(torch.tensor(groups, device=action.device), -1), random, action
        )

    # Learning

    def update(self, batch: Batch) -> Metrics:
        """One step on the variational bound."""
        c, generator = self.config, self.generators["learn"]
        batch = batch.to(self.device)
        obs = self.scale(batch.obs, generator)  # the same noise is encoded and predicted
        embed = self.encoder(obs)
        post, prior = self.rssm.observe(embed, batch.prev_action, batch.is_first, generator)
        losses, metrics = model_loss(self, self.rssm.feat(post), post, prior, obs, batch)
        if c.overshooting > 1:
            losses["overshooting"] = overshooting_loss(self, post, batch, generator)
        if c.decay_updates:
            self.model_opt.lr = c.lr * linear(1.0, c.decay_to, c.decay_updates)(self.updates - c.decay_after)
        model = self.model_opt.gradient(torch.stack([*losses.values()]).sum())
        step(model)
        self.updates += 1
        return {
            **{f"loss/{name}": loss.detach() for name, loss in losses.items()},
            **metrics,
            "grad/model": model.norm,
        }

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Open loop: ``context`` rows seen, the rest imagined; and the reconstruction of every row."""
        return look(self.world, batch.to(self.device), context)

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "model_opt": self.model_opt.state_dict(),
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.model_opt.load_state_dict(state["model_opt"])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])
        self.updates = state["updates"]


def make_planner(c: Config) -> Planner:
    if c.planner == "cem":
        return CEM(c.horizon, c.iterations, c.candidates, c.elites)
    if c.planner == "shooting":
        return Shooting(c.horizon, c.candidates)
    return MPPI(c.horizon, iterations=c.iterations, candidates=c.candidates)


# The losses, in the paper's order.


def model_loss(
    agent: PlaNet, feat: Tensor, post: State, prior: Tensor, obs: dict[str, Tensor], batch: Batch
) -> tuple[dict[str, Tensor], Metrics]:
    """Eq. 3, negated: likelihood of what arrived with each row, and the KL from the prior to the posterior.

    ::

        row        0      1      2          every row counts, the first too: its reward is 0
        feat      f0     f1     f2          f_t has seen o_0..o_t and a_0..a_{t-1}
        predicts  o0 r0  o1 r1  o2 r2       the reward of the state reached, not of the state left

    Gradient flows into posterior and prior alike; the free nats are subtracted from each row's KL.
    """
    c = agent.config
    losses = {key: dist.loss(obs[key]).mean() for key, dist in agent.decoder(feat).items()}
    losses["reward"] = c.reward_scale * UnitNormal(agent.reward(feat)).loss(batch.reward).mean()
    posterior, before = agent.rssm.latent.dist(post.stats), agent.rssm.latent.dist(prior)
    kl = posterior.kl(before)
    # A deterministic world has no noise whose cost could be counted; as in the released code's ablation, nothing then
    # teaches its prior what the next picture will say.
    kl_scale = 0.0 if c.model == "deterministic" else c.kl_scale
    losses["kl"] = kl_scale * (kl - c.free_nats).clamp(min=0).mean()
    with torch.no_grad():
        metrics = {
            "model/kl": kl.mean(),
            "model/prior_entropy": before.entropy().mean(),
            "model/post_entropy": posterior.entropy().mean(),
        }
    return losses, metrics


def overshooting_loss(agent: PlaNet, post: State, batch: Batch, generator: Generator) -> Tensor:
    """Eq. 7: priors that looked away for d = 2..D steps against the posteriors of the rows they arrive at.

    ::

        row            0        1        2        3
        posterior     q0       q1       q2       q3      targets, without gradient
        from row 0     ·       d=1      d=2      d=3     rolled with the actions of the data
        from row 1              ·       d=1      d=2     d = 1 is the KL of ``model_loss``

    Rows past the end of a sequence, or beyond an episode's start, do not count. The mean is over those that do.
    """
    c, rssm = agent.config, agent.rssm
    batch_size, time = batch.reward.shape
    state, total = post, post.deter.new_zeros(())
    reached = torch.ones_like(batch.is_first)
    for d in range(1, min(c.overshooting, time - 1) + 1):
        shifted = State(
            *(part[:, :-1] for part in state)
        )  # "B T-d ...": starts that still have a row to go to
        action = batch.prev_action[:, d:]
        state = rssm.img_step(shifted.flatten(), action.flatten(0, 1), generator)
        state = State(*(part.unflatten(0, (batch_size, time - d)) for part in state))
        reached = reached[:, :-1] & ~batch.is_first[:, d:]
        if d > 1:
            target = rssm.latent.dist(post.stats[:, d:].detach())
            kl = (target.kl(rssm.latent.dist(state.stats)) - c.free_nats).clamp(min=0)
            total = total + (kl * reached).sum() / reached.sum().clamp(min=1)
    return c.overshooting_scale * total / c.overshooting
