"""MPC with a learned ensemble: "Deep Reinforcement Learning in a Handful of Trials", Chua et al. 2018 (PETS, arXiv
1805.12114), and as a preset "Neural Network Dynamics for Model-Based Deep RL with Model-Free Fine-Tuning",
Nagabandi et al. 2018 (MBMF, arXiv 1708.02596).

The idea. Learn what one step does; search for the actions whose imagined future is best; do the first of them and
search again. An ensemble of probabilistic networks tells noise of the world from ignorance of the model, and the
search, which would exploit every error of a single network, meets all of them: each plan is judged by many
particles, each believing in one network.

How it differs from its neighbours. It imagines observations, one step after another, where ``planet.py`` imagines
latent states: so it needs observations that say all there is to know, and no pictures. ``dyna_q.py`` learns a value
from what its model says; here nothing is learned but the model.

Where the equations are::

    probabilistic ensemble, Sec. 4     models.dynamics    M networks, one product each
    its loss, Eq. 1                    model_loss         log-likelihood, bounds of the variance, weight decay
    trajectory sampling, Sec. 5        MPC.rollout        TS-inf: a particle keeps its network; TS1: it draws anew
    planning, Alg. 1                   planners.cem       from the last plan, shifted by one step

Command: ``reverie train mpc --env Pendulum-v1 --preset laptop --run runs/mpc``.

Defaults are PETS' values for its cart-pole. Deviations. The reward is learned with the next observation, where PETS
is given it. Outputs are standardised as inputs are. After each episode the networks take a fixed number of steps,
as many as five passes over half of all the run's data, where PETS' number grows with the data; each network draws
its rows anew from every batch, where PETS fixes each network's share. Ends are learned only if ``ends`` is set.
Discrete actions are ours. Of MBMF there is the model and its controller; fine-tuning by a model-free method is not
here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from reverie.data.transitions import Transitions, join_arrays, transitions, vectors
from reverie.models.dynamics import Dynamics, Folded, bootstrap, gaussian_loss
from reverie.models.dynamics_world import DynamicsWorld
from reverie.optim import Optimizer, step
from reverie.planners import Candidates, Planner, Returns
from reverie.planners.cem import CEM
from reverie.planners.mppi import MPPI
from reverie.planners.shooting import Shooting
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace, ReverieError


@dataclass(frozen=True)
class Config:
    """PETS' values for its cart-pole, from the released code."""

    # Environment and schedule
    action_repeat: int = 1
    steps: int = 10_000  # env steps in all: 50 episodes of 200
    prefill: int = 200  # env steps of uniformly random actions: one episode
    train_every: int = 200  # env steps between two bursts of updates: one episode
    train_updates: int = 800  # five passes in batches of 32, over the mean of what there is in 50 episodes
    batch_size: int = 32  # for each network

    # World model (Sec. 4)
    members: int = 5  # B, networks
    units: int = 500
    layers: int = 3
    act: Literal["swish", "relu"] = "swish"
    noisy: bool = True  # False: the networks predict no variance and learn by squared error
    ends: bool = False  # learn when episodes end
    bounds_scale: float = 0.01  # of the distance between the bounds of the log variance
    decay: tuple[float, ...] = (1e-4, 2.5e-4, 2.5e-4, 5e-4)  # of each layer's weights
    lr: float = 1e-3
    adam_eps: float = 1e-8

    # Behaviour (Alg. 1)
    planner: Literal["cem", "shooting", "mppi"] = "cem"  # shooting is an ablation (Fig. 3)
    horizon: int = 25  # T, decisions
    candidates: int = 400
    elites: int = 40
    iterations: int = 5
    momentum: float = 0.1  # alpha: share of the old mean and variance at a refit
    init_std: float = 0.5  # of the first candidates: a quarter of the action's range
    temperature: float = 1.0  # of MPPI, in the unit of a return
    particles: int = 20  # P
    propagation: Literal["ts_inf", "ts1"] = "ts_inf"
    exploration_noise: float = 0.0  # std of the Gaussian added while training


