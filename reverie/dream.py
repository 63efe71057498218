"""Any learned World as a Gymnasium environment, so that others' agents can live in its dreams.

::

    import gymnasium, reverie.dream

    env = gymnasium.make("reverie/Dream-v0", run="runs/demo")                     one dream
    envs = gymnasium.make_vec("reverie/Dream-v0", num_envs=1024, run="runs/demo") as one batch
    real = gymnasium.make("reverie/Awake-v0", run="runs/demo")                    reality, seen the same way

A dream begins where the data was: the world watches k recorded rows, then closes its eyes::

    row          0     1   ..   k-1  |   k      k+1   ..
    the world   sees  sees ..  sees  | imagines imagines       from the actions of whoever dreams
    shown                     reset()| step()   step()

What is shown are the world's ``features``, or with ``frames`` the picture it believes in. The reward arrives with
the step that led to it. An episode ends where the world's ``cont`` falls below one half: drawing the end at
random was less steady (Ha & Schmidhuber 2018); ``sample_ends`` does that. It is cut off after ``steps``.

``Dreams`` and ``Awake`` have the same spaces: what was learned asleep can be done awake.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from reverie.data.replay import Replay
from reverie.envs import Env
from reverie.types import ActionSpace, Batch, Carry, HasWorld, ObsSpace, ReverieError, Step, World

FPS = 20  # of what is rendered


class Border:
    """What Gymnasium sees of a world: spaces, observations going out, actions coming in."""

    def __init__(
        self,
        world: World,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        frames: bool,
        render_mode: str | None,
        modes: tuple[str, ...],
    ):
        self.world, self.frames, self.groups = world, frames, act_space.groups
        with torch.no_grad():
            features = world.features(world.initial(1))
        self.device = features.device
        self.image = next((key for key in sorted(obs_space) if obs_space[key].is_image), None)
        if self.image is None and frames:
            raise ReverieError(
                f"this world sees {', '.join(obs_space)}: there is no picture to show; leave frames out"
            )
        if render_mode is not None and render_mode not in modes:
            raise ReverieError(
                f"render_mode {render_mode!r} is not possible here; choose one of {', '.join((*modes, 'None'))}"
            )
        self.obs_space: spaces.Space = (
            spaces.Box(0, 255, obs_space[self.image].shape, np.uint8)
            if self.image is not None and frames
            else spaces.Box(-np.inf, np.inf, tuple(features.shape[1:]), np.float32)
        )
        self.act_space: spaces.Space
        if not self.groups:
            self.act_space = spaces.Box(-1.0, 1.0, (act_space.size,), np.float32)
        elif len(self.groups) == 1:
            self.act_space = spaces.Discrete(self.groups[0])
        else:
            self.act_space = spaces.MultiDiscrete(list(self.groups))
        self.size = act_space.size

    def seed(self, rng: np.random.Generator) -> None:
        """Let the world's randomness begin anew."""
        generator = getattr(self.world, "generator", None)
        if generator is not None:
            generator.manual_seed(int(rng.integers(2**63)))

    def see(self, carry: Carry) -> np.ndarray:
        """The observations "n ...", an array of their own."""
        if self.frames:
            return self.pictures(carry)
        return np.array(self.world.features(carry).cpu().numpy(), np.float32)

    def pictures(self, carry: Carry) -> np.ndarray:
        """What the world believes it would see, uint8 "n h w c"."""
        assert self.image is not None
        return np.array(self.world.decode(carry)[self.image].cpu().numpy(), np.uint8)

    def act(self, actions: Any, n: int) -> np.ndarray:
        """Gymnasium's actions in our form, float32 "n A"."""
        given = np.asarray(actions)
        width = len(self.groups) or self.size
        if given.dtype.kind not in ("iu" if self.groups else "iuf") or given.size != n * width:
            raise ReverieError(
                f"a dream of {self.act_space} needs actions for {n} rows, got {given.dtype} {given.shape}"
            )
        given = given.reshape(n, width)
        if not self.groups:
            if not np.isfinite(given).all():
                raise ReverieError("an action is not finite; look at the agent that chose it")
            return np.clip(given, -1.0, 1.0).astype(np.float32)
        counts = np.array(self.groups)
        if (given < 0).any() or (given >= counts).any():
            raise ReverieError(
                f"actions should be from 0 to {(counts - 1).tolist()}, got {given.min()} to {given.max()}"
            )
        hot = np.zeros((n, self.size), np.float32)
        np.put_along_axis(hot, given + np.cumsum(counts) - counts, 1.0, 1)
        return hot


