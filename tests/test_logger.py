"""Lines of metrics are whole, said once, and the same in TensorBoard; progress is readable in both places."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from reverie.logger import Logger, Progress, duration, plural
from reverie.types import NotFinite, ReverieError


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder, name):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(name)]


def test_a_line_averages_what_was_added_since_the_last(tmp_path):
    logger = Logger(tmp_path)
    for value in (1.0, torch.tensor(2.0), 6):
        logger.add({"loss/reward": value})
    logger.write(10, updates=3)
    logger.add({"loss/reward": 5})
    logger.write(20, updates=4)
    logger.close()
    assert lines(tmp_path) == [
        {"env_steps": 10, "updates": 3, "loss/reward": 3.0},
        {"env_steps": 20, "updates": 4, "loss/reward": 5.0},
    ]
    assert scalars(tmp_path, "loss/reward") == [(10, 3.0), (20, 5.0)]


def test_going_back_takes_lines_back_and_says_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_000.0)  # both sittings may begin in one moment
    logger = Logger(tmp_path)
    logger.add({"a": 1})
    logger.write(1)
    logger.add({"a": 2})
    state = json.loads(json.dumps(logger.state_dict()))
    logger.write(2)
    logger.add({"a": 9})
    logger.write(3)
    logger.close()

    again = Logger(tmp_path)
    again.load_state_dict(state)
    again.add({"a": 4})
    again.write(2)
    again.close()
    assert lines(tmp_path) == [{"env_steps": 1, "a": 1.0}, {"env_steps": 2, "a": 3.0}]
    assert scalars(tmp_path, "a") == [(1, 1.0), (2, 3.0)]
    assert len([*tmp_path.glob("events.*")]) == 2
    once_more = Logger(tmp_path)
    once_more.begin()
    once_more.close()
    assert lines(tmp_path) == []


def test_what_is_not_a_number_is_named_before_it_is_written(tmp_path):
    logger = Logger(tmp_path)
    logger.add({"loss/good": 1.0, "loss/bad": torch.tensor(float("inf"))})
    with pytest.raises(NotFinite, match="loss/bad"):
        logger.write(1)
    assert lines(tmp_path) == []
    logger.close()


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    logger = Logger(tmp_path)
    with pytest.raises(ReverieError, match="another process is training"):
        Logger(tmp_path)
    logger.close()
    Logger(tmp_path).close()


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReverieError, match="can not be written"):
        Logger(tmp_path / "file" / "run")


def test_half_a_line_is_none(tmp_path, monkeypatch):
    logger = Logger(tmp_path)
    logger.write(1)
    whole = (tmp_path / "metrics.jsonl").read_bytes()

    class Full:
        def write(self, text):
            return real.write(text[: len(text) // 2])

        def fileno(self):
            return real.fileno()

    real, logger.file = logger.file, Full()
    with pytest.raises(ReverieError, match="No space left"):
        logger.write(2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    real.close()


def test_wandb_is_asked_for_by_the_name_of_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ReverieError, match=r"pip install 'reverie\[wandb\]'"):
        Logger(tmp_path, wandb=True)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_redraws_one_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    out = Terminal()
    progress = Progress(100, out=out)
    progress.every = 0
    progress(0, 0)
    progress(50, 5, score=-3.25, left=75)
    progress.say("a line that stays")
    progress(60, 6, left=30)
    progress.clear()
    text = out.getvalue()
    assert text.count("\n") == 1
    assert "\r\x1b[2Ka line that stays\n" in text
    assert text.endswith("\r\x1b[2K")
    drawn = [part for part in text.replace("\n", "\r").split("\r") if "env steps" in part]
    assert len(drawn) == 3
    assert all(len(part.removeprefix("\x1b[2K")) <= 59 for part in drawn)


def test_progress_in_a_pipe_is_a_line_now_and_then():
    out = io.StringIO()
    progress = Progress(100, every=1_000, out=out)
    for step in range(50):
        progress(step, 0)
    progress.now(50, 0, "evaluating")
    assert out.getvalue() == ""
    progress.every = 0
    progress(50, 5, score=2, left=3725)
    assert out.getvalue().endswith("return 2.0\n") and "ETA 1h 02m" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_the_line():
    progress = Progress(2_000, out=io.StringIO())
    progress.start = (500, 10)
    assert progress.line(50, 1_000, 35, score=-12.34, left=100) == (
        "━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌  50%  ETA 1m 40s  1,000/2,000 env steps (10/s)  35 updates (0.5/s)  return -12.3"
    )
    assert "ETA –" in progress.line(0, 500, 10) and progress.line(0, 500, 10).endswith("return –")


def test_in_a_narrow_terminal_the_bar_goes_first(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    progress, lines = Progress(20_000, out=Terminal()), {}
    for columns in (80, 100, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines[columns] = progress.line(50, 10_000, 350, score=-12.34, left=100)
        assert len(lines[columns]) < max(columns, 85)  # what is over is cut off, the return at last
    assert lines[80].startswith("50%  ETA 1m 40s") and lines[200].startswith("━" * 10 + "╌" * 10)
    assert 5 <= lines[100].count("━") + lines[100].count("╌") < 20


def test_words():
    assert [duration(s) for s in (0, 59.9, 60, 3725)] == ["0s", "59s", "1m 00s", "1h 02m"]
    assert [plural(n, "row") for n in (0, 1, 2_000)] == ["0 rows", "1 row", "2,000 rows"]


def test_wandb_gets_every_line_and_one_name_a_folder(tmp_path, monkeypatch):
    asked, logged = [], []

    class Run:
        def log(self, line, step):
            logged.append((step, line))

        def finish(self):
            logged.append("finished")

    def init(**settings):
        asked.append(settings)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for _ in range(2):  # a run that goes on is the same run there
        logger = Logger(tmp_path, wandb=True, config={"seed": 3})
        logger.add({"loss/reward": 2.0})
        logger.write(10, 4, updates=1)
        logger.close()
    line = {"env_steps": 10, "updates": 1, "loss/reward": 2.0}
    assert logged == [(4, line), "finished"] * 2
    assert asked[0] == asked[1] and asked[0]["resume"] == "allow" and asked[0]["config"] == {"seed": 3}
