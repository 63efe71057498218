"""A collector: rows made beside the updates, one burst behind, and the same whatever happened to whom."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import reverie.report
from reverie import checkpoint, presets
from reverie.cli import main
from reverie.envs import SerialEnvs
from reverie.run.collector import (
    RANDOM,
    Collector,
    Outbox,
    Streams,
    Weights,
    each,
    packed,
    random_of,
    room,
    serve,
    to_act,
    with_random,
)
from reverie.run.folder import Plan
from reverie.run.loop import RunConfig
from reverie.run.online import Online
from reverie.run.parts import Parts
from reverie.run.train import check, go_on, loop_of
from reverie.types import ActionSpace, ReverieError, Space

posix = pytest.mark.skipif(os.name != "posix", reason="needs signals")


class Threaded(Collector):
    """The same with a thread in place of the process: quick to start, and its insides can be looked at."""

    def _launch(self, context, theirs):
        return Thread(self.make, self.prefill, self.seed, Weights(self._weights.memory), theirs)


class Thread:
    def __init__(self, make, prefill, seed, weights, pipe):
        self.exitcode, self.pid, self.pipe = None, -1, pipe
        self.thread = threading.Thread(
            target=self.run, args=(make, prefill, seed, weights, pipe), daemon=True
        )
        self.thread.start()

    def run(self, make, prefill, seed, weights, pipe):
        serve(make, prefill, seed, weights, pipe, Outbox(pipe))
        pipe.close()
        self.exitcode = 0

    def join(self, seconds):
        self.thread.join(seconds)

    def terminate(self):
        raise AssertionError("it does not end when it is told to")

    kill = terminate


def sit(toys, folder, n=1, config=None, factory=None, agent=None, **run):
    """One sitting at a run of the toys, with a collector; ``actors`` are the agents it acted with."""
    config, factory, new_agent, actors = config or toys.Config(), factory or toys.Walk, agent or toys.Toy, []

    def make():
        actors.append(new_agent())
        return actors[-1], SerialEnvs(factory, n, run.get("seed", 0))

    one = factory()
    streams, driver = Streams(n, one.obs_space, one.act_space), partial(Threaded, make, config)
    one.close()
    made = dict(config=config, factory=factory, agent=new_agent(), driver=driver)
    sitting = toys.Sitting(folder, n, envs=streams, **made, **run)
    sitting.actors = actors
    return sitting


def whole(toys, folder, **options):
    sitting = sit(toys, folder, **options).go_on()
    assert sitting.online.loop()
    result = toys.everything(sitting)
    sitting.close()
    return result


def test_two_runs_are_the_same_however_long_the_learner_and_the_collector_take(toys, tmp_path):
    class Slow(toys.Toy):
        def update(self, batch):
            time.sleep(0.01)
            return super().update(batch)

    class Sleepy(toys.Walk):
        def step(self, action):
            time.sleep(0.01)
            return super().step(action)

    expected = whole(toys, tmp_path / "one", n=2)
    assert whole(toys, tmp_path / "two", n=2, agent=Slow) == expected
    assert whole(toys, tmp_path / "three", n=2, factory=Sleepy) == expected


def test_stretch_k_plus_1_is_acted_with_the_weights_before_burst_k(toys, tmp_path):
    """Env steps 1 .. 10 and 11 .. 18 with the first weights, 19 .. 26 with those after burst 1, and so on."""

    class Noted(toys.Toy):
        def act(self, obs, carry, mode):
            if mode == "train":
                seen.append((self.steps, self.weight.clone()))
                self.steps += 1
            return super().act(obs, carry, mode)

        steps = 0

    seen, after = [], []
    config = toys.Config(steps=50, prefill=10, pretrain=0, train_every=8, train_updates=2)
    sitting = sit(toys, tmp_path, config=config, agent=Noted, eval_every=0).go_on()
    online = sitting.online
    after.append(sitting.agent.weight.clone())
    rows = []  # env steps when each row was acted at
    while not online.done:
        before, counts = online.updates, sitting.replay.counts[0]
        online.move()
        if sitting.replay.counts[0] > counts:
            rows.append(online.env_steps)
        if online.updates > before and not online.pending:
            after.append(sitting.agent.weight.clone())
    sitting.close()
    first = len(rows) - len(seen)  # the prefill acts at random and asks nobody
    assert len(seen) > 20 and first > 5 and len({float(w.sum()) for w in after}) == len(after) == 7
    for step, (_, weight) in zip(rows[first:], seen, strict=True):
        # The row at which burst k falls due is the last of its stretch.
        stretch = 0 if step <= 10 else 1 + (step - 11) // 8
        assert torch.equal(weight, after[max(stretch - 1, 0)]), step


@pytest.mark.parametrize(("n", "disk"), [(1, True), (3, False)], ids=["disk", "memory"])
def test_stopped_and_resumed_after_every_move(toys, tmp_path, n, disk):
    expected = whole(toys, tmp_path / "whole", n=n, disk=disk)
    k, finished = 0, False
    while not finished:
        folder = tmp_path / f"stopped-{k}"
        first = sit(toys, folder, n=n, disk=disk).go_on().moves(k)
        first.online.save()
        finished = first.online.done
        first.close()
        second = sit(toys, folder, n=n, disk=disk).go_on()
        assert second.online.loop()
        assert toys.everything(second) == expected, f"stopped after {k} moves"
        second.close()
        k += 1
    assert k > 15


@pytest.mark.parametrize("n", [1, 3])
def test_killed_after_every_move_with_a_checkpoint_some_moves_before(toys, tmp_path, n):
    expected = whole(toys, tmp_path / "whole", n=n)
    k, finished = 0, False
    while not finished:
        folder = tmp_path / f"killed-{k}"
        first = sit(toys, folder, n=n).go_on().moves(k)
        if k % 3:
            first.online.save()
        finished = first.online.done
        recorded = sum(first.moves(4 * (k % 4)).replay.counts)
        first.die()
        second = sit(toys, folder, n=n).go_on()
        assert second.online.loop()
        assert sum(second.replay.counts) >= recorded
        assert toys.everything(second) == expected, f"killed {4 * (k % 4)} moves after {k}"
        second.close()
        k += 1


def test_more_steps_go_on_as_if_they_had_been_asked_for_at_once(toys, tmp_path):
    """Also where the first run ended in the middle of a stretch."""
    expected = whole(toys, tmp_path / "whole", config=toys.Config(steps=60), eval_every=0)
    sitting = sit(toys, tmp_path / "run", config=toys.Config(steps=40), eval_every=0).go_on()
    while not sitting.online.at_end:
        sitting.online.move()
    sitting.online.save()
    sitting.close()
    longer = sit(toys, tmp_path / "run", config=toys.Config(steps=60), eval_every=0).go_on()
    assert longer.online.loop()
    assert toys.everything(longer) == expected
    longer.close()


@pytest.mark.parametrize("every", [1, 3, 7])
def test_a_collector_that_dies_changes_nothing(toys, tmp_path, every):
    """After every so many moves, whatever it was ahead by."""
    expected = whole(toys, tmp_path / "whole", n=2)
    sitting = sit(toys, tmp_path / "run", n=2).go_on()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        while not sitting.online.done:
            sitting.moves(every)
            collector = sitting.online.driver
            collector._pipe.close()
            collector._pipe = dead_pipe()
    assert toys.everything(sitting) == expected
    lines = [str(warning.message) for warning in said if warning.category is RuntimeWarning]
    assert len(lines) == sitting.online.driver.restarts > 2
    assert all("it is started again where its rows end" in line for line in lines)
    sitting.close()


def dead_pipe():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    return ours


def test_a_collector_that_can_not_live_is_an_error(toys, tmp_path):
    sitting = sit(toys, tmp_path)
    sitting.online.driver._launch = lambda context, theirs: (theirs.close(), Dead())[1]
    sitting.go_on()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(ReverieError, match="the collector died 3 times without one row between") as error:
            sitting.online.loop()
    assert sum(warning.category is RuntimeWarning for warning in said) == 2
    assert "\n" not in str(error.value)
    sitting.close()


class Dead:
    exitcode = 1

    def join(self, seconds): ...

    def terminate(self): ...

    kill = terminate


def test_an_environment_that_breaks_is_cut_short_and_one_that_always_does_is_an_error(toys, tmp_path):
    class Breaks(toys.Walk):
        def step(self, action):
            count.append(1)
            if len(count) in breaks:
                raise RuntimeError("the leg came off")
            return super().step(action)

    count, breaks = [], {5}
    sitting = sit(toys, tmp_path / "once", factory=Breaks, eval_every=0).go_on()
    with warnings.catch_warnings(
        record=True
    ) as said:  # a thread warns here by itself, a process by a message
        warnings.simplefilter("always")
        sitting.moves(12)
    lines = [str(warning.message) for warning in said if warning.category is RuntimeWarning]
    assert len(lines) == 1 and "the leg came off" in lines[0]
    rows = sitting.replay.read(0, 0, sitting.replay.counts[0])
    assert rows["is_last"].any() and sitting.replay.counts[0] > 6
    sitting.close()

    breaks = range(5, 1_000)
    count.clear()
    sitting = sit(toys, tmp_path / "always", factory=Breaks, eval_every=0).go_on()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ReverieError, match="broke 3 times without one step between"):
            sitting.online.loop()
    sitting.close()


def test_what_is_raised_there_is_raised_here_after_the_rows_before_it(toys, tmp_path):
    class Tired(toys.Toy):
        def act(self, obs, carry, mode):
            if mode == "train" and carry[1]["count"].sum() == 0:
                raise ValueError("no more")
            return super().act(obs, carry, mode)

    sitting = sit(toys, tmp_path, agent=Tired).go_on()
    with pytest.raises(ValueError, match="no more"):
        sitting.online.loop()
    assert sitting.replay.counts[0] >= 10  # of the prefill
    sitting.close()


def test_an_environment_that_can_not_be_brought_back_loses_no_row(toys, tmp_path):
    wild = partial(toys.Walk, True)
    first = sit(toys, tmp_path, factory=wild).go_on().moves(6)
    first.online.save()
    while first.replay.tail(0)[1] is None or first.replay.counts[0] < 16:
        first.moves(1)
    episodes = [first.replay.read(0, a, b) for a, b in first.replay.episodes_of(0)]
    first.die()
    second = sit(toys, tmp_path, factory=wild).go_on()
    with pytest.warns(UserWarning, match="did not come back"):
        assert second.online.loop()
    kept = [toys.plain(second.replay.read(0, a, b)) for a, b in second.replay.episodes_of(0)]
    assert all(toys.plain(episode) in kept for episode in episodes)
    second.close()


# What travels


def test_weights_come_back_bit_for_bit_and_with_memory_of_their_own():
    state = {
        "modules": {
            "a": torch.randn(3, 5).t(),
            "b": torch.tensor(2.5, dtype=torch.float64),
            "none": torch.zeros(0),
        },
        "flags": (torch.tensor([True, False]), [torch.arange(7, dtype=torch.uint8)], 3, None),
        "half": torch.randn(9).bfloat16(),
    }
    weights = Weights(room(state))
    back = Weights(weights.memory).get(weights.put(state))
    assert torch.equal(back["modules"]["a"], state["modules"]["a"])
    assert back["modules"]["b"].dtype == torch.float64 and back["modules"]["b"] == 2.5
    assert back["modules"]["none"].shape == (0,)
    assert back["flags"][0].tolist() == [True, False] and back["flags"][2:] == (3, None)
    assert torch.equal(back["half"], state["half"])
    kept = back["modules"]["a"].clone()
    weights.put({"modules": {"a": torch.zeros(5, 3)}})
    assert torch.equal(back["modules"]["a"], kept)


def test_what_has_outgrown_its_room_travels_with_the_order():
    small, large = {"table": torch.ones(2)}, {"table": torch.arange(1_000.0), "w": torch.ones(2)}
    weights = Weights(room(small))
    placed = pickle.loads(packed(weights.put(large)))
    assert torch.equal(placed["table"], large["table"])
    assert torch.equal(weights.get(placed)["w"], large["w"])


# With the agents of the house


def test_every_agent_acts_there_as_it_would_here(tmp_path):
    """What travels is enough to act alike, and acting changes nothing but what comes back with a row."""
    pictures = {"image": Space((64, 64, 3), "uint8")}
    vectors = {"state": Space((3,))}
    goals = {"observation": Space((3,)), "achieved_goal": Space((2,)), "desired_goal": Space((2,))}
    sees = {"planet": pictures, "dreamer_v1": pictures, "dreamer_v2": pictures, "her": goals, "tdm": goals}
    known = []
    for name in presets.AGENTS:
        if loop_of(name) is not Online:
            continue
        space, act_space = (
            sees.get(name, vectors),
            ActionSpace(3, (3,)) if name == "dyna_q" else ActionSpace(2),
        )
        make = partial(presets.agent_class(name), space, act_space, presets.resolve(name, ["debug"], {}))
        here, there = make(0), make(1)
        rng = np.random.default_rng(0)
        draw = lambda s: rng.integers(256, size=(2, *s.shape)).astype(s.dtype)  # noqa: B023
        seen = [{key: draw(s) for key, s in space.items()} for _ in range(4)]
        first = [np.array([t == 0, t in (0, 2)]) for t in range(4)]
        act = lambda agent, t, carry: agent.act({**seen[t], "is_first": first[t]}, carry, "train")  # noqa: B023

        weights = Weights(room(to_act(there.state_dict())))
        sent = weights.get(weights.put(to_act(here.state_dict())))
        there.load_state_dict(with_random({**there.state_dict(), **sent}, random_of(here)))
        before = plain_of(here)
        carries = [agent.initial(2) for agent in (here, there)]
        for t in range(4):
            (one, carries[0]), (other, carries[1]) = (
                act(agent, t, carry) for agent, carry in zip((here, there), carries, strict=True)
            )
            assert np.array_equal(one, other), name
        after = plain_of(here)
        changed = {key for key in after if after[key] != before[key]}
        assert changed <= set(RANDOM), name
        assert all(
            after[key][use] == before[key][use] for key in changed for use in after[key] if use != "train"
        ), name
        known.append(name)
    assert {"planet", "dreamer_v1", "dreamer_v3", "daydreamer", "sac", "mpc", "dyna_q", "her"} <= set(known)


def plain_of(agent):
    bare = lambda value: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
    return each(each(agent.state_dict(), torch.Tensor, torch.clone), torch.Tensor, bare)


def test_an_agent_that_learns_otherwise_is_refused():
    plan = Plan(
        "a2c", "CartPole-v1", ("debug",), presets.resolve("a2c", ["debug"], {}), RunConfig(collector=True)
    )
    with pytest.raises(ReverieError, match="--collector works with agents that learn from a replay") as error:
        check(plan)
    assert "\n" not in str(error.value)


# With a process


TINY = dict(prefill=60, train_every=20, train_updates=2, batch_size=3)
TINY_V3 = dict(prefill=60, train_ratio=3.0, batch_size=3, batch_length=6, pixels=False, steps=120)
CASES = {
    "dreamer_v1": ("reverie/Catch-v0", dict(**TINY, steps=160, batch_length=6)),
    "sac": ("Pendulum-v1", dict(**TINY | {"train_every": 4}, steps=100)),
    "dreamer_v3": ("Pendulum-v1", TINY_V3),  # remembers with every row
}


def run_of(folder, name, toys, meddle=lambda online: None, env="", **run):
    """Everything about a whole run of an agent; ``meddle`` is called before each move."""
    usual_env, settings = CASES[name]
    env = env or usual_env
    config = presets.resolve(name, ["debug"], settings)
    usual = dict(collector=True, threads=1, eval_episodes=1, eval_every=0, time_limit=17, log_every=50)
    plan = Plan(name, env, ("debug",), config, RunConfig(**{**usual, **run}))
    check(plan)
    with Parts() as parts:
        online = loop_of(plan.agent).make(plan, folder, parts)
        online.show = lambda online, result: None
        go_on(online)
        while not online.done:
            meddle(online)
            online.move()
        online.save()
        found = SimpleNamespace(online=online, replay=online.replay, folder=folder)
        return toys.everything(found)


@posix
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_a_collector_is_killed_and_nothing_is_changed(toys, tmp_path, name):
    """Pictures and vectors; at two moments: in the prefill, and beside a burst."""
    expected = run_of(tmp_path / "peace", name, toys)
    killed = []

    def kill(online):
        if online.env_steps > (30, 90)[len(killed) % 2] and len(killed) < 2:
            killed.append(online.driver.pid)
            os.kill(killed[-1], signal.SIGKILL)

    with pytest.warns(RuntimeWarning, match="the collector died with exit code -9; it is started again"):
        found = run_of(tmp_path / "killed", name, toys, kill)
    assert found == expected
    assert len(set(killed)) == 2 and not any(alive(pid) for pid in killed)


BREAKS = """
import multiprocessing
import gymnasium
from gymnasium.envs.classic_control.pendulum import PendulumEnv

