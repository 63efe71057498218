"""Claims of the classics of learning with a model: Dyna-Q's planning in the maze."""

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
from reverie.reproduce.claims import Arm, Budget, Claim, Comparison, Expected, Of, register
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
