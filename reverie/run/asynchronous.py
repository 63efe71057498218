"""Learning on a robot that does not wait (DayDreamer, Wu et al. 2022): an actor and a learner, two processes.

::

    actor, owns the clock                                     learner, owns the gradient
    rate times a second, on the beat:                         as often as it can:
        sense -> policy -> guard -> spool -> send    rows         take in rows, one agent.update
        newer weights? swap them in                 ------>   every sync_every seconds:
        never waits, never catches up               <------       publish the policy's weights as a new version
                                                   weights

Both know only files (``spool.py``, ``checkpoint.py``): either may be killed, or be out of reach of the other for
minutes, and nothing that happened is lost. The robot goes on with its last policy until that is ``stale_after``
seconds old, or until the spool is full; then it is stopped, says why, and goes on by itself when that has passed.

With a virtual clock (``virtual_update`` > 0) both take turns in one process, every decision takes a period, every
update the stated milliseconds, and the same seed gives the same run: for tests, and for machines that cannot hold
both at real time.
"""

import contextlib
import dataclasses
import gc
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reverie import checkpoint, presets
from reverie.data.replay import Replay
from reverie.data.storage import read_about
from reverie.logger import Logger, Progress, duration, plural
from reverie.machine import CORES, prepare
from reverie.robots.base import Reading, Robot, Twin, make_robot
from reverie.run.folder import Plan, check_folder, size_in_bytes, write_plan
from reverie.run.loop import RunConfig, at_least
from reverie.run.online import length
from reverie.run.person import Person
from reverie.run.safety import Guard, Watchdog
from reverie.run.spool import Intake, Spool, SpoolFull
from reverie.types import ActionSpace, Agent, Batch, Draws, NotFinite, ObsSpace, ReverieError, Step

LOOK = 1.0  # seconds between two looks for newer weights, and for what the learner has taken
AS_ENV = {
    "a1": "reverie/A1-v0",
    "a1_pushed": "reverie/A1-v0",  # a run may go on with it
    "pick_place": "reverie/PickPlace-v0",
    "ball": "reverie/Ball-v0",
}
RESTARTS = 5  # of a learner that ends by itself
LEARNER, LINK = "learner", "robot"  # folders in the run's: the learner's log, and what both sides share


@dataclass(frozen=True)
class RobotConfig:
    """How a robot is learned on; what is learned, and by which settings, is in the agent's Config."""

    seed: int = 0
    rate: float = 0.0  # decisions a second; 0 for the robot's own
    episode: int = 0  # decisions until the agent's memory begins anew; 0 for the robot's own
    sync_every: float = 20.0  # seconds between two versions of the weights
    stale_after: float = 300.0  # seconds without newer weights after which the robot is stopped; 0: never
    max_ratio: float = 0.0  # updates per decision at most; 0 for as many as the learner can
    virtual_update: float = 0.0  # ms that an update takes on a virtual clock; 0 for the real clock
    max_change: float = 0.0  # of each entry of an action, from one decision to the next; 0 for any
    cutoff: float = 0.0  # Hz, low-pass on actions; 0 for none
    watchdog: float = 2.0  # seconds without a decision after which the robot is stopped; 0: never
    spool_size: str = "500MB"  # rows kept for a learner that can not take them
    port: int = -1  # of the person's HTTP endpoint on this machine; 0 for any, -1 for none
    cluster: str = (
        ""  # Ray cluster that the learner runs on: its address, or "local"; none: a process beside the actor
    )
    device: str = "auto"  # of the learner; the actor stays on the CPU
    threads: int = 0  # of the learner; 0 for every core but one
    replay_size: str = "4GB"
    checkpoint_every: float = 300.0  # seconds between checkpoints of the learner
    log_every: int = 1_000  # decisions between two lines of metrics
    video: bool = True  # of a twin, at the end

    def __post_init__(self) -> None:
        least = {"log_every": 1, "port": -1}
        for name in (
            *(
                "seed",
                "rate",
                "episode",
                "sync_every",
                "stale_after",
                "max_ratio",
                "virtual_update",
                "max_change",
            ),
            *("cutoff", "watchdog", "threads", "checkpoint_every", *least),
        ):
            at_least(self, name, least.get(name, 0))
        if self.cluster and self.virtual_update:
            raise ReverieError(
                "a virtual clock is kept in one process: leave out --cluster or --virtual-update"
            )


