"""From a plan to a trained agent: build the parts, go on where the folder's last checkpoint stopped, learn."""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reverie import checkpoint, media, presets
from reverie.data.replay import Replay
from reverie.data.storage import read_about
from reverie.envs import Env, Envs, SerialEnvs, WorkerEnvs, make_env
from reverie.envs.base import Goals, Rules
from reverie.envs.batch import BatchEnvs, batched
from reverie.envs.pixels import preset as renderer
from reverie.imagine import prediction_error
from reverie.logger import Logger, duration, plural
from reverie.machine import CORES, prepare
from reverie.run.collector import Collector, Streams
from reverie.run.driver import Driver
from reverie.run.evaluate import Evaluation, evaluate
from reverie.run.folder import Plan, check_folder, read_json, read_plan, size_in_bytes, write_json, write_plan
from reverie.run.loop import Loop, RunConfig, at_least
from reverie.run.online import Online, length
from reverie.types import ActionSpace, Agent, ObsSpace, Remembers, ReverieError, World

EVAL_SEED = 1_000_003  # evaluation episodes never start where training ones do
LONGEST = 10_000  # decisions of an episode, when nobody knows
SLACK = 10_000  # rows a stream may record beyond a checkpoint and still be taken back to it


def train(
    agent: str,
    env: str,
    preset: str | tuple[str, ...] = "paper",
    run: str | Path | None = None,
    settings: RunConfig | None = None,
    **overrides: Any,
) -> Path:
    """Train ``agent`` on ``env`` and return the run's folder; called again with the same, it goes on.

    ``preset`` is one name or several ("laptop", "cartpole_swingup"). ``overrides`` are fields of the agent's
    Config (``horizon=10``) or of ``RunConfig`` (``seed=1``). Raises ``ReverieError`` with one sentence for
    whatever can not be used.
    """
    names = tuple(preset.split()) if isinstance(preset, str) else tuple(preset)
    fields = RunConfig.__dataclass_fields__
    given = {name: value for name, value in overrides.items() if name in fields}
    settings = dataclasses.replace(settings or RunConfig(), **given)
    config = presets.resolve(agent, names, {k: v for k, v in overrides.items() if k not in fields})
    plan = Plan(agent, env, names, config, settings)
    folder = default_folder(plan) if run is None else Path(run)
    carry_out(plan, folder)
    return folder


def default_folder(plan: Plan) -> Path:
    return Path("runs") / f"{plan.agent}-{plan.env.replace('/', '_').replace(':', '_')}-{plan.run.seed}"


def carry_out(plan: Plan, folder: Path) -> bool:
    """Do what the plan says in ``folder``; True when it is finished, False when interrupted."""
    from reverie.report import write_report

    check(plan)
    check_folder(folder, plan)
    if is_finished(plan, folder):
        if not (folder / "report.html").exists():
            write_report(folder)
        print(finished(folder))
        return True
    prepare(plan.run.threads)
    with Parts() as parts:
        loop = make_loop(plan, folder, parts)
        say = loop.progress.say
        say(about(plan, loop, folder))
        go_on(loop)
        if not loop.loop():
            say(f"Saved at {loop.about()}. The same command goes on from there.")
            return False
    write_report(folder)
    say(finished(folder))
    return True


class Parts(contextlib.ExitStack):
    """Closes what was added, last one first; what fails then does not hide why it had to close."""

    def add(self, part: Any) -> Any:
        def close(kind: Any, *_: Any) -> None:
            try:
                part.close()
            except (OSError, ReverieError):
                if kind is None:
                    raise

        self.push(close)
        return part


def loop_of(agent: str) -> type[Loop]:
    """The loop that an agent learns in."""
    kind = getattr(presets.agent_class(agent), "loop", "online")
    if kind == "staged":
        from reverie.run.staged import Staged

        return Staged
    if kind == "on_policy":
        from reverie.run.on_policy import OnPolicy

        return OnPolicy
    return Online


def check(plan: Plan) -> None:
    """Refuse what the loop could not carry out, before anything is made."""
    renderer(plan.run.renderer)
    at_least(plan.config, "action_repeat", 1)
    if hasattr(plan.config, "image_size"):  # agents that read vectors alone have none
        at_least(plan.config, "image_size", 0)
    loop = loop_of(plan.agent)
    if plan.run.collector and loop is not Online:
        raise ReverieError(
            f"--collector works with agents that learn from a replay while they act; {plan.agent} has a loop of its "
            f"own: leave it out"
        )
    loop.check(plan.config, plan.run)


