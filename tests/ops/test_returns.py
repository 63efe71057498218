"""Returns against numbers worked by hand, a slow loop over the paper's sums, and their own gradients."""

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reverie.ops.returns as returns
from reverie.ops.returns import (
    imagination_weights,
    lambda_returns,
    n_step_returns,
    td_lambda_returns,
    vtrace,
)
from reverie.types import ReverieError

REWARD = torch.tensor([1.0, 2.0, 3.0])
NEXT_VALUE = torch.tensor([5.0, 6.0, 7.0])
GAMMA = torch.full((3,), 0.9)


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("lambda_", "expected"),
    [(0.8, [8.93872, 9.776, 9.3]), (0.0, [5.5, 7.4, 9.3]), (1.0, [10.333, 10.37, 9.3])],
)
def test_three_steps_by_hand(lambda_, expected):
    close(td_lambda_returns(REWARD, NEXT_VALUE, GAMMA, lambda_), expected)


@pytest.mark.parametrize("lambda_", [0.0, 0.8, 1.0])
def test_a_discount_of_zero_ends_the_return(lambda_):
    target = td_lambda_returns(REWARD, NEXT_VALUE, torch.tensor([0.9, 0.0, 0.9]), lambda_)
    close(target[1:], [2.0, 9.3])
    close(target[0], 1 + 0.9 * ((1 - lambda_) * 5 + lambda_ * 2))
    assert lambda_ != 0.8 or target[0].item() == pytest.approx(3.34)


def test_imagined_states_use_rewards_1_to_h_minus_1_and_values_2_to_h():
    """The same three targets from four states; the entries that must not count are poisoned."""
    nan = float("nan")
    reward = torch.tensor([1.0, 2.0, 3.0, nan])
    value = torch.tensor([nan, 5.0, 6.0, 7.0])
    discount = torch.tensor([0.9, 0.9, 0.9, nan])
    close(lambda_returns(reward, value, discount, 0.8), [8.93872, 9.776, 9.3])


def test_the_bootstrap_is_the_last_value_and_not_the_one_before():
    """Dreamer's first code bootstraps from v_{H-1}: [8.47216, 9.128, 8.4]."""
    wrong = td_lambda_returns(REWARD, torch.tensor([5.0, 6.0, 6.0]), GAMMA, 0.8)
    close(wrong, [8.47216, 9.128, 8.4])
    right = lambda_returns(
        torch.tensor([1.0, 2, 3, 0]), torch.tensor([4.0, 5, 6, 7]), torch.full((4,), 0.9), 0.8
    )
    assert (right - wrong).abs().min() > 0.4


def test_zero_values_and_unit_rewards_at_the_papers_setting():
    ones, zeros = torch.ones(15, dtype=torch.float64), torch.zeros(15, dtype=torch.float64)
    target = lambda_returns(ones, zeros, 0.99 * ones, 0.95)
    assert target.shape == (14,)
    assert target[0].item() == pytest.approx(9.6862925, abs=1e-7)
    assert target[-1].item() == 1


@given(st.floats(0, 1), st.floats(0, 0.99), st.floats(-10, 10), st.integers(2, 20))
def test_the_true_value_is_a_fixed_point(lambda_, gamma, reward, horizon):
    """If v = r / (1 - gamma) everywhere, every target is v, for every lambda."""
    ones = torch.ones(horizon, 2, dtype=torch.float64)
    value = reward / (1 - gamma)
    target = lambda_returns(reward * ones, value * ones, gamma * ones, lambda_)
    torch.testing.assert_close(target, value * ones[1:], atol=1e-8, rtol=1e-8)


def n_step_sums(reward, value, discount, lambda_):
    """Dreamer's Eq. 5 and 6 for one stream, summed term by term, in Python floats."""
    horizon, targets = len(reward), []
    for k in range(horizon - 1):
        n_step = []  # V_N for N = 1 .. M, what remains of the horizon
        for n in range(1, horizon - k):
            total, scale = 0.0, 1.0
            for j in range(k, k + n):
                total += scale * reward[j]
                scale *= discount[j]
            n_step.append(total + scale * value[k + n])
        m = len(n_step)
        weights = [(1 - lambda_) * lambda_ ** (n - 1) for n in range(1, m)] + [lambda_ ** (m - 1)]
        assert sum(weights) == pytest.approx(1)
        targets.append(sum(w * v for w, v in zip(weights, n_step, strict=True)))
    return targets


