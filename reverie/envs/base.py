"""What every environment is to the rest of the house: canonical spaces in, canonical rows out.

An adapter (``gymnasium.py``, ``dm_control.py``) turns foreign spaces into ours once, at its border: pictures
are uint8 "h w c", everything else a float32 vector, actions a float32 vector (see ``types.ActionSpace``).
Wrappers then only ever meet our own form. Three rules hold for every ``Env``:

* the seed given to ``reset`` decides the whole episode: same seed, same actions, same rows;
* the first row has ``is_first``, reward 0 and ``env_steps`` 0;
* an episode cut by the clock has ``is_last`` and not ``is_terminal``.
"""

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from reverie.types import ActionSpace, ReverieError, Space, Step

NO, YES = np.array(False), np.array(True)
NO.flags.writeable = YES.flags.writeable = False
_BIT = (NO, YES)


@dataclass(frozen=True)
class Goals:
    """How a goal environment judges: of n achieved and n desired goals "n G" each, every pair by itself."""

    reward: Callable[[np.ndarray, np.ndarray], np.ndarray]  # "n" float32, for arriving there
    terminated: Callable[[np.ndarray, np.ndarray], np.ndarray]  # "n" bool, whether the world ends there


@dataclass(frozen=True)
class Rules:
    """How a world goes on whose picture shows all of it but the clock: of n pictures uint8 "n h w c", each by itself.

    ``step`` takes the actions' numbers "n" too, and returns the next pictures and their rewards "n" float32; a world
    that has ended stays as it is, and earns 0.
    """

    step: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    over: Callable[[np.ndarray], np.ndarray]  # "n" bool, whether the world has ended there


class Env(ABC):
    """One environment, one episode at a time."""

    obs_space: dict[str, Space]
    act_space: ActionSpace
    goals: Goals | None = None  # if it has goals and can judge any
    rules: Rules | None = None  # if its pictures tell how it goes on

    @abstractmethod
    def reset(self, seed: int) -> Step:
        """Begin the episode that ``seed`` decides; its first row."""

    @abstractmethod
    def step(self, action: np.ndarray) -> Step:
        """The row that follows ``action`` (float32 "A"). Raises ``ReverieError`` after a last row."""

    @abstractmethod
    def render(self) -> np.ndarray:
        """The present moment for a human eye, uint8 "h w 3"."""

    def close(self) -> None:  # noqa: B027 (most environments hold nothing)
        """Give back windows, contexts and files."""


def first(obs: dict[str, np.ndarray]) -> Step:
    """The row of a reset."""
    return Step(obs, np.zeros((), np.float32), YES, NO, NO, np.zeros((), np.int64))


def after(obs: dict[str, np.ndarray], reward: float, terminated: bool, truncated: bool) -> Step:
    """The row that one env step led to."""
    last = _BIT[terminated or truncated]
    return Step(obs, np.array(reward, np.float32), NO, last, _BIT[terminated], np.array(1, np.int64))


def check_action(action: np.ndarray, space: ActionSpace, name: str) -> np.ndarray:
    """``action`` as a finite vector of the right length; raises ``ReverieError`` otherwise."""
    action = np.asarray(action)
    if action.shape != (space.size,):
        raise ReverieError(f"{name}: an action must have shape ({space.size},), got {action.shape}.")
    if not np.isfinite(action).all():
        raise ReverieError(f"{name}: the action {action} is not finite; look at the agent that chose it.")
    return action


@contextlib.contextmanager
def hushed(name: str) -> Iterator[None]:
    """Without the warnings of one logger (deprecated attributes in models that are not ours)."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
