"""World Models against the numbers of its sheet: sizes, likelihoods, temperature, alignment, evolution."""

import math

import numpy as np
import pytest
import torch

from reverie import presets
from reverie.agents.world_models import (
    VM,
    Config,
    Controller,
    Evolution,
    Habit,
    Latents,
    M,
    Memory,
    Prediction,
    V,
    WorldModels,
    brownian,
    cauchy,
    held,
    m_loss,
    v_loss,
)
from reverie.dists import Bernoulli, Mixture
from reverie.nets import LSTM
from reverie.types import ActionSpace, ReverieError, Space, World

IMAGE = {"image": Space((64, 64, 3), "uint8")}


def count(module):
    return sum(p.numel() for p in module.parameters())


# Sizes (sheet 2, 3, 4.1)


@pytest.mark.parametrize(
    ("names", "actions", "v", "encoder", "m", "c"),
    [
        ([], 3, 4_348_547, 755_744, 422_368, 867),
        (["z"], 3, 4_348_547, 755_744, 422_368, 99),
        (["z_hidden"], 3, 4_348_547, 755_744, 422_368, 1_443),
        (["take_cover"], 1, 4_446_915, 821_344, 1_678_785, 1_088),
    ],
)
def test_parameter_counts_are_the_papers(names, actions, v, encoder, m, c):
    agent = WorldModels(IMAGE, ActionSpace(actions), presets.resolve("world_models", names))
    assert count(agent.v) == v
    assert count(agent.v.encoder) + count(agent.v.mean) + count(agent.v.log_variance) == encoder
    assert count(agent.m) == m
    assert agent.controller.size == len(agent.theta) == c


def test_the_layers_of_v_and_m():
    v = V((64, 64, 3), 32, 32)
    sizes = [sum(p.numel() for p in conv.parameters()) for conv in v.encoder.convs]
    assert sizes == [1_568, 32_832, 131_200, 524_544]
    assert count(v.decoder.dense) == 33_792
    assert [count(layer) for layer in (v.decoder.first, *v.decoder.deconvs)] == [
        3_276_928,
        204_864,
        73_760,
        3_459,
    ]
    m = M(64, 1, 512, 5, restart=True, rewards=False)
    assert (count(m.lstm), count(m.out)) == (1_185_792, 492_993)


# M: the mixture (10.2, 10.4), the cell (10.5), alignment (10.6), restarts (10.7), the learning rate (10.9)

RAW = torch.tensor([0, 1, -1, 0.5, 0], dtype=torch.float64)
MEAN = torch.tensor([-2, -1, 0, 1, 2], dtype=torch.float64)
LOG_STD = torch.tensor([0, -0.5, 0.5, -1, 0.3], dtype=torch.float64)


def test_mixture_likelihood():
    y = torch.tensor([0, 1, -1.5, 10, 100], dtype=torch.float64)
    mixture = Mixture(*(part.expand(5, 5) for part in (RAW, MEAN, LOG_STD)))
    expected = [2.201198, 1.165919, 1.380186, 20.565044, 1843.723445]
    np.testing.assert_allclose(mixture.loss(y), expected, atol=1e-6)
    zeros = torch.zeros(3, 5, dtype=torch.float64)
    flat = Mixture(zeros, zeros, zeros).loss(torch.tensor([0, 1, 2], dtype=torch.float64))
    np.testing.assert_allclose(flat, [0.918939, 1.418939, 2.918939], atol=1e-6)


@pytest.mark.parametrize(
    ("tau", "mean", "variance"),
    [(0.5, -0.381516, 1.589803), (1.0, -0.158809, 2.560163), (1.15, -0.132487, 2.775668)],
)
def test_temperature(tau, mean, variance):
    n = 1_000_000
    mixture = Mixture(*(part.float().expand(n, 5) for part in (RAW, MEAN, LOG_STD)))
    z = mixture.sample(torch.Generator().manual_seed(0), tau).double()
    assert z.mean().item() == pytest.approx(mean, abs=0.01)
    assert z.var().item() == pytest.approx(variance, abs=0.01)


def test_a_cold_mixture_is_the_mean_of_its_likeliest_component():
    mixture = Mixture(RAW.expand(100, 5), MEAN.expand(100, 5), LOG_STD.expand(100, 5))
    z = mixture.sample(torch.Generator().manual_seed(0), 1e-6)
    assert (z + 1).abs().max() < 0.01


