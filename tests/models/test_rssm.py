"""The RSSM: sizes, the drawing of time, resets, and the paths that gradients take.

Noise comes from a script here, so that two ways to the same state can be compared.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reverie.dists import Normal
from reverie.models.rssm import RSSM, Gaussian, Memoryless, State
from reverie.nets import GRUCell

S, D, A, E = 4, 6, 3, 5


class Scripted(Gaussian):
    """A latent whose noise is prepared: "T B S" at once, or one "B S" after the other."""

    def __init__(self, size):
        super().__init__(size)
        self.script = []

    def noise(self, shape, like, generator):
        noise = self.script.pop(0)
        assert noise.shape == (*shape, self.size)
        return noise


def build(latent=None, cell=None, act=F.elu):
    torch.manual_seed(1)
    rssm = RSSM(E, A, latent or Scripted(S), cell or GRUCell(D, D), D, act)
    for parameter in rssm.parameters():  # the initial biases are zero and would hide their mistakes
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, -0.3, 0.3)
    return rssm


def data(batch=2, time=5, resets=()):
    """Embeddings, previous actions, flags and noise "T B S"; ``resets`` are (stream, row)."""
    generator = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    is_first = torch.zeros(batch, time, dtype=torch.bool)
    for b, t in resets:
        is_first[b, t] = True
    return draw(batch, time, E), draw(batch, time, A), is_first, draw(time, batch, S)


def observe(rssm, embed, prev_action, is_first, noise):
    rssm.latent.script = [noise]
    return rssm.observe(embed, prev_action, is_first)


def same(a, b, rows=slice(None)):
    return all(torch.equal(x[:, rows], y[:, rows]) for x, y in zip(a, b, strict=True))


def close(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


# Sizes


@pytest.mark.parametrize(
    ("actions", "img_in", "total"),
    [
        (1, 6_400, 556_920),
        (2, 6_600, 557_120),
        (4, 7_000, 557_520),
        (6, 7_400, 557_920),
        (12, 8_600, 559_120),
    ],
)
def test_counts_of_the_papers_model(actions, img_in, total):
    rssm = RSSM(1024, actions, Gaussian(30), GRUCell(200, 200), 200)
    assert count(rssm) == total
    assert count(rssm.img_in) == img_in
    assert count(rssm.cell) == 241_200
    assert count(rssm.img_hidden) == 40_200
    assert count(rssm.img_stats) == count(rssm.obs_stats) == 12_060
    assert count(rssm.obs_hidden) == 245_000
    assert rssm.features == 230


def test_shapes():
    rssm = build(Gaussian(S))
    embed, prev_action, is_first, _ = data(2, 5)
    post, prior = rssm.observe(embed, prev_action, is_first)
    assert post.deter.shape == (2, 5, D)
    assert post.stoch.shape == (2, 5, S)
    assert post.stats.shape == prior.shape == (2, 5, 2 * S)
    assert rssm.feat(post).shape == (2, 5, S + D) == (2, 5, rssm.features)
    start = post.flatten()
    assert start.deter.shape == (10, D)
    dream = rssm.imagine(start, lambda feat: torch.zeros(len(feat), A), 15)
    assert dream.feat.shape == (15, 10, S + D)
    assert dream.action.shape == (15, 10, A)
    assert dream.last.stoch.shape == (10, S)


def test_features_are_the_sample_and_then_the_deterministic_state():
    rssm = build()
    state = State(torch.ones(2, D), torch.zeros(2, S), torch.full((2, 2 * S), 9.0))
    assert torch.equal(rssm.feat(state), torch.cat([torch.zeros(2, S), torch.ones(2, D)], -1))


def test_the_start_is_zero():
    assert all((part == 0).all() and len(part) == 3 for part in build().initial(3))


def test_states_can_be_cut_flattened_and_detached():
    state = State(torch.randn(2, 3, D, requires_grad=True), torch.randn(2, 3, S), torch.randn(2, 3, 2 * S))
    assert torch.equal(state.take(1).deter, state.deter[1])
    assert torch.equal(state.take(np.s_[:, 2]).stoch, state.stoch[:, 2])
    rows = State(*(part.detach()[:, 0] for part in state))
    mixed = rows.put(torch.tensor([1]), State(torch.ones(1, D), torch.ones(1, S), torch.ones(1, 2 * S)))
    assert all((part[1] == 1).all() for part in mixed)
    assert torch.equal(mixed.stoch[0], rows.stoch[0]) and not torch.equal(mixed.stoch, rows.stoch)
    flat = state.flatten()
    assert torch.equal(flat.stats[4], state.stats[1, 1])  # streams stay together: b * T + t
    assert state.deter.requires_grad
    assert not state.detach().deter.requires_grad
    deter, *rest = state  # still a plain tuple to whoever takes it apart
    assert deter is state.deter and rest[0] is state.stoch and rest[1] is state.stats


# The latent


def test_standard_deviation_has_a_floor():
    latent = Gaussian(3)
    stats = torch.tensor([1.0, 2.0, 3.0, -100.0, 0.0, 100.0], dtype=torch.float64)
    dist = latent.dist(stats)
    assert dist.mean.tolist() == [1, 2, 3]
    assert dist.std.tolist() == pytest.approx([0.1, math.log(2) + 0.1, 100.1])
    assert latent.sample(stats, torch.ones(3, dtype=torch.float64)).tolist() == pytest.approx(
        [1.1, 2 + math.log(2) + 0.1, 103.1]
    )


def test_temperature_multiplies_the_variance():
    """World Models' sqrt(tau) on sigma: factors for tau 0.1, 0.5, 1.15 and 1.3."""
    latent, stats, noise = Gaussian(3), torch.randn(50, 6), torch.randn(50, 3)
    mean, plain = stats.chunk(2, -1)[0], latent.sample(stats, noise)
    assert torch.equal(latent.sample(stats, noise, 1.0), plain)
    for temperature, factor in ((0.1, 0.316228), (0.5, 0.707107), (1.15, 1.072381), (1.3, 1.140175)):
        torch.testing.assert_close(
            latent.sample(stats, noise, temperature) - mean, factor * (plain - mean), atol=1e-5, rtol=1e-5
        )
    still = Gaussian(3, stochastic=False)
    assert torch.equal(still.sample(stats, noise, 2.0), mean)


