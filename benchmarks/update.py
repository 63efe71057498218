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
VECTOR = {"vector": Space((3,))}
WHAT = ["dreamer_v1 paper", "dreamer_v1 laptop", "planet paper", "planet laptop", "planet decision paper"]
WHAT += ["dreamer_v3 1m vector", "dreamer_v3 12m image"]


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


def v3_work(c, obs: dict[str, Space], actions: int) -> int:
    d, h, s, u = c.deter, c.hidden, c.stoch * c.classes, c.units
    feat, embed, first, outside = d + s, 0, 0, 0
    for space in obs.values():
        if space.is_image:
            encode, first_layer, decode = v3_pictures(c, space.shape[2])
            embed, first, outside = embed + 64 * c.depth, first + first_layer, outside + encode + decode
        else:
            n, hidden = space.shape[0], (c.vector_layers - 1) * u * u
            embed, first, outside = embed + u, first + n * u, outside + n * u + feat * u + 2 * hidden + u * n
    # h and its gates in blocks: own weights of each block, and what comes in, which is the same for all
    cell = (d + s + actions) * h + d * d // c.blocks + 3 * h * d + 3 * d * d // c.blocks
    prior, post = d * h + h * h + h * s, (d + embed) * h + h * s
    reward, cont = mlp(feat, u, c.reward_layers, c.bins), mlp(feat, u, c.cont_layers, 1)
    actor, critic = mlp(feat, u, c.actor_layers, 2 * actions), mlp(feat, u, c.critic_layers, c.bins)
    row = outside + cell + prior + post + reward + cont + critic
    dream = (
        cell + prior + reward + cont  # no gradient: REINFORCE
        + 3 * actor - feat * u  # their input is detached
        + 3 * critic - feat * u + critic  # and the slow one
    )  # fmt: skip
    rows = c.batch_size * c.batch_length
    return rows * (3 * row - first + critic + c.horizon * dream + cont + critic)


def v3_pictures(c, channels: int) -> tuple[int, int, int]:
    """Encoder, its first layer, and decoder: 5 x 5 convolutions at every side from 64 down to 8 and back."""
    widths, sides = [channels, *(c.depth * k for k in (2, 3, 4, 4))], (64, 32, 16, 8)
    down = [25 * s * s * a * b for s, a, b in zip(sides, widths, widths[1:], strict=False)]
    widths, cells = [*(c.depth * k for k in (4, 4, 3, 2)), channels], 16 * 4 * c.depth
    up = [25 * s * s * a * b for s, a, b in zip(sides[::-1], widths, widths[1:], strict=False)]
    stem = c.deter * cells // c.blocks + 2 * c.units * (c.stoch * c.classes + cells)
    return sum(down), down[0], sum(up) + stem


def decision_work(c, actions: int) -> int:
    reward = mlp(c.stoch + c.deter, c.reward_units, c.reward_layers, 1)
    return c.horizon * c.candidates * c.iterations * (prior_step(c, actions) + reward)


# Timing


def random_batch(c, actions: int, obs: dict[str, Space]) -> Batch:
    """One sequence after another from a replay of noise, as an agent gets them."""
    n, rng = c.batch_size * c.batch_length, np.random.default_rng(0)
    replay = Replay(obs, ActionSpace(actions), 2 * n)
    no = np.zeros((), bool)
    for i in range(n):
        seen = {
            key: rng.integers(0, 256, space.shape, dtype=np.uint8)
            if space.is_image
            else rng.normal(size=space.shape).astype(np.float32)
            for key, space in obs.items()
        }
        row = Step(seen, np.float32(rng.random()), np.array(i == 0), no, no, np.array(int(i > 0)))
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
    agent, preset = what.split()[0], what.split()[1 if "v3" in what else -1]
    c = presets.resolve(agent, (preset,))
    obs, actions = (VECTOR, 1) if "vector" in what else (OBS, actions)
    made = presets.agent_class(agent)(obs, ActionSpace(actions), c)
    before = matrix_rate()
    if "decision" in what:
        first = {"image": np.zeros((1, 64, 64, 3), np.uint8), "is_first": np.array([True])}
        carry = made.initial(1)
        seconds, work = timed(lambda: made.act(first, carry, "eval"), repeats), decision_work(c, actions)
    else:
        batch = random_batch(c, actions, obs)
        work = v3_work(c, obs, actions) if agent == "dreamer_v3" else update_work(agent, c, actions)
        seconds = timed(lambda: made.update(batch), repeats)
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
