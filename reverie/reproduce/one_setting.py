"""The claim of Dreamer V3: one set of hyperparameters for tasks that have nothing in common."""

from __future__ import annotations

from dataclasses import replace

from reverie.reproduce.claims import Arm, Budget, Claim, Comparison, Of, register
from reverie.reproduce.runs import FINAL_RETURN, Measure, Run, Values

V3 = "Dreamer V3"

# What each asks for, and the return from which on it counts as solved.
SOLVED = {
    "reverie/Recall-v0": 0.8,  # memory: right is 1, wrong -1, a guess -0.5 on average
    "reverie/Rooms-v0": 0.9,  # a sparse reward, from pictures: the goal within the clock is 1
    "Pendulum-v1": -250.0,  # continuous swing-up: no torque costs about 1,200
    "reverie/Catch-v0": 0.8,  # pictures: caught is 1, missed -1
    "CartPole-v1": 450.0,  # a classic with two choices: 500 at most
    "reverie/Dials-v0": 19.0,  # three choices at once: the best is 20 - 10 / 21 on average
}


def _needed(run: Run) -> Values:
    return {task: [SOLVED[task]] for task in run.tasks if task in SOLVED}


NEEDED = Measure("solved_return", "return", _needed)

# Said of the tasks, and not chosen by the agent: to see what there is to see, and to decide at every step.
_arm = Arm(V3, "dreamer_v3", tuple(SOLVED), 20_000, {"pixels": False, "action_repeat": 1})
_tasks = (
    "Six tasks: memory, sparse reward, continuous swing-up, pictures, two choices, several choices at once."
)

register(
    Claim(
        name="dreamer-v3-one-setting",
        system=V3,
        sentence="One set of hyperparameters solves tasks with vectors and pictures, discrete and continuous actions, "
        "sparse and dense rewards.",
        budgets={
            "laptop": Budget(
                "laptop", 3, (_arm,), f"{_tasks} The smallest size. They are small: nothing about scale."
            ),
            "gpu": Budget("12m", 3, (replace(_arm, length=50_000),), f"{_tasks} The release's own rates."),
            "paper": Budget(
                "paper",
                5,
                (replace(_arm, length=200_000),),
                f"{_tasks} The release's largest setting. The article's 150 tasks are not here.",
            ),
            "debug": Budget(
                "debug", 3, (replace(_arm, length=400),), "Shows nothing but that every part runs."
            ),
        },
        comparisons=(
            Comparison(
                "final return - what counts as solved",
                Of(V3, FINAL_RETURN),
                Of(V3, NEEDED),
                paired=True,
                each_task=True,
            ),
        ),
    )
)
