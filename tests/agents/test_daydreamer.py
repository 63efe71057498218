"""DayDreamer: the released code's numbers, each loss on values worked by hand, each gradient arrow."""

import math

import numpy as np
import pytest
import torch

from reverie import presets
from reverie.agents.daydreamer import (
    Actor,
    Config,
    DayDreamer,
    actor_loss,
    adapted,
    critic_loss,
    moments_of,
    normalised,
)
from reverie.dists import Normal, OneHot
from reverie.types import ActionSpace, Space

CAMERA = {"image": Space((64, 64, 3), "uint8")}
ARM = {**CAMERA, **{k: Space((n,)) for k, n in dict(pose=6, joints=6, gripper=1, side=3, grasped=3).items()}}
DEPTH = {**ARM, "depth": Space((64, 64, 1), "uint8"), "joints": Space((7,))}


@pytest.fixture
def dreamer(small):
    return lambda action="continuous", obs="vector", **settings: small.agent(
        "daydreamer", obs, action, **settings
    )


# Sizes and numbers


@pytest.mark.parametrize(
    ("obs", "act", "names", "world", "actor"),
    [
        ({"vector": Space((16,))}, ActionSpace(12), ["paper"], 6_727_954, 1_458_200),
        (ARM, ActionSpace(6, (6,)), ["arm"], 24_771_992, 1_580_038),  # UR5
        (DEPTH, ActionSpace(6, (6,)), ["arm"], 24_776_346, 1_580_038),  # XArm
        (CAMERA, ActionSpace(2), ["ball"], 22_120_837, 1_579_012),  # Sphero
    ],
    ids=["a1", "ur5", "xarm", "sphero"],
)
def test_counts_of_the_four_robots(obs, act, names, world, actor) -> None:
    agent = DayDreamer(obs, act, presets.resolve("daydreamer", names))
    owned = lambda optimizer: sum(p.numel() for p in optimizer.parameters)
    assert owned(agent.model_opt) == world and owned(agent.actor_opt) == actor
    assert owned(agent.critic_opt) == (1_446_401 if names == ["paper"] else 1_577_473)


def test_defaults_are_the_releases() -> None:
    c = Config()
    assert (c.deter, c.units, c.layers, c.prior_layers, c.depth) == (256, 512, 4, 3, 64)
    assert (c.kl_balance, c.kl_target, c.discount, c.lambda_, c.horizon) == (0.8, 3.5, 0.995, 0.95, 15)
    assert (c.unimix, c.actor_unimix, c.min_std, c.entropy_target) == (0.01, 0.1, 0.1, 0.5)
    assert (c.lr, c.adam_eps, c.clip, c.decay, c.target_every) == (1e-4, 1e-6, 100, 1e-2, 100)
    assert (c.batch_size, c.batch_length, c.prefill) == (32, 32, 5_000)
    assert c.batch_size * c.batch_length * (c.horizon + 1) == 16_384  # imagined states of an update


def follow(values, target, limits, sign) -> list[float]:
    scale, out = torch.ones(()), []
    for value in values:
        scale = adapted(scale, torch.tensor(value), target, 0.1, limits, sign)
        out.append(float(scale))
    return out


def test_scales_follow_their_targets() -> None:
    kl = follow([1.0, 1.0, 1.0, 5.0, 3.5], 3.5, (1e-3, 1.0), 1)
    np.testing.assert_allclose(kl, [0.90909, 0.82645, 0.75131, 0.82645, 0.82645], atol=1e-5)
    entropy = follow([0.9, 0.9, 0.2, 0.5], 0.5, (1e-5, 1.0), -1)
    np.testing.assert_allclose(entropy, [0.90909, 0.82645, 0.90909, 0.90909], atol=1e-5)
    assert follow([99.0] * 3, 3.5, (1e-3, 1.0), 1) == [1.0] * 3  # never above its limit
    assert follow([0.0] * 99, 3.5, (1e-3, 1.0), 1)[-1] == pytest.approx(1e-3)


