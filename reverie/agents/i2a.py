"""I2A: "Imagination-Augmented Agents for Deep Reinforcement Learning", Weber, Racanière et al. 2017 (arXiv 1707.06203).

The idea. Learn to predict the next frame and its reward. Before each decision imagine one future for every action,
by that model and a small policy of its own; let a network *read* these futures, however wrong they are, and act on
what it makes of them, beside an ordinary network that sees the present alone.

How it differs from its neighbours. ``a2c.py`` is the same actor-critic without the futures. Planners (``planet.py``)
and search trust the model's rewards; I2A learns how far to trust them, so that a poor model costs it little. Nothing
is learned *in* imagination, as Dreamer does: futures are inputs, not data.

::

    o_t ──┬─ a=1: (o1, r1) (o2, r2) .. (oH, rH) ── CNN, LSTM from H back to 1 ── e_1 ─┐
          ├─ a=2: ..                                                             e_2 ─┤
          ├─ ..      o_k+1, r_k+1 = model(o_k, a_k),  a_k ~ rollout policy(o_k)  ..   ├─ concat, hidden ─┬─ policy
          ├─ a=A: ..                                                             e_A ─┤                  └─ value
          └─ CNN ─────────────────────────────────────────────────────────────────────┘

Where the equations are::

    environment model, Sec. 3.2, App. B     model_loss            frames and rewards, by likelihood; then frozen
    imagination core, Fig. 1a, 1b           I2A.imagine           one rollout for each first action
    rollout encoder, Sec. 3.2               RolloutEncoder        last step first
    policy and value, App. A                policy_loss, value_loss, entropy_loss     n-step advantage actor-critic
    distillation, App. A                    distillation_loss     the rollout policy follows the policy

    moves:                encoder, CNNs, heads     rollout policy     model
    actor-critic                 yes                    no              no
    distillation                 no                     yes             no
    model's likelihood           no                     no              yes, before all else

Command: ``reverie train i2a --env reverie/Sokoban-v0 --preset laptop --run runs/sokoban``.

What others got wrong, and tests watch here: the paper prints the distillation loss without its minus sign; the rollout
encoder is a CNN and a *vector* LSTM run backwards; rows of states and of first actions must be laid out alike. That
I2A beats model-free learning is shown for networks of one kind: a residual network without strides (``train a2c
--preset resnet``) solves more Sokoban levels than the paper's I2A (Guez et al. 2019).

Deviations. In step (A2C) instead of asynchronous; learning rates and clipping are those of public ports, the paper
searched them. Padding SAME, as in the co-author's notebook. The action reaches the model as a bias for each action,
which is what a one-hot broadcast over all pixels comes to (but for the picture's border), and its reward head reads
pooled features. ``frames="cells"`` is ours: planes of which one is set in each cell, predicted as one choice per cell.
What ``act`` imagined is given back to ``update``: as constants, the futures need not be imagined again. Rollouts go
on after an imagined end; the model predicts none. ``model="simulator"`` puts the world's own rules in its place
(``--preset laptop simulator``; Sokoban's picture shows all they need): an upper bound, and not the paper's agent. With
them a future stays where it ends.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.data.replay import Replay
from reverie.dists import Bernoulli, OneHot, UnitNormal
from reverie.envs.base import Rules
from reverie.imagine import open_loop
from reverie.nets import LSTM, Convs, GridConv, Linear
from reverie.ops.returns import n_step_returns
from reverie.optim import Optimizer, RMSProp, step
from reverie.types import ActionSpace, Batch, LoopName, Media, Metrics, Mode, ObsSpace, ReverieError
from reverie.when import linear


@dataclass(frozen=True)
class Config:
    """The paper's values for Sokoban where it prints them; section and appendix numbers are its own."""

    # Environment and schedule
    pixels: bool = True  # observe nothing but the picture (Sec. 4)
    image_size: int = 80  # pixels to a side (App. B); 0 for the environment's own
    action_repeat: int = 1
    steps: int = 1_000_000_000  # env steps in all, those of the model's data among them (Sec. 4.1)
    actors: int = 32  # environments stepped together; 32 to 64 workers (Sec. 4)
    length: int = 5  # rows between two updates; searched in the paper, 5 in its ports

    # Environment model (Sec. 3.2, App. B)
    frames: Literal["pixels", "cells"] = "pixels"  # a Bernoulli for every pixel, or one choice for every cell
    # copy: the frame as it is, no reward (Sec. 4.3). simulator: the world's own rules, where its picture shows all
    # they go by; no agent has them in earnest, so this is the most that a better model could bring.
    model: Literal["learned", "copy", "simulator"] = "learned"
    model_steps: int = 100_000_000  # env steps its data take (Sec. 4.1: fewer than that)
    random_steps: int = 10_000_000  # of them by a random policy; the others by a learning model-free agent
    model_updates: int = 400_000
    model_batch: int = 256  # transitions
    model_rare: float = 0.25  # of them drawn where the reward is not the commonest
    model_lr: float = 1e-3
    model_tile: int = 8  # pixels to a side that the first layer takes for one cell; 1 for cells
    model_channels: int = 64
    model_units: int = 64  # of the reward head
    model_stay: float = 3.0  # cells: added to the logit of what a cell shows already
    reward_bins: tuple[float, ...] = (
        -1.1,
        -0.1,
        0.9,
        10.9,
    )  # Sokoban's; none: the reward itself, by its square
    reward_scale: float = 1.0  # of the reward's loss
    world: str = ""  # a run whose model is used; its env steps count here too

    # Imagination (Sec. 3.2)
    horizon: int = 5  # tau
    rewards: bool = True  # the encoder sees predicted rewards (Sec. 4.3)
    rollouts_by: Literal["distilled", "chance"] = "distilled"
    search: bool = False  # instead of reading the futures: act by what they add up to (Sec. 4.2)

    # Networks (App. B): the model-free path and the rollout encoder have convolutions of the same shape
    channels: tuple[int, ...] = (32, 64, 64)
    kernels: tuple[int, ...] = (8, 4, 3)
    strides: tuple[int, ...] = (4, 2, 1)
    same: bool = True  # pad with zeros
    encoder_from: int = 0  # first of these layers that the encoder has; later ones save time
    units_lstm: int = 512
    units: int = 512  # of the last hidden layer
    rollout_units: int = 128  # hidden units of the rollout policy

    # Losses (App. A)
    discount: float = 0.99  # gamma, per decision
    value_scale: float = 0.5  # of (R - V)^2
    entropy_scale: float = 0.01  # lambda_ent
    eval_action: Literal["sample", "mode"] = "sample"  # arg-max can walk into a wall for ever

    # Optimisers
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    lr: float = 7e-4
    lr_end: float = 0.0  # linearly, over all of the run
    decay: float = 0.99
    eps: float = 1e-5
    clip: float = 0.5  # global norm
    distil_lr: float = 1e-3  # Adam, of the rollout policy


