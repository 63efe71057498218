"""Statistics of few runs: inter-quartile means, stratified bootstrap intervals, improvement, profiles.

After Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice". Scores
come in *strata*: one array per task, one number per run (seed) in it; a single array is a single task. A
bootstrap draws runs anew within each task (never across tasks), pools them, and takes the statistic of the
pool.

What an interval of few seeds means. The percentile bootstrap cannot see beyond the runs it was given. With
three runs all of the same kind come up in 1/27 of the draws, more than the 2.5 % that are cut off, so the
95 % interval *is* the span from the worst run to the best. Three draws from a symmetric distribution span
its middle in 3 cases of 4 (five draws: 15 of 16): read it as "what we saw", and trust a 95 % interval from
about ten runs on. Two arms of three runs come out as different when the runs hardly overlap; with no true
difference full separation in one given direction happens once in 20. One run has no interval: its bounds
are NaN, and a verdict stays open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from reverie.types import ReverieError

Scores = ArrayLike | Sequence[ArrayLike]  # one array of runs, or one such array per task
Value = np.ndarray | np.floating  # NumPy turns arrays without axes into scalars
Statistic = Callable[[np.ndarray], Value]  # "... n" -> "..."


class Interval(NamedTuple):
    """A statistic of all runs, and its bootstrap interval."""

    estimate: float
    low: float
    high: float


def iqm(scores: ArrayLike, axis: int = -1) -> Value:
    """Inter-quartile mean: the mean after floor(n / 4) runs are dropped at either end.

    With up to three runs nothing is dropped (it is the mean); with four or five, the best and the worst are.
    """
    x = np.sort(np.moveaxis(np.asarray(scores, float), axis, -1), axis=-1)
    cut = x.shape[-1] // 4
    return x[..., cut : x.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    scores: Scores,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The statistic of the pooled runs with its percentile interval, runs drawn anew within each task.

    Bounds are NaN where no task has two runs. Equal arguments give equal intervals.
    """
    tasks = strata(scores)
    estimate = float(statistic(np.concatenate(tasks)))
    if max(len(t) for t in tasks) < 2:
        return Interval(estimate, np.nan, np.nan)
    draws = statistic(_resample(tasks, resamples, np.random.default_rng(seed)))
    return _interval(estimate, draws, confidence)


def difference_interval(
    a: Scores,
    b: Scores,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """statistic(a) - statistic(b) with its percentile interval; the runs of a and b are drawn independently.

    For paired values (two measures of the same runs), subtract them and use ``bootstrap_interval``.
    """
    tasks_a, tasks_b = strata(a), strata(b)
    if len(tasks_a) != len(tasks_b):
        raise ReverieError(
            f"a difference needs the same tasks on both sides, got {len(tasks_a)} and {len(tasks_b)}; "
            "drop the others"
        )
    estimate = float(statistic(np.concatenate(tasks_a)) - statistic(np.concatenate(tasks_b)))
    if max(len(t) for t in tasks_a) < 2 or max(len(t) for t in tasks_b) < 2:
        return Interval(estimate, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    draws = statistic(_resample(tasks_a, resamples, rng)) - statistic(_resample(tasks_b, resamples, rng))
    return _interval(estimate, draws, confidence)


def probability_of_improvement(
    a: Scores, b: Scores, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Interval:
    """P(a run of a beats a run of b), ties counting half, averaged over tasks: 1/2 means no better.

    For one task it is Mann and Whitney's U over n_a n_b.
    """
    pairs = list(zip(strata(a), strata(b), strict=True))

    def improvement(x: np.ndarray, y: np.ndarray) -> Value:  # "... n", "... m" -> "..."
        more = np.sign(x[..., :, None] - y[..., None, :])
        return (more.mean((-2, -1)) + 1) / 2

    estimate = float(np.mean([improvement(x, y) for x, y in pairs]))
    if max(min(len(x), len(y)) for x, y in pairs) < 2:
        return Interval(estimate, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    draws = [improvement(_resample([x], resamples, rng), _resample([y], resamples, rng)) for x, y in pairs]
    return _interval(estimate, np.mean(draws, axis=0), confidence)


class Profile(NamedTuple):
    """Fraction of runs above each threshold, with its pointwise interval; four arrays of one length."""

    thresholds: np.ndarray
    fraction: np.ndarray
    low: np.ndarray
    high: np.ndarray


def performance_profile(
    scores: Scores, thresholds: ArrayLike, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Profile:
    """The fraction of runs, averaged over tasks, whose score exceeds each threshold."""
    tasks, taus = strata(scores), np.asarray(thresholds, float)

    def above(task: np.ndarray) -> Value:  # "... n" -> "... thresholds"
        return (task[..., None] > taus).mean(-2)

    fraction = np.mean([above(t) for t in tasks], axis=0)
    if max(len(t) for t in tasks) < 2:
        unknown = np.full_like(taus, np.nan)
        return Profile(taus, np.asarray(fraction), unknown, unknown)
    rng = np.random.default_rng(seed)
    draws = np.mean([above(_resample([t], resamples, rng)) for t in tasks], axis=0)
    low, high = _percentiles(draws, confidence)
    return Profile(taus, np.asarray(fraction), np.asarray(low), np.asarray(high))


def band(
    curves: ArrayLike, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> tuple[Value, Value, Value]:
    """Inter-quartile mean and interval at each point of curves "runs points"; whole runs are drawn."""
    runs = np.asarray(curves, float)
    if runs.ndim != 2 or not len(runs):
        raise ReverieError(
            f"a band needs curves of shape 'runs points', got {runs.shape}; interpolate them first"
        )
    if len(runs) < 2:
        return runs[0], np.full(runs.shape[1], np.nan), np.full(runs.shape[1], np.nan)
    picks = np.random.default_rng(seed).integers(len(runs), size=(resamples, len(runs)))
    low, high = _percentiles(iqm(runs[picks], axis=1), confidence)
    return iqm(runs, axis=0), low, high


def strata(scores: Scores) -> list[np.ndarray]:
    """Scores as a list of one float array per task; refuses empty and non-finite ones."""
    nested = isinstance(scores, Sequence) and len(scores) and np.ndim(scores[0]) > 0
    tasks = [np.asarray(t, float) for t in (scores if nested else [scores])]  # type: ignore[union-attr]
    if not tasks or any(t.ndim != 1 or not len(t) for t in tasks):
        raise ReverieError(
            "scores are one number per run, at least one, in one array per task; got none or a table"
        )
    if not all(np.isfinite(t).all() for t in tasks):
        raise ReverieError("a score is not a finite number; leave out the run that failed, and say so")
    return tasks


def _resample(tasks: list[np.ndarray], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Draws with replacement, within each task, pooled: "resamples n"."""
    return np.concatenate([t[rng.integers(len(t), size=(resamples, len(t)))] for t in tasks], axis=1)


def _interval(estimate: float, draws: Value, confidence: float) -> Interval:
    low, high = _percentiles(draws, confidence)
    return Interval(estimate, float(low), float(high))


def _percentiles(draws: Value, confidence: float) -> tuple[Value, Value]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    return low, high