# The clock


class Clock(ABC):
    @abstractmethod
    def now(self) -> float:
        """Seconds since some moment."""

    @abstractmethod
    def wait(self, until: float) -> None:
        """Come back then, or at once if it has passed."""


class RealClock(Clock):
    def now(self) -> float:
        return time.monotonic()

    def wait(self, until: float) -> None:
        left = until - time.monotonic()
        if left > 0:
            time.sleep(left)


class VirtualClock(Clock):
    """Time passes when it is waited for, and not otherwise."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wait(self, until: float) -> None:
        self.time = max(self.time, until)


# Weights, by version


def to_act(state: Mapping[str, Any]) -> dict[str, Any]:
    """What an actor needs of an agent's state: all but the optimisers, and the generators, which stay its own."""
    return {key: value for key, value in state.items() if not key.endswith("_opt") and key != "generators"}


def publish(folder: Path, agent: Agent, updates: int, rows: int) -> int:
    """Put the policy there as the next version, whole or not at all; its number."""
    known = checkpoint.paths(folder)
    version = int(known[-1].name.split(".")[0]) + 1 if known else 1
    checkpoint.save(folder, version, {"agent": to_act(agent.state_dict()), "updates": updates, "rows": rows})
    return version


class Policies:
    """The newest policy there is: loaded beside the clock into a second agent, swapped in between two decisions.

    What can not be read is warned of once, and the policy at hand stays.
    """

    def __init__(self, folder: Path, agent: Agent, spare: Agent, clock: Clock, aside: bool = True):
        self.folder, self.agent, self._spare, self.clock = folder, agent, spare, clock
        self.aside = aside  # load in a thread; False: at once, while a virtual clock stands still
        self.version = self.updates = self.rows = 0
        self.arrived = self._looked = clock.now()
        self._loaded: tuple[int, Mapping[str, Any]] | None = None
        self._thread: threading.Thread | None = None
        self._bad = 0  # a version that could not be read

    @property
    def age(self) -> float:
        """Seconds since the newest weights came."""
        return self.clock.now() - self.arrived

    def look(self) -> bool:
        """Called between two decisions; whether there is a new policy."""
        now = self.clock.now()
        busy = self._thread is not None and self._thread.is_alive()
        if self._loaded is None and not busy and now - self._looked >= LOOK:
            self._looked = now
            if self.aside:
                self._thread = threading.Thread(target=self._load, name="weights", daemon=True)
                self._thread.start()
            else:
                self._load()
        if self._loaded is None or (self.aside and self._thread is not None and self._thread.is_alive()):
            return False
        self.version, state = self._loaded
        self.updates, self.rows = int(state["updates"]), int(state["rows"])
        self.agent, self._spare, self._loaded = self._spare, self.agent, None
        self.arrived = now
        return True

    def _load(self) -> None:
        for path in reversed(checkpoint.paths(self.folder)):
            version = int(path.name.split(".")[0])
            if version <= self.version:
                return
            try:
                _, state = checkpoint.load_path(path)
                self._spare.load_state_dict({**self._spare.state_dict(), **state["agent"]})
            except (ReverieError, KeyError, RuntimeError) as error:
                if version != self._bad and path.exists():  # else it was removed for a newer one
                    self._bad = version
                    warnings.warn(f"{error}; the robot keeps the policy it has", stacklevel=2)
                continue
            self._loaded = version, state
            return


# The actor


