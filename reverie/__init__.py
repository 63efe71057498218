"""Reverie: reinforcement learning in imagination.

Agents that learn a model of their world and use it to act::

    import reverie

    run = reverie.train("dreamer_v1", "Pendulum-v1", preset="laptop", run="runs/pendulum")
    policy = reverie.load(run)
    action = policy.act(obs)
"""

import os

# Before PyTorch comes: its threads wait for each other by spinning, for milliseconds, and where another process
# has one of the cores they spin in vain; an update took up to ten times as long. A short spin costs nothing.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from reverie.presets import AGENTS  # noqa: E402
from reverie.types import ReverieError  # noqa: E402

__version__ = "0.1.0"
__all__ = ["AGENTS", "ReverieError", "load", "make_env", "train"]


def __getattr__(name: str):
    """The heavy rooms are entered when they are first asked for."""
    if name in ("train", "load"):
        from importlib import import_module

        return getattr(import_module("reverie.run.train"), name)
    if name == "make_env":
        from reverie.envs import make_env

        return make_env
    raise AttributeError(f"module 'reverie' has no attribute {name!r}")
