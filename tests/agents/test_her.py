"""HER: whose goal becomes what, against Stable-Baselines3's, and what the losses move."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

import reverie
import reverie.envs.goals  # (registers its worlds)
from reverie import presets
from reverie.agents.her import HER, actor_loss, critic_loss, relabel
from reverie.data.replay import Replay
from reverie.data.transitions import transitions
from reverie.envs import make_env
from reverie.envs.base import Goals
from reverie.run.folder import read_json
from reverie.types import ActionSpace, ReverieError, Space, Step

OBS = {"observation": Space((4,)), "achieved_goal": Space((2,)), "desired_goal": Space((2,))}
ACT = ActionSpace(2)
FLIPS = ActionSpace(3, (3,))
KEYS = ["observation", "desired_goal"]


def near(achieved, desired):
    return np.linalg.norm(achieved - desired, axis=-1) < 0.5


GOALS = Goals(lambda a, d: near(a, d).astype(np.float32) - 1, near)


def make(act=ACT, **settings):
    agent = HER(OBS, act, presets.resolve("her", ["debug"], settings), 0)
    agent.goals = GOALS
    return agent


def fill(replay, lengths, act=ACT):
    """Episodes of so many decisions whose rows tell their number: achieved is (number, 0), desired (-1, episode).

    Every third episode ends the world."""
    number, rng = 0, np.random.default_rng(0)
    for episode, length in enumerate(lengths):
        for t in range(length + 1):
            obs = {
                "observation": np.array([number, episode, t, 0], np.float32),
                "achieved_goal": np.array([number, 0], np.float32),
                "desired_goal": np.array([-1, episode], np.float32),
            }
            last = t == length
            flags = (t == 0, last, last and episode % 3 == 0, int(t > 0))
            replay.add(
                Step(obs, np.array(-1.0 * (t > 0), np.float32), *map(np.array, flags)), act.sample(rng, 1)[0]
            )
            number += 1


def filled(lengths=(5, 7, 4, 6), act=ACT):
    replay = Replay(OBS, act, 1000)
    fill(replay, lengths, act)
    return replay


# Whose goal becomes what


def test_hindsight_gives_a_goal_that_was_reached_later_in_the_same_episode():
    """And judges reward and end anew; what it does not touch stays as it was."""
    replay, agent, rng = filled(), make(batch_size=4000), np.random.default_rng(0)
    batch = agent.sample(replay, rng)
    assert batch.reward.shape == (4000, 2)
    now, goal = batch.obs["observation"], batch.obs["desired_goal"]
    assert torch.equal(goal[:, 0], goal[:, 1])
    own = goal[:, 0, 0] == -1
    share = float((~own).double().mean())
    assert share == pytest.approx(
        0.8, abs=4 * (0.16 / 4000) ** 0.5
    )  # k / (k + 1), and four standard deviations
    new = goal[~own, 0, 0]
    assert (new >= now[~own, 1, 0]).all()
    ends = torch.tensor([5.0, 13.0, 18.0, 25.0])[now[~own, 0, 1].long()]
    assert (new <= ends).all()
    arrived = batch.obs["achieved_goal"][:, 1].numpy()
    expected = GOALS.reward(arrived, goal[:, 1].numpy())
    assert np.array_equal(batch.reward[~own, 1].numpy(), expected[(~own).numpy()])
    assert (batch.reward[own, 1] == -1).all()
    reached = torch.from_numpy(GOALS.terminated(arrived, goal[:, 1].numpy()))
    assert torch.equal(batch.is_terminal[~own, 1], reached[~own])
    assert reached[~own].any() and not reached[~own].all()
    untouched = replay.transitions(4000, np.random.default_rng(0), future=True)
    assert torch.equal(batch.is_terminal[own, 1], untouched.is_terminal[own, 1])
    assert torch.equal(batch.action, untouched.action[:, :2])
    assert torch.equal(untouched.obs["desired_goal"][:, 0, 0], torch.full((4000,), -1.0))


def test_a_terminal_row_with_a_goal_far_away_goes_on():
    """The third row of a terminal transition is its own end; judged by a goal it has not reached, nothing ends."""
    replay = filled((3,))
    batch = replay.take([0], [1], 3)
    assert batch.is_last[0, 2] and batch.is_terminal[0, 2]
    batch = batch._replace(is_terminal=torch.ones_like(batch.is_terminal))
    far = relabel(batch, np.array([True]), GOALS)  # row 2 achieved (2, 0), the goal is (3, 0)
    assert not far.is_terminal[0, 1] and far.reward[0, 1] == -1
    own = relabel(batch, np.array([False]), GOALS)
    assert own.is_terminal[0, 1]


def test_goals_are_drawn_as_stable_baselines_draws_them():
    """Which transition with which goal: the same pairs, equally often, with the same rewards."""
    env = DummyVecEnv([lambda: gymnasium.make("reverie/PointMass-v0")])
    space = env.observation_space
    theirs = HerReplayBuffer(
        1000, space, env.action_space, env=env, n_sampled_goal=4, handle_timeout_termination=True
    )
    replay = Replay(OBS, ACT, 1000)
    rng, rows = np.random.default_rng(0), []
    for length in (3, 5, 2):
        episode = []
        for t in range(length + 1):
            place = rng.uniform(-0.1, 0.1, 2).astype(np.float32)
            desired = np.array([2.0 + len(rows), 0], np.float32)
            episode.append(
                {
                    "observation": np.full(4, 10 * len(rows) + t, np.float32),
                    "achieved_goal": place,
                    "desired_goal": desired,
                }
            )
        rows.append(episode)
        for t, obs in enumerate(episode):
            action, last = rng.uniform(-1, 1, 2).astype(np.float32), t == length
            flags = (t == 0, last, False, int(t > 0))
            replay.add(Step(obs, np.array(-1.0 * (t > 0), np.float32), *map(np.array, flags)), action)
            if not last:
                after = {key: value[None] for key, value in episode[t + 1].items()}
                before = {key: value[None] for key, value in obs.items()}
                done = t + 1 == length
                theirs.add(
                    before,
                    after,
                    action[None],
                    np.array([-1.0]),
                    np.array([done]),
                    [{"TimeLimit.truncated": done}],
                )
    agent = make(batch_size=50_000)
    agent.goals = make_env("reverie/PointMass-v0").goals
    batch = agent.sample(replay, rng)
    np.random.seed(0)
    peer = theirs.sample(50_000)
    ours_by, theirs_by = (
        counts(batch.obs["observation"][:, 0, 0], batch.obs["desired_goal"][:, 0], batch.reward[:, 1]),
        counts(peer.observations["observation"][:, 0], peer.observations["desired_goal"], peer.rewards[:, 0]),
    )
    assert ours_by.keys() == theirs_by.keys()
    for key, (n, reward) in ours_by.items():
        m, expected = theirs_by[key]
        assert reward == expected
        assert abs(n - m) < 5 * (n + m) ** 0.5
    env.close()


def counts(state, goal, reward):
    """How often each pair of a state and a goal, and the reward it had every time."""
    found = {}
    for s, g, r in zip(state.tolist(), goal.tolist(), reward.tolist(), strict=True):
        key = (s, round(g[0], 5), round(g[1], 5))
        n, before = found.get(key, (0, r))
        assert before == r
        found[key] = (n + 1, r)
    return found


# Learning


def test_targets_stay_within_what_rewards_can_add_up_to():
    """gamma 0.98: from -50 to 0; with rewards of 0 and 1, from 0 to 50."""
    t = transitions(make().sample(filled(), np.random.default_rng(0)), KEYS)
    for rewards, low, high in (((-1.0, 0.0), -50.0, 0.0), ((0.0, 1.0), 0.0, 50.0)):
        for value in (1e3, -1e3):
            agent = make(rewards=rewards)
            agent.target_critic.net.biases[-1].data.fill_(value)
            target = agent.target(t)
            assert target.min() >= low - 1e-4 and target.max() <= high + 1e-4
            assert float(target.abs().max()) in (pytest.approx(0, abs=1.0), pytest.approx(50, abs=1e-3))


@pytest.mark.parametrize("act", [ACT, FLIPS], ids=["numbers", "choices"])
def test_the_target_by_hand(act):
    agent = make(act)
    t = transitions(agent.sample(filled(act=act), np.random.default_rng(0)), KEYS)
    x = t.next_obs
    if act.discrete:
        after = agent.target_critic.net(x)[0].amax(-1)
    else:
        after = agent.target_critic.net(torch.cat([x, agent.target_actor(x)], -1))[0, :, 0]
    expected = (t.reward + 0.98 * t.cont * after).clamp(-50, 0)
    torch.testing.assert_close(agent.target(t), expected)


def test_the_actors_loss_moves_the_actor_and_not_the_critic():
    agent = make()
    t = transitions(agent.sample(filled(), np.random.default_rng(0)), KEYS)
    action = agent.actor(t.obs)
    loss = actor_loss(agent.critic.climbed(t.obs, action), action, 1.0)
    assert all(
        g is None
        for g in torch.autograd.grad(
            loss, list(agent.critic.parameters()), allow_unused=True, retain_graph=True
        )
    )
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, list(agent.actor.parameters())))
    value = torch.zeros(3)
    assert float(actor_loss(value, torch.full((3, 2), 0.5), 1.0)) == pytest.approx(0.25)
    assert float(critic_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2))) == pytest.approx(2.5)


def test_the_targets_follow_once_in_a_cycle():
    agent, replay, rng = make(target_every=3), filled(), np.random.default_rng(0)
    for i in range(6):
        before = agent.target_critic.net.weights[0].clone()
        agent.update(agent.sample(replay, rng))
        assert torch.equal(before, agent.target_critic.net.weights[0]) == ((i + 1) % 3 != 0)


def test_the_td3_preset_believes_the_lower_critic_and_delays_the_actor():
    agent = HER(OBS, ACT, presets.resolve("her", ["debug", "td3"]), 0)
    agent.goals = GOALS
    t = transitions(agent.sample(filled(), np.random.default_rng(0)), KEYS)
    agent.generators["learn"].manual_seed(3)
    target = agent.target(t)
    noise = torch.randn(t.action.shape, generator=torch.Generator().manual_seed(3))
    action = (agent.target_actor(t.next_obs) + (0.2 * noise).clamp(-0.5, 0.5)).clamp(-1, 1)
    low = agent.target_critic(t.next_obs, action).amin(0)
    torch.testing.assert_close(target, (t.reward + 0.98 * t.cont * low).clamp(-50, 0))
    actor = agent.actor.net.weights[0].clone()
    agent.update(agent.sample(filled(), np.random.default_rng(1)))
    assert torch.equal(actor, agent.actor.net.weights[0])


def test_what_is_seen_is_normalised_by_all_that_was_and_clipped():
    torch.manual_seed(0)
    agent = make()
    spread = torch.tensor([1.0, 5.0, 0.0, 1e-4, 1.0, 1.0])
    rows = torch.randn(136, 6) * spread + torch.tensor([0.0, -7.0, 2.0, 0.0, 0.0, 0.0])
    for part in rows.split([5, 100, 31]):
        agent.normalizer.see(part)
    expected = ((rows - rows.mean(0)) / rows.std(0, correction=0).clamp(min=0.01)).clamp(-5, 5)
    torch.testing.assert_close(agent.scale(rows), expected, atol=1e-4, rtol=1e-4)
    assert agent.scale(torch.full((1, 6), 1e6)).max() == 5


def test_exploration_is_random_now_and_then():
    agent, n = make(FLIPS, epsilon=0.3), 20_000
    greedy = torch.eye(3)[torch.zeros(n, dtype=torch.long)]
    other = agent.explore(greedy)
    assert (other.sum(-1) == 1).all()
    assert float((other.argmax(-1) != 0).double().mean()) == pytest.approx(0.2, abs=0.015)
    agent = make(epsilon=0.3, exploration_noise=0.0)
    moved = agent.explore(torch.full((n, 2), 0.5))
    assert float((moved != 0.5).all(-1).double().mean()) == pytest.approx(0.3, abs=0.015)
    assert moved.abs().max() <= 1


# What can not be used


def test_what_can_not_be_used_is_one_sentence(tmp_path):
    with pytest.raises(ReverieError, match=r"her needs a goal environment, .* this one shows vector"):
        HER({"vector": Space((3,))}, ACT)
    with pytest.raises(ReverieError, match=r"achieved_goal has shape \(2,\) and desired_goal \(3,\)"):
        HER({**OBS, "desired_goal": Space((3,))}, ACT)
    with pytest.raises(ReverieError, match="one choice at a time"):
        HER(OBS, ActionSpace(5, (2, 3)))
    agent = make()
    agent.goals = None
    with pytest.raises(ReverieError, match="set its `goals`"):
        agent.sample(filled(), np.random.default_rng(0))
    with pytest.raises(ReverieError, match="action-repeat 1"):
        reverie.train("her", "reverie/PointMass-v0", "debug", tmp_path / "a", action_repeat=2)
    assert not (tmp_path / "a").exists()


def test_a_world_that_can_not_judge_is_refused(tmp_path):
    class Silent(gymnasium.Env):
        observation_space = gymnasium.make("reverie/PointMass-v0").observation_space
        action_space = gymnasium.spaces.Box(-1, 1, (2,))

    gymnasium.register("test/Silent-v0", lambda: Silent())
    try:
        with pytest.raises(ReverieError, match="has no compute_reward to tell"):
            reverie.train("her", "test/Silent-v0", "debug", tmp_path / "run")
    finally:
        gymnasium.registry.pop("test/Silent-v0")
    assert not (tmp_path / "run").exists()


def test_a_short_run(tmp_path):
    run = reverie.train(
        "her", "reverie/BitFlip8-v0", "debug", tmp_path / "run", eval_episodes=2, device="cpu", threads=1
    )
    assert len(read_json(run / "evaluation.json")["returns"]) == 2
    assert reverie.load(run).act(make_env("reverie/BitFlip8-v0").reset(0).obs).sum() == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1])
def test_bits_are_flipped_with_hindsight_and_not_without(seed, tmp_path):
    """15 bits: a random policy hits the goal once in about 2,000 episodes."""
    returns = {}
    for future in (4, 0):
        settings = {"seed": seed, "future": future, "steps": 30_000, "eval_every": 0}
        run = reverie.train("her", "reverie/BitFlip-v0", "bits", tmp_path / str(future), **settings)
        returns[future] = read_json(run / "evaluation.json")["mean"]
    assert returns[4] > -10 and returns[0] < -14
