"""What a claim is: a sentence from a paper, the runs that could contradict it, and how they are judged.

A claim names its *arms* (who is compared) for each budget, *comparisons*, differences that the claim says are
positive, and numbers that are *expected*. The verdict is computed. It *holds* if every comparison's interval
lies above zero and every mean's contains its number, *fails* if one lies below or misses it, and is *open*
otherwise; also where fewer than three runs, or episodes, stand on a side, or a run broke down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from reverie.reproduce import statistics
from reverie.reproduce.runs import ENV_STEPS, Clock, Measure, Run, Values, by_arm, pooled, short
from reverie.types import ReverieError

Verdict = Literal["holds", "open", "fails"]
LEAST_RUNS = 3  # fewer on either side and no interval is worth a verdict


@dataclass(frozen=True)
class Arm:
    """Who is compared: an agent with its settings, on one or more environments (`a+b` is one run on both).

    ``world`` names an arm before it, whose run with the same seed gives its learned world to this one's. Several of one
    name are one arm, each for other environments.
    """

    name: str
    agent: str
    envs: tuple[str, ...]
    length: int  # in what the clock counts
    overrides: Mapping[str, Any] = field(default_factory=dict)
    for_env: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # laid over them, by environment
    seeds: int | None = None  # at most so many, where a side question gets fewer than the claim
    shown: bool = True  # in the learning curves; a sweep has its own panel
    clock: Clock = ENV_STEPS
    world: str = ""


@dataclass(frozen=True)
class Budget:
    """What one size of the experiment runs, and what it can and cannot show."""

    preset: str
    seeds: int
    arms: tuple[Arm, ...]
    note: str
    evaluations: int = 10  # of a run, evenly spread


@dataclass(frozen=True)
class Of:
    """A measure of an arm."""

    arm: str
    measure: Measure


@dataclass(frozen=True)
class Comparison:
    """The claim says: left - factor * right > 0.

    ``paired`` subtracts within each run (both sides are measures of the same arm). ``each_task`` asks it of
    every task by itself, where otherwise the tasks are pooled. ``counts`` is False for a side question.
    """

    name: str
    left: Of
    right: Of
    factor: int | float = 1
    paired: bool = False
    each_task: bool = False
    counts: bool = True


@dataclass(frozen=True)
class Expected:
    """The claim says: the mean of a measure over the runs is ``value``, as far as so many runs can tell.

    It holds if the mean's bootstrap interval contains the value, and fails if not. ``confidence`` is that of the
    interval: where k numbers are asked for at once, one in k (1 - confidence) studies of the truth would fail.
    """

    name: str
    of: Of
    value: int | float
    source: str
    confidence: float = 0.95


@dataclass(frozen=True)
class Sweep:
    """A side panel: one measure over several arms that differ in one setting."""

    title: str
    x: str
    measure: Measure
    arms: tuple[tuple[str, str], ...]  # (label on the axis, arm)


@dataclass(frozen=True)
class Published:
    """A number that a paper prints for an agent on a task after a run of that length."""

    value: int | float
    arm: str
    env: str
    length: int  # in what the arm's clock counts
    source: str


@dataclass(frozen=True)
class Claim:
    """One row of the list of claims, as an experiment."""

    name: str
    system: str
    sentence: str
    budgets: Mapping[str, Budget]
    comparisons: tuple[Comparison, ...]
    sweeps: tuple[Sweep, ...] = ()
    published: tuple[Published, ...] = ()
    expected: tuple[Expected, ...] = ()
    train: Callable[..., Any] | None = None  # makes a run, where it is not the package's own training
    films: bool = False  # predict open loop after each run, and print the strip
    study: str = ""  # claims of one study share their runs; the claim's own name if empty

    def budget(self, name: str) -> Budget:
        if name not in self.budgets:
            raise ReverieError(
                f"claim '{self.name}' has no budget '{name}'; choose one of {', '.join(self.budgets)}"
            )
        return self.budgets[name]


@dataclass(frozen=True)
class Outcome:
    """What came of a comparison: left - factor * right with its interval, from the fewest runs on a side."""

    name: str
    unit: str
    counts: bool
    interval: statistics.Interval
    runs: int
    equal: bool = False  # the difference is claimed to be zero, not positive
    confidence: float = 0.95

    @property
    def verdict(self) -> Verdict:
        if self.runs < LEAST_RUNS or not np.isfinite([self.interval.low, self.interval.high]).all():
            return "open"
        if self.equal:
            return "holds" if self.interval.low <= 0 <= self.interval.high else "fails"
        return "holds" if self.interval.low > 0 else "fails" if self.interval.high < 0 else "open"


def verdict(outcomes: Sequence[Outcome]) -> Verdict:
    """All that count must hold; one that fails is enough to fail; nothing to compare leaves it open."""
    each = [outcome.verdict for outcome in outcomes if outcome.counts]
    if "fails" in each:
        return "fails"
    return "holds" if each and all(v == "holds" for v in each) else "open"


def outcomes(comparison: Comparison, runs: Sequence[Run]) -> list[Outcome]:
    """The comparison on finished runs: one outcome, or one per task; seeds of one side only are left out."""
    arms, left, right = by_arm(runs), comparison.left, comparison.right
    one, two = arms.get(left.arm, []), arms.get(right.arm, [])
    interval: Callable[[list[str]], statistics.Interval]
    if comparison.paired:
        differences: Values = {}
        for run in one:
            a, b = left.measure.of(run), right.measure.of(run)
            for task in a.keys() & b.keys():
                pairs = zip(a[task], b[task], strict=True)
                differences.setdefault(task, []).extend(x - comparison.factor * y for x, y in pairs)
        x = y = {task: differences[task] for task in sorted(differences)}
        interval = lambda tasks: statistics.bootstrap_interval([x[task] for task in tasks])
    else:
        seeds = {run.seed for run in one} & {run.seed for run in two}
        x = pooled([run for run in one if run.seed in seeds], left.measure)
        y = pooled([run for run in two if run.seed in seeds], right.measure)
        y = {task: [comparison.factor * value for value in values] for task, values in y.items()}
        interval = lambda tasks: statistics.difference_interval([x[t] for t in tasks], [y[t] for t in tasks])
    tasks = [task for task in x if task in y]
    groups = [[task] for task in tasks] if comparison.each_task else [tasks] if tasks else []
    found = []
    for group in groups:
        name = f"{comparison.name}, {short(group[0])}" if comparison.each_task else comparison.name
        fewest = min(sum(len(side[task]) for task in group) for side in (x, y))
        found.append(Outcome(name, left.measure.unit, comparison.counts, interval(group), fewest))
    return found or [
        Outcome(comparison.name, left.measure.unit, comparison.counts, statistics.Interval(*[np.nan] * 3), 0)
    ]


def meets(expected: Expected, runs: Sequence[Run]) -> Outcome:
    """How far the runs' mean is from the number that is expected."""
    values = pooled(by_arm(runs).get(expected.of.arm, []), expected.of.measure)
    away = [v - expected.value for numbers in values.values() for v in numbers]
    interval = statistics.Interval(*[np.nan] * 3)
    if away:
        mean = lambda x: x.mean(-1)
        interval = statistics.bootstrap_interval(away, mean, expected.confidence)
    name = f"{expected.name} - {expected.value:g} = 0"
    return Outcome(name, expected.of.measure.unit, True, interval, len(away), True, expected.confidence)


