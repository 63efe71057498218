"""A person's game: keys become actions, and the screen says how it stands."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import reverie.envs  # noqa: F401  (registers the worlds)
from reverie import cli
from reverie.envs.sokoban_levels import parse
from reverie.play import ACTIONS, ESCAPES, KEYS, LOOKS, keys_of_lines, paint, play
from reverie.types import ReverieError

LEVEL = parse(["######", "#@$. #", "######"])


def screens(
    letters: str, world: str = "sokoban", colour: bool = False, **options
) -> tuple[list[str], list[float]]:
    name = "reverie/Sokoban-v0" if world == "sokoban" else "reverie/MiniPacman-v0"
    seen: list[str] = []
    env = gymnasium.make(name, **options)
    returns = play(env, world, 0, keys_of_lines(iter([letters])), seen.append, colour)
    return seen, returns


def test_a_game_of_sokoban() -> None:
    seen, returns = screens(" hlxnjq l", levels=LEVEL[None])
    assert seen == [
        "######\n#@$. #\n######\n0.0 after 0 steps",
        "######\n#@$. #\n######\n-0.1 after 1 step",
        "######\n#@$. #\n######\n-0.2 after 2 steps",
        "######\n# @* #\n######\n10.7 after 3 steps: solved; any key for the next",
        "######\n#@$. #\n######\n0.0 after 0 steps",
        "######\n#@$. #\n######\n-0.1 after 1 step",
    ]
    assert returns == pytest.approx([10.7, -0.1])


def test_the_time_may_be_up() -> None:
    seen, returns = screens(" " * 125, levels=LEVEL[None])
    assert seen[120].endswith("-12.0 after 120 steps: the time is up; any key for the next")
    assert seen[121].endswith("0.0 after 0 steps") and len(returns) == 2


@pytest.mark.parametrize("world", ACTIONS)
def test_keys_move_as_they_say(world: str) -> None:
    """Each key moves the player one row or column its way, or not at all."""
    ways = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1), "wait": (0, 0)}
    options = {"levels": parse(["#######", "#     #", "#     #", "# @ $.#", "#     #", "#######"])[None]}
    options = options if world == "sokoban" else {"task": "regular"}
    hero = "@" if world == "sokoban" else "C"
    where = lambda screen: np.array(divmod(screen.index(hero), screen.index("\n") + 1))
    moved = 0
    for key, letter in zip(KEYS.values(), KEYS, strict=True):
        if key in ways:
            seen, _ = screens(letter, world, **options)
            step = where(seen[1]) - where(seen[0])
            assert tuple(step) in (ways[key], (0, 0))
            moved += step.any()
    assert moved >= 2


def test_arrows() -> None:
    assert {code[-1]: way for code, way in ESCAPES.items()} == {
        "A": "up",
        "B": "down",
        "C": "right",
        "D": "left",
    }


@pytest.mark.parametrize("world", ACTIONS)
def test_colours_know_every_symbol(world: str) -> None:
    text = "# .*$@+" if world == "sokoban" else "# .oCMm="
    assert set(text) == set(LOOKS[world]) and paint(text, world).endswith("\x1b[0m")
    seen, _ = screens("hjkl", world, colour=True, **({"levels": LEVEL[None]} if world == "sokoban" else {}))
    assert all(screen.startswith("\x1b[H\x1b[J") for screen in seen)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "one.txt"
    file.write_text("; 0\n######\n#@$. #\n######\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("l\n"))
    assert cli.main(["play", "--levels", str(file)]) == 0
    assert "10.9 after 1 step: solved" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("lll\n"))
    assert cli.main(["play", "mini_pacman", "--task", "hunt", "--seed", "3"]) == 0
    assert capsys.readouterr().out.count("after") == 4
    assert cli.main(["play", "chess"]) == 2
    assert "sokoban or mini_pacman, got 'chess'" in capsys.readouterr().err
    with pytest.raises(ReverieError, match="no solvable level"):
        cli.command(["play", "--size", "3"])


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of Unix")
def test_in_a_terminal_single_keys_are_read(tmp_path: Path) -> None:
    import pty

    file = tmp_path / "one.txt"
    file.write_text("; 0\n#######\n#@ $. #\n#######\n")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "reverie", "play", "--levels", str(file)]
    root = str(Path(cli.__file__).resolve().parents[1])
    game = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "PYTHONPATH": root}
    )
    os.close(theirs)
    heard = bytearray()

    def listen() -> None:
        waiting = [(b"after 0 steps", b"\x1b[C\x1bOC"), (b"solved", b"q")]  # two arrows, no line's end
        try:
            while part := os.read(ours, 4096):
                heard.extend(part)
                while waiting and waiting[0][0] in heard:
                    os.write(ours, waiting.pop(0)[1])
        except OSError:  # the other side is closed
            pass

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        assert game.wait(240) == 0
    finally:
        game.kill()
        listener.join(10)
        os.close(ours)
    assert b"10.8 after 2 steps: solved" in heard and b"\x1b[H\x1b[J" in heard
