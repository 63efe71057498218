"""The loop of every agent that learns while it acts: one machine of small moves, interruptible between any two.

::

    until nothing is left to do:
        an update is due       one agent.update from one sampled batch
        an evaluation is due   whole episodes without noise
        a line is due          the averages since the last one
        else                   one row in every environment

Updates fall due in bursts, ``train_updates`` for every ``train_every`` env steps from ``prefill`` on. What they
learn from are sequences of ``batch_length`` rows, or what the agent draws itself (``types.Draws``).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from reverie.envs import Envs
from reverie.logger import Logger
from reverie.run.collector import Collector, Streams
from reverie.run.driver import Driver
from reverie.run.folder import Plan, write_plan
from reverie.run.loop import ByEnvSteps, RunConfig, Show, at_least, nothing
from reverie.run.parts import Parts, make_agent, make_envs, make_replay, replay_size
from reverie.run.recorded import Recorded
from reverie.run.show import show
from reverie.types import Agent, Draws, Recordable, Remembers, ReverieError


class Online(ByEnvSteps):
    """One run. Of ``config``, the agent's, the loop reads steps, prefill, pretrain (none if it has no such field),
    train_every, train_updates, batch_size and batch_length (2 if it has none: transitions). ``driver`` makes what
    steps the environments."""

    KINDS = ("act", "update", "evaluate")
    COUNTS: tuple[str, ...] = (
        "updates", "pending", "episodes", "next_train", "evaluated", "logged", "scores",
    )  # fmt: skip

    def __init__(
        self,
        agent: Agent,
        envs: Any,
        eval_envs: Any,
        replay: Any,
        config: Any,
        run: RunConfig,
        folder: Path,
        logger: Logger,
        show: Show = nothing,
        env: str = "",
        driver: Callable[..., Any] = Driver,
    ):
        super().__init__(agent, envs, eval_envs, replay, config, run, folder, logger, show, env)
        self.draws: Draws | None = agent if isinstance(agent, Draws) else None
        self.learn = Recorded(cast(Recordable, agent)) if run.graph else agent.update
        random = config.prefill if getattr(config, "random_prefill", True) else 0
        self.driver = driver(agent, envs, replay, random, run.seed)
        self.rng = np.random.default_rng([run.seed, 2])  # which sequences are sampled
        self.pretrain = getattr(config, "pretrain", 0)
        self.batch_size = config.batch_size
        self.pending = 0  # updates due
        self.next_train = config.prefill

    @staticmethod
    def make(plan: Plan, folder: Path, parts: Parts) -> "Online":
        eval_envs = parts.add(make_envs(plan, plan.run.eval_episodes, evaluation=True))
        if plan.run.collector:
            envs: Any = Streams(plan.run.envs, eval_envs.obs_space, eval_envs.act_space)
            driver: Any = partial(
                Collector, partial(for_collector, plan), plan.config, alone=not plan.run.workers
            )
        else:
            envs, driver = parts.add(training_envs(plan)), Driver
        agent = make_agent(plan, envs)
        if plan.run.graph:
            check_recordable(plan, agent)
        needed, least = rows_needed(plan, envs.n)
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

    @property
    def env_steps(self) -> int:
        return self.driver.env_steps

    @property
    def done(self) -> bool:
        return self.at_end and not self.pending and self.evaluated == self.env_steps

    @staticmethod
    def check(config: Any, run: RunConfig) -> None:
        c, ones = config, ("steps", "train_every", "batch_size")
        for name in (*ones, "prefill", "train_updates"):
            at_least(c, name, int(name in ones))
        if hasattr(c, "batch_length"):
            at_least(c, "batch_length", 2)
        rows = c.prefill // (c.action_repeat * run.envs)
        if c.train_updates and rows < length(c) <= c.steps:
            raise ReverieError(
                f"--prefill {c.prefill} makes about {rows} rows in each environment before the first update, and "
                + (
                    f"--batch-length {c.batch_length} needs as many: raise one or lower the other"
                    if hasattr(c, "batch_length")
                    else "a transition needs two: raise it"
                )
            )

    # Moving

    def move(self) -> None:
        begin = time.perf_counter()
        if self.pending:
            kind, n = "update", self.update()
        elif self.evaluation_due():
            kind, n = "evaluate", self.evaluate()
        elif self.log_due():
            self.log()
            return
        else:
            kind, n = "act", self.act()
        self.spent[kind] += time.perf_counter() - begin
        self.counted[kind] += n

    def act(self) -> int:
        """One row in every stream; the env steps it took."""
        before = self.env_steps
        for episode in self.driver():
            self.ended(episode.score, episode.length)
        while self.env_steps >= self.next_train:
            if self.next_train == self.config.prefill:
                self.pending += self.pretrain
            self.next_train += self.config.train_every
            self.pending += self.config.train_updates
        return self.env_steps - before

    def update(self) -> int:
        if self.draws is not None:
            batch = self.draws.sample(self.replay, self.rng)
        else:
            batch = self.replay.sample(self.batch_size, self.config.batch_length, self.rng)
        self.logger.add(self.learn(batch))
        if batch.rows is not None and isinstance(self.agent, Remembers):
            self.replay.refresh(batch.rows, self.agent.reread)
        self.updates += 1
        self.pending -= 1
        return 1

    # Telling

    def tell(self) -> None:
        self.progress(self.env_steps, self.updates, self.scores[-1] if self.scores else None, self.left())

    def to_do(self) -> dict[str, int]:
        bursts = max((self.config.steps - self.next_train) // self.config.train_every + 1, 0)
        pretrain = self.pretrain if self.env_steps < self.config.prefill else 0
        return {
            "act": max(self.config.steps - self.env_steps, 0),
            "update": self.pending + pretrain + bursts * self.config.train_updates,
            "evaluate": self.evaluations_left(),
        }

    # Stopping and going on

    def state_dict(self) -> dict[str, Any]:
        own = {"driver": self.driver.state_dict(), "rng": self.rng.bit_generator.state}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.driver.load_state_dict(state["driver"])  # after the replay: it finds its journal there
        self.rng.bit_generator.state = state["rng"]

    def begin_again(self) -> None:
        """Without a checkpoint: start over, with what is recorded as the journal."""
        self.replay.rewind([0] * self.replay.streams)
        self.driver.go_on()
        self.logger.begin()


def check_recordable(plan: Plan, agent: Agent) -> None:
    """Refuse to record what can not be, or where nothing can."""
    if not isinstance(agent, Recordable):
        raise ReverieError(
            f"--graph records updates that the device makes alone, and those of {plan.agent} are not written so: "
            f"leave it out"
        )
    if agent.device.type != "cuda":
        raise ReverieError(
            f"--graph records for a CUDA device, and this run learns on {agent.device}: leave it out"
        )


def length(config: Any) -> int:
    """Rows of the sequences an agent learns from: two, a transition, where its Config does not say."""
    return getattr(config, "batch_length", 2)


def rows_needed(plan: Plan, n: int) -> tuple[int, int]:
    """How many rows a run can make in each of its ``n`` environments, and how many its replay must hold."""
    # An episode of k decisions has k + 1 rows; one-step episodes have two.
    return 2 * math.ceil(plan.config.steps / plan.config.action_repeat / n) + 2, 2 * length(plan.config)


def for_collector(plan: Plan) -> tuple[Agent, Envs]:
    """What a collector needs in its process: the plan's agent, on the CPU, and its environments."""
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, device="cpu"))
    envs = training_envs(plan)
    return make_agent(plan, envs), envs


def training_envs(plan: Plan) -> Envs:
    return make_envs(plan, plan.run.envs, cluster=plan.run.cluster)
