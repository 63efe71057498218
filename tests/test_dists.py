"""Distributions against numbers worked by hand, scipy, and the gradients that should be there and not."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from reverie.dists import (
    MSE,
    Bernoulli,
    Categoricals,
    Mixture,
    Normal,
    OneHot,
    SymlogMSE,
    TanhNormal,
    TwoHot,
    UnitNormal,
    draw_few,
    draw_one_hot,
    sum_last,
    unimixed,
)
from reverie.ops.scalars import symexp_bins, two_hot

DOUBLE = torch.float64
ENTRIES = 64 * 64 * 3


def double(*values):
    return torch.tensor(values, dtype=DOUBLE)


def close(actual, expected, atol=1e-7):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


# Normal

M1, S1 = double(0.0, 1.0, -2.0), double(0.1, 1.0, 2.0)
M2, S2 = double(0.0, 0.0, 1.0), double(1.0, 2.0, 0.5)


def test_kl_by_hand():
    close(Normal(M1, S1, event=0).kl(Normal(M2, S2, event=0)), [1.80758509, 0.44314718, 24.11370564], 1e-8)
    close(Normal(M1, S1).kl(Normal(M2, S2)), 26.36443791, 1e-8)
    close(Normal(M2, S2).kl(Normal(M1, S1)), 50.54681209, 1e-8)


def test_kl_has_a_direction():
    ones = torch.ones(30, dtype=DOUBLE)
    p, q = Normal(0.5 * ones, 0.8 * ones), Normal(0 * ones, ones)
    close(p.kl(q), 5.044306539, 1e-8)
    close(q.kl(p), 7.602568461, 1e-8)
    close(p.kl(q) / 30, 0.168143551, 1e-8)
    close(q.kl(p) / 30, 0.253418949, 1e-8)


def test_kl_gradients_reach_all_four_parameters():
    parameters = [x.clone().requires_grad_() for x in (M1, S1, M2, S2)]
    m1, s1, m2, s2 = parameters
    grads = torch.autograd.grad(Normal(m1, s1).kl(Normal(m2, s2)), parameters)
    close(grads[0], [0, 0.25, -12])
    close(grads[1], [-9.9, -0.75, 7.5])
    close(grads[2], [0, -0.25, 12])
    close(grads[3], [0.99, 0.25, -102])


def test_kl_without_a_floor_explodes():
    close(Normal(double(0.0), double(1.0)).kl(Normal(double(0.0), double(0.1))), 47.197415, 1e-5)


@given(st.integers(0, 2**31))
def test_normal_agrees_with_torchs_own(seed):
    generator = torch.Generator().manual_seed(seed)
    mean, other = torch.randn(2, 4, 3, generator=generator, dtype=DOUBLE)
    std, other_std = torch.rand(2, 4, 3, generator=generator, dtype=DOUBLE) + 0.1
    ours, theirs = Normal(mean, std), torch.distributions.Normal(mean, std)
    value = torch.randn(4, 3, generator=generator, dtype=DOUBLE)
    close(ours.log_prob(value), theirs.log_prob(value).sum(-1), 1e-10)
    close(ours.entropy(), theirs.entropy().sum(-1), 1e-10)
    kl = torch.distributions.kl_divergence(theirs, torch.distributions.Normal(other, other_std)).sum(-1)
    close(ours.kl(Normal(other, other_std)), kl, 1e-10)
    assert (ours.kl(Normal(other, other_std)) >= 0).all()
    close(ours.kl(ours), torch.zeros(4), 1e-10)


def test_samples_are_reparameterised():
    mean, std = torch.zeros(1000, 2, requires_grad=True), torch.full((1000, 2), 0.5, requires_grad=True)
    dist = Normal(mean, std)
    sample = dist.sample(torch.Generator().manual_seed(1))
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample, 0.5 * noise)
    d_mean, d_std = torch.autograd.grad(sample.sum(), [mean, std])
    assert (d_mean == 1).all()
    assert torch.equal(d_std, noise)
    assert torch.equal(dist.mode, mean)


def test_events_are_the_trailing_dimensions():
    x = torch.randn(2, 3, 4)
    assert torch.equal(sum_last(x, 0), x)
    close(sum_last(x, 1), x.sum(-1), 1e-6)
    close(sum_last(x, 2), x.sum((-1, -2)), 1e-6)
    assert Normal(x, x.exp(), event=2).log_prob(x).shape == (2,)


# UnitNormal


def test_image_likelihood_constants():
    image = torch.rand(2, 64, 64, 3, dtype=DOUBLE) - 0.5
    perfect = UnitNormal(image, event=3).loss(image)
    assert perfect.shape == (2,)
    close(perfect, [11_291.916696] * 2, 1e-5)
    close(UnitNormal(image + 0.1, event=3).loss(image), [11_353.356696] * 2, 1e-5)


def test_predicting_grey_for_uniform_pixels():
    image = torch.rand(100, 64, 64, 3, dtype=DOUBLE) - 0.5
    assert UnitNormal(torch.zeros_like(image), event=3).loss(image).mean().item() == pytest.approx(
        11_803.92, abs=0.5
    )


def test_scalar_likelihood_is_half_the_squared_error_and_a_constant():
    value, target = double(1.0, -2.0), double(1.0, 1.0)
    close(UnitNormal(value).loss(target), [0.918939, 4.5 + 0.918939], 1e-6)
    close(UnitNormal(value).log_prob(target), -UnitNormal(value).loss(target))
    close(UnitNormal(value).loss(target), -scipy.stats.norm.logpdf(target, value), 1e-10)


def test_the_gradient_of_the_likelihood_is_the_error():
    mean = double(0.3, 2.0).requires_grad_()
    (grad,) = torch.autograd.grad(UnitNormal(mean).loss(double(1.0, 1.0)).sum(), mean)
    close(grad, [-0.7, 1.0])


# Bernoulli


def test_soft_label_cross_entropy_is_least_where_the_mean_is_the_label():
    logit = double(math.log(0.99 / 0.01)).requires_grad_()
    dist = Bernoulli(logit)
    loss = dist.loss(double(0.99))
    close(loss.detach(), [0.0560015], 1e-7)
    (grad,) = torch.autograd.grad(loss.sum(), logit)
    close(grad, [0.0], 1e-10)
    close(dist.mean.detach(), [0.99])
    for other in (logit.detach() - 0.1, logit.detach() + 0.1):
        assert Bernoulli(other).loss(double(0.99)) > loss


@pytest.mark.parametrize("logit", [-200.0, -1.0, 0.0, 3.0, 200.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_bernoulli_log_prob_is_finite_and_right(logit, label):
    dist = Bernoulli(double(logit))
    expected = -np.logaddexp(0, -logit if label else logit)
    close(dist.log_prob(double(label)), [expected], 1e-10)
    close(dist.mode, [float(logit > 0)])


# TanhNormal


def slope(x):
    """log |d tanh / d raw| at raw = x, as the log-density's difference to the Gaussian's at its mean."""
    raw = double(x)
    return -math.log(math.sqrt(2 * math.pi)) - TanhNormal(raw, torch.ones_like(raw)).log_prob_of(raw).item()


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.0, 0.0),
        (1.0, -0.86756166),
        (-1.0, -0.86756166),
        (3.0, -4.61865701),
        (-3.0, -4.61865701),
        (10.0, -18.61370564),
    ],
)
def test_slope_of_tanh(x, expected):
    assert slope(x) == pytest.approx(expected, abs=1e-8)


def test_density_of_a_squashed_gaussian():
    dist = TanhNormal(double(0.5), double(1.0))
    close(dist.log_prob_of(double(0.7)), torch.tensor(-0.48439807), 1e-8)
    close(dist.log_prob(double(math.tanh(0.7))), torch.tensor(-0.48439807), 1e-7)
    assert math.tanh(0.7) == pytest.approx(0.60436778, abs=1e-8)


def test_density_integrates_to_one_and_sums_over_actions():
    grid = torch.linspace(-1 + 1e-9, 1 - 1e-9, 2_000_001, dtype=DOUBLE)[:, None]
    density = TanhNormal(torch.full_like(grid, 0.3), torch.full_like(grid, 0.6)).log_prob(grid).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, abs=1e-4)
    pair = TanhNormal(double(0.3, -1.0), double(0.6, 2.0)).log_prob(double(0.2, 0.9))
    one = TanhNormal(double(0.3), double(0.6)).log_prob(double(0.2))
    other = TanhNormal(double(-1.0), double(2.0)).log_prob(double(0.9))
    close(pair, one + other)


def test_density_survives_saturation():
    """float32 tanh is exactly 1 from 9.01 on; neither value nor gradient may be infinite there."""
    mean = torch.zeros(4, 1, requires_grad=True)
    dist = TanhNormal(mean, torch.full((4, 1), 5.0))
    raw = torch.tensor([[9.1], [-9.1], [50.0], [-50.0]])
    assert (torch.tanh(raw).abs() == 1).all()
    for log_prob in (dist.log_prob(torch.tanh(raw)), dist.log_prob_of(raw)):
        assert log_prob.isfinite().all()
        (grad,) = torch.autograd.grad(log_prob.sum(), mean)
        assert grad.isfinite().all()


def test_the_untrained_actor_is_almost_bang_bang():
    """Mean 0, std 5: its spread and entropy by integration, and how many samples lie beyond 0.9 and 0.99."""
    raw = torch.linspace(-60, 60, 400_001, dtype=DOUBLE)[:, None]
    dist = TanhNormal(torch.zeros_like(raw), torch.full_like(raw, 5.0))
    density_of_raw = Normal(dist.mean, dist.std).log_prob(raw).exp()
    expect = lambda f: torch.trapezoid(density_of_raw * f, raw[:, 0]).item()
    assert expect(torch.tanh(raw[:, 0]) ** 2) ** 0.5 == pytest.approx(0.918129, abs=2e-6)
    entropy = -expect(dist.log_prob_of(raw))
    assert entropy == pytest.approx(-3.693955, abs=1e-6)
    assert 6 * entropy == pytest.approx(-22.1637, abs=1e-4)

    sample = TanhNormal(torch.zeros(400_000, 1), torch.full((400_000, 1), 5.0001)).sample()
    assert (sample.abs() > 0.9).float().mean().item() == pytest.approx(0.768419, abs=0.003)
    assert (sample.abs() > 0.99).float().mean().item() == pytest.approx(0.596576, abs=0.003)
    assert sample.std().item() == pytest.approx(0.918129, abs=0.002)


def test_squashed_samples_carry_gradient():
    mean, std = torch.zeros(5, 2, requires_grad=True), torch.ones(5, 2, requires_grad=True)
    sample = TanhNormal(mean, std).sample(torch.Generator().manual_seed(3))
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(3))
    d_mean, d_std = torch.autograd.grad(sample.sum(), [mean, std])
    close(d_mean, 1 - torch.tanh(noise) ** 2, 1e-6)
    close(d_std, noise * (1 - torch.tanh(noise) ** 2), 1e-6)


def test_sample_mode_takes_the_likeliest_draw_of_each_entry():
    """Two actors of very different means in one batch: each gets its own best draw, not the first one's."""
    mean, std = torch.tensor([[0.5, -0.5], [-2.0, 2.0], [0.0, 3.0]]), torch.full((3, 2), 0.4)
    dist = TanhNormal(mean, std)
    best = dist.sample_mode(torch.Generator().manual_seed(0), samples=50)
    raw = mean + std * torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0))
    for i in range(3):
        scores = [TanhNormal(mean[i], std[i]).log_prob_of(raw[k, i]).item() for k in range(50)]
        close(best[i], torch.tanh(raw[int(np.argmax(scores)), i]), 1e-6)