@pytest.mark.parametrize("cell", [GRUCell(D, D), Memoryless()])
def test_temperature_of_a_step_leaves_the_distribution_as_it_is(cell):
    rssm = build(Gaussian(S), cell)
    state, action = rssm.initial(7), torch.randn(7, A)
    one, plain, hot = (
        rssm.img_step(state, action, torch.Generator().manual_seed(3), *heat) for heat in ((), (1.0,), (9.0,))
    )
    assert all(torch.equal(a, b) for a, b in zip(one, plain, strict=True))
    assert torch.equal(plain.stats, hot.stats) and torch.equal(plain.deter, hot.deter)
    mean = plain.stats.chunk(2, -1)[0]
    torch.testing.assert_close(hot.stoch - mean, 3 * (plain.stoch - mean))


def test_numbers_before_training():
    """With zero last layers the std is ln 2 + 0.1; early logs of the released code show the same entropy."""
    latent = Gaussian(30)
    dist = latent.dist(torch.zeros(60, dtype=torch.float64))
    assert dist.std[0].item() == pytest.approx(0.79314718, abs=1e-8)
    assert dist.entropy().item() == pytest.approx(35.61576, abs=1e-5)
    assert dist.kl(dist).item() == 0
    unit = Normal(torch.zeros(30, dtype=torch.float64), torch.ones(30, dtype=torch.float64))
    assert dist.kl(unit).item() == pytest.approx(1.388631, abs=1e-6)


