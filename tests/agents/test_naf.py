"""NAF: the sheet's quadratic, its target, and imagination in a world that is linear indeed."""

import numpy as np
import pytest
import torch

from reverie.agents.naf import NAF, Config, Head, Quadratic, fit_local, q_loss
from reverie.data.replay import Replay
from reverie.data.transitions import Transitions, transitions
from reverie.types import ActionSpace, Space, Step

RAW = torch.tensor([[0.2, 0.5, -0.3]])  # l11, l21, l22
MU, TOP = torch.tensor([[0.3, -0.4]]), torch.tensor([1.5])


def toy():
    head = Head(1, 2, Config(units=(4,)))
    return Quadratic(MU, head.triangle(RAW), TOP)


def test_the_lower_triangle_and_the_matrix_of_the_quadratic():
    lower = toy().lower[0]
    expected = torch.tensor([[1.221403, 0.0], [0.5, 0.740818]])
    torch.testing.assert_close(lower, expected, atol=1e-6, rtol=0)
    matrix = lower @ lower.T
    expected = torch.tensor([[1.491825, 0.610701], [0.610701, 0.798812]])
    torch.testing.assert_close(matrix, expected, atol=1e-6, rtol=0)
    assert torch.linalg.det(matrix).item() == pytest.approx(0.818731, abs=1e-6)
    assert torch.linalg.eigvalsh(matrix).tolist() == pytest.approx([0.443162, 1.847474], abs=1e-6)
    expected = torch.tensor([[0.975671, -0.745912], [-0.745912, 1.822118]])
    torch.testing.assert_close(torch.linalg.inv(matrix), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(
        matrix, torch.diag(torch.tensor([1.491825, 0.548812]))
    )  # an element-wise product


@pytest.mark.parametrize(("action", "value"), [((0.3, -0.4), 1.5), ((0, 0), 1.442247), ((1, 1), -0.246820)])
def test_values_of_actions(action, value):
    assert toy()(torch.tensor([action], dtype=torch.float32)).item() == pytest.approx(value, abs=1e-6)


def test_the_slope_at_zero_and_the_top_at_mu():
    action = torch.zeros(1, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(toy()(action).sum(), action)
    assert slope[0].tolist() == pytest.approx([0.203267, -0.136314], abs=1e-6)
    action = MU.clone().requires_grad_()
    (slope,) = torch.autograd.grad(toy()(action).sum(), action)
    assert slope.abs().max().item() == pytest.approx(0, abs=1e-7)


def test_entries_off_the_diagonal_are_not_exponentiated():
    """Nor do they overflow there: exp(200) is infinite, and its gradient no number."""
    raw = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    lower = Head(1, 2, Config(units=(4,))).triangle(raw)
    assert lower[0, 1, 0] == 200
    (grad,) = torch.autograd.grad(lower.sum(), raw)
    assert grad.tolist() == [[1.0, 1.0, 1.0]]


@pytest.fixture
def make(small):
    return lambda seed=0, **settings: small.agent("naf", "vector", "continuous", seed, **settings)


@pytest.mark.parametrize(("cont", "target"), [(1.0, 2.68), (0.0, 0.7)])
def test_the_target_is_discounted_and_ends_with_the_world(make, cont, target):
    agent = make()
    agent.target_q = lambda obs: Quadratic(MU, None, torch.tensor([2.0]))
    t = Transitions(torch.zeros(1, 5), MU, torch.tensor([0.7]), torch.zeros(1, 5), torch.tensor([cont]))
    assert agent.target(t).item() == pytest.approx(target)


def test_what_the_loss_moves(make, small):
    agent = make(tau=0.0)
    t = transitions(small.batch("vector"), agent.keys)
    loss = q_loss(agent.q(t.obs)(t.action), agent.target(t))
    slow = torch.autograd.grad(loss, list(agent.target_q.parameters()), allow_unused=True, retain_graph=True)
    assert all(grad is None for grad in slow)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, list(agent.q.parameters())))


def test_noise_is_the_processs_and_only_while_training(make, small):
    agent = make(noise_scale=1.0)
    carry = agent.initial(2_000)
    agent.q.net.weights[-1].data.zero_(), agent.q.net.biases[-1].data.zero_()
    for t in range(60):
        action, carry = agent.act(
            small.obs("vector", 2_000, t, range(2_000) if t == 0 else ()), carry, "train"
        )
    assert carry.std().item() == pytest.approx(0.3797, rel=0.03)  # of theta 0.15, sigma 0.2
    action, _ = agent.act(small.obs("vector", 2), agent.initial(2), "eval")
    assert np.abs(action).max() == 0


# Imagination


