"""A tiny world and a tiny agent, so that a whole run takes milliseconds and any moment of it can be tried."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reverie.data.replay import Replay
from reverie.envs import SerialEnvs, WorkerEnvs
from reverie.envs.base import Env, after, first
from reverie.logger import Logger
from reverie.run.driver import Driver
from reverie.run.loop import RunConfig
from reverie.run.online import Online
from reverie.types import ActionSpace, Space


class Walk(Env):
    """A random walk; the seed decides how long it is and whether it ends by falling or by the clock."""

    def __init__(self, wild: bool = False):
        self.obs_space = {"vector": Space((3,))}
        self.act_space = ActionSpace(2)
        self.wild = wild  # does not follow from seed and actions

    def reset(self, seed):
        self.rng = np.random.default_rng(None if self.wild else seed)
        self.t, self.length = 0, int(self.rng.integers(1, 8))
        self.at = self.rng.normal(size=3).astype(np.float32)
        return first({"vector": self.at.copy()})

    def step(self, action):
        self.t += 1
        self.at += 0.1 * self.rng.normal(size=3).astype(np.float32) + action.sum()
        over = self.t >= self.length
        return after({"vector": self.at.copy()}, float(self.at[0]), over and self.length % 2 == 0, over)

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


class Toy:
    """Learns nothing of use, but everything it has depends on all that ever happened to it."""

    def __init__(self, size=2, seed=0):
        self.size = size
        self.weight = torch.ones(3)
        self.momentum = torch.zeros(3)
        self.generators = {
            k: torch.Generator().manual_seed(seed + i) for i, k in enumerate(("train", "eval"))
        }
        self.bad_after = None  # updates until a loss is not finite

    def initial(self, n):
        return (torch.zeros(n, 3), {"count": torch.zeros(n)})

    def act(self, obs, carry, mode):
        state, other = carry
        keep = torch.from_numpy(~obs["is_first"]).float()
        seen = torch.from_numpy(obs["vector"][:, :3])
        state = torch.tanh(state * keep[:, None] + seen * self.weight)
        noise = torch.rand(len(state), self.size, generator=self.generators[mode])
        count = other["count"] * keep + 1
        action = torch.tanh(state.sum(1, keepdim=True) + count[:, None] * noise)
        return action.numpy(), (state, {"count": count})

    def update(self, batch):
        from reverie.types import NotFinite

        if self.bad_after == 0:
            raise NotFinite("the gradient of toy.weight")
        if self.bad_after is not None:
            self.bad_after -= 1
        grad = batch.obs["vector"][..., :3].mean((0, 1)) + batch.prev_action.sum() + batch.reward.mean()
        grad = grad + torch.rand(3, generator=self.generators["train"])
        self.momentum = 0.9 * self.momentum + grad
        self.weight = torch.sin(self.weight + 0.01 * self.momentum)
        return {"loss/toy": self.weight.sum()}

    def report(self, batch, context=5):
        return {}

    def state_dict(self):
        generators = {k: g.get_state() for k, g in self.generators.items()}
        return {"weight": self.weight, "momentum": self.momentum, "generators": generators}

    def load_state_dict(self, state):
        self.weight, self.momentum = state["weight"].clone(), state["momentum"].clone()
        for k, g in self.generators.items():
            g.set_state(state["generators"][k])


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    steps: int = 30
    prefill: int = 10
    pretrain: int = 1
    train_every: int = 8
    train_updates: int = 2
    batch_size: int = 3
    batch_length: int = 4


class Sitting:
    """One sitting at a run: what a process holds, which may ``die`` at any moment and leave only its files."""

    def __init__(
        self, folder, n=1, disk=True, envs=None, config=None, factory=Walk, workers=0, agent=None, driver=Driver,
        **run,
    ):  # fmt: skip
        config = config or ToyConfig()
        self.folder = folder
        self.run = RunConfig(**{"envs": n, "eval_every": 20, "eval_episodes": 2, "log_every": 12, **run})
        self.logger = Logger(folder)
        made = (
            WorkerEnvs(factory, n, self.run.seed, workers)
            if workers
            else SerialEnvs(factory, n, self.run.seed)
        )
        self.envs = envs or made
        self.eval_envs = SerialEnvs(factory, 2, 1_000)
        self.agent = agent or Toy(self.envs.act_space.size)
        self.replay = Replay(
            self.envs.obs_space,
            self.envs.act_space,
            400,
            n,
            folder / "replay" if disk else None,
            slack=200,
            context=getattr(self.agent, "context", None),
            fresh_first=getattr(config, "fresh_first", False),
        )
        self.online = Online(
            self.agent,
            self.envs,
            self.eval_envs,
            self.replay,
            config,
            self.run,
            folder,
            self.logger,
            driver=driver,
        )
        self.acting = [part for part in (self.online.driver, self.envs) if hasattr(part, "close")]

    def go_on(self):
        from reverie.run.train import go_on

        go_on(self.online)
        return self

    def moves(self, k):
        """As ``Online.loop`` does, but no further than k moves."""
        for _ in range(k):
            if self.online.done:
                break
            self.online.move()
        return self

    def die(self):
        """The kernel closes what a killed process had open; nothing is flushed, nothing tidied up."""
        self.logger.file.close()
        if self.replay.storage._lock is not None:
            self.replay.storage._lock.close()
        self.replay.storage._lock = None
        for part in self.acting:
            part.close()

    def close(self):
        for part in (*self.acting, self.logger, self.eval_envs, self.replay):
            part.close()


def everything(sitting):
    """All that a run is, as one nested value; clocks left out."""
    state = sitting.online.state_dict()
    state.pop("clock")
    replay = sitting.replay
    rows = [replay.read(s, max(0, c - replay.size), c) for s, c in enumerate(replay.counts)]
    return plain(
        {**state, "replay": {"counts": replay.counts, "rows": rows}, "metrics": metrics(sitting.folder)}
    )


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def plain(value):
    """Arrays and tensors as bytes, so that == compares bit for bit."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key != "bytes"}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return (value.shape, str(value.dtype), value.tobytes())
    return value


@pytest.fixture(scope="session")
def toys():
    return SimpleNamespace(
        Walk=Walk,
        Toy=Toy,
        Config=ToyConfig,
        Sitting=Sitting,
        everything=everything,
        metrics=metrics,
        plain=plain,
    )


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray")


@pytest.fixture(scope="module")
def nodes(ray):
    """A Ray cluster of two nodes, both of this machine; the second is ``nodes.other``."""
    from ray.cluster_utils import Cluster as Nodes

    memory = 80 * 2**20
    made = Nodes(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": memory},
    )
    made.other = made.add_node(num_cpus=1, object_store_memory=memory)
    yield made
    ray.shutdown()
    made.shutdown()
