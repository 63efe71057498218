"""Distral: "Distral: Robust Multitask Reinforcement Learning", Teh et al. 2017 (arXiv 1707.04175).

The idea. Tasks that share a world share habits. One *distilled* policy learns what the policies of all tasks have in
common, and each task's policy is paid for staying near it: what one task has found out is everyone's prior, and
no task is dragged along by another's rewards.

How it differs from its neighbour. ``a2c.py`` on several tasks at once mixes their gradients in one network. Here
only habits are mixed, by distillation as in I2A's rollout policy (``i2a.py``), and they come back as a reward.

::

    J = sum_i E sum_t gamma^t [ R_i + (alpha/beta) log pi_0(a|s) - (1/beta) log pi_i(a|s) ]        Eq. 1

    alpha = c_KL / (c_KL + c_Ent)       1: stay near pi_0 alone, 0: stay unsure alone, 0.5: both
    beta = 1 / (c_KL + c_Ent)

Where the equations are::

    V_i = 1/beta log sum_a pi_0^alpha exp(beta Q_i), Eq. 2-4    soft_values      exact, for a table
    pi_0: the tasks' policies, weighted by where they are       distil           exact, for a table
    a new task beside a finished pi_0                           transfer         soft Q-learning, in a table
    pi_i = softmax(alpha h + beta f_i), Eq. 8                   Columns          two columns
    R + (alpha/beta) log pi_0 - (1/beta) log pi_i               regularised
    policy gradient with it, Eq. 9                              policy_loss
    (alpha/beta) sum_a (pi_i - pi_0) grad h, Eq. 10             distillation_loss

The table needs no agent: ``tabular(alpha)`` takes seconds, and its distilled policy walks on through the corridor of
``envs/two_rooms.py`` the way it came. ``transfer`` learns a goal that it has not seen beside it.

Command: ``reverie train distral --env reverie/TwoRooms-v0 --preset laptop --run runs/rooms``.

An environment shows two vectors: ``state``, all that the shared policy reads, and ``task``, one-hot. Deviations. In
step, by advantage actor-critic (as the paper's 3D experiments; its grid worlds alternate soft Q-learning with
distillation, which the table does exactly). Distillation weighs all rows alike, where Eq. 10 discounts later ones. The
paper searched beta and the learning rate; the defaults are those of the sizes here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.dists import OneHot
from reverie.envs.two_rooms import BEFORE, CELLS, GOALS, NONE, table
from reverie.nets import MLP, Linear
from reverie.ops.returns import n_step_returns
from reverie.optim import Optimizer, RMSProp, step
from reverie.types import ActionSpace, Batch, Carry, Media, Metrics, Mode, ObsSpace, ReverieError
from reverie.when import linear


@dataclass(frozen=True)
class Config:
    """alpha as in the paper (Sec. 4); what it searched is ours."""

    # Environment and schedule
    pixels: bool = False
    image_size: int = 0
    action_repeat: int = 1
    steps: int = 2_000_000  # env steps in all
    actors: int = 32  # environments stepped together: 32 workers for each task (Sec. 4.2)
    length: int = 10  # rows between two updates: 10-step returns (Sec. 4.1)

    # Policies (Sec. 2.2, 3)
    policy: Literal["two", "one", "shared"] = "two"  # columns; shared: one policy for all tasks, and no other
    alpha: float = 0.5
    beta: float = 10.0
    units: int = 64
    layers: int = 1

    # Losses
    discount: float = 0.95  # gamma
    value_scale: float = 0.5

    # Optimiser
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    lr: float = 1e-3
    lr_end: float = 0.0  # linearly, over all of the run
    decay: float = 0.99
    eps: float = 1e-5
    clip: float = 0.5  # global norm


# The table.


def soft_values(q: np.ndarray, prior: np.ndarray, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Soft values "..." and policies "... A" of Q "... A" beside the shared policy "... A" (Eq. 2 and 4)."""
    logits = alpha * np.log(prior) + beta * q
    most = logits.max(-1, keepdims=True)  # exp(beta Q) alone overflows
    total = most + np.log(np.exp(logits - most).sum(-1, keepdims=True))
    return total[..., 0] / beta, np.exp(logits - total)