def test_sample_mode_leaves_the_mean_when_the_density_piles_up_at_the_edge():
    dist = TanhNormal(torch.full((1, 1), 0.4), torch.full((1, 1), 5.0))
    close(dist.mode, torch.tanh(torch.full((1, 1), 0.4)))
    assert dist.sample_mode(torch.Generator().manual_seed(0)).abs().item() > 0.999


# OneHot

LOGITS = double(0.7, 0.2, 0.1).log()


class Drawn(OneHot):
    """A categorical whose draw is known."""

    def __init__(self, logits, hot):
        super().__init__(logits)
        self.hot = hot

    def draw(self, generator=None):
        return self.hot


@pytest.mark.parametrize("drawn", [0, 1, 2])
def test_straight_through_has_the_gradient_of_the_probabilities(drawn):
    logits, hot = LOGITS.clone().requires_grad_(), torch.eye(3, dtype=DOUBLE)[drawn]
    sample = Drawn(logits, hot).sample()
    assert torch.equal(sample, hot)
    (grad,) = torch.autograd.grad(sample[0], logits)
    close(grad, [0.21, -0.14, -0.07])


def test_score_form_has_the_gradient_of_the_log_probability_of_what_was_drawn():
    logits, hot = LOGITS.clone().requires_grad_(), double(1.0, 0.0, 0.0)
    sample = Drawn(logits, hot).score_sample()
    close(sample.detach(), hot)
    (grad,) = torch.autograd.grad(sample[0], logits, retain_graph=True)
    close(grad, [0.3, -0.2, -0.1])
    for k in (1, 2):
        (grad,) = torch.autograd.grad(sample[k], logits, retain_graph=True)
        close(grad, [0.0, 0.0, 0.0])


