"""Random shooting: uniform candidates, and the best of them as it is."""

import torch

from reverie.planners.shooting import Shooting
from reverie.types import ActionSpace


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_plan_is_the_best_candidate_of_each_stream():
    seen = []
    target = torch.tensor([-0.5, 0.5]).view(1, 2, 1, 1)

    def rollout(candidates):
        seen.append(candidates)
        return -(candidates - target).square().sum((0, 3))

    plan = Shooting(horizon=3, candidates=200)(rollout, 2, ActionSpace(2), rng())
    assert len(seen) == 1
    for b in range(2):
        errors = [(seen[0][:, b, n] - target[0, b]).square().sum().item() for n in range(200)]
        assert torch.equal(plan[b], seen[0][:, b, errors.index(min(errors))])


def test_candidates_are_uniform():
    seen = []

    def rollout(candidates):
        seen.append(candidates)
        return candidates.sum((0, 3))

    shooting = Shooting(horizon=2, candidates=50_000)
    shooting(rollout, 1, ActionSpace(1), rng())
    quartiles = torch.quantile(seen[0].flatten(), torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([-0.5, 0.0, 0.5]), atol=0.02, rtol=0)
    shooting(rollout, 1, ActionSpace(5, (3, 2)), rng())
    frequency = seen[1][:, 0].mean(1)
    expected = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]).expand(2, 5)
    torch.testing.assert_close(frequency, expected, atol=0.01, rtol=0)


def test_more_candidates_are_better():
    quadratic = lambda candidates: -(candidates - 0.3).square().sum((0, 3))
    value = lambda n: sum(
        quadratic(
            Shooting(horizon=5, candidates=n)(quadratic, 1, ActionSpace(1), rng(s))[0, :, None, None]
        ).item()
        for s in range(10)
    )
    assert value(10) < value(100) < value(1000)


def test_the_guess_is_kept_if_nothing_is_better():
    guess = torch.full((1, 4, 1), 0.3)
    quadratic = lambda candidates: -(candidates - 0.3).square().sum((0, 3))
    plan = Shooting(horizon=4)(quadratic, 1, ActionSpace(1), rng(), guess=guess)
    assert torch.equal(plan, guess)
