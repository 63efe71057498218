"""Claims of the classics of learning with a model: Dyna-Q's planning, the few samples of planning with an ensemble,
NAF's imagination and MVE's horizon."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reverie import presets
from reverie.envs import make_env
from reverie.media import atomic
from reverie.reproduce.claims import Arm, Budget, Claim, Comparison, Expected, Of, Sweep, register
from reverie.reproduce.runs import EPISODES, Measure, Run, Values

# Dyna-Q in the maze

MAZE = "reverie/DynaMaze-v0"
PLANNING = (0, 5, 50)
BOOK = "Sutton & Barto, 2nd ed., Fig. 8.2"
WALK = f"{BOOK}'s maze: exact mean of a random walk"
HUNDRED = "mean of 100 runs of another implementation, random ties"
# In the book's figure the first episode takes about 1,700 steps, for one seed shared by all n.
FIRST_EPISODE = 868.7254
TENTH_EPISODE = {0: 135.0, 5: 17.0, 50: 17.4}


def played(agent: str, env: str, preset: str, run_dir: Path, seed: int, overrides: dict[str, Any]) -> None:
    """Whole episodes, one real step after another, each learned from at once: the book's box.

    What ``reverie train`` does too, without the replay and the checkpoints that a minute of tables does not need.
    """
    c = dict(overrides)
    episodes, _ = c.pop(EPISODES.setting), c.pop(EPISODES.every)
    world = make_env(env)
    config = presets.resolve(agent, preset.split(), c)
    learner = presets.agent_class(agent)(world.obs_space, world.act_space, config, seed)
    begin, total, lines = time.perf_counter(), 0, []
    for episode in range(1, episodes + 1):
        row, steps = world.reset(seed), 0
        state = number(learner, row.obs)
        while not row.is_last:
            shown = {key: value[None] for key, value in row.obs.items()} | {"is_first": row.is_first[None]}
            action, _ = learner.act(shown, (), "train")
            row, steps = world.step(action[0]), steps + 1
            after = number(learner, row.obs)
            learner.learn(state, int(action[0].argmax()), float(row.reward), after, bool(row.is_terminal))
            state = after
        total += steps
        lines.append(
            {
                "env_steps": total,
                "updates": total,
                "seconds": round(time.perf_counter() - begin, 3),
                "episode": episode,
                "episode/length": steps,
            }
        )
    world.close()
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic(run_dir / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def number(learner: Any, obs: dict[str, np.ndarray]) -> int:
    (key,) = learner.keys({name: value[None] for name, value in obs.items()})
    return learner.state(key)


def lengths(first: int, last: int) -> Measure:
    """The mean length of these episodes, counted from 1, in each run."""

    def of(run: Run) -> Values:
        steps = [row["episode/length"] for row in run.rows if first <= row["episode"] <= last]
        return {run.env: [float(np.mean(steps))]} if len(steps) == last - first + 1 else {}

    name = f"episode_{first}" if first == last else f"episodes_{first}_to_{last}"
    return Measure(name, "steps an episode", of)


def maze_arm(n: int) -> str:
    return f"n = {n}"


_maze = tuple(
    Arm(maze_arm(n), "dyna_q", (MAZE,), 50, {"planning_steps": n}, clock=EPISODES) for n in PLANNING
)
_whole = "The book's experiment: 50 episodes of each n. The book averages 30 runs, too."

register(
    Claim(
        name="dyna-planning",
        system="Dyna-Q",
        sentence="The more steps are planned with the model for each real step, the fewer real episodes it takes to "
        "find a short way to the goal.",
        train=played,
        budgets={
            "laptop": Budget("paper", 30, _maze, f"{_whole} Seconds."),
            "gpu": Budget("paper", 30, _maze, f"{_whole} A table needs no GPU."),
            "paper": Budget("paper", 30, _maze, _whole),
            "debug": Budget(
                "paper",
                3,
                tuple(replace(arm, length=12) for arm in _maze),
                "Shows nothing but that every part runs.",
            ),
        },
        comparisons=tuple(
            Comparison(
                f"episodes 2 to 10: {maze_arm(few)} - {maze_arm(many)}",
                Of(maze_arm(few), lengths(2, 10)),
                Of(maze_arm(many), lengths(2, 10)),
            )
            for few, many in ((0, 5), (5, 50))
        ),
        # Six numbers at once: 99 % each keeps a false alarm to one study in seventeen.
        expected=(
            *(
                Expected(
                    f"first episode, {maze_arm(n)}", Of(maze_arm(n), lengths(1, 1)), FIRST_EPISODE, WALK, 0.99
                )
                for n in PLANNING
            ),
            *(
                Expected(
                    f"tenth episode, {maze_arm(n)}", Of(maze_arm(n), lengths(10, 10)), steps, HUNDRED, 0.99
                )
                for n, steps in TENTH_EPISODE.items()
            ),
        ),
    )
)


# Planning with a learned ensemble: how few real steps it takes

SWING = "Pendulum-v1"
MPC, DDPG = "MPC, ensemble", "DDPG"
FEW, MANY = 1_000, 10_000  # env steps: five episodes, and fifty


def after(steps: int) -> Measure:
    """The evaluation after so many env steps: the latest one that is not later."""

    def of(run: Run) -> Values:
        values = {}
        for task in run.tasks:
            x, y = run.curve(task)
            if len(x) and x[0] <= steps <= x[-1]:
                values[task] = [float(y[x <= steps][-1])]
        return values

    return Measure(f"return_after_{steps}", "return", of)


def mean_after(steps: int) -> Measure:
    """The mean of all evaluations from so many env steps on: how fast, and how well."""

    def of(run: Run) -> Values:
        curves = {task: run.curve(task) for task in run.tasks}
        return {task: [float(y[x >= steps].mean())] for task, (x, y) in curves.items() if (x >= steps).any()}

    return Measure(f"mean_return_from_{steps}", "return", of)


def _swing(scale: int) -> tuple[Arm, ...]:
    few: dict[str, Any] = {"eval_every": scale * FEW // 2, "eval_episodes": 5}  # a search at every step
    return (
        Arm(MPC, "mpc", (SWING,), scale * FEW, few),
        Arm(DDPG, "ddpg", (SWING,), scale * MANY),
    )


register(
    Claim(
        name="mpc-samples",
        system="MPC, learned ensemble",
        sentence="Planning with a learned ensemble reaches a model-free agent's final score with a tenth of its env "
        "steps.",
        budgets={
            "laptop": Budget(
                "laptop",
                5,
                _swing(1),
                "One small task. The ensemble has five episodes, DDPG fifty; to reach its score means to cost less "
                "than 1.25 times as much. Networks and search are a fraction of PETS'.",
            ),
            "gpu": Budget(
                "laptop", 10, _swing(1), "The laptop's sizes: small networks gain little on a GPU."
            ),
            "paper": Budget(
                "paper",
                10,
                _swing(1),
                "PETS' networks and search, on this task; DDPG with its paper's values.",
            ),
            "debug": Budget("debug", 3, _swing(1), "Shows nothing but that every part runs."),
        },
        comparisons=(
            # returns are costs: 1.25 times DDPG's is a quarter worse
            Comparison(
                f"MPC after {FEW:,} - 1.25 x DDPG after {MANY:,}",
                Of(MPC, after(FEW)),
                Of(DDPG, after(MANY)),
                factor=1.25,
            ),
            Comparison(f"MPC - DDPG, both after {FEW:,}", Of(MPC, after(FEW)), Of(DDPG, after(FEW))),
        ),
    )
)


# NAF: imagination rollouts of a fitted local model, and their length

NONE, SAME_UPDATES = "no imagination", "no imagination, as many updates"
LENGTHS = (1, 5, 20)


def rollouts(length: int) -> str:
    return f"l = {length}"


def _naf(steps: int, updates: int = 1) -> tuple[Arm, ...]:
    return (
        Arm(NONE, "naf", (SWING,), steps),
        Arm(SAME_UPDATES, "naf", (SWING,), steps, {"train_updates": 6 * updates}),
        *(Arm(rollouts(length), "naf", (SWING,), steps, {"imagination": length}) for length in LENGTHS),
    )


register(
    Claim(
        name="naf-imagination",
        system="NAF",
        sentence="Imagination rollouts under a fitted local model speed learning up; where they are long, the model's "
        "errors spoil it.",
        budgets={
            "laptop": Budget(
                "laptop",
                5,
                _naf(4_000),
                "Twenty episodes of one small task whose starts are spread wide, which is hard on models that are "
                "linear around the latest episodes. Each arm with imagination does five imagined updates for each "
                "real one; the control does as many from the replay.",
            ),
            "gpu": Budget(
                "laptop", 10, _naf(4_000), "The laptop's sizes: small networks gain little on a GPU."
            ),
            "paper": Budget(
                "paper", 5, _naf(100_000, 5), "The paper's networks, rates and updates, on this task."
            ),
            "debug": Budget("debug", 3, _naf(400, 2), "Shows nothing but that every part runs."),
        },
        comparisons=(
            Comparison(
                f"{rollouts(5)} - {NONE}", Of(rollouts(5), mean_after(1_000)), Of(NONE, mean_after(1_000))
            ),
            Comparison(
                f"{rollouts(5)} - {rollouts(20)}",
                Of(rollouts(5), mean_after(1_000)),
                Of(rollouts(20), mean_after(1_000)),
            ),
            Comparison(
                f"{rollouts(5)} - {SAME_UPDATES}",
                Of(rollouts(5), mean_after(1_000)),
                Of(SAME_UPDATES, mean_after(1_000)),
                counts=False,
            ),
        ),
        sweeps=(
            Sweep(
                "Length of rollouts",
                "l",
                mean_after(1_000),
                (("none", NONE), *((str(length), rollouts(length)) for length in LENGTHS)),
            ),
        ),
    )
)


# MVE: the horizon of value expansion

HORIZONS = (0, 1, 3, 10)


def horizon(h: int) -> str:
    return f"H = {h}"


TAUGHT = "H = 3, TD-k"  # the critic is taught on imagined states too


def _mve(steps: int) -> tuple[Arm, ...]:
    return (
        *(Arm(horizon(h), "mve", (SWING,), steps, {"horizon": h}) for h in HORIZONS),
        Arm(TAUGHT, "mve", (SWING,), steps, {"horizon": 3, "expand": "td_k"}),
    )


register(
    Claim(
        name="mve-horizon",
        system="MVE",
        sentence="H-step value expansion with a learned model beats H = 0 at equal env steps.",
        budgets={
            "laptop": Budget(
                "laptop",
                5,
                _mve(4_000),
                "Twenty episodes of one small task, small networks, one update a step. The expansion is a target for "
                "real states alone; the authors' TD-k trick, which teaches the critic on imagined states too, is an "
                "arm of its own: here it often drives the small actor into a corner.",
            ),
            "gpu": Budget(
                "laptop", 10, _mve(6_000), "The laptop's sizes: small networks gain little on a GPU."
            ),
            "paper": Budget(
                "paper",
                5,
                tuple(replace(arm, envs=("HalfCheetah-v5",)) for arm in _mve(1_500_000)),
                "The authors' networks and steps, on today's half-cheetah, whose reward has to be learned.",
            ),
            "debug": Budget("debug", 3, _mve(400), "Shows nothing but that every part runs."),
        },
        comparisons=(
            Comparison(
                f"{horizon(3)} - {horizon(0)}",
                Of(horizon(3), mean_after(1_000)),
                Of(horizon(0), mean_after(1_000)),
            ),
            *(
                Comparison(
                    f"{horizon(h)} - {horizon(0)}",
                    Of(horizon(h), mean_after(1_000)),
                    Of(horizon(0), mean_after(1_000)),
                    counts=False,
                )
                for h in HORIZONS
                if h not in (0, 3)
            ),
            Comparison(
                f"{horizon(3)} - {TAUGHT}",
                Of(horizon(3), mean_after(1_000)),
                Of(TAUGHT, mean_after(1_000)),
                counts=False,
            ),
        ),
        sweeps=(
            Sweep(
                "Horizon",
                "H",
                mean_after(1_000),
                tuple((str(h), horizon(h)) for h in HORIZONS),
            ),
        ),
    )
)