@given(st.integers(0, 2**31), st.integers(2, 8), st.floats(0, 1))
def test_the_recursion_is_the_papers_sum_of_n_step_values(seed, horizon, lambda_):
    generator = torch.Generator().manual_seed(seed)
    reward, value = torch.randn(2, horizon, 3, generator=generator, dtype=torch.float64)
    discount = torch.rand(horizon, 3, generator=generator, dtype=torch.float64)
    target = lambda_returns(reward, value, discount, lambda_)
    for stream in range(3):
        slow = n_step_sums(*(x[:, stream].tolist() for x in (reward, value, discount)), lambda_)
        close(target[:, stream], slow, atol=1e-10)


def test_n_step_weights_of_fourteen_remaining_steps():
    """Seen through v: step n's value has weight (1 - 0.95) 0.95^(n-1), the last one 0.95^13."""
    reward, ones = torch.zeros(15, dtype=torch.float64), torch.ones(15, dtype=torch.float64)
    weights = [
        lambda_returns(reward, torch.eye(15, dtype=torch.float64)[n], ones, 0.95)[0] for n in range(1, 15)
    ]
    assert weights[0].item() == pytest.approx(0.05)
    assert weights[12].item() == pytest.approx(0.027018, abs=1e-6)
    assert weights[13].item() == pytest.approx(0.513342, abs=1e-6)
    assert sum(weights).item() == pytest.approx(1)


def test_gradients_of_the_first_target():
    reward, value = torch.randn(2, 15, dtype=torch.float64).requires_grad_().unbind(0)
    discount = torch.full((15,), 0.99, dtype=torch.float64)
    d_reward, d_value = torch.autograd.grad(lambda_returns(reward, value, discount, 0.95)[0], [reward, value])
    k = torch.arange(14, dtype=torch.float64)
    close(d_reward, [*(0.9405**k).tolist(), 0.0], atol=1e-12)
    assert d_reward[13].item() == pytest.approx(0.450468, abs=1e-6)
    close(d_value[[0, 1, 2, 13, 14]], [0, 0.0495, 0.04655475, 0.02370887, 0.44596379], atol=1e-8)


def test_gradients_reach_all_that_counts_and_nothing_else():
    reward, value, discount = (torch.rand(4, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    inputs = (reward, value, discount)
    assert torch.autograd.gradcheck(lambda *x: lambda_returns(*x, 0.95), inputs)
    grads = torch.autograd.grad(lambda_returns(*inputs, 0.95).sum(), inputs)
    for grad, unused in zip(grads, (3, 0, 3), strict=True):
        used = [k for k in range(4) if k != unused]
        assert (grad[unused] == 0).all()
        assert (grad[used] > 0).all()


def test_weights_by_hand():
    close(imagination_weights(torch.tensor([0.9, 0.5, 0.8, 0.7, 0.6])), [1, 0.9, 0.45, 0.36])


def test_weights_at_the_papers_setting():
    weight = imagination_weights(torch.full((15,), 0.99, dtype=torch.float64))
    assert weight.shape == (14,)
    assert weight[-1].item() == pytest.approx(0.87752102, abs=1e-8)
    assert weight.sum().item() == pytest.approx(13.12541872, abs=1e-8)
    assert weight.mean().item() == pytest.approx(0.93752991, abs=1e-8)


def test_nothing_after_an_end_has_weight():
    discount = torch.tensor([[0.9, 0.9], [0.9, 0.0], [0.9, 0.9], [0.9, 0.9]])
    close(imagination_weights(discount), [[1, 1], [0.9, 0.9], [0.81, 0.0]])


@given(st.integers(2, 10), st.integers(0, 2**31))
def test_weights_are_prefix_products(horizon, seed):
    discount = torch.rand(horizon, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = imagination_weights(discount)
    assert weight.shape == (horizon - 1, 2, 3)
    for k in range(horizon - 1):
        torch.testing.assert_close(weight[k], discount[:k].prod(0))


def test_weights_carry_gradient_so_that_the_agent_decides():
    discount = torch.rand(4, 2, requires_grad=True)
    assert imagination_weights(discount).requires_grad


def test_too_little_time_is_refused():
    one = torch.ones(1, 2)
    with pytest.raises(ReverieError, match="lambda_returns needs at least 2 steps"):
        lambda_returns(one, one, one, 0.95)
    with pytest.raises(ReverieError, match="imagination_weights needs at least 2 steps"):
        imagination_weights(one)
    with pytest.raises(ReverieError, match="td_lambda_returns needs at least 1 step"):
        td_lambda_returns(one[:0], one[:0], one[:0], 0.95)
    close(td_lambda_returns(one, one, one, 0.95), [[2.0, 2.0]])


def test_unequal_shapes_are_refused_where_no_types_are_checked():
    """A user's process has no shape checking: there, broadcasting would go through in silence."""
    spec = importlib.util.spec_from_file_location("unchecked", returns.__file__)
    unchecked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchecked)
    with pytest.raises(ReverieError, match="one shape with time first"):
        unchecked.lambda_returns(torch.ones(3, 2), torch.ones(3, 2), torch.ones(3, 1), 0.95)
    with pytest.raises(ReverieError, match="n_step_returns needs tensors of one shape"):
        unchecked.n_step_returns(LIVED, WORTH, torch.ones(5), torch.ones(5))
    with pytest.raises(ReverieError, match="vtrace needs tensors of one shape"):
        unchecked.vtrace(**STALE | {"value": torch.zeros(4)})


LIVED = torch.tensor([-0.1, 0.9, -0.1, -0.1, -1.1])
WORTH = torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1, 2.0])  # of six rows, the last the bootstrap


