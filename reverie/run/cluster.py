"""Joining a Ray cluster: one that is there, or one of this machine alone."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from reverie.logger import one_line
from reverie.types import ReverieError


def import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ReverieError("a cluster needs Ray: pip install 'reverie[cluster]'") from error
    return ray


def join(ray: Any, workers: int, address: str | None) -> None:
    """Join the Ray at ``address``, or start one with a CPU for each worker."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone unless asked for
    settings: dict[str, Any] = dict(log_to_driver=False, logging_level=logging.ERROR)
    if address is None:
        settings |= dict(address="local", num_cpus=workers, include_dashboard=False)
    else:
        knock(address)
        settings |= dict(address=address)
    try:
        with keeping_signals():
            ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "on this machine" if address is None else f"at {address!r}"
        raise ReverieError(f"there is no Ray {where} to join: {one_line(error)}") from error


def knock(address: str) -> None:
    """Find out in seconds whether anyone is at "host:port"; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or a name
    try:
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()
    except OSError as error:
        raise ReverieError(
            f"there is no Ray at {address!r} ({error}); start one there: ray start --head --port {port}"
        ) from error


@contextlib.contextmanager
def keeping_signals() -> Iterator[None]:
    """Ray puts a handler of its own in the place of ours, which would end a run without saving it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
