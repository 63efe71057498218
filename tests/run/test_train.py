"""From a plan to a trained agent, in Python: train, load, act, evaluate, imagine."""

import dataclasses
import json
import os
import signal
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

import reverie
from reverie import checkpoint, presets
from reverie.envs import SerialEnvs, make_env
from reverie.run.evaluate import Evaluation
from reverie.run.folder import Plan, read_plan
from reverie.run.loop import ByEnvSteps, RunConfig
from reverie.run.online import rows_needed
from reverie.run.parts import device, make_replay, replay_size
from reverie.run.train import carry_out, default_folder, finished, loop_name, loop_of
from reverie.run.trained import evaluate_run, imagine_run, load, open_replay
from reverie.types import LoopName, ReverieError

TINY = dict(steps=120, prefill=60, train_every=30, train_updates=1, threads=1, eval_episodes=2, log_every=50)


@pytest.mark.parametrize("agent", presets.AGENTS)
def test_every_agent_learns_in_a_loop_that_can_be_made(agent):
    assert loop_name(agent) in get_args(LoopName)
    assert not loop_of(agent).__abstractmethods__


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on pictures, to its end."""
    folder = tmp_path_factory.mktemp("runs") / "catch"
    made = reverie.train(
        "dreamer_v1", "reverie/Catch-v0", preset="debug", run=folder, seed=1, horizon=4, **TINY
    )
    assert made == folder
    return folder


def test_a_run_can_be_watched_and_told_to_stop(tmp_path):
    """Stopped at the second line, gone on with to the end, and equal to a run that nobody watched."""
    told = []

    def enough(line):
        told.append(dict(line))
        return len(told) == 2

    train = lambda name, **more: reverie.train(
        "dyna_q", "FrozenLake-v1", "debug", tmp_path / name, steps=400, log_every=50, threads=1, **more
    )
    lines = lambda name: [
        json.loads(text) for text in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    ]
    train("watched", watch=enough)
    assert told == lines("watched") and told[-1]["env_steps"] < 400
    assert not (tmp_path / "watched" / "report.html").exists()
    train("watched", watch=told.append)
    assert told == lines("watched") and told[-1]["env_steps"] == 400
    train("alone")
    timeless = lambda line: {key: value for key, value in line.items() if key != "seconds"}
    assert list(map(timeless, lines("alone"))) == list(map(timeless, told))


def test_who_watches_may_ask_again_and_again(tmp_path):
    """A stop that was asked for already, by Ctrl-C or by an earlier line, is still one: nothing leaves at once."""

    def enough(line):
        os.kill(os.getpid(), signal.SIGINT)
        return True

    reverie.train(
        "dyna_q", "FrozenLake-v1", "debug", tmp_path, steps=400, log_every=50, threads=1, watch=enough
    )
    assert checkpoint.paths(tmp_path / "checkpoints") and not (tmp_path / "report.html").exists()


def test_what_breaks_the_watch_does_not_break_the_run(tmp_path):
    with pytest.raises(ZeroDivisionError):
        reverie.train(
            "dyna_q", "FrozenLake-v1", "debug", tmp_path, steps=400, threads=1, watch=lambda line: 1 / 0
        )
    assert checkpoint.paths(tmp_path / "checkpoints")


def test_a_run_is_a_folder_that_explains_itself(run):
    names = {path.name for path in run.iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "replay",
        "evaluation.json",
        "report.html",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    videos = {path.name for path in (run / "videos").iterdir()}
    assert {"episode.gif", "open_loop_image.gif", "open_loop_image.mp4", "open_loop_image.png"} <= videos
    plan = read_plan(run)
    assert plan.config.horizon == 4 and plan.run.seed == 1 and plan.presets == ("debug",)
    found = json.loads((run / "evaluation.json").read_text())
    assert found["env_steps"] >= 120 and len(found["returns"]) == len(found["random"]["returns"]) == 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all({"env_steps", "updates", "seconds", "episodes"} <= set(line) for line in lines)
    assert sum("eval/return" in line for line in lines) == 1
    assert len({(line["env_steps"], "eval/return" in line) for line in lines}) == len(lines)


def test_the_example_of_the_readme(run):
    policy = reverie.load(run)
    env = policy.make_env()
    row, score = env.reset(seed=0), 0.0
    while not row.is_last:
        action = policy.act(row.obs)
        assert action.shape == (env.act_space.size,) and action.sum() == 1
        row = env.step(action)
        score += float(row.reward)
    assert score in (-1.0, 1.0)
    policy.reset()
    env.close()


def test_a_player_takes_its_only_observation_by_itself_and_refuses_others(run):
    policy = load(run)
    assert policy.act(np.zeros((64, 64, 3), np.uint8)).shape == (3,)
    with pytest.raises(ReverieError, match=r"should be uint8 of shape \(64, 64, 3\)"):
        policy.act(np.zeros(3))
    with pytest.raises(ReverieError, match="act needs obs 'image', got vector"):
        policy.act({"vector": np.zeros(3)})


def test_a_player_remembers_until_it_is_reset(run):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    policy = load(run)
    for picture in pictures:
        policy.act(picture)
    remembered = policy.carry[0].deter.clone()
    policy.reset()
    policy.act(pictures[-1])
    assert not (policy.carry[0].deter == remembered).all()


def test_evaluate_beside_chance(run, tmp_path):
    result, by_chance, video = evaluate_run(run, 3, tmp_path / "film.gif")
    assert len(result.returns) == len(by_chance.returns) == 3
    assert video == tmp_path / "film.gif" and video.stat().st_size > 100
    with pytest.raises(ReverieError, match="must be at least 1"):
        evaluate_run(run, 0)


def test_the_best_agent_is_kept_and_judged_from_other_starts(run, tmp_path):
    (path,) = checkpoint.paths(run / "best")
    _, state = checkpoint.load_path(path)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert state["return"] == max(line["eval/return"] for line in lines if "eval/return" in line)
    weights = load(run, best=True).agent.state_dict()["modules"]
    assert all((weights[name] == value).all() for name, value in state["agent"]["modules"].items())
    result, _, _ = evaluate_run(run, 3, tmp_path / "film.gif", best=True)
    assert not set(result.seeds) & set(evaluate_run(run, 3, tmp_path / "film.gif")[0].seeds)
    (run / "best").rename(tmp_path / "gone")
    with pytest.raises(ReverieError, match="keeps no best agent"):
        load(run, best=True)
    (tmp_path / "gone").rename(run / "best")


def test_no_worse_evaluation_replaces_the_best(run, tmp_path):
    loop = SimpleNamespace(folder=tmp_path, place=0, agent=load(run).agent)
    for loop.place, score in enumerate((-2.0, 0.0, -1.0, 0.0)):
        ByEnvSteps.keep_best(loop, Evaluation([score]))
    (path,) = checkpoint.paths(tmp_path / "best")
    assert path.name == "000000001" and checkpoint.says(path, "return") == 0.0


def test_imagine(run):
    paths = imagine_run(run, 3, 20, seed=5)
    assert [path.suffix for path in paths] == [".gif", ".mp4", ".png"]
    with pytest.raises(ReverieError, match="0 < context < length"):
        imagine_run(run, 20, 20, 0)
    with pytest.raises(ReverieError, match="rows in a row"):
        imagine_run(run, 5, 10_000, 0)


def test_again_says_it_is_finished_and_changes_nothing(run, capsys):
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    reverie.train("dreamer_v1", "reverie/Catch-v0", preset="debug", run=run, seed=1, horizon=4, **TINY)
    assert capsys.readouterr().out.startswith("Finished: 1")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == kept


def test_more_steps_go_on(run, capsys):
    reverie.train(
        "dreamer_v1", "reverie/Catch-v0", preset="debug", run=run, seed=1, horizon=4, **{**TINY, "steps": 200}
    )
    out = capsys.readouterr().out
    assert "Going on from 1" in out and "Finished: 2" in out
    steps = [json.loads(line)["env_steps"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] >= 200
    assert "Finished: 2" in finished(run)


def test_vectors_in_memory_have_an_error_to_look_at_and_no_pictures(tmp_path):
    folder = tmp_path / "run"
    reverie.train(
        "dreamer_v1",
        "Pendulum-v1",
        "debug",
        folder,
        **TINY,
        pixels=False,
        time_limit=30,
        replay_on_disk=False,
    )
    figures = {"prediction_error.png", "prediction_error.svg"}
    assert {path.name for path in (folder / "videos").iterdir()} == figures
    assert not (folder / "replay").exists()
    policy = load(folder)
    assert policy.act(policy.make_env().reset(0).obs).shape == (1,)
    replay = open_replay(policy.plan, folder)
    assert replay.counts[0] > 60
    assert {path.name for path in imagine_run(folder, 5, 20, 0)} == figures
    with pytest.raises(ReverieError, match="there is no picture to show"):
        evaluate_run(folder, 1, tmp_path / "film.gif")


def plan(env="Pendulum-v1", run=None, **overrides):
    config = presets.resolve("dreamer_v1", ("debug",), {"pixels": False, "action_repeat": 1, **overrides})
    return Plan("dreamer_v1", env, ("debug",), config, run or RunConfig(threads=1))


def test_what_can_not_be_carried_out_is_one_sentence_and_leaves_no_folder(tmp_path):
    cases = [
        (plan("Pendulm-v1"), "did you mean Pendulum-v1"),
        (plan(steps=0), "--steps must be at least 1"),
        (plan(train_every=0), "--train-every must be at least 1"),
        (plan(prefill=5), "--prefill 5 makes about 5 rows"),
        (plan(run=RunConfig(device="toaster")), "no device called 'toaster'"),
        (plan(run=RunConfig(replay_size="300B")), "--replay-size 300B is too small"),
        (plan(run=RunConfig(replay_size="big")), "'big' is not a size"),
        (plan(run=RunConfig(renderer="oil")), "renderer"),
    ]
    for asked, sentence in cases:
        with pytest.raises(ReverieError, match=sentence) as error:
            carry_out(asked, tmp_path / "run")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ReverieError, match="no setting of dreamer_v1 called 'horizn'; did you mean horizon"):
        reverie.train("dreamer_v1", "Pendulum-v1", "debug", tmp_path / "run", horizn=3)
    with pytest.raises(ReverieError, match="no agent called 'dreamer'"):
        reverie.train("dreamer", "Pendulum-v1", run=tmp_path / "run")
    with pytest.raises(ReverieError, match="no CUDA device"):
        device("cuda:99") if not __import__("torch").cuda.is_available() else device("cuda:x")


def test_a_replay_holds_the_whole_run_or_what_fits(tmp_path):
    envs = SerialEnvs(lambda: make_env("Pendulum-v1"), 2, 0)
    sized = lambda **options: replay_size(plan(**options), envs, *rows_needed(plan(**options), 2))
    most, slack = sized(steps=1_000, run=RunConfig(envs=2))
    assert most >= 2 * 1_000 and slack > 0
    row = 12 + 4 + 4 + 4 + 4 + 4  # three floats; action, reward, env_steps, checksum, flags
    small = sized(steps=1_000_000, run=RunConfig(envs=2, replay_size=f"{row * 10_000}B"))
    assert small == (2 * (5_000 - 2 - 999), 999)
    envs.close()


def test_a_replay_keeps_its_size_and_grows_with_the_run(tmp_path):
    envs = SerialEnvs(lambda: make_env("Pendulum-v1"), 1, 0)
    sizes = []
    for steps in (500, 100, 2_000):
        replay = make_replay(plan(steps=steps), envs, tmp_path, *rows_needed(plan(steps=steps), 1))
        if not sizes:
            step = envs.step(np.zeros((1, 1)))
            from reverie.run.driver import row_of

            replay.add(row_of(step, 0), np.zeros(1, np.float32))
        sizes.append(replay.capacity)
        assert replay.counts == [1]
        replay.close()
    assert sizes[0] == sizes[1] == 1_002 and sizes[2] == 4_002
    envs.close()


def test_the_folder_of_a_run_that_names_none():
    asked = plan("dmc/cartpole_swingup", run=RunConfig(seed=7))
    assert str(default_folder(asked)) == "runs/dreamer_v1-dmc_cartpole_swingup-7"
    assert default_folder(dataclasses.replace(asked, env="a:B-v0")).name == "dreamer_v1-a_B-v0-7"


def test_a_folder_in_use_is_refused(tmp_path):
    pytest.importorskip("fcntl")
    from reverie.logger import Logger

    logger = Logger(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").rename(tmp_path / "run" / "x")
    (tmp_path / "run" / "x").rename(tmp_path / "run" / "metrics.jsonl")
    from reverie.run.folder import write_plan

    write_plan(tmp_path / "run", plan())
    with pytest.raises(ReverieError, match="another process is training"):
        carry_out(plan(), tmp_path / "run")
    logger.close()


def test_a_run_without_a_checkpoint_can_not_be_loaded(tmp_path):
    from reverie.run.folder import write_plan

    write_plan(tmp_path, plan())
    with pytest.raises(ReverieError, match="there is no checkpoint"):
        load(tmp_path)
    assert checkpoint.paths(tmp_path / "checkpoints") == []
