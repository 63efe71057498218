"""Squashing, binning and the range of returns: the published numbers, and what must hold for any."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reverie.ops.scalars import (
    neighbours,
    range_scale,
    symexp,
    symexp_bins,
    symlog,
    symmetric_mean,
    track_range,
    two_hot,
)

BINS = symexp_bins().double()


def close(a, b, tolerance=1e-7):
    return torch.as_tensor(a, dtype=torch.float64).tolist() == pytest.approx(b, rel=tolerance, abs=tolerance)


def test_symlog():
    x = torch.tensor([0.1, 0.5, 1, 2, 10, 100, 1000, 1e6], dtype=torch.float64)
    expected = [0.0953102, 0.4054651, 0.6931472, 1.0986123, 2.3978953, 4.6151205, 6.9087548, 13.8155116]
    assert close(symlog(x), expected)
    assert torch.equal(symlog(-x), -symlog(x))


def test_symexp():
    x = torch.tensor([0.1, 0.5, 1, 2, 5, 10, 20], dtype=torch.float64)
    expected = [0.1051709, 0.6487213, 1.7182818, 6.3890561, 147.4131591, 22025.4657948, 485165194.4097903]
    assert close(symexp(x), expected)
    assert close(symexp(symlog(x)), x.tolist())


def test_bins_are_evenly_spaced_as_symlogs():
    assert len(BINS) == 255 and BINS[127] == 0
    assert close(BINS[128:131], [0.17055772, 0.37020536, 0.60390446])
    assert close(BINS[155:159], [81.2241, 95.2481, 111.6639, 130.8796], 1e-6)
    assert close(BINS[170:173], [871.754, 1020.609, 1194.852], 1e-6)
    assert BINS[-1].item() == pytest.approx(485165194.41, rel=1e-7)
    assert torch.equal(BINS, -BINS.flip(0))
    assert close(symlog(BINS).diff(), [20 / 127] * 254, 1e-5)


@pytest.mark.parametrize(
    ("target", "index", "weight"),
    [
        (0.0, 127, 1.0),
        (0.1, 127, 0.413688),
        (0.5, 129, 0.444608),
        (1.0, 131, 0.617329),
        (-1.0, 122, 0.382671),
        (2.0, 133, 0.025688),
        (3.14159, 136, 0.977931),
        (10.0, 142, 0.786963),
        (100.0, 156, 0.710529),
        (1000.0, 170, 0.138449),
        (12345.0, 186, 0.187710),
    ],
)
def test_two_hot_weights(target, index, weight):
    weights = two_hot(torch.tensor(target, dtype=torch.float64), BINS)
    assert weights[index].item() == pytest.approx(weight, abs=1e-5)
    assert weights[index + 1].item() == pytest.approx(1 - weight, abs=1e-5)
    assert weights.sum().item() == pytest.approx(1.0)
    assert (weights @ BINS).item() == pytest.approx(target, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("target", "index"), [(1e9, 254), (-1e9, 0), (math.inf, 254)])
def test_beyond_the_outermost_bin_all_weight_is_on_it(target, index):
    weights = two_hot(torch.tensor(target, dtype=torch.float64).clamp(-1e30, 1e30), BINS)
    assert weights[index] == 1 and weights.sum() == 1


@given(st.floats(-4.8e8, 4.8e8))
def test_the_mean_of_the_two_bins_is_the_target(x):
    target = torch.tensor(x, dtype=torch.float64)
    assert (two_hot(target, BINS) * BINS).sum().item() == pytest.approx(x, rel=1e-5, abs=1e-9)


def test_neighbours_exist_wherever_the_target_lies():
    below, weight = neighbours(torch.tensor([-1e12, -1.0, 0.0, 1.0, 1e12]), symexp_bins())
    assert below.min() >= 0 and below.max() <= 253
    assert ((weight >= 0) & (weight <= 1)).all()


def test_a_uniform_distribution_means_exactly_nothing():
    bins = symexp_bins()
    uniform = torch.zeros(3, 255).softmax(-1)
    assert torch.equal(symmetric_mean(uniform, bins), torch.zeros(3))
    assert (uniform * bins).sum(-1).abs().max() > 0  # as a plain sum would have it


def test_the_mean_is_taken_of_raw_numbers():
    """Half on 0 and half on 1020.6: 510.3, and not the 30.96 of the mean of symlogs."""
    probs = torch.zeros(255, dtype=torch.float64)
    probs[127] = probs[171] = 0.5
    assert symmetric_mean(probs, BINS).item() == pytest.approx(510.3, abs=0.01)
    assert symexp((probs * symlog(BINS)).sum()).item() == pytest.approx(30.96, abs=0.01)


def test_quantiles_are_interpolated():
    marks = track_range(torch.zeros(2), torch.arange(16.0), 1.0)
    assert close(marks, [0.75, 14.25], 1e-6)


def test_the_scale_rises_from_one():
    """Returns whose range is 10 for ever: the moving range begins at 0 and is not debiased."""
    x, past, scales = torch.tensor([0.0, 10.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64), {}
    for update in range(1, 501):
        past = track_range(past, x, 0.01, 0.0, 1.0)
        scales[update] = range_scale(past).item()
    assert [scales[n] for n in (1, 5, 10)] == [1, 1, 1]
    assert [scales[n] for n in (11, 50, 100, 500)] == pytest.approx(
        [1.04662, 3.94994, 6.33968, 9.9343], abs=1e-5
    )
