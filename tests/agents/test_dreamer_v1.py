"""Dreamer V1: the released code's numbers, each loss on values worked by hand, each gradient arrow."""

import math
from functools import partial
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from reverie.agents import dreamer_v1
from reverie.agents.dreamer_v1 import Config, DreamerV1
from reverie.data.replay import Replay
from reverie.dists import OneHot, TanhNormal, UnitNormal
from reverie.envs import SerialEnvs, from_gymnasium
from reverie.logger import Logger
from reverie.models.rssm import State
from reverie.run.driver import Driver
from reverie.run.evaluate import evaluate
from reverie.run.loop import RunConfig
from reverie.run.online import Online
from reverie.types import ActionSpace, Batch, Space

IMAGE = {"image": Space((64, 64, 3), "uint8")}
KINDS = ("continuous", "discrete", "multidiscrete")
MODEL = ("encoder", "rssm", "decoder", "reward", "cont")


@pytest.fixture
def dreamer(small):
    return lambda action="continuous", obs="image", **settings: small.agent(
        "dreamer_v1", obs, action, **settings
    )


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def owned(optimizer):
    return sum(parameter.numel() for parameter in optimizer.parameters)


def parameters(agent):
    return {name: p.detach().clone() for name, p in agent.modules.named_parameters()}


def moved(agent, before):
    """The modules of which some parameter is no longer what it was."""
    return {
        name.split(".")[0] for name, p in agent.modules.named_parameters() if not torch.equal(p, before[name])
    }


# Sizes


@pytest.mark.parametrize(
    ("actions", "model", "actor"),
    [
        (1, 5_295_820, 574_402),
        (2, 5_296_020, 575_204),
        (4, 5_296_420, 576_808),
        (6, 5_296_820, 578_412),  # as printed in a public training log of the released code
        (12, 5_298_020, 583_224),
    ],
)
def test_counts_at_the_papers_size(actions, model, actor):
    agent = DreamerV1(IMAGE, ActionSpace(actions))
    assert owned(agent.model_opt) == model
    assert owned(agent.actor_opt) == actor
    assert owned(agent.critic_opt) == 413_601
    assert count(agent.encoder) == 690_144
    assert count(agent.decoder) == 3_795_555
    assert count(agent.reward) == 253_201
    assert count(agent.modules) == model + actor + 413_601


@pytest.mark.parametrize(("choices", "model", "actor"), [(9, 5_711_021, 577_209), (18, 5_712_821, 580_818)])
def test_counts_of_the_discrete_variant(choices, model, actor):
    agent = DreamerV1(IMAGE, ActionSpace(choices, (choices,)), Config(cont=True))
    assert owned(agent.model_opt) == model
    assert owned(agent.actor_opt) == actor
    assert count(agent.cont) == 413_601


def test_defaults_are_the_released_codes():
    c = Config()
    assert (c.batch_size, c.batch_length, c.train_updates, c.train_every, c.prefill) == (
        50,
        50,
        100,
        1000,
        5000,
    )
    assert (c.stoch, c.deter, c.min_std, c.depth, c.units) == (30, 200, 0.1, 32, 400)
    assert (c.reward_layers, c.critic_layers, c.cont_layers, c.actor_layers) == (2, 3, 3, 4)
    assert (c.kl_scale, c.free_nats, c.free_nats_each, c.cont_scale) == (1, 3, False, 10)
    assert (c.horizon, c.discount, c.lambda_, c.starts) == (15, 0.99, 0.95, 0)
    assert (c.init_std, c.mean_scale, c.actor_min_std, c.exploration_noise) == (5, 5, 1e-4, 0.3)
    assert (c.model_lr, c.actor_lr, c.critic_lr, c.adam_eps, c.clip) == (6e-4, 8e-5, 8e-5, 1e-7, 100)
    assert (c.action_repeat, c.steps, c.action_gradient) == (2, 5_000_000, "straight_through")


def test_every_parameter_has_one_owner():
    agent = DreamerV1(IMAGE, ActionSpace(2), Config(depth=1, deter=4, units=4, cont=True))
    owners = [p for opt in (agent.model_opt, agent.actor_opt, agent.critic_opt) for p in opt.parameters]
    assert len({id(p) for p in owners}) == len(owners)
    assert {id(p) for p in owners} == {id(p) for p in agent.modules.parameters()}


@torch.no_grad()
def test_shapes_at_the_papers_size(small):
    agent = DreamerV1(IMAGE, ActionSpace(6), Config(units=8))
    is_first = torch.zeros(50, 50, dtype=torch.bool)
    post, _ = agent.rssm.observe(torch.randn(50, 50, 1024), torch.zeros(50, 50, 6), is_first)
    start, _ = agent.imagination_starts(post, small.batch(), agent.generators["learn"])
    assert len(start.deter) == 2500
    dream = agent.rssm.imagine(start, agent.policy, agent.config.horizon, agent.generators["learn"])
    assert dream.feat.shape == (15, 2500, 230)
    discount = agent.discounts(dream)
    target = dreamer_v1.lambda_returns(agent.reward(dream.feat), agent.critic(dream.feat), discount, 0.95)
    assert target.shape == dreamer_v1.imagination_weights(discount).shape == (14, 2500)


