"""Processes that learn together, by ``torch.distributed``: one after another they are called ranks, from 0.

What an agent needs of it are two functions that change nothing where a process learns by itself: ``averaged``, which
every optimiser takes its gradient through, and ``of_all``, for what is measured over a whole batch.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reverie.types import ReverieError

PATIENCE = timedelta(days=1)  # one may evaluate for long while the others wait


class Ranks(NamedTuple):
    """Which of how many processes this is; ``local`` counts those of this machine alone."""

    rank: int = 0
    size: int = 1
    local: int = 0
    locals: int = 1


ALONE = Ranks()
_joined = ALONE


def asked() -> Ranks:
    """As ``torchrun`` says in the environment; alone without it."""
    try:
        numbers = [int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    except (KeyError, ValueError):
        return ALONE
    return Ranks(*numbers)


@contextlib.contextmanager
def joined(ranks: Ranks) -> Iterator[None]:
    """Meet the others, and leave them at the end; nothing to do if there are none."""
    global _joined
    if ranks.size == 1:
        yield
        return
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(ranks.local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ReverieError(f"rank {ranks.rank} could not meet the others: {error}") from error
    _joined = ranks
    try:
        yield
    finally:
        _joined = ALONE
        dist.destroy_process_group()


def ranks() -> Ranks:
    """Which one this is of those that have met."""
    return _joined


def averaged(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The means over all ranks, which must ask together; sent as one long tensor."""
    if _joined.size == 1:
        return tuple(tensors)
    import torch.distributed as dist

    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    _told(dist.all_reduce, flat)
    parts = flat.div_(_joined.size).split([tensor.numel() for tensor in tensors])
    return tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True))


def of_all(x: Tensor) -> Tensor:
    """Those of all ranks, "n ..." each, one after the other: "n*size ..."."""
    if _joined.size == 1:
        return x
    import torch.distributed as dist

    parts = [torch.empty_like(x) for _ in range(_joined.size)]
    _told(dist.all_gather, parts, x.contiguous())
    return torch.cat(parts)


def everyone(*numbers: int) -> list[list[int]]:
    """What each rank says, by rank; as many whole numbers from each."""
    return of_all(torch.tensor([numbers], dtype=torch.int64)).tolist()


def _told(call: Any, *args: Any) -> None:
    try:
        call(*args)
    except RuntimeError as error:
        raise ReverieError(
            f"rank {_joined.rank} lost the others ({' '.join(str(error).split())[:200]}); start all of them again with "
            f"the same command"
        ) from error
