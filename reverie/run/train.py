"""From a plan to a trained agent: build the parts, go on where the folder's last checkpoint stopped, learn."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reverie import checkpoint, media, presets
from reverie.data.replay import Replay
from reverie.envs import Env, SerialEnvs, WorkerEnvs, make_env
from reverie.logger import Logger, duration
from reverie.run.evaluate import Evaluation, evaluate
from reverie.run.folder import Plan, open_run, read_plan, size_in_bytes, write_json
from reverie.run.online import SLACK, Online, RunConfig
from reverie.types import Agent, ReverieError

EVAL_SEED = 1_000_003  # evaluation episodes never start where training ones do


def train(
    agent: str,
    env: str,
    preset: str | tuple[str, ...] = "paper",
    run: str | Path | None = None,
    settings: RunConfig | None = None,
    **overrides: Any,
) -> Path:
    """Train ``agent`` on ``env`` and return the run's folder; called again with the same, it goes on.

    ``overrides`` are fields of the agent's Config (``horizon=10``) or of ``RunConfig`` (``seed=1``). Raises
    ``ReverieError`` with one sentence for whatever can not be used.
    """
    names = (preset,) if isinstance(preset, str) else tuple(preset)
    run_fields = RunConfig.__dataclass_fields__
    settings = settings or RunConfig(**{k: v for k, v in overrides.items() if k in run_fields})
    config = presets.resolve(agent, names, {k: v for k, v in overrides.items() if k not in run_fields})
    folder = Path(run) if run is not None else Path("runs") / f"{agent}-{env.replace('/', '_')}-{settings.seed}"
    carry_out(Plan(agent, env, names, config, settings), folder)
    return folder


def carry_out(plan: Plan, folder: Path) -> bool:
    """Do what the plan says in ``folder``; True when it is finished, False when interrupted."""
    from reverie.report import write_report

    open_run(folder, plan)
    use_threads(plan.run)
    envs, eval_envs = make_envs(plan, plan.run.envs), make_envs(plan, plan.run.eval_episodes, evaluation=True)
    logger = Logger(folder, plan.run.wandb, plan.as_dict())
    replay = make_replay(plan, envs, folder)
    try:
        agent = make_agent(plan, envs)
        online = Online(agent, envs, eval_envs, replay, plan.config, plan.run, folder, logger)
        say = online.progress.say
        say(about(plan, envs, replay, folder))
        go_on(online, replay, folder)
        finished = online.loop()
        if finished:
            finish(online, folder)
            say(f"Report: {write_report(folder).resolve()}")
        else:
            say(f"Saved at {online.env_steps:,} env steps. The same command goes on from there.")
        return finished
    finally:
        for part in (replay, logger, envs, eval_envs):
            part.close()


def go_on(online: Online, replay: Replay, folder: Path) -> None:
    """Take the last good checkpoint, if there is one; what the replay knows beyond it is fed in again."""
    recorded = sum(replay.counts)
    if checkpoint.paths(folder / "checkpoints"):
        step, state = checkpoint.load(folder / "checkpoints")
        online.load_state_dict(state)
        beyond = recorded - sum(replay.counts)
        online.progress.say(
            f"Going on from {step:,} env steps, {duration(online.seconds)} so far"
            + (f"; {beyond:,} rows recorded after that are taken in again." if beyond else ".")
        )
    elif recorded:
        replay.rewind([0] * replay.streams)
        online.driver.go_on()
        online.progress.say(f"No checkpoint yet: the {recorded:,} rows recorded so far are taken in again.")


def finish(online: Online, folder: Path) -> None:
    """The last evaluation beside the random policy's, and videos of the dream and of an episode."""
    result = online.last_eval or evaluate(online.agent, online.eval_envs, online.run.eval_episodes)
    by_chance = evaluate(None, online.eval_envs, online.run.eval_episodes, np.random.default_rng(online.run.seed))
    write_json(
        folder / "evaluation.json",
        {
            "env_steps": online.env_steps,
            "updates": online.updates,
            "seconds": round(online.elapsed, 1),
            **as_json(result),
            "random": as_json(by_chance),
        },
    )
    if result.frames:
        media.save_gif(folder / "videos" / "episode.gif", np.stack(result.frames), fps=20)
    save_dreams(online.agent, online.replay, folder, online.run.seed)


def save_dreams(
    agent: Agent, replay: Replay, folder: Path, seed: int, context: int = 5, length: int = 50
) -> list[Path]:
    """Open-loop videos of six sequences, as GIF and MP4, and a strip of the first as PNG; their paths."""
    length = min(length, replay.rows)
    batch = replay.sample(6, length, np.random.default_rng([seed, 3]))
    made = []
    for name, (truth, prediction) in agent.report(batch, context).items():
        stacked = [media.open_loop(t, p, context) for t, p in zip(truth, prediction, strict=True)]
        path = folder / "videos" / name.replace("/", "_")
        made += [
            media.save_gif(path.with_suffix(".gif"), media.grid(stacked), fps=12),
            media.save_mp4(path.with_suffix(".mp4"), media.grid(stacked), fps=12),
            media.save_strip(path.with_suffix(".png"), truth[0], prediction[0], context),
        ]
    return made


