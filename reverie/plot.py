"""Learning curves and the house style of every figure: SVG to keep, PNG to glance at.

What is special here: every seed is drawn, thin; their inter-quartile mean thick, with its bootstrap interval
as a band; lines are named where they end, not in a box; the random policy is always there, dashed, and a
number that a paper printed is dotted and carries its source. Colours are Okabe and Ito's, told apart by
colour-blind eyes. Text in SVG stays text. The same data give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reverie.imagine import Foresight
from reverie.media import atomic
from reverie.reproduce import statistics
from reverie.reproduce.runs import read_config, read_json, read_metrics, series, short
from reverie.types import ReverieError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#6B4C2A", "#555555")
INK, QUIET, FAINT = "#3C4043", "#80868B", "#E8EAED"
GRID = 160  # points of the common axis on which seeds are averaged

STYLE = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#BDC1C6",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "reverie",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Curve:
    """One run's values along its env steps; both float arrays of one length."""

    env_steps: np.ndarray
    value: np.ndarray
    name: str = ""


@dataclass(frozen=True)
class Line:
    """A published number: its height, and the words that stand beside it (who, and where it is printed)."""

    value: int | float
    label: str


@contextmanager
def style() -> Iterator[None]:
    """The house style, for figures made inside."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def curves(runs: Iterable[str | Path], key: str = "eval/return") -> list[Curve]:
    """``key`` along the env steps of every run folder that has it; a torn last line is left out."""
    found = []
    for run in runs:
        x, y = series(read_metrics(run), key)
        if len(x):
            found.append(Curve(x, y, Path(run).name))
    return found


def plot(
    runs: Mapping[str, Sequence[str | Path]],
    path: str | Path,
    *,
    key: str = "eval/return",
    random: int | float | None = None,
    published: Sequence[Line] = (),
    title: str = "",
    ylabel: str = "return",
    formats: Sequence[str] = (".svg", ".png"),
) -> list[Path]:
    """Draw the run folders under each name as one arm, and write ``path``.svg and ``path``.png; returns them.

    Raises ``ReverieError`` if no run has ``key``.
    """
    arms = {name: curves(folders, key) for name, folders in runs.items()}
    if not any(arms.values()):
        raise ReverieError(f"no run has '{key}' in its metrics.jsonl; name another metric, or train longer")
    with style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        draw(axes, arms, random=random, published=published)
        axes.set(title=title, ylabel=ylabel)
        return save(figure, path, formats)


def plot_runs(
    runs: Sequence[str | Path], out: str | Path = "curves.png", metric: str = "eval/return"
) -> Path:
    """Draw run folders, runs of one agent on one task as seeds of one arm; returns ``out``, .png or .svg.

    The random policy's line is the mean of the runs' own evaluations of it, if all runs are on one task.
    """
    out = Path(out)
    if out.suffix not in (".png", ".svg"):
        raise ReverieError(f"a figure is a .png or an .svg, got {out}; change its ending")
    arms: dict[str, list[str | Path]] = {}
    tasks, chance = set(), []
    for run in runs:
        about = read_config(run)
        tasks.add(about.get("env"))
        arms.setdefault(f"{about.get('agent', Path(run).name)} {about.get('env', '')}".strip(), []).append(
            run
        )
        mean = (read_json(Path(run) / "evaluation.json").get("random") or {}).get("mean")
        chance += [float(mean)] if isinstance(mean, int | float) else []
    alone = len(tasks) == 1
    named = {short(name.split(" ")[0]) if alone else name: folders for name, folders in arms.items()}
    random = float(np.mean(chance)) if alone and chance and metric.endswith("/return") else None
    title = str(tasks.pop() or "") if alone else ""
    plot(
        named,
        out.with_suffix(""),
        key=metric,
        random=random,
        title=title,
        ylabel=metric,
        formats=(out.suffix,),
    )
    return out


def foresight(found: Foresight, path: str | Path, title: str = "") -> list[Path]:
    """Error over horizon beside the world's own doubt, and beside the belief that nothing moves, as ``path``.svg
    and ``path``.png. A doubt below the error is overconfidence."""
    x = np.arange(1, len(found.error) + 1)
    with style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        lines = (
            ("error", found.error, COLOURS[0], "-"),
            ("its own doubt", found.spread, COLOURS[1], (0, (4, 2))),
            ("nothing moves", found.still, QUIET, (0, (1, 2))),
        )
        for _, values, colour, dashes in lines:
            axes.plot(x, values, color=colour, lw=2.2, ls=dashes)
        axes.set(
            title=title, xlabel="steps imagined", ylabel="standard deviations of the data", ylim=(0, None)
        )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.margins(x=0.01)
        label_ends(axes, [(float(values[-1]), name, colour) for name, values, colour, _ in lines])
        return save(figure, path)


def draw(
    axes: Axes,
    arms: Mapping[str, Sequence[Curve]],
    *,
    random: int | float | None = None,
    published: Sequence[Line] = (),
    colours: Mapping[str, str] | None = None,
) -> None:
    """Seeds, inter-quartile means, bands and the lines of reference in one panel, named at their ends."""
    colours = colours or dict(zip(arms, _cycle(), strict=False))
    ends: list[tuple[float, str, str]] = []
    for name, seeds in arms.items():
        colour, seeds = colours[name], [c for c in seeds if len(c.value)]
        if not seeds:
            continue
        if len(seeds) > 1:
            for seed in seeds:
                axes.plot(seed.env_steps, seed.value, color=colour, lw=0.9, alpha=0.4)
        x, middle, low, high = average(seeds)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        dot = {"marker": "o", "ms": 4} if len(x) == 1 else {}
        axes.plot(x, middle, color=colour, lw=2.2, **dot)  # type: ignore[arg-type]
        ends.append((float(middle[-1]), name, colour))
    if random is not None:
        axes.axhline(random, color=QUIET, lw=1.2, ls=(0, (5, 3)), zorder=1.5)
        ends.append((float(random), "random policy", QUIET))
    for line in published:
        axes.axhline(line.value, color=INK, lw=1.2, ls=(0, (1, 2)), zorder=1.5)
        ends.append((float(line.value), line.label, INK))
    axes.set_xlabel("env steps")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: steps(v)))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.margins(x=0.01, y=0.06)
    axes.autoscale_view()  # else it comes after the labels, whose heights follow from it
    label_ends(axes, ends)


def average(seeds: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, inter-quartile mean, low and high, on the stretch of env steps that all seeds have walked."""
    if len(seeds) == 1:
        nothing = np.full(len(seeds[0].value), np.nan)
        return seeds[0].env_steps, seeds[0].value, nothing, nothing
    first = max(float(c.env_steps[0]) for c in seeds)
    last = max(min(float(c.env_steps[-1]) for c in seeds), first)
    points = np.unique(np.concatenate([c.env_steps for c in seeds]))
    points = points[(points >= first) & (points <= last)]
    if len(points) > GRID or not len(points):
        points = np.linspace(first, last, GRID)
    middle, low, high = statistics.band([np.interp(points, c.env_steps, c.value) for c in seeds])
    return points, np.asarray(middle), np.asarray(low), np.asarray(high)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write (height, text, colour) at the right edge, moved apart where they would lie on each other."""
    if not ends:
        return
    height = lambda y: float(axes.transLimits.transform(axes.transScale.transform((1.0, y)))[1])
    inches = axes.get_position().height * axes.figure.get_figheight()  # type: ignore[union-attr]
    line = 0.16 / max(inches, 0.5)
    wanted = sorted((height(y), text, colour) for y, text, colour in ends)
    heights = apart([w for w, _, _ in wanted], [line * (1 + text.count("\n")) for _, text, _ in wanted])
    for (_, text, colour), place in zip(wanted, heights, strict=True):
        axes.annotate(
            text,
            (1.015, place),
            xycoords="axes fraction",
            va="center",
            color=colour,
            fontsize=8.5,
            fontweight="bold" if colour not in (QUIET, INK) else "normal",
            annotation_clip=False,
        )


def apart(places: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """The nearest places, in the least-squares sense, at which things of these sizes do not overlap.

    ``places`` are increasing. Without the sizes it is isotonic regression: neighbours that collide form a
    block around the mean of where they wanted to be.
    """
    gaps = [0.0, *((a + b) / 2 for a, b in pairwise(sizes))]
    offsets = np.cumsum(gaps)
    blocks: list[tuple[float, int]] = []  # (mean, members), to be kept increasing
    for place, offset in zip(places, offsets, strict=True):
        blocks.append((place - offset, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    flat = [mean for mean, members in blocks for _ in range(members)]
    return [float(mean + offset) for mean, offset in zip(flat, offsets, strict=True)]


def save(figure: Figure, path: str | Path, formats: Sequence[str] = (".svg", ".png")) -> list[Path]:
    """Write the figure as ``path``.svg and ``path``.png, whole or not at all; undated, so that it diffs."""
    path = Path(path)
    written = []
    for suffix in formats:
        target = path.with_name(path.name + suffix)
        with atomic(target) as temporary:
            figure.savefig(temporary, metadata={"Date": None} if suffix == ".svg" else {"Software": None})
        written.append(target)
    return written


def steps(value: int | float) -> str:
    """Env steps as people say them: 500, 2.5k, 1M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _cycle() -> Iterator[str]:
    while True:
        yield from COLOURS
