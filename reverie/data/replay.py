"""Memory of experience: a bounded ring of rows per stream, in memory or on disk, with whole rows only.

Every stream (one environment, one after another in time) has a ring of its own. Rows are numbered for
ever, from 0; row ``i`` lies in slot ``i % slots``. With ``size = capacity // streams``::

         lost           context        visible: `sample` draws from these      journal
    ...............|       |        |                                    |                |
    0           floor   count-size-1  count-size                       count          recorded
                                                                         |                |
                                      what the checkpoint knew ----------+                |
                                      what was written before the kill -------------------+

- ``visible`` rows can be sampled, at most ``size`` of them. One row of ``context`` before them is kept for
  ``prev_action``.
- ``recorded`` counts whole rows on disk. It moves on after the row is written, so that a process killed at
  any moment leaves whole rows only. It is ahead of ``count`` only after ``rewind``: then ``journal`` yields
  the rows in between, to be ``add``-ed again instead of stepping the environment. A row added again with
  the same content is not written again; with other content it ends the journal.
- A ring has ``size + 1 + slack + 1`` slots: the visible rows, the context, ``slack`` rows that may be
  written after a checkpoint without touching what it could sample, and one slot that may be half written.
  ``rewind`` to ``count`` therefore works as long as ``recorded - count <= slack``.

On disk a folder holds ``replay.json`` (spaces, shapes, capacity, version), ``marks.raw`` (int64 "streams 4":
recorded, high, synced, floor), ``lock``, and per stream one raw file per observation key and one, ``step``, with
the small fields of a row and its checksum. They are sparse files of full size; real blocks are
reserved ahead of writing, so that a full disk is a sentence and not a SIGBUS.

What survives: a killed process loses nothing that was added. A power cut loses at most the rows since the last
sync, which happens at the end of an episode when the last one is more than ``SYNC_SECONDS`` ago, and in ``flush``
(call it before saving a checkpoint that should find these rows). After a power cut every row is checked.
"""

import errno
import json
import math
import mmap
import os
import shutil
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch

from reverie.types import ActionSpace, Batch, ObsSpace, ReverieError, Space, Step

try:
    import fcntl
except ImportError:  # Windows has no flock: a second writer is not noticed there
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
RESERVE = 16 * 2**20  # bytes of disk taken at once per stream, ahead of writing
SYNC_SECONDS = 5.0
RECORDED, HIGH, SYNCED, FLOOR = range(4)  # columns of marks
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Tail(NamedTuple):
    """The unfinished episode at the end of a stream."""

    actions: np.ndarray  # "k A" float32: one per row since the start of the episode; k = 0 between episodes
    obs: dict[str, np.ndarray] | None  # what the environment showed after all but the last of them


