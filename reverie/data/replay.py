"""Memory of experience: a bounded ring of rows per stream, in memory or on disk, with whole rows only.

Every stream (one environment, episode after episode) has a ring of its own. Its rows are numbered for ever,
from 0; row ``i`` lies in slot ``i % slots``. With ``size = capacity // streams``::

        lost        kept (slack)       context   visible: `sample` draws from these     journal
    ...........|                     |         |                                    |              |
    0        floor               count-size-1  count-size                         count        recorded
                                                                                    |              |
                                                 what the checkpoint knew ----------+              |
                                                 what was written before the kill -----------------+

- ``visible``: at most ``size`` rows. One row of ``context`` before them is kept for ``prev_action``.
- ``recorded`` counts whole rows. It moves on after a row is written, so that a process killed at any moment
  leaves whole rows only. It is ahead of ``count`` only after ``rewind``: then ``journal`` yields the rows
  in between, to be ``add``-ed again instead of stepping the environment. A row added again with the same
  content is not written again; with other content it ends the journal.
- ``slots = size + 1 + slack + 1``: the visible rows, the context, ``slack`` rows that may be written after a
  checkpoint without touching what it could sample, and one that may be half written. So ``rewind`` to
  ``count`` works as long as ``recorded - count <= slack``, whatever happened in between.

An agent may keep with every row what it remembered there (``context``, the columns of a numpy dtype). It is given
with the row to ``add``, handed out by ``sample`` for the row before a sequence, and renewed by ``refresh`` when
the agent has read the rows again. It lives in memory, also of a replay on disk, and a checkpoint holds all of it:
else what a resumed run starts from would not be what it had, and could not be had again.

What survives a stop: a killed process loses no row that was added. A power cut loses at most the rows since
the last sync. One starts at the end of an episode (beside the caller, in a thread) when the one before is
more than ``SYNC_SECONDS`` ago, and one is in ``flush``: call that before saving a checkpoint. The files are
described in ``data/storage.py``.
"""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reverie.data.storage import RECORDED, Storage, read_about, spaces, step_dtype
from reverie.types import ActionSpace, Batch, ObsSpace, ReverieError, Step

SYNC_SECONDS = 5.0
FIELDS = ("action", "reward", "env_steps", "is_first", "is_last", "is_terminal")


class Tail(NamedTuple):
    """The unfinished episode at the end of a stream."""

    actions: np.ndarray  # "k A" float32: one per row since the episode's start; k = 0 between episodes
    obs: dict[str, np.ndarray] | None  # what the environment showed after all but the last of them


