"""Five claims of PlaNet and Dreamer about learning from pixels, each in four sizes.

``debug`` finds out whether the plumbing holds; ``laptop`` is two cores and about an hour, small networks, an
easy task; ``gpu`` is half an hour of one large GPU; ``paper`` is the authors' setting. Published numbers are
means over five seeds as the papers print them; a figure shows one only where agent, task and step count are
the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from reverie.reproduce.claims import Arm, Budget, Claim, Comparison, Of, Published, Sweep, register
from reverie.reproduce.runs import (
    FINAL_RETURN,
    MEAN_ERROR,
    MODEL_ERROR,
    RANDOM_RETURN,
    SECONDS,
    STILL_ERROR,
)

PLANET_TABLE = "Hafner et al. 2019, Table 1"
DREAMER_TABLE = "Hafner et al. 2020, Appendix, table of scores"

# PlaNet's tasks: action repeat R, and the return after 1,000 episodes.
PLANET_TASKS = {
    "dmc/cartpole_swingup": (8, 821),
    "dmc/reacher_easy": (4, 832),
    "dmc/cheetah_run": (4, 662),
    "dmc/finger_spin": (2, 700),
    "dmc/cup_catch": (4, 930),
    "dmc/walker_walk": (2, 951),
}
PLANET_REPEAT: Mapping[str, Mapping[str, Any]] = {
    task: {"action_repeat": repeat} for task, (repeat, _) in PLANET_TASKS.items()
}

# Dreamer's tasks, all with R = 2: Dreamer's and PlaNet's return after 5e6 env steps.
DREAMER_TASKS = {
    "dmc/acrobot_swingup": (365.26, 3.21),
    "dmc/cartpole_balance": (979.56, 452.56),
    "dmc/cartpole_balance_sparse": (941.84, 164.74),
    "dmc/cartpole_swingup": (833.66, 312.56),
    "dmc/cartpole_swingup_sparse": (812.22, 0.64),
    "dmc/cheetah_run": (894.56, 496.12),
    "dmc/cup_catch": (962.48, 455.98),
    "dmc/finger_spin": (498.88, 495.25),
    "dmc/finger_turn_easy": (825.86, 451.22),
    "dmc/finger_turn_hard": (891.38, 312.55),
    "dmc/hopper_hop": (368.97, 0.37),
    "dmc/hopper_stand": (923.72, 5.96),
    "dmc/pendulum_swingup": (833.00, 3.27),
    "dmc/quadruped_run": (888.39, 280.45),
    "dmc/quadruped_walk": (931.61, 238.90),
    "dmc/reacher_easy": (935.08, 468.50),
    "dmc/reacher_hard": (817.05, 187.02),
    "dmc/walker_run": (824.67, 626.25),
    "dmc/walker_stand": (977.99, 759.19),
    "dmc/walker_walk": (961.67, 944.70),
}


def budgets(
    arms: tuple[Arm, ...],
    paper: tuple[Arm, ...],
    laptop: int,
    gpu: int,
    notes: Mapping[str, str],
    seeds: int = 3,
    evaluations: int = 10,
) -> dict[str, Budget]:
    """The four sizes of a claim: the same arms with other step counts, and the paper's own arms. ``evaluations`` of a
    laptop's run: where every decision is searched for, they take longer than learning."""

    def sized(env_steps: int) -> tuple[Arm, ...]:
        return tuple(replace(arm, length=env_steps * arm.length) for arm in arms)

    return {
        "laptop": Budget("laptop", seeds, sized(laptop), notes["laptop"], evaluations),
        "gpu": Budget("paper", seeds, sized(gpu), notes["gpu"]),
        "paper": Budget("paper", 5, paper, notes["paper"]),
        "debug": Budget("debug", 3, sized(600), "Shows nothing but that every part runs."),
    }


SMALL = "Pendulum-v1"  # 200 env steps an episode, its speed hidden in the pictures
STUDY = "pixels"  # Dreamer's and PlaNet's runs on it serve three claims
_pixels = {"action_repeat": 2}
_dreamer = {**_pixels, "horizon": 15}


# Dreamer beats PlaNet

DREAMER, PLANET = "Dreamer", "PlaNet"
HORIZONS = (5, 10, 15, 20)


def _horizon(horizon: int) -> str:
    return DREAMER if horizon == 15 else f"{DREAMER}, H = {horizon}"


def _horizons(envs: tuple[str, ...], env_steps: int, seeds: int | None) -> tuple[Arm, ...]:
    """Dreamer with the horizons that are not its own."""
    return tuple(
        Arm(_horizon(h), "dreamer_v1", envs, env_steps, {**_pixels, "horizon": h}, seeds=seeds, shown=False)
        for h in HORIZONS
        if h != 15
    )


def _dreamer_and_planet(envs: tuple[str, ...], env_steps: int) -> tuple[Arm, ...]:
    return (
        Arm(DREAMER, "dreamer_v1", envs, env_steps, _dreamer),
        Arm(PLANET, "planet", envs, env_steps, _pixels),
    )


