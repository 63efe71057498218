"""How fast I2A and its model-free baseline act and learn, and how well the environment model foresees.

    python benchmarks/i2a.py                          all rows, to benchmarks/results/i2a.json
    python benchmarks/i2a.py --only speed --threads 1

Speed: seconds for 1,000 env frames of Sokoban (7x7 cells, two boxes, 64 environments, 10 rows between updates), acting
and learning together, median of ``--repeats`` rollouts; networks of 16 channels, futures of 3 steps. The floor is their
multiply-adds, counted below, at the machine's rate of matrix products, measured before and after.

Model: the ``laptop`` preset's environment model learns from its own data; then, in levels it has never seen and under
random actions, its likeliest frame is fed back for five steps. A cell counts at depth k if it differs between the true
frames k - 1 and k.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
import rows
import torch
from update import matrix_rate

from reverie import presets
from reverie.data.replay import Replay
from reverie.envs.batch import BatchEnvs
from reverie.envs.sokoban import Sokobans
from reverie.machine import prepare
from reverie.run.driver import row_of
from reverie.run.on_policy import stacked

ENV, LIMIT, DEPTH = "reverie/SokobanSmall-v0", 40, 5


# Multiply-adds for one frame of 7x7 cells in 7 planes.


def convs(c: Any, first: int = 0, inputs: int = 7) -> tuple[int, int, int]:
    """Of the convolutions from number ``first`` on: all, those of the first of them, and how many numbers come out."""
    side, work, begin = 7, 0, 0
    for wide, kernel, stride in list(zip(c.channels, c.kernels, c.strides, strict=True))[first:]:
        side = -(-side // stride)
        layer = side * side * kernel * kernel * inputs * wide
        begin, work, inputs = begin or layer, work + layer, wide
    return work, begin, side * side * inputs


def a2c_work(c: Any) -> float:
    work, begin, flat = convs(c)
    forward = work + flat * c.units + c.units * 6
    return forward + (3 * forward - begin) * (c.length + 1) / c.length


def i2a_work(c: Any, actions: int = 5) -> float:
    again, ch = (c.length + 1) / c.length, c.model_channels
    model = 49 * (9 * 7 * ch + 9 * ch * ch + 7 * ch) + 2 * ch * c.model_units + 4 * c.model_units
    work, begin, flat = convs(c)
    policy = work + flat * c.rollout_units + c.rollout_units * actions
    imagine = actions * (c.horizon * model + (c.horizon - 1) * policy)
    encoder, encoder_begin, seen = convs(c, c.encoder_from)
    lstm = (seen + seen // c.channels[-1] + c.units_lstm) * 4 * c.units_lstm
    futures = actions * c.horizon * (encoder + lstm)
    net = futures + work + (actions * c.units_lstm + flat) * c.units + c.units * 6
    inputs = actions * c.horizon * encoder_begin + begin  # no gradient flows into frames
    learn = (3 * net - inputs) * again + 3 * policy - begin
    return imagine * again + net + learn


def speed(agent: str, config: Any, work: float, repeats: int) -> dict[str, Any]:
    envs = BatchEnvs(ENV, config.actors, 0, LIMIT)
    learner = presets.agent_class(agent)(envs.obs_space, envs.act_space, config)
    newest, carry, seconds = [envs.step(np.zeros((envs.n, 5), np.float32))], learner.initial(envs.n), []
    before = matrix_rate()
    for _ in range(repeats + 2):
        begin, seen, actions, left = time.perf_counter(), newest[-1:], [], []
        for _ in range(config.length):
            row = seen[-1]
            action, carry = learner.act({**row.obs, "is_first": row.is_first}, carry, "train")
            actions.append(np.where(row.is_last[:, None], np.float32(0), action))
            left.append(carry)
            seen.append(envs.step(actions[-1]))
        learner.update(stacked(seen, actions), left)
        newest = seen
        seconds.append(time.perf_counter() - begin)
    each = statistics.median(seconds[2:]) / (config.length * envs.n)
    floor = 2 * work / max(before, matrix_rate())
    print(
        f"{agent}: {1 / each:,.0f} frames/s, {each / floor:.2f} times the floor of {1 / floor:,.0f}",
        flush=True,
    )
    return {
        "what": f"{agent}, acting and learning, 1,000 frames of 7x7 Sokoban",
        "ours": round(1000 * each, 4),
        "unit": "s",
        "floor": round(1000 * floor, 4),
        "threads": torch.get_num_threads(),
    }


def model(**overrides: Any) -> list[dict[str, Any]]:
    """Train the model as a run does, and look at it."""
    config = presets.resolve("i2a", ["laptop"], overrides)
    envs = BatchEnvs(ENV, config.actors, 0, LIMIT)
    learner = presets.agent_class("i2a")(envs.obs_space, envs.act_space, config)
    replay = Replay(envs.obs_space, envs.act_space, 2 * config.model_steps, envs.n)
    begin, frames, carry = time.perf_counter(), 0, learner.initial(envs.n)
    newest = [envs.step(np.zeros((envs.n, 5), np.float32))]
    while frames < config.model_steps:
        seen, actions = newest[-1:], []
        for _ in range(config.length):
            row = seen[-1]
            action, carry = learner.act({**row.obs, "is_first": row.is_first}, carry, "train")
            actions.append(np.where(row.is_last[:, None], np.float32(0), action))
            for i in range(envs.n):
                replay.add(row_of(row, i), actions[-1][i], i)
            seen.append(envs.step(actions[-1]))
            frames += int(seen[-1].env_steps.sum())
        learner.update(stacked(seen, actions))
        newest = seen
    gathered = time.perf_counter() - begin
    for number in range(config.model_updates):
        learner.update_model(replay, 0, number)
    seconds = time.perf_counter() - begin
    print(f"data {gathered:.0f} s, in all {seconds:.0f} s", flush=True)
    head = f"environment model, {config.model_channels} channels, {frames:,} frames, {config.model_updates:,} updates"
    made = [{"what": f"{head}: data and training", "ours": round(seconds, 1), "unit": "s"}]
    for depth, wrong in enumerate(errors(learner), 1):
        print(f"depth {depth}: {100 * (1 - wrong):.2f} % of changed cells right", flush=True)
        made.append(
            {
                "what": f"{head}: changed cells wrong at depth {depth}",
                "ours": round(wrong, 5),
                "unit": "share",
            }
        )
    return [{**row, "threads": torch.get_num_threads()} for row in made]


@torch.no_grad()
def errors(learner: Any, n: int = 1000, begins: int = 20) -> list[float]:
    """The share of changed cells that the model gets wrong at each depth: ``n`` levels, ``begins`` starts in each."""
    rng = np.random.default_rng(1)
    worlds = Sokobans(n, size=7, boxes=2, levels=n, level_seed=1, max_episode_steps=None)
    obs, _ = worlds.reset(seed=1)
    wrong, changed = np.zeros(DEPTH), np.zeros(DEPTH)
    for _ in range(begins):
        for _ in range(3):
            obs, *_ = worlds.step(rng.integers(5, size=n))
        frame, before, alive = learner.see(255 * obs), obs.argmax(-1), ~worlds.over
        for k in range(DEPTH):
            action = rng.integers(5, size=n)
            obs, _, ended, _, _ = worlds.step(action)
            frame, kept, _ = learner.predict(frame, torch.eye(5)[action])
            truth, told = obs.argmax(-1), kept.numpy()
            moved = (truth != before) & alive[:, None, None]
            wrong[k] += (moved & (told != truth)).sum()
            changed[k] += moved.sum()
            before, alive = truth, alive & ~ended
    return (wrong / changed).tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["speed", "model"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    prepare(args.threads)
    found = []
    if args.only != "model":
        c = presets.resolve("a2c", ["cells"])
        found.append(speed("a2c", c, a2c_work(c), args.repeats))
        untrained = dict(model_channels=16, model_steps=0, random_steps=0, model_updates=0)
        c = presets.resolve("i2a", ["laptop"], untrained)
        found.append(speed("i2a", c, i2a_work(c), args.repeats))
    if args.only != "speed":
        found += model()
    if args.only is None:
        rows.write("i2a", found)
