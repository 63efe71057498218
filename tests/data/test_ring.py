"""The ring of imagined transitions: the newest stay, whatever comes and however it is resized."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from reverie.data.ring import Ring
from reverie.data.transitions import Transitions


def rows(first, n):
    """Transitions that carry their number in every field."""
    i = torch.arange(first, first + n, dtype=torch.float32)
    return Transitions(i[:, None].repeat(1, 2), i[:, None], i, i[:, None].repeat(1, 2), i)


def numbers(ring):
    kept = ring.state_dict()["rows"]
    for column in kept.values():
        assert torch.equal(column[:, 0] if column.ndim == 2 else column, kept["reward"])
    return sorted(kept["reward"].int().tolist())


@given(st.integers(1, 12), st.lists(st.one_of(st.integers(0, 30), st.integers(-12, -1)), max_size=8))
def test_the_newest_stay(size, moves):
    """Positive: so many are added; negative: the ring is resized to so many."""
    ring, known = Ring(size, 2, 1), []
    for move in moves:
        if move < 0:
            ring.resize(-move)
        else:
            first = known[-1] + 1 if known else 0
            ring.add(rows(first, move))
            known += range(first, first + move)
        known = known[-ring.size :]
        assert numbers(ring) == known and len(ring) == len(known)


def test_all_are_drawn_alike():
    ring = Ring(4, 2, 1)
    ring.add(rows(0, 7))
    drawn = ring.sample(8_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn.reward.int())[3:]
    assert counts.min() > 1_800 and counts.sum() == 8_000
    assert torch.equal(drawn.obs[:, 0], drawn.reward)


def test_saved_and_loaded_it_goes_on():
    a, b = Ring(5, 2, 1), Ring(3, 2, 1)
    a.add(rows(0, 7))
    b.load_state_dict(a.state_dict())
    a.add(rows(7, 2)), b.add(rows(7, 2))
    assert numbers(a) == numbers(b) == [4, 5, 6, 7, 8]
    one, two = (ring.sample(20, torch.Generator().manual_seed(1)) for ring in (a, b))
    assert torch.equal(one.reward, two.reward)
