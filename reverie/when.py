"""When to do a thing: every so often, in proportion, until, once; and values that change on the way.

All read the same clock, a step number (>= 0) that never runs backwards, handed in with each call. What they
remember fits in a ``state_dict`` of plain integers, so a resumed run decides as the uninterrupted one would.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from reverie.types import ReverieError

NEVER = -1  # earlier than any step


@dataclass
class Every:
    """True at the first call, then whenever ``every`` more steps have passed. ``Every(0)`` is never true.

    The beat is counted from the first call and does not drift: a late call does not delay the next beat.
    A call that skips several beats is true once; use ``Ratio`` where each of them counts.
    """

    every: int
    last: int = field(default=NEVER, init=False)

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ReverieError(f"Every needs a number of steps >= 0 (0 means never), got {self.every}")

    def __call__(self, step: int) -> bool:
        if self.every == 0:
            return False
        if self.last == NEVER:
            self.last = step
            return True
        beats = (step - self.last) // self.every
        self.last += beats * self.every
        return beats > 0

    def state_dict(self) -> dict[str, int]:
        return {"last": self.last}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.last = int(state["last"])


@dataclass
class Ratio:
    """How many times to act now, so that it comes to ``ratio`` times per step since the first call.

    ``Ratio(0.1)`` answers 1 every tenth step and 0 between; ``Ratio(4)`` answers 4 at every step. The first
    call starts the count and answers 0. Nothing is lost to rounding, however the steps are cut up.
    """

    ratio: float | int
    start: int = field(default=NEVER, init=False)
    done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < float("inf"):
            raise ReverieError(f"Ratio needs a finite number >= 0 of times per step, got {self.ratio}")
        self._exact = Fraction(self.ratio).limit_denominator(1_000_000)  # 0.29 means 29/100

    def __call__(self, step: int) -> int:
        if self.start == NEVER:
            self.start = step
        times = (step - self.start) * self._exact // 1 - self.done
        self.done += times
        return times

    def state_dict(self) -> dict[str, int]:
        return {"start": self.start, "done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.start, self.done = int(state["start"]), int(state["done"])


@dataclass(frozen=True)
class Until:
    """True while step < ``until``."""

    until: int

    def __call__(self, step: int) -> bool:
        return step < self.until


@dataclass
class Once:
    """True at the first call only."""

    done: bool = field(default=False, init=False)

    def __call__(self) -> bool:
        first, self.done = not self.done, True
        return first

    def state_dict(self) -> dict[str, bool]:
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, bool]) -> None:
        self.done = bool(state["done"])


def linear(start: float | int, end: float | int, steps: int) -> Callable[[int], float]:
    """A value that goes in a straight line from ``start`` at step 0 to ``end`` at ``steps``, and stays."""
    if steps < 1:
        raise ReverieError(f"linear needs at least one step from start to end, got {steps}")

    def value(step: int) -> float:
        done = min(max(step / steps, 0.0), 1.0)
        return (1 - done) * start + done * end

    return value
