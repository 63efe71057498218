"""Steps n environments with a policy and records every row: one call, one row of time in every stream.

::

    rows      = envs.step(last actions)        what the world shows now
    action    = agent.act(rows)                chosen at these rows
    replay.add(rows, action)                   a row is whole only with its action

After a crash the replay knows more than the checkpoint does. The rows beyond the checkpoint are its *journal*:
they are fed in again, in place of the environment, until it is used up; then the environment is brought to the
same moment by resetting it with its episode's seed and repeating the recorded actions. So nothing that was
recorded is lost, and a run that was interrupted is, row for row, the run that was not.

An environment that does not follow from its seed and actions can not be brought back. Its rows are kept all
the same; only the episode that was running is cut, and the next one begins.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from reverie.types import Agent, Remembers, ReverieError, Step

Record = tuple[Step, np.ndarray]  # a row and the action chosen at it
FLAGS = ("reward", "is_first", "is_last", "is_terminal", "env_steps")


@dataclass
class Episode:
    """What is told of a finished episode."""

    stream: int
    score: float  # undiscounted sum of rewards
    length: int  # decisions
    random: bool  # acted by uniformly random actions


class Driver:
    """``prefill``: episodes begun before that many env steps act at random."""

    def __init__(self, agent: Agent, envs, replay, prefill: int, seed: int):
        self.agent, self.envs, self.replay, self.prefill = agent, envs, replay, prefill
        n = envs.n
        self.rng = np.random.default_rng([seed, 1])
        self.carry = agent.initial(n)
        self.action = np.zeros((n, envs.act_space.size), np.float32)
        self.random = np.zeros(n, bool)
        self.scores, self.lengths = np.zeros(n, np.float64), np.zeros(n, np.int64)
        self.episode = [-1] * n  # number of each stream's current episode
        self.env_steps = self.decisions = 0
        self.journals: list[Iterator[Record] | None] = [None] * n
        self.ahead: list[Record | None] = [None] * n  # the next row of each journal
        self.strayed = False  # said that the agent would have acted otherwise than it is recorded to have
        self.wild = False  # said that an environment could not be brought back

    def __call__(self) -> list[Episode]:
        """One row in every stream. Returns the episodes that ended with it."""
        rows, recorded = self.next_rows()
        self.random = np.where(rows.is_first, self.env_steps < self.prefill, self.random)
        self.env_steps += int(rows.env_steps.sum())
        action = self.choose(rows)
        action[rows.is_last] = 0.0
        for i, was in recorded.items():
            if not np.array_equal(action[i], was) and not self.strayed:
                self.strayed = True
                warnings.warn(
                    "this machine does not repeat the recorded actions bit for bit; the record is kept as it is, "
                    "and the run goes on from it",
                    stacklevel=2,
                )
            action[i] = was
        finished = []
        memories = self.memories()
        for i in range(self.envs.n):
            memory = {} if memories is None else {"context": {k: v[i] for k, v in memories.items()}}
            self.replay.add(row_of(rows, i), action[i], i, **memory)
            journal = self.journals[i]
            self.ahead[i] = None if journal is None else next(journal, None)
            self.scores[i] = rows.reward[i] + (0.0 if rows.is_first[i] else self.scores[i])
            self.lengths[i] = 0 if rows.is_first[i] else self.lengths[i] + 1
            self.episode[i] += int(rows.is_first[i])
            self.decisions += int(not rows.is_first[i])
            if rows.is_last[i]:
                finished.append(Episode(i, float(self.scores[i]), int(self.lengths[i]), bool(self.random[i])))
        self.action = action
        return finished

    def choose(self, rows: Step) -> np.ndarray:
        """The agent's actions, or random ones in streams still filling the replay."""
        if self.random.all():
            return self.envs.act_space.sample(self.rng, self.envs.n)
        obs = {**rows.obs, "is_first": rows.is_first}
        action, self.carry = self.agent.act(obs, self.carry, "train")
        if self.random.any():
            at_random = self.envs.act_space.sample(self.rng, self.envs.n)
            action = np.where(self.random[:, None], at_random, action)
        return np.array(action, np.float32)

    def memories(self) -> dict[str, np.ndarray] | None:
        """What the agent remembers at these rows, if it keeps that with them and was asked for an action."""
        if self.random.all() or not isinstance(self.agent, Remembers):
            return None
        return self.agent.remember(self.carry)

    def next_rows(self) -> tuple[Step, dict[int, np.ndarray]]:
        """The next row of every stream, and the recorded actions of those that came from a journal."""
        recorded = {i: record for i, record in enumerate(self.ahead) if record is not None}
        live = [i for i in range(self.envs.n) if i not in recorded]
        for i in live:
            if self.journals[i] is not None:
                self.journals[i] = None
                self.catch_up(i)
        rows = self.envs.step(self.action, live)
        for i, (row, _) in recorded.items():
            put_row(rows, i, row)
        return rows, {i: action for i, (_, action) in recorded.items()}

    def catch_up(self, i: int) -> None:
        """Bring the environment of stream i to where its record ends."""
        actions, obs = self.replay.tail(i)
        if obs is None:  # between two episodes
            self.envs.end(i, self.episode[i])
            return
        try:
            arrived = self.envs.restore(
                i, self.episode[i], actions[:-1]
            )  # the last is still to be carried out
            same = not arrived.is_last and all(np.array_equal(arrived.obs[key], obs[key]) for key in obs)
        except ReverieError:  # it ended earlier than it did
            same = False
        if not same:
            if not self.wild:
                self.wild = True
                warnings.warn(
                    f"the environment of stream {i} did not come back to where its record ends (it does not "
                    f"follow from its seed and actions alone); all rows are kept, and its next episode begins",
                    stacklevel=2,
                )
            self.envs.end(i, self.episode[i])

    def state_dict(self) -> dict[str, Any]:
        """The driver between two calls; the replay's own state tells how many rows it knows of."""
        return {
            "carry": self.carry,
            "action": self.action,
            "random": self.random,
            "scores": self.scores,
            "lengths": self.lengths,
            "episode": list(self.episode),
            "env_steps": self.env_steps,
            "decisions": self.decisions,
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to that moment, after the replay has; what it recorded since becomes the journal."""
        self.carry = like(self.carry, state["carry"])
        for name in ("action", "random", "scores", "lengths"):
            setattr(self, name, np.array(state[name]))
        self.episode = list(state["episode"])
        self.env_steps, self.decisions = state["env_steps"], state["decisions"]
        self.rng.bit_generator.state = state["rng"]
        self.go_on()

    def go_on(self) -> None:
        """Take what the replay recorded beyond its (rewound) counts as the journal."""
        journals = [self.replay.journal(i) for i in range(self.envs.n)]
        self.journals, self.ahead = [*journals], [next(journal, None) for journal in journals]


def row_of(rows: Step, i: int) -> Step:
    """Row of stream i alone."""
    obs = {key: value[i] for key, value in rows.obs.items()}
    return Step(obs, *(getattr(rows, name)[i, ...] for name in FLAGS))  # arrays, not scalars


def put_row(rows: Step, i: int, row: Step) -> None:
    for key in rows.obs:
        rows.obs[key][i] = row.obs[key]
    for name in FLAGS:
        getattr(rows, name)[i] = getattr(row, name)


def like(template: Any, value: Any) -> Any:
    """``value``, as a checkpoint gives it back, in the (named) tuples and on the devices of ``template``."""
    if isinstance(template, tuple):
        parts = [like(t, v) for t, v in zip(template, value, strict=True)]
        return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
    if isinstance(template, Mapping):
        return {key: like(template[key], value[key]) for key in template}
    return value.to(template.device) if isinstance(template, Tensor) else value
