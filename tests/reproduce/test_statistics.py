"""Statistics against scipy, and numbers worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reverie.reproduce import statistics
from reverie.types import ReverieError

finite = st.floats(-1e6, 1e6)
runs = st.lists(finite, min_size=1, max_size=9)


@given(runs)
def test_iqm_is_scipys_trimmed_mean(x):
    assert statistics.iqm(x) == pytest.approx(stats.trim_mean(x, 0.25), abs=1e-6)


def test_iqm_of_small_numbers():
    assert statistics.iqm([7]) == 7
    assert statistics.iqm([0, 1, 5]) == 2  # three: the mean
    assert statistics.iqm([-100, 1, 2, 900]) == 1.5  # four: best and worst fall away
    assert statistics.iqm([[0, 1, 5], [1, 1, 1]]).tolist() == [2, 1]
    assert statistics.iqm([[0, 4], [2, 6]], axis=0).tolist() == [1, 5]


def test_three_runs_give_the_span_and_one_run_none():
    assert statistics.bootstrap_interval([3.0, 10.0, 5.0]) == (6.0, 3.0, 10.0)
    one = statistics.bootstrap_interval([4.0])
    assert one.estimate == 4.0 and np.isnan(one.low) and np.isnan(one.high)


def test_the_same_seed_gives_the_same_interval():
    x = np.random.default_rng(0).normal(size=20)
    assert statistics.bootstrap_interval(x) == statistics.bootstrap_interval(x)
    assert statistics.bootstrap_interval(x) != statistics.bootstrap_interval(x, seed=1)


def test_interval_agrees_with_scipys_bootstrap():
    x = np.random.default_rng(1).normal(10, 2, size=30)
    ours = statistics.bootstrap_interval(x)
    theirs = stats.bootstrap(
        (x,), statistics.iqm, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.05)
    assert ours.high == pytest.approx(theirs.high, abs=0.05)


def test_strata_are_drawn_within_tasks():
    # Each task is constant, so no draw can differ; pooling the tasks before drawing would spread out.
    assert statistics.bootstrap_interval([[1.0, 1.0], [9.0, 9.0]]) == (5.0, 5.0, 5.0)
    pooled = statistics.bootstrap_interval([1.0, 1.0, 9.0, 9.0])
    assert pooled.low < 5 < pooled.high


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        interval = statistics.bootstrap_interval(rng.normal(size=12), _mean, resamples=400, seed=i)
        hits += interval.low <= 0 <= interval.high
    assert 170 <= hits <= 198  # 95 % of 200 is 190; the percentile bootstrap of 12 is a little narrow


def _mean(x):
    return np.mean(x, axis=-1)


def test_difference_of_separated_and_equal_arms():
    apart = statistics.difference_interval([10.0, 11.0, 12.0], [1.0, 2.0, 3.0])
    assert apart.estimate == 9 and apart.low > 0
    same = statistics.difference_interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert same.estimate == 0 and same.low < 0 < same.high
    worked = statistics.difference_interval([10.0, 12.0], [1.0, 3.0])  # four corners, each 1/16 of the draws
    assert (worked.low, worked.high) == (7.0, 11.0)


@given(runs, runs)
def test_difference_turns_its_sign_around(a, b):
    there = statistics.difference_interval(a, b, resamples=20)
    back = statistics.difference_interval(b, a, resamples=20)
    assert there.estimate == pytest.approx(-back.estimate)


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=8), st.lists(st.integers(0, 5), min_size=2, max_size=8)
)
def test_probability_of_improvement_is_mann_whitneys_u(a, b):
    ours = statistics.probability_of_improvement(a, b, resamples=20).estimate
    u = stats.mannwhitneyu(a, b, method="asymptotic").statistic
    assert ours == pytest.approx(u / (len(a) * len(b)))


def test_probability_of_improvement_of_two_tasks():
    better = statistics.probability_of_improvement([[2.0, 3.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]])
    assert better.estimate == 0.75 and better.low <= 0.75 <= better.high


def test_profile_counts_runs_above():
    profile = statistics.performance_profile([[1.0, 2.0, 3.0], [3.0, 3.0, 3.0]], [0, 1, 2.5, 3])
    assert profile.fraction == pytest.approx([1, 5 / 6, 4 / 6, 0])
    assert (profile.low <= profile.fraction).all() and (profile.fraction <= profile.high).all()
    assert (np.diff(profile.fraction) <= 0).all()


def test_band_draws_whole_runs():
    middle, low, high = statistics.band([[0.0, 10.0], [2.0, 12.0], [4.0, 14.0]])
    assert middle.tolist() == [2, 12] and low.tolist() == [0, 10] and high.tolist() == [4, 14]
    _, low, _ = statistics.band([[1.0, 2.0]])
    assert np.isnan(low).all()


@pytest.mark.parametrize("scores", [[], [1.0, np.nan], [[1.0], []], [[[1.0]]]])
def test_bad_scores_are_refused_in_a_sentence(scores):
    with pytest.raises(ReverieError, match="score"):
        statistics.bootstrap_interval(scores)


def test_a_difference_needs_the_same_tasks():
    with pytest.raises(ReverieError, match="same tasks"):
        statistics.difference_interval([[1.0], [2.0]], [[1.0]])
