"""The time that an actor keeps: that of the wall, or one that passes only when it is waited for."""

import time
from abc import ABC, abstractmethod


class Clock(ABC):
    @abstractmethod
    def now(self) -> float:
        """Seconds since some moment."""

    @abstractmethod
    def wait(self, until: float) -> None:
        """Come back then, or at once if it has passed."""


class RealClock(Clock):
    def now(self) -> float:
        return time.monotonic()

    def wait(self, until: float) -> None:
        left = until - time.monotonic()
        if left > 0:
            time.sleep(left)


class VirtualClock(Clock):
    """Time passes when it is waited for, and not otherwise."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wait(self, until: float) -> None:
        self.time = max(self.time, until)
