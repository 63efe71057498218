"""The loop of every agent that learns while it acts: one machine of small moves, interruptible between any two.

::

    until nothing is left to do:
        an update is due       one agent.update from one sampled batch
        an evaluation is due   whole episodes without noise
        a line is due          the averages since the last one
        else                   one row in every environment

Updates fall due in bursts, ``train_updates`` for every ``train_every`` env steps from ``prefill`` on. What
falls due when is told by counts alone, never by the clock, and all that the loop knows is in ``state_dict``: so
a checkpoint can be taken anywhere, and the run that goes on from it is the run that was never stopped.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reverie import checkpoint
from reverie.logger import Logger, Progress, duration, plural
from reverie.run.driver import Driver
from reverie.run.evaluate import Evaluation, Interrupted, evaluate
from reverie.types import Agent, NotFinite, ReverieError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class RunConfig:
    """How a run is carried out; what is learned, and by which settings, is in the agent's Config."""

    seed: int = 0
    envs: int = 1  # environments stepped together
    workers: int = 0  # worker processes for them; 0 steps them in this process
    device: str = "auto"  # cpu, cuda, or auto: cuda if there is one
    threads: int = 0  # of the learner; 0 for every core
    renderer: str = "near"  # MuJoCo pictures: reference, near or fast
    time_limit: int = 0  # env steps of an episode; 0 for the environment's own
    replay_size: str = "4GB"  # the most the replay may take
    replay_on_disk: bool = True  # in the run's folder; else in memory
    eval_every: int = 10_000  # env steps between evaluations; 0 for one at the end
    eval_episodes: int = 10
    checkpoint_every: int | float = 300.0  # seconds between checkpoints
    log_every: int = 1_000  # env steps between two lines of metrics
    wandb: bool = False

    def __post_init__(self) -> None:
        least = {"envs": 1, "eval_episodes": 1, "log_every": 1}
        for name in ("seed", "workers", "threads", "time_limit", "eval_every", "checkpoint_every", *least):
            if getattr(self, name) < least.get(name, 0):
                flag = "--" + name.replace("_", "-")
                raise ReverieError(f"{flag} must be at least {least.get(name, 0)}, got {getattr(self, name)}")


class Online:
    """One run. Of ``config``, the agent's, the loop reads steps, prefill, pretrain, train_every, train_updates,
    batch_size and batch_length. ``show`` is called with each evaluation, before it counts as done."""

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
        self.agent, self.envs, self.eval_envs, self.replay = agent, envs, eval_envs, replay
        self.config, self.run, self.folder, self.logger, self.show = config, run, folder, logger, show
        self.env = env  # its name: what is joined by + is told apart in evaluations
        self.driver = Driver(agent, envs, replay, config.prefill, run.seed)
        self.rng = np.random.default_rng([run.seed, 2])  # which sequences are sampled
        self.updates = self.pending = 0  # done; due
        self.episodes = 0  # finished
        self.next_train = config.prefill
        self.evaluated = self.logged = 0  # env steps when it was last done
        self.scores: list[float] = []  # returns of the latest episodes
        self.last_eval: Evaluation | None = None
        self.progress = Progress(config.steps)
        self.stopping = False
        # Clocks. Nothing that is learned depends on them.
        self.seconds = 0.0  # of earlier sittings
        self.sat_down = self.saved_at = time.monotonic()
        self.save_took = 0.0
        self.saved_rows = 0
        self.spent = {"act": 0.0, "update": 0.0, "evaluate": 0.0}  # seconds, by kind of move
        self.counted = {"act": 0, "update": 0, "evaluate": 0}  # env steps, updates, evaluations

    @property
    def env_steps(self) -> int:
        return self.driver.env_steps

    @property
    def done(self) -> bool:
        return self.env_steps >= self.config.steps and not self.pending and self.evaluated == self.env_steps

    # Moving

    def loop(self) -> bool:
        """Run to the end, or to Ctrl-C (or SIGTERM); saves either way. Returns whether the end was reached."""
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self.interrupt) for number in SIGNALS} if main else {}
        moved = False
        try:
            while not self.done and not self.stopping:
                self.move()
                moved = True
                if self.checkpoint_due():
                    self.save()
                    moved = False
                self.progress(
                    self.env_steps, self.updates, self.scores[-1] if self.scores else None, self.left()
                )
            if moved:
                self.save()
        except NotFinite as error:
            kept = checkpoint.paths(self.folder / "checkpoints")
            raise ReverieError(
                f"{error}; stopped after {self.updates:,} updates, at {self.env_steps:,} env steps: "
                + (f"{kept[-1]} is good, " if kept else "what was recorded is kept, ")
                + "and a lower learning rate or rewards of a smaller scale may help"
            ) from error
        finally:
            self.progress.clear()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.done

    def interrupt(self, *_: Any) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        # A print may be what was interrupted, and can not be entered twice.
        os.write(2, b"\nStopping: saving first (Ctrl-C again to leave at once).\n")

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
        at_end = self.env_steps >= self.config.steps
        return (at_end and self.evaluated != self.env_steps) or bool(
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
                self.pending += self.config.pretrain
            self.next_train += self.config.train_every
            self.pending += self.config.train_updates
        return self.env_steps - before

    def update(self) -> int:
        batch = self.replay.sample(self.config.batch_size, self.config.batch_length, self.rng)
        self.logger.add(self.agent.update(batch))
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
        apart = {f"eval/return/{task}": part.mean for task, part in result.by_task(self.env).items()}
        self.log(
            **{"eval/return": result.mean, "eval/std": result.std, "eval/length": np.mean(result.lengths)},
            **apart,
        )
        self.progress.say(
            f"{self.env_steps:>11,} env steps {self.updates:>9,} updates {duration(self.elapsed):>8}   "
            f"evaluation {result.mean:.1f} ± {result.std:.1f} over {plural(len(result.returns), 'episode')}"
        )
        return 1

    # Telling

    @property
    def elapsed(self) -> float:
        """Seconds of wall-clock, over all sittings."""
        return self.seconds + time.monotonic() - self.sat_down

    def left(self) -> float | None:
        """Seconds to go, as what is left of each kind of move costs what it did so far; None: not known yet."""
        steps_left, seconds = max(self.config.steps - self.env_steps, 0), 0.0
        bursts = max((self.config.steps - self.next_train) // self.config.train_every + 1, 0)
        pretrain = self.config.pretrain if self.env_steps < self.config.prefill else 0
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
        """By the clock (but never for more than a twentieth of it), or when the replay's slack is half used up."""
        waited = time.monotonic() - self.saved_at
        rows, slack = max(self.replay.counts) - self.saved_rows, self.replay.slack or math.inf
        return waited >= max(self.run.checkpoint_every, 20 * self.save_took) or rows > slack / 2

    def save(self) -> None:
        self.logger.check()  # on a GPU nobody has looked at the losses yet
        begin = time.monotonic()
        self.replay.flush()
        checkpoint.save(self.folder / "checkpoints", self.env_steps, self.state_dict())
        self.saved_at, self.saved_rows = time.monotonic(), max(self.replay.counts)
        self.save_took = self.saved_at - begin

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