@pytest.mark.parametrize(("std", "shift"), [(0.79314718, 0.354706), (0.1, 0.044721)])
def test_three_nats_as_a_difference_of_means(std, shift):
    ones = torch.ones(30, dtype=torch.float64)
    assert Normal(shift * ones, std * ones).kl(Normal(0 * ones, std * ones)).item() == pytest.approx(
        3, abs=2e-4
    )


def test_samples_are_mean_and_noise_times_std_with_gradient_to_both():
    stats = torch.randn(7, 2 * S, requires_grad=True)
    noise = torch.randn(7, S)
    latent = Gaussian(S)
    dist = latent.dist(stats)
    sample = latent.sample(stats, noise)
    torch.testing.assert_close(sample, dist.mean + dist.std * noise)
    (grad,) = torch.autograd.grad(sample.sum(), stats)
    torch.testing.assert_close(grad[:, :S], torch.ones(7, S))
    torch.testing.assert_close(grad[:, S:], noise * torch.sigmoid(stats[:, S:]))


def test_noise_comes_from_the_generator():
    rssm = build(Gaussian(S))
    embed, prev_action, is_first, _ = data()
    run = lambda seed: rssm.observe(embed, prev_action, is_first, torch.Generator().manual_seed(seed))[0]
    assert same(run(0), run(0))
    assert not torch.equal(run(0).stoch, run(1).stoch)


def test_a_deterministic_latent_passes_the_mean_on():
    rssm = build(Gaussian(S, stochastic=False))
    embed, prev_action, is_first, _ = data()
    post, _ = rssm.observe(embed, prev_action, is_first)
    assert torch.equal(post.stoch, post.stats[..., :S])
    after = rssm.img_step(rssm.initial(2), prev_action[:, 0])
    assert torch.equal(after.stoch, after.stats[..., :S])


def test_a_memoryless_cell_forgets():
    """PlaNet's stochastic ablation: what comes next follows from the sample and the action alone."""
    rssm = build(cell=Memoryless())
    action, noise = torch.randn(2, A), torch.randn(2, S)
    states = [State(torch.randn(2, D), torch.ones(2, S), torch.zeros(2, 2 * S)) for _ in range(2)]
    rssm.latent.script = [noise, noise]
    assert same(rssm.img_step(states[0], action), rssm.img_step(states[1], action))


# Equations, layer by layer


def test_one_step_of_the_prior_by_hand():
    rssm = build()
    state, action, noise = (
        State(torch.randn(2, D), torch.randn(2, S), torch.zeros(2, 2 * S)),
        torch.randn(2, A),
        torch.randn(2, S),
    )
    rssm.latent.script = [noise]
    after = rssm.img_step(state, action)
    x = F.elu(rssm.img_in(torch.cat([state.stoch, action], -1)))
    deter = rssm.cell(x, state.deter)
    stats = rssm.img_stats(F.elu(rssm.img_hidden(deter)))
    stoch = stats[:, :S] + (F.softplus(stats[:, S:]) + 0.1) * noise
    close(after, State(deter, stoch, stats))


def test_one_step_of_the_posterior_by_hand():
    rssm = build(act=F.relu)
    state = State(torch.randn(2, D), torch.randn(2, S), torch.zeros(2, 2 * S))
    action, embed, noise = torch.randn(2, A), torch.randn(2, E), torch.randn(2, S)
    rssm.latent.script = [noise]
    after = rssm.obs_step(state, action, embed, torch.zeros(2, dtype=torch.bool))
    x = F.relu(rssm.img_in(torch.cat([state.stoch, action], -1)))
    deter = rssm.cell(x, state.deter)
    stats = rssm.obs_stats(F.relu(rssm.obs_hidden(torch.cat([deter, embed], -1))))
    stoch = stats[:, :S] + (F.softplus(stats[:, S:]) + 0.1) * noise
    close(after, State(deter, stoch, stats))


# Time


