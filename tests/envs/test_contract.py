"""What every environment promises: spaces, flags, and that the seed decides the episode."""

from collections.abc import Iterator

import numpy as np
import pytest

from reverie.envs import Env, make_env
from reverie.types import ReverieError, Step

WORLDS: list[tuple[str, dict]] = [
    ("Pendulum-v1", {}),
    ("gym/CartPole-v1", {}),
    ("gymnasium:MountainCarContinuous-v0", {"action_repeat": 4}),
    ("Taxi-v4", {}),
    ("Blackjack-v1", {}),
    ("reverie/Catch-v0", {}),
    ("reverie/DynaMaze-v0", {}),
    ("reverie/DynaMaze-v0", {"pixels": True, "time_limit": 20, "image_size": 32}),
    ("reverie/Probe-v0", {"action_repeat": 3}),
    ("reverie/Everything-v0", {}),
    ("reverie/Everything-v0", {"image_size": None}),
    ("reverie/Everything-v0", {"pixels": True, "image_size": 32}),
    ("reverie/Recall-v0", {}),
    ("reverie/Rooms-v0", {}),
    ("reverie/Dials-v0", {"action_repeat": 2}),
    ("reverie/SokobanSmall-v0", {}),
    ("reverie/SokobanSmall-v0", {"pixels": True, "action_repeat": 2, "time_limit": 9}),
    ("reverie/MiniPacman-v0", {"image_size": None}),
    ("reverie/MiniPacmanHunt-v0", {"pixels": True}),
    ("Pendulum-v1", {"time_limit": 7, "action_repeat": 2}),
    ("Pendulum-v1", {"pixels": True, "time_limit": 5}),
    ("CartPole-v1", {"pixels": True, "time_limit": 5, "image_size": 48}),
    ("dmc/cartpole_swingup", {"time_limit": 9}),
    ("dmc/cup_catch", {"action_repeat": 4, "time_limit": 30}),
    ("dmc/quadruped_walk", {"time_limit": 9}),
    ("dmc/humanoid_walk", {"time_limit": 9}),
    ("HalfCheetah-v5", {"time_limit": 9}),
    ("dmc/walker_walk", {"pixels": True, "time_limit": 9, "action_repeat": 2}),
    ("HalfCheetah-v5", {"pixels": True, "time_limit": 9, "renderer": "fast"}),
    ("reverie/CarRacing-v0", {"time_limit": 9}),
    ("reverie/CarRacingExact-v0", {"pixels": True, "time_limit": 9, "action_repeat": 2}),
    ("reverie/CarRacingFull-v0", {"time_limit": 9, "image_size": 32}),
    ("doom/take_cover", {}),
    ("reverie/A1-v0", {"time_limit": 9}),
    ("reverie/PickPlace-v0", {"time_limit": 9}),
    ("reverie/Ball-v0", {"pixels": True, "time_limit": 9, "image_size": 32}),
    ("doom/take_cover", {"pixels": True, "time_limit": 60, "image_size": 32}),
]
EXTRAS = {
    "dmc": "dm_control",
    "HalfCheetah": "mujoco",
    "CarRacing": "Box2D",
    "doom": "vizdoom",
    "A1": "pybullet_data",
}


@pytest.fixture(params=WORLDS, ids=lambda world: "-".join([world[0], *world[1]]))
def env(request: pytest.FixtureRequest) -> Iterator[Env]:
    name, options = request.param
    for word, package in EXTRAS.items():
        if word in name:
            pytest.importorskip(package)
            if options.get("pixels") and package in ("dm_control", "mujoco"):
                request.getfixturevalue("gl")
    if "PickPlace" in name or "Ball" in name:
        pytest.importorskip("mujoco")
        request.getfixturevalue("gl")
    env = make_env(name, **options)
    yield env
    env.close()


def episode(env: Env, seed: int, actions: np.ndarray) -> list[Step]:
    rows = [env.reset(seed)]
    for action in actions:
        if rows[-1].is_last:
            break
        rows.append(env.step(action))
    return rows


