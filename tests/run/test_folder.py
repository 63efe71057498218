"""A run folder knows what it was begun with, and refuses to become another run."""

import dataclasses

import pytest
import yaml

from reverie import presets
from reverie.run.folder import (
    Plan,
    check_folder,
    read_json,
    read_plan,
    size_in_bytes,
    write_json,
    write_plan,
    write_text,
)
from reverie.run.loop import RunConfig
from reverie.types import ReverieError


def plan(agent="dreamer_v1", env="Pendulum-v1", names=("debug",), run=None, **overrides):
    return Plan(agent, env, names, presets.resolve(agent, names, overrides), run or RunConfig(seed=3))


@pytest.mark.parametrize("agent", sorted(presets.AGENTS))
@pytest.mark.parametrize("name", ["paper", "laptop", "debug"])
def test_a_plan_comes_back_as_it_was_written(tmp_path, agent, name):
    written = plan(agent, names=(name,))
    write_plan(tmp_path / "run", written)
    assert read_plan(tmp_path / "run") == written
    check_folder(tmp_path / "run", written)


def test_the_config_names_agent_env_settings_and_versions(tmp_path):
    write_plan(tmp_path, plan(horizon=4))
    about = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert about["agent"] == "dreamer_v1" and about["env"] == "Pendulum-v1" and about["presets"] == ["debug"]
    assert about["config"]["horizon"] == 4 and about["run"]["seed"] == 3
    assert {"python", "torch"} <= set(about["versions"])


def test_another_run_is_refused_by_naming_what_differs(tmp_path):
    write_plan(tmp_path, plan())
    for other, word in (
        (plan(horizon=9), "horizon was 3 and is now 9"),
        (plan(run=RunConfig(seed=4)), "seed was 3 and is now 4"),
        (plan(env="Acrobot-v1"), "env was Pendulum-v1 and is now Acrobot-v1"),
        (plan("planet"), "agent was dreamer_v1 and is now planet"),
    ):
        with pytest.raises(ReverieError, match=word):
            check_folder(tmp_path, other)
    many = plan(run=RunConfig(seed=9, envs=2), horizon=9, depth=3, units=3, stoch=3)
    with pytest.raises(ReverieError, match="and 2 more") as error:
        check_folder(tmp_path, many)
    assert "\n" not in str(error.value)


def test_more_steps_and_another_pace_are_the_same_run(tmp_path):
    write_plan(tmp_path, plan())
    check_folder(tmp_path, plan(steps=99_999))
    check_folder(tmp_path, plan(run=RunConfig(seed=3, threads=2, eval_every=7, log_every=5, workers=1)))


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ReverieError, match="is not a run"):
        check_folder(tmp_path, plan())
    with pytest.raises(ReverieError, match="is a file"):
        check_folder(tmp_path / "thesis.txt", plan())
    with pytest.raises(ReverieError, match=r"no config\.yaml"):
        read_plan(tmp_path)
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty", plan())


@pytest.mark.parametrize(
    "text", ["{", "agent: dreamer_v1", "[]", "agent: dreamer_v1\nconfig: {depht: 1}\nenv: x"]
)
def test_a_damaged_config_is_one_sentence(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ReverieError, match=r"config\.yaml can not be read"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4e9), ("500 mb", 5e8), ("1.5kb", 1500), ("12", 12), ("3B", 3), ("2TB", 2e12)]
)
def test_sizes(text, size):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "4 GiB", "-1GB", "inf", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(ReverieError, match="is not a size"):
        size_in_bytes(text)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"x": 1})
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ReverieError, match="No space left"):
        write_text(tmp_path / "a.json", "half")
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "none.json") == {}


def test_settings_of_a_run_are_checked():
    for name, value in {"envs": 0, "seed": -1, "eval_episodes": 0, "log_every": 0, "threads": -2}.items():
        with pytest.raises(ReverieError, match="must be at least"):
            dataclasses.replace(RunConfig(), **{name: value})
