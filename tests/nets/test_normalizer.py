import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.nets import Normalizer


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 10**6))
@settings(max_examples=30)
def test_statistics_of_batches_are_those_of_all_rows(sizes, seed):
    rng = np.random.default_rng(seed)
    rows = [rng.normal(1e3, 2, (n, 3)).astype(np.float32) for n in sizes]
    scale = Normalizer(3)
    for part in rows:
        scale.see(torch.from_numpy(part))
    whole = np.concatenate(rows).astype(np.float64)
    np.testing.assert_allclose(scale.mean, whole.mean(0), rtol=1e-9)
    np.testing.assert_allclose(scale.var, whole.var(0), rtol=1e-6, atol=1e-9)
    x = torch.from_numpy(rows[0])
    torch.testing.assert_close(scale.back(scale(x)), x, rtol=1e-5, atol=1e-3)


def test_what_never_varied_is_left_as_it_is():
    scale = Normalizer(2)
    scale.see(torch.tensor([[3.0, 0.0], [3.0, 2.0]]))
    assert scale.std.tolist() == [1.0, 1.0]
    assert scale(torch.tensor([3.0, 2.0])).tolist() == [0.0, 1.0]


def test_old_rows_fade_beyond_the_window():
    scale = Normalizer(1, window=100)
    scale.see(torch.zeros(100, 1))
    for _ in range(20):
        scale.see(torch.ones(50, 1))
    assert scale.mean.item() > 0.99


def test_deviations_are_taken_to_be_within_bounds():
    scale = Normalizer(4, bounds=(0.01, 1.0))
    rows = torch.tensor([[-1.0], [1.0]]) * torch.tensor([0.0, 1e-4, 0.25, 30.0]) + 2.0
    assert scale(rows).equal(rows)  # nothing is known yet
    scale.see(rows)
    torch.testing.assert_close(scale.std, torch.tensor([0.01, 0.01, 0.25, 1.0]))
    torch.testing.assert_close(scale(rows)[1], torch.tensor([0.0, 0.01, 1.0, 30.0]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scale.back(scale(rows)), rows)
