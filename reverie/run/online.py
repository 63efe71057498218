"""The loop of every agent that learns while it acts: one machine of small moves, interruptible between any two.

::

    until nothing is left to do:
        an update is due       one agent.update from one sampled batch
        an evaluation is due   whole episodes without noise
        a line is due          the averages since the last one
        else                   one row in every environment

Updates fall due in bursts, ``train_updates`` for every ``train_every`` env steps from ``prefill`` on. What they
learn from are sequences of ``batch_length`` rows, or what the agent draws itself (``types.Draws``).
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reverie.logger import Logger, Progress, duration, plural
from reverie.run.driver import Driver
from reverie.run.evaluate import Evaluation, Interrupted, evaluate
from reverie.run.loop import Loop, RunConfig, at_least
from reverie.types import Agent, Draws, Remembers, ReverieError


class Online(Loop):
    """One run. Of ``config``, the agent's, the loop reads steps, prefill, pretrain (none if it has no such field),
    train_every, train_updates, batch_size and batch_length (2 if it has none: transitions). ``show`` is called
    with each evaluation, before it counts as done."""

    def __init__(
        self,
        agent: Agent,
        envs: Any,
        eval_envs: Any,
        replay: Any,
        config: Any,
        run: RunConfig,
        folder: Path,
        logger: Logger,
        show: Callable[["Online", Evaluation], None] = lambda online, result: None,
        env: str = "",
    ):
        bar = Progress(config.steps)
        super().__init__(agent, envs, eval_envs, replay, config, run, folder, logger, bar)
        self.draws: Draws | None = agent if isinstance(agent, Draws) else None
        self.show, self.env = show, env  # its name: what is joined by + is told apart in evaluations
        random = config.prefill if getattr(config, "random_prefill", True) else 0
        self.driver = Driver(agent, envs, replay, random, run.seed)
        self.rng = np.random.default_rng([run.seed, 2])  # which sequences are sampled
        self.pretrain = getattr(config, "pretrain", 0)
        self.updates = self.pending = 0  # done; due
        self.episodes = 0  # finished
        self.next_train = config.prefill
        self.evaluated = self.logged = 0  # env steps when it was last done
        self.scores: list[float] = []  # returns of the latest episodes
        self.last_eval: Evaluation | None = None
        # Clocks. Nothing that is learned depends on them.
        self.saved_rows = 0
        self.spent = {"act": 0.0, "update": 0.0, "evaluate": 0.0}  # seconds, by kind of move
        self.counted = {"act": 0, "update": 0, "evaluate": 0}  # env steps, updates, evaluations

    @property
    def env_steps(self) -> int:
        return self.driver.env_steps

    @property
    def done(self) -> bool:
        return self.env_steps >= self.config.steps and not self.pending and self.evaluated == self.env_steps

    @property
    def at_end(self) -> bool:
        return self.env_steps >= self.config.steps

    @staticmethod
    def reached(config: Any, evaluation: Mapping[str, Any]) -> bool:
        return evaluation.get("env_steps", 0) >= config.steps

    @staticmethod
    def check(config: Any, run: RunConfig) -> None:
        c, ones = config, ("steps", "train_every", "batch_size")
        for name in (*ones, "prefill", "train_updates"):
            at_least(c, name, int(name in ones))
        if hasattr(c, "batch_length"):
            at_least(c, "batch_length", 2)
        rows = c.prefill // (c.action_repeat * run.envs)
        if c.train_updates and rows < length(c) <= c.steps:
            raise ReverieError(
                f"--prefill {c.prefill} makes about {rows} rows in each environment before the first update, and "
                + (
                    f"--batch-length {c.batch_length} needs as many: raise one or lower the other"
                    if hasattr(c, "batch_length")
                    else "a transition needs two: raise it"
                )
            )

    def counts(self) -> dict[str, int]:
        return {"env_steps": self.env_steps, "updates": self.updates}

    @property
    def place(self) -> int:
        return self.env_steps

    # Moving

    def move(self) -> None:
        """The smallest step forward."""
        begin = time.perf_counter()
        if self.pending:
            kind, n = "update", self.update()
        elif self.evaluation_due():
            kind, n = "evaluate", self.evaluate()
        elif self.env_steps // self.run.log_every > self.logged // self.run.log_every:
            self.log()
            return
        else:
            kind, n = "act", self.act()
        self.spent[kind] += time.perf_counter() - begin
        self.counted[kind] += n

    def evaluation_due(self) -> bool:
        every = self.run.eval_every
        return (self.at_end and self.evaluated != self.env_steps) or bool(
            every and self.env_steps // every > self.evaluated // every
        )

    def act(self) -> int:
        """One row in every stream; the env steps it took."""
        before = self.env_steps
        for episode in self.driver():
            self.episodes += 1
            self.scores = [*self.scores[-99:], episode.score]
            self.logger.add({"episode/return": episode.score, "episode/length": episode.length})
        while self.env_steps >= self.next_train:
            if self.next_train == self.config.prefill:
                self.pending += self.pretrain
            self.next_train += self.config.train_every
            self.pending += self.config.train_updates
        return self.env_steps - before

    def update(self) -> int:
        if self.draws is not None:
            batch = self.draws.sample(self.replay, self.rng)
        else:
            batch = self.replay.sample(self.config.batch_size, self.config.batch_length, self.rng)
        self.logger.add(self.agent.update(batch))
        if batch.rows is not None and isinstance(self.agent, Remembers):
            self.replay.refresh(batch.rows, self.agent.reread)
        self.updates += 1
        self.pending -= 1
        return 1

    def evaluate(self) -> int:
        """Whole episodes; 1 if they were finished. Left in the middle, it was never begun."""
        if self.logger.sums:
            self.log()
        before = self.agent.state_dict()
        self.progress.now(self.env_steps, self.updates, "evaluating")
        try:
            result = evaluate(self.agent, self.eval_envs, self.run.eval_episodes, stop=lambda: self.stopping)
            self.show(self, result)
        except Interrupted:
            self.agent.load_state_dict(before)
            return 0
        self.last_eval, self.evaluated = result, self.env_steps
        ends = {"distance": result.distances, "last_reward": result.last_rewards}  # of goal environments
        reached = {f"eval/{name}": np.mean(values) for name, values in ends.items() if values}
        apart = {f"eval/return/{task}": part.mean for task, part in result.by_task(self.env).items()}
        self.log(
            **{"eval/return": result.mean, "eval/std": result.std, "eval/length": np.mean(result.lengths)},
            **reached,
            **apart,
        )
        self.progress.say(
            f"{self.env_steps:>11,} env steps {self.updates:>9,} updates {duration(self.elapsed):>8}   "
            f"evaluation {result.mean:.1f} ± {result.std:.1f} over {plural(len(result.returns), 'episode')}"
        )
        return 1

    # Telling

    def tell(self) -> None:
        self.progress(self.env_steps, self.updates, self.scores[-1] if self.scores else None, self.left())

    def asked(self) -> str:
        return f"{self.config.steps:,} env steps"

    def about(self) -> str:
        return f"{plural(self.env_steps, 'env step')} and {plural(self.updates, 'update')}"

    def left(self) -> float | None:
        """Seconds to go, as what is left of each kind of move costs what it did so far; None: not known yet."""
        steps_left, seconds = max(self.config.steps - self.env_steps, 0), 0.0
        bursts = max((self.config.steps - self.next_train) // self.config.train_every + 1, 0)
        pretrain = self.pretrain if self.env_steps < self.config.prefill else 0
        every = self.run.eval_every
        to_do = {
            "act": steps_left,
            "update": self.pending + pretrain + bursts * self.config.train_updates,
            "evaluate": 1 + (self.config.steps // every - self.env_steps // every if every else 0),
        }
        for kind, n in to_do.items():
            if self.counted[kind]:
                seconds += n * self.spent[kind] / self.counted[kind]
            elif n and kind != "evaluate":
                return None
        return seconds

    def log(self, **now: Any) -> None:
        self.logger.write(
            self.env_steps,
            updates=self.updates,
            seconds=round(self.elapsed, 3),
            episodes=self.episodes,
            **{name: float(value) for name, value in now.items()},
        )
        self.logged = self.env_steps

    # Stopping and going on

    def checkpoint_due(self) -> bool:
        """By the clock, or when the replay's slack is half used up."""
        rows, slack = max(self.replay.counts) - self.saved_rows, self.replay.slack or math.inf
        return super().checkpoint_due() or rows > slack / 2

    def flush(self) -> None:
        self.replay.flush()
        self.saved_rows = max(self.replay.counts)

    def state_dict(self) -> dict[str, Any]:
        last = self.last_eval
        return {
            "agent": self.agent.state_dict(),
            "driver": self.driver.state_dict(),
            "replay": self.replay.state_dict(),
            "logger": self.logger.state_dict(),
            "rng": self.rng.bit_generator.state,
            "last_eval": None
            if last is None
            else {"returns": last.returns, "lengths": last.lengths, "seeds": last.seeds},
            **{name: getattr(self, name) for name in COUNTS},
            "clock": {"seconds": self.elapsed, "spent": self.spent, "counted": self.counted},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.replay.load_state_dict(state["replay"])
        self.driver.load_state_dict(state["driver"])
        self.logger.load_state_dict(state["logger"])
        self.rng.bit_generator.state = state["rng"]
        self.last_eval = None if state["last_eval"] is None else Evaluation(**state["last_eval"])
        for name in COUNTS:
            setattr(self, name, state[name])
        clock = state["clock"]
        self.seconds, self.sat_down = clock["seconds"], time.monotonic()
        self.spent, self.counted = dict(clock["spent"]), dict(clock["counted"])
        self.saved_rows = max(self.replay.counts)

    def begin_again(self) -> None:
        """Without a checkpoint: start over, with what is recorded as the journal."""
        self.replay.rewind([0] * self.replay.streams)
        self.driver.go_on()
        self.logger.begin()


COUNTS = ("updates", "pending", "episodes", "next_train", "evaluated", "logged", "scores")


def length(config: Any) -> int:
    """Rows of the sequences an agent learns from: two, a transition, where its Config does not say."""
    return getattr(config, "batch_length", 2)
