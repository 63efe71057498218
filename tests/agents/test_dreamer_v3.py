"""Dreamer V3: the released code's numbers, each loss on values worked by hand, each gradient arrow."""

import numpy as np
import pytest
import torch
from torch import nn

from reverie import machine, presets
from reverie.agents import dreamer_v3
from reverie.agents.dreamer_v3 import Config, DreamerV3, parts, replay_returns
from reverie.data.replay import Replay
from reverie.dists import Bernoulli, Normal, OneHot, TwoHot
from reverie.models.rssm import State
from reverie.ops.returns import td_lambda_returns
from reverie.ops.scalars import symexp_bins
from reverie.run.driver import Driver
from reverie.types import ActionSpace, ReverieError, Space, Step

IMAGE = {"image": Space((64, 64, 3), "uint8")}
WALKER = {"height": Space((1,)), "orientations": Space((14,)), "velocity": Space((9,))}
CHOICES = lambda n: ActionSpace(n, (n,))
MODEL = {"encoder", "rssm", "decoder", "reward", "cont"}


@pytest.fixture
def dreamer(small):
    return lambda action="continuous", obs="vector", **settings: small.agent(
        "dreamer_v3", obs, action, **settings
    )


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


# Sizes


def counts(obs_space, act_space, size):
    with torch.device("meta"):
        made = parts(obs_space, act_space, presets.resolve("dreamer_v3", (size,)))
    return {name: sum(p.numel() for p in part.parameters()) for name, part in made._asdict().items()}


@pytest.mark.parametrize(
    ("size", "proprio", "image", "discrete", "gray"),
    [
        ("1m", 640_867, 686_846, 688_004, 769_762),
        ("12m", 9_738_019, 10_494_158, 10_498_772, 11_808_850),
        ("25m", 21_782_947, 23_489_326, 23_496_244, 26_444_402),
        ("50m", 38_612_003, 41_650_062, 41_659_284, 46_900_882),
        ("100m", 86_622_499, 93_468_238, 93_482_068, 105_276_626),
        ("200m", 153_769_507, 165_948_686, 165_967_124, 186_936_082),
        ("400m", 345_473_059, 372_896_398, 372_924_052, 420_106_130),
    ],
)
def test_counts_of_every_size(size, proprio, image, discrete, gray):
    total = lambda *spaces: sum(counts(*spaces, size).values())
    assert total(WALKER, ActionSpace(6)) == proprio
    assert total(IMAGE, ActionSpace(6)) == image
    assert total(IMAGE, CHOICES(18)) == discrete
    assert total({"image": Space((96, 96, 1), "uint8")}, CHOICES(18)) == gray


def test_counts_of_every_part():
    of_1m = dict(encoder=10_112, rssm=364_416, decoder=51_096, reward=57_663, cont=41_153, actor=50_316)
    assert counts(WALKER, ActionSpace(6), "1m") == of_1m | {"critic": 66_111}
    of_12m = dict(encoder=220_416, rssm=5_979_648, decoder=1_272_003, reward=721_407, cont=656_129)
    assert counts(IMAGE, ActionSpace(6), "12m") == of_12m | {"actor": 791_052, "critic": 853_503}
    assert sum(counts({"x": Space((3,))}, ActionSpace(1), "1m").values()) == 637_188
    assert sum(counts(IMAGE, CHOICES(17), "1m").values()) == 687_875


