"""Take Cover: left is left, the dead see their last picture, the seed decides, the clock is not death."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from reverie.envs import make_env
from reverie.envs.doom import LIMIT, Doom, buttons
from reverie.types import ActionSpace, ReverieError, Space

LEFT, STAY, RIGHT = (np.array([a], np.float32) for a in (-1.0, 0.0, 1.0))


@pytest.fixture(scope="module")
def doom() -> Iterator[Doom]:
    pytest.importorskip("vizdoom")
    env = Doom("take_cover", size=None)
    yield env
    env.close()


@pytest.mark.parametrize(
    ("action", "pressed"),
    [
        (-1.0, [True, False]),
        (-0.34, [True, False]),
        (-0.33, [False, False]),
        (0.0, [False, False]),
        (0.33, [False, False]),
        (0.34, [False, True]),
        (1.0, [False, True]),
    ],
)
def test_thirds_of_the_action(action: float, pressed: list[bool]) -> None:
    assert buttons(action) == pressed


def test_left_is_left(doom: Doom) -> None:
    """Between ceiling and far wall the side walls show: who goes left sees more of the left one."""

    def brown(picture: np.ndarray) -> tuple[int, int]:
        rows = picture[44:47].astype(int)
        wall = rows[..., 0] > rows[..., 2] + 10
        return int(wall[:, :80].sum()), int(wall[:, 80:].sum())

    start = brown(doom.reset(3).obs["image"])
    ends = []
    for action in (LEFT, STAY, RIGHT):
        doom.reset(3)
        for _ in range(20):
            row = doom.step(action)
        ends.append(brown(row.obs["image"]))
    assert ends[1] == start and min(start) > 10
    assert ends[0][0] > 1.5 * start[0] and ends[0][1] < 0.5 * start[1]
    assert ends[2][0] < 0.5 * start[0] and ends[2][1] > 1.5 * start[1]


def test_position_follows_the_buttons(doom: Doom) -> None:
    import vizdoom

    def y() -> float:
        return doom._game.get_game_variable(vizdoom.GameVariable.POSITION_Y)

    doom.reset(0)
    assert doom._game.get_game_variable(vizdoom.GameVariable.ANGLE) == 0.0  # looks along x: left is up
    start = y()
    for _ in range(10):
        doom.step(LEFT)
    left = y()
    for _ in range(40):
        doom.step(RIGHT)
    assert left > start + 2 and y() < start - 5


def test_the_dead_see_their_last_picture(doom: Doom) -> None:
    row = doom.reset(5)
    rewards = []
    while not row.is_last:
        before = row
        row = doom.step(STAY)
        rewards.append(float(row.reward))
    assert row.is_terminal and len(rewards) < LIMIT
    assert set(rewards) == {1.0}  # 1 a tic
    np.testing.assert_array_equal(row.obs["image"], before.obs["image"])
    assert row.obs["image"].mean() > 10 and doom.render().mean() > 10
    with pytest.raises(ReverieError, match="reset"):
        doom.step(STAY)


def test_the_seed_decides_the_episode(doom: Doom) -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (60, 1)).astype(np.float32)
    pictures = []
    for seed in (7, 8, 7, 2**31 - 1, 2**31 - 1):
        doom.reset(seed)
        pictures.append(np.stack([doom.step(action).obs["image"] for action in actions]))
    np.testing.assert_array_equal(pictures[0], pictures[2])
    np.testing.assert_array_equal(pictures[3], pictures[4])
    assert (pictures[0] != pictures[1]).any()


def test_skill_and_screen(doom: Doom) -> None:
    doom.reset(0)
    assert doom._game.get_doom_skill() == 4
    assert doom.render().shape == (120, 160, 3)
    assert doom.obs_space == {"image": Space((120, 160, 3), "uint8")} and doom.act_space == ActionSpace(1)


def test_the_clock_is_not_death(doom: Doom, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doom._limit == 2100
    monkeypatch.setattr(doom, "_limit", 6)
    doom.reset(1)
    rows = [doom.step(STAY) for _ in range(6)]
    assert [bool(row.is_last) for row in rows] == [False] * 5 + [True]
    assert not rows[-1].is_terminal


def test_by_name_and_small_and_without_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)
    env = make_env("doom/take_cover", time_limit=3, action_repeat=2)
    row = env.reset(0)
    assert row.obs["image"].shape == (64, 64, 3)
    row = env.step(LEFT)
    assert row.reward == 2.0 and not row.is_last
    assert env.step(LEFT).is_last
    assert env.render().shape == (120, 160, 3)
    env.close()
    assert not list(tmp_path.iterdir())  # the game would leave its settings and a folder


def test_unknown_scenarios_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vizdoom")
    with pytest.raises(ReverieError, match="there is doom/take_cover"):
        make_env("doom/take_cover_now")
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(ReverieError, match=r"pip install 'reverie\[doom\]'"):
        make_env("doom/take_cover")


@pytest.mark.slow
def test_random_buttons_live_as_long_as_published() -> None:
    """210 +- 108 tics (Ha & Schmidhuber 2018, table 2)."""
    pytest.importorskip("vizdoom")
    env, rng = make_env("doom/take_cover"), np.random.default_rng(0)
    lives = []
    for seed in range(100):
        row, tics = env.reset(seed), 0
        while not row.is_last:
            row = env.step(rng.uniform(-1, 1, 1).astype(np.float32))
            tics += 1
        lives.append(tics)
    env.close()
    assert abs(np.mean(lives) - 211) < 30 and 60 < np.std(lives) < 130
