"""The machine a run is on: what to call it, which code it runs, and how to make it go fast."""

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from reverie.types import ReverieError

CORES = torch.get_num_threads()  # as PyTorch counts them, before anyone chose another number


def describe() -> str:
    """Processor, cores, accelerator and PyTorch, as a reader would name them; never a host name."""
    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model.strip()}, {cores} {'core' if cores == 1 else 'cores'}{gpu}, torch {torch.__version__}"


def commit() -> str | None:
    """The commit of this code, with a plus if files differ from it; None outside a git checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on ``device``, where the system tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def check_memory(
    name: str, make: Callable[[], Iterable[nn.Module]], copies: int, device: torch.device, smaller: str
) -> None:
    """Refuse an agent called ``name`` whose float32 weights, with what learning adds to them ``copies`` in all, do not
    fit on ``device``, before any of them is made. ``smaller`` is the setting that helps."""
    with torch.device("meta"):
        count = sum(parameter.numel() for module in make() for parameter in module.parameters())
    need, free = 4 * copies * count, free_memory(device)
    if free is not None and need > free:
        raise ReverieError(
            f"{name} of this size has {count:,} parameters and needs {need:,} bytes for them, their gradients and "
            f"their optimiser, and {free:,} are free on {device.type}; choose a smaller size ({smaller})"
        )


def prepare(threads: int = 0) -> None:
    """Set this process up to learn. ``threads`` of PyTorch's; 0 for every core, right for a learner that runs alone:
    beside another busy process, extra threads only wait."""
    torch.set_num_threads(threads or CORES)
    torch.set_flush_denormal(True)  # tiny activations would cost hundreds of cycles each
    keep_memory()


def keep_memory() -> None:
    """Let the C library reuse what is freed instead of giving it back and asking anew.

    Fresh pages cost a quarter of the convolutions' time (benchmarks/layers.py). Linux with glibc; elsewhere nothing.
    """
    mmap_threshold, trim_threshold = -3, -1
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
        except OSError:
            return
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
