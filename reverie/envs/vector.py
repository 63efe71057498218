"""n environments stepped together, in this process or in workers, with the same rows either way.

Each episode is seeded on its own from (run seed, stream, episode number). So any moment of any stream can be
brought back from what is cheap to keep: the seed, the number of the episode, and the actions taken in it.

An environment that breaks does not end the run: its episode is cut short as if by the clock, and a new one
is made.
"""

import contextlib
import multiprocessing as mp
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from reverie.envs.base import Env
from reverie.types import ActionSpace, ReverieError, Space, Step

FLAGS = {
    "reward": np.float32,
    "is_first": np.bool_,
    "is_last": np.bool_,
    "is_terminal": np.bool_,
    "env_steps": np.int64,
}
PATIENCE = 3  # crashes in a row, without one step between, before a stream is given up
NOTHING = np.zeros((0, 0), np.float32)

Job = tuple[int | None, np.ndarray]  # reset with this seed (None: do not), then take these actions "k A"
Outcome = Step | Exception


def episode_seed(seed: int, stream: int, episode: int) -> int:
    """The seed of one episode of one stream, in [0, 2^31): a pure function of its arguments."""
    if min(seed, stream, episode) < 0:
        raise ReverieError(f"seeds, streams and episodes count from 0; got {(seed, stream, episode)}.")
    return int(np.random.SeedSequence(seed, spawn_key=(stream, episode)).generate_state(1)[0] >> 1)


