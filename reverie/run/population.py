"""What each individual of a population earns in the real environment, here or in processes (``cluster.py``: Ray).

::

    with Processes(Recipe("world_models", config, env), workers=2) as population:
        population.set_world(agent.modules.state_dict())                  # V and M, learned before
        results = population.evaluate(evolution.ask(), jobs, on_result)   # thetas "P n", rollouts of each

A job is one rollout. Its seed decides the episode and the noise that z is sampled with, so its result follows from
the individual's numbers and the seed, whoever plays it and however often it is begun again.

That holds to the last bit. A row of a matrix product depends on how many rows there are, though not on which they
are: so a player always shows the agent the same number of rows, those without a job left empty. (Measured for 4, 8,
16 and 32 rows on one thread; with 2 or 3 rows the place of a row counts too. Other machines, other last bits.)
"""

import contextlib
import json
import os
import pickle
import signal
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from reverie import presets
from reverie.envs.base import Env
from reverie.envs.vector import PATIENCE, follow_parent, process_context, settings_of_parent
from reverie.envs.vector import portable as picklable
from reverie.machine import prepare
from reverie.run.evaluate import Interrupted
from reverie.types import ReverieError

TURN = 0.5  # seconds a worker plays between two answers
LONELY = 60.0  # seconds without any worker before it is said


@dataclass(frozen=True)
class Job:
    """One rollout of one individual. ``seed`` decides its episode and its noise."""

    individual: int  # row of the thetas
    trial: int  # number of the rollout among the individual's
    seed: int


class Result(NamedTuple):
    """What came of a job."""

    individual: int
    trial: int
    score: float  # undiscounted return
    length: int  # decisions
    env_steps: int


@dataclass(frozen=True)
class Recipe:
    """What a player is made from. It can be pickled, and so can travel; V and M come later (``set_world``)."""

    agent: str  # name of the agent; it needs ``play``, as that of world_models.py
    config: Any
    env: Callable[[], Env]
    seed: int = 0  # of the agent
    envs: int = 16  # each player steps side by side; from 4 on, results are alike to the last bit


class Slot:
    """A place in a player's batch: an environment, and the rollout that is under way in it."""

    def __init__(self) -> None:
        self.env: Env | None = None
        self.job: Job | None = None

    def begin(self, job: Job) -> None:
        self.job, self.rng = job, np.random.default_rng([job.seed, 7])
        self.score, self.length, self.env_steps = 0.0, 0, 0

    def drop(self) -> None:
        env, self.env = self.env, None
        if env is not None:
            with contextlib.suppress(Exception):  # a broken environment may also fail to close
                env.close()