def test_groups_are_categoricals_of_their_own():
    logits = torch.randn(1000, 5, dtype=DOUBLE)
    dist = OneHot(logits, (2, 3))
    first, second = logits.split((2, 3), -1)
    close(dist.probs, torch.cat([first.softmax(-1), second.softmax(-1)], -1))
    for sample in (dist.draw(), dist.sample(), dist.score_sample(), dist.mode):
        assert ((sample == 0) | (sample == 1)).all()
        for group in sample.split((2, 3), -1):
            assert (group.sum(-1) == 1).all()
    theirs = [torch.distributions.OneHotCategorical(logits=part) for part in (first, second)]
    draw = dist.draw()
    log_prob = sum(t.log_prob(part) for t, part in zip(theirs, draw.split((2, 3), -1), strict=True))
    close(dist.log_prob(draw), log_prob)
    close(dist.entropy(), sum(t.entropy() for t in theirs))


def test_a_group_gets_no_gradient_from_another():
    logits = torch.zeros(5, dtype=DOUBLE, requires_grad=True)
    for sample in (OneHot(logits, (2, 3)).sample(), OneHot(logits, (2, 3)).score_sample()):
        (grad,) = torch.autograd.grad((sample[:2] * double(1.0, 2.0)).sum(), logits)
        assert (grad[2:] == 0).all()
        assert (grad[:2] != 0).any()


