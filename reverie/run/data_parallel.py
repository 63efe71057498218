"""Several processes make one run: each acts in environments of its own and keeps their replay, all learn one agent.

::

    torchrun --nproc-per-node 2 -m -- reverie train dreamer_v3 --env dmc/walker_walk --preset 12m --run runs/walker

Settings mean what they mean in one process: env steps count wherever they are taken, and a batch is divided among the
ranks, so that the replay ratio stays what it was. Gradients are averaged once for each loss and update, so that all
ranks have the same weights to the last bit; that they do is looked at whenever the run saves itself.

Before each burst of updates the ranks meet, and only there do they save themselves or stop::

    rank 0    act act act act .. meet  update update  act act evaluate ..       meet ..
    rank 1    act act act ..     meet  update update  act act act act act ..    meet ..

Rank 0 lies in the run's folder, evaluates, and speaks; each other has a folder like it in ``ranks``.
"""

import dataclasses
import io
import math
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reverie import checkpoint
from reverie.logger import Logger, Progress
from reverie.parallel import everyone, ranks
from reverie.run.driver import Driver
from reverie.run.folder import Plan, write_plan
from reverie.run.loop import RunConfig, Show, nothing
from reverie.run.online import Online, rows_needed, training_envs
from reverie.run.parts import Parts, make_agent, make_envs, make_replay, replay_size
from reverie.run.show import show
from reverie.types import Agent, Remembers, ReverieError

APART = 100_003  # between the seeds of two ranks' environments and noise
KEPT = 2  # checkpoints of each rank


def folder_of(rank: int, folder: Path) -> Path:
    return folder / "ranks" / f"{rank:03d}" if rank else folder


class DataParallel(Online):
    """One rank's part of such a run. ``config`` is that of the whole, of which it takes its share."""

    COUNTS = (*Online.COUNTS, "meetings", "learned")

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
        super().__init__(agent, envs, eval_envs, replay, config, run, folder, logger, show, env, driver)
        self.rank, self.count = ranks().rank, ranks().size
        self.batch_size //= self.count
        self.meetings = 0
        self.learned = False  # one has come to its end: nobody meets any more
        self.met = False  # before the burst that is due
        self.asked_to_stop = self.agreed_to_save = False
        if self.rank:
            self.progress = Progress(config.steps, out=io.StringIO())

    @staticmethod
    def make(plan: Plan, folder: Path, parts: Parts) -> "DataParallel":
        rank, count = ranks().rank, ranks().size
        config = dataclasses.replace(plan.config, batch_size=plan.config.batch_size // count)
        seed = plan.run.seed + APART * rank
        own = dataclasses.replace(plan, config=config, run=dataclasses.replace(plan.run, seed=seed))
        eval_envs = parts.add(make_envs(own, own.run.eval_episodes, evaluation=True))
        envs = parts.add(training_envs(own))
        agent = make_agent(dataclasses.replace(own, run=plan.run), envs)  # all begin with the same weights
        for generator in getattr(agent, "generators", {}).values():  # and draw by themselves
            generator.manual_seed(generator.initial_seed() + seed - plan.run.seed)
        needed, least = rows_needed(own, count * envs.n)
        context = agent.context if isinstance(agent, Remembers) else None
        replay_size(own, envs, needed, least, context)
        if rank == 0:
            write_plan(folder, plan)  # not before all of it is known to work
        everyone(rank)  # its folder is there
        if rank:
            write_plan(folder, plan)
        logger = parts.add(Logger(folder, plan.run.wandb and rank == 0, plan.as_dict()))
        replay = parts.add(make_replay(own, envs, folder, needed, least, context))
        shown = partial(show, plan)
        return DataParallel(
            agent, envs, eval_envs, replay, plan.config, own.run, folder, logger, shown, plan.env
        )

    @staticmethod
    def check(config: Any, run: RunConfig) -> None:
        Online.check(config, dataclasses.replace(run, envs=run.envs * run.processes))
        if config.batch_size % run.processes:
            raise ReverieError(
                f"--batch-size {config.batch_size} can not be divided among {run.processes} processes: choose one that "
                f"can"
            )
        if run.collector:
            raise ReverieError("several processes act beside each other already: leave out --collector")

    # How far it is: as if the others were as far

    @property
    def env_steps(self) -> int:
        return ranks().size * self.driver.env_steps

    @property
    def done(self) -> bool:
        return self.learned and self.at_end and (self.rank > 0 or super().done)

    def evaluation_due(self) -> bool:
        return self.rank == 0 and super().evaluation_due()

    # Moving

    def move(self) -> None:
        if not self.learned and not self.met and (self.pending or self.at_end or self.rows_due()):
            self.meet()
        else:
            super().move()
            self.met = self.met and self.pending > 0

    def meet(self) -> None:
        """Agree on what is next: all update, or one has come to its end; what one wants besides, all do."""
        over = self.at_end and not self.pending
        said = everyone(over, self.pending > 0, self.asked_to_stop, super().checkpoint_due())
        overs, updates, stops, saves = zip(*said, strict=True)
        self.meetings += 1
        self.learned = any(overs)
        self.stopping, self.agreed_to_save = any(stops), any(saves) or self.learned
        if self.stopping or self.agreed_to_save:
            self.compare()
        if self.learned:
            self.pending = 0
        self.met = all(updates) and not (self.stopping or self.agreed_to_save or self.learned)

    def compare(self) -> None:
        """Raise ``ReverieError`` if the ranks' weights are not the same to the last bit."""
        weights = self.agent.state_dict().get("modules", {})
        bits = [weight.detach().cpu().reshape(-1).view(torch.uint8).sum() for weight in weights.values()]
        if len({own for (own,) in everyone(sum(int(bit) * k for k, bit in enumerate(bits, 1)))}) > 1:
            raise ReverieError(
                f"the weights of the {self.count} processes have grown apart after {self.updates:,} updates: the agent "
                f"learns by more than gradients; train it in one process"
            )

    # Stopping and going on

    def interrupt(self, *_: Any) -> None:
        if self.learned:
            super().interrupt()
        elif self.asked_to_stop:
            raise KeyboardInterrupt
        else:
            self.asked_to_stop = True
            if self.rank == 0:
                os.write(2, b"\nStopping where all meet: saving first (Ctrl-C again to leave at once).\n")

    def stop(self) -> None:
        if not self.asked_to_stop:
            super().stop()

    def checkpoint_due(self) -> bool:
        return super().checkpoint_due() if self.learned and not self.agreed_to_save else self.agreed_to_save

    def save(self) -> None:
        super().save()
        self.agreed_to_save = False

    def newest_state(self) -> dict[str, Any] | None:
        """The state of the last meeting that every rank has a good checkpoint of."""
        folder = self.folder / "checkpoints"
        good: dict[int, Path] = {}
        for path in checkpoint.paths(folder)[-KEPT:]:
            try:
                good[checkpoint.load_path(path)[1]["meetings"]] = path
            except ReverieError as error:
                warnings.warn(f"{error}; going on from one that every rank has", stacklevel=3)
        numbers = [*sorted(good), *[-1] * KEPT][:KEPT]
        common = set.intersection(*(set(said) for said in everyone(*numbers))) - {-1}
        return checkpoint.load_path(good[max(common)])[1] if common else None


def driver(agent: Agent, envs: Any, replay: Any, random: int, seed: int) -> Driver:
    """One whose share of the first ``random`` env steps is a rank's."""
    return Driver(agent, envs, replay, math.ceil(random / ranks().size), seed)
