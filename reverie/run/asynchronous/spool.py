"""Rows on their way from a robot to its learner: files that survive both, and hold what the learner can not take.

A folder holds

- ``spool.json``: the spaces, the rate of decisions, the version of the format;
- ``rows-000000000000.raw``: rows of one size, the number of the first in the name; begun anew every SEGMENT rows;
- ``taken.json``: how many rows the learner has for good. It is the learner's; all else is the robot's.

Rows are numbered for ever, as they are in the learner's replay: a learner that comes back asks for the rows after
its last, so none is taken twice and none is left out. A row is written before its action is sent, with a checksum;
one that was being written when the process was killed never was sent, and is cut off. What is written survives the
process; at the end of a segment it is brought to the disk itself, so that a power cut loses a segment at most.
"""

import itertools
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from reverie.data.storage import FULL
from reverie.run.folder import read_json, write_json
from reverie.types import ActionSpace, ObsSpace, ReverieError, Space, Step

FORMAT = 1
SEGMENT = 256  # rows
FLAGS = ("is_first", "is_last", "is_terminal")


class SpoolFull(ReverieError):
    """There is no room for another row until the learner has taken some."""


def row_dtype(obs_space: ObsSpace, act_space: ActionSpace) -> np.dtype:
    """One row, without gaps. ``decisions`` are those made before it, in all."""
    obs = [(f"obs/{key}", np.dtype(obs_space[key].dtype), obs_space[key].shape) for key in sorted(obs_space)]
    return np.dtype(
        [
            *obs,
            ("action", np.float32, (act_space.size,)),
            ("reward", np.float32),
            *((flag, np.bool_) for flag in FLAGS),
            ("spare", np.bool_),
            ("number", np.int64),
            ("decisions", np.int64),
            ("check", np.uint32),
        ]
    )


def checksum(row: np.ndarray | np.void) -> int:
    """Of all of a row but the checksum itself."""
    return zlib.crc32(row.tobytes()[: -row.dtype["check"].itemsize])


class Spool:
    """The robot's end. ``size`` bytes are the most that rows which the learner has not taken may need."""

    def __init__(self, folder: Path, obs_space: ObsSpace, act_space: ActionSpace, rate: float, size: int):
        self.folder, self.dtype = Path(folder), row_dtype(obs_space, act_space)
        self.most = size // self.dtype.itemsize  # rows
        if self.most < 2 * SEGMENT:
            raise ReverieError(
                f"--spool-size {size} bytes is too small: {2 * SEGMENT * self.dtype.itemsize} are needed at least"
            )
        about = describe(obs_space, act_space, rate)
        before = read_json(self.folder / "spool.json")
        if before and before != about:
            raise ReverieError(
                f"{folder} holds the rows of another robot (its spaces or its rate differ); name a new --run folder"
            )
        write_json(self.folder / "spool.json", about)
        self.last: np.ndarray | np.void | None = None  # the newest row
        self.number = self._recover()  # of the next row
        self.taken = 0
        self._file: int | None = None
        self.tidy()

    @property
    def decisions(self) -> int:
        """Decisions made so far, by all sittings."""
        return 0 if self.last is None else int(self.last["decisions"]) + (not self.last["is_last"])

    @property
    def room(self) -> int:
        """Rows that can still be written."""
        return self.most - (self.number - self.taken)

    def add(self, step: Step, action: np.ndarray) -> None:
        """Write one row and the ``action`` "A" chosen at it. Raises ``SpoolFull``, and has written nothing then."""
        if self.room < 1:
            raise SpoolFull(f"the spool in {self.folder} is full: the learner has not taken {self.most} rows")
        row = np.zeros((), self.dtype)
        for key, value in step.obs.items():
            row[f"obs/{key}"] = value
        row["action"], row["reward"] = action, step.reward
        for flag in FLAGS:
            row[flag] = getattr(step, flag)
        row["number"], row["decisions"] = self.number, self.decisions
        row["check"] = checksum(row)
        self._write(row.tobytes())
        self.last = row
        self.number += 1
        if self.number % SEGMENT == 0:
            self._finish()

    def _write(self, data: bytes) -> None:
        if self._file is None:
            path = self.folder / f"rows-{self.number:012d}.raw"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            self._begin, self._path = self.number, path
        at = (self.number - self._begin) * self.dtype.itemsize
        try:
            if os.pwrite(self._file, data, at) != len(data):
                raise OSError(FULL[0], "No space left on device")
        except OSError as error:
            os.ftruncate(self._file, at)
            if error.errno in FULL:
                raise SpoolFull(f"the disk of the spool {self.folder} is full") from None
            raise

    def _finish(self) -> None:
        """Leave this file and let it come to the disk, beside the clock."""
        file, self._file = self._file, None
        if file is not None:
            threading.Thread(target=_sync_and_close, args=(file,), name="spool sync", daemon=True).start()

    def tidy(self) -> None:
        """Look at how far the learner is, and remove what it has; the newest file stays."""
        self.taken = max(self.taken, int(read_json(self.folder / "taken.json").get("rows", 0)))
        found = segments(self.folder)
        for (_, path), (end, _) in itertools.pairwise(found):
            if end <= self.taken:
                path.unlink(missing_ok=True)

    def _recover(self) -> int:
        """After a stop: cut off what is not a whole row; the number of the next one."""
        found = segments(self.folder)
        if not found:
            return int(read_json(self.folder / "taken.json").get("rows", 0))
        for first, path in reversed(found):
            rows = np.fromfile(path, self.dtype)
            n = whole(rows, first)
            os.truncate(path, n * self.dtype.itemsize)
            if n:
                self.last = rows[n - 1]
                return first + n
            path.unlink()
        return found[0][0]

    def close(self) -> None:
        self._finish()


