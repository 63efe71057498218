"""The loop of every agent that learns while it acts: one machine of small moves, interruptible between any two.

::

    while there is something to do:
        an update is due       one agent.update from one sampled batch
        an evaluation is due   whole episodes without noise
        else                   one row in every environment

Updates fall due in bursts, ``train_updates`` for every ``train_every`` env steps from ``prefill`` on. All
that the loop knows is in ``state_dict``, so a checkpoint can be taken anywhere and the run that goes on from it
is the run that was never stopped.
"""

import dataclasses
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reverie import checkpoint
from reverie.logger import Logger, Progress, duration
from reverie.run.driver import Driver
from reverie.run.evaluate import Evaluation, evaluate
from reverie.types import Agent, NotFinite


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
    checkpoint_every: float = 300.0  # seconds
    log_every: float = 10.0  # seconds between two lines of metrics
    wandb: bool = False


SLACK = 10_000  # rows a replay may record beyond a checkpoint and still be taken back to it


class Online:
    """One run. ``config`` is the agent's; the loop reads steps, prefill, train_every, train_updates, batch_size and
    batch_length of it."""

    def __init__(
        self, agent: Agent, envs, eval_envs, replay, config: Any, run: RunConfig, folder: Path, logger: Logger
    ):
        self.agent, self.envs, self.eval_envs, self.replay = agent, envs, eval_envs, replay
        self.config, self.run, self.folder, self.logger = config, run, folder, logger
        self.driver = Driver(agent, envs, replay, config.prefill, run.seed)
        self.rng = np.random.default_rng([run.seed, 2])  # which sequences are sampled
        self.updates = self.pending = 0  # done; due
        self.next_train = config.prefill
        self.next_eval = run.eval_every or math.inf
        self.scores: list[float] = []  # returns of the latest episodes
        self.seconds = 0.0  # of wall-clock, over all sittings
        self.sat_down = time.monotonic()
        self.saved_at, self.saved_rows = time.monotonic(), 0
        self.logged_at = time.monotonic()
        self.last_eval: Evaluation | None = None
        self.stopping = False
        self.progress = Progress(config.steps)

    @property
    def env_steps(self) -> int:
        return self.driver.env_steps

    @property
    def done(self) -> bool:
        return self.env_steps >= self.config.steps and not self.pending

    def loop(self) -> bool:
        """Run to the end, or to Ctrl-C; saves either way. Returns whether the end was reached."""
        before = signal.signal(signal.SIGINT, self.interrupt)
        try:
            while not self.done and not self.stopping:
                self.move()
                if self.checkpoint_due():
                    self.save()
                if time.monotonic() - self.logged_at > self.run.log_every:
                    self.log()
                self.progress(self.env_steps, self.updates, self.scores[-1] if self.scores else None)
            if self.done:
                self.evaluate()
            self.log()
            self.save()
        except NotFinite as error:
            self.progress.say(
                f"Stopped: {error}. The last good checkpoint is kept in {self.folder / 'checkpoints'}; "
                f"lower the learning rate or look at the rewards' scale, then run the same command."
            )
            raise
        finally:
            signal.signal(signal.SIGINT, before)
        return self.done

    def interrupt(self, *_) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        self.progress.say("Stopping: saving first (Ctrl-C again to leave at once).")

    def move(self) -> None:
        """The smallest step forward."""
        if self.pending:
            self.update()
        elif self.env_steps >= self.next_eval:
            self.next_eval += self.run.eval_every
            self.evaluate()
        else:
            self.act()

    def act(self) -> None:
        for episode in self.driver():
            self.scores = [*self.scores[-99:], episode.score]
            self.logger.add({"episode/return": episode.score, "episode/length": episode.length})
        while self.env_steps >= self.next_train:
            self.next_train += self.config.train_every
            self.pending += self.config.train_updates

    def update(self) -> None:
        batch = self.replay.sample(self.config.batch_size, self.config.batch_length, self.rng)
        self.logger.add(self.agent.update(batch))
        self.updates += 1
        self.pending -= 1

    def evaluate(self) -> None:
        result = self.last_eval = evaluate(self.agent, self.eval_envs, self.run.eval_episodes)
        self.log(**{"eval/return": result.mean, "eval/std": result.std, "eval/length": np.mean(result.lengths)})
        self.progress.say(
            f"{self.env_steps:>9,} env steps  {self.updates:>7,} updates  {duration(self.elapsed):>7}  "
            f"evaluation {result.mean:.1f} ± {result.std:.1f} over {len(result.returns)} episodes"
        )

    @property
    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.sat_down

    def log(self, **now: float) -> None:
        self.logged_at = time.monotonic()
        now = {name: float(value) for name, value in now.items()}
        self.logger.write(
            self.env_steps,
            updates=self.updates,
            seconds=round(self.elapsed, 3),
            episodes=sum(self.driver.episode) + self.envs.n,
            **now,
        )

    # Stopping and going on

    def checkpoint_due(self) -> bool:
        rows = max(self.replay.counts) - self.saved_rows
        return time.monotonic() - self.saved_at > self.run.checkpoint_every or rows > SLACK // 2

    def save(self) -> None:
        self.replay.flush()
        checkpoint.save(self.folder / "checkpoints", self.env_steps, self.state_dict())
        self.saved_at, self.saved_rows = time.monotonic(), max(self.replay.counts)

    def state_dict(self) -> dict[str, Any]:
        return {
            "agent": self.agent.state_dict(),
            "driver": self.driver.state_dict(),
            "replay": self.replay.state_dict(),
            "logger": self.logger.state_dict(),
            "rng": self.rng.bit_generator.state,
            "updates": self.updates,
            "pending": self.pending,
            "next_train": self.next_train,
            "next_eval": self.next_eval,
            "scores": self.scores,
            "seconds": self.elapsed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.replay.load_state_dict(state["replay"])
        self.driver.load_state_dict(state["driver"])
        self.logger.load_state_dict(state["logger"])
        self.rng.bit_generator.state = state["rng"]
        for name in ("updates", "pending", "next_train", "next_eval", "scores", "seconds"):
            setattr(self, name, state[name])
        self.sat_down = time.monotonic()
        self.saved_rows = max(self.replay.counts)


def as_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)
