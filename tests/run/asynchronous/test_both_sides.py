"""Actor and learner: every transition arrives once, whatever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reverie import checkpoint
from reverie.data.replay import Replay
from reverie.run.asynchronous import take_turns
from reverie.run.asynchronous.settings import LINK
from reverie.run.asynchronous.spool import Intake, segments


def test_every_transition_arrives(tmp_path, sit) -> None:
    sitting = sit(tmp_path).start().finish()
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


def test_a_virtual_clock_gives_the_same_run_twice(tmp_path, toys, sit) -> None:
    def one(name):
        sitting = sit(tmp_path / name).start()
        take_turns(sitting.actor, sitting.learner, 0.25)
        return sitting

    one_, two = one("a"), one("b")
    assert one_.learner.updates == two.learner.updates
    # 120 decisions of 0.1 s, the first 10 without learning, 0.25 s an update
    assert 44 <= one_.learner.updates <= 45
    assert np.array_equal(np.stack(one_.robot.sent), np.stack(two.robot.sent))
    assert toys.plain(one_.learner.agent.state_dict()) == toys.plain(two.learner.agent.state_dict())


def test_learner_killed_and_restarted(tmp_path, sit) -> None:
    sitting = sit(tmp_path, checkpoint_every=1.0).start().go(40)
    updates = sitting.learner.updates
    sitting.kill_learner().go(30)  # the robot goes on with its last policy
    assert sitting.actor.decisions == 70 and not sitting.actor.held
    sitting.start_learner()
    assert 0 < sitting.learner.updates <= updates  # from its checkpoint
    assert sitting.learner.replay.counts[0] == sitting.actor.spool.number  # with every row
    version = sitting.actor.policies.version
    sitting.finish()
    assert len(sitting.made) == 120 and sitting.actor.policies.version > version


def test_actor_killed_and_restarted(tmp_path, sit) -> None:
    sitting = sit(tmp_path).start().go(33)
    sitting.kill_actor().go(5)
    sitting.start_actor()
    assert sitting.actor.decisions == 33
    sitting.go(20).kill_actor().start_actor()  # at once
    sitting.finish()
    # One transition at most is cut at each kill: its action was sent, and nobody saw where it led.
    assert len(sitting.made) == len(sitting.robot.sent) - 2
    assert sitting.sensed >= set(range(len(sitting.robot.sent)))  # all that was seen is there


def test_killed_between_the_row_and_its_action(tmp_path, sit, monkeypatch) -> None:
    sitting = sit(tmp_path).start().go(20)

    class Killed(BaseException): ...

    def die(action):
        raise Killed

    monkeypatch.setattr(sitting.robot, "send", die)
    with pytest.raises(Killed):
        sitting.actor.tick()
    monkeypatch.undo()
    sitting.kill_actor().start_actor().finish()
    assert len(sitting.made) == len(sitting.robot.sent)


def test_the_log_tells_what_happened(tmp_path, toys, sit) -> None:
    sitting = sit(tmp_path).start().finish()
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
