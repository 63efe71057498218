"""A training that takes no time: it writes the metrics a real one would, as good as told."""

import json
from pathlib import Path

import numpy as np
import pytest

LEVELS = {"dreamer_v1": 90.0, "planet": 60.0, "world_models": 50.0}


class FakeTraining:
    """Called like the package's own; ``level(agent, seed, overrides)`` is the final return."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []
        self.level = lambda agent, seed, overrides: LEVELS[agent] + seed
        self.worlds: list[str | None] = []  # what runs of stages were given
        self.broken: set[int] = set()  # the calls that fail, by number
        self.stops_at: float = 1.0  # the part of the steps that is made
        self.every: set[int] = set()  # env steps between evaluations that were asked for

    def __call__(self, agent, env, preset, run_dir: Path, seed, overrides) -> None:
        self.calls.append((agent, env, seed))
        if len(self.calls) - 1 in self.broken:
            raise RuntimeError("the disk is | full")
        run_dir.mkdir(parents=True, exist_ok=True)
        final = self.level(agent, seed, overrides)
        cost = {"dreamer_v1": 0.01, "planet": 0.05, "world_models": 0.02}[agent]
        if "generations" in overrides:
            self.worlds.append(overrides.get("world"))
            row = {"env_steps": 100, "updates": 7, "eval/return": final, "dream/return": 2 * final}
            lines = [{**row, "generation": g, "seconds": g} for g in range(1, overrides["generations"] + 1)]
            (run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
            (run_dir / "evaluation.json").write_text(json.dumps({"mean": final, "random": {"mean": 10.0}}))
            return
        self.every.add(overrides["eval_every"])
        tasks = env.split("+")
        with open(run_dir / "metrics.jsonl", "w") as file:
            for i in range(1, 11):
                steps = overrides["steps"] * i // 10
                if steps > self.stops_at * overrides["steps"]:
                    return
                keys = (
                    ["eval/return"] if len(tasks) == 1 else [f"eval/return/{t.split('/')[-1]}" for t in tasks]
                )
                row = {"env_steps": steps, "updates": steps // 10, "seconds": steps * cost}
                file.write(json.dumps({**row, **dict.fromkeys(keys, final * i / 10)}) + "\n")
        random = {"random": {"mean": 10.0}}
        found = random if len(tasks) == 1 else {"tasks": {t.split("/")[-1]: random for t in tasks}}
        (run_dir / "evaluation.json").write_text(json.dumps(found))


@pytest.fixture
def training() -> FakeTraining:
    return FakeTraining()


def prediction(run_dir, context, length, episodes, seed):
    """A square that moves, and a model that follows it a little too slowly."""
    truth = np.zeros((episodes, length, 16, 16, 3), np.uint8)
    told = truth.copy()
    for n in range(episodes):
        for t in range(length):
            x, y = (t + n) % 16, (t - (t >= length - 5) + n) % 16
            truth[n, t, 4:8, x], told[n, t, 4:8, y] = 255, 255
    return truth, told


@pytest.fixture
def predict():
    return prediction
