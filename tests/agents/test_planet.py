"""PlaNet: the final code's numbers, its losses on values worked by hand, and what its planner is told."""

import math

import numpy as np
import pytest
import torch

from reverie.agents import planet
from reverie.agents.planet import Config, PlaNet
from reverie.dists import UnitNormal
from reverie.models.rssm import State
from reverie.planners.cem import CEM
from reverie.planners.mppi import MPPI
from reverie.planners.shooting import Shooting
from reverie.types import ActionSpace, Space

IMAGE = {"image": Space((64, 64, 3), "uint8")}
RESET_AFTER = 600  # a second set of biases, which the authors' recurrent cell does not have


@pytest.fixture
def agent(small):
    return lambda action="continuous", obs="image", **settings: small.agent("planet", obs, action, **settings)


def owned(optimizer):
    return sum(parameter.numel() for parameter in optimizer.parameters)


# Sizes and settings


@pytest.mark.parametrize(("actions", "published"), [(1, 5_292_220), (2, 5_292_420), (6, 5_293_220)])
def test_counts_of_the_final_code(actions, published):
    built = PlaNet(IMAGE, ActionSpace(actions))
    assert owned(built.model_opt) == published + RESET_AFTER
    assert {id(p) for p in built.model_opt.parameters} == {id(p) for p in built.modules.parameters()}


def test_counts_with_the_papers_reward_head():
    built = PlaNet(IMAGE, ActionSpace(6), Config(reward_units=200, reward_layers=2))
    assert owned(built.model_opt) == 5_130_220


def test_the_rate_holds_and_then_falls_in_a_straight_line_if_asked(agent, small):
    steady, falling = agent(lr=2e-3), agent(lr=2e-3, decay_after=1, decay_updates=2, decay_to=0.2)
    for built, shares in ((steady, [1, 1, 1, 1, 1]), (falling, [1, 1, 0.6, 0.2, 0.2])):
        for share in shares:
            built.update(small.batch())
            assert built.model_opt.lr == pytest.approx(share * 2e-3)


def test_defaults_are_the_final_codes():
    c = Config()
    assert (c.batch_size, c.batch_length, c.train_updates, c.train_every, c.prefill) == (
        50,
        50,
        100,
        1000,
        5000,
    )
    assert (c.stoch, c.deter, c.min_std, c.depth, c.bits) == (30, 200, 0.1, 32, 5)
    assert (c.reward_units, c.reward_layers, c.reward_scale) == (300, 3, 10)
    assert (c.kl_scale, c.free_nats, c.overshooting) == (1, 3, 0)
    assert (c.lr, c.adam_eps, c.clip) == (1e-3, 1e-4, 1000)
    assert (c.exploration_noise, c.planner) == (0.3, "cem")


def test_planners_take_the_settings():
    assert planet.make_planner(Config()) == CEM(horizon=12, iterations=10, candidates=1000, elites=100)
    assert planet.make_planner(Config(planner="shooting")) == Shooting(12, 1000)
    assert isinstance(planet.make_planner(Config(planner="mppi")), MPPI)


# Pictures


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (range(8), -0.5, -0.46875),
        ([8], -0.46875, -0.4375),
        ([127], -0.03125, 0.0),
        ([128], 0.0, 0.03125),
        ([255], 0.46875, 0.5),
    ],
)
def test_five_bits_with_noise_within_each_step(agent, values, low, high):
    built = agent()
    for value in values:
        image = torch.full((1, 64, 64, 3), value, dtype=torch.uint8)
        scaled = built.scale({"image": image}, torch.Generator().manual_seed(value))["image"]
        assert scaled.min() >= low
        assert scaled.max() < high
        assert scaled.mean().item() == pytest.approx((low + high) / 2, abs=5e-4)


