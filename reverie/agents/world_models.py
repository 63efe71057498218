"""World Models: "World Models", Ha & Schmidhuber 2018 (arXiv 1803.10122; NeurIPS, arXiv 1809.01999).

The idea. See, remember, act, learned one after another: V compresses each picture into a small vector z, M
predicts the next z and so carries a memory h, and C, a single linear layer on z and h with a few hundred
numbers, is found by evolution. M is a simulator too: C can be evolved entirely inside its dream.

How it differs from its neighbour. Nothing is trained end to end and no reward reaches V or M: pictures are
collected by a random policy, once. ``planet.py`` learns its world by one bound, with what the agent itself sees.

Where the equations are (the paper states them in its appendix)::

    V, variational autoencoder         v_loss       squared error and KL with a tolerance
    M, mixture density network, LSTM   m_loss       likelihood of the next z, of the next episode's start
    sampling with temperature tau      dists.Mixture.sample
    C, linear controller               Controller   a = W [z h] + b, squashed
    C's evolution                      Evolution    CMA-ES on the mean return of ``trials`` rollouts

Command: ``reverie train world_models --env doom/take_cover --preset take_cover take_cover_laptop --run runs/doom``.

Defaults are the released code's for CarRacing where it and the paper differ (epochs, what is evaluated, the
random policy); the preset ``take_cover`` has those of Doom. Deviations. z and pictures are never stretched or
wrapped in brightness, as the released preprocessing did by accident. M reads actions in our canonical scale,
-1..1, an affine map of the executed ones. Chunks of M's stream overlap by one row, so that no transition is
left out. The penalty on C's weights, whose sign was reversed, is left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from reverie.dists import Bernoulli, Mixture, noise_like
from reverie.imagine import look
from reverie.nets import LSTM, ImageDecoder, ImageEncoder, Linear, rounded
from reverie.optim import Gradient, Optimizer, step
from reverie.types import ActionSpace, Batch, LoopName, Media, Metrics, Mode, ObsSpace, ReverieError


@dataclass(frozen=True)
class Config:
    """The released code's values for CarRacing; sections are the paper's."""

    # Environment
    pixels: bool = True  # observe nothing but the picture
    image_size: int = 64  # pixels to a side
    action_repeat: int = 1

    # Collecting
    world: str = ""  # folder of a run whose V and M are taken, instead of learning them
    collect_env: str = ""  # where the rollouts are made, if not in the task itself
    episodes: str = ""  # folder of episodes to learn from, instead of collecting (000000-500.npz, ...)
    rollouts: int = 10_000  # episodes
    shortest: int = 0  # episodes of so many decisions or fewer are not used
    random_policy: Literal["cauchy", "held", "brownian"] = "cauchy"

    # V (App. "Variational Autoencoder")
    depth: int = 32  # channels of the first convolution
    latents: int = 32  # N_z
    kl_tolerance: float = 0.5  # nats of each latent that are free, counted on their sum
    v_updates: int = 1_000_000  # ten epochs; the paper says one
    v_batch: int = 100
    v_lr: float = 1e-4

    # M (App. "Mixture Density Network + RNN")
    units: int = 256  # of the LSTM
    components: int = 5  # Gaussians of each latent
    restart: bool = False  # learn when an episode ends (Doom)
    restart_weight: float = 10.0  # of the rows where one does
    rewards: bool = False  # learn rewards too: ours, not in the paper
    m_updates: int = 4_000
    m_batch: int = 100  # streams side by side
    m_length: int = 1_000  # rows of each stream in a batch: a whole episode
    m_lr: float = 1e-3
    m_lr_end: float = 1e-5
    m_lr_decay: float = 1.0  # a step: lr = end + (m_lr - end) * decay^step
    m_clip: float = 1.0  # of each entry of the gradient

    # C (App. "Controller", "Evolution Strategies")
    reads: Literal["z", "zh", "zch"] = "zh"  # what C sees of z, M's output h and its cell c
    hidden: int = 0  # tanh units between; 0 for the linear controller
    bias: bool = True
    one_sided: tuple[int, ...] = (2,)  # actions whose lower half of the tanh is "off": CarRacing's brake
    evolve_in: Literal["env", "dream"] = "env"
    population: int = 64
    trials: int = 16  # rollouts of each individual
    sigma: float = 0.1  # of the first generation
    generations: int = 1_800
    eval_generations: int = 25  # between two evaluations of the mean
    quick_episodes: int = 16  # of such an evaluation
    final_episodes: int = 100  # of the one at the end
    temperature: float = 1.0  # tau of the dream; the paper's for Doom is 1.15
    dream_steps: int = 2_100  # the longest dream
    starts: int = 1_000  # first frames that dreams begin with
    dream_dtype: Literal["float32", "bfloat16"] = "float32"  # of M's products in a dream; the second is ours

    # Acting
    sample_z: bool = True  # C and M read a sample of z; False: its mean


class V(nn.Module):
    """The eye: a picture "n h w c" in 0..1 to the mean and log-variance of z, and back."""

    def __init__(self, shape: tuple[int, ...], depth: int, latents: int):
        super().__init__()
        self.encoder = ImageEncoder(shape, depth)
        self.mean = Linear(self.encoder.embed, latents)
        self.log_variance = Linear(self.encoder.embed, latents)
        self.decoder = ImageDecoder(latents, shape, depth)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        embed = self.encoder(image)
        return self.mean(embed), self.log_variance(embed)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(z))


class Prediction(NamedTuple):
    """What M's memory h says of the row that follows."""

    z: Mixture  # "* Nz"
    restart: Tensor | None  # logit "*" that it begins a new episode
    reward: Tensor | None  # "*"