def solve(
    follows: np.ndarray,
    reward: np.ndarray,
    ends: np.ndarray,
    prior: np.ndarray,
    alpha: float,
    beta: float,
    discount: float,
    value: np.ndarray | None = None,
    tolerance: float = 1e-10,
) -> tuple[np.ndarray, np.ndarray]:
    """Every task's soft values "n S" and policy "n S A", by value iteration to the end.

    ``follows`` "S A" is where actions lead; ``reward`` and ``ends`` are "n S A".
    """
    value = np.zeros(reward.shape[:2]) if value is None else value
    left = discount * ~ends
    while True:
        new, policy = soft_values(reward + left * value[:, follows], prior, alpha, beta)
        gap, value = np.abs(new - value).max(), new
        if gap < tolerance:
            return value, policy


def distil(
    follows: np.ndarray,
    ends: np.ndarray,
    policy: np.ndarray,
    start: np.ndarray,
    discount: float,
    steps: int,
    count: float = 1e-3,
) -> np.ndarray:
    """The shared policy "S A": in each state the mean of the tasks' policies, each weighted by how often, discounted,
    it is there within ``steps`` from ``start`` "n S"; ``count`` is added to every action."""
    here, met = start, np.full(policy.shape[1:], count)
    for t in range(steps):
        flow = here[..., None] * policy  # n S A
        met += discount**t * flow.sum(0)
        here = np.zeros_like(start)
        for task, (moves, end) in enumerate(zip(flow, ends, strict=True)):
            here[task] = np.bincount(follows[~end], moves[~end], len(here[task]))
    return met / met.sum(-1, keepdims=True)


def tabular(
    alpha: float = 0.5,
    beta: float = 10.0,
    discount: float = 0.95,
    alternations: int = 30,
    steps: int = 60,
    tasks: Sequence[int] | None = None,
) -> np.ndarray:
    """The shared policy "S A" of ``tasks`` (None: all goals of the two rooms), after so many turns of ``solve`` and
    ``distil``.

    States, actions and tasks are those of ``two_rooms.table``; episodes begin in any cell but the goal.
    """
    tasks = range(len(GOALS)) if tasks is None else tasks
    follows, reward, ends = table()
    reward, ends = reward[list(tasks)], ends[list(tasks)]
    start = np.zeros(reward.shape[:2])
    for task, goal in enumerate(GOALS[number] for number in tasks):
        start[task, NONE::BEFORE] = 1.0
        start[task, CELLS.index(goal) * BEFORE + NONE] = 0.0
    start /= start.sum(-1, keepdims=True)
    prior, value = np.full(reward.shape[1:], 1 / reward.shape[2]), None
    for _ in range(alternations):
        value, policy = solve(follows, reward, ends, prior, alpha, beta, discount, value)
        prior = distil(follows, ends, policy, start, discount, steps)
    return prior


class Episode(NamedTuple):
    """How long an episode was, and what it brought."""

    length: int
    score: float


