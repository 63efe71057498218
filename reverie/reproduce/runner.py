"""Carry a claim out: train every arm with every seed, then write what came of it.

Runs are ordered seed by seed, all arms of a seed before the next, so that whatever is finished compares
equals. A finished run is never run twice, an unfinished one goes on where it stopped, and the results are
written as it goes on and whenever it ends: a study may be interrupted at any moment, and its page tells how
many seeds it stands on. What a finished run is judged by is kept beside the results (``kept``): so a study may be
made on several machines, one after the other.

    runs/reproduce/NAME/BUDGET/ARM/ENV/seed-0    the run folders, and beside each a note of what was asked for
    results/runs/NAME/BUDGET/ARM/ENV/seed-0      of finished ones: the same note, metrics and evaluation
    results/NAME/BUDGET/                         README.md, summary.json, curves.json, figure.svg, figure.png
    results/README.md                            a line for each of these
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from reverie import machine, presets
from reverie.media import atomic, open_loop, save_gif, save_strip
from reverie.reproduce import statistics
from reverie.reproduce.claims import (
    Arm,
    Budget,
    Claim,
    Outcome,
    Published,
    Verdict,
    get_claim,
    meets,
    outcomes,
    verdict,
)
from reverie.reproduce.dreams import predict
from reverie.reproduce.kept import keep, note_of
from reverie.reproduce.runs import (
    ENV_STEPS,
    FINAL_RETURN,
    MODEL_ERROR,
    Measure,
    Run,
    pooled,
    read_json,
    read_metrics,
    read_open_loop,
)
from reverie.reproduce.side_by_side import Stopped, side_by_side
from reverie.types import ReverieError

# (agent, env, preset, run_dir, seed, overrides); must go on where the folder's run stopped
Train = Callable[[str, str, str, Path, int, dict[str, Any]], Any]
# (run_dir, context, length, episodes, seed) -> truth, prediction: uint8 "n t h w c", of new episodes
Predict = Callable[[Path, int, int, int, int], tuple[np.ndarray, np.ndarray]]

CONTEXT, LENGTH, EPISODES = 5, 50, 10  # the papers' open-loop protocol: 5 frames seen, 45 predicted
POINTS = 200  # of a curve in curves.json
WRITE_EVERY = 60.0  # seconds between two writings of the results, at least


@dataclass(frozen=True)
class Planned:
    """One run to be made: an arm on one of its environments with one seed."""

    arm: Arm
    env: str
    seed: int
    folder: Path
    kept: Path  # where what it is judged by lies once it is finished

    @property
    def overrides(self) -> dict[str, Any]:
        return {**self.arm.overrides, **self.arm.for_env.get(self.env, {})}

    @property
    def world(self) -> dict[str, str]:
        """Where the world lies that is given to it, as a setting."""
        there = self.folder.parents[2] / _slug(self.arm.world) / self.folder.parent.name / self.folder.name
        return {"world": str(there)} if self.arm.world else {}

    @property
    def who(self) -> tuple[str, str, int]:
        return self.arm.name, self.env, self.seed

    @property
    def needs(self) -> tuple[str, str, int] | None:
        """The run whose world is given to it."""
        return (self.arm.world, self.env, self.seed) if self.arm.world else None

    @property
    def note(self) -> Path:
        """Beside the run folder: what was asked for, and whether it is done."""
        return note_of(self.folder)


@dataclass(frozen=True)
class Failure:
    """A run that broke down, in a sentence."""

    arm: str
    env: str
    seed: int
    error: str


def reproduce(
    name: str,
    budget: str = "laptop",
    seeds: int | None = None,
    runs: str | Path = "runs/reproduce",
    results: str | Path = "results",
    train_fn: Train | None = None,
    predict_fn: Predict | None = None,
    console: Console | None = None,
    jobs: int = 1,
) -> Path:
    """Run what is missing of claim ``name``, and return the folder of its results.

    ``seeds`` replaces the budget's number. ``jobs`` runs are made at a time, each with its share of the cores.
    ``train_fn`` and ``predict_fn`` default to the package's own. A run that breaks down is told in the results, tried
    again at the next call, and keeps the claim from holding. Raises ``ReverieError`` if no run at all could be
    finished.
    """
    claim = get_claim(name)
    size = claim.budget(budget)
    seeds = size.seeds if seeds is None else seeds
    if seeds < 1:
        raise ReverieError(f"a claim needs at least one seed, got {seeds}; leave it out for {size.seeds}")
    if jobs < 1:
        raise ReverieError(f"--jobs is how many runs are made at a time, at least 1; got {jobs}")
    console = console or Console()
    console.print(f"[bold]{claim.name}[/] ({claim.system}, {budget}): {claim.sentence}", highlight=False)
    planned = list(plan(claim, budget, seeds, Path(runs), Path(results)))
    for run in planned:  # made before there was a place to keep it, or killed before it was kept
        if _finished(run, size.preset, films=False) == run.folder and not _kept(run):
            keep(run.folder, run.kept)
    todo = _missing(planned, size.preset, claim.films)
    if len(todo) < len(planned):
        console.print(f"{len(planned) - len(todo)} of {len(planned)} runs were finished before")
    how = Carrying(size.preset, size.evaluations, claim.films, train_fn or claim.train, predict_fn, jobs)
    failures: list[Failure] = []
    written = time.monotonic()
    try:
        for number, (run, error) in enumerate(_made(todo, how, console), len(planned) - len(todo) + 1):
            title = f"{number}/{len(planned)}  {run.arm.name}, {run.env}, seed {run.seed}"
            if isinstance(error, Stopped):
                console.print(f"{title}: {error}; the same command goes on from here", highlight=False)
            elif error is None:
                took = _duration(read_json(run.note).get("seconds", 0.0))
                console.print(f"{title}: trained in {took}", highlight=False)
                keep(run.folder, run.kept)
            elif isinstance(error, Exception):  # one broken run must not cost a night of others; it is told
                failures.append(Failure(*run.who, f"{type(error).__name__}: {error}"))
                console.print(
                    f"{title}: broke down: {failures[-1].error}", style="red", highlight=False, markup=False
                )
            else:
                raise error
            if time.monotonic() - written > WRITE_EVERY and _any_finished(planned, claim, size):
                write_results(name, budget, seeds, runs, results, failures)
                written = time.monotonic()
    finally:
        if _any_finished(planned, claim, size):
            write_results(name, budget, seeds, runs, results, failures)
    if not _any_finished(planned, claim, size):
        why = f"the first broke down with {failures[0].error}" if failures else "the same command goes on"
        raise ReverieError(f"no run of '{name}' is finished yet; {why}")
    out = Path(results) / name / budget
    _tell(console, read_json(out / "summary.json"), out)
    return out


@dataclass(frozen=True)
class Carrying:
    """How a run is carried out: trained and, where the claim asks for it, filmed; nothing that was done before."""

    preset: str
    evaluations: int
    films: bool
    train_fn: Train | None
    predict_fn: Predict | None
    jobs: int

    def __call__(self, run: Planned) -> None:
        if _finished(run, self.preset, films=False) != run.folder:
            _train(run, self.preset, self.evaluations, self.train_fn, self.jobs)
        if self.films:
            _predict(run, self.predict_fn)


def _made(
    todo: Sequence[Planned], how: Carrying, console: Console
) -> Iterator[tuple[Planned, BaseException | None]]:
    """Carry out the runs; each with what went wrong, as they end."""
    if how.jobs > 1:
        log = lambda run: run.folder.with_name(run.folder.name + ".log")
        ready = lambda run, unfinished: run.needs not in [other.who for other in unfinished]
        yield from side_by_side(todo, how.jobs, how, log, ready)
        return
    for run in todo:
        console.rule(f"{run.arm.name}, {run.env}, seed {run.seed}", style="dim", align="left")
        try:
            how(run)
        except Stopped as error:
            yield run, error
            return
        except Exception as error:
            yield run, error
        else:
            yield run, None


def _missing(planned: Sequence[Planned], preset: str, films: bool) -> list[Planned]:
    """The runs to be made: those that are finished nowhere, and those whose world another one is to be given and that
    are not here to give it."""
    todo = {run.who for run in planned if _finished(run, preset, films) is None}
    wanted = {run.needs for run in planned if run.who in todo}
    here = {run.who for run in planned if _finished(run, preset, films) == run.folder}
    return [run for run in planned if run.who in todo | (wanted - here)]


def _kept(run: Planned) -> bool:
    return read_json(note_of(run.kept)) == read_json(run.note)


def _any_finished(planned: Sequence[Planned], claim: Claim, size: Budget) -> bool:
    return any(_finished(run, size.preset, claim.films) for run in planned)


def plan(claim: Claim, budget: str, seeds: int, runs: Path, results: Path) -> Iterator[Planned]:
    """All runs, seed by seed: a study cut short has as many seeds of any arm as of another, or one less."""
    study = Path(claim.study or claim.name) / budget
    for seed in range(seeds):
        for arm in claim.budget(budget).arms:
            for env in arm.envs if seed < (seeds if arm.seeds is None else arm.seeds) else ():
                own = study / _slug(arm.name) / _slug(env) / f"seed-{seed}"
                yield Planned(arm, env, seed, runs / own, results / "runs" / own)


def _train(run: Planned, preset: str, evaluations: int, train_fn: Train | None, jobs: int) -> None:
    asked = _asked(run, preset)
    before = read_json(run.note)
    if before and {**before.get("asked", {}), "length": 0} != {**asked, "length": 0}:
        raise ReverieError(
            f"{run.folder} was begun with other settings; move it away, or ask for those in {run.note.name}"
        )
    made_by = {"machine": machine.describe(), "threads": machine.CORES, "at_once": jobs}
    made_by |= {"commit": machine.commit()}
    note = {"asked": asked, "finished": False, "seconds": before.get("seconds", 0.0), **made_by}
    _write(run.note, note)
    clock, length = run.arm.clock, run.arm.length
    every = max(1, length // evaluations)
    overrides = {clock.setting: length, clock.every: every, **run.overrides, **run.world}
    start = time.perf_counter()
    try:
        (train_fn or _train_here)(run.arm.agent, run.env, preset, run.folder, run.seed, overrides)
    finally:
        note["seconds"] += time.perf_counter() - start
        _write(run.note, note)
    reached = max((row.get(clock.metric, 0) for row in read_metrics(run.folder)), default=0)
    if reached < length:
        raise Stopped(f"stopped after {reached:,} of {length:,} {clock.label}")
    _write(run.note, {**note, "finished": True})


def _predict(run: Planned, predict_fn: Predict | None) -> None:
    truth, told = (predict_fn or predict)(run.folder, CONTEXT, LENGTH, EPISODES, run.seed)
    if truth.shape != told.shape or truth.ndim != 5 or truth.shape[1] <= CONTEXT:
        raise ReverieError(
            f"an open-loop prediction is two arrays 'n t h w c' with t > {CONTEXT}, got {truth.shape} and "
            f"{told.shape}"
        )
    with atomic(run.folder / "open_loop.npz") as temporary:
        np.savez_compressed(temporary, truth=truth, prediction=told, context=CONTEXT)


def _train_here(
    agent: str, env: str, preset: str, run_dir: Path, seed: int, overrides: dict[str, Any]
) -> None:
    """The package's own training."""
    from reverie import train

    train(agent, env, preset, run_dir, **{"seed": seed, **overrides})


