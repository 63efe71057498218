"""The replay against a plain list, in memory and on disk, through wraps, stops and kills."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from reverie import checkpoint
from reverie.data import storage
from reverie.data.replay import Replay
from reverie.types import ActionSpace, ReverieError, Space, Step

OBS = {"image": Space((2, 3, 1), "uint8"), "vector": Space((2,))}
ACT = ActionSpace(2)
REPO = Path(__file__).parents[2]


def row(number: int, first: bool = False, last: bool = False) -> tuple[Step, np.ndarray]:
    """A row that shows its number everywhere."""
    step = Step(
        obs={
            "image": np.full((2, 3, 1), number % 251, np.uint8),
            "vector": np.array([number, -number], np.float32),
        },
        reward=np.array(0 if first else number, np.float32),
        is_first=np.array(first),
        is_last=np.array(last),
        is_terminal=np.array(last and number % 2 == 0),
        env_steps=np.array(0 if first else 2, np.int64),
    )
    return step, np.array([number, 0.5], np.float32) * (not last)


def episode(start: int, rows: int) -> list[tuple[Step, np.ndarray]]:
    return [row(start + i, first=i == 0, last=i == rows - 1) for i in range(rows)]


def endless(rows: int):
    """Numbered rows of episodes of ``rows`` rows."""
    return itertools.chain.from_iterable(episode(start, rows) for start in itertools.count(step=rows))


def fill(replay: Replay, n: int, stream: int = 0, rows: int = 5) -> None:
    for step, action in itertools.islice(endless(rows), replay.counts[stream], replay.counts[stream] + n):
        replay.add(step, action, stream)


def same(a: tuple[Step, np.ndarray], b: tuple[Step, np.ndarray]) -> bool:
    fields = ("reward", "is_first", "is_last", "is_terminal", "env_steps")
    return (
        np.array_equal(a[1], b[1])
        and all(np.array_equal(a[0].obs[k], b[0].obs[k]) for k in OBS)
        and all(getattr(a[0], f) == getattr(b[0], f) for f in fields)
    )


@pytest.fixture(params=["memory", "disk"])
def folder(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "replay"


def test_drawing_of_time(folder):
    replay = Replay(OBS, ACT, 100, folder=folder)
    for step, action in episode(0, 4) + episode(10, 3):
        replay.add(step, action)
    batch = replay.sample(1, 7, np.random.default_rng(0))
    assert batch.reward.tolist() == [[0, 1, 2, 3, 0, 11, 12]]
    assert batch.action[0, :, 0].tolist() == [0, 1, 2, 0, 10, 11, 0]
    assert batch.prev_action[0, :, 0].tolist() == [0, 0, 1, 2, 0, 10, 11]
    assert batch.is_first.tolist() == [[True, False, False, False, True, False, False]]
    assert batch.is_last.tolist() == [[False, False, False, True, False, False, True]]
    assert batch.is_terminal.tolist() == [[False] * 6 + [True]]
    assert batch.obs["image"].dtype == torch.uint8 and batch.obs["image"].shape == (1, 7, 2, 3, 1)
    assert batch.obs["vector"][0, :, 0].tolist() == [0, 1, 2, 3, 10, 11, 12]
    assert [value.dtype for value in batch[1:4]] == [torch.float32] * 3
    assert [value.dtype for value in batch[4:7]] == [torch.bool] * 3


def test_prev_action_of_the_first_row(folder):
    """In the middle of an episode it is the action of the row before, which is kept beyond the capacity."""
    replay = Replay(OBS, ACT, 4, folder=folder)
    fill(replay, 9, rows=100)
    batch = replay.sample(200, 2, np.random.default_rng(0))
    number = batch.obs["vector"][:, 0, 0]
    assert number.unique().tolist() == [5, 6, 7]
    torch.testing.assert_close(batch.prev_action[:, 0, 0], number - 1)


@pytest.mark.parametrize(("capacity", "length"), [(20, 5), (23, 1), (20, 9)])
def test_every_start_equally_likely(capacity, length):
    replay = Replay(OBS, ACT, capacity, streams=2)
    fill(replay, 17, 0)
    fill(replay, 7 + length, 1)
    starts = [min(17, capacity // 2) - length + 1, max(0, min(7 + length, capacity // 2) - length + 1)]
    low = [17 - min(17, capacity // 2), 7 + length - min(7 + length, capacity // 2)]
    draws = 400 * sum(starts)
    batch = replay.sample(draws, length, np.random.default_rng(0))
    counted = batch.obs["vector"][:, 0, 0].int().bincount()
    expected = np.zeros(len(counted))
    for s in range(2):
        expected[low[s] : low[s] + starts[s]] += 400
    assert (counted[expected == 0] == 0).all()
    assert np.abs(counted.numpy() - expected).max() < 6 * np.sqrt(800)


def test_within_episode():
    replay = Replay(OBS, ACT, 100, streams=2)
    for step, action in episode(0, 3) + episode(10, 5) + episode(20, 4) + episode(30, 9)[:6]:
        replay.add(step, action, 0)
    for step, action in episode(40, 8):
        replay.add(step, action, 1)
    batch = replay.sample(6000, 4, np.random.default_rng(0), within_episode=True)
    assert not batch.is_first[:, 1:].any() and not batch.is_last[:, :-1].any()
    counted = batch.obs["vector"][:, 0, 0].int().bincount()
    # Episodes of 5, 4 and 8 rows have 2, 1 and 5 starts, and are drawn a third of the time each.
    expected = torch.zeros(45)
    expected[10:12], expected[20], expected[40:45] = 1000, 2000, 400
    assert (counted[expected == 0] == 0).all() and (counted - expected).abs().max() < 200
    with pytest.raises(ReverieError, match=r"needs 9 rows.*longest of 4 finished episodes has 8"):
        replay.sample(1, 9, np.random.default_rng(0), within_episode=True)


def test_within_episode_forgets_what_is_overwritten():
    replay = Replay(OBS, ACT, 12)
    fill(replay, 23, rows=5)
    assert replay.episodes == 1 and replay.rows == 12
    batch = replay.sample(50, 5, np.random.default_rng(0), within_episode=True)
    assert batch.obs["vector"][:, 0, 0].unique().tolist() == [15]


def test_same_seed_same_batch(folder):
    replay = Replay(OBS, ACT, 50, streams=2, folder=folder)
    fill(replay, 40, 0)
    fill(replay, 30, 1)
    a, b = (replay.sample(8, 6, np.random.default_rng(3)) for _ in range(2))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_batches_do_not_share_memory():
    """Buffers are used again, but never one that a tensor still refers to."""
    replay = Replay(OBS, ACT, 100)
    fill(replay, 90)
    rng = np.random.default_rng(0)
    kept, copies = [], []
    for i in range(30):
        view = (
            replay.sample(3, 4, rng).obs["image"].float()
            if i % 3 == 0
            else replay.sample(3, 4, rng).obs["image"][1:]
        )
        kept.append(view)
        copies.append(view.clone())
        del view
        if i % 4 == 0:
            kept.pop(0), copies.pop(0)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    first = replay.sample(2, 3, rng).obs["image"].data_ptr()
    assert replay.sample(2, 3, rng).obs["image"].data_ptr() == first


def test_in_memory_through_a_checkpoint(tmp_path):
    replay = Replay(OBS, ACT, 20, streams=2)
    fill(replay, 37, 0, rows=100)
    fill(replay, 4, 1)
    checkpoint.save(tmp_path, 1, {"replay": replay.state_dict()})
    other = Replay(OBS, ACT, 20, streams=2)
    other.load_state_dict(checkpoint.load(tmp_path)[1]["replay"])
    for a in (replay, other):
        fill(a, 3, 1)
    assert other.counts == [37, 7]
    batches = [a.sample(40, 3, np.random.default_rng(0)) for a in (replay, other)]
    torch.testing.assert_close(*batches, rtol=0, atol=0)
    assert np.array_equal(other.tail(1).actions, replay.tail(1).actions)
    with pytest.raises(ReverieError, match="other streams or observations"):
        Replay(OBS, ACT, 20).load_state_dict(replay.state_dict())


def test_too_few_rows():
    replay = Replay(OBS, ACT, 100)
    fill(replay, 6)
    with pytest.raises(ReverieError, match="needs 7 rows of one stream, and the longest has 6"):
        replay.sample(2, 7, np.random.default_rng(0))
    assert replay.sample(2, 6, np.random.default_rng(0)).reward.shape == (2, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda step: step.obs.pop("vector"), "obs 'vector' should be float32 .* missing"),
        (lambda step: step.obs.update(image=np.zeros((2, 3), np.uint8)), r"obs 'image' .* is uint8 \(2, 3\)"),
        (lambda step: step.obs.update(image=np.zeros((2, 3, 1))), "obs 'image' .* is float64"),
        (lambda step: step.obs.update(vector=np.array([0, np.nan], np.float32)), "'vector' .* not finite"),
        (lambda step: setattr(step, "reward", np.array(np.inf, np.float32)), "reward of stream 0 is inf"),
        (lambda step: setattr(step, "is_first", np.array(False)), "between episodes.*add the reset"),
    ],
)
def test_refuses_bad_rows(change, message):
    replay = Replay(OBS, ACT, 10)
    step, action = row(0, first=True)
    change(step)
    with pytest.raises(ReverieError, match=message):
        replay.add(step, action)
    assert replay.counts == [0]


def test_refuses_bad_actions_and_sizes():
    replay = Replay(OBS, ACT, 10)
    for action in (None, np.zeros(3, np.float32), np.array([0, np.nan], np.float32)):
        with pytest.raises(ReverieError, match="an action should be 2 finite numbers"):
            replay.add(row(0, first=True)[0], action)
    for bad in ({"capacity": 1}, {"capacity": 10, "streams": 6}, {"capacity": 10, "slack": -1}):
        with pytest.raises(ReverieError, match="at least 2 rows"):
            Replay(OBS, ACT, **bad)


def test_last_row_has_no_action():
    replay = Replay(OBS, ACT, 10)
    replay.add(row(0, first=True)[0], np.ones(2, np.float32))
    replay.add(row(1, last=True)[0], np.ones(2, np.float32))
    replay.add(row(2, first=True)[0], np.ones(2, np.float32))
    replay.add(row(3, last=True)[0], None)
    assert replay.sample(1, 4, np.random.default_rng(0)).action[0, :, 0].tolist() == [1, 0, 1, 0]


def test_bytes(tmp_path):
    space, act = {"image": Space((64, 64, 3), "uint8")}, ActionSpace(6)
    per_row = Replay.bytes_per_row(space, act)
    assert 64 * 64 * 3 + 6 * 4 + 4 + 3 <= per_row <= 64 * 64 * 3 + 64
    assert Replay.capacity_for(10**9, space, act) == 10**9 // per_row
    replay = Replay(space, act, 1000, streams=2, folder=tmp_path / "replay", slack=10, reserve=100 * per_row)
    assert replay.bytes == 2 * (500 + 10 + 2) * per_row
    files = [path.stat() for path in (tmp_path / "replay").glob("*.*.raw")]
    assert sum(file.st_size for file in files) == replay.bytes
    assert sum(file.st_blocks for file in files) == 0  # sparse until rows come
    replay.add(
        Step(
            {"image": np.zeros((64, 64, 3), np.uint8)}, *(np.array(v) for v in (0.0, True, False, False, 0))
        ),
        np.zeros(6, np.float32),
    )
    taken = sum(path.stat().st_blocks * 512 for path in (tmp_path / "replay").glob("*.*.raw"))
    assert 100 * per_row <= taken <= 110 * per_row
    replay.close()


# --- against a plain list ---------------------------------------------------------------------


class AgainstList(RuleBasedStateMachine):
    """Adds, samples, checkpoints, kills and resumes in any order; every row is compared with a list."""

    disk = False

    @initialize(
        size=st.integers(2, 9), slack=st.integers(0, 6), streams=st.integers(1, 2), capacity=st.integers(0, 1)
    )
    def begin(self, size, slack, streams, capacity):
        self.root = Path(tempfile.mkdtemp())
        self.folder = self.root / "0" if self.disk else None
        self.made = (OBS, ACT, size * streams + capacity * (streams - 1), streams)
        self.size, self.slack = size, slack
        self.replay = Replay(*self.made, folder=self.folder, slack=slack, reserve=200)
        self.rows = [[] for _ in range(streams)]
        self.saved, self.future = [0] * streams, [[] for _ in range(streams)]
        self.number = 0

    @rule(stream=st.integers(0, 1), last=st.booleans(), abort=st.booleans())
    def add(self, stream, last, abort):
        stream %= len(self.rows)
        rows, future = self.rows[stream], self.future[stream]
        if len(rows) - self.saved[stream] >= self.slack:
            return
        if future and not abort:
            new = future.pop(0)
        else:
            future.clear()
            first = not rows or bool(rows[-1][0].is_last) or abort
            self.number += 1
            new = row(self.number, first=first, last=last and not first)
        self.replay.add(*new, stream)
        rows.append(new)

    @rule()
    def save(self):
        """A checkpoint: slack counts from here."""
        if not any(self.future):
            self.saved = self.replay.counts

    @rule(length=st.integers(1, 5), seed=st.integers(0, 99))
    def sample(self, length, seed):
        if all(min(len(rows), self.size) < length for rows in self.rows):
            with pytest.raises(ReverieError):
                self.replay.sample(1, length, np.random.default_rng(seed))
            return
        batch = self.replay.sample(4, length, np.random.default_rng(seed))
        visible = [rows[-self.size :] for rows in self.rows]
        for b in range(4):
            number = batch.obs["vector"][b, 0, 0].item()
            s, i = next(
                (s, i)
                for s, rows in enumerate(visible)
                for i, r in enumerate(rows)
                if r[0].obs["vector"][0] == number
            )
            i += len(self.rows[s]) - len(visible[s])
            for t in range(length):
                step, action = self.rows[s][i + t]
                for key in OBS:
                    assert np.array_equal(batch.obs[key][b, t].numpy(), step.obs[key])
                assert batch.reward[b, t] == float(step.reward)
                assert batch.is_first[b, t] == bool(step.is_first)
                assert batch.is_last[b, t] == bool(step.is_last)
                assert batch.is_terminal[b, t] == bool(step.is_terminal)
                assert np.array_equal(batch.action[b, t].numpy(), action)
                prev = np.zeros(2) if step.is_first else self.rows[s][i + t - 1][1]
                assert np.array_equal(batch.prev_action[b, t].numpy(), prev)

    @rule()
    def same_counts(self):
        assert self.replay.counts == [len(rows) for rows in self.rows]
        assert self.replay.rows == sum(min(len(rows), self.size) for rows in self.rows)
        finished = 0
        for s, rows in enumerate(self.rows):
            visible, start = rows[-self.size :], None
            for i, (step, _) in enumerate(visible):
                start = i if step.is_first else start
                finished += bool(step.is_last) and start is not None
            running = next((i for i in range(len(rows) - 1, -1, -1) if rows[i][0].is_first), 0)
            if not rows or rows[-1][0].is_last:
                assert self.replay.tail(s).actions.shape == (0, 2) and self.replay.tail(s).obs is None
            elif len(rows) - running > self.size + 1:
                with pytest.raises(ReverieError, match="longer than the"):
                    self.replay.tail(s)
            else:
                tail = self.replay.tail(s)
                assert np.array_equal(tail.actions, [action for _, action in rows[running:]])
                assert np.array_equal(tail.obs["vector"], rows[-1][0].obs["vector"])
        assert self.replay.episodes == finished

    @rule()
    def rewind(self):
        """Back to the checkpoint; what came after it is in the journal."""
        self._go_back(self.replay)

    @precondition(lambda self: self.disk)
    @rule(clean=st.booleans())
    def kill(self, clean):
        """The folder as another process finds it, and back to the checkpoint."""
        if clean:
            self.replay.close()
        self.folder = shutil.copytree(self.folder, self.root / str(int(self.folder.name) + 1))
        self.replay = Replay(*self.made, folder=self.folder, slack=self.slack, reserve=200)
        self._go_back(self.replay)

    def _go_back(self, replay):
        replay.rewind(self.saved)
        for s, rows in enumerate(self.rows):
            self.future[s] = rows[self.saved[s] :] + self.future[s]
            del rows[self.saved[s] :]
            journal = list(replay.journal(s))
            assert len(journal) == len(self.future[s])
            assert all(same(a, b) for a, b in zip(journal, self.future[s], strict=True))

    @rule()
    def state(self):
        """Through a state dict into another replay."""
        if self.disk or any(self.future):
            return
        other = Replay(*self.made, slack=self.slack)
        other.load_state_dict(self.replay.state_dict())
        self.replay, self.saved = other, other.counts

    def teardown(self):
        if hasattr(self, "root"):
            shutil.rmtree(self.root, ignore_errors=True)


class OnDisk(AgainstList):
    disk = True


TestInMemory = AgainstList.TestCase
TestInMemory.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestOnDisk = OnDisk.TestCase
TestOnDisk.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)


# --- stops ------------------------------------------------------------------------------------


@given(size=st.integers(2, 8), slack=st.integers(0, 5), before=st.integers(0, 30), after=st.integers(0, 8))
def test_slack_is_exact(size, slack, before, after):
    """Up to ``slack`` rows can be taken back, and then the same batches come; one more is refused."""
    replay = Replay(OBS, ACT, size, slack=slack)
    fill(replay, before, rows=7)
    length = min(2, max(1, min(before, size)))
    wanted = replay.sample(9, length, np.random.default_rng(1)) if before else None
    fill(replay, after, rows=7)
    if after > slack and before + after > size + slack + 1:
        with pytest.raises(ReverieError, match=f"{after} were written after it, and its slack is {slack}"):
            replay.rewind([before])
        return
    replay.rewind([before])
    if wanted is not None:
        torch.testing.assert_close(replay.sample(9, length, np.random.default_rng(1)), wanted)


def test_journal_ends_where_the_present_differs(tmp_path):
    replay = Replay(OBS, ACT, 50, folder=tmp_path / "a", slack=20)
    fill(replay, 12, rows=100)
    replay.rewind([5])
    journal = replay.journal(0)
    replay.add(*next(journal))
    assert replay.storage.marks[0, storage.RECORDED] == 12
    next(journal)
    replay.add(*row(99))
    assert list(journal) == [] and replay.counts == [7]
    copy = shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert Replay(OBS, ACT, 50, folder=copy, slack=20).counts == [7]


def test_rewind_refuses():
    replay = Replay(OBS, ACT, 50)
    fill(replay, 5)
    with pytest.raises(ReverieError, match="holds 5 rows of stream 0 and the checkpoint knew 6"):
        replay.rewind([6])
    with pytest.raises(ReverieError, match="has 1 streams and the checkpoint 2"):
        replay.rewind([1, 1])


KILLED = """
import itertools, sys
sys.path[:0] = [{tests!r}, {repo!r}]
from pathlib import Path
from test_replay import OBS, ACT, Replay, endless
replay = Replay(OBS, ACT, 300, folder=Path({folder!r}), slack=20, reserve=4096)
for i, (step, action) in enumerate(itertools.islice(endless(7), replay.counts[0], None)):
    replay.add(step, action)
    if i == 200:
        print("going", flush=True)
