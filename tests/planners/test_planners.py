"""What every planner owes its agent: one quadratic, one bandit, and manners, for all of them alike."""

import pytest
import torch

from reverie.planners.cem import CEM
from reverie.planners.mppi import MPPI
from reverie.planners.shooting import Shooting
from reverie.types import ActionSpace, NotFinite, ReverieError

SMALL = [
    Shooting(horizon=4, candidates=64),
    CEM(horizon=4, iterations=3, candidates=64, elites=8),
    MPPI(horizon=4, iterations=3, candidates=64, temperature=0.5),
]
FULL = [
    (Shooting(horizon=12), 0.35),
    (CEM(), 0.005),
    (MPPI(), 0.1),
]  # with the mean abs error expected of each
TWO, GROUPS = ActionSpace(2), ActionSpace(7, (4, 3))

all_planners = pytest.mark.parametrize("planner", SMALL, ids=lambda planner: type(planner).__name__)
both_spaces = pytest.mark.parametrize("space", [TWO, GROUPS], ids=["continuous", "discrete"])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def near(target):
    """The rollout whose best plan is ``target`` "H B A" (or a number)."""
    target = target.unsqueeze(2) if isinstance(target, torch.Tensor) else target
    return lambda candidates: -(candidates - target).square().sum((0, 3))


def one_hot_target(horizon, batch, groups=(4, 3), seed=0):
    parts = [torch.eye(n)[torch.randint(n, (horizon, batch), generator=rng(seed))] for n in groups]
    return torch.cat(parts, -1)


