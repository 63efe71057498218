"""A study from plan to page, with a training that takes no time."""

import json
import os
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from reverie import machine, presets
from reverie.reproduce import claims, get_claim, page, reproduce, runner, runs, study, write_results
from reverie.reproduce.side_by_side import Stopped, side_by_side
from reverie.reproduce.statistics import iqm
from reverie.types import ReverieError

QUIET = Console(quiet=True)
KEYS = {
    *(
        "claim",
        "budget",
        "verdict",
        "seeds",
        "env",
        "env_steps",
        "wall_clock_s",
        "threads",
        "machine",
        "command",
    ),
    *("commit", "measures", "difference", "published", "note"),
}


@pytest.fixture
def go(tmp_path, training, predict):
    def run(name="dreamer-beats-planet", budget="debug", seeds=None):
        out = reproduce(
            name, budget, seeds, tmp_path / "runs", tmp_path / "results", training, predict, QUIET
        )
        return out, json.loads((out / "summary.json").read_text())

    return run


@pytest.fixture(autouse=True)
def plain_figures(request, monkeypatch):
    """Drawing takes longest; only the tests that look at pictures draw."""
    if "pictures" not in request.node.name:
        from reverie.reproduce import figure

        monkeypatch.setattr(figure, "draw", lambda *_: ["figure.svg", "figure.png"])


def test_pictures_and_numbers_of_a_whole_claim(go):
    out, summary = go()
    assert sorted(p.name for p in out.iterdir()) == [
        *("README.md", "curves.json", "figure.png", "figure.svg", "summary.json")
    ]
    assert summary.keys() >= KEYS
    assert summary["verdict"] == "holds" and summary["seeds"] == 3 and summary["env"] == "Pendulum-v1"
    dreamer = summary["measures"]["dreamer_final_return"]
    assert dreamer["per_seed"] == [90, 91, 92] and dreamer["iqm"] == iqm([90, 91, 92])
    assert (dreamer["low"], dreamer["high"]) == (90, 92)
    assert summary["difference"] == {"low": 28.6667, "high": 31.3333}
    assert summary["measures"]["planet_seconds_per_env_step"]["iqm"] == pytest.approx(0.05)
    assert summary["command"] == "reverie reproduce dreamer-beats-planet --budget debug --seeds 3"
    assert summary["published"] == []  # nobody published these few steps
    curves = json.loads((out / "curves.json").read_text())["runs"]
    assert len(curves) == 9  # two arms of three seeds, three horizons of one
    assert set(curves[0]) == {"arm", "env", "seed", "env_steps", "updates", "seconds", "return"}
    assert curves[0]["return"][-1] == 90 and curves[0]["env_steps"][-1] == 600
    text = (out / "figure.svg").read_text()
    for word in ("Dreamer", "PlaNet", "random policy", "Pendulum-v1", "holds", "imagination horizon H"):
        assert word in text
    page = (out / "README.md").read_text()
    assert page.startswith("# dreamer-beats-planet\n") and "**Holds**, with 3 seeds" in page
    assert "| Dreamer - PlaNet, final return | 30 |" in page and "Hafner et al. 2020" in page


def test_seeds_come_round_by_round(go, training):
    go("planet-data-efficiency", seeds=2)
    assert [seed for *_, seed in training.calls] == [0] * 5 + [1] * 5
    go_on = len(training.calls)
    go("planet-data-efficiency", seeds=2)
    assert len(training.calls) == go_on  # what is finished is not run again
    go("planet-data-efficiency", seeds=3)
    assert [seed for *_, seed in training.calls[go_on:]] == [2] * 5


@pytest.mark.parametrize(("budget", "every"), [("debug", 60), ("laptop", 2_500)])
def test_a_budget_says_how_often_its_runs_are_evaluated(go, training, budget, every):
    go("planet-data-efficiency", budget, seeds=1)
    assert training.every == {every}


def test_what_is_kept_of_finished_runs_serves_on_another_machine(go, training, tmp_path):
    out, summary = go(seeds=2)
    page, made = (out / "README.md").read_text(), len(training.calls)
    shutil.rmtree(tmp_path / "runs")
    out, again = go(seeds=2)
    assert len(training.calls) == made and again == summary and (out / "README.md").read_text() == page
    go(seeds=3)
    assert {seed for *_, seed in training.calls[made:]} == {2}
    kept = sorted(path.name for path in (tmp_path / "results/runs/pixels/debug/PlaNet/Pendulum-v1").iterdir())
    assert kept == [f"seed-{n}{end}" for n in range(3) for end in ("", ".json")]


