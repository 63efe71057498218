"""Goal environments: what they promise to those who relabel, and the worlds made here."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from reverie.envs import goals, make_env
from reverie.envs.goals import Goal, GoalEnv
from reverie.types import ReverieError

PLAIN = {f"reverie/{name}{kind}-v0" for name in goals.WORLDS for kind in ("", "Dense")}
OURS = sorted(PLAIN & set(gymnasium.registry))


@pytest.mark.parametrize("name", OURS)
def test_a_goal_world_keeps_the_contract(name):
    """Seeds decide goals, the goal stays for an episode, and what it pays is what it says it would pay."""
    env = gymnasium.make(name)
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    assert all(np.array_equal(obs[key], again[key]) for key in goals.KEYS)
    other, _ = env.reset(seed=4)
    assert not np.array_equal(obs["desired_goal"], other["desired_goal"])
    desired, steps, over = other["desired_goal"], 0, False
    while not over:
        env.action_space.seed(int(rng.integers(1000)))
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        steps, over = steps + 1, terminated or truncated
        assert env.observation_space.contains(obs)
        assert np.array_equal(obs["desired_goal"], desired)
        judged = env.get_wrapper_attr("compute_reward")(obs["achieved_goal"], desired, info)
        assert judged == pytest.approx(reward)
        assert (
            bool(env.get_wrapper_attr("compute_terminated")(obs["achieved_goal"], desired, info))
            == terminated
        )
        assert isinstance(info["is_success"], bool)
    assert steps == env.spec.max_episode_steps or name.startswith("reverie/BitFlip")
    many = np.stack([obs["achieved_goal"]] * 3)
    assert env.get_wrapper_attr("compute_reward")(many, np.stack([desired] * 3), {}).shape == (3,)
    assert env.get_wrapper_attr("compute_terminated")(many, np.stack([desired] * 3), {}).shape == (3,)
    env.close()


@given(st.integers(1, 12), st.integers(0, 1000))
def test_flipping_bits(bits, seed):
    env = goals.BitFlip(bits)
    obs, _ = env.reset(seed=seed)
    wrong = np.flatnonzero(obs["observation"] != obs["desired_goal"])
    for k, bit in enumerate(wrong):
        before = obs["observation"].copy()
        obs, reward, terminated, truncated, info = env.step(bit)
        assert np.abs(obs["observation"] - before).sum() == 1
        there = k == len(wrong) - 1
        assert (reward, terminated, info["is_success"]) == (0.0 if there else -1.0, there, there)
        assert not truncated or not there
    if not len(wrong):
        *_, terminated, _, _ = env.step(0)
        assert not terminated


def test_the_clock_of_bits_is_their_number():
    env = goals.BitFlip(4)
    env.reset(seed=0)
    env.desired = 1 - env.at
    ends = [env.step(0)[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]


def test_the_point_mass_by_hand():
    env = goals.PointMass()
    env.reset(seed=0)
    env.x, env.v = np.array([0.0, 1.45]), np.array([0.1, 0.1])
    obs, *_ = env.step(np.array([1.0, 5.0]))  # clipped to 1
    assert obs == pytest.approx([0.18, 1.5, 0.18, 0.0])  # v = 0.8 * 0.1 + 0.1; the wall at 1.5 stops it


def test_the_reachers_goal_is_its_fingertip():
    env = make_env("reverie/GoalReacher-v0")
    row = env.reset(0)
    inner = env.env.unwrapped
    tip = inner.get_body_com("fingertip")[:2]
    assert row.obs["achieved_goal"] == pytest.approx(5 * tip, abs=1e-5)
    assert row.obs["observation"][6:8] == pytest.approx(5 * tip, abs=1e-5)
    target = inner.get_body_com("target")[:2]
    row = env.step(np.zeros(2, np.float32))
    assert not np.allclose(row.obs["desired_goal"], 5 * target)  # its own target is nobody's goal
    env.close()


def test_the_arms_goals_are_poses_it_can_take():
    """The desired hand is where the desired angles put it."""
    import mujoco

    env = gymnasium.make("reverie/GoalArm-v0")
    obs, _ = env.reset(seed=1)
    world, goal = env.unwrapped, obs["desired_goal"]
    data = mujoco.MjData(world.model)
    data.qpos[:7] = goal[:7]
    mujoco.mj_forward(world.model, data)
    assert data.body("tips_arm").xpos == pytest.approx(goal[14:])
    assert not goal[7:14].any()
    low, high = world.model.jnt_range[:7].T
    assert (goal[:7] >= low).all() and (goal[:7] <= high).all()
    env.close()


def test_the_hands_goals_are_places_it_can_reach():
    """Those of the arm with the same seed; all it shows beside them is the arm itself."""
    arm, hand = (gymnasium.make(f"reverie/Goal{name}-v0").reset(seed=3)[0] for name in ("Arm", "Hand"))
    assert hand["desired_goal"] == pytest.approx(arm["desired_goal"][14:])
    assert hand["achieved_goal"] == pytest.approx(arm["observation"][14:])
    assert hand["observation"] == pytest.approx(arm["observation"])


def test_the_ant_shows_its_place_and_no_contact_forces():
    env = gymnasium.make("reverie/GoalAnt-v0")
    obs, _ = env.reset(seed=0)
    assert obs["observation"].shape == (29,)
    assert obs["achieved_goal"] == pytest.approx(env.unwrapped.data.qpos[:2])
    env.close()


def test_a_goal_env_of_any_vector_world():
    """Entries or a function for goal and observation; the world's own reward is not passed on, its end is."""
    env = GoalEnv(gymnasium.make("CartPole-v1"), (2,), ([-0.1], [0.1]), Goal(0.05), keep=(0, 1, 3))
    obs, _ = env.reset(seed=0)
    assert obs["observation"].shape == (3,) and obs["achieved_goal"].shape == (1,)
    ended = False
    while not ended:
        obs, reward, ended, _, info = env.step(1)
        assert reward == (0.0 if info["is_success"] else -1.0)
        assert info["is_success"] == (abs(obs["achieved_goal"] - obs["desired_goal"])[0] <= 0.05)
    stops = GoalEnv(goals.PointMass(), (0, 1), ([-1.0, -1.0], [1.0, 1.0]), Goal(9.0, dense=True, stop=True))
    stops.reset(seed=0)
    obs, reward, terminated, *_ = stops.step(np.zeros(2))
    assert terminated and reward == pytest.approx(-np.linalg.norm(obs["achieved_goal"] - obs["desired_goal"]))


