"""The goal worlds of Gymnasium-Robotics (``pip install 'reverie[robotics]'``): FetchReach-v4, PointMaze_UMaze-v3 ...

Importing the package registers them. Its release 1.4.2 looks a joint's type up in a tuple of MuJoCo's enums, which
equal no numpy number from the left (seen with MuJoCo 3.17): every Fetch world fails with a bare AssertionError. Here
it is given the enums as plain integers.
"""

import contextlib
import importlib
import io
from types import SimpleNamespace
from typing import Any

from reverie.types import ReverieError

NAMES = ("Fetch", "PointMaze", "AntMaze")  # how its worlds with goals begin


def register(name: str) -> None:
    """Make its worlds known to Gymnasium; ``name`` is the one that was asked for."""
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):  # it has news
            importlib.import_module("gymnasium_robotics")
            tools: Any = importlib.import_module("gymnasium_robotics.utils.mujoco_utils")
    except ImportError as error:
        raise ReverieError(
            f"{name} needs Gymnasium-Robotics ({error}): pip install 'reverie[robotics]'"
        ) from error
    if not isinstance(tools.mujoco, SimpleNamespace):
        kinds = tools.mujoco.mjtJoint
        plain = {kind: int(getattr(kinds, kind)) for kind in dir(kinds) if kind.startswith("mjJNT_")}
        tools.mujoco = SimpleNamespace(**{**vars(tools.mujoco), "mjtJoint": SimpleNamespace(**plain)})
