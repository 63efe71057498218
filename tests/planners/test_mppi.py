"""Path integral control: its weights, and the closed form that one update has on a quadratic."""

import pytest
import torch

from reverie.planners.mppi import MPPI
from reverie.types import ActionSpace


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def watched(objective):
    seen = []

    def rollout(candidates):
        seen.append(candidates)
        return objective(candidates)

    return rollout, seen


def quadratic(target):
    return lambda candidates: -(candidates - target).square().sum((0, 3))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_the_plan_is_the_softmax_weighted_mean(temperature):
    rollout, seen = watched(quadratic(0.4))
    plan = MPPI(horizon=3, iterations=1, candidates=32, temperature=temperature)(
        rollout, 1, ActionSpace(2), rng()
    )
    scores = quadratic(0.4)(seen[0])[0].double()
    weight = torch.exp((scores - scores.max()) / temperature)
    slow = sum(w * seen[0][:, 0, n] for n, w in enumerate((weight / weight.sum()).tolist()))
    torch.testing.assert_close(plan[0], slow)


def test_temperature_goes_from_the_best_candidate_to_all_of_them():
    for temperature, expected in [
        (1e-6, lambda c: c[:, 0, quadratic(0.4)(c)[0].argmax()]),
        (1e6, lambda c: c[:, 0].mean(1)),
    ]:
        rollout, seen = watched(quadratic(0.4))
        plan = MPPI(horizon=3, iterations=1, temperature=temperature)(rollout, 1, ActionSpace(2), rng())
        torch.testing.assert_close(plan[0], expected(seen[0]), atol=1e-4, rtol=0)


def test_weights_do_not_change_when_all_returns_shift():
    mppi = MPPI(horizon=3, candidates=64)
    plain = mppi(quadratic(0.4), 1, ActionSpace(2), rng())
    shifted = mppi(lambda c: quadratic(0.4)(c) - 500, 1, ActionSpace(2), rng())
    torch.testing.assert_close(plain, shifted, atol=1e-3, rtol=0)


def test_one_update_on_a_quadratic_in_closed_form():
    """N(a; 0, s^2) exp(-(a - t)^2 / lambda) is normal with mean t (2 / lambda) / (1 / s^2 + 2 / lambda)."""
    mppi = MPPI(horizon=1, iterations=1, candidates=400_000, temperature=0.05, std=0.2)
    plan = mppi(quadratic(0.3), 1, ActionSpace(1), rng())
    assert plan.item() == pytest.approx(0.3 * 40 / (25 + 40), abs=0.002)


def test_the_std_stays_as_it_is():
    rollout, seen = watched(quadratic(0.0))
    MPPI(std=0.2)(rollout, 1, ActionSpace(3), rng())
    assert len(seen) == 10
    for candidates in seen:
        assert candidates.std(2).mean().item() == pytest.approx(0.2, rel=0.02)


def test_discrete_update_is_the_weighted_frequency_smoothed():
    prize = torch.tensor([0.0, 1.0, 2.0])
    rollout, seen = watched(lambda candidates: (candidates * prize).sum((0, 3)))
    mppi = MPPI(horizon=1, iterations=2, candidates=50_000, temperature=2.0, smoothing=0.1)
    plan = mppi(rollout, 1, ActionSpace(3, (3,)), rng())
    assert plan.flatten().tolist() == [0, 0, 1]
    expected = 0.9 * (prize / 2).softmax(0) + 0.1 / 3
    torch.testing.assert_close(seen[1][0, 0].mean(0), expected, atol=0.01, rtol=0)
