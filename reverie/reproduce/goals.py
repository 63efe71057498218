"""Claims about goals: what hindsight is worth (HER), and what it is worth to give a goal a deadline (TDM).

Agents are compared by how far from its goal an evaluation's episode ends, and by the share of episodes that end
there. DDPG is paid minus the distance and sees the goal; HER is paid -1 until it is there; TDM looks at distances
alone, so what it is paid does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from reverie.presets import PRESETS
from reverie.reproduce.claims import Arm, Budget, Claim, Comparison, Of, Sweep, register
from reverie.reproduce.runs import LAST_PART, Measure, Run, Values, series


def task(run: Run) -> str:
    """The task, whatever is paid for it."""
    return run.env.replace("Dense-v", "-v")


def _final(key: str, plus: float = 0.0) -> Any:
    def of(run: Run) -> Values:
        x, y = series(run.rows, key)
        return {task(run): [plus + float(y[x > (1 - LAST_PART) * x[-1]].mean())]} if len(x) else {}

    return of


def steps_to(levels: Mapping[str, float]) -> Measure:
    """Env steps until an evaluation ends, in the mean, within the task's distance; all of the run where none did."""

    def of(run: Run) -> Values:
        x, y = series(run.rows, "eval/distance")
        if not len(x):
            return {}
        there = np.flatnonzero(y <= levels[task(run)])
        return {task(run): [float(x[there[0]] if len(there) else x[-1])]}

    return Measure("steps_to_level", "env steps", of)


DISTANCE = Measure("final_distance", "distance", _final("eval/distance"))
SUCCESS = Measure(
    "success", "share of episodes", _final("eval/last_reward", 1.0)
)  # paid -1, and 0 at the goal
ENOUGH = Measure("enough", "share of episodes", lambda run: {task(run): [0.95]})
NOTHING = "Shows nothing but that every part runs."


# HER: sparse rewards

BITS, FETCH = "reverie/BitFlip-v0", "FetchReach-v4"
HER, BLIND = "HER", "no hindsight"


def _preset(name: str) -> dict[str, Any]:
    settings = {k: v for k, v in PRESETS["her"][name].items() if k != "steps"}
    return settings | {"eval_episodes": 50}


def _sparse(bits: int, reach: int, small: bool = False) -> tuple[Arm, ...]:
    """Both with and without hindsight; ``small``: the sizes of the preset that the budget names."""
    arms = []
    for name, future in ((HER, 4), (BLIND, 0)):
        for what, env, length in (("bits", BITS, bits), ("reach", FETCH, reach)):
            sizes = {} if small else _preset(what)
            arms.append(Arm(f"{name}, {what}", "her", (env,), length, {**sizes, "future": future}))
    return tuple(arms)


register(
    Claim(
        name="her-sparse",
        system="HER",
        sentence="Goals that are rewarded only when they are reached are learned with hindsight, and not without it.",
        budgets={
            "laptop": Budget(
                "laptop",
                5,
                _sparse(30_000, 5_000),
                "15 bits, 2,000 episodes or so; FetchReach, 100 episodes: with twice as many it is learned without "
                "hindsight too. Narrower networks than the paper's.",
            ),
            "gpu": Budget("laptop", 5, _sparse(30_000, 5_000), "The same: nothing here fills a GPU."),
            "paper": Budget(
                "paper", 5, _sparse(90_000, 100_000), "The paper's networks; its tasks were larger."
            ),
            "debug": Budget("debug", 3, _sparse(300, 300, small=True), NOTHING),
        },
        comparisons=(
            *(
                Comparison(
                    f"{HER} - {BLIND}, success, {what}",
                    Of(f"{HER}, {what}", SUCCESS),
                    Of(f"{BLIND}, {what}", SUCCESS),
                )
                for what in ("bits", "reach")
            ),
            *(
                Comparison(
                    f"{HER} - 95 %, {what}",
                    Of(f"{HER}, {what}", SUCCESS),
                    Of(f"{HER}, {what}", ENOUGH),
                    paired=True,
                    counts=False,
                )
                for what in ("bits", "reach")
            ),
        ),
    )
)


# TDM: samples

POINT, REACHER, HAND = "reverie/PointMass-v0", "reverie/GoalReacher-v0", "reverie/GoalHand-v0"
LEVELS = {
    POINT: 0.05,  # half of what counts as there
    REACHER: 0.1,  # a twentieth of the arm's span
    HAND: 0.15,  # metres; a sixth of the way at the start
}
TDM, DDPG, HINDSIGHT, MODEL = "TDM", "DDPG", "HER", "MPC"


def dense(*envs: str) -> tuple[str, ...]:
    return tuple(env.replace("-v0", "Dense-v0") for env in envs)


def _samples(
    env: str, length: int, every: int, updates: int, max_tau: int, prefill: int = 500, **shared: Any
) -> tuple[Arm, ...]:
    """TDM's laptop preset, and the baselines with its sizes, updates and averaging; each with its own reward and
    discount. ``shared`` is for all of them. With ``max_tau`` an episode is whole countdowns: TDM wants to be there when
    one ends, and passes by in between."""
    shared |= {"prefill": prefill, "eval_every": every, "eval_episodes": 20}
    both = {"units": (64, 64), "batch_size": 128, "actor_lr": 1e-3, "train_updates": updates} | shared
    averaged = {"train_every": 1, "target_every": 1, "target_rate": 0.01}
    return (
        Arm(TDM, "tdm", (env,), length, {"train_updates": updates, "max_tau": max_tau, **shared}),
        Arm(DDPG, "ddpg", dense(env), length, {**both, "discount": 0.98, "tau": 0.01}),
        Arm(HINDSIGHT, "her", (env,), length, both | averaged),
    )


