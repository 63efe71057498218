"""Dreamer V2: the released code's numbers, each loss on values worked by hand, each gradient arrow."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from reverie import presets
from reverie.agents import dreamer_v2
from reverie.agents.dreamer_v2 import Config, DreamerV2, balanced_kl
from reverie.dists import OneHot, TruncatedNormal
from reverie.ops.returns import lambda_returns
from reverie.types import ActionSpace, Space

IMAGE = {"image": Space((64, 64, 3), "uint8")}


@pytest.fixture
def dreamer(small):
    return lambda action="continuous", obs="vector", **settings: small.agent(
        "dreamer_v2", obs, action, **settings
    )


def owned(optimizer):
    return sum(parameter.numel() for parameter in optimizer.parameters)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


# Sizes


def test_counts_of_control_from_pixels():
    agent = DreamerV2(IMAGE, ActionSpace(6), presets.resolve("dreamer_v2", ("dmc",)))
    assert owned(agent.model_opt) == 13_656_772
    assert count(agent.encoder) == 1_551_312 and count(agent.rssm) == 1_247_248
    assert count(agent.decoder) == 9_886_611 and count(agent.reward) == 971_601
    assert owned(agent.actor_opt) == 976_012 and owned(agent.critic_opt) == 971_601
    assert agent.encoder.embed == 1536


def test_counts_of_atari():
    agent = DreamerV2({"image": Space((64, 64, 1), "uint8")}, ActionSpace(18, (18,)))
    assert owned(agent.model_opt) == 19_975_379
    assert owned(agent.actor_opt) == 1_138_418 and owned(agent.critic_opt) == 1_131_601


def test_defaults_are_the_releases_for_atari():
    c = Config()
    assert (c.kl_scale, c.kl_balance, c.free_nats, c.cont_scale, c.rho) == (0.1, 0.8, 0, 5, 1)
    assert (c.model_lr, c.actor_lr, c.critic_lr, c.adam_eps, c.clip, c.decay) == (
        2e-4,
        4e-5,
        1e-4,
        1e-5,
        100,
        1e-6,
    )
    assert (c.discount, c.lambda_, c.horizon, c.entropy_scale, c.target_every) == (0.999, 0.95, 15, 1e-3, 100)
    assert c.train_every // c.action_repeat == 16  # decisions


# The actor's Gaussian


def test_the_actor_before_training(dreamer):
    agent = dreamer()
    nn.init.zeros_(agent.actor.mlp.out.weight)
    dist = agent.actor(torch.randn(4, agent.rssm.features))
    assert dist.mean.abs().max() == 0
    assert dist.std[0].tolist() == pytest.approx([1.1, 1.1])


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.1), (0.7, 0.1), (-0.99, 0.4), (0.2, 2.1)])
def test_the_cut_off_gaussian_is_scipys(mean, std):
    ours = TruncatedNormal(*(torch.full((1, 1), x, dtype=torch.float64) for x in (mean, std)))
    theirs = scipy.stats.truncnorm((-1 - mean) / std, (1 - mean) / std, mean, std)
    at = torch.linspace(-0.99, 0.99, 7, dtype=torch.float64)[:, None]
    assert ours.log_prob(at).tolist() == pytest.approx(theirs.logpdf(at[:, 0].numpy()).tolist())
    assert ours.entropy().item() == pytest.approx(theirs.entropy(), abs=1e-9)
    many = TruncatedNormal(ours.mean.expand(40_000, 1), ours.std.expand(40_000, 1))
    sample = many.sample(torch.Generator().manual_seed(0))
    assert sample.abs().max() <= 1 - 1e-6
    assert scipy.stats.kstest(sample[:, 0].numpy(), theirs.cdf).pvalue > 0.001


def test_samples_move_with_their_mean():
    """Far from the ends they move as much; at the ends less."""
    for mean, low, high in ((0.0, 0.95, 1.05), (0.98, 0.05, 0.9)):
        m = torch.full((2_000, 1), mean, requires_grad=True)
        sample = TruncatedNormal(m, torch.full_like(m, 0.1)).sample(torch.Generator().manual_seed(0))
        (grad,) = torch.autograd.grad(sample.sum(), m)
        assert low < grad.mean() < high


# Losses


def test_returns_credit_the_states_own_reward():
    r, v = (torch.tensor(x, dtype=torch.float64) for x in ([9, 1, 2, 3, 0], [10, 20, 30, 40, 50]))
    discount = 0.99 * torch.tensor([1, 1, 0.5, 1, 1], dtype=torch.float64)
    found = lambda_returns(r.double(), v.double(), discount, 0.95)
    assert found.tolist() == pytest.approx([36.80955811, 28.51627656, 27.678125, 52.5], abs=1e-7)


def test_the_floor_is_under_the_mean():
    """KL (.2, 3), floor 1: 1.6, where a floor under each would give 2."""
    kl = torch.tensor([0.2, 3.0], dtype=torch.float64)
    assert balanced_kl(kl, kl, 0.8, 1.0).item() == pytest.approx(1.6)
    assert balanced_kl(kl, kl, 0.8, 2.0).item() == pytest.approx(2.0)


def test_the_prior_gets_four_fifths_of_the_kls_gradient():
    a, b = torch.tensor([2.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)
    dyn, rep = torch.autograd.grad(balanced_kl(a, b, 0.8, 0.0), (a, b))
    assert (dyn.item(), rep.item()) == pytest.approx((0.8, 0.2))


@pytest.mark.parametrize("rho", [0.0, 0.1, 1.0])
def test_actor_loss_by_hand(rho):
    logits = torch.zeros(2, 1, 2, dtype=torch.float64)
    policy, action = OneHot(logits, (2,)), torch.tensor([[[1.0, 0]], [[0, 1.0]]], dtype=torch.float64)
    target, baseline, weight = (
        torch.tensor(x, dtype=torch.float64)[:, None] for x in ([3, 5], [1, 6], [1, 0.5])
    )
    c = Config(rho=rho, entropy_scale=0.1)
    log_half, entropy = np.log(0.5), np.log(2)
    parts = [rho * log_half * gap + (1 - rho) * v + 0.1 * entropy for gap, v in ((2, 3), (-1, 5))]
    expected = -(parts[0] + 0.5 * parts[1]) / 2
    assert dreamer_v2.actor_loss(policy, action, target, baseline, weight, c).item() == pytest.approx(
        expected
    )


class Watch:
    """What each loss of an update was given, and which modules its gradient would move."""

    def __init__(self, monkeypatch, agent, batch):
        self.calls, self.moved = {}, {}
        for name in ("actor_loss", "critic_loss"):
            monkeypatch.setattr(dreamer_v2, name, self.remember(agent, name, getattr(dreamer_v2, name)))
        self.metrics = agent.update(batch)

    def remember(self, agent, name, function):
        def called(*arguments):
            loss = function(*arguments)
            named = [(n, p) for n, p in agent.modules.named_parameters() if p.requires_grad]
            grads = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
            hit = [n for (n, _), g in zip(named, grads, strict=True) if g is not None and (g != 0).any()]
            self.calls[name], self.moved[name] = arguments, {n.split(".")[0] for n in hit}
            return loss

        return called


@pytest.mark.parametrize("rho", [0.0, 1.0])
@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_gradient_arrows(dreamer, small, monkeypatch, action, rho):
    """REINFORCE reaches the actor alone; the dynamics are passed through, and moved by neither loss."""
    agent = dreamer(action, rho=rho)
    watch = Watch(monkeypatch, agent, small.batch("vector", action))
    assert watch.moved["critic_loss"] == {"critic"}
    if rho == 1:
        assert watch.moved["actor_loss"] == {"actor"}
    else:
        assert {"actor", "rssm", "reward"} <= watch.moved["actor_loss"]
        assert "critic" not in watch.moved["actor_loss"]
    owners = [p for opt in (agent.model_opt, agent.actor_opt, agent.critic_opt) for p in opt.parameters]
    assert len({id(p) for p in owners}) == len(owners)
    assert {id(p) for p in owners} == {id(p) for p in agent.modules.parameters() if p.requires_grad}


def test_the_first_target_and_the_last_states_are_not_the_actors(dreamer, small, monkeypatch):
    agent = dreamer(horizon=5)
    watch = Watch(monkeypatch, agent, small.batch("vector"))
    _, action, target, baseline, weight, _ = watch.calls["actor_loss"]
    assert len(action) == len(target) == len(baseline) == len(weight) == 4
    value, all_targets, all_weights = watch.calls["critic_loss"]
    assert len(value) == len(all_targets) == len(all_weights) == 5
    torch.testing.assert_close(target, all_targets[1:])
    assert (all_weights[0] == 1).all()


def test_a_dream_from_an_end_counts_at_its_start_alone(dreamer, small, monkeypatch):
    agent, batch = dreamer(), small.batch("vector", terminal=True)
    watch = Watch(monkeypatch, agent, batch)
    weight, ended = watch.calls["critic_loss"][2], batch.is_terminal.flatten()
    assert (weight[1:, ended] == 0).all() and (weight[1:, ~ended] > 0).all()


def test_the_target_critic_is_a_copy_taken_every_so_often(dreamer, small):
    agent = dreamer(target_every=3)
    same = lambda: (
        not small.differing(dict(agent.critic.state_dict()), dict(agent.target_critic.state_dict()))
    )
    copies = []
    for seed in range(7):
        agent.update(small.batch("vector", seed=seed))
        copies.append(same())
    assert copies == [True, False, False, True, False, False, True]
