"""Where a replay keeps its rows: arrays in memory, or files mapped into memory that survive a stop.

A folder holds, for S streams of ``slots`` rows each,

- ``replay.json``: the spaces, the sizes and the version of the format;
- ``obs.KEY.S.raw`` per observation key and stream: a plain array "slots ..." of that space;
- ``step.S.raw`` per stream: an array "slots" of the small fields of a row and a checksum (``step_dtype``);
- ``marks.raw``: int64 "S 4", the four numbers that say which rows are whole (RECORDED, HIGH, SYNCED, FLOOR);
- ``lock``: held by the one process that writes; it names the boot of the machine until it is closed well.

The files are sparse and of full size from the start. Blocks for the next rows are reserved before they are
written, so that a full disk is a sentence and not a SIGBUS. Where a file system can not reserve, zeros are
written instead; where it copies on write (btrfs, ZFS) the promise is as good as the file system's.
"""

import contextlib
import errno
import json
import mmap
import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from reverie.types import ActionSpace, ObsSpace, ReverieError, Space

try:
    import fcntl
except ImportError:  # Windows has no flock: a second writer is not noticed there
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
RESERVE = 16 * 2**20  # bytes of disk taken at once per stream, ahead of writing
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Columns of the marks. Rows FLOOR .. RECORDED - 1 are whole, less those that a later lap wrote over.
RECORDED = 0  # rows written; moves on after the row is whole
HIGH = 1  # the most rows ever written: what lies HIGH - slots back is gone
SYNCED = 2  # rows that are on the disk itself, and not only in the system's memory
FLOOR = 3  # rows below were lost some other way


def step_dtype(act_space: ActionSpace) -> np.dtype:
    """The small fields of a row, without gaps."""
    return np.dtype(
        [
            ("action", np.float32, (act_space.size,)),
            ("reward", np.float32),
            ("env_steps", np.int32),
            ("check", np.uint32),
            ("is_first", np.bool_),
            ("is_last", np.bool_),
            ("is_terminal", np.bool_),
            ("spare", np.bool_),
        ]
    )


