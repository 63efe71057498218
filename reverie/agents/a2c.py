"""A2C: "Asynchronous Methods for Deep Reinforcement Learning", Mnih et al. 2016 (arXiv 1602.01783), in step.

The idea. Many environments at once take the place of a memory: their rows are nearly unrelated, so that a policy
can learn from what it has just done. A critic predicts what a state will earn; the policy climbs what was earned
beyond that (the advantage), and a bonus keeps it from being sure too early.

How it differs from its neighbours. There is no model and no replay: a row is used once. The paper's A3C lets each
environment update shared weights whenever it has five rows; here all wait for each other and make one update, as
its successors do (OpenAI's baselines), which a test can repeat. It is what ``i2a.py`` adds imagination to, and
what it is compared with.

Where the equations are::

    R_t = r_t + gamma R_{t+1}, from V at the cut, Alg. S3   ops.returns     n_step_returns
    grad log pi(a|s) (R - V), Sec. 4                        policy_loss
    grad H(pi), Sec. 4                                      entropy_loss
    grad (R - V)^2, Alg. S3                                 value_loss
    RMSProp, Eq. S1                                         optim.RMSProp

Command: ``reverie train a2c --env CartPole-v1 --preset laptop --run runs/cartpole``.

Deviations. All environments in step instead of asynchronous workers. Learning rate, epsilon and the clipping of the
gradient are those of the baselines' A2C (the paper draws the rate at random and prints no clip). The convolutions
are settings; the default is the paper's network. An episode that the clock cut counts on with the value
of its last row. Vectors, and several discrete or continuous actions, are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.dists import OneHot, TanhNormal
from reverie.heads import split_space
from reverie.nets import MLP, Convs, GridConv, Linear
from reverie.ops.returns import n_step_returns
from reverie.optim import Optimizer, RMSProp, step
from reverie.types import ActionSpace, Batch, Carry, LoopName, Media, Metrics, Mode, ObsSpace
from reverie.when import linear


@dataclass(frozen=True)
class Config:
    """The paper's values; section numbers are its own."""

    # Environment and schedule
    pixels: bool = True  # observe nothing but the picture (Sec. 5.1)
    image_size: int = 84  # pixels to a side; 0 for the environment's own
    action_repeat: int = 4  # env steps per decision (Sec. 5.1)
    steps: int = 320_000_000  # env steps in all: 80 million decisions (Sec. 5.1)
    actors: int = 16  # environments stepped together (Sec. 5.1)
    length: int = 5  # t_max, rows between two updates (Sec. 5.1)

    # Networks (Sec. 5.1): shared up to the heads
    channels: tuple[int, ...] = (16, 32)  # of the convolutions
    kernels: tuple[int, ...] = (8, 4)
    strides: tuple[int, ...] = (4, 2)
    same: bool = False  # pad with zeros
    residual: bool = False  # after each convolution a block of two that adds to it (Guez et al. 2019)
    vector_units: int = 64  # width of the two layers that read vectors; ours
    units: int = 256  # width of the last hidden layer
    init_std: float = 1.0  # of the squashed Gaussian over continuous actions, before training; ours

    # Losses (Sec. 4)
    discount: float = 0.99  # gamma, per decision
    value_scale: float = 0.5  # of (R - V)^2
    entropy_scale: float = 0.01  # beta
    eval_action: Literal["sample", "mode"] = "sample"

    # Optimiser
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    lr: float = 7e-4
    lr_end: float = 0.0  # linearly, over all of the run (Sec. 5.1)
    decay: float = 0.99  # alpha
    eps: float = 1e-5
    clip: float = 0.5  # global norm


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), all of one size."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.one, self.two = GridConv(channels, channels, kernel), GridConv(channels, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(F.relu(x))))


class ResNet(nn.Module):
    """Convs with a residual block after each (Guez et al. 2019, App.): "n h w c" to "n h2 w2 o"."""

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: tuple[int, ...],
        kernels: tuple[int, ...],
        strides: tuple[int, ...],
        same: bool,
    ):
        super().__init__()
        blocks: list[nn.Module] = []
        for wide, kernel, stride in zip(channels, kernels, strides, strict=True):
            stage = Convs(shape, (wide,), (kernel,), (stride,), same)
            blocks += [stage.convs[0], Residual(wide, kernel)]
            shape = stage.shape
        self.blocks, self.size = nn.Sequential(*blocks), shape[0] * shape[1] * shape[2]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.blocks(x))


class Body(nn.Module):
    """Observations to the last hidden layer, "n units"."""

    def __init__(self, space: ObsSpace, config: Config):
        super().__init__()
        c, (images, vectors) = config, split_space(space)
        net: Any = ResNet if c.residual else Convs
        nets = {key: net(s.shape, c.channels, c.kernels, c.strides, c.same) for key, s in images.items()}
        self.images = nn.ModuleDict(nets)
        self.keys, width = list(vectors), sum(s.shape[0] for s in vectors.values())
        self.vectors = MLP(width, c.vector_units, 2, act=F.relu) if vectors else None
        flat = sum(net.size for net in nets.values()) + (c.vector_units if vectors else 0)
        self.out = Linear(flat, c.units)

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        parts = [net(obs[key]).flatten(1) for key, net in self.images.items()]
        if self.vectors is not None:
            parts.append(self.vectors(torch.cat([obs[key] for key in self.keys], -1)))
        return self.out(torch.cat(parts, -1) if len(parts) > 1 else parts[0], F.relu)