def check(row: Step, env: Env) -> None:
    assert list(row.obs) == list(env.obs_space)
    for key, space in env.obs_space.items():
        value = row.obs[key]
        assert value.shape == space.shape and value.dtype == space.dtype
        assert space.is_image or (space.dtype == "float32" and len(space.shape) == 1)
        assert np.isfinite(value).all()
    dtypes = {
        "reward": "float32",
        "is_first": "bool",
        "is_last": "bool",
        "is_terminal": "bool",
        "env_steps": "int64",
    }
    for key, dtype in dtypes.items():
        assert getattr(row, key).shape == () and getattr(row, key).dtype == dtype
    assert np.isfinite(row.reward)
    assert not (row.is_terminal and not row.is_last)


def same(one: Step, two: Step) -> bool:
    flags = ("reward", "is_first", "is_last", "is_terminal", "env_steps")
    return all(np.array_equal(one.obs[key], two.obs[key]) for key in one.obs) and all(
        getattr(one, key) == getattr(two, key) for key in flags
    )


def test_rows_flags_and_seeds(env: Env, request: pytest.FixtureRequest) -> None:
    actions = env.act_space.sample(np.random.default_rng(0), 40)
    rows = episode(env, 3, actions)
    assert rows[0].is_first and rows[0].reward == 0 and rows[0].env_steps == 0 and not rows[0].is_last
    for row in rows:
        check(row, env)
    for row in rows[1:]:
        assert not row.is_first and row.env_steps >= 1
    assert not any(row.is_last for row in rows[:-1])

    other = episode(env, 4, actions)  # another episode in between must leave no trace
    again = episode(env, 3, actions)
    assert len(again) == len(rows) and all(map(same, rows, again))
    fixed = ("Probe", "DynaMaze")  # nothing in them is random
    if not any(name in request.node.callspec.id for name in fixed):
        assert not (len(other) == len(rows) and all(map(same, rows, other)))


def test_rows_are_not_overwritten(env: Env) -> None:
    row = env.reset(0)
    before = {key: value.copy() for key, value in row.obs.items()}
    for action in env.act_space.sample(np.random.default_rng(1), 3):
        if not row.is_last:
            env.step(action)
            break
    assert all(np.array_equal(row.obs[key], before[key]) for key in before)


def test_no_step_after_the_end(env: Env) -> None:
    row = env.reset(0)
    rng = np.random.default_rng(2)
    for _ in range(200):
        if row.is_last:
            with pytest.raises(ReverieError, match="reset"):
                env.step(env.act_space.sample(rng, 1)[0])
            env.reset(1)
            return
        row = env.step(env.act_space.sample(rng, 1)[0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Pendullum-v1", "did you mean Pendulum-v1"),
        ("gym/Pendulum-v7", "did you mean Pendulum-v1"),
        ("xyzzy", "try Pendulum-v1"),
        ("no_such_module:Thing-v0", "no_such_module"),
        ("dmc/cartpole_swing", "did you mean dmc/cartpole_swingup"),
        ("dmc/xyzzy", "there are dmc/"),
        ("LunarLanderContinuous-v2", "LunarLander"),
    ],
)
def test_unknown_names_get_one_sentence(name: str, words: str) -> None:
    if name.startswith("dmc"):
        pytest.importorskip("dm_control")
    with pytest.raises(ReverieError, match=words):
        make_env(name)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(ReverieError, match=r"pip install 'reverie\[dmc\]'"):
        make_env("dmc/cartpole_swingup")


@pytest.mark.parametrize(
    "options", [{"renderer": "pretty"}, {"action_repeat": 0}, {"time_limit": 0}, {"image_size": 0}]
)
@pytest.mark.parametrize("name", ["Pendulum-v1", "dmc/cartpole_swingup"])
def test_bad_options_get_one_sentence(name: str, options: dict) -> None:
    if name.startswith("dmc"):
        pytest.importorskip("dm_control")
    with pytest.raises(ReverieError):
        make_env(name, **options)


@pytest.mark.parametrize(
    "action", [np.zeros(2, np.float32), np.array([np.nan], np.float32), np.zeros((1, 1))]
)
def test_bad_actions_get_one_sentence(action: np.ndarray) -> None:
    env = make_env("Pendulum-v1")
    env.reset(0)
    with pytest.raises(ReverieError, match="action"):
        env.step(action)