# Schedule


class Clock:
    """A driver that only lets env steps pass, ``stride`` at a time."""

    def __init__(self, stride):
        self.env_steps, self.stride = 0, stride

    def __call__(self):
        self.env_steps += self.stride
        return []


class Silent(Logger):
    def __init__(self):
        self.sums = {}

    def add(self, metrics):
        pass

    def write(self, *_, **__):
        pass


@pytest.mark.parametrize(
    ("steps", "stride", "updates"),
    [(1_000_000, 100, 99_600), (1_000_000, 250, 99_600), (5_000_000, 500, 499_600)],
)
def test_updates_of_the_papers_schedule(small, tmp_path, steps, stride, updates):
    """The first hundred when prefilling ends at 5,000 env steps, then a hundred every 1,000."""
    agent = small.agent("dreamer_v1")
    envs = SimpleNamespace(n=1, act_space=agent.act_space)
    online = Online(agent, envs, None, None, Config(steps=steps), RunConfig(), tmp_path, Silent())
    online.driver = Clock(stride)
    bursts = []
    while online.env_steps < steps:
        online.act()
        if online.pending:
            bursts.append((online.env_steps, online.pending))
            online.pending = 0  # done
    assert bursts[:2] == [(5_000, 100), (6_000, 100)]
    assert bursts[-1] == (steps, 100)
    assert sum(due for _, due in bursts) == updates


def test_updates_of_the_model_alone_come_once_and_first(small, tmp_path):
    agent = small.agent("dreamer_v1")
    envs = SimpleNamespace(n=1, act_space=agent.act_space)
    config = Config(steps=10_000, pretrain=300)
    online = Online(agent, envs, None, None, config, RunConfig(), tmp_path, Silent())
    online.driver = Clock(100)
    while online.env_steps < 10_000:
        online.act()
    assert online.pending == 300 + 6 * 100


def test_random_choices_become_rarer(dreamer):
    """Epsilon 0.4, 0.3, 0.2, 0.1 at 0, 50k, 100k, 150k updates: how often a sure actor is overruled."""
    agent = dreamer("discrete")
    sure = OneHot(torch.tensor([[100.0, 0.0, 0.0]]).expand(20_000, 3), (3,))
    for updates, epsilon in ((0, 0.4), (50_000, 0.3), (100_000, 0.2), (150_000, 0.1), (200_000, 0.1)):
        agent.updates = updates
        action = agent.explore(sure, torch.Generator().manual_seed(0))
        assert 1 - action[:, 0].mean().item() == pytest.approx(epsilon * 2 / 3, abs=0.01)


def test_groups_are_overruled_one_by_one(dreamer):
    agent = dreamer("multidiscrete", epsilon_start=0.5, epsilon_end=0.5)
    sure = OneHot(torch.tensor([[100.0, 0, 0, 100, 0]]).expand(20_000, 5), (2, 3))
    action = agent.explore(sure, torch.Generator().manual_seed(0))
    first, second = action[:, 0] == 0, action[:, 3] == 0
    assert first.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert second.float().mean().item() == pytest.approx(1 / 3, abs=0.02)
    assert (first & second).float().mean().item() == pytest.approx(0.25 / 3, abs=0.02)


# Acting


def test_continuous_exploration_is_a_sample_with_noise_clipped(dreamer):
    agent = dreamer()
    dist = TanhNormal(torch.full((20_000, 2), 0.2), torch.full((20_000, 2), 0.05))
    action = agent.explore(dist, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    sample = dist.sample(generator)
    expected = (sample + 0.3 * torch.randn(20_000, 2, generator=generator)).clamp(-1, 1)
    assert torch.equal(action, expected)
    assert (action - torch.tanh(dist.mean)).std().item() == pytest.approx(0.303, abs=0.01)
    assert (agent.explore(TanhNormal(10 + dist.mean, dist.std), generator) == 1).any()


def test_the_filter_is_told_the_action_that_was_carried_out(dreamer, small):
    """What ``act`` remembers is the noisy, clipped action, and the next state depends on it."""
    agent = dreamer()
    action, (state, remembered) = agent.act(small.obs(n=3, first=range(3)), agent.initial(3), "train")
    assert np.array_equal(action, remembered.numpy())
    rows = small.obs(n=3, seed=1)
    generator = torch.Generator()
    generator.set_state(agent.generators["train"].get_state())
    _, (after, _) = agent.act(rows, (state, remembered), "train")
    embed = agent.encoder(agent.scale({"image": torch.from_numpy(rows["image"])}))
    expected = agent.rssm.obs_step(state, remembered, embed, torch.zeros(3, dtype=torch.bool), generator)
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))
    _, (other, _) = agent.act(rows, (state, -remembered), "train")
    assert not torch.allclose(other.deter, after.deter)


