"""NAF: "Continuous Deep Q-Learning with Model-based Acceleration", Gu et al. 2016 (arXiv 1603.00748).

The idea. Q-learning with continuous actions needs the best one in closed form: let Q be a value less a quadratic in
the action, then its maximum is the quadratic's centre and no second network has to be trained. And when real steps
are dear, add imagined ones from a model so simple that it can be fitted anew after each episode.

How it differs from its neighbours. ``ddpg.py`` trains an actor to find the best action of any Q; here Q has but one
shape, and the actor is part of it. Its imagination is ``dyna_q.py``'s, with a local linear model in place of the
table and a few steps in a row in place of one.

Where the equations are::

    Q = V - (u - mu)' P (u - mu) / 2, Eq. 5, 6     NAF.value         P = L L', L lower triangular
    target, Alg. 1                                 NAF.target        y = r + gamma V'(s'): no action is needed
    imagination rollouts, Alg. 2                   NAF.imagine       l steps from real states, remembered apart
    time-varying linear model, Sec. 5.3            fit_local         of the latest episodes, one for every step

Command: ``reverie train naf --env Pendulum-v1 --preset laptop imagination``.

Where the paper tunes a number by task, the default is that of a public implementation. Deviations. No batch
normalisation. No iLQG controllers among the rollouts. The linear models are ridge fits to the rows of a few steps
around each; the reward, which the paper's models are given, is fitted with squares beside the linear terms. No end is
imagined. The paper does l updates from imagination for each real step; their number is a setting of its own here, so
that rollouts of different lengths can be compared.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.data.ring import Ring
from reverie.data.transitions import Transitions, continuous, join_arrays, transitions, vectors
from reverie.nets import Ensemble
from reverie.optim import Follow, Optimizer, step
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace


@dataclass(frozen=True)
class Config:
    """The paper's values (Sec. 6, App.), unless a line says otherwise."""

    # Environment and schedule
    action_repeat: int = 1  # env steps per decision
    steps: int = 1_000_000  # env steps in all; the paper counts episodes: up to 2,500
    prefill: int = 1_000  # env steps of uniformly random actions; ours, the paper names none
    train_every: int = 1  # env steps between two bursts of updates (Alg. 1)
    train_updates: int = 5  # I, updates in a burst
    batch_size: int = 128  # of a public implementation

    # Learning
    units: tuple[int, ...] = (200, 200)
    discount: float = 0.99  # gamma, per decision
    tau: float = 0.001  # how far the target goes at every update
    noise_theta: float = 0.15  # of the Ornstein-Uhlenbeck process
    noise_sigma: float = 0.2
    noise_scale: float = 0.3  # tuned by task from 0.1, 0.3, 1

    # Imagination (Alg. 2)
    imagination: int = 0  # l, steps of a rollout; 0 for none
    imagined_updates: int = 5  # after each one from the replay
    rollouts: int = 5  # begun at each update; ours
    fit_episodes: int = 5  # the latest ones, that the model is fitted to
    fit_window: int = 5  # steps before and after each that its model is fitted to as well; ours
    ridge: float = 1e-3  # of the fit, against rows of unit variance; ours
    imagined: int = 50_000  # transitions remembered; ours
    imagine_until: int = 100_000  # updates from imagination and no more: model errors hurt in the end; ours

    # Optimiser
    lr: float = 1e-3  # tuned by task from 1e-4, 1e-3, 1e-2
    adam_eps: float = 1e-8


class Quadratic(NamedTuple):
    """Q of N states as a function of the action."""

    mu: Tensor  # "N A", the best action
    lower: Tensor  # "N A A", L: P = L L'
    top: Tensor  # "N", V: what the best action is worth

    def __call__(self, action: Tensor) -> Tensor:
        """Eq. 5 and 6: V - |L' (u - mu)|^2 / 2, "N"."""
        away = self.lower.transpose(1, 2) @ (action - self.mu)[..., None]
        return self.top - 0.5 * away.square().sum((1, 2))


class Head(nn.Module):
    """One network whose outputs are mu, V and the A (A + 1) / 2 entries of L, row by row."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.actions = actions
        self.row, self.column = torch.tril_indices(actions, actions).tolist()
        self.net = Ensemble(inputs, config.units, actions + 1 + len(self.row))

    def forward(self, obs: Tensor) -> Quadratic:
        mu, top, entries = self.net(obs)[0].split([self.actions, 1, len(self.row)], -1)
        return Quadratic(torch.tanh(mu), self.triangle(entries), top[:, 0])

    def triangle(self, entries: Tensor) -> Tensor:
        """L: entries where they belong, those of the diagonal exponentiated, so that P is positive."""
        lower = entries.new_zeros(len(entries), self.actions, self.actions)
        on = torch.tensor([r == c for r, c in zip(self.row, self.column, strict=True)], device=entries.device)
        # exp of the diagonal alone: that of an entry which is not used could overflow, and its gradient with it
        lower[:, self.row, self.column] = torch.where(on, torch.where(on, entries, 0.0).exp(), entries)
        return lower


class Local(NamedTuple):
    """Linear models, one for every step of an episode, around what was seen there lately."""

    mean: Tensor  # "T I" of [obs, action]
    std: Tensor  # "T I"
    change: Tensor  # "T 1+I O": next_obs - obs from [1, x], x standardised
    reward: Tensor  # "T 1+2I 1": from [1, x, x^2]

    def step(self, time: Tensor, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Reward "N" and next obs "N O" at the steps ``time`` "N"; beyond the last, the last model goes on."""
        time = time.clamp(max=len(self.mean) - 1)
        x = (torch.cat([obs, action], -1) - self.mean[time]) / self.std[time]
        one = torch.ones_like(x[:, :1])
        change = torch.cat([one, x], -1)[:, None] @ self.change[time]
        reward = torch.cat([one, x, x * x], -1)[:, None] @ self.reward[time]
        return reward[:, 0, 0], obs + change[:, 0]