def test_shapes_of_pictures():
    with torch.device("meta"):
        for size, tokens in (("12m", 1024), ("200m", 4096)):
            made = parts(IMAGE, ActionSpace(6), presets.resolve("dreamer_v3", (size,)))
            assert made.encoder.embed == tokens
            assert made.decoder.shape == (4, 4, tokens // 16)


def test_defaults_are_the_releases():
    c = Config()
    assert (c.batch_size, c.batch_length, c.horizon, c.lambda_) == (16, 64, 15, 0.95)
    assert (c.deter, c.hidden, c.stoch, c.classes, c.units, c.depth, c.blocks) == (
        8192,
        1024,
        32,
        64,
        1024,
        64,
        8,
    )
    assert (c.lr, c.warmup, c.clip, c.adam_eps) == (4e-5, 1000, 0.3, 1e-20)
    assert (c.dyn_scale, c.rep_scale, c.free_nats, c.replay_scale, c.entropy_scale) == (1, 0.1, 1, 0.3, 3e-4)
    assert (c.return_rate, c.slow_rate, c.unimix, c.bins) == (0.01, 0.02, 0.01, 255)
    assert c.discount == pytest.approx(0.996996997)


@pytest.mark.parametrize(
    ("preset", "every", "updates"),
    [
        ("dmc_proprio", 1, 1),
        ("dmc_2024", 4, 1),
        ("dmc_vision", 4, 1),
        ("atari100k", 16, 1),
        ("atari", 128, 1),
    ],
)
def test_the_ratio_counts_decisions(preset, every, updates):
    """Replayed rows per decision: env steps between updates are 1024 / ratio, times the action repeat."""
    c = presets.resolve("dreamer_v3", (preset,))
    assert (c.train_every, c.train_updates) == (every, updates)


def test_a_ratio_of_none_trains_never_and_a_large_one_several_times():
    assert Config(train_ratio=0.0).train_updates == 0
    assert Config(train_ratio=3072.0).train_updates == 3
    assert (Config(train_ratio=1536.0).train_every, Config(train_ratio=1536.0).train_updates) == (2, 3)


# Before training


def test_rewards_and_values_begin_at_zero_and_cost_the_same_for_any_target(dreamer):
    agent = dreamer(bins=255)
    feat = torch.randn(50, agent.rssm.features)
    for head in (agent.reward, agent.critic, agent.slow_critic):
        assert (head(feat).mean == 0).all()
        assert head(feat).loss(torch.randn(50)).tolist() == pytest.approx([5.5412635] * 50, abs=1e-5)


def test_continuous_actions_before_training(dreamer):
    agent = dreamer()
    nn.init.zeros_(agent.actor.mlp.out.weight)
    dist = agent.actor(torch.randn(4, agent.rssm.features))
    assert dist.mean.abs().max() == 0
    assert dist.std[0].tolist() == pytest.approx([0.89271737] * 2, abs=1e-6)
    assert dist.entropy()[0].item() == pytest.approx(2 * 1.30545329, abs=1e-5)
    for raw, entropy in ((-100.0, -0.88364656), (100.0, 1.41893853)):
        nn.init.constant_(agent.actor.mlp.out.bias, raw)
        assert agent.actor(torch.zeros(1, agent.rssm.features)).entropy().item() == pytest.approx(
            2 * entropy, abs=1e-5
        )


def test_discrete_actions_keep_one_percent(dreamer):
    agent = dreamer("multidiscrete")
    with torch.no_grad():
        agent.actor.mlp.out.bias.copy_(torch.tensor([50.0, 0, 0, 50, 0]))
    probs = agent.actor(torch.zeros(1, agent.rssm.features)).probs[0]
    expected = [0.995, 0.005, 0.01 / 3, 0.99 + 0.01 / 3, 0.01 / 3]
    assert probs.tolist() == pytest.approx(expected, abs=1e-4)
    none = dreamer("multidiscrete", actor_unimix=0.0)
    with torch.no_grad():
        none.actor.mlp.out.bias.copy_(torch.tensor([50.0, 0, 0, 50, 0]))
    assert none.actor(torch.zeros(1, agent.rssm.features)).probs[0, 1].item() < 1e-10


def test_the_soft_cont_label():
    """1 - 1/333: the least cross-entropy is .02044036, at the logit 5.80513497; not at a surer one."""
    label = double(1 - 1 / 333)
    assert Bernoulli(double(5.80513497)).loss(label).item() == pytest.approx(0.02044036, abs=1e-8)
    assert Bernoulli(double(8.0)).loss(label).item() > 0.0205


# Returns


REWARD, CONT, VALUE = double(9, 1, 2, 3, 4), double(1, 1, 0.5, 1, 0), double(10, 20, 30, 40, 50)


@pytest.mark.parametrize(
    ("discount", "lambda_", "expected"),
    [
        (1.0, 0.95, [8.5835, 6.93, 8.8, 4]),
        (0.99, 0.95, [8.43564668, 6.8534255, 8.742, 4]),
        (0.99, 0.0, [20.8, 16.85, 42.6, 4]),
        (0.99, 1.0, [6.390748, 5.4452, 6.96, 4]),
    ],
)
def test_imagined_returns_take_the_next_states_reward(discount, lambda_, expected):
    found = td_lambda_returns(REWARD[1:], VALUE[1:], discount * CONT[1:], lambda_)
    assert found.tolist() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("is_last", "is_terminal", "expected"),
    [
        ((0, 0, 1, 0, 0), (0, 0, 1, 0, 0), [3.19339339, 2, 15.68611314, 12.97297297]),
        ((0, 0, 1, 0, 0), (0, 0, 0, 0, 0), [9.80351342, 8.97897898, 15.68611314, 12.97297297]),
    ],
)
def test_replayed_returns_end_at_ends_and_bootstrap_at_cuts(is_last, is_terminal, expected):
    flags = [torch.tensor([f], dtype=torch.bool) for f in (is_last, is_terminal)]
    boot = double(5, 6, 7, 8, 9)[None]
    found = replay_returns(REWARD[None], *flags, boot, 0.996996997, 0.95)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-7)