def test_draws_follow_the_probabilities_and_the_generator():
    dist = OneHot(LOGITS.expand(100_000, 3))
    draw = dist.draw(torch.Generator().manual_seed(5))
    close(draw.mean(0), [0.7, 0.2, 0.1], 0.01)
    assert torch.equal(draw, dist.draw(torch.Generator().manual_seed(5)))
    close(dist.mode[0], [1.0, 0.0, 0.0])


def test_score_and_straight_through_agree_on_a_linear_objective_in_expectation():
    """Both estimate d E[sum c a] / d logits = p (c - E c); the score form is the noisy one."""
    cost = double(1.0, -2.0, 0.5)
    expected = LOGITS.exp() * (cost - (LOGITS.exp() * cost).sum())
    logits = LOGITS.clone().requires_grad_()
    for name, tolerance in (("sample", 1e-9), ("score_sample", 0.02)):
        dist = OneHot(logits.expand(100_000, 3))
        value = (getattr(dist, name)() * cost).sum(-1).mean()
        (grad,) = torch.autograd.grad(value, logits)
        close(grad, expected, tolerance)


def test_entropy_of_a_squashed_gaussian_is_estimated_without_bias():
    """Against a numerical integral of -p log p over the interval."""
    mean, std = 0.4, 0.7
    dist = TanhNormal(torch.full((200_000, 1), mean), torch.full((200_000, 1), std))
    found = dist.entropy(torch.Generator().manual_seed(0)).mean().item()
    y = torch.linspace(-1 + 1e-6, 1 - 1e-6, 200_001, dtype=torch.float64)
    exact = TanhNormal(torch.full((1,), mean).double(), torch.full((1,), std).double())
    p = exact.log_prob_of(torch.atanh(y)[:, None]).exp()
    assert found == pytest.approx(-torch.trapezoid(p * p.log(), y).item(), abs=0.01)


