"""Time of one update of the model-free agents beside Stable-Baselines3's, drawing the batch included.

    python benchmarks/model_free.py [--only ddpg] [--blocks 40] [--threads 1]

Both learn from 10,000 stored transitions of HalfCheetah's size (17 numbers seen, 6 chosen), in batches of 256, with
two layers of 256. They take turns in one process, in blocks of 20 updates; told is the median block. The floor is
the multiply-adds that no update can do without over the rate at which this machine multiplies matrices.
"""

import argparse
import statistics
import time

import gymnasium
import numpy as np
import rows
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.logger import Logger
from update import matrix_rate, mlp

from reverie import presets
from reverie.data.replay import Replay
from reverie.machine import prepare
from reverie.types import ActionSpace, Space, Step

SEES, ACTS, BATCH, UNITS, STORED, BLOCK = 17, 6, 256, (256, 256), 10_000, 20
PEERS = {"ddpg": sb3.DDPG, "td3": sb3.TD3, "sac": sb3.SAC}


class Size(gymnasium.Env):
    """Nothing but its spaces."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (SEES,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTS,))


def peer(name: str):
    """A call of it is one update of Stable-Baselines3's agent."""
    model = PEERS[name](
        "MlpPolicy",
        Size(),
        batch_size=BATCH,
        buffer_size=STORED,
        policy_kwargs={"net_arch": list(UNITS)},
        device="cpu",
        seed=0,
    )
    model.set_logger(Logger(None, []))
    rng, done = np.random.default_rng(0), np.zeros(1)
    for _ in range(STORED):
        obs, after = rng.normal(size=(2, 1, SEES)).astype(np.float32)
        model.replay_buffer.add(obs, after, rng.uniform(-1, 1, (1, ACTS)), rng.normal(size=1), done, [{}])
    return lambda: model.train(1, BATCH)


def ours(name: str):
    """A call of it is one update of ours."""
    settings = {"units": UNITS, "batch_size": BATCH, "tau": 0.005}
    settings |= {} if name == "sac" else {"actor_lr": 1e-3, "critic_lr": 1e-3}
    settings |= {"critic_decay": 0.0} if name == "ddpg" else {}
    obs_space, act_space = {"vector": Space((SEES,))}, ActionSpace(ACTS)
    agent = presets.agent_class(name)(obs_space, act_space, presets.resolve(name, (), settings))
    replay, rng = Replay(obs_space, act_space, STORED), np.random.default_rng(0)
    no = np.array(False)
    for i in range(STORED):
        obs = {"vector": rng.normal(size=SEES).astype(np.float32)}
        step = Step(obs, np.float32(rng.normal()), np.array(i == 0), no, no, np.array(int(i > 0)))
        replay.add(step, rng.uniform(-1, 1, ACTS).astype(np.float32))
    return lambda: agent.update(agent.sample(replay, rng))


def work(name: str) -> float:
    """Multiply-adds of one row: forward once, backward once to the weights and once to what feeds them."""
    actor = mlp(SEES, UNITS[0], 2, ACTS * (2 if name == "sac" else 1))
    critic, first = mlp(SEES + ACTS, UNITS[0], 2, 1), (SEES + ACTS) * UNITS[0]
    twins = 1 if name == "ddpg" else 2
    target = actor + twins * critic
    learn = twins * (3 * critic - first)
    climbed = 2 if name == "sac" else 1  # critics that the actor climbs: no gradient to their weights
    climb = 3 * actor - SEES * UNITS[0] + climbed * 2 * critic
    return target + learn + climb / (2 if name == "td3" else 1)


def block(update) -> float:
    start = time.perf_counter()
    for _ in range(BLOCK):
        update()
    return (time.perf_counter() - start) / BLOCK


def measure(name: str, blocks: int) -> dict:
    calls, times = (ours(name), peer(name)), []
    before = matrix_rate()
    for _ in range(blocks + 1):
        times.append([block(call) for call in calls])
    mine, theirs = (
        1e3 * statistics.median(seconds) for seconds in zip(*times[1:], strict=True)
    )  # less the first
    floor = 2e3 * BATCH * work(name) / max(before, matrix_rate())
    print(
        f"{name:5} {mine:6.2f} ms   Stable-Baselines3 {theirs:6.2f} ms, {theirs / mine:.2f} times ours   "
        f"floor {floor:5.2f} ms",
        flush=True,
    )
    return {
        "what": name,
        "ours": mine,
        "unit": "ms/update",
        "floor": floor,
        "peer": theirs,
        "peer_version": f"stable-baselines3 {sb3.__version__}",
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    prepare(args.threads)
    results = [measure(name, args.blocks) for name in args.only]
    if args.only == list(PEERS):
        rows.write("model_free", results)
