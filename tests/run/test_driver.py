"""Rows, actions and episodes in the right places, live and from the journal."""

import numpy as np
import pytest
import torch

from reverie.envs import SerialEnvs
from reverie.run.driver import like, put_row, row_of


def drive(toys, tmp_path, n=2, rows=40, prefill=0):
    sitting = toys.Sitting(tmp_path, n=n, config=toys.Config(prefill=prefill))
    return sitting, step(sitting, rows)


def step(sitting, rows):
    """So many rows in every stream, and nothing learned; the episodes that ended."""
    return [episode for _ in range(rows) for episode in sitting.online.driver()]


def test_every_row_is_recorded_with_the_action_chosen_at_it(toys, tmp_path):
    """Walk moves by the sum of the action: o_{t+1} - o_t - noise is a_t, which the replay holds in row t."""
    sitting, _ = drive(toys, tmp_path)
    for s in range(2):
        for number, (first, end) in enumerate(sitting.replay.episodes_of(s)):
            rows = sitting.replay.read(s, first, end)
            env = toys.Walk()
            from reverie.envs import episode_seed

            row = env.reset(episode_seed(0, s, number))
            assert np.array_equal(row.obs["vector"], rows["obs/vector"][0])
            for t in range(1, end - first):
                row = env.step(rows["action"][t - 1])
                assert np.array_equal(row.obs["vector"], rows["obs/vector"][t])
                assert row.reward == rows["reward"][t] and row.is_terminal == rows["is_terminal"][t]
            assert rows["is_first"].tolist() == [True] + [False] * (end - first - 1)
            assert rows["is_last"].tolist() == [False] * (end - first - 1) + [True]
            assert (rows["action"][-1] == 0).all()
    sitting.close()


def test_what_is_told_of_an_episode_is_what_the_replay_holds(toys, tmp_path):
    sitting, episodes = drive(toys, tmp_path)
    assert len(episodes) > 4
    for s in range(2):
        told = [episode for episode in episodes if episode.stream == s]
        held = [sitting.replay.read(s, a, b) for a, b in sitting.replay.episodes_of(s)]
        assert [e.length for e in told] == [len(rows["reward"]) - 1 for rows in held]
        assert [e.score for e in told] == pytest.approx([float(rows["reward"].sum()) for rows in held])
    driver = sitting.online.driver
    steps = [sitting.replay.read(s, 0, c)["env_steps"].sum() for s, c in enumerate(sitting.replay.counts)]
    assert driver.env_steps == sum(steps) == driver.decisions
    sitting.close()


def test_episodes_begun_in_the_prefill_act_at_random_to_their_end(toys, tmp_path):
    sitting, episodes = drive(toys, tmp_path, prefill=25)
    at_random = [episode.random for episode in episodes]
    assert at_random[0] and not at_random[-1]
    assert at_random == sorted(at_random, reverse=True)
    assert sum(e.length for e in episodes if e.random) >= 25
    sitting.close()


def test_the_journal_takes_the_place_of_the_environments(toys, tmp_path):
    """Environments are not stepped while the record lasts, and then stand where it ends."""
    first, _ = drive(toys, tmp_path, n=2, rows=12)
    expected = [toys.plain(first.replay.read(s, 0, 12)) for s in range(2)]
    first.die()
    steps = []

    class Counting(SerialEnvs):
        def step(self, action, only=None):
            steps.append(len(list(only)))
            return super().step(action, only)

    again = toys.Sitting(tmp_path, n=2, config=toys.Config(prefill=0), envs=Counting(toys.Walk, 2, 0)).go_on()
    step(again, 12)
    assert steps == [0] * 12
    assert [toys.plain(again.replay.read(s, 0, 12)) for s in range(2)] == expected
    again.online.driver()
    assert steps[-1] == 2
    whole, _ = drive(toys, tmp_path / "whole", n=2, rows=13)
    for s in range(2):
        assert toys.plain(again.replay.read(s, 12, 13)) == toys.plain(whole.replay.read(s, 12, 13))


def test_a_stream_whose_journal_is_shorter_is_stepped_alone(toys, tmp_path):
    """A kill between the streams of one row leaves one a row ahead of the other."""
    whole, _ = drive(toys, tmp_path / "whole", n=2, rows=20)
    first, _ = drive(toys, tmp_path / "run", n=2, rows=9)
    add, calls = first.replay.add, []

    def once(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        add(*args)

    first.replay.add = once
    with pytest.raises(KeyboardInterrupt):
        first.online.driver()
    assert first.replay.counts == [10, 9]
    first.die()
    again = toys.Sitting(tmp_path / "run", n=2, config=toys.Config(prefill=0)).go_on()
    step(again, 20)
    for s in range(2):
        assert toys.plain(again.replay.read(s, 0, 20)) == toys.plain(whole.replay.read(s, 0, 20))


def test_an_agent_that_does_not_repeat_itself_is_warned_of_once_and_overruled(toys, tmp_path):
    first, _ = drive(toys, tmp_path, n=1, rows=20)
    expected = toys.plain(first.replay.read(0, 0, 20))
    first.die()
    again = toys.Sitting(tmp_path, config=toys.Config(prefill=0)).go_on()
    again.agent.weight += 0.5
    with pytest.warns(UserWarning, match="does not repeat the recorded actions") as said:
        step(again, 20)
    assert len(said) == 1
    assert toys.plain(again.replay.read(0, 0, 20)) == expected


def test_rows_come_apart_and_together(toys):
    envs = SerialEnvs(toys.Walk, 3, 0)
    rows, other = envs.step(np.zeros((3, 2))), envs.step(np.zeros((3, 2)))
    put_row(rows, 1, row_of(other, 1))
    assert np.array_equal(rows.obs["vector"][1], other.obs["vector"][1])
    assert not np.array_equal(rows.obs["vector"][0], other.obs["vector"][0])
    assert rows.reward[1] == other.reward[1] and not rows.is_first[1] and rows.is_first[0]


def test_like_gives_a_checkpoint_its_types_back():
    from reverie.models.rssm import State

    template = (State(torch.zeros(2), torch.zeros(1), torch.zeros(1)), {"a": torch.zeros(1)}, 0)
    value = ((torch.ones(2), torch.ones(1), torch.ones(1)), {"a": torch.ones(1)}, 3)
    back = like(template, value)
    assert isinstance(back[0], State) and back[0].deter.sum() == 2 and back[2] == 3
