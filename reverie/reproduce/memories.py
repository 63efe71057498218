"""Three claims of World Models: what memory is worth, and what a dream is worth as a place to learn.

One V and M are learned per seed and shared by all controllers of that seed, so that only C differs. The two claims
about dreams are one study: their runs are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from reverie.reproduce.claims import Arm, Budget, Claim, Comparison, Of, Published, Sweep, register
from reverie.reproduce.runs import DREAM_SCORE, GENERATIONS, RANDOM_RETURN, REAL_SCORE

CAR_TABLE = "Ha & Schmidhuber 2018, Table 1"
DREAM_TABLE = "Ha & Schmidhuber 2018, Table 2"


def sized(arms: tuple[Arm, ...], generations: int) -> tuple[Arm, ...]:
    return tuple(replace(arm, length=generations) for arm in arms)


# What C reads (CarRacing)

CAR = "reverie/CarRacing-v0"
ZH, Z, Z_HIDDEN = "z and h", "z alone", "z, hidden layer"
_car = (
    Arm(ZH, "world_models", (CAR,), 1, {"reads": "zh"}, clock=GENERATIONS),
    Arm(Z, "world_models", (CAR,), 1, {"reads": "z"}, clock=GENERATIONS, world=ZH),
    Arm(Z_HIDDEN, "world_models", (CAR,), 1, {"reads": "z", "hidden": 40}, clock=GENERATIONS, world=ZH),
)
_car_paper = tuple(
    arm if arm.world else replace(arm, overrides={**arm.overrides, "collect_env": "reverie/CarRacingFull-v0"})
    for arm in _car
)

register(
    Claim(
        name="wm-hidden-state",
        system="World Models",
        sentence="A linear controller that reads what V sees and what M remembers drives better than one that reads "
        "what V sees alone, with a hidden layer or without.",
        budgets={
            "laptop": Budget(
                "laptop",
                3,
                sized(_car, 40),
                "The paper's networks on 200 episodes, populations of 16 and 4 rollouts for 40 generations, where the "
                "paper has 64, 16 and 1,800. Others found a random M to serve C about as well as a trained one on this "
                "track, so what this shows is the worth of memory, not of M's training.",
            ),
            "gpu": Budget(
                "laptop", 3, sized(_car, 40), "The same: nearly all of the time is the simulator's."
            ),
            "paper": Budget(
                "paper", 5, sized(_car_paper, 1_800), "The authors' setting: 47 days on 64 cores."
            ),
            "debug": Budget("debug", 3, sized(_car, 2), "Shows nothing but that every part runs."),
        },
        comparisons=(
            Comparison("z and h - z alone", Of(ZH, REAL_SCORE), Of(Z, REAL_SCORE)),
            Comparison(
                "z and h - z, hidden layer", Of(ZH, REAL_SCORE), Of(Z_HIDDEN, REAL_SCORE), counts=False
            ),
            Comparison(
                "z and h - random policy",
                Of(ZH, REAL_SCORE),
                Of(ZH, RANDOM_RETURN),
                paired=True,
                counts=False,
            ),
        ),
        published=(
            Published(906, ZH, CAR, 1_800, CAR_TABLE),
            Published(632, Z, CAR, 1_800, CAR_TABLE),
            Published(788, Z_HIDDEN, CAR, 1_800, CAR_TABLE),
        ),
    )
)


# Learning in the dream (Take Cover)

DOOM = "doom/take_cover"
TAUS: Mapping[float, tuple[int, int]] = {  # temperature: score in the dream, score awake
    0.1: (2086, 193),
    0.5: (2060, 196),
    1.0: (1145, 868),
    1.15: (918, 1092),
    1.3: (732, 753),
}
STUDY = "wm-dreams"
LIKE_PAPER = 1.15


def at(tau: float) -> str:
    return f"tau = {tau:g}"


def _dreams(generations: int, **overrides: Any) -> tuple[Arm, ...]:
    """The paper's temperature first: its runs learn the world that the others share."""
    taus = [LIKE_PAPER, *(tau for tau in TAUS if tau != LIKE_PAPER)]
    return tuple(
        Arm(
            at(tau),
            "world_models",
            (DOOM,),
            generations,
            {**overrides, "temperature": tau},
            clock=GENERATIONS,
            world="" if tau == LIKE_PAPER else at(LIKE_PAPER),
        )
        for tau in taus
    )


