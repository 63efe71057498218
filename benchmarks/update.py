"""Time of one update, and of one planned decision, against the arithmetic they cannot do without.

    python benchmarks/update.py [--only "dreamer_v1 laptop"] [--repeats 5] [--threads 2]

The floor is the multiply-adds of the update, as backpropagation does them when no gradient is computed that
nobody uses, over the rate at which this machine multiplies matrices, measured in the same run with the same
threads. Run it on an otherwise idle machine.
"""

import argparse
import statistics
import time

import numpy as np
import rows
import torch

from reverie import presets
from reverie.data.replay import Replay
from reverie.machine import prepare
from reverie.types import ActionSpace, Batch, Space, Step

OBS = {"image": Space((64, 64, 3), "uint8")}
WHAT = ["dreamer_v1 paper", "dreamer_v1 laptop", "planet paper", "planet laptop", "planet decision paper"]


def matrix_rate(size: int = 1024, seconds: float = 1.0) -> float:
    """Floating-point operations per second of a square matrix product: the best of many."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


# Multiply-adds for one image, state or row. (forward, of which the first layer: its input needs no gradient.)


def encoder(depth: int, channels: int = 3) -> tuple[int, int]:
    sides, widths = (31, 14, 6, 2), (channels, depth, 2 * depth, 4 * depth, 8 * depth)
    layers = [s * s * a * b * 16 for s, a, b in zip(sides, widths, widths[1:], strict=False)]
    return sum(layers), layers[0]


def decoder(depth: int, features: int, channels: int = 3) -> int:
    widths = (32 * depth, 4 * depth, 2 * depth, depth, channels)
    kernels, sides = (5, 5, 6, 6), (1, 5, 13, 30)  # a transposed convolution works at its input's places
    convs = [s * s * a * b * k * k for s, a, b, k in zip(sides, widths, widths[1:], kernels, strict=False)]
    return features * 32 * depth + sum(convs)


def mlp(inputs: int, units: int, layers: int, outputs: int) -> int:
    return inputs * units + (layers - 1) * units * units + units * outputs


def prior_step(c, actions: int) -> int:
    return (c.stoch + actions) * c.deter + 6 * c.deter**2 + c.deter**2 + c.deter * 2 * c.stoch


def posterior_extra(c) -> int:
    return (c.deter + 32 * c.depth) * c.deter + c.deter * 2 * c.stoch


def model_work(c, actions: int, reward: int) -> int:
    """Forward once, backward twice (weights and inputs), except for the pictures' own gradient."""
    features = c.stoch + c.deter
    encode, first = encoder(c.depth)
    row = encode + decoder(c.depth, features) + prior_step(c, actions) + posterior_extra(c) + reward
    return c.batch_size * c.batch_length * (3 * row - first)


def update_work(agent: str, c, actions: int) -> int:
    features = c.stoch + c.deter
    if agent == "planet":
        return model_work(c, actions, mlp(features, c.reward_units, c.reward_layers, 1))
    reward = mlp(features, c.units, c.reward_layers, 1)
    actor = mlp(features, c.units, c.actor_layers, 2 * actions)
    critic = mlp(features, c.units, c.critic_layers, 1)
    states = c.horizon * (c.starts or c.batch_size * c.batch_length)
    dream = (
        2 * prior_step(c, actions)  # forward, and the gradient of inputs: no weight of the world moves
        + 2 * reward
        + 3 * actor - features * c.units  # its input is detached
        + 4 * critic - features * c.units  # forward; inputs for the actor; weights and hidden inputs for itself
    )  # fmt: skip
    return model_work(c, actions, reward) + states * dream


def decision_work(c, actions: int) -> int:
    reward = mlp(c.stoch + c.deter, c.reward_units, c.reward_layers, 1)
    return c.horizon * c.candidates * c.iterations * (prior_step(c, actions) + reward)


# Timing


def random_batch(c, actions: int) -> Batch:
    """One sequence after another from a replay of noise, as an agent gets them."""
    n, rng = c.batch_size * c.batch_length, np.random.default_rng(0)
    replay = Replay(OBS, ActionSpace(actions), 2 * n)
    no = np.zeros((), bool)
    for i in range(n):
        image = {"image": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)}
        row = Step(image, np.float32(rng.random()), np.array(i == 0), no, no, np.array(int(i > 0)))
        replay.add(row, rng.uniform(-1, 1, actions).astype(np.float32))
    return replay.sample(c.batch_size, c.batch_length, rng)


def timed(call, repeats: int) -> float:
    call()  # the first one allocates
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(what: str, repeats: int, actions: int = 6) -> dict:
    agent, preset = what.split()[0], what.split()[-1]
    c = presets.resolve(agent, (preset,))
    made = presets.agent_class(agent)(OBS, ActionSpace(actions), c)
    before = matrix_rate()
    if "decision" in what:
        obs = {"image": np.zeros((1, 64, 64, 3), np.uint8), "is_first": np.array([True])}
        carry = made.initial(1)
        seconds, work = timed(lambda: made.act(obs, carry, "eval"), repeats), decision_work(c, actions)
    else:
        batch = random_batch(c, actions)
        seconds, work = timed(lambda: made.update(batch), repeats), update_work(agent, c, actions)
    floor = 2 * work / max(before, matrix_rate())
    print(
        f"{what:24} {seconds:8.3f} s   floor {floor:7.3f} s   ratio {seconds / floor:5.2f}   "
        f"{2 * work / 1e9:8.1f} GFLOP at {2 * work / floor / 1e9:.0f} GFLOP/s",
        flush=True,
    )
    threads = torch.get_num_threads()
    return {"what": what, "ours": seconds, "unit": "s", "floor": floor, "threads": threads}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=WHAT, choices=WHAT)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    prepare(args.threads)
    results = [measure(what, args.repeats) for what in args.only]
    if args.only == WHAT:
        rows.write("update", results)