class Replay:
    """Rows of ``streams`` environments; ``capacity`` rows in all can be sampled.

    ``folder`` keeps the rows on disk, mapped into memory; opening it again goes on where it ended, also with
    another capacity or slack as long as no ring is full. Without a folder the rows are in memory. ``slack``
    rows per stream may be added between two checkpoints. ``reserve`` bytes of disk are taken at once, per
    stream. ``context`` is a dtype with the columns of an agent's memory. With ``fresh_first``, a stretch of rows
    that has just become as long as a sequence is sampled once before anything is drawn at random.
    """

    context: np.dtype | None = None
    fresh_first = False
    _context_rows: Sequence[np.ndarray] = ()

    def __init__(
        self,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        capacity: int,
        streams: int = 1,
        folder: Path | None = None,
        slack: int = 0,
        reserve: int | None = None,
        context: np.dtype | None = None,
        fresh_first: bool = False,
    ):
        if streams < 1 or capacity // max(streams, 1) < 2 or slack < 0:
            raise ReverieError(
                f"a replay needs at least 2 rows for each of its streams and slack >= 0, "
                f"got capacity {capacity}, streams {streams}, slack {slack}"
            )
        self._start(obs_space, act_space, capacity, streams, folder, slack, reserve)
        self.fresh_first = fresh_first
        if context is not None:
            self.context = context
            try:
                self._context_rows = [np.zeros(self.slots, context) for _ in range(streams)]
            except MemoryError:
                raise ReverieError(
                    f"an agent's memory of {streams} x {self.slots} rows, {context.itemsize} bytes each, is too "
                    f"large for this machine; lower --replay-size"
                ) from None

    @classmethod
    def open(cls, folder: Path) -> "Replay":
        """Read the replay of a run, which may still be writing: as it is now. Nothing can be added."""
        about = read_about(Path(folder))
        if about is None:
            raise ReverieError(f"there is no replay in {folder}; name the replay folder of a run")
        replay = cls.__new__(cls)
        obs_space, act_space = spaces(about)
        sizes = {name: about[name] for name in ("capacity", "streams", "slack")}
        replay._start(obs_space, act_space, folder=Path(folder), write=False, **sizes)
        return replay

    def _start(
        self,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        capacity: int,
        streams: int,
        folder: Path | None,
        slack: int,
        reserve: int | None = None,
        write: bool = True,
    ) -> None:
        self.obs_space, self.act_space = dict(obs_space), act_space
        self.capacity, self.streams, self.slack = capacity, streams, slack
        self.size = capacity // streams
        self.folder = Path(folder) if folder is not None else None
        self.storage = Storage(obs_space, act_space, capacity, streams, slack, self.folder, reserve, write)
        self.slots = self.storage.slots
        # As bytes, because numpy copies records field by field.
        self._raw_steps = [s.view(np.uint8).reshape(self.slots, -1) for s in self.storage.steps]
        self._counts = [int(n) for n in self.storage.marks[:, RECORDED]]
        self._synced_at = time.monotonic()
        self._syncing: threading.Thread | None = None
        self._pool: dict[Any, list[np.ndarray]] = {}
        self._pool_lock = threading.Lock()
        self._served = [0] * streams  # rows of each stream that have been handed out by ``fresh_first``
        self._index_episodes()

    # --- what is there -------------------------------------------------------------------------

    @property
    def counts(self) -> list[int]:
        """Rows ever added to each stream; after ``rewind``, as if the later ones had not been."""
        return list(self._counts)

    @property
    def rows(self) -> int:
        """Rows that can be sampled now."""
        return sum(count - self._low(s, count) for s, count in enumerate(self._counts))

    @property
    def episodes(self) -> int:
        """Finished episodes of which every row can be sampled."""
        return sum(len(self.episodes_of(s)) for s in range(self.streams))

    @property
    def bytes(self) -> int:
        """What the full rings take, on disk or in memory."""
        return self.streams * self.slots * self.bytes_per_row(self.obs_space, self.act_space, self.context)

    @staticmethod
    def bytes_per_row(obs_space: ObsSpace, act_space: ActionSpace, context: np.dtype | None = None) -> int:
        memory = 0 if context is None else context.itemsize
        return sum(space.bytes for space in obs_space.values()) + step_dtype(act_space).itemsize + memory

    @classmethod
    def capacity_for(
        cls, size: int, obs_space: ObsSpace, act_space: ActionSpace, context: np.dtype | None = None
    ) -> int:
        """How many rows fit into ``size`` bytes."""
        return size // cls.bytes_per_row(obs_space, act_space, context)

    def _low(self, stream: int, count: int) -> int:
        """The oldest row that can be sampled when there are ``count``."""
        return max(count - self.size, self.storage.floor(stream))

    def _context(self, stream: int, count: int) -> int:
        """The oldest row that is kept for ``prev_action``."""
        return max(count - self.size - 1, self.storage.floor(stream))

    # --- adding --------------------------------------------------------------------------------

    def add(
        self,
        step: Step,
        action: np.ndarray | None,
        stream: int = 0,
        context: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Append one row: the ``step`` of one environment, the ``action`` "A" chosen at it, and what the agent
        remembers there (zeros if that is not given).

        On a last row nothing is chosen: the action is left out, or taken as zeros whatever it is.
        """
        row = self._checked(step, action, stream)
        at = self._counts[stream]
        if self.context is not None:
            memory = self._context_rows[stream][at % self.slots]
            for name in self.context.names or ():
                memory[name] = 0 if context is None else context[name]
        if at >= self.storage.marks[stream, RECORDED] or not self._is_recorded(stream, at, step.obs, row):
            self.storage.put(stream, at, step.obs, row)
        if row["is_first"]:
            self._starts[stream] = at
        self._counts[stream] = at + 1
        if row["is_last"]:
            self._finished[stream].append((self._starts[stream], at + 1))
            self._starts[stream] = -1
            if self.folder is not None and time.monotonic() - self._synced_at > SYNC_SECONDS:
                self._sync_aside()

    def _checked(self, step: Step, action: np.ndarray | None, stream: int) -> np.ndarray:
        """The small fields of a row, when all of the row is as it should be."""
        if not self.storage.write:
            raise ReverieError(
                f"the replay in {self.folder} is closed or opened for reading; nothing can be added"
            )
        for key, space in self.obs_space.items():
            value = step.obs.get(key)
            if value is None or value.shape != space.shape or value.dtype != space.dtype:
                got = "missing" if value is None else f"{value.dtype} {value.shape}"
                raise ReverieError(f"replay: obs {key!r} should be {space.dtype} {space.shape} and is {got}")
            if space.dtype == "float32" and not np.isfinite(value).all():
                raise ReverieError(
                    f"replay: obs {key!r} of stream {stream} is not finite; mend the environment"
                )
        is_first, is_last = bool(step.is_first), bool(step.is_last)
        if is_last:
            action = np.zeros(self.act_space.size, np.float32)
        elif np.shape(action) != (self.act_space.size,) or not np.isfinite(action).all():  # type: ignore[arg-type]
            raise ReverieError(
                f"replay: an action should be {self.act_space.size} finite numbers, got {action!r}"
            )
        if not math.isfinite(step.reward):
            raise ReverieError(f"replay: a reward of stream {stream} is {step.reward}; mend the environment")
        if self._starts[stream] < 0 and not is_first:
            raise ReverieError(
                f"replay: stream {stream} is between episodes and got a row that is not first; add the reset"
            )
        row = (action, step.reward, step.env_steps, 0, is_first, is_last, bool(step.is_terminal), False)
        return np.array(row, self.storage.dtype)

    def _is_recorded(self, stream: int, at: int, obs: Mapping[str, np.ndarray], row: np.ndarray) -> bool:
        """Whether the journal has this very row."""
        slot, columns = at % self.slots, self.storage.obs[stream]
        old = self.storage.steps[stream][slot]
        return all((old[name] == row[name]).all() for name in FIELDS) and all(
            np.array_equal(columns[key][slot], obs[key]) for key in columns
        )

    # --- sampling ------------------------------------------------------------------------------

    def sample(
        self, batch_size: int, length: int, rng: np.random.Generator, within_episode: bool = False
    ) -> Batch:
        """``batch_size`` sequences of ``length`` rows, every possible start equally likely.

        Sequences may run across the starts of episodes; ``is_first`` marks these. With ``within_episode``
        they do not: a finished episode is drawn uniformly among those with at least ``length`` rows, then a
        start uniformly from 0 .. rows - length (PlaNet, Dreamer V1). ``prev_action`` of the first row is the
        real one, unless the row before is no longer stored. Another thread may add meanwhile.
        """
        if batch_size < 1 or length < 1:
            raise ReverieError(
                f"replay: a batch needs at least one row, got {batch_size} sequences of {length}"
            )
        while True:
            # The floor is read before the counts, so that it is below them whatever another thread adds.
            contexts = np.array([self.storage.floor(s) for s in range(self.streams)])
            counts = np.array(self._counts)
            contexts = np.maximum(contexts, counts - self.size - 1)
            lows = np.maximum(contexts, counts - self.size)
            draw = self._draw_within if within_episode else self._draw
            streams, starts = draw(lows, counts, batch_size, length, rng)
            if self.fresh_first and not within_episode:
                for i, (stream, start) in enumerate(self._fresh(lows, counts, batch_size, length)):
                    streams[i], starts[i] = stream, start
            before = np.maximum(starts - 1, contexts[streams])
            batch = self._gather(streams.tolist(), starts.tolist(), before.tolist(), length)
            # Were the oldest of these rows written over by another thread meanwhile? Then draw again.
            floors = np.array([self.storage.floor(s) for s in range(self.streams)])
            if (before >= floors[streams]).all():
                return batch

    def transitions(self, batch_size: int, rng: np.random.Generator, future: bool = False) -> Batch:
        """``batch_size`` transitions, two rows each that no episode's start divides, all equally likely.

        With ``future`` they have a third row: one that came later in the same episode, any from the second on, all
        equally likely (of a running episode, as far as it has come).

        An episode the clock ended gives as many as one that ended itself: its last row is stored, and the
        flags of the second row tell which it was. ``prev_action`` and threads as in ``sample``. Raises
        ``ReverieError`` while no transition is stored.
        """
        if batch_size < 1:
            raise ReverieError(f"replay: a batch needs at least one transition, got {batch_size}")
        while True:
            contexts = np.array([self.storage.floor(s) for s in range(self.streams)])
            counts = np.array(self._counts)
            contexts = np.maximum(contexts, counts - self.size - 1)
            lows = np.maximum(contexts, counts - self.size)
            streams, starts = self._draw_pairs(lows, counts, batch_size, rng)
            before = np.maximum(starts - 1, contexts[streams])
            rows = starts[:, None] + np.arange(2)
            if future:
                rows = np.column_stack([rows, rng.integers(starts + 1, self._ends(streams, starts, counts))])
            batch = self._gather_rows(streams, rows, before)
            floors = np.array([self.storage.floor(s) for s in range(self.streams)])
            if (before >= floors[streams]).all():
                return batch

    def _fresh(
        self, lows: np.ndarray, counts: np.ndarray, batch_size: int, length: int
    ) -> Iterator[tuple[int, int]]:
        """Streams and first rows of at most ``batch_size`` stretches that were never handed out; now they are."""
        left = batch_size
        for s, (low, count) in enumerate(zip(lows.tolist(), counts.tolist(), strict=True)):
            self._served[s] = max(self._served[s], low)
            while left and self._served[s] + length <= count:
                yield s, self._served[s]
                self._served[s] += length
                left -= 1

    def refresh(self, rows: Tensor, context: Mapping[str, Tensor]) -> None:
        """Write what the agent now remembers, "B T ...", at the rows of a batch (its ``rows``).

        Rows that are no longer stored are passed over.
        """
        values = {name: value.cpu().numpy() for name, value in context.items()}
        for b, (stream, first) in enumerate(rows.tolist()):
            length = len(next(iter(values.values()))[b])
            low = max(first, self._context(stream, self._counts[stream]))
            slots = np.arange(low, first + length) % self.slots
            for name, value in values.items():
                self._context_rows[stream][name][slots] = value[b, low - first :]

    def take(self, streams: Sequence[int], firsts: Sequence[int], length: int = 1) -> Batch:
        """The sequences of ``length`` rows that begin at row ``firsts[i]`` of stream ``streams[i]``."""
        for stream, first in zip(streams, firsts, strict=True):
            low, count = self._low(stream, self._counts[stream]), self._counts[stream]
            if not low <= first <= count - length:
                raise ReverieError(
                    f"replay: rows {first} to {first + length - 1} of stream {stream} are not stored; it has "
                    f"{low} to {count - 1}"
                )
        before = [
            max(first - 1, self._context(s, self._counts[s]))
            for s, first in zip(streams, firsts, strict=True)
        ]
        return self._gather(list(streams), list(firsts), before, length)

    def _draw(
        self, lows: np.ndarray, counts: np.ndarray, batch_size: int, length: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Streams and first rows, uniform over all places where ``length`` rows lie in one stream."""
        places = np.maximum(0, counts - lows - length + 1)
        ends = np.cumsum(places)
        if ends[-1] == 0:
            raise ReverieError(
                f"replay: a sequence needs {length} rows of one stream, and the longest has "
                f"{max(counts - lows)}; collect more before learning, or lower the sequence length"
            )
        picks = rng.integers(ends[-1], size=batch_size)
        streams = np.searchsorted(ends, picks, side="right")
        return streams, (lows + places - ends)[streams] + picks

    def _draw_pairs(
        self, lows: np.ndarray, counts: np.ndarray, n: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Streams and first rows of transitions: those drawn across an episode's start are drawn again."""
        streams, starts = self._draw(lows, counts, n, 2, rng)
        redraw = np.flatnonzero(self._is_first(streams, starts + 1))
        while len(redraw):
            again, rows = self._draw(lows, counts, len(redraw), 2, rng)
            streams[redraw], starts[redraw] = again, rows
            first = self._is_first(again, rows + 1)
            if first.all() and not self._any_pair(lows, counts):
                raise ReverieError(
                    "replay: a transition needs two rows of one episode, and none is stored; collect more first"
                )
            redraw = redraw[first]
        return streams, starts

    def _ends(self, streams: np.ndarray, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """One more than the last row of the episodes in which ``rows`` are, as far as there are ``counts``."""
        ends = counts[streams]
        for s in range(self.streams):
            mine = np.flatnonzero(streams == s)
            finished = self._finished_ends(s)
            place = np.searchsorted(finished, rows[mine], side="right")
            known = place < len(finished)
            ends[mine[known]] = np.minimum(finished[place[known]], ends[mine[known]])
        return ends

    def _finished_ends(self, stream: int) -> np.ndarray:
        """One more than the last row of each finished episode, in order."""
        finished = self._finished[stream]
        key = (len(finished), finished[-1][1] if finished else 0)
        if self._ends_cache.get(stream, (None, None))[0] != key:
            self._ends_cache[stream] = (key, np.array([end for _, end in list(finished)], np.int64))
        return self._ends_cache[stream][1]

    def _is_first(self, streams: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self._field("is_first", streams, rows)

    def _any_pair(self, lows: np.ndarray, counts: np.ndarray) -> bool:
        rows = [np.arange(low + 1, count) for low, count in zip(lows, counts, strict=True)]
        return any(not self._is_first(np.full(len(r), s), r).all() for s, r in enumerate(rows))

    def _field(self, name: str, streams: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """One small field of the rows numbered ``rows`` of ``streams``."""
        slots = rows % self.slots
        if self.streams == 1:
            return self.storage.steps[0][name][slots]
        out = np.empty((len(rows), *self.storage.dtype[name].shape), self.storage.dtype[name].base)
        for s in range(self.streams):
            mine = streams == s
            out[mine] = self.storage.steps[s][name][slots[mine]]
        return out

    def _draw_within(
        self, lows: np.ndarray, counts: np.ndarray, batch_size: int, length: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Streams and first rows inside of finished episodes, every episode equally likely."""
        episodes = [(s, *episode) for s in range(self.streams) for episode in self.episodes_of(s)]
        fitting = np.array([e for e in episodes if e[2] - e[1] >= length and e[1] >= lows[e[0]]], np.int64)
        if len(fitting) == 0:
            longest = max((end - first for _, first, end in episodes), default=0)
            raise ReverieError(
                f"replay: a sequence within an episode needs {length} rows, and the longest of "
                f"{len(episodes)} finished episodes has {longest}; lower the length, or collect more"
            )
        streams, firsts, ends = fitting[rng.integers(len(fitting), size=batch_size)].T
        return streams, firsts + rng.integers(ends - firsts - length + 1)

    def _gather_rows(self, streams: np.ndarray, rows: np.ndarray, before: np.ndarray) -> Batch:
        """The rows numbered ``rows`` "B T" as tensors, wherever they lie: for many short sequences. ``before`` is
        the row before the first of each, or that one itself where it is no longer stored."""
        slots = rows % self.slots
        obs = {
            key: torch.from_numpy(self._pick([columns[key] for columns in self.storage.obs], streams, slots))
            for key in self.obs_space
        }
        steps = self._pick(self._raw_steps, streams, slots).view(self.storage.dtype)[..., 0]
        fields = {name: np.ascontiguousarray(steps[name]) for name in FIELDS}
        prev = np.empty_like(fields["action"])
        prev[:, 1:] = fields["action"][:, :-1]
        known = (before < rows[:, 0])[:, None]
        prev[:, 0] = np.where(known, self._field("action", streams, before), 0)
        prev[fields["is_first"]] = 0
        t = {name: torch.from_numpy(value) for name, value in fields.items()}
        prev_action = torch.from_numpy(prev)
        return Batch(
            obs, t["action"], prev_action, t["reward"], t["is_first"], t["is_last"], t["is_terminal"]
        )

    def _pick(self, columns: list[np.ndarray], streams: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Rows ``slots`` "B T" of the columns of ``streams`` "B"."""
        if self.streams == 1:
            return columns[0][slots]
        out = np.empty((*slots.shape, *columns[0].shape[1:]), columns[0].dtype)
        for s, column in enumerate(columns):
            mine = streams == s
            out[mine] = column[slots[mine]]
        return out

    def _gather(self, streams: list[int], starts: list[int], before: list[int], length: int) -> Batch:
        """The rows as tensors; one contiguous copy per sequence and key."""
        n, obs = len(streams), {}
        for key, space in self.obs_space.items():
            out = self._buffer((n, length, *space.shape), space.dtype)
            self._copy([columns[key] for columns in self.storage.obs], streams, starts, length, out)
            obs[key] = torch.from_numpy(out)
        raw = np.empty((n, length, self.storage.dtype.itemsize), np.uint8)
        self._copy(self._raw_steps, streams, starts, length, raw)
        steps = raw.view(self.storage.dtype)[..., 0]
        fields = {name: np.ascontiguousarray(steps[name]) for name in FIELDS}
        prev = np.zeros((n, length, self.act_space.size), np.float32)
        prev[:, 1:] = fields["action"][:, :-1]
        for b in range(n):
            if before[b] < starts[b]:
                prev[b, 0] = self.storage.steps[streams[b]]["action"][before[b] % self.slots]
        prev[fields["is_first"]] = 0
        t = {name: torch.from_numpy(value) for name, value in fields.items()}
        prev_action = torch.from_numpy(prev)
        batch = Batch(
            obs, t["action"], prev_action, t["reward"], t["is_first"], t["is_last"], t["is_terminal"]
        )
        if self.context is None:
            return batch
        memory = np.zeros(n, self.context)
        for b in range(n):
            if before[b] < starts[b] and not fields["is_first"][b, 0]:
                memory[b] = self._context_rows[streams[b]][before[b] % self.slots]
        context = {name: torch.from_numpy(memory[name].copy()) for name in self.context.names or ()}
        rows = torch.tensor([streams, starts], dtype=torch.int64).t().contiguous()
        return batch._replace(rows=rows, context=context)

    def _copy(
        self, columns: list[np.ndarray], streams: list[int], starts: list[int], length: int, out: np.ndarray
    ) -> None:
        """Slices cost no more than the bytes they move; a fancy index of every row took a quarter longer."""
        for b, (s, start) in enumerate(zip(streams, starts, strict=True)):
            column, slot = columns[s], start % self.slots
            head = min(length, self.slots - slot)
            out[b, :head] = column[slot : slot + head]
            if head < length:  # runs over the end of the ring
                out[b, head:] = column[: length - head]

    def _buffer(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Memory for a batch: that of an earlier one to which nobody refers any more, else new.

        The system hands out new pages of this size at the price of the copy itself.
        """
        with self._pool_lock:
            buffers = self._pool.setdefault((shape, dtype), [])
            for i in range(len(buffers)):
                if sys.getrefcount(buffers[i]) <= 2:  # this list and the argument; a tensor would be a third
                    return buffers[i]
            fresh = np.empty(shape, dtype)
            if len(buffers) < 3:
                buffers.append(fresh)
            return fresh

    # --- episodes ------------------------------------------------------------------------------

    def episodes_of(self, stream: int) -> list[tuple[int, int]]:
        """First row and end (one more than the last row) of every finished episode that can be sampled."""
        low, finished = self._low(stream, self._counts[stream]), self._finished[stream]
        while finished and finished[0][0] < low:
            finished.popleft()
        return list(finished)

    def read(self, stream: int, first: int, end: int, obs: bool = True) -> dict[str, np.ndarray]:
        """Copies of rows ``first`` .. ``end - 1``: observations (if ``obs``) as ``obs/KEY``, other fields by name."""
        count = self._counts[stream]
        if (
            not self._context(stream, count)
            <= first
            <= end
            <= max(count, self.storage.marks[stream, RECORDED])
        ):
            raise ReverieError(
                f"replay: rows {first} to {end} of stream {stream} are not stored; "
                f"it holds {self._low(stream, count)} to {count}"
            )
        slots = np.arange(first, end) % self.slots
        keys = self.obs_space if obs else ()
        rows = {f"obs/{key}": self.storage.obs[stream][key][slots] for key in keys}
        steps = self.storage.steps[stream][slots]
        return rows | {name: np.ascontiguousarray(steps[name]) for name in FIELDS}

    def _index_episodes(self) -> None:
        """Find the finished episodes, and where the running one began, from the flags."""
        self._finished: list[deque[tuple[int, int]]] = []
        self._ends_cache: dict[int, tuple[Any, np.ndarray]] = {}
        self._starts: list[int] = []  # first row of the running episode; -1 between episodes
        for s, count in enumerate(self._counts):
            low = self._context(s, count)
            slots = np.arange(low, count) % self.slots
            first, last = (self.storage.steps[s][name][slots] for name in ("is_first", "is_last"))
            # A running episode whose start is gone gets a start that is not stored.
            start, finished = (low - 1 if low < count else -1), deque[tuple[int, int]]()
            for i in np.flatnonzero(first | last).tolist():
                if first[i]:
                    start = low + i
                if last[i]:
                    finished.append((start, low + i + 1))
                    start = -1
            self._finished.append(finished)
            self._starts.append(start)

    # --- going on after a stop ----------------------------------------------------------------

    def rewind(self, counts: list[int]) -> None:
        """Go back to the ``counts`` of a checkpoint; ``journal`` then has the rows that came after it."""
        where = f"the replay in {self.folder}" if self.folder else "the replay"
        recorded = [int(n) for n in self.storage.marks[:, RECORDED]]
        if len(counts) != self.streams:
            raise ReverieError(
                f"{where} has {self.streams} streams and the checkpoint {len(counts)}; use the same number"
            )
        for s, count in enumerate(counts):
            if not 0 <= count <= recorded[s]:
                raise ReverieError(
                    f"{where} holds {recorded[s]} rows of stream {s} and the checkpoint knew {count}; "
                    f"bring back the folder that belongs to the checkpoint, or start a new run"
                )
            if self.storage.floor(s) > max(0, count - self.size - 1):
                raise ReverieError(
                    f"{where} lost rows of stream {s} that the checkpoint could sample: "
                    f"{recorded[s] - count} were written after it, and its slack is {self.slack}; "
                    f"save more often, or start a new run"
                )
        self._counts = [int(n) for n in counts]
        self._index_episodes()

    def journal(self, stream: int) -> Iterator[tuple[Step, np.ndarray]]:
        """The recorded rows beyond ``counts[stream]``, in order: each step and the action chosen at it.

        Rows may be added while it runs; it ends where one of them differs from what was recorded.
        """
        at = self._counts[stream]
        while at < self.storage.marks[stream, RECORDED]:
            yield self._step(stream, at)
            at += 1

    def tail(self, stream: int) -> Tail:
        """The actions since the start of the stream's running episode, to bring its environment back there.

        Reset it with the episode's seed and play all but the last action: it shows ``obs``. The last one was
        chosen at ``obs``; whether it was played when the checkpoint was saved is for the driver to know.
        """
        start, count = self._starts[stream], self._counts[stream]
        if start < 0:
            return Tail(np.zeros((0, self.act_space.size), np.float32), None)
        if start < self._context(stream, count):
            raise ReverieError(
                f"replay: the running episode of stream {stream} is longer than the {self.size} rows kept, "
                f"so its environment can not be brought back; begin a new episode, or raise --replay-size"
            )
        actions = self.storage.steps[stream]["action"][np.arange(start, count) % self.slots]
        return Tail(actions, self._step(stream, count - 1)[0].obs)

    def _step(self, stream: int, at: int) -> tuple[Step, np.ndarray]:
        slot, columns = at % self.slots, self.storage.obs[stream]
        row = self.storage.steps[stream][slot].copy()
        step = Step(
            obs={key: columns[key][slot].copy() for key in self.obs_space},
            reward=np.array(row["reward"]),
            is_first=np.array(row["is_first"]),
            is_last=np.array(row["is_last"]),
            is_terminal=np.array(row["is_terminal"]),
            env_steps=np.array(row["env_steps"], np.int64),
        )
        return step, row["action"]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the counts, what agents remember, and without a folder also every row that is kept."""
        state: dict[str, Any] = {"counts": self.counts}
        if self.fresh_first:
            state["served"] = list(self._served)
        if self.context is not None:
            slots = [self._kept_slots(s) for s in range(self.streams)]
            state["context"] = [
                {name: rows[name][kept] for name in self.context.names or ()}
                for rows, kept in zip(self._context_rows, slots, strict=True)
            ]
        if self.folder is None:
            contexts = [self._context(s, count) for s, count in enumerate(self._counts)]
            state["rows"] = [self.read(s, contexts[s], count) for s, count in enumerate(self._counts)]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be as when ``state`` was taken; with a folder this is ``rewind`` and what agents remembered then."""
        if self.folder is not None:
            self.rewind(state["counts"])
            self._load_context(state)
            return
        fits = len(state["counts"]) == self.streams and all(
            np.shape(rows.get(f"obs/{key}"))[1:] == space.shape
            for rows in state.get("rows", [{}])
            for key, space in self.obs_space.items()
        )
        if not fits:
            raise ReverieError(
                "the saved replay is on disk, or has other streams or observations than this one in memory; "
                "use the settings it was saved with"
            )
        for s, (count, rows) in enumerate(zip(state["counts"], state["rows"], strict=True)):
            n = min(len(rows["reward"]), self.size + 1)
            slots, newest = np.arange(count - n, count) % self.slots, slice(len(rows["reward"]) - n, None)
            for key in self.obs_space:
                self.storage.obs[s][key][slots] = rows[f"obs/{key}"][newest]
            for name in FIELDS:
                self.storage.steps[s][name][slots] = rows[name][newest]
            self.storage.marks[s] = (count, count, 0, count - n)
        self._counts = [int(n) for n in state["counts"]]
        self._index_episodes()
        self._load_context(state)

    def _kept_slots(self, stream: int) -> np.ndarray:
        """The slots of the visible rows and the one before them, oldest first."""
        count = self._counts[stream]
        return np.arange(self._context(stream, count), count) % self.slots

    def _load_context(self, state: Mapping[str, Any]) -> None:
        if self.fresh_first:
            self._served = [int(n) for n in state["served"]]
        if self.context is None:
            return
        saved = state.get("context") or [{}] * self.streams
        for s, columns in enumerate(saved):
            for name in self.context.names or ():
                rows, found = self._context_rows[s], columns.get(name)
                if found is None or found.shape[1:] != rows[name].shape[1:]:
                    what = "nothing" if found is None else f"shape {found.shape[1:]}"
                    raise ReverieError(
                        f"the saved replay has {what} where this agent remembers {name!r} of shape "
                        f"{rows[name].shape[1:]}; use the agent and the sizes it was made with"
                    )
                kept = self._kept_slots(s)
                n = min(len(kept), len(found))
                rows[name][kept[len(kept) - n :]] = found[len(found) - n :]

    def flush(self) -> None:
        """Bring all rows to the disk itself, so that they also survive a power cut."""
        self.storage.sync()
        self._synced_at = time.monotonic()

    def _sync_aside(self) -> None:
        if self._syncing is None or not self._syncing.is_alive():
            self._synced_at = time.monotonic()
            self._syncing = threading.Thread(target=self.storage.sync, name="replay sync", daemon=True)
            self._syncing.start()

    def close(self) -> None:
        """Flush and give the folder free for another process; nothing can be added afterwards."""
        self.storage.close()
        self.storage.write = False