@pytest.mark.parametrize("how", ["sample_mode", "tanh_mean"])
def test_evaluation_is_without_noise(dreamer, how):
    agent = dreamer(eval_action=how)
    dist = TanhNormal(torch.tensor([[0.4, -0.4]]), torch.full((1, 2), 1e-4))
    action = agent.exploit(dist, torch.Generator().manual_seed(0))
    assert torch.allclose(action, torch.tanh(dist.mean), atol=1e-3)
    wide = TanhNormal(torch.tensor([[0.4, -0.4]]), torch.full((1, 2), 5.0))
    beyond = agent.exploit(wide, torch.Generator().manual_seed(0)).abs() > 0.99
    assert bool(beyond.all()) == (how == "sample_mode")  # where a wide density piles up


def test_evaluation_takes_the_likeliest_choice(dreamer):
    agent = dreamer("multidiscrete")
    action = agent.exploit(OneHot(torch.tensor([[0.0, 1, 2, 1, 0]]), (2, 3)), torch.Generator())
    assert action.tolist() == [[0, 1, 1, 0, 0]]


def test_pictures_from_minus_a_half_to_a_half_and_back(dreamer):
    agent = dreamer()
    image = torch.arange(256, dtype=torch.uint8).repeat(48).view(1, 64, 64, 3)
    scaled = agent.scale({"image": image})["image"]
    assert scaled.min().item() == -0.5
    assert scaled.max().item() == 0.5
    assert torch.equal(agent.unscale({"image": scaled})["image"], image)
    assert agent.unscale({"image": torch.tensor([-3.0, 0.7])})["image"].tolist() == [0, 255]


# The actor


def with_outputs(agent, *outputs):
    """The actor's answer when its last layer says ``outputs`` whatever it is shown."""
    nn.init.zeros_(agent.actor.mlp.out.weight)
    with torch.no_grad():
        agent.actor.mlp.out.bias.copy_(torch.tensor(outputs))
    return agent.actor(torch.randn(100_000, agent.rssm.features))


def test_the_actor_before_training(dreamer):
    dist = with_outputs(dreamer(), 0.0, 0.0, 0.0, 0.0)
    assert (dist.mean == 0).all()
    assert dist.std[0].tolist() == pytest.approx([5.0001] * 2, abs=1e-5)
    sample = dist.sample(torch.Generator().manual_seed(0))
    assert (sample.abs() > 0.99).float().mean().item() == pytest.approx(0.596576, abs=0.004)
    assert (sample.abs() > 0.9).float().mean().item() == pytest.approx(0.768419, abs=0.004)
    assert sample.std().item() == pytest.approx(0.918129, abs=0.003)


def test_the_actors_mean_is_soft_bounded_and_its_std_has_a_floor(dreamer):
    dist = with_outputs(dreamer(), 1.0, 10.0, -100.0, 2.0)
    assert dist.mean[0].tolist() == pytest.approx([0.98687660, 4.82013790], abs=1e-6)
    assert dist.std[0, 0].item() == pytest.approx(1e-4, abs=1e-8)
    assert dist.std[0, 1].item() == pytest.approx(math.log1p(math.exp(2 + 4.99323925)) + 1e-4, abs=1e-5)
    assert math.tanh(5) == pytest.approx(0.99990920, abs=1e-8)  # the boldest mean action


@pytest.mark.parametrize("form", ["straight_through", "score"])
def test_gradients_of_a_discrete_policy(dreamer, form):
    """p = (.7, .2, .1): of the first entry of an action, with respect to the logits."""
    agent = dreamer("discrete", action_gradient=form)
    with_outputs(agent, *np.log([0.7, 0.2, 0.1]).tolist())
    bias = agent.actor.mlp.out.bias
    for _ in range(12):
        action = agent.policy(torch.randn(1, agent.rssm.features))
        (grad,) = torch.autograd.grad(action[0, 0], bias)
        if form == "straight_through":
            expected = [0.21, -0.14, -0.07]
        else:
            expected = [0.3, -0.2, -0.1] if action[0, 0] == 1 else [0, 0, 0]
        assert grad.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", ["straight_through", "score"])
@pytest.mark.parametrize("action", KINDS)
def test_the_policy_sends_no_gradient_into_what_it_reads(dreamer, action, form):
    agent = dreamer(action, action_gradient=form)
    feat = torch.randn(5, agent.rssm.features, requires_grad=True)
    value = (agent.policy(feat) * torch.randn(agent.act_space.size)).sum()
    d_feat, d_actor = torch.autograd.grad(value, [feat, agent.actor.mlp.out.weight], allow_unused=True)
    assert d_feat is None
    assert (d_actor != 0).any()


# The world model's loss