"""


def test_kill_9(tmp_path):
    """Whatever the moment, the rows that count are whole and in order, and the next process goes on."""
    folder = tmp_path / "replay"
    script = KILLED.format(tests=str(REPO / "tests/data"), repo=str(REPO), folder=str(folder))
    counts = [0]
    for pause in (0.0, 0.013):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"going\n"
        with pytest.raises(ReverieError, match="being written by another process"):
            Replay(OBS, ACT, 300, folder=folder, slack=20)
        assert Replay.open(folder).counts[0] >= counts[-1]
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        replay = Replay(OBS, ACT, 300, folder=folder, slack=20)
        count = replay.counts[0]
        assert count > counts[-1] + 200
        counts.append(count)
        oldest = max(0, count - 301)
        expected = list(itertools.islice(endless(7), oldest, count))
        replay.rewind([count - 1])
        assert same(next(replay.journal(0)), expected[-1])
        replay.rewind([count])
        stored = replay.read(0, oldest, count)
        assert np.array_equal(stored["obs/vector"], [step.obs["vector"] for step, _ in expected])
        assert np.array_equal(stored["obs/image"], [step.obs["image"] for step, _ in expected])
        assert np.array_equal(stored["is_last"], [step.is_last for step, _ in expected])
        replay.close()


def broken(tmp_path, boot: str, synced: int, *bad: int) -> Replay:
    """Reopen a folder of 20 rows of which some were not written before the power went."""
    replay = Replay(OBS, ACT, 50, folder=tmp_path / "a")
    fill(replay, 20, rows=100)
    replay.storage.marks[0, storage.SYNCED] = synced
    for at in bad:
        replay.storage.obs[0]["vector"][at] = 7.5
    copy = shutil.copytree(tmp_path / "a", tmp_path / "b")
    (copy / "lock").write_text(boot or (copy / "lock").read_text())
    return Replay(OBS, ACT, 50, folder=copy)


def test_power_cut_drops_what_was_not_synced(tmp_path):
    replay = broken(tmp_path, "another boot", 10, 14, 16)
    assert replay.counts == [14] and replay.rows == 14


def test_power_cut_raises_the_floor(tmp_path):
    """Rows of which the disk kept an older or a newer lap are not sampled."""
    replay = broken(tmp_path, "another boot", 20, 3)
    assert replay.counts == [20] and replay.rows == 16
    with pytest.raises(ReverieError, match="lost rows"):
        replay.rewind([20])
    with pytest.raises(ReverieError, match="longer than"):
        replay.tail(0)


def test_checks_only_the_last_rows_after_a_kill(tmp_path):
    replay = broken(tmp_path, "", 10, 3, 17)
    assert replay.counts == [17] and replay.rows == 17


def test_power_cut_while_the_present_differs(tmp_path):
    """Rows that take the place of a synced journal are not taken for synced."""
    replay = Replay(OBS, ACT, 50, folder=tmp_path / "a", slack=20)
    fill(replay, 20, rows=100)
    replay.flush()
    replay.rewind([10])
    for number in (90, 91, 92):
        replay.add(*row(number))
    replay.storage.obs[0]["vector"][11] = 7.5
    copy = shutil.copytree(tmp_path / "a", tmp_path / "b")
    (copy / "lock").write_text("another boot")
    replay = Replay(OBS, ACT, 50, folder=copy, slack=20)
    assert replay.counts == [11] and replay.rows == 11


def test_power_cut_that_kept_an_older_lap(tmp_path):
    """The same content under another number is another row."""
    replay = Replay(OBS, ACT, 8, folder=tmp_path / "a")
    replay.add(*row(5, first=True))
    for _ in range(24):
        replay.add(*row(5))
    replay.flush()
    copy = shutil.copytree(tmp_path / "a", tmp_path / "b")
    step = np.memmap(copy / "step.0.raw", replay.storage.dtype, "r+")
    step["check"][20 % replay.slots] = replay.storage.checksum(0, 20 - replay.slots)  # the same slot
    step.flush()
    (copy / "lock").write_text("another boot")
    replay = Replay(OBS, ACT, 8, folder=copy)
    assert replay.counts == [25] and replay.rows == 4


def test_flush_and_close(tmp_path):
    replay = Replay(OBS, ACT, 50, folder=tmp_path)
    fill(replay, 8)
    assert replay.storage.marks[0, storage.SYNCED] == 0 and (tmp_path / "lock").read_text()
    replay.flush()
    assert replay.storage.marks[0, storage.SYNCED] == 8
    replay.close()
    assert not (tmp_path / "lock").read_text()
    with pytest.raises(ReverieError, match="closed or opened for reading"):
        fill(replay, 1)
    assert Replay(OBS, ACT, 50, folder=tmp_path).counts == [8]


def test_syncs_at_the_end_of_an_episode(tmp_path, monkeypatch):
    monkeypatch.setattr("reverie.data.replay.SYNC_SECONDS", -1.0)
    replay = Replay(OBS, ACT, 50, folder=tmp_path)
    fill(replay, 7, rows=5)
    replay._syncing.join()
    assert 5 <= replay.storage.marks[0, storage.SYNCED] <= 7
    replay.close()


# --- the folder ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_space": {"image": OBS["image"]}}, "obs 'vector' was float32 .* and is now not there"),
        (
            {"obs_space": {**OBS, "image": Space((4, 4, 1), "uint8")}},
            r"obs 'image' was uint8 \[2, 3, 1\] .* \[4, 4",
        ),
        ({"act_space": ActionSpace(2, (2,))}, "the action space was .* use the settings it was made with"),
        ({"streams": 2}, "has 1 streams, and 2 are wanted"),
    ],
)
def test_other_settings_are_refused(tmp_path, changes, message):
    settings = {"obs_space": OBS, "act_space": ACT, "capacity": 20}
    Replay(**settings, folder=tmp_path).close()
    with pytest.raises(ReverieError, match=message):
        Replay(**{**settings, **changes}, folder=tmp_path)
    Replay(**settings, folder=tmp_path).close()  # the failed attempt let go of the lock


@pytest.mark.parametrize("capacity", [12, 200])
def test_capacity_can_change_until_the_ring_is_full(tmp_path, capacity):
    replay = Replay(OBS, ACT, 20, folder=tmp_path)
    fill(replay, 10)
    replay.close()
    replay = Replay(OBS, ACT, capacity, folder=tmp_path)
    assert replay.counts == [10] and replay.capacity == capacity
    fill(replay, 300)
    assert replay.rows == capacity
    batch = replay.sample(300, 3, np.random.default_rng(0))
    assert batch.obs["vector"][:, :, 0].min() >= 310 - capacity
    replay.close()
    with pytest.raises(ReverieError, match="is too full to be changed"):
        Replay(OBS, ACT, capacity + 1, folder=tmp_path)


def test_damaged_folders(tmp_path):
    for name, message in [
        ("step.0.raw", "step.0.raw is missing"),
        ("obs.vector.0.raw", "obs.vector.0.raw is missing or too short"),
        ("replay.json", "has rows but no replay.json"),
    ]:
        folder = tmp_path / f"without {name}"
        replay = Replay(OBS, ACT, 20, folder=folder)
        fill(replay, 3)
        replay.close()
        (folder / name).unlink()
        with pytest.raises(ReverieError, match=message):
            Replay(OBS, ACT, 20, folder=folder)
    about = tmp_path / "replay.json"
    Replay(OBS, ACT, 20, folder=tmp_path).close()
    about.write_text(json.dumps({**json.loads(about.read_text()), "format": 99}))
    with pytest.raises(ReverieError, match="has format 99"):
        Replay(OBS, ACT, 20, folder=tmp_path)
    about.write_text("{")
    with pytest.raises(ReverieError, match="damaged"):
        Replay.open(tmp_path)
    with pytest.raises(ReverieError, match="there is no replay"):
        Replay.open(tmp_path / "nowhere")
    with pytest.raises(ReverieError, match="can not be used"):
        Replay(OBS, ACT, 20, folder=about)


def test_names_stay_in_the_folder(tmp_path):
    space = {"../../up": Space((1,)), "a/b": Space((1,)), "step": Space((1,)), "": Space((1,))}
    replay = Replay(space, ACT, 10, folder=tmp_path / "replay")
    obs = {key: np.array([i], np.float32) for i, key in enumerate(space)}
    replay.add(Step(obs, *(np.array(v) for v in (0.0, True, False, False, 0))), np.zeros(2, np.float32))
    assert {k: v.item() for k, v in replay.sample(1, 1, np.random.default_rng(0)).obs.items()} == {
        key: i for i, key in enumerate(space)
    }
    assert [path.name for path in tmp_path.iterdir()] == ["replay"]
    assert all(path.is_file() for path in (tmp_path / "replay").iterdir())
    replay.close()


def test_open_reads_beside_the_writer(tmp_path):
    replay = Replay(OBS, ACT, 20, folder=tmp_path)
    fill(replay, 12)
    reader = Replay.open(tmp_path)
    assert reader.counts == [12] and reader.episodes == 2
    torch.testing.assert_close(
        reader.sample(5, 3, np.random.default_rng(0)), replay.sample(5, 3, np.random.default_rng(0))
    )
    with pytest.raises(ReverieError, match="for reading"):
        reader.add(*row(1, first=True))
    replay.close()


# --- a full disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fallocate", "zeros"])
def test_full_disk_is_a_sentence(tmp_path, monkeypatch, how):
    replay = Replay(OBS, ACT, 100, folder=tmp_path, reserve=10 * Replay.bytes_per_row(OBS, ACT))
    fill(replay, 10)

    def full(*args):
        raise OSError(28, "No space left on device")

    if how == "zeros":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.setattr(storage, "bytes", full, raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    for _ in range(2):
        with pytest.raises(ReverieError, match=r"disk full.*--replay-size.*up to row 10 is safe"):
            fill(replay, 1)
    assert replay.counts == [10] and replay.sample(2, 10, np.random.default_rng(0)).reward.shape == (2, 10)
    monkeypatch.undo()
    fill(replay, 15)  # space was freed
    assert replay.counts == [25]
    replay.close()


def test_without_fallocate(tmp_path, monkeypatch):
    """As on macOS; zeros that take the place never hit a row."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    for _ in range(3):
        replay = Replay(OBS, ACT, 30, folder=tmp_path, reserve=3 * Replay.bytes_per_row(OBS, ACT))
        fill(replay, 17)
        count = replay.counts[0]
        numbers = replay.read(0, max(0, count - 30), count)["obs/vector"][:, 0]
        assert numbers.tolist() == list(range(max(0, count - 30), count))
        replay.close()


