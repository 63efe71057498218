"""DayDreamer's claims: a tiny run is carried out on a twin's clock, and measured from its own lines."""

import json

import numpy as np
import pytest

from reverie import presets
from reverie.reproduce import get_claim, robots
from reverie.reproduce.runs import Run
from reverie.robots import a1
from reverie.run import asynchronous


@pytest.mark.parametrize("name", ["daydreamer-walk", "daydreamer-pick-place"])
def test_every_arm_has_a_robot_and_settings(name: str) -> None:
    for budget in get_claim(name).budgets.values():
        for arm in budget.arms:
            own = {key: value for key, value in arm.overrides.items() if key not in robots.OFTEN}
            presets.resolve(arm.agent, (budget.preset,), own)
            assert all(env in robots.ROBOTS for env in arm.envs)


def test_measures_are_of_the_parts_they_name(tmp_path) -> None:
    """84 lines: 72 of the hour, then 12 of pushes."""
    lines = [{"env_steps": 10 * i, "reward/mean": float(i), "episode/return": 2.0 * i} for i in range(1, 85)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = Run("DayDreamer", robots.WALK, 0, tmp_path)
    assert robots.STANDING.of(run) == {robots.WALK: [pytest.approx(np.mean(range(65, 73)))]}
    assert robots.AT_BEST.of(run) == {robots.WALK: [72.0]}
    assert robots.STEADY.of(run) == {robots.WALK: [pytest.approx(np.mean(range(81, 85)))]}
    assert robots.RETURN.of(run) == {robots.WALK: [pytest.approx(2 * np.mean(range(76, 85)))]}


def test_a_run_on_the_twins_clock(tmp_path, monkeypatch) -> None:
    """An hour, then pushes; asked for more, it goes on with pushes alone."""
    pytest.importorskip("pybullet_data")
    sent: list[str] = []
    filmed: list[str] = []
    send = a1.A1.send
    monkeypatch.setattr(
        a1.A1, "send", lambda self, action: (sent.append(type(self).__name__), send(self, action))
    )
    monkeypatch.setattr(asynchronous, "film", lambda *given: filmed.append(given[-1]))
    overrides = {"eval_every": 10, "prefill": 30, "batch_length": 6}
    for steps, pushed in ((70, 10), (80, 20)):
        robots.lived("daydreamer", robots.WALK, "debug", tmp_path / "run", 0, {"steps": steps, **overrides})
        rows = Run("DayDreamer", robots.WALK, 0, tmp_path / "run").rows
        assert rows[-1]["env_steps"] == steps
        assert (sent.count("A1"), sent.count("PushedA1")) == (60, pushed)
    assert rows[-1]["updates"] == 12  # one for four decisions, from the 30th on
    assert filmed[:2] == ["a1", "a1_pushed"]


def test_with_a_gpu_there_is_an_update_for_every_two_decisions(tmp_path) -> None:
    pytest.importorskip("pybullet_data")
    overrides = {"steps": 70, "eval_every": 10, "prefill": 30, "batch_length": 6, **robots.OFTEN}
    robots.lived("daydreamer", robots.WALK, "debug", tmp_path / "run", 0, overrides)
    rows = Run("DayDreamer", robots.WALK, 0, tmp_path / "run").rows
    assert rows[-1]["updates"] == 15 + 4  # from the 30th on; the pushes begin with no time left over
    about = (tmp_path / "run" / "config.yaml").read_text()
    assert "virtual_update: 100.0" in about and "max_ratio: 0.5" in about