class M(nn.Module):
    """The memory: an LSTM on (z, a, whether an episode begins), and a mixture of Gaussians for each entry of the
    next z. Its outputs are laid out as the restart logit, then K weights, K means and K log-stds for all latents
    (latents side by side: what is done for each component is done over whole rows), then the reward."""

    def __init__(self, latents: int, actions: int, units: int, components: int, restart: bool, rewards: bool):
        super().__init__()
        self.latents, self.components, self.restart, self.rewards = latents, components, restart, rewards
        self.lstm = LSTM(latents + actions + restart, units)
        self.out = Linear(units, restart + 3 * latents * components + rewards)

    def inputs(self, z: Tensor, action: Tensor, first: Tensor) -> Tensor:
        return torch.cat([z, action, first[..., None]] if self.restart else [z, action], -1)

    def predict(self, h: Tensor) -> Prediction:
        out = self.out(h)
        restart, *mixture = out.split(
            [int(self.restart), out.shape[-1] - self.restart - self.rewards, int(self.rewards)], -1
        )
        logits, mean, log_std = mixture[0].unflatten(-1, (3, self.components, self.latents)).mT.unbind(-3)
        return Prediction(
            Mixture(logits, mean, log_std),
            restart[..., 0] if self.restart else None,
            mixture[1][..., 0] if self.rewards else None,
        )


