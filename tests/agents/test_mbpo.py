"""MBPO: its schedule and sizes, elites, branches from real states, and a learner that is SAC."""

import numpy as np
import pytest
import torch

from reverie import presets
from reverie.agents.mbpo import MBPO, Config, everything
from reverie.data.replay import Replay
from reverie.data.transitions import Transitions
from reverie.models.dynamics import Imagination
from reverie.types import ActionSpace, ReverieError, Space, Step

VECTOR, TWO = {"vector": Space((3,))}, ActionSpace(2)


def make(seed=0, **settings):
    return MBPO(VECTOR, TWO, presets.resolve("mbpo", ["debug"], settings), seed)


def filled(n=200, seed=0, terminal=False):
    """Episodes of 20 steps in which entries move by the first number of the action; the reward is the first entry."""
    rng = np.random.default_rng(seed)
    replay, obs = Replay(VECTOR, TWO, 2 * n), np.zeros(3, np.float32)
    action = np.zeros(2, np.float32)
    for i in range(n):
        first, last = i % 21 == 0, i % 21 == 20
        obs = rng.normal(size=3).astype(np.float32) if first else obs + action[0]
        flags = (np.array(first), np.array(last), np.array(last and terminal), np.array(int(not first)))
        row = Step({"vector": obs.astype(np.float32)}, np.array(0 if first else obs[0], np.float32), *flags)
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        replay.add(row, action)
    return replay


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("paper", {0: 1, 20: 1, 29: 1, 30: 2, 85: 8, 100: 9, 149: 14, 150: 15, 200: 15}),
        ("ant", {20: 1, 24: 2, 60: 13, 100: 25}),
        ("humanoid", {20: 1, 32: 2, 160: 13, 300: 25}),
        ("half_cheetah", {0: 1, 300: 1}),
    ],
)
def test_the_schedule_of_k(preset, expected):
    agent = make()
    agent.config = presets.resolve("mbpo", [preset])
    assert {epoch: agent.length(1_000 * epoch) for epoch in expected} == expected


def test_sizes_of_the_paper():
    c = Config()
    assert int(c.real * c.batch_size) == 12
    agent = make()
    agent.config = c
    found = {}

    class Enough(Exception):
        pass

    def sample(obs, generator):
        found["starts"] = len(obs)
        raise Enough

    agent.ring.resize = lambda size: found.update(size=size)
    agent.actor.sample = sample
    with pytest.raises(Enough):
        agent.imagine(everything(filled(), ["vector"]), 1)
    assert found == {"size": 400_000, "starts": 100_000}


def test_everything_is_every_transition():
    rows = everything(filled(63, terminal=True), ["vector"])
    assert len(rows.reward) == 60
    torch.testing.assert_close(rows.next_obs, rows.obs + rows.action[:, :1])
    assert torch.equal(rows.reward, rows.next_obs[:, 0])
    assert rows.cont.tolist().count(0.0) == 3


def known(agent, ends=lambda obs: torch.ones(len(obs))):
    """Instead of its networks: entries move by the first number of the action, and member m pays m."""

    def imagine_by(member, obs, action, generator=None, temperature=1.0):
        after = obs + action[:, :1]
        return Imagination(member.float(), after, ends(after))

    agent.dynamics.imagine_by = imagine_by
    return agent


def test_branches_begin_at_real_states_and_go_on_from_where_they_are():
    agent = known(make(rollouts=1, model_every=50, elites=2))
    agent.best = torch.tensor([2, 0])
    rows = everything(filled(), ["vector"])
    agent.imagine(rows, 3)
    assert len(agent.ring) == 150
    kept = Transitions(*(column[:150] for column in agent.ring.rows))
    real = {tuple(row) for row in rows.obs.tolist()}
    assert all(tuple(row) in real for row in kept.obs[:50].tolist())
    assert torch.equal(kept.obs[50:], kept.next_obs[:100])
    assert set(kept.reward.tolist()) == {0.0, 2.0}  # elites alone, drawn anew for every row and step
    assert (kept.reward[:50] != kept.reward[50:100]).any()


