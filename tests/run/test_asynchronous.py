"""Actor and learner: nothing lost, nothing unsafe sent, whatever fails."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from reverie import checkpoint
from reverie.data.replay import Replay
from reverie.logger import Logger
from reverie.robots import Reading, Robot
from reverie.run.asynchronous import (
    LINK,
    Actor,
    Learner,
    Policies,
    RobotConfig,
    VirtualClock,
    publish,
    take_turns,
)
from reverie.run.link import Courier, Mailbox
from reverie.run.person import Person
from reverie.run.spool import Intake, Spool, row_dtype, segments
from reverie.types import ActionSpace, NotFinite, ReverieError, Space

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


def run_all(folder, toys, **settings):
    sitting = Sitting(folder, toys, **settings)
    return sitting.start().finish()


def test_every_transition_arrives(tmp_path, toys) -> None:
    sitting = run_all(tmp_path, toys)
    sent = len(sitting.robot.sent)
    assert sitting.actor.decisions == 120 == sent
    assert len(sitting.made) == 120  # not one is missing
    assert sitting.actor.missed == 0 and sitting.actor.guard.refused == 0
    ends = np.flatnonzero(sitting.rows["is_last"])
    assert not sitting.rows["is_terminal"].any() and len(ends) == len(
        np.flatnonzero(sitting.rows["is_first"])
    )
    assert sitting.rows["reward"][sitting.rows["is_first"]].tolist() == [0.0] * len(ends)
    assert sitting.robot.resets_done == 1  # resets False: after an episode it goes on from where it is
    assert sitting.learner.updates > 50 and sitting.actor.policies.updates > 0


def test_a_virtual_clock_gives_the_same_run_twice(tmp_path, toys) -> None:
    def one(name):
        sitting = Sitting(tmp_path / name, toys).start()
        take_turns(sitting.actor, sitting.learner, 0.25)
        return sitting

    one_, two = one("a"), one("b")
    assert one_.learner.updates == two.learner.updates
    # 120 decisions of 0.1 s, the first 10 without learning, 0.25 s an update
    assert 44 <= one_.learner.updates <= 45
    assert np.array_equal(np.stack(one_.robot.sent), np.stack(two.robot.sent))
    assert toys.plain(one_.learner.agent.state_dict()) == toys.plain(two.learner.agent.state_dict())


def test_updates_are_bounded_by_the_ratio(tmp_path, toys) -> None:
    sitting = Sitting(tmp_path, toys, max_ratio=0.5).start()
    for _ in range(100):
        sitting.actor.tick()
        for _ in range(3):
            sitting.learner.turn()
    assert sitting.learner.updates == pytest.approx(0.5 * (sitting.learner.decisions - 10), abs=1)


# Faults


def test_learner_killed_and_restarted(tmp_path, toys) -> None:
    sitting = Sitting(tmp_path, toys, checkpoint_every=1.0).start().go(40)
    updates = sitting.learner.updates
    sitting.kill_learner().go(30)  # the robot goes on with its last policy
    assert sitting.actor.decisions == 70 and not sitting.actor.held
    sitting.start_learner()
    assert 0 < sitting.learner.updates <= updates  # from its checkpoint
    assert sitting.learner.replay.counts[0] == sitting.actor.spool.number  # with every row
    version = sitting.actor.policies.version
    sitting.finish()
    assert len(sitting.made) == 120 and sitting.actor.policies.version > version


def test_actor_killed_and_restarted(tmp_path, toys) -> None:
    sitting = Sitting(tmp_path, toys).start().go(33)
    sitting.kill_actor().go(5)
    sitting.start_actor()
    assert sitting.actor.decisions == 33
    sitting.go(20).kill_actor().start_actor()  # at once
    sitting.finish()
    # One transition at most is cut at each kill: its action was sent, and nobody saw where it led.
    assert len(sitting.made) == len(sitting.robot.sent) - 2
    assert sitting.sensed >= set(range(len(sitting.robot.sent)))  # all that was seen is there


def test_killed_between_the_row_and_its_action(tmp_path, toys, monkeypatch) -> None:
    sitting = Sitting(tmp_path, toys).start().go(20)

    class Killed(BaseException): ...

    def die(action):
        raise Killed

    monkeypatch.setattr(sitting.robot, "send", die)
    with pytest.raises(Killed):
        sitting.actor.tick()
    monkeypatch.undo()
    sitting.kill_actor().start_actor().finish()
    assert len(sitting.made) == len(sitting.robot.sent)


def test_link_cut(tmp_path, toys) -> None:
    """Two folders and a courier, which fails for thirty seconds of the robot's clock."""
    near, far = tmp_path / "near", tmp_path / "far"
    sitting = Sitting(near, toys, far=far, stale_after=60.0).start_actor()
    sitting.config = dataclasses.replace(sitting.config, steps=600)
    sitting.actor.steps = 600
    mailbox = Mailbox(far / LINK)
    courier = Courier(near / LINK, mailbox)
    courier.round()
    sitting.start_learner()

    def go(ticks):
        for i in range(ticks):
            sitting.go(1)
            if i % 10 == 9:
                courier.round()

    go(50)
    assert sitting.actor.policies.version > 0
    version, taken = sitting.actor.policies.version, sitting.learner.replay.counts[0]
    sitting.go(300)  # no courier: 30 seconds at 10 Hz
    assert sitting.actor.decisions == 350 and not sitting.actor.held  # the robot did not notice
    assert sitting.actor.policies.version <= version + 1 and sitting.actor.policies.age > 25
    assert sitting.learner.replay.counts[0] <= taken + 20  # what the last round brought
    while not sitting.actor.done:
        go(10)
    courier.round()
    sitting.learner.end()
    sitting.check()
    assert len(sitting.made) == 600 and sitting.actor.policies.age < 5


