"""What a run left behind: its metrics file read back, one run as a `Run`, and what is measured on it.

``metrics.jsonl`` holds one JSON object a line, with ``env_steps`` and slashed names. A run that was killed
may end in half a line, and one that went on from a checkpoint may have written some steps twice: the torn
line is left out, and of two accounts of the same steps the later one counts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import yaml

from reverie.media import atomic

Row = dict[str, Any]
Values = dict[str, list[float]]  # a task, or another stratum, to its values, one per run or episode
LAST_PART = 0.1  # the part of a run, at its end, whose evaluations make the final return


def read_metrics(folder: str | Path) -> list[Row]:
    """All whole lines of a run folder's ``metrics.jsonl``; none if it does not exist yet."""
    path = Path(folder) / "metrics.jsonl"
    rows = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file; empty if it is missing, torn or something else."""
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all, so that a person can read it."""
    with atomic(path) as temporary:
        text = json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
        # numbers in a row stay on one line, so that a diff of curves can be read
        text = re.sub(r"\[[\s\d.,eE+\-nul]*\]", lambda m: re.sub(r"\s+", " ", m.group()), text)
        temporary.write_text(text + "\n", "utf-8")


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not known is null. Floats keep six figures."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def read_config(folder: str | Path) -> dict[str, Any]:
    """A run folder's ``config.yaml``; empty if it is missing or cannot be read."""
    try:
        value = yaml.safe_load((Path(folder) / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def series(rows: Sequence[Row], key: str, against: str = "env_steps") -> tuple[np.ndarray, np.ndarray]:
    """Two float arrays: where ``key`` was logged, and what; finite numbers only, ``against`` increasing."""
    xs: list[float] = []
    ys: list[float] = []
    for row in rows:
        x, y = row.get(against), row.get(key)
        if not (_number(x) and _number(y)):
            continue
        while xs and xs[-1] >= x:  # the run went back to a checkpoint: what follows replaces what was
            xs.pop(), ys.pop()
        xs.append(float(x))
        ys.append(float(y))
    return np.array(xs), np.array(ys)


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Clock(NamedTuple):
    """What the length of a run is counted in, and what is drawn over it."""

    setting: str  # of the agent: how long the run is
    metric: str  # in metrics.jsonl: how far it is
    every: str  # setting: how often it is evaluated
    label: str
    shows: str = "return"  # of evaluations, or of training episodes where nothing was evaluated


ENV_STEPS = Clock("steps", "env_steps", "eval_every", "env steps")
GENERATIONS = Clock("generations", "generation", "eval_generations", "generations")
EPISODES = Clock("episodes", "episode", "eval_every", "episodes", "length")


@dataclass(frozen=True)
class Run:
    """One finished run: whose it is, and what its folder says. ``env`` may join several tasks with ``+``."""

    arm: str
    env: str
    seed: int
    folder: Path
    wall_clock_s: float = 0.0
    clock: Clock = ENV_STEPS

    @cached_property
    def rows(self) -> list[Row]:
        return read_metrics(self.folder)

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        return read_json(self.folder / "evaluation.json")

    @property
    def tasks(self) -> list[str]:
        return self.env.split("+")

    def curve(self, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Env steps (or what else it is counted in) and evaluation returns; returns of training episodes where
        nothing was evaluated."""
        for key in (f"eval/{self.clock.shows}", f"episode/{self.clock.shows}"):
            name = key if len(self.tasks) == 1 else f"{key}/{short(task or self.env)}"
            x, y = series(self.rows, name, self.clock.metric)
            if len(x):
                return x, y
        return np.array([]), np.array([])

    def at(self, key: str, places: np.ndarray) -> np.ndarray:
        """Another count of the run (``updates``, ``seconds``) at these places of the curve, linear between lines."""
        x, y = series(self.rows, key, self.clock.metric)
        return np.interp(places, x, y) if len(x) else np.full(len(places), np.nan)

    def random(self, task: str) -> float | None:
        """The random policy's mean return, as evaluated beside the agent."""
        found = self.evaluation
        if len(self.tasks) > 1:
            found = (found.get("tasks") or {}).get(short(task)) or {}
        mean = (found.get("random") or {}).get("mean")
        return float(mean) if _number(mean) else None


def short(task: str) -> str:
    """The task without its suite, as it stands in metric names: dmc/cartpole_swingup, cartpole_swingup."""
    return task.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Measure:
    """A named number of a run (or several: one per task, or per episode), and the unit it is in."""

    name: str
    unit: str
    of: Callable[[Run], Values]


def _final_return(run: Run) -> Values:
    values = {}
    for task in run.tasks:
        x, y = run.curve(task)
        if len(x):
            values[task] = [float(y[x > (1 - LAST_PART) * x[-1]].mean())]
    return values


def _random_return(run: Run) -> Values:
    found = {task: run.random(task) for task in run.tasks}
    return {task: [value] for task, value in found.items() if value is not None}


def _evaluated(run: Run) -> Values:
    """The last evaluation, of the finished agent."""
    mean = run.evaluation.get("mean")
    return {run.env: [float(mean)]} if _number(mean) else {}


def _dreamt(run: Run) -> Values:
    """The same controller's mean return in the dream it was made in."""
    _, y = series(run.rows, "dream/return", run.clock.metric)
    return {run.env: [float(y[-1])]} if len(y) else {}


def _seconds_per_env_step(run: Run) -> Values:
    """Acting and learning, from the first update on; stretches that hold an evaluation are left out."""
    rows = [row for row in run.rows if _number(row.get("seconds")) and _number(row.get("env_steps"))]
    rows = [row for row in rows if row.get("updates") != 0]
    if len(rows) < 2:
        return {}
    ticks = np.diff([float(row["seconds"]) for row in rows])
    steps = np.diff([float(row["env_steps"]) for row in rows])
    counted = (ticks > 0) & (steps > 0)
    quiet = counted & ["eval/length" not in row for row in rows[1:]]
    counted = quiet if quiet.any() else counted
    return {run.env: [float(ticks[counted].sum() / steps[counted].sum())]} if counted.any() else {}


def _video_error(guess: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> Callable[[Run], Values]:
    def of(run: Run) -> Values:
        found = read_open_loop(run.folder)
        if found is None:
            return {}
        truth, prediction, context = found
        told = guess(truth, prediction, context)
        error = (truth[:, context:].astype(np.float32) - told) / 255
        return {f"{run.env} seed {run.seed}": np.square(error).mean((1, 2, 3, 4)).tolist()}

    return of


def read_open_loop(folder: str | Path) -> tuple[np.ndarray, np.ndarray, int] | None:
    """(truth, prediction, context) as ``reproduce`` left them in ``open_loop.npz``; uint8 "n t h w c"."""
    path = Path(folder) / "open_loop.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        return file["truth"], file["prediction"], int(file["context"])


FINAL_RETURN = Measure("final_return", "return", _final_return)
RANDOM_RETURN = Measure("random_return", "return", _random_return)
REAL_SCORE = Measure("real_score", "return", _evaluated)
DREAM_SCORE = Measure("dream_score", "return", _dreamt)
SECONDS = Measure("seconds_per_env_step", "s / env step", _seconds_per_env_step)

_PIXELS = "squared error, pixels in [0, 1]"
MODEL_ERROR = Measure(
    "open_loop_error", _PIXELS, _video_error(lambda truth, told, k: told[:, k:].astype(np.float32))
)
STILL_ERROR = Measure(
    "last_frame_error", _PIXELS, _video_error(lambda truth, told, k: truth[:, k - 1 : k].astype(np.float32))
)
MEAN_ERROR = Measure(  # the best constant picture there is: it has seen the answers of all episodes
    "mean_image_error",
    _PIXELS,
    _video_error(lambda truth, told, k: truth[:, k:].mean((0, 1), dtype=np.float32)),
)


def pooled(runs: Sequence[Run], measure: Measure) -> Values:
    """The measure of several runs, by stratum."""
    values: Values = {}
    for run in runs:
        for stratum, numbers in measure.of(run).items():
            values.setdefault(stratum, []).extend(numbers)
    return values


def by_arm(runs: Sequence[Run]) -> Mapping[str, list[Run]]:
    """Runs under the name of their arm, in the order in which they come."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms
