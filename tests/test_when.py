"""Values that change on the way."""

import pytest

from reverie.types import ReverieError
from reverie.when import linear


def test_dreamers_epsilon_for_discrete_actions():
    """0.4 at the start, less by 0.1 every 50,000 updates, never below 0.1."""
    epsilon = linear(0.4, 0.1, 150_000)
    values = [epsilon(update) for update in (0, 50_000, 100_000, 150_000, 200_000)]
    assert values == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.1])
    assert epsilon(150_000) == epsilon(10**9) == 0.1


def test_linear_goes_up_as_well():
    beta = linear(0.0, 1.0, 4)
    assert [beta(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_no_steps_are_refused():
    with pytest.raises(ReverieError, match="at least one step"):
        linear(0, 1, 0)
