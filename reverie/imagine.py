"""Look into any learned World: let it watch a few steps, close its eyes, and predict the rest (open loop).

Pictures are for the eye (``open_loop``), vectors can be counted (``prediction_error``)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reverie.types import Batch, Media, ReverieError, World


@torch.no_grad()
def open_loop(world: World, batch: Batch, context: int = 5) -> Media:
    """Truth and prediction for every image key, uint8 "B T h w c" each.

    The first ``context`` rows are filtered, the others imagined from the recorded actions alone::

        row          0     1   ..  context-1 | context  ..  T-1
        the world   sees  sees ..    sees    | imagines ..  imagines
    """
    n, time = batch.reward.shape
    carry = world.initial(n)
    frames: dict[str, list[np.ndarray]] = {}
    for t in range(time):
        if t < context:
            obs = {key: value[:, t] for key, value in batch.obs.items()}
            carry = world.observe(obs, batch.prev_action[:, t], batch.is_first[:, t], carry)
        else:
            carry = world.imagine(carry, batch.prev_action[:, t])
        for key, value in world.decode(carry).items():
            if value.dtype == torch.uint8:
                frames.setdefault(key, []).append(value.cpu().numpy())
    return {f"open_loop/{key}": (batch.obs[key].cpu().numpy(), np.stack(f, 1)) for key, f in frames.items()}


def look(world: World, batch: Batch, context: int = 5) -> Media:
    """Its open loop, and beside it its reconstruction: what it makes of each row when it is shown it."""
    seen = open_loop(world, batch, batch.reward.shape[1])
    shown = {name.replace("open_loop/", "reconstruction/"): pair for name, pair in seen.items()}
    return {**open_loop(world, batch, context), **shown}


class Foresight(NamedTuple):
    """How far a world sees, one entry for every imagined step; errors are in standard deviations of the data."""

    error: np.ndarray  # of the mean of what was imagined
    spread: np.ndarray  # standard deviation of what was imagined: how unsure the world is itself
    still: np.ndarray  # error of who believes that nothing moves
    rows: np.ndarray  # sequences that reach so far within their episode


@torch.no_grad()
def prediction_error(world: World, batch: Batch, context: int = 1, samples: int = 20) -> Foresight:
    """Open loop on the vectors of ``batch``: root mean squared error over sequences and entries, step by step.

    Each sequence is imagined ``samples`` times from its first ``context`` rows; what varies among these is the
    world's own doubt. Where a new episode begins, a sequence counts no more.
    """
    n, time = batch.reward.shape
    carry = world.initial(n)
    for t in range(context):
        obs = {key: value[:, t] for key, value in batch.obs.items()}
        carry = world.observe(obs, batch.prev_action[:, t], batch.is_first[:, t], carry)
    truth: dict[str, Tensor] = {key: value for key, value in batch.obs.items() if value.dtype != torch.uint8}
    if not truth:
        raise ReverieError("a prediction error is of vectors, and this world sees pictures alone")
    side_by_side = lambda parts: torch.cat([parts[key] for key in sorted(truth)], -1)
    rows = side_by_side(truth)
    scale = rows.flatten(0, 1).std(0, correction=0)
    scale = torch.where(scale > 1e-6, scale, 1.0)
    carry = world.take(carry, torch.arange(n, device=rows.device).repeat_interleave(samples))
    last, running = rows[:, context - 1], torch.ones(n, dtype=torch.bool, device=rows.device)
    curves: list[tuple[float, ...]] = []
    for t in range(context, time):
        carry = world.imagine(carry, batch.prev_action[:, t].repeat_interleave(samples, 0))
        told = (side_by_side(world.decode(carry)) / scale).view(n, samples, -1)
        running = running & ~batch.is_first[:, t]
        if not bool(running.any()):
            break
        true = rows[:, t] / scale
        parts = (told.mean(1) - true, told.std(1, correction=0), last / scale - true)
        curves.append((*(part[running].square().mean().sqrt().item() for part in parts), int(running.sum())))
    error, spread, still, counts = np.array(curves).reshape(-1, 4).T
    return Foresight(error, spread, still, counts.astype(int))
