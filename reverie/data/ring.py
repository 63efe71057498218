"""Memory of what was only imagined: a bounded ring of transitions, kept in tensors as part of an agent.

What really happened is in the replay, on disk and for ever; this is overwritten within a few thousand updates.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from reverie.data.transitions import Transitions


class Ring:
    """The newest ``size`` transitions."""

    def __init__(self, size: int, obs: int, actions: int, device: torch.device | str = "cpu"):
        shapes = ((obs,), (actions,), (), (obs,), ())
        self.size, self.added = size, 0
        self.rows = Transitions(*(torch.zeros(size, *shape, device=device) for shape in shapes))

    def __len__(self) -> int:
        return min(self.added, self.size)

    def add(self, new: Transitions) -> None:
        """Append N transitions; the oldest make room."""
        n = len(new.reward)
        slots = (torch.arange(n, device=new.reward.device) + self.added) % self.size
        keep = slice(max(n - self.size, 0), None)  # of more than there is room for, the last
        for column, part in zip(self.rows, new, strict=True):
            column[slots[keep]] = part[keep]
        self.added += n

    def sample(self, n: int, generator: Generator) -> Transitions:
        """N of them, all equally likely."""
        pick = torch.randint(len(self), (n,), generator=generator, device=self.rows.reward.device)
        return Transitions(*(column[pick] for column in self.rows))

    def resize(self, size: int) -> None:
        """Room for another number; the newest stay."""
        if size == self.size:
            return
        kept, old = min(len(self), size), self.rows
        slots = (torch.arange(kept, device=old.reward.device) + self.added - kept) % self.size
        newest = [column[slots] for column in old]
        self.rows = Transitions(*(column.new_zeros(size, *column.shape[1:]) for column in old))
        self.size, self.added = size, kept
        for column, part in zip(self.rows, newest, strict=True):
            column[:kept] = part

    def state_dict(self) -> dict[str, Any]:
        kept = {name: column[: len(self)].clone() for name, column in self.rows._asdict().items()}
        return {"rows": kept, "size": self.size, "added": self.added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.resize(state["size"])
        self.added = state["added"]
        for name, column in self.rows._asdict().items():
            kept: Tensor = state["rows"][name]
            column[: len(kept)] = kept
