"""The person beside the robot: pause, go on, reset, leave; by the keyboard, or over HTTP from this machine only.

::

    p   pause       the robot stops and stays; what was recorded ends there
    c   continue    it goes on
    r   reset       the episode ends and the robot is brought back to a place to begin from
    q   quit        as Ctrl-C: stop, save, leave

    curl -H "Authorization: Bearer TOKEN" http://127.0.0.1:PORT/status
    curl -H "Authorization: Bearer TOKEN" -X POST http://127.0.0.1:PORT/pause

Port and token are new with every start and stand in the run's ``control.json``, which only its owner may read.
"""

import contextlib
import json
import os
import queue
import secrets
import select
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEYS = {"p": "pause", "c": "continue", "r": "reset", "q": "quit"}
HOSTS = ("127.0.0.1", "localhost")


class Person:
    """What the person wants, in order. ``status`` is asked for what to tell."""

    def __init__(self, status: Callable[[], dict[str, Any]] = dict):
        self.status = status
        self._wishes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._server: ThreadingHTTPServer | None = None
        self._closed = threading.Event()
        self._file: Path | None = None

    def say(self, wish: str) -> None:
        self._wishes.put(wish)

    def wish(self) -> str | None:
        """The next wish, None if there is none."""
        with contextlib.suppress(queue.Empty):
            return self._wishes.get_nowait()
        return None

    def listen(self, folder: Path, port: int) -> tuple[int, str]:
        """Serve HTTP on this machine's loopback, on ``port`` (0: any that is free); the port and the token."""
        token = secrets.token_urlsafe(24)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler(self, token))
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="person http", daemon=True).start()
        self._file = folder / "control.json"
        self._file.unlink(missing_ok=True)
        file = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(file, "w", encoding="utf-8") as out:
            json.dump({"url": f"http://127.0.0.1:{port}", "token": token}, out)
        return port, token

    def read_keys(self) -> bool:
        """Take single keys from the terminal, if there is one; whether there is."""
        if not sys.stdin or not sys.stdin.isatty():
            return False
        threading.Thread(target=self._keys, name="person keys", daemon=True).start()
        return True

    def _keys(self) -> None:
        try:
            import termios
            import tty
        except ImportError:  # not a Unix
            return
        file = sys.stdin.fileno()
        before = termios.tcgetattr(file)
        try:
            tty.setcbreak(file)  # Ctrl-C stays Ctrl-C
            while not self._closed.is_set():
                if select.select([file], [], [], 0.2)[0]:
                    wish = KEYS.get(os.read(file, 1).decode(errors="ignore"))
                    if wish is not None:
                        self.say(wish)
        finally:
            termios.tcsetattr(file, termios.TCSADRAIN, before)

    def close(self) -> None:
        self._closed.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def handler(person: Person, token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.allowed():
                if self.path == "/status":
                    self.answer(200, person.status())
                else:
                    self.answer(
                        404, {"error": "there are GET /status and POST /pause, /continue, /reset, /quit"}
                    )

        def do_POST(self) -> None:
            if self.allowed():
                wish = self.path.removeprefix("/")
                if wish in KEYS.values():
                    person.say(wish)
                    self.answer(202, {"wish": wish})
                else:
                    self.answer(
                        404, {"error": f"there is no wish {wish!r}; there are {', '.join(KEYS.values())}"}
                    )

        def allowed(self) -> bool:
            """Only who has the token; and only under our own name, so that no page of another can ask through a
            browser."""
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            fine = host in HOSTS and secrets.compare_digest(given.encode(), token.encode())
            if not fine:
                self.answer(
                    403, {"error": "the token in control.json is needed: Authorization: Bearer TOKEN"}
                )
            return fine

        def answer(self, code: int, value: dict[str, Any]) -> None:
            text = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Nothing is printed over the line of progress."""

    return Handler