class Replay:
    """Rows of ``streams`` environments; ``capacity`` rows in all can be sampled.

    ``folder`` keeps the rows on disk, memory-mapped; opening it again goes on where it ended. Without a
    folder they are in memory. ``slack`` rows per stream may be added between two checkpoints (see above).
    """

    def __init__(
        self,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        capacity: int,
        streams: int = 1,
        folder: Path | None = None,
        slack: int = 0,
        reserve: int | None = None,
    ):
        if streams < 1 or capacity // max(streams, 1) < 2 or slack < 0:
            raise ReverieError(
                f"a replay needs at least 2 rows for each of its streams and slack >= 0, "
                f"got capacity {capacity}, streams {streams}, slack {slack}"
            )
        self.obs_space, self.act_space = dict(obs_space), act_space
        self.capacity, self.streams, self.slack = capacity, streams, slack
        self.size = capacity // streams
        self.slots = self.size + slack + 2
        self.folder = Path(folder) if folder is not None else None
        self._dtype = _step_dtype(act_space)
        self._lock: Any = None
        self._pool: dict[tuple, list[np.ndarray]] = {}
        if self.folder is None:
            self._columns = [self._in_memory() for _ in range(streams)]
            self._marks = np.zeros((streams, 4), np.int64)
        else:
            self._open_folder(max(1, (RESERVE if reserve is None else reserve) // self.row_bytes))
        self._counts = [int(n) for n in self._marks[:, RECORDED]]
        self._synced_at = time.monotonic()
        self._index_episodes()

    # --- what is there -------------------------------------------------------------------------

    @property
    def counts(self) -> list[int]:
        """Rows ever added to each stream (after ``rewind``: as if the later ones had not been)."""
        return list(self._counts)

    @property
    def rows(self) -> int:
        """Rows that can be sampled now."""
        return sum(count - self._low(s) for s, count in enumerate(self._counts))

    @property
    def episodes(self) -> int:
        """Finished episodes whose rows can all be sampled."""
        return sum(len(self._episodes_of(s)) for s in range(self.streams))

    @property
    def row_bytes(self) -> int:
        return self.bytes_per_row(self.obs_space, self.act_space)

    @property
    def bytes(self) -> int:
        """What the full ring takes, on disk or in memory."""
        return self.streams * self.slots * self.row_bytes

    @staticmethod
    def bytes_per_row(obs_space: ObsSpace, act_space: ActionSpace) -> int:
        return sum(space.bytes for space in obs_space.values()) + _step_dtype(act_space).itemsize

    @classmethod
    def capacity_for(cls, size: int, obs_space: ObsSpace, act_space: ActionSpace) -> int:
        """How many rows fit into ``size`` bytes."""
        return size // cls.bytes_per_row(obs_space, act_space)

    def _low(self, stream: int) -> int:
        """The oldest row that can be sampled."""
        return max(self._counts[stream] - self.size, self._floor(stream))

    def _floor(self, stream: int) -> int:
        """The oldest row that is still whole; one less than would fit, for the slot being written."""
        high = max(self._marks[stream, HIGH], self._marks[stream, RECORDED])
        return int(max(0, high - self.slots + 1, self._marks[stream, FLOOR]))

    # --- adding --------------------------------------------------------------------------------

    def add(self, step: Step, action: np.ndarray | None, stream: int = 0) -> None:
        """Append one row: ``step`` of one environment and the ``action`` "A" chosen at it (none at a last row)."""
        row = self._row(step, action, stream)
        at, columns = self._counts[stream], self._columns[stream]
        slot = at % self.slots
        if at < self._marks[stream, RECORDED]:
            if self._same(columns, slot, step.obs, row):
                self._count_up(stream, at, row)
                return
            self._marks[stream, RECORDED] = at  # another present: the recorded future is void
        if self.folder is not None:
            self._reserve(stream, slot)
        for key in self.obs_space:
            columns[key][slot] = step.obs[key]
        columns["step"][slot] = row
        if self.folder is not None:
            columns["step"]["check"][slot] = self._checksum(columns, at)
        self._marks[stream, RECORDED] = at + 1
        if at >= self._marks[stream, HIGH]:
            self._marks[stream, HIGH] = at + 1
        self._count_up(stream, at, row)
        if row["is_last"] and time.monotonic() - self._synced_at > SYNC_SECONDS:
            self.flush()

    def _row(self, step: Step, action: np.ndarray | None, stream: int) -> np.ndarray:
        """The small fields of a row, after every check."""
        for key, space in self.obs_space.items():
            value = step.obs.get(key)
            if value is None or value.shape != space.shape or (value.dtype == np.uint8) != space.is_image:
                got = "nothing" if value is None else f"{value.dtype} {value.shape}"
                raise ReverieError(f"replay: obs {key!r} should be {space.dtype} {space.shape}, got {got}")
            if not space.is_image and not np.isfinite(value).all():
                raise ReverieError(
                    f"replay: obs {key!r} of stream {stream} is not finite; mend the environment"
                )
        row = np.zeros((), self._dtype)
        if action is not None and not step.is_last:
            if np.shape(action) != (self.act_space.size,) or not np.isfinite(action).all():
                raise ReverieError(
                    f"replay: an action should be {self.act_space.size} finite numbers, got {action!r}"
                )
            row["action"] = action
        elif not step.is_last:
            raise ReverieError("replay: only the last row of an episode may come without an action")
        row["reward"] = step.reward
        row["env_steps"] = step.env_steps
        row["is_first"], row["is_last"], row["is_terminal"] = step.is_first, step.is_last, step.is_terminal
        if not math.isfinite(row["reward"]):
            raise ReverieError(f"replay: a reward of stream {stream} is not finite; mend the environment")
        if self._starts[stream] < 0 and not row["is_first"]:
            raise ReverieError(
                f"replay: stream {stream} is between episodes, so its next row should have is_first; add the reset"
            )
        return row

    def _count_up(self, stream: int, at: int, row: np.ndarray) -> None:
        if row["is_first"]:
            self._starts[stream] = at
        if row["is_last"]:
            self._finished[stream].append((self._starts[stream], at + 1))
            self._starts[stream] = -1
        self._counts[stream] = at + 1

    def _same(self, columns: dict[str, np.ndarray], slot: int, obs: Mapping, row: np.ndarray) -> bool:
        old = columns["step"][slot].copy()
        old["check"] = 0
        return old.tobytes() == row.tobytes() and all(
            np.array_equal(columns[key][slot], np.asarray(obs[key], space.dtype))
            for key, space in self.obs_space.items()
        )

    def _checksum(self, columns: dict[str, np.ndarray], at: int) -> int:
        """Of the row's content and its number, so that a row of an earlier lap is not taken for it."""
        slot = at % self.slots
        check = zlib.crc32(at.to_bytes(8, "little"))
        for key in self.obs_space:
            check = zlib.crc32(columns[key][slot : slot + 1], check)
        step = columns["step"][slot : slot + 1].copy()
        step["check"] = 0
        return zlib.crc32(step, check)

    # --- sampling ------------------------------------------------------------------------------

    def sample(
        self, batch_size: int, length: int, rng: np.random.Generator, within_episode: bool = False
    ) -> Batch:
        """``batch_size`` sequences of ``length`` rows, every possible start equally likely.

        Sequences may run across the starts of episodes; ``is_first`` marks these. With ``within_episode``
        they do not: a finished episode is drawn uniformly among those with at least ``length`` rows, then a start
        uniformly among 0 .. rows - length (PlaNet, Dreamer V1). ``prev_action`` of the first row is the real
        one, unless the row before is no longer stored. One thread may add while another samples.
        """
        while True:
            draw = self._draw_within if within_episode else self._draw
            streams, starts = draw(batch_size, length, rng)
            context = [max(self._floor(s), self._counts[s] - self.size - 1) for s in range(self.streams)]
            batch = self._gather(streams, starts, length, context)
            # Another thread may meanwhile have written over the oldest of these rows: then draw again.
            if all(
                max(start - 1, 0) >= self._floor(s) or start == context[s]
                for s, start in zip(streams, starts)
            ):
                return batch

    def _draw(self, batch_size: int, length: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        lows = np.array([self._low(s) for s in range(self.streams)])
        choices = np.maximum(0, np.array(self._counts) - lows - length + 1)
        ends = np.cumsum(choices)
        if ends[-1] == 0:
            most = max(count - self._low(s) for s, count in enumerate(self._counts))
            raise ReverieError(
                f"replay: a sequence needs {length} rows in one stream, and the longest stream has {most}; "
                f"collect more before learning, or lower the sequence length"
            )
        picks = rng.integers(ends[-1], size=batch_size)
        streams = np.searchsorted(ends, picks, side="right")
        starts = lows[streams] + picks - (ends - choices)[streams]
        return streams.tolist(), starts.tolist()

    def _draw_within(
        self, batch_size: int, length: int, rng: np.random.Generator
    ) -> tuple[list[int], list[int]]:
        episodes = [(s, a, b) for s in range(self.streams) for a, b in self._episodes_of(s)]
        fits = np.array([e for e in episodes if e[2] - e[1] >= length], np.int64).reshape(-1, 3)
        if len(fits) == 0:
            longest = max((b - a for _, a, b in episodes), default=0)
            raise ReverieError(
                f"replay: a sequence within one episode needs {length} rows, and the longest of the "
                f"{len(episodes)} finished episodes has {longest}; lower the sequence length or collect more"
            )
        streams, first, end = fits[rng.integers(len(fits), size=batch_size)].T
        starts = first + rng.integers(end - first - length + 1)
        return streams.tolist(), starts.tolist()

    def _gather(self, streams: list[int], starts: list[int], length: int, context: list[int]) -> Batch:
        n = len(streams)
        obs = {}
        for key, space in self.obs_space.items():
            out = self._buffer((n, length, *space.shape), np.dtype(space.dtype))
            self._copy(key, streams, starts, length, out)
            obs[key] = torch.from_numpy(out)
        step = np.empty((n, length), self._dtype)
        self._copy("step", streams, starts, length, step)
        prev = np.zeros((n, length, self.act_space.size), np.float32)
        prev[:, 1:] = step["action"][:, :-1]
        for b, (s, start) in enumerate(zip(streams, starts)):
            if start > context[s]:
                prev[b, 0] = self._columns[s]["step"]["action"][(start - 1) % self.slots]
        prev[step["is_first"]] = 0
        field = lambda name: torch.from_numpy(np.ascontiguousarray(step[name]))
        return Batch(
            obs,
            field("action"),
            torch.from_numpy(prev),
            field("reward"),
            field("is_first"),
            field("is_last"),
            field("is_terminal"),
        )

    def _copy(self, key: str, streams: list[int], starts: list[int], length: int, out: np.ndarray) -> None:
        """One contiguous copy per sequence, two where it runs over the end of the ring."""
        for b, (s, start) in enumerate(zip(streams, starts)):
            column, slot = self._columns[s][key], start % self.slots
            head = min(length, self.slots - slot)
            out[b, :head] = column[slot : slot + head]
            if head < length:
                out[b, head:] = column[: length - head]

    def _buffer(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Memory for a batch, used again once no tensor of an earlier batch refers to it.

        Fresh pages of this size cost as much as the copy itself.
        """
        buffers = self._pool.setdefault((shape, dtype), [])
        for i in range(len(buffers)):
            if sys.getrefcount(buffers[i]) <= 2:  # the list and the argument
                return buffers[i]
        fresh = np.empty(shape, dtype)
        if len(buffers) < 4:
            buffers.append(fresh)
        return fresh

    # --- going on after a stop ----------------------------------------------------------------

    def rewind(self, counts: list[int]) -> None:
        """Go back to the ``counts`` of a checkpoint; ``journal`` then has the rows that came after it."""
        recorded = [int(n) for n in self._marks[:, RECORDED]]
        where = f"the replay in {self.folder}" if self.folder else "the replay"
        if len(counts) != self.streams:
            raise ReverieError(
                f"{where} has {self.streams} streams, the checkpoint {len(counts)}; use the same number"
            )
        for s, count in enumerate(counts):
            if not 0 <= count <= recorded[s]:
                raise ReverieError(
                    f"{where} holds {recorded[s]} rows of stream {s}, and the checkpoint knew {count}; "
                    f"bring back the folder that belongs to the checkpoint, or start a new run"
                )
            if max(0, count - self.size - 1) < self._floor(s):
                raise ReverieError(
                    f"{where} went {recorded[s] - count} rows beyond the checkpoint in stream {s} and wrote over rows "
                    f"it needs (slack is {self.slack}); save more often, or start a new run"
                )
        self._counts = [int(n) for n in counts]
        self._index_episodes()

    def journal(self, stream: int) -> Iterator[tuple[Step, np.ndarray]]:
        """The recorded rows beyond ``counts[stream]``, in order: each step and the action chosen at it."""
        at = self._counts[stream]
        while at < self._marks[stream, RECORDED]:
            yield self._read(stream, at)
            at += 1

    def tail(self, stream: int) -> Tail:
        """The actions since the start of this stream's unfinished episode, to bring an environment back there."""
        start, count = self._starts[stream], self._counts[stream]
        if start < 0:
            return Tail(np.zeros((0, self.act_space.size), np.float32), None)
        if start < self._floor(stream):
            raise ReverieError(
                f"replay: the running episode of stream {stream} is longer than the {self.size} rows kept of it, so "
                f"its environment can not be brought back; start it anew or raise --replay-size"
            )
        slots = np.arange(start, count) % self.slots
        return Tail(self._columns[stream]["step"]["action"][slots], self._read(stream, count - 1)[0].obs)

    def _read(self, stream: int, at: int) -> tuple[Step, np.ndarray]:
        columns, slot = self._columns[stream], at % self.slots
        row = columns["step"][slot].copy()
        fields = ("reward", "is_first", "is_last", "is_terminal")
        step = Step(
            {key: columns[key][slot].copy() for key in self.obs_space},
            *(np.array(row[name]) for name in fields),
            env_steps=np.array(row["env_steps"], np.int64),
        )
        return step, row["action"]

    def _index_episodes(self) -> None:
        """Find the finished episodes, and where the running one began, from the flags."""
        self._finished: list[deque[tuple[int, int]]] = []
        self._starts: list[int] = []  # first row of the running episode; -1 between episodes
        for s, count in enumerate(self._counts):
            low = max(self._floor(s), count - self.size - 1)
            step = self._columns[s]["step"]
            slots = np.arange(low, count) % self.slots
            start, finished = (low - 1 if low else -1), deque[tuple[int, int]]()
            first, last = step["is_first"][slots], step["is_last"][slots]
            for i in np.flatnonzero(first | last):
                if first[i]:
                    start = low + int(i)
                if last[i]:
                    finished.append((start, low + int(i) + 1))
                    start = -1
            self._finished.append(finished)
            self._starts.append(start)

    def _episodes_of(self, stream: int) -> list[tuple[int, int]]:
        low, finished = self._low(stream), self._finished[stream]
        while finished and finished[0][0] < low:
            finished.popleft()
        return list(finished)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the counts, and without a folder also the rows."""
        state: dict[str, Any] = {"counts": self.counts}
        if self.folder is None:
            state["rows"] = []
            for s, count in enumerate(self._counts):
                low = max(self._floor(s), count - self.size - 1)
                slots = np.arange(low, count) % self.slots
                rows = {f"obs/{key}": self._columns[s][key][slots] for key in self.obs_space}
                rows |= {
                    name: np.ascontiguousarray(self._columns[s]["step"][name][slots])
                    for name in self._dtype.names or ()
                    if name != "check"
                }
                state["rows"].append(rows)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to such a state. On disk this is ``rewind``."""
        counts = [int(n) for n in state["counts"]]
        if self.folder is not None:
            self.rewind(counts)
            return
        if len(counts) != self.streams or "rows" not in state:
            raise ReverieError(
                f"this state is of a replay with {len(counts)} streams{'' if 'rows' in state else ' on disk'}, "
                f"this one has {self.streams} in memory; make it the same way"
            )
        for s, (count, rows) in enumerate(zip(counts, state["rows"])):
            n = min(len(rows["reward"]), self.size + 1)
            slots = np.arange(count - n, count) % self.slots
            for key, space in self.obs_space.items():
                if rows[f"obs/{key}"].shape[1:] != space.shape:
                    raise ReverieError(
                        f"the saved replay has another shape of obs {key!r}; make it the same way"
                    )
                self._columns[s][key][slots] = rows[f"obs/{key}"][len(rows["reward"]) - n :]
            for name in self._dtype.names or ():
                if name != "check":
                    self._columns[s]["step"][name][slots] = rows[name][len(rows["reward"]) - n :]
            self._marks[s] = (count, count, 0, count - n)
        self._counts = counts
        self._index_episodes()

    # --- on disk -------------------------------------------------------------------------------

    def _in_memory(self) -> dict[str, np.ndarray]:
        try:
            columns = {k: np.zeros((self.slots, *v.shape), v.dtype) for k, v in self.obs_space.items()}
            return columns | {"step": np.zeros(self.slots, self._dtype)}
        except MemoryError:
            raise ReverieError(
                f"a replay of {self.bytes} bytes is too large for memory; lower --replay-size"
            ) from None

    def _open_folder(self, reserve_rows: int) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._reserve_rows = reserve_rows
        self._lock = _locked(self.folder)
        self._columns = []
        for s in range(self.streams):
            columns = {}
            for name, (shape, dtype) in self._files().items():
                columns[name] = _mapped(self._path(name, s), (self.slots, *shape), dtype)
            self._columns.append(columns)
        self._marks = _mapped(self.folder / "marks.raw", (self.streams, 4), np.dtype(np.int64))
        self._reserved = [int(min(self._marks[s, HIGH], self.slots)) for s in range(self.streams)]

    def _files(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        files = {key: (space.shape, np.dtype(space.dtype)) for key, space in self.obs_space.items()}
        return files | {"step": ((), self._dtype)}

    def _path(self, name: str, stream: int) -> Path:
        assert self.folder is not None
        kind = "" if name == "step" else "obs."
        return self.folder / f"{kind}{quote(name, safe='')}.{stream}.raw"

    def _reserve(self, stream: int, slot: int) -> None:
        """Take real disk blocks for the next rows, so that writing through the map can not fail."""
        if slot < self._reserved[stream]:
            return
        first, end = slot, min(self.slots, slot + self._reserve_rows)
        try:
            for name, (shape, dtype) in self._files().items():
                size = int(np.prod(shape)) * dtype.itemsize
                _take(self._path(name, stream), first * size, (end - first) * size)
        except OSError as error:
            if error.errno not in FULL:
                raise
            free = shutil.disk_usage(str(self.folder)).free
            raise ReverieError(
                f"disk full: the replay in {self.folder} needs {(end - first) * self.row_bytes} more bytes and "
                f"{free} are free; free {self.bytes - first * self.row_bytes} bytes or lower --replay-size; "
                f"everything up to row {self._counts[stream]} of stream {stream} is safe"
            ) from None
        self._reserved[stream] = end

    def flush(self) -> None:
        """Bring all rows to the disk itself, so that they also survive a power cut."""
        if self.folder is None:
            return
        recorded = self._marks[:, RECORDED].copy()
        for s in range(self.streams):
            if recorded[s] != self._marks[s, SYNCED]:
                for name in self._files():
                    _sync(self._path(name, s))
        self._marks[:, SYNCED] = recorded
        _sync(self.folder / "marks.raw")
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Flush and give the folder free for others. A closed replay can not be used again."""
        if self._lock is not None:
            self.flush()
            self._lock.close()
            self._lock = None


def _step_dtype(act_space: ActionSpace) -> np.dtype:
    return np.dtype(
        [
            ("action", np.float32, (act_space.size,)),
            ("reward", np.float32),
            ("env_steps", np.int32),
            ("check", np.uint32),
            ("is_first", np.bool_),
            ("is_last", np.bool_),
            ("is_terminal", np.bool_),
        ],
        align=True,
    )


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A file of this size, made if need be, as an array in shared memory."""
    size = int(np.prod(shape)) * dtype.itemsize
    with open(path, "a+b") as file:
        file.truncate(size)
        # A plain array: slices of np.memmap cost several times more.
        return np.frombuffer(mmap.mmap(file.fileno(), size), dtype).reshape(shape)


def _take(path: Path, offset: int, size: int) -> None:
    with open(path, "r+b", buffering=0) as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), offset, size)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
        file.seek(offset)
        while size > 0:  # where blocks can not be reserved (macOS, some file systems) zeros take their place
            size -= file.write(bytes(min(size, 2**20)))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        getattr(os, "fdatasync", os.fsync)(fd)
    finally:
        os.close(fd)


def _locked(folder: Path) -> Any:
    file = open(folder / "lock", "a+b")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ReverieError(
                f"the replay in {folder} is being written by another process; stop it or use another folder"
            ) from None
    return file
