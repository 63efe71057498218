"""A population's rollouts: the same results whoever plays them, whatever dies meanwhile, and none played twice."""

import dataclasses
import importlib
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from reverie.agents.world_models import Config, WorldModels
from reverie.envs import from_gymnasium, make_env
from reverie.envs.base import Env, after, first
from reverie.envs.small import Probe
from reverie.run.evaluate import Interrupted
from reverie.run.population import Here, Job, Journal, Population, Processes, Recipe, Result
from reverie.types import ActionSpace, ReverieError, Space, Step

HERE = Path(__file__).resolve()
CONFIG = Config(depth=2, latents=4, units=8, one_sided=())
SPACES = {"image": Space((64, 64, 3), "uint8")}, ActionSpace(2)


class Stroll(Env):
    """Its seed decides how long it is, 3 to 14, and what is seen and earned; seeds may be given that break it."""

    steps = resets = 0  # of all of them

    def __init__(self, trouble: Callable[[int], None] | None = None):
        self.obs_space, self.act_space = SPACES
        self.trouble = trouble

    def reset(self, seed: int) -> Step:
        Stroll.resets += 1
        self.seed, self.rng, self.t = seed, np.random.default_rng(seed), 0
        self.length = int(self.rng.integers(3, 15))
        return first(self._obs())

    def step(self, action: np.ndarray) -> Step:
        if self.t == self.length:
            raise ReverieError("stepped after its end")
        Stroll.steps += 1
        self.t += 1
        if self.trouble is not None and self.t == 2:
            self.trouble(self.seed)
        reward = float(action[0]) * self.t + float(self.rng.normal())
        return after(self._obs(), reward, False, self.t >= self.length)

    def render(self) -> np.ndarray:
        return np.zeros((64, 64, 3), np.uint8)

    def _obs(self) -> dict[str, np.ndarray]:
        picture = np.kron(self.rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1)))
        return {"image": picture.astype(np.uint8)}


class Slow(Probe):
    """Takes its time, so that there is a middle to be killed in."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(0.002)
        return super().step(action)


def fatal(seed: int) -> None:
    if seed == 13:
        os._exit(7)


class Trouble:
    """Breaks the first ``times`` times that it sees the seed."""

    def __init__(self, seed: int, times: int, error: type[Exception] = RuntimeError):
        self.seed, self.times, self.error = seed, times, error

    def __call__(self, seed: int) -> None:
        if seed == self.seed and self.times:
            self.times -= 1
            raise self.error("boom")


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers import this file by its bare name."""
    monkeypatch.syspath_prepend(str(HERE.parent))
    yield
    sys.modules.pop("test_population", None)


STROLL = Recipe("world_models", CONFIG, Stroll, envs=8)
PROBE = Recipe("world_models", CONFIG, partial(from_gymnasium, partial(Probe, 60)), envs=4)
SHORT = Recipe("world_models", CONFIG, partial(from_gymnasium, partial(Probe, 5)), envs=4)
SIZE = 26  # (4 + 8 + 1) * 2


def thetas(individuals: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(individuals, SIZE)).astype(np.float32)


def jobs(individuals: int, trials: int) -> list[Job]:
    return [Job(i, t, 100 * i + t) for i in range(individuals) for t in range(trials)]


def weights(seed: int) -> dict[str, torch.Tensor]:
    return WorldModels(*SPACES, CONFIG, seed).modules.state_dict()


def assert_same(one: list[Result], two: list[Result]) -> None:
    """On one machine they are the same to the last bit; only so much is asked of every machine."""
    assert [(r.individual, r.trial, r.length, r.env_steps) for r in one] == [
        (r.individual, r.trial, r.length, r.env_steps) for r in two
    ]
    np.testing.assert_allclose([r.score for r in one], [r.score for r in two], rtol=1e-4, atol=1e-4)


# Here


def test_a_result_for_each_job_in_order_and_told_of_once() -> None:
    told: list[Result] = []
    with Here(STROLL) as population:
        assert population.size == SIZE
        asked = jobs(5, 4)
        results = population.evaluate(thetas(5), asked[::-1], told.append)
        assert [(r.individual, r.trial) for r in results] == [(job.individual, job.trial) for job in asked]
        assert sorted(told) == results and told != results, "they end in another order"
        assert len({r.length for r in results}) > 3
        assert population.evaluate(thetas(5), []) == []