def is_finished(plan: Plan, folder: Path) -> bool:
    """Whether the newest checkpoint is the end of the run, and was evaluated."""
    evaluation = read_json(folder / "evaluation.json")
    saved = checkpoint.paths(folder / "checkpoints")
    if not saved or not loop_of(plan.agent).reached(plan.config, evaluation):
        return False
    return saved[-1].name.split(".")[0] == f"{evaluation.get('place', -1):09d}"


def finished(folder: Path) -> str:
    """What came of a finished run, in three lines."""
    found = read_json(folder / "evaluation.json")
    return (
        f"Finished: {found['env_steps']:,} env steps, {found['updates']:,} updates, {duration(found['seconds'])}; "
        f"return {found['mean']:.1f} ± {found['std']:.1f} over {plural(len(found['returns']), 'episode')}, "
        f"random policy {found['random']['mean']:.1f} ± {found['random']['std']:.1f}.\n"
        f"Report: {(folder / 'report.html').resolve()}\n"
        f"The same command with more {loop_of(read_plan(folder).agent).more} goes on from here."
    )


def make_loop(plan: Plan, folder: Path, parts: Parts) -> Loop:
    """All parts of a run, from the front door of its environment to its log."""
    makers = {"Online": make_online, "Staged": make_staged, "OnPolicy": make_on_policy}
    return makers[loop_of(plan.agent).__name__](plan, folder, parts)


def make_online(plan: Plan, folder: Path, parts: Parts) -> Online:
    eval_envs = parts.add(make_envs(plan, plan.run.eval_episodes, evaluation=True))
    if plan.run.collector:
        envs: Any = Streams(plan.run.envs, eval_envs.obs_space, eval_envs.act_space)
        driver: Any = partial(Collector, partial(actor, plan), plan.config, alone=not plan.run.workers)
    else:
        envs, driver = parts.add(make_envs(plan, plan.run.envs)), Driver
    agent = make_agent(plan, envs)
    needed, least = rows(plan, envs.n)
    context = agent.context if isinstance(agent, Remembers) else None
    replay_size(plan, envs, needed, least, context)
    write_plan(folder, plan)  # not before all of it is known to work
    logger = parts.add(Logger(folder, plan.run.wandb, plan.as_dict()))
    replay = parts.add(make_replay(plan, envs, folder, needed, least, context))
    shown = partial(show, plan)
    online = Online(
        agent, envs, eval_envs, replay, plan.config, plan.run, folder, logger, shown, plan.env, driver
    )
    if plan.run.collector:
        parts.add(online.driver)
    return online


def actor(plan: Plan) -> tuple[Agent, Envs]:
    """What a collector needs in its process: the plan's agent, on the CPU, and its environments."""
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, device="cpu"))
    envs = make_envs(plan, plan.run.envs)
    return make_agent(plan, envs), envs


def rows(plan: Plan, n: int) -> tuple[int, int]:
    """How many rows a run can make in each of its ``n`` environments, and how many its replay must hold."""
    # An episode of k decisions has k + 1 rows; one-step episodes have two.
    return 2 * math.ceil(plan.config.steps / plan.config.action_repeat / n) + 2, 2 * length(plan.config)


def make_on_policy(plan: Plan, folder: Path, parts: Parts) -> Loop:
    from reverie.run.on_policy import OnPolicy

    c, run = plan.config, plan.run
    world = Path(c.world) if getattr(c, "world", "") else None
    if world and not checkpoint.paths(folder / "checkpoints"):
        read_model(world, plan)  # refused, if it has to be, before anything is made
    envs = parts.add(make_envs(plan, c.actors))
    eval_envs = parts.add(make_envs(plan, run.eval_episodes, evaluation=True))
    agent = make_agent(plan, envs)
    # What a model learns from; an agent without one, or with another run's, records nothing.
    recorded = 0 if world else getattr(c, "model_steps", 0)
    needed = 2 * math.ceil(recorded / c.action_repeat / envs.n) + 2 * c.length + 2 if recorded else 2
    replay_size(plan, envs, needed, 2)
    write_plan(folder, plan)
    logger = parts.add(Logger(folder, run.wandb, plan.as_dict()))
    replay = parts.add(make_replay(plan, envs, folder, needed, 2))
    given = (lambda loop: loop.take_model(read_model(world, plan))) if world else None
    shown = partial(show, plan)
    return OnPolicy(agent, envs, eval_envs, replay, c, run, folder, logger, shown, plan.env, given)