def test_the_noise_never_leaves_its_step(agent):
    image = torch.arange(256, dtype=torch.uint8).repeat(48).view(1, 64, 64, 3)
    scaled = agent().scale({"image": image}, torch.Generator().manual_seed(0))["image"]
    assert torch.equal(torch.floor((scaled + 0.5) * 32) * 8, (image // 8 * 8).float())


@pytest.mark.parametrize(("bits", "floor"), [(5, 1.0), (8, 0.015625)])
def test_the_error_that_noise_leaves_to_the_best_prediction(agent, bits, floor):
    """Squared error, summed over a picture, of predicting the middle of every step."""
    built, levels = agent(bits=bits), 2**bits
    image = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    scaled = built.scale({"image": image}, torch.Generator().manual_seed(0))["image"]
    middle = (image // (256 // levels) + 0.5) / levels - 0.5
    assert ((scaled - middle) ** 2).sum((1, 2, 3)).mean().item() == pytest.approx(floor, rel=0.02)


def test_noise_is_fresh_at_every_use_and_the_same_for_encoder_and_target(agent, small, monkeypatch):
    built, batch = agent(), small.batch()
    encoded, predicted = [], []
    built.encoder.register_forward_pre_hook(lambda module, inputs: encoded.append(inputs[0]))
    original = planet.model_loss

    def spy(*arguments):
        predicted.append(arguments[4])
        return original(*arguments)

    monkeypatch.setattr(planet, "model_loss", spy)
    built.update(batch), built.update(batch)
    assert encoded[0] is predicted[0]
    assert not torch.equal(encoded[0]["image"], encoded[1]["image"])
    built.act(small.obs(first=range(3)), built.initial(3), "eval")
    pixels = (encoded[2]["image"] + 0.5) * 32
    assert (pixels != pixels.floor()).float().mean() > 0.99  # the acting agent sees noise too


# The model's loss


class Rows:
    """One update's inputs to ``model_loss``, with the parts that a test chooses."""

    def __init__(self, built, small, **settings):
        self.agent, self.batch = built, small.batch(**settings)
        self.obs = built.scale(self.batch.obs, torch.Generator())
        lead, c = self.batch.reward.shape, built.config
        self.feat = torch.randn(*lead, built.rssm.features)
        self.post = State(
            torch.zeros(*lead, c.deter), torch.zeros(*lead, c.stoch), torch.zeros(*lead, 2 * c.stoch)
        )
        self.prior = torch.zeros(*lead, 2 * c.stoch)

    def losses(self):
        return planet.model_loss(self.agent, self.feat, self.post, self.prior, self.obs, self.batch)[0]


def test_likelihoods_of_rewards_count_ten_times_and_images_once(agent, small):
    rows = Rows(agent(), small)
    rows.agent.decoder = lambda feat: {"image": UnitNormal(rows.obs["image"] + 0.1, event=3)}
    rows.agent.reward = lambda feat: rows.batch.reward + 1.0
    losses = rows.losses()
    assert losses["image"].item() == pytest.approx(11_353.356696, rel=1e-6)
    assert losses["reward"].item() == pytest.approx(10 * (0.5 + 0.918939), abs=1e-4)
    assert set(losses) == {"image", "reward", "kl"}


def test_free_nats_are_subtracted_from_every_row(agent, small):
    rows, std = Rows(agent(), small, size=1, length=3, ends=()), math.log(2) + 0.1
    rows.post.stats[0, :, 0] = std * torch.tensor([1.0, 2.0, 10.0]).mul(2).sqrt()
    shift = rows.post.stats[0, :, 0].clone()
    rows.post.stats.requires_grad_()
    kl = rows.losses()["kl"]
    assert kl.item() == pytest.approx(7 / 3, abs=1e-5)
    (grad,) = torch.autograd.grad(kl, rows.post.stats)
    assert (grad[0, :, 0] * std**2 / shift).tolist() == pytest.approx([0, 0, 1 / 3], abs=1e-6)


def test_kl_is_from_the_prior_to_the_posterior(agent, small):
    """KL(N(0.5, 0.8) || N(0, 1)) is 0.168143551 in each dimension; the other way around it is 0.253418949."""
    rows = Rows(agent(free_nats=0.0), small)
    raw = lambda std: math.log(math.expm1(std - 0.1))
    for stats, mean, std in ((rows.post.stats, 0.5, 0.8), (rows.prior, 0.0, 1.0)):
        stats[..., :5], stats[..., 5:] = mean, raw(std)
    assert rows.losses()["kl"].item() == pytest.approx(5 * 0.168143551, abs=1e-5)


def test_kl_gradients_reach_posterior_and_prior(agent, small):
    rows = Rows(agent(), small)
    stats = [3 * torch.randn_like(rows.prior) for _ in range(2)]
    rows.post, rows.prior = rows.post._replace(stats=stats[0].requires_grad_()), stats[1].requires_grad_()
    for grad in torch.autograd.grad(rows.losses()["kl"], stats):
        assert (grad != 0).any(0).any(0).all()


def test_an_update_moves_every_parameter(agent, small):
    built = agent(free_nats=0.0)
    before = small.copied(built.state_dict()["modules"])
    built.update(small.batch())
    after = built.state_dict()["modules"]
    assert not [name for name in after if torch.equal(after[name], before[name])]
    assert all(p.grad is None for p in built.modules.parameters())


def test_losses_of_heads_reach_the_encoder(agent, small):
    built, batch = agent(), small.batch()
    obs = built.scale(batch.obs, torch.Generator())
    post, prior = built.rssm.observe(built.encoder(obs), batch.prev_action, batch.is_first)
    losses, _ = planet.model_loss(built, built.rssm.feat(post), post, prior, obs, batch)
    for name in ("image", "reward"):
        grads = torch.autograd.grad(
            losses[name], list(built.encoder.parameters()), retain_graph=True, allow_unused=True
        )
        assert all((grad != 0).any() for grad in grads), name


def test_an_end_is_one_more_row(agent, small):
    a, b = agent(), agent()
    a.update(small.batch(terminal=True)), b.update(small.batch(terminal=False))
    assert not small.differing(a.state_dict(), b.state_dict())


# Ablations


def test_a_deterministic_world_pays_nothing_for_information(agent, small):
    built = agent(model="deterministic", free_nats=0.0)
    before = [weight.clone() for weight in built.rssm.img_stats.parameters()]
    assert built.update(small.batch())["loss/kl"].item() == 0
    assert all(map(torch.equal, built.rssm.img_stats.parameters(), before))  # so its prior learns nothing
    post, _ = built.rssm.observe(
        torch.randn(2, 3, 64), torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.bool)
    )
    assert torch.equal(post.stoch, post.stats[..., :5])


def test_a_stochastic_world_has_no_recurrent_parameters(agent, small):
    built = agent(model="stochastic")
    assert not list(built.rssm.cell.parameters())
    assert np.isfinite(float(built.update(small.batch())["grad/model"]))


# Overshooting


def overshot(built, post, batch):
    """Eq. 7, one start and one distance at a time; the latent must be deterministic."""
    c, total = built.config, 0.0
    size, time = batch.reward.shape
    for d in range(2, c.overshooting + 1):
        kls = []
        for b in range(size):
            for t in range(time - d):
                if batch.is_first[b, t + 1 : t + d + 1].any():
                    continue
                state = State(*(part[b : b + 1, t] for part in post))
                for k in range(1, d + 1):
                    state = built.rssm.img_step(state, batch.prev_action[b : b + 1, t + k])
                target = built.rssm.latent.dist(post.stats[b : b + 1, t + d])
                kls.append((target.kl(built.rssm.latent.dist(state.stats)) - c.free_nats).clamp(min=0))
        total += torch.cat(kls).mean() if kls else 0.0
    return c.overshooting_scale * total / c.overshooting


@pytest.mark.parametrize("ends", [(), ((1, 2), (2, 1)), ((0, 1), (0, 3), (1, 0), (2, 2))])
@pytest.mark.parametrize("distance", [2, 4])
def test_overshooting_by_hand(agent, small, distance, ends):
    built = agent(model="deterministic", overshooting=distance, overshooting_scale=0.5, free_nats=0.05)
    batch = small.batch(size=3, length=6, ends=ends)
    embed = 3 * torch.randn(3, 6, built.encoder.embed)
    post, _ = built.rssm.observe(embed, batch.prev_action, batch.is_first)
    loss = planet.overshooting_loss(built, post, batch, torch.Generator())
    assert loss.item() == pytest.approx(overshot(built, post, batch).item(), rel=1e-4)
    assert loss > 0


def test_overshooting_targets_carry_no_gradient(agent, small):
    """The posterior is a target without gradient; as a start it is taught by where its rolls arrive."""
    built = agent(overshooting=3, free_nats=0.0)
    batch = small.batch()
    c, lead = built.config, batch.reward.shape
    post = State(*(torch.randn(*lead, n, requires_grad=True) for n in (c.deter, c.stoch, 2 * c.stoch)))
    loss = planet.overshooting_loss(built, post, batch, built.generators["learn"])
    prior = list(built.rssm.img_stats.parameters())
    d_deter, d_stoch, d_stats, *d_prior = torch.autograd.grad(loss, [*post, *prior], allow_unused=True)
    assert d_stats is None
    assert (d_deter != 0).any()
    assert (d_stoch != 0).any()
    assert all((grad != 0).any() for grad in d_prior)


def test_overshooting_is_part_of_an_update_only_when_asked_for(agent, small):
    assert "loss/overshooting" not in agent().update(small.batch())
    assert "loss/overshooting" in agent(overshooting=3).update(small.batch())
    long = agent(overshooting=50).update(small.batch())["loss/overshooting"]  # longer than the sequence
    assert torch.isfinite(long)


# Planning


class Line:
    """A world on a line: s' = s + a, reward s. It writes down the states it was asked to step from."""

    def __init__(self):
        self.starts, self.rewarded = [], []

    def img_step(self, state, action, generator):
        self.starts.append(state)
        return State(state.deter, state.stoch + action[:, :1], state.stats)

    def feat(self, state):
        return state.stoch

    def reward(self, feat):
        self.rewarded.append(feat)
        return feat[:, 0]


@pytest.fixture
def line(agent):
    built, world = agent(), Line()
    built.rssm, built.reward = world, world.reward
    return built, world


def start(*values):
    column = torch.tensor(values)[:, None]
    return State(column.clone(), column.clone(), column.clone())


def test_a_plan_is_worth_the_rewards_it_leads_to(line):
    """Rewards of s_1 .. s_H; that of s_0 is not counted. Two streams of three candidates, told apart."""
    built, world = line
    candidates = torch.randn(4, 2, 3, 2).clamp(-1, 1)
    returns = built.rollout(start(0.0, 100.0), candidates, torch.Generator())
    assert returns.shape == (2, 3)
    for stream, s_0 in enumerate((0.0, 100.0)):
        for n in range(3):
            path = s_0 + candidates[:, stream, n, 0].cumsum(0)
            assert returns[stream, n].item() == pytest.approx(path.sum().item(), rel=1e-5)
    assert len(world.rewarded) == 4
    assert not any(torch.equal(world.starts[0].stoch, feat) for feat in world.rewarded)


def test_all_candidates_of_a_stream_start_from_the_same_sample(line):
    built, world = line
    built.rollout(start(1.0, 2.0, 3.0), torch.zeros(2, 3, 4, 2), torch.Generator())
    for part in world.starts[0]:
        assert part.flatten().tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4


def test_paths_are_sampled_and_rewards_are_not(agent):
    """Two copies of one candidate part ways in a stochastic world, and only there."""
    for model, together in (("rssm", False), ("deterministic", True)):
        built = agent(model=model)
        returns = built.rollout(built.rssm.initial(1), torch.zeros(3, 1, 2, 2), torch.Generator())
        assert torch.equal(returns[0, 0], returns[0, 1]) == together
        sure = built.rollout(built.rssm.initial(1), torch.zeros(1, 1, 1, 2), torch.Generator().manual_seed(0))
        after = built.rssm.img_step(
            built.rssm.initial(1), torch.zeros(1, 2), torch.Generator().manual_seed(0)
        )
        assert sure.item() == pytest.approx(built.reward(built.rssm.feat(after)).item())


def test_every_stream_has_a_plan_of_its_own(agent):
    """Each stream is rewarded for its own place: from 0.3 left of it and from 0.6 right of it, one step."""
    built = agent(horizon=1, candidates=500, elites=50, iterations=8)
    world = Line()
    built.rssm, built.reward = world, lambda feat: -(feat[:, 0] ** 2)
    action = built.plan(start(-0.3, 0.6), torch.Generator().manual_seed(0))
    assert action.shape == (2, 2)
    assert action[:, 0].tolist() == pytest.approx([0.3, -0.6], abs=0.01)


def test_of_a_plan_only_the_first_action_is_done(agent):
    built = agent()
    plan = torch.arange(12.0).view(2, 3, 2)  # B H A
    built.planner = lambda rollout, streams, space, generator, device: plan
    assert built.plan(built.rssm.initial(2), torch.Generator()).tolist() == [[0, 1], [6, 7]]


def test_plans_begin_anew_at_every_decision(line):
    """No warm start: the same state and randomness give the same plan, whatever was planned before."""
    built, _ = line
    plan = lambda: built.plan(start(0.0), torch.Generator().manual_seed(4))
    first = plan()
    built.plan(start(50.0), torch.Generator().manual_seed(5))
    assert torch.equal(plan(), first)


# Acting


def test_exploration_adds_noise_and_clips(agent):
    built = agent()
    action = built.explore(torch.full((20_000, 2), 0.1), torch.Generator().manual_seed(0), 0.3, 0.0)
    assert action.mean().item() == pytest.approx(0.1, abs=0.01)
    assert action.std().item() == pytest.approx(0.3, abs=0.01)
    edge = built.explore(torch.ones(1000, 2), torch.Generator().manual_seed(0), 0.3, 0.0)
    assert edge.max() == 1
    assert edge.min() > -1


def test_discrete_exploration_overrules_groups_one_by_one(agent):
    built = agent("multidiscrete")
    planned = torch.tensor([[1.0, 0, 0, 1, 0]]).expand(20_000, 5)
    action = built.explore(planned, torch.Generator().manual_seed(0), 0.3, 0.5)
    first, second = action[:, 0] == 0, action[:, 3] == 0
    assert first.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert second.float().mean().item() == pytest.approx(1 / 3, abs=0.02)
    assert (first & second).float().mean().item() == pytest.approx(0.25 / 3, abs=0.02)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_noise_is_for_training(agent, small, mode):
    built = agent()
    plan = torch.full((3, 2), 0.25)
    built.plan = lambda state, generator: plan
    action, (_, remembered) = built.act(small.obs(first=range(3)), built.initial(3), mode)
    assert np.array_equal(action, plan.numpy()) == (mode == "eval")
    assert np.array_equal(action, remembered.numpy())  # the filter is told what was carried out


def test_the_filter_uses_the_last_action_and_the_new_observation(agent, small):
    built = agent()
    _, (state, remembered) = built.act(small.obs(first=range(3)), built.initial(3), "train")
    generator = torch.Generator()
    generator.set_state(built.generators["train"].get_state())
    rows = small.obs(seed=1)
    _, (after, _) = built.act(rows, (state, remembered), "train")
    embed = built.encoder(built.scale({"image": torch.from_numpy(rows["image"])}, generator))
    expected = built.rssm.obs_step(state, remembered, embed, torch.zeros(3, dtype=torch.bool), generator)
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))


@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_random_collection_does_not_plan(agent, small, action):
    """The ablation acts by the planner's first guess: noise of std 1 around 0."""
    built = agent(action, random_collection=True)
    built.plan = lambda *_: pytest.fail("planned")
    actions, _ = built.act(small.obs(n=500, first=range(500)), built.initial(500), "train")
    if action == "continuous":
        assert (np.abs(actions) == 1).mean() == pytest.approx(0.317, abs=0.06)  # beyond one std, clipped
    else:
        assert actions.mean(0) == pytest.approx([1 / 3] * 3, abs=0.08)