def _budgets(notes: Mapping[str, str], only_first: bool) -> dict[str, Budget]:
    part = slice(1) if only_first else slice(None)
    doom = {"latents": 4, "restart": True, "evolve_in": "dream", "rewards": False, "random_policy": "held"}
    return {
        "laptop": Budget("take_cover take_cover_laptop", 3, _dreams(24)[part], notes["laptop"], 4),
        "gpu": Budget("take_cover take_cover_laptop", 3, _dreams(24)[part], notes["gpu"], 4),
        "paper": Budget("take_cover", 5, _dreams(1_800)[part], notes["paper"]),
        "debug": Budget("debug", 3, _dreams(2, **doom)[part], notes["debug"]),
    }


PUBLISHED = tuple(Published(awake, at(tau), DOOM, 1_800, DREAM_TABLE) for tau, (_, awake) in TAUS.items())
NOTES = {
    "laptop": "A tenth of the paper's episodes, 12,000 of its 308,000 updates of V, each on a third of the pictures "
    "and with half the channels, 1,500 of its 24,400 of M, each on a tenth of the rows, 24 of its 1,800 generations.",
    "gpu": "The laptop's sizes.",
    "paper": "The authors' setting.",
    "debug": "Shows nothing but that every part runs.",
}

register(
    Claim(
        name="wm-dream-transfer",
        system="World Models",
        sentence="A controller that has learned in M's dream alone works in the real environment.",
        study=STUDY,
        budgets=_budgets(NOTES, only_first=True),
        comparisons=(
            Comparison(
                "awake - random policy",
                Of(at(LIKE_PAPER), REAL_SCORE),
                Of(at(LIKE_PAPER), RANDOM_RETURN),
                paired=True,
            ),
            Comparison(
                "awake - 2 x random policy",
                Of(at(LIKE_PAPER), REAL_SCORE),
                Of(at(LIKE_PAPER), RANDOM_RETURN),
                factor=2,
                paired=True,
            ),
            Comparison(
                "awake - dream",
                Of(at(LIKE_PAPER), REAL_SCORE),
                Of(at(LIKE_PAPER), DREAM_SCORE),
                paired=True,
                counts=False,
            ),
        ),
        published=tuple(p for p in PUBLISHED if p.arm == at(LIKE_PAPER)),
    )
)

register(
    Claim(
        name="wm-temperature",
        system="World Models",
        sentence="In a dream that is too tame the controller learns to cheat: it lives long there and not awake; a "
        "higher temperature prevents it.",
        study=STUDY,
        budgets=_budgets(NOTES, only_first=False),
        comparisons=(
            *(
                Comparison(
                    f"dream - awake, {at(tau)}",
                    Of(at(tau), DREAM_SCORE),
                    Of(at(tau), REAL_SCORE),
                    paired=True,
                )
                for tau in (0.1, 0.5)
            ),
            Comparison(
                f"awake, {at(LIKE_PAPER)} - {at(0.5)}",
                Of(at(LIKE_PAPER), REAL_SCORE),
                Of(at(0.5), REAL_SCORE),
            ),
            Comparison(
                f"awake, {at(LIKE_PAPER)} - {at(1.3)}",
                Of(at(LIKE_PAPER), REAL_SCORE),
                Of(at(1.3), REAL_SCORE),
                counts=False,
            ),
        ),
        sweeps=(
            Sweep(
                "Score awake", "temperature of the dream", REAL_SCORE, tuple((f"{t:g}", at(t)) for t in TAUS)
            ),
            Sweep(
                "Score in the dream",
                "temperature of the dream",
                DREAM_SCORE,
                tuple((f"{t:g}", at(t)) for t in TAUS),
            ),
        ),
        published=PUBLISHED,
    )
)