def test_a_rollout_is_what_playing_it_alone_is() -> None:
    theta = thetas(2)
    with Here(STROLL) as population:
        population.set_world(weights(3))
        (result,) = population.evaluate(theta, [Job(1, 0, 42)])
    agent, env = WorldModels(*SPACES, CONFIG, 3), Stroll()
    rng, carry, row = np.random.default_rng([42, 7]), agent.initial(1), env.reset(42)
    score, length = 0.0, 0
    while not row.is_last:
        obs = {"image": row.obs["image"][None], "is_first": np.array([length == 0])}
        noise = torch.from_numpy(rng.standard_normal((1, 4), np.float32))
        action, carry = agent.play(obs, carry, torch.from_numpy(theta[1]), noise)
        row = env.step(action[0])
        score, length = score + float(row.reward), length + 1
    assert_same([result], [Result(1, 0, score, length, length)])


def test_a_rollout_does_not_depend_on_its_neighbours() -> None:
    """To the last bit: so a generation that was interrupted is the one that was not."""
    asked = jobs(4, 4)
    with Here(STROLL) as population:
        whole = population.evaluate(thetas(4), asked)
        mixed = [asked[i] for i in np.random.default_rng(1).permutation(16)]
        assert population.evaluate(thetas(4), mixed) == whole
        assert population.evaluate(thetas(4), asked[5:8]) == whole[5:8]
        assert [r for job in asked[:3] for r in population.evaluate(thetas(4), [job])] == whole[:3]


def test_the_seed_decides_episode_and_noise() -> None:
    with Here(SHORT) as population:  # where the episode is always the same one
        a, b, c = population.evaluate(thetas(1), [Job(0, 0, 5), Job(0, 1, 5), Job(0, 2, 6)])
        assert a.score == b.score != c.score


def test_nothing_is_stepped_needlessly() -> None:
    with Here(STROLL) as population:
        Stroll.steps = Stroll.resets = 0
        results = population.evaluate(thetas(3), jobs(3, 7))
        assert Stroll.steps == sum(r.length for r in results) and Stroll.resets == 21
    made = []

    def count() -> Env:
        made.append(Stroll())
        return made[-1]

    with Here(Recipe("world_models", CONFIG, count, envs=8)) as population:
        population.evaluate(thetas(1), jobs(1, 2))
        assert len(made) == 2, "environments are made when they are needed"


def test_env_steps_count_repeated_actions() -> None:
    env = partial(make_env, "reverie/Probe-v0", action_repeat=2)
    with Here(Recipe("world_models", CONFIG, env, envs=4)) as population:
        (result,) = population.evaluate(thetas(1), [Job(0, 0, 0)])
    assert (result.length, result.env_steps) == (5, 10)


def test_an_environment_that_breaks_is_made_anew() -> None:
    with Here(STROLL) as population:
        whole = population.evaluate(thetas(2), jobs(2, 3))
    trouble = Trouble(101, 2)
    with Here(Recipe("world_models", CONFIG, lambda: Stroll(trouble), envs=8)) as population:
        with pytest.warns(RuntimeWarning, match=r"broke \(RuntimeError: boom\)") as caught:
            assert population.evaluate(thetas(2), jobs(2, 3)) == whole
        assert len(caught) == 2
        trouble.times = 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ReverieError, match="3 times in the rollout of seed 101"):
                population.evaluate(thetas(2), jobs(2, 3))
        trouble.times, trouble.error = 1, ReverieError
        with pytest.raises(ReverieError, match="boom"):
            population.evaluate(thetas(2), jobs(2, 3))
        assert population.evaluate(thetas(2), jobs(2, 3)) == whole, "and it goes on"


def test_new_weights_are_played_with() -> None:
    with Here(SHORT) as population:
        before = population.evaluate(thetas(1), jobs(1, 1))
        population.set_world(weights(3))
        after = population.evaluate(thetas(1), jobs(1, 1))
        population.set_world(weights(0))
        assert population.evaluate(thetas(1), jobs(1, 1)) == before != after
        other = WorldModels(*SPACES, Config(depth=3, latents=4, units=8, one_sided=()))
        with pytest.raises(ReverieError, match="do not fit world_models with this config"):
            population.set_world(other.modules.state_dict())


