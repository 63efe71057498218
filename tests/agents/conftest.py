"""Small worlds and small agents for the tests of agents: spaces by name, batches with resets."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reverie import presets
from reverie.types import ActionSpace, Batch, Space

OBS = {
    "image": {"image": Space((64, 64, 3), "uint8")},
    "vector": {"position": Space((3,)), "speed": Space((2,))},
    "goals": {"observation": Space((3,)), "achieved_goal": Space((2,)), "desired_goal": Space((2,))},
    "tasks": {"state": Space((3,)), "task": Space((2,))},
    "mixed": {"speed": Space((2,)), "image": Space((64, 64, 3), "uint8")},
}
ACTIONS = {
    "continuous": ActionSpace(2),
    "discrete": ActionSpace(3, (3,)),
    "multidiscrete": ActionSpace(5, (2, 3)),
}


def make_agent(name, obs="image", action="continuous", seed=0, **overrides):
    """A debug-sized agent."""
    config = presets.resolve(name, ["debug"], overrides)
    return presets.agent_class(name)(OBS[obs], ACTIONS[action], config, seed)


def make_rows(space, rng, *lead):
    """Random observations, as numpy arrays."""
    return {
        key: rng.integers(0, 256, (*lead, *s.shape)).astype(np.uint8)
        if s.is_image
        else rng.normal(size=(*lead, *s.shape)).astype(np.float32)
        for key, s in space.items()
    }


def make_obs(obs="image", n=3, seed=0, first=()):
    """What ``act`` is given: n observations, ``first`` the streams that were reset."""
    rows = make_rows(OBS[obs], np.random.default_rng(seed), n)
    return rows | {"is_first": np.isin(np.arange(n), list(first))}


def make_batch(
    obs="image", action="continuous", size=4, length=6, seed=0, ends=((1, 2), (2, 0)), terminal=True
):
    """Random sequences. Those of even number begin with an episode; ``ends`` are (sequence, last row)."""
    rng = np.random.default_rng(seed)
    space = ACTIONS[action]
    is_first, is_last = np.zeros((2, size, length), bool)
    is_first[::2, 0] = True
    for b, t in ends:
        is_last[b, t] = True
        is_first[b, t + 1] = True
    actions = space.sample(rng, size * length).reshape(size, length, -1)
    actions[is_last] = 0
    prev_action = np.roll(actions, 1, 1)
    prev_action[:, 0] = space.sample(rng, size)
    prev_action[is_first] = 0
    reward = rng.normal(size=(size, length)).astype(np.float32)
    reward[is_first] = 0
    rows = make_rows(OBS[obs], rng, size, length)
    tensors = (actions, prev_action, reward, is_first, is_last, is_last & terminal)
    return Batch({k: torch.from_numpy(v) for k, v in rows.items()}, *map(torch.from_numpy, tensors))


def flatten(tree, name=""):
    """Every leaf of nested dicts and tuples, with its place."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flatten(value, f"{name}/{key}")
    elif isinstance(tree, tuple | list):
        for i, value in enumerate(tree):
            yield from flatten(value, f"{name}/{i}")
    else:
        yield name, tree


def differing(a, b):
    """Places at which two trees are not the same, bit for bit."""
    a, b = dict(flatten(a)), dict(flatten(b))
    names = [name for name in a if not same(a[name], b.get(name))]
    return sorted({*names, *(a.keys() ^ b.keys())})


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return np.array_equal(a, b)


def copied(tree):
    """A deep copy of nested dicts and tuples of tensors."""
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [copied(value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree.clone() if isinstance(tree, torch.Tensor) else tree


@pytest.fixture(scope="session")
def small():
    """The functions of this file, as the tests name them."""
    return SimpleNamespace(
        OBS=OBS,
        ACTIONS=ACTIONS,
        agent=make_agent,
        obs=make_obs,
        batch=make_batch,
        differing=differing,
        copied=copied,
    )
