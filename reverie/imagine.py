"""Look into any learned World: let it watch a few steps, close its eyes, and predict the rest (open loop)."""

import numpy as np
import torch

from reverie.types import Batch, Media, World


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
