"""A batch as transitions, for agents that learn from one step at a time and read vectors alone."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reverie.types import ActionSpace, Batch, ObsSpace, ReverieError

# What a goal environment shows
OBSERVATION, ACHIEVED, DESIRED = "observation", "achieved_goal", "desired_goal"


class Transitions(NamedTuple):
    """N of them. ``cont`` is 0 where the world ended and 1 elsewhere: the clock ends no world."""

    obs: Tensor  # "N O", the vectors side by side
    action: Tensor  # "N A", chosen at obs
    reward: Tensor  # "N", arrived with next_obs
    next_obs: Tensor  # "N O"
    cont: Tensor  # "N"


def transitions(batch: Batch, keys: Sequence[str]) -> Transitions:
    """Every two neighbouring rows as one transition, except where the second begins an episode.

    ::

        row      0    1    2    3         is_first at 2: rows 1 and 2 belong to two episodes
        taken    0→1       2→3            the action of row 0, the reward and the end of row 1
    """
    keep = ~batch.is_first[:, 1:]
    whole = bool(keep.all())

    def pick(rows: Tensor) -> Tensor:
        return rows.flatten(0, 1) if whole else rows[keep]

    obs = join(batch.obs, keys)
    ended = pick(batch.is_terminal[:, 1:])
    return Transitions(
        pick(obs[:, :-1]), pick(batch.action[:, :-1]), pick(batch.reward[:, 1:]), pick(obs[:, 1:]), (~ended).float()
    )  # fmt: skip


def join(obs: Mapping[str, Tensor], keys: Sequence[str]) -> Tensor:
    """The vectors ``keys`` of an observation side by side."""
    return obs[keys[0]] if len(keys) == 1 else torch.cat([obs[key] for key in keys], -1)


def join_arrays(obs: Mapping[str, np.ndarray], keys: Sequence[str]) -> Tensor:
    """The same for what an environment shows, as a tensor."""
    return torch.from_numpy(obs[keys[0]] if len(keys) == 1 else np.concatenate([obs[k] for k in keys], -1))


def vectors(space: ObsSpace, who: str) -> tuple[list[str], int]:
    """Names, sorted, and total length of the vectors of a space; refuses pictures."""
    pictures = [key for key in sorted(space) if space[key].is_image]
    if pictures:
        raise ReverieError(
            f"{who} reads vectors and can not use the picture {pictures[0]!r}; choose an environment without "
            f"pictures, or an agent that learns from them, e.g. dreamer_v1"
        )
    keys = sorted(space)
    if not keys:
        raise ReverieError(f"{who} needs at least one vector to read, and the observation space is empty")
    return keys, sum(space[key].shape[0] for key in keys)


def continuous(space: ActionSpace, who: str) -> int:
    """The length of a continuous action; refuses discrete ones."""
    if space.discrete:
        choices = " x ".join(map(str, space.groups))
        raise ReverieError(
            f"{who} acts by numbers and this environment wants choices ({choices}); take an agent for discrete "
            f"actions, e.g. dreamer_v1"
        )
    return space.size


def goals(obs_space: ObsSpace, act_space: ActionSpace, who: str) -> int:
    """The length of a goal; refuses what is no goal environment, pictures, and several choices at once."""
    missing = [key for key in (OBSERVATION, ACHIEVED, DESIRED) if key not in obs_space]
    if missing:
        raise ReverieError(
            f"{who} needs a goal environment, which shows observation, achieved_goal and desired_goal, and this one "
            f"shows {', '.join(sorted(obs_space))}; reverie.envs.goals.GoalEnv makes one of any"
        )
    if obs_space[ACHIEVED].shape != obs_space[DESIRED].shape:
        raise ReverieError(
            f"{who} needs goals that can be compared: achieved_goal has shape {obs_space[ACHIEVED].shape} and "
            f"desired_goal {obs_space[DESIRED].shape}; mend the environment"
        )
    if any(obs_space[key].is_image for key in (OBSERVATION, ACHIEVED, DESIRED)):
        raise ReverieError(
            f"{who} reads vectors and can not use pictures; choose a goal environment without them"
        )
    if len(act_space.groups) > 1:
        raise ReverieError(
            f"{who} makes one choice at a time and this environment wants {len(act_space.groups)}; take an agent for "
            f"several, e.g. dreamer_v1"
        )
    return obs_space[DESIRED].shape[0]
