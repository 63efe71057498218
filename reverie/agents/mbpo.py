"""MBPO: "When to Trust Your Model: Model-Based Policy Optimization", Janner et al. 2019 (arXiv 1906.08253).

The idea. A model's errors grow with every imagined step, so imagine few of them, but from everywhere the agent has
really been: short branches from real states make enough data for twenty or forty updates per real step.

How it differs from its neighbours. This is ``dyna_q.py`` with nothing tabular left: the learner is ``sac.py``'s, the
model is ``mpc.py``'s ensemble. Dyna plans from remembered states with one step; so does MBPO with k = 1. ``mve.py``
uses its model for targets; here it makes transitions, and the learner does not know where they are from.

Where the lines of the paper's Algorithm 2 are::

    train the model on all real data          MBPO.fit        until held-out rows are predicted no better
    k-step rollouts from real states          MBPO.imagine    a random elite for every row and step
    updates on imagined and real data         MBPO.update     5 % real
    soft actor-critic                         critic_loss, actor_loss, temperature_loss

Command: ``reverie train mbpo --env Pendulum-v1 --preset laptop``.

Defaults are the authors' code for the hopper. Deviations. Outputs of the model are standardised as inputs are. Ends
are learned, where the authors know each task's rule; a branch stops where the model expects an end. Each network
sees all of the training rows, in an order of its own. Env steps are counted in rows of the replay.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.data.ring import Ring
from reverie.data.transitions import Transitions, continuous, join_arrays, transitions, vectors
from reverie.dists import TanhNormal, noise_like
from reverie.models.dynamics import Dynamics, gaussian_loss
from reverie.models.dynamics_world import DynamicsWorld
from reverie.nets import Ensemble
from reverie.optim import Follow, Optimizer, step
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace, ReverieError


@dataclass(frozen=True)
class Config:
    """The authors' code for the hopper."""

    # Environment and schedule
    action_repeat: int = 1
    steps: int = 125_000  # env steps in all
    prefill: int = 5_000  # env steps of uniformly random actions
    train_every: int = 1
    train_updates: int = 20  # G
    batch_size: int = 256
    real: float = 0.05  # share of the batch that really happened

    # World model
    members: int = 7
    elites: int = 5  # of them, that imagine: the best on held-out rows
    model_units: int = 200
    model_layers: int = 4
    ends: bool = True  # learn when episodes end
    bounds_scale: float = 0.01
    decay: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
    model_every: int = 250  # env steps between two trainings
    model_batch: int = 256
    holdout: float = 0.2
    most_holdout: int = 5_000  # rows
    patience: int = 5  # passes without progress of any network
    progress: float = 0.01  # of the held-out error, relative, that counts
    most_passes: int = 1_000  # ours: a guard

    # Imagination
    rollouts: int = 400  # begun for every env step
    k_from: int = 1  # their length, at first
    k_to: int = 15  # and at last
    k_begin: int = 20  # epochs of 1,000 env steps; between them it grows in a line
    k_end: int = 150
    retain: int = 1  # epochs of 1,000 env steps whose rollouts are remembered

    # Soft actor-critic
    units: tuple[int, ...] = (256, 256)
    discount: float = 0.99
    tau: float = 0.005
    entropy: float | None = -1.0  # what the policy keeps, by task; None: -dim(A)
    min_log_std: float = -20.0
    max_log_std: float = 2.0

    # Optimisers
    model_lr: float = 1e-3
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    alpha_lr: float = 3e-4
    adam_eps: float = 1e-8


