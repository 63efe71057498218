"""The loop: a run that was interrupted anywhere is, bit for bit, the run that was not."""

import dataclasses

import numpy as np
import pytest

from reverie.envs import WorkerEnvs, make_env

from functools import partial


def whole(toys, folder, **options):
    sitting = toys.Sitting(folder, **options).go_on()
    assert sitting.online.loop()
    result = toys.everything(sitting)
    sitting.close()
    return result


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("disk", [True, False], ids=["disk", "memory"])
def test_stopped_and_resumed_after_every_move(toys, tmp_path, n, disk):
    expected = whole(toys, tmp_path / "whole", n=n, disk=disk)
    k, finished = 0, False
    while not finished:
        folder = tmp_path / f"stopped-{k}"
        first = toys.Sitting(folder, n=n, disk=disk).go_on().moves(k)
        first.online.save()
        finished = first.online.done
        first.close()
        second = toys.Sitting(folder, n=n, disk=disk).go_on()
        assert second.online.loop()
        assert toys.everything(second) == expected, f"stopped after {k} moves"
        second.close()
        k += 1
    assert k > 15


@pytest.mark.parametrize("n", [1, 3])
def test_killed_after_every_move_with_a_checkpoint_some_moves_before(toys, tmp_path, n):
    """From no checkpoint at all to one that is 12 moves old: the journal closes the gap."""
    expected = whole(toys, tmp_path / "whole", n=n)
    k, finished = 0, False
    while not finished:
        folder = tmp_path / f"killed-{k}"
        first = toys.Sitting(folder, n=n).go_on().moves(k)
        if k % 3:
            first.online.save()
        finished = first.online.done
        recorded = sum(first.moves(4 * (k % 4)).replay.counts)
        first.die()
        second = toys.Sitting(folder, n=n).go_on()
        assert second.online.loop()
        assert sum(second.replay.counts) >= recorded
        assert toys.everything(second) == expected, f"killed {4 * (k % 4)} moves after {k}"
        second.close()
        k += 1
