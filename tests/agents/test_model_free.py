"""DDPG, TD3 and SAC against Stable-Baselines3, number by number, and against worlds whose values are known."""

import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

import reverie
from reverie import checkpoint, presets
from reverie.agents import ddpg, sac, td3
from reverie.data.replay import Replay
from reverie.data.transitions import transitions
from reverie.run.folder import read_json
from reverie.types import ActionSpace, ReverieError, Space, Step

OBS, ACT = {"vector": Space((3,))}, ActionSpace(1)  # Pendulum's
UNITS = (16, 12)
OURS = {"ddpg": ddpg.DDPG, "td3": td3.TD3, "sac": sac.SAC}
PEERS = {"ddpg": sb3.DDPG, "td3": sb3.TD3, "sac": sb3.SAC}
EVERY = pytest.mark.parametrize("name", OURS)


def make(name, seed=0, **settings):
    config = presets.resolve(name, ["debug"], {"units": UNITS, **settings})
    return OURS[name](OBS, ACT, config, seed)


def critics(agent):
    return agent.critic if hasattr(agent, "critic") else agent.critics


# Against Stable-Baselines3


def take(net, members):
    """Into an Ensemble, the weights of Stable-Baselines3's networks of the same shape."""
    for m, layers in enumerate(members):
        linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
        for weight, bias, theirs in zip(net.weights, net.biases, linear, strict=True):
            weight.data[m], bias.data[m] = theirs.weight.data, theirs.bias.data


def peer(name):
    """Stable-Baselines3's agent, and ours with its weights and settings."""
    settings = {"gamma": 0.97, "tau": 0.05, "learning_rate": 1e-3, "policy_kwargs": {"net_arch": list(UNITS)}}
    theirs = PEERS[name]("MlpPolicy", "Pendulum-v1", seed=1, device="cpu", **settings)
    theirs.set_logger(Logger(None, []))
    more = {"ddpg": {"critic_decay": 0.0}, "td3": {}, "sac": {"alpha_lr": 1e-3}}[name]
    ours = make(name, discount=0.97, tau=0.05, actor_lr=1e-3, critic_lr=1e-3, **more)
    load(ours, theirs, name)
    return ours, theirs


def load(ours, theirs, name):
    for net, their_net in nets(ours, theirs, name):
        take(net, their_net)


def nets(ours, theirs, name):
    """Our networks beside theirs, as lists of layers."""
    if name == "sac":
        yield ours.actor.net, [[*theirs.actor.latent_pi, *sac_head(theirs.actor)]]
    else:
        yield ours.actor.net, [list(theirs.actor.mu)]
        yield ours.target_actor.net, [list(theirs.actor_target.mu)]
    target = ours.target_critic if name == "ddpg" else ours.target_critics
    yield critics(ours).net, [list(q) for q in theirs.critic.q_networks]
    yield target.net, [list(q) for q in theirs.critic_target.q_networks]


def sac_head(actor):
    """Mean and log standard deviation are two layers there and one here."""
    both = torch.nn.Linear(actor.mu.in_features, 2 * actor.mu.out_features)
    both.weight.data = torch.cat([actor.mu.weight.data, actor.log_std.weight.data])
    both.bias.data = torch.cat([actor.mu.bias.data, actor.log_std.bias.data])
    return [both]


def as_theirs(batch):
    t = transitions(batch, ["vector"])
    return ReplayBufferSamples(t.obs, t.action, t.next_obs, 1 - t.cont[:, None], t.reward[:, None], None)


def random_batch(seed, n=32):
    rng = np.random.default_rng(seed)
    replay = Replay(OBS, ACT, 400)
    for i in range(200):
        first, last = i % 5 == 0, i % 5 == 4
        step = Step(
            {"vector": rng.normal(size=3).astype(np.float32)},
            np.array(0 if first else rng.normal(), np.float32),
            *map(np.array, (first, last, last and i % 2 == 0, int(not first))),
        )
        replay.add(step, rng.uniform(-1, 1, 1).astype(np.float32))
    return replay.transitions(n, rng)


@EVERY
def test_updates_are_those_of_stable_baselines(name):
    """Six updates from the same weights, transitions and noise: the same losses, the same weights after."""
    ours, theirs = peer(name)
    for i in range(6):
        batch = random_batch(i)
        theirs.replay_buffer.sample = lambda *_, batch=batch, **__: as_theirs(batch)
        torch.manual_seed(100 + i)
        theirs.train(1, 32)
        if name != "ddpg":
            ours.generators["learn"].manual_seed(100 + i)
        metrics = ours.update(batch)
        told = theirs.logger.name_to_value
        assert float(metrics["loss/critic"]) == pytest.approx(told["train/critic_loss"], rel=1e-4)
        if "loss/actor" in metrics:
            assert float(metrics["loss/actor"]) == pytest.approx(told["train/actor_loss"], rel=1e-3, abs=1e-5)
        if name == "sac":
            assert float(metrics["actor/alpha"]) == pytest.approx(told["train/ent_coef"], rel=1e-5)
    copy = make(name)
    load(copy, theirs, name)
    before = dict(make(name).modules.named_parameters())
    for key, value in ours.modules.named_parameters():
        if key == "temperature.log":
            assert value.item() == pytest.approx(theirs.log_ent_coef.item(), abs=1e-6)
            continue
        torch.testing.assert_close(value, dict(copy.modules.named_parameters())[key], atol=2e-5, rtol=1e-4)
        assert not torch.equal(value, before[key])


