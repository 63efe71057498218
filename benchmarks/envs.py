"""How long one environment step with its picture takes, against the stock way to draw it.

    python benchmarks/envs.py [--steps 100] [--rounds 3] [--only carracing doom]

"ours" goes the whole way to a row (``make_env(...).step``); "floor" is the bare library drawing at the same
quality, without our adapter, and for CarRacing, where the drawing is ours, the game without a picture; "peer" is
the stock renderer as a first user meets it. Pictures are 64x64. Sokoban and MiniPacman have their own, 512 are
stepped at once, and the time is that of one; their floor is the compiled rules and one copy of the observations.

All run on one core each in a process of their own (two kinds of OpenGL context in one process do not draw), turn
by turn, and the median round counts. ``--only`` measures the rows whose names begin so, and leaves the others of
the results as they are.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import rows  # noqa: E402

SIZE = 64
TASK = ("cartpole", "swingup")
WARM = 60  # steps before the clock runs; a race zooms in during the first 50


Step = Callable[[np.ndarray], object]  # takes as many of the three random numbers as it has actions


def ours(name: str, **options: object) -> Step:
    from reverie.envs import make_env

    env = make_env(name, pixels=True, image_size=SIZE, **options)
    seeds = iter(range(10**9))
    last = True

    def step(action: np.ndarray) -> None:
        nonlocal last
        last = bool((env.reset(next(seeds)) if last else env.step(action[: env.act_space.size])).is_last)

    return step


def suite() -> object:
    from reverie.envs.pixels import choose_gl

    choose_gl()
    from dm_control import suite

    return suite.load(*TASK, task_kwargs={"random": 0})


def dmc_stock() -> Step:
    env = suite()
    return lambda action: (env.step(action[:1]), env.physics.render(SIZE, SIZE, camera_id=0))


def dmc_bare(renderer: str) -> Step:
    from reverie.envs.pixels import MuJoCoCamera

    env = suite()
    draw = MuJoCoCamera(env.physics.model.ptr, env.physics.data.ptr, SIZE, renderer, 0)
    return lambda action: (env.step(action[:1]), draw())


def pendulum_stock(screen: int | None = None) -> Step:
    import gymnasium
    from PIL import Image

    env = gymnasium.make("Pendulum-v1", render_mode="rgb_array", max_episode_steps=-1)
    if screen:
        env.unwrapped.screen_dim = screen
    env.reset(seed=0)

    def step(action: np.ndarray) -> None:
        env.step(2 * action[:1])
        Image.fromarray(env.render()).resize((SIZE, SIZE), Image.Resampling.BOX)

    return step


def race_stock(picture: bool = True) -> Step:
    from gymnasium.envs.box2d.car_racing import CarRacing
    from PIL import Image

    env = CarRacing()
    if not picture:
        env._render = lambda mode: None
    env.reset(seed=0)
    low, size = env.action_space.low, env.action_space.high - env.action_space.low

    def step(action: np.ndarray) -> None:
        frame = env.step(low + size * (action + 1) / 2)[0]
        if picture:
            above = Image.fromarray(np.ascontiguousarray(frame[:84]))
            np.array(above.resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    return step


def doom_stock() -> Step:
    import gymnasium
    import vizdoom.gymnasium_wrapper  # noqa: F401  (registers it)
    from PIL import Image

    env = gymnasium.make("VizdoomTakeCover-v1", disable_env_checker=True)
    seeds = iter(range(10**9))
    over = True

    def step(action: np.ndarray) -> None:
        nonlocal over
        if over:
            obs, _ = env.reset(seed=next(seeds))
            over = False
        else:
            obs, _, over, _, _ = env.step(int((action[0] > 1 / 3) + 2 * (action[0] < -1 / 3)))
        np.array(Image.fromarray(obs["screen"]).resize((SIZE, SIZE), Image.Resampling.BOX))

    return step


def doom_bare() -> Step:
    from reverie.envs.doom import Doom, buttons

    env = Doom("take_cover", size=None)
    env.reset(0)
    game = env._game

    def step(action: np.ndarray) -> None:
        if game.is_episode_finished():
            game.new_episode()
        game.make_action(buttons(action[0]))
        game.get_state()

    return step


def batch_of(world: str, **options: object) -> tuple[Any, np.ndarray]:
    """``BATCH`` worlds, begun, and random actions "1000 n"."""
    from reverie.envs.mini_pacman import MiniPacmans
    from reverie.envs.sokoban import Sokobans

    envs = {"sokoban": Sokobans, "mini_pacman": MiniPacmans}[world](BATCH, **options)
    envs.reset(seed=0)
    return envs, np.random.default_rng(0).integers(5, size=(1000, BATCH))


def batch(world: str, **options: object) -> Step:
    """One step of a whole batch."""
    envs, actions = batch_of(world, **options)
    turn = iter(range(10**9))
    return lambda action: envs.step(actions[next(turn) % 1000])


def batch_bare(world: str, **options: object) -> Step:
    """The rules, and the bytes of an observation copied."""
    envs, actions = batch_of(world, **options)
    obs, awake, turn = envs.look(), np.zeros(BATCH, bool), iter(range(10**9))

    def step(action: np.ndarray) -> None:
        _, over = envs._advance(actions[next(turn) % 1000], awake)
        if over.any():
            envs._begin(np.flatnonzero(over))
        obs.copy()

    return step


def level(size: int, boxes: int) -> Step:
    """One level made."""
    from reverie.envs.compiled import streams
    from reverie.envs.sokoban_levels import make_level

    random = streams([0])[0]
    return lambda action: make_level(random, size, size, boxes)


BATCH = 512
WAYS: dict[str, Callable[[], Step]] = {
    "dmc near": lambda: ours("dmc/cartpole_swingup"),
    "dmc fast": lambda: ours("dmc/cartpole_swingup", renderer="fast"),
    "dmc near bare": lambda: dmc_bare("near"),
    "dmc fast bare": lambda: dmc_bare("fast"),
    "dmc stock": dmc_stock,
    "pendulum": lambda: ours("Pendulum-v1"),
    "pendulum bare": lambda: pendulum_stock(2 * SIZE),
    "pendulum stock": pendulum_stock,
    "carracing fast": lambda: ours("reverie/CarRacing-v0"),
    "carracing exact": lambda: ours("reverie/CarRacingExact-v0"),
    "carracing bare": lambda: race_stock(picture=False),
    "carracing stock": race_stock,
    "doom": lambda: ours("doom/take_cover"),
    "doom bare": doom_bare,
    "doom stock": doom_stock,
    "sokoban": lambda: batch("sokoban"),
    "sokoban bare": lambda: batch_bare("sokoban"),
    "sokoban sprites": lambda: batch("sokoban", obs="pixels"),
    "sokoban sprites bare": lambda: batch_bare("sokoban", obs="pixels"),
    "minipacman": lambda: batch("mini_pacman"),
    "minipacman bare": lambda: batch_bare("mini_pacman"),
    "level small": lambda: level(7, 2),
    "level": lambda: level(10, 4),
}
DMC = "dm_control {dm-control} physics.render, mujoco {mujoco}"
PENDULUM = "gymnasium {gymnasium} render at 500x500, Pillow {pillow} area resize"
RACE = "gymnasium {gymnasium} CarRacing-v3, Pillow {pillow} bilinear resize"
DOOM = "vizdoom {vizdoom} VizdoomTakeCover-v1 at 320x240, Pillow {pillow} area resize"
ROWS = {  # what: the ways of ours, floor and peer, and the peer's name with the packages whose versions it takes
    "dmc near": ("dmc near", "dmc near bare", "dmc stock", DMC),
    "dmc fast": ("dmc fast", "dmc fast bare", "dmc stock", DMC),
    "pendulum pixels": ("pendulum", "pendulum bare", "pendulum stock", PENDULUM),
    "carracing fast": ("carracing fast", "carracing bare", "carracing stock", RACE),
    "carracing exact": ("carracing exact", "carracing bare", "carracing stock", RACE),
    "doom take cover": ("doom", "doom bare", "doom stock", DOOM),
    "sokoban planes": ("sokoban", "sokoban bare", None, None),
    "sokoban sprites": ("sokoban sprites", "sokoban sprites bare", None, None),
    "minipacman planes": ("minipacman", "minipacman bare", None, None),
    "sokoban level 7x7, 2 boxes": ("level small", None, None, None),
    "sokoban level 10x10, 4 boxes": ("level", None, None, None),
}


ROLES = ("ours", "floor", "stock")


def measure(way: str, steps: int) -> float:
    """Median seconds per step over five stretches, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    step = WAYS[way]()
    actions = np.random.default_rng(0).uniform(-1, 1, (WARM + steps, 3)).astype(np.float32)
    for action in actions[:WARM]:
        step(action)
    stretches = []
    for part in np.array_split(actions[WARM:], 5):
        start = time.perf_counter()
        for action in part:
            step(action)
        many = BATCH if way.startswith(("sokoban", "minipacman")) else 1
        stretches.append((time.perf_counter() - start) / len(part) / many)
    return statistics.median(stretches)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100, help="steps per measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, turn by turn")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="rows that begin so")
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.steps)), flush=True)
        os._exit(0)  # OpenGL of other libraries does not always end quietly
    chosen = {what: row for what, row in ROWS.items() if what.startswith(tuple(args.only))}
    if not chosen:
        parser.error(f"there is no row {' or '.join(args.only)}; there are {', '.join(ROWS)}")

    found: dict[str, list[float]] = {way: [] for row in chosen.values() for way in row[:3] if way}
    for _ in range(args.rounds):
        for way in found:
            one = [sys.executable, str(Path(__file__).resolve()), "--one", way, "--steps", str(args.steps)]
            with tempfile.TemporaryDirectory() as folder:  # Doom leaves files where it is started
                done = subprocess.run(
                    one, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder
                )
            found[way].append(float(done.stdout.splitlines()[-1]))
    took = {way: statistics.median(times) for way, times in found.items()}

    results = rows.HERE / "results" / "envs.json"
    kept = json.loads(results.read_text()) if len(chosen) < len(ROWS) and results.exists() else []
    out = {row["what"]: row for row in kept}
    for what, (way, floor, peer, peer_name) in chosen.items():
        out[what] = {
            "what": what,
            "ours": float(f"{took[way]:.5g}"),
            "unit": "s/level" if "level" in what else "s/step",
            "floor": floor and float(f"{took[floor]:.5g}"),
            "peer": peer and float(f"{took[peer]:.5g}"),
            "peer_version": peer_name and re.sub("{(.+?)}", lambda package: version(package[1]), peer_name),
            "threads": 1,
        }
        per_second = [
            f"{1 / took[name]:.0f} {role}"
            for name, role in zip((way, floor, peer), ROLES, strict=True)
            if name
        ]
        print(f"{what}: {', '.join(per_second)} per second")
    print(f"written to {rows.write('envs', list(out.values()))}")


if __name__ == "__main__":
    main()
