"""Nothing but finite actions within their limits reaches a machine, and a silent actor stops it."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverie.run.asynchronous.safety import Guard, Watchdog, one_hot
from reverie.types import ActionSpace

floats = st.floats(width=32)


@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=12))
def test_whatever_a_policy_says_what_is_sent_is_safe(actions) -> None:
    guard = Guard(ActionSpace(2), 20.0, max_change=0.25, cutoff=3.0)
    last = None
    for action in actions:
        sent = guard(np.array(action))
        if not np.isfinite(action).all():
            assert sent is None
            continue
        assert sent is not None and sent.dtype == np.float32
        assert np.isfinite(sent).all() and (np.abs(sent) <= 1).all()
        if last is not None:
            assert (np.abs(sent - last) <= 0.25 + 1e-6).all()
        last = sent


@pytest.mark.parametrize("bad", [[np.nan, 0], [np.inf, 0], [0, -np.inf], [0], [[0, 0]]])
def test_what_is_not_an_action_is_refused(bad) -> None:
    guard = Guard(ActionSpace(2), 20.0)
    assert guard(np.array(bad, float)) is None and guard.refused == 1
    assert guard(np.array([0.5, -2.0])).tolist() == [0.5, -1.0]


def test_changes_are_limited_and_counted() -> None:
    guard = Guard(ActionSpace(1), 20.0, max_change=0.1)
    sent = [float(guard(np.array([x]))[0]) for x in (0.0, 1.0, 1.0, -1.0, 0.15)]
    np.testing.assert_allclose(sent, [0.0, 0.1, 0.2, 0.1, 0.15], atol=1e-6)
    assert guard.limited == 3
    guard.begin()
    assert guard(np.array([0.9])) == pytest.approx(0.9)  # after a stop it starts from where it is told


def test_the_low_pass_is_the_filter() -> None:
    from reverie.robots.filters import Butterworth

    guard, low_pass = Guard(ActionSpace(2), 20.0, cutoff=1.5), Butterworth(1.5, 20.0, 2)
    low_pass.reset(np.array([0.1, 0.2]))
    guard(np.array([0.1, 0.2]))
    low_pass(np.array([0.1, 0.2]))
    for _ in range(4):
        np.testing.assert_allclose(guard(np.array([0.6, -0.6])), low_pass(np.array([0.6, -0.6])), atol=1e-6)


def test_discrete_actions_become_one_hot() -> None:
    guard = Guard(ActionSpace(5, (2, 3)), 2.0, max_change=0.1, cutoff=0.5)
    assert guard(np.array([0.2, 0.9, -1, 3, 2])).tolist() == [0, 1, 0, 1, 0]
    assert one_hot(np.zeros(3), ActionSpace(3, (3,))).tolist() == [1, 0, 0]


class Machine:
    def __init__(self) -> None:
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1


def until(what, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not what():
        time.sleep(0.01)
    return what()


def test_a_silent_actor_stops_the_machine_once() -> None:
    machine = Machine()
    dog = Watchdog(machine, 0.05)
    dog.pat()
    assert until(lambda: machine.stops == 1)
    time.sleep(0.12)
    assert machine.stops == dog.barked == 1  # it said so; there is nothing more to stop
    dog.pat()
    assert until(lambda: machine.stops == 2)
    dog.close()


def test_a_robot_at_rest_is_not_watched() -> None:
    machine = Machine()
    dog = Watchdog(machine, 0.05)
    time.sleep(0.1)
    dog.pat()
    dog.rest()
    time.sleep(0.15)
    assert machine.stops == 0
    dog.close()
