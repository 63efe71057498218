"""Time of one Dreamer V3 update on a CUDA device: operation by operation and as one graph, in float32 and bfloat16.

    python benchmarks/cuda_update.py [--sizes 1m 12m] [--repeats 50] [--kernels 20]

``--kernels`` prints the operations that take most of the device's time. ``--device cpu`` goes the same way on a CPU,
with a recording that repeats the operations, to see that the script runs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import rows
import torch
from update import OBS, VECTOR, random_batch

from reverie import presets
from reverie.agents.dreamer_v3 import DreamerV3
from reverie.run.recorded import Recorded, graph
from reverie.types import ActionSpace

SEEN = {"1m": ("vector", VECTOR, 1), "12m": ("image", OBS, 6)}
WAYS = [(precision, way) for precision in ("float32", "bfloat16") for way in ("eager", "graph")]


def repeat(learn: Callable, _: torch.Generator) -> Callable:
    return learn


def measure(size: str, precision: str, way: str, args: argparse.Namespace) -> dict:
    name, obs, actions = SEEN[size]
    config = presets.resolve("dreamer_v3", (size,), {"precision": precision})
    agent = DreamerV3(obs, ActionSpace(actions), config, device=args.device)
    batch = random_batch(config, actions, obs)
    cuda = agent.device.type == "cuda"
    update = agent.update if way == "eager" else Recorded(agent, graph if cuda else repeat)
    wait = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(6):  # a recording is made at the fourth
        update(batch)
    seconds = []
    for _ in range(args.repeats):
        wait()
        begin = time.perf_counter()
        update(batch)
        wait()
        seconds.append(time.perf_counter() - begin)
    if args.kernels:
        kinds = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[kinds.CUDA if cuda else kinds.CPU]) as profile:
            update(batch)
            wait()
        order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=order, row_limit=args.kernels))
    what = f"dreamer_v3 {size} {name}, {precision}, {way}"
    print(f"{what:44} {1e3 * statistics.median(seconds):8.2f} ms", flush=True)
    return {"what": what, "ours": statistics.median(seconds), "unit": "s"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=[*SEEN], choices=[*SEEN])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--kernels", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    found = [measure(size, *ways, args) for size in args.sizes for ways in WAYS]
    if args.device == "cuda":
        rows.write("cuda_update", found)
