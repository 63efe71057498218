"""Clocks: what they answer, and that a resumed run is answered as the uninterrupted one."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverie.types import ReverieError
from reverie.when import Every, Once, Ratio, Until, linear

CLOCKS: list[Callable] = [lambda: Every(7), lambda: Ratio(0.3), lambda: Ratio(2.5), lambda: Every(0)]
STEPS = st.lists(st.integers(0, 30), min_size=2, max_size=40)  # increments


def test_every_is_true_at_first_and_then_on_the_beat():
    every = Every(10)
    assert [step for step in range(5, 40) if every(step)] == [5, 15, 25, 35]


def test_a_late_call_does_not_delay_the_next_beat():
    every = Every(10)
    assert [every(step) for step in (0, 13, 19, 20, 57, 59, 60)] == [
        True,
        True,
        False,
        True,
        True,
        False,
        True,
    ]


def test_every_zero_is_never():
    every = Every(0)
    assert not any(every(step) for step in range(100))


@pytest.mark.parametrize(("env_steps", "updates"), [(1_000_000, 99_600), (5_000_000, 499_600)])
def test_dreamers_updates(env_steps, updates):
    """100 updates every 1000 env steps, the first after 5000 of prefill."""
    should_train = Every(1000)
    assert 100 * sum(should_train(step) for step in range(5000, env_steps + 1, 250)) == updates


def test_ratio_below_one():
    ratio = Ratio(0.1)
    assert [step for step in range(3, 40) if ratio(step)] == [13, 23, 33]


def test_ratio_above_one():
    ratio = Ratio(2.5)
    assert [ratio(step) for step in (0, 1, 2, 3, 13)] == [0, 2, 3, 2, 25]


def test_ratio_means_the_decimal_that_was_written():
    """0.29 * 100 is 28.999... in floating point."""
    ratio = Ratio(0.29)
    ratio(0)
    assert ratio(100) == 29


@given(STEPS, st.floats(0, 20))
def test_ratio_loses_nothing_however_the_steps_are_cut(increments, times):
    cut, whole = Ratio(times), Ratio(times)
    step, total = 0, cut(0)
    whole(0)
    for increment in increments:
        step += increment
        total += cut(step)
    assert total == whole(step)
    assert total == pytest.approx(times * step, abs=1 + 1e-5 * step)


@pytest.mark.parametrize("new", CLOCKS)
@given(increments=STEPS, stop=st.integers(0, 39))
def test_resumed_equals_uninterrupted(new, increments, stop):
    through, before, step = new(), new(), 0
    for i, increment in enumerate(increments):
        if i == min(stop, len(increments) - 1):
            after = new()
            after.load_state_dict(json.loads(json.dumps(before.state_dict())))
            before = after
        step += increment
        assert through(step) == before(step)
    assert through.state_dict() == before.state_dict()


def test_until():
    assert [Until(3)(step) for step in range(5)] == [True, True, True, False, False]


def test_once_and_its_memory():
    once = Once()
    resumed_early, resumed_late = Once(), Once()
    resumed_early.load_state_dict(once.state_dict())
    assert [once(), once(), once()] == [True, False, False]
    resumed_late.load_state_dict(json.loads(json.dumps(once.state_dict())))
    assert resumed_early()
    assert not resumed_late()


def test_dreamers_epsilon_for_discrete_actions():
    """0.4 at the start, less by 0.1 every 50,000 updates, never below 0.1."""
    epsilon = linear(0.4, 0.1, 150_000)
    values = [epsilon(update) for update in (0, 50_000, 100_000, 150_000, 200_000)]
    assert values == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.1])
    assert epsilon(150_000) == epsilon(10**9) == 0.1


def test_linear_goes_up_as_well():
    beta = linear(0.0, 1.0, 4)
    assert [beta(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    "bad", [lambda: Every(-1), lambda: Ratio(-0.5), lambda: Ratio(float("inf")), lambda: linear(0, 1, 0)]
)
def test_nonsense_is_refused(bad):
    with pytest.raises(ReverieError):
        bad()
