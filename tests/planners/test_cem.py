"""The cross-entropy method: PlaNet's numbers on a quadratic, and each line of its algorithm."""

import numpy as np
import pytest
import torch

from reverie.planners import draw_bounded, draw_one_hot
from reverie.planners.cem import CEM
from reverie.types import ActionSpace

SEEDS = range(10)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Watch:
    """A rollout that keeps the candidates it saw, and picks the elites again, the slow way."""

    def __init__(self, objective, k=100):
        self.objective, self.k, self.candidates = objective, k, []

    def __call__(self, candidates):
        self.candidates.append(candidates)
        return self.objective(candidates)

    def elites(self, iteration):
        """K elites of the only stream, "K H A"."""
        candidates = self.candidates[iteration]
        order = self.objective(candidates)[0].argsort(descending=True)
        return candidates[:, 0, order[: self.k]].transpose(0, 1)

    def mean_std(self, iteration):
        return (self.elites(iteration).var(0, correction=0) + 1e-6).sqrt().mean().item()


def quadratic(target):
    return lambda candidates: -(candidates - target).square().sum((0, 3))


@pytest.mark.parametrize(
    ("horizon", "size", "target", "error", "std"),
    [
        (1, 1, 0.3, 1e-5, (0.072, 0.0054, 0.0011, None, 0.001)),
        (12, 1, 0.3, 0.0013, (0.564, 0.352, 0.226, None, 0.094)),
        (12, 1, -0.7, 0.0014, (0.588, 0.367, 0.237, None, 0.100)),
        (12, 2, 0.3, 0.0054, (0.620, 0.439, 0.323, None, 0.179)),
        (12, 2, -0.7, 0.0075, (0.642, 0.463, 0.344, None, 0.198)),
        (12, 6, 0.3, 0.023, (0.665, 0.522, 0.431, None, 0.307)),
        (12, 6, -0.7, 0.098, (0.682, 0.545, 0.454, None, 0.332)),
    ],
)
def test_a_quadratic_at_planets_setting(horizon, size, target, error, std):
    """Mean error of the final mean, and the elites' std after iterations 1, 2, 3 and 5, over ten seeds."""
    errors, stds = [], []
    for seed in SEEDS:
        watch = Watch(quadratic(target))
        plan = CEM(horizon=horizon)(watch, 1, ActionSpace(size), rng(seed))
        errors.append((plan - target).abs().mean().item())
        stds.append([watch.mean_std(i) for i in range(5)])
    assert sum(errors) / len(errors) == pytest.approx(error, rel=0.3, abs=1e-5)
    measured = torch.tensor(stds).mean(0)
    for i, expected in enumerate(std):
        assert expected is None or measured[i].item() == pytest.approx(expected, rel=0.08)


def test_a_target_outside_the_box_is_approached_and_never_passed():
    plans = torch.cat([CEM()(quadratic(1.5), 1, ActionSpace(1), rng(seed)) for seed in SEEDS])
    assert plans.mean().item() == pytest.approx(0.983, abs=0.004)
    assert 0.96 < plans.min() <= plans.max() < 1


def test_a_linear_objective():
    plans = torch.cat([CEM()(lambda c: c.sum((0, 3)), 1, ActionSpace(1), rng(seed)) for seed in SEEDS])
    assert plans.mean().item() == pytest.approx(0.985, abs=0.004)


def test_the_first_candidates_are_clipped_standard_normals_at_every_call():
    cem, generator = CEM(), rng()
    for _ in range(2):  # no warm start
        watch = Watch(quadratic(0.9))
        cem(watch, 1, ActionSpace(6), generator)
        first = watch.candidates[0]
        assert (first.abs() == 1).float().mean().item() == pytest.approx(0.3173, abs=0.01)
        assert first.mean().item() == pytest.approx(0, abs=0.02)
        assert len(watch.candidates) == 10


def test_the_plan_is_the_mean_of_the_last_clipped_elites():
    """Not the best candidate, and not the mean before clipping."""
    watch = Watch(quadratic(0.99))
    plan = CEM()(watch, 1, ActionSpace(2), rng())[0]
    torch.testing.assert_close(plan, watch.elites(-1).mean(0))
    assert not torch.allclose(plan, watch.elites(-1)[0], atol=1e-3)