class Storage:
    """``obs[stream][key]`` and ``steps[stream]``, arrays of ``slots`` rows, and ``marks``."""

    def __init__(
        self,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        capacity: int,
        streams: int,
        slack: int,
        folder: Path | None,
        reserve: int | None = None,
        write: bool = True,
    ):
        self.obs_space = {key: obs_space[key] for key in sorted(obs_space)}
        self.dtype = step_dtype(act_space)
        self.streams, self.folder, self.write = streams, folder, write
        self.slots = capacity // streams + slack + 2
        self._lock: Any = None
        self._sync_lock = threading.Lock()
        if folder is None:
            self._make_in_memory()
            return
        about = _describe(obs_space, act_space, capacity, streams, slack)
        self.row_bytes = sum(space.bytes for space in obs_space.values()) + self.dtype.itemsize
        self._reserve_rows = max(1, (RESERVE if reserve is None else reserve) // self.row_bytes)
        try:
            self._open(folder, about)
        except OSError as error:
            self.close(clean=False)
            what = "disk full" if error.errno in FULL else error.strerror or str(error)
            raise ReverieError(
                f"the replay folder {folder} can not be used ({what}); mend that or choose another folder"
            ) from error
        except BaseException:
            self.close(clean=False)
            raise

    def _make_in_memory(self) -> None:
        self.obs, self.steps = [], []
        self.marks = np.zeros((self.streams, 4), np.int64)
        try:
            for _ in range(self.streams):
                self.obs.append(
                    {k: np.zeros((self.slots, *v.shape), v.dtype) for k, v in self.obs_space.items()}
                )
                self.steps.append(np.zeros(self.slots, self.dtype))
        except MemoryError:
            raise ReverieError(
                f"a replay of {self.streams} x {self.slots} rows is too large for memory; lower --replay-size"
            ) from None

    # --- a folder ------------------------------------------------------------------------------

    def _open(self, folder: Path, about: dict[str, Any]) -> None:
        if self.write:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
        old = read_about(folder)
        if old is None:
            marks = folder / "marks.raw"
            if marks.exists() and np.fromfile(marks, np.int64).any():
                raise ReverieError(
                    f"the replay in {folder} has rows but no replay.json; bring it back or delete the folder"
                )
        elif old != about:
            _refuse_other(folder, old, about)
        shapes = {key: (space.shape, np.dtype(space.dtype)) for key, space in self.obs_space.items()}
        access = mmap.ACCESS_WRITE if self.write else mmap.ACCESS_READ
        self.marks = _mapped(folder / "marks.raw", (self.streams, 4), np.dtype(np.int64), old is None, access)
        if old is None:
            _take(folder / "marks.raw", 0, self.marks.nbytes)
        elif old["capacity"] != about["capacity"] or old["slack"] != about["slack"]:
            self._resize(folder, old, about)
        new, self.obs, self.steps = old is None, [], []
        for s in range(self.streams):
            self.obs.append(
                {
                    key: _mapped(self._obs_path(key, s), (self.slots, *shape), dtype, new, access)
                    for key, (shape, dtype) in shapes.items()
                }
            )
            self.steps.append(_mapped(self._step_path(s), (self.slots,), self.dtype, new, access))
        self._reserved = [int(min(high, self.slots)) for high in self.marks[:, HIGH]]
        if self.write:
            self._recover()
            _write_about(folder, about)
            self._mark_lock(_boot())

    def _resize(self, folder: Path, old: dict[str, Any], about: dict[str, Any]) -> None:
        """Another capacity. Rows keep their slots as long as no ring has gone round."""
        slots = old["capacity"] // old["streams"] + old["slack"] + 2
        if not self.write or int(self.marks[:, HIGH].max()) >= min(slots, self.slots):
            raise ReverieError(
                f"the replay in {folder} has capacity {old['capacity']} and slack {old['slack']} "
                f"and is too full to be changed to {about['capacity']} and {about['slack']}; "
                f"use the old numbers or a new folder"
            )
        if self.slots < slots:
            _write_about(folder, about)  # a file may be longer than described, never shorter
        for s in range(self.streams):
            for path, row in self._files(s):
                os.truncate(path, self.slots * row)

    def _files(self, stream: int) -> Iterator[tuple[Path, int]]:
        """Every file of a stream with the bytes of one row in it."""
        for key, space in self.obs_space.items():
            yield self._obs_path(key, stream), space.bytes
        yield self._step_path(stream), self.dtype.itemsize

    def _obs_path(self, key: str, stream: int) -> Path:
        assert self.folder is not None
        return self.folder / f"obs.{quote(key, safe='')}.{stream}.raw"

    def _step_path(self, stream: int) -> Path:
        assert self.folder is not None
        return self.folder / f"step.{stream}.raw"

    # --- rows ----------------------------------------------------------------------------------

    def floor(self, stream: int) -> int:
        """The oldest row that is whole. One slot is left out: it may be half written."""
        marks = self.marks[stream]
        return max(0, int(max(marks[RECORDED], marks[HIGH])) - self.slots + 1, int(marks[FLOOR]))

    def put(self, stream: int, at: int, obs: dict[str, np.ndarray], row: np.ndarray) -> None:
        """Write row number ``at`` of ``stream``; it counts only once it is whole."""
        slot, marks = at % self.slots, self.marks[stream]
        if self.folder is not None:
            self._reserve(stream, at)
        if at < marks[RECORDED]:
            with self._sync_lock:
                marks[SYNCED] = min(marks[SYNCED], at)
                marks[RECORDED] = at
        for key, column in self.obs[stream].items():
            column[slot] = obs[key]
        self.steps[stream][slot] = row
        if self.folder is not None:
            self.steps[stream]["check"][slot] = self.checksum(stream, at)
        marks[RECORDED] = at + 1
        if at >= marks[HIGH]:
            marks[HIGH] = at + 1

    def checksum(self, stream: int, at: int) -> int:
        """Of a row's content and its number, so that a row of an earlier lap is not taken for it."""
        slot = at % self.slots
        step = self.steps[stream][slot].copy()
        step["check"] = 0
        check = zlib.crc32(step.tobytes(), at % 2**32)
        for column in self.obs[stream].values():
            check = zlib.crc32(column[slot : slot + 1].data, check)
        return check

    def _recover(self) -> None:
        """After a stop without ``close`` drop broken rows; only after a power cut are all looked at."""
        self._lock.seek(0)
        boot = self._lock.read().decode(errors="replace")
        if not boot:
            return
        for s in range(self.streams):
            recorded, _, synced, _ = (int(n) for n in self.marks[s])
            for at in range(self.floor(s) if boot != _boot() else max(synced, self.floor(s)), recorded):
                if self.steps[s]["check"][at % self.slots] == self.checksum(s, at):
                    continue
                if at >= synced:
                    self.marks[s, RECORDED] = at
                    break
                self.marks[s, FLOOR] = at + 1

    def _reserve(self, stream: int, at: int) -> None:
        """Take real disk blocks for the next rows, so that writing through the map can not fail."""
        slot = at % self.slots
        if slot < self._reserved[stream]:
            return
        end = min(self.slots, slot + self._reserve_rows)
        try:
            for path, row in self._files(stream):
                _take(path, slot * row, (end - slot) * row)
        except OSError as error:
            if error.errno not in FULL:
                raise
            assert self.folder is not None
            free = shutil.disk_usage(self.folder).free
            need = sum(self.slots - min(n, self.slots) for n in self._reserved) * self.row_bytes
            raise ReverieError(
                f"disk full: {free} bytes are free and the replay in {self.folder} will need {need} more; "
                f"free {max(1, need - free)} bytes or lower --replay-size; everything up to row {at} is safe"
            ) from None
        self._reserved[stream] = end

    def sync(self) -> None:
        """Bring all rows to the disk itself, so that they also survive a power cut."""
        if self.folder is None or not self.write:
            return
        with self._sync_lock:
            recorded = self.marks[:, RECORDED].copy()
            for s in np.flatnonzero(recorded != self.marks[:, SYNCED]):
                for path, _ in self._files(int(s)):
                    _sync(path)
            self.marks[:, SYNCED] = recorded
            _sync(self.folder / "marks.raw")

    def close(self, clean: bool = True) -> None:
        """Give the folder free for another process."""
        if self._lock is None:
            return
        if clean:
            self.sync()
            self._mark_lock("")
        self._lock.close()
        self._lock = None

    def _mark_lock(self, text: str) -> None:
        self._lock.seek(0)
        self._lock.truncate()
        self._lock.write(text.encode())
        self._lock.flush()
        os.fsync(self._lock.fileno())


def read_about(folder: Path) -> dict[str, Any] | None:
    """What ``replay.json`` says, None if there is none."""
    try:
        about = json.loads((folder / "replay.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ReverieError(
                f"the replay in {folder} has format {about['format']}, this version reads {FORMAT}; update it"
            )
        return about
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ReverieError(
            f"{folder / 'replay.json'} is damaged ({error}); bring it back from a copy"
        ) from error


def spaces(about: dict[str, Any]) -> tuple[dict[str, Space], ActionSpace]:
    obs = {key: Space(tuple(item["shape"]), item["dtype"]) for key, item in about["obs"].items()}
    return obs, ActionSpace(about["action"]["size"], tuple(about["action"]["groups"]))


def _describe(
    obs_space: ObsSpace, act_space: ActionSpace, capacity: int, streams: int, slack: int
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "obs": {key: {"shape": list(s.shape), "dtype": s.dtype} for key, s in sorted(obs_space.items())},
        "action": {"size": act_space.size, "groups": list(act_space.groups)},
        "capacity": capacity,
        "streams": streams,
        "slack": slack,
        "step": [[name, *map(str, rest)] for name, *rest in step_dtype(act_space).descr],
    }


def _write_about(folder: Path, about: dict[str, Any]) -> None:
    temporary = folder / "replay.json.writing"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(about, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "replay.json")


def _refuse_other(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """One sentence on what can not be changed in a replay that exists."""
    for key in sorted({*old["obs"], *new["obs"]}):
        if old["obs"].get(key) != new["obs"].get(key):
            what = lambda about: (
                "{dtype} {shape}".format(**about["obs"][key]) if key in about["obs"] else "not there"  # noqa: B023
            )
            difference = f"obs {key!r} was {what(old)} and is now {what(new)}"
            break
    else:
        if old["action"] != new["action"]:
            difference = f"the action space was {old['action']} and is now {new['action']}"
        elif old["streams"] != new["streams"]:
            difference = f"it has {old['streams']} streams, and {new['streams']} are wanted now"
        else:
            return
    raise ReverieError(
        f"the replay in {folder} can not be continued: {difference}; "
        f"use the settings it was made with, or a new folder"
    )


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype, new: bool, access: int) -> np.ndarray:
    """The file at ``path`` as an array. A plain one: slices of np.memmap cost several times more."""
    size = int(np.prod(shape)) * dtype.itemsize
    if not new and (not path.exists() or path.stat().st_size < size):
        raise ReverieError(
            f"the replay file {path} is missing or too short; bring it back or start a new run"
        )
    write = access == mmap.ACCESS_WRITE
    with open(path, "w+b" if new else "r+b" if write else "rb") as file:
        if write:
            file.truncate(size)
        return np.frombuffer(mmap.mmap(file.fileno(), size, access=access), dtype).reshape(shape)


def _take(path: Path, offset: int, size: int) -> None:
    """Make sure that ``size`` bytes at ``offset`` can be written; what is there already may be lost."""
    with open(path, "r+b", buffering=0) as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), offset, size)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
        file.seek(offset)
        while size > 0:
            size -= file.write(bytes(min(size, 2**20)))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        getattr(os, "fdatasync", os.fsync)(fd)
    finally:
        os.close(fd)


def _boot() -> str:
    """A name for the time since the machine was started, the same for all its processes."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return "unknown"


def _locked(folder: Path) -> Any:
    file = open(folder / "lock", "a+b")  # noqa: SIM115 (held as long as the replay is open)
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ReverieError(
                f"the replay in {folder} is being written by another process; stop it or use another folder"
            ) from None
    return file