class NAF:
    """The agent: one network, its slow copy, and for imagination a local model with a memory."""

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
        self.keys, inputs = vectors(obs_space, "naf")
        actions, c = continuous(act_space, "naf"), config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.q = Head(inputs, actions, c).to(self.device)
        self.target_q = copy.deepcopy(self.q)
        self.modules = nn.ModuleDict({"q": self.q, "target_q": self.target_q})
        self.q_opt = Optimizer({"q": self.q}, c.lr, c.adam_eps)
        self.follow = Follow({self.target_q: self.q}, c.tau)
        self.ring = Ring(c.imagined if c.imagination else 1, inputs, actions, self.device)
        self.local: Local | None = None
        self.starts: tuple[Tensor, Tensor] | None = None  # real states "N O" and their steps "N"
        self.fitted = 0  # rows up to the latest ends of episodes that the model was fitted to
        self.updates = 0
        self.generators = {
            use: torch.Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train"))
        }

    # Acting

    def initial(self, n: int) -> Tensor:
        """The noise of ``n`` streams, "n A"."""
        return torch.zeros(n, self.act_space.size, device=self.device)

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray], carry: Tensor, mode: Mode) -> tuple[np.ndarray, Tensor]:
        action = self.q(join_arrays(obs, self.keys).to(self.device)).mu
        if mode == "train":
            c = self.config
            carry = carry * torch.from_numpy(~obs["is_first"]).to(self.device)[:, None]
            fresh = torch.randn(carry.shape, generator=self.generators["train"], device=self.device)
            carry = (1.0 - c.noise_theta) * carry + c.noise_sigma * fresh
            action = (action + c.noise_scale * carry).clamp(-1.0, 1.0)
        return action.cpu().numpy(), carry

    # Learning

    def sample(self, replay: Any, rng: np.random.Generator) -> Batch:
        if self.config.imagination and self.updates < self.config.imagine_until:
            self.fit(replay)
        return replay.transitions(self.config.batch_size, rng)

    def update(self, batch: Batch) -> Metrics:
        """Alg. 1's step on real transitions; then, with a model, Alg. 2's on imagined ones."""
        metrics = self.learn(transitions(batch.to(self.device), self.keys))
        self.updates += 1
        c, generator = self.config, self.generators["learn"]
        if self.local is not None and self.updates <= c.imagine_until:
            self.imagine(self.local)
            for _ in range(c.imagined_updates):
                imagined = self.learn(self.ring.sample(c.batch_size, generator))
            metrics["loss/imagined"] = imagined["loss/q"]
        return metrics

    def learn(self, t: Transitions) -> Metrics:
        quadratic = self.q(t.obs)
        loss = q_loss(quadratic(t.action), self.target(t))
        q = self.q_opt.gradient(loss)
        step(q)
        self.follow()
        return {"loss/q": loss.detach(), "grad/q": q.norm, "q/value": quadratic.top.detach().mean()}

    @torch.no_grad()
    def target(self, t: Transitions) -> Tensor:
        """y = r + gamma V'(s'), "N"; r alone where the world ended."""
        return t.reward + self.config.discount * t.cont * self.target_q(t.next_obs).top

    # Imagination

    def fit(self, replay: Any) -> None:
        """Fit the model to the latest episodes, when there is a new one."""
        episodes = [replay.episodes_of(stream) for stream in range(replay.streams)]
        ends = sorted((end, stream, first) for stream, all_ in enumerate(episodes) for first, end in all_)
        newest = sum(of[-1][1] for of in episodes if of)
        if newest == self.fitted:
            return
        self.fitted = newest
        latest = []
        for end, stream, first in ends[-self.config.fit_episodes :]:
            rows = replay.read(stream, first, end)
            obs = join_arrays({key: rows[f"obs/{key}"] for key in self.keys}, self.keys).to(self.device)
            action = torch.from_numpy(rows["action"][:-1]).to(self.device)
            latest.append((obs, action, torch.from_numpy(rows["reward"][1:]).to(self.device)))
        self.local = fit_local(latest, self.config.fit_window, self.config.ridge)
        times = [torch.arange(len(action), device=self.device) for _, action, _ in latest]
        self.starts = torch.cat([obs[:-1] for obs, _, _ in latest]), torch.cat(times)

    @torch.no_grad()
    def imagine(self, local: Local) -> None:
        """``rollouts`` of l steps from real states of the latest episodes, by the policy with its noise's spread."""
        assert self.starts is not None
        c, generator, (states, times) = self.config, self.generators["learn"], self.starts
        pick = torch.randint(len(times), (c.rollouts,), generator=generator, device=self.device)
        obs, time = states[pick], times[pick]
        # what the noise's process has in the long run
        spread = c.noise_scale * c.noise_sigma / (1 - (1 - c.noise_theta) ** 2) ** 0.5
        for _ in range(c.imagination):
            mu = self.q(obs).mu
            noise = torch.randn(mu.shape, generator=generator, device=self.device)
            action = (mu + spread * noise).clamp(-1.0, 1.0)
            reward, after = local.step(time, obs, action)
            good = reward.isfinite() & after.isfinite().all(-1)
            whole = Transitions(obs, action, reward, after, torch.ones_like(reward))
            self.ring.add(Transitions(*(part[good] for part in whole)))
            obs, time = torch.where(good[:, None], after, obs), time + 1

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Nothing: its models know a few steps, and no pictures."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "q_opt": self.q_opt.state_dict(),
            "ring": self.ring.state_dict(),
            "local": None if self.local is None else self.local._asdict(),
            "starts": None if self.starts is None else list(self.starts),
            "fitted": self.fitted,
            "updates": self.updates,
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.q_opt.load_state_dict(state["q_opt"])
        self.ring.load_state_dict(state["ring"])
        own = lambda tensor: tensor.to(self.device, copy=True)
        local = state["local"]
        self.local = None if local is None else Local(**{name: own(part) for name, part in local.items()})
        self.starts = None if state["starts"] is None else (own(state["starts"][0]), own(state["starts"][1]))
        self.fitted, self.updates = state["fitted"], state["updates"]
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])