@EVERY
def test_evaluation_acts_as_stable_baselines_does(name):
    ours, theirs = peer(name)
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    action, _ = ours.act({"vector": obs, "is_first": np.ones(5, bool)}, ours.initial(5), "eval")
    expected, _ = theirs.predict(obs, deterministic=True)
    np.testing.assert_allclose(2.0 * action, expected, atol=1e-5)  # theirs is in the environment's units


# What moves what


@EVERY
def test_the_actors_loss_moves_the_actor_and_not_the_critics(name):
    agent, t = make(name), transitions(random_batch(0), ["vector"])
    net = critics(agent)
    if name == "sac":
        action, _ = agent.actor.sample(t.obs, torch.Generator().manual_seed(0))
    else:
        action = agent.actor(t.obs)
    climbed, plain = net.climbed(t.obs, action), net(t.obs, action)
    plain = plain[0] if name == "td3" else plain  # it climbs Q1 alone
    torch.testing.assert_close(climbed, plain)
    own = list(agent.actor.parameters())
    grads = [torch.autograd.grad(q.sum(), own, retain_graph=True) for q in (climbed, plain)]
    assert all(g.abs().sum() > 0 for g in grads[0])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    theirs = torch.autograd.grad(climbed.sum(), list(net.parameters()), allow_unused=True)
    assert all(g is None for g in theirs)


@EVERY
def test_the_critics_loss_moves_the_critics_alone(name):
    agent, t = make(name), transitions(random_batch(0), ["vector"])
    net = critics(agent)
    alpha = (torch.tensor(0.3),) if name == "sac" else ()
    target = agent.target(t, *alpha)
    assert not target.requires_grad
    module = {"ddpg": ddpg, "td3": td3, "sac": sac}[name]
    loss = module.critic_loss(net(t.obs, t.action), target)
    others = [p for key, p in agent.modules.named_parameters() if not key.startswith("critic")]
    assert all(g is None for g in torch.autograd.grad(loss, others, allow_unused=True, retain_graph=True))
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, list(net.parameters())))


def test_td3_moves_its_actor_and_the_targets_every_other_time():
    agent = make("td3")
    slow = ("actor", "target_actor", "target_critics")
    for i in range(4):
        before = {key: value.clone() for key, value in agent.modules.state_dict().items()}
        agent.update(random_batch(i))
        moved = {
            key.split(".")[0]
            for key, v in agent.modules.state_dict().items()
            if not torch.equal(v, before[key])
        }
        assert moved == ({"critics"} if i % 2 == 0 else {"critics", *slow})


def test_the_temperature_rises_while_there_is_too_little_entropy():
    for log_prob, sign in ((5.0, 1), (-5.0, -1)):
        log_alpha = torch.zeros((), requires_grad=True)
        loss = sac.temperature_loss(log_alpha, torch.full((4,), log_prob), -1.0)
        (grad,) = torch.autograd.grad(loss, log_alpha)
        assert float(-grad) == pytest.approx(log_prob - 1.0)
        assert np.sign(float(-grad)) == sign


def test_a_fixed_temperature_stays():
    agent = make("sac", learn_alpha=False, init_alpha=0.2)
    agent.update(random_batch(0))
    assert float(agent.temperature.log.exp()) == pytest.approx(0.2)


def test_ddpgs_noise_is_an_ornstein_uhlenbeck_process():
    """Stationary std sigma / sqrt(1 - (1 - theta)^2) = 0.3797, lag-1 correlation 1 - theta; from 0 at a start."""
    agent, n = make("ddpg"), 400
    noise = agent.initial(n)
    seen = []
    for t in range(300):
        action, noise = agent.explore(torch.zeros(n, 1), noise, np.full(n, t == 0))
        assert torch.equal(action, noise.clamp(-1, 1))
        seen.append(noise.clone())
    late = torch.stack(seen[50:])
    assert float(late.std()) == pytest.approx(0.3797, abs=0.004)
    assert float((late[1:] * late[:-1]).mean() / (late**2).mean()) == pytest.approx(0.85, abs=0.005)
    _, fresh = agent.explore(torch.zeros(n, 1), noise, np.ones(n, bool))
    assert float(fresh.std()) == pytest.approx(0.2, abs=0.02)


