"""Reverie: reinforcement learning in imagination.

Agents that learn a model of their world and use it to act::

    import reverie

    run = reverie.train("dreamer_v1", "Pendulum-v1", preset="laptop", run="runs/pendulum")
    policy = reverie.load(run)
    action = policy.act(obs)
"""

from reverie.presets import AGENTS
from reverie.types import ReverieError

__version__ = "0.1.0"
__all__ = ["AGENTS", "ReverieError", "load", "make_env", "train"]


def __getattr__(name: str):
    """The heavy rooms are entered when they are first asked for."""
    if name == "train":
        from reverie.run.train import train

        return train
    if name == "load":
        from reverie.run.trained import load

        return load
    if name == "make_env":
        from reverie.envs import make_env

        return make_env
    raise AttributeError(f"module 'reverie' has no attribute {name!r}")
