"""What an evaluation leaves in the run's folder: its numbers, and at the end pictures."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from reverie import media
from reverie.data.replay import Replay
from reverie.imagine import prediction_error
from reverie.run.evaluate import Evaluation, evaluate
from reverie.run.folder import Plan, read_json, write_json
from reverie.run.loop import Loop
from reverie.types import Agent, Foresees, HasWorld, ReverieError


def show(plan: Plan, loop: Loop, result: Evaluation) -> None:
    """After an evaluation: evaluation.json, with the random policy beside it; at the end also the pictures.

    Pictures are a gift: if they can not be made, the run goes on without them.
    """
    folder, n = loop.folder, len(result.returns)
    random = read_json(folder / "evaluation.json").get("random") or {}
    if len(random.get("returns", ())) != n:
        rng = np.random.default_rng(plan.run.seed)
        stop = lambda: loop.stopping
        chance = evaluate(None, loop.eval_envs, n, rng, stop)
        random = {**chance.as_dict(), "tasks": tasks(chance, plan.env)}
    counts = {**loop.counts(), "place": loop.place, "seconds": round(loop.elapsed, 1)}
    by_task = {
        task: {**part, "random": random.get("tasks", {}).get(task)}
        for task, part in tasks(result, plan.env).items()
    }
    write_json(folder / "evaluation.json", {**counts, **result.as_dict(), "random": random, "tasks": by_task})
    if not loop.at_end:
        return  # pictures cost as much as dozens of updates; `reverie imagine` makes them at any time
    try:
        if result.frames:
            media.save_gif(folder / "videos" / "episode.gif", np.stack(result.frames), fps=20)
        seen = max(loop.replay.counts) > 1  # a run with another's world has lived through nothing
        if seen and any(space.is_image for space in loop.eval_envs.obs_space.values()):
            save_dreams(loop.agent, loop.replay, folder, plan.run.seed)
        if seen:
            save_foresight(loop.agent, loop.replay, folder, plan.run.seed)
    except (ReverieError, OSError, ValueError) as error:
        warnings.warn(f"the pictures of this evaluation could not be made: {error}", stacklevel=2)


def tasks(result: Evaluation, env: str) -> dict[str, Any]:
    return {task: part.as_dict() for task, part in result.by_task(env).items()}


def save_dreams(
    agent: Agent, replay: Replay, folder: Path, seed: int, context: int = 5, length: int = 50
) -> list[Path]:
    """Open-loop videos of six sequences, as GIF and MP4, and a strip of the first as PNG; their paths."""
    length = min(length, max(replay.counts))
    batch = replay.sample(6, length, np.random.default_rng([seed, 3]))
    context = min(context, length - 1)
    told, made = agent.report(batch, context), []
    for name, (truth, prediction) in told.items():
        if name.startswith("reconstruction/"):  # a row of the film beside it
            continue
        _, shown = told.get(name.replace("open_loop/", "reconstruction/"), (None, None))
        each = [None] * len(truth) if shown is None else shown
        stacked = [media.open_loop(t, p, context, r) for t, p, r in zip(truth, prediction, each, strict=True)]
        path = folder / "videos" / name.replace("/", "_")
        film = media.grid(stacked)
        made += [
            media.save_gif(path.with_suffix(".gif"), film, fps=12),
            media.save_mp4(path.with_suffix(".mp4"), film, fps=12),
            media.save_strip(
                path.with_suffix(".png"), truth[0], prediction[0], context, reconstruction=each[0]
            ),
        ]
    strip = agent.strip(batch) if isinstance(agent, Foresees) else None
    if strip is not None:
        made.append(media.save_futures(folder / "videos" / "futures.png", *strip))
    return made


def save_foresight(
    agent: Agent, replay: Replay, folder: Path, seed: int, context: int = 5, length: int = 50
) -> list[Path]:
    """The error of 32 open-loop predictions over their horizon, as a figure; none for an agent without a world, or
    one that sees no vectors."""
    if not isinstance(agent, HasWorld) or all(space.is_image for space in replay.obs_space.values()):
        return []
    from reverie import plot

    length = min(length, max(replay.counts))
    batch = replay.sample(32, length, np.random.default_rng([seed, 3]))
    found = prediction_error(agent.world, batch, min(context, length - 1))
    if not len(found.error):
        return []
    return plot.foresight(found, folder / "videos" / "prediction_error", "Predicted from the actions alone")