def _whole(envs: tuple[str, ...], length: int, every: int) -> tuple[Arm, ...]:
    """The presets of the budget as they are."""
    seen = {"eval_every": every, "eval_episodes": 20}
    return (
        Arm(TDM, "tdm", envs, length, seen),
        Arm(DDPG, "ddpg", dense(*envs), length, seen),
        Arm(HINDSIGHT, "her", envs, length, seen),
    )


SOON = steps_to(LEVELS)
_two = Budget(
    "laptop",
    5,
    _samples(REACHER, 9_000, 250, 5, max_tau=9)  # episodes of 50 steps
    + _samples(HAND, 14_000, 250, 5, max_tau=9),  # of 100
    "A fingertip on a plane and the hand of an arm with seven joints; layers of 64, five updates for each env step, "
    "for everybody. A run that never gets there counts with its whole length, which is kind to it; the hand's were to "
    "end after 9,000 env steps, which could not tell, and went on. Where chance meets the goal often enough TDM has no "
    "such lead: HER was as fast on the point mass and on FetchReach (one run each), and on the half-cheetah's speed "
    "(three).",
)

register(
    Claim(
        name="tdm-samples",
        system="TDM",
        study="tdm",
        sentence="TDM learns to reach goals in at most half of the env steps that DDPG with a dense reward, and HER, "
        "need.",
        budgets={
            "laptop": _two,
            "gpu": _two,
            "paper": Budget(
                "paper",
                5,
                _whole((POINT, REACHER, HAND), 100_000, 2_500),
                "The papers' networks and schedules.",
            ),
            "debug": Budget("debug", 3, _whole((POINT, REACHER), 400, 100), NOTHING),
        },
        comparisons=(
            *(
                Comparison(f"{other} - 2 x {TDM}, steps", Of(other, SOON), Of(TDM, SOON), 2, each_task=True)
                for other in (DDPG, HINDSIGHT)
            ),
            *(
                Comparison(
                    f"{other} - {TDM}, final distance",
                    Of(other, DISTANCE),
                    Of(TDM, DISTANCE),
                    each_task=True,
                    counts=False,
                )
                for other in (DDPG, HINDSIGHT)
            ),
        ),
    )
)


# TDM: where the dynamics are hard to model


CHEETAH = "reverie/GoalCheetah-v0"


def _hard(arms: tuple[Arm, ...], length: int, every: int) -> tuple[Arm, ...]:
    """TDM and DDPG, and a search with a learned one-step model."""
    search = Arm(MODEL, "mpc", dense(CHEETAH), length, {"eval_every": every, "eval_episodes": 20})
    return (*(arm for arm in arms if arm.name != HINDSIGHT), search)


_cheetah = _samples(CHEETAH, 20_000, 1_000, 2, max_tau=10, prefill=1_000, units=(128, 128))  # episodes of 99
_speed = Budget(
    "laptop",
    3,
    _hard(_cheetah, 20_000, 4_000),
    "Half-cheetah at a wanted speed, 200 episodes; the paper has five times as many steps. As near means: nine tenths "
    "of TDM's distance are less than DDPG's.",
)

register(
    Claim(
        name="tdm-hard-model",
        system="TDM",
        study="tdm",
        sentence="Where the dynamics are hard to model, TDM ends as near to its goals as a model-free agent, and "
        "planning with a learned one-step model ends further away.",
        budgets={
            "laptop": _speed,
            "gpu": _speed,
            "paper": Budget(
                "paper",
                5,
                _hard(_whole((CHEETAH,), 100_000, 2_500), 100_000, 10_000),
                "The papers' settings.",
            ),
            "debug": Budget("debug", 3, _hard(_whole((CHEETAH,), 400, 200), 400, 200), NOTHING),
        },
        comparisons=(
            Comparison(f"{MODEL} - {TDM}, final distance", Of(MODEL, DISTANCE), Of(TDM, DISTANCE)),
            Comparison(f"{DDPG} - 0.9 x {TDM}, final distance", Of(DDPG, DISTANCE), Of(TDM, DISTANCE), 0.9),
        ),
    )
)


# TDM: the horizon

HORIZONS = (0, 1, 4, 9, 24, 49)


def at(tau: int) -> str:
    return f"T = {tau}"


def _horizons(length: int, every: int) -> tuple[Arm, ...]:
    seen = {"eval_every": every, "eval_episodes": 20}
    return tuple(Arm(at(tau), "tdm", (REACHER,), length, {**seen, "max_tau": tau}) for tau in HORIZONS)


register(
    Claim(
        name="tdm-horizon",
        system="TDM",
        sentence="With T = 0 TDM is control by a one-step model, which caps it; with a long horizon it is a model-free "
        "agent, which learns slowly; between them lies the best.",
        budgets={
            "laptop": Budget("laptop", 3, _horizons(4_000, 500), "The reacher's fingertip, 80 episodes."),
            "gpu": Budget("laptop", 3, _horizons(4_000, 500), "The same."),
            "paper": Budget("reacher", 5, _horizons(100_000, 5_000), "The released reacher's sizes."),
            "debug": Budget("debug", 3, _horizons(400, 200), NOTHING),
        },
        comparisons=tuple(
            Comparison(
                f"{at(tau)} - {at(9)}, final distance",
                Of(at(tau), DISTANCE),
                Of(at(9), DISTANCE),
                counts=tau in (0, 49),
            )
            for tau in HORIZONS
            if tau != 9
        ),
        sweeps=(
            Sweep("Final distance over the horizon", "T", DISTANCE, tuple((str(t), at(t)) for t in HORIZONS)),
        ),
    )
)