class Actor(nn.Module):
    """pi(a | s): a Gaussian squashed by tanh."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.config = config
        self.net = Ensemble(inputs, config.units, 2 * actions)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the tanh, "N A" each."""
        mean, log_std = self.net(obs)[0].chunk(2, -1)
        return mean, log_std.clamp(self.config.min_log_std, self.config.max_log_std)

    def sample(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """An action "N A" and its log-density "N", with gradient."""
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
    """log alpha, 0 before training."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()))


class MBPO:
    """The agent. Four optimisers own the dynamics, the actor, the critics and the temperature."""

    still = ("dynamics",)  # what an update leaves alone: it is trained where the data are, in ``sample``

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
        self.keys, self.inputs = vectors(obs_space, "mbpo")
        actions, c = continuous(act_space, "mbpo"), config
        if not 1 <= c.elites <= c.members:
            raise ReverieError(f"--elites must be from 1 to --members {c.members}, got {c.elites}")
        if len(c.decay) not in (0, c.model_layers + 1):
            raise ReverieError(
                f"--decay has {len(c.decay)} numbers, and {c.model_layers} hidden layers need "
                f"{c.model_layers + 1}, or none"
            )
        self.entropy = -float(actions) if c.entropy is None else c.entropy
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.dynamics = Dynamics(
                self.inputs, actions, c.members, c.model_units, c.model_layers, ends=c.ends
            ).to(self.device)
            self.actor = Actor(self.inputs, actions, c).to(self.device)
            self.critics = Critics(self.inputs, actions, c).to(self.device)
            self.temperature = Temperature().to(self.device)
        self.target_critics = copy.deepcopy(self.critics)
        self.modules = nn.ModuleDict(
            {
                "dynamics": self.dynamics,
                "actor": self.actor,
                "critics": self.critics,
                "target_critics": self.target_critics,
                "temperature": self.temperature,
            }
        )
        self.model_opt = Optimizer({"dynamics": self.dynamics}, c.model_lr, c.adam_eps)
        self.actor_opt = Optimizer({"actor": self.actor}, c.actor_lr, c.adam_eps)
        self.critic_opt = Optimizer({"critics": self.critics}, c.critic_lr, c.adam_eps)
        self.alpha_opt = Optimizer({"temperature": self.temperature}, c.alpha_lr, c.adam_eps)
        self.follow = Follow({self.target_critics: self.critics}, c.tau)
        self.ring = Ring(1, self.inputs, actions, self.device)
        self.best = torch.arange(c.elites, device=self.device)  # numbers of the elites
        self.next_fit = 0  # rows recorded
        self.told: Metrics = {}  # of the last training of the model
        self.generators = {
            use: torch.Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train", "model", "dream"))
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
        """A sample of the policy, or in eval mode the tanh of its mean."""
        mean, log_std = self.actor(join_arrays(obs, self.keys).to(self.device))
        if mode == "train":
            mean = mean + log_std.exp() * noise_like(mean, self.generators["train"])
        return torch.tanh(mean).cpu().numpy(), carry

    # The model

    def sample(self, replay: Any, rng: np.random.Generator) -> Batch:
        """Real rows for an update. When it is time, the model is trained and dreams first: here lies the data."""
        c = self.config
        recorded = sum(replay.counts)
        if recorded >= self.next_fit:
            self.next_fit = recorded + c.model_every
            rows = Transitions(*(part.to(self.device) for part in everything(replay, self.keys)))
            self.told = self.fit(rows)
            self.imagine(rows, self.length(recorded))
        return replay.transitions(c.batch_size, rng)

    def length(self, recorded: int) -> int:
        """k after so many rows: k_from until k_begin, k_to from k_end on, whole numbers on the line between."""
        c = self.config
        done = min(max((recorded // 1_000 - c.k_begin) / max(c.k_end - c.k_begin, 1), 0.0), 1.0)
        return int(c.k_from + done * (c.k_to - c.k_from))

    def fit(self, rows: Transitions) -> Metrics:
        """Train from where the model is, until no network's held-out error has fallen by 1 % for five passes; each
        keeps its best weights. The elites are those with the smallest held-out errors."""
        c, generator = self.config, self.generators["model"]
        self.dynamics.forget()
        self.dynamics.see(rows.obs, rows.action, rows.reward, rows.next_obs)
        order = torch.randperm(len(rows.reward), generator=generator, device=self.device)
        held = min(int(c.holdout * len(order)), c.most_holdout)
        test, train = (take(rows, part) for part in (order[:held], order[held:]))
        least, best = self.errors(test), self.weights()
        idle, passes, n = 0, 0, len(train.reward)
        while idle <= c.patience and passes < c.most_passes:
            index = torch.rand(c.members, n, generator=generator, device=self.device).argsort(1)
            for picks in index.split(c.model_batch, 1):
                loss = model_loss(self, take(train, picks))
                step(self.model_opt.gradient(loss))
            error = self.errors(test)
            better = error < (1 - c.progress) * least
            idle, passes = 0 if bool(better.any()) else idle + 1, passes + 1
            least = torch.where(better, error, least)
            for kept, now in zip(best, self.weights(), strict=True):
                kept[better] = now[better]
        with torch.no_grad():
            for own, kept in zip(self.dynamics.net.parameters(), best, strict=True):
                own.copy_(kept)
        self.best = least.argsort()[: c.elites]
        return {"model/passes": passes, "model/error": float(least[self.best].mean())}

    @torch.no_grad()
    def errors(self, rows: Transitions) -> Tensor:
        """Mean squared error of every network on the same rows, "M"."""
        each = lambda part: part.expand(self.config.members, *part.shape)
        told = self.dynamics(each(rows.obs), each(rows.action))
        return (told.mean - self.dynamics.target(rows.obs, rows.reward, rows.next_obs)).square().mean((1, 2))

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.dynamics.net.parameters()]

    @torch.no_grad()
    def imagine(self, rows: Transitions, length: int) -> None:
        """Branches of ``length`` from real states, all equally likely, by the policy; into the ring.

        A random elite predicts each row at each step. A branch ends where an end is likelier than not.
        """
        c, generator = self.config, self.generators["model"]
        starts = c.rollouts * c.model_every
        self.ring.resize(c.rollouts * 1_000 * length * c.retain)
        pick = torch.randint(len(rows.reward), (starts,), generator=generator, device=self.device)
        obs = rows.obs[pick]
        for _ in range(length):
            action, _ = self.actor.sample(obs, generator)
            member = torch.randint(c.elites, (len(obs),), generator=generator, device=self.device)
            told = self.dynamics.imagine_by(self.best[member], obs, action, generator)
            goes_on = (told.cont >= 0.5).float()
            good = told.obs.isfinite().all(-1) & told.reward.isfinite()
            self.ring.add(take(Transitions(obs, action, told.reward, told.obs, goes_on), good))
            obs = told.obs[good & (goes_on > 0)]
            if not len(obs):
                break

    # Learning

    def update(self, batch: Batch) -> Metrics:
        """A step of soft actor-critic, on the real rows alone until there are imagined ones."""
        c, generator = self.config, self.generators["learn"]
        t = transitions(batch.to(self.device), self.keys)
        if len(self.ring):
            n = int(c.real * len(t.reward))
            dreamt = self.ring.sample(len(t.reward) - n, generator)
            t = Transitions(*(torch.cat([a[:n], b]) for a, b in zip(t, dreamt, strict=True)))
        action, log_prob = self.actor.sample(t.obs, generator)
        alpha = self.temperature.log.detach().exp()
        value = self.critics(t.obs, t.action)
        loss = critic_loss(value, self.target(t, alpha))
        critic = self.critic_opt.gradient(loss)
        tuned = temperature_loss(self.temperature.log, log_prob.detach(), self.entropy)
        step(critic, self.alpha_opt.gradient(tuned))
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
            **self.told,
        }

    @torch.no_grad()
    def target(self, t: Transitions, alpha: Tensor) -> Tensor:
        """y = r + gamma (min_i Qi'(s', a') - alpha log pi(a' | s')), where the world goes on, "N"."""
        action, log_prob = self.actor.sample(t.next_obs, self.generators["learn"])
        after = self.target_critics(t.next_obs, action).amin(0) - alpha * log_prob
        return t.reward + self.config.discount * t.cont * after

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Nothing: it sees no pictures."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "model_opt": self.model_opt.state_dict(),
            "actor_opt": self.actor_opt.state_dict(),
            "critic_opt": self.critic_opt.state_dict(),
            "alpha_opt": self.alpha_opt.state_dict(),
            "ring": self.ring.state_dict(),
            "best": self.best,
            "next_fit": self.next_fit,
            "told": self.told,
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        for name in ("model_opt", "actor_opt", "critic_opt", "alpha_opt"):
            getattr(self, name).load_state_dict(state[name])
        self.ring.load_state_dict(state["ring"])
        self.best.copy_(state["best"])
        self.next_fit, self.told = state["next_fit"], dict(state["told"])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])