class Rows:
    """One update's inputs to ``model_loss``, with the parts that a test chooses."""

    def __init__(self, agent, small, obs="image", **settings):
        self.agent = agent
        self.batch = small.batch(obs, **settings)
        self.obs = agent.scale(self.batch.obs)
        lead, c = self.batch.reward.shape, agent.config
        self.feat = torch.randn(*lead, agent.rssm.features)
        self.post = State(
            torch.zeros(*lead, c.deter), torch.zeros(*lead, c.stoch), torch.zeros(*lead, 2 * c.stoch)
        )
        self.prior = torch.zeros(*lead, 2 * c.stoch)

    def losses(self):
        return dreamer_v1.model_loss(self.agent, self.feat, self.post, self.prior, self.obs, self.batch)[0]


@pytest.mark.parametrize(("error", "expected"), [(0.0, 11_291.916696), (0.1, 11_353.356696)])
def test_image_loss_sums_over_pixels_and_averages_over_rows(dreamer, small, error, expected):
    rows = Rows(dreamer(), small)
    rows.agent.decoder = lambda feat: {"image": UnitNormal(rows.obs["image"] + error, event=3)}
    assert rows.losses()["image"].item() == pytest.approx(expected, rel=1e-6)


def test_reward_loss_is_about_the_reward_of_the_same_row(dreamer, small):
    rows = Rows(dreamer(), small)
    asked = []
    rows.agent.reward = lambda feat: asked.append(feat) or rows.batch.reward + 1.0
    assert rows.losses()["reward"].item() == pytest.approx(0.5 + 0.918939, abs=1e-5)
    assert asked[0] is rows.feat  # all rows, the first too


@pytest.mark.parametrize(("transform", "scale"), [("none", 1.0), ("tanh", 1.0), ("none", 0.1), ("tanh", 2.0)])
def test_rewards_are_squashed_and_scaled_before_they_are_learned(dreamer, small, transform, scale):
    rows = Rows(dreamer(reward_transform=transform, reward_scale=scale), small)
    learned = scale * (torch.tanh(rows.batch.reward) if transform == "tanh" else rows.batch.reward)
    rows.agent.reward = lambda feat: learned
    assert rows.losses()["reward"].item() == pytest.approx(0.918939, abs=1e-5)


def test_a_dream_speaks_of_rewards_in_the_units_of_the_world(dreamer):
    agent = dreamer(reward_scale=0.1)
    carry = agent.world.initial(3)
    assert torch.allclose(agent.world.reward(carry), 10 * agent.reward(agent.rssm.feat(carry)))


def test_cont_learns_soft_labels_and_real_ends_only(dreamer, small):
    agent = dreamer(cont=True)
    logit = math.log(0.99 / 0.01)
    agent.cont = lambda feat: torch.full(feat.shape[:-1], logit)
    timeouts = Rows(agent, small, terminal=False)
    assert timeouts.batch.is_last.any()
    assert timeouts.losses()["cont"].item() == pytest.approx(10 * 0.0560015, abs=1e-5)
    ends = Rows(agent, small, terminal=True)
    share = ends.batch.is_terminal.float().mean().item()
    expected = 10 * ((1 - share) * 0.0560015 - share * math.log(0.01))
    assert ends.losses()["cont"].item() == pytest.approx(expected, abs=1e-4)
    assert "cont" not in Rows(dreamer(), small).losses()


def kl_rows(agent, small, kls):
    """Rows whose posteriors and priors are ``kls`` apart, in their first dimension, and their std."""
    rows = Rows(agent, small, size=1, length=len(kls), ends=())
    std = math.log(2) + 0.1
    rows.post.stats[0, :, 0] = std * torch.tensor(kls).mul(2).sqrt()
    rows.post.stats.requires_grad_()
    rows.prior.requires_grad_()
    return rows, std


