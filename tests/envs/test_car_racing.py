"""The race is the stock class's in all but its picture, and that is the same (exact) or nearly so (fast)."""

import copy
import pickle
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image

from reverie.envs import make_env
from reverie.types import ReverieError

pytest.importorskip("Box2D")

from gymnasium.envs.box2d.car_racing import CarRacing as Stock

from reverie.envs.car_racing import CarRacing

TILES = (319, 275, 335, 271)  # of the tracks of seeds 0 to 3 in gymnasium 1.4.0


def cropped(frame: np.ndarray) -> np.ndarray:
    """What World Models make of a stock frame."""
    above = Image.fromarray(np.ascontiguousarray(frame[:84]))
    return np.array(above.resize((64, 64), Image.Resampling.BILINEAR))


def place(env: Any, x: float, y: float) -> None:
    """Put the car, with its wheels, somewhere else."""
    shift = np.array([x, y]) - np.array(env.car.hull.position)
    for body in env.car.drawlist:
        body.position = tuple(np.array(body.position) + shift)


def state(env: Any) -> list[float]:
    return [
        number
        for body in env.car.drawlist
        for number in (*body.position, *body.linearVelocity, body.angle, body.angularVelocity)
    ]


def agree(stock: Any, exact: Any, fast: Any, actions: np.ndarray) -> list[float]:
    """Drive all three and compare everything; the mean differences of the fast pictures."""
    differences = []
    for t, action in enumerate(actions):
        truth, *rest = (env.step(action.copy()) for env in (stock, exact, fast))
        picture = cropped(truth[0])
        np.testing.assert_array_equal(rest[0][0], picture, err_msg=f"exact picture at step {t}")
        differences.append(np.abs(rest[1][0].astype(int) - picture).mean())
        for env, (_, *others) in zip((exact, fast), rest, strict=True):
            assert others == list(truth[1:]), f"step {t}"
            assert state(env) == state(stock), f"step {t}"
    return differences


def drive(seed: int, steps: int) -> np.ndarray:
    """Hard driving: full gas, curves, blocked wheels, skids."""
    rng = np.random.default_rng(seed)
    t = np.arange(steps)
    steer = np.sin(t / (9 + 4 * seed) + seed) + 0.3 * rng.normal(size=steps)
    brake = (rng.random(steps) < 0.05) * rng.choice([0.3, 1.0], steps)
    return np.stack([np.clip(steer, -1, 1), t % 60 < 50, brake], 1).astype(np.float32)


@pytest.fixture
def three() -> list[Any]:
    return [Stock(), CarRacing(exact=True), CarRacing()]


@pytest.mark.parametrize("seed", range(3))
def test_the_picture_is_the_stock_one_and_the_race_the_same(three: list[Any], seed: int) -> None:
    first = [env.reset(seed=seed)[0] for env in three]
    np.testing.assert_array_equal(first[1], cropped(first[0]))
    differences = agree(*three, drive(seed, 140))  # the first second zooms in
    assert max(differences) < 3.0 and np.mean(differences) < 1.0


def test_a_second_track_in_the_same_environment(three: list[Any]) -> None:
    """Tiles that were visited are grey, and those of the next track are not."""
    for seed in (5, 6):
        for env in three:
            env.reset(seed=seed)
            env.t = 2.0  # zoomed in
        assert max(agree(*three, drive(seed, 25))) < 3.0


@pytest.mark.parametrize("where", [(325, 20), (345, 300), (-360, -340), (1500, -900)])
def test_the_edge_of_the_field_and_the_void_beyond(three: list[Any], where: tuple[int, int]) -> None:
    for env in three:
        env.reset(seed=1)
        env.t = 2.0
        place(env, *where)
    assert max(agree(*three, drive(1, 12))) < 3.0


def test_other_colours_and_actions() -> None:
    three = [
        kind(**options, domain_randomize=True, continuous=False)
        for kind, options in ((Stock, {}), (CarRacing, {"exact": True}), (CarRacing, {}))
    ]
    for env in three:
        env.np_random = np.random.default_rng(0)
        env._init_colors()
        env.reset(seed=2)
    truth, exact, fast = (env.step(3)[0] for env in three)
    np.testing.assert_array_equal(exact, cropped(truth))
    assert np.abs(fast.astype(int) - exact).mean() < 3.0


@pytest.mark.skipif(gymnasium.__version__ != "1.4.0", reason="tracks differ between versions")
def test_first_reward_is_for_the_two_tiles_it_stands_on() -> None:
    env = make_env("reverie/CarRacing-v0")
    still = np.array([0.0, -1.0, -1.0], np.float32)  # no gas and no brake, as ours are scaled from [-1, 1]
    for seed, tiles in enumerate(TILES):
        env.reset(seed)
        assert env.step(still).reward == pytest.approx(2000 / tiles - 0.1, abs=1e-5)
        for _ in range(3):
            assert env.step(still).reward == pytest.approx(-0.1, abs=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_gymnasium_finds_nothing_wrong(exact: bool) -> None:
    name = "reverie/CarRacingExact-v0" if exact else "reverie/CarRacing-v0"
    env = gymnasium.make(name, render_mode="rgb_array")
    assert env.spec is not None and env.spec.max_episode_steps == 1000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # actions that are not symmetric
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_render_is_for_a_human_eye_and_leaves_the_picture_alone(three: list[Any]) -> None:
    for env in three:
        env.render_mode = "rgb_array"
        env.reset(seed=0)
    frames = [env.render() for env in three]
    assert frames[0].shape == (400, 600, 3) and frames[0].std() > 5
    for frame in frames[1:]:
        np.testing.assert_array_equal(frame, frames[0])
    agree(*three, drive(0, 2))


def test_pictures_are_not_overwritten() -> None:
    for exact in (False, True):
        env = CarRacing(exact=exact)
        picture, _ = env.reset(seed=0)
        before = picture.copy()
        for action in drive(0, 3):
            env.step(action)
        np.testing.assert_array_equal(picture, before)


def test_a_full_episode_goes_on_after_the_end() -> None:
    row_ends = []
    for name in ("reverie/CarRacing-v0", "reverie/CarRacingFull-v0"):
        env: Any = make_env(name)
        env.reset(0)
        place(env.env.unwrapped, 400, 0)
        row = env.step(np.zeros(3, np.float32))
        assert row.reward == -100.0
        row_ends.append((bool(row.is_terminal), bool(row.is_last)))
    assert row_ends == [(True, True), (False, False)]
    assert env.step(np.zeros(3, np.float32)).reward == -100.0  # every step out there costs that
    env.close()


def test_only_the_clock_ends_a_full_episode() -> None:
    env = make_env("reverie/CarRacingFull-v0", time_limit=4)
    env.reset(0)
    rows = [env.step(np.zeros(3, np.float32)) for _ in range(4)]
    assert [bool(row.is_last) for row in rows] == [False, False, False, True]
    assert not rows[-1].is_terminal


def test_copies_keep_their_options() -> None:
    env = CarRacing(exact=True, full_episodes=True, lap_complete_percent=0.5)
    for other in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert other.exact and other.full_episodes and other.lap_complete_percent == 0.5


def test_without_box2d_it_is_asked_for_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in list(sys.modules):
        if name.startswith(("gymnasium.envs.box2d", "reverie.envs.car_racing")):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ReverieError, match=r"pip install 'reverie\[box2d\]'"):
        make_env("reverie/CarRacing-v0")


def test_near_misses_are_suggested() -> None:
    with pytest.raises(ReverieError, match="did you mean reverie/CarRacing-v0"):
        make_env("reverie/CarRace-v0")