class MPC:
    """The agent: one ensemble, one optimiser, and a planner that knows neither."""

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
        self.keys, inputs = vectors(obs_space, "mpc")
        c = config
        if c.particles % c.members:
            raise ReverieError(
                f"every network gets as many particles as another: --particles {c.particles} should be a multiple of "
                f"--members {c.members}"
            )
        if len(c.decay) not in (0, c.layers + 1):
            raise ReverieError(
                f"--decay has {len(c.decay)} numbers, and {c.layers} hidden layers need {c.layers + 1}, or none"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            act = {"swish": F.silu, "relu": F.relu}[c.act]
            self.dynamics = Dynamics(
                inputs, act_space.size, c.members, c.units, c.layers, act, c.noisy, c.ends
            ).to(self.device)
        self.modules = nn.ModuleDict({"dynamics": self.dynamics})
        self.model_opt = Optimizer({"dynamics": self.dynamics}, c.lr, c.adam_eps)
        self.planner = make_planner(c)
        self.updates = 0
        # One stream of randomness for each use: how often one is called cannot shift another.
        self.generators = {
            use: Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train", "eval", "dream"))
        }

    @property
    def world(self) -> DynamicsWorld:
        return DynamicsWorld(self.dynamics, self.obs_space, self.generators["dream"])

    # Acting

    def initial(self, n: int) -> Tensor:
        """The rest of the last plan, "n H A": nothing."""
        return torch.zeros(n, self.config.horizon, self.act_space.size, device=self.device)

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray], carry: Tensor, mode: Mode) -> tuple[np.ndarray, Tensor]:
        """The first action of the best plan from here; the rest of it is where the next search begins."""
        generator = self.generators[mode]
        start = join_arrays(obs, self.keys).to(self.device)
        keep = torch.from_numpy(~obs["is_first"]).to(self.device)
        dynamics = self.dynamics.folded()
        rollout = lambda candidates: self.rollout(dynamics, start, candidates, generator)
        guess = None if self.config.planner == "shooting" else carry * keep[:, None, None]
        plan = self.planner(rollout, len(start), self.act_space, generator, self.device, guess)
        action = plan[:, 0]
        if mode == "train" and self.config.exploration_noise and not self.act_space.discrete:
            noise = torch.randn(action.shape, generator=generator, device=self.device)
            action = (action + self.config.exploration_noise * noise).clamp(-1.0, 1.0)
        rest = torch.cat([plan[:, 1:], torch.zeros_like(plan[:, :1])], 1)
        return action.cpu().numpy(), rest

    def rollout(
        self, dynamics: Folded, start: Tensor, candidates: Candidates, generator: Generator
    ) -> Returns:
        """The mean return of P particles that follow each candidate from ``start`` "B O".

        ::

            particle      1   2   3   4   5   6  ..  P         P / M of them for each of M networks
            TS-inf        a   b   c   d   e   a  ..            the network it believes in, all the way
            TS1           they are shuffled after every step   a network of its own for every step

        The reward is that of the states reached; what comes after an end that the model expects counts the less.
        """
        c = self.config
        _, streams, n, size = candidates.shape
        members, copies = c.members, c.particles // c.members
        rows = streams * n * copies
        obs = start.repeat_interleave(n * copies, 0).expand(members, rows, -1)
        total, alive = start.new_zeros(members, rows), start.new_ones(members, rows)
        for action in candidates.flatten(1, 2).repeat_interleave(copies, 1):
            told = dynamics.imagine(obs, action.expand(members, rows, size), generator)
            total += alive * told.reward if c.ends else told.reward
            obs = told.obs
            if c.ends:
                alive = alive * told.cont
            if c.propagation == "ts1":
                state = torch.cat([obs, total[..., None], alive[..., None]], -1)
                state = shuffled(state, streams * n, generator)
                obs, total, alive = state[..., :-2], state[..., -2], state[..., -1]
        return total.view(members, streams, n, copies).mean((0, 3))

    # Learning

    def sample(self, replay: Any, rng: np.random.Generator) -> Batch:
        return replay.transitions(self.config.batch_size * self.config.members, rng)

    def update(self, batch: Batch) -> Metrics:
        """One step of every network, each on its own draw of the rows."""
        t = transitions(batch.to(self.device), self.keys)
        self.dynamics.see(t.obs, t.action, t.reward, t.next_obs)
        losses, metrics = model_loss(self, t, self.generators["learn"])
        model = self.model_opt.gradient(torch.stack([*losses.values()]).sum())
        step(model)
        self.updates += 1
        return {
            **{f"loss/{name}": loss.detach() for name, loss in losses.items()},
            **metrics,
            "grad/model": model.norm,
        }

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Nothing: it sees no pictures."""
        return {}

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
        return CEM(
            c.horizon,
            c.iterations,
            c.candidates,
            c.elites,
            c.init_std,
            min_var=0.0,
            momentum=c.momentum,
            bounded=True,
            enough=1e-3,
        )
    if c.planner == "shooting":
        return Shooting(c.horizon, c.candidates)
    return MPPI(c.horizon, c.iterations, c.candidates, c.temperature, c.init_std)


def shuffled(state: Tensor, groups: int, generator: Generator) -> Tensor:
    """The particles "M rows X" of each of ``groups`` candidates in a new order, over all networks."""
    members, rows, size = state.shape
    copies = rows // groups
    state = state.view(members, groups, copies, size).transpose(0, 1).reshape(groups, members * copies, size)
    order = torch.rand(groups, members * copies, generator=generator, device=state.device).argsort(1)
    state = state.gather(1, order[..., None].expand_as(state))
    return state.view(groups, members, copies, size).transpose(0, 1).reshape(members, rows, size)


# The loss.


def model_loss(agent: MPC, t: Transitions, generator: Generator) -> tuple[dict[str, Tensor], Metrics]:
    """Eq. 1, summed over networks: each sees as many rows as it would of its share, drawn with replacement.

    ::

        likelihood   (mean - y)^2 e^-log_var + log_var      y = reward and next_obs - obs, standardised
        bounds       the learned bounds of log_var are drawn together
        decay        of the weights, layer by layer
    """
    c, dynamics = agent.config, agent.dynamics
    n = len(t.obs)
    index = bootstrap(n, max(n // c.members, 1), c.members, generator)
    obs, next_obs = t.obs[index], t.next_obs[index]
    told = dynamics(obs, t.action[index])
    fit = gaussian_loss(told, dynamics.target(obs, t.reward[index], next_obs))
    losses = {"model": fit.sum()}
    if c.noisy:
        losses["bounds"] = c.bounds_scale * dynamics.spread()
    if c.decay:
        losses["decay"] = dynamics.net.decay(c.decay)
    if told.end is not None:
        losses["ends"] = F.binary_cross_entropy_with_logits(told.end, 1 - t.cont[index]) * c.members
    with torch.no_grad():
        error = told.mean - dynamics.target(obs, t.reward[index], next_obs)
        metrics = {
            "model/reward_error": error[..., 0].square().mean().sqrt(),
            "model/obs_error": error[..., 1:].square().mean().sqrt(),
            "model/std": torch.exp(0.5 * told.log_var).mean(),
        }
    return losses, metrics
