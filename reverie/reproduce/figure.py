"""The figure of a claim: learning curves by task, the differences that decide, then side questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reverie import plot
from reverie.reproduce import statistics
from reverie.reproduce.claims import Budget, Claim, Outcome, Sweep, Verdict
from reverie.reproduce.runs import Run, Values, by_arm, pooled, short

WORDS = {"holds": plot.COLOURS[2], "open": plot.QUIET, "fails": plot.COLOURS[1]}


def draw(
    claim: Claim, size: Budget, runs: Sequence[Run], found: Sequence[Outcome], judged: Verdict, out: Path
) -> list[str]:
    """Write figure.svg and figure.png into ``out``; returns their names."""
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks if len(run.curve(task)[0])))
    sweeps = [s for s in claim.sweeps if sum(bool(_swept(s, runs)[arm]) for _, arm in s.arms) > 1]
    panels = len(tasks) + 1 + len(sweeps)
    columns = min(panels, 4 if panels > 6 else 2 if panels > 1 else 1)
    rows = -(-panels // columns)
    with plot.style():
        figure = Figure(figsize=(5.6 * columns, 3.3 * rows + 0.5), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr]
        grid = list(np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel())
        for axes in grid[panels:]:
            axes.set_axis_off()
        for axes, task in zip(grid, tasks, strict=False):
            _curves(axes, claim, size, runs, task)
        _forest(grid[len(tasks)], found)
        for axes, sweep in zip(grid[len(tasks) + 1 :], sweeps, strict=False):
            _sweep(axes, sweep, runs)
        figure.suptitle(
            f"{claim.name}: {judged}", x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=plot.INK
        )
        return [path.name for path in plot.save(figure, out / "figure")]


def _curves(axes: Axes, claim: Claim, size: Budget, runs: Sequence[Run], task: str) -> None:
    from reverie.reproduce.runner import matching

    names = [arm.name for arm in size.arms if arm.shown]
    colours = dict(zip(names, plot.COLOURS, strict=False))
    arms = {
        name: [plot.Curve(*run.curve(task)) for run in by_arm(runs).get(name, []) if task in run.tasks]
        for name in names
    }
    chance = [value for run in runs if task in run.tasks and (value := run.random(task)) is not None]
    lines = [
        plot.Line(p.value, f"{p.arm}, published: {p.value:g}\n({p.source})")
        for p in matching(claim, size)
        if p.env == task
    ]
    # more arms than colours would lie to the eye; the palette has eight
    random = float(np.mean(chance)) if chance else None
    plot.draw(axes, arms, random=random, published=lines, colours=colours)
    axes.set(title=short(task), ylabel="evaluation return")


def _forest(axes: Axes, found: Sequence[Outcome]) -> None:
    """One row a comparison: its interval, and zero; each to its own scale, for their units differ."""
    axes.set_title("What the claim says is positive")
    axes.axvline(0, color=plot.INK, lw=1)
    for row, outcome in enumerate(reversed(found)):
        middle, low, high = outcome.interval
        known = [abs(v) for v in outcome.interval if np.isfinite(v)]
        reach = max(known, default=0.0) or 1.0
        colour = WORDS[outcome.verdict]
        face = colour if outcome.counts else "white"
        if np.isfinite([low, high]).all():
            axes.plot([low / reach, high / reach], [row, row], color=colour, lw=2.4)
        if np.isfinite(middle):
            axes.plot(middle / reach, row, "o", ms=7, mfc=face, mec=colour, mew=1.6)
            said = f"{_figures(middle)}  ({_figures(low)} to {_figures(high)}) {outcome.unit}"
        else:
            said = "not measured yet"
        said = f"{said}: {outcome.verdict}" + ("" if outcome.counts else ", not decisive")
        axes.text(-1.1, row + 0.3, outcome.name, fontsize=8.5, fontweight="bold", va="center")
        axes.text(1.1, row - 0.3, said, fontsize=8, color=colour, ha="right", va="center")
    axes.set(xlim=(-1.15, 1.15), ylim=(-0.6, max(len(found), 1) - 0.4), yticks=[])
    axes.set_xticks([0], ["0"])
    axes.set_xlabel("difference with 95 % interval, each row to its own scale")
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)


def _figures(value: float) -> str:
    return "?" if not np.isfinite(value) else f"{value:+.3g}"


def _swept(sweep: Sweep, runs: Sequence[Run]) -> dict[str, Values]:
    arms = by_arm(runs)
    return {arm: pooled(arms.get(arm, []), sweep.measure) for _, arm in sweep.arms}


def _sweep(axes: Axes, sweep: Sweep, runs: Sequence[Run]) -> None:
    swept = _swept(sweep, runs)
    middles = []
    for place, (_, arm) in enumerate(sweep.arms):
        values = [v for numbers in swept[arm].values() for v in numbers]
        if not values:
            continue
        interval = statistics.bootstrap_interval(list(swept[arm].values()))
        axes.plot([place] * len(values), values, "o", ms=4, color=plot.COLOURS[0], alpha=0.35, mew=0)
        if np.isfinite(interval.low):
            axes.plot([place, place], [interval.low, interval.high], color=plot.COLOURS[0], lw=2.2)
        middles.append((place, interval.estimate))
    axes.plot(*zip(*middles, strict=True), "-o", ms=7, lw=1.2, color=plot.COLOURS[0], zorder=3)
    labels = [label for label, _ in sweep.arms]
    axes.set(title=sweep.title, xlabel=sweep.x, ylabel=sweep.measure.unit)
    axes.set_xticks(range(len(labels)), labels)
    axes.margins(x=0.08, y=0.12)
