"""The loop of agents that learn from what they have just done, in many environments at once, and then forget it.

::

    data        while the env steps are fewer than ``model_steps``: act and learn as below, and record every row
    model       ``model_updates`` updates of the agent's model from what was recorded; then it stays as it is
    agent       ``length`` rows in each of ``actors`` environments, then one agent.update from them

An agent without a model has the last stage alone. The smallest move is a whole rollout with its update::

    row          0    1    ..   T-1   T
    obs         o0   o1    ..          oT     row T is row 0 of the next rollout
    action      a0   a1    ..  a_T-1   --     chosen by the policy as it was before the update
    left        what ``act`` left behind at rows 0..T-1, given back to ``update``

A checkpoint is taken between two moves. The environments come back as ``envs.restore`` does it: every stream by its
episode's seed and the actions taken in it. Environments that are stepped as one batch hand out their own state
instead. One that does neither faithfully begins a new episode, with a warning.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reverie import checkpoint
from reverie.data.replay import Replay
from reverie.logger import Logger, duration, plural
from reverie.run.driver import FLAGS, like, row_of
from reverie.run.folder import Plan, write_plan
from reverie.run.loop import ByEnvSteps, RunConfig, Show, at_least, nothing
from reverie.run.parts import Parts, make_agent, make_envs, make_replay, other_run, replay_size
from reverie.run.show import show
from reverie.types import Batch, Carry, ReverieError, Step


class OnPolicy(ByEnvSteps):
    """One run. Of ``config``, the agent's, the loop reads steps, actors and length, and of an agent with a model
    model_steps, model_updates and model_batch; ``replay`` holds the rows its model learns from. ``given`` puts a model
    in the place of the one that would be learned, when the run begins."""

    KINDS = ("act", "model", "evaluate")
    COUNTS = ("env_steps", "updates", "episodes", "model_updates", "evaluated", "logged", "scores")
    env_steps = 0
    agent: Any  # an Agent whose ``update`` also takes what ``act`` left behind

    def __init__(
        self,
        agent: Any,
        envs: Any,
        eval_envs: Any,
        replay: Replay,
        config: Any,
        run: RunConfig,
        folder: Path,
        logger: Logger,
        show: Show = nothing,
        env: str = "",
        given: Callable[["OnPolicy"], None] | None = None,
    ):
        super().__init__(agent, envs, eval_envs, replay, config, run, folder, logger, show, env)
        self.given = given
        n = envs.n
        self.rows: Step | None = None  # the newest, not acted at yet
        self.carry: Carry = agent.initial(n)
        self.history = History(n)
        self.model_updates = 0
        self.score, self.length = np.zeros(n, np.float64), np.zeros(n, np.int64)

    @staticmethod
    def make(plan: Plan, folder: Path, parts: Parts) -> "OnPolicy":
        c, run = plan.config, plan.run
        world = Path(c.world) if getattr(c, "world", "") else None
        if world and not checkpoint.paths(folder / "checkpoints"):
            read_model(world, plan)  # refused, if it has to be, before anything is made
        envs = parts.add(make_envs(plan, c.actors, cluster=run.cluster))
        eval_envs = parts.add(make_envs(plan, run.eval_episodes, evaluation=True))
        agent = make_agent(plan, envs)
        # What a model learns from; an agent without one, or with another run's, records nothing.
        recorded = 0 if world else getattr(c, "model_steps", 0)
        needed = 2 * math.ceil(recorded / c.action_repeat / envs.n) + 2 * c.length + 2 if recorded else 2
        replay_size(plan, envs, needed, 2)
        write_plan(folder, plan)
        logger = parts.add(Logger(folder, run.wandb, plan.as_dict()))
        replay = parts.add(make_replay(plan, envs, folder, needed, 2))
        given = (lambda loop: loop.take_model(read_model(world, plan))) if world else None
        shown = partial(show, plan)
        return OnPolicy(agent, envs, eval_envs, replay, c, run, folder, logger, shown, plan.env, given)

    # Where it is

    @property
    def stage(self) -> str:
        if self.env_steps < getattr(self.config, "model_steps", 0):
            return "data"
        return "model" if self.model_updates < getattr(self.config, "model_updates", 0) else "agent"

    @property
    def done(self) -> bool:
        return self.at_end and self.evaluated == self.env_steps

    @property
    def at_end(self) -> bool:
        return super().at_end and self.stage == "agent"

    @staticmethod
    def check(config: Any, run: RunConfig) -> None:
        for name in ("steps", "actors", "length"):
            at_least(config, name, 1)
        if run.envs not in (1, config.actors):
            raise ReverieError(
                f"this agent steps --actors {config.actors} environments together; give --actors {run.envs} "
                f"instead of --envs {run.envs}"
            )
        for name in ("model_steps", "model_updates", "model_batch"):
            if hasattr(config, name):
                at_least(config, name, int(name == "model_batch"))
        if getattr(config, "model_updates", 0) and not config.model_steps:
            raise ReverieError("--model-updates need --model-steps of data to learn from")

    @property
    def place(self) -> int:
        return self.env_steps + self.model_updates

    # Moving

    def move(self) -> None:
        begin = time.perf_counter()
        if self.stage == "model":
            kind, n = "model", self.model()
        elif self.evaluation_due():
            kind, n = "evaluate", self.evaluate()
        elif self.log_due():
            self.log()
            return
        else:
            kind, n = "act", self.rollout()
        self.spent[kind] += time.perf_counter() - begin
        self.counted[kind] += n

    def rollout(self) -> int:
        """``length`` rows in every stream and one update from them; the env steps it took."""
        before, recording = self.env_steps, self.stage == "data"
        rows, actions, left = [self.newest()], [], []
        for _ in range(self.config.length):
            row = rows[-1]
            action, self.carry = self.agent.act({**row.obs, "is_first": row.is_first}, self.carry, "train")
            action = np.where(row.is_last[:, None], np.float32(0), action)
            left.append(self.carry)
            actions.append(action)
            if recording:
                for i in range(self.envs.n):
                    self.replay.add(row_of(row, i), action[i], i)
            self.history.add(action, row.is_first)
            rows.append(self.envs.step(action))
            self.take_down(rows[-1])
        self.rows = rows[-1]
        self.logger.add(self.agent.update(stacked(rows, actions), left))
        self.updates += 1
        return self.env_steps - before

    def newest(self) -> Step:
        if self.rows is None:
            self.rows = self.envs.step(np.zeros((self.envs.n, self.envs.act_space.size), np.float32))
            self.take_down(self.rows)
        return self.rows

    def take_down(self, row: Step) -> None:
        """Count env steps, and the scores of episodes."""
        self.env_steps += int(row.env_steps.sum())
        self.score = np.where(row.is_first, 0.0, self.score) + row.reward
        self.length = np.where(row.is_first, 0, self.length + 1)
        for i in np.flatnonzero(row.is_last):
            self.ended(float(self.score[i]), int(self.length[i]))

    def model(self) -> int:
        """One update of the agent's model from what was recorded."""
        if self.model_updates == 0 and self.logger.sums:
            self.log()
        self.logger.add(self.agent.update_model(self.replay, self.run.seed, self.model_updates))
        self.model_updates += 1
        last = self.model_updates == self.config.model_updates
        if last or self.model_updates % 100 == 0:
            self.log()
        if last:
            self.progress.say(
                f"model: {plural(self.model_updates, 'update')} from {plural(sum(self.replay.counts), 'row')}, "
                f"{duration(self.spent['model'])}"
            )
        return 1

    def take_model(self, state: Mapping[str, Any]) -> None:
        """The model of another run, as its ``state`` has it. The env steps it was learned from count here too."""
        self.agent.take_model(state["agent"])
        self.env_steps, self.model_updates = self.config.model_steps, self.config.model_updates
        self.evaluated = self.logged = self.env_steps

    # Telling

    def tell(self) -> None:
        if self.stage == "model":
            done, total = self.model_updates, self.config.model_updates
            self.progress.stage(lambda: (done / total, [f"model {done:,}/{total:,} updates"]))
            return
        score = float(np.mean(self.scores)) if self.scores else None
        self.progress(self.env_steps, self.updates, score, self.left())

    def to_do(self) -> dict[str, int]:
        return {
            "act": max(self.config.steps - self.env_steps, 0),
            "model": getattr(self.config, "model_updates", 0) - self.model_updates,
            "evaluate": self.evaluations_left(),
        }

    # Stopping and going on

    def state_dict(self) -> dict[str, Any]:
        rows, own = self.rows, getattr(self.envs, "state_dict", None)
        return {
            **super().state_dict(),
            "carry": self.carry,
            "rows": None
            if rows is None
            else {**rows.obs, **{f"/{name}": getattr(rows, name) for name in FLAGS}},
            "envs": None if own is None else own(),
            "episodes_of": list(self.envs.episodes),
            "history": self.history.state_dict(),
            "score": self.score,
            "length": self.length,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.history.load_state_dict(state["history"])
        self.score, self.length = np.array(state["score"]), np.array(state["length"])
        self.carry = like(self.carry, state["carry"])
        kept = state["rows"]
        self.rows = None
        if kept is not None:
            obs = {key: kept[key] for key in self.envs.obs_space}
            self.rows = Step(obs, *(kept[f"/{name}"] for name in FLAGS))
            self.bring_back(state)

    def bring_back(self, state: Mapping[str, Any]) -> None:
        """The environments, to where their newest rows say; a stream that does not come begins a new episode."""
        assert self.rows is not None
        if state["envs"] is not None:
            self.envs.load_state_dict(state["envs"])
            return
        strayed = []
        for i, episode in enumerate(state["episodes_of"]):
            if self.rows.is_last[i]:
                self.envs.end(i, episode)
                continue
            try:
                taken = self.history.of(i)[: 0 if self.rows.is_first[i] else None]
                arrived = self.envs.restore(i, episode, taken)
                same = not arrived.is_last and all(
                    np.array_equal(arrived.obs[key], self.rows.obs[key][i]) for key in arrived.obs
                )
            except ReverieError:  # it ended earlier than it did
                same = False
            if not same:
                strayed.append(i)
                self.envs.end(i, episode)
                self.rows.is_last[i] = True  # its action is ignored, the next row is the first of a new one
        if strayed:
            warnings.warn(
                f"{plural(len(strayed), 'environment')} of {self.envs.n} did not come back to where they were (they "
                f"do not follow from seed and actions alone): the next episode begins there",
                stacklevel=2,
            )

    def begin_again(self) -> None:
        """Without a checkpoint: from the start. What was recorded is made again."""
        self.replay.rewind([0] * self.replay.streams)
        self.logger.begin()
        if self.given is not None:
            self.given(self)


class History:
    """The actions of every stream's running episode: with its seed, all it takes to bring it back."""

    def __init__(self, n: int):
        self.actions: list[np.ndarray] = []  # "n A", oldest first
        self.began = np.zeros(n, np.int64)  # in ``actions``, where each stream's episode began

    def add(self, action: np.ndarray, is_first: np.ndarray) -> None:
        """What was done at these rows."""
        self.began[is_first] = len(self.actions)
        self.actions.append(action)
        old = int(self.began.min())
        if old > 1_000 and old > len(self.actions) // 2:
            del self.actions[:old]
            self.began -= old

    def of(self, i: int) -> np.ndarray:
        """The actions of stream i's episode, "k A"."""
        taken = [action[i] for action in self.actions[self.began[i] :]]
        return np.stack(taken) if taken else np.zeros((0, 0), np.float32)

    def state_dict(self) -> dict[str, Any]:
        old = int(self.began.min())
        kept = self.actions[old:]
        return {"actions": np.stack(kept) if kept else None, "began": self.began - old}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.actions = [] if state["actions"] is None else [*state["actions"]]
        self.began = np.array(state["began"])


def stacked(rows: list[Step], actions: list[np.ndarray]) -> Batch:
    """T + 1 rows of n streams as n sequences; the last row has no action yet."""
    none = np.zeros_like(actions[0])
    action = np.stack([*actions, none], 1)
    is_first = np.stack([row.is_first for row in rows], 1)
    prev_action = np.roll(action, 1, 1)
    prev_action[:, 0] = 0
    prev_action[is_first] = 0
    obs = {key: torch.from_numpy(np.stack([row.obs[key] for row in rows], 1)) for key in rows[0].obs}
    flags = {
        name: np.stack([getattr(row, name) for row in rows], 1)
        for name in ("reward", "is_last", "is_terminal")
    }
    return Batch(
        obs,
        torch.from_numpy(action),
        torch.from_numpy(prev_action),
        torch.from_numpy(flags["reward"]),
        torch.from_numpy(is_first),
        torch.from_numpy(flags["is_last"]),
        torch.from_numpy(flags["is_terminal"]),
    )


def read_model(folder: Path, plan: Plan) -> dict[str, Any]:
    """The state of the run whose environment model is to be used."""
    names = [name for name in plan.config.__dataclass_fields__ if name.startswith(("model_", "frames"))]
    there, state = other_run(folder, plan, (*names, "pixels", "image_size", "action_repeat"))
    if state["model_updates"] < there.config.model_updates:
        raise ReverieError(f"--world {folder} has not learned its model yet; let it go on first")
    return state
