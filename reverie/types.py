"""The nouns every room shares: spaces, steps, batches, and the two protocols.

Time is drawn here once, and nowhere contradicted::

    row           0        1        2        3
    obs          o0       o1       o2       o3
    reward        0       r1       r2       r3      arrived with the obs of the same row
    action       a0       a1       a2       --      chosen at the obs of the same row
    is_first      1        0        0        0
    is_last       0        0        0        1
    is_terminal   0        0        0       0/1     0 when the clock stopped the episode
    prev_action   0       a0       a1       a2      derived, never stored

An episode of N decisions has N + 1 rows; its last row has no action (zeros).

Dimensions, in shape types, comments and tests alike::

    B batch   T time in data   H imagination   N candidates   M ensemble   A action
    D deter   S, K stoch groups and classes    E embed        F feat       h w c image
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Carry = Any  # what survives between two calls; each agent or world defines its own
Metrics = dict[str, Any]  # slashed names to scalars: {"loss/reward": 0.3}
Media = dict[str, tuple[np.ndarray, np.ndarray]]  # slashed names to truth and prediction, uint8 "B T h w c"
Mode = Literal["train", "eval"]
LoopName = Literal["online", "on_policy", "staged"]  # of those in run/


class ReverieError(Exception):
    """Something a user can mend: one sentence that names the thing, what was expected, what to do."""


class NotFinite(ReverieError):
    """A loss, gradient or parameter stopped being a finite number; nothing was changed by it."""

    def __init__(self, name: str):
        super().__init__(f"{name} is not finite; nothing was changed by it")


@dataclass(frozen=True)
class Space:
    """One entry of an observation: a picture (uint8, "h w c") or a vector (float32, "n")."""

    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"] = "float32"

    @property
    def is_image(self) -> bool:
        return self.dtype == "uint8" and len(self.shape) == 3

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


ObsSpace = Mapping[str, Space]


@dataclass(frozen=True)
class ActionSpace:
    """What an agent may do, always a float32 vector of length ``size``.

    ``groups`` is empty for continuous actions, each entry in [-1, 1]. For discrete actions it lists
    the number of choices: (n,) for Discrete(n), (n, m, ...) for MultiDiscrete; the vector is then
    the one-hot groups laid side by side, so ``size == sum(groups)``.
    """

    size: int
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1 or (self.groups and sum(self.groups) != self.size):
            raise ReverieError(f"an action space needs size >= 1 and size == sum(groups), got {self}")

    @property
    def discrete(self) -> bool:
        return bool(self.groups)

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Uniformly random valid actions, float32 "n A"."""
        if not self.discrete:
            return rng.uniform(-1.0, 1.0, (n, self.size)).astype(np.float32)
        picks = [np.eye(k, dtype=np.float32)[rng.integers(k, size=n)] for k in self.groups]
        return np.concatenate(picks, axis=1)


@dataclass
class Step:
    """One row of time without its action: of one environment, or of n side by side (leading axis n)."""

    obs: dict[str, np.ndarray]
    reward: np.ndarray  # float32; 0 on a first row
    is_first: np.ndarray  # bool
    is_last: np.ndarray  # bool
    is_terminal: np.ndarray  # bool
    env_steps: np.ndarray  # int64; env steps this row took: 0 on a first row, else the action repeat


