"""Open-loop predictions of a trained agent on episodes it has not learned from, for judging its model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from reverie.types import Batch, ReverieError

SEED = 2_000_003  # these episodes start where neither training nor evaluation does


def predict(
    folder: Path, context: int, length: int, episodes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction, uint8 "n t h w c", of the first ``length`` rows of new episodes.

    The newest checkpoint acts, without exploration noise; its model then sees ``context`` rows and imagines
    the others from the actions. Raises ``ReverieError`` if an episode is shorter, or shows no picture.
    """
    from reverie.run.trained import load

    player = load(folder)
    image = next((key for key, space in player.obs_space.items() if space.is_image), None)
    if image is None:
        raise ReverieError(f"{folder} sees {', '.join(player.obs_space)}: there is no picture to predict")
    env = player.make_env()
    try:
        played = [_play(player, env, SEED + 1000 * seed + i, length) for i in range(episodes)]
    finally:
        env.close()
    told = player.agent.report(_batch(played), context)
    return next(pair for name, pair in told.items() if name.split("/")[-1] == image)


def _play(player, env, seed: int, length: int) -> tuple[list, list[np.ndarray]]:
    """The first ``length`` rows of an episode, and the action that led to each."""
    player.reset()
    rows, actions = [env.reset(seed)], [np.zeros(env.act_space.size, np.float32)]
    while len(rows) < length:
        if rows[-1].is_last:
            raise ReverieError(
                f"an episode ended after {len(rows)} rows, {length} are needed; name a longer task"
            )
        actions.append(np.asarray(player.act(rows[-1].obs), np.float32))
        rows.append(env.step(actions[-1]))
    return rows, actions


def _batch(played: list[tuple[list, list[np.ndarray]]]) -> Batch:
    """n episodes as sequences from their first row; the last row's action is not known and stays zero."""

    def stack(read) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.stack([read(row) for row in rows]) for rows, _ in played]))

    prev_action = torch.from_numpy(np.stack([np.stack(actions) for _, actions in played]))
    action = torch.cat([prev_action[:, 1:], torch.zeros_like(prev_action[:, :1])], 1)
    keys = played[0][0][0].obs
    obs = {key: stack(lambda row, key=key: row.obs[key]) for key in keys}
    return Batch(
        obs,
        action,
        prev_action,
        stack(lambda row: np.float32(row.reward)),
        stack(lambda row: np.bool_(row.is_first)),
        stack(lambda row: np.bool_(row.is_last)),
        stack(lambda row: np.bool_(row.is_terminal)),
    )