class Player:
    """Plays rollouts, ``recipe.envs`` side by side, one batch of the agent for each decision.

    An environment that breaks is made anew and its rollout begun again; a rollout in which it breaks three times
    raises ``ReverieError``, as does at once whatever a user can mend.
    """

    def __init__(self, recipe: Recipe):
        if recipe.envs < 1:
            raise ReverieError(f"a player needs at least 1 environment, got {recipe.envs}")
        self.recipe = recipe
        self.slots = [Slot() for _ in range(recipe.envs)]
        env = self.slots[0].env = recipe.env()
        cls = presets.agent_class(recipe.agent)
        if not hasattr(cls, "play"):
            raise ReverieError(
                f"{recipe.agent} is not evolved: a population needs an agent with a controller"
            )
        self.agent = cls(env.obs_space, env.act_space, recipe.config, recipe.seed)
        self.size: int = self.agent.controller.size  # numbers of an individual
        n = recipe.envs
        self.obs = {key: np.zeros((n, *space.shape), space.dtype) for key, space in env.obs_space.items()}
        self.is_first = np.ones(n, bool)
        self.theta = torch.zeros(n, self.size)
        self.noise = np.zeros((n, recipe.config.latents), np.float32)
        self.begin(np.zeros((0, self.size), np.float32), ())

    def set_world(self, world: bytes) -> None:
        """V and M, as ``pack`` makes them."""
        try:
            self.agent.modules.load_state_dict(safetensors.torch.load(world))
        except RuntimeError as error:
            raise ReverieError(
                f"these weights do not fit {self.recipe.agent} with this config: {one_line(error)}"
            ) from error

    def begin(self, thetas: np.ndarray, jobs: Sequence[Job]) -> None:
        """Take up ``jobs`` of the individuals ``thetas`` "P n"; those under way are given up."""
        self.thetas, self.queue = torch.tensor(thetas, dtype=torch.float32), deque(jobs)
        self.breaks: dict[Job, int] = {}
        self.carry = self.agent.initial(len(self.slots))
        for i in range(len(self.slots)):
            self.leave(i)

    @property
    def busy(self) -> bool:
        return bool(self.queue) or any(slot.job is not None for slot in self.slots)

    def turn(self, seconds: float) -> list[Result]:
        """Play for about so long; what was finished."""
        end, results = time.monotonic() + seconds, []
        while self.busy:
            results += self.step()
            if time.monotonic() >= end:
                break
        return results

    def step(self) -> list[Result]:
        """One decision of every rollout under way, after the free slots have begun new ones; what it finished."""
        for i, slot in enumerate(self.slots):
            if slot.job is None and self.queue:
                self.enter(i, self.queue.popleft())
        active = [(i, slot) for i, slot in enumerate(self.slots) if slot.job is not None]
        if not active:
            return []
        for i, slot in active:
            self.noise[i] = slot.rng.standard_normal(self.noise.shape[1], np.float32)
        obs = {**self.obs, "is_first": self.is_first}
        action, self.carry = self.agent.play(obs, self.carry, self.theta, torch.from_numpy(self.noise))
        results = []
        for i, slot in active:
            job = slot.job
            assert job is not None
            with self.breaking(i) as env:
                row = env.step(action[i])
                slot.score += float(row.reward)
                slot.env_steps += int(row.env_steps)
                slot.length += 1
                self.show(i, row)
                if row.is_last:
                    results.append(Result(job.individual, job.trial, slot.score, slot.length, slot.env_steps))
                    self.leave(i)
        return results

    def enter(self, i: int, job: Job) -> None:
        """Begin a job in slot i."""
        self.slots[i].begin(job)
        self.theta[i] = self.thetas[job.individual]
        with self.breaking(i) as env:
            self.show(i, env.reset(job.seed))

    def leave(self, i: int) -> None:
        """Nothing is under way in slot i: its row stays in the batch, forever at a start."""
        self.slots[i].job = None
        self.is_first[i] = True

    def show(self, i: int, row: Any) -> None:
        for key, value in self.obs.items():
            value[i] = row.obs[key]
        self.is_first[i] = row.is_first

    @contextlib.contextmanager
    def breaking(self, i: int) -> Iterator[Env]:
        """The environment of slot i; when it breaks, the job goes back to the queue."""
        slot = self.slots[i]
        job = slot.job
        assert job is not None
        try:
            slot.env = slot.env or self.recipe.env()
            yield slot.env
        except ReverieError:
            raise
        except Exception as error:
            slot.drop()
            self.leave(i)
            self.breaks[job] = self.breaks.get(job, 0) + 1
            what = f"{type(error).__name__}: {error}"
            if self.breaks[job] >= PATIENCE:
                raise ReverieError(
                    f"the environment broke {PATIENCE} times in the rollout of seed {job.seed}: {what}"
                ) from error
            warnings.warn(f"an environment broke ({what}); its rollout is begun again", RuntimeWarning, 2)
            self.queue.appendleft(job)

    def close(self) -> None:
        for slot in self.slots:
            slot.drop()


def pack(state: Mapping[str, Tensor]) -> bytes:
    """A module's state as safetensors, to be sent."""
    return safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in state.items()})


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def ignore(result: Result) -> None: ...


def never() -> bool:
    return False


