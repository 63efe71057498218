"""Train Stable-Baselines3's PPO inside the dream of a trained run, then wake it up.

    reverie train dreamer_v1 --env Pendulum-v1 --preset laptop --run runs/pendulum
    python examples/ppo_in_a_dream.py runs/pendulum

The policy never touches the environment while it learns: it reads the world's features, acts in the world's
imagination, and is paid what the world expects. Needs ``pip install "stable-baselines3>=2.4"``.
"""

import argparse

import gymnasium
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

import reverie.dream  # noqa: F401  (registers reverie/Dream-v0 and reverie/Awake-v0)


class Asleep(VecEnv):
    """Dreams in Stable-Baselines3's form: a row that ends shows the next start, its end is in the info."""

    def __init__(self, run, n):
        self.dreams = gymnasium.make_vec("reverie/Dream-v0", n, run=run, autoreset_mode="SameStep")
        super().__init__(n, self.dreams.single_observation_space, self.dreams.single_action_space)

    def reset(self):
        obs, _ = self.dreams.reset(seed=self._seeds[0])
        self._reset_seeds()
        return obs

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        obs, reward, terminated, truncated, info = self.dreams.step(self.actions)
        told = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(terminated | truncated):
            cut = bool(truncated[i] and not terminated[i])
            told[i] = {"terminal_observation": info["final_obs"][i], "TimeLimit.truncated": cut}
        return obs, reward.astype(np.float32), terminated | truncated, told

    def close(self):
        self.dreams.close()

    def get_attr(self, name, indices=None):
        return [getattr(self.dreams, name) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper, indices=None):
        return [False for _ in self._get_indices(indices)]

    set_attr = env_method = None  # all rows are one batch; PPO asks for neither


def main(run, steps=200_000, rows=64, episodes=10, seed=0, n_steps=64):
    """Returns in the dream and awake, each (mean, std) over ``episodes``."""
    asleep = VecMonitor(Asleep(run, rows))
    asleep.seed(seed)
    ppo = PPO("MlpPolicy", asleep, n_steps=n_steps, batch_size=256, seed=seed, device="cpu")
    ppo.learn(steps)
    awake = Monitor(gymnasium.make("reverie/Awake-v0", run=run))
    awake.reset(seed=1_000_003 + seed)
    found = {name: evaluate_policy(ppo, env, episodes) for name, env in (("dream", asleep), ("awake", awake))}
    for name, (mean, std) in found.items():
        print(f"{name}  {mean:.1f} ± {std:.1f} over {episodes} episodes")
    asleep.close()
    awake.close()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="folder of a trained run")
    parser.add_argument("--steps", type=int, default=200_000, help="imagined steps to learn from")
    main(**vars(parser.parse_args()))
