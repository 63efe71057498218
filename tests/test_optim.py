"""Who is moved, by how much, and that a bad step moves nobody."""

import math

import pytest
import torch
from torch import nn

from reverie.optim import Follow, LaProp, Optimizer, RMSProp, step
from reverie.types import NotFinite


def one(value=1.0, **settings):
    """A single parameter and its optimiser."""
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, value)
    settings = {"lr": 6e-4, "eps": 1e-7, "clip": 100.0} | settings
    return module.weight, Optimizer({"module": module}, **settings)


def take(optimizer, weight, slope):
    before = weight.item()
    step(optimizer.gradient((slope * weight).sum()))
    return before - weight.item()


@pytest.mark.parametrize(("eps", "expected"), [(1e-4, 5.45e-5), (1e-7, 5.94e-4), (1e-8, 5.994e-4)])
def test_first_step_for_a_small_gradient(eps, expected):
    weight, optimizer = one(eps=eps)
    moved = take(optimizer, weight, 1e-5)
    assert moved == pytest.approx(expected, rel=1e-3)
    assert moved == pytest.approx(6e-4 * 1e-5 / (1e-5 + eps), rel=1e-6)


@pytest.mark.parametrize("slope", [1e-3, 1.0, 50.0, -1e4])
def test_first_step_of_a_large_gradient_is_the_learning_rate(slope):
    weight, optimizer = one()
    assert take(optimizer, weight, slope) == pytest.approx(math.copysign(6e-4, slope), rel=1e-3)


@pytest.mark.parametrize(("t", "ours"), [(1, 3.16e-3), (10, 1.00e-3), (100, 3.24e-4), (1000, 1.26e-4)])
def test_epsilon_after_the_bias_correction(t, ours):
    """For a constant gradient g every step is lr g / (|g| + eps). The other form, where epsilon meets the
    uncorrected moment, would be our form with eps / sqrt(1 - 0.999^t)."""
    assert 1e-4 / math.sqrt(1 - 0.999**t) == pytest.approx(ours, rel=5e-3)
    weight, optimizer = one(eps=1e-4)
    for _ in range(min(t, 100)):
        moved = take(optimizer, weight, 1e-4)
        assert moved == pytest.approx(6e-4 * 0.5, rel=1e-6)


def test_steps_are_adams_from_the_textbook():
    weight, optimizer = one(eps=1e-5, lr=1e-2)
    m = v = 0.0
    expected = weight.item()
    for t, slope in enumerate([1.0, -3.0, 0.5, 2.0], 1):
        take(optimizer, weight, slope)
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        expected -= 1e-2 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-5)
        assert weight.item() == pytest.approx(expected, abs=1e-12)


def two_parts():
    first, second = nn.Linear(3, 2), nn.Linear(2, 1)
    settings = dict(lr=0.1, eps=1e-8, clip=1e9)
    return (
        first,
        second,
        Optimizer({"first": first}, **settings),
        Optimizer({"second": second}, **settings),
    )


