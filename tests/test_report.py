"""The page stands alone, tells what the run's files tell, and does not break on missing or malicious ones."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from reverie import media, presets, report
from reverie.run.folder import Plan
from reverie.run.loop import RunConfig

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Text, images and whether all tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.images, self.words, self.tags = [], [], "", set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words += data


@pytest.fixture
def run(tmp_path):
    config = presets.resolve("dreamer_v1", ["laptop"], {"horizon": 10})
    plan = Plan("dreamer_v1", "dmc/cup_catch", ("laptop",), config, RunConfig(seed=3))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plan.as_dict(), sort_keys=False))
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for i in range(1, 31):
            row = {"env_steps": 100 * i, "updates": 10 * i, "seconds": 150.0 * i, "loss/image": 1 / i}
            row |= {"eval/return": 2.0 * i, "eval/std": 1.0, "eval/length": 50.0} if i % 2 == 0 else {}
            file.write(json.dumps({**row, "episode/return": 1.0 * i}) + "\n")
        file.write('{"env_steps"')
    found = {"env_steps": 3000, "mean": 60.0, "std": 1.5, "returns": [59, 61], "random": {"mean": 20.5}}
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    video = np.zeros((4, 8, 8, 3), np.uint8)
    media.save_gif(tmp_path / "videos" / "image.gif", media.open_loop(video, video, 2))
    media.save_gif(tmp_path / "videos" / "episode.gif", video)
    return tmp_path


def test_a_whole_run_is_told(run):
    path = report.write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text())
    assert "dreamer_v1 on dmc/cup_catch" in page.words
    assert (
        "After 3,000 env steps the agent earns 60.0 ± 1.50 an episode over 2 episodes, 39.5 more than the "
        "random policy, which earns 20.5."
    ) in page.words
    assert "preset laptop · seed 3" in page.words
    assert "1 h 15 min" in page.words and "The last 12 of 15." in page.words
    steps = presets.resolve("dreamer_v1", ["laptop"]).steps
    assert f"{3000 / steps:.0%} of its {steps:,} env steps" in page.words
    assert "not made yet" not in page.words
    assert [image["alt"] for image in page.images] == [
        "learning curve",
        "image",
        "episode",
        "losses over env steps",
    ]


@pytest.mark.filterwarnings("error")
def test_a_run_of_one_evaluation_far_from_chance_is_drawn_without_a_warning(tmp_path):
    row = {"env_steps": 100, "eval/return": -1200.0, "loss/image": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "evaluation.json").write_text('{"mean": -1200, "random": {"mean": -3}}')
    page = Page(report.write_report(tmp_path).read_text())
    assert "learning curve" in [image["alt"] for image in page.images]


def test_the_page_needs_no_network_and_no_script(run):
    text = report.write_report(run).read_text()
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object"}
    for image in page.images:
        (data,) = re.fullmatch(r"data:image/(?:gif|svg\+xml);base64,(\S+)", image["src"]).groups()
        assert base64.b64decode(data)[:6] in (b"GIF89a", b"<?xml ")
    assert not re.search(r"url\(|@import|https?://", text)


def test_an_empty_folder_makes_a_page_that_says_so(tmp_path):
    page = Page(report.write_report(tmp_path).read_text())
    assert page.words.count("is not made yet") == 8 and page.images == []
    assert "No evaluation yet" in page.words


def test_each_piece_may_be_missing_or_broken(run):
    for name, text in (
        ("config.yaml", "a: [b"),
        ("config.yaml", "- 1\n- 2"),
        ("config.yaml", "agent: [1]\nenv: {a: 1}\nrun: 3\nconfig: no\npresets: 5"),
        ("evaluation.json", "[]"),
        ("evaluation.json", '{"mean": "x", "random": null, "returns": 3, "std": {}}'),
        ("metrics.jsonl", '{"env_steps": 1, "eval/return": null, "loss/x": "y", "seconds": 0}'),
    ):
        (run / name).write_text(text)
        Page(report.write_report(run).read_text())
    for path in [*run.glob("*.*"), *run.glob("videos/*")]:
        path.unlink()
        Page(report.write_report(run).read_text())


def test_what_stands_in_files_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    config = {"agent": evil, "env": evil, "presets": [evil], "run": {"seed": evil}, "config": {evil: evil}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    row = {"env_steps": 1, "seconds": 2, "updates": evil, "eval/return": 3, f"loss/{evil}": 1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    media.save_gif(tmp_path / "videos" / '"><b onload=x>.gif', np.zeros((2, 8, 8, 3), np.uint8))
    text = report.write_report(tmp_path).read_text()
    assert "script" not in Page(text).tags and evil not in text and "<b onload" not in text


def test_the_command_says_what_differs_from_the_preset(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["run"]["replay_on_disk"] = False
    words = report.command(run, config).split()
    start = "reverie train dreamer_v1 --env dmc/cup_catch --preset laptop"
    assert words == [*f"{start} --horizon 10 --seed 3 --no-replay-on-disk --run".split(), str(run)]


def test_a_run_that_lost_ground_says_less(run):
    (run / "evaluation.json").write_text(json.dumps({"mean": -3.0, "random": {"mean": -1.0}}))
    words = Page(report.write_report(run).read_text()).words
    assert "the agent earns −3.00 an episode, 2.00 less than the random policy" in words


def test_a_huge_video_stays_outside(run, monkeypatch):
    monkeypatch.setattr(report, "LARGEST", 10)
    page = Page(report.write_report(run).read_text())
    assert page.words.count("too large for a page") == 2
