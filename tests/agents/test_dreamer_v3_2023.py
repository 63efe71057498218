"""Dreamer V3's first release: its numbers, each loss on values worked by hand, each gradient arrow."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from reverie import machine, presets
from reverie.agents import dreamer_v3_2023
from reverie.agents.dreamer_v3_2023 import (
    Config,
    Doubling,
    DreamerV3of2023,
    Halving,
    SymlogTwoHot,
    actor_loss,
    critic_loss,
    even_bins,
    parts,
)
from reverie.dists import Bernoulli, Normal, OneHot
from reverie.models.rssm import State
from reverie.ops.scalars import symlog, two_hot
from reverie.types import ActionSpace, ReverieError, Space

IMAGE = {"image": Space((64, 64, 3), "uint8")}
WALKER = {"height": Space((1,)), "orientations": Space((14,)), "velocity": Space((9,))}
GAMMA = 1 - 1 / 333


@pytest.fixture
def dreamer(small):
    return lambda action="continuous", obs="vector", **settings: small.agent(
        "dreamer_v3_2023", obs, action, **settings
    )


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


# Sizes


def counts(obs_space, act_space, *names):
    with torch.device("meta"):
        made = parts(obs_space, act_space, presets.resolve("dreamer_v3_2023", names))
    return {name: sum(p.numel() for p in part.parameters()) for name, part in made._asdict().items()}


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("xs", 8_263_982),
        ("s", 17_926_030),
        ("m", 36_900_302),
        ("l", 76_753_422),
        ("xl", 200_727_182),
        ("paper", 200_727_182),
    ],
)
def test_counts_of_every_size(size, count):
    assert sum(counts(IMAGE, ActionSpace(6), size).values()) == count


def test_counts_of_the_small_one():
    found = counts(IMAGE, ActionSpace(1), "s")
    assert sum(found[name] for name in ("encoder", "rssm", "decoder", "reward", "cont")) == 15_685_251
    assert found["critic"] == 1_181_439
    assert sum(counts(WALKER, ActionSpace(6), "s").values()) == 9_754_147
    assert sum(counts(WALKER, ActionSpace(6), "dmc_proprio", "s").values()) == 9_754_147
    assert counts(IMAGE, ActionSpace(6), "dmc_vision") == counts(IMAGE, ActionSpace(6), "s")


def test_the_released_settings_read_vectors_with_the_largest_sizes_layers():
    released, paper = (counts(WALKER, ActionSpace(6), name) for name in ("dmc_proprio", "s"))
    read = lambda inputs, units, layers: inputs * units + (layers - 1) * units**2 + 2 * layers * units
    assert released["encoder"] == read(24, 1024, 5) and paper["encoder"] == read(24, 512, 2)
    assert released["decoder"] == read(1536, 1024, 5) + 24 * 1025
    assert {name for name in paper if released[name] != paper[name]} == {"encoder", "decoder", "rssm"}


def test_defaults_are_the_releases():
    c = Config()
    assert (c.batch_size, c.batch_length, c.horizon, c.lambda_) == (16, 64, 15, 0.95)
    assert (c.deter, c.depth, c.units, c.layers, c.stoch, c.classes) == (4096, 96, 1024, 5, 32, 32)
    assert (c.model_lr, c.model_eps, c.model_clip) == (1e-4, 1e-8, 1000)
    assert (c.actor_lr, c.critic_lr, c.adam_eps, c.clip) == (3e-5, 3e-5, 1e-5, 100)
    assert (c.dyn_scale, c.rep_scale, c.free_nats, c.entropy_scale) == (0.5, 0.1, 1, 3e-4)
    assert (c.return_rate, c.slow_rate, c.unimix, c.actor_unimix, c.bins) == (0.01, 0.02, 0.01, 0.01, 255)
    assert c.discount == GAMMA and c.eval_action == "sample"


@pytest.mark.parametrize(
    ("preset", "every", "updates"),
    [("dmc_proprio", 4, 1), ("dmc_vision", 4, 1), ("atari100k", 4, 1), ("atari", 64, 1), ("crafter", 2, 1)],
)
def test_the_ratio_counts_decisions(preset, every, updates):
    """Replayed rows per decision: env steps between updates are 1024 / ratio, times the action repeat."""
    c = presets.resolve("dreamer_v3_2023", (preset,))
    assert (c.train_every, c.train_updates) == (every, updates)
    assert c.prefill == 1024 * c.action_repeat


# Layers


def test_weights_before_a_norm_are_normal_and_cut_off_the_others_uniform(dreamer):
    agent = dreamer(units=200, vector_units=200, deter=300)
    layer = agent.rssm.obs_stats.hidden[0].weight.detach()
    std = (2 / sum(layer.shape)) ** 0.5
    assert layer.std().item() == pytest.approx(std, rel=0.02)
    assert 2 * std < layer.abs().max() <= 2 * 1.1369 * std  # a uniform one would end at 1.73
    out = agent.cont.mlp.out.weight.detach()
    assert out.abs().max() <= math.sqrt(6 / 201) and out.std().item() == pytest.approx(
        math.sqrt(2 / 201), rel=0.15
    )
    assert not any(p.any() for name, p in agent.modules.named_parameters() if name.endswith("out.bias"))


def test_kernels_of_pictures_count_their_area(dreamer):
    agent = dreamer(obs="image", depth=32)
    for conv in (agent.encoder.convs[2], agent.decoder.convs[1]):
        assert conv.weight.std().item() == pytest.approx((2 / (16 * (64 + 128))) ** 0.5, rel=0.02)
        assert conv.weight.shape[1:3] == (4, 4)
    bound = math.sqrt(6 / (16 * 35))
    assert 0.98 * bound < agent.decoder.last.weight.abs().max() <= bound


def test_one_convolution_is_the_others_transpose():
    down, up = Halving(3, 5).double(), Doubling(5, 3).double()
    with torch.no_grad():
        up.weight.copy_(down.weight)
    x, y = torch.randn(2, 8, 8, 3).double(), torch.randn(2, 4, 4, 5).double()
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum())


@pytest.mark.parametrize(("side", "stages"), [(64, 4), (32, 3), (8, 1)])
def test_pictures_come_down_to_four_by_four(side, stages):
    space, c = {"image": Space((side, side, 3), "uint8")}, presets.resolve("dreamer_v3_2023", ("debug",))
    made = parts(space, ActionSpace(1), c)
    assert len(made.encoder.convs) == stages == len(made.decoder.convs) + 1
    assert made.encoder.embed == 16 * 2 * 2 ** (stages - 1)
    assert made.encoder({"image": torch.rand(2, 3, side, side, 3)}).shape == (2, 3, made.encoder.embed)
    found = made.decoder(torch.randn(2, 3, made.rssm.features))["image"].mode
    assert found.shape == (2, 3, side, side, 3)


def test_a_picture_is_shifted_and_not_bent(dreamer, small):
    agent = dreamer(obs="image")
    nn.init.zeros_(agent.decoder.last.weight), nn.init.constant_(agent.decoder.last.bias, 3.0)
    assert (agent.decoder(torch.randn(2, agent.rssm.features))["image"].mode == 3.5).all()


@pytest.mark.parametrize("shape", [(60, 64, 3), (96, 96, 1), (4, 4, 3)])
def test_sides_that_are_no_power_of_two_are_refused(shape):
    with pytest.raises(ReverieError, match="a power of two and at least 8"):
        parts(
            {"image": Space(shape, "uint8")}, ActionSpace(1), presets.resolve("dreamer_v3_2023", ("debug",))
        )


# Numbers as bins


@pytest.mark.parametrize(
    ("target", "weights"),
    [
        (0.0, {127: 1}),
        (0.1, {127: 0.394780, 128: 0.605220}),
        (0.5, {129: 0.425297, 130: 0.574703}),
        (1.0, {131: 0.598515, 132: 0.401485}),
        (-1.0, {123: 0.598515, 122: 0.401485}),
        (2.0, {133: 0.023812, 134: 0.976188}),
        (10.0, {142: 0.773365, 143: 0.226635}),
        (100.0, {156: 0.693985, 157: 0.306015}),
        (1000.0, {170: 0.129407, 171: 0.870593}),
        (12345.0, {186: 0.176095, 187: 0.823905}),
        (1e9, {254: 1}),
        (-1e9, {0: 1}),
    ],
)
def test_two_hot_weights_lie_between_even_bins_of_symlogs(target, weights):
    bins = even_bins().double()
    found = two_hot(symlog(double(target)), bins)[0]
    expected = torch.zeros(255).double()
    for index, weight in weights.items():
        expected[index] = weight
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    logits = torch.randn(1, 255).double()
    loss = SymlogTwoHot(logits, bins).loss(double(target))
    torch.testing.assert_close(loss, -(expected * logits.log_softmax(-1)).sum(-1), atol=1e-4, rtol=1e-5)


def test_the_bins_are_even_and_antisymmetric():
    bins = even_bins()
    assert bins[127] == 0 and torch.equal(bins, -bins.flip(0)) and bins[-1] == 20
    torch.testing.assert_close(bins.diff(), torch.full((254,), 20 / 127), atol=2e-6, rtol=0)


def test_the_mean_is_of_symlogs():
    """Half on 0 and half on 1020.6 is 30.96; of the numbers themselves it would be 510.3."""
    logits = torch.full((1, 255), -1e3)
    logits[0, 127] = logits[0, 171] = 0.0
    assert SymlogTwoHot(logits, even_bins()).mean.item() == pytest.approx(30.96, abs=0.01)


def test_the_mean_has_a_gradient():
    logits = torch.randn(4, 255, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: SymlogTwoHot(x, even_bins().double()).mean, logits)


def test_rewards_and_values_begin_at_zero_and_cost_the_same_for_any_target(dreamer):
    agent = dreamer(bins=255)
    feat = torch.randn(50, agent.rssm.features)
    for head in (agent.reward, agent.critic, agent.slow_critic):
        assert (head(feat).mean == 0).all()
        assert head(feat).loss(torch.randn(50)).tolist() == pytest.approx([5.5412635] * 50, abs=1e-5)


# Actors


def test_continuous_actions_before_training(dreamer):
    agent = dreamer()
    for layer in (agent.actor.out, agent.actor.std):
        nn.init.zeros_(layer.weight)
    dist = agent.actor(torch.randn(4, agent.rssm.features))
    assert dist.mean.abs().max() == 0
    assert dist.std[0].tolist() == pytest.approx([0.89271737] * 2, abs=1e-6)
    assert dist.entropy()[0].item() == pytest.approx(2 * 1.30545329, abs=1e-5)


def test_discrete_actions_keep_one_percent(dreamer):
    agent = dreamer("multidiscrete")
    with torch.no_grad():
        agent.actor.out.bias.copy_(torch.tensor([50.0, 0, 0, 50, 0]))
    dist = agent.actor(torch.zeros(1, agent.rssm.features))
    assert isinstance(dist, OneHot)
    expected = [0.995, 0.005, 0.01 / 3, 0.99 + 0.01 / 3, 0.01 / 3]
    assert dist.probs[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_actions_beyond_one_are_shrunk_to_it_and_keep_a_gradient(dreamer, small):
    agent, batch = dreamer(), small.batch("vector")
    nn.init.constant_(agent.actor.out.bias, 50.0)
    post, _ = agent.rssm.observe(
        agent.encoder(agent.scale(batch.obs)), batch.prev_action, batch.is_first, torch.Generator()
    )
    _, action = agent.dream(post, torch.Generator())
    assert action.abs().max() <= 1 and (action == 1).any()
    (grad,) = torch.autograd.grad(action.sum(), agent.actor.std.bias)
    assert (grad != 0).all()


# The world


def test_observe_is_obs_step_in_a_loop_from_the_learned_start(dreamer, small):
    agent = dreamer()
    with torch.no_grad():
        agent.rssm.start.normal_()
    batch = small.batch("vector")
    embed = agent.encoder(agent.scale(batch.obs))
    post, prior = agent.rssm.observe(
        embed, batch.prev_action, batch.is_first, torch.Generator().manual_seed(3)
    )
    noises = agent.rssm.latent.noise((6, 4), embed, torch.Generator().manual_seed(3))
    state = agent.rssm.initial(4)
    torch.testing.assert_close(state.deter[0], torch.tanh(agent.rssm.start))
    best = agent.rssm.prior(state.deter).unflatten(-1, (4, 4)).argmax(-1)
    assert torch.equal(state.stoch.unflatten(-1, (4, 4)).argmax(-1), best)
    agent.rssm.latent.noise = lambda shape, like, generator: noises[t]
    for t in range(6):
        state = agent.rssm.obs_step(state, batch.prev_action[:, t], embed[:, t], batch.is_first[:, t])
        torch.testing.assert_close(state.deter, post.deter[:, t], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(state.stoch, post.stoch[:, t], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(agent.rssm.prior(state.deter), prior[:, t], atol=1e-4, rtol=1e-3)


def test_a_sequence_begins_without_a_past(dreamer, small):
    """What was done before its first row does not count, even in the middle of an episode."""
    batch = small.batch("vector")
    other = batch._replace(prev_action=batch.prev_action.clone())
    other.prev_action[:, 0] += 0.5
    assert not batch.is_first[1, 0]
    a, b = dreamer(), dreamer()
    a.update(batch), b.update(other)
    assert not small.differing(a.state_dict(), b.state_dict())
    other.prev_action[1, 1] += 0.5
    a.update(batch), b.update(other)
    assert small.differing(a.state_dict(), b.state_dict())


@pytest.mark.parametrize(("kl", "expected"), [(0.3, 0.6), (5.0, 3.0)])
def test_free_nats_are_under_every_rows_sum(dreamer, small, monkeypatch, kl, expected):
    """KL .3: .5 + .1; KL 5: 2.5 + .5."""
    agent = dreamer()
    stats = torch.zeros(2, 3, 16, requires_grad=True)

    class Fixed:
        def __init__(self, stats):
            self.stats = stats

        def kl(self, other):
            return kl + 0 * (self.stats + other.stats).sum(-1)

        def entropy(self):
            return torch.zeros(2, 3)

    monkeypatch.setattr(agent.rssm.latent, "dist", Fixed)
    batch = small.batch("vector", size=2, length=3, ends=())
    feat = torch.randn(2, 3, agent.rssm.features)
    state = State(feat[..., :16], feat[..., 16:], stats)
    losses, _ = dreamer_v3_2023.model_loss(agent, feat, state, stats, agent.scale(batch.obs), batch)
    assert (losses["dyn"] + losses["rep"]).mean().item() == pytest.approx(expected)


def test_pictures_are_summed_squares_and_vectors_squares_of_symlogs(dreamer, small):
    agent = dreamer(obs="mixed")
    batch = small.batch("mixed", size=2, length=3, ends=())
    obs = agent.scale(batch.obs)
    found = agent.decoder(torch.randn(2, 3, agent.rssm.features))
    image = found["image"].loss(obs["image"])
    torch.testing.assert_close(image, ((found["image"].mode - obs["image"]) ** 2).sum((-3, -2, -1)))
    torch.testing.assert_close(
        found["speed"].loss(obs["speed"]), ((found["speed"].mean - symlog(obs["speed"])) ** 2).sum(-1)
    )
    assert torch.equal(agent.unscale({"image": obs["image"]})["image"], batch.obs["image"])


def test_the_clock_is_not_an_end_and_the_label_of_an_end_is_hard(dreamer, small, monkeypatch):
    agent, asked, loss = dreamer(), [], Bernoulli.loss
    monkeypatch.setattr(Bernoulli, "loss", lambda self, label: asked.append(label) or loss(self, label))
    agent.update(small.batch("vector", terminal=False))
    assert (asked[-1] == 1).all()
    batch = small.batch("vector", terminal=True)
    agent.update(batch)
    assert torch.equal(asked[-1], 1 - batch.is_terminal.float())


# Behaviour


class Watch:
    """An update, with what each loss was given and the gradient it alone sends to every parameter."""

    def __init__(self, monkeypatch, agent, batch):
        self.calls, self.results, self.reached = {}, {}, {}
        self.leaves = {n: p for n, p in agent.modules.named_parameters() if p.requires_grad}
        for name in ("model_loss", "actor_loss", "critic_loss"):
            monkeypatch.setattr(dreamer_v3_2023, name, self.remember(name, getattr(dreamer_v3_2023, name)))
        self.metrics = agent.update(batch)

    def remember(self, name, function):
        def called(*arguments):
            self.calls[name] = arguments
            result = self.results[name] = function(*arguments)
            for part, loss in (result[0] if name == "model_loss" else {name: result}).items():
                self.reached[part] = self.reach(loss)
            return result

        return called

    def reach(self, loss):
        grads = torch.autograd.grad(loss.sum(), self.leaves.values(), retain_graph=True, allow_unused=True)
        return {n for n, g in zip(self.leaves, grads, strict=True) if g is not None and (g != 0).any()}

    def modules(self, name):
        return {n.split(".")[0] for n in self.reached[name]}


def trained(agent, small, action="continuous", obs="vector", **batch):
    """After two updates no output layer is zero any more."""
    for seed in (5, 6):
        agent.update(small.batch(obs, action, seed=seed, **batch))
    return agent


@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_gradient_arrows(dreamer, small, monkeypatch, action):
    """REINFORCE reaches the actor alone; numbers pass through the dream. Each optimiser moves its own, all the same."""
    agent = trained(dreamer(action, "mixed", free_nats=0.0), small, action, "mixed")
    watch = Watch(monkeypatch, agent, small.batch("mixed", action))
    assert watch.modules("image") == watch.modules("speed") == {"encoder", "rssm", "decoder"}
    assert watch.modules("reward") == {"encoder", "rssm", "reward"}
    assert watch.modules("cont") == {"encoder", "rssm", "cont"}
    assert watch.modules("dyn") == watch.modules("rep") == {"encoder", "rssm"}
    prior = lambda name: {n for n in watch.reached[name] if n.startswith("rssm.img_stats.out")}
    assert prior("dyn") and not prior("rep")
    assert watch.modules("critic_loss") == {"critic"}
    through = {"actor"} if action == "discrete" else {"actor", "rssm", "reward", "critic"}
    assert (
        watch.modules("actor_loss") == through
    )  # neither encoder nor cont: a dream begins anew, ends are decided
    owned = {
        name: {n.split(".")[0] for n in getattr(agent, f"{name}_opt").names}
        for name in ("model", "actor", "critic")
    }
    assert owned == {
        "model": {"encoder", "rssm", "decoder", "reward", "cont"},
        "actor": {"actor"},
        "critic": {"critic"},
    }


@pytest.mark.parametrize("name", ["actor", "critic", "model"])
def test_an_optimiser_moves_its_own_alone(dreamer, small, name):
    agent = trained(dreamer(), small)
    for other in {"actor", "critic", "model"} - {name}:
        getattr(agent, f"{other}_opt").lr = 0.0
    agent.follow.rate = 0.0
    before = {n: p.detach().clone() for n, p in agent.modules.named_parameters()}
    agent.update(small.batch("vector"))
    moved = {n.split(".")[0] for n, p in agent.modules.named_parameters() if not torch.equal(p, before[n])}
    model = {"encoder", "rssm", "decoder", "reward", "cont"}
    assert moved == (model if name == "model" else {name})


def test_the_baselines_path_is_differentiated(dreamer, small, monkeypatch):
    """A = (R - v) / S: d A_t = (d R_t - d v_t) / S, and at the observed start v has no gradient."""
    agent, seen = trained(dreamer(horizon=4), small), {}
    leaves = list(agent.actor.parameters())
    returns = dreamer_v3_2023.td_lambda_returns

    def remembered(reward, value, discount, lambda_):
        seen["target"], seen["value"] = returns(reward, value, discount, lambda_), value
        return seen["target"]

    slope = lambda x: torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(
                leaves,
                torch.autograd.grad(x.sum(), leaves, retain_graph=True, allow_unused=True),
                strict=True,
            )
        ]
    )

    def watched(policy, action, advantage, weight, scale):
        target, value = seen["target"], seen["value"]  # R_0 .. R_3 and v_1 .. v_4
        s = agent_scale(target)
        torch.testing.assert_close(slope(advantage[0]), slope(target[0]) / s)
        for t in (1, 2, 3):
            baseline = slope(value[t - 1])
            assert (baseline != 0).any()
            torch.testing.assert_close(
                slope(advantage[t]), (slope(target[t]) - baseline) / s, atol=1e-5, rtol=1e-3
            )
        seen["done"] = True
        return actor_loss(policy, action, advantage, weight, scale)

    agent_scale = lambda target: dreamer_v3_2023.range_scale(
        dreamer_v3_2023.track_range(agent.range, target.detach(), 0.01)
    )
    monkeypatch.setattr(dreamer_v3_2023, "td_lambda_returns", remembered)
    monkeypatch.setattr(dreamer_v3_2023, "actor_loss", watched)
    agent.update(small.batch("vector"))
    assert seen["done"]


def test_fifteen_transitions_sixteen_states(dreamer, small, monkeypatch):
    agent = trained(dreamer(horizon=4), small)
    watch = Watch(monkeypatch, agent, small.batch("vector"))
    _, action, advantage, weight, scale = watch.calls["actor_loss"]
    value, target, slow, weight_too = watch.calls["critic_loss"]
    assert action.shape[:2] == advantage.shape == weight.shape == target.shape == slow.shape == (4, 24)
    assert value.mean.shape == (4, 24)
    assert torch.equal(weight, weight_too) and scale == 3e-4
    assert not any(x.requires_grad for x in (weight, target, slow, action))


@pytest.mark.parametrize("goes_on", [True, False])
def test_ends_are_decided_and_a_start_that_is_an_end_counts_nothing(dreamer, small, monkeypatch, goes_on):
    """w_t = c_0 (gamma c_1) .. (gamma c_t), c_0 as the data have it, the others 1 where it is likelier to go on."""
    agent = trained(dreamer(horizon=3), small)
    nn.init.zeros_(agent.cont.mlp.out.weight)
    nn.init.constant_(agent.cont.mlp.out.bias, 0.1 if goes_on else -0.1)  # barely
    batch = small.batch("vector", terminal=True)
    watch = Watch(monkeypatch, agent, batch)
    _, target, _, weight = watch.calls["critic_loss"]
    ended = batch.is_terminal.flatten()
    assert ended.any() and (weight[:, ended] == 0).all()
    expected = torch.tensor([1.0, GAMMA, GAMMA**2]) if goes_on else torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(weight[:, ~ended], expected[:, None].expand(-1, int((~ended).sum())))
    assert target.shape == weight.shape


def test_a_return_is_the_next_states_reward_and_gamma_times_what_follows(dreamer, small, monkeypatch):
    agent, seen = trained(dreamer(horizon=3), small), {}
    returns = dreamer_v3_2023.td_lambda_returns

    def remembered(*given):
        seen["given"] = given
        return returns(*given)

    monkeypatch.setattr(dreamer_v3_2023, "td_lambda_returns", remembered)
    dream = DreamerV3of2023.dream
    monkeypatch.setattr(DreamerV3of2023, "dream", lambda self, *a: seen.setdefault("dream", dream(self, *a)))
    nn.init.constant_(agent.cont.mlp.out.bias, 99.0)
    heads = [small.copied(dict(head.state_dict())) for head in (agent.reward, agent.critic)]
    agent.update(small.batch("vector", terminal=False))
    agent.reward.load_state_dict(heads[0]), agent.critic.load_state_dict(heads[1])
    reward, value, discount, lambda_ = seen["given"]
    feat = seen["dream"][0].detach()
    torch.testing.assert_close(reward, agent.reward(feat[1:]).mean)
    torch.testing.assert_close(value, agent.critic(feat[1:]).mean)  # of the critic, not of its slow copy
    torch.testing.assert_close(discount, torch.full_like(discount, GAMMA))
    assert lambda_ == 0.95


def test_advantages_are_divided_by_the_range_of_the_returns(dreamer, small, monkeypatch):
    agent = trained(dreamer(), small)
    agent.range = torch.tensor([-4.0, 16.0])
    watch = Watch(monkeypatch, agent, small.batch("vector"))
    value, target, _, _ = watch.calls["critic_loss"]
    marks = torch.quantile(target.flatten(), torch.tensor([0.05, 0.95]))
    expected = torch.lerp(torch.tensor([-4.0, 16.0]), marks, 0.01)
    torch.testing.assert_close(agent.range, expected)
    scale = expected[1] - expected[0]
    torch.testing.assert_close(
        watch.calls["actor_loss"][2], (target - value.mean) / scale, atol=1e-5, rtol=1e-4
    )


def test_actor_loss_by_hand():
    weight, advantage = double(1.0, 0.25), double(2.0, -1.0)
    normal = Normal(double([0.0], [0.5]), double([1.0], [0.5]))
    entropy = [1.418939, 1.418939 + np.log(0.5)]
    found = actor_loss(normal, double([1.0], [0.5]), advantage, weight, 0.1)
    expected = [-(2 + 0.1 * entropy[0]), -0.25 * (-1 + 0.1 * entropy[1])]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    hot, action = OneHot(torch.zeros(2, 2).double(), (2,)), double([1.0, 0.0], [0.0, 1.0])
    half, two = np.log(0.5), np.log(2)
    found = actor_loss(hot, action, advantage, weight, 0.1)
    assert found.tolist() == pytest.approx([-(2 * half + 0.1 * two), -0.25 * (-half + 0.1 * two)], abs=1e-5)


def test_critic_loss_is_to_the_returns_and_to_the_slow_critic():
    logits, (target, slow, weight) = torch.randn(2, 2, 255).double(), torch.rand(3, 2, 2).double()
    value = SymlogTwoHot(logits, even_bins().double())
    found = critic_loss(value, target, slow, weight)
    torch.testing.assert_close(found, weight * (value.loss(target) + value.loss(slow)))


def test_the_slow_critic_follows(dreamer, small):
    agent = dreamer()
    before = [p.clone() for p in agent.slow_critic.parameters()]
    assert all(map(torch.equal, agent.critic.parameters(), before))
    agent.update(small.batch("vector"))
    for old, new, slow in zip(before, agent.critic.parameters(), agent.slow_critic.parameters(), strict=True):
        torch.testing.assert_close(slow, old + 0.02 * (new - old))


# The whole


def test_the_same_seed_learns_the_same_and_another_does_not(dreamer, small):
    a, b, other = dreamer(seed=1), dreamer(seed=1), dreamer(seed=2)
    for agent in (a, b, other):
        trained(agent, small)
    assert not small.differing(a.state_dict(), b.state_dict())
    assert small.differing(a.state_dict()["modules"], other.state_dict()["modules"])


def test_saved_and_loaded_it_goes_on(dreamer, small):
    agent, other = trained(dreamer(seed=1), small), dreamer(seed=2)
    other.load_state_dict(small.copied(agent.state_dict()))
    assert not small.differing(agent.state_dict(), other.state_dict())
    batch = small.batch("vector", seed=9)
    assert not small.differing(agent.update(batch), other.update(batch))
    assert not small.differing(agent.state_dict(), other.state_dict())


def test_a_size_that_does_not_fit_is_said_with_its_bytes(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda device: 10**9)
    with pytest.raises(ReverieError, match="200,727,182 parameters and needs 3,211,634,912 bytes") as error:
        DreamerV3of2023(IMAGE, ActionSpace(6))
    assert "choose a smaller size" in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_of_another_size_is_refused(dreamer):
    with pytest.raises(
        ReverieError, match=r"of another size or other spaces: .* use the settings it was made with"
    ):
        dreamer().load_state_dict(dreamer(units=16).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_an_actor_climbs_what_its_world_rewards(small, action):
    """A reward is the first entry of the action before it, and nothing else is to be seen."""
    settings = dict(model_lr=1e-2, actor_lr=3e-3, critic_lr=3e-3, deter=32, units=32)
    agent = small.agent("dreamer_v3_2023", "vector", action, **settings)
    obs = {key: np.zeros((200, *s.shape), np.float32) for key, s in agent.obs_space.items()}
    look = lambda: agent.act({**obs, "is_first": np.ones(200, bool)}, agent.initial(200), "train")[0][:, 0]
    assert look().mean() < 0.45
    for seed in range(300):
        batch = small.batch("vector", action, size=8, length=8, seed=seed, terminal=False)
        blank = {key: torch.zeros_like(value) for key, value in batch.obs.items()}
        agent.update(batch._replace(reward=batch.prev_action[..., 0], obs=blank))
    assert look().mean() > 0.7
