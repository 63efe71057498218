"""Starts training again and again and kills it: run by test_faults.py as a process of its own.

Importing torch takes longer than a tiny run. So this process imports everything once, on one thread, and each
attempt is a fork of it that has not drawn or computed anything yet.
"""

import json
import os
import random
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # an optimiser imports it when it is made

import reverie.agents.dreamer_v1
import reverie.report
import reverie.run.train
from reverie import checkpoint
from reverie.cli import main
from reverie.data.replay import Replay
from reverie.run.online import Online

torch.set_num_threads(1)

# Drawing the page takes longer than the run.
reverie.report.write_report = lambda folder: (folder / "report.html").write_text("")

SETTINGS = [
    *("dreamer_v1", "--env", "Pendulum-v1", "--preset", "debug", "--no-pixels", "--time-limit", "20"),
    *(
        "--action-repeat",
        "1",
        "--steps",
        "240",
        "--prefill",
        "60",
        "--train-every",
        "40",
        "--log-every",
        "50",
    ),
    *(
        "--eval-every",
        "100",
        "--eval-episodes",
        "2",
        "--checkpoint-every",
        "0.1",
        "--threads",
        "1",
        "--seed",
        "3",
    ),
]


def start(folder: Path, *more: str, wait_for_loop: bool = False) -> int:
    """The same command in a forked child; its process id, at once or when its loop begins."""
    begins, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        if wait_for_loop:
            os.read(begins, 1)  # returns at the latest when the child is gone
        os.close(begins)
        return pid
    loop, code = Online.loop, 70

    def telling(online):
        os.write(tell, b"!")
        return loop(online)

    Online.loop = telling
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.set_inheritable(tell, False)
    try:
        with open(folder.with_suffix(".log"), "a") as log, redirect_stdout(log), redirect_stderr(log):
            code = main(["train", *SETTINGS, "--run", str(folder), *more])
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finished_episodes(folder: Path) -> list[bytes]:
    """Each finished episode of a replay as bytes, in order."""
    if not (folder / "replay" / "replay.json").exists():
        return []
    replay = Replay.open(folder / "replay")
    rows = [replay.read(s, a, b) for s in range(replay.streams) for a, b in replay.episodes_of(s)]
    return [b"".join(np.ascontiguousarray(row[key]).tobytes() for key in sorted(row)) for row in rows]


def check_checkpoints(folder: Path) -> int:
    """How many there are; each must be whole."""
    found = checkpoint.paths(folder / "checkpoints")
    for path in found:
        checkpoint.load_path(path)
    return len(found)


def plain(value):
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in ("seconds", "clock", "bytes")}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    return value.tobytes() if isinstance(value, np.ndarray) else value


def everything(folder: Path):
    """Final state, all finished episodes and all metrics of a run, clocks left out."""
    _, state = checkpoint.load(folder / "checkpoints")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return plain(state), finished_episodes(folder), [plain(line) for line in lines]


def check_equal(folder: Path, peace: Path) -> None:
    """The run is, but for its clocks, the one left in peace; else say where it first differs."""
    kinds = ("state", "finished episodes", "metrics")
    for kind, ours, theirs in zip(kinds, everything(folder), everything(peace), strict=True):
        where = first_difference(ours, theirs)
        assert where is None, f"{folder.name}: {kind}{where}"


def first_difference(a, b) -> str | None:
    """Where two nested values part, and what is there; None if they do not."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        parts = [(f".{key}", a[key], b[key]) for key in a]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        parts = [(f"[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else f": {a!r:.300} and {b!r:.300}"
    inside = ((key, first_difference(x, y)) for key, x, y in parts)
    return next((f"{key}{found}" for key, found in inside if found is not None), None)


def kill_at_random(root: Path, times: int, *more: str) -> dict:
    """Kill the run ``times`` times at random moments, then let it finish; compare with one left in peace."""
    rng = random.Random(0)
    pid = start(root / "peace", *more, wait_for_loop=True)
    begun = time.monotonic()
    assert wait(pid) == 0
    whole = time.monotonic() - begun
    folder, episodes, saved, runs = root / "killed-0", [], 0, 0
    for kill in range(times):
        early = kill % 5 == 0  # while it is still starting
        pid = start(folder, *more, wait_for_loop=not early)
        time.sleep(rng.uniform(0, 0.1 if early else 0.4 * whole))
        os.kill(pid, signal.SIGKILL)
        code, before = wait(pid), episodes
        episodes = finished_episodes(folder)
        assert episodes[: len(before)] == before, f"kill {kill}: a finished episode was lost"
        saved += check_checkpoints(folder)
        if code == 0:  # it was through before it was killed; the next one is begun
            check_equal(folder, root / "peace")
            runs += 1
            folder, episodes = root / f"killed-{runs}", []
    assert wait(start(folder, *more)) == 0
    check_equal(folder, root / "peace")
    return {"kills": times, "runs": runs + 1, "checkpoints": saved, "loop": whole}


def kill_at(root: Path, place: str, count: int, checkpoint_every: str) -> None:
    """Kill inside of the count-th call of a function, in the middle of what it does."""
    module, name = place.rsplit(":", 1)
    owner = __import__(module, fromlist=["x"])
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), [0]

    def deadly(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, last, deadly)
    try:
        pid = start(root / "killed", "--checkpoint-every", checkpoint_every)
    finally:
        setattr(owner, last, original)
    assert wait(pid) == -signal.SIGKILL, f"{place} was called less than {count} times"
    check_checkpoints(root / "killed")


if __name__ == "__main__":
    root, action = Path(sys.argv[1]), sys.argv[2]
    if action == "random":
        print(json.dumps(kill_at_random(root, int(sys.argv[3]), *sys.argv[4:])))
    else:
        assert wait(start(root / "peace")) == 0
        for item in sys.argv[3:]:
            place, count, seconds = item.split("@")
            kill_at(root, place, int(count), seconds)
        assert wait(start(root / "killed")) == 0
        check_equal(root / "killed", root / "peace")
