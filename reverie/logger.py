"""What a run tells: metrics.jsonl, TensorBoard, W&B if asked for, and one line of progress."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from reverie.types import ReverieError


class Logger:
    """Averages metrics between two writes; a write is one line of metrics.jsonl.

    Its state holds the length of that file, so that a run that goes on from a checkpoint takes back the lines
    that came after it and says nothing twice.
    """

    def __init__(self, folder: Path, wandb: bool = False, config: Mapping[str, Any] | None = None):
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self.file = open(self.path, "ab")  # noqa: SIM115 (open as long as the run)
        self.board = SummaryWriter(str(folder))
        self.wandb = start_wandb(folder, config or {}) if wandb else None
        self.sums: dict[str, list[float]] = {}  # name: [sum, count]

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Take numbers (or 0-d tensors) into the averages of the next write."""
        for name, value in metrics.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            entry[0] += float(value)
            entry[1] += 1

    def write(self, env_steps: int, **now: float) -> dict[str, float]:
        """Write the averages, and the numbers of this moment, under ``env_steps``."""
        row = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        line = {"env_steps": env_steps, **now, **row}
        try:
            self.file.write(json.dumps(line).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise ReverieError(f"could not write {self.path}: {error.strerror}; free some space") from error
        for name, value in line.items():
            self.board.add_scalar(name, value, env_steps)
        if self.wandb is not None:
            self.wandb.log(line, step=env_steps)
        return line

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "bytes": self.file.tell()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = {name: list(entry) for name, entry in state["sums"].items()}
        self.file.truncate(state["bytes"])
        self.file.seek(0, 2)

    def close(self) -> None:
        self.file.close()
        self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def start_wandb(folder: Path, config: Mapping[str, Any]):
    try:
        import wandb
    except ImportError as error:
        raise ReverieError("logging to W&B needs its package: pip install 'reverie[wandb]'") from error
    return wandb.init(project="reverie", name=folder.name, dir=str(folder), config=dict(config), resume="allow")


class Progress:
    """One line about the present: redrawn in place on a terminal, printed now and then elsewhere."""

    def __init__(self, total: int, every: float = 15.0, console: Console | None = None):
        self.total, self.console = total, console or Console(highlight=False)
        self.live = self.console.is_terminal
        self.every = 0.5 if self.live else every
        self.last = self.began = time.monotonic()
        self.start: tuple[int, int] | None = None

    def __call__(self, env_steps: int, updates: int, score: float | None, note: str = "") -> None:
        now = time.monotonic()
        if self.start is None:
            self.start = (env_steps, updates)
        if now - self.last < self.every:
            return
        self.last = now
        self.show(self.line(now - self.began, env_steps, updates, score, note))

    def line(self, seconds: float, env_steps: int, updates: int, score: float | None, note: str) -> str:
        steps_0, updates_0 = self.start or (0, 0)
        rate, update_rate = (env_steps - steps_0) / seconds, (updates - updates_0) / seconds
        left = duration((self.total - env_steps) / rate) if rate > 0 else "?"
        done = env_steps / max(self.total, 1)
        bar = "━" * round(20 * done) + "╌" * (20 - round(20 * done))
        parts = [
            f"{bar} {done:4.0%}",
            f"{env_steps:,}/{self.total:,} env steps",
            f"{rate:.0f} env steps/s",
            f"{update_rate:.1f} updates/s",
            f"return {'–' if score is None else format(score, '.1f')}",
            f"ETA {left}",
        ]
        return "  ".join(parts) + (f"  {note}" if note else "")

    def show(self, line: str) -> None:
        if self.live:
            width = self.console.width - 1
            sys.stdout.write("\r" + line[:width].ljust(width))
            sys.stdout.flush()
        else:
            self.say(line)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.live:
            sys.stdout.write("\r" + " " * (self.console.width - 1) + "\r")
        print(text, flush=True)


def duration(seconds: float) -> str:
    """3725 -> '1h 02m'."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
