"""Time of one decision by planning in an ensemble, against the arithmetic it cannot do without.

    python benchmarks/planning.py [--repeats 5] [--threads 2]

An ensemble of 5, CEM with 500 candidates, horizon 20 and 5 iterations, on vectors of the half-cheetah's size (17
numbers seen, 6 done): PETS' networks and 20 particles, the same with one particle a network, and networks of a
laptop's size. The floor is the multiply-adds of the networks over the rate at which this machine multiplies
matrices, measured in the same run with the same threads. ``ratio`` leaves out what a network's nonlinearity costs,
so it is above 1 by that at least.
"""

import argparse

import numpy as np
import rows
import torch
from update import matrix_rate, mlp, timed

from reverie import presets
from reverie.machine import prepare
from reverie.types import ActionSpace, Space

OBS, ACTIONS = 17, 6
SEARCH = dict(members=5, horizon=20, candidates=500, elites=50, iterations=5)
WAYS = {
    "plan 4 x 200, 20 particles": dict(units=200, layers=4, particles=20, decay=()),
    "plan 4 x 200, 5 particles": dict(units=200, layers=4, particles=5, decay=()),
    "plan 2 x 64, 5 particles": dict(units=64, layers=2, particles=5, decay=()),
}


def work(c) -> int:
    """Multiply-adds of one decision."""
    rows = c.iterations * c.horizon * c.candidates * c.particles
    return rows * mlp(OBS + ACTIONS, c.units, c.layers, 2 * (1 + OBS))


def measure(what: str, repeats: int) -> dict:
    c = presets.resolve("mpc", (), SEARCH | WAYS[what])
    agent = presets.agent_class("mpc")({"vector": Space((OBS,))}, ActionSpace(ACTIONS), c)
    obs = {"vector": np.zeros((1, OBS), np.float32), "is_first": np.array([True])}
    carry = agent.initial(1)
    before = matrix_rate()
    seconds = timed(lambda: agent.act(obs, carry, "eval"), repeats)
    floor = 2 * work(c) / max(before, matrix_rate())
    print(f"{what:28} {seconds:8.3f} s   floor {floor:7.3f} s   ratio {seconds / floor:5.2f}", flush=True)
    threads = torch.get_num_threads()
    return {"what": what, "ours": seconds, "unit": "s", "floor": floor, "threads": threads}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    prepare(args.threads)
    rows.write("planning", [measure(what, args.repeats) for what in WAYS])
