"""How long one environment step with its 64x64 picture takes, against the stock way to draw it.

    python benchmarks/envs.py [--steps 100] [--rounds 3]

"ours" goes the whole way to a row (``make_env(...).step``); "floor" is the bare library drawing at the same
quality, without our adapter; "peer" is the stock renderer as a first user meets it. All three run on one core
each in a process of their own (two kinds of OpenGL context in one process do not draw), turn by turn, and the
median round counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import rows  # noqa: E402

SIZE = 64
TASK = ("cartpole", "swingup")


def ours(name: str, **options: object) -> Callable[[np.ndarray], object]:
    from reverie.envs import make_env

    env = make_env(name, pixels=True, image_size=SIZE, **options)
    seeds = iter(range(10**9))
    last = True

    def step(action: np.ndarray) -> None:
        nonlocal last
        last = bool((env.reset(next(seeds)) if last else env.step(action)).is_last)

    return step


def suite() -> object:
    from reverie.envs.pixels import choose_gl

    choose_gl()
    from dm_control import suite

    return suite.load(*TASK, task_kwargs={"random": 0})


def dmc_stock() -> Callable[[np.ndarray], object]:
    env = suite()
    return lambda action: (env.step(action), env.physics.render(SIZE, SIZE, camera_id=0))


def dmc_bare(renderer: str) -> Callable[[np.ndarray], object]:
    from reverie.envs.pixels import MuJoCoCamera

    env = suite()
    draw = MuJoCoCamera(env.physics.model.ptr, env.physics.data.ptr, SIZE, renderer, 0)
    return lambda action: (env.step(action), draw())


def pendulum_stock(screen: int | None = None) -> Callable[[np.ndarray], object]:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    import gymnasium
    from PIL import Image

    env = gymnasium.make("Pendulum-v1", render_mode="rgb_array", max_episode_steps=-1)
    if screen:
        env.unwrapped.screen_dim = screen
    env.reset(seed=0)

    def step(action: np.ndarray) -> None:
        env.step(2 * action)
        Image.fromarray(env.render()).resize((SIZE, SIZE), Image.Resampling.BOX)

    return step


WAYS = {
    "dmc near": lambda: ours("dmc/cartpole_swingup"),
    "dmc fast": lambda: ours("dmc/cartpole_swingup", renderer="fast"),
    "dmc near bare": lambda: dmc_bare("near"),
    "dmc fast bare": lambda: dmc_bare("fast"),
    "dmc stock": dmc_stock,
    "pendulum": lambda: ours("Pendulum-v1"),
    "pendulum bare": lambda: pendulum_stock(2 * SIZE),
    "pendulum stock": pendulum_stock,
}


def measure(way: str, steps: int) -> float:
    """Median seconds per step over five stretches, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    step = WAYS[way]()
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 1)).astype(np.float32)
    for action in actions[:10]:
        step(action)
    stretches = []
    for part in np.array_split(actions, 5):
        start = time.perf_counter()
        for action in part:
            step(action)
        stretches.append((time.perf_counter() - start) / len(part))
    return statistics.median(stretches)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100, help="steps per measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, turn by turn")
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.steps)), flush=True)
        os._exit(0)  # OpenGL of other libraries does not always end quietly

    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            one = [sys.executable, __file__, "--one", way, "--steps", str(args.steps)]
            done = subprocess.run(
                one, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            found[way].append(float(done.stdout.splitlines()[-1]))
    took = {way: statistics.median(times) for way, times in found.items()}

    dmc = f"dm_control {version('dm-control')} physics.render, mujoco {version('mujoco')}"
    gym = f"gymnasium {version('gymnasium')} render at 500x500, Pillow {version('pillow')} area resize"
    table = [
        ("dmc near", "dmc stock", dmc, "dmc near"),
        ("dmc fast", "dmc stock", dmc, "dmc fast"),
        ("pendulum", "pendulum stock", gym, "pendulum pixels"),
    ]
    out = []
    for way, peer, peer_version, what in table:
        floor = took[f"{way} bare"]
        out.append(
            {
                "what": what,
                "ours": round(took[way], 7),
                "unit": "s/step",
                "floor": round(floor, 7),
                "peer": round(took[peer], 7),
                "peer_version": peer_version,
                "threads": 1,
            }
        )
        print(f"{what}: {1 / took[way]:.0f} steps/s ours, {1 / floor:.0f} bare, {1 / took[peer]:.0f} stock")
    print(f"written to {rows.write('envs', out)}")


if __name__ == "__main__":
    main()
