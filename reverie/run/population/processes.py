"""A population played by processes of this machine."""

import contextlib
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping
from multiprocessing import connection
from typing import Any

from reverie.envs.vector import end_process, follow_parent, process_context, settings_of_parent
from reverie.run.population.base import Job, Recipe
from reverie.run.population.team import Died, Team, Worker
from reverie.types import ReverieError


class Processes(Team):
    """``workers`` of them, one thread each. They ignore Ctrl-C and die with this process.

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
        end_process(worker)
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
