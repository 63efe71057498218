"""One update of Dreamer V3, size 1m, beside those of sheeprl and TorchRL.

    python benchmarks/dreamer_v3_peers.py [--rounds 12] [--threads 2] [--environments runs/peers]

All learn from 16 sequences of 64 rows, a vector of 3 numbers seen and 1 chosen, with the networks and losses of the
article's newest code and its one optimiser. Each peer is installed from PyPI into an environment of its own, which is
made if it is not there. They take turns in one run, each in a process that waits while the others are measured; told is
the median of each. No peer compiles anything. Run it on an otherwise idle machine.
"""

import argparse
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

import rows
import torch
from update import VECTOR, matrix_rate, random_batch, v3_work

from reverie import presets
from reverie.machine import prepare
from reverie.types import ActionSpace

HERE = Path(__file__).resolve().parent
WANTED = {
    # with the tasks of dreamer_v3_beside.py; dm_control 1.0.50 breaks with MuJoCo 4
    "sheeprl": ["sheeprl[dmc]==0.8.4", "mujoco<4"],
    "torchrl": ["torchrl==0.14.1", "omegaconf", "hydra-core", "gymnasium", "matplotlib"],
}


def environment(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, with the PyTorch that ours has."""
    python, ready = folder / name / "bin" / "python", folder / name / "ready"
    if not ready.exists() or ready.read_text().split() != WANTED[name]:
        print(f"installing {name} into {folder / name}", flush=True)
        venv.create(folder / name, clear=True, with_pip=True)
        ours = torch.__version__.split("+")[0]
        subprocess.run([python, "-m", "pip", "install", "-q", f"torch=={ours}", *WANTED[name]], check=True)
        ready.write_text(" ".join(WANTED[name]))
    return python


class Peer:
    """A process that makes one update whenever it is asked to."""

    def __init__(self, name: str, python: Path, threads: int):
        script = [python, HERE / "peers" / f"{name}_dreamer_v3.py", str(threads)]
        self.process = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version, count = self.answer().split()
        print(f"{name} {self.version}: {int(count):,} parameters", flush=True)

    def answer(self) -> str:
        """Its next line that is meant for us; libraries print, too."""
        for line in self.process.stdout:
            if line.startswith("> "):
                return line[2:].strip()
        raise SystemExit(f"a peer ended with {self.process.wait()}")

    def update(self) -> float:
        """Seconds of one update."""
        self.process.stdin.write("update\n")
        self.process.stdin.flush()
        return float(self.answer())


class Ours:
    def __init__(self) -> None:
        config = presets.resolve("dreamer_v3", ("1m",))
        self.agent = presets.agent_class("dreamer_v3")(VECTOR, ActionSpace(1), config)
        self.batch = random_batch(config, 1, VECTOR)
        self.work = v3_work(config, VECTOR, 1)
        learned = [part for name, part in self.agent.modules.items() if name != "slow_critic"]
        count = sum(p.numel() for part in learned for p in part.parameters())
        print(f"reverie: {count:,} parameters", flush=True)

    def update(self) -> float:
        begin = time.perf_counter()
        self.agent.update(self.batch)
        return time.perf_counter() - begin


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--environments", type=Path, default=HERE.parent / "runs" / "peers")
    parser.add_argument("--only", nargs="*", default=list(WANTED), choices=list(WANTED))
    args = parser.parse_args()
    pythons = {name: environment(name, args.environments) for name in args.only}
    prepare(args.threads)
    all_of_them = {"reverie": Ours()} | {
        name: Peer(name, python, args.threads) for name, python in pythons.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in all_of_them}
    for number in range(args.rounds + 2):  # the first two allocate
        for name, one in all_of_them.items():
            took = one.update()
            if number >= 2:
                seconds[name].append(took)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    ours = medians.pop("reverie")
    floor = 2 * all_of_them["reverie"].work / matrix_rate()
    print(f"reverie {ours:.3f} s, {ours / floor:.2f} times the floor of {floor:.3f} s")
    found = []
    for name, median in medians.items():
        print(f"{name} {median:.3f} s: ours takes {ours / median:.2f} of it")
        found.append(
            {
                "what": f"dreamer_v3 1m vector, beside {name}",
                "ours": round(ours, 4),
                "unit": "s",
                "floor": round(floor, 4),
                "peer": round(median, 4),
                "peer_version": f"{name} {all_of_them[name].version}",
                "threads": args.threads,
            }
        )
    if args.only == list(WANTED):
        rows.write("dreamer_v3_peers", found)
    sys.stdout.flush()
