"""Curves are read whatever a killed run left; figures say who is who, and the same data draw the same."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from reverie import plot
from reverie.reproduce.runs import read_metrics, series
from reverie.types import ReverieError


def run(folder, returns, agent="dreamer_v1", env="dmc/cup_catch", random=None):
    folder.mkdir(parents=True)
    rows = [{"env_steps": 100 * (i + 1), "eval/return": r} for i, r in enumerate(returns)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(f"agent: {agent}\nenv: {env}\n")
    if random is not None:
        (folder / "evaluation.json").write_text(json.dumps({"random": {"mean": random}}))
    return folder


def test_a_torn_last_line_is_left_out(tmp_path):
    folder = run(tmp_path / "a", [1, 2])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"env_steps": 300, "eval/ret')
    (curve,) = plot.curves([folder])
    assert curve.env_steps.tolist() == [100, 200] and curve.value.tolist() == [1, 2]
    assert plot.curves([tmp_path / "nothing"]) == []


def test_a_run_that_went_back_is_told_once():
    rows = [{"env_steps": s, "x": v} for s, v in ((1, 10), (2, 20), (3, 30), (2, 21), (4, 41))]
    x, y = series(rows, "x")
    assert x.tolist() == [1, 2, 4] and y.tolist() == [10, 21, 41]


def test_what_is_no_number_is_left_out():
    rows = [
        {"env_steps": 1, "x": float("nan")},
        {"env_steps": 2, "x": "3"},
        {"x": 4},
        {"env_steps": 5, "x": True},
    ]
    assert len(series([*rows, {"env_steps": 6, "x": 7}], "x")[0]) == 1


def test_lines_that_are_no_objects_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'[1]\n\n\xff\xfe\n{"env_steps": 1}\n"x"\n')
    assert read_metrics(tmp_path) == [{"env_steps": 1}]


def test_average_stays_where_all_seeds_have_been():
    long = plot.Curve(np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0]))
    short = plot.Curve(np.array([5.0, 15.0]), np.array([15.0, 25.0]))
    x, middle, low, high = plot.average([long, short])
    assert x.tolist() == [5, 10, 15] and middle.tolist() == [10, 15, 20]
    assert low.tolist() == [5, 10, 15] and high.tolist() == [15, 20, 25]


def test_average_of_runs_that_never_met_is_a_point():
    a = plot.Curve(np.array([0.0, 1.0]), np.array([0.0, 2.0]))
    b = plot.Curve(np.array([5.0, 6.0]), np.array([4.0, 6.0]))
    x, middle, *_ = plot.average([a, b])
    assert set(x) == {5.0} and set(middle) == {3.0}


def test_plot_names_every_arm_and_line(tmp_path):
    runs = {
        "ours": [run(tmp_path / f"a{i}", [0, i, 2 * i]) for i in range(3)],
        "<theirs>": [run(tmp_path / "b", [1])],
    }
    published = [plot.Line(5, "them, 5 (Table 1)")]
    svg, png = plot.plot(runs, tmp_path / "figure", random=-1, published=published, title="task & co")
    text = svg.read_text()
    for word in (
        "ours",
        "&lt;theirs&gt;",
        "random policy",
        "them, 5 (Table 1)",
        "task &amp; co",
        "env steps",
    ):
        assert word in text
    assert png.read_bytes()[:4] == b"\x89PNG"


def test_the_same_runs_give_the_same_bytes(tmp_path):
    runs = {"a": [run(tmp_path / f"{i}", [i, i + 1]) for i in range(2)]}
    first = [p.read_bytes() for p in plot.plot(runs, tmp_path / "one")]
    assert first == [p.read_bytes() for p in plot.plot(runs, tmp_path / "two")]


def test_plot_runs_makes_seeds_of_the_same_agent_and_task(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(plot, "plot", lambda runs, path, **k: seen.update(runs=runs, **k))
    a = [run(tmp_path / f"a{i}", [i], random=10.0 * i) for i in range(2)]
    b = run(tmp_path / "b", [1], agent="planet", random=5)
    plot.plot_runs([*a, b], tmp_path / "x.svg")
    assert seen["runs"] == {"dreamer_v1": a, "planet": [b]}
    assert seen["random"] == 5.0 and seen["title"] == "dmc/cup_catch"
    plot.plot_runs([*a, run(tmp_path / "c", [1], env="Pendulum-v1")], tmp_path / "x.png")
    assert (
        set(seen["runs"]) == {"dreamer_v1 dmc/cup_catch", "dreamer_v1 Pendulum-v1"} and seen["random"] is None
    )


def test_plot_runs_writes_one_file(tmp_path):
    out = plot.plot_runs([run(tmp_path / "a", [1, 2])], tmp_path / "out" / "x.png")
    assert [p.name for p in out.parent.iterdir()] == ["x.png"]


def test_nothing_to_draw_is_said_in_a_sentence(tmp_path):
    with pytest.raises(ReverieError, match="eval/foo"):
        plot.plot({"a": [run(tmp_path / "a", [1])]}, tmp_path / "x", key="eval/foo")
    with pytest.raises(ReverieError, match=r"\.png or an \.svg"):
        plot.plot_runs([tmp_path / "a"], tmp_path / "x.pdf")


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.3)), min_size=1, max_size=8))
def test_labels_never_overlap_and_do_not_drift(things):
    places, sizes = sorted(p for p, _ in things), [s for _, s in things]
    moved = plot.apart(places, sizes)
    for (a, size_a), (b, size_b) in pairwise(zip(moved, sizes, strict=True)):
        assert b - a >= (size_a + size_b) / 2 - 1e-9
    assert np.mean(moved) == pytest.approx(np.mean(places))


def test_labels_with_room_stay_where_they_are():
    assert plot.apart([0.1, 0.5, 0.9], [0.1, 0.1, 0.1]) == pytest.approx([0.1, 0.5, 0.9])
    assert plot.apart([0.5, 0.5], [0.2, 0.2]) == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize("random", [-1.0, 1200.0])
def test_a_label_stands_beside_its_line_wherever_that_is(random):
    axes = Figure().add_subplot()
    plot.draw(axes, {"ours": [plot.Curve(np.array([100.0]), np.array([-1200.0]))]}, random=random)
    low, high = axes.get_ylim()
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    expected = {"ours": (-1200 - low) / (high - low), "random policy": (random - low) / (high - low)}
    assert heights == pytest.approx(expected) and all(0 < height < 1 for height in heights.values())


def test_steps_are_said_short():
    assert [plot.steps(v) for v in (0, 500, 2500, 1e6)] == ["0", "500", "2.5k", "1M"]


def test_the_style_ends_with_its_block():
    import matplotlib

    before = matplotlib.rcParams["axes.spines.top"]
    with plot.style():
        plot.draw(Figure().add_subplot(), {})
    assert matplotlib.rcParams["axes.spines.top"] == before
