"""Claims of I2A, what imagined futures are worth to an agent that learns to read them, and of Distral.

The four of I2A are one study: they share their runs, and all agents of a seed that imagine share the model that the
first of them learned, but for the poor one. An env step counts wherever it was taken: what the model learned from
is part of every run's length.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import reverie
from reverie import presets
from reverie.agents.distral import tabular, transfer
from reverie.envs.two_rooms import BEFORE, GOALS, MOVES
from reverie.envs.two_rooms import CELLS as PLACES
from reverie.media import atomic
from reverie.presets import CELLS
from reverie.reproduce.claims import Arm, Budget, Claim, Comparison, Of, Sweep, register
from reverie.reproduce.levels import BOXES, CLOCKS, WAYS, solve_boxes, solve_levels
from reverie.reproduce.runs import EPISODES, Measure, Run, Values, series

# I2A in Sokoban

ROOMS = "reverie/SokobanSmall-v0"  # 7x7 cells, two boxes
ONE_BOX = "reverie/SokobanTiny-v0"
BOXES_OF = {ONE_BOX: 1, ROOMS: 2}  # else four
HOME = 5.0  # a return above this is a solved level: at least 11 less 40 tenths, else at most 1
I2A, COPY, SAME, WIDE = "I2A", "copy-model", "A2C, same network", "A2C, same size"
POOR, SEARCH, POOR_SEARCH, BLIND, CHANCE = (
    "I2A, poor model",
    "search",
    "search, poor model",
    "I2A, no rewards",
    "I2A, rollouts by chance",
)
TRUE, TRUE_SEARCH, RESIDUAL = "I2A, true rules", "search, true rules", "A2C, residual"
DEPTHS = (1, 3, 5)
STUDY = "i2a"


def _solved(run: Run) -> Values:
    returns = run.evaluation.get("returns")
    return {run.env: [float(np.mean(np.array(returns) > HOME))]} if returns else {}


def _last(key: str) -> Measure:
    """The mean of what was logged in the last tenth of a run."""

    def of(run: Run) -> Values:
        x, y = series(run.rows, key)
        return {run.env: [float(y[x > 0.9 * x[-1]].mean())]} if len(x) else {}

    return Measure(key.replace("/", "_"), "nats", of)


def _sure(run: Run) -> Values:
    """KL from the policy to chance: what the policy has to say, in nats."""
    entropy = _last("actor/entropy").of(run)
    return {task: [float(np.log(5) - v) for v in values] for task, values in entropy.items()}


SOLVED = Measure("solved", "share of levels", _solved)
APART = _last("distil/kl")
SURE = Measure("policy_to_chance", "nats", _sure)


def depth(horizon: int) -> str:
    return I2A if horizon == 3 else f"{I2A}, H = {horizon}"


def sokoban(
    steps: int, names: tuple[str, ...], small: Mapping[str, Any] = {}, env: str = ROOMS, **common: Any
) -> tuple[Arm, ...]:
    """The agents of the study by name; ``small`` shrinks all of them, ``common`` is set in all."""
    run = dict(time_limit=40, eval_episodes=200) | common
    poor = dict(model_channels=6, model_updates=600)
    true = dict(model="simulator", model_steps=0, random_steps=0, model_updates=0)
    if small:
        poor["model_updates"] = small["model_updates"]
    for_a2c = {k: v for k, v in small.items() if k in CELLS}
    settings: dict[str, tuple[str, dict[str, Any], str]] = {
        I2A: ("i2a", {}, ""),
        COPY: ("i2a", dict(model="copy", model_steps=0, random_steps=0, model_updates=0), ""),
        SAME: ("a2c", dict(**CELLS, units=256), ""),
        WIDE: ("a2c", CELLS | dict(channels=(32, 32), units=440), ""),
        depth(1): ("i2a", dict(horizon=1), I2A),
        depth(5): ("i2a", dict(horizon=5), I2A),
        POOR: ("i2a", poor, ""),
        SEARCH: ("i2a", dict(search=True), I2A),
        POOR_SEARCH: ("i2a", poor | dict(search=True), POOR),
        BLIND: ("i2a", dict(rewards=False), I2A),
        CHANCE: ("i2a", dict(rollouts_by="chance"), I2A),
        RESIDUAL: ("a2c", CELLS | dict(residual=True, strides=(1, 1), units=256), ""),
        TRUE: ("i2a", true, ""),
        TRUE_SEARCH: ("i2a", true | dict(search=True), ""),
    }
    arms = []
    for name in names:
        agent, own, world = settings[name]
        less = for_a2c if agent == "a2c" else small
        own = {k: v for k, v in own.items() if k != "steps"}
        arms.append(Arm(name, agent, (env,), steps, {**less, **own, **run, **for_a2c}, world=world))
    return tuple(arms)


TINY = dict(
    CELLS,
    actors=4,
    length=5,
    frames="cells",
    model_tile=1,
    model_steps=60,
    random_steps=40,
    model_updates=3,
    reward_bins=(-1.1, -0.1, 0.9, 10.9),
)
TINY.pop("steps")


def sizes(names: tuple[str, ...]) -> dict[str, Budget]:
    spent = presets.resolve("i2a", ["laptop"]).model_steps
    note = (
        "Sokoban of 7x7 cells and one box, at most 40 steps a level, seen as planes, with networks of 16 channels, 16 "
        f"actors and 250,000 env steps, {spent:,} of them for the model: a four-thousandth of the paper's. It can show "
        "who is ahead while learning begins, where model-free agents are hardly past chance, and not who ends higher. "
    )
    resnet = (
        "The residual network has 16 channels here, too."
        if RESIDUAL in names
        else "The paper's claim is about one kind of network: a residual network without strides solves more levels "
        "than its I2A does, and is no part of this comparison (i2a-residual; train a2c --preset resnet)."
    )
    whole = sokoban(1_000_000_000, names, time_limit=120)
    return {
        "laptop": Budget("laptop", 3, sokoban(250_000, names, env=ONE_BOX, actors=16), note + resnet),
        "gpu": Budget(
            "laptop",
            3,
            sokoban(20_000_000, names),
            f"The same with two boxes, 64 actors and 20 million env steps. {resnet}",
        ),
        "paper": Budget(
            "laptop",
            3,
            tuple(replace(arm, envs=("reverie/Sokoban-v0",)) for arm in whole),
            f"The paper's levels, 10x10 cells and four boxes, and its 1e9 env steps, as planes. {resnet}",
        ),
        "debug": Budget(
            "debug", 3, sokoban(200, names, TINY, eval_episodes=4), "Shows nothing but that every part runs."
        ),
    }


def ahead(left: str, right: str, counts: bool = True) -> Comparison:
    return Comparison(f"{left} - {right}", Of(left, SOLVED), Of(right, SOLVED), counts=counts)


register(
    Claim(
        name="i2a-beats-model-free",
        system="I2A",
        study=STUDY,
        sentence="From the same env steps I2A solves more Sokoban levels than a model-free agent of its size, and than "
        "itself with a model that only repeats what is there.",
        budgets=sizes((I2A, COPY, SAME, WIDE, BLIND)),
        comparisons=(
            ahead(I2A, WIDE),
            ahead(I2A, COPY),
            ahead(I2A, SAME, counts=False),
            ahead(I2A, BLIND, counts=False),
        ),
    )
)

register(
    Claim(
        name="i2a-depth",
        system="I2A",
        study=STUDY,
        sentence="The deeper I2A imagines, the more levels it solves.",
        budgets=sizes((I2A, depth(1), depth(5))),
        # The paper's returns diminish; see the sweep.
        comparisons=(ahead(depth(3), depth(1)), ahead(depth(5), depth(3))),
        sweeps=(
            Sweep("Levels solved", "imagined steps H", SOLVED, tuple((str(h), depth(h)) for h in DEPTHS)),
        ),
    )
)

register(
    Claim(
        name="i2a-bad-model",
        system="I2A",
        study=STUDY,
        sentence="A poor model costs I2A little, and ruins a search that trusts it.",
        budgets=sizes((I2A, POOR, SEARCH, POOR_SEARCH)),
        comparisons=(
            ahead(SEARCH, POOR_SEARCH),
            ahead(POOR, POOR_SEARCH),
            ahead(I2A, POOR, counts=False),
            ahead(I2A, SEARCH, counts=False),
        ),
    )
)

register(
    Claim(
        name="i2a-distillation",
        system="I2A",
        study=STUDY,
        sentence="The rollout policy, trained by distillation alone, follows the agent's: it is less than half as far "
        "from it as chance is.",
        budgets=sizes((I2A, CHANCE)),
        comparisons=(
            Comparison(
                "policy to chance - 2 x to rollout policy", Of(I2A, SURE), Of(I2A, APART), 2, paired=True
            ),
            ahead(I2A, CHANCE, counts=False),
        ),
    )
)


register(
    Claim(
        name="i2a-simulator",
        system="I2A",
        study=STUDY,
        sentence="With the world's own rules in the place of its model I2A solves more levels: so much is left for a "
        "better model to bring.",
        budgets=sizes((I2A, TRUE, SEARCH, TRUE_SEARCH)),
        comparisons=(
            ahead(TRUE, I2A),
            ahead(TRUE_SEARCH, SEARCH, counts=False),
            ahead(TRUE, TRUE_SEARCH, counts=False),
        ),
    )
)


register(
    Claim(
        name="i2a-residual",
        system="I2A",
        study=STUDY,
        sentence="A residual network without strides, model-free, solves more levels than the strided one that I2A is "
        "compared with (Guez et al. 2019): what I2A is worth is said of one kind of network.",
        budgets=sizes((I2A, SAME, RESIDUAL)),
        comparisons=(ahead(RESIDUAL, SAME), ahead(RESIDUAL, I2A, counts=False)),
    )
)


# Levels solved against the steps that were simulated for them (Sec. 4.4)

PLAYED, RETRIED, TREE, RANDOM = "I2A, once", "I2A, retries", "tree search", "chance"
WHO = {
    PLAYED: ("once", "i2a", I2A),
    RETRIED: ("retries", "i2a", I2A),
    TREE: ("tree", "a2c", WIDE),
    RANDOM: ("chance", "a2c", ""),
}


def trained_or_solved(
    agent: str, env: str, preset: str, run_dir: Path, seed: int, overrides: dict[str, Any]
) -> None:
    """The package's own training; or levels, by one of the ways of ``levels.py``."""
    way = next((way for way in WAYS if way in overrides), None)
    if BOXES.setting in overrides:
        solve_boxes(overrides[BOXES.setting], env, run_dir, seed, overrides)
    elif way is None:
        reverie.train(agent, env, preset, run_dir, **{"seed": seed, **overrides})
    else:
        solve_levels(way, overrides[way], env, run_dir, seed, overrides)


