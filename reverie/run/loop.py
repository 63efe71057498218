"""What every loop has in common: it moves in small steps, can be stopped between any two, and saves itself.

What falls due when is told by counts alone, never by the clock, and all that a loop knows is in its
``state_dict``: so a checkpoint can be taken anywhere, and the run that goes on from it is the run that was
never stopped.
"""

import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reverie import checkpoint
from reverie.logger import Logger, Progress
from reverie.types import Agent, NotFinite, ReverieError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class RunConfig:
    """How a run is carried out; what is learned, and by which settings, is in the agent's Config."""

    seed: int = 0
    envs: int = 1  # environments stepped together
    workers: int = 0  # worker processes for them; 0 steps them in this process
    cluster: str = ""  # Ray cluster that plays the rollouts of a population: its address, or "local"
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
            at_least(self, name, least.get(name, 0))


class Loop(ABC):
    """One run of ``agent`` in ``folder``. ``more`` is the setting that makes a finished run go on."""

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
    ):
        self.agent, self.envs, self.eval_envs, self.replay = agent, envs, eval_envs, replay
        self.config, self.run, self.folder, self.logger = config, run, folder, logger
        self.progress, self.stopping = progress, False
        # Clocks. Nothing that is learned depends on them.
        self.seconds = 0.0  # of earlier sittings
        self.sat_down = self.saved_at = time.monotonic()
        self.save_took = 0.0

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

    def checkpoint_due(self) -> bool:
        """By the clock, but never for more than a twentieth of it."""
        waited = time.monotonic() - self.saved_at
        return waited >= max(self.run.checkpoint_every, 20 * self.save_took)

    def save(self) -> None:
        self.logger.check()  # on a GPU nobody has looked at the losses yet
        begin = time.monotonic()
        self.flush()
        checkpoint.save(self.folder / "checkpoints", self.place, self.state_dict())
        self.saved_at = time.monotonic()
        self.save_took = self.saved_at - begin

    def flush(self) -> None:  # noqa: B027 (a loop may have nothing of the kind)
        """Put on disk what a checkpoint refers to and does not hold."""

    @property
    def elapsed(self) -> float:
        """Seconds of wall-clock, over all sittings."""
        return self.seconds + time.monotonic() - self.sat_down


def at_least(config: Any, name: str, least: int) -> None:
    """Raise ``ReverieError`` if a setting is too small."""
    if getattr(config, name) < least:
        flag = "--" + name.replace("_", "-")
        raise ReverieError(f"{flag} must be at least {least}, got {getattr(config, name)}")