# Losses


class Watch:
    """An update, with what each loss was given and the gradient it alone sends to every parameter."""

    def __init__(self, monkeypatch, agent, batch):
        self.calls, self.results = {}, {}
        for name in ("model_loss", "actor_loss", "critic_loss", "replay_loss"):
            monkeypatch.setattr(dreamer_v3, name, self.remember(name, getattr(dreamer_v3, name)))
        self.agent = agent
        self.before = {n: p.detach().clone() for n, p in agent.modules.named_parameters()}
        gradient = agent.opt.gradient

        def each(loss):
            names = [n for n, p in agent.modules.named_parameters() if p.requires_grad]
            leaves = [p for p in agent.modules.parameters() if p.requires_grad]
            results = dict(self.results)
            for name, part in results.pop("model_loss")[0].items():
                results[name] = part
            self.reached = {}
            for name, part in results.items():
                grads = torch.autograd.grad(part.sum(), leaves, retain_graph=True, allow_unused=True)
                hit = {n for n, g in zip(names, grads, strict=True) if g is not None and (g != 0).any()}
                self.reached[name] = hit
            return gradient(loss)

        monkeypatch.setattr(agent.opt, "gradient", each)
        self.metrics = agent.update(batch)

    def remember(self, name, function):
        def called(*arguments):
            self.calls[name] = arguments
            self.results[name] = function(*arguments)
            return self.results[name]

        return called

    def modules(self, name):
        return {n.split(".")[0] for n in self.reached[name]}


def trained(agent, small, action="continuous", obs="vector", **batch):
    """After two updates no output layer is zero any more."""
    for seed in (5, 6):
        agent.update(small.batch(obs, action, seed=seed, **batch))
    return agent


@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_gradient_arrows(dreamer, small, monkeypatch, action):
    agent = trained(dreamer(action, "mixed", free_nats=0.0), small, action, "mixed")
    watch = Watch(monkeypatch, agent, small.batch("mixed", action))
    assert watch.modules("image") == watch.modules("speed") == {"encoder", "rssm", "decoder"}
    assert watch.modules("reward") == {"encoder", "rssm", "reward"}
    assert watch.modules("cont") == {"encoder", "rssm", "cont"}
    assert watch.modules("actor_loss") == {"actor"}
    assert watch.modules("critic_loss") == {"critic"}
    assert watch.modules("replay_loss") == {"encoder", "rssm", "critic"}
    assert watch.modules("dyn") == watch.modules("rep") == {"encoder", "rssm"}
    prior = {n for n in watch.reached["dyn"] if n.startswith("rssm.img_stats")}
    assert prior and not any(n.startswith("rssm.img_stats") for n in watch.reached["rep"])
    assert (
        not any(n.startswith("rssm.obs_stats.bias") for n in ())
        and "rssm.obs_stats.bias" in watch.reached["rep"]
    )


