"""The page of a result: claim, verdict, figure and numbers, in Markdown made from the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reverie.logger import plural
from reverie.reproduce.claims import LEAST_RUNS, Claim, Outcome
from reverie.reproduce.runs import short

MEANING = {
    "holds": "every difference below that decides lies above zero with its whole 95 % interval, and around zero "
    "where a number is expected.",
    "open": "the runs made so far do not settle it.",
    "fails": "a difference that the claim says is positive lies below zero with its whole 95 % interval, or a number "
    "that is expected was missed.",
}


def index(summaries: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The README.md over all results: a line for each, (folder, summary)."""
    lines = [
        "# Claims, and what came of them",
        "",
        "Each line is a command, `reverie reproduce CLAIM --budget BUDGET`, and the page it wrote: curves, intervals,",
        "numbers of every run. *Holds*: every difference that decides lies above zero with its whole 95 % interval.",
        "*Fails*: one lies below. *Open*: the runs do not settle it. Each page says what its budget can show; most",
        "budgets are a fraction of the paper's.",
        "",
    ]
    lines += _table(
        ("claim", "budget", "verdict", "seeds", "env steps a run", "minutes in all"),
        [
            (
                f"[{s['claim']}]({folder}/README.md)",
                s["budget"],
                f"**{s['verdict']}**",
                str(s["seeds"]),
                f"{s['env_steps']:,}",
                f"{s['wall_clock_s'] / 60:.1f}",
            )
            for folder, s in summaries
        ],
    )
    return "\n".join(lines) + "\n"


def render(
    claim: Claim, summary: Mapping[str, Any], found: Sequence[Outcome], pictures: Sequence[str]
) -> str:
    """The README.md of a result; made by the command, never by hand."""
    s = summary
    lines = [
        f"# {claim.name}",
        "",
        f"> {claim.sentence} ({claim.system})",
        "",
        f"**{s['verdict'].capitalize()}**, with {plural(s['seeds'], 'seed')} at the `{s['budget']}` budget: "
        f"{MEANING[s['verdict']]}",
        "",
        "    " + s["command"],
        "",
    ]
    if "figure.svg" in pictures:
        lines += [f"![{claim.name}: learning curves and differences](figure.svg)", ""]
        lines += [
            "Thin lines are seeds, thick lines their inter-quartile mean, bands its stratified bootstrap "
            "95 % interval.",
            "",
        ]
    if "strip.png" in pictures:
        lines += ["![truth, prediction and error over time](strip.png)", ""]
        lines += ["Error is prediction minus truth around grey. Moving: [open_loop.gif](open_loop.gif).", ""]
    lines += ["## What decides", ""]
    lines += _table(
        ("claimed to be positive", "difference", "95 % interval", "unit", "runs", "verdict"),
        [
            (
                o.name,
                _number(o.interval.estimate),
                _span(o.interval.low, o.interval.high),
                o.unit,
                str(o.runs),
                o.verdict if o.counts else f"{o.verdict} (not decisive)",
            )
            for o in found
            if not o.equal
        ],
    )
    lines += [
        "",
        f"A side with fewer than {LEAST_RUNS} runs leaves its row open. With three runs the interval is the "
        "span from worst to best, no more.",
        "",
        "## Numbers",
        "",
    ]
    lines += _table(
        ("measure", "inter-quartile mean", "95 % interval", "unit", "each run"),
        [
            (
                name,
                _number(m["iqm"]),
                _span(m["low"], m["high"]),
                m["unit"],
                _each(m["per_seed"]),
            )
            for name, m in s["measures"].items()
        ],
    )
    if claim.expected:
        lines += ["", "## What was expected", ""]
        lines += _table(
            ("number", "mean over the runs", "interval", "of", "expected", "source"),
            [
                (
                    e.name,
                    _number(o.interval.estimate + e.value),
                    f"{_number(o.interval.low + e.value)} to {_number(o.interval.high + e.value)}",
                    f"{e.confidence:.0%}",
                    _number(e.value),
                    e.source,
                )
                for e, o in zip(claim.expected, [o for o in found if o.equal], strict=True)
            ],
        )
    if claim.published:
        clocks = {arm.name: arm.clock.label for arm in claim.budget("paper").arms}
        shown = {(p["arm"], p["env"], p["value"]) for p in s["published"]}
        lines += ["", "## What the papers print", ""]
        lines += _table(
            ("agent", "task", "after", "return", "source", "same setting as here"),
            [
                (
                    p.arm,
                    short(p.env),
                    f"{p.length:,} {clocks[p.arm]}",
                    f"{p.value:g}",
                    p.source,
                    "yes" if (p.arm, p.env, p.value) in shown else "no",
                )
                for p in claim.published
            ],
        )
    lines += ["", "## What this budget can show", "", s["note"], ""]
    if s["failures"]:
        lines += ["## Runs that broke down", ""]
        lines += [f"- {f['arm']}, {f['env']}, seed {f['seed']}: {_cell(f['error'])}" for f in s["failures"]]
        lines += [""]
    lines += [
        "## How it was run",
        "",
        f"{s['env']}; {s['env_steps']:,} env steps a run at most; {s['wall_clock_s'] / 60:.1f} minutes in "
        f"all on {s['machine']}, {s['threads']} threads{_at_once(s)}; commit {s['commit']}.",
        "All numbers: [summary.json](summary.json); all curves: [curves.json](curves.json).",
        "",
    ]
    return "\n".join(lines)


def _at_once(summary: Mapping[str, Any]) -> str:
    jobs = summary.get("at_once", 1)
    return "" if jobs == 1 else f" a run, {jobs} runs at a time"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _number(value: float | None) -> str:
    return "?" if value is None or value != value else f"{value:.4g}"


def _span(low: float | None, high: float | None) -> str:
    """Of one run there is none."""
    known = low is not None and high is not None and low == low and high == high
    return f"{_number(low)} to {_number(high)}" if known else "-"


def _each(values: Sequence[float]) -> str:
    some = ", ".join(_number(v) for v in values[:12])
    return some + (f" and {len(values) - 12} more" if len(values) > 12 else "")
