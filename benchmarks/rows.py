"""How every benchmark writes what it found: rows of one shape in ``benchmarks/results/<name>.json``.

A row says what was measured, on what, by which command and at which commit, so that it can be run again:

    what             a short sentence
    ours, peer       the two measurements, in ``unit`` (lower is better)
    floor            what arithmetic or the bare library allows, in the same unit
    ratio_to_floor   ours / floor          ratio_to_peer   ours / peer
    peer_version     the name and version of the peer
    threads          threads or processes used
    machine, command, commit

What is unknown is null.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from reverie import machine

KEYS = (
    "what",
    "ours",
    "unit",
    "floor",
    "ratio_to_floor",
    "peer",
    "peer_version",
    "ratio_to_peer",
    "threads",
    "machine",
    "command",
    "commit",
)
HERE = Path(__file__).resolve().parent


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write ``rows`` to ``benchmarks/results/<name>.json``; fills in ratios, machine, command and commit.

    Raises ``KeyError`` for a key that is not in ``KEYS``, so that a typing error cannot hide a number.
    """
    path = HERE / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([complete(row) for row in rows], indent=1, allow_nan=False) + "\n"
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text)
    scratch.replace(path)
    return path


def complete(row: dict[str, Any]) -> dict[str, Any]:
    """One row with every key of ``KEYS``, in that order."""
    unknown = set(row) - set(KEYS)
    if unknown:
        raise KeyError(f"a benchmark row has no key {sorted(unknown)}; the keys are {KEYS}")
    full = {key: row.get(key) for key in KEYS}
    for other in ("floor", "peer"):
        if full[f"ratio_to_{other}"] is None and full["ours"] is not None and full[other]:
            full[f"ratio_to_{other}"] = round(full["ours"] / full[other], 4)
    full["machine"] = full["machine"] or machine.describe()
    full["command"] = full["command"] or command()
    full["commit"] = full["commit"] or machine.commit()
    return full


def command() -> str:
    """The command line that is running, as one would type it from the repository's root."""
    program = Path(sys.argv[0]).resolve()
    if program.is_relative_to(HERE.parent):  # noqa: SIM108
        program = program.relative_to(HERE.parent)
    else:
        program = Path(program.name)
    return shlex.join(["python", str(program), *sys.argv[1:]])