@EVERY
def test_weights_start_as_they_should(name):
    agent = OURS[name](OBS, ACT)
    net = critics(agent).net
    for i, (weight, inputs) in enumerate(zip(net.weights, (4, *agent.config.units), strict=True)):
        last = name == "ddpg" and i == 2
        bound = 3e-3 if last else inputs**-0.5
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound


# Time limits


def clock_world(seed, clock_ends_the_world):
    """One state. Below 0: reward 1, and the clock ends the episode. Above: reward 1.5, and the world ends.

    With discount 0.5, waiting is worth 2 and leaving 1.5; if the clock ended the world, waiting were worth 1.
    """
    rng, replay = np.random.default_rng(seed), Replay(OBS, ACT, 2_000)
    obs = {"vector": np.ones(3, np.float32)}
    for _ in range(500):
        action = rng.uniform(-1, 1, 1).astype(np.float32)
        leaves = bool(action[0] > 0)
        no, yes = np.array(False), np.array(True)
        replay.add(Step(obs, np.array(0, np.float32), yes, no, no, np.array(0)), action)
        terminal = np.array(leaves or clock_ends_the_world)
        replay.add(
            Step(obs, np.array(1.5 if leaves else 1, np.float32), no, yes, terminal, np.array(1)), None
        )
    return replay


@EVERY
@pytest.mark.parametrize("clock_ends_the_world", [False, True])
def test_the_clock_ends_an_episode_and_not_the_world(name, clock_ends_the_world):
    """The value and the best action are those of a world that goes on when the clock stops."""
    replay, rng = clock_world(0, clock_ends_the_world), np.random.default_rng(1)
    rates = {"actor_lr": 3e-3, "critic_lr": 1e-2, "discount": 0.5, "tau": 0.1, "batch_size": 64}
    if name == "sac":
        rates |= {"learn_alpha": False, "init_alpha": 0.01}
    agent = make(name, units=(32,), **rates)
    for _ in range(200):
        agent.update(agent.sample(replay, rng))
    value = critics(agent)(torch.ones(2, 3), torch.tensor([[-0.8], [0.8]]))
    wait, leave = value.reshape(-1, 2)[0].tolist()
    action, _ = agent.act(
        {"vector": np.ones((1, 3), np.float32), "is_first": np.array([True])}, agent.initial(1), "eval"
    )
    assert leave == pytest.approx(1.5, abs=0.2)
    assert wait == pytest.approx(1.0 if clock_ends_the_world else 2.0, abs=0.4)
    assert action[0, 0] > 0.1 if clock_ends_the_world else action[0, 0] < -0.1


# Runs


@pytest.mark.parametrize("name", ["ddpg", "td3"])
def test_a_run_that_was_stopped_is_the_run_that_was_not(name, tmp_path):
    settings = {"preset": "debug", "time_limit": 40, "eval_every": 200, "eval_episodes": 1, "device": "cpu"}
    settings |= {"threads": 1}
    whole = reverie.train(name, "Pendulum-v1", run=tmp_path / "whole", **settings)
    for steps in (250, 400):
        parts = reverie.train(name, "Pendulum-v1", run=tmp_path / "parts", steps=steps, **settings)
    a, b = (checkpoint.load(folder / "checkpoints")[1] for folder in (whole, parts))
    assert a["updates"] == b["updates"] == 32  # two every 20 env steps from 100 on
    assert all(torch.equal(v, b["agent"]["modules"][k]) for k, v in a["agent"]["modules"].items())
    assert read_json(whole / "evaluation.json")["returns"] == read_json(parts / "evaluation.json")["returns"]
    policy = reverie.load(whole)
    assert policy.act(policy.make_env().reset(0).obs).shape == (1,)


@EVERY
def test_what_can_not_be_used_is_one_sentence(name):
    with pytest.raises(ReverieError, match=f"{name} reads vectors and can not use the picture"):
        OURS[name]({"image": Space((64, 64, 3), "uint8")}, ACT)
    with pytest.raises(ReverieError, match=f"{name} acts by numbers"):
        OURS[name](OBS, ActionSpace(3, (3,)))


# Learning


@pytest.mark.slow
@pytest.mark.timeout(1800)
@EVERY
@pytest.mark.parametrize("seed", [0, 1])
def test_learns_to_swing_up(name, seed, tmp_path):
    """Pendulum-v1, 10,000 env steps: Stable-Baselines3's DDPG, TD3 and SAC end near -150; chance is -1,200."""
    run = reverie.train(
        name, "Pendulum-v1", "laptop", tmp_path / "run", seed=seed, eval_every=0, device="cpu"
    )
    assert read_json(run / "evaluation.json")["mean"] > -250