def everything(replay: Any, keys: list[str]) -> Transitions:
    """Every transition that is stored."""
    parts = []
    for stream, count in enumerate(replay.counts):
        rows = replay.read(stream, max(0, count - replay.size), count)
        obs = join_arrays({key: rows[f"obs/{key}"] for key in keys}, keys)
        tensor = {
            name: torch.from_numpy(rows[name]) for name in ("action", "reward", "is_first", "is_terminal")
        }
        keep = ~tensor["is_first"][1:]
        parts.append(
            (
                obs[:-1][keep],
                tensor["action"][:-1][keep],
                tensor["reward"][1:][keep],
                obs[1:][keep],
                (~tensor["is_terminal"][1:][keep]).float(),
            )
        )
    return Transitions(*(torch.cat(column) for column in zip(*parts, strict=True)))


def take(rows: Transitions, index: Tensor) -> Transitions:
    return Transitions(*(part[index] for part in rows))


# The losses.


def model_loss(agent: MBPO, t: Transitions) -> Tensor:
    """Log-likelihood of what each of M networks sees "M N ...", the bounds of its variance, weight decay, and the
    cross-entropy of the end."""
    c, dynamics = agent.config, agent.dynamics
    told = dynamics(t.obs, t.action)
    loss = gaussian_loss(told, dynamics.target(t.obs, t.reward, t.next_obs)).sum()
    loss = loss + c.bounds_scale * dynamics.spread()
    if c.decay:
        loss = loss + dynamics.net.decay(c.decay)
    if told.end is not None:
        loss = loss + F.binary_cross_entropy_with_logits(told.end, 1 - t.cont) * c.members
    return loss


def critic_loss(value: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared errors of Q1 and Q2, "2 N", against one target "N", added up."""
    return 0.5 * len(value) * F.mse_loss(value, target.expand_as(value))


def actor_loss(log_prob: Tensor, value: Tensor, alpha: Tensor) -> Tensor:
    """alpha log pi(a | s) "N" less the lower of Q1(s, a), Q2(s, a) "2 N", averaged."""
    return (alpha * log_prob - value.amin(0)).mean()


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, entropy: float) -> Tensor:
    """In log alpha: its gradient is the policy's entropy less the one it should keep."""
    return -log_alpha * (log_prob + entropy).mean()
