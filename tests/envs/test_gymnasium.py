"""Odd environments: each gives canonical rows, or one readable sentence."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from reverie.envs import from_gymnasium
from reverie.envs.gymnasium import Gymnasium
from reverie.types import ReverieError, Space

UNIT = spaces.Box(-1.0, 1.0, (1,), np.float32)


class Odd(gymnasium.Env):
    """Shows ``obs`` (or what it returns for the step's number), pays ``reward``, ends after ``length``."""

    def __init__(
        self, space: Any = UNIT, obs: Any = None, act: Any = UNIT, reward: Any = 0.0, length: int = 3
    ) -> None:
        self.observation_space, self.action_space = space, act
        self.obs, self.reward, self.length, self.t = obs, reward, length, 0
        self.got: list[Any] = []

    def _show(self) -> Any:
        if callable(self.obs):
            return self.obs(self.t)
        return self.observation_space.sample() if self.obs is None else self.obs

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        self.t += 1
        self.got.append(action)
        return self._show(), self.reward, self.t >= self.length, False, {}


def sent(act: Any, action: list[float]) -> Any:
    """What the environment receives for our ``action``."""
    env = Odd(act=act)
    ours = Gymnasium(env)
    ours.reset(0)
    ours.step(np.array(action, np.float32))
    assert act.contains(env.got[0]), f"{env.got[0]!r} is not in {act}"
    return env.got[0]


@pytest.mark.parametrize(
    ("space", "key", "ours"),
    [
        (spaces.Box(-1, 1, (), np.float32), "vector", Space((1,))),
        (spaces.Box(-np.inf, np.inf, (5,), np.float64), "vector", Space((5,))),
        (spaces.Box(0, 9, (2, 3), np.int64), "vector", Space((6,))),
        (spaces.Box(0, 1, (4,), np.bool_), "vector", Space((4,))),
        (spaces.Box(0, 255, (128,), np.uint8), "vector", Space((128,))),
        (spaces.Box(-2.0, 2.0, (8, 8, 3), np.float32), "vector", Space((192,))),
        (spaces.Box(0, 255, (9, 7), np.uint8), "image", Space((9, 7, 1), "uint8")),
        (spaces.Box(0, 255, (9, 7, 3), np.uint8), "image", Space((9, 7, 3), "uint8")),
        (spaces.Box(0, 255, (30, 40, 1), np.uint8), "image", Space((30, 40, 1), "uint8")),
        (spaces.Box(0, 255, (30, 40, 4), np.uint8), "image", Space((30, 40, 4), "uint8")),
        (spaces.Box(0, 255, (3, 30, 40), np.uint8), "image", Space((30, 40, 3), "uint8")),
        (spaces.Box(0, 255, (12, 84, 84), np.uint8), "image", Space((84, 84, 12), "uint8")),
        (spaces.Box(0.0, 1.0, (16, 16, 3), np.float32), "image", Space((16, 16, 3), "uint8")),
        (spaces.Box(0.0, 255.0, (1, 16, 16), np.float64), "image", Space((16, 16, 1), "uint8")),
        (spaces.Box(0, 1, (10, 10, 6), np.bool_), "image", Space((10, 10, 6), "uint8")),
        (spaces.Box(0, 1, (10, 10, 4), np.uint8), "image", Space((10, 10, 4), "uint8")),
        (spaces.Discrete(3), "vector", Space((3,))),
        (spaces.Discrete(3, start=5), "vector", Space((3,))),
        (spaces.MultiDiscrete([[2, 3], [4, 1]]), "vector", Space((10,))),
        (spaces.MultiBinary((2, 2)), "vector", Space((4,))),
    ],
    ids=str,
)
def test_spaces_of_observations(space: Any, key: str, ours: Space) -> None:
    env = from_gymnasium(Odd(space), image_size=None)
    assert env.obs_space == {key: ours}
    row = env.reset(0)
    for _ in range(3):
        assert row.obs[key].shape == ours.shape and row.obs[key].dtype == ours.dtype
        row = env.step(np.zeros(1, np.float32))


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.sampled_from([8, 64]))
def test_any_picture_becomes_square(channels: int, height: int, width: int, size: int) -> None:
    env = from_gymnasium(Odd(spaces.Box(0, 255, (height, width, channels), np.uint8)), image_size=size)
    shape = env.reset(0).obs["image"].shape
    assert shape[:2] == (size, size) and env.obs_space["image"].shape == shape