def snapshot(*modules):
    return [p.detach().clone() for module in modules for p in module.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_loss_passes_through_a_module_without_moving_it():
    first, second, first_opt, _ = two_parts()
    before, passed = snapshot(first), snapshot(second)
    step(first_opt.gradient(second(first(torch.randn(4, 3))).sum()))
    assert not same(before, snapshot(first))
    assert same(passed, snapshot(second))
    assert all(p.grad is None for module in (first, second) for p in module.parameters())
    assert all(p.requires_grad for p in second.parameters())


def test_all_gradients_are_taken_before_any_step():
    """Two optimisers on one graph: the second gradient is taken at the parameters before the first step."""
    first, second, first_opt, second_opt = two_parts()
    x = torch.randn(4, 3)
    loss = second(first(x)).square().sum()
    expected = torch.autograd.grad(loss, list(second.parameters()), retain_graph=True)
    a = first_opt.gradient(loss, keep_graph=True)
    b = second_opt.gradient(loss)
    assert same(b.tensors, expected)
    step(a, b)


def test_parameters_the_loss_does_not_reach_have_zero_gradient():
    first, second, *_ = two_parts()
    optimizer = Optimizer({"first": first, "second": second}, 0.1, 1e-8, 1e9)
    before = snapshot(second)
    gradient = optimizer.gradient(first(torch.randn(4, 3)).sum())
    assert optimizer.names == ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert all((t == 0).all() for t in gradient.tensors[2:])
    step(gradient)
    assert same(before, snapshot(second))


@pytest.mark.parametrize("clip", [0.5, 5.0, 50.0])
def test_clipping_is_by_the_global_norm(clip):
    module = nn.Linear(2, 1).double()
    optimizer = Optimizer({"module": module}, 0.1, 1.0, clip)
    gradient = optimizer.gradient((module.weight * torch.tensor([[6.0, 0.0]])).sum() + 8 * module.bias.sum())
    assert gradient.norm.item() == pytest.approx(10)  # of (6, 0, 8)
    before = snapshot(module)
    step(gradient)
    moved = [b - a for a, b in zip(snapshot(module), before, strict=True)]
    scale = min(1.0, clip / 10)
    # Adam's first step is lr g / (|g| + eps), here with eps 1: it shows the size of g.
    for part, slope in zip((moved[0][0, 0], moved[1][0]), (6 * scale, 8 * scale), strict=True):
        assert part.item() == pytest.approx(0.1 * slope / (slope + 1), rel=1e-5)


def untouched(optimizer: Optimizer) -> bool:
    return all(not tensor.any() for own in optimizer.state_dict().values() for tensor in own.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_moves_nobody(bad):
    first, second, first_opt, second_opt = two_parts()
    before = snapshot(first, second)
    good = first_opt.gradient(first(torch.ones(1, 3)).sum())
    broken = second_opt.gradient((second.bias * bad).sum())
    with pytest.raises(NotFinite, match=r"second\.bias"):
        step(good, broken)
    assert same(before, snapshot(first, second))
    assert untouched(first_opt) and untouched(second_opt)


def test_an_overflowing_norm_is_a_bad_gradient():
    first, _, first_opt, _ = two_parts()
    before = snapshot(first)
    with pytest.raises(NotFinite, match="norm overflows"):
        step(first_opt.gradient(1e30 * first(torch.ones(1, 3)).sum()))
    assert same(before, snapshot(first))


def test_going_on_from_a_saved_state():
    weight, optimizer = one(lr=0.1)
    for slope in (1.0, -2.0, 0.3):
        take(optimizer, weight, slope)
    state = {name: {k: v.clone() for k, v in entry.items()} for name, entry in optimizer.state_dict().items()}
    assert list(state) == ["module.weight"]
    again, resumed = one(weight.item(), lr=0.1)
    resumed.load_state_dict(state)
    for slope in (0.7, 5.0):
        assert take(optimizer, weight, slope) == take(resumed, again, slope)
    assert torch.equal(weight, again)


def test_a_loaded_state_is_a_copy():
    weight, optimizer = one()
    take(optimizer, weight, 1.0)
    _, other = one()
    other.load_state_dict(optimizer.state_dict())
    moment = other.state_dict()["module.weight"]["exp_avg"].clone()
    take(optimizer, weight, 5.0)
    assert torch.equal(moment, other.state_dict()["module.weight"]["exp_avg"])


def test_loading_nothing_forgets():
    weight, optimizer = one()
    take(optimizer, weight, 1.0)
    optimizer.load_state_dict({})
    assert untouched(optimizer)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(eps=1e-5, inside=False), (0.006993, -0.007000)),  # PyTorch's form
        (dict(eps=0.1, inside=True), (0.000221, -0.003742)),  # TensorFlow's, and the papers'
    ],
)
def test_first_step_of_rmsprop(settings, expected):
    module = nn.Linear(2, 1, bias=False).double()
    before = module.weight.detach().clone()
    optimizer = RMSProp({"module": module}, 7e-4, **settings)
    step(optimizer.gradient((module.weight * torch.tensor([0.1, -2.0])).sum()))
    moved = (before - module.weight.detach())[0]
    assert moved.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("clip", [math.inf, 0.5])
def test_steps_are_those_of_pytorchs_rmsprop(clip):
    ours, theirs = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    theirs.load_state_dict(ours.state_dict())
    optimizer = RMSProp({"net": ours}, 1e-2, 1e-5, clip, inside=False)
    peer = torch.optim.RMSprop(theirs.parameters(), 1e-2, 0.99, 1e-5)
    for k in range(5):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        step(optimizer.gradient(ours(x).square().sum()))
        peer.zero_grad()
        theirs(x).square().sum().backward()
        if clip < math.inf:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        peer.step()
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-9, atol=1e-12)
    state = optimizer.state_dict()
    other = RMSProp({"net": ours}, 1e-2, 1e-5)
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(other.squares, optimizer.squares, strict=True))