@pytest.mark.parametrize(("least", "std", "spread"), [(0.1, 0.55, 0.74036), (0.03, 0.515, None)])
def test_standard_deviation_and_spread_before_training(least, std, spread) -> None:
    actor = Actor(4, ActionSpace(2), Config(units=8, layers=1, min_std=least))
    torch.nn.init.zeros_(actor.out.weight)
    dist = actor(torch.ones(1, 4))
    torch.testing.assert_close(dist.std, torch.full((1, 2), std))
    if spread is not None:
        torch.testing.assert_close(actor.spread(dist), torch.full((1, 2), spread), atol=1e-5, rtol=0)
    ends = [Normal(torch.zeros(1, 2), torch.full((1, 2), s)) for s in (least, 1.0)]
    torch.testing.assert_close(
        torch.cat([actor.spread(end) for end in ends]), torch.tensor([[0.0] * 2, [1.0] * 2])
    )


def test_a_discrete_actor_never_rules_out_an_action() -> None:
    actor = Actor(4, ActionSpace(6, (6,)), Config(units=8, layers=1))
    torch.nn.init.constant_(actor.out.bias, 0.0)
    with torch.no_grad():
        actor.out.bias[0] = 1e4
        dist = actor(torch.ones(1, 4))
    assert float(dist.probs.min()) == pytest.approx(0.1 / 6)
    assert float(dist.probs.max()) == pytest.approx(0.9 + 0.1 / 6)
    even = OneHot(torch.zeros(1, 6), (6,), 0.1)
    assert float(actor.spread(even)) == pytest.approx(1.0)


def test_advantages_are_normalised_without_bias() -> None:
    x = torch.tensor([1.0, 3.0])
    first, moments = normalised(x, torch.zeros(3), 0.01)
    torch.testing.assert_close(
        first, torch.tensor([-1.0, 1.0])
    )  # mean 2, deviation 1, from the first batch on
    _, moments = normalised(torch.tensor([5.0, 5.0]), moments, 0.01)
    mean, std = moments_of(moments)
    share = 0.01 / (0.01 + 0.0099)  # of the second batch
    expected = 2 + 3 * share
    assert float(mean) == pytest.approx(expected, rel=1e-5)
    assert float(std) == pytest.approx(math.sqrt(5 + 20 * share - expected**2), rel=1e-4)


# Losses by hand


def test_actor_loss_by_hand() -> None:
    weight, entropy = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.2, 0.4]])
    advantage = torch.tensor([[2.0, -1.0]])
    normal = Normal(torch.zeros(1, 2, 1), torch.ones(1, 2, 1))
    loss = actor_loss(normal, torch.zeros(1, 2, 1), advantage, weight, entropy)
    assert float(loss) == pytest.approx(-(2.2 + 0.5 * -0.6) / 2)
    hot = OneHot(torch.zeros(1, 2, 2), (2,))
    action = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    loss = actor_loss(hot, action, advantage, weight, entropy)
    half = math.log(0.5)
    assert float(loss) == pytest.approx(-((2 * half + 0.2) + 0.5 * (-half + 0.4)) / 2)


def test_critic_loss_by_hand() -> None:
    value, target, weight = (
        torch.tensor([0.0, 1.0]),
        torch.tensor([math.e - 1, 0.0]),
        torch.tensor([1.0, 0.5]),
    )
    assert float(critic_loss(value, target, weight)) == pytest.approx((1.0 + 0.5) / 2)


# The world