def test_the_cell_by_hand():
    cell = LSTM(1, 1).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        h, c = cell.step(*torch.tensor([[[0.0]], [[0.0]], [[1.0]]], dtype=torch.float64))
        assert c.item() == pytest.approx(0.731059, abs=1e-6)
        assert h.item() == pytest.approx(0.311856, abs=1e-6)
        cell.kernel.copy_(torch.tensor([[0.1], [0.2], [0.3], [0.4]]))
        cell.recurrent.copy_(torch.tensor([[0.5], [-0.5], [0.25], [-0.25]]))
        cell.bias.copy_(torch.tensor([0.01, 0.02, 0.03, 0.04]))
        h, c = cell.step(*torch.tensor([[[0.7]], [[0.2]], [[-0.3]]], dtype=torch.float64))
        assert (c.item(), h.item()) == pytest.approx((-0.202591, -0.113341), abs=1e-6)
        h, c = cell.step(torch.tensor([[-0.4]], dtype=torch.float64), h, c)
        assert (c.item(), h.item()) == pytest.approx((-0.144858, -0.068632), abs=1e-6)


class Recorder(torch.nn.Module):
    """In place of the LSTM: keeps what it is given."""

    def forward(self, x, h, c, keep):
        self.x, self.keep = x, keep
        return x.new_zeros(*x.shape[:2], 2), (h, c)


def rows_of(z, action, first=None, reward=None):
    """Latents without noise, one stream."""
    time = len(z)
    zeros = torch.zeros(time, 1)
    stats = torch.stack([z[:, None, None].float(), torch.full((time, 1, 1), -60.0)], 2)
    column = lambda part: zeros if part is None else part[:, None]
    return Latents(stats, action[:, None, None].float(), column(first), column(reward))


def test_alignment_of_latents_and_actions():
    m = M(1, 1, 2, 5, restart=False, rewards=False)
    m.lstm = Recorder()
    seen = []
    m.predict = lambda h: Prediction(Keeps(seen), None, None)
    rows = rows_of(torch.arange(6), 100 + torch.arange(6))
    m_loss(m, rows, blank(2), Config(latents=1, units=2), torch.Generator())
    assert m.lstm.x[:, 0].round().tolist() == [[0, 100], [1, 101], [2, 102], [3, 103], [4, 104]]
    assert seen[0].flatten().round().tolist() == [1, 2, 3, 4, 5]


class Keeps(Mixture):
    """Keeps its target, and costs nothing."""

    def __init__(self, seen):
        self.seen = seen

    def loss(self, target):
        self.seen.append(target)
        return target * 0


def test_restart_loss_counts_an_end_tenfold():
    logit = torch.tensor([-4, -4, 0, 2, 2], dtype=torch.float64)
    target = torch.tensor([0, 1, 1, 1, 0], dtype=torch.float64)
    plain = Bernoulli(logit).loss(target)
    np.testing.assert_allclose(plain, [0.018150, 4.018150, 0.693147, 0.126928, 2.126928], atol=1e-6)
    weighted = (1 + 9 * target) * plain
    np.testing.assert_allclose(weighted, [0.018150, 40.181499, 6.931472, 1.269280, 2.126928], atol=1e-5)
    # The same in the loss itself: one row that begins an episode, one that does not.
    m = M(1, 1, 2, 5, restart=True, rewards=False)
    torch.nn.init.zeros_(m.out.weight)
    with torch.no_grad():
        m.out.bias.zero_()
        m.out.bias[0] = 2.0
    rows = rows_of(torch.zeros(3), torch.zeros(3), first=torch.tensor([0.0, 1.0, 0.0]))
    losses, _, _ = m_loss(m, rows, blank(2), Config(latents=1, units=2, restart=True), torch.Generator())
    assert losses["restart"].item() == pytest.approx((1.269280 + 2.126928) / 2, abs=1e-5)
    assert losses["z"].item() == pytest.approx(0.918939, abs=1e-5)


def blank(units, n=1):
    return Memory(torch.zeros(n, units), torch.zeros(n, units))


def test_without_restarts_the_first_row_of_an_episode_is_no_target():
    m = M(1, 1, 2, 5, restart=False, rewards=False)
    torch.nn.init.zeros_(m.out.weight)
    rows = rows_of(torch.tensor([0.0, 50.0, 0.0]), torch.zeros(3), first=torch.tensor([0.0, 1.0, 0.0]))
    losses, *_ = m_loss(m, rows, blank(2), Config(latents=1, units=2), torch.Generator())
    assert losses["z"].item() == pytest.approx(0.918939, abs=1e-5)  # 50 would cost 1,250