def _sync_and_close(file: int) -> None:
    try:
        os.fsync(file)
    finally:
        os.close(file)


class Intake:
    """The learner's end: reads what is there, in order, and says what it has."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        about = read_json(self.folder / "spool.json")
        if not about:
            raise ReverieError(f"there is no spool.json in {folder} yet; start the robot's side first")
        if about.get("format") != FORMAT:
            raise ReverieError(f"the spool in {folder} has another format than {FORMAT}; update reverie")
        self.obs_space = {k: Space(tuple(v["shape"]), v["dtype"]) for k, v in about["obs"].items()}
        self.act_space = ActionSpace(about["action"]["size"], tuple(about["action"]["groups"]))
        self.rate = float(about["rate"])
        self.dtype = row_dtype(self.obs_space, self.act_space)

    def rows(self, first: int) -> Iterator[tuple[Step, np.ndarray, int]]:
        """Every whole row from number ``first`` on: the step, the action chosen at it, the decisions before it.

        Raises ``ReverieError`` if rows from there on are gone.
        """
        found = [(begin, path) for begin, path in segments(self.folder)]
        at = max((i for i, (begin, _) in enumerate(found) if begin <= first), default=-1)
        if at < 0 and found:
            raise ReverieError(
                f"the spool in {self.folder} begins at row {found[0][0]}, and the learner has {first}: the rows "
                f"between are gone; this learner belongs to another run, or its replay was lost"
            )
        for begin, path in found[max(at, 0) :]:
            if begin > first:
                raise ReverieError(f"the spool in {self.folder} has no row {first}; bring the file back")
            try:
                with open(path, "rb") as file:
                    file.seek((first - begin) * self.dtype.itemsize)
                    rows = np.frombuffer(_whole_rows(file.read(), self.dtype), self.dtype)
            except FileNotFoundError:  # removed meanwhile: we have said that we have it
                return
            n = whole(rows, first)
            for row in rows[:n]:
                yield self._step(row), row["action"].copy(), int(row["decisions"])
            first += n

    def _step(self, row: np.void) -> Step:
        obs = {key: np.array(row[f"obs/{key}"]) for key in self.obs_space}
        flags = {flag: np.array(row[flag]) for flag in FLAGS}
        taken = np.array(not row["is_first"], np.int64)
        return Step(obs, reward=np.array(row["reward"]), **flags, env_steps=taken)

    def say_taken(self, rows: int) -> None:
        """That many rows are with the learner for good, and may be removed."""
        write_json(self.folder / "taken.json", {"rows": rows})


def _whole_rows(data: bytes, dtype: np.dtype) -> bytes:
    return data[: len(data) // dtype.itemsize * dtype.itemsize]


def whole(rows: np.ndarray, first: int) -> int:
    """How many of ``rows``, the first of which should have number ``first``, are whole."""
    for i, row in enumerate(rows):
        if row["number"] != first + i or row["check"] != checksum(row):
            return i
    return len(rows)


def segments(folder: Path) -> list[tuple[int, Path]]:
    """The files of rows, each with the number of its first, in order."""
    return sorted((int(path.stem.removeprefix("rows-")), path) for path in folder.glob("rows-*.raw"))


def describe(obs_space: ObsSpace, act_space: ActionSpace, rate: float) -> Mapping[str, object]:
    about = {
        "format": FORMAT,
        "rate": rate,
        "obs": {key: {"shape": list(s.shape), "dtype": s.dtype} for key, s in sorted(obs_space.items())},
        "action": {"size": act_space.size, "groups": list(act_space.groups)},
    }
    return json.loads(json.dumps(about))
