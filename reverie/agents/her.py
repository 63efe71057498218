"""HER: "Hindsight Experience Replay", Andrychowicz et al. 2017 (arXiv 1707.01495).

The idea. A robot that misses its goal has still reached something. Pretend afterwards that this was the goal: the
episode that taught nothing, because it was never rewarded, then teaches how to get where it ended. It costs no
model, only a reward that can be asked about any goal.

How it differs from its neighbours. It is ``ddpg.py`` (DQN where actions are choices) that reads its goal, and the
batch it learns from is rewritten on the way. ``tdm.py`` relabels as well, and its goals carry a deadline.

Where the equations are::

    hindsight, Alg. 1, "future" with k = 4    relabel         the goal becomes what came later in the same episode
    targets, App. A                           HER.target      r + gamma Q'(s', pi'(s')), within the rewards' limits
    critic                                    critic_loss     mean squared error
    actor                                     actor_loss      climbs Q; and the square of its actions
    normalising, App. A                       HER.scale       by running mean and deviation; clipped to +-5

Command: ``reverie train her --env reverie/BitFlip-v0 --preset bits``, or
``reverie train her --env FetchReach-v4 --preset reach``. Of 50 evaluated episodes of seed 0, 49 had flipped their 15
bits at 6,000 env steps and all from 9,000 on, and without hindsight (``--future 0``) none at 24,000; FetchReach's goal
was reached at the end of all 50 from 5,000 env steps on.

Defaults are the paper's; where it names none, those of the authors' code (Plappert et al. 2018). The schedule is
that of Fetch's episodes of 50 steps: 16 of them, 40 updates, one step of the targets. Deviations. Transitions are
relabelled when they are drawn, each with probability k / (k + 1), as in the authors' code. One process acts and
learns, where the paper has eight. The action's square is penalised after the tanh, as in the authors' code. A
relabelled transition that would have ended the world ends it, and one that would not have does not. ``critics``,
``delay`` and ``target_noise`` make a TD3 of it (preset ``td3``).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.data.transitions import (
    ACHIEVED,
    DESIRED,
    OBSERVATION,
    Transitions,
    goals,
    join_arrays,
    transitions,
)
from reverie.envs.base import Goals
from reverie.nets import Ensemble, Normalizer
from reverie.optim import Follow, Optimizer, step
from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, ObsSpace, ReverieError


@dataclass(frozen=True)
class Config:
    """The paper's values (App. A), unless a line says otherwise."""

    # Environment and schedule
    action_repeat: int = 1  # env steps per decision; rewards can be asked about single steps only
    steps: int = 8_000_000  # env steps in all: 200 epochs of 50 cycles
    prefill: int = 800  # env steps of uniformly random actions; ours, the paper has none
    train_every: int = 800  # env steps between two bursts of updates: a cycle of 16 episodes
    train_updates: int = 40  # updates in a burst
    batch_size: int = 128

    # Hindsight (Sec. 4.5)
    future: int = 4  # k, relabelled transitions for each that keeps its goal; 0 for none
    achieved: bool = False  # see achieved_goal too, for worlds whose observation lacks it (AntMaze)

    # Learning
    units: tuple[int, ...] = (64, 64, 64)  # widths of actor and critic
    discount: float = 0.98  # gamma, 1 - 1/T
    rewards: tuple[float, float] = (
        -1.0,
        0.0,
    )  # what they lie between: targets are clipped to it / (1 - gamma)
    target_rate: float = 0.05  # how far the targets go
    target_every: int = 40  # updates between two steps of the targets: once a cycle
    action_penalty: float = 1.0  # of the mean square of the actor's actions
    critics: int = 1  # of which targets believe the lowest; 2 in TD3
    delay: int = 1  # updates of the critics for one of the actor; 2 in TD3
    target_noise: float = 0.0  # on the target's action; 0.2 in TD3
    target_noise_clip: float = 0.5
    normalize: bool = True

    # Exploration
    epsilon: float = 0.2  # probability of a uniformly random action
    exploration_noise: float = 0.1  # std of the Gaussian added to the others: 5 % of the range

    # Optimisers
    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    adam_eps: float = 1e-8


class Actor(nn.Module):
    """pi(s, g): ReLU layers, then tanh."""

    def __init__(self, inputs: int, actions: int, config: Config):
        super().__init__()
        self.net = Ensemble(inputs, config.units, actions)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.net(x)[0])


