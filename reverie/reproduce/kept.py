"""What is kept of a finished run beside the results, small enough to be committed with them.

A run's page is computed from its metrics and its evaluation, a few kilobytes; its replay and its weights are not asked
for again. So a study may be made in parts, on several machines: whoever has the results goes on where they end.

    results/runs/NAME/BUDGET/ARM/ENV/seed-0.json    what was asked for, and by which machine and code it was made
    results/runs/NAME/BUDGET/ARM/ENV/seed-0/        metrics.jsonl, evaluation.json, config.yaml

Claims that show pictures need the run itself: their runs are kept, and made again where they are missing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from reverie.media import atomic

NAMES = ("*.jsonl", "*.json", "*.yaml")
LARGEST = 2**20  # bytes of a file that is worth keeping


def note_of(folder: Path) -> Path:
    """Beside a run's folder: what was asked for, and whether it is done."""
    return folder.with_name(folder.name + ".json")


def keep(run: Path, there: Path) -> None:
    """Copy the small files of the finished run in ``run``, and then its note."""
    there.mkdir(parents=True, exist_ok=True)
    for path in sorted(path for name in NAMES for path in run.glob(name)):
        if path.stat().st_size <= LARGEST:
            _copy(path, there / path.name)
    _copy(note_of(run), note_of(there))


def _copy(path: Path, there: Path) -> None:
    with atomic(there) as temporary:
        shutil.copyfile(path, temporary)