def simulated(trained: tuple[Arm, ...], within: int, levels: int) -> tuple[Arm, ...]:
    """Agents of the study, and who solves levels with them."""
    how = dict(time_limit=trained[0].overrides["time_limit"], eval_episodes=levels)
    solving = (
        Arm(name, agent, trained[0].envs, within, how, clock=CLOCKS[way], world=world)
        for name, (way, agent, world) in WHO.items()
    )
    return (*(replace(arm, shown=False) for arm in trained), *solving)


def _in_the_end(run: Run) -> Values:
    return {run.env: [run.curve()[1][-1]]} if len(run.curve()[1]) else {}


def _on_the_way(run: Run) -> Values:
    return {run.env: [float(run.curve()[1].mean())]} if len(run.curve()[1]) else {}


IN_THE_END = Measure("solved", "share of levels", _in_the_end)
ON_THE_WAY = Measure("solved_on_the_way", "share of levels", _on_the_way)


def _simulated_sizes() -> dict[str, Budget]:
    of = {name: budget.arms for name, budget in sizes((I2A, WIDE)).items()}
    note = (
        "Levels that nobody trained on. A simulated step is a board and an action asked for what follows: H for each "
        "action at each step of I2A, one more in its model, and one for each new branch of a tree, whose leaves the "
        "model-free agent values. Tree search and chance have the true rules; `on the way` is the mean over the "
        "logarithm of simulated steps. The paper's tree search has a deeper value network, and constants it does not "
        "print. "
    )
    small = (
        "In 7x7 cells whole levels are short and have few boards, so that a search "
        "through the true rules is cheap, where the paper's have about fifty steps."
    )
    return {
        "laptop": Budget("laptop", 3, simulated(of["laptop"], 10_000, 100), note + small),
        "gpu": Budget("laptop", 3, simulated(of["gpu"], 10_000, 500), note + small),
        "paper": Budget("laptop", 3, simulated(of["paper"], 100_000, 1_000), note.strip()),
        "debug": Budget(
            "debug", 3, simulated(of["debug"], 200, 4), "Shows nothing but that every part runs."
        ),
    }


