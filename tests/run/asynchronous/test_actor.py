"""The actor: nothing unsafe is sent, whatever fails, and no beat is made up for."""

import dataclasses

import numpy as np
import pytest

from reverie.run.asynchronous.spool import row_dtype
from reverie.types import ActionSpace, Space


def test_spool_full(tmp_path, sit) -> None:
    """The robot is stopped rather than a row lost, and goes on when the learner takes again."""
    size = 600 * row_dtype({"vector": Space((3,))}, ActionSpace(2)).itemsize
    sitting = sit(tmp_path, spool_size=f"{size}B", stale_after=0.0).start_actor()
    sitting.actor.steps = 900
    sitting.go(650)
    assert "full" in sitting.actor.held and sitting.robot.stops >= 1
    decisions, stopped = sitting.actor.decisions, len(sitting.robot.sent)
    sitting.go(20)
    assert sitting.actor.decisions == decisions and len(sitting.robot.sent) == stopped
    assert sitting.actor.spool.last["is_last"]  # what led there is whole
    sitting.learner = None
    sitting.config = dataclasses.replace(sitting.config, steps=900)
    sitting.start_learner().learner.say_taken()
    sitting.go(5)
    assert not sitting.actor.held and sitting.actor.decisions > decisions


def test_policy_stale_beyond_its_bound(tmp_path, sit) -> None:
    sitting = sit(tmp_path, stale_after=3.0).start().go(40)
    sitting.kill_learner().go(50)
    assert "seconds old" in sitting.actor.held and sitting.robot.stops >= 1
    assert sitting.actor.policies.age > 3.0
    sent = len(sitting.robot.sent)
    sitting.go(10)
    assert len(sitting.robot.sent) == sent
    sitting.start_learner().finish()
    assert len(sitting.made) == 120


def test_a_person_may_take_a_stale_policy_on(tmp_path, sit) -> None:
    sitting = sit(tmp_path, stale_after=3.0).start().go(40)
    sitting.kill_learner().go(50)
    sitting.actor.person.say("continue")
    sitting.go(10)
    assert not sitting.actor.held and sitting.actor.policies.age < 3.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_not_finite_is_never_sent(tmp_path, sit, bad) -> None:
    sitting = sit(tmp_path).start().go(40)
    agent = sitting.actor.policies.agent
    good = agent.act
    agent.act = lambda obs, carry, mode: (np.full((1, 2), bad, np.float32), carry)
    sent = len(sitting.robot.sent)
    sitting.learner.settings = dataclasses.replace(sitting.settings, sync_every=1e9)
    sitting.go(3)
    assert len(sitting.robot.sent) == sent and "not finite" in sitting.actor.held
    assert sitting.actor.guard.refused == 1 and sitting.robot.stops >= 1
    assert np.isfinite(sitting.actor.spool.last["action"]).all()
    agent.act = good
    sitting.actor.person.say("continue")
    sitting.finish()
    assert len(sitting.made) == 120


def test_a_newer_policy_ends_the_wait_for_a_finite_action(tmp_path, sit) -> None:
    sitting = sit(tmp_path).start().go(40)
    sitting.actor.policies.agent.act = lambda obs, carry, mode: (np.full((1, 2), np.nan, np.float32), carry)
    sitting.go(3)
    assert "not finite" in sitting.actor.held or sitting.actor.policies.version > 4
    sitting.go(30)
    assert not sitting.actor.held


def test_a_sensor_that_fails_stops_the_robot(tmp_path, sit) -> None:
    sitting = sit(tmp_path).start().go(30)
    sitting.robot.value = np.nan
    sitting.go(5)
    assert "senses" in sitting.actor.held
    sitting.robot.value = None
    sitting.actor.person.say("continue")
    sitting.finish()
    assert np.isfinite(sitting.rows["obs/vector"]).all()


def test_deadlines_missed_are_counted_and_not_made_up_for(tmp_path, sit) -> None:
    sitting = sit(tmp_path).start_actor()
    sitting.robot.slow = {5: 0.05, 9: 0.1, 12: 0.35}  # of a period of 0.1
    times = []
    send = sitting.robot.send
    sitting.robot.send = lambda action: (times.append(round(sitting.clock.now(), 6)), send(action))[1]
    sitting.go(20)
    assert sitting.actor.missed == 4  # none, one and three beats went by
    gaps = np.diff(times)
    # After each it is back on the beat: never two decisions closer than to the next beat.
    np.testing.assert_allclose(times[13:], np.round(np.arange(len(times[13:])) * 0.1 + 1.7, 6), atol=1e-6)
    assert gaps.min() > 0.04
    assert sitting.actor.numbers()["clock/missed"] == 4


def test_pause_continue_reset_quit(tmp_path, sit) -> None:
    sitting = sit(tmp_path).start().go(15)
    person, robot = sitting.actor.person, sitting.robot
    person.say("pause")
    sitting.go(10)
    assert "paused" in sitting.actor.held and robot.stops == 2 and sitting.actor.decisions == 15
    assert sitting.actor.status()["held"] == sitting.actor.held
    person.say("continue")
    sitting.go(10)
    assert not sitting.actor.held and sitting.actor.decisions > 20
    person.say("reset")
    sitting.go(3)
    assert robot.resets_done == 2
    person.say("pause")
    sitting.go(2)
    person.say("reset")
    sitting.go(3)
    assert robot.resets_done == 3 and not sitting.actor.held
    person.say("quit")
    sitting.go(2)
    assert sitting.actor.done
    sitting.learner.end()
    sitting.check()
    assert len(sitting.made) == len(robot.sent)


def test_a_robot_that_resets_does(tmp_path, sit) -> None:
    sitting = sit(tmp_path)
    sitting.robot.resets = True
    sitting.start().finish()
    assert sitting.robot.resets_done == -(-120 // 7)
    assert len(sitting.made) == 120