# Two-hot, points and categoricals

BINS = symexp_bins().double()


def test_before_training_every_target_costs_the_same():
    """ln 255 = 5.5412635, whatever the target."""
    dist = TwoHot(torch.zeros(4, 255, dtype=DOUBLE), BINS)
    close(dist.loss(double(0.0, -3.0, 1000.0, 1e9)), [5.5412635] * 4)
    close(dist.mean, [0.0] * 4)


def test_two_hot_loss_is_a_cross_entropy_and_so_is_its_gradient():
    logits = torch.randn(5, 255, dtype=DOUBLE, requires_grad=True)
    one, two = double(0.0, 0.3, -7.0, 1e9, 12345.0), double(1.0, -2.0, 3.0, 0.5, -0.5)
    weight = torch.rand(5, dtype=DOUBLE)
    found = TwoHot(logits, BINS).loss(one, two)
    dense = -((two_hot(one, BINS) + two_hot(two, BINS)) * logits.log_softmax(-1)).sum(-1)
    close(found, dense.detach(), 1e-12)
    grads = [torch.autograd.grad((weight * loss).sum(), logits)[0] for loss in (found, dense)]
    close(grads[0], grads[1], 1e-12)


def test_a_sure_two_hot_says_its_target():
    target = double(-31.5, 0.0, 0.1, 5.0, 2_000.0)
    dist = TwoHot(two_hot(target, BINS).clamp(min=1e-300).log(), BINS)
    torch.testing.assert_close(dist.mean, target, rtol=1e-6, atol=1e-9)


def test_points():
    close(MSE(double(1.0, 2.0)).loss(double(0.0, 0.0)), [1, 4])
    close(MSE(double(1.0, 2.0), event=1).loss(double(0.0, 0.0)), 5)
    dist = SymlogMSE(double(0.6931472, -2.3978953), event=1)
    close(dist.mode, [1, -10], 1e-5)
    close(dist.loss(double(1.0, -10.0)), 0, 1e-9)
    close(dist.loss(double(0.0, -10.0)), 0.6931472**2)


