"""What a run tells: metrics.jsonl, TensorBoard, W&B if asked for, and one line of progress.

A run that goes on from a checkpoint says nothing twice: the lines after it are taken back, in TensorBoard too.
Everything is written at once and in this thread, so that a kill loses no line and a full disk is one sentence.
"""

import contextlib
import json
import math
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from reverie.types import NotFinite, ReverieError

try:
    import fcntl
except ImportError:  # Windows has no flock: a second run in the same folder is not noticed there
    fcntl = None  # type: ignore[assignment]


class Logger:
    """Averages metrics between two writes; a write is one line of metrics.jsonl."""

    def __init__(self, folder: Path, wandb: bool = False, config: Mapping[str, Any] | None = None):
        self.path = folder / "metrics.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        except OSError as error:
            raise ReverieError(f"{self.path} can not be written ({error.strerror}); mend that") from error
        if fcntl is not None:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.file.close()
                raise ReverieError(
                    f"another process is training in {folder}; stop it or name another --run folder"
                ) from None
        self.board: Board | None = None  # begun at the first write, when it is known where the run goes on
        self.wandb = start_wandb(folder, config or {}) if wandb else None
        self.sums: dict[str, list[Any]] = {}  # name: [sum, count]
        self.last = -1  # where the last line is drawn
        self.watch: Callable[[dict[str, int | float]], object] | None = None  # is shown every line

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Take numbers (or 0-d tensors) into the averages of the next write.

        Numbers on a GPU are summed there: reading each would wait for the device at every update.
        """
        for name, value in metrics.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            on_gpu = isinstance(value, torch.Tensor) and value.device.type == "cuda"
            entry[0] = entry[0] + (value.detach().double() if on_gpu else float(value))
            entry[1] += 1

    def check(self) -> None:
        """Raise ``NotFinite`` with the name of the first metric since the last write that is not a number."""
        for name, (total, _) in self.sums.items():
            if not math.isfinite(total):
                raise NotFinite(f"the metric {name}")

    def write(self, env_steps: int, at: int | None = None, /, **now: int | float) -> dict[str, int | float]:
        """Write the averages, and the numbers of this moment, under ``env_steps``. ``at`` is where boards draw them,
        if env steps do not tell (they stand still while a model is trained)."""
        self.check()
        at = env_steps if at is None else at
        row = {name: float(total) / count for name, (total, count) in self.sums.items()}
        line = {"env_steps": env_steps, **now, **row}
        text = json.dumps(line).encode() + b"\n"
        before = self.size()
        try:
            if self.board is None:
                self.board = Board(self.path.parent, self.last + 1)
            if self.file.write(text) != len(text):
                raise OSError(28, "No space left on device")
            self.board.write(at, line)
        except OSError as error:
            os.ftruncate(self.file.fileno(), before)  # half a line is none
            raise ReverieError(
                f"{self.path} could not be written ({error.strerror}); free some space, then run the same command"
            ) from error
        if self.wandb is not None:
            self.wandb.log(line, step=at)
        self.sums, self.last = {}, at
        if self.watch is not None:
            self.watch(line)
        return line

    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def state_dict(self) -> dict[str, Any]:
        """The averages so far, and how long metrics.jsonl is."""
        sums = {name: [float(total), count] for name, (total, count) in self.sums.items()}
        return {"sums": sums, "bytes": self.size(), "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to that moment: later lines are taken back."""
        self.sums = {name: list(entry) for name, entry in state["sums"].items()}
        self.last = state["last"]
        os.ftruncate(self.file.fileno(), min(state["bytes"], self.size()))

    def begin(self) -> None:
        """Go back to the start of the run."""
        self.load_state_dict({"sums": {}, "bytes": 0, "last": -1})

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