def _asked(run: Planned, preset: str) -> dict[str, Any]:
    """What a run is made of: if any of it has changed since, the run is another one."""
    agent, clock = run.arm.agent, run.arm.clock.setting
    asked: dict[str, Any] = {"agent": agent, "env": run.env, "preset": preset, "seed": run.seed}
    asked |= {"overrides": run.overrides, "length": run.arm.length, "world": run.arm.world}
    if agent in presets.AGENTS:  # a preset's numbers may change under its name
        fields = presets.config_class(agent).__dataclass_fields__
        own = {key: value for key, value in run.overrides.items() if key in fields}
        config = dataclasses.asdict(presets.resolve(agent, preset.split(), own))
        asked["config"] = {key: value for key, value in config.items() if key != clock}
    return json.loads(json.dumps(asked))


def _finished(run: Planned, preset: str, films: bool) -> Path | None:
    """The folder in which it was trained to the end with these settings (or further), and filmed if it has to be; the
    run's own, or what was kept of it. None if there is none."""
    asked = _asked(run, preset)
    for folder in (run.folder, run.kept):
        note = read_json(note_of(folder))
        had = note.get("asked", {})
        same = {**had, "length": 0} == {**asked, "length": 0}
        far = had.get("length", 0) >= asked["length"]
        filmed = not films or (folder / "open_loop.npz").exists()
        if note.get("finished") is True and same and far and filmed:
            return folder
    return None


