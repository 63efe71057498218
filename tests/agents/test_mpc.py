"""MPC: particles and networks, the loss and what it moves, plans that begin where the last one ended."""

import dataclasses

import numpy as np
import pytest
import torch

from reverie import presets, train
from reverie.agents.mpc import MPC, Config, model_loss, shuffled
from reverie.data.transitions import transitions
from reverie.models.dynamics import Folded, Imagination
from reverie.run.folder import read_json
from reverie.types import ActionSpace, ReverieError


@pytest.fixture
def make(small):
    return lambda seed=0, action="continuous", **settings: small.agent(
        "mpc", "vector", action, seed, **settings
    )


class Knowing(Folded):
    """Imagines as it is told."""

    def __init__(self, imagine):
        self.imagine = imagine


def fixed(agent, reward=lambda obs, action: obs[..., 0], ends=None):
    """Instead of its networks: entries move by the first number of the action, and network m adds m to the last."""

    def imagine(obs, action, generator=None, temperature=1.0):
        after = obs + action[..., :1]
        after[..., -1] += torch.arange(len(obs), dtype=torch.float32)[:, None]
        cont = torch.ones(obs.shape[:2]) if ends is None else ends(after)
        return Imagination(reward(after, action), after, cont)

    agent.dynamics.folded = lambda: Knowing(imagine)
    return agent


def act(agent, obs, carry=None, first=True, mode="eval"):
    n = len(obs["speed"])
    carry = agent.initial(n) if carry is None else carry
    return agent.act({**obs, "is_first": np.full(n, first)}, carry, mode)


# Particles


def test_a_plan_is_worth_the_mean_of_the_rewards_it_leads_to(make):
    agent = fixed(make(particles=10, horizon=3))
    start = torch.zeros(2, 5)
    start[1] = 10.0
    candidates = torch.zeros(3, 2, 4, 2)
    candidates[0, :, 1, 0] = 1.0  # one step up at once
    candidates[2, :, 2, 0] = 1.0  # one step up at the end
    returns = agent.rollout(agent.dynamics.folded(), start, candidates, torch.Generator())
    assert returns.tolist() == [[0, 3, 1, 0], [30, 33, 31, 30]]  # the start's own reward is not counted


@pytest.mark.parametrize(("propagation", "spread"), [("ts_inf", 1.0), ("ts1", 0.0)])
def test_a_particle_keeps_its_network_or_draws_anew(make, propagation, spread):
    """Network m adds m at each step: after three steps of one network, a particle stands at 0, 3, 6, 9 or 12."""
    seen = []
    agent = fixed(make(particles=20, horizon=3, propagation=propagation), lambda obs, action: obs[..., -1])
    imagine = agent.dynamics.folded().imagine

    def watched(obs, action, generator=None, temperature=1.0):
        told = imagine(obs, action, generator)
        seen.append(told.obs[..., -1].clone())
        return told

    returns = agent.rollout(
        Knowing(watched), torch.zeros(1, 5), torch.zeros(3, 1, 2, 2), torch.Generator().manual_seed(0)
    )
    assert returns[0].tolist() == pytest.approx([2 + 4 + 6] * 2)  # the mean over networks either way
    assert set(seen[0].flatten().tolist()) == {0, 1, 2, 3, 4}
    apart = {value % 3 for value in seen[2].flatten().tolist()}
    assert (apart == {0}) is bool(spread)


def test_shuffling_moves_particles_within_their_candidate_alone():
    state = torch.arange(3 * 8).view(3, 8, 1) % 8 // 2 * 100.0 + torch.arange(3).view(3, 1, 1) * 10
    state = state + torch.arange(8).view(1, 8, 1) % 2
    mixed = shuffled(state, 4, torch.Generator().manual_seed(0))
    assert not torch.equal(mixed, state)
    for group in range(4):
        rows = slice(2 * group, 2 * group + 2)
        assert sorted(mixed[:, rows].flatten().tolist()) == sorted(state[:, rows].flatten().tolist())


def test_what_comes_after_an_expected_end_counts_the_less(make):
    agent = fixed(make(horizon=3, ends=True), ends=lambda obs: torch.full(obs.shape[:2], 0.5))
    candidates = torch.zeros(3, 1, 1, 2)
    assert (
        agent.rollout(agent.dynamics.folded(), torch.ones(1, 5), candidates, torch.Generator()).item()
        == 1 + 0.5 + 0.25
    )


# Plans


def test_the_next_search_begins_where_the_last_plan_went_on(make, small):
    agent = fixed(make(horizon=4))
    guesses = []
    planner = agent.planner

    def spy(rollout, batch, space, generator=None, device="cpu", guess=None):
        guesses.append(guess.clone())
        return planner(rollout, batch, space, generator, device, guess)

    agent.planner = spy
    _, carry = act(agent, small.obs("vector", 2))
    assert torch.equal(guesses[0], torch.zeros(2, 4, 2))
    _, carry = act(agent, small.obs("vector", 2, 1), carry, first=False)
    assert guesses[1][:, :-1].abs().sum() > 0 and guesses[1][:, -1].abs().sum() == 0
    act(agent, small.obs("vector", 2, 2), carry, first=True)
    assert torch.equal(guesses[2], torch.zeros(2, 4, 2))


