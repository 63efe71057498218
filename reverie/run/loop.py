"""What every loop has in common: it moves in small steps, can be stopped between any two, and saves itself.

What falls due when is told by counts alone, never by the clock, and all that a loop knows is in its
``state_dict``: so a checkpoint can be taken anywhere, and the run that goes on from it is the run that was
never stopped.
"""

import math
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reverie import checkpoint
from reverie.logger import Logger, Progress, duration, plural
from reverie.run.evaluate import Evaluation, Interrupted, evaluate
from reverie.types import Agent, NotFinite, ReverieError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class RunConfig:
    """How a run is carried out; what is learned, and by which settings, is in the agent's Config."""

    seed: int = 0
    envs: int = 1  # environments stepped together
    workers: int = 0  # worker processes for them; 0 steps them in this process
    collector: bool = False  # act in a process of its own beside the updates, one burst of them behind
    cluster: str = (
        ""  # Ray cluster of the workers, or of those that play a population: its address, or "local"
    )
    processes: int = 1  # that make this run together; torchrun starts them and says how many
    device: str = "auto"  # cpu, cuda, or auto: cuda if there is one
    graph: bool = False  # record the update once as a CUDA graph, and repeat that
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
        least = {"envs": 1, "processes": 1, "eval_episodes": 1, "log_every": 1}
        for name in ("seed", "workers", "threads", "time_limit", "eval_every", "checkpoint_every", *least):
            at_least(self, name, least.get(name, 0))


Show = Callable[[Any, Evaluation], None]  # called by a loop, with itself


def nothing(loop: Any, result: Evaluation) -> None: ...


