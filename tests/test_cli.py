"""The command line: what it does, what it says, and its exit codes."""

import json
import warnings

import pytest

from reverie.cli import main

TRAIN = "train dreamer_v1 --env Pendulum-v1 --preset debug --no-pixels --time-limit 20 --threads 1"
FAST = "--steps 120 --prefill 60 --train-every 30 --train-updates 1 --eval-episodes 2 --seed 1 --horizon 5"


def said(capfd, words, code):
    try:
        got = main(words.split() if isinstance(words, str) else words)
    except SystemExit as leaving:  # tyro's own way
        got = leaving.code
    out, err = capfd.readouterr()
    assert got == code, out + err
    return out, err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main([*TRAIN.split(), *FAST.split(), "--run", str(folder)]) == 0
    return folder


def test_train_and_again(run, capfd):
    settings = (run / "config.yaml").read_text()
    assert "horizon: 5" in settings and "seed: 1" in settings
    out, err = said(capfd, [*TRAIN.split(), *FAST.split(), "--run", str(run)], 0)
    assert out.startswith("Finished: 120 env steps") and err == ""
    _, err = said(capfd, [*TRAIN.split(), *FAST.split(), "--run", str(run), "--horizon", "6"], 2)
    assert "horizon was 5 and is now 6" in err


def test_evaluate_and_plot(run, capfd, tmp_path):
    out, _ = said(capfd, f"evaluate {run} --episodes 2", 0)
    assert out.splitlines()[0].startswith("return ") and "2 episodes" in out
    assert out.splitlines()[1].startswith("random policy ")
    out, _ = said(capfd, f"plot {run} --out {tmp_path / 'curve.svg'}", 0)
    assert (tmp_path / "curve.svg").exists() and "curve.svg" in out
    out, _ = said(capfd, f"imagine {run}", 0)  # it sees vectors: how far it foresees them
    assert "prediction_error.svg" in out and "gif" not in out


def test_help_of_everything_names_its_settings(capfd):
    for words, mentioned in {
        "": "reverie reproduce NAME",
        "--help": "reverie doctor",
        "--version": "reverie 0.",
        "train --help": "dreamer_v1",
        "train dreamer_v1 --help": "--horizon",
        "train planet --preset laptop cartpole_swingup --help": "--action-repeat",
        "evaluate --help": "--episodes",
        "imagine --help": "--context",
        "plot --help": "--metric",
        "reproduce --help": "--budget",
        "doctor --help": "--preset",
        "list": "presets: paper",
        "reproduce --list": "dreamer-beats-planet",
    }.items():
        out, err = said(capfd, words, 0)
        assert mentioned in out, words
        assert "utils" not in out and err == ""


def test_presets_are_laid_over_each_other_and_flags_over_those(capfd):
    out, _ = said(capfd, "train planet --preset laptop cartpole_swingup --help", 0)
    flat = " ".join(out.replace("│", " ").split())
    assert "R, env steps per decision" not in flat or "(default: 8)" in flat
    assert "Here: laptop cartpole_swingup" in flat


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("trian dreamer_v1", "no command called 'trian'; did you mean train"),
        ("train", "train needs an agent first"),
        ("train dremer_v1 --env x", "did you mean dreamer_v1"),
        ("train dreamer_v1 --preset labtop --env x", "did you mean laptop"),
        ("train dreamer_v1 --preset", "--preset needs a name"),
        ("train dreamer_v1 --env Nope-v0 --preset debug", "no environment 'Nope-v0'"),
        ("train dreamer_v1 --env Pendulum-v1 --envs 0", "--envs must be at least 1"),
        ("evaluate nowhere", "nowhere is not a run"),
        ("imagine nowhere", "nowhere is not a run"),
        ("reproduce nothing", "no claim 'nothing'"),
        ("plot nowhere --out x.doc", "x.doc"),
        ("doctor dreamer_v1", "doctor dreamer_v1 needs --env"),
        ("doctor dremer --env x", "no agent called 'dremer'"),
        ("list more", "list takes no settings"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(capfd, monkeypatch, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    out, err = said(capfd, words, 2)
    assert sentence in err and err.startswith("reverie: ") and err.count("\n") == 1
    assert out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train dreamer_v1 --env Pendulum-v1 --horizn 4", "--horizon"),
        ("train dreamer_v1 --env Pendulum-v1 --seed x", "--seed"),
        ("train dreamer_v1", "--env"),
        ("train dreamer_v1 --env Pendulum-v1 --action-gradient magic", "straight_through"),
        ("evaluate", "run"),
    ],
)
def test_a_wrong_flag_is_told_by_name(capfd, words, sentence):
    out, err = said(capfd, words, 2)
    assert sentence in out + err and "Traceback" not in out + err


def test_warnings_are_sentences(capfd, monkeypatch):
    from reverie import cli

    monkeypatch.setattr(cli, "show_list", lambda: warnings.warn("the sky is low", stacklevel=1) or 0)
    _, err = said(capfd, "list", 0)
    assert err == "reverie: the sky is low\n"


def test_left_at_once(capfd, monkeypatch):
    from reverie import cli

    def leave():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "show_list", leave)
    _, err = said(capfd, "list", 1)
    assert "left at once" in err and "Traceback" not in err


def test_reproduce_runs_a_claim(capfd, monkeypatch, tmp_path):
    from reverie import reproduce

    calls = []
    monkeypatch.setattr(reproduce, "reproduce", lambda *args, jobs: calls.append((*args, jobs)))
    where = f"--runs {tmp_path} --results {tmp_path}"
    said(capfd, f"reproduce open-loop-video --budget debug --seeds 1 {where} --jobs 2", 0)
    assert calls == [("open-loop-video", "debug", 1, tmp_path, tmp_path, 2)]
    said(capfd, "reproduce open-loop-video", 0)
    assert calls[-1][1:3] == ("laptop", None) and calls[-1][-1] == 1


def test_metrics_are_json(run):
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert {"env_steps", "updates", "seconds", "episodes"} <= set(json.loads(line))