# The loss, and the fit.


def q_loss(value: Tensor, target: Tensor) -> Tensor:
    """Alg. 1: mean squared error of Q(s, u) "N" against targets that carry no gradient."""
    return F.mse_loss(value, target)


def fit_local(episodes: Sequence[tuple[Tensor, Tensor, Tensor]], window: int, ridge: float) -> Local:
    """Ridge regression at every step t on the rows of steps t - window to t + window of all episodes.

    An episode is obs "T+1 O", action "T A", reward "T", and may be shorter than another. What goes in is
    standardised by the mean and std of its window.
    """
    longest = max(len(action) for _, action, _ in episodes)

    def padded(rows: Tensor) -> Tensor:
        return F.pad(rows.double(), (0, 0, 0, longest - len(rows)))

    def windowed(sums: Tensor) -> Tensor:
        """Sums over each window of what is summed over episodes, "T ..."."""
        run = torch.cat([torch.zeros_like(sums[:1]), sums.cumsum(0)])
        at = torch.arange(longest, device=sums.device)
        return run[(at + window + 1).clamp(max=longest)] - run[(at - window).clamp(min=0)]

    x = torch.stack([padded(torch.cat([obs[:-1], action], -1)) for obs, action, _ in episodes])  # "E T I"
    y = torch.stack([padded(obs[1:] - obs[:-1]) for obs, _, _ in episodes])
    r = torch.stack([padded(reward[:, None]) for _, _, reward in episodes])
    there = torch.stack([padded(torch.ones_like(reward[:, None])) for _, _, reward in episodes])
    count = windowed(there.sum(0))
    mean = windowed((x * there).sum(0)) / count
    std = (windowed((x.square() * there).sum(0)) / count - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std > 1e-4, std, 1.0)

    def solve(features: int, design: Any, target: Tensor) -> Tensor:
        """Of each step's own standardisation: rows are visited window by window."""
        left = x.new_zeros(longest, features, features)
        right = x.new_zeros(longest, features, target.shape[-1])
        for shift in range(-window, window + 1):
            at = torch.arange(longest, device=x.device)
            other = (at + shift).clamp(0, longest - 1)
            inside = ((at + shift >= 0) & (at + shift < longest)).double()[None, :, None]
            rows = design((x[:, other] - mean) / std) * (there[:, other] * inside)
            left += torch.einsum("eti,etj->tij", rows, rows)
            right += torch.einsum("eti,eto->tio", rows, target[:, other])
        diagonal = ridge * count[..., None] * torch.eye(features, dtype=x.dtype, device=x.device)
        diagonal[:, 0, 0] = 0  # a constant costs nothing
        return torch.linalg.solve(
            left + diagonal + 1e-9 * torch.eye(features, dtype=x.dtype, device=x.device), right
        )

    one = torch.ones_like(x[..., :1])
    change = solve(1 + x.shape[-1], lambda z: torch.cat([one, z], -1), y)
    reward = solve(1 + 2 * x.shape[-1], lambda z: torch.cat([one, z, z * z], -1), r)
    return Local(*(part.float() for part in (mean, std, change, reward)))
