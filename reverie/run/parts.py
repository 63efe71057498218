"""The parts of a run, made as its plan says: environments, agent, replay."""

import contextlib
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reverie import checkpoint, presets
from reverie.data.replay import Replay
from reverie.data.storage import read_about
from reverie.envs import Env, Envs, SerialEnvs, WorkerEnvs, make_env
from reverie.envs.base import Goals, Rules
from reverie.envs.batch import BatchEnvs, batched
from reverie.run.env_cluster import ClusterEnvs
from reverie.run.folder import Plan, read_plan, size_in_bytes
from reverie.types import ActionSpace, Agent, ObsSpace, ReverieError, SeeksGoals, Simulates

EVAL_SEED = 1_000_003  # evaluation episodes never start where training ones do
SLACK = 10_000  # rows a stream may record beyond a checkpoint and still be taken back to it


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


def make_envs(plan: Plan, n: int, evaluation: bool = False, name: str = "", cluster: str = "") -> Envs:
    """``n`` of the plan's environment, or of the one called ``name``: in this process, in workers, or in those of a
    Ray cluster, "local" or an address."""
    factory, seed = env_factory(plan, name), plan.run.seed + (EVAL_SEED if evaluation else 0)
    workers = plan.run.workers
    if not workers and not cluster and in_one_batch(plan, name or plan.env):
        return BatchEnvs(name or plan.env, n, seed, plan.run.time_limit or None)
    if cluster:
        return ClusterEnvs(factory, n, seed, workers or n, None if cluster == "local" else cluster)
    if workers and not evaluation:
        return WorkerEnvs(factory, n, seed, workers)
    return SerialEnvs(factory, n, seed)


def in_one_batch(plan: Plan, name: str) -> bool:
    """Whether the environment is one of ours that steps many at once, and is used as it is."""
    return (
        plan.config.action_repeat == 1
        and getattr(plan.config, "image_size", 0) == 0
        and batched(name) is not None
    )


def make_agent(plan: Plan, envs: Any) -> Agent:
    agent = new_agent(plan, envs.obs_space, envs.act_space, plan.run.seed, plan.run.device)
    if isinstance(agent, SeeksGoals):
        agent.goals = goals(plan)
    if isinstance(agent, Simulates) and agent.simulates:
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


def other_run(folder: Path, plan: Plan, same: Iterable[str]) -> tuple[Plan, dict[str, Any]]:
    """The plan and the state of the run ``--world`` names: of the same agent, with the ``same`` settings."""
    there = read_plan(folder)
    if there.agent != plan.agent:
        raise ReverieError(f"--world {folder} is a run of {there.agent}, and should be one of {plan.agent}")
    for name in same:
        if getattr(there.config, name) != getattr(plan.config, name):
            raise ReverieError(
                f"--world {folder} has {name} {getattr(there.config, name)}, and this run has "
                f"{getattr(plan.config, name)}: give the settings it was trained with"
            )
    return there, checkpoint.load(folder / "checkpoints")[1]
