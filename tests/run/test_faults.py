"""What goes wrong on real machines: kills, Ctrl-C, dead workers, full disks, damaged checkpoints, NaN."""

import errno
import json
import os
import signal
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest

import reverie.data.storage
from reverie import checkpoint
from reverie.cli import main
from reverie.envs import make_env
from reverie.run.online import Online
from reverie.run.train import go_on
from reverie.types import ReverieError

KILLER = Path(__file__).with_name("killer.py")

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")
pytestmark = pytest.mark.timeout(900)  # seconds where nothing else runs; a busy machine is not a fault


def killer(root, *words):
    done = subprocess.run(
        [sys.executable, str(KILLER), str(root), *words], capture_output=True, text=True, timeout=800
    )
    logs = "\n".join(log.read_text() for log in sorted(root.glob("*.log")))
    assert done.returncode == 0, done.stderr[-3000:] + logs[-3000:]
    return done.stdout, logs


@posix
def test_twenty_kills_at_random_moments(tmp_path):
    """After each: no finished episode lost, the newest checkpoint whole. In the end: as if left in peace."""
    out, logs = killer(tmp_path, "random", "20")
    assert json.loads(out)["kills"] == 20
    assert "Going on from" in logs
    assert "Traceback" not in logs


@posix
def test_kills_in_the_worst_places(tmp_path):
    _, logs = killer(
        tmp_path,
        "at",
        # function @ number of the call @ seconds between checkpoints (0: one at once)
        "reverie.data.storage:Storage.put@40@1000",  # before the first checkpoint, in the middle of an episode
        "reverie.data.storage:Storage.checksum@60@1000",  # a row half written
        "reverie.agents.dreamer_v1:DreamerV1.update@4@1000",  # in a burst
        "reverie.logger:Board.write@2@1000",  # a line of metrics written, its twin not
        "reverie.checkpoint:_write_tensors@1@0",  # a checkpoint half written
        "reverie.checkpoint:_remove_old@1@0",  # written, the older ones not yet removed
        "reverie.run.show:write_json@1@0",  # at an evaluation
    )
    assert "No checkpoint yet" in logs
    assert "Traceback" not in logs


@posix
def test_kill_with_three_streams_in_memory(tmp_path):
    """Without a replay on disk what the checkpoint holds is kept, and the end is the same."""
    killer(tmp_path, "random", "3", "--envs", "3", "--no-replay-on-disk", "--steps", "300", "--prefill", "90")