def read_model(folder: Path, plan: Plan) -> dict[str, Any]:
    """The state of the run whose environment model is to be used."""
    there = read_plan(folder)
    if there.agent != plan.agent:
        raise ReverieError(f"--world {folder} is a run of {there.agent}, and should be one of {plan.agent}")
    names = [name for name in plan.config.__dataclass_fields__ if name.startswith(("model_", "frames"))]
    for name in (*names, "pixels", "image_size", "action_repeat"):
        if getattr(there.config, name) != getattr(plan.config, name):
            raise ReverieError(
                f"--world {folder} has {name} {getattr(there.config, name)}, and this run has "
                f"{getattr(plan.config, name)}: give the settings it was trained with"
            )
    state = checkpoint.load(folder / "checkpoints")[1]
    if state["model_updates"] < there.config.model_updates:
        raise ReverieError(f"--world {folder} has not learned its model yet; let it go on first")
    return state


def make_staged(plan: Plan, folder: Path, parts: Parts) -> Loop:
    from reverie.agents.world_models import WorldModels
    from reverie.run.population import Cluster, Population, Processes, Recipe
    from reverie.run.staged import Staged

    c, run = plan.config, plan.run
    fresh = not checkpoint.paths(folder / "checkpoints")
    if c.world and fresh:
        read_world(Path(c.world), plan)  # refused, if it has to be, before anything is made
    envs = parts.add(make_envs(plan, run.envs, name=c.collect_env))
    eval_envs = parts.add(make_envs(plan, min(run.eval_episodes, c.quick_episodes), evaluation=True))
    agent = make_agent(plan, eval_envs)
    # How long episodes will be is not known: all that --replay-size holds. A world that is given needs none.
    needed = 2 if c.world else LONGEST * c.rollouts // envs.n
    replay_size(plan, envs, needed, 2)
    write_plan(folder, plan)
    logger = parts.add(Logger(folder, run.wandb, plan.as_dict()))
    replay = parts.add(make_replay(plan, envs, folder, needed, 2))
    recipe = Recipe(plan.agent, c, env_factory(plan), run.seed)
    workers = run.workers or CORES

    def population() -> Population:
        if not run.cluster:
            return Processes(recipe, workers)
        return Cluster(recipe, workers, None if run.cluster == "local" else run.cluster)

    def given(loop: Staged) -> None:
        if c.world:
            loop.take_world(read_world(Path(c.world), plan))
        else:
            loop.take_episodes(Path(c.episodes))

    assert isinstance(agent, WorldModels)
    shown = partial(show, plan)
    instead = given if c.world or c.episodes else None
    made = Staged(agent, envs, eval_envs, replay, c, run, folder, logger, population, shown, instead)
    return parts.add(made)


def read_world(folder: Path, plan: Plan) -> dict[str, Any]:
    """The state of the run whose V and M are to be used."""
    there = read_plan(folder)
    if there.agent != plan.agent:
        raise ReverieError(f"--world {folder} is a run of {there.agent}, and should be one of {plan.agent}")
    sizes = ("image_size", "depth", "latents", "units", "components", "restart", "rewards")
    for name in sizes:
        if getattr(there.config, name) != getattr(plan.config, name):
            raise ReverieError(
                f"--world {folder} has {name} {getattr(there.config, name)}, and this run has "
                f"{getattr(plan.config, name)}: give the settings it was trained with"
            )
    state = checkpoint.load(folder / "checkpoints")[1]
    if state["stage"] != "C":
        raise ReverieError(
            f"--world {folder} is at stage {state['stage']} and has no M yet; let it go on first"
        )
    return state


