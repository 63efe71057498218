"""Dyna-Q: "Integrated architectures for learning, planning, and reacting", Sutton 1990; here as in Sutton & Barto,
"Reinforcement Learning", 2nd ed., Sec. 8.2.

The idea. Whatever really happens is used twice: Q is moved by it, and a model writes it down. Between two real
steps the model is asked ``planning_steps`` times what happened before, and Q is moved by the answers in the same
way. So reward found once spreads through everything known without another real step.

Start reading here. Later agents keep this plan and replace its parts: the table Q by networks, that of outcomes by
a learned world that also answers what was never asked, single remembered steps by long imagined ones.

Where the lines of the book's box (Sec. 8.2) are::

    (b) epsilon-greedy action          act
    (d), (e) learn from it, note it    learn, backup
    (f) planning, n times              learn, backup
    Dyna-Q+ (Sec. 8.3)                 preset ``plus``: what was not tried for long promises kappa * sqrt(tau)

Command: ``reverie train dyna_q --env reverie/DynaMaze-v0 --run runs/maze``. In that maze 50 planning steps bring the
way to the goal down to about 18 steps in the third episode; without planning it takes about thirty.

A state is an observation, byte for byte, so any environment will do whose observations come again. The model
remembers the last outcome of each pair. Ties of Q are broken at random, or the first episode would never end.
"""

from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import torch

from reverie.types import ActionSpace, Batch, Media, Metrics, Mode, NotFinite, ObsSpace, ReverieError

LIMIT = 1_000_000  # states of a table


@dataclass(frozen=True)
class Config:
    """The book's values for the maze (Fig. 8.2)."""

    action_repeat: int = 1
    steps: int = 10_000  # env steps in all
    prefill: int = 2  # the loop's first episode is random, as any is until reward is found
    train_every: int = 1  # learn from every env step when it has happened
    train_updates: int = 1
    batch_size: int = 1
    planning_steps: int = 50  # n; the figure has 0, 5, 50
    lr: float = 0.1  # alpha
    discount: float = 0.95  # gamma
    epsilon: float = 0.1  # of random actions
    kappa: float = 0.0  # Dyna-Q+ (Sec. 8.3); 0 is Dyna-Q


class Outcome(NamedTuple):
    """What the model knows of a state and an action."""

    reward: float
    state: int  # arrived at
    terminal: bool
    time: int  # real steps made when it last happened; 0 for never