register(
    Claim(
        name="i2a-efficiency",
        system="I2A",
        study=STUDY,
        sentence="I2A solves levels with far fewer simulated steps than a search through the true rules, and more of "
        "them if it tries each in its model first.",
        train=trained_or_solved,
        budgets=_simulated_sizes(),
        comparisons=(
            Comparison(f"{RETRIED} - {PLAYED}", Of(RETRIED, IN_THE_END), Of(PLAYED, IN_THE_END)),
            Comparison(f"on the way: {PLAYED} - {TREE}", Of(PLAYED, ON_THE_WAY), Of(TREE, ON_THE_WAY)),
            Comparison(
                f"on the way: {TREE} - {RANDOM}", Of(TREE, ON_THE_WAY), Of(RANDOM, ON_THE_WAY), counts=False
            ),
        ),
    )
)


def boxes(trained: tuple[Arm, ...], most: int, levels: int) -> tuple[Arm, ...]:
    """Agents of the study, and each in levels of up to ``most`` boxes."""
    how = dict(time_limit=trained[0].overrides["time_limit"], eval_episodes=levels)
    playing = (
        Arm(f"{arm.name}, other boxes", arm.agent, arm.envs, most, how, clock=BOXES, world=arm.name)
        for arm in trained
    )
    return (*(replace(arm, shown=False) for arm in trained), *playing)


