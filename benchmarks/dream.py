"""How fast a population dreams: one generation of C in M's dream, all rollouts in one batch.

    python benchmarks/dream.py [--steps 1000] [--threads 2]

64 individuals times 16 rollouts with the networks of Take Cover, none of which dies before the last step: the
longest a generation can be. "floor" is the multiply-adds of M and C over the rate at which this machine multiplies
matrices, measured in the same run with the same threads. "car" is the same with CarRacing's smaller M; "bfloat16"
is with M's products rounded (``--dream-dtype bfloat16``), against the same float32 floor.
"""

import argparse
import time

import numpy as np
import rows
import torch
from update import matrix_rate

from reverie import presets
from reverie.agents.world_models import VM, WorldModels
from reverie.dream import rollouts
from reverie.machine import prepare
from reverie.run.staged import Individuals
from reverie.types import ActionSpace, Space

OBS = {"image": Space((64, 64, 3), "uint8")}
WAYS: dict[str, tuple[list[str], int, dict[str, str]]] = {
    "dream doom": (["take_cover"], 1, {}),
    "dream doom bfloat16": (["take_cover"], 1, {"dream_dtype": "bfloat16"}),
    "dream car": ([], 3, {}),
}


def multiply_adds(agent: WorldModels) -> int:
    """Of one step of one dream."""
    c, inputs = agent.config, agent.m.lstm.inputs
    return 4 * c.units * (inputs + c.units) + c.units * agent.m.out.out_features + agent.controller.size


def generation(agent: WorldModels, steps: int, population: int = 64, trials: int = 16) -> float:
    """Seconds of one generation in which nobody dies."""
    generator = torch.Generator().manual_seed(0)
    if agent.config.restart:
        with torch.no_grad():
            agent.m.out.weight[0] = 0
            agent.m.out.bias[0] = -5
    thetas = torch.from_numpy(
        np.random.default_rng(0).normal(0, 0.1, (population, agent.controller.size))
    ).float()
    stats = torch.zeros(population * trials, 2, agent.config.latents)
    policy, world = Individuals(agent, thetas, trials), VM(agent, generator, 1.15)
    begin = time.perf_counter()
    _, lengths = rollouts(world, agent.begin(stats, generator), policy, steps)
    took = time.perf_counter() - begin
    assert (lengths == steps).all()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    prepare(args.threads)
    table = []
    for what, (names, actions, more) in WAYS.items():
        agent = WorldModels(OBS, ActionSpace(actions), presets.resolve("world_models", names, more))
        generation(agent, 5)
        rate = matrix_rate()
        took = generation(agent, args.steps)
        rate = max(rate, matrix_rate())
        floor = 2 * multiply_adds(agent) * 1_024 * args.steps / rate
        print(f"{what:20} {took:7.1f} s   floor {floor:6.1f} s   {1_024 * args.steps / took:9,.0f} steps/s")
        table.append(
            {
                "what": what,
                "ours": round(took, 3),
                "unit": f"s/generation of 64 x 16 x {args.steps}",
                "floor": round(floor, 3),
                "threads": args.threads,
            }
        )
    rows.write("dream", table)


if __name__ == "__main__":
    main()