# What is written


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
    where = [(p, folder) for p in planned if (folder := _finished(p, size.preset, claim.films))]
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
    _write(out / "summary.json", summary)
    _write(out / "curves.json", {"claim": name, "budget": budget, "runs": [_curve(run) for run in done]})
    title = f"{name}: {summary['verdict']}  ({summary['seeds']} seeds, {budget} budget)"
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
        notes.append(f"Unfinished: {complete} of {seeds} seeds are complete in every arm.")
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
            whose = f"{_slug(arm).lower().replace('-', '_')}_" if several else ""
            table[f"{whose}{name}"] = {
                "iqm": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "per_seed": [v for numbers in values.values() for v in numbers],
                "unit": measure.unit,
            }
    return table


def matching(claim: Claim, size: Budget) -> list[Published]:
    """Published numbers for the same arm, task and length (within 5 %): only these enter the figure."""
    return [
        p
        for p in claim.published
        for arm in size.arms
        if p.arm == arm.name and p.env in arm.envs and abs(p.length - arm.length) <= 0.05 * p.length
    ]


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


def _write(path: Path, value: Mapping[str, Any]) -> None:
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


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", text).strip("-")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _tell(console: Console, summary: Mapping[str, Any], results: Path) -> None:
    from rich.table import Table

    table = Table("claimed to be positive", "difference", "interval", "verdict", box=None, padding=(0, 2))
    for c in summary["comparisons"]:
        low, high, middle = (("-" if c[k] is None else f"{c[k]:.4g}") for k in ("low", "high", "estimate"))
        table.add_row(
            c["name"], middle, f"{low} to {high}", c["verdict"] if c["counts"] else f"({c['verdict']})"
        )
    console.print(table)
    colour = {"holds": "green", "open": "yellow", "fails": "red"}[summary["verdict"]]
    console.print(f"[bold {colour}]{summary['verdict']}[/] with {summary['seeds']} seeds; see {results}")
