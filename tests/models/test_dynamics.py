"""The ensemble: the sheet's numbers, its members strangers to one another, and statistics that are the data's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reverie.models.dynamics import (
    Dynamics,
    Networks,
    Prediction,
    bootstrap,
    gaussian_loss,
    route,
)
from reverie.types import NotFinite


def make(obs=3, actions=2, seed=0, **settings):
    torch.manual_seed(seed)
    return Dynamics(obs, actions, **{"members": 3, "units": 8, "layers": 2, **settings})


@pytest.mark.parametrize(
    ("raw", "bounded"),
    [
        (-20, -9.99995),
        (-10, -9.30687),
        (-5, -4.99734),
        (0, -0.47400),
        (0.5, -0.19309),
        (5, 0.48898),
    ],
)
def test_log_variances_are_softly_bounded(raw, bounded):
    dynamics = make(obs=1)
    assert dynamics.bounded(torch.full((2,), float(raw)))[0].item() == pytest.approx(bounded, abs=1e-5)


@pytest.mark.parametrize(
    ("error", "log_var", "loss"), [(1, 0, 1), (1, -1, 1.718282), (0.5, math.log(0.25), -0.386294)]
)
def test_the_loss_is_twice_the_negative_log_likelihood(error, log_var, loss):
    told = Prediction(torch.full((2, 4, 3), float(error)), torch.full((2, 4, 3), float(log_var)), None)
    torch.testing.assert_close(gaussian_loss(told, torch.zeros(2, 4, 3)), torch.full((2,), float(loss)))
    normal = torch.distributions.Normal(0.0, math.exp(0.5 * log_var))
    twice = -2 * normal.log_prob(torch.tensor(float(error))) - math.log(2 * math.pi)
    assert twice.item() == pytest.approx(loss, abs=1e-6)


def test_the_best_log_variance_is_that_of_the_error():
    log_var = torch.zeros((), requires_grad=True)
    told = Prediction(torch.full((1, 1, 1), 0.5), log_var.expand(1, 1, 1), None)
    (slope,) = torch.autograd.grad(gaussian_loss(told, torch.zeros(1, 1, 1)).sum(), log_var)
    assert slope.item() == pytest.approx(1 - 0.25)
    log_var = torch.tensor(math.log(0.25), requires_grad=True)
    told = Prediction(torch.full((1, 1, 1), 0.5), log_var.expand(1, 1, 1), None)
    (slope,) = torch.autograd.grad(gaussian_loss(told, torch.zeros(1, 1, 1)).sum(), log_var)
    assert slope.item() == pytest.approx(0, abs=1e-6)


def test_a_bootstrap_sees_63_percent():
    index = bootstrap(1_000, 1_000, 50, torch.Generator().manual_seed(0))
    share = np.mean([len(set(row)) / 1_000 for row in index.tolist()])
    assert share == pytest.approx(0.6323, abs=0.005)
    assert share == pytest.approx(1 - (1 - 1 / 1_000) ** 1_000, abs=0.005)


def test_an_ensemble_is_its_networks_one_by_one():
    torch.manual_seed(0)
    nets = Networks(4, 5, 7, 2, 3)
    x = torch.randn(4, 6, 5)
    out = nets(x)
    for m in range(4):
        h = x[m]
        for i, (w, b) in enumerate(zip(nets.weights, nets.biases, strict=True)):
            h = h @ w[m] + b[m]
            h = torch.nn.functional.silu(h) if i < 2 else h
        torch.testing.assert_close(out[m], h)


def test_no_network_learns_from_anothers_rows():
    dynamics = make()
    x, action = torch.randn(3, 5, 3), torch.randn(3, 5, 2)
    told = dynamics(x, action)
    grads = torch.autograd.grad(told.mean[1].sum(), list(dynamics.net.parameters()))
    for grad in grads:
        assert grad[1].abs().sum() > 0 and grad[0].abs().sum() == grad[2].abs().sum() == 0


def test_weight_decay_by_hand():
    nets = Networks(2, 3, 4, 1, 1)
    a, b = (w.square().sum() for w in nets.weights)
    torch.testing.assert_close(nets.decay((0.1, 0.2)), 0.05 * a + 0.1 * b)


def test_a_row_gone_bad_leaves_the_statistics_alone():
    dynamics = make()
    obs, action, reward = torch.randn(4, 3), torch.randn(4, 2), torch.randn(4)
    bad = reward.clone()
    bad[2] = math.nan
    with pytest.raises(NotFinite, match=r"dynamics\.outputs\.mean"):
        dynamics.see(obs, action, bad, obs)
    assert dynamics.inputs.count == 0 and dynamics.outputs.count == 0


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_rows_go_to_their_network_and_come_back(numbers):
    member = torch.tensor(numbers)
    rows = route(member, 4)
    x = torch.arange(len(numbers))
    assert torch.equal(x[rows.slots][rows.member, rows.place], x)
    assert rows.slots.shape == (4, max(map(numbers.count, numbers)))


def test_each_row_is_imagined_by_the_network_it_names():
    dynamics = make(noisy=False)
    dynamics.see(torch.randn(50, 3), torch.randn(50, 2), torch.randn(50), torch.randn(50, 3))
    obs, action, member = torch.randn(7, 3), torch.randn(7, 2), torch.tensor([2, 0, 1, 1, 0, 2, 2])
    told = dynamics.imagine_by(member, obs, action)
    for m in range(3):
        alone = dynamics.imagine(obs.expand(3, -1, -1), action.expand(3, -1, -1))
        mine = member == m
        torch.testing.assert_close(told.obs[mine], alone.obs[m][mine])
        torch.testing.assert_close(told.reward[mine], alone.reward[m][mine])


@pytest.mark.parametrize("settings", [{}, {"ends": True}, {"noisy": False, "ends": True}, {"layers": 1}])
def test_folded_it_imagines_the_same(settings):
    dynamics = make(**settings)
    obs, action = 5 + 3 * torch.randn(60, 3), torch.rand(60, 2)
    dynamics.see(obs, action, 100 * torch.randn(60), obs + 0.1 * torch.randn(60, 3))
    rows = (obs[:30].view(3, 10, 3), action[:30].view(3, 10, 2))
    one = dynamics.imagine(*rows, torch.Generator().manual_seed(0))
    two = dynamics.folded().imagine(*rows, torch.Generator().manual_seed(0))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_temperature_scales_the_variance():
    dynamics = make(obs=1)
    obs, action = torch.zeros(3, 4_000, 1), torch.zeros(3, 4_000, 2)
    spread = [
        dynamics.imagine(obs, action, torch.Generator().manual_seed(0), t).obs.std() for t in (1.0, 4.0)
    ]
    assert (spread[1] / spread[0]).item() == pytest.approx(2, rel=0.01)


def test_a_prediction_in_the_worlds_units():
    """With weights of zero every network predicts the mean change it has seen."""
    dynamics = make(noisy=False, ends=True)
    obs, action = torch.randn(100, 3), torch.randn(100, 2)
    dynamics.see(obs, action, torch.full((100,), 5.0), obs + torch.tensor([1.0, 2.0, -1.0]))
    for w in dynamics.net.weights:
        torch.nn.init.zeros_(w)
    told = dynamics.imagine(torch.zeros(3, 1, 3), torch.zeros(3, 1, 2))
    torch.testing.assert_close(told.obs[0, 0], torch.tensor([1.0, 2.0, -1.0]))
    assert told.reward.tolist() == [[5.0]] * 3 and told.cont.tolist() == [[0.5]] * 3


def test_an_ensemble_finds_the_noise_and_disagrees_where_it_has_not_been():
    """x' = x + a + noise of std 0.3 on [-1, 1]: the variance learned is the noise's, and far away members part."""
    torch.manual_seed(0)
    dynamics = Dynamics(1, 1, members=4, units=32, layers=2)
    generator = torch.Generator().manual_seed(1)
    x, a = (2 * torch.rand(2_000, 1, generator=generator) - 1 for _ in range(2))
    after = x + a + 0.3 * torch.randn(2_000, 1, generator=generator)
    reward = after[:, 0] * 2
    dynamics.see(x, a, reward, after)
    opt = torch.optim.Adam(dynamics.parameters(), 3e-3)
    for _ in range(300):
        index = bootstrap(2_000, 128, 4, generator)
        told = dynamics(x[index], a[index])
        loss = gaussian_loss(told, dynamics.target(x[index], reward[index], after[index])).sum()
        loss = loss + 0.01 * dynamics.spread()
        opt.zero_grad(), loss.backward(), opt.step()
    told = dynamics(torch.zeros(4, 1, 1), torch.full((4, 1, 1), 0.5))
    mean = dynamics.outputs.back(told.mean)
    std = torch.exp(0.5 * told.log_var) * dynamics.outputs.std
    assert mean[..., 1].mean().item() == pytest.approx(0.5, abs=0.05)
    assert mean[..., 0].mean().item() == pytest.approx(1.0, abs=0.1)
    assert std[..., 1].mean().item() == pytest.approx(0.3, abs=0.05)
    far = dynamics.outputs.back(dynamics(torch.full((4, 1, 1), 8.0), torch.zeros(4, 1, 1)).mean)
    near = dynamics.outputs.back(dynamics(torch.zeros(4, 1, 1), torch.zeros(4, 1, 1)).mean)
    assert far[:, 0, 1].std() > 5 * near[:, 0, 1].std()