@pytest.mark.parametrize(
    ("each", "kls", "loss", "weights"),
    [
        (True, [1.0, 2.0, 10.0], 7 / 3, [0, 0, 1 / 3]),
        (False, [1.0, 2.0, 10.0], 13 / 3, [1 / 3, 1 / 3, 1 / 3]),
        (True, [1.0, 2.0, 4.0], 1 / 3, [0, 0, 1 / 3]),
        (False, [1.0, 2.0, 4.0], 3.0, [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_free_nats_of_each_row_or_of_their_mean(dreamer, small, each, kls, loss, weights, scale):
    rows, std = kl_rows(dreamer(free_nats_each=each, kl_scale=scale), small, kls)
    kl = rows.losses()["kl"]
    assert kl.item() == pytest.approx(scale * loss, abs=1e-5)
    d_post, d_prior = torch.autograd.grad(kl, [rows.post.stats, rows.prior])
    shift = rows.post.stats.detach()[0, :, 0]
    slope = shift / std**2  # of one row's KL
    assert (d_post[0, :, 0] / slope).tolist() == pytest.approx([scale * w for w in weights], abs=1e-5)
    assert torch.allclose(d_prior[0, :, 0], -d_post[0, :, 0])  # both are moved, and alike


def test_kl_is_from_the_prior_to_the_posterior(dreamer, small):
    """KL(N(0.5, 0.8) || N(0, 1)) is 0.168143551 in each dimension; the other way around it is 0.253418949."""
    rows = Rows(dreamer(free_nats=0.0), small)
    raw = lambda std: math.log(math.expm1(std - 0.1))
    for stats, mean, std in ((rows.post.stats, 0.5, 0.8), (rows.prior, 0.0, 1.0)):
        stats[..., :5], stats[..., 5:] = mean, raw(std)
    assert rows.losses()["kl"].item() == pytest.approx(5 * 0.168143551, abs=1e-5)


@pytest.mark.parametrize("each", [True, False])
def test_kl_gradients_reach_posterior_and_prior(dreamer, small, each):
    rows = Rows(dreamer(free_nats_each=each), small)
    stats = [3 * torch.randn_like(rows.prior) for _ in range(2)]
    rows.post, rows.prior = rows.post._replace(stats=stats[0].requires_grad_()), stats[1].requires_grad_()
    for grad in torch.autograd.grad(rows.losses()["kl"], stats):
        assert (grad != 0).any(0).any(0).all()  # means and spreads, every dimension


def test_every_model_module_is_moved_by_the_model_loss(dreamer, small):
    agent = dreamer(cont=True, free_nats=0.0, actor_lr=0.0, critic_lr=0.0)
    before = parameters(agent)
    agent.update(small.batch())
    unmoved = {n for n, p in agent.modules.named_parameters() if torch.equal(p, before[n])}
    assert {name.split(".")[0] for name in unmoved} == {"actor", "critic"}


# The dream


class Watch:
    """What one real ``update`` did: everything its losses were given, and gradients of its losses."""

    def __init__(self, monkeypatch, agent, batch, zero=()):
        self.calls, self.grads = {}, {}
        named = dict(agent.modules.named_parameters())
        for name in ("model_loss", "lambda_returns", "actor_loss", "critic_loss"):
            original = getattr(dreamer_v1, name)

            def spy(*arguments, name=name, original=original):
                self.calls[name] = arguments
                result = original(*arguments)
                if name in ("actor_loss", "critic_loss"):
                    grads = torch.autograd.grad(
                        result, list(named.values()), retain_graph=True, allow_unused=True
                    )
                    self.grads[name] = dict(zip(named, grads, strict=True))
                return result

            monkeypatch.setattr(dreamer_v1, name, spy)
        imagine = agent.rssm.imagine

        def spy_on_imagine(start, policy, horizon, generator):
            self.start, self.dream = start, imagine(start, policy, horizon, generator)
            return self.dream

        monkeypatch.setattr(agent.rssm, "imagine", spy_on_imagine)
        self.before = parameters(agent)
        self.metrics = agent.update(batch)

    def reached(self, loss):
        """The modules that a loss has some gradient for, whether or not an optimiser takes it."""
        return {n.split(".")[0] for n, g in self.grads[loss].items() if g is not None and (g != 0).any()}


@pytest.mark.parametrize("action", KINDS)
def test_the_actors_gradient_goes_through_the_dream_and_ends_at_its_start(
    dreamer, small, monkeypatch, action
):
    """It passes through dynamics, reward, cont and critic (none of which the actor's optimiser owns) and
    never comes to the encoder, the decoder or the posterior."""
    agent = dreamer(action, cont=True)
    watch = Watch(monkeypatch, agent, small.batch(action=action))
    assert watch.reached("actor_loss") == {"actor", "rssm", "reward", "cont", "critic"}
    posterior = [n for n in watch.grads["actor_loss"] if n.startswith(("rssm.obs_", "encoder", "decoder"))]
    assert posterior
    assert all(watch.grads["actor_loss"][n] is None for n in posterior)
    assert not any(part.requires_grad for part in watch.start)
    assert all(
        (watch.grads["actor_loss"][f"actor.{n}"] != 0).any() for n, _ in agent.actor.named_parameters()
    )


@pytest.mark.parametrize("free", ["model", "actor", "critic"])
@pytest.mark.parametrize("action", KINDS)
def test_each_optimiser_moves_its_own(dreamer, small, action, free):
    """One real update with two of the three learning rates zero."""
    rates = {f"{name}_lr": 1e-3 * (name == free) for name in ("model", "actor", "critic")}
    agent = dreamer(action, cont=True, free_nats=0.0, **rates)
    before = parameters(agent)
    agent.update(small.batch(action=action))
    assert moved(agent, before) == (set(MODEL) if free == "model" else {free})
    assert all(p.grad is None and p.requires_grad for p in agent.modules.parameters())


def test_pretraining_moves_the_model_alone(dreamer, small):
    agent = dreamer(pretrain=2, cont=True, free_nats=0.0)
    for expected in (set(MODEL), set(MODEL), {*MODEL, "actor", "critic"}):
        before = parameters(agent)
        metrics = agent.update(small.batch())
        assert moved(agent, before) == expected
        assert ("loss/actor" in metrics) == ("actor" in expected)


@pytest.mark.parametrize("action", KINDS)
def test_all_steps_are_taken_from_the_same_parameters(dreamer, small, action):
    """What the actor and the critic learn in one update does not depend on how far the model moves in it."""
    after = []
    for model_lr in (0.0, 1.0):
        agent = dreamer(action, model_lr=model_lr)
        agent.update(small.batch(action=action))
        after.append({n: p for n, p in parameters(agent).items() if n.startswith(("actor", "critic"))})
    assert not small.differing(*after)


@pytest.mark.parametrize("action", KINDS)
def test_with_nothing_to_gain_the_actor_has_no_gradient(dreamer, small, monkeypatch, action):
    """Reward and critic say zero everywhere: no entropy term or other wish is hidden in the actor's loss."""
    agent = dreamer(action, cont=True)
    for head in (agent.reward, agent.critic):
        nn.init.zeros_(head.mlp.out.weight), nn.init.zeros_(head.mlp.out.bias)
    watch = Watch(monkeypatch, agent, small.batch(action=action))
    assert watch.metrics["grad/actor"].item() == 0
    assert watch.metrics["loss/actor"].item() == 0
    assert "actor" not in moved(agent, watch.before)


@pytest.mark.parametrize("action", KINDS)
def test_the_wish_for_entropy_is_the_actors_alone(dreamer, small, monkeypatch, action):
    """With the paper's objective left out, the actor still moves, by the entropy and in the measure of the targets."""
    loss = {}
    for scale in (0.0, 0.1, 0.2):
        agent = dreamer(action, cont=True, entropy_scale=scale)
        with monkeypatch.context() as patch:
            patch.setattr(dreamer_v1, "actor_loss", lambda target, weight: 0.0 * target.sum())
            watch = Watch(patch, agent, small.batch(action=action))
        assert (watch.metrics["grad/actor"].item() > 0) == (scale > 0)
        assert ("actor" in moved(agent, watch.before)) == (scale > 0)
        loss[scale] = watch.metrics["loss/actor"].item()
    assert loss[0.0] == 0
    assert loss[0.2] == pytest.approx(2 * loss[0.1])
    assert loss[0.1] < 0 or action == "continuous"  # minus the entropy, >= 0 if discrete


def test_all_three_rates_hold_and_then_fall_in_a_straight_line_if_asked(dreamer, small):
    own = dict(model_lr=1e-3, actor_lr=2e-3, critic_lr=4e-3)
    steady, falling = dreamer(**own), dreamer(**own, decay_after=1, decay_updates=2, decay_to=0.2)
    for agent, shares in ((steady, [1, 1, 1, 1, 1]), (falling, [1, 1, 0.6, 0.2, 0.2])):
        for share in shares:
            agent.update(small.batch())
            rates = [opt.lr for opt in (agent.model_opt, agent.actor_opt, agent.critic_opt)]
            assert rates == pytest.approx([share * rate for rate in own.values()])


@pytest.mark.parametrize("head", ["reward", "critic"])
def test_reward_alone_or_critic_alone_teaches_the_actor(dreamer, small, monkeypatch, head):
    agent = dreamer()
    other = getattr(agent, {"reward": "critic", "critic": "reward"}[head])
    nn.init.zeros_(other.mlp.out.weight), nn.init.zeros_(other.mlp.out.bias)
    assert Watch(monkeypatch, agent, small.batch()).metrics["grad/actor"] > 0


@pytest.mark.parametrize("cont", [False, True])
def test_fifteen_imagined_states_give_fourteen_targets(dreamer, small, monkeypatch, cont):
    agent = dreamer(horizon=15, cont=cont)
    batch = small.batch()
    watch = Watch(monkeypatch, agent, batch)
    n = batch.reward.numel()
    reward, value, discount, lambda_ = watch.calls["lambda_returns"]
    target, weight = watch.calls["actor_loss"]
    assert reward.shape == value.shape == discount.shape == (15, n)
    assert target.shape == (14, n)
    assert lambda_ == 0.95
    assert target.requires_grad
    assert not weight.requires_grad
    assert discount.requires_grad == cont  # inside the targets, gradient also runs through the predicted end
    critic_value, critic_target, critic_weight = watch.calls["critic_loss"]
    assert critic_value is value
    assert torch.equal(critic_target, target)
    assert not critic_target.requires_grad
    assert critic_weight is weight
    if not cont:
        assert torch.allclose(weight[:, 0], 0.99 ** torch.arange(14.0))
        assert weight.mean().item() == pytest.approx(0.93752991, abs=1e-6)
        assert weight[-1, 0].item() == pytest.approx(0.87752102, abs=1e-6)


def test_the_start_state_is_not_in_the_losses(dreamer, small, monkeypatch):
    """Heads are asked about z_1 .. z_H. The starts are all the posterior states of the batch."""
    agent = dreamer(horizon=4)
    asked = {}
    for name in ("reward", "critic"):
        hook = lambda module, inputs, output, name=name: asked.setdefault(name, []).append(inputs[0])
        getattr(agent, name).register_forward_hook(hook)
    batch = small.batch()
    watch = Watch(monkeypatch, agent, batch)
    _, feat, post, *_ = watch.calls["model_loss"]
    assert all(torch.equal(a, b.flatten(0, 1)) for a, b in zip(watch.start, post, strict=True))
    assert asked["reward"][0] is feat  # of the model's loss
    assert asked["reward"][1] is asked["critic"][0] is watch.dream.feat
    assert watch.dream.feat.shape[0] == 4
    first = agent.rssm.feat(watch.start)
    assert not any(torch.equal(first, z) for z in watch.dream.feat)


def test_the_last_value_bootstraps(dreamer, small, monkeypatch):
    """A critic that says k of z_k and no reward: V_{H-1} is 0.99 v_H and the rest follows."""
    agent = dreamer(horizon=5)
    real_critic, real_reward = agent.critic, agent.reward
    agent.critic = lambda feat: 0 * real_critic(feat) + torch.arange(1.0, 6.0)[:, None]
    agent.reward = lambda feat: 0 * real_reward(feat)
    watch = Watch(monkeypatch, agent, small.batch())
    expected, after = [], 5.0
    for value in (5.0, 4.0, 3.0, 2.0):
        after = 0.99 * (0.05 * value + 0.95 * after)
        expected.insert(0, after)
    target, _ = watch.calls["actor_loss"]
    assert target[:, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert target[-1, 0].item() == pytest.approx(0.99 * 5)


def test_actor_and_critic_losses_are_weighted_means():
    value = torch.tensor([[1.0, 0.0], [2.0, 0.0], [9.0, 9.0]], requires_grad=True)
    target = torch.tensor([[2.0, 0.0], [2.0, 4.0]])
    weight = torch.tensor([[1.0, 1.0], [0.5, 0.25]])
    assert dreamer_v1.actor_loss(target, weight).item() == pytest.approx(-(2 + 0 + 1 + 1) / 4)
    loss = dreamer_v1.critic_loss(value, target, weight)
    assert loss.item() == pytest.approx((0.5 + 0 + 0 + 0.25 * 8 + 0.918939 * 2.75) / 4, abs=1e-5)
    (grad,) = torch.autograd.grad(loss, value)
    assert torch.allclose(grad, torch.tensor([[-1.0, 0.0], [0.0, -1.0], [0.0, 0.0]]) / 4)  # not v_H


def test_the_critic_is_moved_as_if_the_dream_were_data(dreamer, small, monkeypatch):
    """Its gradient is that of a regression on detached features."""
    agent = dreamer()
    watch = Watch(monkeypatch, agent, small.batch())
    taken = {
        n.removeprefix("critic."): g for n, g in watch.grads["critic_loss"].items() if n.startswith("critic.")
    }
    _, target, weight = watch.calls["critic_loss"]
    weights = {n: watch.before[f"critic.{n}"].requires_grad_() for n in taken}
    value = torch.func.functional_call(agent.critic, weights, watch.dream.feat.detach())
    loss = dreamer_v1.critic_loss(value, target, weight)
    for name, grad in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
        assert torch.allclose(grad, taken[name], atol=1e-6), name


# Ends


def test_nothing_is_learned_from_a_dream_that_starts_after_the_end(dreamer, small, monkeypatch):
    batch = small.batch(terminal=True)
    watch = Watch(monkeypatch, dreamer(cont=True), batch)
    _, weight = watch.calls["actor_loss"]
    ended = batch.is_terminal.flatten()
    assert ended.any()
    assert (weight[:, ended] == 0).all()
    assert (weight[0, ~ended] == 1).all()


def test_the_clock_is_not_an_end(dreamer, small, monkeypatch):
    batch = small.batch(terminal=False)
    assert batch.is_last.any()
    _, weight = Watch(monkeypatch, dreamer(cont=True), batch).calls["actor_loss"]
    assert (weight[0] == 1).all()


def test_the_cont_head_contains_the_discount(dreamer):
    agent = dreamer(cont=True)
    dream = agent.rssm.imagine(agent.rssm.initial(3), agent.policy, 4)
    assert torch.equal(agent.discounts(dream), torch.sigmoid(agent.cont(dream.feat)))  # not times gamma again
    for logit, cont in ((math.log(0.99 / 0.01), 1.0), (-40.0, 0.0), (40.0, 1.0), (0.0, 0.5 / 0.99)):
        with torch.no_grad():
            nn.init.zeros_(agent.cont.mlp.out.weight)
            agent.cont.mlp.out.bias.fill_(logit)
        assert agent.world.cont(agent.world.initial(1)).item() == pytest.approx(cont, abs=1e-6)
        assert agent.world.cont(agent.world.initial(1)).item() <= 1


def test_imagining_from_some_of_the_states(dreamer, small, monkeypatch):
    agent = dreamer(starts=7, cont=True)
    batch = small.batch(terminal=True)
    watch = Watch(monkeypatch, agent, batch)
    assert watch.dream.feat.shape[1] == 7
    post = watch.calls["model_loss"][2].deter.flatten(0, 1)
    rows = [int((post == start).all(-1).nonzero()[0]) for start in watch.start.deter]
    assert len(set(rows)) == 7  # without repetition
    _, weight = watch.calls["actor_loss"]
    assert torch.equal(weight[0], 1.0 - batch.is_terminal.flatten()[rows].float())


@pytest.mark.parametrize("form", ["straight_through", "score"])
@pytest.mark.parametrize("action", ["discrete", "multidiscrete"])
def test_a_discrete_actor_climbs(dreamer, small, action, form):
    """With a world that rewards the first choice of its first group, that choice becomes likelier."""
    agent = dreamer(action, action_gradient=form, model_lr=0.0, critic_lr=0.0, actor_lr=1e-2, horizon=2)
    nn.init.zeros_(agent.critic.mlp.out.weight)
    seen = []
    imagine = agent.rssm.imagine

    def remember(*arguments):
        seen.append(imagine(*arguments))
        return seen[-1]

    agent.rssm.imagine = remember
    real = agent.reward
    agent.reward = lambda feat: seen[-1].action[..., 0] if feat.ndim == 3 and len(feat) == 2 else real(feat)
    feat = torch.randn(50, agent.rssm.features)
    probability = lambda: agent.actor(feat).probs[:, 0].mean().item()
    before = probability()
    for seed in range(15):
        agent.update(small.batch(action=action, seed=seed))
    assert probability() > before + 0.1


# Learning


class Bits(gymnasium.Env):
    """The picture is dark or bright, anew at every row; an action is worth its value in one, minus that in the
    other: ``sign`` says which."""

    def __init__(self, sign):
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.sign = sign

    def look(self):
        self.bright = self.np_random.random() < 0.5
        return np.full((64, 64, 3), 200 if self.bright else 50, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def step(self, action):
        reward, self.t = self.sign * (1 if self.bright else -1) * float(action[0]), self.t + 1
        return self.look(), reward, False, self.t == 3, {}


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_it_learns_to_read_one_bit(sign):
    """By chance an episode of three decisions is worth 0, at best 3. An actor that happened to be right before
    it was trained would be wrong under the other sign."""
    config = Config(
        depth=2, stoch=4, deter=32, units=32, horizon=3, discount=0.5, free_nats=1.0, init_std=1.0,
        pretrain=200, model_lr=3e-3, actor_lr=1e-3, critic_lr=1e-3, adam_eps=1e-5,
    )  # fmt: skip
    agent = DreamerV1(IMAGE, ActionSpace(1), config)
    make = partial(from_gymnasium, partial(Bits, sign))
    envs, eval_envs = SerialEnvs(make, 4, 0), SerialEnvs(make, 16, 1_000)
    replay = Replay(IMAGE, ActionSpace(1), 10_000, 4)
    driver = Driver(agent, envs, replay, prefill=200, seed=0)
    rng = np.random.default_rng(0)
    for update in range(350):
        while driver.env_steps < 200 + 2 * update:
            driver()
        agent.update(replay.sample(16, 8, rng))
    assert evaluate(agent, eval_envs, 64).mean > 2.4
    assert abs(evaluate(None, eval_envs, 64).mean) < 0.6


@pytest.mark.slow
def test_it_remembers_one_episode():
    """One episode of a square that the actions push around, learned by heart: the picture's loss falls to
    near its constant, and 25 rows are foreseen from the first five and the actions alone."""
    rng = np.random.default_rng(0)
    time, place, velocity = 30, np.array([28.0, 28.0]), np.zeros(2)
    actions = rng.uniform(-1, 1, (time, 2)).astype(np.float32)
    images, rewards = np.zeros((time, 64, 64, 3), np.uint8), np.zeros(time, np.float32)
    for t in range(time):
        if t:
            velocity = 0.7 * velocity + 6 * actions[t - 1]
            place = np.clip(place + velocity, 0, 48)
            rewards[t] = place[0] / 48
        x, y = place.astype(int)
        images[t, x : x + 16, y : y + 16] = (255, 160, 40)
    prev_action = np.concatenate([np.zeros((1, 2), np.float32), actions[:-1]])
    flags = [np.arange(time) == 0, np.arange(time) == time - 1, np.zeros(time, bool)]
    batch = Batch(
        {"image": torch.from_numpy(images)[None]},
        *(torch.from_numpy(x)[None] for x in (actions, prev_action, rewards, *flags)),
    )
    config = Config(depth=8, stoch=10, deter=64, units=16, horizon=2, starts=1, model_lr=2e-3, adam_eps=1e-5)
    agent = DreamerV1(IMAGE, ActionSpace(2), config)
    losses = [agent.update(batch)["loss/image"].item() - 11_291.916696 for _ in range(500)]
    assert losses[-1] < 0.05 * losses[0]
    truth, prediction = agent.report(batch, context=5)["open_loop/image"]
    error = np.abs(truth.astype(float) - prediction)[0, 5:]
    still = np.abs(truth.astype(float) - truth[:, 4:5])[0, 5:]  # a world that stood still
    assert error.mean() < 0.3 * still.mean()
