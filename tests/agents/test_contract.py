"""What every agent owes the house, whatever its paper: for all kinds of action and of observation."""

import re

import numpy as np
import pytest
import torch

from reverie import checkpoint
from reverie.presets import AGENTS
from reverie.run.driver import like
from reverie.types import Agent, Foresees, HasWorld, NotFinite, ReverieError, SeeksGoals, World

EVERYTHING, PICTURE, VECTOR = ("image", "vector", "mixed"), ("image",), ("vector",)
NUMBERS, CHOICE = ("continuous",), ("discrete",)
ONE = (*NUMBERS, *CHOICE)
ANY = (*ONE, "multidiscrete")
TAKES = {  # kinds of action, kinds of observation
    "dyna_q": (CHOICE, EVERYTHING),
    "a2c": (ANY, EVERYTHING),
    "i2a": (CHOICE, PICTURE),
    "distral": (CHOICE, ("tasks",)),
    "naf": (NUMBERS, VECTOR),
    "ddpg": (NUMBERS, VECTOR),
    "td3": (NUMBERS, VECTOR),
    "sac": (NUMBERS, VECTOR),
    "mpc": (ANY, VECTOR),
    "mve": (NUMBERS, VECTOR),
    "mbpo": (NUMBERS, VECTOR),
    "her": (ONE, ("goals",)),
    "tdm": (ONE, ("goals",)),
    "planet": (ANY, EVERYTHING),
    "dreamer_v1": (ANY, EVERYTHING),
    "dreamer_v2": (ANY, EVERYTHING),
    "dreamer_v3_2023": (ANY, EVERYTHING),
    "dreamer_v3": (ANY, EVERYTHING),
    "daydreamer": (ANY, EVERYTHING),
    "world_models": (ANY, PICTURE),
}
EVERY = [(name, action, obs) for name, kinds in TAKES.items() for action in kinds[0] for obs in kinds[1]]
TABLES = {"dyna_q"}
IMAGINES = set(AGENTS) - {"a2c", "distral", "ddpg", "td3", "sac", "naf", "her", "tdm"} - TABLES


class Case:
    """One agent in one kind of world."""

    def __init__(self, small, name, action, obs):
        self.small, self.name, self.action_kind, self.obs_kind = small, name, action, obs
        self.obs_space, self.act_space = small.OBS[obs], small.ACTIONS[action]

    def agent(self, seed=0, **overrides):
        return self.small.agent(self.name, self.obs_kind, self.action_kind, seed, **overrides)

    def obs(self, n=3, seed=0, first=()):
        return self.small.obs(self.obs_kind, n, seed, first)

    def batch(self, seed=0, **settings):
        return self.small.batch(self.obs_kind, self.action_kind, seed=seed, **settings)

    def live(self, agent, steps=2, n=3, mode="train"):
        """A few steps from a reset; the last actions and carry."""
        carry = agent.initial(n)
        for t in range(steps):
            action, carry = agent.act(self.obs(n, t, range(n) if t == 0 else ()), carry, mode)
        return action, carry


@pytest.fixture(params=EVERY, ids="-".join)
def case(request, small):
    return Case(small, *request.param)


@pytest.mark.parametrize("name", AGENTS)
def test_what_an_agent_does_not_take_is_refused_in_one_sentence(small, name):
    assert name in TAKES, f"{name} needs a row above: what it takes"
    actions, kinds = TAKES[name]
    if "vector" in kinds:
        kinds = (*kinds, "goals", "tasks")  # which are vectors too
    for action in small.ACTIONS:
        for obs in small.OBS:
            if action in actions and obs in kinds:
                if (name, action, obs) not in EVERY:
                    small.agent(name, obs, action)
                continue
            with pytest.raises(ReverieError, match=re.compile(rf"^{name} [^\n]{{40,250}}$", re.IGNORECASE)):
                small.agent(name, obs, action)


def learned(agent):
    """What it has learned: parameters, or tables."""
    state = agent.state_dict()
    return state["modules"] if "modules" in state else state["tables"]


def check_actions(action, space, n):
    assert isinstance(action, np.ndarray)
    assert action.shape == (n, space.size)
    assert action.dtype == np.float32
    if not space.discrete:
        assert (np.abs(action) <= 1).all()
        return
    assert np.isin(action, (0, 1)).all()
    for group in np.split(action, np.cumsum(space.groups)[:-1], axis=1):
        assert (group.sum(1) == 1).all()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_acts_inside_the_space(case, mode):
    agent = case.agent()
    assert isinstance(agent, Agent)
    carry = agent.initial(3)
    for t in range(4):
        obs = case.obs(3, t, range(3) if t == 0 else ([1] if t == 2 else []))
        before = case.small.copied({key: torch.from_numpy(value) for key, value in obs.items()})
        action, carry = agent.act(obs, carry, mode)
        check_actions(action, case.act_space, 3)
        assert not case.small.differing(before, {k: torch.from_numpy(v) for k, v in obs.items()})


