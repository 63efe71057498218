"""A run is a folder that explains itself: what it was asked to do stands in its ``config.yaml``.

::

    config.yaml         agent, environment, presets, every setting resolved, versions
    metrics.jsonl       one line per log write; events.out.* is the same for TensorBoard
    checkpoints/        safetensors and JSON, the last two
    best/               the agent of the best evaluation, in the same form
    replay/             what was experienced
    evaluation.json     the last evaluation, beside the random policy's
    videos/             an evaluation episode and open-loop predictions, as of the last evaluation
    report.html         all of it on a page
"""

import contextlib
import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from reverie import machine, presets
from reverie.run.loop import RunConfig
from reverie.types import ReverieError

# Of the agent's Config, when a run goes on
MAY_CHANGE = {"steps", "generations", "eval_generations", "quick_episodes", "final_episodes"}
RUN_MAY_CHANGE = {
    "device", "threads", "workers", "cluster", "eval_every", "eval_episodes", "checkpoint_every", "log_every", "wandb",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a run is asked to do: names, and both sets of settings resolved."""

    agent: str
    env: str
    presets: tuple[str, ...]
    config: Any
    run: RunConfig

    def as_dict(self) -> dict[str, Any]:
        return {
            "agent": self.agent,
            "env": self.env,
            "presets": list(self.presets),
            "run": dataclasses.asdict(self.run),
            "config": dataclasses.asdict(self.config),
        }


def check_folder(folder: Path, plan: Plan) -> None:
    """Refuse a folder that holds another run, or something else; changes nothing."""
    path = folder / "config.yaml"
    if path.exists():
        before = read_plan(folder)
        differences = [
            f"{name} was {was} and is now {now}"
            for name, was, now in (
                ("agent", before.agent, plan.agent),
                ("env", before.env, plan.env),
                *(differing(before.config, plan.config, MAY_CHANGE) if before.agent == plan.agent else ()),
                *differing(before.run, plan.run, RUN_MAY_CHANGE),
            )
            if was != now
        ]
        if differences:
            more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
            raise ReverieError(
                f"{folder} holds another run: {'; '.join(differences[:4])}{more}. Give the settings it was begun "
                f"with, or another --run folder"
            )
    elif folder.exists() and not folder.is_dir():
        raise ReverieError(f"{folder} is a file; --run names a folder, which is made if it is not there")
    elif folder.exists() and any(entry.suffix != ".writing" for entry in folder.iterdir()):
        raise ReverieError(f"{folder} has files but is not a run (no config.yaml); name a new --run folder")


def write_plan(folder: Path, plan: Plan, **more: Any) -> None:
    """Write what the run is asked to do into its folder, which is made; ``more`` are sections beside it."""
    text = yaml.safe_dump({**plan.as_dict(), **more, "versions": versions()}, sort_keys=False)
    write_text(folder / "config.yaml", text)


def differing(before: Any, now: Any, free: set[str]):
    for field in dataclasses.fields(now):
        if field.name not in free:
            yield field.name, getattr(before, field.name), getattr(now, field.name)


def read_plan(folder: Path) -> Plan:
    """The plan a run folder was begun with."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ReverieError(
            f"{folder} is not a run: it has no config.yaml; name a folder that `reverie train` made"
        )
    try:
        about = yaml.safe_load(path.read_text())
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in about["config"].items()}
        config = presets.config_class(about["agent"])(**values)
        return Plan(about["agent"], about["env"], tuple(about["presets"]), config, RunConfig(**about["run"]))
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise ReverieError(f"{path} can not be read as the settings of a run: {error}") from error


def versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "commit": machine.commit()}


def write_text(path: Path, text: str) -> None:
    """Whole or not at all: to a temporary name, synced, renamed."""
    temporary = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ReverieError(f"{path} could not be written: {error.strerror or error}") from error


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if it is missing or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def size_in_bytes(text: str) -> int:
    """'4GB' -> 4_000_000_000; also KB, MB, TB, or a plain number of bytes."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1}
    upper = text.strip().upper()
    unit = next((unit for unit in units if upper.endswith(unit)), "")
    try:
        size = int(float(upper.removesuffix(unit)) * units.get(unit, 1))
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise ReverieError(f"{text!r} is not a size; write it like 500MB or 4GB")
    return size
