"""Dreamer V3 and sheeprl's, side by side: one task, one setting, the same minutes at the same time on one machine.

    python benchmarks/dreamer_v3_beside.py [--domain cartpole] [--task swingup] [--minutes 90] [--level 800]

Both learn from the task's vectors with what the preset ``laptop`` says (size 1m, action repeat, rows of an update,
replay ratio, discount, rate and warmup) but for ``standardize``, which sheeprl has not. Each is a process of its own
with as many threads; sheeprl's is installed as for ``dreamer_v3_peers.py``. Told are the minutes until the mean return
of ten training episodes in a row reaches the level, and the seconds an env step took. Both act by samples while they
learn, so the returns are of one kind. Every episode is kept in ``results/dreamer_v3_beside_episodes.csv``.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import TextIO

import rows
from dreamer_v3_peers import HERE, environment

from reverie import presets

EPISODE = re.compile(r"policy_step=(\d+), reward_env_0=\[?(-?[\d.]+)")


def sheeprl(python: Path, args: argparse.Namespace, folder: Path) -> list[str]:
    """The command that trains sheeprl's agent as our preset does ours."""
    c = presets.resolve("dreamer_v3", ("laptop",))
    return [
        str(python.with_name("sheeprl")),
        "exp=dreamer_v3_5",
        "algo=dreamer_v3_5_1M",
        "env=dmc",
        f"env.wrapper.domain_name={args.domain}",
        f"env.wrapper.task_name={args.task}",
        "env.wrapper.from_pixels=False",
        "env.num_envs=1",
        f"env.action_repeat={c.action_repeat}",
        "env.max_episode_steps=-1",
        "algo.cnn_keys.encoder=[]",
        "algo.mlp_keys.encoder=[state]",
        f"algo.per_rank_batch_size={c.batch_size}",
        f"algo.per_rank_sequence_length={c.batch_length}",
        f"algo.replay_ratio={c.train_ratio / (c.batch_size * c.batch_length)}",
        f"algo.gamma={c.discount}",
        f"algo.learning_starts={c.prefill // c.action_repeat}",
        f"algo.optimizer.lr={c.lr}",
        f"algo.optimizer.warmup={c.warmup}",
        "algo.total_steps=5000000",
        "buffer.size=500000",
        "buffer.checkpoint=False",
        "checkpoint.every=100000000",
        "fabric.accelerator=cpu",
        "fabric.devices=1",
        f"num_threads={args.threads}",
        f"seed={args.seed}",
        f"log_root={folder}",
    ]


def ours(args: argparse.Namespace, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "reverie", "train", "dreamer_v3", "--preset", "laptop", "--no-pixels"]
    command += ["--no-standardize"]
    command += ["--env", f"dmc/{args.domain}_{args.task}", "--seed", str(args.seed), "--run", str(folder)]
    return [*command, "--threads", str(args.threads), "--steps", "1000000", "--eval-every", "0"]


def follow(
    process: subprocess.Popen, log: TextIO, begin: float, repeat: int, found: list[list[float]]
) -> None:
    """Append [seconds, env steps, return] for every episode that sheeprl prints; keep all it prints."""
    for line in process.stdout:
        log.write(line)
        if match := EPISODE.search(line):
            found.append([time.perf_counter() - begin, int(match[1]) * repeat, float(match[2])])


def episodes(metrics: Path) -> list[list[float]]:
    """The same of our own run: its lines that tell of an episode."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [[d["seconds"], d["env_steps"], d["episode/return"]] for d in lines if "episode/return" in d]


def minutes_to(level: float, found: list[list[float]], count: int = 10) -> float | None:
    """Minutes until ``count`` episodes in a row have a mean return of ``level``; None if they never have."""
    for end in range(count, len(found) + 1):
        if sum(r for *_, r in found[end - count : end]) / count >= level:
            return round(found[end - 1][0] / 60, 2)
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domain", default="cartpole")
    parser.add_argument("--task", default="swingup")
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--level", type=float, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "beside")
    parser.add_argument("--environments", type=Path, default=HERE.parent / "runs" / "peers")
    args = parser.parse_args()
    python = environment("sheeprl", args.environments)
    folder = args.folder.resolve() / f"{args.domain}_{args.task}-{args.seed}"
    if folder.exists():
        raise SystemExit(
            f"{folder} exists: both must begin together, so move it away or name another --folder"
        )
    folder.mkdir(parents=True)
    repeat = presets.resolve("dreamer_v3", ("laptop",)).action_repeat
    environ = os.environ | {"OMP_NUM_THREADS": str(args.threads), "PYTHONUNBUFFERED": "1"}
    begin, theirs = time.perf_counter(), []
    with (folder / "ours.log").open("w") as log, (folder / "sheeprl.log").open("w") as their_log:
        first = subprocess.Popen(ours(args, folder / "ours"), stdout=log, stderr=log, env=environ)
        second = subprocess.Popen(
            sheeprl(python, args, folder / "sheeprl"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environ,
            cwd=folder,
        )
        reader = Thread(target=follow, args=(second, their_log, begin, repeat, theirs), daemon=True)
        reader.start()
        while time.perf_counter() - begin < 60 * args.minutes:
            time.sleep(1)
            if first.poll() is not None or second.poll() is not None:
                print(f"one ended before its time; {folder} has what it printed", file=sys.stderr)
                break
        for process in (first, second):
            process.send_signal(signal.SIGINT)
        for process in (first, second):
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        reader.join()
    found = {"reverie": episodes(folder / "ours" / "metrics.jsonl"), "sheeprl": theirs}
    for name, some in found.items():
        if not some:
            raise SystemExit(f"{name} finished no episode; {folder} has what it printed")
    table = [
        f"{name},{seconds:.1f},{steps},{value:.1f}"
        for name, some in found.items()
        for seconds, steps, value in some
    ]
    path = HERE / "results" / "dreamer_v3_beside_episodes.csv"
    path.write_text("\n".join(["who,seconds,env_steps,return", *table]) + "\n")
    for name, some in found.items():
        last = [value for *_, value in some[-10:]]
        print(
            f"{name}: {some[-1][1]:,} env steps, last ten returns {sum(last) / len(last):.0f}; "
            f"{args.level:g} after {minutes_to(args.level, some)} minutes"
        )
    version = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('sheeprl'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    task = f"{args.domain} {args.task} from vectors, {args.minutes:g} minutes of {args.threads} thread each"
    per_step = {name: round(some[-1][0] / some[-1][1], 5) for name, some in found.items()}
    reached = {name: minutes_to(args.level, some) for name, some in found.items()}
    common = {"peer_version": f"sheeprl {version}", "threads": args.threads}
    rows.write(
        "dreamer_v3_beside",
        [
            {
                "what": f"{task}: until ten episodes in a row have a mean of {args.level:g}",
                "ours": reached["reverie"],
                "unit": "min",
                "peer": reached["sheeprl"],
                **common,
            },
            {
                "what": f"{task}: an env step, everything included",
                "ours": per_step["reverie"],
                "unit": "s",
                "peer": per_step["sheeprl"],
                **common,
            },
        ],
    )