def test_a_branch_stops_where_an_end_is_expected():
    agent = known(make(rollouts=1, model_every=50), ends=lambda obs: (obs[:, 0] < 0).float())
    agent.imagine(everything(filled(), ["vector"]), 2)
    kept = Transitions(*(column[: len(agent.ring)] for column in agent.ring.rows))
    first = kept.cont[:50]
    assert torch.equal(first, (kept.next_obs[:50, 0] < 0).float())
    assert len(agent.ring) == 50 + int(first.sum())
    assert torch.equal(kept.obs[50:], kept.next_obs[:50][first > 0])


def test_the_model_is_fitted_and_the_elites_are_the_best():
    agent = make(model_units=16, most_passes=40, progress=0.0, model_batch=32, decay=())
    rows = everything(filled(400), ["vector"])
    agent.dynamics.see(rows.obs, rows.action, rows.reward, rows.next_obs)
    before = agent.errors(rows)
    told = agent.fit(rows)
    after = agent.errors(rows)
    assert (after < before / 3).all() and told["model/passes"] <= 40
    assert len(agent.best) == 2 and len(set(agent.best.tolist())) == 2


def test_training_stops_after_five_passes_without_progress():
    agent = make(progress=1.0, most_passes=100)  # nothing ever counts as progress
    rows = everything(filled(), ["vector"])
    before = agent.weights()
    assert agent.fit(rows)["model/passes"] == 6
    assert all(torch.equal(a, b) for a, b in zip(before, agent.weights(), strict=True))  # each keeps its best


def test_it_dreams_when_it_is_time_and_mixes_in_what_was_real():
    agent = make(model_every=100, rollouts=1, batch_size=20, real=0.25)
    replay, rng = filled(150), np.random.default_rng(0)
    batch = agent.sample(replay, rng)
    assert len(agent.ring) == 100 and agent.next_fit == 250
    seen = []
    agent.critics.forward, real = (
        (lambda obs, action: seen.append(obs) or real(obs, action)),
        agent.critics.forward,
    )
    agent.update(batch)
    assert torch.equal(seen[0][:5], batch.obs["vector"][:5, 0])
    imagined = {tuple(row) for row in agent.ring.rows.obs[:100].tolist()}
    assert all(tuple(row) in imagined for row in seen[0][5:].tolist())
    passes = agent.told
    agent.sample(replay, rng)
    assert agent.told is passes  # not yet time again


def test_without_a_dream_it_is_sac(small):
    rates = dict(units=(8, 8), actor_lr=1e-3, critic_lr=1e-3, alpha_lr=1e-3, tau=0.1)
    mbpo = small.agent("mbpo", "vector", entropy=-2.0, **rates)
    sac = small.agent("sac", "vector", entropy=-2.0, **rates)
    mine = {k: v for k, v in mbpo.modules.state_dict().items() if not k.startswith("dynamics")}
    sac.modules.load_state_dict(mine)
    sac.generators["learn"].set_state(mbpo.generators["learn"].get_state())
    for seed in range(3):
        mbpo.update(small.batch("vector", seed=seed)), sac.update(small.batch("vector", seed=seed))
    for name, value in sac.modules.state_dict().items():
        torch.testing.assert_close(mbpo.modules.state_dict()[name], value)


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been():
    replay, rng = filled(150), np.random.default_rng(0)
    a = make(model_every=100)
    a.update(a.sample(replay, rng))
    b = make(seed=7, model_every=100)
    b.load_state_dict(a.state_dict())
    later = filled(300)
    rngs = [np.random.default_rng(1) for _ in range(2)]
    one, two = (agent.update(agent.sample(later, rng)) for agent, rng in zip((a, b), rngs, strict=True))
    assert one == two and a.next_fit == b.next_fit == 400
    assert torch.equal(a.ring.rows.obs, b.ring.rows.obs)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ReverieError, match="--elites must be from 1 to --members 3, got 4"):
        make(elites=4)
    with pytest.raises(ReverieError, match="--decay has 1 numbers"):
        make(decay=(0.1,))
