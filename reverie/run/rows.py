"""What V and M of World Models learn from: recorded rows as pictures, and as a stream of what V made of them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reverie.agents.world_models import Latents
from reverie.data.replay import Replay
from reverie.logger import plural
from reverie.types import ReverieError


class Rows:
    """The rows of all episodes that count, numbered through, without each one's last: nothing was done there."""

    def __init__(self, replay: Replay, shortest: int, rollouts: int, folder: Path, latents: int):
        self.replay = replay
        self.order = (-1, np.zeros((0, 0), np.int64))  # epoch, and its streams, "rows streams"
        found = [(s, *episode) for s in range(replay.streams) for episode in replay.episodes_of(s)]
        used = [e for e in found if e[2] - e[1] - 1 > shortest][:rollouts]
        if not used:
            raise ReverieError(
                f"none of {plural(len(found), 'episode')} is longer than --shortest {shortest}"
            )
        lengths = np.array([end - first - 1 for _, first, end in used])
        self.lengths, self.firsts = lengths, np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.streams = np.repeat([s for s, _, _ in used], lengths)
        self.at = np.concatenate([np.arange(first, end - 1) for _, first, end in used])
        self.is_first = np.zeros(len(self.at), bool)
        self.is_first[self.firsts] = True
        small = [replay.read(s, first, end - 1, obs=False) for s, first, end in used]
        self.action = np.concatenate([part["action"] for part in small])
        self.reward = np.concatenate([part["reward"] for part in small])
        self.stats = on_disk(folder / "latents" / "stats.f16", (len(self.at), 2, latents))

    def __len__(self) -> int:
        return len(self.at)

    def pictures(self, numbers: np.ndarray) -> Tensor:
        """ "n h w c", uint8."""
        batch = self.replay.take(self.streams[numbers].tolist(), self.at[numbers].tolist())
        return next(iter(batch.obs.values()))[:, 0]

    def chunk(self, update: int, streams: int, length: int, seed: int) -> tuple[np.ndarray, bool]:
        """Row numbers "T n" of M's update, and whether an epoch begins with it.

        In each epoch the episodes are shuffled, laid end to end, cut into ``streams`` and walked through side by
        side; a chunk begins with the last row of the one before.
        """
        per = len(self) // streams
        if per < 2:
            raise ReverieError(
                f"--m-batch {streams} streams need at least two rows each, and there are {len(self):,} in all; "
                f"collect more --rollouts or lower it"
            )
        length = min(length, per)
        epoch, part = divmod(update, (per - 1) // (length - 1))
        if self.order[0] != epoch:
            episodes = np.random.default_rng([seed, 5, epoch]).permutation(len(self.lengths))
            order = np.concatenate(
                [np.arange(self.firsts[e], self.firsts[e] + self.lengths[e]) for e in episodes]
            )
            self.order = (epoch, order[: per * streams].reshape(streams, per).T)
        return self.order[1][part * (length - 1) : part * (length - 1) + length], part == 0

    def latents(self, numbers: np.ndarray, device: torch.device) -> Latents:
        parts = (self.stats[numbers], self.action[numbers], self.is_first[numbers], self.reward[numbers])
        return Latents(*(torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in parts))


def on_disk(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """An array of float16 in a file of its own, made if it is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        size = int(np.prod(shape)) * 2
        if not path.exists() or path.stat().st_size != size:
            with open(path, "wb") as file:
                file.truncate(size)
        return np.memmap(path, np.float16, "r+", shape=shape)
    except OSError as error:
        raise ReverieError(f"{path} could not be made: {error.strerror}; free some disk") from error