def test_an_update_is_finite_and_moves_what_it_should(case):
    free = {"free_nats": 0.0} if hasattr(case.agent().config, "free_nats") else {}  # else the prior may rest
    agent, batch = case.agent(**free), case.batch()
    parameters = case.small.copied(learned(agent))
    rows = case.small.copied(batch)
    global_randomness = torch.get_rng_state()
    for _ in range(2):
        metrics = agent.update(batch)
    for name, value in metrics.items():
        assert np.isfinite(float(value)), name
        assert not getattr(value, "requires_grad", False), name
    after = learned(agent)
    assert all(value.isfinite().all() for value in after.values())
    unmoved = {name for name in after if torch.equal(after[name], parameters[name])}
    still = getattr(agent, "still", ())  # modules that are learned elsewhere
    assert unmoved == {name for name in after if name.split(".")[0] in still}
    assert not case.small.differing(rows, batch)
    assert torch.equal(global_randomness, torch.get_rng_state())  # all randomness is the agent's own


def test_the_same_seed_is_the_same_agent(case):
    a, b = case.agent(seed=3), case.agent(seed=3)
    assert not case.small.differing(a.state_dict(), b.state_dict())
    for agent in (a, b):
        agent.update(case.batch())
        torch.randn(7)  # the world outside draws numbers too
    assert np.array_equal(case.live(a)[0], case.live(b)[0])
    a.update(case.batch(1)), b.update(case.batch(1))
    assert not case.small.differing(a.state_dict(), b.state_dict())
    if case.name not in TABLES:  # these are empty at first
        assert case.small.differing(learned(case.agent(seed=4)), learned(case.agent(seed=3)))


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(case, tmp_path):
    agent = case.agent(seed=1)
    agent.update(case.batch(0))
    _, carry = case.live(agent)
    checkpoint.save(tmp_path, 7, {"agent": agent.state_dict(), "carry": carry})

    other = case.agent(seed=2)
    other.update(case.batch(5))  # it has a past of its own
    _, state = checkpoint.load(tmp_path)
    other.load_state_dict(state["agent"])
    assert not case.small.differing(agent.state_dict(), other.state_dict())
    other_carry = like(other.initial(3), state["carry"])
    assert not case.small.differing(carry, other_carry)

    for mode in ("train", "eval"):
        a, _ = agent.act(case.obs(3, 9), carry, mode)
        b, _ = other.act(case.obs(3, 9), other_carry, mode)
        assert np.array_equal(a, b)
    assert not case.small.differing(agent.update(case.batch(1)), other.update(case.batch(1)))
    assert not case.small.differing(agent.state_dict(), other.state_dict())


def test_a_loaded_agent_owns_its_state(case):
    """Two agents that share a past do not share tensors."""
    a, b = case.agent(), case.agent()
    a.update(case.batch())
    b.load_state_dict(a.state_dict())
    before = case.small.copied(b.state_dict())
    a.update(case.batch(1)), case.live(a)
    assert not case.small.differing(before, b.state_dict())


def test_a_reset_forgets_the_past(case):
    """Acting at a first row is the same after any carry as after none."""
    a, b = case.agent(), case.agent()
    _, carry = case.live(a, 3, mode="eval")
    b.load_state_dict(a.state_dict())
    obs = case.obs(3, 9, range(3))
    x, after_x = a.act(obs, carry, "eval")
    y, after_y = b.act(obs, b.initial(3), "eval")
    assert np.array_equal(x, y)
    assert not case.small.differing(after_x, after_y)


