"""Two folders and a courier between them that fails: nothing is lost or doubled."""

import dataclasses

import pytest

from reverie.run.asynchronous.link import Courier, Mailbox
from reverie.run.asynchronous.settings import LINK


def test_link_cut(tmp_path, sit) -> None:
    """Two folders and a courier, which fails for thirty seconds of the robot's clock."""
    near, far = tmp_path / "near", tmp_path / "far"
    sitting = sit(near, far=far, stale_after=60.0).start_actor()
    sitting.config = dataclasses.replace(sitting.config, steps=600)
    sitting.actor.steps = 600
    mailbox = Mailbox(far / LINK)
    courier = Courier(near / LINK, mailbox)
    courier.round()
    sitting.start_learner()

    def go(ticks):
        for i in range(ticks):
            sitting.go(1)
            if i % 10 == 9:
                courier.round()

    go(50)
    assert sitting.actor.policies.version > 0
    version, taken = sitting.actor.policies.version, sitting.learner.replay.counts[0]
    sitting.go(300)  # no courier: 30 seconds at 10 Hz
    assert sitting.actor.decisions == 350 and not sitting.actor.held  # the robot did not notice
    assert sitting.actor.policies.version <= version + 1 and sitting.actor.policies.age > 25
    assert sitting.learner.replay.counts[0] <= taken + 20  # what the last round brought
    while not sitting.actor.done:
        go(10)
    courier.round()
    sitting.learner.end()
    sitting.check()
    assert len(sitting.made) == 600 and sitting.actor.policies.age < 5


def test_a_round_that_breaks_in_the_middle_is_repeated(tmp_path, sit) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    sitting = sit(near, far=far).start_actor().go(60)

    class Breaking(Mailbox):
        calls = 0

        def put(self, first, at, data):
            self.calls += 1
            if self.calls <= 2:
                super().put(first, at, data[: len(data) // 2 + 5])  # half of it arrives
                raise ConnectionError("cut")
            super().put(first, at, data)

    courier = Courier(near / LINK, Breaking(far / LINK))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            courier.round()
    courier.round()
    sitting.start_learner()
    assert sitting.learner.replay.counts[0] == sitting.actor.spool.number
    sitting.check()
    assert len(sitting.made) == 59  # the sixtieth has not been seen to lead anywhere yet