def test_a_round_that_breaks_in_the_middle_is_repeated(tmp_path, toys) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    sitting = Sitting(near, toys, far=far).start_actor().go(60)

    class Breaking(Mailbox):
        calls = 0

        def put(self, first, at, data):
            self.calls += 1
            if self.calls <= 2:
                super().put(first, at, data[: len(data) // 2 + 5])  # half of it arrives
                raise ConnectionError("cut")
            super().put(first, at, data)

    courier = Courier(near / LINK, Breaking(far / LINK))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            courier.round()
    courier.round()
    sitting.start_learner()
    assert sitting.learner.replay.counts[0] == sitting.actor.spool.number
    sitting.check()
    assert len(sitting.made) == 59  # the sixtieth has not been seen to lead anywhere yet


def test_spool_full(tmp_path, toys) -> None:
    """The robot is stopped rather than a row lost, and goes on when the learner takes again."""
    size = 600 * row_dtype(OBS, ACT).itemsize
    sitting = Sitting(tmp_path, toys, spool_size=f"{size}B", stale_after=0.0).start_actor()
    sitting.actor.steps = 900
    sitting.go(650)
    assert "full" in sitting.actor.held and sitting.robot.stops >= 1
    decisions, stopped = sitting.actor.decisions, len(sitting.robot.sent)
    sitting.go(20)
    assert sitting.actor.decisions == decisions and len(sitting.robot.sent) == stopped
    assert sitting.actor.spool.last["is_last"]  # what led there is whole
    sitting.learner = None
    sitting.config = dataclasses.replace(sitting.config, steps=900)
    sitting.start_learner().learner.say_taken()
    sitting.go(5)
    assert not sitting.actor.held and sitting.actor.decisions > decisions


def test_weights_half_written(tmp_path, toys) -> None:
    sitting = Sitting(tmp_path, toys).start().go(40)
    weights, policies = tmp_path / LINK / "weights", sitting.actor.policies
    version = policies.version
    assert version > 0
    half = weights / ".writing-000000099-1"  # killed before it had a name
    half.mkdir()
    (half / "state.json").write_text("{")
    publish(weights, sitting.learner.agent, 50, 0)
    broken = checkpoint.paths(weights)[-1]
    tensors = broken / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])  # cut on its way
    sitting.learner = None
    with pytest.warns(UserWarning, match="keeps the policy it has"):
        sitting.go(25)
    assert policies.version <= version + 1 and not sitting.actor.held
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sitting.go(25)  # said once
    agent = toys.Toy(2)
    agent.weight = torch.full((3,), 0.123)
    publish(weights, agent, 60, 0)
    sitting.go(15)
    assert policies.updates == 60 and torch.equal(policies.agent.weight, agent.weight)