def _elsewhere(run: Run) -> Values:
    x, y = run.curve()
    return {run.env: [float(y[x != BOXES_OF.get(run.env, 4)].mean())]} if len(y) else {}


ELSEWHERE = Measure("solved_elsewhere", "share of levels", _elsewhere)


def _boxes_sizes() -> dict[str, Budget]:
    of = {name: budget.arms for name, budget in sizes((I2A, WIDE)).items()}
    note = "Levels that nobody trained on; the number of boxes that was learned with is left out of the mean."
    return {
        "laptop": Budget("laptop", 3, boxes(of["laptop"], 3, 500), f"Learned with one box. {note}"),
        "gpu": Budget("laptop", 3, boxes(of["gpu"], 3, 500), f"Learned with two boxes. {note}"),
        "paper": Budget("laptop", 3, boxes(of["paper"], 7, 1_000), f"Learned with four boxes. {note}"),
        "debug": Budget("debug", 3, boxes(of["debug"], 3, 4), "Shows nothing but that every part runs."),
    }


register(
    Claim(
        name="i2a-boxes",
        system="I2A",
        study=STUDY,
        sentence="In levels with another number of boxes than it has learned with I2A solves more than a model-free "
        "agent of its size.",
        train=trained_or_solved,
        budgets=_boxes_sizes(),
        comparisons=(
            Comparison(
                f"{I2A} - {WIDE}", Of(f"{I2A}, other boxes", ELSEWHERE), Of(f"{WIDE}, other boxes", ELSEWHERE)
            ),
        ),
    )
)


# Distral in the two rooms

GRID = "reverie/TwoRooms-v0"
DISTRAL, KL, ONE, ALONE, TOGETHER = (
    "Distral",
    "KL alone",
    "one column",
    "A3C, each task",
    "A3C, one for all",
)
ROOM_AGENTS: Mapping[str, Mapping[str, Any]] = {
    DISTRAL: {},
    KL: {"alpha": 1.0},
    ONE: {"policy": "one"},
    ALONE: {"policy": "one", "alpha": 0.0},
    TOGETHER: {"policy": "shared", "alpha": 0.0},
}


def _speed(run: Run) -> Values:
    _, y = run.curve()
    return {run.env: [float(y.mean())]} if len(y) else {}


SPEED = Measure("mean_return", "return", _speed)  # over all evaluations, early ones too: who learns sooner


def rooms(steps: int, episodes: int = 50) -> tuple[Arm, ...]:
    return tuple(
        Arm(name, "distral", (GRID,), steps, {**how, "eval_episodes": episodes})
        for name, how in ROOM_AGENTS.items()
    )


register(
    Claim(
        name="distral",
        system="Distral",
        sentence="Tasks that share a distilled policy are learned sooner than tasks that are learned each by itself.",
        budgets={
            "laptop": Budget(
                "laptop",
                5,
                rooms(50_000),
                "Eight goals in the paper's two rooms; 50,000 env steps in all; returns of 50 episodes, averaged "
                "over ten evaluations, so that learning sooner counts. The agent that shares one policy cannot see "
                "which task it has. The paper's grid worlds alternate soft Q-learning and distillation; that form, "
                "exactly, is reverie.agents.distral.tabular.",
            ),
            "gpu": Budget("laptop", 5, rooms(50_000), "The laptop's: nothing here fills a GPU."),
            "paper": Budget(
                "paper", 5, rooms(2_000_000), "As long as is needed for every agent to end where it will."
            ),
            "debug": Budget("debug", 3, rooms(300, 4), "Shows nothing but that every part runs."),
        },
        comparisons=(
            Comparison(f"{DISTRAL} - {ALONE}", Of(DISTRAL, SPEED), Of(ALONE, SPEED)),
            Comparison(f"{ONE} - {ALONE}", Of(ONE, SPEED), Of(ALONE, SPEED), counts=False),
            Comparison(f"{DISTRAL} - {ONE}", Of(DISTRAL, SPEED), Of(ONE, SPEED), counts=False),
            Comparison(f"{DISTRAL} - {KL}", Of(DISTRAL, SPEED), Of(KL, SPEED), counts=False),
            Comparison(f"{DISTRAL} - {TOGETHER}", Of(DISTRAL, SPEED), Of(TOGETHER, SPEED), counts=False),
        ),
    )
)


