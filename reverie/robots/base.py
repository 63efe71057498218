"""What a machine has to do to be learned on, and what turns it into an environment and an environment into it.

Time on a robot does not wait. The actor (``run/asynchronous/actor.py``) calls, ``rate`` times a second::

    sense()          what is seen now, and the reward of the period that ends here
    send(action)     hands the motors their next aim and returns at once; it holds until the next

``reset`` brings the robot to a place to begin from and may take as long as it takes; ``stop`` makes it safe, at
once, from any thread, as often as it is called. Nothing else is asked of a robot. A *twin* is a simulated one:
its ``send`` lets one period of physics pass.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from reverie.envs.base import Env
from reverie.types import ActionSpace, ReverieError, Space

Obs = dict[str, np.ndarray]


class Reading(NamedTuple):
    """What a robot tells when it is asked."""

    obs: Obs  # as in ``obs_space``
    reward: float  # of the period that ends now; 0 after a reset
    over: bool = False  # it can not go on from here: reset it
    terminal: bool = False  # over, and nothing could be earned after it


class Robot(ABC):
    """A machine, or its twin. ``send`` never gets anything but a finite action inside its space."""

    obs_space: Mapping[str, Space]
    act_space: ActionSpace  # continuous actions are in [-1, 1]; discrete ones are one-hot
    rate: float = 20.0  # decisions a second
    episode: int = 250  # decisions until what is remembered is begun anew
    resets: bool = True  # ``reset`` at the end of an episode; False: the robot goes on from where it is

    @abstractmethod
    def reset(self) -> None:
        """Bring the robot to a place to begin from, at rest. The clock does not run meanwhile."""

    @abstractmethod
    def sense(self) -> Reading:
        """What is seen now. Asked twice without a ``send`` between, it answers the same."""

    @abstractmethod
    def send(self, action: np.ndarray) -> None:
        """Take ``action`` "A" as the aim until the next one; returns at once."""

    @abstractmethod
    def stop(self) -> None:
        """Make it safe, now: hold still, or lie down. Any thread may call it, at any time."""

    def render(self) -> np.ndarray | None:
        """The present moment for a human eye, uint8 "h w 3"; None if there is no picture."""
        return None

    def close(self) -> None:  # noqa: B027 (many hold nothing)
        """Give back cameras and connections."""


class Twin(Robot):
    """A simulated robot: ``rng`` is all its chance, and ``send`` lets ``1 / rate`` seconds of it pass."""

    rng: np.random.Generator

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)


class Played(Twin):
    """Any environment, stepped as a robot is: once a period, by the actor's clock."""

    def __init__(self, env: Env, rate: float = 20.0, seed: int = 0, episode: int = 0) -> None:
        super().__init__(seed)
        self.env, self.rate, self.episode = env, rate, episode
        self.obs_space, self.act_space = env.obs_space, env.act_space
        self.row: Any = None

    def reset(self) -> None:
        self.row = self.env.reset(int(self.rng.integers(2**31)))

    def sense(self) -> Reading:
        row = self.row
        return Reading(row.obs, float(row.reward), bool(row.is_last), bool(row.is_terminal))

    def send(self, action: np.ndarray) -> None:
        if not self.row.is_last:
            self.row = self.env.step(action)

    def stop(self) -> None:
        """An environment stands still when it is not stepped."""

    def render(self) -> np.ndarray:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


class RobotEnv(gymnasium.Env):
    """A twin as a Gymnasium environment, for ``reverie train`` and for others' agents."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, robot: str, render_mode: str | None = None, **settings: Any) -> None:
        self.robot = load(ROBOTS[robot])(**settings)
        self.metadata = {**self.metadata, "render_fps": max(1, round(self.robot.rate))}
        self.render_mode = render_mode
        boxes: dict[str, gymnasium.spaces.Space] = {
            key: gymnasium.spaces.Box(0, 255, space.shape, np.uint8)
            if space.is_image
            else gymnasium.spaces.Box(-np.inf, np.inf, space.shape, np.float32)
            for key, space in self.robot.obs_space.items()
        }
        self.observation_space = gymnasium.spaces.Dict(boxes)
        act = self.robot.act_space
        self.action_space = (
            gymnasium.spaces.Discrete(act.size)
            if len(act.groups) == 1
            else gymnasium.spaces.MultiDiscrete(act.groups)
            if act.groups
            else gymnasium.spaces.Box(-1.0, 1.0, (act.size,), np.float32)
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Obs, dict]:
        super().reset(seed=seed)
        self.robot.rng = self.np_random
        self.robot.reset()
        return self.robot.sense().obs, {}

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict]:
        self.robot.send(self._canonical(action))
        obs, reward, over, terminal = self.robot.sense()
        return obs, reward, terminal, over and not terminal, {}

    def _canonical(self, action: Any) -> np.ndarray:
        groups = self.robot.act_space.groups
        if not groups:
            return np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        picks = np.atleast_1d(action)
        return np.concatenate([np.eye(n, dtype=np.float32)[k] for n, k in zip(groups, picks, strict=True)])

    def render(self) -> np.ndarray | None:
        return self.robot.render()

    def close(self) -> None:
        self.robot.close()


ROBOTS = {
    "a1": "reverie.robots.a1:A1",
    "a1_pushed": "reverie.robots.a1:PushedA1",
    "pick_place": "reverie.robots.pick_place:PickPlace",
    "ball": "reverie.robots.ball:Ball",
}


def make_robot(name: str, rate: float = 0.0, seed: int = 0, **settings: Any) -> Robot:
    """The robot called ``name``: a twin of ours (a1, a1_pushed, pick_place, ball), a class of yours as
    ``module:Class`` or ``path/file.py:Class``, or any environment that ``make_env`` knows, stepped by the clock.

    ``rate`` in decisions a second replaces the robot's own. Raises ``ReverieError`` for what is not there or is not
    a robot.
    """
    if name in ROBOTS:
        robot: Robot = load(ROBOTS[name])(seed=seed, **settings)
    elif ":" in name and not name.startswith("gymnasium:"):
        made = load(name)
        robot = made(**settings)
        if not isinstance(robot, Robot):
            raise ReverieError(f"{name} is a {type(robot).__name__}, and should be a reverie.robots.Robot")
    else:
        from reverie.envs import make_env

        robot = Played(make_env(name, **settings), seed=seed)
    if rate:
        robot.rate = rate
    if not 0 < robot.rate < 10_000:
        raise ReverieError(f"{name}: a rate is a number of decisions a second above 0, got {robot.rate}")
    return robot


def load(name: str) -> Any:
    """What ``module:Class`` or ``path/file.py:Class`` names."""
    where, _, what = name.rpartition(":")
    try:
        if where.endswith(".py"):
            path = Path(where)
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        return getattr(module, what)
    except (ImportError, FileNotFoundError, AttributeError) as error:
        raise ReverieError(f"there is no robot {name}: {error}") from error