def test_dictionaries_and_tuples_nest() -> None:
    space = spaces.Dict(
        arm=spaces.Dict(angle=spaces.Box(-1, 1, (2,)), grip=spaces.Discrete(2)),
        views=spaces.Tuple([spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Box(0, 255, (8, 4), np.uint8)]),
        nothing=spaces.Box(-1, 1, (0,)),
    )
    env = from_gymnasium(Odd(space), image_size=8)
    assert env.obs_space == {
        "arm/angle": Space((2,)),
        "arm/grip": Space((2,)),
        "views/0": Space((8, 8, 3), "uint8"),
        "views/1": Space((8, 8, 1), "uint8"),
    }
    assert list(env.reset(0).obs) == list(env.obs_space)
    pixels = from_gymnasium(Odd(space), pixels=True)
    assert list(pixels.obs_space) == ["views/0", "views/1"] == list(pixels.reset(0).obs)


def test_values_survive_the_border() -> None:
    def shown(space: Any, raw: Any) -> list:
        return next(iter(from_gymnasium(Odd(space, raw), image_size=None).reset(0).obs.values())).tolist()

    assert shown(spaces.Discrete(4, start=-1), 1) == [0, 0, 1, 0]
    assert shown(spaces.Discrete(2), np.array([1])) == [0, 1]
    assert shown(spaces.MultiDiscrete([2, 3]), [1, 0]) == [0, 1, 1, 0, 0]
    assert shown(spaces.MultiBinary(3), [1, 0, 1]) == [1, 0, 1]
    assert shown(spaces.Box(-9, 9, (2, 2)), [[1, 2], [3, 4]]) == [1, 2, 3, 4]
    assert shown(spaces.Box(0.0, 1.0, (1, 6, 6)), np.full((1, 6, 6), 0.5))[0][0] == [128]
    first = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    wide = spaces.Box(0, 255, (2, 4, 5), np.uint8)
    assert shown(wide, np.arange(40, dtype=np.uint8).reshape(2, 4, 5))[0][1] == [1, 21]
    assert shown(spaces.Box(0, 255, (2, 3, 4), np.uint8), first) == first.tolist()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ((84, 84, 4), (84, 84, 4)),
        ((4, 84, 84), (84, 84, 4)),
        ((210, 160, 12), (210, 160, 12)),  # four frames in colour
        ((12, 210, 160), (210, 160, 12)),
        ((3, 7, 9), (7, 9, 3)),
        ((5, 7, 3), (5, 7, 3)),
        ((10, 10, 7), (10, 10, 7)),  # boards, and a plane for each kind of thing
        ((7, 10, 10), (10, 10, 7)),
        ((12, 10, 10), (10, 10, 12)),
        ((6, 9, 7), (6, 9, 7)),
        ((15, 19, 20), (15, 19, 20)),
    ],
)
def test_channels_are_told_by_their_number(theirs: tuple[int, ...], ours: tuple[int, ...]) -> None:
    env = from_gymnasium(Odd(spaces.Box(0, 255, theirs, np.uint8)), image_size=None)
    assert env.obs_space["image"].shape == ours


@pytest.mark.parametrize(("said", "ours"), [("first", (5, 7, 6)), ("last", (6, 5, 7))])
def test_channels_are_where_the_environment_says(said: str, ours: tuple[int, ...]) -> None:
    env = Odd(spaces.Box(0, 255, (6, 5, 7), np.uint8))
    env.metadata = {"channels": said}
    assert from_gymnasium(env, image_size=None).obs_space["image"].shape == ours