def test_a_row_that_begins_an_episode_meets_an_empty_memory():
    torch.manual_seed(0)
    m = M(2, 1, 4, 5, restart=True, rewards=False)
    stats, action = torch.randn(6, 1, 2, 2), torch.rand(6, 1, 1)
    first = torch.zeros(6, 1)
    first[3] = 1
    rows = Latents(stats, action, first, torch.zeros(6, 1))
    carried = Memory(torch.randn(1, 4), torch.randn(1, 4))
    run = lambda rows, memory: m_loss(
        m, rows, memory, Config(latents=2, units=4, restart=True), torch.Generator().manual_seed(0)
    )[2]
    a, b = run(rows, carried), run(rows, blank(4))
    assert torch.equal(a.h, b.h)  # what was before row 3 is forgotten
    first[3] = 0
    assert not torch.equal(run(rows, carried).h, run(rows, blank(4)).h)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.001), (1_000, 0.000990), (6_100, 0.000941), (12_200, 0.000886), (24_400, 0.000786)],
)
def test_learning_rate_of_take_cover(step, rate):
    agent = WorldModels(IMAGE, ActionSpace(1), presets.resolve("world_models", ["take_cover", "debug"]))
    agent.counts["m"] = step
    agent.m_gradient(
        Latents(torch.randn(3, 2, 2, 4), torch.rand(3, 2, 1), torch.zeros(3, 2), torch.zeros(3, 2)),
        agent.blank(2),
    )
    assert agent.m_opt.lr == pytest.approx(rate, abs=5e-7)


def test_m_clips_each_entry_of_its_gradient():
    agent = WorldModels(IMAGE, ActionSpace(1), presets.resolve("world_models", ["debug"]))
    assert agent.m_opt.clip_value == 1.0
    assert agent.m_opt.clip == math.inf
    gradient = agent.m_opt.gradient((agent.m.out.bias - 5).square().sum())
    agent.m_opt.move(gradient)
    assert max(g.abs().max() for g in gradient.tensors) == 1.0


# V (10.3)


def test_v_loss_tolerates_half_a_nat_a_latent():
    mean, log_variance = torch.zeros(3, 32), torch.zeros(3, 32)
    mean[1], mean[2, :4], log_variance[2, :4] = 1.0, 2.0, -2.0
    v = Told(mean, log_variance)
    image = torch.full((3, 64, 64, 3), 0.5)
    losses, metrics = v_loss(v, image, Config(), torch.Generator())
    assert losses["reconstruction"].item() == pytest.approx(122.88, abs=1e-3)
    assert losses["kl"].item() == pytest.approx(16.0)
    assert metrics["v/kl"].item() == pytest.approx((0 + 16 + 10.270671) / 3, abs=1e-5)


def test_below_the_tolerance_the_kl_sends_no_gradient():
    mean = torch.zeros(2, 32)
    mean[1] = 1.5  # 36 nats
    mean.requires_grad_()
    losses, _ = v_loss(Told(mean, torch.zeros(2, 32)), torch.zeros(2, 64, 64, 3), Config(), torch.Generator())
    (gradient,) = torch.autograd.grad(losses["kl"], mean)
    assert not gradient[0].any()
    assert (gradient[1] != 0).all()


class Told(V):
    """A V that answers what it is told to; its picture is 0.6 everywhere."""

    def __init__(self, mean, log_variance):
        torch.nn.Module.__init__(self)
        self.stats = mean, log_variance

    def encode(self, image):
        return self.stats

    def decode(self, z):
        return torch.full((len(z), 64, 64, 3), 0.6) + 0 * z.sum()


# C (10.8, 10.10)


def test_a_controllers_numbers_are_biases_then_weights():
    controller = Controller(2, 3)
    theta = torch.arange(9.0)  # biases 0 1 2, weights 3 4 5 / 6 7 8
    out = controller(torch.tensor([[1.0, 10.0]]), theta)
    assert out.tolist() == [[0 + 3 + 60, 1 + 4 + 70, 2 + 5 + 80]]


@pytest.mark.parametrize(("hidden", "bias"), [(0, True), (0, False), (5, True)])
def test_each_row_may_be_another_individual(hidden, bias):
    controller = Controller(4, 2, hidden, bias)
    features, thetas = torch.randn(3, 4), torch.randn(3, controller.size)
    together = controller(features, thetas)
    for i in range(3):
        torch.testing.assert_close(together[i], controller(features[i : i + 1], thetas[i])[0])


