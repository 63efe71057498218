"""What each step from Dreamer V1 to V3 changed, on one small task: the generations side by side, and V3 without each
of its changes that a setting can take back. Not a claim of the papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from reverie.reproduce.claims import Arm, Budget, Claim, Comparison, Of, Sweep, register
from reverie.reproduce.runs import Measure, Run, Values

V3 = "V3"


def _learning(run: Run) -> Values:
    """The mean of all evaluations: high for who learns much and for who learns early."""
    values = {}
    for task in run.tasks:
        _, y = run.curve(task)
        if len(y):
            values[task] = [float(y.mean())]
    return values


LEARNING = Measure("learning", "return, mean over the run", _learning)

# The sizes are each preset's own; all else is one: vectors, one decision an env step, and whoever learns makes one
# update of 16 x 16 rows for every second of them.
_same = {"pixels": False, "action_repeat": 1, "prefill": 1_000, "batch_size": 16, "batch_length": 16}
_by_count = {**_same, "train_every": 10, "train_updates": 5, "pretrain": 0}
_by_ratio = {**_same, "train_ratio": 128.0, "pretrain": 0}

GENERATIONS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("V1", "dreamer_v1", {**_by_count, "decay_updates": 0}),
    ("V2", "dreamer_v2", _by_count),
    ("V3 of 2023", "dreamer_v3_2023", _by_ratio),
    (V3, "dreamer_v3", _by_ratio),
)
WITHOUT: Mapping[str, Mapping[str, Any]] = {
    "the even 1 %": {"unimix": 0.0},
    "free nats": {"free_nats": 0.0},
    "a lighter KL on the posterior": {"rep_scale": 1.0},
    "the range of returns": {"return_rate": 0.0},
    "a slow critic": {"slow_rate": 1.0},
    "a critic of replayed rows": {"replay_scale": 0.0},
    "clipped gradients": {"clip": 1e9},
    "fresh rows first": {"fresh_first": False},
    "standardised vectors": {"standardize": False},
}


def _without(change: str) -> str:
    return f"V3 without {change}"


def _arms(length: int) -> tuple[Arm, ...]:
    task = ("Pendulum-v1",)
    generations = tuple(Arm(name, agent, task, length, how) for name, agent, how in GENERATIONS)
    return generations + tuple(
        Arm(_without(change), "dreamer_v3", task, length, {**_by_ratio, **how}, shown=False)
        for change, how in WITHOUT.items()
    )


_names = [name for name, *_ in GENERATIONS]

register(
    Claim(
        name="dreamer-lineage",
        system="Dreamer V1 to V3",
        sentence="Every Dreamer learns more than the one before it from as many env steps, rows and updates.",
        budgets={
            "laptop": Budget(
                "laptop",
                3,
                _arms(4_000),
                "Pendulum from its three numbers, small networks, twenty episodes. V3 without one of its changes at a "
                "time is told and not judged: a task as easy as this needs few of them.",
            ),
            "gpu": Budget("laptop", 10, _arms(10_000), "The same for longer, with ten seeds."),
            "paper": Budget(
                "paper",
                5,
                _arms(20_000),
                "Every agent of its paper's size; no paper has asked this question.",
            ),
            "debug": Budget("debug", 3, _arms(1_200), "Shows nothing but that every part runs."),
        },
        comparisons=tuple(
            Comparison(
                f"{after} - {before}, mean return over the run", Of(after, LEARNING), Of(before, LEARNING)
            )
            for before, after in pairwise(_names)
        )
        + tuple(
            Comparison(
                f"V3 - {_without(change)}", Of(V3, LEARNING), Of(_without(change), LEARNING), counts=False
            )
            for change in WITHOUT
        ),
        sweeps=(
            Sweep(
                "what V3 loses",
                "without",
                LEARNING,
                (("nothing", V3), *((change, _without(change)) for change in WITHOUT)),
            ),
        ),
    )
)