def test_a_finished_run_that_was_not_kept_is_kept_by_the_next_call(go, training, tmp_path):
    go("dreamer-discrete", seeds=1)
    made = len(training.calls)
    kept = sorted(path for path in (tmp_path / "results/runs").rglob("*"))
    shutil.rmtree(tmp_path / "results/runs")
    go("dreamer-discrete", seeds=1)
    assert len(training.calls) == made and sorted((tmp_path / "results/runs").rglob("*")) == kept


def test_pictures_need_the_run_itself(go, training, tmp_path):
    go("open-loop-video", seeds=1)
    shutil.rmtree(tmp_path / "runs")
    go("open-loop-video", seeds=1)
    assert len(training.calls) == 2


def test_a_world_that_is_to_be_given_again_is_learned_again(go, training, tmp_path):
    go("wm-dream-transfer", seeds=1)
    made = len(training.calls)
    go("wm-dream-transfer", seeds=1)
    assert len(training.calls) == made
    shutil.rmtree(tmp_path / "runs")
    go("wm-temperature", seeds=1)
    assert len(training.calls) == made + 5 and training.worlds[made] is None


def test_a_page_names_all_machines_and_threads(go, training, tmp_path):
    go("dreamer-discrete", seeds=2)
    for folder in (tmp_path / "runs", tmp_path / "results/runs"):
        note = folder / "dreamer-discrete/debug/score-function/reverie-Catch-v0/seed-1.json"
        note.write_text(json.dumps({**json.loads(note.read_text()), "machine": "another", "threads": 7}))
    _, summary = go("dreamer-discrete", seeds=2)
    assert summary["machine"].endswith(", another") and summary["threads"].endswith(", 7")


def test_two_runs_at_a_time(tmp_path):
    """With the real thing, for a process of its own can not be told of a training that takes no time."""
    both = [tmp_path / name for name in ("one", "two")]
    said = {}
    for jobs, folder in enumerate(both, 1):
        out = reproduce(
            "dyna-planning", "debug", 3, folder / "runs", folder / "results", None, None, QUIET, jobs
        )
        said[jobs] = json.loads((out / "summary.json").read_text())
    assert said[2]["at_once"] == 2 and said[1]["at_once"] == 1
    assert said[2]["threads"] == max(1, machine.CORES // 2)
    assert said[1]["measures"] == said[2]["measures"] and said[1]["verdict"] == said[2]["verdict"]
    assert len([*(both[1] / "runs").rglob("seed-0.log")]) == 3


def test_a_run_whose_process_dies_is_told(tmp_path):
    log = lambda run: tmp_path / "log"
    [(run, error)] = side_by_side([7], 2, os._exit, log, lambda *_: True)
    assert run == 7 and str(error) == "its process ended with code 7"


def test_a_run_that_was_stopped_stops_those_that_wait(tmp_path):
    stop = partial(exec, "from reverie.reproduce.side_by_side import Stopped\nraise Stopped(n)")
    runs = [{"n": n} for n in range(3)]
    [(run, error)] = side_by_side(runs, 1, stop, lambda run: tmp_path / "log", lambda *_: True)
    assert run == {"n": 0} and isinstance(error, Stopped) and error.args == (0,)


def test_one_run_has_no_interval(go, training):
    out, _ = go("dreamer-discrete", seeds=1)
    text = (out / "README.md").read_text()
    assert "with 1 seed at" in text and "| - |" in text and "?" not in text


def test_sigterm_ends_the_runs_that_are_under_way(tmp_path):
    """They write a file when they have begun; one that has not learned to save itself just ends."""
    begin = "import pathlib, time\npathlib.Path(begun).touch()\ntime.sleep(60)"
    runs = [{"begun": str(tmp_path / f"{n}")} for n in range(3)]

    def stop() -> None:
        while sum(path.name in "01" for path in tmp_path.iterdir()) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    log = lambda run: tmp_path / "log"
    found = list(side_by_side(runs, 2, partial(exec, begin), log, lambda *_: True))
    assert sorted(run["begun"][-1] for run, _ in found) == ["0", "1"]
    assert all(isinstance(error, Stopped) for _, error in found)


def test_two_seeds_leave_it_open_and_a_side_question_has_its_own_number(go, training):
    _, summary = go(seeds=2)
    assert summary["verdict"] == "open" and summary["seeds"] == 2
    assert sum(1 for agent, *_ in training.calls if agent == "dreamer_v1") == 2 + 3


def test_the_wrong_direction_fails(go, training):
    training.level = lambda agent, seed, overrides: {"dreamer_v1": 30.0, "planet": 60.0}[agent] + seed
    out, summary = go()
    assert summary["verdict"] == "fails" and summary["difference"]["high"] < 0
    assert "**Fails**" in (out / "README.md").read_text()


def test_a_broken_run_is_told_and_mended_later(go, training):
    training.broken = {0}
    out, summary = go("dreamer-discrete", seeds=4)
    assert summary["verdict"] == "open" and summary["seeds"] == 3
    assert summary["failures"] == [
        {
            "arm": "straight-through",
            "env": "reverie/Catch-v0",
            "seed": 0,
            "error": "RuntimeError: the disk is | full",
        }
    ]
    assert "Unfinished: 3 of 4" in summary["note"]
    assert "the disk is \\| full" in (out / "README.md").read_text()
    _, summary = go("dreamer-discrete", seeds=4)
    assert len(training.calls) == 9 and summary["verdict"] == "holds" and summary["failures"] == []


def test_ctrl_c_ends_the_study_and_the_next_call_goes_on(go, training):
    training.stops_at = 0.5
    with pytest.raises(ReverieError, match="the same command goes on"):
        go()
    assert len(training.calls) == 1
    training.stops_at = 1.0
    go()
    assert len(training.calls) == 10


def test_if_all_break_down_it_says_why(go, training):
    training.broken = set(range(100))
    with pytest.raises(ReverieError, match="the disk is"):
        go()


def test_a_page_over_all_results_links_to_each(go, tmp_path):
    go("dreamer-discrete", seeds=1), go("open-loop-video")
    lines = (tmp_path / "results/README.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| [")]
    assert [row.split("](")[0] for row in rows] == ["| [dreamer-discrete", "| [open-loop-video"]
    assert "| debug | **open** | 1 |" in rows[0] and "| debug | **holds** | 3 |" in rows[1]
    assert all((tmp_path / "results" / row.split("](")[1].split(")")[0]).is_file() for row in rows)