class Actor:
    """One robot, on the beat of its clock. ``tick`` is one decision, or one look while it is held."""

    def __init__(
        self,
        robot: Robot,
        policies: Policies,
        spool: Spool,
        config: Any,
        settings: RobotConfig,
        clock: Clock,
        person: Person | None = None,
        logger: Logger | None = None,
        progress: Progress | None = None,
    ):
        self.robot, self.policies, self.spool, self.clock = robot, policies, spool, clock
        self.steps, self.prefill = config.steps, config.prefill
        self.settings, self.logger, self.progress = settings, logger, progress
        self.person = person or Person()
        self.person.status = self.status
        self.period = 1 / robot.rate
        self.limit = settings.episode or robot.episode  # decisions; 0: none
        self.guard = Guard(robot.act_space, robot.rate, settings.max_change, settings.cutoff)
        patience = 0.0 if isinstance(clock, VirtualClock) else settings.watchdog
        self.watchdog = Watchdog(robot, max(patience, 3 * self.period) if patience else 0.0)
        self.rng = np.random.default_rng([settings.seed, 4, spool.number])
        self.carry = policies.agent.initial(1)
        self.held = ""  # why the robot is stopped; empty: it is not
        self.fresh = True  # the next beat is now
        self.is_first, self.random = True, True
        self.score, self.length, self.scores = 0.0, 0, [0.0][:0]
        self.beat = clock.now()
        self.missed = self.episodes = 0
        self.late = self.latest = 0.0  # sum and most, in seconds, since the last line
        self.beats = 0  # since the last line
        self.logged = self.decisions // settings.log_every
        self.tidied = clock.now()
        self.begun = False
        self.leaving = False

    @property
    def decisions(self) -> int:
        return self.spool.decisions

    @property
    def done(self) -> bool:
        return self.leaving or (self.decisions >= self.steps and self.is_first)

    def loop(self, between: Callable[[], None] = lambda: None) -> None:
        """Decide until all decisions are made or somebody says quit; the robot is stopped in any case."""
        try:
            while not self.done:
                self.tick()
                between()
        finally:
            self.watchdog.rest()
            self.robot.stop()
            self.watchdog.close()
            self.spool.close()

    def tick(self) -> None:
        if not self.begun:
            self.begun = True
            if self.logger is not None:  # its first line takes a second: not on the beat
                self.logger.write(self.decisions, episodes=0, **self.numbers())
            self.bring_back()
        new = self.policies.look()
        wish = self.person.wish()
        if self.held:
            self.hold_on(wish, new)
            return
        if self.fresh:
            self.beat, self.fresh = self.clock.now(), False
        self.clock.wait(self.beat)
        self.watchdog.pat()
        self.decide(self.robot.sense(), wish)
        if self.fresh or self.held:
            return
        self.keep_time()
        self.housekeeping()

    def decide(self, reading: Reading, wish: str | None = None) -> None:
        """Record what is seen, and answer it."""
        if not finite(reading):
            self.hold("what it senses is not finite; c continues")
            return
        end = self.reason_to_end(reading, wish)
        if end and not self.is_first:
            self.record(reading, np.zeros(self.robot.act_space.size, np.float32), last=True)
            self.finish_episode()
        if end == "reset":
            self.bring_back()
            return
        if end == "quit":
            self.leaving = True
            return
        if end and end != "limit":
            self.hold(end)
            return
        if self.is_first:
            self.random = self.decisions < self.prefill or not self.policies.updates
            reading = reading._replace(reward=0.0)
        action = self.choose(reading.obs)
        safe = self.guard(action)
        if safe is None:
            if not self.is_first:
                self.record(reading, np.zeros(self.robot.act_space.size, np.float32), last=True)
                self.finish_episode()
            self.hold("the policy's action is not finite; c continues, and so does a newer policy")
            return
        try:
            self.record(reading, action)
        except SpoolFull as error:
            self.hold(str(error))
            return
        self.robot.send(safe)

    def reason_to_end(self, reading: Reading, wish: str | None) -> str:
        """Why this row is the last of its episode: reset, quit, limit, or what the robot is held for; empty: it is
        not."""
        if wish == "quit" or self.decisions >= self.steps:
            return "quit"
        if wish == "pause":
            return "paused; c continues"
        if self.spool.room < 3:
            return "the spool is full, and the learner does not take from it"
        if self.stale:
            return f"the policy is {self.policies.age:.0f} seconds old"
        if wish == "reset" or reading.over:
            return "reset"
        if self.limit and self.length >= self.limit:
            return "reset" if self.robot.resets else "limit"
        return ""

    @property
    def stale(self) -> bool:
        return 0 < self.settings.stale_after < self.policies.age

    def choose(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The policy's action "A", or a random one while the replay is filled."""
        if self.random:
            return self.robot.act_space.sample(self.rng, 1)[0]
        seen = {key: np.asarray(value)[None] for key, value in obs.items()}
        seen["is_first"] = np.array([self.is_first])
        action, self.carry = self.policies.agent.act(seen, self.carry, "train")
        return np.asarray(action[0], np.float32)

    def record(self, reading: Reading, action: np.ndarray, last: bool = False) -> None:
        flag = lambda value: np.array(bool(value))
        row = Step(
            {key: np.asarray(value) for key, value in reading.obs.items()},
            reward=np.array(reading.reward, np.float32),
            is_first=flag(self.is_first),
            is_last=flag(last),
            is_terminal=flag(last and reading.terminal),
            env_steps=np.array(not self.is_first, np.int64),
        )
        self.spool.add(row, action)
        self.score += reading.reward
        self.length += int(not last)
        self.is_first = False

    def finish_episode(self) -> None:
        self.episodes += 1
        self.scores = [*self.scores[-99:], self.score]
        if self.logger is not None:
            found = {"episode/return": self.score, "episode/length": self.length}
            self.logger.add({**found, "reward/mean": self.score / max(self.length, 1)})
        self.is_first, self.score, self.length = True, 0.0, 0

    def bring_back(self) -> None:
        """Stop and reset the robot; the clock begins anew."""
        self.watchdog.rest()
        self.robot.stop()
        self.robot.reset()
        self.guard.begin()
        self.is_first, self.fresh, self.score, self.length = True, True, 0.0, 0

    def hold(self, why: str) -> None:
        """Stop the robot and wait."""
        self.watchdog.rest()
        self.robot.stop()
        self.guard.begin()
        self.held, self.fresh, self.is_first, self.score, self.length = why, True, True, 0.0, 0
        if self.progress is not None:
            self.progress.say(f"The robot is stopped: {why}.")

    def hold_on(self, wish: str | None, new: bool) -> None:
        """While it is held: go on if what it was held for has passed, or a person says so."""
        self.clock.wait(self.clock.now() + self.period)
        self.spool.tidy()
        why = self.held
        passed = (
            (new and "policy" in why)
            or ("spool" in why and self.spool.room > self.spool.most // 10)
            or ("old" in why and not self.stale)
        )
        if wish == "quit":
            self.leaving = True
        elif wish == "reset":
            self.held = ""
            self.bring_back()
        elif wish == "continue" or passed:
            self.held = ""
            if wish == "continue":
                self.policies.arrived = self.clock.now()  # the person takes it on
            if self.progress is not None:
                self.progress.say("The robot goes on.")

    def keep_time(self) -> None:
        """The next beat. What came too late is counted, and not made up for."""
        late = self.clock.now() - self.beat
        self.late, self.latest, self.beats = self.late + late, max(self.latest, late), self.beats + 1
        over = math.floor(late / self.period + 1e-9)
        self.missed += over
        self.beat += self.period * (1 + over)

    def housekeeping(self) -> None:
        """What may be done between two beats."""
        now = self.clock.now()
        if now - self.tidied >= LOOK:
            self.tidied = now
            self.spool.tidy()
        if self.decisions // self.settings.log_every > self.logged:
            self.logged = self.decisions // self.settings.log_every
            if self.logger is not None:
                self.logger.write(self.decisions, episodes=self.episodes, **self.numbers())
            self.late = self.latest = 0.0
            self.beats = 0
        if self.progress is not None:
            left = (self.steps - self.decisions) * self.period
            score = self.scores[-1] if self.scores else None
            self.progress(self.decisions, self.policies.updates, score, left)

    def numbers(self) -> dict[str, Any]:
        """How it is going, for the log and for the person."""
        return {
            "clock/missed": self.missed,
            "clock/late_ms": 1e3 * self.late / max(self.beats, 1),
            "clock/latest_ms": 1e3 * self.latest,
            "policy/version": self.policies.version,
            "policy/updates": self.policies.updates,
            "policy/age_s": self.policies.age,
            "policy/behind": self.spool.number - self.policies.rows,
            "spool/rows": self.spool.number - self.spool.taken,
            "safety/limited": self.guard.limited,
            "safety/refused": self.guard.refused,
            "safety/barked": self.watchdog.barked,
        }

    def status(self) -> dict[str, Any]:
        return {
            "held": self.held,
            "decisions": self.decisions,
            "steps": self.steps,
            "episodes": self.episodes,
            "returns": self.scores[-10:],
            **self.numbers(),
        }


def finite(reading: Reading) -> bool:
    return math.isfinite(reading.reward) and all(
        value.dtype.kind != "f" or bool(np.isfinite(value).all())
        for value in map(np.asarray, reading.obs.values())
    )


# The learner


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


# Both together


def make_agent(plan: Plan, obs_space: ObsSpace, act_space: ActionSpace, seed: int, device: str) -> Agent:
    from reverie.run.train import device as named

    return presets.agent_class(plan.agent)(obs_space, act_space, plan.config, seed, named(device))


def make_learner(plan: Plan, settings: RobotConfig, folder: Path, clock: Clock, parts: Any) -> Learner:
    """The learner of a run's folder, where its last checkpoint stopped; closed with ``parts``."""
    from reverie.run.train import newest_good

    intake = Intake(folder / LINK)
    logger = parts.add(Logger(folder))
    replay = parts.add(make_replay(intake, plan, settings, folder))
    agent = make_agent(plan, intake.obs_space, intake.act_space, settings.seed, settings.device)
    learner = Learner(agent, replay, intake, plan.config, settings, folder, logger, clock)
    found = newest_good(folder / "checkpoints")
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


def make_actor(
    plan: Plan, settings: RobotConfig, folder: Path, robot: Robot, clock: Clock, parts: Any, shown: bool
) -> Actor:
    """The actor of a run's folder, where its spool ends; closed with ``parts``."""
    spool = Spool(
        folder / LINK, robot.obs_space, robot.act_space, robot.rate, size_in_bytes(settings.spool_size)
    )
    virtual = isinstance(clock, VirtualClock)
    seeds = (settings.seed + 1_000 + spool.number, settings.seed + 2_000 + spool.number)
    agent, spare = (make_agent(plan, robot.obs_space, robot.act_space, seed, "cpu") for seed in seeds)
    for one in (agent, spare):
        warm_up(one, robot)
    policies = Policies(folder / LINK / "weights", agent, spare, clock, aside=not virtual)
    logger = parts.add(Logger(folder / LINK))
    progress = Progress(plan.config.steps) if shown else None
    return Actor(robot, policies, spool, plan.config, settings, clock, Person(), logger, progress)


def warm_up(agent: Agent, robot: Robot) -> None:
    """The first call of a network costs many times the next ones; have it before the clock runs."""
    obs = {key: np.zeros((1, *space.shape), space.dtype) for key, space in robot.obs_space.items()}
    carry = agent.initial(1)
    for _ in range(3):
        _, carry = agent.act({**obs, "is_first": np.array([True])}, carry, "train")


def take_turns(actor: Actor, learner: Learner, cost: float) -> None:
    """A virtual clock: each decision takes its period, and each update ``cost`` seconds beside it."""
    learner.publish()
    credit, before = 0.0, actor.clock.now()

    def between() -> None:
        nonlocal credit, before
        credit, before = credit + actor.clock.now() - before, actor.clock.now()
        n = math.floor(credit / cost + 1e-9)
        if learner.settings.max_ratio and not learner.allowed():
            n = 0
        done = learner.turn(n)
        credit = credit - done * cost if done else min(credit, cost)  # time that was not used is gone

    actor.loop(between)
    learner.end()


def learn(folder: Path, plan: Plan, settings: RobotConfig, parent: int, end: Any) -> None:
    """The learner's process: until it is told to ``end`` (an event, or SIGTERM), or ``parent`` is gone."""
    from reverie.run.train import Parts

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the actor's, who tells us
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)  # where both want a core, the robot has it
    prepare(settings.threads or max(1, CORES - 1))
    with Parts() as parts:
        learner = patiently(lambda: make_learner(plan, settings, folder, RealClock(), parts))

        def stop(*_: Any) -> None:
            learner.stopping = True

        signal.signal(signal.SIGTERM, stop)
        try:
            learner.loop(alive=lambda: not end.is_set() and os.getppid() == parent)
        except NotFinite as error:
            raise SystemExit(
                f"reverie: the learner stopped after {plural(learner.updates, 'update')}: {error}"
            ) from None


def patiently(make: Callable[[], Any], seconds: float = 60.0) -> Any:
    """An earlier learner may still be saving: wait for it."""
    until = time.monotonic() + seconds
    while True:
        try:
            return make()
        except ReverieError as error:
            if "another process" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.5)


