"""TorchRL's update of Dreamer V3 for ``dreamer_v3_peers.py``; runs in TorchRL's environment.

The wheel brings the maintained example, but not its settings: these are the ones its README gives for size1m.
"""

import runpy
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
import torchrl
from omegaconf import OmegaConf
from tensordict import TensorDict

B, T, SEES, ACTS = 16, 64, 3, 1
SETTINGS = {
    "env": dict(
        backend="gym", name="Pendulum-v1", seed=0, use_seed=True, max_episode_steps=200, vector_key="observation",
        pixels_key=None,
    ),
    "networks": dict(
        num_categoricals=32, num_classes=4, rnn_hidden_dim=512, hidden_dim=64, recurrent_model="block_gru",
        num_blocks=8, encoder_layers=3, decoder_layers=3, decoder_event_dims=None, dynamics_layers=1, prior_layers=2,
        posterior_layers=1, reward_layers=1, actor_layers=3, value_layers=3, num_reward_bins=255, num_value_bins=255,
        unimix=0.01, norm_eps=1e-4, policy_min_std=0.1, policy_max_std=1.0,
    ),
    "optimization": dict(
        compile="off", compile_train_step=False, compile_rssm=None, rssm_scan_unroll=8, cudagraph_train_step=False,
        compile_train_step_mode="default", mixed_precision=False, free_bits=1.0, dynamic_loss_weight=1.0,
        representation_loss_weight=0.1, continuation_horizon=333.0, imagination_horizon=15, use_reinforce=True,
        return_normalization_rate=0.01, return_normalization_min_scale=1.0, gamma=1.0, lmbda=0.95,
        slow_critic_regularization=1.0, slow_critic_tau=0.02, lr=4e-5, adaptive_grad_clip=0.3, optimizer_eps=1e-20,
        warmup_steps=1000, replay_value_loss_weight=0.3, separate_policy_rng=False,
    ),
    "collector": dict(num_envs=1),
    "replay_buffer": dict(batch_size=B, seq_len=T),
}  # fmt: skip

torch.set_num_threads(int(sys.argv[1]))
where = Path(torchrl.__file__).resolve().parents[1] / "sota-implementations" / "dreamer_v3"
sys.path.insert(0, str(where))
example = runpy.run_path(str(where / "train.py"), run_name="peer")
cfg, device = OmegaConf.create(SETTINGS), torch.device("cpu")
learner = example["_build_learner"](cfg, device, SEES, ACTS)
update = example["_make_learner_update"](cfg, device, learner)
flag = lambda: torch.zeros(B, T, 1, dtype=torch.bool)
data = TensorDict(
    {
        "state": torch.zeros(B, T, 128),
        "belief": torch.zeros(B, T, 512),
        "action": 2 * torch.rand(B, T, ACTS) - 1,
        "is_init": flag(),
        "next": {
            "observation": torch.randn(B, T, SEES),
            "reward": torch.rand(B, T, 1),
            "done": flag(),
            "terminated": flag(),
            "truncated": flag(),
        },
    },
    [B, T],
)
count = sum(p.numel() for group in learner.optimizer.param_groups for p in group["params"])
print(">", version("torchrl"), count, flush=True)
for _ in sys.stdin:
    batch = data.clone()
    begin = time.perf_counter()
    update.step(None, batch)
    print(">", time.perf_counter() - begin, flush=True)