def go_on(loop: Loop) -> None:
    """Take the last good checkpoint, if there is one; what the replay knows beyond it is fed in again."""
    say, replay = loop.progress.say, loop.replay
    recorded = sum(replay.counts)
    found = newest_good(loop.folder / "checkpoints")
    if found is not None:
        loop.load_state_dict(found)
        beyond = recorded - sum(replay.counts)
        say(
            f"Going on from {loop.about()}, after {duration(loop.seconds)}"
            + (f"; {plural(beyond, 'row')} recorded since are taken in again." if beyond > 0 else ".")
        )
        return
    loop.begin_again()
    if recorded:
        say(f"No checkpoint yet: the {plural(recorded, 'row')} recorded so far are taken in again.")


def newest_good(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint that can be read, None if there never was one.

    Damaged ones are warned of and renamed, so that they do not stand before the good ones that follow.
    """
    found = checkpoint.paths(folder)
    for path in reversed(found):
        try:
            return checkpoint.load_path(path)[1]
        except ReverieError as error:
            if len(found) == 1:
                warnings.warn(
                    f"{error}; it is the only one, so the run is repeated from its record", stacklevel=3
                )
            else:
                warnings.warn(f"{error}; going on from the one before it", stacklevel=3)
            aside = path.with_name("damaged-" + path.name)
            with contextlib.suppress(OSError):
                path.rename(aside)
    return None


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
    strip = (
        agent.strip(batch) if hasattr(agent, "strip") else None
    )  # one that imagines a future for each action
    if strip is not None:
        made.append(media.save_futures(folder / "videos" / "futures.png", *strip))
    return made


def save_foresight(
    agent: Agent, replay: Replay, folder: Path, seed: int, context: int = 5, length: int = 50
) -> list[Path]:
    """The error of 32 open-loop predictions over their horizon, as a figure; none for an agent without a world, or
    one that sees no vectors."""
    world = getattr(agent, "world", None)
    if not isinstance(world, World) or all(space.is_image for space in replay.obs_space.values()):
        return []
    from reverie import plot

    length = min(length, max(replay.counts))
    batch = replay.sample(32, length, np.random.default_rng([seed, 3]))
    found = prediction_error(world, batch, min(context, length - 1))
    if not len(found.error):
        return []
    return plot.foresight(found, folder / "videos" / "prediction_error", "Predicted from the actions alone")


# Building the parts


def env_factory(plan: Plan, name: str = "") -> Callable[[], Env]:
    """Makes the environment of the plan, or the one called ``name`` in its place."""
    c, run = plan.config, plan.run
    return partial(
        make_env,
        name or plan.env,
        pixels=getattr(c, "pixels", False),
        image_size=getattr(c, "image_size", 0) or None,
        action_repeat=c.action_repeat,
        time_limit=run.time_limit or None,
        renderer=run.renderer,
    )


def make_envs(plan: Plan, n: int, evaluation: bool = False, name: str = "") -> Envs:
    factory, seed = env_factory(plan, name), plan.run.seed + (EVAL_SEED if evaluation else 0)
    if not plan.run.workers and in_one_batch(plan, name or plan.env):
        return BatchEnvs(name or plan.env, n, seed, plan.run.time_limit or None)
    if plan.run.workers and not evaluation:
        return WorkerEnvs(factory, n, seed, plan.run.workers)
    return SerialEnvs(factory, n, seed)


def in_one_batch(plan: Plan, name: str) -> bool:
    """Whether the environment is one of ours that steps many at once, and is used as it is."""
    return (
        plan.config.action_repeat == 1
        and getattr(plan.config, "image_size", 0) == 0
        and batched(name) is not None
    )


def make_agent(plan: Plan, envs: Any) -> Agent:
    agent: Any = new_agent(plan, envs.obs_space, envs.act_space, plan.run.seed, plan.run.device)
    if hasattr(type(agent), "goals"):  # it asks the environment what other goals would have been worth
        agent.goals = goals(plan)
    if getattr(plan.config, "model", "") == "simulator":
        agent.rules = rules(plan)
    return agent


def new_agent(plan: Plan, obs_space: ObsSpace, act_space: ActionSpace, seed: int, where: str) -> Agent:
    """The plan's agent, before it has learned anything, on the device called ``where``."""
    return presets.agent_class(plan.agent)(obs_space, act_space, plan.config, seed, device(where))


def goals(plan: Plan) -> Goals:
    """How the plan's environment judges goals; raises ``ReverieError`` where it can not."""
    env = env_factory(plan)()
    if env.goals is None:
        env.close()
        why = (
            "only single env steps can be judged: say --action-repeat 1"
            if plan.config.action_repeat > 1
            else "make it a goal environment, e.g. with reverie.envs.goals.GoalEnv"
        )
        raise ReverieError(
            f"{plan.agent} needs to know what other goals would have been worth, and {plan.env} has no "
            f"compute_reward to tell; {why}"
        )
    return env.goals


def rules(plan: Plan) -> Rules:
    """How the plan's environment goes on from any picture of it; raises ``ReverieError`` where none tells."""
    with contextlib.closing(env_factory(plan)()) as env:
        if env.rules is None:
            raise ReverieError(
                f"--model simulator plays on from a picture, and those of {plan.env} do not show all there is as the "
                f"agent sees them; use reverie/Sokoban-v0 as it is, with --action-repeat 1, or --model learned"
            )
        return env.rules


def make_replay(
    plan: Plan, envs: Any, folder: Path, needed: int, least: int, context: np.dtype | None = None
) -> Replay:
    """The run's replay. One that exists keeps its size, unless the run has become longer and it can grow.
    ``context``: the columns of what the agent keeps with every row."""
    capacity, slack = replay_size(plan, envs, needed, least, context)
    where = folder / "replay" if plan.run.replay_on_disk else None
    fresh = getattr(plan.config, "fresh_first", False)
    make = lambda rows, slack: Replay(
        envs.obs_space, envs.act_space, rows, envs.n, where, slack, context=context, fresh_first=fresh
    )
    old = None if where is None else read_about(where)
    if old is None:
        return make(capacity, slack)
    if old["capacity"] >= capacity or old["streams"] != envs.n:
        return make(old["capacity"], old["slack"])
    try:
        return make(capacity, slack)
    except ReverieError:  # its ring has gone round
        return make(old["capacity"], old["slack"])


def replay_size(
    plan: Plan, envs: Any, needed: int, least: int, context: np.dtype | None = None
) -> tuple[int, int]:
    """Rows to sample from, in all, and the slack of each stream: what the run can make, ``needed`` a stream, as far
    as ``replay_size`` holds it. Raises ``ReverieError`` if that is not ``least`` a stream."""
    n, size = envs.n, size_in_bytes(plan.run.replay_size)
    most = Replay.capacity_for(size, envs.obs_space, envs.act_space, context) // n - 2
    slack = min(SLACK, needed, max(most // 5, 0))
    rows = min(needed, most - slack)
    if rows < min(needed, least):
        row = Replay.bytes_per_row(envs.obs_space, envs.act_space, context)
        enough = math.ceil(1.25 * least + 3) * n * row
        raise ReverieError(
            f"--replay-size {plan.run.replay_size} is too small for this run: {math.ceil(enough / 1e6)}MB are needed "
            f"at least"
        )
    return rows * n, slack


def device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ReverieError("there is no CUDA device here that this PyTorch can use; say --device cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ReverieError(f"there is no device called {name!r}; say --device cpu, cuda or auto") from None


def about(plan: Plan, loop: Loop, folder: Path) -> str:
    """Said before the start: what learns what from what, and what it will take."""
    place = "on disk" if plan.run.replay_on_disk else "in memory"
    size = loop.replay.bytes
    sized = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
    beside = " and a collector" if plan.run.collector else ""
    return (
        f"{plan.agent} ({', '.join(plan.presets)}) on {plan.env}: {spaces(loop.eval_envs)}.\n"
        f"{loop.asked()} on {device(plan.run.device)} with {plural(torch.get_num_threads(), 'thread')}{beside}; "
        f"replay {place}, up to {sized}; run folder {folder}"
    )


def spaces(envs: Any) -> str:
    """What an agent sees and does, in words."""
    sees = ", ".join(f"{key} {'x'.join(map(str, space.shape))}" for key, space in envs.obs_space.items())
    act = envs.act_space
    acts = " x ".join(map(str, act.groups)) + " choices" if act.discrete else plural(act.size, "number")
    return f"sees {sees}; acts by {acts}"


# Using what was trained


def evaluate_run(
    folder: Path, episodes: int, video: Path | None = None
) -> tuple[Evaluation, Evaluation, Path | None]:
    """Evaluate the newest checkpoint of a run, and the random policy from the same starts.

    The first episode's pictures, if it has any, become a GIF; its path is the third value.
    """
    if episodes < 1:
        raise ReverieError(f"--episodes must be at least 1, got {episodes}")
    plan, agent = read_plan(folder), load(folder).agent
    with make_envs(plan, min(episodes, plan.run.eval_episodes), evaluation=True) as envs:
        result = evaluate(agent, envs, episodes)
        by_chance = evaluate(None, envs, episodes, np.random.default_rng(plan.run.seed))
    path = None
    if result.frames:
        path = media.save_gif(video or folder / "videos" / "episode.gif", np.stack(result.frames), fps=20)
    elif video is not None:
        raise ReverieError(
            f"{folder} was trained on {', '.join(envs.obs_space)}: there is no picture to show"
        )
    return result, by_chance, path


def imagine_run(folder: Path, context: int, length: int, seed: int) -> list[Path]:
    """Open-loop videos, and for vectors the error over the horizon, from the newest checkpoint of a run and its
    replay; their paths."""
    if not 0 < context < length:
        raise ReverieError(f"imagine needs 0 < context < length, got context {context} and length {length}")
    player = load(folder)
    if not isinstance(getattr(player.agent, "world", None), World):
        raise ReverieError(f"{folder} is a run of {player.plan.agent}, which has no world to imagine in")
    replay = open_replay(player.plan, folder)
    if max(replay.counts) < length:
        raise ReverieError(
            f"the replay of {folder} holds {max(replay.counts)} rows in a row; imagine with a --length up to that"
        )
    made = save_foresight(player.agent, replay, folder, seed, context, length)
    if any(space.is_image for space in player.obs_space.values()):
        made += save_dreams(player.agent, replay, folder, seed, context, length)
    return made


def open_replay(plan: Plan, folder: Path) -> Replay:
    """What a run has experienced, to look at; the run may be going on meanwhile."""
    if plan.run.replay_on_disk:
        return Replay.open(folder / "replay")
    _, state = checkpoint.load(folder / "checkpoints")
    env = env_factory(plan)()
    try:
        rows = max(2, *(len(kept["reward"]) for kept in state["replay"]["rows"]))
        replay = Replay(env.obs_space, env.act_space, rows * plan.run.envs, plan.run.envs)
    finally:
        env.close()
    replay.load_state_dict(state["replay"])
    return replay


class Player:
    """A trained agent as a policy: ``act`` one observation after another, ``reset`` between episodes."""

    def __init__(self, agent: Agent, plan: Plan, obs_space: ObsSpace, act_space: ActionSpace):
        self.agent, self.plan = agent, plan
        self.obs_space, self.act_space = obs_space, act_space
        self.reset()

    def reset(self) -> None:
        """Forget the past: the next observation is the first of an episode."""
        self.carry, self.is_first = self.agent.initial(1), True

    def act(self, obs: Any) -> np.ndarray:
        """The action "A" for one observation: a dict as in ``obs_space``, or its only entry by itself."""
        if not isinstance(obs, dict):
            if len(self.obs_space) != 1:
                raise ReverieError(f"act needs a dict with {', '.join(self.obs_space)}, got one array")
            obs = {next(iter(self.obs_space)): obs}
        batch = {}
        for key, space in self.obs_space.items():
            if key not in obs:
                raise ReverieError(f"act needs obs {key!r}, got {', '.join(map(str, obs)) or 'nothing'}")
            value = np.asarray(obs[key])
            if value.shape != space.shape:
                raise ReverieError(
                    f"obs {key!r} should be {space.dtype} of shape {space.shape}, got {value.shape}"
                )
            batch[key] = value.astype(space.dtype)[None]
        batch["is_first"] = np.array([self.is_first])
        action, self.carry = self.agent.act(batch, self.carry, "eval")
        self.is_first = False
        return action[0]

    def make_env(self) -> Env:
        """The environment it was trained in."""
        return env_factory(self.plan)()


def load(run: str | Path) -> Player:
    """The newest good checkpoint of a run folder, ready to act."""
    folder = Path(run)
    plan = read_plan(folder)
    _, state = checkpoint.load(folder / "checkpoints")
    with contextlib.closing(env_factory(plan)()) as env:
        agent = make_agent(plan, env)
        agent.load_state_dict(state["agent"])
        return Player(agent, plan, env.obs_space, env.act_space)
