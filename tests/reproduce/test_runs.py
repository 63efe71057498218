"""Measures of a run, from numbers written by hand."""

import json

import numpy as np
import pytest

from reverie.reproduce import futures, runs
from reverie.reproduce.runs import Run


def make(folder, rows, evaluation=None, env="Pendulum-v1") -> Run:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return Run("arm", env, 0, folder)


def test_the_final_return_is_the_mean_of_the_last_tenth(tmp_path):
    rows = [
        {"env_steps": s, "eval/return": r} for s, r in ((500, 0), (900, 5), (901, 10), (950, 20), (1000, 60))
    ]
    assert runs.FINAL_RETURN.of(make(tmp_path, rows)) == {"Pendulum-v1": [30.0]}


def test_training_episodes_stand_in_where_nothing_was_evaluated(tmp_path):
    run = make(tmp_path, [{"env_steps": 10, "episode/return": 3}])
    assert runs.FINAL_RETURN.of(run) == {"Pendulum-v1": [3.0]}
    assert runs.FINAL_RETURN.of(make(tmp_path / "none", [])) == {}


def test_several_tasks_are_told_apart(tmp_path):
    rows = [{"env_steps": 10, "eval/return/cup_catch": 3, "eval/return/walker_walk": 4}]
    evaluation = {"tasks": {"cup_catch": {"random": {"mean": 1}}, "walker_walk": {"random": {"mean": 2}}}}
    run = make(tmp_path, rows, evaluation, env="dmc/cup_catch+dmc/walker_walk")
    assert runs.FINAL_RETURN.of(run) == {"dmc/cup_catch": [3.0], "dmc/walker_walk": [4.0]}
    assert runs.RANDOM_RETURN.of(run) == {"dmc/cup_catch": [1.0], "dmc/walker_walk": [2.0]}


@pytest.mark.parametrize("evaluation", [None, {}, {"random": None}, {"random": {"mean": None}}])
def test_no_random_policy_is_no_number(tmp_path, evaluation):
    assert runs.RANDOM_RETURN.of(make(tmp_path, [], evaluation)) == {}


def test_seconds_leave_out_prefill_evaluations_and_a_clock_begun_anew(tmp_path):
    rows = [
        {"env_steps": 100, "updates": 0, "seconds": 1.0},
        {"env_steps": 200, "updates": 10, "seconds": 50.0},
        {"env_steps": 300, "updates": 20, "seconds": 52.0},  # 2 s for 100
        {"env_steps": 350, "updates": 25, "seconds": 99.0, "eval/length": 5},
        {"env_steps": 450, "updates": 35, "seconds": 103.0},  # 4 s for 100
        {"env_steps": 500, "updates": 40, "seconds": 1.0},
        {"env_steps": 600, "updates": 50, "seconds": 4.0},  # 3 s for 100
    ]
    assert runs.SECONDS.of(make(tmp_path, rows)) == {"Pendulum-v1": [pytest.approx(9 / 300)]}


def test_video_errors_of_a_worked_example(tmp_path):
    truth = np.zeros((2, 4, 1, 1, 3), np.uint8)
    truth[0, 2:] = 255  # episode 0 turns white where the context ends
    truth[:, 0] = 255  # the first frame is not the last one seen
    told = np.zeros_like(truth)
    told[0, 3] = 255
    np.savez(tmp_path / "open_loop.npz", truth=truth, prediction=told, context=2)
    run = Run("arm", "env", 1, tmp_path)
    assert runs.MODEL_ERROR.of(run) == {"env seed 1": [0.5, 0.0]}  # one of two frames black instead of white
    assert runs.STILL_ERROR.of(run) == {"env seed 1": [1.0, 0.0]}
    assert runs.MEAN_ERROR.of(run) == {"env seed 1": [pytest.approx(0.25), pytest.approx(0.25)]}
    assert runs.MODEL_ERROR.of(Run("arm", "env", 1, tmp_path / "none")) == {}


def test_counts_between_two_lines_are_linear(tmp_path):
    run = make(tmp_path, [{"env_steps": 0, "updates": 0}, {"env_steps": 10, "updates": 5}])
    assert run.at("updates", np.array([0.0, 4.0, 20.0])).tolist() == [0, 2, 5]
    assert np.isnan(run.at("seconds", np.array([1.0]))).all()


def test_a_config_that_cannot_be_read_is_empty(tmp_path):
    assert runs.read_config(tmp_path) == {}
    (tmp_path / "config.yaml").write_text("a: [")
    assert runs.read_config(tmp_path) == {}


def test_a_goal_of_the_two_rooms_by_itself_or_beside_the_others(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(futures, "tabular", lambda **how: made.append(how) or futures.EVEN)
    for name, alpha in (("prior", 0.5), ("none", 0.0)):
        asked = dict(episodes=3, eval_every=1, alpha=alpha)
        futures.transferred("distral", futures.GRID, "paper", tmp_path / name, 26, asked)
    (how,) = made  # without a prior none is made
    assert how["tasks"] == [task for task in range(24) if task != 2] and how["alpha"] == 0.5
    run = Run("none", futures.GRID, 26, tmp_path / "none", clock=runs.EPISODES)
    lengths = [row["episode/length"] for row in run.rows]
    assert [row["episode"] for row in run.rows] == [1, 2, 3] and all(1 <= n <= 60 for n in lengths)
    assert run.rows[-1]["env_steps"] == sum(lengths)
    assert futures.STEPS.of(run) == {futures.GRID: [pytest.approx(np.mean(lengths))]}