class Critic(nn.Module):
    """Q(s, g, a), "M N"; of choices all at once, Q(s, g) "M N A"."""

    def __init__(self, inputs: int, space: ActionSpace, config: Config):
        super().__init__()
        shape = (inputs, space.size) if space.discrete else (inputs + space.size, 1)
        self.net = Ensemble(shape[0], config.units, shape[1], config.critics)

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([x, action], -1))[..., 0]

    def climbed(self, x: Tensor, action: Tensor) -> Tensor:
        """The first one's Q "N", with no gradient to the parameters: for the actor."""
        return self.net.through(torch.cat([x, action], -1), members=1)[0, :, 0]

    def of_choices(self, x: Tensor) -> Tensor:
        return self.net(x)


class HER:
    """The agent. Where actions are numbers, two optimisers own actor and critic; where they are choices, one owns
    the critic and the actor is its argmax. ``goals``: how the environment judges them, given by whoever made it."""

    goals: Goals | None = None

    def __init__(
        self,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        config: Config = Config(),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        goals(obs_space, act_space, "her")
        self.obs_space, self.act_space, self.config = obs_space, act_space, config
        self.device, c = torch.device(device), config
        self.keys = [OBSERVATION, *([ACHIEVED] if c.achieved else []), DESIRED]
        inputs = sum(obs_space[key].shape[0] for key in self.keys)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.critic = Critic(inputs, act_space, c).to(self.device)
            self.actor = None if act_space.discrete else Actor(inputs, act_space.size, c).to(self.device)
        self.target_critic, self.target_actor = copy.deepcopy(self.critic), copy.deepcopy(self.actor)
        self.normalizer = Normalizer(inputs, 10**12, (0.01, float("inf"))).to(self.device)  # nothing fades
        modules: dict[str, nn.Module] = {"critic": self.critic, "target_critic": self.target_critic}
        pairs: dict[nn.Module, nn.Module] = {self.target_critic: self.critic}
        self.critic_opt, self.actor_opt = Optimizer({"critic": self.critic}, c.critic_lr, c.adam_eps), None
        if self.actor is not None and self.target_actor is not None:
            modules |= {"actor": self.actor, "target_actor": self.target_actor}
            pairs[self.target_actor] = self.actor
            self.actor_opt = Optimizer({"actor": self.actor}, c.actor_lr, c.adam_eps)
        if c.normalize:
            modules["normalizer"] = self.normalizer
        self.modules, self.follow = nn.ModuleDict(modules), Follow(pairs, c.target_rate)
        self.updates = 0
        self.generators = {
            use: torch.Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train"))
        }

    def scale(self, x: Tensor) -> Tensor:
        return self.normalizer(x).clamp(-5.0, 5.0) if self.config.normalize else x

    # Acting

    def initial(self, n: int) -> tuple[()]:
        """Nothing is remembered."""
        return ()

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, np.ndarray], carry: tuple[()], mode: Mode
    ) -> tuple[np.ndarray, tuple[()]]:
        x = self.scale(join_arrays(obs, self.keys).to(self.device))
        action = self.best(x) if self.actor is None else self.actor(x)
        if mode == "train":
            action = self.explore(action)
        return action.cpu().numpy(), carry

    def best(self, x: Tensor) -> Tensor:
        """The choice with the highest Q, one-hot "N A"."""
        return F.one_hot(self.critic.of_choices(x).amin(0).argmax(-1), self.act_space.size).float()

    def explore(self, action: Tensor) -> Tensor:
        """Uniformly random with probability epsilon, else with noise (App. A)."""
        c, generator = self.config, self.generators["train"]
        rand = lambda *shape: torch.rand(*shape, generator=generator, device=self.device)
        random = rand(len(action), 1) < c.epsilon
        if self.actor is None:
            other = F.one_hot(rand(*action.shape).argmax(-1), action.shape[-1]).float()
            return torch.where(random, other, action)
        noise = torch.randn(action.shape, generator=generator, device=self.device)
        return torch.where(
            random, 2.0 * rand(*action.shape) - 1.0, (action + c.exploration_noise * noise).clamp(-1.0, 1.0)
        )

    # Learning

    def sample(self, replay: Any, rng: np.random.Generator) -> Batch:
        """Transitions, k of k + 1 with the goal that hindsight gives them."""
        c = self.config
        if not c.future:
            return replay.transitions(c.batch_size, rng)
        if self.goals is None:
            raise ReverieError(
                "her needs to know what other goals would have been worth: set its `goals`, which every goal "
                "environment of reverie.make_env has"
            )
        batch = replay.transitions(c.batch_size, rng, future=True)
        return relabel(batch, rng.random(c.batch_size) < c.future / (c.future + 1), self.goals)

    def update(self, batch: Batch) -> Metrics:
        """The critic's step, the actor's by the critic that has moved, and once a cycle the targets'."""
        c = self.config
        t = transitions(batch.to(self.device), self.keys)
        seen, t = t.obs, t._replace(obs=self.scale(t.obs), next_obs=self.scale(t.next_obs))
        if self.actor is None:
            value = (self.critic.of_choices(t.obs) * t.action).sum(-1)
        else:
            value = self.critic(t.obs, t.action)
        loss = critic_loss(value, self.target(t))
        critic = self.critic_opt.gradient(loss)
        step(critic)
        self.updates += 1
        metrics = {
            "loss/critic": loss.detach(),
            "grad/critic": critic.norm,
            "critic/value": value.detach().mean(),
        }
        if self.actor is not None and self.actor_opt is not None and self.updates % c.delay == 0:
            action = self.actor(t.obs)
            climb = actor_loss(self.critic.climbed(t.obs, action), action, c.action_penalty)
            actor = self.actor_opt.gradient(climb)
            step(actor)
            metrics |= {"loss/actor": climb.detach(), "grad/actor": actor.norm}
        if self.updates % c.target_every == 0:
            self.follow()
        if c.normalize:
            self.normalizer.see(seen)
        return metrics

    @torch.no_grad()
    def target(self, t: Transitions) -> Tensor:
        """y = r + gamma Q'(s', pi'(s')) "N", no more and no less than rewards can add up to."""
        c = self.config
        if self.target_actor is None:
            after = self.target_critic.of_choices(t.next_obs).amin(0).amax(-1)
        else:
            action = self.target_actor(t.next_obs)
            if c.target_noise:
                noise = torch.randn(action.shape, generator=self.generators["learn"], device=self.device)
                noise = (c.target_noise * noise).clamp(-c.target_noise_clip, c.target_noise_clip)
                action = (action + noise).clamp(-1.0, 1.0)
            after = self.target_critic(t.next_obs, action).amin(0)
        low, high = (bound / (1.0 - c.discount) for bound in c.rewards)
        return (t.reward + c.discount * t.cont * after).clamp(low, high)

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Nothing: there is no world to look into."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "critic_opt": self.critic_opt.state_dict(),
            "actor_opt": {} if self.actor_opt is None else self.actor_opt.state_dict(),
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.critic_opt.load_state_dict(state["critic_opt"])
        if self.actor_opt is not None:
            self.actor_opt.load_state_dict(state["actor_opt"])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])
        self.updates = state["updates"]