def test_policy_stale_beyond_its_bound(tmp_path, toys) -> None:
    sitting = Sitting(tmp_path, toys, stale_after=3.0).start().go(40)
    sitting.kill_learner().go(50)
    assert "seconds old" in sitting.actor.held and sitting.robot.stops >= 1
    assert sitting.actor.policies.age > 3.0
    sent = len(sitting.robot.sent)
    sitting.go(10)
    assert len(sitting.robot.sent) == sent
    sitting.start_learner().finish()
    assert len(sitting.made) == 120


def test_a_person_may_take_a_stale_policy_on(tmp_path, toys) -> None:
    sitting = Sitting(tmp_path, toys, stale_after=3.0).start().go(40)
    sitting.kill_learner().go(50)
    sitting.actor.person.say("continue")
    sitting.go(10)
    assert not sitting.actor.held and sitting.actor.policies.age < 3.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_not_finite_is_never_sent(tmp_path, toys, bad) -> None:
    sitting = Sitting(tmp_path, toys).start().go(40)
    agent = sitting.actor.policies.agent
    good = agent.act
    agent.act = lambda obs, carry, mode: (np.full((1, 2), bad, np.float32), carry)
    sent = len(sitting.robot.sent)
    sitting.learner.settings = dataclasses.replace(sitting.settings, sync_every=1e9)
    sitting.go(3)
    assert len(sitting.robot.sent) == sent and "not finite" in sitting.actor.held
    assert sitting.actor.guard.refused == 1 and sitting.robot.stops >= 1
    assert np.isfinite(sitting.actor.spool.last["action"]).all()
    agent.act = good
    sitting.actor.person.say("continue")
    sitting.finish()
    assert len(sitting.made) == 120


def test_a_newer_policy_ends_the_wait_for_a_finite_action(tmp_path, toys) -> None:
    sitting = Sitting(tmp_path, toys).start().go(40)
    sitting.actor.policies.agent.act = lambda obs, carry, mode: (np.full((1, 2), np.nan, np.float32), carry)
    sitting.go(3)
    assert "not finite" in sitting.actor.held or sitting.actor.policies.version > 4
    sitting.go(30)
    assert not sitting.actor.held


def test_a_sensor_that_fails_stops_the_robot(tmp_path, toys) -> None:
    sitting = Sitting(tmp_path, toys).start().go(30)
    sitting.robot.value = np.nan
    sitting.go(5)
    assert "senses" in sitting.actor.held
    sitting.robot.value = None
    sitting.actor.person.say("continue")
    sitting.finish()
    assert np.isfinite(sitting.rows["obs/vector"]).all()


def test_deadlines_missed_are_counted_and_not_made_up_for(tmp_path, toys) -> None:
    sitting = Sitting(tmp_path, toys).start_actor()
    sitting.robot.slow = {5: 0.05, 9: 0.1, 12: 0.35}  # of a period of 0.1
    times = []
    send = sitting.robot.send
    sitting.robot.send = lambda action: (times.append(round(sitting.clock.now(), 6)), send(action))[1]
    sitting.go(20)
    assert sitting.actor.missed == 4  # none, one and three beats went by
    gaps = np.diff(times)
    # After each it is back on the beat: never two decisions closer than to the next beat.
    np.testing.assert_allclose(times[13:], np.round(np.arange(len(times[13:])) * 0.1 + 1.7, 6), atol=1e-6)
    assert gaps.min() > 0.04
    assert sitting.actor.numbers()["clock/missed"] == 4