class Dreams(VectorEnv):
    """``n`` dreams of one world side by side, in one batch; no step is taken row by row.

    ``starts`` "B k" are rows of data to begin from; each reset draws one of the B and lets the world watch it
    anew. ``temperature`` is set on the world, None leaves it as it is. ``seed`` counts as given to the first
    reset. A world's ``generator``, if it has one, is seeded with every seeded reset; other worlds draw from
    PyTorch's own, which is left alone.

    ``autoreset_mode`` is one of Gymnasium's: the row after an episode's last begins a new one (NEXT_STEP), the
    last row is replaced by it and found in ``final_obs`` (SAME_STEP), or whoever steps resets the rows named in
    ``options={"reset_mask": bool "n"}`` (DISABLED).
    """

    def __init__(
        self,
        world: World,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        starts: Batch,
        n: int,
        *,
        steps: int,
        frames: bool = False,
        sample_ends: bool = False,
        temperature: float | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        seed: int | None = None,
    ):
        if n < 1 or steps < 1:
            raise ReverieError(f"dreams need n >= 1 and steps >= 1, got n {n} and steps {steps}")
        if 0 in starts.reward.shape or starts.is_last[:, -1].any():
            raise ReverieError("dreams need starts: sequences of data whose last row does not end an episode")
        heat = float(world.temperature if temperature is None else temperature)
        if not 0.0 < heat < math.inf:
            raise ReverieError(f"a dream's temperature must be above 0 and finite, got {heat}")
        world.temperature = heat
        pictures = any(space.is_image for space in obs_space.values())
        modes = ("rgb_array",) if pictures else ()
        self.border = Border(world, obs_space, act_space, frames, render_mode, modes)
        self.world, self.starts = world, starts.to(self.border.device)
        self.num_envs, self.steps, self.sample_ends = n, steps, sample_ends
        self.autoreset_mode, self.render_mode = AutoresetMode(autoreset_mode), render_mode
        self.metadata = {
            "render_modes": list(modes),
            "render_fps": FPS,
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space = self.border.obs_space
        self.single_action_space = self.border.act_space
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)
        self.carry: Carry = None  # before the first reset and after close()
        self._seed = seed
        self._clock = np.zeros(n, np.int64)  # steps since each row's start
        self._over = np.zeros(n, bool)  # rows whose episode ended with the last step, and that were not reset

    @torch.no_grad()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin all dreams, or those of ``options["reset_mask"]``; the others are shown as they are."""
        fresh = self.carry is None
        if fresh and seed is None:
            seed = self._seed
        mask = self._mask((options or {}).get("reset_mask"))
        super().reset(seed=seed)
        if fresh or seed is not None:
            self.border.seed(self.np_random)
        obs = self._begin(np.flatnonzero(mask))
        return (obs if mask.all() else self.border.see(self.carry)), {}

    def _mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, bool)
        fits = isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.num_envs,)
        if not fits or not mask.any():
            raise ReverieError(
                f"reset_mask should be a bool array of shape ({self.num_envs},) with a True in it, got {mask!r}"
            )
        if self.carry is None and not mask.all():
            raise ReverieError("dreams must all be begun once before some of them are: call reset() first")
        return mask

    def _begin(self, rows: np.ndarray) -> np.ndarray:
        """Put fresh dreams into ``rows``; their first observations."""
        picks = self.np_random.integers(len(self.starts.reward), size=len(rows))
        part = watch(self.world, self.starts, torch.from_numpy(picks).to(self.border.device))
        if len(rows) == self.num_envs:
            self.carry = part
        else:
            self.carry = self.world.put(self.carry, torch.from_numpy(rows).to(self.border.device), part)
        self._clock[rows], self._over[rows] = 0, False
        return self.border.see(part)

    @torch.no_grad()
    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self.carry is None:
            raise ReverieError("this dream has not begun, or is closed: call reset() first")
        action = torch.from_numpy(self.border.act(actions, self.num_envs)).to(self.border.device)
        again = np.flatnonzero(self._over)  # empty under SAME_STEP
        if len(again) and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ReverieError(
                f"{len(again)} of {self.num_envs} dreams ended with the last step, the first is row {again[0]}: "
                'call reset() before the next step, with options={"reset_mask": ...} for these alone'
            )
        self.carry = self.world.imagine(self.carry, action)
        self._clock += 1
        obs = self.border.see(self.carry)
        reward = self.world.reward(self.carry).cpu().numpy().astype(np.float64)
        cont = self.world.cont(self.carry).cpu().numpy()
        terminated = cont <= self.np_random.random(self.num_envs) if self.sample_ends else cont < 0.5
        truncated = self._clock >= self.steps
        if len(again):  # their action led nowhere: this row is the first of a new dream
            obs[again] = self._begin(again)
            reward[again], terminated[again], truncated[again] = 0.0, False, False
        self._over = terminated | truncated
        info: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._over.any():
            ended = np.flatnonzero(self._over)
            info = self._final(obs, ended)
            obs[ended] = self._begin(ended)
        return obs, reward, terminated, truncated, info

    def _final(self, obs: np.ndarray, ended: np.ndarray) -> dict[str, Any]:
        """Last observations as Gymnasium hands them out: an array of objects, None where nothing ended."""
        mask, final = self._over.copy(), np.full(self.num_envs, None, object)
        for i in ended:
            final[i] = obs[i].copy()
        return {"final_obs": final, "_final_obs": mask, "final_info": {}, "_final_info": mask.copy()}

    @torch.no_grad()
    def render(self) -> tuple[np.ndarray, ...] | None:
        """The pictures the world believes in, uint8 "h w c" each; None without a render mode."""
        if self.render_mode is None:
            return None
        if self.carry is None:
            raise ReverieError("this dream has not begun, or is closed: call reset() first")
        return tuple(self.border.pictures(self.carry))

    def close_extras(self, **kwargs: Any) -> None:
        self.carry = None


class Dream(gymnasium.Env):
    """One dream; ``Dreams`` with n = 1, and its options."""

    def __init__(
        self,
        world: World,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        starts: Batch,
        *,
        steps: int,
        **options: Any,
    ):
        mode = AutoresetMode.DISABLED
        self.dreams = Dreams(
            world, obs_space, act_space, starts, 1, steps=steps, autoreset_mode=mode, **options
        )
        self.observation_space = self.dreams.single_observation_space
        self.action_space = self.dreams.single_action_space
        self.metadata = {name: self.dreams.metadata[name] for name in ("render_modes", "render_fps")}
        self.render_mode = self.dreams.render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        obs, info = self.dreams.reset(seed=seed)
        return obs[0], info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.dreams.step(action)
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Any:
        frames = self.dreams.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self.dreams.close()


class Awake(gymnasium.Env):
    """A real environment seen through a world: the spaces of its dream, the rewards and ends of reality.

    Each real row goes through ``observe``; what is shown are the features of what the world then believes, or
    with ``frames`` its picture of it. ``render()`` shows the environment itself.
    """

    def __init__(self, world: World, env: Env, *, frames: bool = False, render_mode: str | None = None):
        self.world, self.env = world, env
        self.border = Border(world, env.obs_space, env.act_space, frames, render_mode, ("rgb_array",))
        self.observation_space, self.action_space = self.border.obs_space, self.border.act_space
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}
        self.render_mode = render_mode
        self.carry: Carry = None
        self._closed = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if self.carry is None or seed is not None:
            self.border.seed(self.np_random)
        self.carry = self.world.initial(1)
        row = self.env.reset(int(self.np_random.integers(2**31)) if seed is None else seed)
        return self._observe(row, np.zeros((1, self.border.size), np.float32)), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        prev_action = self.border.act(action, 1)
        row = self.env.step(prev_action[0])
        terminated = bool(row.is_terminal)
        obs = self._observe(row, prev_action)
        return obs, float(row.reward), terminated, bool(row.is_last) and not terminated, {}

    @torch.no_grad()
    def _observe(self, row: Step, prev_action: np.ndarray) -> np.ndarray:
        tensor = lambda value: torch.as_tensor(value, device=self.border.device)
        obs = {key: tensor(value)[None] for key, value in row.obs.items()}
        is_first = tensor(np.array([row.is_first]))
        self.carry = self.world.observe(obs, tensor(prev_action), is_first, self.carry)
        return self.border.see(self.carry)[0]

    def render(self) -> Any:
        return None if self.render_mode is None else self.env.render()

    def close(self) -> None:
        if not self._closed:
            self.env.close()
        self._closed = True


@torch.no_grad()
def watch(world: World, batch: Batch, index: Tensor | None = None) -> Carry:
    """What a world believes after it saw the sequences ``batch`` "B k", or those that ``index`` names."""
    chosen = slice(None) if index is None else index
    carry = world.initial(len(batch.reward) if index is None else len(index))
    for t in range(batch.reward.shape[1]):
        obs = {key: value[chosen, t] for key, value in batch.obs.items()}
        carry = world.observe(obs, batch.prev_action[chosen, t], batch.is_first[chosen, t], carry)
    return carry


@torch.no_grad()
def rollouts(
    world: World, carry: Carry, policy: Callable[[Tensor, Tensor], Tensor], steps: int
) -> tuple[Tensor, Tensor]:
    """Play n dreams to their end, ``steps`` at most: returns "n" and lengths "n".

    ``policy(features, rows)`` chooses actions "m A" for m <= n dreams; ``rows`` are their numbers in ``carry``,
    so that each may have parameters of its own. It is the same tensor until dreams leave, which happens when a
    quarter of them has ended; until then the policy is asked for the ended ones too, and what it says of
    them does not count.
    """
    features = world.features(carry)
    rows = torch.arange(len(features), device=features.device)
    returns, lengths = features.new_zeros(len(rows)), torch.zeros_like(rows)
    score, alive = returns.clone(), torch.ones_like(rows, dtype=torch.bool)
    for _ in range(steps):
        carry = world.imagine(carry, policy(features, rows))
        score += torch.where(alive, world.reward(carry), 0.0)  # the row that ends a dream counts
        lengths[rows] += alive
        alive &= world.cont(carry) >= 0.5
        living = int(alive.sum())
        if living <= 0.75 * len(rows):
            returns[rows] = score
            stay = alive.nonzero()[:, 0]
            carry, rows, score, alive = world.take(carry, stay), rows[stay], score[stay], alive[stay]
        if living == 0:
            break
        features = world.features(carry)
    returns[rows] = score
    return returns, lengths


# Dreams of a run


class Opened(NamedTuple):
    """What a run gives to dream of."""

    world: World
    obs_space: ObsSpace
    act_space: ActionSpace
    starts: Batch  # "B k"
    steps: int  # decisions of the longest episode it lived through


def open_run(run: str | Path, context: int = 5, starts: int = 1000) -> Opened:
    """The world of a run's newest good checkpoint, and ``starts`` places of its replay to begin dreams from.

    Each is a sequence of ``context`` rows that does not end with an episode (those that do are left out). The
    run may be going on meanwhile. Raises ``ReverieError`` if there is nothing to dream of.
    """
    from reverie.run.trained import open_replay

    if context < 1 or starts < 1:
        raise ReverieError(f"dreams need context >= 1 and starts >= 1, got {context} and {starts}")
    player, world = _open_world(run)
    replay = open_replay(player.plan, Path(run))
    rng = np.random.default_rng([player.plan.run.seed, 4])
    return Opened(
        world, player.obs_space, player.act_space, contexts(replay, context, starts, rng), _longest(replay)
    )


def contexts(replay: Replay, length: int, n: int, rng: np.random.Generator) -> Batch:
    """Of ``n`` sequences drawn from a replay, those whose last row is not the last of an episode."""
    if max(replay.counts) < length:
        raise ReverieError(
            f"this replay holds {max(replay.counts)} rows in a row and a dream's context is {length}; "
            f"collect more, or lower the context"
        )
    batch = replay.sample(n, length, rng)
    index = (~batch.is_last[:, -1]).nonzero()[:, 0]
    if len(index) == 0:
        raise ReverieError("every sequence drawn from this replay ends with an episode; ask for more starts")
    return batch.take(index)


def _longest(replay: Replay) -> int:
    """Decisions of the longest finished episode; without one, all that is there."""
    lived = [end - first - 1 for s in range(replay.streams) for first, end in replay.episodes_of(s)]
    return max(lived, default=max(1, max(replay.counts) - 1))


def _open_world(run: str | Path) -> tuple[Any, World]:
    """The trained agent of a run, and its world."""
    from reverie.run.trained import load

    player = load(run)
    if not isinstance(player.agent, HasWorld):
        raise ReverieError(
            f"{run} is a run of {player.plan.agent}, which learns no world: there is nothing to dream of"
        )
    if getattr(player.agent, "updates", None) == 0:
        raise ReverieError(f"the world of {run} has not learned anything yet; train it longer")
    return player, player.agent.world


def make_dream(
    run: str | Path, context: int = 5, starts: int = 1000, steps: int | None = None, **options: Any
) -> Dream:
    """``reverie/Dream-v0``: one dream of a run. ``options`` are those of ``Dreams``."""
    world, obs_space, act_space, batch, longest = open_run(run, context, starts)
    return Dream(world, obs_space, act_space, batch, steps=longest if steps is None else steps, **options)


def make_dreams(
    num_envs: int,
    run: str | Path,
    context: int = 5,
    starts: int = 1000,
    steps: int | None = None,
    **options: Any,
) -> Dreams:
    """``reverie/Dream-v0`` with ``gymnasium.make_vec``: ``num_envs`` dreams of a run in one batch."""
    world, obs_space, act_space, batch, longest = open_run(run, context, starts)
    steps = longest if steps is None else steps
    return Dreams(world, obs_space, act_space, batch, num_envs, steps=steps, **options)


def make_awake(run: str | Path, **options: Any) -> Awake:
    """``reverie/Awake-v0``: the environment a run was trained in, seen through its world."""
    player, world = _open_world(run)
    return Awake(world, player.make_env(), **options)


for _id, _one, _many in (("Dream", "make_dream", "make_dreams"), ("Awake", "make_awake", None)):
    if f"reverie/{_id}-v0" not in gymnasium.registry:
        gymnasium.register(
            f"reverie/{_id}-v0",
            f"{__name__}:{_one}",
            vector_entry_point=f"{__name__}:{_many}" if _many else None,
        )