class Keeper:
    """Keeps a learner's process running: one that ends by itself is started again, a few times."""

    def __init__(self, folder: Path, plan: Plan, settings: RobotConfig, say: Callable[[str], None]):
        self._context, self._say = multiprocessing.get_context("spawn"), say
        self._end = self._context.Event()
        self._args = (folder, plan, settings, os.getpid(), self._end)
        self.restarts = 0
        self._closing = threading.Event()
        self._start()
        threading.Thread(target=self._watch, name="keeper", daemon=True).start()

    def _start(self) -> None:
        self.process = self._context.Process(target=learn, args=self._args, name="reverie-learner")
        self.process.start()

    def _watch(self) -> None:
        while not self._closing.wait(0.5):
            if self.process.exitcode is None:
                continue
            if self.restarts >= RESTARTS:
                self._say(f"The learner ended {RESTARTS + 1} times; the robot goes on with its last policy.")
                return
            self.restarts += 1
            self._say(f"The learner ended (exit code {self.process.exitcode}); it is started again.")
            self._start()

    def close(self) -> None:
        """Let it take in the rest and save."""
        self._closing.set()
        self._end.set()
        self.process.join(300)
        if self.process.exitcode is None:
            self.process.kill()


def learn_on(
    agent: str,
    robot: str,
    names: tuple[str, ...],
    config: Any,
    settings: RobotConfig,
    folder: Path | None = None,
) -> bool:
    """``reverie robot``: make or find the run's folder, connect the robot, learn; True when all decisions are made.

    Raises ``ReverieError`` with one sentence for whatever can not be used.
    """
    run = RunConfig(seed=settings.seed, device=settings.device, replay_size=settings.replay_size)
    plan = Plan(agent, AS_ENV.get(robot, robot), names, config, run)
    if folder is None:
        folder = Path("runs") / f"{agent}-{Path(robot.replace(':', '_')).name}-{settings.seed}"
    check_folder(folder, plan)
    made = make_robot(robot, settings.rate, settings.seed)
    try:
        write_plan(folder, plan, robot={"name": robot, **dataclasses.asdict(settings)})
        return carry_out(plan, settings, folder, made)
    finally:
        made.close()