class Breaks(PendulumEnv):
    taken = 0

    def step(self, action):
        Breaks.taken += multiprocessing.current_process().name == "reverie-collector"
        if {when}:
            raise RuntimeError("the leg came off")
        return super().step(action)

gymnasium.register(__name__ + "-v0", Breaks, max_episode_steps=17)
"""


@pytest.mark.timeout(900)
def test_an_environment_that_breaks_there_is_told_of_here(toys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "breaks_once.py").write_text(BREAKS.format(when="Breaks.taken == 30"))
    (tmp_path / "breaks_always.py").write_text(BREAKS.format(when="Breaks.taken >= 30"))
    with pytest.warns(RuntimeWarning, match="the leg came off.*its episode is cut short and it is made anew"):
        run_of(tmp_path / "once", "sac", toys, env="breaks_once:breaks_once-v0")
    with (
        pytest.warns(RuntimeWarning, match="the leg came off"),
        pytest.raises(ReverieError, match="broke 3 times without one step between"),
    ):
        run_of(tmp_path / "always", "sac", toys, env="breaks_always:breaks_always-v0")


@posix
@pytest.mark.timeout(900)
def test_its_environments_may_be_in_workers_of_its_own(toys, tmp_path):
    expected = run_of(tmp_path / "one", "sac", toys, envs=2)
    pids = []
    found = run_of(
        tmp_path / "two", "sac", toys, lambda online: pids.append(online.driver.pid), envs=2, workers=2
    )
    assert found == expected
    assert not alive(pids[0])


def alive(pid):
    """Whether there is such a process that does more than wait to be forgotten."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