class Population(ABC):
    """Plays the rollouts of a population. ``size`` is how many numbers an individual has."""

    size: int

    def __init__(self) -> None:
        self._world: bytes | None = None
        self._closed = False

    def set_world(self, state: Mapping[str, Tensor]) -> None:
        """The V and M to play with from now on: ``agent.modules.state_dict()``."""
        self._world = pack(state)

    def evaluate(
        self,
        thetas: np.ndarray,
        jobs: Sequence[Job],
        on_result: Callable[[Result], None] = ignore,
        stop: Callable[[], bool] = never,
    ) -> list[Result]:
        """Play ``jobs`` of the individuals ``thetas`` "P n": a result for each, by individual, then trial.

        ``on_result`` is told of each once, as it comes. Raises ``Interrupted`` when ``stop()`` says so, and
        ``ReverieError`` for what does not fit or can not be played.
        """
        if self._closed:
            raise ReverieError("this population is closed; make a new one")
        thetas = self._check(np.asarray(thetas), jobs)
        results: dict[tuple[int, int], Result] = {}

        def take(result: Result) -> None:
            if results.setdefault(result[:2], result) is result:
                on_result(result)

        if jobs:
            self._play(thetas, jobs, take, stop)
        return [results[key] for key in sorted(results)]

    def _check(self, thetas: np.ndarray, jobs: Sequence[Job]) -> np.ndarray:
        if thetas.ndim != 2 or thetas.shape[1] != self.size:
            raise ReverieError(
                f"an individual of this agent is {self.size} numbers: thetas must have shape "
                f"(individuals, {self.size}), got {thetas.shape}"
            )
        if not np.isfinite(thetas).all():
            raise ReverieError("some numbers of these individuals are not finite; look at what evolves them")
        if len({(job.individual, job.trial) for job in jobs}) < len(jobs):
            raise ReverieError("two jobs are the same trial of the same individual; number the trials")
        for job in jobs:
            if not 0 <= job.individual < len(thetas) or job.seed < 0:
                raise ReverieError(
                    f"{job} can not be played: individuals are 0..{len(thetas) - 1}, seeds count from 0"
                )
        return np.asarray(thetas, np.float32)

    def close(self) -> None:
        """Give back environments and workers; may be called twice."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> "Population":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @abstractmethod
    def _play(
        self,
        thetas: np.ndarray,
        jobs: Sequence[Job],
        take: Callable[[Result], None],
        stop: Callable[[], bool],
    ) -> None:
        """Give ``take`` the result of every job."""

    @abstractmethod
    def _close(self) -> None: ...


class Here(Population):
    """In this process, with as many threads as it has."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.player = Player(recipe)
        self.size = self.player.size

    def set_world(self, state: Mapping[str, Tensor]) -> None:
        self.player.set_world(pack(state))

    def _play(
        self,
        thetas: np.ndarray,
        jobs: Sequence[Job],
        take: Callable[[Result], None],
        stop: Callable[[], bool],
    ) -> None:
        self.player.begin(thetas, jobs)
        while self.player.busy:
            if stop():
                raise Interrupted
            for result in self.player.step():
                take(result)

    def _close(self) -> None:
        self.player.close()


# Workers: a player each, somewhere else. They are asked for a turn and answer with what it finished.


class Turn(NamedTuple):
    """A worker's answer."""

    round: int  # number of the evaluation it was asked in
    results: list[Result]


class Died:
    """In place of an answer: the worker is no more."""

    def __init__(self, why: str):
        self.why = why


class Worker:
    """A player on one thread that answers instead of raising."""

    def __init__(self, recipe: Recipe, settings: Mapping[str, str]):
        self.recipe, self.settings = recipe, settings
        self.player: Player | None = None

    def hello(self) -> int | Exception:
        """Make the player; the numbers of an individual."""
        os.environ.update(self.settings)
        os.environ.setdefault("LP_NUM_THREADS", "0")  # software GL stays on this worker's core
        prepare(threads=1)
        try:
            self.player = Player(self.recipe)
        except Exception as error:
            return portable(error)
        return self.player.size

    def turn(
        self, round: int, world: bytes | None, thetas: np.ndarray | None, jobs: list[Job] | None
    ) -> Turn | Exception:
        """Take up ``jobs``, if any are given, else go on; V and M first, if they are new."""
        assert self.player is not None
        try:
            if world is not None:
                self.player.set_world(world)
            if jobs is not None and thetas is not None:
                self.player.begin(thetas, jobs)
            return Turn(round, self.player.turn(TURN))
        except Exception as error:
            return portable(error)

    def close(self) -> None:
        if self.player is not None:
            self.player.close()


def portable(error: Exception) -> Exception:
    return ReverieError(str(error)) if isinstance(error, ReverieError) else picklable(error)


