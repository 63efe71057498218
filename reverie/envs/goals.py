"""Goal environments: what is to be reached is part of the observation, and anyone may ask how far it was.

The interface is Gymnasium-Robotics', so that others' agents can use ours and ours theirs: the observation is a
dictionary of ``observation`` (without the goal), ``achieved_goal`` and ``desired_goal``, and
``compute_reward(achieved, desired, info)`` and ``compute_terminated`` answer for any pair, also for many at once.

``GoalEnv`` makes one of any Gymnasium environment. Made here, and registered with Gymnasium::

    reverie/BitFlip-v0          15 bits, one flipped at a step (HER, Sec. 3.1); BitFlip8 and BitFlip25 have 8 and 25
    reverie/PointMass-v0        a damped mass on a plane
    reverie/GoalReacher-v0      Reacher-v5: the fingertip, in units of 0.2 m
    reverie/GoalArm-v0          the 7-joint arm of Pusher-v5: all of its state (TDM's reacher)
    reverie/GoalHand-v0         the same arm: its hand's place
    reverie/GoalPusher-v0       Pusher-v5: hand and puck on the table (TDM's pusher)
    reverie/GoalCheetah-v0      HalfCheetah-v5: a speed (TDM's half-cheetah)
    reverie/GoalAnt-v0          Ant-v5: a place (TDM's ant)

Rewards are -1 until the goal is reached, and 0 there; with ``Dense`` in the name (reverie/PointMassDense-v0) they are
minus the distance. The last six need MuJoCo (``pip install 'reverie[mujoco]'``); FetchReach-v4, PointMaze_UMaze-v3 and
their kin come with ``reverie[robotics]``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.types import ReverieError

KEYS = ("observation", "achieved_goal", "desired_goal")
Numbers = Any  # one for each pair of goals, or a single one
Draw = Callable[[np.random.Generator], np.ndarray]


class Goal:
    """When a goal is reached, and what that is worth.

    ``threshold`` is the largest distance (L2, over ``entries`` of the goal, None: all) that counts as there. The
    reward is -1 until then and 0 there, or with ``dense`` minus the distance. ``stop``: being there ends the world.
    """

    def __init__(
        self, threshold: float, dense: bool = False, stop: bool = False, entries: Sequence[int] | None = None
    ):
        self.threshold, self.dense, self.stop = threshold, dense, stop
        self.entries = slice(None) if entries is None else list(entries)

    def distance(self, achieved: np.ndarray, desired: np.ndarray) -> Numbers:
        """Between goals "... G", "..."."""
        apart = np.asarray(achieved) - np.asarray(desired)
        return np.linalg.norm(apart[..., self.entries], axis=-1)

    def reward(self, achieved: np.ndarray, desired: np.ndarray) -> Numbers:
        away = self.distance(achieved, desired)
        return -away if self.dense else -(away > self.threshold).astype(np.float32)

    def reached(self, achieved: np.ndarray, desired: np.ndarray) -> Numbers:
        return self.distance(achieved, desired) <= self.threshold


class GoalEnv(gymnasium.Wrapper):
    """A goal environment from any whose observation is a vector.

    ``goal`` are the entries of the observation that make the goal, or a function of observations "... O" to goals
    "... G". ``sample`` draws a desired goal with the environment's own generator; a pair of vectors stands for
    uniform between them. ``keep`` are the entries left in ``observation``, or a function as well (None: all).
    Rewards and success follow ``judge``; an end of the environment's own stays one. ``is_success`` is told in
    ``info``. Raises ``ReverieError`` for a goal that does not fit.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        goal: Sequence[int] | Callable[[np.ndarray], np.ndarray],
        sample: Draw | tuple[Sequence[float], Sequence[float]],
        judge: Goal,
        keep: Sequence[int] | Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        super().__init__(env)
        box, name = env.observation_space, env.spec.id if env.spec else type(env.unwrapped).__name__
        if not isinstance(box, spaces.Box) or len(box.shape) != 1:
            raise ReverieError(
                f"a goal environment is made of one whose observation is a vector; that of {name} is {box}; "
                f"flatten it with gymnasium.wrappers.FlattenObservation"
            )
        self.judge = judge
        self.goal_map = reader(goal, box.shape[0], f"the goal of {name}")
        self.kept = reader(
            range(box.shape[0]) if keep is None else keep, box.shape[0], f"what is seen of {name}"
        )
        blank = np.zeros(box.shape)
        size, seen = self.goal_map(blank).shape[-1], self.kept(blank).shape[-1]
        if callable(sample):
            self.draw = sample
        else:
            low, high = (np.asarray(bound, np.float64) for bound in sample)
            if low.shape != (size,) or high.shape != (size,):
                raise ReverieError(
                    f"goals of {name} have {size} numbers, and the bounds to draw them between have {low.size} and "
                    f"{high.size}; give one for each"
                )
            self.draw = lambda rng: rng.uniform(low, high)
        whole = lambda n: spaces.Box(-np.inf, np.inf, (n,), np.float64)
        self.observation_space = spaces.Dict(
            observation=whole(seen), achieved_goal=whole(size), desired_goal=whole(size)
        )
        self.desired = np.zeros(size)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        obs, info = self.env.reset(seed=seed, options=options)
        self.desired = np.asarray(self.draw(self.np_random), np.float64)
        return self._goals(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        obs, _, terminated, truncated, info = self.env.step(action)
        seen = self._goals(obs)
        there = bool(self.judge.reached(seen["achieved_goal"], self.desired))
        reward = float(self.compute_reward(seen["achieved_goal"], self.desired, info))
        ended = bool(terminated) or (self.judge.stop and there)
        return seen, reward, ended, truncated, info | {"is_success": there}

    def _goals(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        obs = np.asarray(obs, np.float64)
        return {
            "observation": self.kept(obs),
            "achieved_goal": self.goal_map(obs),
            "desired_goal": self.desired.copy(),
        }

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any = None) -> Numbers:
        """Of arriving at ``achieved`` "... G" when ``desired`` was wanted, "..."."""
        return self.judge.reward(achieved, desired)

    def compute_terminated(self, achieved: np.ndarray, desired: np.ndarray, info: Any = None) -> Numbers:
        """Whether the world ends there, "..."; ends of the environment's own are not known here."""
        reached = self.judge.reached(achieved, desired)
        return reached if self.judge.stop else np.zeros_like(reached)

    def compute_truncated(self, achieved: np.ndarray, desired: np.ndarray, info: Any = None) -> Numbers:
        return np.zeros_like(self.judge.reached(achieved, desired))


def reader(what: Any, size: int, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """``what`` if it is a function, else the function that picks those entries of "... O"."""
    if callable(what):
        return what
    entries = np.asarray(what, np.int64)
    if len(entries) == 0 or entries.min() < 0 or entries.max() >= size:
        raise ReverieError(
            f"{name} must be entries of its observation, which are 0 to {size - 1}; got {list(what)}"
        )
    return lambda obs: np.asarray(obs)[..., entries]


# Worlds made here


class BitFlip(gymnasium.Env):
    """``bits`` bits, and as many actions: each flips one. Reward -1 until the bits are those of the goal, which ends
    the world; the clock ends an episode after ``bits`` steps (HER, Sec. 3.1)."""

    def __init__(self, bits: int = 15):
        if bits < 1:
            raise ReverieError(f"flipping bits needs at least one bit, got {bits}")
        self.bits = bits
        one = spaces.Box(0.0, 1.0, (bits,), np.float32)
        self.observation_space = spaces.Dict(observation=one, achieved_goal=one, desired_goal=one)
        self.action_space = spaces.Discrete(bits)
        self.at = self.desired = np.zeros(bits, np.float32)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.at, self.desired = self.np_random.integers(0, 2, (2, self.bits)).astype(np.float32)
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.at[int(action)] = 1.0 - self.at[int(action)]
        self.t += 1
        there = bool(self.compute_terminated(self.at, self.desired))
        reward = float(self.compute_reward(self.at, self.desired))
        return self._obs(), reward, there, self.t >= self.bits and not there, {"is_success": there}

    def _obs(self) -> dict[str, np.ndarray]:
        return {
            "observation": self.at.copy(),
            "achieved_goal": self.at.copy(),
            "desired_goal": self.desired.copy(),
        }

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any = None) -> Numbers:
        return -np.any(np.asarray(achieved) != np.asarray(desired), axis=-1).astype(np.float32)

    def compute_terminated(self, achieved: np.ndarray, desired: np.ndarray, info: Any = None) -> Numbers:
        return np.all(np.asarray(achieved) == np.asarray(desired), axis=-1)


class PointMass(gymnasium.Env):
    """A mass on a plane, pushed: v <- 0.8 v + 0.1 a, x <- x + v, kept in [-1.5, 1.5]^2. It starts at rest, uniformly
    in [-1, 1]^2. Seen are place and speed. Rewards are a goal's business: see ``point_mass``."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.x = self.v = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x, self.v = self.np_random.uniform(-1.0, 1.0, 2), np.zeros(2)
        return np.concatenate([self.x, self.v]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.v = 0.8 * self.v + 0.1 * np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        x = self.x + self.v
        self.x = np.clip(x, -1.5, 1.5)
        self.v = np.where(x == self.x, self.v, 0.0)  # a wall stops it
        return np.concatenate([self.x, self.v]), 0.0, False, False, {}


# Tasks: which entries are the goal, and where goals are drawn


def point_mass(threshold: float = 0.1, dense: bool = False, stop: bool = False) -> GoalEnv:
    """A place in [-1, 1]^2."""
    return GoalEnv(PointMass(), (0, 1), ([-1.0, -1.0], [1.0, 1.0]), Goal(threshold, dense, stop))


def reacher(threshold: float = 0.1, dense: bool = False, stop: bool = False) -> GoalEnv:
    """The fingertip of Reacher-v5, in units of its reach, 0.2 m; targets as there, uniform in the disc.

    The observation of ten numbers holds the target (4, 5) and the way to it (8, 9): the tip is their sum.
    """

    def sample(rng: np.random.Generator) -> np.ndarray:
        while True:
            goal = rng.uniform(-1.0, 1.0, 2)
            if np.linalg.norm(goal) < 1.0:
                return goal

    tip = lambda obs: 5.0 * (obs[..., 4:6] + obs[..., 8:10])
    keep = lambda obs: np.concatenate([obs[..., 0:4], obs[..., 6:8], tip(obs)], -1)
    return GoalEnv(mujoco("Reacher-v5"), tip, sample, Goal(threshold, dense, stop), keep)


def arm(threshold: float = 0.1, dense: bool = False, stop: bool = False) -> GoalEnv:
    """The 7-joint arm of Pusher-v5, whose joints and limits are those of TDM's reacher; the puck is not seen.

    The goal is all of the arm's state, 7 angles, 7 speeds and the hand's place: a pose that can be held. What counts
    is the hand.
    """
    env = mujoco("Pusher-v5")
    return GoalEnv(env, range(17), pose(env), Goal(threshold, dense, stop, (14, 15, 16)), range(17))


def hand(threshold: float = 0.1, dense: bool = False, stop: bool = False) -> GoalEnv:
    """The same arm, of which only the hand's place is wanted: one where some pose puts it."""
    env = mujoco("Pusher-v5")
    draw = pose(env)
    place = lambda rng: draw(rng)[14:]
    return GoalEnv(env, (14, 15, 16), place, Goal(threshold, dense, stop), range(17))


def pose(env: gymnasium.Env) -> Draw:
    """Poses of the arm at rest, uniform over its joints: 7 angles, 7 speeds of 0, and where that puts the hand."""
    world: Any = env.unwrapped
    low, high = world.model.jnt_range[:7].T

    def sample(rng: np.random.Generator) -> np.ndarray:
        import mujoco

        data = mujoco.MjData(world.model)
        data.qpos[:7] = rng.uniform(low, high)
        mujoco.mj_kinematics(world.model, data)
        return np.concatenate([data.qpos[:7], np.zeros(7), data.body("tips_arm").xpos])

    return sample


def pusher(threshold: float = 0.1, dense: bool = False, stop: bool = False) -> GoalEnv:
    """Hand and puck of Pusher-v5 on the table, xy each; the puck's is what counts, and the hand's is put beside it."""

    def sample(rng: np.random.Generator) -> np.ndarray:
        puck = rng.uniform((0.3, -0.3), (0.6, 0.2))
        return np.concatenate([puck, puck])

    judge = Goal(threshold, dense, stop, (2, 3))
    return GoalEnv(mujoco("Pusher-v5"), (14, 15, 17, 18), sample, judge, range(20))


def cheetah(threshold: float = 0.5, dense: bool = False, stop: bool = False) -> GoalEnv:
    """A speed of HalfCheetah-v5 in [-6, 6] m/s: entry 8 of its observation."""
    return GoalEnv(mujoco("HalfCheetah-v5"), (8,), ([-6.0], [6.0]), Goal(threshold, dense, stop))


def ant(reach: float = 6.0, threshold: float = 0.5, dense: bool = False, stop: bool = False) -> GoalEnv:
    """A place of Ant-v5 in [-reach, reach]^2 m. It sees its place and no contact forces, and may lie on its back.

    The gears are today's 150, the paper's were 30.
    """
    env = mujoco(
        "Ant-v5",
        exclude_current_positions_from_observation=False,
        include_cfrc_ext_in_observation=False,
        terminate_when_unhealthy=False,
    )
    return GoalEnv(env, (0, 1), ([-reach, -reach], [reach, reach]), Goal(threshold, dense, stop))


def mujoco(name: str, **settings: Any) -> gymnasium.Env:
    """One of Gymnasium's MuJoCo worlds without its clock."""
    return gymnasium.make(
        name, disable_env_checker=True, max_episode_steps=-1, render_mode="rgb_array", **settings
    )


WORLDS: dict[str, tuple[str, int | None, dict[str, Any]]] = {  # maker, steps of an episode, settings
    "BitFlip": ("BitFlip", None, {"bits": 15}),
    "BitFlip8": ("BitFlip", None, {"bits": 8}),
    "BitFlip25": ("BitFlip", None, {"bits": 25}),
    "PointMass": ("point_mass", 50, {}),
    "GoalReacher": ("reacher", 50, {}),
    "GoalArm": ("arm", 100, {}),
    "GoalHand": ("hand", 100, {}),
    "GoalPusher": ("pusher", 100, {}),
    "GoalCheetah": ("cheetah", 99, {}),
    "GoalAnt": ("ant", 50, {}),
}
for _name, (_maker, _steps, _settings) in WORLDS.items():
    for _kind, _more in (("", {}), ("Dense", {"dense": True})):
        _id = f"reverie/{_name}{_kind}-v0"
        if _id not in gymnasium.registry and not (_maker == "BitFlip" and _more):
            gymnasium.register(
                _id, f"{__name__}:{_maker}", max_episode_steps=_steps, kwargs=_settings | _more
            )