def make_keeper(folder: Path, plan: Plan, settings: RobotConfig, say: Callable[[str], None]) -> Any:
    """The learner in a process of this machine, or on a Ray cluster."""
    if settings.cluster:
        from reverie.run import remote

        return remote.Keeper(settings.cluster, folder, plan, settings, say)
    return Keeper(folder, plan, settings, say)


def carry_out(plan: Plan, settings: RobotConfig, folder: Path, robot: Robot) -> bool:
    """Learn on ``robot`` in ``folder``, going on where it stopped; True when all decisions are made."""
    from reverie.run.train import Parts

    if getattr(presets.agent_class(plan.agent), "loop", "online") != "online":
        raise ReverieError(
            f"{plan.agent} has a loop of its own and can not learn beside a robot; agents that learn from a "
            "replay can"
        )
    torch.set_num_threads(1)
    virtual = settings.virtual_update > 0
    clock: Clock = VirtualClock() if virtual else RealClock()
    with Parts() as parts:
        actor = make_actor(plan, settings, folder, robot, clock, parts, shown=True)
        say = actor.progress.say if actor.progress is not None else print
        say(about(plan, settings, robot, folder))
        person = parts.add(actor.person)
        if settings.port >= 0:
            port, _ = person.listen(folder, settings.port)
            say(f"Asks and wishes: http://127.0.0.1:{port}; the token is in {folder / 'control.json'}")
        if person.read_keys():
            say("Keys: p pause, c continue, r reset, q quit")
        with leaving(person):
            if virtual:
                learner = make_learner(plan, settings, folder, clock, parts)
                take_turns(actor, learner, settings.virtual_update / 1e3)
            else:
                keeper = parts.add(make_keeper(folder, plan, settings, say))
                gc.freeze()  # what is there now is not looked through again
                actor.loop()
                say("Stopped. The learner takes in the rest and saves.")
                keeper.close()
        if actor.progress is not None:
            actor.progress.clear()
        say(
            f"{plural(actor.decisions, 'decision')}, {plural(actor.missed, 'missed deadline')}, "
            f"{plural(actor.guard.refused, 'refused action')}; return of the last "
            f"{plural(len(actor.scores), 'episode')} {np.mean(actor.scores or [0.0]):.1f}. Run folder {folder}"
        )
        finished = actor.decisions >= plan.config.steps
    if finished and settings.video and isinstance(robot, Twin):
        film(plan, settings, folder, robot)
    return finished


