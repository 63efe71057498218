"""The examples are short, and work."""

from pathlib import Path

import numpy as np
import pytest

from reverie.cli import main
from reverie.data.replay import Replay
from reverie.reproduce.runs import read_metrics

TOY = Path(__file__).parents[1] / "examples" / "toy_robot.py"


def test_a_toy_robot_is_short_and_learns_with_one_command(tmp_path, capsys) -> None:
    assert len(TOY.read_text().splitlines()) < 60
    run = tmp_path / "cart"
    settings = ["--steps", "300", "--prefill", "60", "--batch-length", "6", "--log-every", "100"]
    command = [
        "robot",
        "dreamer_v1",
        "--robot",
        f"{TOY}:Cart",
        "--preset",
        "debug",
        "--virtual-update",
        "500",
    ]
    assert main([*command, *settings, "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert "300 decisions" in said and "0 missed deadlines" in said
    replay = Replay.open(run / "replay")
    rows = replay.read(0, 0, replay.counts[0])
    assert int((~rows["is_last"]).sum()) == 300 and np.isfinite(rows["reward"]).all()
    assert main([*command, *settings, "--run", str(run), "--steps", "400"]) == 0  # the same command goes on
    assert Replay.open(run / "replay").counts[0] > replay.counts[0]


def test_other_agents_learn_on_it_too(tmp_path) -> None:
    settings = ["--steps", "150", "--prefill", "40", "--virtual-update", "200", "--no-video"]
    command = ["robot", "sac", "--robot", f"{TOY}:Cart", "--preset", "debug"]
    assert main([*command, *settings, "--run", str(tmp_path / "cart")]) == 0


def test_agents_with_a_loop_of_their_own_are_refused(tmp_path, capsys) -> None:
    command = [
        "robot",
        "world_models",
        "--robot",
        f"{TOY}:Cart",
        "--preset",
        "debug",
        "--run",
        str(tmp_path / "x"),
    ]
    assert main(command) == 2
    assert "beside a robot" in capsys.readouterr().err


@pytest.mark.slow
def test_the_toy_robot_is_brought_to_the_middle(tmp_path) -> None:
    settings = ["--steps", "4000", "--prefill", "400", "--sync-every", "5", "--log-every", "400"]
    command = ["robot", "sac", "--robot", f"{TOY}:Cart", "--preset", "laptop", "--virtual-update", "50"]
    assert main([*command, *settings, "--run", str(tmp_path / "cart")]) == 0
    lines = read_metrics(tmp_path / "cart" / "robot")
    assert lines[-1]["episode/return"] > 80  # of 100; 38 at random