class Board:
    """Scalars for TensorBoard, one event a line. Events of earlier files from ``begin`` on count no more.

    Its own writer queues events in a thread: a kill would lose them, a full disk would be a traceback there.
    """

    def __init__(self, folder: Path, begin: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = event_pb2, summary_pb2
        self.file = new_file(
            folder, f"events.out.tfevents.{time.time():.3f}.{socket.gethostname()}.{os.getpid()}"
        )
        self.records = RecordWriter(self.file)
        self.put(file_version="brain.Event:2")
        if begin > 0:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self.put(step=begin, session_log=start)

    def write(self, step: int, scalars: Mapping[str, int | float]) -> None:
        values = [self.summary.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self.put(step=step, summary=self.summary.Summary(value=values))
        self.file.flush()

    def put(self, **fields: Any) -> None:
        self.records.write(self.event.Event(wall_time=time.time(), **fields).SerializeToString())

    def close(self) -> None:
        self.file.close()


def new_file(folder: Path, name: str) -> BinaryIO:
    """A file of that name to write, or of the next, ``name.0001``, where there is one already; they sort in order."""
    for n in range(10_000):
        with contextlib.suppress(FileExistsError):
            return open(folder / (f"{name}.{n:04d}" if n else name), "xb")
    raise FileExistsError(f"{folder} has ten thousand files called {name}")


def start_wandb(folder: Path, config: Mapping[str, Any]):
    try:
        import wandb
    except ImportError as error:
        raise ReverieError("logging to W&B needs its package: pip install 'reverie[wandb]'") from error
    run_id = re.sub(r"[^A-Za-z0-9_-]+", "-", str(folder.resolve()))[-64:].strip("-")
    return wandb.init(
        project="reverie", name=folder.name, id=run_id, dir=str(folder), config=dict(config), resume="allow"
    )


class Progress:
    """One line about the present: redrawn in place on a terminal, printed now and then elsewhere."""

    def __init__(self, total: int, every: float | int = 30.0, out: Any = None):
        self.total, self.out = total, out or sys.stdout
        self.live = self.out.isatty() and os.environ.get("TERM", "") != "dumb"
        self.every = 0.2 if self.live else every
        self.last = self.began = time.monotonic()
        self.start: tuple[int, int] | None = None
        self.shown = False

    def __call__(
        self,
        env_steps: int,
        updates: int,
        score: float | int | None = None,
        left: float | int | None = None,
    ) -> None:
        """Show where the run is, if it is time to: the latest return, the seconds left (None: not known yet)."""
        now = time.monotonic()
        if self.start is None:
            self.start, self.began = (env_steps, updates), now
        if now - self.last < self.every:
            return
        self.last = now
        self.show(self.line(now - self.began, env_steps, updates, score, left))

    def now(self, env_steps: int, updates: int, note: str) -> None:
        """Say in the line that is redrawn what the run is busy with, before it is."""
        if self.live:
            self.last = time.monotonic()
            self.show(self.line(self.last - self.began, env_steps, updates, note=note))

    def line(
        self,
        seconds: float | int,
        env_steps: int,
        updates: int,
        score: float | int | None = None,
        left: float | int | None = None,
        note: str = "",
    ) -> str:
        """The text, ``seconds`` after this sitting began; what matters most comes first, the bar takes what is left."""
        steps_0, updates_0 = self.start or (0, 0)
        done, seconds = min(env_steps / max(self.total, 1), 1.0), max(seconds, 1e-9)
        parts = [
            f"{math.floor(100 * done):3d}%",
            note or f"ETA {'–' if left is None else duration(left)}",
            f"{env_steps:,}/{self.total:,} env steps ({(env_steps - steps_0) / seconds:.0f}/s)",
            f"{updates:,} updates ({(updates - updates_0) / seconds:.1f}/s)",
            f"return {'–' if score is None else format(score, '.1f')}",
        ]
        return self.bar(done, parts)

    def stage(self, made: Callable[[], tuple[float, list[str]]]) -> None:
        """Show what ``made`` says, if it is time to: how much is done, 0..1, and the parts of a line."""
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            done, parts = made()
            self.show(self.bar(done, [f"{math.floor(100 * done):3d}%", *parts]))

    def bar(self, done: float, parts: list[str]) -> str:
        text = "  ".join(parts)
        width = min(20, self.width() - len(text) - 1)
        full = math.floor(width * done)
        return f"{'━' * full}{'╌' * (width - full)} {text}" if width >= 5 else text.strip()

    def width(self) -> int:
        """Columns there are to write in."""
        return shutil.get_terminal_size().columns - 1 if self.live else 110

    def show(self, line: str) -> None:
        if not self.live:
            print(line, file=self.out, flush=True)
            return
        self.out.write("\r\x1b[2K" + line[: self.width()])
        self.out.flush()
        self.shown = True

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(text, file=self.out, flush=True)

    def clear(self) -> None:
        """Wipe the line that is redrawn in place."""
        if self.shown:
            self.out.write("\r\x1b[2K")
            self.out.flush()
            self.shown = False


def duration(seconds: float | int) -> str:
    """3725 -> '1h 02m'."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"


def plural(n: int, noun: str) -> str:
    """1 episode, 2 episodes."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks and without its end if it is long."""
    return " ".join(str(error).split())[:300]
