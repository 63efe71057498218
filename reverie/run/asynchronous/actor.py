"""The actor: one robot on the beat of its clock, and what is recorded of it. It never waits for the learner."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reverie.logger import Logger, Progress
from reverie.robots.base import Reading, Robot
from reverie.run.asynchronous.clock import Clock, VirtualClock
from reverie.run.asynchronous.person import Person
from reverie.run.asynchronous.safety import Guard, Watchdog
from reverie.run.asynchronous.settings import LINK, LOOK, RobotConfig
from reverie.run.asynchronous.spool import Spool, SpoolFull
from reverie.run.asynchronous.weights import Policies
from reverie.run.folder import Plan, size_in_bytes
from reverie.run.parts import new_agent
from reverie.types import Agent, Step


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


def make_actor(
    plan: Plan, settings: RobotConfig, folder: Path, robot: Robot, clock: Clock, parts: Any, shown: bool
) -> Actor:
    """The actor of a run's folder, where its spool ends; closed with ``parts``."""
    spool = Spool(
        folder / LINK, robot.obs_space, robot.act_space, robot.rate, size_in_bytes(settings.spool_size)
    )
    virtual = isinstance(clock, VirtualClock)
    seeds = (settings.seed + 1_000 + spool.number, settings.seed + 2_000 + spool.number)
    agent, spare = (new_agent(plan, robot.obs_space, robot.act_space, seed, "cpu") for seed in seeds)
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