def test_full_tmpfs(tmp_path):
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=256k", "none", str(mounted)], capture_output=True
        ).returncode
    ):
        pytest.skip("needs the right to mount")
    try:
        script = textwrap.dedent(
            f"""
            import sys
            sys.path[:0] = [{str(REPO / "tests/data")!r}, {str(REPO)!r}]
            from pathlib import Path
            from test_replay import *
            replay = Replay(OBS, ACT, 10**6, folder=Path({str(mounted / "replay")!r}), reserve=32768)
            try:
                fill(replay, 10**6)
            except ReverieError as error:
                assert "disk full" in str(error), error
                count = replay.counts[0]
                assert count > 1000
                assert replay.read(0, 0, count)["obs/vector"][:, 0].tolist() == list(range(count))
                replay.close()
                print("sentence", count)
            """
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.stdout.startswith("sentence"), done.stderr
        count = int(done.stdout.split()[1])
        assert Replay.open(mounted / "replay").counts == [count]
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_adding_while_sampling():
    """One thread adds for all it can, another samples; no batch is torn."""
    replay = Replay({"image": Space((32, 32, 3), "uint8")}, ACT, 40)
    stop = threading.Event()

    def actor():
        for number in itertools.count():
            if stop.is_set():
                return
            image = np.full((32, 32, 3), number % 251, np.uint8)
            flags = (float(number), number == 0, False, False, 1)
            replay.add(Step({"image": image}, *(np.array(v) for v in flags)), np.full(2, number, np.float32))

    thread = threading.Thread(target=actor)
    thread.start()
    try:
        rng = np.random.default_rng(0)
        while replay.rows < 40:
            pass
        for _ in range(100):
            batch = replay.sample(8, 10, rng)
            number = batch.reward.long()
            assert (number.diff(dim=1) == 1).all()
            assert (batch.action[..., 0].long() == number).all()
            assert (batch.obs["image"].flatten(2).float().std(-1) == 0).all()
            assert (batch.obs["image"][..., 0, 0, 0].long() == number % 251).all()
            first = batch.prev_action[:, 0, 0].long()
            assert ((first == number[:, 0] - 1) | (number[:, 0] == 0)).all()
    finally:
        stop.set()
        thread.join()