@pytest.mark.parametrize(
    ("individuals", "asked", "sentence"),
    [
        (thetas(2)[:, :-1], [Job(0, 0, 0)], r"is 26 numbers: .* got \(2, 25\)"),
        (thetas(2)[0], [Job(0, 0, 0)], r"got \(26,\)"),
        (thetas(2) * np.nan, [Job(0, 0, 0)], "not finite"),
        (thetas(2), [Job(2, 0, 0)], r"individuals are 0\.\.1"),
        (thetas(2), [Job(0, 0, -1)], "seeds count from 0"),
        (thetas(2), [Job(0, 0, 1), Job(0, 0, 2)], "same trial"),
    ],
)
def test_what_does_not_fit_gets_one_sentence(
    individuals: np.ndarray, asked: list[Job], sentence: str
) -> None:
    with Here(SHORT) as population, pytest.raises(ReverieError, match=sentence):
        population.evaluate(individuals, asked)


def test_what_can_not_be_made_gets_one_sentence() -> None:
    with pytest.raises(ReverieError, match="at least 1 environment"):
        Here(Recipe("world_models", CONFIG, Stroll, envs=0))
    with pytest.raises(ReverieError, match="planet is not evolved"):
        Here(Recipe("planet", CONFIG, Stroll))
    with pytest.raises(ReverieError, match="at least 1 worker"):
        Processes(SHORT, 0)
    with pytest.raises(ReverieError, match="pickled"):
        Processes(Recipe("world_models", CONFIG, lambda: Stroll()), 1)
    population = Here(SHORT)
    population.close()
    population.close()
    with pytest.raises(ReverieError, match="closed"):
        population.evaluate(thetas(1), jobs(1, 1))


def stop_after(calls: int) -> Callable[[], bool]:
    left = iter(range(calls))
    return lambda: next(left, None) is None


def test_it_stops_when_asked() -> None:
    with Here(SHORT) as population:
        with pytest.raises(Interrupted):
            population.evaluate(thetas(1), jobs(1, 9), stop=stop_after(3))
        assert len(population.evaluate(thetas(1), jobs(1, 9), stop=stop_after(1000))) == 9


# In processes


@pytest.fixture(scope="module")
def truth() -> list[Result]:
    with Here(PROBE) as population:
        population.set_world(weights(3))
        return population.evaluate(thetas(4), jobs(4, 4))


@pytest.fixture
def two(importable: None) -> Iterator[Processes]:
    slow = partial(from_gymnasium, partial(importlib.import_module("test_population").Slow, 60))
    with Processes(dataclasses.replace(PROBE, env=slow), 2) as population:
        population.set_world(weights(3))
        yield population


def killing(population: Processes, when: dict[int, int]) -> Callable[[Result], None]:
    """Told of the k-th result, kill worker ``when[k]``."""
    told: list[Result] = []

    def on_result(result: Result) -> None:
        told.append(result)
        if len(told) in when:
            os.kill(population.pids[when[len(told)]], signal.SIGKILL)

    on_result.told = told  # type: ignore[attr-defined]
    return on_result


def test_processes_are_as_here(two: Processes, truth: list[Result]) -> None:
    told: list[Result] = []
    assert_same(two.evaluate(thetas(4), jobs(4, 4), told.append), truth)
    assert len(told) == 16 and two.size == SIZE
    two.set_world(weights(0))
    alone = two.evaluate(thetas(4), [Job(1, 2, 102)])
    assert abs(alone[0].score - truth[6].score) > 1e-3, "with the new weights"
    with Here(PROBE) as population:
        assert_same(population.evaluate(thetas(4), [Job(1, 2, 102)]), alone)
    pids = two.pids
    two.close()
    two.close()
    assert len(pids) == 2 and not any(alive(pid) for pid in pids)


def test_a_killed_worker_costs_what_it_had_not_finished(two: Processes, truth: list[Result]) -> None:
    old = two.pids
    on_result = killing(two, {1: 1})
    with pytest.warns(RuntimeWarning, match="exit code -9; what it had not finished is played again"):
        assert_same(two.evaluate(thetas(4), jobs(4, 4), on_result), truth)
    assert len(on_result.told) == 16 and two.pids[0] == old[0] and two.pids[1] != old[1]  # type: ignore[attr-defined]
    os.kill(two.pids[0], signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match="exit code -9"):  # between two generations
        assert_same(two.evaluate(thetas(4), jobs(4, 4)), truth)