def test_five_steps_and_a_bootstrap_by_hand():
    target = n_step_returns(LIVED, WORTH[1:], torch.full((5,), 0.99), torch.ones(5))
    close(target, [1.441285, 1.556853, 0.663488, 0.771200, 0.880000])
    close(target - WORTH[:-1], [0.941285, 1.156853, 0.363488, 0.571200, 0.780000])


def test_an_end_inside_cuts_the_return():
    discount, goes_on = torch.full((5,), 0.99), torch.ones(5)
    goes_on[1], discount[1] = 0, 0  # terminal
    close(n_step_returns(LIVED, WORTH[1:], discount, goes_on), [0.791, 0.9, 0.663488, 0.7712, 0.88])
    discount[1] = 0.99  # the clock: the last row's own value counts
    close(n_step_returns(LIVED, WORTH[1:], discount, goes_on)[:2], [-0.1 + 0.99 * 1.197, 0.9 + 0.99 * 0.3])


def test_n_steps_are_the_lambda_return_that_trusts_no_value():
    goes_on = torch.ones(5)
    for lambda_, on in ((1.0, goes_on), (0.0, 0 * goes_on)):
        expected = td_lambda_returns(LIVED, WORTH[1:], torch.full((5,), 0.9), lambda_)
        close(n_step_returns(LIVED, WORTH[1:], torch.full((5,), 0.9), on), expected)


STALE = dict(
    ratio=torch.tensor([0.5, 2.0, 1.2]),
    reward=torch.tensor([1.0, 0.0, 2.0]),
    value=torch.tensor([0.5, 0.2, 0.1]),
    next_value=torch.tensor([0.2, 0.1, 0.4]),
    discount=torch.full((3,), 0.9),
    goes_on=torch.ones(3),
)


def test_vtrace_by_hand():
    target, advantage = vtrace(**STALE)
    close(target, [1.7058, 2.124, 2.36])
    close(advantage, [1.2058, 1.924, 2.26])
    close(vtrace(**STALE, lambda_=0.95)[0], [1.619033, 2.0223, 2.36])


@given(st.integers(1, 8), st.integers(0, 2**31))
def test_on_policy_vtrace_is_the_n_step_return(steps, seed):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(steps, 3, generator=rng, dtype=torch.float64)
    reward, value, last = draw(), draw(), draw()[:1]
    goes_on = (torch.rand(steps, 3, generator=rng) < 0.7).double()
    discount = 0.9 * (goes_on + (1 - goes_on) * (torch.rand(steps, 3, generator=rng) < 0.5).double())
    next_value = torch.where(goes_on > 0, torch.cat([value[1:], last]), draw())
    target, advantage = vtrace(torch.ones_like(reward), reward, value, next_value, discount, goes_on)
    expected = n_step_returns(reward, next_value, discount, goes_on)
    close(target, expected, atol=1e-9)
    close(advantage, expected - value, atol=1e-9)


def test_an_unlikely_action_teaches_nothing():
    target, advantage = vtrace(**STALE | {"ratio": torch.zeros(3)})
    close(target, STALE["value"])
    close(advantage, torch.zeros(3))