def linear_world(episodes=6, length=30, seed=0, drift=0.0):
    """s' = A_t s + B a + c_t: each step of the clock has a matrix of its own. The reward is a quadratic."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(episodes):
        s, rows, actions, rewards = rng.normal(size=2), [], [], []
        rows.append(s)
        for t in range(length):
            a = rng.uniform(-1, 1, 1)
            rewards.append(-(s[0] ** 2) - 0.1 * a[0] ** 2 + s[1])
            turn = 0.9 + drift * t
            s = np.array([[turn, 0.1], [-0.1, 0.95]]) @ s + np.array([0.0, 0.5]) * a + [0.01, 0.0]
            rows.append(s)
            actions.append(a)
        tensors = (np.stack(rows), np.stack(actions), np.array(rewards))
        found.append(tuple(torch.from_numpy(x.astype(np.float32)) for x in tensors))
    return found


def test_a_linear_world_is_found_exactly():
    episodes = linear_world()
    local = fit_local(episodes, window=3, ridge=1e-9)
    obs, action, reward = linear_world(1, seed=9)[0]
    told, after = local.step(torch.arange(len(action)), obs[:-1], action)
    torch.testing.assert_close(after, obs[1:], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(told, reward, atol=1e-2, rtol=1e-2)


def test_the_fit_is_ridge_regression_step_by_step():
    """Against the normal equations of one step by itself."""
    episodes, ridge, window, t = linear_world(3, 8), 0.1, 2, 1
    local = fit_local(episodes, window, ridge)
    rows = range(t + window + 1)
    x = np.concatenate([np.c_[o[rows], a[rows]] for o, a, _ in episodes])
    y = np.concatenate([(o[1:] - o[:-1])[rows] for o, _, _ in episodes])
    z = np.c_[np.ones(len(x)), (x - x.mean(0)) / x.std(0)]
    penalty = ridge * len(x) * np.diag([0.0] + [1.0] * x.shape[1])
    expected = np.linalg.solve(z.T @ z + penalty, z.T @ y)
    np.testing.assert_allclose(local.change[t], expected, atol=1e-5)
    np.testing.assert_allclose(local.mean[t], x.mean(0), atol=1e-5)


def test_models_vary_with_time_and_the_last_goes_on():
    episodes = linear_world(8, 20, drift=0.02)
    local = fit_local(episodes, window=0, ridge=1e-9)
    obs, action, _ = linear_world(1, 20, seed=9, drift=0.02)[0]
    _, after = local.step(torch.arange(20), obs[:-1], action)
    torch.testing.assert_close(after, obs[1:], atol=2e-3, rtol=2e-3)
    late = [local.step(torch.tensor([t]), obs[:1], action[:1])[1] for t in (19, 25)]
    torch.testing.assert_close(*late)


def test_episodes_of_different_lengths_are_fitted_together():
    short = [tuple(x[:n] for x, n in zip(e, (9, 8, 8), strict=True)) for e in linear_world(2, seed=3)]
    local = fit_local(linear_world(4) + short, window=3, ridge=1e-9)
    assert len(local.mean) == 30
    obs, action, _ = linear_world(1, seed=9)[0]
    _, after = local.step(torch.arange(30), obs[:-1], action)
    torch.testing.assert_close(after, obs[1:], atol=1e-3, rtol=1e-3)


def recorded(episodes, agent):
    replay = Replay(agent.obs_space, agent.act_space, 2_000)
    for obs, action, reward in episodes:
        for t in range(len(obs)):
            last = t == len(obs) - 1
            flags = (np.array(t == 0), np.array(last), np.array(False), np.array(1))
            row = Step(
                {"vector": obs[t].numpy()}, np.array(float(reward[t - 1]) if t else 0.0, np.float32), *flags
            )
            replay.add(row, None if last else action[t].numpy())
    return replay


def test_imagined_rows_are_the_worlds():
    space = {"vector": Space((2,))}
    config = Config(
        units=(8,), imagination=3, rollouts=4, fit_window=3, ridge=1e-9, batch_size=8, imagined=50
    )
    agent = NAF(space, ActionSpace(1), config)
    replay = recorded(linear_world(), agent)
    rng = np.random.default_rng(0)
    for _ in range(3):
        metrics = agent.update(agent.sample(replay, rng))
    assert "loss/imagined" in metrics and len(agent.ring) == 3 * 4 * 3
    t = agent.ring.sample(30, torch.Generator().manual_seed(0))
    matrix = torch.tensor([[0.9, 0.1], [-0.1, 0.95]])
    expected = t.obs @ matrix.T + t.action @ torch.tensor([[0.0, 0.5]]) + torch.tensor([0.01, 0.0])
    torch.testing.assert_close(t.next_obs, expected, atol=5e-3, rtol=5e-3)
    other = NAF(space, ActionSpace(1), config, seed=5)
    other.load_state_dict(agent.state_dict())
    draws = [np.random.default_rng(1) for _ in range(2)]
    one, two = (a.update(a.sample(replay, rng)) for a, rng in zip((agent, other), draws, strict=True))
    assert one == two


def test_imagination_stops_when_told():
    space = {"vector": Space((2,))}
    config = Config(units=(8,), imagination=2, rollouts=1, batch_size=4, imagined=50, imagine_until=2)
    agent = NAF(space, ActionSpace(1), config)
    replay, rng = recorded(linear_world(2), agent), np.random.default_rng(0)
    told = ["loss/imagined" in agent.update(agent.sample(replay, rng)) for _ in range(4)]
    assert told == [True, True, False, False]