def test_dyn_leaves_the_posterior_of_the_row_alone(dreamer, small):
    agent = dreamer(free_nats=0.0)
    post, prior = torch.randn(2, 3, 16, requires_grad=True), torch.randn(2, 3, 16, requires_grad=True)
    feat = torch.randn(2, 3, agent.rssm.features)
    batch = small.batch("vector", size=2, length=3, ends=())
    state = State(feat[..., :16], feat[..., 16:], post)
    losses, _ = dreamer_v3.model_loss(agent, feat, state, prior, agent.scale(batch.obs), batch)
    grad = lambda loss, x: torch.autograd.grad(loss.sum(), x, retain_graph=True, allow_unused=True)[0]
    assert grad(losses["dyn"], post) is None and (grad(losses["dyn"], prior) != 0).any()
    assert grad(losses["rep"], prior) is None and (grad(losses["rep"], post) != 0).any()


@pytest.mark.parametrize(("kl", "expected"), [(0.3, 1.1), (5.0, 5.5)])
def test_free_nats_are_under_every_rows_sum(dreamer, small, monkeypatch, kl, expected):
    """KL .3: 1 + .1; KL 5: 5 + .5. The sum over latents is what the floor is under, and below it nothing moves."""
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
    feat = torch.randn(2, 3, agent.rssm.features)
    batch = small.batch("vector", size=2, length=3, ends=())
    state = State(feat[..., :16], feat[..., 16:], stats)
    losses, _ = dreamer_v3.model_loss(agent, feat, state, stats, agent.scale(batch.obs), batch)
    assert (losses["dyn"] + losses["rep"]).mean().item() == pytest.approx(expected)


def test_pictures_are_summed_squares_and_vectors_squares_of_symlogs(dreamer, small):
    agent = dreamer(obs="mixed")
    batch = small.batch("mixed", size=2, length=3, ends=())
    obs = agent.scale(batch.obs)
    assert obs["image"].min() >= 0 and obs["image"].max() <= 1
    feat = torch.randn(2, 3, agent.rssm.features)
    found = agent.decoder(feat)
    image = found["image"].loss(obs["image"])
    assert image.shape == (2, 3)
    torch.testing.assert_close(image, ((found["image"].mode - obs["image"]) ** 2).sum((-3, -2, -1)))
    symlogged = obs["speed"].sign() * obs["speed"].abs().log1p()
    torch.testing.assert_close(
        found["speed"].loss(obs["speed"]), ((found["speed"].mean - symlogged) ** 2).sum(-1)
    )
    assert torch.equal(agent.unscale({"image": obs["image"]})["image"], batch.obs["image"])


def test_small_vectors_are_standardised_and_large_ones_left_to_symlog(dreamer, small):
    agent, other = (dreamer(obs="mixed", standardize=True) for _ in range(2))
    batch = small.batch("mixed")
    spread = torch.ones(batch.obs["speed"].shape[-1])
    spread[0], spread[-1] = 0.1, 30.0
    batch.obs["speed"].mul_(spread).add_(2.0)
    assert torch.equal(agent.scale(batch.obs)["speed"], batch.obs["speed"]), "nothing was learned yet"
    agent.update(batch)
    rows = batch.obs["speed"].flatten(0, 1)
    expected = (rows - rows.mean(0)) / rows.std(0, correction=0).clamp(0.01, 1.0)
    found = agent.scale(batch.obs)
    torch.testing.assert_close(found["speed"].flatten(0, 1), expected, atol=1e-4, rtol=1e-4)
    assert found["speed"][..., -1].std() > 10 and found["image"].max() <= 1
    torch.testing.assert_close(agent.unscale(found)["speed"], batch.obs["speed"], atol=1e-4, rtol=1e-4)
    other.load_state_dict(agent.state_dict())
    assert torch.equal(other.scale(batch.obs)["speed"], found["speed"])
    assert not any("normalizers" in name for name in dreamer(obs="mixed").modules.state_dict())