@pytest.mark.parametrize(
    ("classes", "highest", "lowest", "max_kl", "least", "most"),
    [
        (4, 0.9925, 0.0025, 5.924097, 1.6770, 44.3614),
        (16, 0.990625, 0.000625, 7.294656, 2.5119, 88.7228),
        (32, 0.9903125, 0.0003125, 7.980560, 2.8105, 110.9035),
        (64, 0.99015625, 0.00015625, 8.666619, 3.0741, 133.0843),
    ],
)
def test_an_even_share_bounds_probability_kl_and_entropy(classes, highest, lowest, max_kl, least, most):
    one = torch.full((32, classes), -1e3, dtype=DOUBLE)
    one[:, 0] = 1e3
    sure, other = (Categoricals(x.flatten(), classes, 0.01) for x in (one, one.roll(1, -1)))
    even = Categoricals(torch.zeros(32 * classes, dtype=DOUBLE), classes, 0.01)
    close(sure.probs.max(), highest, 1e-9), close(sure.probs.min(), lowest, 1e-9)
    close(sure.kl(other), 32 * max_kl, 1e-4)
    close(sure.entropy(), least, 1e-4), close(even.entropy(), most, 1e-4)
    to_even = {4: 1.333887, 16: 2.694091, 32: 3.377909, 64: 4.062817}[classes]
    from_even = {4: 3.109186, 16: 4.144649, 32: 4.353259, 64: 4.468386}[classes]
    close(sure.kl(even) / 32, to_even, 1e-6), close(even.kl(sure) / 32, from_even, 1e-6)


def test_kl_of_three_classes_by_hand():
    post, prior = double(2.0, 0.0, -1.0), double(0.0, 1.0, 0.0)
    p, q = Categoricals(post, 3, 0.01), Categoricals(prior, 3, 0.01)
    close(p.probs[0], [0.83869012, 0.11638658, 0.0449233], 1e-7)
    close(q.probs[0], [0.21315548, 0.57368905, 0.21315548], 1e-7)
    close(p.kl(q), 0.89324913), close(q.kl(p), 0.95504419)
    close(Categoricals(post, 3).kl(Categoricals(prior, 3)), 0.91298290)


def test_categoricals_are_one_hot_groups():
    logits = torch.randn(7, 12, dtype=DOUBLE)
    ours, theirs = Categoricals(logits, 4, 0.1), OneHot(logits, (4, 4, 4), 0.1)
    close(ours.log_probs.flatten(-2), theirs.log_probs, 1e-12)
    close(ours.entropy(), theirs.entropy(), 1e-12)
    assert torch.equal(ours.mode, theirs.mode)
    close(ours.log_prob(theirs.mode), theirs.log_prob(theirs.mode), 1e-12)


@given(st.floats(0, 1, exclude_max=True), st.integers(2, 9))
def test_a_draw_is_one_hot_and_by_inversion(u, classes):
    running = torch.rand(1, classes, dtype=DOUBLE).cumsum(-1)
    hot = draw_one_hot(running.diff(prepend=torch.zeros(1, 1, dtype=DOUBLE)), double(u))
    expected = min(int((running <= u * running[0, -1]).sum()), classes - 1)
    assert hot.sum() == 1 and hot[0, expected] == 1


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("classes", [1, 2, 4, 8])
def test_few_classes_are_drawn_as_any_others(classes: int, unimix: float):
    """From the same numbers the same samples, whatever the order they are made in."""
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(50, 6, 32, classes, generator=generator, dtype=DOUBLE)
    uniform = torch.rand(50, 6, 32, generator=generator, dtype=DOUBLE)
    before = logits.clone()
    hot = draw_few(logits, uniform, unimix)
    assert torch.equal(hot, draw_one_hot(unimixed(logits, unimix), uniform))
    assert torch.equal(logits, before) and (hot.sum(-1) == 1).all() and hot.shape == logits.shape
    assert torch.equal(
        draw_few(logits[:1], torch.zeros(1, 6, 32, dtype=DOUBLE))[..., 0], torch.ones(1, 6, 32, dtype=DOUBLE)
    )


def test_a_mixture_may_be_of_one_entry():
    """ "K" alone: one number, from the component with all the weight."""
    one = Mixture(torch.tensor([0.0, 50.0, 0.0]), torch.tensor([-5.0, 3.0, 9.0]), torch.full((3,), -20.0))
    assert one.sample(temperature=1.15).item() == pytest.approx(3.0, abs=1e-4)
