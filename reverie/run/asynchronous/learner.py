"""The learner: takes in the actor's rows, updates the agent, publishes its policy."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reverie import checkpoint
from reverie.data.replay import Replay
from reverie.data.storage import read_about
from reverie.logger import Logger
from reverie.run.asynchronous.clock import Clock
from reverie.run.asynchronous.settings import LINK, LOOK, RobotConfig
from reverie.run.asynchronous.spool import Intake
from reverie.run.asynchronous.weights import publish
from reverie.run.folder import Plan, size_in_bytes
from reverie.run.online import length
from reverie.run.parts import new_agent
from reverie.types import Agent, Batch, Draws, ReverieError


class Learner:
    """Takes rows in, learns, publishes. ``turn`` is one look at the spool and at most one update."""

    def __init__(
        self,
        agent: Agent,
        replay: Replay,
        intake: Intake,
        config: Any,
        settings: RobotConfig,
        folder: Path,
        logger: Logger,
        clock: Clock,
    ):
        self.agent, self.replay, self.intake, self.config = agent, replay, intake, config
        self.settings, self.folder, self.logger, self.clock = settings, folder, logger, clock
        self.rng = np.random.default_rng([settings.seed, 2])
        self.updates = self.decisions = 0
        self.logged = 0
        self.score, self.length = 0.0, 0  # of the episode that is coming in
        self.stopping = False
        self.published = self.saved = self.said = self.sat_down = clock.now()
        self.seconds = 0.0  # of earlier sittings
        self.weights = folder / LINK / "weights"
        self.take_in()

    def turn(self, updates: int | None = None) -> int:
        """Take in what has come and learn ``updates`` times (None: once, if the ratio allows it); how often."""
        self.take_in()
        n = (1 if self.allowed() else 0) if updates is None else updates
        n = n if self.ready else 0
        for _ in range(n):
            self.logger.add(self.agent.update(self.draw()))
            self.updates += 1
        now = self.clock.now()
        if now - self.published >= self.settings.sync_every:
            self.publish()
        if now - self.saved >= self.settings.checkpoint_every:
            self.save()
        if now - self.said >= max(LOOK, min(5.0, self.settings.sync_every)):
            self.say_taken()
        every = self.settings.log_every
        if self.decisions // every > self.logged // every:
            self.log()
        return n

    def log(self) -> None:
        seconds = round(self.seconds + self.clock.now() - self.sat_down, 3)
        self.logger.write(self.decisions, updates=self.updates, seconds=seconds, ratio=self.ratio)
        self.logged = self.decisions

    def loop(self, alive: Callable[[], bool] = lambda: True) -> None:
        """Learn until told to stop, or until nobody is there any more; then take in the rest and save."""
        self.publish()
        self.say_taken()
        while not self.stopping and alive():
            if not self.turn():
                time.sleep(0.02)
        self.end()

    def end(self) -> None:
        """Take in the rest, save, and leave the newest weights."""
        self.take_in()
        self.save()
        self.publish()

    def draw(self) -> Batch:
        if isinstance(self.agent, Draws):
            return self.agent.sample(self.replay, self.rng)
        return self.replay.sample(self.config.batch_size, length(self.config), self.rng)

    @property
    def ready(self) -> bool:
        return self.decisions >= self.config.prefill and self.replay.rows >= length(self.config) + 1

    @property
    def ratio(self) -> float:
        """Updates per decision since learning began."""
        return self.updates / max(1, self.decisions - self.config.prefill)

    def allowed(self) -> bool:
        return not self.settings.max_ratio or self.ratio < self.settings.max_ratio

    def take_in(self) -> int:
        """Add every new row to the replay; how many."""
        n = 0
        for step, action, decisions in self.intake.rows(self.replay.counts[0]):
            self.replay.add(step, action)
            self.decisions = decisions + int(not step.is_last)
            n += 1
            self.score = float(step.reward) + (0.0 if step.is_first else self.score)
            self.length = 0 if step.is_first else self.length + 1
            if step.is_last and self.length:
                found = {"episode/return": self.score, "episode/length": self.length}
                self.logger.add({**found, "reward/mean": self.score / self.length})
        return n

    def say_taken(self) -> None:
        self.replay.flush()
        self.intake.say_taken(self.replay.counts[0])
        self.said = self.clock.now()

    def publish(self) -> None:
        publish(self.weights, self.agent, self.updates, self.replay.counts[0])
        self.published = self.clock.now()

    def save(self) -> None:
        self.logger.check()
        self.say_taken()
        state = {
            "agent": self.agent.state_dict(),
            "updates": self.updates,
            "decisions": self.decisions,
            "logged": self.logged,
            "seconds": self.seconds + self.clock.now() - self.sat_down,
            "rng": self.rng.bit_generator.state,
            "logger": self.logger.state_dict(),
        }
        checkpoint.save(self.folder / "checkpoints", self.updates, state)
        self.saved = self.clock.now()

    def go_on(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint. The replay is ahead of it, and stays so: a robot is not played again."""
        self.agent.load_state_dict(state["agent"])
        self.updates, self.logged, self.seconds = state["updates"], state["logged"], state["seconds"]
        self.decisions = max(self.decisions, state["decisions"])
        self.rng.bit_generator.state = state["rng"]
        self.logger.load_state_dict(state["logger"])


def make_learner(plan: Plan, settings: RobotConfig, folder: Path, clock: Clock, parts: Any) -> Learner:
    """The learner of a run's folder, where its last checkpoint stopped; closed with ``parts``."""
    intake = Intake(folder / LINK)
    logger = parts.add(Logger(folder))
    replay = parts.add(make_replay(intake, plan, settings, folder))
    agent = new_agent(plan, intake.obs_space, intake.act_space, settings.seed, settings.device)
    learner = Learner(agent, replay, intake, plan.config, settings, folder, logger, clock)
    found = checkpoint.newest_good(folder / "checkpoints")
    if found is not None:
        learner.go_on(found)
    return learner


def make_replay(intake: Intake, plan: Plan, settings: RobotConfig, folder: Path) -> Replay:
    """All rows that the run can make, as far as ``replay_size`` holds them; one that exists keeps its size."""
    most = Replay.capacity_for(size_in_bytes(settings.replay_size), intake.obs_space, intake.act_space)
    rows = min(2 * plan.config.steps + 2, most)
    if rows < 2 * length(plan.config):
        raise ReverieError(f"--replay-size {settings.replay_size} is too small for sequences of this length")
    old = read_about(folder / "replay")
    return Replay(intake.obs_space, intake.act_space, old["capacity"] if old else rows, 1, folder / "replay")
