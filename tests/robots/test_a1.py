"""The A1: its reward in the poses of the paper's code, its motors' path, and its body."""

import numpy as np
import pytest

from reverie.robots import a1
from reverie.robots.a1 import STAND, angles_of, normalise, reward

X, Y = np.eye(3)[0], np.eye(3)[1]
REST = np.zeros(3)


@pytest.mark.parametrize(
    ("up", "velocity", "expected"),
    [
        (-1.0, REST, 5.0),  # on its back
        (1.0, REST, 9.0),  # standing still
        (1.0, 0.3 * X, 14.0),
        (1.0, 0.15 * X, 11.5),
        (1.0, 0.9 * X, 14.0),
        (1.0, 0.3 * X + 0.3 * Y, 12.5355),
        (1.0, -0.3 * X, 9.0),
        (1.0, 0.3 * Y, 9.0),
        (0.39, 0.3 * X, 5.695),  # upright score .695: the rungs above count for nothing
        (0.41, 0.3 * X, 13.705),
    ],
)
def test_reward_in_the_standing_pose(up: float, velocity: np.ndarray, expected: float) -> None:
    assert reward(up, STAND, velocity, X) == pytest.approx(expected, abs=5e-5)


def test_reward_with_every_joint_in_the_middle() -> None:
    assert reward(1.0, np.zeros(12), 0.3 * X, X) == pytest.approx(8.3333, abs=5e-5)


def test_forward_is_where_the_body_points() -> None:
    assert reward(1.0, STAND, 0.3 * Y, Y) == pytest.approx(14.0)


def test_joints_and_actions() -> None:
    np.testing.assert_allclose(normalise(np.tile([0, 0.9, -1.8], 4))[:3], [0, -0.18677, 0.67323], atol=2e-5)
    np.testing.assert_allclose(angles_of(STAND)[:3], [0, 0.86917, -1.62839], atol=2e-5)
    np.testing.assert_allclose(normalise(angles_of(np.linspace(-1, 1, 12))), np.linspace(-1, 1, 12))


@pytest.fixture(scope="module")
def robot():
    pytest.importorskip("mujoco")
    pytest.importorskip("pybullet_data")
    made = a1.A1()
    yield made
    made.close()


def test_its_body(robot) -> None:
    assert robot.model.nu == 12 and robot.model.nv == 18
    assert robot.model.body_mass.sum() == pytest.approx(12.458, abs=0.01)  # kg, of the description
    reading = robot.sense()
    assert reading.obs["vector"].shape == (16,) and not reading.over and not reading.terminal


def test_it_begins_on_its_back(robot) -> None:
    for seed in range(3):
        robot.rng = np.random.default_rng(seed)
        robot.reset()
        assert robot.rotation[2, 2] < -0.5
        assert robot.sense().reward < 6.0
        assert np.abs(robot.data.qvel).max() < 0.5


def test_a_hand_placed_robot_stands(robot) -> None:
    robot.place(angles_of(STAND), height=0.35)
    for _ in range(30):
        robot.send(STAND)
    assert robot.sense().reward == pytest.approx(9.0, abs=0.15)
    assert robot.rotation[2, 2] > 0.99 and 0.2 < robot.data.qpos[2] < 0.35
    robot.push(np.array([0.3, 0.0]))
    assert robot.data.qvel[0] > 0.25


def test_what_it_senses(robot) -> None:
    """Roll, pitch, their rates and the joints, told apart by poses in which only one of them is not zero."""
    robot.place(angles_of(STAND), roll=0.4, yaw=2.0, height=1.0)
    vector = robot.sense().obs["vector"]
    np.testing.assert_allclose(vector[:4], [0.4, 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(vector[4:], angles_of(STAND), atol=1e-5)
    robot.data.qvel[3:6] = [1.0, -2.0, 3.0]
    np.testing.assert_allclose(robot.sense().obs["vector"][2:4], [1.0, -2.0])


def test_commands_stay_near_the_joints_and_torques_in_bounds(robot) -> None:
    robot.rng = np.random.default_rng(0)
    robot.reset()
    rng = np.random.default_rng(1)
    for _ in range(10):
        robot.send(rng.choice([-1.0, 1.0], 12))
        assert np.abs(robot.data.actuator_force).max() <= a1.TORQUE + 1e-6
        before = robot.data.qpos[7:].copy()
        robot._move(robot.aim)
        assert np.abs(robot.data.ctrl - before).max() < a1.STRAY + 1.5  # it may have moved meanwhile


def test_the_filter_begins_where_the_joints_are(robot) -> None:
    """Asked to stay, it stays; asked to jump, it sets off as the filter's step response does."""
    robot.place(angles_of(STAND), height=0.3)
    robot.send(STAND)
    np.testing.assert_allclose(robot.aim, angles_of(STAND), atol=1e-9)
    robot.send(np.full(12, -1.0))
    there = angles_of(np.full(12, -1.0))
    np.testing.assert_allclose(
        robot.aim, angles_of(STAND) + 0.04125354 * (there - angles_of(STAND)), atol=1e-6
    )


def test_stop_holds_the_pose(robot) -> None:
    robot.place(angles_of(STAND), height=0.3)
    for _ in range(20):
        robot.send(STAND)
    robot.send(np.full(12, -1.0))
    robot.stop()
    np.testing.assert_allclose(robot.aim, robot.joints)


def test_pushes_come_as_often_as_they_should(robot, monkeypatch) -> None:
    pushed, pushes = object.__new__(a1.PushedA1), []
    pushed.rng = np.random.default_rng(0)
    monkeypatch.setattr(a1.A1, "push", lambda self, velocity: pushes.append(velocity))
    monkeypatch.setattr(a1.A1, "send", lambda self, action: None)
    for _ in range(20 * 500):  # 500 seconds
        pushed.send(STAND)
    assert 70 < len(pushes) < 130
    np.testing.assert_allclose(np.linalg.norm(pushes, axis=1), a1.PUSH)
    assert np.linalg.norm(np.mean(pushes, 0)) < 0.2  # to all sides


def test_a_missing_description_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a1, "find_spec", lambda name: None)
    with pytest.raises(a1.ReverieError, match=r"reverie\[robots\]"):
        a1.find_urdf()