class Envs(ABC):
    """n streams of episodes. A stream that has no row yet, or whose last row was ``is_last``, begins its next
    episode; its action is ignored. Every other stream takes its action.

    When an environment raises, or its worker dies, the stream's next row repeats its last observation with
    ``is_last``, reward 0 and no env steps, a warning says why, and the environment is made anew. A stream
    that breaks three times without completing a step raises ``ReverieError``; so does, at once, whatever a
    user can mend.
    """

    n: int
    seed: int
    obs_space: Mapping[str, Space]
    act_space: ActionSpace
    episodes: list[int]  # number of each stream's current episode, -1 before the first

    def __init__(self, n: int, seed: int, obs_space: Mapping[str, Space], act_space: ActionSpace) -> None:
        self.n, self.seed, self.obs_space, self.act_space = n, seed, obs_space, act_space
        self.episodes = [-1] * n
        self._obs = {key: np.zeros((n, *space.shape), space.dtype) for key, space in obs_space.items()}
        self._flags: dict[str, np.ndarray] = {key: np.zeros(n, dtype) for key, dtype in FLAGS.items()}
        self._crashes = [0] * n
        self._lost: set[int] = set()  # streams whose environment is no longer where their row says
        self._closed = False
        episode_seed(seed, 0, 0)

    def step(self, action: np.ndarray, only: Iterable[int] | np.ndarray | None = None) -> Step:
        """The next row of every stream, or of those in ``only``; leading axis n.

        Streams that are left out keep showing their last row (zeros before their first).
        ``action`` is "n A"; rows of streams that are reset or left out are ignored.
        """
        action = np.asarray(action, np.float32)
        expected = (self.n, self.act_space.size)
        if action.shape != expected:
            raise ReverieError(f"{self.n} streams need actions of shape {expected}, got {action.shape}.")
        jobs: dict[int, Job] = {}
        for i in range(self.n) if only is None else sorted({int(i) for i in only}):
            if not 0 <= i < self.n:
                raise ReverieError(f"there is no stream {i}; there are {self.n}, counted from 0.")
            if self.episodes[i] < 0 or self._flags["is_last"][i]:
                jobs[i] = (episode_seed(self.seed, i, self.episodes[i] + 1), NOTHING)
            elif i in self._lost:
                self._cut_short(i)
            else:
                jobs[i] = (None, action[i : i + 1])
            self._lost.discard(i)
        self._do(jobs)
        obs = {key: value.copy() for key, value in self._obs.items()}
        return Step(obs, **{key: value.copy() for key, value in self._flags.items()})

    def restore(self, i: int, episode: int, actions: np.ndarray) -> Step:
        """Bring stream ``i`` to where ``actions`` "k A" led in its episode number ``episode``.

        Returns the row arrived at, without the leading axis. Raises ``ReverieError`` if the episode is
        shorter.
        """
        actions = np.asarray(actions, np.float32).reshape(-1, self.act_space.size)
        self._lost.discard(i)
        self.episodes[i] = episode - 1
        self._do({i: (episode_seed(self.seed, i, episode), actions)})
        obs = {key: value[i].copy() for key, value in self._obs.items()}
        return Step(obs, **{key: value[i : i + 1].reshape(()).copy() for key, value in self._flags.items()})

    def end(self, i: int, episode: int) -> None:
        """Stand stream ``i`` at the end of its episode ``episode``: its next row begins the one after."""
        self.episodes[i] = episode
        self._lost.discard(i)
        self._cut_short(i)

    def close(self) -> None:
        """Close every environment; may be called twice."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> "Envs":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @abstractmethod
    def _run(self, jobs: dict[int, Job]) -> dict[int, Outcome]:
        """Do each stream's job: the row it ended in, or what went wrong."""

    @abstractmethod
    def _close(self) -> None: ...

    def _do(self, jobs: dict[int, Job]) -> None:
        """Do the jobs and take down the rows; a reset that breaks is tried again."""
        if self._closed:
            raise ReverieError("these environments are closed; make new ones.")
        while jobs:
            again: dict[int, Job] = {}
            errors: list[ReverieError] = []
            waiting = set(jobs)
            died: list[Exception] = []  # one warning for a worker, however many streams it had
            try:
                outcomes = self._run(jobs)
                for i, outcome in outcomes.items():
                    resets = jobs[i][0] is not None
                    if isinstance(outcome, Step):
                        self._take_down(i, outcome)
                        self.episodes[i] += resets
                        self._crashes[i] = 0 if len(jobs[i][1]) else self._crashes[i]
                    elif isinstance(outcome, ReverieError):
                        errors.append(outcome)
                        continue
                    else:
                        self._crashed(i, outcome, errors, quiet=outcome in died)
                        died += [outcome] if isinstance(outcome, WorkerDied) else []
                        if resets:
                            again[i] = jobs[i]
                        else:
                            self._cut_short(i)
                    waiting.discard(i)
            finally:
                self._lost |= waiting  # an interrupt came between, or a user must mend something first
            if errors:
                raise errors[0]
            jobs = again

    def _crashed(self, i: int, error: Exception, errors: list[ReverieError], quiet: bool) -> None:
        self._crashes[i] += 1
        what = str(error) if isinstance(error, WorkerDied) else f"{type(error).__name__}: {error}"
        if self._crashes[i] >= PATIENCE:
            lasting = ReverieError(
                f"the environment of stream {i} broke {PATIENCE} times without one step between: {what}"
            )
            lasting.__cause__ = error
            errors.append(lasting)
        elif not quiet:
            warnings.warn(
                f"the environment of stream {i} broke ({what}); its episode is cut short and it is made anew",
                RuntimeWarning,
                stacklevel=4,
            )

    def _take_down(self, i: int, row: Step) -> None:
        for key, value in self._obs.items():
            value[i] = row.obs[key]
        for key, flag in self._flags.items():
            flag[i] = getattr(row, key)

    def _cut_short(self, i: int) -> None:
        for key, flag in self._flags.items():
            flag[i] = key == "is_last"


class SerialEnvs(Envs):
    """n environments one after another in this process: the fastest way for steps under a millisecond."""

    def __init__(self, factory: Callable[[], Env], n: int, seed: int) -> None:
        _check_n(n)
        self._streams = [Stream(factory) for _ in range(n)]
        env = self._streams[0].open()
        super().__init__(n, seed, env.obs_space, env.act_space)
        for stream in self._streams:
            stream.open()

    def _run(self, jobs: dict[int, Job]) -> dict[int, Outcome]:
        outcomes: dict[int, Outcome] = {}
        for i, job in jobs.items():
            try:
                outcomes[i] = self._streams[i].run(job)
            except Exception as error:
                outcomes[i] = error
        return outcomes

    def _close(self) -> None:
        for stream in self._streams:
            stream.drop()