@contextlib.contextmanager
def leaving(person: Person) -> Any:
    """Ctrl-C and SIGTERM as the wish to quit; a second Ctrl-C leaves at once."""
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        person.say("quit")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def about(plan: Plan, settings: RobotConfig, robot: Robot, folder: Path) -> str:
    """Said before the start."""
    length = plan.config.steps / robot.rate
    if settings.virtual_update:
        clock = f"on a virtual clock, an update taking {settings.virtual_update:g} ms"
    else:
        clock = f"in real time, {duration(length)}"
    return (
        f"{plan.agent} ({', '.join(plan.presets)}) on {plan.env}: {plural(plan.config.steps, 'decision')} at "
        f"{robot.rate:g} Hz {clock}; run folder {folder}"
    )


def film(plan: Plan, settings: RobotConfig, folder: Path, robot: Twin, decisions: int = 250) -> Path | None:
    """A video of a twin under the newest policy; None if there is nothing to see."""
    from reverie import media

    clock = VirtualClock()
    agent, spare = (make_agent(plan, robot.obs_space, robot.act_space, 0, "cpu") for _ in range(2))
    policies = Policies(folder / LINK / "weights", agent, spare, clock, aside=False)
    clock.wait(LOOK)
    policies.look()
    robot.rng = np.random.default_rng(settings.seed)
    robot.reset()
    carry, frames = policies.agent.initial(1), []
    for t in range(decisions):
        picture, reading = robot.render(), robot.sense()
        if picture is None:
            return None
        frames.append(picture)
        seen = {key: np.asarray(value)[None] for key, value in reading.obs.items()}
        action, carry = policies.agent.act({**seen, "is_first": np.array([t == 0])}, carry, "eval")
        if reading.over:
            break
        robot.send(np.clip(np.asarray(action[0]), -1, 1))
    try:
        return media.save_mp4(
            folder / "videos" / "robot.mp4", np.stack(frames), fps=max(1, round(robot.rate))
        )
    except (ReverieError, OSError, ValueError) as error:
        warnings.warn(f"the video could not be made: {error}", stacklevel=2)
        return None