@posix
def test_ctrl_c_saves_and_the_second_leaves(tmp_path):
    code = (
        "import sys, os, signal, torch; torch.set_num_threads(1)\n"
        "from reverie.cli import main\n"
        "from reverie.run.online import Online\n"
        "move, save = Online.move, Online.save\n"
        "def counted(self):\n"
        "    self.moves = getattr(self, 'moves', 0) + 1\n"
        "    if self.moves == 70: print('now', flush=True); sys.stdin.readline()\n"
        "    move(self)\n"
        "def slow(self):\n"
        "    if 'slow' in sys.argv: print('saving', flush=True); sys.stdin.readline()\n"
        "    save(self)\n"
        "Online.move, Online.save = counted, slow\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    words = f"{WORDS} --steps 400"
    run = tmp_path / "run"

    def begin(how):
        command = [sys.executable, "-c", code, how, *words.split(), "--run", str(run)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        child = subprocess.Popen(command, **pipes)
        while child.stdout.readline() not in ("now\n", ""):
            pass
        child.send_signal(signal.SIGINT)
        return child

    child = begin("once")
    out, err = child.communicate("\n", timeout=400)
    assert child.returncode == 1, err
    assert "Saved at" in out and "The same command goes on from there." in out
    assert "Ctrl-C again" in err and "Traceback" not in err
    assert len(checkpoint.paths(run / "checkpoints")) == 1

    child = begin("slow")
    child.stdin.write("\n")
    child.stdin.flush()
    while child.stdout.readline() not in ("saving\n", ""):
        pass
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=400)
    assert child.returncode == 1, err
    assert "Saved at" not in out and "Traceback" not in err
    assert len(checkpoint.paths(run / "checkpoints")) == 1


@pytest.mark.parametrize("n", [1, 2])
def test_an_environment_that_can_not_be_brought_back(toys, tmp_path, n):
    first = toys.Sitting(tmp_path, n=n, factory=partial(toys.Walk, True)).go_on().moves(6)
    first.online.save()
    # on to the middle of an episode, so that there is something to be brought back
    while any(first.replay.tail(s)[1] is None for s in range(n)) or sum(first.replay.counts) < 16 * n:
        first.moves(1)
    episodes = [first.replay.read(s, a, b) for s in range(n) for a, b in first.replay.episodes_of(s)]
    counts = first.replay.counts
    first.die()

    second = toys.Sitting(tmp_path, n=n, factory=partial(toys.Walk, True)).go_on()
    with pytest.warns(UserWarning, match="did not come back") as said:
        assert second.online.loop()
    assert len(said) == 1
    assert all(now >= was for now, was in zip(second.replay.counts, counts, strict=True))
    kept = [second.replay.read(s, a, b) for s in range(n) for a, b in second.replay.episodes_of(s)]
    assert all(toys.plain(episode) in [toys.plain(k) for k in kept] for episode in episodes)
    second.close()


@posix
def test_a_worker_is_killed(toys, tmp_path):
    factory = partial(make_env, "Pendulum-v1", time_limit=50)
    config = toys.Config(steps=80)
    sitting = toys.Sitting(tmp_path, n=2, config=config, factory=factory, workers=2).go_on().moves(5)
    os.kill(sitting.envs.pids[1], signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match="its worker process died"):
        sitting.moves(2)
    rows = sitting.replay.read(1, 0, sitting.replay.counts[1])
    ends = rows["is_last"].nonzero()[0]
    assert len(ends) == 1 and not rows["is_terminal"][ends[0]] and (rows["action"][ends[0]] == 0).all()
    assert not sitting.replay.read(0, 0, sitting.replay.counts[0])["is_last"].any()

    # the record with the cut episode is taken in again like any other, with workers or without
    sitting.moves(4)
    counts = sitting.replay.counts
    sitting.die()
    again = toys.Sitting(tmp_path, n=2, config=config, factory=factory).go_on()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.moves(25)
    assert min(again.replay.counts) > max(counts)
    again.close()


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


WORDS = (
    "train dreamer_v1 --env Pendulum-v1 --preset debug --no-pixels --time-limit 20 --threads 1 --steps 240"
)


@pytest.mark.parametrize(
    ("place", "free"),
    [
        ("reverie.data.storage._take", 3),
        ("reverie.checkpoint._write_tensors", 1),
        ("reverie.logger.Board.write", 2),
    ],
    ids=["replay", "checkpoint", "metrics"],
)
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch, capfd, place, free):
    words = [*WORDS.split(), "--log-every", "60", "--checkpoint-every", "0", "--run", str(tmp_path / "run")]
    monkeypatch.setattr(reverie.data.storage, "RESERVE", 4_000)
    module, name = place.rsplit(".", 1)
    owner = reverie.logger.Board if name == "write" else sys.modules[module]
    original, calls = getattr(owner, name), []

    def fills_up(*args, **kwargs):
        calls.append(1)
        return full() if len(calls) > free else original(*args, **kwargs)

    monkeypatch.setattr(owner, name, fills_up)
    assert main(words) == 2
    err = capfd.readouterr().err
    assert err.startswith("reverie: ") and err.count("\n") == 1, err
    assert "space" in err or "full" in err
    monkeypatch.setattr(owner, name, original)
    assert main(words) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["env_steps"] for line in lines if "eval/return" not in line]
    assert steps == sorted(set(steps))


def test_killed_between_the_last_evaluation_and_its_checkpoint(tmp_path, monkeypatch):
    """There is a checkpoint of the same env steps, and an evaluation, but that checkpoint does not know of it."""
    words = [*WORDS.split(), "--eval-episodes", "2"]
    assert main([*words, "--run", str(tmp_path / "peace")]) == 0
    folder, log = tmp_path / "killed", Online.log

    def dies(self, **now):
        if now and self.at_end:
            raise SystemExit(9)
        log(self, **now)

    with monkeypatch.context() as patch:
        patch.setattr(Online, "checkpoint_due", lambda self: self.at_end)
        patch.setattr(Online, "log", dies)
        with pytest.raises(SystemExit):
            main([*words, "--run", str(folder)])
    assert json.loads((folder / "evaluation.json").read_text())["env_steps"] == 240
    assert checkpoint.paths(folder / "checkpoints")[-1].name.startswith("000000240")
    assert main([*words, "--run", str(folder)]) == 0
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("killed", "peace")]
    told = [[{**json.loads(line), "seconds": 0} for line in one] for one in lines]
    assert told[0] == told[1]