@pytest.mark.parametrize(
    ("space", "raw"),
    [
        (spaces.Box(-1, 1, (3,), np.float32), np.zeros(3, np.float64)),
        (spaces.Box(-1, 1, (3,), np.float32), [0, 1, 0]),
        (spaces.Box(-1, 1, (3,), np.float32), np.zeros((3, 1))),
        (spaces.Box(-1, 1, (3,), np.float32), np.full(3, 7.0)),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.int64)),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), np.full((8, 8, 3), 200.0, np.float32)),
        (spaces.Box(0, 255, (8, 8, 1), np.uint8), np.zeros((8, 8), np.uint8)),
        (spaces.Box(0.0, 1.0, (8, 8, 3), np.float32), np.full((8, 8, 3), 1.0000001)),
    ],
    ids=lambda value: str(getattr(value, "shape", value)),
)
def test_harmless_surprises_are_cast(space: Any, raw: Any) -> None:
    env = from_gymnasium(Odd(space, raw), image_size=None)
    row = env.reset(0)
    for key, ours in env.obs_space.items():
        assert row.obs[key].shape == ours.shape and row.obs[key].dtype == ours.dtype


def broken(value: Any) -> Any:
    """Fine at the reset, ``value`` from step 2 on."""
    return lambda t: np.zeros(3, np.float32) if t < 2 else value


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (Odd(spaces.Box(-1, 1, (3,)), broken(np.full(3, np.nan))), "'vector' is not finite .* at step 2"),
        (Odd(spaces.Box(-1, 1, (3,)), broken(np.array([0, np.inf, 0]))), "'vector' is not finite"),
        (Odd(spaces.Box(-1, 1, (3,)), broken(np.zeros(4))), r"expected shape \(3,\), got \(4,\)"),
        (Odd(spaces.Box(-1, 1, (3,)), broken("hello")), "'vector' at step 2 does not fit"),
        (Odd(spaces.Box(-1, 1, (3,)), broken(None)), "'vector'"),
        (Odd(spaces.Dict(a=spaces.Box(-1, 1, (3,))), {"b": 1}), "'a' at step 0 does not fit"),
        (Odd(spaces.Discrete(3), 3), "from .* up to .* got 3"),
        (Odd(spaces.Discrete(3, start=1), 0), "got 0"),
        (
            Odd(spaces.Box(0, 255, (8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)),
            r"expected shape \(8, 8, 3\)",
        ),
        (Odd(spaces.Box(0.0, 1.0, (8, 8, 3)), np.full((8, 8, 3), 255.0)), r"values in \[0, 1\], got 255"),
        (Odd(spaces.Box(0.0, 1.0, (8, 8, 3)), np.full((8, 8, 3), np.nan)), "not finite"),
        (Odd(reward=np.nan), "reward at step 1 is nan"),
        (Odd(reward=float("inf")), "reward at step 1 is inf"),
        (Odd(reward=1e60), "not finite"),
        (Odd(reward=None), "reward at step 1 is None"),
        (Odd(reward=np.zeros(2)), "not a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_betrayed_promises_get_one_sentence(env: Odd, words: str) -> None:
    ours = from_gymnasium(env)

    def play() -> None:
        ours.reset(0)
        for _ in range(3):
            ours.step(np.zeros(1, np.float32))

    with pytest.raises(ReverieError, match=words) as caught:
        play()
    assert "Odd" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "act", "words"),
    [
        (spaces.Text(5), UNIT, "Text space.*TransformObservation"),
        (spaces.Dict(a=spaces.Sequence(UNIT)), UNIT, "'a' is a Sequence space"),
        (spaces.Graph(UNIT, None), UNIT, "Graph space"),
        (spaces.Dict(), UNIT, "shows nothing"),
        (spaces.Dict(reward=UNIT), UNIT, "'reward' is taken"),
        (spaces.Dict(kl=UNIT), UNIT, "'kl' is taken"),
        (spaces.Dict({"a/b": UNIT, "a": spaces.Dict(b=UNIT)}), UNIT, "'a/b' is taken"),
        (UNIT, spaces.Box(-np.inf, 1.0, (2,)), "no bounds.*TransformAction"),
        (UNIT, spaces.Dict(a=UNIT), "Dict space.*TransformAction"),
        (UNIT, spaces.Tuple([UNIT]), "Tuple space"),
        (UNIT, spaces.Text(3), "Text space"),
        (UNIT, spaces.Box(-1, 1, (0,)), "empty"),
    ],
    ids=str,
)
def test_what_cannot_be_used_gets_one_sentence(space: Any, act: Any, words: str) -> None:
    with pytest.raises(ReverieError, match=words) as caught:
        from_gymnasium(Odd(space, act=act))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("thing", [object(), [1], gymnasium.vector.VectorEnv])
