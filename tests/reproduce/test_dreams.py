"""What a model is judged on: whole new episodes, each action beside the row it led to."""

import numpy as np
import pytest
import torch

from reverie.reproduce import dreams
from reverie.run import trained
from reverie.types import ActionSpace, ReverieError, Space, Step


class Clock:
    """Its picture shows the seed's last digit and the time; its reward is the action."""

    act_space = ActionSpace(2)
    length = 8

    def reset(self, seed):
        self.t, self.seed = 0, seed
        return self.row(0.0)

    def step(self, action):
        self.t += 1
        return self.row(float(action[0]))

    def row(self, reward):
        image = np.full((2, 2, 3), 10 * (self.seed % 10) + self.t, np.uint8)
        flags = [np.array(value) for value in (self.t == 0, self.t == self.length, False)]
        return Step({"image": image}, np.array(reward, np.float32), *flags, np.array(1))

    def close(self):
        self.closed = True


class Counter:
    """An agent that does 0.1, 0.2, 0.3, ... and predicts nothing but black."""

    def __init__(self, image=True):
        self.obs_space = {"image": Space((2, 2, 3), "uint8")} if image else {"speed": Space((1,))}
        self.agent, self.env = self, Clock()

    def make_env(self):
        return self.env

    def reset(self):
        self.n = 0

    def act(self, obs):
        self.n += 1
        return np.full(2, self.n / 10, np.float32)

    def report(self, batch, context):
        self.batch, self.context = batch, context
        truth = batch.obs["image"].numpy()
        return {"open_loop/image": (truth, np.zeros_like(truth))}


@pytest.fixture
def player(monkeypatch):
    player = Counter()
    monkeypatch.setattr(trained, "load", lambda folder: player)
    return player


def test_rows_and_actions_line_up(tmp_path, player):
    truth, told = dreams.predict(tmp_path, 3, 5, 2, 0)
    assert truth[..., 0, 0, 0].tolist() == [[30, 31, 32, 33, 34], [40, 41, 42, 43, 44]]
    assert not told.any() and player.context == 3 and player.env.closed
    batch = player.batch
    assert torch.allclose(batch.prev_action[0, :, 1], torch.tensor([0, 0.1, 0.2, 0.3, 0.4]))
    assert torch.allclose(batch.action[1, :, 0], torch.tensor([0.1, 0.2, 0.3, 0.4, 0]))
    assert torch.equal(batch.reward, batch.prev_action[..., 0])
    assert batch.is_first.tolist() == [[True, False, False, False, False]] * 2
    assert batch.obs["image"].dtype == torch.uint8 and not batch.is_last.any()


def test_other_seeds_meet_other_episodes(tmp_path, player):
    seen = []
    player.env.reset = lambda seed, reset=player.env.reset: (seen.append(seed), reset(seed))[1]
    dreams.predict(tmp_path, 1, 2, 3, 0)
    dreams.predict(tmp_path, 1, 2, 3, 1)
    assert len(set(seen)) == 6


def test_what_cannot_be_predicted_is_said_in_a_sentence(tmp_path, player, monkeypatch):
    with pytest.raises(ReverieError, match="after 9 rows, 10 are needed"):
        dreams.predict(tmp_path, 3, 10, 1, 0)
    assert player.env.closed
    monkeypatch.setattr(trained, "load", lambda folder: Counter(image=False))
    with pytest.raises(ReverieError, match="no picture"):
        dreams.predict(tmp_path, 3, 5, 1, 0)