def test_the_committed_page_is_that_of_the_committed_results():
    results = Path(runner.__file__).parents[2] / "results"
    told = [
        (path.parent.relative_to(results).as_posix(), json.loads(path.read_text()))
        for path in sorted(results.glob("*/*/summary.json"))
    ]
    assert told and (results / "README.md").read_text() == page.index(told)


def test_partial_results_are_written_as_runs_finish(go, training, tmp_path):
    def die(agent, seed, overrides):
        if len(training.calls) == 4:
            raise KeyboardInterrupt
        return 50.0

    training.level = die
    with pytest.raises(KeyboardInterrupt):
        go("dreamer-discrete")
    summary = json.loads((tmp_path / "results/dreamer-discrete/debug/summary.json").read_text())
    assert summary["seeds"] == 1 and "Unfinished: 1 of 3" in summary["note"]


def test_other_settings_do_not_mix_with_old_runs(go, training, tmp_path, monkeypatch):
    go("dreamer-discrete", seeds=1)
    note = tmp_path / "runs/dreamer-discrete/debug/straight-through/reverie-Catch-v0/seed-0.json"
    about = json.loads(note.read_text())
    about["asked"]["overrides"]["horizon"] = 99
    note.write_text(json.dumps(about))
    shutil.rmtree(tmp_path / "results/runs")
    _, summary = go("dreamer-discrete", seeds=1)
    assert "was begun with other settings" in summary["failures"][0]["error"]
    assert len(training.calls) == 2


def test_a_preset_whose_numbers_have_changed_makes_another_run(go, training, monkeypatch):
    go("dreamer-discrete", seeds=1)
    debug = presets.PRESETS["dreamer_v1"]["debug"]
    monkeypatch.setitem(presets.PRESETS["dreamer_v1"], "debug", {**debug, "units": 11})
    with pytest.raises(ReverieError, match="was begun with other settings"):
        go("dreamer-discrete", seeds=1)
    assert len(training.calls) == 2


def test_more_steps_go_on_where_fewer_ended(go, training, tmp_path):
    go("dreamer-discrete", seeds=1)
    note = tmp_path / "runs/dreamer-discrete/debug/straight-through/reverie-Catch-v0/seed-0.json"
    about = json.loads(note.read_text())
    about["asked"]["length"] = 300
    note.write_text(json.dumps(about))
    shutil.rmtree(tmp_path / "results/runs")
    go("dreamer-discrete", seeds=1)
    assert len(training.calls) == 3 and json.loads(note.read_text())["asked"]["length"] == 600