@pytest.mark.parametrize("resets", [(), ((0, 0), (1, 0)), ((0, 3), (1, 1), (1, 4))])
def test_observe_is_obs_step_in_a_loop(resets):
    rssm = build()
    embed, prev_action, is_first, noise = data(2, 5, resets)
    post, prior = observe(rssm, embed, prev_action, is_first, noise)
    state = rssm.initial(2)
    rssm.latent.script = list(noise)
    for t in range(5):
        state = rssm.obs_step(state, prev_action[:, t], embed[:, t], is_first[:, t])
        close(state, post.take(np.s_[:, t]))
        close([rssm.prior(state.deter)], [prior[:, t]])


@pytest.mark.parametrize("t", [0, 2, 4])
def test_a_state_knows_its_row_and_nothing_later(t):
    rssm = build()
    embed, prev_action, is_first, noise = data(2, 5)
    post, prior = observe(rssm, embed, prev_action, is_first, noise)

    later_embed, later_action = embed.clone(), prev_action.clone()
    later_embed[:, t + 1 :] += 1
    later_action[:, t + 1 :] += 1
    again, prior_again = observe(rssm, later_embed, later_action, is_first, noise)
    assert same(post, again, slice(0, t + 1))
    assert torch.equal(prior[:, : t + 1], prior_again[:, : t + 1])

    for changed in ("obs", "prev_action"):
        other_embed, other_action = embed.clone(), prev_action.clone()
        (other_embed if changed == "obs" else other_action)[:, t] += 1
        other, other_prior = observe(rssm, other_embed, other_action, is_first, noise)
        assert same(post, other, slice(0, t))
        assert not torch.equal(post.stats[:, t], other.stats[:, t])
        # The observation of a row is news to its posterior only; the action before it, to its prior too.
        told = not torch.equal(prior[:, t], other_prior[:, t])
        assert told == (changed == "prev_action")
        assert told == (not torch.equal(post.deter[:, t], other.deter[:, t]))


def test_the_prior_looks_one_step_ahead_with_the_next_rows_previous_action():
    rssm = build()
    embed, prev_action, is_first, noise = data(2, 5)
    post, prior = observe(rssm, embed, prev_action, is_first, noise)
    for t in range(4):
        rssm.latent.script = [torch.randn(2, S)]
        after = rssm.img_step(post.take(np.s_[:, t]), prev_action[:, t + 1])
        close([after.stats, after.deter], [prior[:, t + 1], post.deter[:, t + 1]])


def test_a_reset_inside_a_batch_is_a_fresh_start():
    rssm = build()
    embed, prev_action, is_first, noise = data(2, 6, [(0, 2), (1, 4)])
    post, prior = observe(rssm, embed, prev_action, is_first, noise)
    for b, t in ((0, 2), (1, 4)):
        fresh_action = torch.zeros_like(prev_action[b : b + 1, t:])
        fresh_action[:, 1:] = prev_action[b : b + 1, t + 1 :]
        arguments = embed[b : b + 1, t:], fresh_action, is_first[b : b + 1, t:], noise[t:, b : b + 1]
        alone, prior_alone = observe(rssm, *arguments)
        close(alone, post.take(np.s_[b : b + 1, t:]))
        close([prior_alone], [prior[b : b + 1, t:]])
        arguments[2][:, 0] = False  # at the start of a sequence the state is zero with or without the flag
        close(observe(rssm, *arguments)[0], alone)


def test_nothing_passes_a_reset_backwards():
    rssm = build()
    embed, prev_action, is_first, noise = data(1, 5, [(0, 3)])
    embed.requires_grad_(), prev_action.requires_grad_()
    post, prior = observe(rssm, embed, prev_action, is_first, noise)
    loss = rssm.feat(post)[:, 3:].sum() + prior[:, 3:].sum()
    d_embed, d_action = torch.autograd.grad(loss, [embed, prev_action])
    assert (d_embed[:, :3] == 0).all()
    assert (d_embed[:, 3:] != 0).any()
    assert (d_action[:, :4] == 0).all()  # the reset row's own previous action belongs to another episode
    assert (d_action[:, 4] != 0).any()