class ActorCritic(nn.Module):
    """Policy and value, one body (Sec. 4)."""

    def __init__(self, space: ObsSpace, act_space: ActionSpace, config: Config):
        super().__init__()
        self.groups, self.body = act_space.groups, Body(space, config)
        self.policy, self.value = Linear(config.units, act_space.size), Linear(config.units, 1)
        with torch.no_grad():
            self.policy.weight.mul_(0.1)  # begin unsure
        self.log_std = None
        if not act_space.discrete:
            self.log_std = nn.Parameter(torch.full((act_space.size,), float(np.log(config.init_std))))

    def forward(self, obs: Mapping[str, Tensor]) -> tuple[OneHot | TanhNormal, Tensor]:
        """The policy over actions "n A", and the value "n"."""
        feat = self.body(obs)
        logits, value = self.policy(feat), self.value(feat)[:, 0]
        if self.log_std is None:
            return OneHot(logits, self.groups), value
        return TanhNormal(logits, self.log_std.exp().expand_as(logits)), value


class A2C:
    """The agent. One optimiser owns all of it."""

    loop: ClassVar[LoopName] = "on_policy"

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
            self.net = ActorCritic(obs_space, act_space, c).to(self.device)
        self.modules = nn.ModuleDict({"net": self.net})
        self.opt = make_optimizer(c, {"net": self.net})
        self.updates = 0
        self.generators = {
            use: torch.Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train", "eval"))
        }

    def see(self, obs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Images from 0..255 to 0..1; vectors as they are."""
        seen = {key: torch.as_tensor(obs[key], device=self.device) for key in self.obs_space}
        return {key: x.float().div_(255.0) if self.obs_space[key].is_image else x for key, x in seen.items()}

    # Acting

    def initial(self, n: int) -> Carry:
        return ()  # each row is all there is

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray], carry: Carry, mode: Mode) -> tuple[np.ndarray, Carry]:
        dist, _ = self.net(self.see(obs))
        if mode == "eval" and self.config.eval_action == "mode":
            action = dist.mode
        else:
            generator = self.generators[mode]
            action = dist.draw(generator) if isinstance(dist, OneHot) else dist.sample(generator)
        return action.cpu().numpy(), carry

    # Learning

    def update(self, batch: Batch, carries: Sequence[Carry] | None = None) -> Metrics:
        """One step from T rows in a row of B streams (Alg. S3). What ``act`` left behind is not needed."""
        c, batch = self.config, batch.to(self.device)
        size, time = batch.reward.shape
        dist, value = self.net(self.see({key: x.flatten(0, 1) for key, x in batch.obs.items()}))
        value = value.view(size, time)
        target, counts = targets(batch, value.detach(), c.discount)
        advantage = target - value[:, :-1].detach()
        log_prob = dist.log_prob(batch.action.flatten(0, 1)).view(size, time)[:, :-1]
        entropy = dist.entropy(self.generators["learn"]).view(size, time)[:, :-1]
        losses = {
            "policy": policy_loss(log_prob, advantage, counts),
            "value": c.value_scale * value_loss(value[:, :-1], target, counts),
            "entropy": c.entropy_scale * entropy_loss(entropy, counts),
        }
        self.opt.lr = linear(c.lr, c.lr_end, planned(c))(self.updates)
        gradient = self.opt.gradient(torch.stack([*losses.values()]).sum())
        step(gradient)
        self.updates += 1
        with torch.no_grad():
            return {
                **{f"loss/{name}": loss.detach() for name, loss in losses.items()},
                "grad/net": gradient.norm,
                "actor/entropy": -entropy_loss(entropy.detach(), counts),
                "critic/value": value.detach().mean(),
                "critic/explained": explained(value.detach()[:, :-1], target, counts),
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


def make_optimizer(c: Config, modules: Mapping[str, nn.Module]) -> Optimizer:
    """RMSProp as in Eq. S1, or Adam."""
    if c.optimizer == "adam":
        return Optimizer(modules, c.lr, c.eps, c.clip)
    return RMSProp(modules, c.lr, c.eps, c.clip, c.decay)


def planned(c: Config) -> int:
    """Updates in all of the run."""
    return max(c.steps // (c.actors * c.length * c.action_repeat), 1)


# The losses, in the paper's order.


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
    """-log pi(a|s) A; the advantage carries no gradient."""
    return -(log_prob * advantage)[counts].mean()


def value_loss(value: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """(R - V)^2; the target carries no gradient."""
    return F.mse_loss(value[counts], target[counts])


def entropy_loss(entropy: Tensor, counts: Tensor) -> Tensor:
    """-H(pi)."""
    return -entropy[counts].mean()


def explained(value: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """The part of the targets' variance that the critic foresees; 0 for one that says the same of every row."""
    return 1.0 - (target - value)[counts].var() / (target[counts].var() + 1e-8)
