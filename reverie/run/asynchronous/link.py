"""Between a robot's machine and its learner's: a courier that makes two folders alike, and may fail for minutes.

On one machine actor and learner share a folder and need no courier. On two, each has its own, and a round of the
courier, every second, carries what is missing: new bytes of the files of rows to the learner, what the learner has
taken and its newest weights back. A round that fails is repeated; it says what the other side has, so nothing is
lost or doubled, and neither actor nor learner knows.
"""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from reverie import checkpoint
from reverie.run.asynchronous.spool import segments
from reverie.run.folder import read_json, write_json, write_text

PIECE = 2**22  # bytes carried at once
ABOUT, TAKEN = "spool.json", "taken.json"


@runtime_checkable
class Far(Protocol):
    """The learner's side, wherever it is. Any call may raise when it can not be reached."""

    def begin(self, about: str) -> None:
        """Take what ``spool.json`` says."""

    def sizes(self) -> dict[int, int]:
        """Bytes it has of each file of rows, by the number of the first."""

    def put(self, first: int, at: int, data: bytes) -> None:
        """Take ``data`` as what follows byte ``at`` of a file of rows."""

    def taken(self) -> int:
        """Rows that the learner has for good."""

    def weights(self, known: int) -> tuple[int, dict[str, bytes]] | None:
        """The newest version after ``known`` and its files; None if there is none."""


class Mailbox:
    """The learner's side as a folder: what ``Far`` promises."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def begin(self, about: str) -> None:
        write_text(self.folder / ABOUT, about)

    def sizes(self) -> dict[int, int]:
        return {first: path.stat().st_size for first, path in segments(self.folder)}

    def put(self, first: int, at: int, data: bytes) -> None:
        path = self.folder / f"rows-{first:012d}.raw"
        with open(path, "r+b" if path.exists() else "w+b") as file:
            file.seek(at)
            file.write(data)

    def taken(self) -> int:
        return int(read_json(self.folder / TAKEN).get("rows", 0))

    def weights(self, known: int) -> tuple[int, dict[str, bytes]] | None:
        found = checkpoint.paths(self.folder / "weights")
        version = int(found[-1].name.split(".")[0]) if found else 0
        if version <= known:
            return None
        try:
            return version, {path.name: path.read_bytes() for path in found[-1].iterdir()}
        except FileNotFoundError:  # removed for a newer one meanwhile
            return None

    def tidy(self) -> None:
        """Remove files of rows that were taken in wholly; the newest stays."""
        taken, found = self.taken(), segments(self.folder)
        for (_, path), (end, _) in itertools.pairwise(found):
            if end <= taken:
                path.unlink(missing_ok=True)


class Courier:
    """Carries between ``folder`` on the robot's machine and ``far``; ``start`` does so in a thread."""

    def __init__(self, folder: Path, far: Far, every: float = 1.0):
        self.folder, self.far, self.every = Path(folder), far, every
        self.cuts = 0  # rounds that failed
        self.since = 0.0  # seconds that the link has been cut now; 0: it is not
        self._begun = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def round(self) -> None:
        """Carry everything there is, both ways. Raises whatever the link raises."""
        if not self._begun:
            self.far.begin((self.folder / ABOUT).read_text(encoding="utf-8"))
            self._begun = True
        taken, there = self.far.taken(), self.far.sizes()
        write_json(self.folder / TAKEN, {"rows": taken})
        found = segments(self.folder)
        for i, (first, path) in enumerate(found):
            if i + 1 < len(found) and found[i + 1][0] <= taken:
                continue  # the learner had it all, and may have removed it
            self._carry(first, path, there.get(first, 0))
        known = checkpoint.paths(self.folder / "weights")
        newest = self.far.weights(int(known[-1].name.split(".")[0]) if known else 0)
        if newest is not None:
            self._keep(*newest)

    def _carry(self, first: int, path: Path, at: int) -> None:
        try:
            with open(path, "rb") as file:
                file.seek(at)
                while data := file.read(PIECE):
                    self.far.put(first, at, data)
                    at += len(data)
        except FileNotFoundError:  # the spool removed it: the learner has it
            return

    def _keep(self, version: int, files: dict[str, bytes]) -> None:
        """A version of the weights, whole or not at all, and only it and the one before."""
        folder = self.folder / "weights"
        writing = folder / f".writing-{version:09d}"
        writing.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (writing / Path(name).name).write_bytes(data)
        writing.rename(folder / f"{version:09d}")
        for old in checkpoint.paths(folder)[:-2]:
            for path in old.iterdir():
                path.unlink()
            old.rmdir()

    def start(self, say: Callable[[str], None] = print) -> None:
        self._thread = threading.Thread(target=self._run, args=(say,), name="courier", daemon=True)
        self._thread.start()

    def _run(self, say: Callable[[str], None]) -> None:
        cut: float | None = None
        while not self._closing.wait(self.every):
            try:
                self.round()
                if cut is not None:
                    say(f"The learner is there again, after {time.monotonic() - cut:.0f} seconds.")
                cut, self.since = None, 0.0
            except Exception as error:
                self.cuts += 1
                if cut is None:
                    cut = time.monotonic()
                    say(f"The learner can not be reached ({first_line(error)}); the robot goes on.")
                self.since = time.monotonic() - cut

    def close(self) -> None:
        """One last round, so that nothing is left behind."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(60)
        self.round()


def first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
