"""A nested state on disk: tensors as safetensors, the rest as JSON, never pickle; the last good one survives.

``save(folder, step, state)`` makes a directory ``folder/000012345/`` with

- ``tensors.safetensors``: every tensor and array, named by its place in the state (``agent/gru.weight``);
- ``state.json``: the tree, in which tensors are references; the format's version; length and SHA-256 of the
  tensor file, and a SHA-256 of the tree itself.

It is written under a temporary name beside its place, synced, then renamed: a directory with a number for
a name is whole. Only after that all but the ``keep`` before it are removed, and any of later steps (the run
has gone back behind them). Saving the same step again adds ``000012345.1``.

What comes back is what went in: tensors (on the CPU, detached, each with memory of its own), numpy arrays
and numpy scalars with their dtypes, dicts with their keys (strings, numbers, tuples), lists as lists, tuples
as tuples (named ones as plain ones), integers of any size, floats with inf and nan, strings, booleans, None.
Anything else is refused by name.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from reverie.types import ReverieError

FORMAT = 1
TENSORS, STATE = "tensors.safetensors", "state.json"
NAME = re.compile(r"(\d{9,})(?:\.(\d+))?")
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save(folder: Path, step: int, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write ``state`` as the checkpoint of ``step``, keep the newest ``keep``, return its path."""
    if step < 0 or keep < 1:
        raise ReverieError(f"a checkpoint needs step >= 0 and keep >= 1, got step {step} and keep {keep}")
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors)
    folder = Path(folder)
    temporary = folder / f".writing-{step:09d}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(exist_ok=True)
        size, digest = _write_tensors(temporary / TENSORS, tensors)
        about = {
            "format": FORMAT,
            "step": step,
            "bytes": size,
            "sha256": digest,
            "tree_sha256": _digest(step, tree),
        }
        with open(temporary / STATE, "w", encoding="utf-8") as file:
            json.dump({**about, "tree": tree}, file, allow_nan=False)
            _sync(file)
        _sync_folder(temporary)
        path = folder / f"{step:09d}"
        again = 0
        while path.exists():
            again += 1
            path = folder / f"{step:09d}.{again}"
        temporary.rename(path)
        _sync_folder(folder)
    except OSError as error:
        what = "disk full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else str(error)
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise ReverieError(
            f"the checkpoint of step {step} could not be written to {folder} ({what}); it needs {size} bytes "
            f"there; the checkpoints before it are untouched"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_old(folder, path, keep)
    return path


def load(folder: Path) -> tuple[int, dict[str, Any]]:
    """Step and state of the newest good checkpoint in ``folder``; a warning names each damaged one."""
    found = paths(folder)
    if not found:
        raise ReverieError(
            f"there is no checkpoint in {folder}; name the checkpoints folder of a run that saved one"
        )
    for path in reversed(found):
        try:
            return load_path(path)
        except ReverieError as error:
            reason = error
            warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=2)
    raise ReverieError(
        f"none of the {len(found)} checkpoints in {folder} can be read; the oldest one: {reason}"
    )