register(
    Claim(
        name="dreamer-beats-planet",
        study=STUDY,
        system="Dreamer V1",
        sentence="Dreamer ends with a higher return than PlaNet from the same env steps, at less than half "
        "the compute per env step, and whatever its imagination horizon.",
        budgets=budgets(
            arms=_dreamer_and_planet((SMALL,), 1) + _horizons((SMALL,), 1, seeds=1),
            paper=_dreamer_and_planet(tuple(DREAMER_TASKS), 5_000_000)
            + _horizons(("dmc/cartpole_swingup", "dmc/walker_walk"), 5_000_000, seeds=None),
            laptop=10_000,
            gpu=20_000,
            notes={
                "laptop": "One small task from pixels with small networks: it can show who is ahead after "
                "fifty episodes, and what an env step costs on this machine with a search a twentieth of the "
                "paper's. It cannot show the papers' scores after 5e6 env steps on twenty tasks. Horizons other "
                "than 15 have one seed each and do not enter the verdict.",
                "gpu": "The paper's networks on one small task for a hundred episodes: 1/250 of the paper's "
                "steps. Horizons other than 15 have one seed each and do not enter the verdict.",
                "paper": "The authors' setting: twenty tasks, 5e6 env steps, five seeds; months of one GPU.",
            },
        ),
        comparisons=(
            Comparison("Dreamer - PlaNet, final return", Of(DREAMER, FINAL_RETURN), Of(PLANET, FINAL_RETURN)),
            Comparison(
                "PlaNet - 2 x Dreamer, seconds per env step", Of(PLANET, SECONDS), Of(DREAMER, SECONDS), 2
            ),
            Comparison(
                "Dreamer - random policy",
                Of(DREAMER, FINAL_RETURN),
                Of(DREAMER, RANDOM_RETURN),
                paired=True,
                counts=False,
            ),
        ),
        sweeps=(
            Sweep(
                "Dreamer's final return over the horizon",
                "imagination horizon H",
                FINAL_RETURN,
                tuple((str(h), _horizon(h)) for h in HORIZONS),
            ),
        ),
        published=tuple(
            Published(value, arm, task, 5_000_000, DREAMER_TABLE)
            for task, values in DREAMER_TASKS.items()
            for arm, value in zip((DREAMER, PLANET), values, strict=True)
        ),
    )
)


# PlaNet is data-efficient, and needs each of its parts

PARTS: Mapping[str, Mapping[str, Any]] = {
    PLANET: {},
    "random shooting": {"planner": "shooting"},
    "random collection": {"random_collection": True},
    "deterministic model": {"model": "deterministic"},
    "stochastic model": {"model": "stochastic"},
}
UNTAUGHT = (
    "The deterministic model is the authors' ablation, means for samples and a KL scale of 0: nothing then teaches its "
    "prior what the next picture will say, so it plans without foresight. Its row says no more than that; one whose "
    "prior is taught was not tried."
)


register(
    Claim(
        name="planet-data-efficiency",
        study=STUDY,
        system="PlaNet",
        sentence="PlaNet learns control from pixels in hundreds of episodes; planning by the cross-entropy "
        "method beats random shooting and collecting at random, and the model needs its stochastic and its "
        "deterministic path.",
        budgets=budgets(
            arms=tuple(Arm(name, "planet", (SMALL,), 1, {**_pixels, **part}) for name, part in PARTS.items()),
            paper=tuple(
                Arm(name, "planet", tuple(PLANET_TASKS), 1_000_000, part, PLANET_REPEAT)
                for name, part in PARTS.items()
            ),
            laptop=10_000,
            gpu=20_000,
            evaluations=4,
            notes={
                "laptop": "One small task from pixels, fifty episodes, small networks: it can show that "
                f"PlaNet learns, and which parts matter on an easy task. {UNTAUGHT}",
                "gpu": f"The paper's networks on one small task for a hundred episodes. {UNTAUGHT}",
                "paper": "The authors' setting: six tasks, 1,000 episodes, five seeds; they report 10 to 20 "
                f"hours a run on one V100. {UNTAUGHT}",
            },
        ),
        comparisons=(
            Comparison(
                "PlaNet - random policy", Of(PLANET, FINAL_RETURN), Of(PLANET, RANDOM_RETURN), paired=True
            ),
            *(
                Comparison(f"PlaNet - {name}", Of(PLANET, FINAL_RETURN), Of(name, FINAL_RETURN))
                for name in PARTS
                if name != PLANET
            ),
        ),
        published=tuple(
            Published(value, PLANET, task, 1_000_000, PLANET_TABLE)
            for task, (_, value) in PLANET_TASKS.items()
        ),
    )
)


# One agent, several tasks

ONE, EACH = "one agent", "an agent each"


