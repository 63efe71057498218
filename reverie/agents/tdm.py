"""TDM: "Temporal Difference Models: Model-Free Deep RL for Model-Based Control", Pong et al. 2018 (arXiv 1802.09081).

The idea. Ask of every state, action, goal and number of steps left: how far from the goal will I be when they have
run out? With no step left the answer is a one-step model's prediction error; with many it is a value function. One
recursion links them, is learned off-policy, and every transition teaches it about any goal and any horizon.

How it differs from its neighbours. ``her.py`` relabels goals; here the horizon is relabelled too, the reward is a
distance paid when time is up, and no discount is needed. ``mpc.py`` learns to predict one step and searches; here
the prediction reaches tau steps ahead and the actor has searched already.

Where the equations are::

    distance, Sec. 3.2        distance       r_j = -w_j |m_j(s') - g_j|, one for each entry of the goal
    recursion, Sec. 3.2       backup         Q(s, a, g, tau) = r if tau = 0, else Q(s', a', g, tau - 1)
    its exact solution        table          where states and actions can be counted
    structured critic, App.   Critic         Q_j = -w_j |g_j - f_j(s, a, g, tau)|: f predicts where tau more steps lead
    relabelling, Sec. 3.3     TDM.sample     goals that came later in the episode; tau uniform in 0 .. max_tau
    critic, actor             critic_loss, actor_loss
    policies, Sec. 4          TDM.act        the actor (its Eq. 8), or search through f (Eq. 7) or through Q

Command: ``reverie train tdm --env reverie/PointMass-v0 --preset laptop``.

Time of an episode, for max_tau = 3: the steps left are counted down and begin again, while acting and evaluating. It
is near its goal when they have run out and may leave it in between, so max_tau + 1 should divide the length::

    row      0   1   2   3   4   5
    tau      3   2   1   0   3   2

Defaults are the half-cheetah's of the released examples, with the targets averaged at every update as the paper
says (the release copies them every 1,000 steps). Deviations. ``reward_scale`` and the weights multiply |g - f| too, so
that f stays in the goal's units. Transitions are relabelled when they are drawn, each with its own goal and tau.
Discrete actions: the critic tells all actions' Q at once and the best is taken, as in DQN.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.data.transitions import ACHIEVED, DESIRED, OBSERVATION, goals
from reverie.nets import Ensemble
from reverie.optim import Follow, Optimizer, step
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace, ReverieError

ROWS = ("action", "prev_action", "reward", "is_first", "is_last", "is_terminal")


@dataclass(frozen=True)
class Config:
    """The released half-cheetah example's values, which it shares with the other tasks unless a line says so."""

    # Environment and schedule
    action_repeat: int = 1  # env steps per decision
    steps: int = 100_000  # env steps in all
    prefill: int = 1_000  # env steps of uniformly random actions; ours
    train_every: int = 1  # env steps between two bursts of updates
    train_updates: int = 25  # I; 5 for the pusher and the ant, 25 for the reacher
    batch_size: int = 128

    # Goals and horizons
    max_tau: int = 10  # T; reacher 15, pusher 5, ant 49
    own_goals: float = 0.25  # share of a batch that keeps its goal
    relabel: Literal["future", "any"] = (
        "future"  # the others': what came later, or what any other row achieved
    )
    weights: tuple[float, ...] = ()  # w_j, of the goal's entries; () for 1 each

    # Learning
    units: tuple[int, ...] = (300, 300)  # widths of actor and critic
    last_init: float = 3e-3  # the last layers start uniform in +-this
    vector: bool = True  # one Q for each entry of the goal, or one for their sum
    structured: bool = True  # Q = -|g - f|, or Q = f
    critics: int = 1  # of which targets believe the lowest sum; 2 in TD3
    delay: int = 1  # updates of the critics for one of the actor; 2 in TD3
    target_noise: float = 0.0  # on the target's action; 0.2 in TD3
    target_noise_clip: float = 0.5
    loss: Literal["huber", "square"] = "huber"  # the critic's; Huber's bend at 1
    reward_scale: float = 10.0  # 100 for the reacher, 10 for the ant's place
    target_rate: float = 0.001  # how far the targets go at every update
    exploration: Literal["process", "white"] = "process"
    noise_theta: float = 0.1  # of the Ornstein-Uhlenbeck process
    noise_sigma: float = 0.1  # of it, or of white noise
    epsilon: float = 0.2  # random actions, where they are choices; ours

    # Acting when evaluated (Sec. 4): the actor itself, or a search over goals it might be given
    select: Literal["actor", "model", "value"] = "actor"
    wanted: tuple[int, ...] = ()  # entries of the goal that count in a search; () for all
    candidates: int = 100  # M, goals searched over

    # Optimisers
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    adam_eps: float = 1e-8


