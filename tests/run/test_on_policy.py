"""The loop of agents without a memory: a run that was interrupted anywhere is, bit for bit, the run that was not."""

import dataclasses
import json
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

import reverie
from reverie.data.replay import Replay
from reverie.envs import SerialEnvs
from reverie.logger import Logger
from reverie.run.loop import RunConfig
from reverie.run.on_policy import History, OnPolicy, stacked
from reverie.run.train import go_on
from reverie.run.trained import imagine_run, load
from reverie.types import ReverieError, Step


@dataclasses.dataclass(frozen=True)
class Plain:
    steps: int = 30
    actors: int = 3
    length: int = 2
    action_repeat: int = 1


@dataclasses.dataclass(frozen=True)
class Modelled(Plain):
    model_steps: int = 12
    model_updates: int = 3
    model_batch: int = 3


def make(toys, folder, config, wild=False):
    class Walk(toys.Walk):
        def __init__(self):
            super().__init__(wild)

    class Toy(toys.Toy):
        """Also remembers what it is given back of what ``act`` left, and learns a model."""

        def act(self, obs, carry, mode):
            action, left = super().act(obs, carry, mode)
            return action, left

        def update(self, batch, carries=None):
            if carries is not None:
                assert len(carries) == batch.reward.shape[1] - 1
                self.weight = self.weight + 0.1 * carries[-1][0].mean()
            return super().update(batch)

        def update_model(self, replay, seed, number):
            rows = replay.sample(3, 2, np.random.default_rng([seed, number]))
            self.momentum = self.momentum + rows.reward.sum()
            return {"loss/model": self.momentum.sum()}

    run = RunConfig(eval_every=20, eval_episodes=2, log_every=12)
    envs, eval_envs = SerialEnvs(Walk, config.actors, 0), SerialEnvs(Walk, 2, 1_000)
    replay = Replay(envs.obs_space, envs.act_space, 120, config.actors, folder / "replay", slack=50)
    return OnPolicy(Toy(), envs, eval_envs, replay, config, run, folder, Logger(folder))


def close(loop):
    for part in (loop.logger, loop.envs, loop.eval_envs, loop.replay):
        part.close()


def everything(toys, loop):
    state = loop.state_dict()
    state.pop("clock")
    rows = [loop.replay.read(s, 0, c) for s, c in enumerate(loop.replay.counts)]
    return toys.plain({**state, "recorded": rows, "metrics": toys.metrics(loop.folder)})


@pytest.mark.parametrize("config", [Plain(), Modelled()], ids=["plain", "modelled"])
def test_stopped_and_resumed_after_every_move(toys, tmp_path, config):
    whole = make(toys, tmp_path / "whole", config)
    go_on(whole)
    assert whole.loop() and whole.env_steps >= 30
    expected = everything(toys, whole)
    close(whole)
    k, finished = 0, False
    while not finished:
        folder = tmp_path / f"stopped-{k}"
        first = make(toys, folder, config)
        go_on(first)
        for _ in range(k):
            if not first.done:
                first.move()
        first.save()
        finished = first.done
        if k % 2 and not finished:  # and some moves are lost
            first.move()
        close(first)
        second = make(toys, folder, config)
        go_on(second)
        assert second.loop()
        assert everything(toys, second) == expected, f"stopped after {k} moves"
        close(second)
        k += 1
    assert k > 6


def test_the_stages_come_in_order_and_only_data_is_recorded(toys, tmp_path):
    loop = make(toys, tmp_path, Modelled())
    go_on(loop)
    stages = []
    while not loop.done:
        stages.append(loop.stage)
        loop.move()
    assert sorted(set(stages), key=stages.index) == ["data", "model", "agent"]
    assert stages == sorted(stages, key=["data", "model", "agent"].index)
    assert loop.model_updates == stages.count("model") == 3
    recorded = sum(
        int(loop.replay.read(s, 0, c)["env_steps"].sum()) for s, c in enumerate(loop.replay.counts)
    )
    assert 12 - 6 <= recorded <= 12 + 6 < loop.env_steps
    close(loop)


def test_environments_that_do_not_come_back_begin_anew_with_a_warning(toys, tmp_path):
    first = make(toys, tmp_path, Plain(), wild=True)
    go_on(first)
    while not (first.rows is not None and (first.length > 1).all() and not first.rows.is_last.any()):
        first.rollout()
    first.save()
    close(first)
    second = make(toys, tmp_path, Plain(), wild=True)
    with pytest.warns(UserWarning, match="3 environments of 3 did not come back"):
        go_on(second)
    assert second.rows.is_last.all() and not second.rows.is_terminal.any()
    second.rollout()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert second.loop()
    close(second)


def test_rows_of_streams_become_sequences():
    row = lambda t, first, last: Step(
        {"vector": np.full((2, 1), t, np.float32)},
        np.full(2, 10.0 * t, np.float32),
        np.array(first),
        np.array(last),
        np.zeros(2, bool),
        np.ones(2, np.int64),
    )
    rows = [
        row(0, [True, False], [False] * 2),
        row(1, [False] * 2, [True, False]),
        row(2, [True, False], [False] * 2),
    ]
    actions = [np.full((2, 1), 1, np.float32), np.array([[0], [2]], np.float32)]
    batch = stacked(rows, actions)
    assert batch.obs["vector"].shape == (2, 3, 1) and batch.obs["vector"][1, :, 0].tolist() == [0, 1, 2]
    assert batch.action[:, :, 0].tolist() == [[1, 0, 0], [1, 2, 0]]
    assert batch.prev_action[:, :, 0].tolist() == [[0, 1, 0], [0, 1, 2]]
    assert batch.reward[0].tolist() == [0, 10, 20]
    assert batch.is_last.tolist() == [[False, True, False], [False] * 3]


