"""MVE and STEVE: the sheet's toys, the chain of 100 states, and which loss moves what."""

import numpy as np
import pytest
import torch

from reverie.agents.mve import actor_loss, expansion, model_loss, steve_target, td_k_loss
from reverie.data.transitions import Transitions, transitions
from reverie.types import ReverieError

REWARD, CONT = torch.tensor([1.0]), torch.tensor([1.0])
REWARDS, LAST = torch.tensor([[2.0], [3.0], [4.0]]), torch.tensor([10.0])
ALL = torch.ones(3, 1)


def test_every_state_is_expanded_to_the_same_end():
    """The tail of state t is discounted by gamma^(H-t); as the paper prints it, gamma^H, it would be 15.436, 15.23,
    13.89, 11.29."""
    y = expansion(REWARD, CONT, REWARDS, ALL, LAST, 0.9)
    assert y[:, 0].tolist() == pytest.approx([14.707, 15.23, 14.70, 13.00])


def test_nothing_follows_a_true_end():
    y = expansion(REWARD, torch.zeros(1), REWARDS, ALL, LAST, 0.9)
    assert y[0].item() == 1
    values = torch.tensor([20.0, 15.0, 12.0, 9.0]).view(4, 1, 1)
    assert td_k_loss(values, y, torch.zeros(1)).item() == pytest.approx(19**2 / 3)


def test_the_loss_of_four_states():
    y = expansion(REWARD, CONT, REWARDS, ALL, LAST, 0.9)
    values = torch.tensor([20.0, 15.0, 12.0, 9.0]).view(4, 1, 1)
    each = (values[:, 0] - y).square()[:, 0]
    assert each.tolist() == pytest.approx([28.015849, 0.0529, 7.29, 16], abs=1e-4)
    assert td_k_loss(values, y, CONT).item() == pytest.approx(17.119583, abs=1e-5)
    assert td_k_loss(values[:1], y, CONT).item() == pytest.approx(28.015849, abs=1e-4)  # without the trick


def test_without_a_horizon_it_is_the_one_step_target():
    y = expansion(REWARD, CONT, torch.zeros(0, 1), torch.zeros(0, 1), LAST, 0.9)
    assert y[:, 0].tolist() == [10.0]
    assert td_k_loss(torch.tensor([[[8.0]]]), y, CONT).item() == 4


def test_steves_weights():
    candidates = torch.tensor([[10.0, 12, 11, 9], [10.5, 11.5, 11, 10], [8, 14, 12, 6]])[..., None]
    target, weight = steve_target(candidates)
    assert weight[:, 0].tolist() == pytest.approx([0.195122, 0.780488, 0.024390], abs=1e-6)
    assert target.item() == pytest.approx(10.682927, abs=1e-5)


def test_steve_trusts_all_alike_where_nothing_varies():
    _, weight = steve_target(torch.ones(4, 3, 2))
    torch.testing.assert_close(weight, torch.full((4, 2), 0.25))


# The chain: 100 states in a line, reward -1 a step and 100 on the last, which ends it


STATES, DEPTH, TABLES = 100, 5, 8


def chain(kind, noisy, iterations, seed=0):
    """Mean squared error of the tables' mean after so many iterations. Each updates one random state in each of eight
    tables, at a learning rate of 1; a noisy model jumps anywhere at every tenth step."""
    rng, each = np.random.default_rng(seed), torch.arange(TABLES)
    true = torch.arange(STATES) + 1.0
    q = torch.from_numpy(rng.uniform(0, 100, (TABLES, STATES + 1)).astype(np.float32))
    q[:, STATES] = 0

    def model(obs):
        """Of "T M" states, each model on its own: next states, rewards, and whether it goes on."""
        after = (obs + 1).clamp(max=STATES)
        if noisy:
            jump = torch.from_numpy(rng.random(obs.shape) < 0.1)
            after = torch.where(jump, torch.from_numpy(rng.integers(STATES, size=obs.shape)), after)
        after = torch.where(obs == STATES, obs, after)
        here = (obs < STATES).float()
        return after, here * torch.where(after == STATES, 100.0, -1.0), (after < STATES).float()

    for _ in range(iterations):
        at = torch.from_numpy(rng.integers(STATES, size=TABLES))
        obs = (at + 1)[:, None].expand(TABLES, TABLES)
        reward = torch.where(at == STATES - 1, 100.0, -1.0)[:, None].expand(TABLES, TABLES)
        cont = (obs < STATES).float()
        states, rewards, conts = [obs], [], []
        for _ in range(0 if kind == "q" else DEPTH):
            obs, r, c = model(obs)
            states.append(obs), rewards.append(r), conts.append(c)
        if kind == "steve":  # T_i of all models and all tables, "H+1 K T"
            candidates, total, weight = [], reward, cont
            for i, state in enumerate(states):
                candidates.append((total + weight * q[:, state]).permute(0, 2, 1).flatten(0, 1))
                if i < DEPTH:
                    total, weight = total + weight * rewards[i], weight * conts[i]
            q[each, at] = steve_target(torch.stack(candidates))[0]
        else:
            nothing = torch.zeros(0, TABLES, TABLES)
            r, c = (torch.stack(x) if x else nothing for x in (rewards, conts))
            last = q[each[:, None], states[-1]]
            q[each, at] = expansion(reward, cont, r, c, last, 1.0)[0].mean(1)
    return (q[:, :STATES].mean(0) - true).square().mean().item()


