"""Env steps a second of whole runs with a collector beside the learner, and without one.

    python benchmarks/collector.py [--rounds 3] [--threads 0] [--only sac]

Two kinds of run: Dreamer V1, as small as in the tests, on the cart-pole's pictures, where rows are dear and a burst
is two updates for every 50 of them; and SAC's laptop preset on Pendulum, where rows are cheap and every one is
followed by an update. Told is the time of one env step, updates included, from the third burst on; evaluations are
left out. "ours" has a collector and the peer has none; each run is a process of its own, they take turns, and the
median counts. ``--threads`` are the learner's, 0 for every core.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import rows  # noqa: E402

RUNS = {  # agent, environment, preset, settings over it
    "dreamer_v1 debug, cart-pole pixels": ("dreamer_v1", "dmc/cartpole_swingup", "debug", {"steps": 1_000}),
    "sac laptop, pendulum": ("sac", "Pendulum-v1", "laptop", {"steps": 1_000, "prefill": 300}),
}


def measure(what: str, collector: bool, threads: int) -> dict[str, float]:
    """Milliseconds an env step of one run, and the threads its learner had."""
    import torch

    from reverie import presets
    from reverie.machine import prepare
    from reverie.run.folder import Plan
    from reverie.run.loop import RunConfig
    from reverie.run.parts import Parts
    from reverie.run.train import go_on, loop_of

    agent, env, preset, settings = RUNS[what]
    config = presets.resolve(agent, [preset], settings)
    run = RunConfig(
        collector=collector, eval_every=0, eval_episodes=1, checkpoint_every=10**6, log_every=10**6
    )
    prepare(threads)
    with tempfile.TemporaryDirectory() as folder, Parts() as parts:
        loop = loop_of(agent).make(Plan(agent, env, (preset,), config, run), Path(folder) / "run", parts)
        go_on(loop)
        begun, begin = 0, 0.0
        while not loop.at_end or loop.pending:
            loop.move()
            if not begun and not loop.pending and loop.env_steps >= config.prefill + 2 * config.train_every:
                begun, begin = loop.env_steps, time.perf_counter()
        took = 1e3 * (time.perf_counter() - begin) / (loop.env_steps - begun)
    return {"ms": took, "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, turn by turn")
    parser.add_argument("--threads", type=int, default=0, help="of the learner; 0 for every core")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="rows that begin so")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.one[1] == "with", args.threads)), flush=True)
        return
    chosen = [what for what in RUNS if what.startswith(tuple(args.only))]
    if not chosen:
        parser.error(f"there is no row {' or '.join(args.only)}; there are {', '.join(RUNS)}")

    out = []
    for what in chosen:
        found: dict[str, list[float]] = {"with": [], "without": []}
        for _ in range(args.rounds):
            for way, times in found.items():
                one = [sys.executable, str(Path(__file__).resolve()), "--one", what, way]
                one += ["--threads", str(args.threads)]
                environment = {"MUJOCO_GL": "egl", **os.environ}
                done = subprocess.run(one, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                result = json.loads(done.stdout.splitlines()[-1])
                times.append(result["ms"])
        ours, peer = (statistics.median(found[way]) for way in ("with", "without"))
        print(f"{what}: {1e3 / ours:.0f} env steps a second with a collector, {1e3 / peer:.0f} without")
        out.append(
            {
                "what": what,
                "ours": float(f"{ours:.4g}"),
                "unit": "ms/env step",
                "peer": float(f"{peer:.4g}"),
                "peer_version": "the same without a collector",
                "threads": result["threads"],
            }
        )
    if chosen == list(RUNS):
        print(f"written to {rows.write('collector', out)}")


if __name__ == "__main__":
    main()