class Controller:
    """C as a function: the numbers of each row of a batch may be another individual's.

    ``theta`` is, layer after layer, biases then weights "inputs outputs": 867 numbers for CarRacing.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int = 0, bias: bool = True):
        widths = [inputs, hidden, outputs] if hidden else [inputs, outputs]
        self.layers, self.bias = list(pairwise(widths)), bias
        self.size = sum((i + bias) * o for i, o in self.layers)

    def __call__(self, features: Tensor, theta: Tensor) -> Tensor:
        """Raw actions "n A" of features "n F" under ``theta``, "P" or "n P"."""
        x, at = features, 0
        for number, (inputs, outputs) in enumerate(self.layers):
            bias = theta[..., at : at + outputs] if self.bias else 0.0
            at += outputs * self.bias
            weight = theta[..., at : at + inputs * outputs].unflatten(-1, (inputs, outputs))
            at += inputs * outputs
            x = torch.tanh(x) if number else x
            x = (x @ weight if weight.ndim == 2 else torch.linalg.vecdot(x[:, None], weight.mT)) + bias
        return x


class Evolution:
    """CMA-ES (Hansen) as the released code used it: from zero, step size by cumulation, all else default.

    pycma takes another step-size rule from 300 numbers on, which lets one noisy comparison drive it; so the rule
    is named here. Its state is its history: told the same returns, it is where it was.
    """

    def __init__(self, size: int, population: int, sigma: float, seed: int):
        import cma

        self.population, self.size = population, size
        rng = np.random.default_rng([seed, 6])
        self.cma = cma.CMAEvolutionStrategy(
            np.zeros(size),
            sigma,
            {
                "popsize": population,
                "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
                "randn": lambda *shape: rng.standard_normal(shape),
                "seed": np.nan,  # its own generator is not used
                "verbose": -9,
                "verb_log": 0,
            },
        )
        self.history: list[np.ndarray] = []  # returns of each generation, "population"
        self.asked: np.ndarray | None = None

    @property
    def generation(self) -> int:
        return len(self.history)

    @property
    def mean(self) -> np.ndarray:
        """The distribution's mean: what is evaluated, not the luckiest individual."""
        return np.array(self.cma.mean if self.history else np.zeros(self.size), np.float32)

    @property
    def sigma(self) -> float:
        return float(self.cma.sigma)

    def ask(self) -> np.ndarray:
        """The next generation, "population P"; asked again before ``tell``, the same."""
        if self.asked is None:
            self.asked = np.array(self.cma.ask(), np.float64)
        return self.asked.astype(np.float32)

    def tell(self, returns: np.ndarray) -> None:
        """What each of them earned; more is better."""
        self.ask()
        assert self.asked is not None
        returns = np.asarray(returns, np.float64)
        self.cma.tell(list(self.asked), list(-returns))
        self.history.append(returns)
        self.asked = None


class Habit(NamedTuple):
    """What acting at random remembers of each stream."""

    action: Tensor  # "n A", the last one
    bias: Tensor  # "n A"
    weight: Tensor  # "n A Nz"
    hold: Tensor  # "n", frames
    frame: Tensor  # "n", since the start of the episode


class Belief(NamedTuple):
    """A moment as V and M know it: z of the picture, M's memory of all before it, what M foretold of it."""

    z: Tensor  # "n Nz"
    h: Tensor  # "n U"
    c: Tensor  # "n U"
    first: Tensor  # "n", 1 where an episode begins
    restart: Tensor  # "n", logit that it had ended before this moment
    reward: Tensor  # "n"


class Memory(NamedTuple):
    """M's state between two chunks of its stream."""

    h: Tensor
    c: Tensor


class VM:
    """V and M together, as the ``World`` that a dream is made of."""

    def __init__(self, agent: "WorldModels", generator: Generator, temperature: float):
        self.agent, self.generator, self.temperature = agent, generator, temperature
        self.m = rounded(agent.m) if agent.config.dream_dtype == "bfloat16" else agent.m
        self.cell = self.m.lstm.cell()

    def initial(self, n: int) -> Belief:
        return self.agent.belief(n)

    @torch.no_grad()
    def observe(
        self, obs: Mapping[str, Tensor], prev_action: Tensor, is_first: Tensor, carry: Belief
    ) -> Belief:
        return self.agent.look(
            obs[self.agent.key], prev_action, is_first, carry, noise_like(carry.z, self.generator)
        )

    @torch.no_grad()
    def imagine(self, carry: Belief, action: Tensor) -> Belief:
        """One step of M, then a z drawn from what it expects.

        ::

            carry           z_t   h_t          h_t has seen z_0..z_{t-1} and a_0..a_{t-1}
            action                a_t
            next            z_{t+1} ~ p(. | h_{t+1}),  h_{t+1} = LSTM(z_t, a_t; h_t)
        """
        m = self.m
        h, c = self.cell(m.inputs(carry.z, action, carry.first), carry.h, carry.c)
        told = m.predict(h)
        z = told.z.sample(self.generator, self.temperature)
        zeros = torch.zeros_like(carry.first)
        alive = torch.ones_like(zeros) if m.restart else zeros  # a step survived is worth 1
        return Belief(
            z,
            h,
            c,
            zeros,
            zeros - NEVER if told.restart is None else told.restart,
            alive if told.reward is None else told.reward,
        )

    @torch.no_grad()
    def decode(self, carry: Belief) -> dict[str, Tensor]:
        picture = self.agent.v.decode(carry.z)
        return {self.agent.key: (picture * 255).round().byte()}

    def reward(self, carry: Belief) -> Tensor:
        return carry.reward

    def cont(self, carry: Belief) -> Tensor:
        return torch.sigmoid(-carry.restart)

    def features(self, carry: Belief) -> Tensor:
        """What C reads: "n F"."""
        return torch.cat(
            [{"z": carry.z, "h": carry.h, "c": carry.c}[part] for part in self.agent.config.reads], -1
        )

    def take(self, carry: Belief, index: Tensor) -> Belief:
        return Belief(*(part[index] for part in carry))

    def put(self, carry: Belief, index: Tensor, part: Belief) -> Belief:
        return Belief(*(whole.index_copy(0, index, new) for whole, new in zip(carry, part, strict=True)))