def _together(tasks: tuple[str, ...], env_steps: int, action_repeat: int) -> tuple[Arm, ...]:
    """One agent on all tasks, and an agent for each, with the same env steps per task and the paper's updates."""
    repeat = {"action_repeat": action_repeat, "train_every": 1_000, "train_updates": 100}
    return (
        Arm(ONE, "planet", ("+".join(tasks),), env_steps * len(tasks), repeat),
        Arm(EACH, "planet", tasks, env_steps, repeat),
    )


register(
    Claim(
        name="planet-one-agent",
        system="PlaNet",
        sentence="One PlaNet agent with one model learns several tasks at once, told by nothing but the "
        "pictures which one it is in.",
        budgets=budgets(
            arms=_together(("dmc/cartpole_swingup", "dmc/cup_catch"), 1, action_repeat=6),
            paper=_together(tuple(PLANET_TASKS), 1_000_000, action_repeat=4),
            laptop=15_000,
            gpu=30_000,
            evaluations=3,
            notes={
                "laptop": "Two tasks, fifteen episodes each, small networks: it can show whether the shared "
                "agent gets above the random policy on each. How close it comes to an agent of its own is "
                "told, not judged.",
                "gpu": "Two tasks, thirty episodes each, the paper's networks.",
                "paper": "Six tasks, 1,000 episodes each. The authors give each task its own action repeat; "
                "here all have 4.",
            },
        ),
        comparisons=(
            Comparison(
                "one agent - random policy",
                Of(ONE, FINAL_RETURN),
                Of(ONE, RANDOM_RETURN),
                paired=True,
                each_task=True,
            ),
            Comparison(
                "one agent - an agent each",
                Of(ONE, FINAL_RETURN),
                Of(EACH, FINAL_RETURN),
                each_task=True,
                counts=False,
            ),
        ),
    )
)


# Discrete actions

THROUGH, SCORE = "straight-through", "score function"
_discrete = {"horizon": 10, "kl_scale": 0.1, "cont": True, "entropy_scale": 0.0}


def _gradients(env: str, env_steps: int, **overrides: Any) -> tuple[Arm, ...]:
    return (
        Arm(THROUGH, "dreamer_v1", (env,), env_steps, {**overrides, "action_gradient": "straight_through"}),
        Arm(SCORE, "dreamer_v1", (env,), env_steps, {**overrides, "action_gradient": "score"}),
    )


register(
    Claim(
        name="dreamer-discrete",
        system="Dreamer V1",
        sentence="The same agent learns discrete actions from pixels, with straight-through gradients.",
        budgets=budgets(
            arms=_gradients("reverie/Catch-v0", 1, **_discrete, action_repeat=1),
            paper=_gradients(
                "ALE/Pong-v5", 20_000_000, **_discrete, action_repeat=4, reward_transform="tanh"
            ),
            laptop=8_000,
            gpu=20_000,
            notes={
                "laptop": "Catch, nine decisions an episode, from its 64x64 picture: it can show that a "
                "discrete actor learns through the model's gradient. It says nothing about Atari.",
                "gpu": "Catch with the paper's networks. It says nothing about Atari.",
                "paper": "One Atari game. The authors print curves for their games, no table.",
            },
        ),
        comparisons=(
            Comparison(
                "straight-through - random policy",
                Of(THROUGH, FINAL_RETURN),
                Of(THROUGH, RANDOM_RETURN),
                paired=True,
            ),
            Comparison(
                "score function - random policy",
                Of(SCORE, FINAL_RETURN),
                Of(SCORE, RANDOM_RETURN),
                paired=True,
                counts=False,
            ),
            Comparison(
                "straight-through - score function",
                Of(THROUGH, FINAL_RETURN),
                Of(SCORE, FINAL_RETURN),
                counts=False,
            ),
        ),
    )
)


# Open-loop video

register(
    Claim(
        name="open-loop-video",
        study=STUDY,
        system="PlaNet, Dreamer",
        sentence="After 5 frames of context the model predicts 45 frames ahead, from the actions alone, "
        "better than the last frame seen and better than the mean picture.",
        budgets=budgets(
            arms=(Arm(DREAMER, "dreamer_v1", (SMALL,), 1, _dreamer),),
            paper=(Arm(DREAMER, "dreamer_v1", ("dmc/cup_catch", "dmc/walker_walk"), 1_000_000, _dreamer),),
            laptop=8_000,
            gpu=20_000,
            seeds=2,
            notes={
                "laptop": "Two agents on one small task, ten new episodes each. The intervals are over "
                "episodes, so they speak for these agents. The mean picture is taken over the very frames "
                "to be predicted: no constant guess can do better.",
                "gpu": "The same with the paper's networks.",
                "paper": "Two of the authors' tasks; their figures show videos, and no number.",
            },
        ),
        comparisons=(
            Comparison(
                "last frame's error - model's",
                Of(DREAMER, STILL_ERROR),
                Of(DREAMER, MODEL_ERROR),
                paired=True,
            ),
            Comparison(
                "mean picture's error - model's",
                Of(DREAMER, MEAN_ERROR),
                Of(DREAMER, MODEL_ERROR),
                paired=True,
            ),
        ),
        films=True,
    )
)