class DynaQ:
    """The agent: two tables. It learns from each real step once, when it has happened."""

    def __init__(
        self,
        obs_space: ObsSpace,
        act_space: ActionSpace,
        config: Config = Config(),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        if len(act_space.groups) != 1:
            what = "several choices at once" if act_space.discrete else "continuous numbers"
            raise ReverieError(
                f"dyna_q keeps a table of one choice among a few, and this environment's actions are {what}; choose "
                f"one with a Discrete action space, such as reverie/DynaMaze-v0"
            )
        self.obs_space, self.act_space, self.config = obs_space, act_space, config
        self.actions = act_space.size
        self.number: dict[bytes, int] = {}  # of each observation: its row in q
        self.q: list[list[float]] = []  # Q(s, a)
        self.model: dict[int, dict[int, Outcome]] = {}  # for states that were left, by action, in order
        self.left: list[int] = []  # these states, in order
        self.time = 0  # real steps
        self.read = 0  # rows of the replay that were learned from, in each stream
        self.rngs = {u: np.random.default_rng([seed, i]) for i, u in enumerate(("learn", "train", "eval"))}

    # Acting

    def initial(self, n: int) -> tuple:
        return ()  # all it knows is in its tables

    def act(self, obs: Mapping[str, np.ndarray], carry: tuple, mode: Mode) -> tuple[np.ndarray, tuple]:
        """(b) The best action, ties broken at random; while training, any with probability epsilon."""
        epsilon = self.config.epsilon if mode == "train" else 0.0
        n = len(obs["is_first"])
        action = np.zeros((n, self.actions), np.float32)
        draws = self.rngs[mode].random((n, 2)).tolist()
        for i, (key, (coin, point)) in enumerate(zip(self.keys(obs), draws, strict=True)):
            q = self.q[self.number[key]] if key in self.number else [0.0] * self.actions
            top = max(q)
            choices = [a for a, value in enumerate(q) if value == top or coin < epsilon]
            action[i, choices[int(point * len(choices))]] = 1.0
        return action, carry

    def keys(self, obs: Mapping[str, np.ndarray]) -> Iterator[bytes]:
        """Each of n observations as bytes."""
        columns = [np.ascontiguousarray(obs[key]) for key in self.obs_space]
        return (b"".join(column[i].tobytes() for column in columns) for i in range(len(columns[0])))

    # Learning

    def sample(self, replay: Any, rng: np.random.Generator) -> Batch:
        """What happened since the last time: in every stream the rows not yet read, and the one before them."""
        count, first = min(replay.counts), max(self.read - 1, 0)
        self.read = count
        return replay.take(range(replay.streams), [first] * replay.streams, count - first)

    def update(self, batch: Batch) -> Metrics:
        """(d) to (f) for every step in the batch. A row that begins an episode came from nowhere."""
        for value in (batch.reward, batch.prev_action, *batch.obs.values()):
            if not torch.isfinite(value).all():
                raise NotFinite("a number of a batch")
        errors = []
        for b, firsts in enumerate(batch.is_first.tolist()):
            rows = {key: batch.obs[key][b].cpu().numpy() for key in self.obs_space}
            states = [self.state(key) for key in self.keys(rows)]
            choices, rewards = batch.prev_action[b].argmax(-1).tolist(), batch.reward[b].tolist()
            ends = batch.is_terminal[b].tolist()
            errors += [
                abs(self.learn(states[t - 1], choices[t], rewards[t], states[t], ends[t]))
                for t in range(1, len(states))
                if not firsts[t]
            ]
        return {"dyna/td_error": float(np.mean(errors or [0.0])), "dyna/states": len(self.q)}

    def state(self, key: bytes) -> int:
        """The number of an observation, given when it is first met."""
        if key not in self.number:
            if len(self.q) == LIMIT:
                few = "a table helps where observations come again; take an agent with a network"
                raise ReverieError(f"there were {LIMIT:,} different ones, and {few}")
            self.number[key] = len(self.q)
            self.q.append([0.0] * self.actions)
        return self.number[key]

    def learn(self, state: int, action: int, reward: float, after: int, terminal: bool) -> float:
        """One real step: direct learning, model learning, planning. Returns the real step's TD error."""
        error = self.backup(state, action, reward, after, terminal)

        self.time += 1
        if state not in self.model:
            insort(self.left, state)
            stays = Outcome(0.0, state, False, 0)  # Dyna-Q+ may plan with what it has not tried
            self.model[state] = dict.fromkeys(range(self.actions), stays) if self.config.kappa else {}
        known = self.model[state] | {action: Outcome(reward, after, terminal, self.time)}
        self.model[state] = {a: known[a] for a in sorted(known)}

        for point, other in self.rngs["learn"].random((self.config.planning_steps, 2)).tolist():
            state = self.left[int(point * len(self.left))]
            known = self.model[state]
            action = list(known)[int(other * len(known))]
            reward, after, terminal, when = known[action]
            bonus = self.config.kappa * sqrt(self.time - when)
            self.backup(state, action, reward + bonus, after, terminal)
        return error

    def backup(self, state: int, action: int, reward: float, after: int, terminal: bool) -> float:
        """Q(s, a) += alpha [r + gamma max_a' Q(s', a') - Q(s, a)]; the bracket. A terminal s' is worth nothing."""
        q, future = self.q[state], 0.0 if terminal else max(self.q[after])
        error = reward + self.config.discount * future - q[action]
        q[action] += self.config.lr * error
        return error

    def report(self, batch: Batch, context: int = 5) -> Media:
        return {}  # its model knows steps, not pictures

    def state_dict(self) -> dict[str, Any]:
        seen = [list(key) for key in self.number]
        model = [(s, a, *outcome) for s, known in self.model.items() for a, outcome in known.items()]
        return {
            "tables": {
                "obs": torch.tensor(seen, dtype=torch.uint8),
                "q": torch.tensor(self.q, dtype=torch.float64),
                "model": torch.tensor(model, dtype=torch.float64),  # s, a, and what is known of them
            },
            "time": self.time,
            "read": self.read,
            "rngs": {use: rng.bit_generator.state for use, rng in self.rngs.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        tables = {name: table.tolist() for name, table in state["tables"].items()}
        self.number = {bytes(row): i for i, row in enumerate(tables["obs"])}
        self.q, self.model = tables["q"], {}
        for s, a, reward, after, terminal, time in tables["model"]:
            outcome = Outcome(reward, int(after), bool(terminal), int(time))
            self.model.setdefault(int(s), {})[int(a)] = outcome
        self.left = sorted(self.model)
        self.time, self.read = state["time"], state["read"]
        for use, rng in self.rngs.items():
            rng.bit_generator.state = state["rngs"][use]