def load_path(path: Path) -> tuple[int, dict[str, Any]]:
    """Step and state of one checkpoint directory."""
    path = Path(path)
    try:
        about = _about(path)
        size = (path / TENSORS).stat().st_size
        if size != about["bytes"]:
            raise ReverieError(
                f"checkpoint {path} is damaged: {TENSORS} has {size} of {about['bytes']} bytes"
            )
        with open(path / TENSORS, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                raise ReverieError(f"checkpoint {path} is damaged: {TENSORS} is not what was written")
        tensors = load_file(path / TENSORS)
        return int(about["step"]), _decode(about["tree"], tensors)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReverieError(f"checkpoint {path} is damaged: {type(error).__name__}: {error}") from error


def says(path: Path, key: str) -> Any:
    """A number, string or truth at the top of one checkpoint's state, None if it is not there or can not be read.
    Only the tree is looked at: tensors may be damaged."""
    try:
        return _about(Path(path))["tree"].get(key)
    except (ReverieError, OSError, ValueError, KeyError, TypeError):
        return None


def _about(path: Path) -> dict[str, Any]:
    """What ``state.json`` of a checkpoint says, the tree as it was written."""
    with open(path / STATE, encoding="utf-8") as file:
        about = json.load(file)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        version = about.get("format") if isinstance(about, dict) else None
        raise ReverieError(
            f"checkpoint {path} has format {version}, this version reads {FORMAT}; update reverie"
        )
    if about["tree_sha256"] != _digest(about["step"], about["tree"]):
        raise ReverieError(f"checkpoint {path} is damaged: {STATE} is not what was written")
    return about


def newest_good(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint that can be read, None if there never was one.

    Damaged ones are warned of and renamed, so that they do not stand before the good ones that follow.
    """
    found = paths(folder)
    for path in reversed(found):
        try:
            return load_path(path)[1]
        except ReverieError as error:
            if len(found) == 1:
                warnings.warn(
                    f"{error}; it is the only one, so the run is repeated from its record", stacklevel=4
                )
            else:
                warnings.warn(f"{error}; going on from the one before it", stacklevel=4)
            aside = path.with_name("damaged-" + path.name)
            with contextlib.suppress(OSError):
                path.rename(aside)
    return None


def check_sizes(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ``ReverieError`` if the weights ``found`` in a checkpoint are of another size than an agent's ``own``."""
    for name, value in own.items():
        if name not in found or found[name].shape != value.shape:
            shape = "nothing" if name not in found else tuple(found[name].shape)
            raise ReverieError(
                f"the checkpoint is of another size or other spaces: {name} is {shape} there and "
                f"{tuple(value.shape)} here; use the settings it was made with"
            )


def paths(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first."""
    folder = Path(folder)
    found = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return [path for _, path in sorted((_order(match), path) for match, path in found if match)]


def _order(match: re.Match) -> tuple[int, int]:
    return int(match[1]), int(match[2] or 0)


def _remove_old(folder: Path, newest: Path, keep: int) -> None:
    found = paths(folder)
    end = found.index(newest) + 1
    for path in found[: max(0, end - keep)] + found[end:]:  # later ones are of a future that was given up
        aside = path.with_name(f".writing-gone-{path.name}")  # what has a number is whole, to its last moment
        with contextlib.suppress(OSError):
            path.rename(aside)
    for path in folder.glob(".writing-*"):  # of processes that were killed while writing
        shutil.rmtree(path, ignore_errors=True)


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON form of ``value``; tensors and arrays go into ``tensors`` and leave their name."""
    inner = lambda key, item: _encode(item, f"{place}/{key}" if place else str(key), tensors)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Tensor):
        return {"$tensor": _put(value.detach(), place, tensors)}
    if isinstance(value, np.ndarray | np.generic):
        kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
        array = np.asarray(value)
        try:
            tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
        except TypeError:
            raise ReverieError(
                f"checkpoint: {place!r} is an array of {array.dtype}, which can not be saved"
            ) from None
        return {kind: _put(tensor, place, tensors)}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, tuple):
        return {"$tuple": [inner(i, item) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [inner(i, item) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: inner(key, item) for key, item in value.items()}
        return {"$dict": [[_key(key, place), inner(key, item)] for key, item in value.items()]}
    raise ReverieError(
        f"checkpoint: {place!r} is a {type(value).__name__}, which can not be saved; "
        f"put tensors, arrays, numbers, strings, lists, tuples and dicts there"
    )


def _key(key: Any, place: str) -> Any:
    """The JSON form of a dict's key."""
    inside: dict[str, Tensor] = {}
    form = _encode(key, f"{place}/key", inside)
    if inside:
        raise ReverieError(
            f"checkpoint: {place!r} has a tensor for a key; use strings, numbers or tuples of them"
        )
    return form


def _put(tensor: Tensor, place: str, tensors: dict[str, Tensor]) -> str:
    if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_quantized:
        raise ReverieError(
            f"checkpoint: {place!r} is a {tensor.layout} tensor of {tensor.dtype}, which can not be saved"
        )
    name, again = place, 0
    while name in tensors or name == "__metadata__":
        again += 1
        name = f"{place}#{again}"
    tensors[name] = tensor
    return name


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    if not kind.startswith("$"):
        return {key: _decode(item, tensors) for key, item in value.items()}
    item = value[kind]
    if kind == "$tensor":
        return tensors[item].clone()
    if kind == "$array":
        return tensors[item].clone().numpy()
    if kind == "$scalar":
        return tensors[item].numpy()[()]
    if kind == "$float":
        return float(item)
    if kind == "$tuple":
        return tuple(_decode(part, tensors) for part in item)
    if kind == "$dict":
        return {_decode(key, tensors): _decode(part, tensors) for key, part in item}
    raise ValueError(f"unknown kind {kind!r}")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Size and SHA-256 of a safetensors file, written tensor by tensor: no second copy of all in memory."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps each one aligned
    header, offset = {}, 0
    for name in names:
        tensor = tensors[name]
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (len(head).to_bytes(8, "little"), head):
            file.write(part)
            digest.update(part)
        for name in names:
            if tensors[name].numel():
                data = tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                file.write(data)
                digest.update(data)
        _sync(file)
        return file.tell(), digest.hexdigest()


def _digest(step: int, tree: Any) -> str:
    return hashlib.sha256(json.dumps([step, tree]).encode()).hexdigest()


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder can not be opened
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
