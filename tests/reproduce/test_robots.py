"""DayDreamer's claims: a tiny run is carried out on a twin's clock, and measured from its own lines."""

import json

import pytest

from reverie import presets
from reverie.reproduce import get_claim, robots
from reverie.reproduce.runs import Run


@pytest.mark.parametrize("name", ["daydreamer-walk", "daydreamer-pick-place"])
def test_every_arm_has_a_robot_and_settings(name: str) -> None:
    for budget in get_claim(name).budgets.values():
        for arm in budget.arms:
            presets.resolve(arm.agent, (budget.preset,), arm.overrides)
            assert all(env in robots.ROBOTS for env in arm.envs)


def test_measures_are_of_the_runs_last_tenth_and_best_line(tmp_path) -> None:
    lines = [{"env_steps": 100 * i, "reward/mean": float(i), "episode/return": 2.0 * i} for i in range(1, 21)]
    lines.append({"env_steps": 2_100, "reward/mean": 3.0, "episode/return": 4.0})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = Run("DayDreamer", robots.WALK, 0, tmp_path)
    assert robots.STANDING.of(run) == {robots.WALK: [(19 + 20 + 3) / 3]}
    assert robots.AT_BEST.of(run) == {robots.WALK: [20.0]}
    assert robots.RETURN.of(run) == {robots.WALK: [(38.0 + 40.0 + 4.0) / 3]}


def test_a_run_on_the_twins_clock(tmp_path) -> None:
    pytest.importorskip("pybullet_data")
    overrides = {"steps": 60, "eval_every": 20, "prefill": 30, "batch_length": 6}
    robots.lived("daydreamer", robots.WALK, "debug", tmp_path / "run", 0, overrides)
    rows = Run("DayDreamer", robots.WALK, 0, tmp_path / "run").rows
    assert (
        rows[-1]["env_steps"] == 60 and rows[-1]["updates"] == 15
    )  # one for two decisions, from the 30th on