@pytest.mark.parametrize(
    ("kind", "noisy", "iterations", "error"),
    [
        ("q", False, 1_000, 629),
        ("mve", False, 1_000, 213),
        ("steve", False, 1_000, 267),
        ("mve", True, 2_000, 1_127),
        ("steve", True, 2_000, 581),
    ],
)
def test_the_chains_table(kind, noisy, iterations, error):
    """A noisy model makes MVE worse than no model at all, and hardly hurts STEVE."""
    assert chain(kind, noisy, iterations) == pytest.approx(error, rel=0.35)


# The agent


@pytest.fixture
def make(small):
    return lambda seed=0, **settings: small.agent("mve", "vector", "continuous", seed, **settings)


def fixed(agent, rewards=(2.0, 3.0, 4.0), last=10.0):
    """A model that pays these rewards, one after another, and target critics that say ``last``."""
    from reverie.models.dynamics import Imagination

    paid = iter(rewards)
    agent.dynamics.imagine = lambda obs, action, *_: Imagination(
        torch.full(obs.shape[:2], next(paid)), obs + 1, torch.ones(obs.shape[:2])
    )
    agent.target_critics = lambda obs, action: torch.full((agent.config.critics, len(obs)), last)
    return agent


def one(cont=1.0):
    return Transitions(torch.zeros(1, 5), torch.zeros(1, 2), REWARD, torch.zeros(1, 5), torch.tensor([cont]))


def test_the_agents_targets_are_the_toys(make):
    agent = fixed(make(horizon=3, discount=0.9))
    dream = agent.imagine(one().next_obs)
    assert agent.targets(one(), dream)[:, 0].tolist() == pytest.approx([14.707, 15.23, 14.70, 13.00])
    assert dream.obs[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_steves_candidates_look_one_step_further_each(make):
    agent = fixed(make(horizon=3, discount=0.9, expand="steve", members=2, critics=2))
    told = agent.candidates(one(), agent.imagine(one().next_obs))
    assert told.shape == (4, 4, 1)
    expected = [1 + 0.9 * 10, 1 + 0.9 * 2 + 0.81 * 10, 1 + 0.9 * 2 + 0.81 * 3 + 0.729 * 10]
    assert told[:3, 0, 0].tolist() == pytest.approx(expected)
    agent = fixed(make(horizon=3, expand="steve", members=2, critics=2))
    assert (agent.candidates(one(0.0), agent.imagine(one().next_obs)) == 1).all()


def test_without_a_horizon_it_is_ddpg(small):
    """The critic and the actor move as DDPG's with the same weights, rates and rows."""
    rates = dict(actor_lr=1e-3, critic_lr=1e-3, tau=0.01, units=(8, 8))
    mve = small.agent("mve", "vector", horizon=0, norm=False, batch_size=64, **rates)
    ddpg = small.agent("ddpg", "vector", critic_decay=0.0, **rates)
    pairs = ((ddpg.actor, mve.actor), (ddpg.critic, mve.critics))
    slow = ((ddpg.target_actor, mve.target_actor), (ddpg.target_critic, mve.target_critics))
    for theirs, ours in (*pairs, *slow):
        theirs.load_state_dict(ours.state_dict())
    for seed in range(3):
        mve.update(small.batch("vector", seed=seed)), ddpg.update(small.batch("vector", seed=seed))
    for theirs, ours in (*pairs, *slow):
        for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_arrows(make, small):
    """The critic's loss moves the critics, the actor's the actor, the model's the model, and nothing else."""
    agent = make()
    t = transitions(small.batch("vector"), agent.keys)
    dream = agent.imagine(t.next_obs)
    assert not dream.obs.requires_grad and not dream.reward.requires_grad
    values = agent.values(agent.critics(t.obs, t.action), dream)
    losses = {
        "critics": td_k_loss(values, agent.targets(t, dream), t.cont),
        "actor": actor_loss(agent.critics.climbed(t.obs, agent.actor(t.obs))),
        "dynamics": sum(model_loss(agent.dynamics, t, agent.generators["learn"])),
    }
    for mine, loss in losses.items():
        for name, parameter in agent.modules.named_parameters():
            (grad,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
            assert (grad is not None and bool(grad.abs().sum() > 0)) is name.startswith(f"{mine}."), (
                mine,
                name,
            )


def test_the_model_is_taught_alone_at_first(make, small):
    agent = make(pretrain=2)
    moved = []
    for seed in range(3):
        before = {name: p.clone() for name, p in agent.modules.named_parameters()}
        agent.update(small.batch("vector", seed=seed))
        after = dict(agent.modules.named_parameters())
        moved.append({name.split(".")[0] for name in before if not torch.equal(before[name], after[name])})
    assert moved[:2] == [{"dynamics"}] * 2
    assert moved[2] == {"dynamics", "actor", "critics", "target_actor", "target_critics"}


def test_one_network_unless_steve(small):
    with pytest.raises(ReverieError, match="several are for --expand steve"):
        small.agent("mve", "vector", members=2)
    assert small.agent("mve", "vector", members=2, critics=3, expand="steve")


def test_steve_updates(make, small):
    agent = make(expand="steve", members=2, critics=2, ends=True)
    metrics = agent.update(small.batch("vector"))
    assert 0 <= metrics["steve/depth"] <= agent.config.horizon