# The recursion and its exact solution


def distance(achieved: Tensor, goal: Tensor, weights: Tensor) -> Tensor:
    """r_j = -w_j |m_j(s') - g_j| for every entry of goals "... G"."""
    return -weights * (achieved - goal).abs()


def backup(reward: Tensor, after: Tensor, tau: Tensor, cont: Tensor) -> Tensor:
    """The target "N ..." of Q(s, a, g, tau): the distance "N ..." where time is up (tau = 0) or the world ended
    (cont = 0), else what Q(s', a', g, tau - 1) says will be left, ``after`` "N ...". No sum, no discount."""
    shape = (-1,) + (1,) * (reward.ndim - 1)
    goes_on = ((tau > 0).to(reward.dtype) * cont).reshape(shape)
    return (1.0 - goes_on) * reward + goes_on * after


def table(
    states: int, actions: int, step: Callable[[int, int], int], goals: Tensor, places: Tensor, max_tau: int
) -> Tensor:
    """Q "tau state action goal" of a world of numbered states, solved exactly; -sum_j |m_j - g_j| is what is paid.

    ``step(state, action)`` is the next state, ``places`` "S G" are its goals m(s), and ``goals`` "K G" the ones wanted.
    The next action is the best of them all for the sum, the same for every entry of the goal.
    """
    after = torch.tensor([[step(s, a) for a in range(actions)] for s in range(states)])
    away = distance(places[after][:, :, None], goals, torch.ones(goals.shape[-1])).sum(-1)
    q = [away]
    for _ in range(max_tau):
        q.append(q[-1].amax(1)[after])
    return torch.stack(q)


class Actor(nn.Module):
    """pi(s, g, tau): ReLU layers, then tanh."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.net = Ensemble(inputs, config.units, actions, last=config.last_init)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.net(x)[0])


class Critic(nn.Module):
    """Q_j(s, a, g, tau), "M N G" ("M N 1" for the sum); of choices all at once, "M N A G".

    With ``structured`` Q_j = -scale w_j |g_j - f_j|, where f predicts the goal-space place that tau more steps lead to.
    """

    scale: Tensor

    def __init__(self, inputs: int, space: ActionSpace, goal: int, config: Config):
        super().__init__()
        self.config, self.space, self.goal = config, space, goal
        self.entries = goal if config.structured or config.vector else 1
        outputs = self.entries * (space.size if space.discrete else 1)
        extra = 0 if space.discrete else space.size
        self.net = Ensemble(inputs + extra, config.units, outputs, config.critics, config.last_init)
        weights = torch.tensor(config.weights or (1.0,) * goal)
        self.register_buffer("scale", config.reward_scale * weights, persistent=False)

    def forward(self, x: Tensor, goal: Tensor, action: Tensor | None = None) -> Tensor:
        return self.value(self.net(self.inputs(x, action)), goal)

    def climbed(self, x: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        """The first one's, "N G", with no gradient to the parameters: for the actor."""
        return self.value(self.net.through(self.inputs(x, action), members=1), goal)[0]

    def predict(self, x: Tensor, action: Tensor | None = None) -> Tensor:
        """f(s, a, g, tau) of the first critic, "N G"; of choices, "N A G"."""
        return self.shaped(self.net(self.inputs(x, action)))[0]

    def inputs(self, x: Tensor, action: Tensor | None) -> Tensor:
        return x if action is None else torch.cat([x, action], -1)

    def shaped(self, out: Tensor) -> Tensor:
        return out.unflatten(-1, (-1, self.entries)) if self.space.discrete else out

    def value(self, out: Tensor, goal: Tensor) -> Tensor:
        out = self.shaped(out)
        if not self.config.structured:
            return out
        goal = goal[:, None] if self.space.discrete else goal
        q = distance(out, goal, self.scale)
        return q if self.config.vector else q.sum(-1, keepdim=True)