class WorkerEnvs(Envs):
    """n environments in ``workers`` processes: worth it where a step costs clearly more than a millisecond.

    Observations come back through shared memory. Workers never are forks of this process (a fork after the
    first picture hangs) but of a clean server, or spawned where there is none; so ``factory`` must be
    picklable and a script must start under ``if __name__ == "__main__":``. Workers ignore Ctrl-C, and die
    with this process.
    """

    def __init__(self, factory: Callable[[], Env], n: int, seed: int, workers: int) -> None:
        _check_n(n)
        if workers < 1:
            raise ReverieError(f"WorkerEnvs needs at least 1 worker, got {workers}; SerialEnvs needs none.")
        try:
            pickle.dumps(factory)
        except Exception as error:
            raise ReverieError(
                f"workers need an environment factory that can be pickled, and {factory!r} cannot "
                f"({error}); use a function "
                "at the top of a module, or functools.partial of one."
            ) from error
        env = factory()  # read its spaces here, where errors can be read too
        obs_space, act_space = env.obs_space, env.act_space
        env.close()
        super().__init__(n, seed, obs_space, act_space)
        self._factory, self._round = factory, 0
        self._context = process_context()
        self._memory = {key: self._context.RawArray("b", n * space.bytes) for key, space in obs_space.items()}
        self._views = _views(self._memory, obs_space, n)
        self._count = min(workers, n)
        self._workers: list[Any] = [None] * self._count
        self._pipes: list[Any] = [None] * self._count
        try:
            for w in range(self._count):
                self._start(w)
            for w in range(self._count):
                self._greet(w)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers; stream i lives in worker i modulo their number."""
        return [worker.pid for worker in self._workers]

    def _start(self, w: int) -> None:
        self._pipes[w], theirs = self._context.Pipe()
        mine = range(w, self.n, self._count)
        self._workers[w] = self._context.Process(
            target=_work,
            args=(
                self._factory,
                mine,
                self.n,
                self._memory,
                dict(self.obs_space),
                theirs,
                settings_of_parent(),
            ),
            name=f"reverie-env-{w}",
            daemon=True,
        )
        self._workers[w].start()
        theirs.close()

    def _greet(self, w: int) -> None:
        try:
            self._pipes[w].recv()
        except (EOFError, OSError):
            self._workers[w].join(5)
            raise ReverieError(
                f"an environment worker died while it started (exit code {self._workers[w].exitcode}); its "
                "own message is above. "
                'A script that uses workers must start them under `if __name__ == "__main__":`.'
            ) from None

    def _run(self, jobs: dict[int, Job]) -> dict[int, Outcome]:
        self._round += 1
        shares: dict[int, dict[int, Job]] = {}
        for i, job in jobs.items():
            shares.setdefault(i % self._count, {})[i] = job
        for w, share in shares.items():
            with contextlib.suppress(OSError):  # a dead worker is noticed below
                self._pipes[w].send((self._round, share))
        outcomes: dict[int, Outcome] = {}
        for w, share in shares.items():
            try:
                answers = self._receive(w)
            except (EOFError, OSError):
                died = self._revive(w)
                self._lost |= set(range(w, self.n, self._count)) - set(share)
                outcomes.update(dict.fromkeys(share, died))
                continue
            for i, answer in answers.items():
                if isinstance(answer, Exception):
                    outcomes[i] = answer
                else:
                    obs = {key: view[i] for key, view in self._views.items()}
                    flags = zip(FLAGS.items(), answer, strict=True)
                    outcomes[i] = Step(obs, **{key: np.array(value, dtype) for (key, dtype), value in flags})
        return outcomes

    def _receive(self, w: int) -> dict[int, Any]:
        """The answers to this round; those to a round that was interrupted are thrown away."""
        while True:
            number, answers = self._pipes[w].recv()
            if number == self._round:
                return answers

    def _revive(self, w: int) -> "WorkerDied":
        worker = self._workers[w]
        worker.join(5)
        died = WorkerDied(f"its worker process died with exit code {worker.exitcode}")
        self._end(w)
        self._start(w)
        self._greet(w)
        return died

    def _end(self, w: int) -> None:
        worker, pipe = self._workers[w], self._pipes[w]
        if worker is None:
            return
        with contextlib.suppress(OSError):
            pipe.send(None)
        pipe.close()
        end_process(worker)
        self._workers[w] = None

    def _close(self) -> None:
        for w in range(self._count):
            with contextlib.suppress(OSError, AttributeError):
                self._pipes[w].send(None)  # all at once, so that they close side by side
        for w in range(self._count):
            self._end(w)


def end_process(process: Any, patience: float = 3.0) -> None:
    """Wait for a process to end; if it does not in so many seconds terminate it, and after as many more kill it."""
    for stop in (lambda: None, process.terminate, process.kill):
        stop()
        process.join(patience)
        if process.exitcode is not None:
            return


class WorkerDied(Exception):
    """A worker process ended by itself."""


class Stream:
    """One environment: made when it is first needed, thrown away when it breaks."""

    def __init__(self, factory: Callable[[], Env]) -> None:
        self.factory = factory
        self.env: Env | None = None

    def open(self) -> Env:
        if self.env is None:
            self.env = self.factory()
        return self.env

    def run(self, job: Job) -> Step:
        """Do the job; the row it ended in. Raises what the environment raises."""
        seed, actions = job
        try:
            env = self.open()
            row = env.reset(seed) if seed is not None else None
            for k, action in enumerate(actions):
                if row is not None and row.is_last:
                    raise ReverieError(f"cannot take {len(actions)} actions: the episode ended after {k}.")
                row = env.step(action)
        except ReverieError:
            raise
        except Exception:
            self.drop()
            raise
        assert row is not None
        return row

    def drop(self) -> None:
        env, self.env = self.env, None
        if env is not None:
            with contextlib.suppress(Exception):  # a broken environment may also fail to close
                env.close()


def _work(
    factory: Callable[[], Env],
    mine: range,
    n: int,
    memory: Mapping[str, Any],
    obs_space: Mapping[str, Space],
    pipe: Any,
    settings: Mapping[str, str],
) -> None:
    """The life of a worker: take jobs, write observations to shared memory, answer with the flags."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes us
    os.environ.update(settings)
    os.environ.setdefault("LP_NUM_THREADS", "0")  # software GL stays on this worker's core
    threading.Thread(target=follow_parent, daemon=True).start()
    views = _views(memory, obs_space, n)
    streams = {i: Stream(factory) for i in mine}
    try:
        pipe.send("ready")
        while (message := pipe.recv()) is not None:
            number, jobs = message
            answers: dict[int, Any] = {}
            for i, job in jobs.items():
                try:
                    row = streams[i].run(job)
                    for key, view in views.items():
                        view[i] = row.obs[key]
                    answers[i] = tuple(getattr(row, key).item() for key in FLAGS)
                except ReverieError as error:
                    answers[i] = ReverieError(str(error))
                except Exception as error:
                    answers[i] = portable(error)
            pipe.send((number, answers))
    except (EOFError, OSError):
        pass  # the parent is gone
    finally:
        for stream in streams.values():
            stream.drop()


def process_context() -> Any:
    """How workers start: on Linux from a clean server that has done the imports (quick), else spawned."""
    if not sys.platform.startswith("linux"):
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["reverie.envs"])
    return context


def portable(error: Exception) -> Exception:
    """The error itself if it survives pickling, else its text; with the worker's traceback as a note."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def settings_of_parent() -> dict[str, str]:
    """What this process has decided about drawing; a server started earlier would not know."""
    return {
        key: os.environ[key]
        for key in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "SDL_VIDEODRIVER")
        if key in os.environ
    }


def follow_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _views(memory: Mapping[str, Any], obs_space: Mapping[str, Space], n: int) -> dict[str, np.ndarray]:
    return {
        key: np.frombuffer(memory[key], space.dtype).reshape(n, *space.shape)
        for key, space in obs_space.items()
    }


def _check_n(n: int) -> None:
    if n < 1:
        raise ReverieError(f"there must be at least 1 environment, got {n}.")