@pytest.mark.parametrize("obs", ["vector", "mixed"])
def test_observe_is_obs_step_in_a_loop(dreamer, small, obs) -> None:
    agent = dreamer(obs=obs)
    with torch.no_grad():
        agent.rssm.start.normal_()
    batch = small.batch(obs)
    embed = agent.encoder(agent.scale(batch.obs))
    post, prior = agent.rssm.observe(
        embed, batch.prev_action, batch.is_first, torch.Generator().manual_seed(3)
    )
    generator, n = torch.Generator().manual_seed(3), len(embed)
    noises = agent.rssm.latent.noise((embed.shape[1], n), embed, generator)
    state = agent.rssm.initial(n)
    agent.rssm.latent.noise = lambda shape, like, generator: noises[t]
    for t in range(embed.shape[1]):
        state = agent.rssm.obs_step(state, batch.prev_action[:, t], embed[:, t], batch.is_first[:, t])
        torch.testing.assert_close(state.deter, post.deter[:, t], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(state.stoch, post.stoch[:, t], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(agent.rssm.prior(state.deter), prior[:, t], atol=1e-4, rtol=1e-3)


def test_the_start_is_learned_and_likeliest_under_the_prior(dreamer) -> None:
    agent = dreamer()
    with torch.no_grad():
        agent.rssm.start.normal_()
    state = agent.rssm.initial(2)
    torch.testing.assert_close(state.deter[0], torch.tanh(agent.rssm.start))
    stats = agent.rssm.prior(state.deter)
    best = stats.unflatten(-1, (3, 4)).argmax(-1)
    assert torch.equal(state.stoch.unflatten(-1, (3, 4)).argmax(-1), best)


def test_every_sensor_is_rebuilt_from_one_latent(dreamer, small) -> None:
    agent = dreamer(obs="mixed")
    found = agent.decoder(torch.randn(2, 3, agent.rssm.features))
    assert found["image"].mode.shape == (2, 3, 64, 64, 3) and found["speed"].mode.shape == (2, 3, 2)
    assert float(found["image"].mode.min()) >= 0 and float(found["image"].mode.max()) <= 1


# Gradient arrows


@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_who_moves_whom(dreamer, small, action) -> None:
    """One update moves every network; none but its own optimiser's loss reaches it, and the target is a copy."""
    agent = dreamer(action)
    before = {name: p.detach().clone() for name, p in agent.modules.named_parameters()}
    metrics = agent.update(small.batch("vector", action))
    moved = {
        name.split(".")[0] for name, p in agent.modules.named_parameters() if not torch.equal(p, before[name])
    }
    assert moved >= {"encoder", "rssm", "decoder", "reward", "cont", "actor", "critic"}
    for name, value in agent.critic.state_dict().items():
        assert torch.equal(value, agent.target_critic.state_dict()[name])  # copied after the first update
    agent.update(small.batch("vector", action, seed=1))
    assert not torch.equal(
        agent.critic.out.weight, agent.target_critic.out.weight
    )  # and not after the second
    assert float(metrics["scale/kl"]) in (pytest.approx(1 / 1.1), pytest.approx(1.0))
    assert agent.scales["entropy"].shape == ((1,) if action == "discrete" else (2,))


def test_the_actors_gradient_runs_through_the_dream_where_actions_are_numbers(dreamer, small) -> None:
    agent = dreamer()
    batch = small.batch("vector")
    post, _ = agent.rssm.observe(
        agent.encoder(agent.scale(batch.obs)), batch.prev_action, batch.is_first, torch.Generator()
    )
    dream, action = agent.dream(post, torch.Generator())
    start = list(agent.rssm.parameters())
    through = torch.autograd.grad(
        dream[-1].sum(), [*agent.actor.parameters()], allow_unused=True, retain_graph=True
    )
    assert any(g is not None and g.abs().sum() > 0 for g in through)
    of_start = torch.autograd.grad(dream[0].sum(), start, allow_unused=True)
    assert all(
        g is None or not g.any() for g in of_start
    )  # where it was observed, nothing flows into the model
    assert action.shape == (3, 24, 2) and float(action.detach().abs().max()) <= 1.0


def test_a_terminal_start_teaches_nothing(dreamer, small) -> None:
    agent = dreamer("discrete")
    batch = small.batch("vector", "discrete")
    batch = batch._replace(is_terminal=torch.ones_like(batch.is_terminal))
    metrics = agent.update(batch)
    assert float(metrics["loss/actor"]) == 0 and float(metrics["loss/critic"]) == 0


def test_decay_shrinks_kernels_alone(dreamer) -> None:
    agent = dreamer(lr=1e-2)
    before = {name: p.detach().clone() for name, p in agent.critic.named_parameters()}
    agent.critic_opt.move(
        agent.critic_opt.gradient(sum((p * p).sum() * 0 for p in agent.critic.parameters()))
    )
    for name, p in agent.critic.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 1e-4 if p.ndim > 1 else 1))


def test_what_it_remembers_beside_weights_is_saved(dreamer, small) -> None:
    agent, other = dreamer(seed=0), dreamer(seed=1)
    for seed in range(3):
        agent.update(small.batch("vector", seed=seed))
    other.load_state_dict(small.copied(agent.state_dict()))
    assert not small.differing(agent.state_dict(), other.state_dict())
    one, two = agent.update(small.batch("vector", seed=9)), other.update(small.batch("vector", seed=9))
    assert float(one["loss/actor"]) == float(two["loss/actor"])