class Team(Population):
    """Workers that may die, wherever they are.

    Job k is worker k's, modulo their number. A worker that dies costs the rollouts it had not finished: they wait
    for whoever is free first, one made in its place or another one. One that dies three times without finishing a
    rollout raises ``ReverieError``.
    """

    def __init__(self, recipe: Recipe, workers: int):
        super().__init__()
        if workers < 1:
            raise ReverieError(f"a population needs at least 1 worker, got {workers}")
        self.recipe, self.count = recipe, workers
        self._round = 0
        self._shares: list[list[Job]] = [[] for _ in range(workers)]  # not given out yet
        self._pool: list[Job] = []  # of the dead
        self._playing: list[dict[tuple[int, int], Job]] = [{} for _ in range(workers)]
        self._asked = [False] * workers  # an answer is to come
        self._alive = [False] * workers  # or about to be
        self._up = [False] * workers  # has said hello
        self._current = [False] * workers  # has the V and M of now
        self._deaths = [0] * workers  # since its last result
        self._heard = time.monotonic()

    def _open(self) -> None:
        """Start the workers and wait for the first; the others may come while it plays."""
        try:
            for w in range(self.count):
                self._begin(w)
            while not hasattr(self, "size"):
                self._attend(ignore)
        except BaseException:
            self.close()
            raise

    def set_world(self, state: Mapping[str, Tensor]) -> None:
        super().set_world(state)
        self._current = [False] * self.count

    def _play(
        self,
        thetas: np.ndarray,
        jobs: Sequence[Job],
        take: Callable[[Result], None],
        stop: Callable[[], bool],
    ) -> None:
        self._round += 1
        self._thetas = thetas
        self._shares = [list(jobs[w :: self.count]) for w in range(self.count)]
        self._pool, self._playing = [], [{} for _ in range(self.count)]
        self._heard = time.monotonic()
        try:
            for w in range(self.count):
                if not self._alive[w]:
                    self._begin(w)
            while any(self._shares) or self._pool or any(self._playing):
                if stop():
                    raise Interrupted
                self._give()
                self._attend(take)
        except Exception:
            raise  # what the others answer is of a round gone by, and not heard
        except BaseException:  # Ctrl-C may have come in the middle of a message
            self._end_all()
            raise

    def _give(self) -> None:
        """Something to do for everyone who waits for it."""
        for w in range(self.count):
            if not self._alive[w] or self._asked[w]:
                continue
            jobs = None
            if not self._playing[w]:
                jobs = self._next(w)
                if not jobs:
                    continue
                self._playing[w] = {(job.individual, job.trial): job for job in jobs}
            self._asked[w] = True
            new, self._current[w] = not self._current[w], True
            self._ask(w, new, jobs)

    def _next(self, w: int) -> list[Job]:
        """Its share; else a batch of what the dead have left, and then of what waits for those not up yet."""
        if self._shares[w]:
            jobs, self._shares[w] = self._shares[w], []
            return jobs
        for source in (self._pool, *(self._shares[v] for v in range(self.count) if not self._up[v])):
            if source:
                jobs = source[: self.recipe.envs]
                del source[: len(jobs)]
                return jobs
        return []

    def _attend(self, take: Callable[[Result], None]) -> None:
        """Hear who has answered."""
        answers = self._hear(0.2)
        for w, _ in answers:
            self._asked[w] = False  # of all, before one of them raises
            self._heard = time.monotonic()
        for w, answer in answers:
            if isinstance(answer, Died):
                self._replace(w, answer)
            elif isinstance(answer, Exception):
                self._current[w] = False
                raise answer
            elif isinstance(answer, int):
                self.size, self._up[w] = answer, True
            elif answer.round == self._round:
                for result in answer.results:
                    self._deaths[w] = 0
                    del self._playing[w][result[:2]]
                    take(result)
        if time.monotonic() > self._heard + LONELY:
            self._heard = time.monotonic()
            warnings.warn(f"no worker has answered for {LONELY:.0f} seconds; waiting", RuntimeWarning, 4)

    def _replace(self, w: int, died: Died) -> None:
        self._pool += [*self._playing[w].values(), *self._shares[w]]
        self._playing[w], self._shares[w] = {}, []
        self._stop(w)
        self._deaths[w] += 1
        if self._deaths[w] >= PATIENCE:
            self._deaths[w] = 0
            raise ReverieError(
                f"a worker died {PATIENCE} times without finishing one rollout: {died.why}; its own message, if "
                f'it had one, is above (a script with workers must start under `if __name__ == "__main__":`)'
            )
        warnings.warn(
            f"a worker died: {died.why}; what it had not finished is played again", RuntimeWarning, 5
        )
        self._begin(w)

    def _begin(self, w: int) -> None:
        self._start(w)
        self._alive[w] = self._asked[w] = True
        self._current[w] = self._world is None

    def _stop(self, w: int) -> None:
        self._alive[w] = self._asked[w] = self._up[w] = False
        self._end(w)

    def _end_all(self) -> None:
        self._dismiss()
        for w in range(self.count):
            self._stop(w)

    def _close(self) -> None:
        self._end_all()

    @abstractmethod
    def _start(self, w: int) -> None:
        """Make worker w; it answers with ``hello``."""

    @abstractmethod
    def _ask(self, w: int, new: bool, jobs: list[Job] | None) -> None:
        """Ask worker w for a turn, with ``self._world`` if it is new, with jobs of ``self._thetas`` if there are."""

    @abstractmethod
    def _hear(self, seconds: float) -> list[tuple[int, Any]]:
        """Answers of those that were asked, as they come; nothing after so many seconds."""

    @abstractmethod
    def _end(self, w: int) -> None:
        """End worker w, if there is one, dead or alive."""

    def _dismiss(self) -> None:
        """Tell all workers at once that it is over, so that they end side by side."""


