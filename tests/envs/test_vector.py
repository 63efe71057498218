"""Many streams: seeds, equal rows in and out of process, going back, and surviving what breaks."""

import contextlib
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from reverie.envs import SerialEnvs, WorkerEnvs, episode_seed, make_env
from reverie.envs.base import Env, after, first
from reverie.envs.vector import end_process
from reverie.types import ActionSpace, ReverieError, Space, Step

HERE = Path(__file__).resolve()
FLAGS = ("reward", "is_first", "is_last", "is_terminal", "env_steps")


class Walk(Env):
    """A random walk; breaks as ``trouble`` says at the given (global) steps; episodes of ``length``."""

    def __init__(self, length: int = 4, trouble: dict | None = None, on_reset: bool = False) -> None:
        self.obs_space = {"vector": Space((2,)), "image": Space((4, 4, 1), "uint8")}
        self.act_space = ActionSpace(1)
        self.length, self.trouble, self.on_reset = length, trouble or {}, on_reset
        self.steps = 0

    def _obs(self) -> dict[str, np.ndarray]:
        return {
            "vector": np.array([self.where, self.t], np.float32),
            "image": np.full((4, 4, 1), self.t, np.uint8),
        }

    def reset(self, seed: int) -> Step:
        if self.on_reset:
            raise OSError("no world")
        self.rng, self.where, self.t = np.random.default_rng(seed), 0.0, 0
        return first(self._obs())

    def step(self, action: np.ndarray) -> Step:
        self.steps += 1
        if self.steps in self.trouble:
            raise self.trouble[self.steps]
        self.t += 1
        self.where += float(action[0]) + float(self.rng.normal())
        return after(self._obs(), self.where, False, self.t >= self.length)

    def render(self) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers import this file by its bare name."""
    monkeypatch.syspath_prepend(str(HERE.parent))
    yield
    sys.modules.pop("test_vector", None)


def walk(**options: object) -> partial:
    import importlib

    return partial(importlib.import_module("test_vector").Walk, **options)


def rows_of(envs: object, count: int, seed: int = 0) -> list[Step]:
    rng = np.random.default_rng(seed)
    return [envs.step(envs.act_space.sample(rng, envs.n)) for _ in range(count)]


def assert_same(one: Step, two: Step) -> None:
    assert list(one.obs) == list(two.obs)
    for key in one.obs:
        np.testing.assert_array_equal(one.obs[key], two.obs[key])
    for key in FLAGS:
        np.testing.assert_array_equal(getattr(one, key), getattr(two, key), err_msg=key)
        assert getattr(one, key).dtype == getattr(two, key).dtype


def test_episode_seeds_are_pure_and_apart() -> None:
    assert episode_seed(1, 2, 3) == episode_seed(1, 2, 3)
    seeds = {episode_seed(s, i, e) for s in range(5) for i in range(10) for e in range(20)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**31 for seed in seeds)
    with pytest.raises(ReverieError, match="from 0"):
        episode_seed(-1, 0, 0)


def test_streams_reset_themselves() -> None:
    envs = SerialEnvs(partial(Walk, length=3), 2, 0)
    assert envs.episodes == [-1, -1]
    rows = rows_of(envs, 9)
    assert [bool(row.is_first[0]) for row in rows] == [True, False, False, False] * 2 + [True]
    assert [bool(row.is_last[0]) for row in rows] == [False, False, False, True] * 2 + [False]
    assert envs.episodes == [2, 2]
    assert rows[1].obs["vector"].shape == (2, 2) and rows[1].reward.shape == (2,)
    assert rows[1].reward[0] != rows[1].reward[1], "streams have seeds of their own"
    assert rows[1].reward[0] != rows[5].reward[0], "episodes too"


def test_rows_given_out_do_not_change() -> None:
    envs = SerialEnvs(Walk, 2, 0)
    rows = rows_of(envs, 3)
    assert [row.obs["vector"][0, 1] for row in rows] == [0, 1, 2]


def test_only_some_streams() -> None:
    some, all_ = SerialEnvs(Walk, 3, 7), SerialEnvs(Walk, 3, 7)
    zeros = np.zeros((3, 1), np.float32)
    row = some.step(zeros, only=[1])
    assert row.is_first.tolist() == [False, True, False] and some.episodes == [-1, 0, -1]
    for _ in range(2):
        row = some.step(zeros, only=[1])
    full = [all_.step(zeros) for _ in range(3)]
    assert row.obs["vector"][1].tolist() == full[2].obs["vector"][1].tolist()
    row = some.step(zeros, only=np.array([0, 2]))
    assert row.obs["vector"][1].tolist() == full[2].obs["vector"][1].tolist(), "left alone, still shown"
    assert row.obs["vector"][0].tolist() == full[0].obs["vector"][0].tolist()
    with pytest.raises(ReverieError, match="no stream 3"):
        some.step(zeros, only=[3])
    with pytest.raises(ReverieError, match=r"shape \(3, 1\)"):
        some.step(zeros[:2])


@pytest.mark.parametrize("kind", ["serial", "workers"])
def test_restore_is_where_it_was(importable: None, kind: str) -> None:
    make = partial(WorkerEnvs, workers=1) if kind == "workers" else SerialEnvs
    rng = np.random.default_rng(3)
    actions = rng.uniform(-1, 1, (12, 2, 1)).astype(np.float32)
    with make(walk(length=5), 2, 9) as envs:
        rows = [envs.step(action) for action in actions]
        assert envs.episodes == [1, 1]
        for i in (1, 0):
            row = envs.restore(i, 1, actions[7:10, i])  # rows 6 to 11 are episode 1; its first three actions
            assert row.obs["vector"].tolist() == rows[9].obs["vector"][i].tolist()
            assert row.reward == rows[9].reward[i] and row.reward.shape == ()
        assert envs.episodes == [1, 1]
        assert_same(envs.step(actions[10]), rows[10])
        assert_same(envs.step(actions[11]), rows[11])
        assert envs.restore(0, 0, np.zeros((0, 1))).is_first
        assert envs.restore(0, 0, np.zeros((5, 1))).is_last
        with pytest.raises(ReverieError, match="ended after 5"):
            envs.restore(0, 0, np.zeros((6, 1)))
        envs.end(1, 4)
        envs.restore(0, 0, np.zeros((5, 1)))
        assert envs.step(actions[0]).is_first.all() and envs.episodes == [1, 5]


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("reverie/Everything-v0", {}, 12),
        ("CartPole-v1", {}, 60),
        ("dmc/cartpole_swingup", {"pixels": True, "time_limit": 5, "action_repeat": 2}, 8),
    ],
)
def test_workers_give_the_same_rows(
    request: pytest.FixtureRequest, name: str, options: dict, count: int
) -> None:
    if name.startswith("dmc"):
        pytest.importorskip("dm_control")
        request.getfixturevalue("gl")
    factory = partial(make_env, name, **options)
    with SerialEnvs(factory, 3, 4) as serial, WorkerEnvs(factory, 3, 4, workers=2) as workers:
        for one, two in zip(rows_of(serial, count), rows_of(workers, count), strict=True):
            assert_same(one, two)
            assert "image" not in one.obs or one.obs["image"].std() > 5
        assert serial.episodes == workers.episodes and max(serial.episodes) > 0


@pytest.mark.parametrize("kind", ["serial", "workers"])
def test_an_exception_cuts_the_episode_short(importable: None, kind: str) -> None:
    make = partial(WorkerEnvs, workers=1) if kind == "workers" else SerialEnvs
    with make(walk(length=10, trouble={3: RuntimeError("boom")}), 2, 0) as envs:
        rows = rows_of(envs, 3)
        with pytest.warns(RuntimeWarning, match=r"stream \d broke \(RuntimeError: boom\)") as caught:
            rows += rows_of(envs, 1)
        assert len([w for w in caught if w.category is RuntimeWarning]) == 2, "each stream has one of its own"
        np.testing.assert_array_equal(rows[3].obs["vector"], rows[2].obs["vector"])
        assert rows[3].is_last.all() and not rows[3].is_terminal.any() and not rows[3].is_first.any()
        assert rows[3].reward.tolist() == [0, 0] and rows[3].env_steps.tolist() == [0, 0]
        row = rows_of(envs, 1)[0]
        assert row.is_first.all() and envs.episodes == [1, 1]


def test_a_broken_stream_leaves_the_others_alone() -> None:
    made = []

    def factory() -> Env:
        made.append(Walk(length=50, trouble={3: RuntimeError("boom")} if not made else None))
        return made[-1]

    whole = rows_of(SerialEnvs(partial(Walk, length=50), 2, 0), 8)
    with SerialEnvs(factory, 2, 0) as envs, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = rows_of(envs, 8)
    for one, two in zip(rows, whole, strict=True):
        np.testing.assert_array_equal(one.obs["vector"][1], two.obs["vector"][1])
    assert [bool(row.is_last[0]) for row in rows] == [False, False, False, True, False, False, False, False]
    assert envs.episodes == [1, 0]


@pytest.mark.parametrize("options", [{"trouble": {1: RuntimeError("boom")}}, {"on_reset": True}])
def test_a_stream_that_always_breaks_is_given_up(options: dict) -> None:
    envs = SerialEnvs(partial(Walk, **options), 1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ReverieError, match="broke 3 times without one step") as caught:
            rows_of(envs, 20)
    assert isinstance(caught.value.__cause__, RuntimeError | OSError)


def test_a_stream_that_breaks_now_and_then_goes_on() -> None:
    envs = SerialEnvs(partial(Walk, length=50, trouble={2: RuntimeError("boom")}), 1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = rows_of(envs, 30)
    assert sum(int(row.is_last[0]) for row in rows) == 10


@pytest.mark.parametrize("kind", ["serial", "workers"])
def test_what_a_user_can_mend_comes_at_once(importable: None, kind: str) -> None:
    make = partial(WorkerEnvs, workers=2) if kind == "workers" else SerialEnvs
    trouble = {2: ReverieError("the observation 'vector' is not finite")}
    with make(walk(trouble=trouble), 2, 0) as envs:
        rows_of(envs, 2)
        with pytest.raises(ReverieError, match="'vector' is not finite"):
            rows_of(envs, 1)


def test_a_killed_worker_is_replaced() -> None:
    factory = partial(make_env, "Pendulum-v1", time_limit=20)
    with SerialEnvs(factory, 4, 1) as whole, WorkerEnvs(factory, 4, 1, workers=2) as envs:
        truth, rows = rows_of(whole, 8), rows_of(envs, 3)
        old = envs.pids
        os.kill(old[1], signal.SIGKILL)
        rng = np.random.default_rng(0)
        actions = [envs.act_space.sample(rng, 4) for _ in range(8)]
        with pytest.warns(RuntimeWarning, match="exit code -9") as caught:
            rows += [
                envs.step(actions[3], only=[0, 1, 2]),
                envs.step(actions[3], only=[3]),
                envs.step(actions[4]),
            ]
        assert len(caught) == 1 and envs.pids[0] == old[0] and envs.pids[1] != old[1]
        np.testing.assert_array_equal(rows[3].is_last, [False, True, False, False])
        np.testing.assert_array_equal(rows[4].is_last, [False, True, False, True])
        np.testing.assert_array_equal(rows[4].obs["vector"][[1, 3]], rows[2].obs["vector"][[1, 3]])
        assert not rows[4].is_terminal.any() and (rows[4].reward[[1, 3]] == 0).all()
        np.testing.assert_array_equal(rows[5].is_first, [False, True, False, True])
        assert envs.episodes == [0, 1, 0, 1]
        np.testing.assert_array_equal(rows[5].obs["vector"][[0, 2]], truth[4].obs["vector"][[0, 2]])


def test_close_ends_the_workers_and_may_be_repeated() -> None:
    envs = WorkerEnvs(partial(make_env, "Pendulum-v1"), 2, 0, workers=5)
    assert len(envs.pids) == 2, "never more workers than streams"
    pids = envs.pids
    os.kill(pids[0], signal.SIGKILL)
    envs.close()
    envs.close()
    assert not [child for child in mp.active_children() if child.pid in pids]
    with pytest.raises(ReverieError, match="closed"):
        rows_of(envs, 1)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGINT])
def test_workers_die_with_their_parent(tmp_path: Path, death: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import signal, time\n"
        "from functools import partial\n"
        "from reverie.envs import WorkerEnvs, make_env\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores Ctrl-C\n"
        "    envs = WorkerEnvs(partial(make_env, 'Pendulum-v1'), 2, 0, workers=2)\n"
        "    print(*envs.pids, flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2])}
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        if death == signal.SIGINT:
            os.killpg(parent.pid, death)  # as a terminal's Ctrl-C reaches them all
        else:
            parent.send_signal(death)
        parent.wait(20)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or ") Z" not in status.read_text()


def test_factories_that_cannot_travel_get_one_sentence() -> None:
    with pytest.raises(ReverieError, match="pickled"):
        WorkerEnvs(lambda: Walk(), 2, 0, workers=1)
    with pytest.raises(ReverieError, match="at least 1 worker"):
        WorkerEnvs(Walk, 2, 0, workers=0)
    with pytest.raises(ReverieError, match="at least 1 environment"):
        SerialEnvs(Walk, 0, 0)
    with pytest.raises(ReverieError, match="did you mean"):
        WorkerEnvs(partial(make_env, "Pendullum-v1"), 2, 0, workers=1)


def test_an_interrupt_leaves_no_stale_answers(importable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with WorkerEnvs(walk(length=50), 2, 0, workers=1) as envs:
        rows_of(envs, 2)
        receive = envs._receive

        def interrupted(w: int) -> dict:
            raise KeyboardInterrupt

        monkeypatch.setattr(envs, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rows_of(envs, 1)
        monkeypatch.setattr(envs, "_receive", receive)
        assert rows_of(envs, 1)[0].is_last.all(), "nobody knows where they are, so their episodes end"
        assert rows_of(envs, 1)[0].is_first.all() and envs.episodes == [1, 1]


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("deaf", [False, True])
def test_a_process_is_terminated_and_if_it_does_not_listen_killed(deaf):
    words = "import signal, sys, time; " + "signal.signal(signal.SIGTERM, signal.SIG_IGN); " * deaf
    popen = subprocess.Popen(
        [sys.executable, "-c", words + "print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )

    class Process:
        exitcode = None
        terminate, kill = popen.terminate, popen.kill

        def join(self, seconds):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.exitcode = popen.wait(seconds)

    popen.stdout.readline()  # it has set itself up
    end_process(Process(), 0.3)
    popen.stdout.close()
    assert popen.returncode == (-signal.SIGKILL if deaf else -signal.SIGTERM)
