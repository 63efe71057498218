"""The same rollouts by Ray: on two nodes of this machine, one of which is lost."""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from reverie.agents.world_models import Config, WorldModels
from reverie.envs import from_gymnasium, make_env
from reverie.envs.small import Probe
from reverie.run.evaluate import Interrupted
from reverie.run.population import Cluster, Here, Job, Recipe, Result
from reverie.types import ActionSpace, ReverieError, Space

CONFIG = Config(depth=2, latents=4, units=8, one_sided=())
PROBE = Recipe("world_models", CONFIG, partial(from_gymnasium, partial(Probe, 60)), envs=4)
JOBS = [Job(i, t, 100 * i + t) for i in range(4) for t in range(6)]
THETAS = np.random.default_rng(0).normal(size=(4, 26)).astype(np.float32)


def slow() -> Recipe:
    """PROBE, but taking its time, so that there is a middle to be killed in."""

    class Slow(Probe):  # known here alone, so it travels whole
        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            time.sleep(0.003)
            return super().step(action)

    return dataclasses.replace(PROBE, env=partial(from_gymnasium, partial(Slow, 60)))


def weights() -> dict[str, torch.Tensor]:
    spaces = {"image": Space((64, 64, 3), "uint8")}, ActionSpace(2)
    return WorldModels(*spaces, CONFIG, 3).modules.state_dict()


def test_without_ray_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ReverieError, match=r"pip install 'reverie\[cluster\]'"):
        Cluster(PROBE, 2)


def test_where_nobody_is_there_is_one_sentence(ray: Any) -> None:
    with pytest.raises(ReverieError, match=r"no Ray at '127.0.0.1:1' .* ray start"):
        Cluster(PROBE, 2, "127.0.0.1:1")


@pytest.fixture(scope="module")
def truth() -> list[Result]:
    with Here(PROBE) as population:
        population.set_world(weights())
        return population.evaluate(THETAS, JOBS)


def assert_same(one: list[Result], two: list[Result]) -> None:
    """On one machine they are the same to the last bit; only so much is asked of every machine."""
    assert [(r.individual, r.trial, r.length) for r in one] == [
        (r.individual, r.trial, r.length) for r in two
    ]
    np.testing.assert_allclose([r.score for r in one], [r.score for r in two], rtol=1e-4, atol=1e-4)


def at_first(do: Callable[[], object]) -> Callable[[Result], None]:
    """Told of the first result, ``do``."""
    told: list[Result] = []

    def on_result(result: Result) -> None:
        told.append(result)
        if len(told) == 1:
            do()

    on_result.told = told  # type: ignore[attr-defined]
    return on_result


@pytest.mark.slow
def test_actors_play_as_here_and_may_be_lost(ray: Any, nodes: Any, truth: list[Result]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with Cluster(slow(), 2, nodes.address) as population:
        assert signal.getsignal(signal.SIGTERM) == handler, "Ray does not take our signals"
        assert population.size == 26
        population.set_world(weights())
        on_result = at_first(lambda: None)
        assert_same(population.evaluate(THETAS, JOBS, on_result), truth)
        assert len(on_result.told) == len(JOBS)  # type: ignore[attr-defined]

        with pytest.raises(Interrupted):
            population.evaluate(-THETAS, JOBS, stop=iter([False, False, True]).__next__)
        pids = ray.get([actor.__ray_call__.remote(lambda self: os.getpid()) for actor in population._actors])
        on_result = at_first(lambda: os.kill(pids[1], signal.SIGKILL))
        with pytest.warns(RuntimeWarning, match="a worker died: Ray says"):
            assert_same(population.evaluate(THETAS, JOBS, on_result), truth)
        assert len(on_result.told) == len(JOBS)  # type: ignore[attr-defined]

        for _ in range(100):  # until the new one is up
            assert_same(population.evaluate(THETAS, JOBS[:4]), truth[:4])
            if all(population._up):
                break
        on_result = at_first(lambda: nodes.remove_node(nodes.other, allow_graceful=False))
        with pytest.warns(
            RuntimeWarning, match="a worker died: Ray says"
        ):  # and there is no room for another
            assert_same(population.evaluate(THETAS, JOBS, on_result), truth)
        assert len(on_result.told) == len(JOBS)  # type: ignore[attr-defined]
        assert sum(population._up) == 1, "the other still waits for a place"
        assert_same(population.evaluate(THETAS, JOBS), truth)
    assert not ray.is_initialized()
    with pytest.raises(ReverieError, match="closed"):
        population.evaluate(THETAS, JOBS)


@pytest.mark.slow
def test_on_this_machine_alone(ray: Any, truth: list[Result]) -> None:
    with pytest.raises(ReverieError, match="did you mean"):
        Cluster(Recipe("world_models", CONFIG, partial(make_env, "reverie/Prob-v0")), 1)
    assert not ray.is_initialized(), "one that was started is ended"
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.warns(RuntimeWarning, match="1 CPU for 2 workers"):
            population = Cluster(PROBE, 2)
        with population:
            population.set_world(weights())
            assert_same(population.evaluate(THETAS, JOBS), truth)
        assert ray.is_initialized(), "one that was there is left"
    finally:
        ray.shutdown()