@pytest.mark.parametrize(("planner", "tolerance"), FULL, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("target", [0.3, -0.7])
def test_one_quadratic(planner, tolerance, target):
    plans = torch.cat([planner(near(target), 1, ActionSpace(1), rng(seed)) for seed in range(5)])
    assert (plans - target).abs().mean() < tolerance


@pytest.mark.parametrize("planner", [planner for planner, _ in FULL], ids=lambda p: type(p).__name__)
def test_a_bandit_over_groups(planner):
    """One decision of two groups: all twelve arms are tried, and each stream finds its own best."""
    planner = type(planner)(**{**vars(planner), "horizon": 1})
    target = one_hot_target(1, 5)
    plan = planner(near(target), 5, GROUPS, rng())
    assert torch.equal(plan, target.transpose(0, 1))


@pytest.mark.parametrize("planner", [CEM(), MPPI()], ids=["CEM", "MPPI"])
def test_a_long_bandit_needs_refitting(planner):
    """12^12 sequences: a thousand guesses never meet the best one, ten refits do."""
    target = one_hot_target(12, 3)
    assert torch.equal(planner(near(target), 3, GROUPS, rng()), target.transpose(0, 1))
    guessed = Shooting(horizon=12)(near(target), 3, GROUPS, rng())
    assert not torch.equal(guessed, target.transpose(0, 1))


@all_planners
@both_spaces
def test_candidates_and_plans_are_actions(planner, space):
    seen = []

    def rollout(candidates):
        seen.append(candidates)
        assert all(step.is_contiguous() for step in candidates)
        return candidates[..., 0].sum(0)

    plan = planner(rollout, 3, space, rng())
    assert plan.shape == (3, planner.horizon, space.size)
    assert all(candidates.shape == (planner.horizon, 3, 64, space.size) for candidates in seen)
    for actions in [*seen, plan]:
        assert actions.dtype == torch.float32
        if space.discrete:
            assert ((actions == 0) | (actions == 1)).all()
            for group in actions.split(space.groups, -1):
                assert (group.sum(-1) == 1).all()
        else:
            assert actions.abs().max() <= 1


@all_planners
@both_spaces
def test_same_seed_same_plan_and_no_other_randomness(planner, space):
    target = torch.linspace(-1, 1, space.size).expand(planner.horizon, 2, -1)
    before = torch.get_rng_state()
    first, again, other = (planner(near(target), 2, space, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert space.discrete or not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


GOLDEN = {
    "Shooting": [-0.109820, 0.337115, 0.128648, -0.015127],
    "CEM": [0.301602, 0.416781, 0.385571, 0.233586],
    "MPPI": [0.249517, 0.343103, 0.285126, 0.235117],
}


@all_planners
def test_golden_plan(planner):
    plan = planner(near(0.3), 1, ActionSpace(1), rng(7))
    expected = torch.tensor(GOLDEN[type(planner).__name__])
    torch.testing.assert_close(plan.flatten(), expected, atol=1e-4, rtol=0)


@all_planners
@both_spaces
def test_streams_planned_together_are_streams_planned_alone(planner, space):
    target = torch.rand(planner.horizon, 3, space.size, generator=rng(3)) * 2 - 1
    together = planner(near(target), 3, space, rng(5))
    for b in range(3):
        alone = planner(near(target[:, b : b + 1]), 1, space, rng(5))
        torch.testing.assert_close(together[b : b + 1], alone)


@pytest.mark.parametrize("planner", [CEM(), MPPI()], ids=["CEM", "MPPI"])
def test_candidates_of_one_stream_lie_side_by_side(planner):
    """A rollout through a model with a flat batch: start states by repeat_interleave."""
    start = torch.tensor([[-0.5], [0.1], [0.6]])  # a position; actions move it; it should come to 0 and stay

    def rollout_from(states):
        def rollout(candidates):
            position, total = states, 0.0
            for action in candidates.flatten(1, 2):
                position = position + action
                total = total - position.square().sum(-1)
            return total.unflatten(0, (3, -1))

        return rollout

    plan = planner(rollout_from(start.repeat_interleave(1000, 0)), 3, ActionSpace(1), rng())
    assert (plan[:, 0] + start).abs().max() < 0.15
    mixed = planner(rollout_from(start.repeat(1000, 1)), 3, ActionSpace(1), rng())
    assert (mixed[:, 0] + start).abs().max() > 0.3


@all_planners
@both_spaces
def test_what_is_not_finite_is_never_chosen(planner, space):
    def rollout(candidates):
        returns = candidates[0, :, :, 0].clone()
        returns[candidates[0, :, :, 0] > 0.5] = float("nan")
        returns[candidates[0, :, :, 0] < -0.5] = float("inf")
        return returns

    first = planner(rollout, 2, space, rng())[:, 0, 0]
    assert first.abs().max() <= 0.5
    assert space.discrete or first.min() > 0.2  # the best that is left


@all_planners
@both_spaces
def test_a_stream_without_any_finite_return_is_an_error(planner, space):
    def rollout(candidates):
        returns = candidates.sum((0, 3))
        returns[1] = float("nan")
        return returns

    with pytest.raises(NotFinite, match="every candidate"):
        planner(rollout, 2, space, rng())


@all_planners
def test_a_rollout_of_another_shape_is_refused(planner):
    with pytest.raises(ReverieError, match=r"\(B, N\) = \(2, 64\), got \(64, 2\)"):
        planner(lambda candidates: candidates.sum((0, 3)).T, 2, TWO, rng())


@all_planners
@both_spaces
def test_a_guess_is_where_the_search_starts(planner, space):
    """With a guess at the target the plan comes closer than without one; the guess itself is left alone."""
    target = one_hot_target(4, 2) if space.discrete else torch.full((4, 2, 2), -0.8)
    guess = target.transpose(0, 1).clone()
    error = lambda plan: (plan - target.transpose(0, 1)).abs().mean()
    plan = planner(near(target), 2, space, rng(), guess=guess)
    assert error(plan) < 0.15
    assert error(plan) < error(planner(near(target), 2, space, rng())) or error(plan) == 0
    assert torch.equal(guess, target.transpose(0, 1))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Shooting(horizon=0),
        lambda: CEM(iterations=0),
        lambda: CEM(candidates=10, elites=11),
        lambda: MPPI(candidates=0),
        lambda: MPPI(temperature=0.0),
    ],
)
def test_nonsense_is_refused(bad):
    with pytest.raises(ReverieError):
        bad()
