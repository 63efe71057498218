"""Distral: the table's numbers, the losses' gradients by hand, and that tasks do not mix but by habit."""

import json

import numpy as np
import pytest
import torch

import reverie
from reverie import presets
from reverie.agents.distral import (
    Columns,
    Config,
    Distral,
    distil,
    distillation_loss,
    regularised,
    soft_values,
    solve,
    tabular,
    transfer,
)
from reverie.dists import OneHot
from reverie.envs.two_rooms import BEFORE, CELLS, GOALS, table
from reverie.types import ActionSpace, ReverieError, Space

PRIOR, Q = np.array([[0.5, 0.2, 0.2, 0.1]]), np.array([[1.0, 0.5, 0.0, -1.0]])  # of one state


def test_soft_values_by_hand():
    value, policy = soft_values(Q, PRIOR, 0.5, 5.0)
    assert value == pytest.approx(np.array([0.941620]), abs=1e-6)
    assert policy[0] == pytest.approx([0.946793, 0.049153, 0.004035, 0.000019], abs=1e-6)
    logits = 0.5 * np.log(PRIOR) + 5 * Q
    assert policy == pytest.approx(np.exp(logits) / np.exp(logits).sum())
    entropy = -(policy * np.log(policy)).sum()
    assert (policy * (Q + 0.1 * np.log(PRIOR))).sum() + entropy / 5 == pytest.approx(
        value
    )  # c_KL = c_Ent = 0.1
    assert 0.1 * (policy - PRIOR)[0] == pytest.approx([0.044679, -0.015085, -0.019597, -0.009998], abs=1e-6)


def test_soft_values_do_not_overflow():
    value, policy = soft_values(1e4 * Q, PRIOR, 0.5, 10.0)
    assert np.isfinite(value[0]) and policy.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_distillation_pulls_the_shared_policy_to_the_tasks():
    h = torch.tensor(np.log(PRIOR[0]), requires_grad=True)
    probs = torch.tensor([0.946793, 0.049153, 0.004035, 0.000019], dtype=torch.float64)
    (slope,) = torch.autograd.grad(0.1 * distillation_loss(probs, OneHot(h)), h)
    assert (-slope).tolist() == pytest.approx([0.044679, -0.015085, -0.019597, -0.009998], abs=1e-5)


def test_the_shared_policy_of_a_table_is_the_weighted_mean_of_the_tasks():
    """Two states, two actions: action 0 stays, 1 goes to state 1 and ends there for the second task."""
    follows = np.array([[0, 1], [1, 1]])
    ends = np.zeros((2, 2, 2), bool)
    ends[1, 0, 1] = True
    policy = np.array([[[0.5, 0.5], [1.0, 0.0]], [[0.2, 0.8], [0.3, 0.7]]])
    start = np.array([[1.0, 0.0], [1.0, 0.0]])
    shared = distil(follows, ends, policy, start, 0.9, 2, count=0.0)
    one, two = 1 + 0.9 * 0.5, 1 + 0.9 * 0.2  # how often each task is in state 0
    expected = (one * policy[0, 0] + two * policy[1, 0]) / (one + two)
    assert shared[0] == pytest.approx(expected)
    assert shared[1] == pytest.approx(policy[0, 1])  # the second task's episodes end before they are there


def test_value_iteration_ends_where_values_explain_themselves():
    rng = np.random.default_rng(0)
    follows, reward = rng.integers(6, size=(6, 3)), rng.normal(size=(2, 6, 3))
    ends, prior = rng.random((2, 6, 3)) < 0.2, np.full((6, 3), 1 / 3)
    value, policy = solve(follows, reward, ends, prior, 0.5, 3.0, 0.9)
    q = reward + 0.9 * ~ends * value[:, follows]
    bonus = q + 0.5 / 3 * np.log(prior) - np.log(policy) / 3
    assert (policy * bonus).sum(-1) == pytest.approx(value)  # the regularised rewards, averaged


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_in_the_corridor_the_shared_policy_goes_on_the_way_it_came(alpha):
    """Where nothing came before, it is undecided. The middle of the corridor, (4, 4); actions stay, up, down, left,
    right.

    The numbers are of 24 goals too, which ones is not said: of sets drawn from all cells some come within 0.01 of all
    of them, so that with these 24 nothing came before may be 0.02 away.
    """
    shared = tabular(alpha)
    state = CELLS.index((4, 4)) * BEFORE
    after = {"right": shared[state + 5], "left": shared[state + 4], "nothing": shared[state]}
    if alpha == 1.0:
        assert after["right"] == pytest.approx([0, 0, 0, 0, 0.999], abs=0.01)
        assert after["left"] == pytest.approx([0, 0, 0, 0.999, 0], abs=0.01)
        assert after["nothing"] == pytest.approx([0.002, 0.001, 0.001, 0.498, 0.498], abs=0.01)
    else:
        assert after["right"] == pytest.approx([0.060, 0, 0, 0.002, 0.937], abs=0.01)
        assert after["left"] == pytest.approx([0.051, 0, 0, 0.947, 0.001], abs=0.01)
        assert after["nothing"] == pytest.approx([0.1, 0.001, 0.001, 0.439, 0.459], abs=0.02)


