"""What an agent remembers at every row: given with it, handed out before a sequence, renewed, saved."""

import numpy as np
import pytest
import torch

from reverie import checkpoint
from reverie.data.replay import Replay
from reverie.types import ActionSpace, ReverieError, Space, Step

OBS, ACT = {"x": Space((1,))}, ActionSpace(1)
MEMORY = np.dtype([("h", np.float16, (2,)), ("s", np.uint8, (3,))])


def make(capacity=50, streams=1, **options):
    return Replay(OBS, ACT, capacity, streams, context=MEMORY, **options)


def memory(i):
    return {"h": np.full(2, i, np.float32), "s": np.full(3, i % 250, np.uint8)}


def fill(replay, rows, stream=0, ends=(), start=0):
    """Row i shows i, and what is remembered there is i too."""
    for i in range(start, start + rows):
        step = Step(
            {"x": np.full(1, i, np.float32)},
            np.array(i, np.float32),
            np.array(i == 0 or i - 1 in ends),
            np.array(i in ends),
            np.array(False),
            np.array(1),
        )
        replay.add(step, np.zeros(1, np.float32), stream, memory(i))


def test_a_sequence_comes_with_what_was_remembered_before_it():
    replay = make()
    fill(replay, 20, ends=(9,))
    batch = replay.take([0, 0, 0, 0], [5, 0, 10, 11], 3)
    assert batch.rows.tolist() == [[0, 5], [0, 0], [0, 10], [0, 11]]
    assert batch.context["h"].tolist() == [[4, 4], [0, 0], [0, 0], [10, 10]]  # nothing before an episode
    assert batch.context["s"][:, 0].tolist() == [4, 0, 0, 10]
    assert batch.context["h"].dtype == torch.float16


def test_what_is_remembered_is_renewed():
    replay = make()
    fill(replay, 20)
    batch = replay.take([0], [5], 4)
    replay.refresh(batch.rows, {"h": 100 + torch.zeros(1, 4, 2), "s": torch.full((1, 4, 3), 7)})
    assert [replay.take([0], [i], 1).context["h"][0, 0].item() for i in (5, 6, 9, 10)] == [4, 100, 100, 9]


def test_rows_that_are_gone_are_passed_over_and_rings_go_round():
    replay = make(10)
    fill(replay, 12)
    batch = replay.take([0], [2], 4)
    fill(replay, 3, start=12)  # rows up to 3 are no longer kept
    replay.refresh(batch.rows, {"h": torch.arange(8.0).view(1, 4, 2), "s": torch.zeros(1, 4, 3)})
    for first in range(6, 15):
        expected = {5: 6.0, 4: 4.0}.get(first - 1, float(first - 1))
        assert replay.take([0], [first], 1).context["h"][0, 0].item() == expected


@pytest.mark.parametrize("disk", [False, True])
def test_a_checkpoint_holds_it_as_it_was(disk, tmp_path):
    options = dict(folder=tmp_path / "replay" if disk else None, slack=10, streams=2, capacity=40)
    replay = make(**options)
    for stream in (0, 1):
        fill(replay, 15, stream)
    checkpoint.save(tmp_path / "saved", 1, replay.state_dict())
    replay.refresh(torch.tensor([[0, 3]]), {"h": torch.zeros(1, 5, 2), "s": torch.zeros(1, 5, 3)})
    fill(replay, 3, start=15)
    replay.close()
    again = make(**options)
    again.load_state_dict(checkpoint.load(tmp_path / "saved")[1])
    assert again.counts == [15, 15]
    for first in range(1, 15):
        assert again.take([0, 1], [first, first], 1).context["h"][:, 0].tolist() == [first - 1] * 2
    again.close()


def test_another_memory_is_refused():
    replay = make()
    fill(replay, 5)
    other = Replay(OBS, ACT, 50, context=np.dtype([("h", np.float16, (4,)), ("s", np.uint8, (3,))]))
    with pytest.raises(ReverieError, match=r"remembers 'h' of shape \(4,\); use the agent and the sizes"):
        other.load_state_dict(replay.state_dict())
    plain = Replay(OBS, ACT, 50)
    with pytest.raises(ReverieError, match="has nothing where"):
        other.load_state_dict(plain.state_dict() | {"counts": [0], "rows": plain.state_dict()["rows"]})


def test_it_counts_in_the_size():
    assert Replay.bytes_per_row(OBS, ACT, MEMORY) == Replay.bytes_per_row(OBS, ACT) + 7
    assert make().bytes > Replay(OBS, ACT, 50).bytes


def test_without_a_memory_a_batch_has_none():
    replay = Replay(OBS, ACT, 50)
    no = np.array(False)
    for i in range(5):
        step = Step(
            {"x": np.zeros(1, np.float32)}, np.array(0, np.float32), np.array(i == 0), no, no, np.array(1)
        )
        replay.add(step, np.zeros(1, np.float32))
    batch = replay.sample(2, 3, np.random.default_rng(0))
    assert batch.rows is None and batch.context is None


def test_fresh_rows_are_sampled_first_and_once(tmp_path):
    replay = make(100, 2, fresh_first=True)
    rng = np.random.default_rng(0)
    fill(replay, 10, 0), fill(replay, 9, 1)
    firsts = lambda batch, n: batch.rows[:n].tolist()
    assert firsts(replay.sample(3, 4, rng), 3) == [[0, 0], [0, 4], [1, 0]]
    saved = replay.state_dict()
    assert firsts(replay.sample(3, 4, rng), 1) == [[1, 4]]
    fill(replay, 2, 0, start=10)
    assert firsts(replay.sample(3, 4, rng), 1) == [[0, 8]]
    again = make(100, 2, fresh_first=True)
    again.load_state_dict(saved)
    assert firsts(again.sample(3, 4, rng), 1) == [[1, 4]]
    starts = {tuple(row) for _ in range(200) for row in replay.sample(3, 4, rng).rows.tolist()}
    assert len(starts) == 9 + 6  # else anywhere
