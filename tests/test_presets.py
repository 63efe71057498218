"""Every preset builds its agent; a wrong name is answered with one sentence."""

import dataclasses

import pytest
import torch

from reverie.presets import AGENTS, PRESETS, agent_class, config_class, known, resolve, v3_2023_size, v3_size
from reverie.types import ActionSpace, Agent, Batch, ReverieError, Space

IMAGE = {"image": Space((64, 64, 3), "uint8")}
DISCRETE = {"dyna_q", "i2a", "distral"}  # take one choice among several
TASKS = {"state": Space((3,)), "task": Space((2,))}  # what Distral sees
VECTOR = {"vector": Space((3,))}
GOALS = {"observation": Space((3,)), "achieved_goal": Space((2,)), "desired_goal": Space((2,))}
SIZED = {  # sizes are counted, without being made, in the tests of these
    "dreamer_v3": v3_size(128) | {"image_size": 64},
    "dreamer_v3_2023": v3_2023_size(32, 2, 8, 1),
}
EVERY = [(agent, preset) for agent in AGENTS for preset in PRESETS[agent]]


def seen(config):
    """Pictures, for an agent that has a setting for them; goals, for one that relabels them."""
    if hasattr(config, "image_size"):
        return IMAGE
    return GOALS if type(config).__module__.rpartition(".")[2] in ("her", "tdm") else VECTOR


def test_every_agent_has_the_three_presets():
    assert set(PRESETS) == set(AGENTS)
    for agent in AGENTS:
        assert {"paper", "laptop", "debug"} <= set(PRESETS[agent])
        assert PRESETS[agent]["paper"] == {}
        assert resolve(agent, ["paper"]) == resolve(agent, []) == config_class(agent)()


@pytest.mark.parametrize(("agent", "preset"), EVERY, ids=map("-".join, EVERY))
def test_every_preset_builds(agent, preset):
    config = resolve(agent, [preset])
    assert dataclasses.asdict(config) == dataclasses.asdict(config_class(agent)()) | PRESETS[agent][preset]
    if agent in SIZED:
        config = resolve(agent, [preset], SIZED[agent])
    small = {"image": Space((10, 10, 7), "uint8")}  # what a network without strides is for
    discrete = preset == "discrete" or agent in DISCRETE
    image = small if getattr(config, "image_size", 64) == 0 and preset != "laptop" else seen(config)
    built = agent_class(agent)(
        TASKS if agent == "distral" else image, ActionSpace(4, (4,)) if discrete else ActionSpace(3), config
    )
    assert isinstance(built, Agent)
    assert built.config is config


@pytest.mark.parametrize("agent", AGENTS)
def test_debug_takes_an_update(agent):
    config = resolve(agent, ["debug"])
    act_space = ActionSpace(2, (2,) if agent in DISCRETE else ())
    space = TASKS if agent == "distral" else seen(config)
    built = agent_class(agent)(space, act_space, config)
    b, t = getattr(config, "batch_size", 4), getattr(config, "batch_length", 6)
    no = torch.zeros(b, t, dtype=torch.bool)
    obs = {
        "image": torch.randint(0, 256, (b, t, 64, 64, 3), dtype=torch.uint8),
        **{key: torch.rand(b, t, 3) for key in ("vector", *TASKS)},
        **{key: torch.rand(b, t, *space.shape) for key, space in GOALS.items()},
    }
    actions = torch.rand(b, t, act_space.size)
    rows = {key: obs[key] for key in space}
    metrics = built.update(Batch(rows, actions, actions, torch.rand(b, t), no, no, no))
    assert all(torch.isfinite(torch.as_tensor(value)) for value in metrics.values())


@pytest.mark.parametrize("agent", AGENTS)
def test_a_debug_run_is_short(agent):
    config = resolve(agent, ["debug"])
    if agent == "world_models":
        assert config.v_updates + config.m_updates <= 50 and config.generations <= 2
        return
    if hasattr(config, "actors"):
        assert 0 < config.steps // (config.actors * config.length) <= 50
        return
    updates = (config.steps - config.prefill) // config.train_every * config.train_updates
    assert 0 < updates <= 50


@pytest.mark.parametrize(
    ("task", "repeat"),
    [
        ("cartpole_swingup", 8),
        ("reacher_easy", 4),
        ("cheetah_run", 4),
        ("finger_spin", 2),
        ("cup_catch", 4),
        ("walker_walk", 2),
    ],
)
def test_planets_action_repeat_of_each_task(task, repeat):
    assert resolve("planet", [task]).action_repeat == repeat


def test_later_presets_and_single_settings_win():
    config = resolve("dreamer_v1", ["laptop", "discrete", "debug"], {"horizon": 7})
    assert config.kl_scale == 0.1  # of discrete
    assert config.model_lr == PRESETS["dreamer_v1"]["laptop"]["model_lr"]
    assert config.depth == 2  # of debug, over laptop's
    assert config.horizon == 7


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: resolve("dreamer_v9", []), r"no agent called 'dreamer_v9'; did you mean .*dreamer_v1"),
        (lambda: resolve("xyz", []), r"no agent called 'xyz'; there are: .*planet"),
        (lambda: agent_class("planets"), r"did you mean .*planet"),
        (
            lambda: resolve("planet", ["labtop"]),
            r"no preset of planet called 'labtop'; did you mean laptop\?",
        ),
        (lambda: resolve("planet", ["discrete"]), r"no preset of planet called 'discrete'"),
        (
            lambda: resolve("dreamer_v1", ["debug"], {"horizont": 3}),
            r"no setting of dreamer_v1 called 'horizont'; did you mean horizon",
        ),
        (
            lambda: resolve("planet", [], {"planner": "cme"}),
            r"planner of planet must be one of 'cem', 'shooting', 'mppi', not 'cme'",
        ),
        (lambda: resolve("dreamer_v1", [], {"reward_transform": "tan"}), r"must be one of 'none', 'tanh'"),
    ],
)
def test_a_wrong_name_is_answered_with_one_sentence(wrong, sentence):
    with pytest.raises(ReverieError, match=sentence) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_known_names_pass():
    assert known("a", {"a": 1, "b": 2}, "thing") == "a"
