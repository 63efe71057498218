"""Several runs of a study at once, each in a process of its own with its share of the cores.

For networks so small that a second thread brings them little. A claim about seconds wants one run at a time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from reverie import machine

Run = TypeVar("Run")
Ready = Callable[[Run, Sequence[Run]], bool]  # may it begin, while those are not finished?


class Stopped(Exception):
    """A run came back before its end: somebody stopped it, and it saved itself."""


class EndedEarly(Exception):
    """The process of a run ended without a word."""


def side_by_side(
    runs: Sequence[Run],
    jobs: int,
    carry_out: Callable[[Run], Any],
    log: Callable[[Run], Path],
    ready: Ready,
) -> Iterator[tuple[Run, BaseException | None]]:
    """Carry out all runs, ``jobs`` at a time, in their order where it matters; each with what it raised, as they end.

    ``carry_out`` must be picklable, and what it prints goes to the file ``log`` names. After Ctrl-C, which reaches
    every process, or SIGTERM, which is passed on to them, none is begun, and those under way are waited for.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(runs)
    going: dict[Any, tuple[Run, Any]] = {}  # by the end of a pipe on which a process tells how it went
    while waiting or going:
        try:
            with _terminating(going):
                unfinished = [*waiting, *(run for run, _ in going.values())]
                for run in [r for r in waiting if ready(r, unfinished)][: jobs - len(going)]:
                    answer, told = context.Pipe(duplex=False)
                    process = context.Process(target=_carry_out, args=(carry_out, run, log(run), told))
                    with _threads(max(1, machine.CORES // jobs)):
                        process.start()
                    told.close()
                    waiting.remove(run)
                    going[answer] = run, process
                ended = multiprocessing.connection.wait([*going])
        except KeyboardInterrupt:
            waiting.clear()
            continue
        for heard in ended:
            run, process = going.pop(heard)
            error = _heard(heard, process)
            if isinstance(error, Stopped):
                waiting.clear()  # Ctrl-C is for the study, also where it did not reach this process
            yield run, error


@contextlib.contextmanager
def _terminating(going: Mapping[Any, tuple[Any, Any]]) -> Iterator[None]:
    """SIGTERM is for the processes, too; here it is what Ctrl-C is."""

    def terminate(*_: Any) -> None:
        for _, process in going.values():
            process.terminate()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    """Processes begun here have ``n`` threads each, which they take for the machine's cores."""
    name, before = "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS")
    os.environ[name] = str(n)
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def _heard(answer: Any, process: Any) -> BaseException | None:
    with contextlib.suppress(EOFError):
        return answer.recv()
    process.join()
    if process.exitcode in (-signal.SIGINT, -signal.SIGTERM):
        return Stopped("stopped before it had begun")
    return EndedEarly(f"its process ended with code {process.exitcode}")


def _carry_out(carry_out: Callable[[Run], Any], run: Run, log: Path, told: Connection) -> None:
    """In the new process: no input, and all output to a file, also that of libraries."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    error = None
    try:
        carry_out(run)
    except BaseException as e:  # told, whatever it was
        traceback.print_exc()
        error = e
    told.send(error)