def test_only_the_entries_that_count():
    judge = Goal(0.5, entries=(2,))
    assert judge.distance(np.array([9.0, 9.0, 1.0]), np.zeros(3)) == 1.0
    assert judge.reached(np.array([[9.0, 9.0, 0.4], [0.0, 0.0, 1.0]]), np.zeros((2, 3))).tolist() == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (dict(goal=(4,)), r"must be entries of its observation, which are 0 to 3; got \[4\]"),
        (dict(goal=()), "must be entries of its observation"),
        (dict(sample=([0.0], [1.0])), "have 2 numbers, and the bounds to draw them between have 1 and 1"),
    ],
)
def test_a_goal_that_does_not_fit_is_one_sentence(how, sentence):
    settings = dict(goal=(0, 1), sample=([0.0, 0.0], [1.0, 1.0]), judge=Goal(0.1)) | how
    with pytest.raises(ReverieError, match=sentence):
        GoalEnv(goals.PointMass(), **settings)


def test_what_shows_no_vector_has_no_goals():
    class Table(gymnasium.Env):
        observation_space, action_space = spaces.Discrete(4), spaces.Discrete(2)

    with pytest.raises(ReverieError, match="whose observation is a vector; that of Table is"):
        GoalEnv(Table(), (0,), ([0.0], [1.0]), Goal(0.1))


def test_our_form_of_a_goal_world_judges_single_steps_only():
    assert make_env("reverie/PointMass-v0").goals is not None
    assert make_env("reverie/PointMass-v0", time_limit=3).goals is not None
    assert make_env("reverie/PointMass-v0", action_repeat=2).goals is None
    assert make_env("Pendulum-v1").goals is None


def test_judges_that_answer_for_one_pair_at_a_time():
    class OneByOne(goals.BitFlip):
        def compute_terminated(self, achieved, desired, info=None):
            return bool(np.array_equal(achieved, desired))

    from reverie.envs import from_gymnasium

    judged = from_gymnasium(OneByOne(2)).goals
    achieved, desired = np.array([[0, 1], [1, 1]], np.float32), np.array([[0, 1], [0, 1]], np.float32)
    assert judged.terminated(achieved, desired).tolist() == [True, False]
    assert judged.reward(achieved, desired).tolist() == [0.0, -1.0]


def test_worlds_of_gymnasium_robotics():
    """FetchReach: -1 and 0, within 5 cm, never ending; PointMaze: 0 and 1."""
    pytest.importorskip("gymnasium_robotics")
    env = make_env("FetchReach-v4")
    row = env.reset(0)
    start = row.obs["achieved_goal"]
    for _ in range(5):
        row = env.step(np.array([1, 0, 0, 0], np.float32))
    assert row.obs["achieved_goal"][0] > start[0] + 0.05
    here = np.repeat(start[None], 2, 0)
    assert env.goals.reward(here, here + np.array([[0.04, 0, 0], [0.06, 0, 0]], np.float32)).tolist() == [
        0.0,
        -1.0,
    ]
    assert not env.goals.terminated(here, here).any()
    env.close()
    env = make_env("PointMaze_UMaze-v3")
    here = np.repeat(env.reset(0).obs["achieved_goal"][None], 2, 0)
    assert env.goals.reward(here, here + np.array([[0.4, 0], [0.5, 0]], np.float32)).tolist() == [1.0, 0.0]
    env.close()