def test_pause_continue_reset_quit(tmp_path, toys) -> None:
    sitting = Sitting(tmp_path, toys).start().go(15)
    person, robot = sitting.actor.person, sitting.robot
    person.say("pause")
    sitting.go(10)
    assert "paused" in sitting.actor.held and robot.stops == 2 and sitting.actor.decisions == 15
    assert sitting.actor.status()["held"] == sitting.actor.held
    person.say("continue")
    sitting.go(10)
    assert not sitting.actor.held and sitting.actor.decisions > 20
    person.say("reset")
    sitting.go(3)
    assert robot.resets_done == 2
    person.say("pause")
    sitting.go(2)
    person.say("reset")
    sitting.go(3)
    assert robot.resets_done == 3 and not sitting.actor.held
    person.say("quit")
    sitting.go(2)
    assert sitting.actor.done
    sitting.learner.end()
    sitting.check()
    assert len(sitting.made) == len(robot.sent)


def test_a_robot_that_resets_does(tmp_path, toys) -> None:
    machine = Machine()
    machine.resets = True
    sitting = Sitting(tmp_path, toys, machine=machine).start().finish()
    assert machine.resets_done == -(-120 // 7)
    assert len(sitting.made) == 120


def test_a_loss_that_is_not_finite_ends_the_learner_and_not_the_robot(tmp_path, toys) -> None:
    sitting = Sitting(tmp_path, toys).start().go(30)
    sitting.learner.agent.bad_after = 0
    with pytest.raises(NotFinite):
        sitting.learner.turn(1)
    sitting.kill_learner().go(20)
    assert sitting.actor.decisions == 50


def test_the_log_tells_what_happened(tmp_path, toys) -> None:
    sitting = run_all(tmp_path, toys)
    lines = toys.metrics(tmp_path / LINK)
    assert lines[0]["env_steps"] == 0 and lines[-1]["env_steps"] == 120
    for name in (
        "clock/missed",
        "clock/late_ms",
        "policy/age_s",
        "policy/behind",
        "spool/rows",
        "episode/return",
    ):
        assert name in lines[-1]
    assert lines[-1]["policy/age_s"] <= 2.1 and lines[-1]["policy/behind"] <= 25
    learned = toys.metrics(tmp_path)
    assert learned[-1]["updates"] == sitting.learner.updates or learned[-1]["updates"] > 0


def test_settings_that_can_not_be_are_refused() -> None:
    for name in ("rate", "sync_every", "max_change", "virtual_update"):
        with pytest.raises(ReverieError, match=name.replace("_", "-")):
            RobotConfig(**{name: -1.0})
    with pytest.raises(ReverieError, match="one process"):
        RobotConfig(cluster="local", virtual_update=100.0)


# Two real processes


COMMAND = [
    *("dreamer_v1", "--robot", "Pendulum-v1", "--preset", "debug", "--rate", "40", "--prefill", "60"),
    *("--batch-length", "6", "--sync-every", "0.5", "--log-every", "50", "--no-video", "--threads", "1"),
]


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_both_processes_killed_and_the_run_goes_on(tmp_path) -> None:
    """Kill -9 the learner, then the actor; the same command finishes with every row in the replay."""
    run, text = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-m", "reverie", "robot", *COMMAND, "--run", str(run), "--steps"]
    log = open(text, "w")  # noqa: SIM115
    process = subprocess.Popen([*command, "100000"], stdout=log, stderr=log)
    spool, weights = run / LINK, run / LINK / "weights"
    try:
        assert wait_for(lambda: len(checkpoint.paths(weights)) > 0, 240), text.read_text()
        learners = [
            pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(learners[0], signal.SIGKILL)
        assert wait_for(lambda: "started again" in text.read_text(), 120)
        before = count(spool)
        assert wait_for(lambda: count(spool) > before + 20, 60)  # the actor did not wait
        process.kill()
        process.wait(30)
        kept = count(spool)
        done = subprocess.run([*command, str(kept + 100)], capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        process.kill()
        log.close()
    replay = Replay.open(run / "replay")
    rows = replay.read(0, 0, replay.counts[0])
    assert replay.counts[0] >= kept + 100 and np.isfinite(rows["obs/vector"]).all()
    assert int((~rows["is_last"]).sum()) == kept + 100  # every decision's row, over both sittings
    assert (np.abs(rows["action"]) <= 1).all()


def wait_for(what, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.1)
    return False


def count(spool: Path) -> int:
    """Rows ever written."""
    found = segments(spool)
    size = Intake(spool).dtype.itemsize
    return found[-1][0] + found[-1][1].stat().st_size // size if found else 0
