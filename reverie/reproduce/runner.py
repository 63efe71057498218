"""Carry a claim out: train every arm with every seed, then write what came of it.

Runs are ordered seed by seed, all arms of a seed before the next, so that whatever is finished compares
equals. A finished run is never run twice, an unfinished one goes on where it stopped, and the results are
written as it goes on and whenever it ends: a study may be interrupted at any moment, and its page tells how
many seeds it stands on. What a finished run is judged by is kept beside the results (``kept``): so a study may be
made on several machines, one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from reverie import machine
from reverie.logger import duration, plural
from reverie.media import atomic
from reverie.reproduce.claims import Budget, Claim, get_claim
from reverie.reproduce.dreams import predict
from reverie.reproduce.kept import keep, note_of
from reverie.reproduce.results import Failure, write_results
from reverie.reproduce.runs import read_json, read_metrics, write_json
from reverie.reproduce.side_by_side import Stopped, side_by_side
from reverie.reproduce.study import Planned, asked_of, finished, plan
from reverie.types import ReverieError

# (agent, env, preset, run_dir, seed, overrides); must go on where the folder's run stopped
Train = Callable[[str, str, str, Path, int, dict[str, Any]], Any]
# (run_dir, context, length, episodes, seed) -> truth, prediction: uint8 "n t h w c", of new episodes
Predict = Callable[[Path, int, int, int, int], tuple[np.ndarray, np.ndarray]]

CONTEXT, LENGTH, EPISODES = 5, 50, 10  # the papers' open-loop protocol: 5 frames seen, 45 predicted
WRITE_EVERY = 60.0  # seconds between two writings of the results, at least


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
        if finished(run, size.preset, films=False) == run.folder and not _kept(run):
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
                took = duration(read_json(run.note).get("seconds", 0.0))
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
        if finished(run, self.preset, films=False) != run.folder:
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
    todo = {run.who for run in planned if finished(run, preset, films) is None}
    wanted = {run.needs for run in planned if run.who in todo}
    here = {run.who for run in planned if finished(run, preset, films) == run.folder}
    return [run for run in planned if run.who in todo | (wanted - here)]


def _kept(run: Planned) -> bool:
    return read_json(note_of(run.kept)) == read_json(run.note)


def _any_finished(planned: Sequence[Planned], claim: Claim, size: Budget) -> bool:
    return any(finished(run, size.preset, claim.films) for run in planned)


def _train(run: Planned, preset: str, evaluations: int, train_fn: Train | None, jobs: int) -> None:
    asked = asked_of(run, preset)
    before = read_json(run.note)
    if before and {**before.get("asked", {}), "length": 0} != {**asked, "length": 0}:
        raise ReverieError(
            f"{run.folder} was begun with other settings; move it away, or ask for those in {run.note.name}"
        )
    made_by = {"machine": machine.describe(), "threads": machine.CORES, "at_once": jobs}
    made_by |= {"commit": machine.commit()}
    note = {"asked": asked, "finished": False, "seconds": before.get("seconds", 0.0), **made_by}
    write_json(run.note, note)
    clock, length = run.arm.clock, run.arm.length
    every = max(1, length // evaluations)
    overrides = {clock.setting: length, clock.every: every, **run.overrides, **run.world}
    start = time.perf_counter()
    try:
        (train_fn or _train_here)(run.arm.agent, run.env, preset, run.folder, run.seed, overrides)
    finally:
        note["seconds"] += time.perf_counter() - start
        write_json(run.note, note)
    reached = max((row.get(clock.metric, 0) for row in read_metrics(run.folder)), default=0)
    if reached < length:
        raise Stopped(f"stopped after {reached:,} of {length:,} {clock.label}")
    write_json(run.note, {**note, "finished": True})


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
    console.print(
        f"[bold {colour}]{summary['verdict']}[/] with {plural(summary['seeds'], 'seed')}; see {results}"
    )