def test_fifteen_transitions_sixteen_states(dreamer, small, monkeypatch):
    """H transitions: H losses from H + 1 states; the weights begin with the chance that the start is no end."""
    agent = trained(dreamer(horizon=4), small)
    watch = Watch(monkeypatch, agent, small.batch("vector"))
    _, action, advantage, weight, scale = watch.calls["actor_loss"]
    value, target, slow, weight_too = watch.calls["critic_loss"]
    assert action.shape[:2] == advantage.shape == weight.shape == target.shape == slow.shape == (4, 24)
    assert value.logits.shape[:2] == (5, 24)
    assert torch.equal(weight, weight_too) and scale == 3e-4
    assert (weight[0] < 1).all() and (weight[1:] <= weight[:-1]).all()
    assert watch.results["critic_loss"].shape == (4, 24)
    assert watch.results["replay_loss"].shape == (4, 5)


def test_advantages_are_divided_by_the_range_of_the_returns(dreamer, small, monkeypatch):
    agent = trained(dreamer(), small)
    agent.range = torch.tensor([-4.0, 16.0])
    watch = Watch(monkeypatch, agent, small.batch("vector"))
    value, target, _, _ = watch.calls["critic_loss"]
    marks = torch.quantile(target.flatten(), torch.tensor([0.05, 0.95]))
    expected = torch.lerp(torch.tensor([-4.0, 16.0]), marks, 0.01)
    torch.testing.assert_close(agent.range, expected)
    scale = expected[1] - expected[0]
    assert scale > 1
    torch.testing.assert_close(watch.calls["actor_loss"][2], (target - value.mean[:-1]) / scale)


def test_actor_loss_is_weighted_and_so_is_its_entropy():
    policy = Normal(double([0.0], [0.5]), double([1.0], [0.5]))
    action, advantage, weight = double([1.0], [0.5]), double(2.0, -1.0), double(1.0, 0.25)
    log_prob = [-0.5 - 0.918939, -np.log(0.5) - 0.918939]
    entropy = [1.418939, 1.418939 + np.log(0.5)]
    expected = [-(log_prob[0] * 2 + 0.1 * entropy[0]), -0.25 * (-log_prob[1] + 0.1 * entropy[1])]
    found = dreamer_v3.actor_loss(policy, action, advantage, weight, 0.1)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_critic_loss_is_to_the_returns_and_to_the_slow_critic():
    bins = symexp_bins().double()
    logits = torch.randn(3, 2, 255, dtype=torch.float64)
    target, slow, weight = torch.randn(2, 2), torch.randn(2, 2), torch.rand(2, 2)
    target, slow, weight = target.double(), slow.double(), weight.double()
    found = dreamer_v3.critic_loss(TwoHot(logits, bins), target, slow, weight)
    first = TwoHot(logits[:2], bins)
    torch.testing.assert_close(found, weight * (first.loss(target) + first.loss(slow)))


def test_replay_loss_leaves_last_rows_out(dreamer, small, monkeypatch):
    agent = trained(dreamer(), small)
    batch = small.batch("vector")
    watch = Watch(monkeypatch, agent, batch)
    found = watch.results["replay_loss"]
    last = batch.is_last[:, :-1]
    assert last.any() and (found[last] == 0).all() and (found[~last] > 0).all()
    boot = watch.calls["replay_loss"][1]
    assert torch.equal(
        boot.flatten(), watch.calls["critic_loss"][1][0]
    )  # the return of a dream from that row


def test_the_clock_is_not_an_end_and_ends_are_labelled(dreamer, small, monkeypatch):
    agent = dreamer()
    asked = []
    loss = Bernoulli.loss
    monkeypatch.setattr(Bernoulli, "loss", lambda self, label: asked.append(label) or loss(self, label))
    batch = small.batch("vector", terminal=False)
    agent.update(batch)
    assert (asked[-1] == agent.config.discount).all()
    batch = small.batch("vector", terminal=True)
    agent.update(batch)
    assert torch.equal(asked[-1] == 0, batch.is_terminal)


