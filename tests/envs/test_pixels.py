"""Pictures: like the stock renderer's, the same physics under every preset, the arithmetic of shrinking."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reverie.envs import make_env
from reverie.envs.pixels import PRESETS, choose_gl, resize

TASKS = ["cartpole_swingup", "walker_walk", "reacher_easy", "quadruped_walk"]
ROBOTS = ["HalfCheetah-v5", "Pusher-v5"]

# Stock contexts and ours do not draw in one process, so the truth comes from another.
STOCK = """
import sys, numpy as np
out, actions = {}, np.random.default_rng(5)
kind, path, *names = sys.argv[1:]
for name in names:
    if kind == "dmc":
        from dm_control import suite
        domain, _, task = name.partition("_")
        env = suite.load(domain, task, task_kwargs={"random": 11})
        env.reset()
        space = env.action_spec()
        low, high = space.minimum, space.maximum
        camera = 2 if domain == "quadruped" else 0
        draw = lambda: env.physics.render(64, 64, camera_id=camera)
        step = lambda action: env.step(action).reward
    else:
        import gymnasium
        free = gymnasium.make(name).unwrapped.model.ncam == 0
        which = {} if free else {"camera_name": "track"}
        env = gymnasium.make(name, render_mode="rgb_array", width=64, height=64, **which)
        env.reset(seed=11)
        low, high = env.action_space.low, env.action_space.high
        draw = env.render
        step = lambda action: env.step(action)[1]
    pictures, rewards = [draw().copy()], []
    for t in range(12):
        action = (low + high) / 2 + (high - low) / 2 * actions.uniform(-1, 1, low.shape).astype(np.float32)
        rewards.append(step(action.astype(low.dtype)))
        if t in (5, 11):
            pictures.append(draw().copy())
    out[name + "/pictures"], out[name + "/rewards"] = np.stack(pictures), np.array(rewards)
    env.close()
