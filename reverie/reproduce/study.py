"""The runs that a claim is made of: which there are, where each lies, and whether it is done.

It is done where its note says so and asks for the same::

    runs/reproduce/NAME/BUDGET/ARM/ENV/seed-0    the run folders, and beside each a note of what was asked for
    results/runs/NAME/BUDGET/ARM/ENV/seed-0      of finished ones: the same note, metrics and evaluation
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reverie import presets
from reverie.reproduce.claims import Arm, Claim
from reverie.reproduce.kept import note_of
from reverie.reproduce.runs import read_json


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
        there = self.folder.parents[2] / slug(self.arm.world) / self.folder.parent.name / self.folder.name
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


def plan(claim: Claim, budget: str, seeds: int, runs: Path, results: Path) -> Iterator[Planned]:
    """All runs, seed by seed: a study cut short has as many seeds of any arm as of another, or one less."""
    study = Path(claim.study or claim.name) / budget
    for seed in range(seeds):
        for arm in claim.budget(budget).arms:
            for env in arm.envs if seed < (seeds if arm.seeds is None else arm.seeds) else ():
                own = study / slug(arm.name) / slug(env) / f"seed-{seed}"
                yield Planned(arm, env, seed, runs / own, results / "runs" / own)


def asked_of(run: Planned, preset: str) -> dict[str, Any]:
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


def finished(run: Planned, preset: str, films: bool) -> Path | None:
    """The folder in which it was trained to the end with these settings (or further), and filmed if it has to be; the
    run's own, or what was kept of it. None if there is none."""
    asked = asked_of(run, preset)
    for folder in (run.folder, run.kept):
        note = read_json(note_of(folder))
        had = note.get("asked", {})
        same = {**had, "length": 0} == {**asked, "length": 0}
        far = had.get("length", 0) >= asked["length"]
        filmed = not films or (folder / "open_loop.npz").exists()
        if note.get("finished") is True and same and far and filmed:
            return folder
    return None


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", text).strip("-")
