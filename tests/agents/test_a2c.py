"""A2C: its losses on numbers worked out by hand and against Stable-Baselines3, and its networks' sizes."""

import gymnasium
import numpy as np
import pytest
import torch

import reverie
from reverie import presets
from reverie.agents.a2c import (
    A2C,
    ActorCritic,
    Config,
    entropy_loss,
    explained,
    policy_loss,
    targets,
    value_loss,
)
from reverie.dists import OneHot
from reverie.types import ActionSpace, Batch, ReverieError, Space

LOGITS = [0.2, -0.1, 0.4, 0.0, -0.3]
ONE = torch.ones(1, dtype=torch.bool)


def rows(reward, is_last=(), is_terminal=()):
    """One sequence without observations."""
    n = len(reward)
    flag = lambda places: torch.tensor([[i in places for i in range(n)]])
    none = torch.zeros(1, n, 2)
    reward = torch.tensor([reward])
    return Batch({}, none, none, reward, flag([]), flag(is_last), flag(is_terminal))


def test_policy_gradient_by_hand():
    logits = torch.tensor([LOGITS], requires_grad=True)
    dist = OneHot(logits)
    action = torch.eye(5)[2][None]
    loss = policy_loss(dist.log_prob(action), torch.tensor([1.5]), ONE)
    assert loss.item() == pytest.approx(1.918133, abs=1e-6)
    (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
    expected = [0.341882, 0.253272, -1.082425, 0.279909, 0.207362]
    assert slope[0].tolist() == pytest.approx(expected, abs=1e-6)
    both = policy_loss(dist.log_prob(action), torch.tensor([1.5]), ONE) + 0.01 * entropy_loss(
        dist.entropy(), ONE
    )
    (slope,) = torch.autograd.grad(both, logits)
    expected = [0.342113, 0.252937, -1.081586, 0.279725, 0.206811]
    assert slope[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_an_episodes_last_row_chose_nothing_and_counts_nowhere():
    value = torch.tensor([[0.5, 0.4, 0.3, 0.2, 0.1, 2.0]])
    batch = rows([9.0, -0.1, 0.9, -0.1, -0.1, -1.1])
    target, counts = targets(batch, value, 0.99)
    assert target[0].tolist() == pytest.approx([1.441285, 1.556853, 0.663488, 0.7712, 0.88], abs=1e-5)
    assert counts.all()
    target, counts = targets(rows([0.0, -0.1, 0.9, 0.0, -0.1, -1.1], [2], [2]), value, 0.99)
    assert counts.tolist() == [[True, True, False, True, True]]
    assert target[0, :2].tolist() == pytest.approx([0.791, 0.9], abs=1e-5)
    cut, _ = targets(rows([0.0, -0.1, 0.9, 0.0, -0.1, -1.1], [2]), value, 0.99)  # by the clock
    assert cut[0, 1].item() == pytest.approx(0.9 + 0.99 * 0.3)
    assert torch.equal(cut[0, 3:], target[0, 3:])


def test_the_advantage_and_the_target_are_constants(small):
    """The value's error moves the value alone, whatever the policy did with the advantage."""
    agent, batch = small.agent("a2c", "vector", "discrete"), small.batch("vector", "discrete")
    flat = {key: x.flatten(0, 1) for key, x in batch.obs.items()}
    dist, value = agent.net(agent.see(flat))
    value = value.view(4, 6)
    target, counts = targets(batch, value.detach(), 0.99)
    log_prob = dist.log_prob(batch.action.flatten(0, 1)).view(4, 6)[:, :-1]
    loss = policy_loss(log_prob, target - value[:, :-1].detach(), counts)
    heads = [agent.net.policy.weight, agent.net.value.weight]
    policy, critic = torch.autograd.grad(loss, heads, retain_graph=True, allow_unused=True)
    assert policy.abs().max() > 0 and critic is None
    loss = value_loss(value[:, :-1], target, counts)
    policy, critic = torch.autograd.grad(loss, heads, allow_unused=True)
    assert policy is None and critic.abs().max() > 0


def test_against_stable_baselines():
    """Returns and all three losses of one rollout of theirs, from the outputs of their network."""
    from stable_baselines3 import A2C as Peer
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.logger import Logger as PeerLogger

    class Stop(BaseCallback):
        def _on_step(self):
            return True

    peer = Peer("MlpPolicy", "CartPole-v1", n_steps=40, gae_lambda=1.0, ent_coef=0.01, seed=3, device="cpu")
    peer.set_logger(PeerLogger(None, []))
    _, callback = peer._setup_learn(40, Stop())
    peer.collect_rollouts(peer.env, callback, peer.rollout_buffer, 40)
    buffer = peer.rollout_buffer
    starts = np.append(buffer.episode_starts[:, 0], peer._last_episode_starts[0]).astype(bool)
    assert starts[1:].any()  # an episode ended inside
    obs = torch.from_numpy(np.concatenate([buffer.observations[:, 0], peer._last_obs]))
    with torch.no_grad():
        value = peer.policy.predict_values(obs)[:, 0]
    # Their rows have no last row of an episode: put one, whose value does not count, before each new start.
    reward, worth, last, place = [0.0], [value[0]], [], []
    for t in range(40):
        place.append(len(reward) - 1)
        if starts[t + 1]:
            last.append(len(reward))
            reward += [float(buffer.rewards[t, 0]), 0.0]
            worth += [torch.tensor(123.0), value[t + 1]]
        else:
            reward.append(float(buffer.rewards[t, 0]))
            worth.append(value[t + 1])
    batch = rows(reward, last, last)
    target, counts = targets(batch, torch.stack(worth)[None], 0.99)
    assert counts.sum() == 40
    np.testing.assert_allclose(target[0, place].numpy(), buffer.returns[:, 0], rtol=1e-4)
    obs, action = obs[:-1], torch.from_numpy(buffer.actions[:, 0, 0].astype(np.int64))
    logits = peer.policy.get_distribution(obs).distribution.logits.detach()
    dist, all_count = OneHot(logits), torch.ones(40, dtype=torch.bool)
    log_prob = dist.log_prob(torch.eye(2)[action])
    ours = (
        policy_loss(log_prob, target[0, place] - value[:-1], all_count),
        value_loss(value[:-1], target[0, place], all_count),
        entropy_loss(dist.entropy(), all_count),
    )
    peer.train()
    names = ("policy_loss", "value_loss", "entropy_loss")
    theirs = [peer.logger.name_to_value[f"train/{name}"] for name in names]
    assert [loss.item() for loss in ours] == pytest.approx(theirs, rel=1e-4)
    assert isinstance(peer.env.envs[0].unwrapped, gymnasium.Env)


PACMAN = dict(channels=(16, 16), kernels=(3, 3), strides=(1, 2), units=256)
SOKOBAN = dict(channels=(32, 64, 64), kernels=(8, 4, 3), strides=(4, 2, 1), units=512)
LARGE = SOKOBAN | dict(channels=(64, 128, 128), units=1024)


@pytest.mark.parametrize(
    ("shape", "net", "same", "count"),
    [
        ((15, 19, 3), PACMAN, False, 201_174),
        ((15, 19, 3), PACMAN, True, 332_246),
        ((80, 80, 3), SOKOBAN, False, 1_259_174),
        ((80, 80, 3), SOKOBAN, True, 3_356_326),
        ((80, 80, 3), LARGE, False, 5_016_902),
    ],
)
def test_the_parameters_of_i2as_baselines(shape, net, same, count):
    """Weber et al. 2017, App. B.1."""
    made = ActorCritic({"image": Space(shape, "uint8")}, ActionSpace(5, (5,)), Config(**net, same=same))
    assert sum(p.numel() for p in made.parameters()) == count


def test_the_parameters_of_the_residual_network():
    """3,068,421 for 10x10x3 and four actions (Guez et al. 2019, as replicated by Taufeeque et al.)."""
    config = presets.resolve("a2c", ["resnet"], {"image_size": 0})
    made = ActorCritic({"image": Space((10, 10, 3), "uint8")}, ActionSpace(4, (4,)), config)
    assert sum(p.numel() for p in made.parameters()) == 3_068_421


def test_the_wide_baseline_has_as_many_parameters_as_what_reads_futures():
    from reverie.agents.i2a import Augmented

    space, act = {"image": Space((7, 7, 7), "uint8")}, ActionSpace(5, (5,))
    count = lambda module: sum(p.numel() for p in module.parameters())
    wide = count(ActorCritic(space, act, presets.resolve("a2c", ["cells_wide"])))
    assert wide == pytest.approx(count(Augmented((7, 7, 7), 5, presets.resolve("i2a", ["laptop"]))), rel=2e-3)


def test_pictures_too_small_for_the_network_are_refused():
    with pytest.raises(ReverieError, match="too small for convolutions"):
        A2C({"image": Space((7, 7, 3), "uint8")}, ActionSpace(5, (5,)))


def test_the_learning_rate_goes_to_its_end(small):
    agent = small.agent("a2c", "vector", "discrete", steps=24 * 4, lr=1e-3, lr_end=1e-4)
    rates = []
    for _ in range(6):
        agent.update(small.batch("vector", "discrete"))
        rates.append(agent.opt.lr)
    assert rates == pytest.approx([1e-3, 7.75e-4, 5.5e-4, 3.25e-4, 1e-4, 1e-4])


def test_what_the_critic_explains():
    target, counts = torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[True, True, True, False]])
    assert explained(target, target, counts).item() == pytest.approx(1.0)
    assert explained(0 * target, target, counts).item() == pytest.approx(0.0, abs=1e-6)


def test_eval_can_be_the_likeliest_action(small):
    agent = small.agent("a2c", "vector", "discrete", eval_action="mode")
    obs = small.obs("vector", 50)
    a, b = (agent.act(obs, (), "eval")[0] for _ in range(2))
    assert np.array_equal(a, b)
    with torch.no_grad():
        dist, _ = agent.net(agent.see(obs))
    assert np.array_equal(a.argmax(1), dist.log_probs.argmax(1).numpy())


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a busy machine is not a fault
def test_learns_cartpole(tmp_path):
    """200,000 env steps with 16 environments: about 500 a return is the most there is, chance is about 20."""
    run = reverie.train("a2c", "CartPole-v1", "laptop", tmp_path / "run", seed=0, threads=1, eval_every=0)
    import json

    found = json.loads((run / "evaluation.json").read_text())
    assert found["mean"] > 300