def test_what_is_no_environment_gets_one_sentence(thing: Any) -> None:
    with pytest.raises(ReverieError, match=r"expected a gymnasium\.Env"):
        from_gymnasium(thing)


def test_bounded_actions_are_scaled_one_by_one() -> None:
    box = spaces.Box(np.array([-2.0, 0.0, 10.0]), np.array([2.0, 1.0, 30.0]), dtype=np.float64)
    np.testing.assert_allclose(sent(box, [-1, 0, 1]), [-2.0, 0.5, 30.0])
    np.testing.assert_allclose(sent(box, [7, -7, 0]), [2.0, 0.0, 20.0])  # never out of bounds
    assert (
        sent(spaces.Box(-1, 1, (2, 2)), [0.1, 0.2, 0.3, 0.4]).tolist()
        == np.float32([[0.1, 0.2], [0.3, 0.4]]).tolist()
    )
    whole = sent(spaces.Box(0, 10, (2,), np.int32), [-1.0, 0.44])
    assert whole.tolist() == [0, 7] and whole.dtype == np.int32


def test_discrete_actions_are_groups() -> None:
    assert sent(spaces.Discrete(3, start=5), [0, 0, 1]) == 7
    assert sent(spaces.MultiDiscrete([2, 3]), [0, 1, 1, 0, 0]).tolist() == [1, 0]
    assert sent(spaces.MultiDiscrete([[2, 2], [2, 3]]), [1, 0, 0, 1, 0, 1, 0, 0, 1]).tolist() == [
        [0, 1],
        [1, 2],
    ]
    assert sent(spaces.MultiDiscrete([2, 3], start=[1, -1]), [0, 1, 1, 0, 0]).tolist() == [2, -1]
    assert sent(spaces.MultiBinary(3), [0, 1, 1, 0, 0, 1]).tolist() == [1, 0, 1]
    assert Gymnasium(Odd(act=spaces.MultiBinary((2, 2)))).act_space.groups == (2, 2, 2, 2)


@pytest.mark.parametrize("reward", [1e6, -1e6, np.float64(3.5), np.array([2.0]), 1, True])
def test_rewards_of_any_kind_are_float32(reward: Any) -> None:
    ours = from_gymnasium(Odd(reward=reward))
    ours.reset(0)
    row = ours.step(np.zeros(1, np.float32))
    assert (
        row.reward.dtype == np.float32
        and row.reward.shape == ()
        and float(row.reward) == float(np.ravel(reward)[0])
    )


def test_an_episode_of_one_step() -> None:
    ours = from_gymnasium(Odd(length=1), action_repeat=4)
    for seed in range(3):
        assert ours.reset(seed).is_first
        row = ours.step(np.zeros(1, np.float32))
        assert row.is_last and row.is_terminal and row.env_steps == 1


def test_a_picture_nobody_draws_gets_one_sentence() -> None:
    ours = from_gymnasium(Odd(), pixels=True)
    with pytest.raises(ReverieError, match="rgb_array"):
        ours.reset(0)


def test_a_factory_will_do() -> None:
    assert from_gymnasium(Odd).obs_space == from_gymnasium(lambda: Odd()).obs_space


def test_old_interfaces_get_one_sentence() -> None:
    class Old(Odd):
        def reset(self, **options: Any) -> Any:  # type: ignore[override]
            return super().reset(**options)[0]

    class Older(Odd):
        def step(self, action: Any) -> Any:
            return super().step(action)[:4]

    with pytest.raises(ReverieError, match=r"reset\(\) must return"):
        from_gymnasium(Old()).reset(0)
    ours = from_gymnasium(Older())
    ours.reset(0)
    with pytest.raises(ReverieError, match=r"step\(\) must return"):
        ours.step(np.zeros(1, np.float32))


def test_no_warnings_are_spilled(recwarn: pytest.WarningsRecorder) -> None:
    from reverie.envs import make_env

    env = make_env("CartPole-v0")
    env.reset(0)
    env.step(np.array([0, 1], np.float32))
    assert not recwarn.list