def test_what_is_learned_step_by_step_is_what_value_iteration_finds():
    """Beside an even prior, in the goal's room, where it has been most."""
    even, task = np.full((len(CELLS) * BEFORE, 5), 0.2), 3
    _, q = transfer(task, even, 1.0, 5.0, 0.9, episodes=300)
    follows, reward, ends = table()
    value, _ = solve(follows, reward[[task]], ends[[task]], even, 1.0, 5.0, 0.9)
    expected = reward[task] + 0.9 * ~ends[task] * value[0][follows]
    room = [
        (c > 6) == (GOALS[task][1] > 6) and (r, c) != GOALS[task] for r, c in CELLS for _ in range(BEFORE)
    ]
    assert np.median(np.abs(q - expected)[room]) < 0.1 < 0.5 < np.median(np.abs(expected)[room])


def test_a_prior_that_knows_the_way_leads_there_at_once():
    task = GOALS.index((1, 8))
    follows, reward, ends = table()
    even = np.full(reward.shape[1:], 0.2)
    _, way = solve(follows, reward[[task]], ends[[task]], even, 0.0, 50.0, 0.95)
    led, _ = transfer(task, 0.98 * way[0] + 0.02 * even, 1.0, 10.0, episodes=3)
    alone, _ = transfer(task, even, 1.0, 10.0, episodes=3)
    assert max(episode.length for episode in led) < 16 < min(episode.length for episode in alone)
    assert all(episode.score > -1.0 for episode in led)
    again, _ = transfer(task, even, 0.0, 10.0, episodes=3)
    assert (
        again == transfer(task, way[0], 0.0, 10.0, episodes=3)[0]
    )  # with alpha 0 the prior is of no account


def test_the_other_goals_alone_make_the_prior():
    some = tabular(alternations=2, tasks=[0, 23])
    assert not np.allclose(some, tabular(alternations=2))
    assert np.allclose(tabular(alternations=2), tabular(alternations=2, tasks=range(24)))


# Networks


def columns(policy="two", alpha=0.5):
    torch.manual_seed(0)
    return Columns(3, 2, 4, Config(policy=policy, alpha=alpha, beta=5.0, units=6))


def test_two_columns_are_the_soft_policy_of_the_table():
    net = columns()
    state, task = torch.randn(7, 3), torch.tensor([0, 1, 0, 1, 1, 0, 0])
    out = net(state, task)
    for row in range(7):
        f = net.own[task[row]](state[row]).detach()
        _, expected = soft_values(
            f[None, :-1].numpy(), out.shared.probs[row][None].detach().numpy(), 0.5, 5.0
        )
        assert out.policy.probs[row].tolist() == pytest.approx(expected[0].tolist(), abs=1e-5)
        assert out.value[row].item() == pytest.approx(f[-1].item(), abs=1e-6)


def reached(loss, net):
    parts = {
        "shared": [*net.shared.parameters()],
        "0": [*net.own[0].parameters()],
        "1": [*net.own[1].parameters()],
    }
    flat = [p for group in parts.values() for p in group]
    slopes = iter(torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True))
    return {
        name
        for name, group in parts.items()
        if any([(s := next(slopes)) is not None and bool(s.any()) for _ in group])
    }


@pytest.mark.parametrize(
    ("policy", "moved"), [("two", {"shared", "0"}), ("one", {"0"}), ("shared", {"shared"})]
)
def test_gradient_arrows(policy, moved):
    """A task's return moves its column, and the shared one only through two columns; distillation only the shared."""
    net = columns(policy)
    out = net(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
    assert reached(out.policy.log_prob(torch.eye(4)[torch.arange(5) % 4]).sum(), net) == moved
    assert reached(distillation_loss(out.policy.probs.detach(), out.shared).sum(), net) == {"shared"}
    assert reached(out.value.sum(), net) == {"0"}


def test_rewards_are_paid_for_the_action_that_led_there():
    c = Config(alpha=0.5, beta=10.0)
    reward = torch.tensor([[9.0, 1.0, 2.0]])
    log_prob, shared = torch.tensor([[-1.0, -2.0, -50.0]]), torch.tensor([[-3.0, -4.0, -50.0]])
    paid = regularised(reward, log_prob, shared, c)
    assert paid[0].tolist() == pytest.approx([9.0, 1 + (-1.5 + 1) / 10, 2 + (-2 + 2) / 10])
    assert torch.equal(regularised(reward, log_prob, 7 * shared, Config(alpha=0.0)), regularised(
        reward, log_prob, shared, Config(alpha=0.0)))  # fmt: skip


def test_what_it_cannot_use_is_refused():
    with pytest.raises(ReverieError, match=r"needs the observations 'state' and 'task'.*shows vector"):
        Distral({"vector": Space((3,))}, ActionSpace(2, (2,)))


def test_a_run_in_two_rooms(tmp_path):
    options = dict(steps=240, eval_every=0, eval_episodes=2, threads=1)
    folder = reverie.train("distral", "reverie/TwoRooms-v0", "debug", tmp_path / "run", **options)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("distil/kl" in line for line in lines)


@pytest.mark.parametrize("preset", ["kl", "one_column", "a3c", "a3c_multitask"])
def test_the_papers_other_agents_take_updates(preset, small):
    config = presets.resolve("distral", ["debug", preset])
    agent = Distral(small.OBS["tasks"], small.ACTIONS["discrete"], config)
    for seed in range(2):
        metrics = agent.update(small.batch("tasks", "discrete", seed=seed))
    assert all(np.isfinite(float(value)) for value in metrics.values())