def test_a_known_world_is_climbed(make, small):
    agent = fixed(make(horizon=3, candidates=200, elites=20, iterations=5))
    action, _ = act(agent, small.obs("vector", 2))
    assert (action[:, 0] > 0.8).all()


def test_exploration_is_for_training(make, small):
    agent = fixed(make(exploration_noise=0.5))
    obs = small.obs("vector", 2)
    agent.generators["train"].set_state(agent.generators["eval"].get_state())
    quiet, loud = act(agent, obs)[0], act(agent, obs, mode="train")[0]
    assert not np.array_equal(quiet, loud) and (np.abs(loud) <= 1).all()


@pytest.mark.parametrize("planner", ["cem", "shooting", "mppi"])
@pytest.mark.parametrize("action", ["continuous", "multidiscrete"])
def test_every_planner_with_every_action(make, small, planner, action):
    agent = make(action=action, planner=planner)
    chosen, carry = act(agent, small.obs("vector", 3))
    chosen, _ = act(agent, small.obs("vector", 3, 1), carry, first=False)
    if action == "multidiscrete":
        assert chosen[:, :2].sum(1).tolist() == chosen[:, 2:].sum(1).tolist() == [1, 1, 1]
    else:
        assert (np.abs(chosen) <= 1).all()


# Learning


def test_the_loss_is_its_parts(make, small):
    agent = make(decay=(0.1, 0.2))
    t = transitions(small.batch("vector"), agent.keys)
    losses, _ = model_loss(agent, t, torch.Generator().manual_seed(0))
    assert set(losses) == {"model", "bounds", "decay"}
    assert losses["bounds"].item() == pytest.approx(0.01 * 6 * 10.5)  # reward and five entries
    squares = [w.square().sum().item() for w in agent.dynamics.net.weights]
    assert losses["decay"].item() == pytest.approx(0.05 * squares[0] + 0.1 * squares[1])


def test_rows_across_an_episodes_start_are_no_transitions(make, small):
    """Rows that no transition touches leave the update as it is."""
    a, b = make(), make()
    batch = small.batch("vector", ends=((1, 2), (2, 0)))
    reward = batch.reward.clone()
    reward[batch.is_first] = 99.0  # arrives with nothing
    a.update(batch), b.update(batch._replace(reward=reward))
    assert not small.differing(a.state_dict(), b.state_dict())


def test_ends_are_learned_where_the_world_ended_and_not_where_the_clock_did(make, small):
    a, b, c = (make(ends=True) for _ in range(3))
    told = [
        agent.update(small.batch("vector", terminal=terminal))["loss/ends"].item()
        for agent, terminal in ((a, True), (b, False))
    ]
    assert told[0] != told[1]
    clock = small.batch("vector", terminal=False)
    nothing = clock._replace(is_last=torch.zeros_like(clock.is_last))
    assert c.update(nothing)["loss/ends"].item() == told[1]


def test_settings_that_do_not_fit_are_refused(small):
    with pytest.raises(ReverieError, match="--particles 7 should be a multiple of --members 5"):
        small.agent("mpc", "vector", particles=7)
    with pytest.raises(ReverieError, match="--decay has 2 numbers, and 3 hidden layers need 4"):
        small.agent("mpc", "vector", layers=3)
    with pytest.raises(ReverieError, match="can not use the picture 'image'"):
        small.agent("mpc", "mixed")


def test_mbmf_is_one_deterministic_network_and_shooting(small):
    config = presets.resolve("mpc", ["mbmf"])
    agent = MPC(small.OBS["vector"], ActionSpace(2), config)
    assert type(agent.planner).__name__ == "Shooting"
    assert agent.planner.horizon == 20 and agent.planner.candidates == 1_000
    small_one = dataclasses.replace(config, candidates=4, batch_size=4)
    agent = MPC(small.OBS["vector"], ActionSpace(2), small_one)
    assert set(agent.update(small.batch("vector"))) >= {"loss/model"}
    t = transitions(small.batch("vector"), agent.keys)
    losses, _ = model_loss(agent, t, torch.Generator().manual_seed(0))
    assert set(losses) == {"model"}


def test_the_papers_schedule():
    """Five passes in batches of 32 over what there is, on average over 50 episodes of 200."""
    c = Config()
    mean = np.mean([5 * 200 * k / 32 for k in range(1, 51)])
    assert c.train_updates == pytest.approx(mean, rel=0.01) and c.steps == 50 * 200


def test_a_debug_run_ends_with_a_look_at_its_foresight(tmp_path):
    run = train(
        "mpc",
        "Pendulum-v1",
        "debug",
        tmp_path / "run",
        steps=150,
        time_limit=50,
        eval_episodes=1,
        eval_every=0,
    )
    assert read_json(run / "evaluation.json")["env_steps"] >= 150
    assert (run / "videos" / "prediction_error.svg").exists()
    assert "How far the model sees" in (run / "report.html").read_text()


@pytest.mark.slow
def test_the_pendulum_swings_up_within_seven_episodes(tmp_path):
    run = train(
        "mpc",
        "Pendulum-v1",
        "laptop",
        tmp_path / "run",
        steps=1_400,
        eval_episodes=3,
        eval_every=0,
        threads=1,
    )
    assert read_json(run / "evaluation.json")["mean"] > -300