class Loop(ABC):
    """One run of ``agent`` in ``folder``. ``show`` is called with each evaluation, before it counts as done.
    ``more`` is the setting that makes a finished run go on."""

    more = "--steps"

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
        progress: Progress,
        show: Show = nothing,
    ):
        self.agent, self.envs, self.eval_envs, self.replay = agent, envs, eval_envs, replay
        self.config, self.run, self.folder, self.logger = config, run, folder, logger
        self.progress, self.show, self.stopping = progress, show, False
        # Clocks. Nothing that is learned depends on them.
        self.seconds = 0.0  # of earlier sittings
        self.sat_down = self.saved_at = time.monotonic()
        self.save_took = 0.0

    @staticmethod
    @abstractmethod
    def make(plan: Any, folder: Path, parts: Any) -> "Loop":
        """The loop of a ``folder.Plan`` with all its parts, from the front door of its environment to its log.
        Those that must be closed are added to ``parts`` (``parts.Parts``)."""

    @property
    @abstractmethod
    def done(self) -> bool: ...

    @property
    @abstractmethod
    def at_end(self) -> bool:
        """All is learned; what is left is to look at it."""

    @staticmethod
    @abstractmethod
    def reached(config: Any, evaluation: Mapping[str, Any]) -> bool:
        """Whether an evaluation, as ``evaluation.json`` has it, is that of the end of such a run."""

    @staticmethod
    @abstractmethod
    def check(config: Any, run: RunConfig) -> None:
        """Refuse what could not be carried out, before anything is made."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How far it is, for ``evaluation.json``."""

    @property
    @abstractmethod
    def place(self) -> int:
        """How far it is; never falls, and tells two checkpoints apart."""

    @abstractmethod
    def move(self) -> None:
        """The smallest step forward."""

    @abstractmethod
    def tell(self) -> None:
        """Show the line of progress, if it is time to."""

    @abstractmethod
    def log(self, **now: Any) -> None:
        """Write a line: the averages since the last one, and the numbers of ``now``."""

    @abstractmethod
    def asked(self) -> str:
        """What is to be done, in words: "1,000 env steps"."""

    @abstractmethod
    def about(self) -> str:
        """Where the run is, in words: "1,000 env steps and 50 updates"."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def begin_again(self) -> None:
        """Start over without a checkpoint, with what is recorded already."""

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
                self.tell()
            if moved:
                self.save()
        except NotFinite as error:
            kept = checkpoint.paths(self.folder / "checkpoints")
            raise ReverieError(
                f"{error}; stopped after {self.about()}: "
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

    def stop(self) -> None:
        """Ask it to save and stop, as the first Ctrl-C does; asked again, nothing."""
        if not self.stopping:
            self.interrupt()

    def evaluation(self, episodes: int) -> Evaluation | None:
        """Whole episodes without noise, shown. None if they were left in the middle: then it was never begun."""
        if self.logger.sums:
            self.log()
        before = self.agent.state_dict()
        try:
            result = evaluate(self.agent, self.eval_envs, episodes, stop=lambda: self.stopping)
            self.show(self, result)
        except Interrupted:
            self.agent.load_state_dict(before)
            return None
        return result

    def checkpoint_due(self) -> bool:
        """By the clock, but never for more than a twentieth of it."""
        waited = time.monotonic() - self.saved_at
        return waited >= max(self.run.checkpoint_every, 20 * self.save_took)

    def save(self) -> None:
        self.logger.check()  # on a GPU nobody has looked at the losses yet
        begin = time.monotonic()
        self.flush()
        checkpoint.save(self.folder / "checkpoints", self.place, {**self.state_dict(), "done": self.done})
        self.saved_at = time.monotonic()
        self.save_took = self.saved_at - begin

    def newest_state(self) -> dict[str, Any] | None:
        """The state to go on from, None if there is none: that of the newest checkpoint that can be read."""
        return checkpoint.newest_good(self.folder / "checkpoints")

    def flush(self) -> None:  # noqa: B027 (a loop may have nothing of the kind)
        """Put on disk what a checkpoint refers to and does not hold."""

    @property
    def elapsed(self) -> float:
        """Seconds of wall-clock, over all sittings."""
        return self.seconds + time.monotonic() - self.sat_down


class ByEnvSteps(Loop):
    """A loop that goes on for ``config.steps`` env steps: by their count it evaluates, logs and tells how far it is.

    ``env`` is the name of the environment: what is joined by + is told apart in evaluations.
    """

    KINDS: tuple[str, ...]  # of moves; what is left to do is estimated from what each kind took so far
    COUNTS: tuple[str, ...]  # attributes that are saved as they are

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
        show: Show = nothing,
        env: str = "",
    ):
        bar = Progress(config.steps)
        super().__init__(agent, envs, eval_envs, replay, config, run, folder, logger, bar, show)
        self.env = env
        self.updates = self.episodes = 0  # done; finished
        self.evaluated = self.logged = 0  # env steps when it was last done
        self.scores: list[float] = []  # returns of the latest episodes
        self.last_eval: Evaluation | None = None
        # Clocks. Nothing that is learned depends on them.
        self.saved_rows = 0
        self.spent = dict.fromkeys(self.KINDS, 0.0)  # seconds, by kind of move
        self.counted = dict.fromkeys(self.KINDS, 0)  # env steps, updates, evaluations

    @property
    @abstractmethod
    def env_steps(self) -> int:
        """Taken so far, in all environments."""

    @property
    def at_end(self) -> bool:
        return self.env_steps >= self.config.steps

    @staticmethod
    def reached(config: Any, evaluation: Mapping[str, Any]) -> bool:
        return evaluation.get("env_steps", 0) >= config.steps

    def counts(self) -> dict[str, int]:
        return {"env_steps": self.env_steps, "updates": self.updates}

    @property
    def place(self) -> int:
        return self.env_steps

    def ended(self, score: float, length: int) -> None:
        """Count an episode that has ended."""
        self.episodes += 1
        self.scores = [*self.scores[-99:], score]
        self.logger.add({"episode/return": score, "episode/length": length})

    # Evaluating and logging

    def evaluation_due(self) -> bool:
        every = self.run.eval_every
        return (self.at_end and self.evaluated != self.env_steps) or bool(
            every and self.env_steps // every > self.evaluated // every
        )

    def evaluate(self) -> int:
        """One evaluation; 1 if it was finished."""
        self.progress.now(self.env_steps, self.updates, "evaluating")
        result = self.evaluation(self.run.eval_episodes)
        if result is None:
            return 0
        self.keep_best(result)
        self.last_eval, self.evaluated = result, self.env_steps
        ends = {"distance": result.distances, "last_reward": result.last_rewards}  # of goal environments
        self.log(
            **{"eval/return": result.mean, "eval/std": result.std, "eval/length": np.mean(result.lengths)},
            **{f"eval/{name}": np.mean(values) for name, values in ends.items() if values},
            **{f"eval/return/{task}": part.mean for task, part in result.by_task(self.env).items()},
        )
        self.progress.say(
            f"{self.env_steps:>11,} env steps {self.updates:>9,} updates {duration(self.elapsed):>8}   "
            f"evaluation {result.mean:.2f} ± {result.std:.2f} over {plural(len(result.returns), 'episode')}"
        )
        return 1

    def keep_best(self, result: Evaluation) -> None:
        """Keep the agent in ``best`` if no evaluation of this run was better: the last one is not always."""
        folder = self.folder / "best"
        before = [checkpoint.says(path, "return") for path in checkpoint.paths(folder)]
        if all(score is None or result.mean > score for score in before):
            checkpoint.save(
                folder, self.place, {"agent": self.agent.state_dict(), "return": result.mean}, keep=1
            )

    def log_due(self) -> bool:
        return self.env_steps // self.run.log_every > self.logged // self.run.log_every

    def log(self, **now: Any) -> None:
        self.logger.write(
            self.env_steps,
            self.place,
            updates=self.updates,
            seconds=round(self.elapsed, 3),
            episodes=self.episodes,
            **{name: float(value) for name, value in now.items()},
        )
        self.logged = self.env_steps

    # Telling

    def asked(self) -> str:
        return f"{self.config.steps:,} env steps"

    def about(self) -> str:
        return f"{plural(self.env_steps, 'env step')} and {plural(self.updates, 'update')}"

    @abstractmethod
    def to_do(self) -> dict[str, int]:
        """What is left of each kind of move, in the unit it is counted in."""

    def left(self) -> float | None:
        """Seconds to go, as what is left of each kind of move costs what it did so far; None: not known yet."""
        seconds = 0.0
        for kind, n in self.to_do().items():
            if self.counted[kind]:
                seconds += n * self.spent[kind] / self.counted[kind]
            elif n and kind != "evaluate":
                return None
        return seconds

    def evaluations_left(self) -> int:
        every = self.run.eval_every
        return 1 + (self.config.steps // every - self.env_steps // every if every else 0)

    # Stopping and going on

    def checkpoint_due(self) -> bool:
        """By the clock, or when the replay's slack is half used up."""
        return super().checkpoint_due() or self.rows_due()

    def rows_due(self) -> bool:
        return max(self.replay.counts) - self.saved_rows > (self.replay.slack or math.inf) / 2

    def flush(self) -> None:
        self.replay.flush()
        self.saved_rows = max(self.replay.counts)

    def state_dict(self) -> dict[str, Any]:
        last = self.last_eval
        return {
            "agent": self.agent.state_dict(),
            "replay": self.replay.state_dict(),
            "logger": self.logger.state_dict(),
            "last_eval": None
            if last is None
            else {"returns": last.returns, "lengths": last.lengths, "seeds": last.seeds},
            **{name: getattr(self, name) for name in self.COUNTS},
            "clock": {"seconds": self.elapsed, "spent": self.spent, "counted": self.counted},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.replay.load_state_dict(state["replay"])
        self.logger.load_state_dict(state["logger"])
        self.last_eval = None if state["last_eval"] is None else Evaluation(**state["last_eval"])
        for name in self.COUNTS:
            setattr(self, name, state[name])
        clock = state["clock"]
        self.seconds, self.sat_down = clock["seconds"], time.monotonic()
        self.spent, self.counted = dict(clock["spent"]), dict(clock["counted"])
        self.saved_rows = max(self.replay.counts)


def at_least(config: Any, name: str, least: int) -> None:
    """Raise ``ReverieError`` if a setting is too small."""
    if getattr(config, name) < least:
        flag = "--" + name.replace("_", "-")
        raise ReverieError(f"{flag} must be at least {least}, got {getattr(config, name)}")