def test_the_slow_critic_follows(dreamer, small):
    agent = dreamer()
    assert all(
        torch.equal(a, b)
        for a, b in zip(agent.critic.parameters(), agent.slow_critic.parameters(), strict=True)
    )
    before = [p.clone() for p in agent.slow_critic.parameters()]
    agent.update(small.batch("vector"))
    for old, new, slow in zip(before, agent.critic.parameters(), agent.slow_critic.parameters(), strict=True):
        torch.testing.assert_close(slow, old + 0.02 * (new - old))
    assert pytest.approx(0.86738044) == 1 - 0.98**100
    owned = {id(p) for p in agent.opt.parameters}
    assert not any(id(p) in owned for p in agent.slow_critic.parameters())
    assert {id(p) for p in agent.modules.parameters() if p.requires_grad} == owned


def test_the_first_update_of_a_warm_up_moves_nothing(dreamer, small):
    agent = dreamer(warmup=10)
    before = small.copied(dict(agent.modules.state_dict()))
    agent.update(small.batch("vector"))
    assert not small.differing(before, dict(agent.modules.state_dict()))
    agent.update(small.batch("vector"))
    assert small.differing(before, dict(agent.modules.state_dict()))


# Memories kept with rows


def test_a_memory_packs_and_unpacks(dreamer):
    agent = dreamer()
    carry = agent.act({**rows(agent, 3), "is_first": np.ones(3, bool)}, agent.initial(3), "train")[1]
    state, packed = carry[0], agent.remember(carry)
    for name in agent.context.names:
        assert (
            packed[name].dtype == agent.context[name].base
            and packed[name].shape[1:] == agent.context[name].shape
        )
    back = agent.unpacked({name: torch.from_numpy(value) for name, value in packed.items()})
    assert torch.equal(back.stoch, state.stoch)
    torch.testing.assert_close(back.deter, state.deter, atol=1e-3, rtol=1e-3)
    none = agent.unpacked({n: torch.from_numpy(v) for n, v in agent.remember(agent.initial(2)).items()})
    assert (none.stoch == 0).all() and (none.deter == 0).all()
    assert agent.context.itemsize == 2 * 16 + 4


def rows(agent, n, seed=0):
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=(n, *s.shape)).astype(np.float32) for key, s in agent.obs_space.items()}


def test_a_sequence_goes_on_from_what_was_remembered_before_it(dreamer, small):
    """Two batches that differ only in their context give different states; where a row is first, the same."""
    batch = small.batch("vector")
    agents = [dreamer(seed=1) for _ in range(2)]
    context = {
        "deter": torch.zeros(4, 16, dtype=torch.float16),
        "stoch": torch.zeros(4, 4, dtype=torch.uint8),
    }
    other = {"deter": context["deter"] + 0.5, "stoch": context["stoch"] + 2}
    where = torch.tensor([[0, 0], [0, 6], [0, 12], [0, 18]])
    for agent, given in zip(agents, (context, other), strict=True):
        agent.update(batch._replace(rows=where, context=given))
    a, b = (agent.reread for agent in agents)
    assert a["deter"].shape == (4, 6, 16) and a["stoch"].shape == (4, 6, 4)
    first = batch.is_first[:, 0]
    assert torch.equal(a["deter"][first], b["deter"][first])
    assert (a["deter"][~first][:, 0] != b["deter"][~first][:, 0]).any()


class World:
    """Two streams of a random walk, for the driver."""

    def __init__(self):
        self.n, self.act_space = 2, ActionSpace(2)
        self.obs_space = {"position": Space((3,)), "speed": Space((2,))}
        self.rng, self.t = np.random.default_rng(0), 0

    def step(self, action, live):
        self.t += 1
        first = np.full(2, self.t % 5 == 1)
        obs = {k: self.rng.normal(size=(2, *s.shape)).astype(np.float32) for k, s in self.obs_space.items()}
        last = np.full(2, self.t % 5 == 0)
        reward = np.where(first, 0, self.rng.normal(size=2)).astype(np.float32)
        return Step(obs, reward, first, last, np.zeros(2, bool), np.where(first, 0, 1))


