"""Using what was trained: the newest good checkpoint of a run, to act, to be evaluated, to imagine."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reverie import checkpoint, media
from reverie.data.replay import Replay
from reverie.envs import Env
from reverie.run.evaluate import Evaluation, evaluate
from reverie.run.folder import Plan, read_plan
from reverie.run.parts import EVAL_SEED, env_factory, make_agent, make_envs
from reverie.run.show import save_dreams, save_foresight
from reverie.types import ActionSpace, Agent, HasWorld, ObsSpace, ReverieError


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


def load(run: str | Path, best: bool = False) -> Player:
    """The newest good checkpoint of a run folder, or the agent of its best evaluation, ready to act."""
    folder = Path(run)
    plan = read_plan(folder)
    if best and not checkpoint.paths(folder / "best"):
        raise ReverieError(
            f"{folder} keeps no best agent: it was not evaluated yet, or it does not go by env steps; leave --best out"
        )
    _, state = checkpoint.load(folder / ("best" if best else "checkpoints"))
    with contextlib.closing(env_factory(plan)()) as env:
        agent = make_agent(plan, env)
        agent.load_state_dict(state["agent"])
        return Player(agent, plan, env.obs_space, env.act_space)


def evaluate_run(
    folder: Path, episodes: int, video: Path | None = None, best: bool = False
) -> tuple[Evaluation, Evaluation, Path | None]:
    """Evaluate the newest checkpoint of a run, or its best one, and the random policy from the same starts.

    The first episode's pictures, if it has any, become a GIF; its path is the third value.
    """
    if episodes < 1:
        raise ReverieError(f"--episodes must be at least 1, got {episodes}")
    plan, agent = read_plan(folder), load(folder, best).agent
    if (
        best
    ):  # it was chosen for what it did from the run's own starts, some of it luck: it is judged from others
        plan = replace(plan, run=replace(plan.run, seed=plan.run.seed + EVAL_SEED))
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
    if not isinstance(player.agent, HasWorld):
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