def relabel(batch: Batch, chosen: np.ndarray, goals: Goals) -> Batch:
    """Alg. 1, "future": the third row's achieved goal becomes the goal of the first two, where ``chosen`` "B".

    ::

        row        0     1    ..   2           of one episode; 2 may be 1 itself
        achieved   m0    m1        m2
        desired    m2    m2                    reward and end of row 1 are judged anew: did m1 reach m2?

    Returns two rows. Whatever else an environment may end for, beside goals, is not known to it and forgotten.
    """
    pick = torch.from_numpy(chosen)
    obs = {key: value[:, :2].clone() for key, value in batch.obs.items()}
    wanted = batch.obs[ACHIEVED][:, 2]
    obs[DESIRED][pick] = wanted[pick][:, None]
    reward, is_terminal = batch.reward[:, :2].clone(), batch.is_terminal[:, :2].clone()
    arrived, wished = obs[ACHIEVED][pick, 1].numpy(), wanted[pick].numpy()
    if len(arrived):
        reward[pick, 1] = torch.from_numpy(goals.reward(arrived, wished))
        is_terminal[pick, 1] = torch.from_numpy(goals.terminated(arrived, wished))
    action, prev_action, is_first, is_last = (
        rows[:, :2] for rows in (batch.action, batch.prev_action, batch.is_first, batch.is_last)
    )
    return Batch(obs, action, prev_action, reward, is_first, is_last, is_terminal)


# The losses.


def critic_loss(value: Tensor, target: Tensor) -> Tensor:
    """The mean squared errors of every critic "M N" against one target "N", added up."""
    return len(value) * F.mse_loss(value, target.expand_as(value))


def actor_loss(value: Tensor, action: Tensor, penalty: float) -> Tensor:
    """Minus the mean of Q(s, g, pi(s, g)) "N", and the mean square of the actions "N A"."""
    return -value.mean() + penalty * action.square().mean()