def test_car_actions_are_squashed_as_in_the_paper():
    agent = WorldModels(
        IMAGE, ActionSpace(3), presets.resolve("world_models", ["debug"], {"one_sided": (2,)})
    )
    raw = torch.tensor([[0, 0, 0], [1, 1, 1], [-1, -2, -0.5], [0.3, -0.3, 2]])
    action = agent.action(raw)
    executed = torch.stack(
        [action[:, 0], (action[:, 1] + 1) / 2, (action[:, 2] + 1) / 2], 1
    )  # the adapter's scaling
    expected = [
        [0, 0.5, 0],
        [0.761594, 0.880797, 0.761594],
        [-0.761594, 0.017986, 0],
        [0.291313, 0.354344, 0.964028],
    ]
    np.testing.assert_allclose(executed, expected, atol=1e-6)


def test_evolution_minimises_the_shifted_sphere():
    evolution, best = Evolution(10, 64, 0.5, seed=1), np.inf
    for _ in range(200):
        x = evolution.ask().astype(np.float64)
        costs = ((x - 1) ** 2).sum(1)
        evolution.tell(-costs)
        best = min(best, costs.min())
        if best < 1e-10:
            break
    assert best < 1e-10


def test_the_step_size_is_cumulated_not_tried_out():
    """pycma's own choice at this size would give 0.1008 after one generation."""
    evolution = Evolution(867, 64, 0.1, seed=1)
    evolution.tell(-((evolution.ask() - 1) ** 2).sum(1))
    assert evolution.sigma == pytest.approx(0.0983, abs=1e-4)


def test_evolution_told_its_history_is_where_it_was():
    a, b = Evolution(20, 8, 0.1, seed=3), Evolution(20, 8, 0.1, seed=3)
    history = []
    for _ in range(4):
        history.append(-((a.ask() - 1) ** 2).sum(1))
        a.tell(history[-1])
    for returns in history:
        b.tell(returns)
    assert np.array_equal(a.ask(), b.ask())
    assert np.array_equal(a.ask(), a.ask())
    assert not np.array_equal(Evolution(20, 8, 0.1, seed=4).ask(), Evolution(20, 8, 0.1, seed=3).ask())


# Acting at random


def habit(n=1, size=1, latents=32):
    zeros = lambda *shape: torch.zeros(n, *shape)
    ones = torch.ones(n, dtype=torch.long)
    return Habit(zeros(size), zeros(size), zeros(size, latents), ones, ones * 0)


def test_held_actions_change_at_multiples_of_their_hold():
    generator, state, first = torch.Generator().manual_seed(0), habit(200), torch.ones(200, dtype=torch.bool)
    actions, holds = [], []
    for _ in range(60):
        action, state = held(state, first, generator)
        actions.append(action[:, 0])
        holds.append(state.hold)
        first = torch.zeros_like(first)
    actions, holds = torch.stack(actions), torch.stack(holds)
    assert holds.min() == 1 and holds.max() == 10
    changed = actions[1:] != actions[:-1]
    frames = torch.arange(1, 60)[:, None]
    assert torch.equal(changed, frames % holds[:-1] == 0)
    assert actions.abs().max() <= 1


def test_cauchy_scales_are_heavy_tailed_and_last_an_episode():
    """Quantiles of the per-episode noise before the tanh (sheet 1.1): 0.032, 0.171, 0.985 at 10, 50, 90 %."""
    generator, n = torch.Generator().manual_seed(0), 4_000
    _, state = cauchy(habit(n), torch.ones(n, dtype=torch.bool), generator)
    spread = state.weight.norm(dim=-1).flatten()
    found = torch.quantile(spread, torch.tensor([0.1, 0.5, 0.9]))
    np.testing.assert_allclose(found, [0.032, 0.171, 0.985], rtol=0.15)
    _, later = cauchy(state, torch.zeros(n, dtype=torch.bool), generator)
    assert torch.equal(later.weight, state.weight) and torch.equal(later.bias, state.bias)


def test_brownian_walks_in_small_steps():
    generator, n = torch.Generator().manual_seed(0), 4_000
    first, state = brownian(habit(n), torch.ones(n, dtype=torch.bool), generator)
    assert first.abs().max() <= 1 and first.std() == pytest.approx(1 / math.sqrt(3), rel=0.05)
    calm = state._replace(action=torch.zeros_like(first))
    second, _ = brownian(calm, torch.zeros(n, dtype=torch.bool), generator)
    assert second.std().item() == pytest.approx(math.sqrt(1 / 50), rel=0.05)


# The world