# A new goal beside what other goals have in common

PRIOR, KL_PRIOR = "prior", "prior, KL alone"
NO_PRIOR, UNSURE = "no prior", "no prior, beta 10"
_TRANSFER = {
    PRIOR: dict(alpha=0.5),
    KL_PRIOR: dict(alpha=1.0),
    NO_PRIOR: dict(alpha=0.0, beta=30.0),  # the best of 10, 20, 30, 100 and 1,000 in a third of the goals
    UNSURE: dict(alpha=0.0),
}


EVEN = np.full((len(PLACES) * BEFORE, len(MOVES)), 1 / len(MOVES))


def transferred(
    agent: str, env: str, preset: str, run_dir: Path, seed: int, overrides: dict[str, Any]
) -> None:
    """One goal of the two rooms, by soft Q-learning in a table, beside the policy distilled from all others; the
    seed says which goal. With alpha 0 it is of no account, and not made."""
    c = dict(overrides)
    episodes, _ = c.pop(EPISODES.setting), c.pop(EPISODES.every)
    config = presets.resolve(agent, preset.split(), c)
    begin, task = time.perf_counter(), seed % len(GOALS)
    soft = dict(alpha=config.alpha, beta=config.beta, discount=config.discount)
    others = [other for other in range(len(GOALS)) if other != task]
    prior = tabular(**soft, tasks=others) if config.alpha else EVEN
    found, _ = transfer(task, prior, **soft, episodes=episodes, seed=seed)
    total, lines = 0, []
    for number, episode in enumerate(found, 1):
        total += episode.length
        lines.append(
            {
                "env_steps": total,
                "updates": total,
                "seconds": round(time.perf_counter() - begin, 3),
                "episode": number,
                "episode/length": episode.length,
                "episode/return": round(episode.score, 6),
            }
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic(run_dir / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def _steps(run: Run) -> Values:
    return {run.env: [float(np.mean([row["episode/length"] for row in run.rows]))]}


STEPS = Measure("mean_length", "steps an episode", _steps)  # of all episodes: who learns sooner
_beside = tuple(Arm(name, "distral", (GRID,), 40, how, clock=EPISODES) for name, how in _TRANSFER.items())
_how = (
    "Each of the 24 goals once, 40 episodes of at most 60 steps, beside the policy that the 23 others were distilled "
    "to, exactly and in a table; Q begins at 0. At beta 10 being unsure is worth up to log 5 / beta = 0.16 a step, "
    "more than a step costs: without a prior that keeps an agent away from its goal, so that it is compared with the "
    "best beta that was found for it. Seconds for each goal."
)

register(
    Claim(
        name="distral-transfer",
        system="Distral",
        sentence="Beside the policy distilled from other tasks, a new one is learned sooner.",
        train=transferred,
        budgets={
            "laptop": Budget("paper", len(GOALS), _beside, _how),
            "gpu": Budget("paper", len(GOALS), _beside, f"{_how} A table needs no GPU."),
            "paper": Budget(
                "paper", len(GOALS), _beside, f"{_how} The paper prints no such experiment's sizes."
            ),
            "debug": Budget(
                "paper",
                3,
                tuple(replace(arm, length=4) for arm in _beside),
                "Shows nothing but that every part runs.",
            ),
        },
        comparisons=(
            Comparison(f"{NO_PRIOR} - {PRIOR}", Of(NO_PRIOR, STEPS), Of(PRIOR, STEPS)),
            Comparison(f"{UNSURE} - {PRIOR}", Of(UNSURE, STEPS), Of(PRIOR, STEPS), counts=False),
            Comparison(f"{NO_PRIOR} - {KL_PRIOR}", Of(NO_PRIOR, STEPS), Of(KL_PRIOR, STEPS), counts=False),
        ),
    )
)