def transfer(
    task: int,
    prior: np.ndarray,
    alpha: float = 0.5,
    beta: float = 10.0,
    discount: float = 0.95,
    episodes: int = 50,
    seed: int = 0,
    limit: int = 60,
) -> tuple[list[Episode], np.ndarray]:
    """Learn one goal of the two rooms from what happens there, beside a shared policy "S A" that stays as it is; the
    episodes, and Q "S A".

    Soft Q-learning, one step at a time: after each, Q(s, a) becomes R + gamma V(s') (the world has no chance in it),
    and the next action is drawn from the soft policy. With ``alpha`` 0 the prior counts for nothing.
    """
    follows, reward, ends = table()
    rng, q = np.random.default_rng(seed), np.zeros(prior.shape)
    begins = np.delete(np.arange(len(CELLS)), CELLS.index(GOALS[task])) * BEFORE + NONE
    found = []
    for _ in range(episodes):
        state, score, over, t = int(rng.choice(begins)), 0.0, False, 0
        while not over and t < limit:
            _, policy = soft_values(q[[state]], prior[[state]], alpha, beta)
            action = int(np.searchsorted(policy[0].cumsum()[:-1], rng.random()))
            earned, over = float(reward[task, state, action]), bool(ends[task, state, action])
            after = int(follows[state, action])
            value, _ = soft_values(q[[after]], prior[[after]], alpha, beta)
            q[state, action] = earned + (0.0 if over else discount * float(value[0]))
            state, score, t = after, score + earned, t + 1
        found.append(Episode(t, score))
    return found, q


# Parts only this paper has.


class Out(NamedTuple):
    """What the networks say of n rows."""

    policy: OneHot  # of each row's task
    shared: OneHot
    value: Tensor  # "n", of each row's task


class Columns(nn.Module):
    """A shared policy h and, for each task, f_i and a value: pi_0 = softmax(h), pi_i = softmax(alpha h + beta f_i).

    ``policy`` "one": pi_i = softmax(beta f_i) by itself. "shared": pi_i = pi_0.
    """

    def __init__(self, state: int, tasks: int, actions: int, config: Config):
        super().__init__()
        c = self.config = config
        self.actions = actions
        self.shared = MLP(state, c.units, c.layers, actions, F.relu)
        self.own = nn.ModuleList(MLP(state, c.units, c.layers, actions + 1, F.relu) for _ in range(tasks))
        with torch.no_grad():
            for net in (self.shared, *self.own):
                assert isinstance(net.out, Linear)
                net.out.weight.mul_(0.1 / c.beta)  # begin unsure

    def forward(self, state: Tensor, task: Tensor) -> Out:
        """``state`` "n S", ``task`` "n" its number."""
        c, h = self.config, self.shared(state)
        own = state.new_zeros(len(state), self.actions + 1)
        for i, net in enumerate(self.own):
            mine = (task == i).nonzero()[:, 0]
            if len(mine):
                own = own.index_copy(0, mine, net(state[mine]))
        f, value = own[:, :-1], own[:, -1]
        logits = {"two": c.alpha * h + c.beta * f, "one": c.beta * f, "shared": h}[c.policy]
        return Out(OneHot(logits), OneHot(h), value)


