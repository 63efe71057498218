"""The arm's grid, hand and rewards; the ball's camera and motors."""

import numpy as np
import pytest

from reverie.robots import ball
from reverie.robots.pick_place import (
    CELL,
    CELLS,
    GRIP,
    HELD,
    HIGH,
    LIFT,
    LOW,
    MOVES,
    PickPlace,
    bin_of,
    moved,
    place_of,
)

pytest.importorskip("mujoco")
ACTION = np.eye(6, dtype=np.float32)


@pytest.mark.parametrize(
    ("cell", "by", "free", "expected"),
    [
        ((2, 2), (1, 0), False, (3, 2)),
        ((2, 2), (0, -1), False, (2, 1)),
        ((4, 2), (1, 0), False, (4, 2)),  # clipped to the bin
        ((0, 2), (-1, 0), True, (0, 2)),
        ((2, 0), (0, -1), True, (2, 0)),
        ((2, 9), (0, 1), True, (2, 9)),
        ((2, 4), (0, 1), False, (2, 4)),  # only a hand that holds something up crosses
        ((2, 4), (0, 1), True, (2, 5)),
        ((2, 5), (0, -1), True, (2, 4)),
        ((2, 5), (0, -1), False, (2, 5)),
    ],
)
def test_grid_moves(cell, by, free, expected) -> None:
    assert moved(cell, by, free) == expected


def test_a_step_is_four_centimetres() -> None:
    for cell in ((1, 1), (3, 7)):
        for by in MOVES:
            step = place_of(moved(cell, by, False)) - place_of(cell)
            np.testing.assert_allclose(step, CELL * np.array(by), atol=1e-12)
    assert CELL == 0.04 and HELD == (0.015, 0.985)
    assert place_of((2, 2))[1] < 0 < place_of((2, 7))[1] and bin_of((2, 4)) == 0 and bin_of((2, 5)) == 1


@pytest.fixture
def arm(gl):
    made = PickPlace(seed=0)
    made.reset()
    yield made
    made.close()


def grasp(arm: PickPlace, ball: int = 0) -> None:
    """Put a ball between the fingers and close them."""
    x, y = place_of(arm.cell)
    at = arm.balls[ball]
    arm.data.qpos[at : at + 7] = [x, y, 0.018, 1, 0, 0, 0]
    arm.data.qvel[:] = 0
    arm._pass(0.2)
    arm.send(ACTION[GRIP])


def test_a_reset_opens_the_hand_and_lowers_it(arm: PickPlace) -> None:
    reading = arm.sense()
    assert reading.reward == 0 and not arm.closed and arm.height == LOW and not arm.held
    assert arm.gripper < HELD[0] + 0.01
    np.testing.assert_allclose(reading.obs["pose"][:2], place_of(arm.cell), atol=2e-3)
    assert reading.obs["side"].tolist() == [0, *np.eye(2)[bin_of(arm.cell)]]
    assert reading.obs["grasped"].tolist() == [1, 0, 0]
    assert reading.obs["image"].std() > 10


def test_the_hand_goes_where_it_is_sent(arm: PickPlace) -> None:
    for choice in (0, 1, 2, 3, 3):
        arm.send(ACTION[choice])
        np.testing.assert_allclose(arm.sense().obs["pose"][:2], place_of(arm.cell), atol=2e-3)


def test_closing_on_nothing_holds_nothing(arm: PickPlace) -> None:
    for at in arm.balls:
        arm.data.qpos[at : at + 3] = [1.2, 0.8 + 0.1 * at, 0.018]
    arm.send(ACTION[GRIP])
    assert arm.earned == 0 and arm.gripper > HELD[1] and not arm.held
    arm.send(ACTION[LIFT])
    assert arm.height == LOW  # an empty hand is not lifted


def test_grasp_and_release_in_place(arm: PickPlace) -> None:
    grasp(arm)
    assert arm.earned == 1.0 and arm.held
    assert arm.sense().obs["grasped"][0] == 0
    arm.send(ACTION[LIFT])
    assert arm.earned == 0 and arm.height == HIGH and arm.held
    arm.send(ACTION[GRIP])
    assert arm.earned == -1.0 and arm.height == LOW and not arm.held and not arm.closed
    arm.send(ACTION[2])
    assert arm.earned == 0


def test_carried_to_the_other_bin(arm: PickPlace) -> None:
    """+1 for the grasp, +10 across; the twin lets go by itself and goes down in that bin."""
    grasp(arm)
    start, total = bin_of(arm.cell), arm.earned
    towards = 2 if start == 0 else 3
    low = arm.cell
    for _ in range(CELLS):
        arm.send(ACTION[towards])
        assert bin_of(arm.cell) == start  # down on the table it does not cross
    arm.cell = low
    arm._pass(0.5)
    arm.send(ACTION[LIFT])
    for _ in range(CELLS):
        arm.send(ACTION[towards])
        total += arm.earned
        if bin_of(arm.cell) != start:
            break
    assert total == 11.0 and bin_of(arm.cell) != start
    assert not arm.closed and arm.height == LOW and arm.grasped_in < 0
    side = np.sign(place_of((2, 2 + 5 * (1 - start)))[1])
    assert np.sign(arm.data.qpos[arm.balls[0] + 1]) == side  # the ball lies there
    arm.send(ACTION[5])
    assert arm.earned == 0


def test_the_balls_reward_and_what_it_is_read_from() -> None:
    assert ball.reward(ball.GOAL) == 0
    assert ball.reward(np.array([0.825, 0.665])) == pytest.approx(-0.5)
    assert ball.GEAR == 70 / 255
    picture = np.full((64, 64, 3), 200, np.uint8)
    assert ball.locate(picture) is None
    picture[48:52, 12:16] = (20, 60, 230)  # rows 48..51 are low in the arena
    np.testing.assert_allclose(ball.locate(picture), [14 / 64, 1 - 50 / 64])


def test_the_ball_is_seen_where_it_is_and_driven(gl) -> None:
    robot = ball.Ball(seed=1)
    try:
        robot.reset()
        seen = []
        for action in ([1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [0.3, 0.8]):
            before = robot.position
            robot.send(np.array(action, np.float32))
            reading = robot.sense()
            np.testing.assert_allclose(robot.seen, robot.position, atol=0.04)
            assert reading.reward == pytest.approx(ball.reward(robot.seen))
            seen.append(np.linalg.norm(robot.position - before))
        assert max(seen[:2]) > 0.05 and (robot.position > 0).all() and (robot.position < 1).all()
        robot.stop()
        assert not robot.data.ctrl.any()
    finally:
        robot.close()
