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
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    full["machine"] = full["machine"] or machine()
    full["command"] = full["command"] or command()
    full["commit"] = full["commit"] or commit()
    return full


def machine() -> str:
    """Processor model, its cores, and the GPU if there is one; never a host name."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{model}, {cores} cores"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name(0)}"
    return text


def command() -> str:
    """The command line that is running, as one would type it from the repository's root."""
    program = Path(sys.argv[0]).resolve()
    if program.is_relative_to(HERE.parent):  # noqa: SIM108
        program = program.relative_to(HERE.parent)
    else:
        program = Path(program.name)
    return shlex.join(["python", str(program), *sys.argv[1:]])


def commit() -> str | None:
    """The commit of the code that is running, with ``+`` if files differ from it; None outside git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True, text=True, check=True)
    return run.stdout.strip()