np.savez(path, **out)
"""


@pytest.fixture(scope="session")
def stock(gl: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    pytest.importorskip("dm_control")
    found: dict[str, np.ndarray] = {}
    folder = tmp_path_factory.mktemp("stock")
    (folder / "stock.py").write_text(STOCK)
    for kind, names in (("dmc", TASKS), ("gymnasium", ROBOTS)):
        path = folder / f"{kind}.npz"
        subprocess.run(
            [sys.executable, folder / "stock.py", kind, path, *names], check=True, capture_output=True
        )
        found |= dict(np.load(path))
    return found


def drawn(name: str, actions: np.random.Generator, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """Pictures at rows 0, 6 and 12, and the rewards."""
    env = make_env(name, **options)
    row = env.reset(11)
    pictures, rewards = [env.render().copy()], []
    for t in range(12):
        row = env.step(actions.uniform(-1, 1, env.act_space.size).astype(np.float32))
        rewards.append(row.reward)
        if t in (5, 11):
            pictures.append(env.render().copy())
    env.close()
    return np.stack(pictures), np.array(rewards)


@pytest.mark.parametrize("renderer", list(PRESETS))
@pytest.mark.parametrize("kind", ["dmc", "gymnasium"])
def test_pictures_are_like_stock_and_rewards_equal(stock: dict, kind: str, renderer: str) -> None:
    names = TASKS if kind == "dmc" else ROBOTS
    actions = np.random.default_rng(5)
    for name in names:
        full = f"dmc/{name}" if kind == "dmc" else name
        pictures, rewards = drawn(full, actions, pixels=True, renderer=renderer)
        truth = stock[f"{name}/pictures"].astype(float)
        np.testing.assert_allclose(rewards, stock[f"{name}/rewards"], rtol=1e-6, err_msg=name)
        difference = np.abs(pictures - truth).mean()
        limit = {"reference": 0.01, "near": 3.0, "fast": 30.0}[renderer]  # fast loses the reacher's lamp
        if name == "Pusher-v5":
            limit = max(limit, 3.0)  # its stock camera looks where the first episode happened to begin
        assert difference <= limit, f"{name}: mean difference {difference:.2f}/255"
        assert all(picture.std() > 5 for picture in pictures), f"{name}: nothing drawn"
        assert (pictures[0] != pictures[2]).any(), f"{name}: the picture does not move"


def test_physics_is_the_same_with_and_without_pictures(gl: None) -> None:
    pytest.importorskip("dm_control")
    ends = []
    for options in ({}, {"pixels": True}, {"pixels": True, "renderer": "fast"}):
        env = make_env("dmc/walker_walk", **options)
        env.reset(1)
        actions = np.random.default_rng(0)
        total = [env.step(actions.uniform(-1, 1, 6).astype(np.float32)).reward for _ in range(20)]
        inner = env
        while hasattr(inner, "env"):
            inner = inner.env
        ends.append((np.array(total), inner._env.physics.get_state().copy()))
        env.close()
    for rewards, state in ends[1:]:
        np.testing.assert_array_equal(rewards, ends[0][0])
        np.testing.assert_array_equal(state, ends[0][1])


def test_two_renderers_side_by_side(gl: None) -> None:
    pytest.importorskip("dm_control")
    envs = [make_env("dmc/cartpole_swingup", pixels=True), make_env("dmc/reacher_easy", pixels=True)]
    alone = make_env("dmc/cartpole_swingup", pixels=True)
    for seed in range(3):
        together = [env.reset(seed).obs["image"].copy() for env in envs]
        np.testing.assert_array_equal(together[0], alone.reset(seed).obs["image"])
        assert together[1].std() > 5 and (together[0] != together[1]).any()
    for env in [*envs, alone]:
        env.close()


def test_pendulum_is_its_own_picture_painted_smaller() -> None:
    ours, theirs = (make_env("Pendulum-v1", pixels=True, renderer=name) for name in ("near", "reference"))
    for seed in range(5):
        one, two = ours.reset(seed), theirs.reset(seed)
        for action in (-1.0, 0.3):
            one, two = (env.step(np.array([action], np.float32)) for env in (ours, theirs))
            assert one.reward == two.reward
            picture, truth = one.obs["image"].astype(float), two.obs["image"].astype(float)
            assert np.abs(picture - truth).mean() < 1.0 and truth.std() > 5


def test_resize_is_the_mean_of_the_area() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 36, 3)).astype(np.uint8)
    expected = image.reshape(12, 2, 12, 3, 3).mean((1, 3))
    assert np.abs(resize(image, 12) - expected).max() <= 1.0


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_resize_keeps_channels_apart(channels: int) -> None:
    image = np.zeros((10, 20, channels), np.uint8) + (10 * np.arange(channels)).astype(np.uint8)
    small = resize(image, 8)
    assert small.shape == (8, 8, channels) and small.dtype == np.uint8
    np.testing.assert_array_equal(small, np.broadcast_to(10 * np.arange(channels), small.shape))


def test_growing_repeats_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(resize(image, 4), image.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("chosen", ["", "osmesa"])
def test_gl_is_chosen_only_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", chosen)
    assert choose_gl() == chosen or (not chosen and choose_gl() in ("egl", "osmesa", "disable"))


def test_no_gl_is_said_in_a_sentence(tmp_path: Path) -> None:
    """Without OpenGL states still work, and a picture is refused with the cure."""
    pytest.importorskip("dm_control")
    script = tmp_path / "blind.py"
    script.write_text(
        "import numpy as np\n"
        "from reverie.envs import make_env\n"
        "from reverie.types import ReverieError\n"
        "env = make_env('dmc/cartpole_swingup')\n"
        "print(env.reset(0).obs['position'].shape)\n"
        "try:\n"
        "    env.render()\n"
        "except ReverieError as error:\n"
        "    print(error)\n"
    )
    import os

    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "MUJOCO_GL": "disable", "PYTHONPATH": here}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=True
    )
    assert "(3,)" in done.stdout and "libosmesa6" in done.stdout
