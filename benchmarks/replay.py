"""How long `Replay.sample` takes, against copying as many bytes from one place in memory to another.

Rows of 64 x 64 x 3 pixels and six actions; batches of 50 x 50 (Dreamer V1) and 16 x 32 (laptop), from
memory and from a folder whose pages are in memory. The replay is much larger than the caches, and the floor
copies one contiguous piece of equal size from a random place in an array as large, into memory that was
touched before. Sampling and copying take turns, so that both meet the same machine; the figures are medians.

    python benchmarks/replay.py
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rows
import torch

from reverie.data.replay import Replay
from reverie.types import ActionSpace, Space, Step

SPACE, ACT = {"image": Space((64, 64, 3), "uint8")}, ActionSpace(6)
ROWS, EPISODE, REPEATS = 40_000, 500, 60


def filled(folder: Path | None) -> tuple[Replay, float]:
    """A full replay and the seconds per `add`."""
    replay = Replay(SPACE, ACT, ROWS, folder=folder)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(64, 64, 64, 3), dtype=np.uint8)
    actions = ACT.sample(rng, 64)
    steps = []
    for i in range(ROWS):
        flags = (i % EPISODE == 0, i % EPISODE == EPISODE - 1, False)
        fields = (np.array(float(i), np.float32), *map(np.array, flags), np.array(2))
        steps.append((Step({"image": images[i % 64]}, *fields), actions[i % 64]))
    for step, action in steps:  # first touch of every page
        replay.add(step, action)
    start = time.perf_counter()
    for step, action in steps:
        replay.add(step, action)
    return replay, (time.perf_counter() - start) / ROWS


def taking_turns(*functions: Callable[[], object]) -> list[float]:
    """Median milliseconds of each."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for function, spent in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            spent.append(1e3 * (time.perf_counter() - start))
    return [float(np.median(spent)) for spent in times]


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    source = rng.integers(256, size=ROWS * SPACE["image"].bytes, dtype=np.uint8)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for where, replay, add in (
            ("in memory", *filled(None)),
            ("on disk", *filled(Path(folder) / "replay")),
        ):
            one = np.ones(Replay.bytes_per_row(SPACE, ACT), np.uint8)
            row = np.zeros_like(one)
            (copy,) = taking_turns(lambda one=one, row=row: np.copyto(row, one))
            found.append(
                {
                    "what": f"replay add, one row, {where}",
                    "ours": 1e3 * add,
                    "unit": "ms",
                    "floor": copy,
                    "threads": 1,
                }
            )
            for batch, length in ((50, 50), (16, 32)):
                size = batch * length * Replay.bytes_per_row(SPACE, ACT)
                target = np.zeros(size, np.uint8)

                def floor(size: int = size, target: np.ndarray = target) -> None:
                    start = int(rng.integers(len(source) - size))
                    np.copyto(target, source[start : start + size])

                def ours(replay: Replay = replay, batch: int = batch, length: int = length) -> None:
                    replay.sample(batch, length, rng)

                ours()
                mine, copy = taking_turns(ours, floor)
                found.append(
                    {
                        "what": f"replay sample {batch} x {length} of 64x64x3, {where}",
                        "ours": round(mine, 4),
                        "unit": "ms",
                        "floor": round(copy, 4),
                        "threads": 1,
                    }
                )
            replay.close()
    for row in found:
        print(f"{row['what']:50} {row['ours']:8.3f} ms, floor {row['floor']:8.4f} ms")
    print(rows.write("replay", found))


if __name__ == "__main__":
    main()