def as_json(result: Evaluation) -> dict[str, Any]:
    return {"mean": result.mean, "std": result.std, "returns": result.returns, "lengths": result.lengths}


# Building the parts


def env_factory(plan: Plan) -> Callable[[], Env]:
    c, run = plan.config, plan.run
    return partial(
        make_env,
        plan.env,
        pixels=c.pixels,
        image_size=c.image_size,
        action_repeat=c.action_repeat,
        time_limit=run.time_limit or None,
        renderer=run.renderer,
    )


def make_envs(plan: Plan, n: int, evaluation: bool = False):
    factory, seed = env_factory(plan), plan.run.seed + (EVAL_SEED if evaluation else 0)
    if plan.run.workers and not evaluation:
        return WorkerEnvs(factory, n, seed, plan.run.workers)
    return SerialEnvs(factory, n, seed)


def make_agent(plan: Plan, envs) -> Agent:
    cls = presets.agent_class(plan.agent)
    return cls(envs.obs_space, envs.act_space, plan.config, plan.run.seed, device(plan.run.device))


def make_replay(plan: Plan, envs, folder: Path) -> Replay:
    """As many rows as the whole run can make, but no more than ``replay_size`` allows."""
    most = Replay.capacity_for(size_in_bytes(plan.run.replay_size), envs.obs_space, envs.act_space)
    # An episode of k decisions has k + 1 rows; one-step episodes have two.
    needed = 2 * math.ceil(plan.config.steps / plan.config.action_repeat) + 2 * envs.n
    capacity = min(needed, most)
    least = 2 * plan.config.batch_length * envs.n
    if capacity < least:
        raise ReverieError(
            f"--replay-size {plan.run.replay_size} holds {most:,} rows; {least:,} are needed at least: raise it"
        )
    where = folder / "replay" if plan.run.replay_on_disk else None
    return Replay(envs.obs_space, envs.act_space, capacity, envs.n, where, slack=SLACK)


def device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ReverieError("there is no CUDA device here that this PyTorch can use; say --device cpu")
    return torch.device(name)


def use_threads(run: RunConfig) -> None:
    """All cores for a learner that runs alone: beside another busy process, extra threads only wait."""
    torch.set_num_threads(run.threads or torch.get_num_threads())
    torch.set_flush_denormal(True)  # tiny activations would cost hundreds of cycles each


def about(plan: Plan, envs, replay: Replay, folder: Path) -> str:
    """Two lines said before the start: what learns what from what, and what it will take."""
    c = plan.config
    sees = ", ".join(f"{key} {'x'.join(map(str, space.shape))}" for key, space in envs.obs_space.items())
    kind = f"one-hot {envs.act_space.groups}" if envs.act_space.discrete else "continuous"
    place = folder / "replay" if plan.run.replay_on_disk else "memory"
    return (
        f"{plan.agent} ({', '.join(plan.presets)}) on {plan.env}: sees {sees}; acts {envs.act_space.size} {kind}; "
        f"{c.steps:,} env steps on {device(plan.run.device)} with {torch.get_num_threads()} threads.\n"
        f"Replay in {place}: up to {replay.bytes / 1e9:.2f} GB. Run folder: {folder}"
    )


# Using what was trained


def evaluate_run(folder: Path, episodes: int, video: Path | None = None) -> tuple[Evaluation, Path | None]:
    """Evaluate the newest checkpoint of a run, and save the first episode's pictures, if it has any, as a GIF."""
    plan = read_plan(folder)
    agent = load(folder).agent
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, eval_episodes=episodes))
    envs = make_envs(plan, min(episodes, 10), evaluation=True)
    try:
        result = evaluate(agent, envs, episodes)
    finally:
        envs.close()
    path = None
    if result.frames:
        path = media.save_gif(video or folder / "videos" / "episode.gif", np.stack(result.frames), fps=20)
    return result, path


def imagine_run(folder: Path, context: int, length: int, seed: int) -> list[Path]:
    """Open-loop videos from the newest checkpoint of a run and its replay; their paths."""
    if not 0 < context < length:
        raise ReverieError(f"imagine needs 0 < context < length, got context {context} and length {length}")
    plan, player = read_plan(folder), load(folder)
    if not any(space.is_image for space in player.obs_space.values()):
        raise ReverieError(f"{folder} was trained on {', '.join(player.obs_space)}: there is no picture to imagine")
    envs = make_envs(plan, plan.run.envs)
    replay = make_replay(plan, envs, folder)
    try:
        return save_dreams(player.agent, replay, folder, seed, context, length)
    finally:
        replay.close()
        envs.close()



class Player:
    """A trained agent as a policy: ``act`` one observation after another, ``reset`` between episodes."""

    def __init__(self, agent: Agent, plan: Plan, obs_space, act_space):
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
            value = np.asarray(obs.get(key))
            if value.shape != space.shape:
                raise ReverieError(f"obs {key!r} should be {space.dtype} of shape {space.shape}, got {value.shape}")
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
    env = env_factory(plan)()
    obs_space, act_space = env.obs_space, env.act_space
    env.close()
    cls = presets.agent_class(plan.agent)
    agent = cls(obs_space, act_space, plan.config, plan.run.seed, device(plan.run.device))
    agent.load_state_dict(state["agent"])
    return Player(agent, plan, obs_space, act_space)
