"""The learner: no more updates than it may take, and it ends alone."""

import pytest

from reverie.types import NotFinite


def test_updates_are_bounded_by_the_ratio(tmp_path, sit) -> None:
    sitting = sit(tmp_path, max_ratio=0.5).start()
    for _ in range(100):
        sitting.actor.tick()
        for _ in range(3):
            sitting.learner.turn()
    assert sitting.learner.updates == pytest.approx(0.5 * (sitting.learner.decisions - 10), abs=1)


def test_a_loss_that_is_not_finite_ends_the_learner_and_not_the_robot(tmp_path, sit) -> None:
    sitting = sit(tmp_path).start().go(30)
    sitting.learner.agent.bad_after = 0
    with pytest.raises(NotFinite):
        sitting.learner.turn(1)
    sitting.kill_learner().go(20)
    assert sitting.actor.decisions == 50