class Processes(Team):
    """In ``workers`` processes of this machine, one thread each. They ignore Ctrl-C and die with this process.

    They are started as those of ``WorkerEnvs`` are, so a script must begin under ``if __name__ == "__main__":``.
    """

    def __init__(self, recipe: Recipe, workers: int):
        super().__init__(recipe, workers)
        try:
            pickle.dumps(recipe)
        except Exception as error:
            raise ReverieError(
                f"workers need an environment factory that can be pickled, and {recipe.env!r} cannot ({error}); "
                f"use a function at the top of a module, or functools.partial of one"
            ) from error
        self._processes = process_context()
        self._workers: list[Any] = [None] * workers
        self._pipes: list[Any] = [None] * workers
        self._open()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers if worker is not None]

    def _start(self, w: int) -> None:
        self._pipes[w], theirs = self._processes.Pipe()
        self._workers[w] = self._processes.Process(
            target=work,
            args=(self.recipe, theirs, settings_of_parent()),
            name=f"reverie-player-{w}",
            daemon=True,
        )
        with deaf():
            self._workers[w].start()
        theirs.close()

    def _ask(self, w: int, new: bool, jobs: list[Job] | None) -> None:
        thetas = None if jobs is None else self._thetas
        with contextlib.suppress(OSError):  # a dead worker is noticed when it does not answer
            self._pipes[w].send((self._round, self._world if new else None, thetas, jobs))

    def _hear(self, seconds: float) -> list[tuple[int, Any]]:
        pipes: dict[Any, int] = {self._pipes[w]: w for w in range(self.count) if self._asked[w]}
        answers: list[tuple[int, Any]] = []
        for pipe in connection.wait(list(pipes), seconds):
            w = pipes[pipe]
            try:
                answers.append((w, self._pipes[w].recv()))
            except (EOFError, OSError):
                self._workers[w].join(5)
                answers.append((w, Died(f"its process ended with exit code {self._workers[w].exitcode}")))
        return answers

    def _end(self, w: int) -> None:
        worker, pipe = self._workers[w], self._pipes[w]
        if worker is None:
            return
        pipe.close()
        for stop in (lambda: None, worker.terminate, worker.kill):
            stop()
            worker.join(3)
            if worker.exitcode is not None:
                break
        self._workers[w] = None

    def _dismiss(self) -> None:
        for w in range(self.count):
            if self._workers[w] is not None:
                self._pipes[w].close()  # what they are told next is that there is nobody


def work(recipe: Recipe, pipe: Any, settings: Mapping[str, str]) -> None:
    """The life of a worker process: say hello, then a turn for each time it is asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    threading.Thread(target=follow_parent, daemon=True).start()
    worker = Worker(recipe, settings)
    try:
        pipe.send(worker.hello())
        while worker.player is not None:
            pipe.send(worker.turn(*pipe.recv()))
    except (EOFError, OSError):
        pass  # the parent has closed the pipe, or is gone
    finally:
        worker.close()


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Processes started meanwhile never hear Ctrl-C, not even before they can say that they ignore it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its own start would take the mask away
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Journal:
    """The results of the generation under way, one JSON line each, so that a run that is killed keeps them.

    It knows generations by their number alone: whoever evolves another population gives it another file.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.file: IO[str] | None = None

    def read(self, generation: int) -> list[Result]:
        """What was added for this generation, by individual, then trial. A line that was torn is as if never
        written: its rollout is played again."""
        results: dict[tuple[int, int], Result] = {}
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            try:
                about = json.loads(line)
                if about.pop("generation") == generation:
                    result = Result(**about)
                    results[result[:2]] = result
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        return [results[key] for key in sorted(results)]

    def add(self, generation: int, result: Result) -> None:
        """Append a result; after this a killed process has not lost it."""
        try:
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
                if self.file.tell():
                    self.file.write("\n")  # what is torn must not tear the next
            self.file.write(json.dumps({"generation": generation, **result._asdict()}) + "\n")
            self.file.flush()
        except OSError as error:
            raise ReverieError(f"the journal {self.path} can not be written: {error}") from error

    def forget(self, before: int) -> None:
        """Leave out the generations below ``before``: a checkpoint has them. The file is replaced as a whole."""
        self.close()
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            return
        kept = [line for line in lines if generation_of(line) >= before]
        if not kept:
            self.path.unlink()
            return
        temporary = self.path.with_suffix(".writing")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self.path)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def generation_of(line: str) -> int:
    """The generation a line is of; -1 for a torn one."""
    try:
        return int(json.loads(line)["generation"])
    except (ValueError, TypeError, KeyError):
        return -1