# Parts only this paper has.


class Imagined(NamedTuple):
    """Futures of n observations, one for each of A first actions, H steps long. Constants: no gradient."""

    frame: Tensor  # "n A H h w" uint8, the class of each cell; or "n A H h w c" float, pixels in 0..1
    reward: Tensor  # "n A H"


class Strip(NamedTuple):
    """What is imagined at one moment beside what happened: frames uint8, H steps."""

    truth: np.ndarray  # "H+1 h w c", the moment itself first
    earned: np.ndarray  # "H", what arrived with them
    taken: np.ndarray  # "H", the actions' numbers
    imagined: np.ndarray  # "A H h w c", one future for each first action
    told: np.ndarray  # "A H", expected rewards


class EnvModel(nn.Module):
    """One step ahead: frame "n h w c" and action "n A" to logits of the next frame "n h w c" and of its reward."""

    bins: Tensor

    def __init__(self, shape: tuple[int, ...], actions: int, config: Config):
        super().__init__()
        h, w, channels = shape
        c, self.tile, self.stay = config, config.model_tile, config.model_stay * (config.frames == "cells")
        if h % c.model_tile or w % c.model_tile:
            raise ReverieError(
                f"--model-tile {c.model_tile} does not divide pictures of {h}x{w}; give one that does"
            )
        inner = c.model_tile**2 * channels
        self.embed = Linear(inner, c.model_channels) if c.model_tile > 1 else None
        self.one = GridConv(inner if self.embed is None else c.model_channels, c.model_channels, 3)
        self.action = Linear(actions, c.model_channels)
        self.two = GridConv(c.model_channels, c.model_channels, 3)
        self.out = Linear(c.model_channels, inner)
        self.hidden = Linear(2 * c.model_channels, c.model_units)
        self.reward = Linear(c.model_units, max(len(c.reward_bins), 1))
        self.register_buffer("bins", torch.tensor(c.reward_bins), persistent=False)

    def forward(self, frame: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        x = self.cells(frame)
        x = x if self.embed is None else F.relu(self.embed(x))
        y = F.relu(self.one(x) + self.action(action)[:, None, None])
        y = self.two(y)
        y = F.relu(y if self.embed is None else x + y)
        logits = self.pixels(self.out(y), frame.shape)
        if self.stay:
            logits = torch.add(logits, frame, alpha=self.stay)
        pooled = torch.cat([y.amax((1, 2)), y.mean((1, 2))], -1)
        return logits, self.reward(self.hidden(pooled, F.relu))

    def cells(self, frame: Tensor) -> Tensor:
        """Pixels of one tile side by side as channels: "n h w c" to "n h/t w/t t*t*c"."""
        if self.tile == 1:
            return frame
        n, h, w, c = frame.shape
        t = self.tile
        return (
            frame.reshape(n, h // t, t, w // t, t * c).transpose(2, 3).reshape(n, h // t, w // t, t * t * c)
        )

    def pixels(self, cells: Tensor, shape: torch.Size) -> Tensor:
        """The way back."""
        if self.tile == 1:
            return cells
        n, h, w, c = shape
        t = self.tile
        return cells.reshape(n, h // t, w // t, t, t * c).transpose(2, 3).reshape(n, h, w, c)

    def expected(self, reward: Tensor) -> Tensor:
        """The mean reward "n", from its logits "n K"."""
        return torch.softmax(reward, -1) @ self.bins if len(self.bins) else reward[:, 0]


class ModelFree(nn.Module):
    """Convolutions and a hidden layer: the rollout policy, and the agent that gathers data for the model."""

    def __init__(self, shape: tuple[int, ...], config: Config, units: int, outputs: int):
        super().__init__()
        c = config
        self.convs = Convs(shape, c.channels, c.kernels, c.strides, c.same)
        self.hidden, self.out = Linear(self.convs.size, units), Linear(units, outputs)
        with torch.no_grad():
            self.out.weight.mul_(0.1)  # begin unsure

    def forward(self, frame: Tensor) -> Tensor:
        return self.out(self.hidden(self.convs(frame).flatten(1), F.relu))


class RolloutEncoder(nn.Module):
    """Futures "m H h w c", rewards "m H" to embeddings "m U": a CNN for each frame, the reward as one more map, an
    LSTM from the last step to the first."""

    def __init__(self, shape: tuple[int, ...], config: Config):
        super().__init__()
        c, first = config, config.encoder_from
        self.rewards = c.rewards
        self.convs = Convs(shape, c.channels[first:], c.kernels[first:], c.strides[first:], c.same)
        h, w, channels = self.convs.shape
        self.lstm = LSTM(h * w * (channels + 1), c.units_lstm)

    def forward(self, frame: Tensor, reward: Tensor) -> Tensor:
        m, horizon = reward.shape
        seen = self.convs(frame.flatten(0, 1))
        told = (reward if self.rewards else torch.zeros_like(reward)).reshape(-1, 1, 1, 1)
        x = torch.cat([seen, told.expand(*seen.shape[:3], 1)], -1).reshape(m, horizon, -1)
        none = x.new_zeros(m, self.lstm.units)
        hidden, _ = self.lstm(x.transpose(0, 1).flip(0), none, none)
        return hidden[-1]


class Augmented(nn.Module):
    """What reads the present and its futures: to the policy's logits "n A" and the value "n" (Fig. 1c)."""

    def __init__(self, shape: tuple[int, ...], actions: int, config: Config):
        super().__init__()
        c = config
        self.convs = Convs(shape, c.channels, c.kernels, c.strides, c.same)
        self.encoder = RolloutEncoder(shape, c)
        self.hidden = Linear(actions * c.units_lstm + self.convs.size, c.units)
        self.policy, self.value = Linear(c.units, actions), Linear(c.units, 1)
        with torch.no_grad():
            self.policy.weight.mul_(0.1)  # begin unsure

    def forward(self, frame: Tensor, future: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
        """``frame`` "n h w c", ``future`` "n A H h w c", ``reward`` "n A H"."""
        n = len(reward)
        embeds = self.encoder(future.flatten(0, 1), reward.flatten(0, 1)).reshape(
            n, -1
        )  # in the actions' order
        x = self.hidden(torch.cat([embeds, self.convs(frame).flatten(1)], -1), F.relu)
        return self.policy(x), self.value(x)[:, 0]


class Search(nn.Module):
    """No encoder: what each future adds up to, its last frame valued, is the policy's logit (Sec. 4.2).

    ::

        G_a = r_1 + gamma r_2 + .. + gamma^H V(o_H)         pi(a) ~ exp(G_a / delta)

    The paper prints exp(-G / delta), which prefers the worst future. The temperature delta is learned; G is a
    constant to the policy's gradient. ``over`` "n A" says which futures have ended, where that is known: V is 0.
    """

    def __init__(self, shape: tuple[int, ...], actions: int, config: Config):
        super().__init__()
        self.discount = config.discount
        self.critic = ModelFree(shape, config, config.units, 1)
        self.log_delta = nn.Parameter(torch.zeros(()))

    def forward(
        self, frame: Tensor, future: Tensor, reward: Tensor, over: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        n, actions, horizon = reward.shape
        gamma = self.discount ** torch.arange(horizon, device=reward.device)
        with torch.no_grad():
            last = self.critic(future[:, :, -1].flatten(0, 1)).view(n, actions)
            last = last if over is None else last.masked_fill(over, 0.0)
            worth = (reward * gamma).sum(-1) + self.discount**horizon * last
        return worth * torch.exp(-self.log_delta), self.critic(frame)[:, 0]


class I2A:
    """The agent. Four optimisers own, in turn, the model, the agent that gathers its data, what reads the futures,
    and the rollout policy. Takes one picture, and one choice among several actions. ``rules``: how the environment
    goes on, given by whoever made it, for a ``model`` that is the simulator."""

    rules: Rules | None = None
    loop: ClassVar[LoopName] = "on_policy"
    still = ("model", "guide")  # modules that are not moved any more once the model is learned

    def __init__(
        self,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        config: Config = Config(),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        self.obs_space, self.act_space, self.config = obs_space, act_space, config
        self.device, c = torch.device(device), config
        self.key = check_spaces(obs_space, act_space, c)
        shape, self.actions = obs_space[self.key].shape, act_space.size
        self.shape = shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.model = EnvModel(shape, self.actions, c)
            self.guide = ModelFree(shape, c, c.units, self.actions + 1)
            self.net = (Search if c.search else Augmented)(shape, self.actions, c)
            self.rollout_policy = ModelFree(shape, c, c.rollout_units, self.actions)
        parts = {
            "model": self.model,
            "guide": self.guide,
            "net": self.net,
            "rollout_policy": self.rollout_policy,
        }
        self.modules = nn.ModuleDict(parts).to(self.device)
        self.model_opt = Optimizer({"model": self.model}, c.model_lr, 1e-8, 10.0)
        self.guide_opt = make_optimizer(c, {"guide": self.guide})
        self.net_opt = make_optimizer(c, {"net": self.net})
        self.distil_opt = Optimizer({"rollout_policy": self.rollout_policy}, c.distil_lr, 1e-8, 10.0)
        self.updates = self.model_updates = 0
        self.classes = torch.eye(shape[2], device=self.device)
        self.choices = torch.eye(self.actions, device=self.device)
        self.rewards: Rewards | None = None  # where in the replay which reward is
        self.checked = False  # that cells are cells
        # One stream of randomness for each use: how often one is called cannot shift another.
        self.generators = {
            use: torch.Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train", "eval", "dream"))
        }

    @property
    def learned(self) -> bool:
        """Whether the model is as it will stay."""
        return self.model_updates >= self.config.model_updates

    @property
    def world(self) -> "World":
        return World(self)

    def see(self, image: Any) -> Tensor:
        """uint8 "n h w c" as floats 0..1; of cells, exactly one plane is set."""
        seen = torch.as_tensor(image, device=self.device)
        if self.config.frames == "pixels":
            return seen.float().div_(255.0)
        if not self.checked:
            if not ((seen > 0).sum(-1) == 1).all():
                raise ReverieError(
                    f"frames='cells' needs planes of which one is set in each cell, and {self.key!r} has cells with "
                    f"none or several; use frames='pixels'"
                )
            self.checked = True
        return (seen > 0).float()

    def show(self, frame: Tensor) -> Tensor:
        """Stored frames as the networks read them."""
        return F.embedding(frame.int(), self.classes) if self.config.frames == "cells" else frame

    # Imagination

    @torch.no_grad()
    def imagine(self, frame: Tensor, generator: torch.Generator) -> Imagined:
        """One future for each first action, of each of n frames; row n * A + a is frame n under action a.

        The first action is given, the others are drawn from the rollout policy on imagined frames.
        """
        c, n, actions = self.config, len(frame), self.actions
        x = frame.repeat_interleave(actions, 0)  # n A h w c
        action = self.choices.repeat(n, 1)
        frames, rewards = [], []
        for k in range(c.horizon):
            if k:
                action = self.rollout_action(x, generator)
            x, kept, reward = self.predict(x, action)
            frames.append(kept)
            rewards.append(reward)
        stack = lambda parts: torch.stack(parts, 1).unflatten(0, (n, actions))
        return Imagined(stack(frames), stack(rewards))

    def predict(
        self, frame: Tensor, action: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next frame as it is fed back and as it is kept, and its expected reward.

        Cells: the likeliest of each; pixels: their means.
        """
        if self.config.model == "copy":
            return frame, self.keep(frame), frame.new_zeros(len(frame))
        if self.config.model == "simulator":
            shown, earned = self.simulator.step(picture(frame), action.argmax(-1).cpu().numpy())
            x = self.see(shown)
            return x, self.keep(x), torch.as_tensor(earned, device=self.device)
        logits, reward = self.model(frame, action)
        if self.config.frames == "cells":
            picks = logits.argmax(-1)
            return F.embedding(picks, self.classes), picks.byte(), self.model.expected(reward)
        means = torch.sigmoid(logits / temperature)
        return means, means, self.model.expected(reward)

    def keep(self, frame: Tensor) -> Tensor:
        """Frames as they are stored: of cells, which plane is set."""
        return frame.argmax(-1).byte() if self.config.frames == "cells" else frame

    @property
    def simulates(self) -> bool:
        return self.config.model == "simulator"

    @property
    def simulator(self) -> Rules:
        if self.rules is None:
            raise ReverieError(
                "model='simulator' plays by the environment's rules: set the agent's `rules`, which an environment has "
                "whose picture shows all of it (Sokoban's, as it is)"
            )
        return self.rules

    def read(self, frame: Tensor, future: Imagined) -> tuple[Tensor, Tensor]:
        """What the network makes of frames "n h w c" and their futures: logits "n A" and the value "n"."""
        shown = self.show(future.frame)
        if not self.config.search or self.config.model != "simulator":
            return self.net(frame, shown, future.reward)
        over = torch.as_tensor(
            self.simulator.over(picture(shown[:, :, -1].flatten(0, 1))), device=self.device
        )
        return self.net(frame, shown, future.reward, over.view(len(frame), -1))

    def rollout_action(self, frame: Tensor, generator: torch.Generator) -> Tensor:
        if self.config.rollouts_by == "chance":
            logits = frame.new_zeros(len(frame), self.actions)
        else:
            logits = self.rollout_policy(frame)
        return OneHot(logits).draw(generator)

    # Acting

    def initial(self, n: int) -> Imagined:
        h, w, c = self.shape
        cells = self.config.frames == "cells"
        shape = (n, self.actions, self.config.horizon, h, w, *(() if cells else (c,)))
        frame = torch.zeros(shape, dtype=torch.uint8 if cells else torch.float32, device=self.device)
        return Imagined(frame, torch.zeros(shape[:3], device=self.device))

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray], carry: Imagined, mode: Mode) -> tuple[np.ndarray, Imagined]:
        """What is left behind is what was imagined."""
        frame, generator = self.see(obs[self.key]), self.generators[mode]
        if self.learned:
            carry = self.imagine(frame, generator)
            logits, _ = self.read(frame, carry)
        elif self.updates < self.random_updates:
            logits = frame.new_zeros(len(frame), self.actions)
        else:
            logits = self.guide(frame)[:, :-1]
        dist = OneHot(logits)
        likeliest = mode == "eval" and self.config.eval_action == "mode"
        action = dist.mode if likeliest else dist.draw(generator)
        return action.cpu().numpy(), carry

    @property
    def random_updates(self) -> int:
        c = self.config
        return c.random_steps // (c.actors * c.length * c.action_repeat)

    # Learning

    def update(self, batch: Batch, carries: Sequence[Imagined] | None = None) -> Metrics:
        """One step from T rows in a row of B streams. ``carries`` are what ``act`` left behind at rows 0..T-2: their
        futures are used again; others are imagined here."""
        c, batch = self.config, batch.to(self.device)
        size, time = batch.reward.shape
        if not self.learned and self.updates < self.random_updates:
            self.updates += 1
            return {}  # what a random policy did teaches no policy
        frame = self.see(batch.obs[self.key].flatten(0, 1))
        if not self.learned:
            out = self.guide(frame)
            logits, value = out[:, :-1], out[:, -1]
        else:
            future = self.futures(frame.unflatten(0, (size, time)), carries)
            logits, value = self.read(frame, future)
        dist, value = OneHot(logits), value.view(size, time)
        target, counts = targets(batch, value.detach(), c.discount)
        advantage = target - value[:, :-1].detach()
        log_prob = dist.log_prob(batch.action.flatten(0, 1)).view(size, time)[:, :-1]
        entropy = dist.entropy().view(size, time)[:, :-1]
        losses = {
            "policy": policy_loss(log_prob, advantage, counts),
            "value": c.value_scale * value_loss(value[:, :-1], target, counts),
            "entropy": c.entropy_scale * entropy_loss(entropy, counts),
        }
        opt = self.net_opt if self.learned else self.guide_opt
        opt.lr = linear(c.lr, c.lr_end, planned(c))(self.updates)
        gradients = [opt.gradient(torch.stack([*losses.values()]).sum())]
        metrics = {f"loss/{name}": loss.detach() for name, loss in losses.items()}
        if self.learned:
            distil = distillation_loss(dist.probs.detach(), self.rollout_policy(frame))
            gradients.append(self.distil_opt.gradient(distil))
            metrics["loss/distil"] = distil.detach()
            metrics["distil/kl"] = distil.detach() - dist.entropy().detach().mean()
        step(*gradients)
        self.updates += 1
        return {
            **metrics,
            "grad/net": gradients[0].norm,
            "actor/entropy": entropy.detach()[counts].mean(),
            "critic/value": value.detach().mean(),
        }

    def futures(self, frame: Tensor, carries: Sequence[Imagined] | None) -> Imagined:
        """Of frames "B T ..", flat "B*T ..": those left behind, the last row's imagined now."""
        generator = self.generators["learn"]
        if carries is None:
            return self.imagine(frame.flatten(0, 1), generator)
        all_rows = [*carries, self.imagine(frame[:, -1], generator)]
        return Imagined(*(torch.stack(parts, 1).flatten(0, 1) for parts in zip(*all_rows, strict=True)))

    def update_model(self, replay: Replay, seed: int, number: int) -> Metrics:
        """Update ``number`` of the model, from recorded transitions."""
        c = self.config
        if self.rewards is None:
            self.rewards = Rewards(replay)
        streams, rows = self.rewards.draw(
            np.random.default_rng([seed, 5, number]), c.model_batch, c.model_rare
        )
        batch = replay.take(streams, rows, 2).to(self.device)
        frames = self.see(batch.obs[self.key].flatten(0, 1)).unflatten(0, batch.reward.shape)
        reward = batch.reward[:, 1]
        check_rewards(reward, self.model.bins)
        losses = model_loss(
            self.model, frames[:, 0], batch.action[:, 0], frames[:, 1], reward, c.frames == "cells"
        )
        self.model_opt.lr = linear(c.model_lr, 0.1 * c.model_lr, max(c.model_updates, 1))(number)
        gradient = self.model_opt.gradient(losses["frame"] + c.reward_scale * losses["reward"])
        step(gradient)
        self.model_updates += 1
        if self.learned:
            self.rewards = None
        return {
            **{f"model/{name}": loss.detach() for name, loss in losses.items()},
            "grad/model": gradient.norm,
        }

    def take_model(self, state: Mapping[str, Any]) -> None:
        """The learned model of another agent, as its ``state_dict`` has it."""
        own = {name[6:]: x for name, x in state["modules"].items() if name.startswith("model.")}
        self.model.load_state_dict(own)
        self.model_updates = self.config.model_updates

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Open loop: ``context`` rows seen, the rest imagined."""
        return open_loop(self.world, batch.to(self.device), context)

    def strip(self, batch: Batch) -> Strip | None:
        """The futures of one row of ``batch`` and what followed it; None where no H rows of one episode do."""
        h = self.config.horizon
        ends = (
            batch.is_last.float().unfold(1, h + 1, 1)[..., :-1].sum(-1) if batch.reward.shape[1] > h else None
        )
        if ends is None or not (ends == 0).any():
            return None
        places = (ends == 0).nonzero()
        b, t = places[len(places) // 2].tolist()
        now = self.see(batch.obs[self.key][b, t : t + 1])
        future = self.imagine(now, self.generators["dream"])
        frames = picture(self.show(future.frame)[0])
        return Strip(
            batch.obs[self.key][b, t : t + h + 1].cpu().numpy(),
            batch.reward[b, t + 1 : t + h + 1].cpu().numpy(),
            batch.action[b, t : t + h].argmax(-1).cpu().numpy(),
            frames,
            future.reward[0].cpu().numpy(),
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            **{name: getattr(self, name).state_dict() for name in OPTIMIZERS},
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
            "updates": self.updates,
            "model_updates": self.model_updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        for name in OPTIMIZERS:
            getattr(self, name).load_state_dict(state[name])
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])
        self.updates, self.model_updates = state["updates"], state["model_updates"]
        self.rewards = None


OPTIMIZERS = ("model_opt", "guide_opt", "net_opt", "distil_opt")


class Rewards:
    """Which reward each recorded transition brought, so that rare ones can be drawn more often."""

    def __init__(self, replay: Replay):
        streams, rows, rewards = [], [], []
        for s, count in enumerate(replay.counts):
            low = max(0, count - replay.size)
            found = replay.read(s, low, count, obs=False)
            goes_on = np.flatnonzero(~found["is_last"][:-1])  # from an episode's last row nothing follows
            streams.append(np.full(len(goes_on), s))
            rows.append(low + goes_on)
            rewards.append(found["reward"][goes_on + 1])
        self.streams, self.rows = np.concatenate(streams), np.concatenate(rows)
        values, kind, counts = np.unique(
            np.concatenate(rewards).round(3), return_inverse=True, return_counts=True
        )
        if not len(values):
            raise ReverieError("the model has no transition to learn from; raise --model-steps")
        self.rare = np.flatnonzero(kind != counts.argmax())
        # Each rare reward as often as any other, however rare.
        weight = 1.0 / counts[kind[self.rare]]
        self.weight = np.cumsum(weight / weight.sum()) if len(self.rare) else weight

    def draw(self, rng: np.random.Generator, size: int, rare: float) -> tuple[list[int], list[int]]:
        """Streams and rows of ``size`` transitions, the part ``rare`` of them among the rare rewards."""
        picks = rng.integers(len(self.rows), size=size)
        n = round(rare * size) if len(self.rare) else 0
        if n:
            places = np.searchsorted(self.weight, rng.random(n)).clip(max=len(self.rare) - 1)
            picks[:n] = self.rare[places]
        return self.streams[picks].tolist(), self.rows[picks].tolist()


class World:
    """The environment model in the words of ``types.World``: what it remembers is one frame and its reward.

    An imagined frame is the likeliest, whatever the temperature (of pixels: the mean, which it makes sharper or
    vaguer). No end is foreseen.
    """

    temperature = 1.0

    def __init__(self, agent: I2A):
        self.agent = agent

    def initial(self, n: int) -> tuple[Tensor, Tensor]:
        blank = torch.zeros(n, *self.agent.shape, device=self.agent.device)
        return blank, blank.new_zeros(n)

    def observe(
        self, obs: Mapping[str, Tensor], prev_action: Tensor, is_first: Tensor, carry: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        frame = self.agent.see(obs[self.agent.key])
        return frame, frame.new_zeros(len(frame))

    @torch.no_grad()
    def imagine(self, carry: tuple[Tensor, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
        frame, _, reward = self.agent.predict(carry[0], action, self.temperature)
        return frame, reward

    def features(self, carry: tuple[Tensor, Tensor]) -> Tensor:
        return carry[0].flatten(1)

    def decode(self, carry: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {self.agent.key: (carry[0] * 255).round().byte()}

    def reward(self, carry: tuple[Tensor, Tensor]) -> Tensor:
        return carry[1]

    def cont(self, carry: tuple[Tensor, Tensor]) -> Tensor:
        return torch.ones_like(carry[1])

    def take(self, carry: tuple[Tensor, Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        return carry[0][index], carry[1][index]

    def put(
        self, carry: tuple[Tensor, Tensor], index: Tensor, part: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return carry[0].index_copy(0, index, part[0]), carry[1].index_copy(0, index, part[1])


def picture(frame: Tensor) -> np.ndarray:
    """Floats 0..1 as the environment shows them, uint8."""
    return (frame * 255).round().byte().cpu().numpy()


def check_spaces(obs_space: ObsSpace, act_space: ActionSpace, c: Config) -> str:
    """The key of the one picture; raises ``ReverieError`` for anything else."""
    key, space = next(iter(obs_space.items()))
    if len(obs_space) > 1 or not space.is_image:
        raise ReverieError(
            f"I2A imagines one picture, and this environment shows {', '.join(obs_space)}; train with --pixels, or "
            f"use another agent"
        )
    if len(act_space.groups) != 1:
        raise ReverieError(
            "I2A imagines one future for each action, and needs one choice among several: a Discrete action space"
        )
    return key


def check_rewards(reward: Tensor, bins: Tensor) -> None:
    """Refuse rewards that no bin stands for."""
    if not len(bins) or not len(reward):
        return
    lacking = (reward[:, None] - bins).abs().amin(1)
    if lacking.max() > 0.05:
        strange = float(reward[lacking.argmax()])
        raise ReverieError(
            f"a reward of {strange:g} is not among --reward-bins {' '.join(f'{b:g}' for b in bins.tolist())}; give all "
            f"there are, or none to predict the reward itself"
        )


def make_optimizer(c: Config, modules: Mapping[str, nn.Module]) -> Optimizer:
    """RMSProp as in A3C, or Adam."""
    if c.optimizer == "adam":
        return Optimizer(modules, c.lr, c.eps, c.clip)
    return RMSProp(modules, c.lr, c.eps, c.clip, c.decay)


def planned(c: Config) -> int:
    """Updates in all of the run."""
    return max(c.steps // (c.actors * c.length * c.action_repeat), 1)


# The losses, in the paper's order.


def model_loss(
    model: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    frame: Tensor,
    action: Tensor,
    next_frame: Tensor,
    reward: Tensor,
    cells: bool,
) -> dict[str, Tensor]:
    """App. B: -log p of the next frame, summed over its cells or pixels, and of the reward; mean over n.

    A reward's bin is the nearest; without bins it is a Gaussian's mean.
    """
    logits, told = model(frame, action)
    if cells:
        picks = next_frame.argmax(-1).flatten()
        seen = F.cross_entropy(logits.flatten(0, 2), picks, reduction="sum") / len(frame)
    else:
        seen = Bernoulli(logits).loss(next_frame).sum() / len(frame)
    bins = getattr(model, "bins", torch.zeros(0))
    if len(bins):
        nearest = (reward[:, None] - bins).abs().argmin(1)
        earned = F.cross_entropy(told, nearest)
    else:
        earned = UnitNormal(told[:, 0]).loss(reward).mean()
    return {"frame": seen, "reward": earned}


def targets(batch: Batch, value: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """n-step returns of all rows but the last, "B T-1", and which rows count: an episode's last row chose nothing.

    ::

        row           0      1      2      3       an episode that ends at row 2
        action       a0     a1     --     a3
        reward        -     r1     r2      0
        is_last       0      0      1      0
        target     r1+g(r2+g v2)  r2+g v2  --  ..   v2 counts 0 if row 2 is terminal
    """
    reward, ends = batch.reward[:, 1:], batch.is_last[:, 1:].float()
    left = discount * (1.0 - batch.is_terminal[:, 1:].float())
    rows = (x.t() for x in (reward, value[:, 1:], left, 1.0 - ends))
    return n_step_returns(*rows).t(), ~batch.is_last[:, :-1]


def policy_loss(log_prob: Tensor, advantage: Tensor, counts: Tensor) -> Tensor:
    """-log pi(a|o) A; the advantage carries no gradient."""
    return -(log_prob * advantage)[counts].mean()


def value_loss(value: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """(R - V)^2; the target carries no gradient."""
    return F.mse_loss(value[counts], target[counts])


def entropy_loss(entropy: Tensor, counts: Tensor) -> Tensor:
    """-H(pi)."""
    return -entropy[counts].mean()


def distillation_loss(probs: Tensor, rollout_logits: Tensor) -> Tensor:
    """-sum_a pi(a|o) log rollout_pi(a|o) on real observations; pi carries no gradient. The minus sign, which the
    paper does not print, is what makes the rollout policy follow: its logits' gradient is rollout_pi - pi."""
    return -(probs * torch.log_softmax(rollout_logits, -1)).sum(-1).mean()
