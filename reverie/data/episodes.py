"""Finished episodes as dicts of arrays, and as .npz files, one each, to keep, share and look at.

An episode of N decisions is a dict of arrays of N + 1 rows, exactly the drawing of time in ``types.py``:
``obs/KEY``, ``action``, ``reward``, ``env_steps``, ``is_first``, ``is_last``, ``is_terminal``. The last
row's action is zero. Files are read without pickle, and a file appears under its name only when it is whole.
"""

import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from reverie.data.replay import FIELDS, Replay
from reverie.types import ReverieError, Step

Episode = Mapping[str, np.ndarray]
NAME = re.compile(r"(\d{6,})-\d+\.npz")


def episodes(replay: Replay) -> Iterator[Episode]:
    """Copies of the finished episodes that ``replay`` holds wholly, stream after stream, oldest first."""
    for stream in range(replay.streams):
        for first, end in replay.episodes_of(stream):
            yield replay.read(stream, first, end)


def fill(replay: Replay, episodes: Iterable[Episode]) -> int:
    """Add whole episodes, each to the stream that has got the fewest rows; the number of rows added."""
    rows = 0
    for episode in episodes:
        check(episode)
        stream = int(np.argmin(replay.counts))
        obs = {name.removeprefix("obs/"): value for name, value in episode.items() if name.startswith("obs/")}
        for t in range(len(episode["reward"])):
            step = Step(
                obs={key: value[t] for key, value in obs.items()},
                reward=np.asarray(episode["reward"][t]),
                is_first=np.asarray(episode["is_first"][t]),
                is_last=np.asarray(episode["is_last"][t]),
                is_terminal=np.asarray(episode["is_terminal"][t]),
                env_steps=np.asarray(episode["env_steps"][t]),
            )
            replay.add(step, episode["action"][t], stream)
            rows += 1
    return rows


def check(episode: Episode, name: str = "an episode") -> None:
    """Raise ``ReverieError`` unless ``episode`` is one whole episode."""
    missing = [field for field in FIELDS if field not in episode]
    if missing or not any(key.startswith("obs/") for key in episode):
        raise ReverieError(f"{name} has no {', '.join(missing) or 'obs/...'}; see the drawing of time")
    rows = len(episode["reward"])
    other = [key for key, value in episode.items() if len(value) != rows]
    if other or rows < 2:
        raise ReverieError(f"{name} should have the same number of rows, at least 2, in {other or 'reward'}")
    first, last = np.flatnonzero(episode["is_first"]), np.flatnonzero(episode["is_last"])
    if first.tolist() != [0] or last.tolist() != [rows - 1]:
        raise ReverieError(
            f"{name} should be first at row 0 and last at row {rows - 1} only, and is first at "
            f"{first.tolist()} and last at {last.tolist()}; cut it there"
        )


def save(folder: Path, episode: Episode) -> Path:
    """Write ``episode`` as the next file of ``folder``: number, dash, decisions, as in ``000003-500.npz``."""
    check(episode)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(match[1]) for match in map(NAME.fullmatch, os.listdir(folder)) if match]
    number = max(numbers, default=-1) + 1
    path = folder / f"{number:06d}-{len(episode['reward']) - 1}.npz"
    temporary = path.with_suffix(f".writing-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **episode)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ReverieError(
            f"the episode {path} could not be written: {error.strerror}; free some disk"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(path: Path) -> Episode:
    """Read one episode."""
    try:
        with np.load(path, allow_pickle=False) as file:
            episode = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ReverieError(f"{path} is not an episode that can be read ({error}); leave it out") from error
    check(episode, str(path))
    return episode


def files(folder: Path) -> list[Path]:
    """The episodes of ``folder``, oldest first. Raises ``ReverieError`` if there are none."""
    found = sorted(path for path in Path(folder).glob("*.npz") if NAME.fullmatch(path.name))
    if not found:
        raise ReverieError(
            f"there are no episodes (000000-500.npz, ...) in {folder}; name a folder that has some"
        )
    return found


def load_all(folder: Path) -> Iterator[Episode]:
    """The episodes of ``folder``, read one after another."""
    return map(load, files(folder))
