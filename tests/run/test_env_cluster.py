"""Environments stepped by Ray: the rows of one process, on two nodes of this machine, one of which is lost."""

import json
import os
import signal
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest

import reverie
from reverie.envs import SerialEnvs, from_gymnasium, make_env
from reverie.envs.small import Probe
from reverie.run import env_cluster
from reverie.run.env_cluster import ClusterEnvs
from reverie.types import ReverieError, Step

FACTORY = partial(from_gymnasium, partial(Probe, 7))


class Breaks(Probe):
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        raise OSError("the cable is out")


def assert_same(one: Step, two: Step) -> None:
    for key, value in one.obs.items():
        np.testing.assert_array_equal(value, two.obs[key])
    for name in ("reward", "is_first", "is_last", "is_terminal", "env_steps"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def until_it_breaks(envs: ClusterEnvs) -> None:
    for _ in range(10):
        envs.step(np.zeros((1, 2), np.float32))


def test_what_is_asked_for_in_one_sentence(ray: Any) -> None:
    with pytest.raises(ReverieError, match="--workers 1"):
        ClusterEnvs(FACTORY, 2, 0, 0)
    with pytest.raises(ReverieError, match=r"no Ray at '127.0.0.1:1'"):
        ClusterEnvs(FACTORY, 2, 0, 2, "127.0.0.1:1")


@pytest.mark.slow
def test_rows_are_those_of_one_process_and_what_is_lost_is_replaced(
    ray: Any, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (30, 5, 2)).astype(np.float32)
    with ClusterEnvs(FACTORY, 5, 3, 2, nodes.address) as envs, SerialEnvs(FACTORY, 5, 3) as here:
        assert envs.obs_space == here.obs_space and envs.act_space == here.act_space
        for action in actions:
            assert_same(envs.step(action), here.step(action))
        assert_same(envs.restore(3, 1, actions[:4, 3]), here.restore(3, 1, actions[:4, 3]))

        where = lambda: [
            ray.get(actor.__ray_call__.remote(lambda self: os.getpid())) for actor in envs._actors
        ]
        before = where()
        os.kill(before[1], signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match="its worker died; Ray says"):
            row = envs.step(actions[0])
        assert row.is_last[[1, 3]].all() and not row.is_terminal.any(), "as if the clock had cut them"
        assert row.env_steps[1] == row.reward[1] == 0
        after = where()
        assert after[0] == before[0] and after[1] != before[1], "another is in its place"
        row = envs.step(actions[1])
        assert row.is_first[[1, 3]].all()

        monkeypatch.setattr(env_cluster, "ROOM", 3.0)
        nodes.remove_node(nodes.other, allow_graceful=False)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for action in actions:
                row = envs.step(action)
        assert any("its worker died" in str(warning.message) for warning in told)
        assert envs._actors.count(None) == 1 and len(set(envs._of)) == 1, "the other steps all of them"
        assert np.isfinite(row.reward).all() and sum(envs.episodes) > 10
    assert not ray.is_initialized()


@pytest.mark.slow
def test_on_this_machine_alone_a_run_is_that_of_one_process(ray: Any, tmp_path: Any) -> None:
    with pytest.raises(ReverieError, match="did you mean"):
        ClusterEnvs(partial(make_env, "reverie/Prob-v0"), 1, 0, 1)
    assert not ray.is_initialized(), "one that was started is ended"
    with (
        ClusterEnvs(partial(from_gymnasium, Breaks), 1, 0, 1) as envs,
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("always")
        with pytest.raises(ReverieError, match=r"broke 3 times .* the cable is out"):
            until_it_breaks(envs)
    assert [str(warning.message) for warning in told if "the cable is out" in str(warning.message)]
    how: dict[str, Any] = dict(envs=3, steps=400, eval_every=0, eval_episodes=1, threads=1, log_every=50)
    lines = []
    for name, cluster in (("there", dict(cluster="local", workers=2)), ("here", {})):
        run = reverie.train("sac", "Pendulum-v1", "debug", tmp_path / name, **how, **cluster)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        clocks = ("seconds", "fps", "time")
        lines.append([{k: v for k, v in row.items() if not k.startswith(clocks)} for row in rows])
    assert lines[0] == lines[1]
