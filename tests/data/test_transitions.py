"""Transitions: what is drawn from a replay, and what a batch is read as."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reverie.data.replay import Replay
from reverie.data.transitions import continuous, transitions, vectors
from reverie.types import ActionSpace, ReverieError, Space, Step

OBS = {"b": Space((2,)), "a": Space((1,))}
ACT = ActionSpace(1)


def fill(replay, lengths, stream=0):
    """Episodes of so many decisions; every number tells its row. Odd ones end by the clock."""
    number = replay.counts[stream]
    for episode, length in enumerate(lengths):
        for t in range(length + 1):
            step = Step(
                obs={"b": np.array([number, stream], np.float32), "a": np.array([-number], np.float32)},
                reward=np.array(number if t else 0, np.float32),
                is_first=np.array(t == 0),
                is_last=np.array(t == length),
                is_terminal=np.array(t == length and episode % 2 == 0),
                env_steps=np.array(int(t > 0)),
            )
            replay.add(step, np.array([number + 0.5], np.float32), stream)
            number += 1


def check(batch):
    """Neighbours of one episode, with the action and the reward between them."""
    now, after = batch.obs["b"][:, 0], batch.obs["b"][:, 1]
    assert torch.equal(after[:, 0], now[:, 0] + 1)
    assert torch.equal(after[:, 1], now[:, 1])
    assert torch.equal(batch.obs["a"][..., 0], -batch.obs["b"][..., 0])
    assert not batch.is_first[:, 1].any()
    assert not batch.is_last[:, 0].any()
    assert torch.equal(batch.action[:, 0, 0], now[:, 0] + 0.5)
    assert torch.equal(batch.prev_action[:, 1], batch.action[:, 0])
    assert torch.equal(batch.reward[:, 1], after[:, 0])
    before = torch.where(batch.is_first[:, 0], torch.zeros(()), now[:, 0] - 0.5)
    known = batch.prev_action[:, 0, 0] == before
    assert (known | (batch.prev_action[:, 0, 0] == 0)).all()


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    streams=st.integers(1, 3),
    size=st.integers(4, 20),
    seed=st.integers(0, 99),
)
def test_transitions_never_cross_an_episodes_start(lengths, streams, size, seed):
    replay = Replay(OBS, ACT, size * streams, streams)
    for stream in range(streams):
        fill(replay, lengths[stream:] or [3], stream)
    check(replay.transitions(64, np.random.default_rng(seed)))


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    streams=st.integers(1, 3),
    size=st.integers(4, 20),
    seed=st.integers(0, 99),
)
def test_a_third_row_comes_later_in_the_same_episode(lengths, streams, size, seed):
    replay = Replay(OBS, ACT, size * streams, streams)
    starts = np.cumsum([0, *(n + 1 for n in lengths)])
    for stream in range(streams):
        fill(replay, lengths, stream)
        replay.add(Step(*first_row()), np.zeros(1, np.float32), stream)  # the next one is running
    batch = replay.transitions(64, np.random.default_rng(seed), future=True)
    check(batch)
    number = batch.obs["b"][..., 0].numpy()
    assert (number[:, 2] >= number[:, 1]).all()
    episode = np.searchsorted(starts, number, side="right")
    assert (episode == episode[:, :1]).all()
    assert torch.equal(batch.obs["b"][:, 2, 1], batch.obs["b"][:, 0, 1])


def test_the_third_row_is_any_of_the_later_ones():
    """Episodes of T = 50: the own next row in H_T / T = 0.08998 of all draws, and (T - 1) / 4 = 12.25 further on in
    the mean."""
    replay = Replay(OBS, ACT, 10_000)
    fill(replay, [50] * 20)
    batch = replay.transitions(40_000, np.random.default_rng(0), future=True)
    number = batch.obs["b"][..., 0]
    own = (number[:, 2] == number[:, 1]).double().mean()
    assert float(own) == pytest.approx(0.08998, abs=4 * (0.09 * 0.91 / 40_000) ** 0.5)
    assert float((number[:, 2] - number[:, 1]).mean()) == pytest.approx(12.25, abs=0.25)


def test_the_future_of_a_running_episode_is_what_has_come_of_it():
    replay = Replay(OBS, ACT, 100)
    fill(replay, [3])
    for i in range(3):
        first = Step(*first_row())
        first.is_first, first.obs = np.array(i == 0), {**first.obs, "b": np.array([4 + i, 0], np.float32)}
        replay.add(first, np.zeros(1, np.float32))
    number = replay.transitions(400, np.random.default_rng(0), future=True).obs["b"][..., 0]
    running = number[number[:, 0] >= 4]
    assert set(running[:, 2].tolist()) == {5.0, 6.0}
    assert set(number[number[:, 0] == 4][:, 2].tolist()) == {5.0, 6.0}


def test_every_transition_is_equally_likely():
    """Of 30 episodes of 1 to 5 decisions, those cut by the clock too; chi-squared below its 99.9 % bound."""
    replay = Replay(OBS, ACT, 1000)
    fill(replay, [1 + i % 5 for i in range(30)])
    rng, n = np.random.default_rng(0), 90
    drawn = torch.cat([replay.transitions(900, rng).obs["b"][:, 0, 0] for _ in range(20)])
    counts = torch.bincount(drawn.long())
    counts = counts[counts > 0].double()
    assert len(counts) == n
    expected = len(drawn) / n
    assert ((counts - expected) ** 2 / expected).sum() < 135.98  # chi-squared with 89 degrees of freedom
    ends = [batch for batch in [replay.transitions(900, rng)] if batch.is_last[:, 1].any()]
    assert (ends[0].is_terminal[:, 1] & ends[0].is_last[:, 1]).any()
    assert (~ends[0].is_terminal[:, 1] & ends[0].is_last[:, 1]).any()


def test_the_first_rows_real_previous_action():
    replay = Replay(OBS, ACT, 4)
    fill(replay, [9])
    batch = replay.transitions(50, np.random.default_rng(0))
    assert batch.obs["b"][:, 0, 0].min() == 6
    assert torch.equal(batch.prev_action[:, 0, 0], batch.obs["b"][:, 0, 0] - 0.5)


def test_the_same_seed_draws_the_same():
    replay = Replay(OBS, ACT, 100)
    fill(replay, [3, 5, 2])
    a, b = (replay.transitions(8, np.random.default_rng(3)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a[1:7], b[1:7], strict=True))


@pytest.mark.parametrize(
    ("lengths", "size", "message"),
    [([], 10, "needs 2 rows"), ([3], 2, None), ([1, 1], 3, None)],
)
def test_what_is_there_is_found_or_refused(lengths, size, message):
    replay = Replay(OBS, ACT, size)
    fill(replay, lengths)
    if message:
        with pytest.raises(ReverieError, match=message):
            replay.transitions(4, np.random.default_rng(0))
    else:
        check(replay.transitions(4, np.random.default_rng(0)))


def test_two_rows_of_two_episodes_are_no_transition():
    replay = Replay(OBS, ACT, 2)
    fill(replay, [1, 1])
    replay.add(Step(*first_row()), np.zeros(1, np.float32))
    with pytest.raises(ReverieError, match="two rows of one episode, and none is stored"):
        replay.transitions(4, np.random.default_rng(0))
    with pytest.raises(ReverieError, match="at least one transition"):
        replay.transitions(0, np.random.default_rng(0))


def first_row():
    obs = {"b": np.zeros(2, np.float32), "a": np.zeros(1, np.float32)}
    no = np.array(False)
    return obs, np.array(0, np.float32), np.array(True), no, no, np.array(0)


def test_a_batch_is_read_as_its_neighbouring_rows():
    """Sequences of any length; the pair across a start is left out, and only a terminal row stops the sum."""
    replay = Replay(OBS, ACT, 100)
    fill(replay, [2, 3, 4])  # rows 0-2, ends itself; 3-6, by the clock; 7-11, ends itself
    batch = replay.take([0], [0], 12)
    t = transitions(batch, ["a", "b"])
    assert t.obs[:, 1].tolist() == [0, 1, 3, 4, 5, 7, 8, 9, 10]
    assert torch.equal(t.next_obs[:, 1], t.obs[:, 1] + 1)
    assert torch.equal(t.obs[:, 0], -t.obs[:, 1])
    assert torch.equal(t.action[:, 0], t.obs[:, 1] + 0.5)
    assert torch.equal(t.reward, t.next_obs[:, 1])
    assert t.cont.tolist() == [1, 0, 1, 1, 1, 1, 1, 1, 0]


def test_two_rows_and_the_same_rows_among_others_are_the_same_transitions():
    replay = Replay(OBS, ACT, 100)
    fill(replay, [2, 3, 4])
    whole = transitions(replay.take([0], [0], 12), ["b"])
    pairs = [i for i in range(11) if i not in (2, 6)]
    single = transitions(replay.take([0] * len(pairs), pairs, 2), ["b"])
    assert all(torch.equal(x, y) for x, y in itertools.zip_longest(whole, single))


def test_who_reads_vectors_refuses_pictures_and_choices():
    assert vectors(OBS, "ddpg") == (["a", "b"], 3)
    with pytest.raises(ReverieError, match="ddpg reads vectors and can not use the picture 'image'"):
        vectors({"image": Space((8, 8, 3), "uint8")}, "ddpg")
    with pytest.raises(ReverieError, match="at least one vector"):
        vectors({}, "ddpg")
    assert continuous(ActionSpace(3), "ddpg") == 3
    with pytest.raises(ReverieError, match=r"ddpg acts by numbers .* choices \(2 x 3\)"):
        continuous(ActionSpace(5, (2, 3)), "ddpg")
