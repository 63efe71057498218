"""The figure of a claim: learning curves by task, the differences that decide, then side questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reverie import plot
from reverie.reproduce import statistics
from reverie.reproduce.claims import Budget, Claim, Outcome, Sweep, matching
from reverie.reproduce.runs import Run, Values, by_arm, pooled, short

SHOWN = {
    "return": "evaluation return",
    "length": "steps of an episode",
    "solved": "share of levels solved",
}
WORDS = {"holds": plot.COLOURS[2], "open": plot.QUIET, "fails": plot.COLOURS[1]}


def draw(
    claim: Claim, size: Budget, runs: Sequence[Run], found: Sequence[Outcome], title: str, out: Path
) -> list[str]:
    """Write figure.svg and figure.png into ``out``; returns their names."""
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks if len(run.curve(task)[0])))
    sweeps = [s for s in claim.sweeps if sum(bool(_swept(s, runs)[arm]) for _, arm in s.arms) > 1]
    panels = len(tasks) + len(sweeps)
    columns = 1 if panels < 2 else 2 if panels < 7 else 4
    rows = -(-panels // columns)
    heights = [3.2] * rows + [0.6 + 0.55 * max(len(found), 1)]
    width = 7.4 if columns == 1 else 5.2 * columns
    with plot.style():
        figure = Figure(figsize=(width, sum(heights) + 0.5), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore
        grid = figure.add_gridspec(rows + 1, columns, height_ratios=heights)
        places = [figure.add_subplot(grid[i // columns, i % columns]) for i in range(panels)]
        for axes, task in zip(places, tasks, strict=False):
            _curves(axes, claim, size, runs, task)
        for axes, sweep in zip(places[len(tasks) :], sweeps, strict=True):
            _sweep(axes, sweep, runs)
        _forest(figure.add_subplot(grid[rows, :]), found)
        figure.suptitle(title, x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=plot.INK)
        return [path.name for path in plot.save(figure, out / "figure")]


def _curves(axes: Axes, claim: Claim, size: Budget, runs: Sequence[Run], task: str) -> None:
    names = list(dict.fromkeys(arm.name for arm in size.arms if arm.shown))
    colours = dict(zip(names, plot.COLOURS, strict=False))
    arms = {
        name: [plot.Curve(*run.curve(task)) for run in by_arm(runs).get(name, []) if task in run.tasks]
        for name in names
    }
    drawn = [run for run in runs if task in run.tasks and run.arm in names]
    chance = [value for run in drawn if (value := run.random(task)) is not None]
    lines = [
        plot.Line(p.value, f"{p.arm}, published: {p.value:g}\n({p.source})")
        for p in matching(claim, size)
        if p.env == task
    ]
    # more arms than colours would lie to the eye; the palette has eight
    random = float(np.mean(chance)) if chance else None
    clock = next(arm.clock for arm in size.arms if arm.shown)
    if clock.shows == "length":  # from thousands of steps to a few
        axes.set_yscale("log")
    plot.draw(axes, arms, random=random, published=lines, colours=colours)
    if clock.metric == "simulated":  # from ten steps to thousands
        axes.set_xscale("log")
    axes.set(title=short(task), xlabel=clock.label, ylabel=_shown(clock.shows, drawn))


def _shown(what: str, runs: Sequence[Run]) -> str:
    """What the curves show: where nothing was evaluated, the episodes that were learned from."""
    evaluated = any(key.startswith(f"eval/{what}") for run in runs for row in run.rows for key in row)
    return SHOWN[what] if evaluated else SHOWN[what].replace("evaluation", "training")


def _forest(axes: Axes, found: Sequence[Outcome]) -> None:
    """One row a comparison: its words, its interval against zero, each to its own scale (units differ)."""
    zero = ", and what is zero (=)" if any(outcome.equal for outcome in found) else ""
    axes.set_title(f"What the claim says is positive{zero}")
    rows = max(len(found), 1)
    for row, outcome in enumerate(reversed(found)):
        middle, low, high = outcome.interval
        known = [abs(v) for v in outcome.interval if np.isfinite(v)]
        reach = max(known, default=0.0) or 1.0
        colour = WORDS[outcome.verdict]
        axes.plot([-1, 1], [row, row], color=plot.FAINT, lw=0.8, zorder=1)
        if np.isfinite([low, high]).all():
            axes.plot([low / reach, high / reach], [row, row], color=colour, lw=2.6)
        said = "not measured yet"
        if np.isfinite(middle):
            face = colour if outcome.counts else "white"
            axes.plot(middle / reach, row, "o", ms=7, mfc=face, mec=colour, mew=1.6, zorder=3)
            span = ""
            if np.isfinite([low, high]).all():
                span = f", {outcome.confidence * 100:g} % interval {_figures(low)} to {_figures(high)}"
            said = f"{_figures(middle)}{span} {outcome.unit}"
        axes.text(-4, row + 0.17, outcome.name, fontsize=8.5, fontweight="bold", va="center")
        axes.text(-4, row - 0.2, said, fontsize=8, color=plot.QUIET, va="center")
        axes.text(1.15, row, outcome.verdict, fontsize=8.5, fontweight="bold", color=colour, va="center")
        if not outcome.counts:
            axes.text(1.15, row - 0.35, "not decisive", fontsize=7.5, color=plot.QUIET, va="center")
    axes.plot([0, 0], [-0.5, rows - 0.5], color=plot.INK, lw=1, zorder=2)
    axes.set(xlim=(-4, 1.75), ylim=(-0.6, rows - 0.4), yticks=[])
    axes.set_xticks([0], ["0"])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)


def _figures(value: float) -> str:
    if not np.isfinite(value):
        return "?"
    return f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


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