def test_both_killed_and_then_again(two: Processes, truth: list[Result]) -> None:
    on_result = killing(two, {1: 0, 2: 1})
    with pytest.warns(RuntimeWarning, match="exit code -9") as caught:
        assert_same(two.evaluate(thetas(4), jobs(4, 4), on_result), truth)
    assert len(on_result.told) == 16 and len(caught) == 2  # type: ignore[attr-defined]
    deaths: list[int] = []

    def start(w: int) -> None:  # the second life ends as the first did, the third may stay
        Processes._start(two, w)
        if len(deaths) < 1:
            deaths.append(two.pids[w])
            os.kill(two.pids[w], signal.SIGKILL)

    two._start = start  # type: ignore[method-assign]
    on_result = killing(two, {1: 1})
    with pytest.warns(RuntimeWarning, match="exit code -9") as caught:
        assert_same(two.evaluate(thetas(4), jobs(4, 4), on_result), truth)
    assert len(on_result.told) == 16 and len(deaths) == 1 and len(caught) == 2  # type: ignore[attr-defined]


def test_a_worker_that_always_dies_is_given_up(importable: None) -> None:
    module = importlib.import_module("test_population")
    recipe = Recipe("world_models", CONFIG, partial(module.Stroll, module.fatal), envs=4)
    with Processes(recipe, 1) as population, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = [Job(0, 0, 1), Job(0, 1, 13), Job(0, 2, 2)]
        with pytest.raises(ReverieError, match=r"3 times without finishing one rollout: .* exit code 7"):
            population.evaluate(thetas(1), asked)
        assert len(population.evaluate(thetas(1), asked[::2])) == 2, "without what killed it, it goes on"


def test_what_is_wrong_at_the_start_comes_as_a_sentence() -> None:
    with pytest.raises(ReverieError, match="did you mean"):
        Processes(Recipe("world_models", CONFIG, partial(make_env, "reverie/Prob-v0")), 1)
    assert not [child for child in mp.active_children() if child.name.startswith("reverie-player")]


def test_an_interrupted_evaluation_leaves_nothing_behind(two: Processes, truth: list[Result]) -> None:
    def raising(error: type[BaseException]) -> Callable[[Result], None]:
        def on_result(result: Result) -> None:
            raise error

        return on_result

    old = two.pids
    with pytest.raises(ZeroDivisionError):
        two.evaluate(thetas(4, seed=1), jobs(4, 4), raising(ZeroDivisionError))
    with pytest.raises(Interrupted):
        two.evaluate(thetas(4, seed=1), jobs(4, 4), stop=stop_after(2))
    assert_same(two.evaluate(thetas(4), jobs(4, 4)), truth)
    assert two.pids == old
    with pytest.raises(KeyboardInterrupt):
        two.evaluate(thetas(4, seed=1), jobs(4, 4), raising(KeyboardInterrupt))
    assert not any(alive(pid) for pid in old)
    assert_same(two.evaluate(thetas(4), jobs(4, 4)), truth)


def test_workers_without_jobs_wait() -> None:
    with Processes(SHORT, 3) as population:
        assert len(population.evaluate(thetas(2), jobs(2, 1))) == 2


SCRIPT = """
import signal
from functools import partial
import numpy as np
from reverie.agents.world_models import Config
from reverie.envs import from_gymnasium
from reverie.envs.small import Probe
from reverie.run.population import Job, Processes, Recipe

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores Ctrl-C
    config = Config(depth=2, latents=4, units=8, one_sided=())
    with Processes(Recipe("world_models", config, partial(from_gymnasium, partial(Probe, 20)), envs=4), 2) as p:
        say = lambda result: print(*p.pids, flush=True)
        p.evaluate(np.zeros((1, p.size)), [Job(0, t, t) for t in range(20_000)], say)
"""


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGINT])
def test_no_orphans_and_no_noise(tmp_path: Path, death: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[3]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
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
        errors = parent.communicate(timeout=60)[1]
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
    assert errors.count("Traceback") == (death == signal.SIGINT), errors  # the parent's own


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or ") Z" not in status.read_text()


# Through the journal


def test_a_generation_that_was_cut_goes_on(tmp_path: Path) -> None:
    asked, population = jobs(3, 3), Here(STROLL)
    whole = population.evaluate(thetas(3), asked)
    journal = Journal(tmp_path / "journal.jsonl")

    def play(population: Population, stop: Callable[[], bool]) -> list[Result]:
        done = journal.read(4)
        known = {(r.individual, r.trial) for r in done}
        left = [job for job in asked if (job.individual, job.trial) not in known]
        add = partial(journal.add, 4)
        return sorted(done + population.evaluate(thetas(3), left, add, stop))

    with pytest.raises(Interrupted):
        play(population, stop_after(9))
    assert 0 < len(journal.read(4)) < 9
    assert play(population, stop_after(1000)) == whole
    journal.close()
