"""An agent that keeps its memories in the replay: a run of it that was stopped or killed is the run that was not."""

import pytest

from reverie import presets
from reverie.agents.dreamer_v3 import DreamerV3

CONFIG = presets.resolve(
    "dreamer_v3",
    ("debug",),
    dict(steps=60, prefill=20, batch_size=3, batch_length=4, train_ratio=3.0, pixels=False),
)


def sitting(toys, folder, n=2, disk=True):
    walk = toys.Walk()
    agent = DreamerV3(walk.obs_space, walk.act_space, CONFIG, seed=0)
    return toys.Sitting(folder, n=n, disk=disk, config=CONFIG, agent=agent).go_on()


def whole(toys, folder, **settings):
    run = sitting(toys, folder, **settings)
    assert run.online.loop()
    found = toys.everything(run)
    run.close()
    return found


@pytest.mark.parametrize("disk", [True, False])
def test_stopped_and_resumed(toys, tmp_path, disk):
    expected = whole(toys, tmp_path / "whole", disk=disk)
    assert expected == whole(toys, tmp_path / "again", disk=disk)  # and two runs with one seed are one
    first = sitting(toys, tmp_path / "run", disk=disk).moves(30)
    assert first.online.updates > 2
    first.online.save()
    first.close()
    second = sitting(toys, tmp_path / "run", disk=disk)
    assert second.online.loop()
    assert toys.everything(second) == expected
    second.close()


def test_killed_some_moves_after_a_checkpoint(toys, tmp_path):
    """What was written over the memories since then is undone, and the rows recorded since are taken in again."""
    expected = whole(toys, tmp_path / "whole")
    first = sitting(toys, tmp_path / "run").moves(25)
    first.online.save()
    updates = first.online.updates
    first.moves(9)
    assert first.online.updates > updates
    first.die()
    second = sitting(toys, tmp_path / "run")
    assert second.online.updates == updates
    assert second.online.loop()
    assert toys.everything(second) == expected
    second.close()