def test_history_keeps_running_episodes_only():
    history, rng = History(2), np.random.default_rng(0)
    since: list[list] = [[], []]
    for t in range(5_000):
        is_first = np.array([t % 700 == 0, t % 11 == 0])
        action = rng.normal(size=(2, 3)).astype(np.float32)
        history.add(action, is_first)
        for i in range(2):
            since[i] = [*([] if is_first[i] else since[i]), action[i]]
    assert len(history.actions) < 2_500
    other = History(2)
    other.load_state_dict(history.state_dict())
    for i in range(2):
        assert np.array_equal(history.of(i), np.stack(since[i]))
        assert np.array_equal(other.of(i), np.stack(since[i]))


def test_a_whole_run_of_a2c(tmp_path, capsys):
    options = dict(steps=300, eval_episodes=2, eval_every=100, log_every=100, threads=1, seed=1, pixels=False)
    folder = reverie.train("a2c", "CartPole-v1", "debug", tmp_path / "run", **options)
    assert "Finished: 3" in capsys.readouterr().out
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval/return" in line for line in lines) == 3
    assert any("loss/policy" in line for line in lines)
    assert load(folder).act(np.zeros(4, np.float32)).sum() == 1
    reverie.train("a2c", "CartPole-v1", "debug", folder, **{**options, "steps": 400})
    assert "Going on from 3" in capsys.readouterr().out
    with pytest.raises(ReverieError, match="no world to imagine in"):
        imagine_run(folder, 3, 10, 0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(envs=3), "give --actors 3 instead of --envs 3"),
        (dict(actors=0), "--actors must be at least 1"),
        (dict(image_size=-1), "--image-size must be at least 0"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(tmp_path, settings, sentence):
    with pytest.raises(ReverieError, match=sentence):
        reverie.train("a2c", "CartPole-v1", "debug", tmp_path / "run", pixels=False, **settings)
    assert not (tmp_path / "run").exists()


def test_updates_learn_from_whole_rollouts_of_all_streams(toys, tmp_path):
    loop = make(toys, tmp_path, Plain(length=4))
    go_on(loop)
    seen = []
    learn = loop.agent.update
    loop.agent.update = lambda batch, left: seen.append(batch) or learn(batch, left)
    for _ in range(3):
        loop.rollout()
    for a, b in pairwise(seen):
        assert a.reward.shape == (3, 5)
        assert torch.equal(
            a.obs["vector"][:, -1], b.obs["vector"][:, 0]
        )  # the last row is the next one's first
        assert torch.equal(a.is_first[:, -1], b.is_first[:, 0])
    close(loop)


def test_a_whole_run_of_i2a_and_another_with_its_model(tmp_path):
    """Data, model, agent; pictures of what it imagines; and a run that is given that model."""
    small = dict(
        pixels=False,
        image_size=0,
        frames="cells",
        model_tile=1,
        channels=(4, 4),
        kernels=(3, 3),
        strides=(1, 2),
        same=True,
    )
    stages = dict(model_steps=60, random_steps=24, model_updates=3, steps=120, time_limit=15)
    options = dict(eval_episodes=2, eval_every=0, log_every=50, threads=1, **small, **stages)
    env = "reverie/MiniPacman-v0"
    folder = reverie.train("i2a", env, "debug", tmp_path / "run", **options)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("model/frame" in line for line in lines) and any("distil/kl" in line for line in lines)
    assert {"futures.png", "open_loop_image.gif", "episode.gif"} <= {
        p.name for p in (folder / "videos").iterdir()
    }
    assert (folder / "videos" / "futures.png") in imagine_run(folder, 3, 10, 0)
    other = reverie.train("i2a", env, "debug", tmp_path / "other", seed=1, world=str(folder), **options)
    a, b = load(folder).agent.state_dict()["modules"], load(other).agent.state_dict()["modules"]
    assert all(torch.equal(a[name], b[name]) for name in a if name.startswith("model."))
    found = json.loads((other / "evaluation.json").read_text())
    assert 120 <= found["env_steps"] < 160  # the 60 env steps of the model's data among them
    with pytest.raises(ReverieError, match="has model_channels 3, and this run has 5"):
        reverie.train("i2a", env, "debug", tmp_path / "x", world=str(folder), model_channels=5, **options)
    with pytest.raises(ReverieError, match="no setting of a2c called 'world'"):
        reverie.train("a2c", env, "debug", tmp_path / "y", world=str(folder))


def test_i2a_by_the_worlds_own_rules_where_a_picture_shows_all(tmp_path):
    small = dict(pixels=False, image_size=0, frames="cells", model_tile=1)
    small |= dict(channels=(4, 4), kernels=(3, 3), strides=(1, 2), same=True, steps=60, time_limit=15)
    options = dict(eval_episodes=2, eval_every=0, threads=1, preset="debug simulator", **small)
    folder = reverie.train("i2a", "reverie/SokobanSmall-v0", run=tmp_path / "run", **options)
    player = load(folder)
    env = player.make_env()
    assert player.act(env.reset(0).obs).sum() == 1
    with pytest.raises(ReverieError, match="those of reverie/MiniPacman-v0 do not show all there is"):
        reverie.train("i2a", "reverie/MiniPacman-v0", run=tmp_path / "x", **options)