def matching(claim: Claim, size: Budget) -> list[Published]:
    """Published numbers for the same arm, task and length (within 5 %): only these enter the figure."""
    return [
        p
        for p in claim.published
        for arm in size.arms
        if p.arm == arm.name and p.env in arm.envs and abs(p.length - arm.length) <= 0.05 * p.length
    ]


_claims: dict[str, Claim] = {}


def register(claim: Claim) -> Claim:
    """Put a claim on the list; its comparisons and sweeps must name arms that every budget has."""
    for name, budget in claim.budgets.items():
        arms = {arm.name for arm in budget.arms}
        asked = {side.arm for c in claim.comparisons for side in (c.left, c.right) if c.counts}
        if missing := asked - arms:
            raise ReverieError(f"claim '{claim.name}' compares {sorted(missing)}, unknown to budget '{name}'")
    if claim.name in _claims and _claims[claim.name] is not claim:
        raise ReverieError(f"two claims are called '{claim.name}'; rename one")
    _claims[claim.name] = claim
    return claim


def list_claims() -> list[Claim]:
    """All claims, in the order in which they were written down."""
    return list(_claims.values())


def get_claim(name: str) -> Claim:
    """The claim of that name, or a sentence that says which there are."""
    if name not in _claims:
        raise ReverieError(f"there is no claim '{name}'; choose one of {', '.join(_claims) or '(none)'}")
    return _claims[name]