CODE = """
import sys, torch; torch.set_num_threads(1)
import reverie.report; reverie.report.write_report = lambda folder: None
from reverie.cli import main
from reverie.run.collector import Collector
from reverie.run.online import Online
start, move = Collector._start, Online.move
def telling(self):
    start(self); print('collector', self.pid, flush=True)
def counted(self):
    self.moves = getattr(self, 'moves', 0) + 1
    if self.moves == 70: print('now', flush=True); sys.stdin.readline()
    move(self)
Collector._start, Online.move = telling, counted
sys.exit(main(sys.argv[1:]))
"""
WORDS = (
    "train dreamer_v1 --env Pendulum-v1 --preset debug --no-pixels --time-limit 20 --action-repeat 1 --steps 240 "
    "--prefill 60 --train-every 40 --eval-episodes 1 --threads 1 --collector"
)


@posix
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_ctrl_c_and_a_killed_learner_leave_no_collector_and_the_run_goes_on(toys, tmp_path, monkeypatch):
    def begin(name):
        command = [sys.executable, "-c", CODE, *WORDS.split(), "--run", str(tmp_path / name)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        child, pid = subprocess.Popen(command, **pipes), None
        while (line := child.stdout.readline()) not in ("now\n", ""):
            pid = int(line.split()[1]) if line.startswith("collector") else pid
        return child, pid

    def gone(pid):
        until = time.monotonic() + 60
        while alive(pid) and time.monotonic() < until:
            time.sleep(0.1)
        return not alive(pid)

    child, pid = begin("run")
    assert alive(pid)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate("\n", timeout=400)
    assert child.returncode == 1 and "Saved at" in out and "Traceback" not in err, err
    assert gone(pid)

    child, pid = begin("run")
    assert alive(pid)
    child.kill()
    child.communicate(timeout=400)
    assert gone(pid)

    child, pid = begin("run")
    _, err = child.communicate("\n", timeout=400)
    assert child.returncode == 0 and "Traceback" not in err, err
    assert gone(pid)
    monkeypatch.setattr(reverie.report, "write_report", lambda folder: None)
    assert main([*WORDS.split(), "--run", str(tmp_path / "peace")]) == 0
    states = [checkpoint.load(tmp_path / name / "checkpoints")[1] for name in ("run", "peace")]
    assert all(state.pop("clock") for state in states)
    assert toys.plain(states[0]) == toys.plain(states[1])
    assert toys.metrics(tmp_path / "run") == toys.metrics(tmp_path / "peace")
