"""The results of the generation under way, on disk."""

import json
from pathlib import Path
from typing import IO

from reverie.run.population.base import Result
from reverie.types import ReverieError


class Journal:
    """One JSON line for each result of the generation under way, so that a run that is killed keeps them.

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
