"""The doctor never falls ill itself."""

import importlib.metadata
import io

import pytest
import torch
from rich.console import Console

from reverie import doctor
from reverie.doctor import BAD, GOOD, NOTE, carefully, examine, forecast, random_batch, seconds_each
from reverie.envs import make_env
from reverie.types import ReverieError


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """One measurement each."""
    monkeypatch.setattr(doctor, "seconds_each", lambda act, budget: seconds_each(act, 0))
    monkeypatch.setattr(doctor, "product_rate", lambda device: 1e10)


def told(*args, **options):
    out = io.StringIO()
    code = examine(*args, console=Console(file=out, width=200), **options)
    return code, out.getvalue()


def test_the_machine(monkeypatch):
    code, text = told()
    assert code == 0
    for word in ("python", "torch", "1 thread", "GFLOP/s", "free here", "box2d", "MuJoCo"):
        assert word in text


def test_an_environment():
    code, text = told("", "Pendulum-v1", ("laptop",), False)
    assert code == 0 and "sees vector 3; acts by 1 number" in text and "a second" in text


def test_a_training_is_timed_and_its_length_told():
    threads = torch.get_num_threads()
    code, text = told("dreamer_v1", "reverie/Catch-v0", ("debug",))
    assert code == 0, text
    for word in (
        "sees image 64x64x3; acts by 3 choices",
        "parameters",
        "decision",
        "5 sequences of 8",
        "about",
        "rows",
    ):
        assert word in text
    assert torch.get_num_threads() == threads


def test_what_is_broken_is_a_row(monkeypatch):
    code, text = told("", "Nope-v0")
    assert code == 2 and "no environment 'Nope-v0'" in text and "to mend" in text

    def broken():
        raise RuntimeError("a long story\nwith details")
        yield

    monkeypatch.setattr(doctor, "rendering", broken)
    code, text = told()
    assert code == 2 and "could not be checked (RuntimeError: a long story)" in text


def test_a_missing_package_comes_with_its_command(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "tyro":
            raise importlib.metadata.PackageNotFoundError
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    rows = {row.name: row for row in doctor.install()}
    assert (
        rows["tyro"].state == BAD and "pip install tyro" in rows["tyro"].found and rows["numpy"].state == GOOD
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rows = list(doctor.extras())
    assert {row.state for row in rows} == {NOTE} and "pip install 'reverie\\[dmc]'" in rows[0].found


def test_a_check_that_raises_ends_in_its_sentence():
    def check():
        yield doctor.Row(GOOD, "one", "fine")
        raise ReverieError("two is missing; install it")

    rows = list(carefully("title", check))
    assert (
        [row.state for row in rows] == [GOOD, BAD]
        and rows[1].name == "title"
        and rows[1].found == "two is missing; install it"
    )


def test_the_forecast_adds_up():
    from reverie import presets
    from reverie.run.folder import Plan
    from reverie.run.loop import RunConfig

    config = presets.resolve(
        "dreamer_v1", ("debug",), dict(steps=1_000, prefill=200, train_every=100, train_updates=2)
    )
    row = next(forecast(Plan("dreamer_v1", "x", ("debug",), config, RunConfig()), 0.01, 0.02, 1.0))
    # 1000 steps: 10 s; 500 decisions: 10 s; bursts at 200, 300 .. 1000, two updates each: 18 s
    assert "about 38s for 1,000 env steps and 18 updates (47% of it updates)" in row.found


def test_a_random_batch_has_the_shapes_of_a_real_one():
    env = make_env("reverie/Everything-v0")
    batch = random_batch(env, 3, 4)
    assert {key: tuple(value.shape[2:]) for key, value in batch.obs.items()} == {
        key: space.shape for key, space in env.obs_space.items()
    }
    assert batch.action.shape == (3, 4, 5) and batch.reward.shape == (3, 4)
    env.close()


def test_the_stages_of_world_models_are_forecast(capsys):
    assert doctor.examine("world_models", "reverie/Catch-v0", ("debug",), True) == 0
    told = capsys.readouterr().out
    for stage in ("collect", "V ", "M ", "2 generations of 4 x 2 rollouts in the env"):
        assert stage in told


def test_rollouts_of_many_environments_are_forecast(capsys):
    assert doctor.examine("a2c", "CartPole-v1", ("debug",), False) == 0
    told = capsys.readouterr().out
    assert "4 sequences of 6" in told and "for 1,200 env steps, without evaluations" in told