def test_what_came_before_a_reset_in_a_batch_does_not_count(case):
    """Two batches that differ only in a previous action that a reset cuts off give the same update."""
    a, b = case.agent(), case.agent()
    batch = case.batch()
    wrong = batch._replace(prev_action=batch.prev_action + batch.is_first[..., None].float())
    assert not torch.equal(wrong.prev_action, batch.prev_action)
    a.update(batch), b.update(wrong)
    assert not case.small.differing(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_stream_does_not_notice_its_neighbours(case, mode):
    a, b = case.agent(), case.agent()
    carries = [agent.initial(3) for agent in (a, b)]
    for t in range(3):
        first = range(3) if t == 0 else ()
        obs = case.obs(3, t, first)
        other = case.obs(3, 100 + t, first)
        for key in case.obs_space:
            other[key][1] = obs[key][1]
        if t == 2:
            other["is_first"][[0, 2]] = True
        x, carries[0] = a.act(obs, carries[0], mode)
        y, carries[1] = b.act(other, carries[1], mode)
        np.testing.assert_allclose(x[1], y[1], atol=1e-6)


def test_looking_on_leaves_learning_untouched(case):
    """Evaluating, reporting and dreaming draw from randomness of their own."""
    a, b = case.agent(), case.agent()
    case.live(b, 3, n=2, mode="eval")
    b.report(case.batch(3), context=2)
    if case.name in IMAGINES:
        b.world.imagine(b.world.initial(2), torch.zeros(2, case.act_space.size))
    assert np.array_equal(case.live(a)[0], case.live(b)[0])
    assert not case.small.differing(a.update(case.batch()), b.update(case.batch()))
    case.live(b, 1, mode="train")  # and acting does not shift learning
    a.update(case.batch(1)), b.update(case.batch(1))
    assert not case.small.differing(learned(a), learned(b))


def test_its_model_is_a_world_if_it_has_one(case):
    agent, n = case.agent(), 4
    assert isinstance(agent, HasWorld) == (case.name in IMAGINES)
    assert isinstance(agent, Foresees) == (case.name == "i2a")
    assert isinstance(agent, SeeksGoals) == (case.name == "her")
    if case.name not in IMAGINES:
        return
    world = agent.world
    assert isinstance(world, World)
    batch = case.batch()
    obs = {key: value[:, 0] for key, value in batch.obs.items()}
    carry = world.initial(n)
    for t in range(3):
        if t < 2:
            carry = world.observe(obs, batch.prev_action[:, t], batch.is_first[:, t], carry)
        else:
            carry = world.imagine(carry, batch.prev_action[:, t])
        seen = world.decode(carry)
        assert set(seen) == set(case.obs_space)
        for key, space in case.obs_space.items():
            assert seen[key].shape == (n, *space.shape)
            assert seen[key].dtype == getattr(torch, space.dtype)
        assert world.reward(carry).shape == (n,)
        assert world.cont(carry).shape == (n,)
        assert ((world.cont(carry) >= 0) & (world.cont(carry) <= 1)).all()


@pytest.mark.parametrize(
    "case", [row for row in EVERY if row[0] not in TABLES], indirect=True, ids="-".join
)  # a table's model is of steps, not of pictures
def test_it_reports_truth_and_prediction(case):
    batch = case.batch()
    media = case.agent().report(batch, context=2)
    pictures = [key for key, space in case.obs_space.items() if space.is_image]
    if case.name not in IMAGINES:
        assert media == {}
        return
    assert {f"open_loop/{key}" for key in pictures} <= set(media)
    assert not media or pictures
    for truth, prediction in media.values():
        assert truth.dtype == prediction.dtype == np.uint8
        assert truth.shape == prediction.shape == (4, 6, 64, 64, 3)
        assert np.array_equal(truth, batch.obs[pictures[0]].numpy())
        assert not np.array_equal(truth, prediction)


BAD = [
    (row, where)
    for row in EVERY
    for where in ("reward", "vector", "prev_action")
    if (row[0], where) != ("tdm", "reward")  # it looks at distances, not at what is paid
    and (where != "vector" or row[2] in ("vector", "mixed", "goals"))
]


@pytest.mark.parametrize(
    ("case", "where"), BAD, indirect=["case"], ids=["-".join((*row, where)) for row, where in BAD]
)
def test_a_number_gone_bad_changes_nothing(case, where):
    agent = case.agent()
    agent.update(case.batch())
    batch = case.batch(1)
    if where == "vector":
        key = "observation" if case.obs_kind == "goals" else "speed"
        batch.obs[key][1, 4, 0] = float("nan")
    else:
        getattr(batch, where)[1, 4] = float("nan")
        if where == "prev_action":  # the same number, as the row before names it
            batch.action[1, 3] = float("nan")
    before = case.small.copied(agent.state_dict())
    with pytest.raises(NotFinite) as error:
        agent.update(batch)
    named = re.search(r"([a-z_]+(\.\w+)+)", str(error.value))
    if case.name not in TABLES:
        assert named and named[1] in before["modules"], error.value
    changed = case.small.differing(before, agent.state_dict())
    assert all(name.startswith("/generators/") for name in changed), changed
    agent.update(case.batch(2))
    assert all(value.isfinite().all() for value in learned(agent).values())
