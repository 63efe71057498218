"""Open loop against a world that writes down what it was told."""

import numpy as np
import pytest
import torch

from reverie.imagine import look, open_loop
from reverie.types import Batch, World


class Diary:
    """Its state "n 2" is (rows seen, sum of imagined actions); it shows both as pixels."""

    temperature = 1.0

    def __init__(self):
        self.told = []

    def initial(self, n):
        return torch.zeros(n, 2)

    def observe(self, obs, prev_action, is_first, carry):
        self.told.append(("observe", obs["image"], prev_action, is_first))
        return torch.stack([carry[:, 0] + 1, torch.zeros(len(carry))], 1)

    def imagine(self, carry, action):
        self.told.append(("imagine", action))
        return torch.stack([carry[:, 0], carry[:, 1] + action[:, 0]], 1)

    def decode(self, carry):
        image = carry[:, None, None, :].expand(-1, 2, 2, 2).byte()
        return {"image": image, "speed": carry, "depth": image[..., :1]}

    def reward(self, carry):
        return carry[:, 0]

    def cont(self, carry):
        return carry[:, 0]

    def features(self, carry):
        return carry

    def take(self, carry, index):
        return carry[index]

    def put(self, carry, index, part):
        return carry.index_copy(0, index, part)


def batch(n=3, time=8):
    pictures = lambda c: torch.randint(0, 256, (n, time, 2, 2, c), dtype=torch.uint8)
    obs = {"image": pictures(2), "depth": pictures(1), "speed": torch.randn(n, time, 2)}
    prev_action = torch.arange(time).float().view(1, time, 1).expand(n, time, 1)
    is_first = torch.zeros(n, time, dtype=torch.bool)
    is_first[:, 0] = is_first[0, 2] = True
    never = torch.zeros(n, time, dtype=torch.bool)
    return Batch(obs, torch.randn(n, time, 1), prev_action, torch.zeros(n, time), is_first, never, never)


@pytest.mark.parametrize("context", [1, 5, 8])
def test_it_looks_at_the_context_and_then_closes_its_eyes(context):
    world, rows = Diary(), batch()
    assert isinstance(world, World)
    open_loop(world, rows, context)
    assert [what for what, *_ in world.told] == ["observe"] * context + ["imagine"] * (8 - context)
    for t, (what, *told) in enumerate(world.told):
        if what == "observe":
            image, prev_action, is_first = told
            assert torch.equal(image, rows.obs["image"][:, t])
            assert torch.equal(is_first, rows.is_first[:, t])
        else:
            (prev_action,) = told
        assert torch.equal(prev_action, rows.prev_action[:, t])


def test_it_shows_truth_and_prediction_of_every_picture():
    rows = batch()
    media = open_loop(Diary(), rows, context=5)
    assert set(media) == {"open_loop/image", "open_loop/depth"}
    for name, (truth, prediction) in media.items():
        assert np.array_equal(truth, rows.obs[name.split("/")[1]].numpy())
        assert truth.shape == prediction.shape
        assert truth.dtype == prediction.dtype == np.uint8
    _, prediction = media["open_loop/image"]
    assert prediction[0, :, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 5, 5, 5]  # rows seen
    assert prediction[0, :, 0, 0, 1].tolist() == [0, 0, 0, 0, 0, 5, 5 + 6, 5 + 6 + 7]  # actions since


def test_a_world_without_pictures_has_nothing_to_show():
    class Blind(Diary):
        def decode(self, carry):
            return {"speed": carry}

    assert open_loop(Blind(), batch()) == {}


def test_a_look_shows_the_reconstruction_beside_the_dream():
    rows = batch()
    media = look(Diary(), rows, context=5)
    assert set(media) == {
        f"{what}/{key}" for what in ("open_loop", "reconstruction") for key in ("image", "depth")
    }
    dreamed, shown = media["open_loop/image"][1], media["reconstruction/image"][1]
    assert np.array_equal(dreamed, open_loop(Diary(), rows, 5)["open_loop/image"][1])
    assert shown[0, :, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]  # rows seen
    assert not shown[..., 1].any()  # and nothing imagined