def test_decay_is_torchs_l2():
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer = Optimizer({"net": ours}, lr=1e-2, eps=1e-8, decay=0.1)
    peer = torch.optim.Adam(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        x = torch.randn(4, 3)
        step(optimizer.gradient(ours(x).square().sum()))
        peer.zero_grad()
        theirs(x).square().sum().backward()
        peer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_slow_copy_follows():
    """slow <- slow + rate (fast - slow), and the fast one stays."""
    a, b, slow_a, slow_b = (nn.Linear(2, 2) for _ in range(4))
    was, fast = slow_a.weight.clone(), a.weight.clone()
    Follow({slow_a: a, slow_b: b}, 0.25)()
    torch.testing.assert_close(slow_a.weight, 0.75 * was + 0.25 * fast)
    assert torch.equal(a.weight, fast)
    Follow({slow_b: b}, 1.0)()
    assert torch.equal(slow_b.bias, b.bias)


# LaProp with adaptive clipping


def laprop(value=1.0, **settings):
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, value)
    return module.weight, LaProp({"module": module}, **{"lr": 1.0, "warmup": 0, "clip": 1e9} | settings)


def test_laprop_by_hand():
    """Normalised first and averaged then; Adam takes other steps on the same slopes."""
    weight, optimizer = laprop()
    assert [take(optimizer, weight, slope) for slope in (1.0, -2.0, 4.0)] == pytest.approx(
        [1.0, -0.19195857, 0.43655674], abs=1e-7
    )
    weight, optimizer = one(lr=1.0, eps=1e-20, clip=1e9)
    assert [take(optimizer, weight, slope) for slope in (1.0, -2.0, 4.0)] == pytest.approx(
        [1.0, -0.36610352, 0.41965562], abs=1e-7
    )


@pytest.mark.parametrize(("size", "slope", "factor"), [(2.0, 10.0, 0.06), (0.0, 1.0, 3e-4), (2.0, 0.5, 1.0)])
def test_a_gradient_is_clipped_to_its_parameters_size(size, slope, factor):
    """Seen in the second moment, which a step cannot hide."""
    weight, optimizer = laprop(size, clip=0.3)
    take(optimizer, weight, slope)
    assert optimizer.square.item() == pytest.approx(1e-3 * (factor * slope) ** 2, rel=1e-9)


def test_clipping_is_of_whole_tensors_each_by_itself():
    module = nn.Linear(2, 1).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[2.0, 0.0]]))
        module.bias.fill_(2.0)
    optimizer = LaProp({"m": module}, lr=0.1, warmup=0, clip=0.3)
    loss = (module.weight * torch.tensor([6.0, 8.0])).sum() + 0.5 * module.bias.sum()
    step(optimizer.gradient(loss))
    expected = [1e-3 * (0.06 * 6) ** 2, 1e-3 * (0.06 * 8) ** 2, 1e-3 * 0.25]
    assert optimizer.square.tolist() == pytest.approx(expected)


def test_the_learning_rate_warms_up_from_nothing():
    weight, optimizer = laprop(lr=0.1, warmup=4)
    moved = [take(optimizer, weight, 1.0) for _ in range(6)]
    assert moved == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1])


def test_laprop_goes_on_from_a_saved_state():
    (a, first), (b, second) = laprop(lr=0.1), laprop(lr=0.1)
    for slope in (1.0, -3.0):
        take(first, a, slope)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        b.copy_(a)
    before = first.mean.clone()
    take(second, b, 2.0)
    assert torch.equal(first.mean, before)  # a copy
    take(first, a, 2.0)
    assert torch.equal(a, b) and first.steps == second.steps == 3


def test_a_bad_gradient_does_not_move_laprop():
    weight, optimizer = laprop()
    with pytest.raises(NotFinite, match=r"module\.weight"):
        step(optimizer.gradient((float("nan") * weight).sum()))
    assert weight.item() == 1.0 and optimizer.steps == 0


def test_shrinking_takes_a_share_of_every_parameter():
    weight, optimizer = one(2.0, shrink=1e-3, lr=1e-9)
    assert take(optimizer, weight, 1.0) == pytest.approx(2e-3, rel=1e-5)