def small(**overrides):
    return WorldModels(
        IMAGE,
        ActionSpace(1),
        presets.resolve("world_models", ["debug"], {"restart": True, **overrides}),
        seed=1,
    )


def test_v_and_m_are_a_world():
    assert isinstance(small().world, World)


def test_a_dreams_memory_is_what_acting_remembers():
    """Imagined from the same z and actions, M's memory is the one that watching would have."""
    agent = small(sample_z=False)
    world = agent.world
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    yes, no, action = torch.tensor([True]), torch.tensor([False]), torch.tensor([[0.3]])
    start = world.observe({"image": image}, torch.zeros(1, 1), yes, world.initial(1))
    assert not start.h.any() and start.first.item() == 1
    watched = world.observe({"image": image}, action, no, start)
    imagined = world.imagine(start, action)
    torch.testing.assert_close(watched.h, imagined.h)
    torch.testing.assert_close(watched.c, imagined.c)
    assert watched.first.item() == imagined.first.item() == 0


def test_a_dream_of_rounded_products_is_nearly_the_same_dream():
    exact, coarse = small(), small(dream_dtype="bfloat16")
    action, (z, h, c) = torch.zeros(64, 1), torch.randn(3, 64, 8)
    carry = exact.belief(64)._replace(z=z[:, :4], h=h, c=c)
    worlds = [VM(agent, torch.Generator().manual_seed(0), 1.0) for agent in (exact, coarse)]
    one, other = (world.imagine(carry, action) for world in worlds)
    assert not torch.equal(one.h, other.h) and one.h.dtype == other.h.dtype == other.z.dtype == torch.float32
    torch.testing.assert_close(one.c, other.c, atol=0.03, rtol=0.03)
    assert all(p.dtype == torch.float32 for p in coarse.m.parameters())  # what is learned stays as it is


def test_a_dream_ends_where_the_restart_logit_is_positive_and_pays_one_a_step():
    agent = small(rewards=False)
    world = VM(agent, torch.Generator().manual_seed(0), 1.0)
    torch.nn.init.zeros_(agent.m.out.weight)
    for logit, ends in ((0.1, True), (-0.1, False)):
        with torch.no_grad():
            agent.m.out.bias[0] = logit
        carry = world.imagine(world.initial(2), torch.zeros(2, 1))
        assert ((world.cont(carry) < 0.5) == ends).all()
        assert world.reward(carry).tolist() == [1, 1]


def test_what_c_reads():
    agent = small(reads="zch")
    carry = agent.belief(2)._replace(z=torch.ones(2, 4), c=torch.full((2, 8), 2.0), h=torch.full((2, 8), 3.0))
    assert agent.world.features(carry)[0].tolist() == [1.0] * 4 + [2.0] * 8 + [3.0] * 8


def test_refusals_in_a_sentence():
    with pytest.raises(ReverieError, match="sees one picture"):
        WorldModels({"speed": Space((2,))}, ActionSpace(1), presets.resolve("world_models", ["debug"]))
    with pytest.raises(ReverieError, match="one_sided names action 2"):
        WorldModels(IMAGE, ActionSpace(1), Config())


# Learning


@pytest.mark.slow
def test_m_comes_near_its_floor_on_a_world_it_can_know():
    """z walks round a circle by the action: what is left to learn is where it is, to within the noise."""
    agent = WorldModels(
        IMAGE,
        ActionSpace(1),
        presets.resolve(
            "world_models", ["debug"], {"latents": 2, "units": 32, "components": 5, "rewards": False}
        ),
        seed=0,
    )
    rng, costs = np.random.default_rng(0), []
    for _ in range(600):
        action = rng.uniform(-1, 1, (40, 16, 1))
        angle = np.cumsum(np.concatenate([rng.uniform(0, 6, (1, 16)), 0.5 * action[:-1, :, 0]]), 0)
        mean = np.stack([np.cos(angle), np.sin(angle)], -1)
        stats = torch.from_numpy(np.stack([mean, np.full_like(mean, -4.0)], 2)).float()
        first = torch.zeros(40, 16)
        first[0] = 1
        rows = Latents(stats, torch.from_numpy(action).float(), first, torch.zeros(40, 16))
        metrics, _ = agent.update_m(rows, agent.blank(16))
        costs.append((float(metrics["loss/z"]), float(metrics["m/floor"])))
    cost, floor = np.mean(costs[-20:], 0)
    assert cost < floor + 0.6
    assert np.mean(costs[:5], 0)[0] > floor + 1.5