def test_open_loop_pictures(go, tmp_path):
    out, summary = go("open-loop-video")
    assert {"strip.png", "open_loop.gif", "figure.svg"} <= {p.name for p in out.iterdir()}
    assert summary["verdict"] == "holds"
    model = summary["measures"]["open_loop_error"]
    assert len(model["per_seed"]) == 3 * 10 and model["iqm"] < summary["measures"]["mean_image_error"]["iqm"]
    assert summary["comparisons"][0]["runs"] == 30
    assert "strip.png" in (out / "README.md").read_text()


def test_a_prediction_of_the_wrong_shape_is_a_failure_in_words(tmp_path, training, predict):
    def half(*asked):
        truth, told = predict(*asked)
        return truth, told[:, :9]

    with pytest.raises(ReverieError, match="two arrays 'n t h w c'"):
        reproduce("open-loop-video", "debug", 1, tmp_path / "a", tmp_path / "b", training, half, QUIET)
    reproduce("open-loop-video", "debug", 1, tmp_path / "a", tmp_path / "b", training, predict, QUIET)
    assert len(training.calls) == 1  # what was trained is filmed, not trained again


def test_one_agent_is_asked_task_by_task(go):
    _, summary = go("planet-one-agent")
    decisive = [c for c in summary["comparisons"] if c["counts"]]
    assert [c["name"].split(", ")[1] for c in decisive] == ["cartpole_swingup", "cup_catch"]
    assert summary["verdict"] == "holds" and summary["env_steps"] == 1200


def test_published_numbers_stand_only_beside_the_same_setting():
    claim = get_claim("planet-data-efficiency")
    paper = claims.matching(claim, claim.budget("paper"))
    assert {p.env: p.value for p in paper}["dmc/cup_catch"] == 930
    assert claims.matching(claim, claim.budget("laptop")) == []


def test_results_need_runs(tmp_path):
    with pytest.raises(ReverieError, match="no finished run"):
        write_results("open-loop-video", "debug", None, tmp_path, tmp_path)
    with pytest.raises(ReverieError, match="at least one seed"):
        reproduce("open-loop-video", "debug", 0, tmp_path, tmp_path, console=QUIET)


def test_the_order_of_the_plan(tmp_path):
    planned = list(study.plan(get_claim("planet-one-agent"), "debug", 2, tmp_path, tmp_path))
    assert [(p.arm.name, p.env.count("+"), p.seed) for p in planned[:4]] == [
        ("one agent", 1, 0), ("an agent each", 0, 0), ("an agent each", 0, 0), ("one agent", 1, 1),
    ]  # fmt: skip
    assert len({p.folder for p in planned}) == len(planned) == 6
    pendulum = next(study.plan(get_claim("planet-data-efficiency"), "paper", 1, tmp_path, tmp_path))
    assert pendulum.overrides["action_repeat"] == 8  # cartpole swing-up's own


def test_unknown_numbers_are_null(tmp_path):
    runs.write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1.0, 2.5, None], "c": 1 / 3})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": None, "b": [1.0, 2.5, None], "c": 0.333333}
    assert "[ 1.0, 2.5, null ]" in text  # numbers in a row stay in a row


def test_controllers_share_the_world_of_their_seed_and_claims_of_a_study_their_runs(go, training, tmp_path):
    training.level = lambda agent, seed, overrides: 50 + seed + 100 * (overrides["temperature"] == 1.15)
    _, transfer = go("wm-dream-transfer")
    assert transfer["verdict"] == "holds" and transfer["measures"]["real_score"]["per_seed"] == [
        150,
        151,
        152,
    ]
    assert len(training.calls) == 3 and training.worlds == [None] * 3
    out, summary = go("wm-temperature")
    assert len(training.calls) == 3 + 4 * 3  # the first arm's runs were there
    learned = tmp_path / "runs" / "wm-dreams" / "debug"
    assert {str(path) for path in training.worlds[3:] if path} == {
        str((learned / "tau-1.15") / "doom-take_cover" / f"seed-{seed}") for seed in range(3)
    }
    assert summary["verdict"] == "holds" and summary["measures"]["tau_0.1_dream_score"]["per_seed"][0] == 100
    curve = json.loads((out / "curves.json").read_text())["runs"][0]
    assert curve["generations"] == [1, 2] and curve["env_steps"] == [100, 100]