def test_the_next_candidates_are_drawn_from_the_elites_statistics():
    """Few entries clip here, so the candidates' moments show the mean and std they were drawn from."""
    watch = Watch(quadratic(0.1), k=4)
    CEM(horizon=2, iterations=2, candidates=50_000, elites=4, std=0.1)(watch, 1, ActionSpace(1), rng())
    elites, candidates = watch.elites(0), watch.candidates[1][:, 0]
    torch.testing.assert_close(candidates.mean(1), elites.mean(0), atol=1e-3, rtol=0)
    expected = (elites.var(0, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(candidates.std(1), expected, atol=0, rtol=0.02)


def test_momentum_keeps_a_share_of_the_old_mean():
    watch = Watch(quadratic(0.9))
    plan = CEM(iterations=1, momentum=0.25)(watch, 1, ActionSpace(1), rng())[0]
    torch.testing.assert_close(plan, 0.75 * watch.elites(0).mean(0))


def test_momentum_keeps_a_share_of_the_old_variance():
    watch = Watch(quadratic(0.0))
    cem = CEM(horizon=1, iterations=2, candidates=50_000, elites=100, std=0.2, momentum=0.5)
    cem(watch, 1, ActionSpace(1), rng())
    expected = (0.5 * 0.2**2 + 0.5 * (watch.elites(0).var(correction=0) + 1e-6)).sqrt()
    assert watch.candidates[1].std().item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_discrete_refit_is_the_elites_frequency_smoothed(momentum):
    target = torch.tensor([1.0, 0, 0, 0, 1])
    watch = Watch(quadratic(target), k=40)
    cem = CEM(horizon=1, iterations=2, candidates=20_000, elites=40, smoothing=0.2, momentum=momentum)
    plan = cem(watch, 1, ActionSpace(5, (3, 2)), rng())
    assert torch.equal(plan[0, 0], target)
    uniform = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    refit = 0.8 * watch.elites(0)[:, 0].mean(0) + 0.2 * uniform
    expected = (1 - momentum) * refit + momentum * uniform
    torch.testing.assert_close(watch.candidates[1][0, 0].mean(0), expected, atol=0.01, rtol=0)


def test_one_hot_candidates_follow_their_probabilities():
    probs = torch.tensor([0.1, 0.2, 0.7, 0.5, 0.5]).expand(2, 3, 1, 5)
    drawn = draw_one_hot(probs, (3, 2), torch.empty(2, 1, 50_000, 2), rng())
    assert drawn.shape == (2, 3, 50_000, 5)
    torch.testing.assert_close(drawn.mean(2, keepdim=True), probs, atol=0.01, rtol=0)
    both = (drawn[..., 2] * drawn[..., 3]).mean(2)  # groups and steps are drawn apart
    torch.testing.assert_close(both, torch.full((2, 3), 0.35), atol=0.01, rtol=0)


def test_a_choice_without_probability_is_never_drawn():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).expand(1, 1, 1, 5)
    drawn = draw_one_hot(probs, (5,), torch.empty(1, 1, 100_000, 1), rng())
    assert (drawn.sum(-1) == 1).all()
    assert drawn[..., [0, 2, 4]].sum() == 0


# PETS' candidates


def distances(d, seeds, optimum=0.4, candidates=500, elites=50):
    """Mean squared distance of the mean to the optimum after each of five iterations."""
    found = np.zeros((len(seeds), 5))
    for i, seed in enumerate(seeds):
        for k in range(1, 6):
            cem = CEM(1, k, candidates, elites, std=0.5, min_var=0.0, momentum=0.1, bounded=True)
            rollout = lambda a: -(a[0] - optimum).square().sum(-1)
            plan = cem(rollout, 1, ActionSpace(d), torch.Generator().manual_seed(seed))
            found[i, k - 1] = (plan[0, 0] - optimum).square().sum()
    return found.mean(0)


@pytest.mark.parametrize(
    ("d", "expected"),
    [
        (1, [1.9e-3, 2.4e-5, 4.7e-7, 3.2e-8, 3.2e-9]),
        (5, [0.129, 1.57e-2, 1.86e-3, 2.8e-4, 5.8e-5]),
        (30, [2.72, 1.52, 0.839, 0.459, 0.250]),
    ],
)
def test_bounded_search_on_a_quadratic_at_pets_setting(d, expected):
    """The first iterations agree closely; the last of one dimension are spread over orders of magnitude."""
    found = distances(d, range(60))
    np.testing.assert_allclose(found[:3], expected[:3], rtol=0.5 if d == 1 else 0.15)
    np.testing.assert_allclose(found[3:], expected[3:], rtol=0.9 if d == 1 else 0.3)


def test_an_optimum_on_the_edge_is_approached_slowly():
    found = distances(5, range(40), optimum=1.0)
    np.testing.assert_allclose(found, [2.46, 1.25, 0.67, 0.37, 0.218], rtol=0.1)
    assert distances(5, range(40), optimum=0.9)[-1] == pytest.approx(0.084, rel=0.25)


def test_bounded_candidates_reach_two_std_and_never_the_outside():
    mean = torch.tensor([-0.9, 0.0, 0.5]).view(1, 1, 1, 3)
    std = torch.full((1, 1, 1, 3), 0.4)
    noise = torch.empty(1, 1, 50_000, 3)
    drawn = draw_bounded(mean, std, noise, torch.Generator().manual_seed(0))[0, 0]
    capped = torch.tensor([0.05, 0.4, 0.25])
    assert ((drawn - mean[0, 0]).abs() <= 2 * capped + 1e-6).all() and (drawn.abs() <= 1).all()
    # a normal cut at two std has 0.8796 of its std
    torch.testing.assert_close(drawn.std(0) / capped, torch.full((3,), 0.8796), atol=0.01, rtol=0)


def test_a_stream_that_has_found_it_rests():
    """With ``enough`` a narrow stream keeps its mean, whatever its neighbour still looks for."""
    calls = []

    def rollout(candidates):
        calls.append(candidates.clone())
        return -candidates.square().sum((0, 3)) * torch.tensor([[1.0], [1.0]])

    cem = CEM(1, 50, 200, 20, std=0.5, min_var=0.0, momentum=0.1, bounded=True, enough=1e-3)
    guess = torch.tensor([0.0, 0.8]).view(2, 1, 1)
    both = cem(rollout, 2, ActionSpace(1), torch.Generator().manual_seed(0), guess=guess)
    assert len(calls) < 50
    alone = cem(
        lambda a: rollout(a.repeat(1, 2, 1, 1))[:1],
        1,
        ActionSpace(1),
        torch.Generator().manual_seed(0),
        guess=guess[:1],
    )
    torch.testing.assert_close(both[:1], alone)
