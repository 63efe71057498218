"""The Robot interface, robots from environments and environments from robots."""

import numpy as np
import pytest

from reverie.envs import make_env
from reverie.robots import Played, Reading, Robot, make_robot
from reverie.types import ActionSpace, ReverieError, Space


def test_an_environment_played_by_the_clock() -> None:
    robot = make_robot("reverie/Probe-v0", rate=5.0)
    assert isinstance(robot, Played) and robot.rate == 5.0
    robot.reset()
    first = robot.sense()
    assert first.reward == 0 and not first.over
    robot.send(np.array([0.25, 0.0], np.float32))
    reading = robot.sense()
    assert reading.reward == pytest.approx(0.25) and reading.obs["image"][0, 0, 0] == 1
    again = robot.sense()
    assert again.reward == reading.reward  # asked twice, it answers the same
    for _ in range(9):
        robot.send(np.zeros(2, np.float32))
    assert robot.sense().over and not robot.sense().terminal
    robot.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.py:Robot", "no robot nowhere.py:Robot"),
        ("no_such_module:Robot", "no robot no_such_module"),
        ("reverie.robots:NoSuch", "no robot reverie.robots:NoSuch"),
        ("builtins:dict", "should be a reverie.robots.Robot"),
        ("Pendullum-v1", "did you mean"),
    ],
)
def test_what_is_not_a_robot_is_one_sentence(name: str, words: str) -> None:
    with pytest.raises(ReverieError, match=words):
        make_robot(name)


def test_a_class_in_a_file(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom reverie.robots import Reading, Robot\nfrom reverie.types import ActionSpace, Space\n"
        "class Mine(Robot):\n    rate = 7.0\n    obs_space, act_space = {'v': Space((1,))}, ActionSpace(1)\n"
        "    def reset(self): self.x = 0.0\n"
        "    def sense(self): return Reading({'v': np.array([self.x], np.float32)}, -abs(self.x))\n"
        "    def send(self, action): self.x += float(action[0])\n"
        "    def stop(self): pass\n"
    )
    robot = make_robot(f"{tmp_path}/mine.py:Mine")
    robot.reset()
    robot.send(np.ones(1))
    assert robot.rate == 7.0 and robot.sense().reward == -1.0 and robot.render() is None
    with pytest.raises(ReverieError, match="rate"):
        make_robot(f"{tmp_path}/mine.py:Mine", rate=-1.0)


def test_an_unfinished_robot_can_not_be_made() -> None:
    class Half(Robot):
        obs_space, act_space = {"v": Space((1,))}, ActionSpace(1)

        def reset(self) -> None: ...

        def sense(self) -> Reading: ...

    with pytest.raises(TypeError, match="send"):
        Half()


def test_twins_as_environments(gl) -> None:
    pytest.importorskip("pybullet_data")
    walk, carry = make_env("reverie/A1-v0"), make_env("reverie/PickPlace-v0")
    assert not walk.act_space.discrete and walk.act_space.size == 12
    assert carry.act_space.groups == (6,) and carry.obs_space["image"].is_image
    walk.close()
    carry.close()
    pixels = make_env("reverie/A1-v0", pixels=True, image_size=32)
    assert pixels.reset(0).obs["image"].shape == (32, 32, 3)
    pixels.close()
