"""A robot that counts, and both sides of a run on a virtual clock, so that either may die at any moment."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from reverie import checkpoint
from reverie.data.replay import Replay
from reverie.logger import Logger
from reverie.robots import Reading, Robot
from reverie.run.asynchronous.actor import Actor
from reverie.run.asynchronous.clock import VirtualClock
from reverie.run.asynchronous.learner import Learner
from reverie.run.asynchronous.person import Person
from reverie.run.asynchronous.settings import LINK, RobotConfig
from reverie.run.asynchronous.spool import Intake, Spool
from reverie.run.asynchronous.weights import Policies
from reverie.types import ActionSpace, Space

OBS, ACT = {"vector": Space((3,))}, ActionSpace(2)


class Machine(Robot):
    """Counts what is sent to it; sees its count, so that a lost, doubled or swapped transition shows."""

    obs_space, act_space = OBS, ACT
    rate, episode, resets = 10.0, 7, False

    def __init__(self, clock=None):
        self.clock, self.sent, self.stops, self.resets_done = clock, [], 0, 0
        self.slow = {}  # seconds that the sense of a count takes
        self.value = None  # what it senses in place of the truth

    def reset(self):
        self.resets_done += 1

    def sense(self):
        n = len(self.sent)
        if n in self.slow:
            self.clock.wait(self.clock.now() + self.slow.pop(n))
        total = float(np.sum(self.sent[-1])) if self.sent else 0.0
        obs = np.array([n, total, 0.0] if self.value is None else [self.value] * 3, np.float32)
        return Reading({"vector": obs}, total)

    def send(self, action):
        assert np.isfinite(action).all() and (np.abs(action) <= 1).all()
        self.sent.append(action.copy())

    def stop(self):
        self.stops += 1


class Sitting:
    """Both sides of a run, on a virtual clock; either may die and leave only its files."""

    def __init__(self, folder, toys, machine=None, clock=None, far=None, **settings):
        self.folder, self.toys = Path(folder), toys
        self.clock = clock or VirtualClock()
        self.robot = machine or Machine()
        self.robot.clock = self.clock
        self.settings = RobotConfig(
            **{"sync_every": 1.0, "spool_size": "1MB", "log_every": 20, "video": False, **settings}
        )
        self.config = toys.Config(steps=120, prefill=10)
        self.far = Path(far or folder)  # where the learner's side is
        self.actor = self.learner = None

    def start_actor(self):
        link = self.folder / LINK
        size = (
            int(self.settings.spool_size.removesuffix("B"))
            if self.settings.spool_size[-2].isdigit()
            else 10**6
        )
        spool = Spool(link, OBS, ACT, self.robot.rate, size)
        agents = [self.toys.Toy(2, seed) for seed in (10 + spool.number, 20 + spool.number)]
        policies = Policies(link / "weights", *agents, self.clock, aside=False)
        self.actor = Actor(
            self.robot, policies, spool, self.config, self.settings, self.clock, Person(), Logger(link)
        )
        return self

    def start_learner(self):
        folder = self.far
        intake = Intake(folder / LINK)
        replay = Replay(OBS, ACT, 2_000, 1, folder / "replay")
        agent = self.toys.Toy(2)
        self.learner = Learner(
            agent, replay, intake, self.config, self.settings, folder, Logger(folder), self.clock
        )
        if checkpoint.paths(folder / "checkpoints"):
            self.learner.go_on(checkpoint.load(folder / "checkpoints")[1])
        self.learner.publish()
        return self

    def start(self):
        return self.start_actor().start_learner()

    def go(self, ticks, updates=1):
        for _ in range(ticks):
            if self.actor is not None and not self.actor.done:
                self.actor.tick()
            else:
                self.clock.wait(self.clock.now() + 0.1)
            if self.learner is not None:
                self.learner.turn(updates)
        return self

    def kill_actor(self):
        """Its files are as they are; nothing is closed or flushed."""
        self.actor.logger.file.close()
        self.actor = None
        return self

    def kill_learner(self):
        self.learner.logger.file.close()
        storage = self.learner.replay.storage
        storage._lock.close()
        storage._lock = None
        self.learner = None
        return self

    def finish(self):
        """All decisions; then every transition that the machine made is looked for in the replay."""
        while not self.actor.done:
            self.go(1)
        self.learner.end()
        return self.check()

    def check(self):
        replay = self.learner.replay
        rows = replay.read(0, 0, replay.counts[0])
        counts = rows["obs/vector"][:, 0].astype(int)
        made = {}  # count: action that led from it
        for i in range(len(counts) - 1):
            if not rows["is_last"][i] and not rows["is_first"][i + 1]:
                assert counts[i + 1] == counts[i] + 1, "a transition was skipped or swapped"
                assert counts[i] not in made, "a transition was recorded twice"
                made[counts[i]] = rows["action"][i]
        sensed = {int(n) for n in counts}
        for n, action in made.items():
            np.testing.assert_allclose(np.clip(action, -1, 1), self.robot.sent[n], atol=1e-6)
        self.made, self.sensed, self.rows = made, sensed, rows
        return self


@pytest.fixture(scope="session")
def sit(toys):
    return partial(Sitting, toys=toys)
