"""Environments: adapters for Gymnasium, dm_control and Doom, wrappers, and n of them stepped together.

``make_env`` is the front door; ``SerialEnvs`` and ``WorkerEnvs`` step many. Importing this registers worlds of
our own with Gymnasium: those of ``small.py`` (``reverie/Catch-v0``, ``DynaMaze``, ``Recall``, ``Rooms``, ``Dials``,
``Probe``, ``Everything``), and the races of ``car_racing.py``, ``reverie/CarRacing-v0``, the same with the stock
picture, ``reverie/CarRacingExact-v0``, and the one that only the clock ends, ``reverie/CarRacingFull-v0``.
``reverie/Sokoban-v0`` (10x10 cells, 4 boxes), ``reverie/SokobanSmall-v0`` (7x7, 2), ``reverie/SokobanTiny-v0`` (7x7,
1) and ``reverie/MiniPacman-v0`` with its other tasks ``reverie/MiniPacmanAvoid-v0``, ``..Hunt..``, ``..Ambush..`` and
``..Rush..`` are one world with ``gymnasium.make`` and a batch of them with ``gymnasium.make_vec``. Goal worlds are
listed in ``goals.py``. ``reverie/TwoRooms-v0`` is the grid world of several tasks in ``two_rooms.py``.
"""

from collections.abc import Callable
from typing import Any

import gymnasium

import reverie.envs.goals
import reverie.envs.small
import reverie.envs.two_rooms
import reverie.robots  # noqa: F401  (all of these register their worlds)
from reverie.envs.base import Env
from reverie.envs.vector import Envs, SerialEnvs, WorkerEnvs, episode_seed
from reverie.envs.wrappers import ActionRepeat, Pixels, Resize, TimeLimit
from reverie.types import ReverieError

__all__ = ["Env", "Envs", "SerialEnvs", "WorkerEnvs", "episode_seed", "from_gymnasium", "make_env"]

# Not registered in car_racing.py, which cannot be imported without Box2D.
for _race, _how in (("", {}), ("Exact", {"exact": True}), ("Full", {"full_episodes": True})):
    if f"reverie/CarRacing{_race}-v0" not in gymnasium.registry:
        _entry = "reverie.envs.car_racing:CarRacing"
        gymnasium.register(f"reverie/CarRacing{_race}-v0", _entry, max_episode_steps=1000, kwargs=_how)

# Nor these in their files, which compile.
_GRIDS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("Sokoban", "sokoban:Sokoban", 120, {}),
    ("SokobanSmall", "sokoban:Sokoban", 120, {"size": 7, "boxes": 2}),
    ("SokobanTiny", "sokoban:Sokoban", 120, {"size": 7, "boxes": 1}),
    ("MiniPacman", "mini_pacman:MiniPacman", 3000, {}),
    *(
        (f"MiniPacman{_task.title()}", "mini_pacman:MiniPacman", 3000, {"task": _task})
        for _task in ("avoid", "hunt", "ambush", "rush")
    ),
]
for _name, _entry, _steps, _how in _GRIDS:
    if f"reverie/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(
            f"reverie/{_name}-v0",
            f"reverie.envs.{_entry}",
            vector_entry_point=f"reverie.envs.{_entry}s",
            max_episode_steps=_steps,
            kwargs=_how,
        )


def make_env(
    name: str,
    *,
    pixels: bool = False,
    image_size: int | None = 64,
    action_repeat: int = 1,
    time_limit: int | None = None,
    renderer: str = "near",
    camera: int | str | None = None,
) -> Env:
    """The environment called ``name``, in canonical form.

    ``dmc/<domain>_<task>`` is the DeepMind Control Suite, ``doom/take_cover`` a scenario of ViZDoom; any other
    name is looked up with Gymnasium (``Pendulum-v1``, ``gym/Pendulum-v1``, ``module:Name-v0``). With ``pixels``
    nothing but pictures is observed: the environment's own if it has any, else what it draws. Pictures are
    ``image_size`` square (None: as they are). ``time_limit`` in env steps replaces the environment's own.
    ``a+b`` is both tasks, one per episode. ``renderer`` is how MuJoCo draws: reference, near or fast;
    ``camera`` is its number or name (None: the one that shows the task). Raises ``ReverieError`` for unknown
    names and missing packages.
    """
    if "+" in name:
        from reverie.envs.tasks import Tasks

        options: dict[str, Any] = dict(pixels=pixels, image_size=image_size, action_repeat=action_repeat)
        options |= dict(time_limit=time_limit, renderer=renderer, camera=camera)
        names = name.split("+")
        return Tasks([make_env(task, **options) for task in names], names)
    size, endless = _check_size(pixels, image_size), time_limit is not None
    env: Env
    if name.startswith("dmc/"):
        from reverie.envs.dm_control import DMControl

        env = DMControl(name[4:], size=size or 240, renderer=renderer, camera=camera, endless=endless)
    elif name.startswith("doom/"):
        from reverie.envs.doom import Doom

        env = Doom(name[5:], size=image_size, endless=endless)
    else:
        from reverie.envs.gymnasium import make

        env = make(name, endless=endless, size=size, renderer=renderer, camera=camera)
    return _dress(env, pixels, image_size, action_repeat, time_limit)


def from_gymnasium(
    env: Any | Callable[[], Any],
    *,
    pixels: bool = False,
    image_size: int | None = 64,
    action_repeat: int = 1,
    time_limit: int | None = None,
    renderer: str = "near",
    camera: int | str | None = None,
) -> Env:
    """A ready ``gymnasium.Env``, or what a factory makes, in canonical form; options as in ``make_env``.

    ``time_limit`` cannot lengthen a limit the environment already has.
    """
    from reverie.envs.gymnasium import Gymnasium

    if isinstance(env, type) or (callable(env) and not hasattr(env, "step")):
        env = env()
    ours = Gymnasium(env, size=_check_size(pixels, image_size), renderer=renderer, camera=camera)
    return _dress(ours, pixels, image_size, action_repeat, time_limit)


def _check_size(pixels: bool, image_size: int | None) -> int | None:
    """The size to draw at, None if nothing is drawn for an agent."""
    if image_size is not None and image_size < 1:
        raise ReverieError(f"image_size must be at least 1, or None; got {image_size}.")
    return (image_size or 64) if pixels else None


def _dress(env: Env, pixels: bool, image_size: int | None, action_repeat: int, time_limit: int | None) -> Env:
    if time_limit is not None:
        env = TimeLimit(env, time_limit)
    if action_repeat != 1:
        env = ActionRepeat(env, action_repeat)
    if pixels:
        env = Pixels(env, image_size)
    images = [space for space in env.obs_space.values() if space.is_image]
    if image_size is not None and any(space.shape[:2] != (image_size, image_size) for space in images):
        env = Resize(env, image_size)
    return env