def test_a_sequence_cut_from_the_middle_still_hears_its_first_action():
    rssm = build()
    embed, prev_action, is_first, noise = data(1, 3)
    post, _ = observe(rssm, embed, prev_action, is_first, noise)
    other, _ = observe(
        rssm, embed, prev_action + torch.tensor([[[1.0]], [[0.0]], [[0.0]]]).view(1, 3, 1), is_first, noise
    )
    assert not torch.equal(post.deter[:, 0], other.deter[:, 0])


def test_streams_do_not_see_each_other():
    rssm = build()
    embed, prev_action, is_first, noise = data(3, 5, [(1, 2)])
    post, _ = observe(rssm, embed, prev_action, is_first, noise)
    embed[0] += 1
    is_first[2, 3] = True
    other, _ = observe(rssm, embed, prev_action, is_first, noise)
    assert torch.equal(post.stoch[1], other.stoch[1])


# Imagination


def test_imagination_leaves_the_start_out_and_counts_actions_from_it():
    rssm = build()
    start = State(torch.randn(3, D), torch.randn(3, S), torch.zeros(3, 2 * S))
    seen = []

    def policy(feat):
        seen.append(feat)
        return torch.full((len(feat), A), float(len(seen)))

    noises = [torch.randn(3, S) for _ in range(4)]
    rssm.latent.script = list(noises)
    dream = rssm.imagine(start, policy, 4)
    state = start
    rssm.latent.script = list(noises)
    for k in range(4):
        assert torch.equal(seen[k], rssm.feat(state))  # a_k is chosen at z_k, z_0 the start
        assert (dream.action[k] == k + 1).all()
        state = rssm.img_step(state, dream.action[k])
        assert torch.equal(dream.feat[k], rssm.feat(state))
    assert same(dream.last, state)
    assert not torch.equal(dream.feat[0], rssm.feat(start))


class Counter(RSSM):
    """s' = s + a, so that a gradient through imagination can be done by hand."""

    def __init__(self):
        nn.Module.__init__(self)

    def feat(self, state):
        return state.stoch

    def img_step(self, state, action, generator=None):
        return State(state.deter, state.stoch + action, state.stats)


@pytest.mark.parametrize(("stop", "expected"), [(True, 8.25), (False, 10.75)])
def test_the_gradient_of_a_policy_through_the_dynamics(stop, expected):
    """a = theta s, theta 0.5, s_0 = 1, J = s_1 + s_2 + s_3. Dreamer's policy does not send gradient into its
    input: credit flows through what actions do to later states, not through what later actions read."""
    theta = torch.tensor(0.5, requires_grad=True)
    one = torch.ones(1, 1)
    dream = Counter().imagine(State(one, one, one), lambda feat: theta * (feat.detach() if stop else feat), 3)
    assert dream.feat.flatten().tolist() == [1.5, 2.25, 3.375]
    (grad,) = torch.autograd.grad(dream.feat.sum(), theta)
    assert grad.item() == pytest.approx(expected)


def test_gradient_reaches_the_first_action_from_the_last_state():
    rssm = build(Gaussian(S))
    first = torch.zeros(2, A, requires_grad=True)
    actions = iter([first, *torch.zeros(4, 2, A)])
    dream = rssm.imagine(rssm.initial(2), lambda feat: next(actions), 5)
    (grad,) = torch.autograd.grad(dream.feat[-1].sum(), first)
    assert (grad != 0).any()


def test_gradients_reach_every_parameter():
    rssm = build(Gaussian(S))
    embed, prev_action, is_first, _ = data()
    post, prior = rssm.observe(embed, prev_action, is_first)
    kl = rssm.latent.dist(post.stats).kl(rssm.latent.dist(prior)).sum()
    for name, grad in zip(
        dict(rssm.named_parameters()), torch.autograd.grad(kl, list(rssm.parameters())), strict=True
    ):
        assert (grad != 0).any(), name
