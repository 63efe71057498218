"""sheeprl's update of Dreamer V3 (`dreamer_v3_5`, size 1M) for ``dreamer_v3_peers.py``; runs in its environment."""

import sys
import time
from importlib.metadata import version

import gymnasium
import hydra
import numpy as np
import torch
from lightning import Fabric
from sheeprl.algos.dreamer_v3.utils import Moments
from sheeprl.algos.dreamer_v3_5.agent import build_agent
from sheeprl.algos.dreamer_v3_5.dreamer_v3_5 import train, update_target_critic
from sheeprl.utils.utils import dotdict

B, T, SEES, ACTS = 16, 64, 3, 1

torch.set_num_threads(int(sys.argv[1]))
with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
    found = hydra.compose(
        "config",
        [
            "exp=dreamer_v3_5",
            "algo=dreamer_v3_5_1M",
            "env=gym",
            "env.id=Pendulum-v1",
            "algo.cnn_keys.encoder=[]",
            "algo.mlp_keys.encoder=[vector]",
            f"algo.per_rank_batch_size={B}",
            f"algo.per_rank_sequence_length={T}",
            "metric.log_level=0",
        ],
    )
from omegaconf import OmegaConf  # noqa: E402 (hydra brings it)

cfg = dotdict(OmegaConf.to_container(found, resolve=True))
fabric = Fabric(accelerator="cpu", devices=1)
space = gymnasium.spaces.Dict({"vector": gymnasium.spaces.Box(-np.inf, np.inf, (SEES,))})
world_model, actor, critic, target_critic, _ = build_agent(fabric, (ACTS,), True, cfg, space)
learned = [*world_model.parameters(), *actor.parameters(), *critic.parameters()]
optimizer = fabric.setup_optimizers(
    hydra.utils.instantiate(cfg.algo.optimizer, params=learned, _convert_="all")
)
how = cfg.algo.actor.moments
moments = Moments(how.decay, how.max, how.percentile.low, how.percentile.high)

steps = T + cfg.algo.replay_context
world = cfg.algo.world_model
data = {
    "vector": torch.randn(steps, B, SEES),
    "actions": 2 * torch.rand(steps, B, ACTS) - 1,
    "rewards": torch.rand(steps, B, 1),
    "terminated": torch.zeros(steps, B, 1),
    "truncated": torch.zeros(steps, B, 1),
    "is_first": torch.zeros(steps, B, 1),
    "deter": torch.randn(steps, B, world.recurrent_model.recurrent_state_size).half(),
    "stoch": torch.randint(0, world.discrete_size, (steps, B, world.stochastic_size), dtype=torch.uint8),
}
print(">", version("sheeprl"), sum(p.numel() for p in learned), flush=True)
for _ in sys.stdin:
    begin = time.perf_counter()
    train(fabric, cfg, world_model, actor, critic, target_critic, optimizer, moments, data, None, (ACTS,))
    update_target_critic(critic, target_critic, cfg.algo.critic.tau)
    print(">", time.perf_counter() - begin, flush=True)