def test_the_driver_keeps_the_acting_agents_memory_with_each_row(dreamer):
    agent, envs = dreamer(), World()
    replay = Replay(envs.obs_space, envs.act_space, 200, 2, context=agent.context)
    driver = Driver(agent, envs, replay, prefill=0, seed=0)
    kept = []
    for _ in range(12):
        driver()
        kept.append(agent.remember(driver.carry))
    batch = replay.take([0, 1], [3, 8], 2)
    for b, (stream, first) in enumerate(((0, 3), (1, 8))):
        for name in agent.context.names:
            assert np.array_equal(batch.context[name][b].numpy(), kept[first - 1][name][stream])
    agent.update(batch._replace())
    replay.refresh(batch.rows, agent.reread)
    again = replay.take([0], [4], 1)
    assert torch.equal(again.context["deter"][0], agent.reread["deter"][0, 0])


# What is refused


def test_a_size_that_does_not_fit_is_said_with_its_bytes(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda device: 10**9)
    with pytest.raises(ReverieError, match="165,948,686 parameters and needs 3,318,973,720 bytes") as error:
        DreamerV3(IMAGE, ActionSpace(6))
    assert "choose a smaller size" in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_of_another_size_is_refused(dreamer):
    with pytest.raises(
        ReverieError, match=r"of another size or other spaces: .* use the settings it was made with"
    ):
        dreamer().load_state_dict(dreamer(units=16).state_dict())


@pytest.mark.parametrize("shape", [(60, 64, 3), (64, 72, 1)])
def test_sides_that_16_does_not_divide_are_refused(shape):
    with pytest.raises(ReverieError, match="sides that 16 divides"):
        parts({"image": Space(shape, "uint8")}, ActionSpace(1), Config(**presets.v3_size(128)))


# Learning


@pytest.mark.slow
@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_an_actor_climbs_what_its_world_rewards(small, action):
    """A reward is the first entry of the action before it, and nothing else is to be seen."""
    agent = small.agent("dreamer_v3", "vector", action, lr=3e-3, deter=32, hidden=16, units=16)
    obs = {key: np.zeros((200, *s.shape), np.float32) for key, s in agent.obs_space.items()}
    look = lambda: agent.act({**obs, "is_first": np.ones(200, bool)}, agent.initial(200), "train")[0][:, 0]
    assert look().mean() < 0.45
    for seed in range(300):
        batch = small.batch("vector", action, size=8, length=8, seed=seed, terminal=False)
        blank = {key: torch.zeros_like(value) for key, value in batch.obs.items()}
        agent.update(batch._replace(reward=batch.prev_action[..., 0], obs=blank))
    assert look().mean() > 0.7


def test_one_hot_is_what_a_discrete_actor_says(dreamer):
    agent = dreamer("discrete")
    assert isinstance(agent.actor(torch.zeros(2, agent.rssm.features)), OneHot)


# In bfloat16


def test_an_update_with_products_in_bfloat16_is_near_one_in_float32(small, dreamer):
    """From pictures and vectors; parameters, moments and what is remembered keep their types."""
    batch = small.batch("mixed", "continuous")
    exact, rough = dreamer(obs="mixed"), dreamer(obs="mixed", precision="bfloat16")
    types = {name: value.dtype for name, value in exact.modules.state_dict().items()}
    told, said = exact.update(batch), rough.update(batch)
    names = [name for name in told if name.startswith("loss/")]
    assert {"loss/image", "loss/reward", "loss/critic"} < {*names}
    for name in (*names, "grad/all"):
        assert float(said[name]) == pytest.approx(float(told[name]), rel=0.05, abs=0.02), name
    assert any(float(said[name]) != float(told[name]) for name in told)
    assert {name: value.dtype for name, value in rough.modules.state_dict().items()} == types
    assert rough.opt.mean.dtype == torch.float32
    assert {name: value.dtype for name, value in rough.reread.items()} == {
        "deter": torch.float16,
        "stoch": torch.uint8,
    }
    for _ in range(3):
        rough.update(batch)
