"""DayDreamer's claims, on the twins: a quadruped that walks within its first hour and gets used to pushes in ten
minutes more, an arm that picks and places.

The robot's clock is virtual, so that two cores can carry it out: a decision takes its period, an update a fifth of a
second of that clock, and there is one for every four decisions (with a GPU, for every two). What is learned from is
what a robot would have lived through in that time; how long the computer takes is another matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reverie import presets
from reverie.reproduce.claims import Arm, Budget, Claim, Comparison, Of, register
from reverie.reproduce.runs import ENV_STEPS, LAST_PART, Measure, Run, Values, series

WALK, CARRY = "reverie/A1-v0", "reverie/PickPlace-v0"
ROBOTS = {WALK: "a1", CARRY: "pick_place"}
UPDATE_MS, RATIO = 200.0, 0.25  # an update, on the virtual clock; updates per decision, at most
OFTEN = {"virtual_update": 100.0, "max_ratio": 0.5}  # the same where there is a GPU
HOUR, PUSHED = 72_000, 12_000  # decisions of the A1: an hour, and ten minutes in which it is pushed
CALM = HOUR / (HOUR + PUSHED)  # share of a run's decisions before the pushes
DAYDREAMER, SAC, A2C = "DayDreamer", "SAC", "A2C"


def lived(agent: str, env: str, preset: str, run_dir: Path, seed: int, overrides: dict[str, Any]) -> None:
    """A run on a twin's clock, the A1's with pushes in its last seventh; agents with a loop of their own learn in the
    environment, which waits for them."""
    from reverie import train
    from reverie.run.asynchronous import RobotConfig, learn_on

    own = dict(overrides)
    every, names = own.pop(ENV_STEPS.every), tuple(preset.split())
    cost, ratio = own.pop("virtual_update", UPDATE_MS), own.pop("max_ratio", RATIO)
    if getattr(presets.agent_class(agent), "loop", "online") != "online":
        train(agent, env, names, run_dir, seed=seed, eval_every=every, **own)
        return
    config = presets.resolve(agent, names, own)
    settings = RobotConfig(
        seed=seed, virtual_update=cost, max_ratio=ratio, log_every=max(1, min(1_000, every))
    )
    calm = replace(config, steps=round(CALM * config.steps)) if env == WALK else config
    if learn_on(agent, ROBOTS[env], names, calm, settings, run_dir) and env == WALK:
        learn_on(agent, "a1_pushed", names, config, settings, run_dir)


def _part(
    name: str, key: str, begin: float, end: float, of: Callable[[np.ndarray], Any] = np.mean
) -> Measure:
    """The lines after ``begin`` and up to ``end``, both shares of the run, taken together by ``of``."""

    def found(run: Run) -> Values:
        x, y = series(run.rows, key)
        part = y[(x > begin * x[-1]) & (x <= end * x[-1])] if len(x) else y
        return {run.env: [float(of(part))]} if len(part) else {}

    return Measure(name, "return" if key == "episode/return" else "reward per decision", found)


def _always(value: float) -> Measure:
    return Measure(f"{value:g}", "reward per decision", lambda run: {run.env: [value]})


STANDING = _part("final reward/mean", "reward/mean", (1 - LAST_PART) * CALM, CALM)
AT_BEST = _part("best reward/mean", "reward/mean", 0.0, CALM, np.max)
STEADY = _part("final reward/mean, pushed", "reward/mean", 1 - (1 - CALM) / 3, 1.0)
RETURN = _part("final episode/return", "episode/return", 1 - LAST_PART, 1.0)

_walk = tuple(Arm(name, name.lower(), (WALK,), HOUR + PUSHED) for name in (DAYDREAMER, SAC))
_walk_often = tuple(replace(arm, overrides=OFTEN) for arm in _walk)
_note = "Virtual clock, one update for every four decisions."
_often = "Virtual clock, one update for every two decisions."

register(
    Claim(
        name="daydreamer-walk",
        system="DayDreamer",
        sentence="From lying on its back, with no demonstration and no simulator, a quadruped learns to roll over, "
        "stand and walk in one hour of its own time, and to withstand pushes in ten minutes more; SAC does not.",
        train=lived,
        budgets={
            "laptop": Budget("laptop", 3, _walk, f"{_note} Small networks; the twin stands for the robot."),
            "gpu": Budget("paper", 3, _walk_often, f"{_often} The paper's networks."),
            "paper": Budget("paper", 5, _walk_often, f"{_often} The paper has one run on one robot."),
            "debug": Budget(
                "debug",
                3,
                tuple(replace(arm, length=700) for arm in _walk),
                "Shows nothing but that it runs.",
            ),
        },
        comparisons=(
            Comparison(
                "stands: last tenth - 9", Of(DAYDREAMER, STANDING), Of(DAYDREAMER, _always(9.0)), paired=True
            ),
            Comparison(
                "walks: at best - 11", Of(DAYDREAMER, AT_BEST), Of(DAYDREAMER, _always(11.0)), paired=True
            ),
            Comparison(
                "withstands pushes: last third of them - 9",
                Of(DAYDREAMER, STEADY),
                Of(DAYDREAMER, _always(9.0)),
                paired=True,
            ),
            Comparison("DayDreamer - SAC", Of(DAYDREAMER, STANDING), Of(SAC, STANDING)),
        ),
    )
)

_like = {"entropy_target": 0.4}
_carry = (
    Arm(DAYDREAMER, "daydreamer", (CARRY,), 30_000, _like),
    Arm(A2C, "a2c", (CARRY,), 30_000, {"pixels": False, "image_size": 64, "action_repeat": 1}),
)
_carry_paper = tuple(
    replace(
        arm,
        length=58_000,
        overrides={**_like, "deter": 512, **OFTEN} if arm.name == DAYDREAMER else arm.overrides,
    )
    for arm in _carry
)

register(
    Claim(
        name="daydreamer-pick-place",
        system="DayDreamer",
        sentence="From a camera, the arm's own senses and a sparse reward, picking and placing is learned where "
        "model-free learning stays near nothing.",
        train=lived,
        budgets={
            "laptop": Budget("laptop", 3, _carry, f"{_note} Small networks; A2C for PPO and Rainbow."),
            "gpu": Budget(
                "paper", 3, _carry_paper, f"{_often} The paper's networks, and its eight hours at 2 Hz."
            ),
            "paper": Budget("paper", 5, _carry_paper, f"{_often} The paper has one run on each of two arms."),
            "debug": Budget(
                "debug",
                3,
                tuple(replace(arm, length=400) for arm in _carry),
                "Shows nothing but that it runs.",
            ),
        },
        comparisons=(
            Comparison("DayDreamer - A2C", Of(DAYDREAMER, RETURN), Of(A2C, RETURN)),
            Comparison(
                "DayDreamer - 30",
                Of(DAYDREAMER, RETURN),
                Of(DAYDREAMER, Measure("30", "return", lambda run: {run.env: [30.0]})),
                paired=True,
            ),
        ),
    )
)
