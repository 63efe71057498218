"""What a study writes: its finished runs judged, as numbers, curves, pictures and a page.

Made anew from the runs each time::

    results/NAME/BUDGET/    README.md, summary.json, curves.json, figure.svg, figure.png
    results/README.md       a line for each of these
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reverie import machine
from reverie.logger import plural
from reverie.media import atomic, open_loop, save_gif, save_strip
from reverie.reproduce import statistics
from reverie.reproduce.claims import Claim, Outcome, Verdict, get_claim, matching, meets, outcomes, verdict
from reverie.reproduce.kept import note_of
from reverie.reproduce.runs import (
    ENV_STEPS,
    FINAL_RETURN,
    MODEL_ERROR,
    Measure,
    Run,
    pooled,
    read_json,
    read_open_loop,
    write_json,
)
from reverie.reproduce.study import Planned, finished, plan, slug
from reverie.types import ReverieError

POINTS = 200  # of a curve in curves.json


@dataclass(frozen=True)
class Failure:
    """A run that broke down, in a sentence."""

    arm: str
    env: str
    seed: int
    error: str


def write_results(
    name: str,
    budget: str = "laptop",
    seeds: int | None = None,
    runs: str | Path = "runs/reproduce",
    results: str | Path = "results",
    failures: Sequence[Failure] = (),
) -> Path:
    """Judge the finished runs of a claim and write its results; trains nothing. Returns their folder."""
    from reverie.reproduce import figure, page

    claim = get_claim(name)
    size = claim.budget(budget)
    seeds = size.seeds if seeds is None else seeds
    planned = list(plan(claim, budget, seeds, Path(runs), Path(results)))
    where = [(p, folder) for p in planned if (folder := finished(p, size.preset, claim.films))]
    notes = [read_json(note_of(folder)) for _, folder in where]
    done = [
        Run(*p.who, folder, float(note.get("seconds", 0.0)), p.arm.clock)
        for (p, folder), note in zip(where, notes, strict=True)
    ]
    if not done:
        raise ReverieError(f"'{name}' has no finished run under {runs} at budget '{budget}'; run it first")
    found = [outcome for comparison in claim.comparisons for outcome in outcomes(comparison, done)]
    found += [meets(expected, done) for expected in claim.expected]
    out = Path(results) / name / budget
    summary = {**summarise(claim, budget, seeds, planned, done, found, failures), **_made_by(notes)}
    write_json(out / "summary.json", summary)
    write_json(out / "curves.json", {"claim": name, "budget": budget, "runs": [_curve(run) for run in done]})
    title = f"{name}: {summary['verdict']}  ({plural(summary['seeds'], 'seed')}, {budget} budget)"
    pictures = figure.draw(claim, size, done, found, title, out)
    if claim.films:
        pictures += _film(done, out)
    with atomic(out / "README.md") as temporary:
        temporary.write_text(page.render(claim, summary, found, pictures), "utf-8")
    pages = sorted(Path(results).glob("*/*/summary.json"))
    with atomic(Path(results) / "README.md") as temporary:
        told = [(path.parent.relative_to(results).as_posix(), read_json(path)) for path in pages]
        temporary.write_text(page.index(told), "utf-8")
    return out


def summarise(
    claim: Claim,
    budget: str,
    seeds: int,
    planned: Sequence[Planned],
    runs: Sequence[Run],
    found: Sequence[Outcome],
    failures: Sequence[Failure] = (),
) -> dict[str, Any]:
    """``summary.json``: every number computed from the runs, the verdict too."""
    size = claim.budget(budget)
    complete = _complete(planned, runs)
    judged: Verdict = verdict(found)
    notes = [size.note]
    if failures and judged == "holds":
        judged = "open"
        notes.append("A run broke down, so the claim is left open.")
    if complete < seeds:
        notes.append(f"Unfinished: {complete} of {plural(seeds, 'seed')} are complete in every arm.")
    first = next((o for o in found if o.counts), None)
    envs = list(dict.fromkeys(env for arm in size.arms for env in arm.envs))
    summary = {
        "claim": claim.name,
        "budget": budget,
        "verdict": judged,
        "seeds": complete,
        "env": ", ".join(envs),
        "env_steps": max(int(row.get("env_steps", 0)) for run in runs for row in run.rows),
        "wall_clock_s": round(sum(run.wall_clock_s for run in runs), 1),
        "command": f"reverie reproduce {claim.name} --budget {budget} --seeds {seeds}",
        "measures": measures(claim, runs),
        "difference": {"low": first.interval.low, "high": first.interval.high} if first else {},
        "published": [
            {"value": p.value, "arm": p.arm, "env": p.env, "length": p.length, "source": p.source}
            for p in matching(claim, size)
        ],
        "note": " ".join(notes),
        "comparisons": [
            {
                "name": o.name,
                "unit": o.unit,
                "estimate": o.interval.estimate,
                "low": o.interval.low,
                "high": o.interval.high,
                "runs": o.runs,
                "counts": o.counts,
                "verdict": o.verdict,
                **({"expected": 0} if o.equal else {}),
            }
            for o in found
        ],
        "failures": [vars(failure) for failure in failures],
    }
    return summary


def _made_by(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """On which machines, with how many threads and by which code the runs were made; one value, or all of them."""
    now = {"threads": torch.get_num_threads(), "machine": machine.describe(), "commit": machine.commit()}
    now |= {"at_once": 1}
    made_by = {}
    for key, value in now.items():
        found = list(dict.fromkeys(note.get(key, value) for note in notes))
        made_by[key] = found[0] if len(found) == 1 else ", ".join(map(str, found))
    return made_by


def measures(claim: Claim, runs: Sequence[Run]) -> dict[str, Any]:
    """What the comparisons and sweeps look at, arm by arm: IQM, interval, and the number of each run."""
    wanted: dict[tuple[str, str], Measure] = {}
    if not claim.films:
        wanted |= {(r.arm, FINAL_RETURN.name): FINAL_RETURN for r in runs if r.clock.shows == "return"}
    for c in claim.comparisons:
        wanted |= {(side.arm, side.measure.name): side.measure for side in (c.left, c.right)}
    wanted |= {(e.of.arm, e.of.measure.name): e.of.measure for e in claim.expected}
    for sweep in claim.sweeps:
        wanted |= {(arm, sweep.measure.name): sweep.measure for _, arm in sweep.arms}
    table = {}
    several = len({arm for arm, _ in wanted}) > 1  # else nobody needs to be told whose it is
    for (arm, name), measure in wanted.items():
        values = pooled([run for run in runs if run.arm == arm], measure)
        if values:
            interval = statistics.bootstrap_interval(list(values.values()))
            whose = f"{slug(arm).lower().replace('-', '_')}_" if several else ""
            table[f"{whose}{name}"] = {
                "iqm": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "per_seed": [v for numbers in values.values() for v in numbers],
                "unit": measure.unit,
            }
    return table


def _complete(planned: Sequence[Planned], runs: Sequence[Run]) -> int:
    """Seeds that every arm has which gets all seeds."""
    have = {(run.arm, run.env, run.seed) for run in runs}
    main = [p for p in planned if p.arm.seeds is None]
    seeds = {p.seed for p in main}
    return sum(all((p.arm.name, p.env, p.seed) in have for p in main if p.seed == seed) for seed in seeds)


def _curve(run: Run) -> dict[str, Any]:
    """One seed: env steps (and generations), updates, seconds, return; at most ``POINTS`` points, the last one kept."""
    lines = {}
    for task in run.tasks:
        x, y = run.curve(task)
        if len(x) > POINTS:
            keep = np.linspace(0, len(x) - 1, POINTS).round().astype(int)
            x, y = x[keep], y[keep]
        counted = {} if run.clock is ENV_STEPS else {run.clock.label: x.astype(int).tolist()}
        lines[task] = {
            **counted,
            "env_steps": run.at("env_steps", x).astype(int).tolist(),
            "updates": run.at("updates", x).round(1).tolist(),
            "seconds": run.at("seconds", x).round(2).tolist(),
            run.clock.shows: y.round(4).tolist(),
        }
    head: dict[str, Any] = {"arm": run.arm, "env": run.env, "seed": run.seed}
    return {**head, **lines[run.env]} if len(run.tasks) == 1 else {**head, "tasks": lines}


def _film(runs: Sequence[Run], out: Path) -> list[str]:
    """The strip of the first episode and a moving picture of the first three, from the run in the middle.

    The run whose error is the median is shown, and in it the first episodes, so that nobody chose the
    picture.
    """
    errors = [(float(np.mean([*MODEL_ERROR.of(run).values()])), i) for i, run in enumerate(runs)]
    run = runs[sorted(errors)[(len(errors) - 1) // 2][1]]
    found = read_open_loop(run.folder)
    assert found is not None  # a run that was not filmed is not finished
    truth, told, context = found
    save_strip(out / "strip.png", truth[0], told[0], context)
    save_gif(out / "open_loop.gif", open_loop(truth[:3], told[:3], context), fps=10)
    return ["strip.png", "open_loop.gif"]