class TDM:
    """The agent. Where actions are numbers, two optimisers own actor and critic; where they are choices, one owns the
    critic and the actor is its argmax."""

    def __init__(
        self,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        config: Config = Config(),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        goal = goals(obs_space, act_space, "tdm")
        check(goal, config)
        self.obs_space, self.act_space, self.config = obs_space, act_space, config
        self.device, c = torch.device(device), config
        inputs = obs_space[OBSERVATION].shape[0] + goal + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.critic = Critic(inputs, act_space, goal, c).to(self.device)
            self.actor = None if act_space.discrete else Actor(inputs, act_space.size, c).to(self.device)
        self.target_critic, self.target_actor = copy.deepcopy(self.critic), copy.deepcopy(self.actor)
        modules: dict[str, nn.Module] = {"critic": self.critic, "target_critic": self.target_critic}
        pairs: dict[nn.Module, nn.Module] = {self.target_critic: self.critic}
        self.critic_opt, self.actor_opt = Optimizer({"critic": self.critic}, c.critic_lr, c.adam_eps), None
        if self.actor is not None and self.target_actor is not None:
            modules |= {"actor": self.actor, "target_actor": self.target_actor}
            pairs[self.target_actor] = self.actor
            self.actor_opt = Optimizer({"actor": self.actor}, c.actor_lr, c.adam_eps)
        self.modules, self.follow = nn.ModuleDict(modules), Follow(pairs, c.target_rate)
        self.wanted = list(c.wanted) or list(range(goal))
        self.seen = torch.zeros(0, goal)  # goals that were achieved, to search over
        self.updates = 0
        self.generators = {
            use: torch.Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train", "eval"))
        }

    def read(self, obs: Tensor, goal: Tensor, tau: Tensor) -> Tensor:
        """What the networks see: the state, the goal and the steps left, as they are."""
        return torch.cat([obs, goal, tau[..., None].to(obs.dtype)], -1)

    # Acting

    def initial(self, n: int) -> tuple[Tensor, Tensor]:
        """Steps left "n", and the noise "n A"."""
        tau = torch.full((n,), self.config.max_tau, device=self.device)
        return tau, torch.zeros(n, self.act_space.size, device=self.device)

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, np.ndarray], carry: tuple[Tensor, Tensor], mode: Mode
    ) -> tuple[np.ndarray, tuple[Tensor, Tensor]]:
        """One action with tau steps left; then one less, and from the start again after none."""
        tau, noise = carry
        first = torch.from_numpy(obs["is_first"]).to(self.device)
        tau = torch.where(first, self.config.max_tau, tau)
        noise = noise * ~first[:, None]
        seen, goal = (torch.from_numpy(obs[key]).to(self.device) for key in (OBSERVATION, DESIRED))
        if mode == "train":
            action, noise = self.explore(self.greedy(seen, goal, tau), noise)
        elif self.config.select == "actor" or not len(self.seen):
            action = self.greedy(seen, goal, tau)
        else:
            action = self.search(seen, goal, tau)
        return action.cpu().numpy(), (torch.where(tau > 0, tau - 1, self.config.max_tau), noise)

    def greedy(self, obs: Tensor, goal: Tensor, tau: Tensor) -> Tensor:
        """Eq. 8: argmax_a Q(s, a, g, tau), which the actor has learned or the critic tells."""
        x = self.read(obs, goal, tau)
        if self.actor is not None:
            return self.actor(x)
        best = self.critic(x, goal).sum(-1).amin(0).argmax(-1)
        return F.one_hot(best, self.act_space.size).float()

    def search(self, obs: Tensor, goal: Tensor, tau: Tensor) -> Tensor:
        """Eq. 7: the goal fixes only the wanted entries, so fill in the others from places that were seen, ask what
        the actor would do for each, and take the action that f says ends nearest ("model"), or whose whole goal Q
        thinks most feasible ("value")."""
        c, n = self.config, len(goal)
        pick = torch.randint(
            len(self.seen), (n, c.candidates), generator=self.generators["eval"], device=self.device
        )
        goals = self.seen.to(self.device)[pick]  # "n C G"
        goals[..., self.wanted] = goal[:, None, self.wanted]
        goals[:, 0] = goal  # as it was asked
        obs, tau = (x.repeat_interleave(c.candidates, 0) for x in (obs, tau))
        flat = goals.flatten(0, 1)
        action = self.greedy(obs, flat, tau)
        x = self.read(obs, flat, tau)
        if self.actor is None:
            place, hot = self.critic.predict(x), action[..., None]
            place, q = (place * hot).sum(1), (self.critic(x, flat)[0] * hot).sum(1)
        else:
            place, q = self.critic.predict(x, action), self.critic(x, flat, action)[0]
        far = (place - flat)[:, self.wanted].abs().sum(-1)
        score = -far if c.select == "model" else q.sum(-1)
        best = score.reshape(n, c.candidates).argmax(-1)
        return action.reshape(n, c.candidates, -1)[torch.arange(n), best]

    def explore(self, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x <- x - theta x + sigma N(0, 1) added to numbers; a random choice with probability epsilon."""
        c, generator = self.config, self.generators["train"]
        if self.actor is None:
            rand = lambda *shape: torch.rand(*shape, generator=generator, device=self.device)
            other = F.one_hot(rand(*action.shape).argmax(-1), action.shape[-1]).float()
            return torch.where(rand(len(action), 1) < c.epsilon, other, action), noise
        fresh = torch.randn(noise.shape, generator=generator, device=self.device)
        kept = 1.0 - c.noise_theta if c.exploration == "process" else 0.0
        noise = kept * noise + c.noise_sigma * fresh
        return (action + noise).clamp(-1.0, 1.0), noise

    # Learning

    def sample(self, replay: Any, rng: np.random.Generator) -> Batch:
        """Transitions, the first ``own_goals`` of them with their own goal, the others with one that was achieved
        later in their episode (or by any other of the batch)."""
        c = self.config
        batch = replay.transitions(c.batch_size, rng, future=True)
        achieved, obs = batch.obs[ACHIEVED], {key: value[:, :2].clone() for key, value in batch.obs.items()}
        own = round(c.own_goals * c.batch_size)
        other = achieved[torch.from_numpy(rng.permutation(len(achieved))), 1]
        obs[DESIRED][own:] = (achieved[:, 2] if c.relabel == "future" else other)[own:, None]
        two = {name: getattr(batch, name)[:, :2] for name in ROWS}
        return batch._replace(obs=obs, **two)

    def update(self, batch: Batch) -> Metrics:
        """One step of the critic towards the recursion at horizons drawn afresh, one of the actor and the targets."""
        c = self.config
        t = transitions(batch.to(self.device))
        n, generator = len(t.obs), self.generators["learn"]
        tau = torch.randint(c.max_tau + 1, (n,), generator=generator, device=self.device)
        x = self.read(t.obs, t.goal, tau)
        if self.actor is None:
            value = (self.critic(x, t.goal) * t.action[..., None]).sum(-2)
        else:
            value = self.critic(x, t.goal, t.action)
        loss = critic_loss(value, self.target(t, tau), c.loss)
        critic = self.critic_opt.gradient(loss)
        step(critic)
        self.updates += 1
        self.remember(t.achieved)
        metrics = {
            "loss/critic": loss.detach(),
            "grad/critic": critic.norm,
            "critic/value": value.detach().mean(),
        }
        if self.updates % c.delay:
            return metrics
        if self.actor is not None and self.actor_opt is not None:
            climb = actor_loss(self.critic.climbed(x, t.goal, self.actor(x)))
            actor = self.actor_opt.gradient(climb)
            step(actor)
            metrics |= {"loss/actor": climb.detach(), "grad/actor": actor.norm}
        self.follow()
        return metrics

    @torch.no_grad()
    def target(self, t: "Goals", tau: Tensor) -> Tensor:
        """``backup`` for every row "N G": the same next action for all entries, of the critic whose sum is lowest."""
        c = self.config
        weights = self.critic.scale
        reward = distance(t.achieved, t.goal, weights)
        reward = reward if c.vector else reward.sum(-1, keepdim=True)
        x = self.read(t.next_obs, t.goal, tau - 1)
        if self.target_actor is None:
            q = self.target_critic(x, t.goal)  # "M N A G"
            best = q.sum(-1).amin(0).argmax(-1)
            q = q[:, torch.arange(len(best)), best]
        else:
            action = self.target_actor(x)
            if c.target_noise:
                noise = torch.randn(action.shape, generator=self.generators["learn"], device=self.device)
                noise = (c.target_noise * noise).clamp(-c.target_noise_clip, c.target_noise_clip)
                action = (action + noise).clamp(-1.0, 1.0)
            q = self.target_critic(x, t.goal, action)  # "M N G"
        after = q[q.sum(-1).argmin(0), torch.arange(len(tau))] if len(q) > 1 else q[0]
        return backup(reward, after, tau, t.cont)

    def remember(self, achieved: Tensor) -> None:
        """Keep the last thousand goals that were achieved in batches, if a search may want them."""
        if self.config.select != "actor":
            self.seen = torch.cat([achieved.cpu(), self.seen])[:1_000]

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Nothing: it predicts goals, and draws none."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "critic_opt": self.critic_opt.state_dict(),
            "actor_opt": {} if self.actor_opt is None else self.actor_opt.state_dict(),
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
            "seen": self.seen,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.critic_opt.load_state_dict(state["critic_opt"])
        if self.actor_opt is not None:
            self.actor_opt.load_state_dict(state["actor_opt"])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])
        self.seen, self.updates = state["seen"].clone(), state["updates"]


class Goals(NamedTuple):
    """Transitions with their goals, N of them."""

    obs: Tensor  # "N O", without the goal
    goal: Tensor  # "N G", wanted
    action: Tensor  # "N A"
    next_obs: Tensor  # "N O"
    achieved: Tensor  # "N G", m(s')
    cont: Tensor  # "N", 0 where the world ended


def transitions(batch: Batch) -> Goals:
    """Every two neighbouring rows as one transition, except where the second begins an episode."""
    keep = ~batch.is_first[:, 1:]
    obs = batch.obs[OBSERVATION]
    return Goals(
        obs[:, :-1][keep],
        batch.obs[DESIRED][:, :-1][keep],
        batch.action[:, :-1][keep],
        obs[:, 1:][keep],
        batch.obs[ACHIEVED][:, 1:][keep],
        (~batch.is_terminal[:, 1:][keep]).float(),
    )


def check(size: int, config: Config) -> None:
    """Refuse settings that do not fit a goal of ``size`` numbers."""
    if config.weights and len(config.weights) != size:
        raise ReverieError(
            f"--weights has {len(config.weights)} numbers, and goals here have {size}: give one each"
        )
    if config.wanted and not set(config.wanted) <= set(range(size)):
        raise ReverieError(f"--wanted names entries of the goal, 0 to {size - 1}, got {list(config.wanted)}")
    if config.select == "model" and not config.structured:
        raise ReverieError("--select model needs what the structured critic predicts: say --structured")
    if config.max_tau < 0:
        raise ReverieError(f"--max-tau must be at least 0, got {config.max_tau}")


# The losses.


def critic_loss(value: Tensor, target: Tensor, kind: Literal["huber", "square"] = "huber") -> Tensor:
    """Huber's (or the squared) error of Q_j "M N G" against one target "N G": the mean over rows and entries, added
    up over critics."""
    error = F.smooth_l1_loss if kind == "huber" else F.mse_loss
    return len(value) * error(value, target.expand_as(value))


def actor_loss(value: Tensor) -> Tensor:
    """Minus the mean of all entries of Q(s, pi(s, g, tau), g, tau) "N G"."""
    return -value.mean()