NEVER = 20.0  # logit of what does not happen


class WorldModels:
    """The agent. In mode "train" it acts at random, to collect; in mode "eval" C acts."""

    loop: ClassVar[LoopName] = "staged"

    def __init__(
        self,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        config: Config = Config(),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        images = [key for key, space in obs_space.items() if space.is_image]
        if len(obs_space) != 1 or not images:
            raise ReverieError(
                f"world_models sees one picture and nothing else, and this environment shows "
                f"{', '.join(obs_space)}; --pixels makes it show its picture alone"
            )
        outside = [i for i in config.one_sided if i >= act_space.size]
        if outside and not act_space.discrete:
            raise ReverieError(
                f"one_sided names action {outside[0]}, and there are {act_space.size}, counted from 0: "
                f"say --one-sided with those whose lower half is off, or with none"
            )
        self.obs_space, self.act_space, self.config, self.seed = obs_space, act_space, config, seed
        self.key, self.device = images[0], torch.device(device)
        c = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the initial weights
            self.v = V(obs_space[self.key].shape, c.depth, c.latents)
            self.m = M(c.latents, act_space.size, c.units, c.components, c.restart, c.rewards)
        self.modules = nn.ModuleDict({"v": self.v, "m": self.m}).to(self.device)
        self.v_opt = Optimizer({"v": self.v}, c.v_lr, 1e-8, math.inf)
        self.m_opt = Optimizer({"m": self.m}, c.m_lr, 1e-8, math.inf, clip_value=c.m_clip)
        features = sum({"z": c.latents, "h": c.units, "c": c.units}[part] for part in c.reads)
        self.controller = Controller(features, act_space.size, c.hidden, c.bias)
        self.theta = torch.zeros(self.controller.size, device=self.device)  # C's numbers
        self.counts = {"v": 0, "m": 0}  # updates of each
        # One stream of randomness for each use: how often one is called cannot shift another.
        self.generators = {
            use: Generator(self.device).manual_seed(1_000_003 * seed + i)
            for i, use in enumerate(("learn", "train", "eval", "dream"))
        }

    @property
    def world(self) -> VM:
        return VM(self, self.generators["dream"], self.config.temperature)

    @property
    def updates(self) -> int:
        """Of M: without any there is nothing to dream of."""
        return self.counts["m"]

    # Acting

    def belief(self, n: int) -> Belief:
        zeros = lambda *shape: torch.zeros(n, *shape, device=self.device)
        units = self.config.units
        return Belief(
            zeros(self.config.latents), zeros(units), zeros(units), zeros(), zeros() - NEVER, zeros()
        )

    def initial(self, n: int) -> tuple[Belief, Tensor, Habit]:
        size = self.act_space.size
        zeros = lambda *shape: torch.zeros(n, *shape, device=self.device)
        count = torch.zeros(n, dtype=torch.long, device=self.device)
        habit = Habit(zeros(size), zeros(size), zeros(size, self.config.latents), count + 1, count)
        return self.belief(n), zeros(size), habit

    def act(
        self, obs: Mapping[str, np.ndarray], carry: tuple[Belief, Tensor, Habit], mode: Mode
    ) -> tuple[np.ndarray, tuple[Belief, Tensor, Habit]]:
        if mode == "train":
            return self.act_at_random(obs, carry)
        return self.play(obs, carry, self.theta, noise_like(carry[0].z, self.generators["eval"]))

    @torch.no_grad()
    def play(
        self,
        obs: Mapping[str, np.ndarray],
        carry: tuple[Belief, Tensor, Habit],
        theta: Tensor,
        noise: Tensor,
    ) -> tuple[np.ndarray, tuple[Belief, Tensor, Habit]]:
        """The actions of C with the numbers ``theta``, "P" or one row for each stream, "n P". ``noise`` "n Nz" is
        what z is sampled with."""
        belief, prev_action, habit = carry
        image = torch.as_tensor(obs[self.key], device=self.device)
        is_first = torch.as_tensor(obs["is_first"], device=self.device)
        belief = self.look(image, prev_action, is_first, belief, noise)
        action = self.action(self.controller(self.world.features(belief), theta))
        return action.cpu().numpy(), (belief, action, habit)

    def begin(self, stats: Tensor, generator: Generator) -> Belief:
        """Episodes that begin with a z drawn from ``stats`` "n 2 Nz", mean and log-variance of first pictures."""
        start = self.belief(len(stats))
        return start._replace(z=draw(stats[:, 0], stats[:, 1], generator), first=torch.ones_like(start.first))

    @torch.no_grad()
    def act_at_random(
        self, obs: Mapping[str, np.ndarray], carry: tuple[Belief, Tensor, Habit]
    ) -> tuple[np.ndarray, tuple[Belief, Tensor, Habit]]:
        """The policy that collects. None of them is independent noise: that stays where it is."""
        belief, _, habit = carry
        is_first = torch.as_tensor(obs["is_first"], device=self.device)
        policy = {"cauchy": cauchy, "held": held, "brownian": brownian}[self.config.random_policy]
        raw, habit = policy(habit, is_first, self.generators["train"])
        action = self.action(raw) if policy is cauchy else self.choose(raw)
        return action.cpu().numpy(), (belief, action, habit)

    def action(self, raw: Tensor) -> Tensor:
        """Raw outputs "n A" to canonical actions: tanh; where one-sided, its upper half alone is the whole range."""
        action = torch.tanh(raw)
        for i in self.config.one_sided if not self.act_space.discrete else ():
            action[:, i] = 2 * action[:, i].clamp(min=0) - 1
        return self.choose(action)

    def choose(self, action: Tensor) -> Tensor:
        """Discrete actions: of each group the largest."""
        if not self.act_space.discrete:
            return action
        groups = action.split(self.act_space.groups, -1)
        parts = [F.one_hot(group.argmax(-1), group.shape[-1]) for group in groups]
        return torch.cat(parts, -1).float()

    def look(
        self, image: Tensor, prev_action: Tensor, is_first: Tensor, belief: Belief, noise: Tensor
    ) -> Belief:
        """Take a picture "n h w c", uint8, in: M steps on with what was, V says what is."""
        mean, log_variance = self.v.encode(image.float() / 255)
        z = mean + torch.exp(0.5 * log_variance) * noise if self.config.sample_z else mean
        h, c = self.m.lstm.step(self.m.inputs(belief.z, prev_action, belief.first), belief.h, belief.c)
        first = is_first.float()
        h, c = (part * (1 - first)[:, None] for part in (h, c))
        return Belief(z, h, c, first, torch.zeros_like(first) - NEVER, torch.zeros_like(first))

    # Learning

    def update(self, batch: Batch) -> Metrics:
        """One step of V on all pictures of the batch and one of M on its sequences; C is evolved, not trained."""
        batch = batch.to(self.device)
        images = batch.obs[self.key]
        v, v_metrics = self.v_gradient(images.flatten(0, 1))
        stats = self.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        rows = Latents(
            *(part.transpose(0, 1) for part in (stats, batch.action, batch.is_first, batch.reward))
        )
        m, m_metrics, _ = self.m_gradient(rows, self.blank(len(images)))
        step(v, m)
        self.counts = {name: count + 1 for name, count in self.counts.items()}
        return v_metrics | m_metrics

    def update_v(self, image: Tensor) -> Metrics:
        """One step of V on pictures "n h w c", uint8."""
        gradient, metrics = self.v_gradient(image.to(self.device))
        step(gradient)
        self.counts["v"] += 1
        return metrics

    def update_m(self, rows: "Latents", memory: Memory) -> tuple[Metrics, Memory]:
        """One step of M on a chunk of streams, and its memory at the chunk's last row."""
        gradient, metrics, memory = self.m_gradient(rows, memory)
        step(gradient)
        self.counts["m"] += 1
        return metrics, memory

    def v_gradient(self, image: Tensor) -> tuple[Gradient, Metrics]:
        losses, metrics = v_loss(self.v, image.float() / 255, self.config, self.generators["learn"])
        gradient = self.v_opt.gradient(torch.stack([*losses.values()]).sum())
        return gradient, {**named(losses), **metrics, "grad/v": gradient.norm}

    def m_gradient(self, rows: "Latents", memory: Memory) -> tuple[Gradient, Metrics, Memory]:
        c = self.config
        self.m_opt.lr = c.m_lr_end + (c.m_lr - c.m_lr_end) * c.m_lr_decay ** self.counts["m"]
        losses, metrics, memory = m_loss(self.m, rows, memory, c, self.generators["learn"])
        gradient = self.m_opt.gradient(torch.stack([*losses.values()]).sum())
        return gradient, {**named(losses), **metrics, "grad/m": gradient.norm}, memory

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Mean and log-variance "n 2 Nz" of pictures "n h w c", uint8."""
        return torch.stack(self.v.encode(image.to(self.device).float() / 255), 1)

    def blank(self, n: int) -> Memory:
        """M before it has seen anything of ``n`` streams."""
        return Memory(*torch.zeros(2, n, self.config.units, device=self.device))

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Open loop: ``context`` rows seen, the rest imagined; and what V makes of every row."""
        return look(self.world, batch.to(self.device), context)

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "v_opt": self.v_opt.state_dict(),
            "m_opt": self.m_opt.state_dict(),
            "theta": self.theta,
            "generators": {use: generator.get_state() for use, generator in self.generators.items()},
            "counts": dict(self.counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.v_opt.load_state_dict(state["v_opt"])
        self.m_opt.load_state_dict(state["m_opt"])
        self.theta = state["theta"].to(self.device)
        for use, generator in self.generators.items():
            generator.set_state(state["generators"][use])
        self.counts = dict(state["counts"])


# The policies that collect: (habit, is_first "n", generator) -> (action "n A", habit).


def cauchy(habit: Habit, is_first: Tensor, generator: Generator) -> tuple[Tensor, Habit]:
    """CarRacing's: a controller of heavy-tailed random numbers that reads noise, another one each episode.

    The released code draws all of V, M and C at random; V and M come out as zero but for V's sampling noise.
    """
    n, size, latents = habit.weight.shape
    new = torch.empty(n, size, latents + 1, device=habit.bias.device).cauchy_(generator=generator)
    new *= 0.01 * torch.rand(n, 1, 1, generator=generator, device=new.device)
    first = is_first[:, None]
    bias = torch.where(first, new[..., 0], habit.bias)
    weight = torch.where(first[..., None], new[..., 1:], habit.weight)
    raw = bias + (weight @ noise_like(habit.weight[:, 0], generator)[..., None])[..., 0]
    return raw, habit._replace(bias=bias, weight=weight, action=raw)


def held(habit: Habit, is_first: Tensor, generator: Generator) -> tuple[Tensor, Habit]:
    """Take Cover's: uniform, held until the frame's number is a multiple of k, which is drawn anew then, 1..10."""
    device = habit.action.device
    frame = torch.where(is_first, 0, habit.frame)
    change = frame % habit.hold == 0
    new = 2 * torch.rand(habit.action.shape, generator=generator, device=device) - 1
    hold = torch.randint(1, 11, frame.shape, generator=generator, device=device)
    action = torch.where(change[:, None], new, habit.action)
    return action, habit._replace(action=action, hold=torch.where(change, hold, habit.hold), frame=frame + 1)


def brownian(habit: Habit, is_first: Tensor, generator: Generator) -> tuple[Tensor, Habit]:
    """A random walk in steps of standard deviation 1/sqrt(50), within -1..1 (Tallec, Blier & Kalainathan 2018)."""
    new = 2 * torch.rand(habit.action.shape, generator=generator, device=habit.action.device) - 1
    walked = (habit.action + noise_like(new, generator) / math.sqrt(50)).clamp(-1, 1)
    action = torch.where(is_first[:, None], new, walked)
    return action, habit._replace(action=action)


# The losses, in the paper's order.


def named(losses: Mapping[str, Tensor]) -> Metrics:
    return {f"loss/{name}": loss.detach() for name, loss in losses.items()}


def draw(mean: Tensor, log_variance: Tensor, generator: Generator | None) -> Tensor:
    return mean + torch.exp(0.5 * log_variance) * noise_like(mean, generator)


def v_loss(v: V, image: Tensor, c: Config, generator: Generator) -> tuple[dict[str, Tensor], Metrics]:
    """Squared error summed over a picture, and the KL to N(0, I) summed over z, of which 0.5 nats an entry are free.

    The tolerance holds for each picture's sum: below it, its KL sends no gradient.
    """
    mean, log_variance = v.encode(image)
    picture = v.decode(draw(mean, log_variance, generator))
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
    losses = {
        "reconstruction": F.mse_loss(picture, image, reduction="sum") / len(image),
        "kl": kl.clamp(min=c.kl_tolerance * c.latents).mean(),
    }
    return losses, {"v/kl": kl.detach().mean()}


class Latents(NamedTuple):
    """Encoded rows, time first."""

    stats: Tensor  # "T n 2 Nz", mean and log-variance
    action: Tensor  # "T n A"
    is_first: Tensor  # "T n"
    reward: Tensor  # "T n"


def m_loss(
    m: M, rows: Latents, memory: Memory, c: Config, generator: Generator
) -> tuple[dict[str, Tensor], Metrics, Memory]:
    """Minus the log-likelihood of the next z, in nats per entry, and of the next row beginning an episode.

    ::

        row         0      1      2      3         z is drawn anew each time a row is used
        input      z0 a0  z1 a1  z2 a2             h, c are zeroed before a row that begins an episode
        target     z1     z2     z3
                   f1     f2     f3                begins an episode? counted ``restart_weight`` times where it does

    With restarts, the first z of the next episode is a target like any other: M learns where episodes begin.
    Without, such a row is not predicted.
    """
    stats = rows.stats.float()
    z = draw(stats[:, :, 0], stats[:, :, 1], generator)
    first = rows.is_first.float()
    inputs = m.inputs(z[:-1], rows.action[:-1], first[:-1])
    hidden, (h, cell) = m.lstm(inputs, memory.h, memory.c, 1 - first[:-1])
    told = m.predict(hidden)
    nll = told.z.loss(z[1:]).mean(-1)
    counts = torch.ones_like(nll) if m.restart else 1 - first[1:]
    losses = {"z": (nll * counts).sum() / counts.sum().clamp(min=1)}
    if told.restart is not None:
        weight = 1 + (c.restart_weight - 1) * first[1:]
        losses["restart"] = (weight * Bernoulli(told.restart).loss(first[1:])).mean()
    if told.reward is not None:
        within = 1 - first[1:]
        losses["reward"] = ((told.reward - rows.reward[1:]).square() * within).sum() / within.sum().clamp(
            min=1
        )
    # No model can do better than know the Gaussian that z is drawn from.
    floor = (0.5 * math.log(2 * math.pi * math.e) + 0.5 * stats[1:, :, 1]).mean()
    return losses, {"m/floor": floor}, Memory(h.detach(), cell.detach())
