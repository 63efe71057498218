"""The low-pass filter, against the numbers of the paper's code and against scipy."""

import numpy as np
import pytest
from scipy.signal import butter, lfilter, lfilter_zi

from reverie.robots.filters import Butterworth
from reverie.types import ReverieError


def test_coefficients_of_the_a1() -> None:
    low_pass = Butterworth(1.5, 20.0, 1)
    np.testing.assert_allclose(low_pass.b, [0.04125354, 0.08250707, 0.04125354], atol=1e-8)
    np.testing.assert_allclose(low_pass.a, [1, -1.34896775, 0.51398189], atol=1e-8)


def test_step_response_of_the_a1() -> None:
    low_pass = Butterworth(1.5, 20.0, 1)
    response = [low_pass(np.ones(1))[0] for _ in range(12)]
    expected = [
        *(0.04125, 0.17941, 0.38583, 0.59327, 0.76701, 0.89475),
        *(0.97778, 1.02412, 1.04396, 1.04690, 1.04067, 1.03076),
    ]
    np.testing.assert_allclose(response, expected, atol=1e-5)


@pytest.mark.parametrize(("cutoff", "rate"), [(1.5, 20.0), (0.3, 2.0), (4.9, 10.0), (40.0, 500.0)])
def test_as_scipy_filters(cutoff: float, rate: float) -> None:
    b, a = butter(2, cutoff, fs=rate)
    signal = np.random.default_rng(0).normal(size=(50, 3))
    start = np.array([0.3, -1.0, 2.0])
    low_pass = Butterworth(cutoff, rate, 3)
    low_pass.reset(start)
    ours = np.stack([low_pass(value) for value in signal])
    theirs = np.stack(
        [lfilter(b, a, signal[:, i], zi=lfilter_zi(b, a) * start[i])[0] for i in range(3)], axis=1
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_at_rest_it_stays() -> None:
    low_pass = Butterworth(1.5, 20.0, 2)
    low_pass.reset(np.array([0.7, -0.2]))
    np.testing.assert_allclose(low_pass(np.array([0.7, -0.2])), [0.7, -0.2], atol=1e-12)


@pytest.mark.parametrize("cutoff", [0.0, 10.0, 11.0])
def test_a_cutoff_beyond_half_the_rate_is_refused(cutoff: float) -> None:
    with pytest.raises(ReverieError, match="low-pass"):
        Butterworth(cutoff, 20.0, 1)