def test_a_truncated_checkpoint_gives_way_to_the_one_before(toys, tmp_path):
    expected = toys.Sitting(tmp_path / "whole").go_on()
    assert expected.online.loop()
    folder = tmp_path / "run"
    first = toys.Sitting(folder).go_on().moves(10)
    first.online.save()
    first.moves(10).online.save()
    first.moves(3).die()
    newest = checkpoint.paths(folder / "checkpoints")[-1]
    tensors = newest / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-7])

    second = toys.Sitting(folder)
    with pytest.warns(UserWarning, match=r"is damaged.*; going on from the one before it$") as said:
        go_on(second.online)
    assert len(said) == 1
    assert newest not in checkpoint.paths(folder / "checkpoints")
    assert second.online.loop()
    assert toys.everything(second) == toys.everything(expected)
    second.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.newest_good(folder / "checkpoints") is not None


def test_the_only_checkpoint_is_damaged(toys, tmp_path):
    expected = toys.Sitting(tmp_path / "whole").go_on()
    assert expected.online.loop()
    first = toys.Sitting(tmp_path / "run").go_on().moves(12)
    first.online.save()
    first.die()
    (checkpoint.paths(tmp_path / "run" / "checkpoints")[-1] / "state.json").write_text("{")
    second = toys.Sitting(tmp_path / "run")
    with pytest.warns(UserWarning, match="it is the only one"):
        go_on(second.online)
    assert second.online.loop()
    assert toys.everything(second) == toys.everything(expected)
    second.close()


def test_a_loss_that_is_not_finite_stops_the_run_before_a_bad_checkpoint(toys, tmp_path):
    sitting = toys.Sitting(tmp_path).go_on().moves(16)
    sitting.online.save()
    good = checkpoint.paths(tmp_path / "checkpoints")
    sitting.agent.bad_after = 1
    with pytest.raises(ReverieError, match=r"toy\.weight is not finite.*is good") as error:
        sitting.online.loop()
    assert "\n" not in str(error.value)
    assert checkpoint.paths(tmp_path / "checkpoints") == good
    sitting.die()
    again = toys.Sitting(tmp_path).go_on()
    assert again.online.loop()
    again.close()


def test_a_metric_that_is_not_finite_is_never_saved(toys, tmp_path):
    """On a GPU losses are looked at only when they are written or saved."""
    sitting = toys.Sitting(tmp_path).go_on().moves(3)
    sitting.logger.add({"loss/model": float("nan")})
    with pytest.raises(ReverieError, match="the metric loss/model is not finite"):
        sitting.online.loop()
    assert checkpoint.paths(tmp_path / "checkpoints") == []
    sitting.close()


@pytest.mark.parametrize("reward", [float("nan"), 1e30])
def test_a_reward_that_is_none(tmp_path, monkeypatch, capfd, reward):
    from gymnasium.envs.classic_control.pendulum import PendulumEnv

    original, count = PendulumEnv.step, []

    def step(self, action):
        count.append(1)
        obs, r, *rest = original(self, action)
        return obs, (reward if len(count) == 90 else r), *rest

    words = [
        *WORDS.split(),
        "--prefill",
        "60",
        "--train-every",
        "20",
        "--eval-every",
        "0",
        "--checkpoint-every",
        "0",
    ]
    words += ["--run", str(tmp_path / "run")]
    monkeypatch.setattr(PendulumEnv, "step", step)
    assert main(words) == 2
    err = capfd.readouterr().err
    assert err.startswith("reverie: ") and err.count("\n") == 1, err
    assert "finite" in err or "nan" in err
    saved = checkpoint.paths(tmp_path / "run" / "checkpoints")
    assert saved
    for path in saved:
        _, state = checkpoint.load_path(path)
        assert all(tensor.isfinite().all() for tensor in state["agent"]["modules"].values())