class Distral:
    """The agent. One optimiser owns all columns."""

    loop: ClassVar[str] = "on_policy"

    def __init__(
        self,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        config: Config = Config(),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        if set(obs_space) != {"state", "task"} or len(act_space.groups) != 1:
            raise ReverieError(
                f"Distral needs the observations 'state' and 'task' and one choice among several actions, and this "
                f"environment shows {', '.join(obs_space)}; reverie/TwoRooms-v0 is one that fits"
            )
        self.obs_space, self.act_space, self.config = obs_space, act_space, config
        self.device = torch.device(device)
        state, tasks = obs_space["state"].shape[0], obs_space["task"].shape[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.net = Columns(state, tasks, act_space.size, config).to(self.device)
        self.modules = nn.ModuleDict({"net": self.net})
        c = config
        if c.optimizer == "adam":
            self.opt = Optimizer({"net": self.net}, c.lr, c.eps, c.clip)
        else:
            self.opt = RMSProp({"net": self.net}, c.lr, c.eps, c.clip, c.decay)
        self.updates = 0
        self.generators = {
            use: torch.Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("train", "eval"))
        }

    def see(self, obs: Mapping[str, Any]) -> Out:
        state, task = (torch.as_tensor(obs[key], device=self.device) for key in ("state", "task"))
        return self.net(state, task.argmax(-1))

    # Acting

    def initial(self, n: int) -> Carry:
        return ()  # each row is all there is

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray], carry: Carry, mode: Mode) -> tuple[np.ndarray, Carry]:
        return self.see(obs).policy.draw(self.generators[mode]).cpu().numpy(), carry

    # Learning

    def update(self, batch: Batch, carries: Sequence[Carry] | None = None) -> Metrics:
        """One step from T rows in a row of B streams, each of its own task."""
        c, batch = self.config, batch.to(self.device)
        size, time = batch.reward.shape
        out = self.see({key: x.flatten(0, 1) for key, x in batch.obs.items()})
        value = out.value.view(size, time)
        chosen = batch.action.flatten(0, 1)
        log_prob, shared = (dist.log_prob(chosen).view(size, time) for dist in (out.policy, out.shared))
        paid = regularised(batch.reward, log_prob.detach(), shared.detach(), c)
        target, counts = targets(batch._replace(reward=paid), value.detach(), c.discount)
        advantage = target - value[:, :-1].detach()
        follow = distillation_loss(out.policy.probs.detach(), out.shared).view(size, time)[:, :-1]
        losses = {
            "policy": policy_loss(log_prob[:, :-1], advantage, counts),
            "distil": c.alpha / c.beta * follow[counts].mean(),
            "value": c.value_scale * F.mse_loss(value[:, :-1][counts], target[counts]),
        }
        self.opt.lr = linear(c.lr, c.lr_end, max(c.steps // (c.actors * c.length), 1))(self.updates)
        gradient = self.opt.gradient(torch.stack([*losses.values()]).sum())
        step(gradient)
        self.updates += 1
        with torch.no_grad():
            return {
                **{f"loss/{name}": loss.detach() for name, loss in losses.items()},
                "grad/net": gradient.norm,
                "actor/entropy": out.policy.entropy().mean(),
                "distil/kl": (follow - out.policy.entropy().view(size, time)[:, :-1])[counts].mean(),
            }

    def report(self, batch: Batch, context: int = 5) -> Media:
        return {}  # it imagines nothing

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "opt": self.opt.state_dict(),
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.opt.load_state_dict(state["opt"])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])
        self.updates = state["updates"]


# The losses, in the paper's order.


def regularised(reward: Tensor, log_prob: Tensor, shared: Tensor, c: Config) -> Tensor:
    """Rewards "B T" with what staying near pi_0 and staying unsure are worth, of the action that led there: row t + 1
    has R + (alpha/beta) log pi_0(a_t) - (1/beta) log pi_i(a_t). Both policies are constants here."""
    bonus = (c.alpha * shared - log_prob) / c.beta
    return torch.cat([reward[:, :1], reward[:, 1:] + bonus[:, :-1]], 1)


def targets(batch: Batch, value: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """n-step returns of all rows but the last, "B T-1", and which rows count: an episode's last row chose nothing."""
    reward, ends = batch.reward[:, 1:], batch.is_last[:, 1:].float()
    left = discount * (1.0 - batch.is_terminal[:, 1:].float())
    rows = (x.t() for x in (reward, value[:, 1:], left, 1.0 - ends))
    return n_step_returns(*rows).t(), ~batch.is_last[:, :-1]


def policy_loss(log_prob: Tensor, advantage: Tensor, counts: Tensor) -> Tensor:
    """Eq. 9: -log pi_i(a|s) A; with two columns it moves both. The advantage carries no gradient."""
    return -(log_prob * advantage)[counts].mean()


def distillation_loss(probs: Tensor, shared: OneHot) -> Tensor:
    """Eq. 10: -sum_a pi_i(a|s) log pi_0(a|s) of each row; pi_i carries no gradient, so that h moves along
    pi_i - pi_0."""
    return -(probs * shared.log_probs).sum(-1)