class Batch(NamedTuple):
    """B sequences of T rows, as tensors. Images are uint8 "B T h w c", everything else float or bool."""

    obs: dict[str, Tensor]  # "B T ..."
    action: Tensor  # "B T A" float32
    prev_action: Tensor  # "B T A" float32; zero where is_first
    reward: Tensor  # "B T" float32
    is_first: Tensor  # "B T" bool
    is_last: Tensor  # "B T" bool
    is_terminal: Tensor  # "B T" bool
    # Of agents that keep a memory with every row; see data/replay.py.
    rows: Tensor | None = None  # "B 2" int64: the stream, and the number of the first row
    context: dict[str, Tensor] | None = None  # "B ...": what was remembered at the row before the first

    def to(self, device: torch.device | str) -> Batch:
        return self.each(lambda value: value.to(device, non_blocking=True))

    def take(self, index: Tensor) -> Batch:
        """The sequences of those numbers, in that order."""
        return self.each(lambda value: value[index])

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With every tensor changed."""
        obs = {key: change(value) for key, value in self.obs.items()}
        return Batch(
            obs,
            change(self.action),
            change(self.prev_action),
            change(self.reward),
            change(self.is_first),
            change(self.is_last),
            change(self.is_terminal),
            None if self.rows is None else change(self.rows),
            None if self.context is None else {key: change(value) for key, value in self.context.items()},
        )


@runtime_checkable
class Agent(Protocol):
    """That which acts and learns. It never sees an environment or a loop.

    Its class names the loop it learns in, ``loop: ClassVar[LoopName]``, unless that is "online".
    """

    def initial(self, n: int) -> Carry:
        """What the agent remembers at the start of ``n`` streams."""

    def act(self, obs: Mapping[str, np.ndarray], carry: Carry, mode: Mode) -> tuple[np.ndarray, Carry]:
        """Actions "n A" for observations "n ...". A reset arrives as ``obs["is_first"]`` (bool "n")."""

    def update(self, batch: Batch) -> Metrics:
        """One learning step from one batch. Raises ``NotFinite`` before a bad step is taken."""

    def report(self, batch: Batch, context: int = 5) -> Media:
        """Open-loop predictions for a human eye: ``context`` rows seen, the rest imagined."""

    def state_dict(self) -> dict[str, Any]:
        """All it needs to go on: parameters, optimisers, normalisers, random generators."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Draws(Protocol):
    """An agent that says itself what it learns from, where that is not sequences of rows."""

    def sample(self, replay: Any, rng: np.random.Generator) -> Batch:
        """A batch for ``update``, drawn from a ``data.replay.Replay``."""


@runtime_checkable
class Remembers(Protocol):
    """An agent that keeps with every row what it remembered there, and goes on from that when it reads it again."""

    context: np.dtype  # columns of what is kept
    reread: dict[str, Tensor]  # "B T ...": what it now remembers at the rows of its last update

    def remember(self, carry: Carry) -> dict[str, np.ndarray]:
        """The columns, "n ...", of what ``act`` gave as the carry."""


@runtime_checkable
class Recordable(Protocol):
    """An agent whose update can be recorded once and repeated (run/recorded.py)."""

    device: torch.device
    generators: dict[str, torch.Generator]  # "learn" is what updates draw from
    updates: int  # counted by whoever calls ``learn_on_device``

    def learn_on_device(self, batch: Batch) -> Metrics:
        """The device's share of ``update``, of a batch that lies there: what it changes lies where it lay, no shape
        depends on a number, and no number is waited for."""


@runtime_checkable
class SeeksGoals(Protocol):
    """An agent that has to know what other goals would have been worth; whoever makes it tells it."""

    goals: Any  # envs.base.Goals


@runtime_checkable
class Simulates(Protocol):
    """An agent that may imagine by the environment's own rules; whoever makes it gives them, if it ``simulates``."""

    rules: Any  # envs.base.Rules

    @property
    def simulates(self) -> bool: ...


@runtime_checkable
class HasWorld(Protocol):
    """An agent that has a learned world, which can be imagined in."""

    @property
    def world(self) -> World: ...


@runtime_checkable
class Foresees(Protocol):
    """An agent that imagines a future for every action it might take."""

    def strip(self, batch: Batch) -> tuple[Any, ...] | None:
        """One row of ``batch``, what followed it, and its futures, for ``media.save_futures``; None if none fits."""


@runtime_checkable
class World(Protocol):
    """What any learned model shows to a dream; everything is batched over n streams."""

    temperature: float
    """How spread out what is imagined is, > 0: at 1 as learned, below tamer, above wilder (World Models' tau)."""

    def initial(self, n: int) -> Carry:
        """What is known before the first observation."""

    def observe(
        self, obs: Mapping[str, Tensor], prev_action: Tensor, is_first: Tensor, carry: Carry
    ) -> Carry:
        """Take in one real observation per stream."""

    def imagine(self, carry: Carry, action: Tensor) -> Carry:
        """Predict one step ahead under ``action`` "n A", without looking."""

    def features(self, carry: Carry) -> Tensor:
        """What a policy may read of it, "n F"."""

    def decode(self, carry: Carry) -> dict[str, Tensor]:
        """What the model believes it would see: images uint8 "n h w c", vectors float32."""

    def reward(self, carry: Carry) -> Tensor:
        """Expected reward that arrives with the believed observation, "n"."""

    def cont(self, carry: Carry) -> Tensor:
        """Probability that the episode goes on after it, "n"."""

    def take(self, carry: Carry, index: Tensor) -> Carry:
        """Those streams alone, by number, in that order."""

    def put(self, carry: Carry, index: Tensor, part: Carry) -> Carry:
        """A carry in which the streams ``index`` are those of ``part``; the one given stays as it is."""
