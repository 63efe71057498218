"""Weights on their way to the actor: whole, or as if they never came."""

import warnings

import pytest
import torch

from reverie import checkpoint
from reverie.run.asynchronous.settings import LINK
from reverie.run.asynchronous.weights import publish


def test_weights_half_written(tmp_path, toys, sit) -> None:
    sitting = sit(tmp_path).start().go(40)
    weights, policies = tmp_path / LINK / "weights", sitting.actor.policies
    version = policies.version
    assert version > 0
    half = weights / ".writing-000000099-1"  # killed before it had a name
    half.mkdir()
    (half / "state.json").write_text("{")
    publish(weights, sitting.learner.agent, 50, 0)
    broken = checkpoint.paths(weights)[-1]
    tensors = broken / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])  # cut on its way
    sitting.learner = None
    with pytest.warns(UserWarning, match="keeps the policy it has"):
        sitting.go(25)
    assert policies.version <= version + 1 and not sitting.actor.held
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sitting.go(25)  # said once
    agent = toys.Toy(2)
    agent.weight = torch.full((3,), 0.123)
    publish(weights, agent, 60, 0)
    sitting.go(15)
    assert policies.updates == 60 and torch.equal(policies.agent.weight, agent.weight)
