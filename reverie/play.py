"""Sokoban and MiniPacman for a person, in the terminal: ``reverie play``.

Arrow keys or h j k l move, space waits, n begins anew, q leaves. Where there is no terminal to read single keys
from, lines of such letters are read instead.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from reverie.types import ReverieError

KEYS = {"k": "up", "j": "down", "h": "left", "l": "right", " ": "wait", "n": "new", "q": "leave"}
ESCAPES = {f"\x1b{kind}{end}": way for kind in "[O" for end, way in zip("ABDC", KEYS.values(), strict=False)}
WINDOWS = {"H": "up", "P": "down", "K": "left", "M": "right"}
ACTIONS = {
    "sokoban": {"wait": 0, "up": 1, "down": 2, "left": 3, "right": 4},
    "mini_pacman": {"wait": 0, "right": 1, "up": 2, "left": 3, "down": 4},
}
OVER = {"sokoban": "solved", "mini_pacman": "caught"}

# Two characters for every symbol of a world's text, their colour and the ground's.
GREY, BLACK, WHITE = (92, 92, 110), (20, 20, 26), (250, 250, 250)
FLOOR, RED, BROWN, GREEN, BLUE = (222, 214, 196), (200, 60, 70), (176, 120, 60), (70, 140, 76), (54, 96, 176)
YELLOW, CYAN = (250, 210, 60), (60, 210, 210)
LOOKS = {
    "sokoban": {
        "#": ("  ", GREY, GREY),
        " ": ("  ", FLOOR, FLOOR),
        ".": ("><", RED, FLOOR),
        "$": ("[]", WHITE, BROWN),
        "*": ("[]", WHITE, GREEN),
        "@": ("()", BLUE, FLOOR),
        "+": ("()", BLUE, RED),
    },
    "mini_pacman": {
        "#": ("  ", GREY, GREY),
        " ": ("  ", BLACK, BLACK),
        ".": (" .", WHITE, BLACK),
        "o": ("()", CYAN, BLACK),
        "C": ("C<", BLACK, GREEN),
        "M": ("MM", WHITE, RED),
        "m": ("mm", BLACK, YELLOW),
        "=": ("  ", YELLOW, YELLOW),
    },
}


def paint(text: str, world: str) -> str:
    """A world's text in colours, for a terminal."""

    def cell(symbol: str) -> str:
        shape, ink, ground = LOOKS[world][symbol]
        return "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*ink, *ground) + shape

    return "\n".join("".join(map(cell, line)) + "\x1b[0m" for line in text.splitlines())


def play(
    env: Any,
    world: str,
    seed: int | None,
    keys: Iterator[str],
    write: Callable[[str], Any],
    colour: bool = True,
) -> list[float]:
    """Let ``keys`` play ``env``, one of our worlds, until they end or say leave; the return of every episode.

    ``world`` is what it is: sokoban or mini_pacman. ``write`` is given a screen after every key.
    """
    returns, steps, over, said = [0.0], 0, False, ""
    env.reset(seed=seed)

    def show() -> None:
        text = env.unwrapped.text()
        board = "\x1b[H\x1b[J" + paint(text, world) if colour else text
        write(f"{board}\n{returns[-1]:.1f} after {steps} step{'' if steps == 1 else 's'}{said}")

    show()
    for key in keys:
        if key == "leave":
            break
        if key == "new" or over:
            env.reset()
            returns.append(0.0)
            steps, over, said = 0, False, ""
        else:
            _, reward, terminated, truncated, _ = env.step(ACTIONS[world][key])
            returns[-1] += reward
            steps, over = steps + 1, terminated or truncated
            end = OVER[world] if terminated else "the time is up"
            said = f": {end}; any key for the next" if over else ""
        show()
    return returns


def keys_of_lines(lines: Iterator[str]) -> Iterator[str]:
    """The keys that letters stand for; what stands for none is passed over."""
    for line in lines:
        yield from (KEYS[letter] for letter in line.rstrip("\n") if letter in KEYS)


@contextlib.contextmanager
def single_keys() -> Iterator[None]:
    """While it lasts this terminal hands over every key at once, and does not show it."""
    if sys.platform == "win32":
        yield
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def keys_pressed() -> Iterator[str]:
    """What a person presses, one key at a time; inside ``single_keys``."""
    if sys.platform == "win32":
        import msvcrt

        while True:
            letter = msvcrt.getwch()
            if letter == "\x03":
                raise KeyboardInterrupt
            key = WINDOWS.get(msvcrt.getwch()) if letter in "\x00\xe0" else KEYS.get(letter)
            if key:
                yield key
    while pressed := os.read(sys.stdin.fileno(), 32).decode(errors="ignore"):
        while pressed:
            size = 3 if pressed[:3] in ESCAPES else 1
            key = ESCAPES.get(pressed[:3]) or KEYS.get(pressed[0])
            pressed = pressed[size:]
            if key:
                yield key


def play_world(world: str, seed: int | None = None, **options: Any) -> None:
    """A game of sokoban or mini_pacman with whoever sits at the keyboard; ``options`` are the environment's."""
    import gymnasium

    import reverie.envs  # noqa: F401  (registers them)

    if world not in ACTIONS:
        raise ReverieError(f"a person can play {' or '.join(ACTIONS)}, got {world!r}")
    name = "reverie/Sokoban-v0" if world == "sokoban" else "reverie/MiniPacman-v0"
    env = gymnasium.make(name, **options)
    show = lambda text: print(text, flush=True)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        play(env, world, seed, keys_of_lines(iter(sys.stdin)), show, colour=False)
        return
    with single_keys():  # before the first picture: whoever sees it may press
        print("\x1b[2J", end="")
        play(env, world, seed, keys_pressed(), show)
