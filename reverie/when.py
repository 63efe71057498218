"""Values that change on the way, by a count that is handed in with each call."""

from collections.abc import Callable

from reverie.types import ReverieError


def linear(start: float | int, end: float | int, steps: int) -> Callable[[int], float]:
    """A value that goes in a straight line from ``start`` at step 0 to ``end`` at ``steps``, and stays."""
    if steps < 1:
        raise ReverieError(f"linear needs at least one step from start to end, got {steps}")

    def value(step: int) -> float:
        done = min(max(step / steps, 0.0), 1.0)
        return (1 - done) * start + done * end

    return value
