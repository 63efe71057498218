"""Dreams as Gymnasium environments: against a world that can be worked out by hand, and on worlds that learn."""

import importlib.util
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import reverie
from reverie import presets
from reverie.data.replay import Replay
from reverie.dream import Awake, Dream, Dreams, contexts, open_run, rollouts, watch
from reverie.envs import make_env
from reverie.envs.base import Env, after, first
from reverie.types import ActionSpace, Batch, ReverieError, Space, World

MODES = ("NextStep", "SameStep", "Disabled")


class Ledger:
    """Its carry "n 3" is (steps since it looked, the action's first number, its second), and it shows just that.

    Pays ten times the steps plus the first number; the episode goes on while the second is not positive.
    """

    def __init__(self, seen=()):
        self.temperature, self.looks, self.rows = 1.0, 0, []

    def initial(self, n):
        return torch.zeros(n, 3)

    def observe(self, obs, prev_action, is_first, carry):
        self.looks += 1
        after = torch.zeros_like(carry)
        after[:, 1] = obs["speed"][:, 0]
        return after

    def imagine(self, carry, action):
        self.rows.append(len(carry))
        return torch.cat([carry[:, :1] + 1, action[:, :2]], 1)

    def features(self, carry):
        return carry  # itself: whoever writes into what is shown must not change the world

    def decode(self, carry):
        image = carry[:, :1, None, None].expand(-1, 4, 5, 3).byte()
        return {"image": image, "speed": carry[:, 1:2]}

    def reward(self, carry):
        return 10 * carry[:, 0] + carry[:, 1]

    def cont(self, carry):
        return (carry[:, 2] <= 0).float()

    def take(self, carry, index):
        return carry[index]

    def put(self, carry, index, part):
        return carry.index_copy(0, index, part)


LEDGER = {"image": Space((4, 5, 3), "uint8"), "speed": Space((1,))}


def made_up(space, act, n=6, k=3, first=True, seed=0):
    """Random rows, as a Batch "n k"."""
    g = torch.Generator().manual_seed(seed)
    obs = {
        key: torch.randint(0, 256, (n, k, *s.shape), generator=g, dtype=torch.uint8)
        if s.is_image
        else torch.randn(n, k, *s.shape, generator=g)
        for key, s in space.items()
    }
    no = torch.zeros(n, k, dtype=torch.bool)
    is_first = no.clone()
    is_first[:, 0] = first
    draw = lambda: torch.from_numpy(act.sample(np.random.default_rng(seed), n * k)).view(n, k, -1)
    return Batch(obs, draw(), draw(), torch.zeros(n, k), is_first, no, no.clone())


def ledger(n=3, starts=1, act=ActionSpace(2), steps=5, **options):
    return Dreams(Ledger(), LEDGER, act, made_up(LEDGER, act, starts, 2), n, steps=steps, **options)


def agent(name, act=ActionSpace(2), space=None, **overrides):
    """A debug-sized agent, untrained, on vectors."""
    space = space or {"position": Space((3,)), "speed": Space((2,))}
    config = presets.resolve(name, ["debug"], overrides)
    return presets.agent_class(name)(space, act, config, 0)


def dreams_of(agent, n=8, steps=6, starts=6, **options):
    batch = made_up(agent.obs_space, agent.act_space, starts)
    return Dreams(agent.world, agent.obs_space, agent.act_space, batch, n, steps=steps, **options)


def moves(n, ends, steps=8, seed=0):
    """Actions "steps n 2"; ``ends`` are (step, row) at which the second number says stop."""
    actions = np.random.default_rng(seed).uniform(-1, 0, (steps, n, 2)).astype(np.float32)
    for t, i in ends:
        actions[t, i, 1] = 1.0
    return actions


def same(a, b):
    """Two answers of a vector environment, infos included."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, np.ndarray) and a.dtype == object:
        assert [x is None for x in a] == [x is None for x in b]
        for x, y in zip(a, b, strict=True):
            assert x is None or np.array_equal(x, y)
    else:
        np.testing.assert_array_equal(a, b)


# What a step is


def test_a_dream_by_hand():
    dreams = ledger(2, steps=3)
    assert isinstance(dreams.world, World)
    obs, info = dreams.reset(seed=0)
    shown = float(dreams.starts.obs["speed"][0, 1, 0])  # the last row of the context
    assert info == {} and dreams.world.looks == 2
    np.testing.assert_allclose(obs, [[0, shown, 0]] * 2)
    obs, reward, terminated, truncated, info = dreams.step(np.array([[0.5, -1], [-3, 1]], np.float32))
    np.testing.assert_allclose(obs, [[1, 0.5, -1], [1, -1, 1]])  # -3 is no action: the border is at -1
    assert reward.tolist() == [10.5, 9.0] and reward.dtype == np.float64
    assert terminated.tolist() == [False, True] and truncated.tolist() == [False, False] and info == {}
    obs, reward, terminated, truncated, _ = dreams.step(np.zeros((2, 2), np.float32))
    np.testing.assert_allclose(obs, [[2, 0, 0], [0, shown, 0]])
    assert reward.tolist() == [20.0, 0.0] and not (terminated | truncated).any()
    *_, terminated, truncated, _ = dreams.step(np.zeros((2, 2), np.float32))
    assert truncated.tolist() == [True, False] and not terminated.any()  # each row has its own clock


@pytest.mark.parametrize("mode", MODES)
def test_rows_end_and_begin_as_in_gymnasiums_own_vector_environments(mode):
    one = lambda: Dream(Ledger(), LEDGER, ActionSpace(2), made_up(LEDGER, ActionSpace(2), 1, 2), steps=4)
    theirs = SyncVectorEnv([one] * 3, autoreset_mode=mode)
    ours = ledger(3, steps=4, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is AutoresetMode(mode)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    same(ours.reset(seed=0)[0], theirs.reset(seed=0)[0])
    for action in moves(3, [(1, 0), (2, 0), (2, 1), (5, 1), (7, 2)], 12):
        a, b = ours.step(action), theirs.step(action)
        for x, y in zip(a, b, strict=True):
            same(x, y)
        over = a[2] | a[3]
        if mode == "Disabled" and over.any():
            same(ours.reset(options={"reset_mask": over})[0], theirs.reset(options={"reset_mask": over})[0])


def test_what_is_shown_belongs_to_whoever_got_it():
    dreams = ledger(2)
    obs, _ = dreams.reset(seed=0)
    obs[:] = 7
    obs = dreams.step(np.zeros((2, 2)))[0]
    assert obs[:, 0].tolist() == [1, 1]
    obs[:] = 7
    assert dreams.step(np.zeros((2, 2)))[0][:, 0].tolist() == [2, 2]


def test_some_rows_can_be_begun_again_in_every_mode():
    for mode in MODES:
        dreams = ledger(3, autoreset_mode=mode)
        dreams.reset(seed=0)
        for _ in range(2):
            dreams.step(np.zeros((3, 2)))
        options = {"reset_mask": np.array([False, True, False])}
        obs, _ = dreams.reset(options=options)
        assert obs[:, 0].tolist() == [2, 0, 2] and "reset_mask" in options
        assert dreams.step(np.zeros((3, 2)))[0][:, 0].tolist() == [3, 1, 3]


def test_an_end_can_be_drawn_instead_of_decided():
    class Unsure(Ledger):
        def cont(self, carry):
            return torch.full((len(carry),), 0.75)

    def ended(**options):
        dreams = Dreams(
            Unsure(), LEDGER, ActionSpace(2), made_up(LEDGER, ActionSpace(2)), 4000, steps=9, **options
        )
        dreams.reset(seed=0)
        return dreams.step(np.zeros((4000, 2)))[2].mean()

    assert ended() == 0
    assert ended(sample_ends=True) == pytest.approx(0.25, abs=0.03)


# Spaces


@pytest.mark.parametrize(
    ("groups", "space", "action", "hot"),
    [
        ((3,), gymnasium.spaces.Discrete(3), [2, 0], [[0, 0, 1], [1, 0, 0]]),
        (
            (2, 3),
            gymnasium.spaces.MultiDiscrete([2, 3]),
            [[1, 0], [0, 2]],
            [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]],
        ),
    ],
)
def test_discrete_actions_become_one_hot_groups(groups, space, action, hot):
    act = ActionSpace(sum(groups), groups)
    dreams = ledger(2, act=act)
    told = []
    dreams.world.imagine = lambda carry, action: told.append(action) or carry
    assert dreams.single_action_space == space
    dreams.reset(seed=0)
    dreams.step(np.array(action))
    assert told[0].tolist() == hot and told[0].dtype == torch.float32
    with pytest.raises(ReverieError, match="from 0 to"):
        dreams.step(np.full_like(action, 9))
    with pytest.raises(ReverieError, match="needs actions for 2 rows, got float64"):
        dreams.step(np.array(action, float))


def test_frames_are_what_the_world_believes_it_sees():
    dreams = ledger(2, frames=True, render_mode="rgb_array")
    assert dreams.single_observation_space == gymnasium.spaces.Box(0, 255, (4, 5, 3), np.uint8)
    obs, _ = dreams.reset(seed=0)
    assert obs.shape == (2, 4, 5, 3) and obs.dtype == np.uint8
    obs = dreams.step(np.zeros((2, 2)))[0]
    assert (obs == 1).all()
    frames = dreams.render()
    assert isinstance(frames, tuple) and len(frames) == 2 and np.array_equal(frames[1], obs[1])
    assert ledger().render() is None


@pytest.mark.parametrize("name", ["dreamer_v1", "planet"])
@pytest.mark.parametrize("act", [ActionSpace(2), ActionSpace(3, (3,)), ActionSpace(5, (2, 3))])
def test_gymnasiums_checks(name, act):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # infinite bounds, and no spec to make it again from
        a = agent(name, act)
        batch = made_up(a.obs_space, act)
        check_env(Dream(a.world, a.obs_space, act, batch, steps=5))


@pytest.mark.parametrize("name", ["dreamer_v1", "planet"])
def test_what_is_shown_of_an_agents_world_are_its_features(name):
    a = agent(name)
    dreams = dreams_of(a)
    obs, _ = dreams.reset(seed=0)
    assert dreams.single_observation_space.shape == (a.rssm.features,)
    for _ in range(3):
        assert np.array_equal(obs, a.rssm.feat(dreams.carry).detach().numpy())
        obs, reward, *_ = dreams.step(dreams.action_space.sample())
        expected = a.reward(a.rssm.feat(dreams.carry)).detach().numpy()
        np.testing.assert_array_equal(reward.astype(np.float32), expected)


# Randomness


@pytest.mark.parametrize("name", ["dreamer_v1", "planet"])
def test_a_seed_decides_a_dream(name):
    space = {"image": Space((64, 64, 3), "uint8"), "speed": Space((2,))}

    def life(dreams, seed):
        told = [dreams.reset(seed=seed)[0]]
        actions = np.random.default_rng(0).uniform(-1, 1, (8, 4, 2))
        return np.concatenate([*told, *(dreams.step(action)[0] for action in actions)])

    a, b = dreams_of(agent(name, space=space), 4), dreams_of(agent(name, space=space), 4, seed=5)
    once = life(a, 5)
    assert np.array_equal(once, life(a, 5))
    assert not np.array_equal(once, life(a, 6))
    assert np.array_equal(once, life(b, None))  # its own seed, the first time
    assert not np.array_equal(once, life(b, None))


def test_each_reset_draws_a_start_and_looks_at_it_anew():
    dreams = dreams_of(agent("dreamer_v1"), 400, starts=3)
    obs, _ = dreams.reset(seed=0)
    deter = dreams.carry.deter
    assert len(torch.unique(deter, dim=0)) > 3  # samples along the context, too, are drawn afresh
    assert len(np.unique(obs, axis=0)) == 400
    by_hand = ledger(400, starts=3).reset(seed=0)[0][:, 1]
    assert len(np.unique(by_hand)) == 3


def test_temperature_is_how_wild_a_dream_is():
    a = agent("dreamer_v1")

    def spread(temperature):
        dreams = dreams_of(a, 2000, temperature=temperature)
        dreams.reset(seed=0)
        dreams.carry = a.rssm.initial(2000)
        dreams.step(np.zeros((2000, 2)))
        mean, _ = dreams.carry.stats.chunk(2, -1)
        return (dreams.carry.stoch - mean).std()

    plain = spread(None)
    assert spread(1.0) == plain
    assert spread(4.0) == pytest.approx(2 * float(plain), rel=1e-4)  # the same noise, scaled
    assert spread(0.25) == pytest.approx(float(plain) / 2, rel=1e-4)
    assert a.world.temperature == 1.0  # each view of the world has its own


# Rollouts


def play_one_by_one(dreams, actions):
    """Returns and lengths of the first episodes, stepped through Gymnasium's door."""
    n = dreams.num_envs
    returns, lengths, alive = np.zeros(n), np.zeros(n, int), np.ones(n, bool)
    for action in actions:
        _, reward, terminated, truncated, _ = dreams.step(action)
        returns += reward * alive
        lengths += alive
        alive &= ~(terminated | truncated)
    return returns, lengths


def test_rollouts_are_dreams_stepped_to_their_end():
    n, ends = 9, [(0, 4), (2, 0), (2, 1), (2, 2), (3, 3), (3, 5), (6, 8)]
    actions = moves(n, ends)
    dreams = ledger(n, steps=8)
    dreams.reset(seed=0)
    returns, lengths = play_one_by_one(dreams, actions)
    assert lengths.tolist() == [3, 3, 3, 4, 1, 4, 8, 8, 7]

    world, told = Ledger(), []

    def policy(features, rows):
        assert len(features) == len(rows)
        told.append(rows)
        return torch.from_numpy(actions[len(told) - 1])[rows]

    start = watch(world, dreams.starts, torch.zeros(n, dtype=torch.long))
    scores, ages = rollouts(world, start, policy, 8)
    np.testing.assert_allclose(scores.numpy(), returns, rtol=1e-6)
    assert ages.tolist() == lengths.tolist()
    assert told[0] is told[1]  # the same until dreams leave, so that a policy may keep what it gathered
    assert world.rows == [
        9,
        9,
        9,
        5,
        3,
        3,
        3,
        2,
    ]  # they leave when a quarter has ended: 4 of 9, 2 of 5, 1 of 3
    assert told[3].tolist() == [3, 5, 6, 7, 8] and told[4].tolist() == [6, 7, 8]


def test_rollouts_stop_when_all_have_ended_or_at_the_limit():
    stop = lambda features, rows: torch.ones(len(rows), 2)
    world = Ledger()
    returns, lengths = rollouts(world, world.initial(4), stop, 100)
    assert world.rows == [4] and lengths.tolist() == [1] * 4 and returns.tolist() == [11.0] * 4
    returns, lengths = rollouts(world, world.initial(4), lambda f, r: torch.zeros(len(r), 2), 3)
    assert lengths.tolist() == [3] * 4 and returns.tolist() == [60.0] * 4


def test_what_a_world_says_of_ended_dreams_does_not_count():
    class Broken(Ledger):
        def reward(self, carry):
            return torch.where(carry[:, 0] > 1.5, torch.nan, carry[:, 0]) if len(carry) == 8 else carry[:, 0]

    stop_first = lambda f, rows: (rows == 0).float()[:, None].expand(-1, 2)
    returns, lengths = rollouts(Broken(), torch.zeros(8, 3), stop_first, 2)
    assert returns[0] == 1.0 and lengths.tolist() == [1] + [2] * 7


# Awake


class Track(Env):
    """A real environment that ends after three steps: by falling if the seed is 0, else by the clock."""

    def __init__(self, act):
        self.obs_space = {"position": Space((3,)), "speed": Space((2,))}
        self.act_space, self.closed = act, 0

    def reset(self, seed):
        self.rng, self.t, self.falls, self.told = np.random.default_rng(seed), 0, seed == 0, []
        return first(self.show())

    def show(self):
        return {key: self.rng.normal(size=s.shape).astype(np.float32) for key, s in self.obs_space.items()}

    def step(self, action):
        self.t += 1
        self.told.append(action)
        over = self.t == 3
        return after(self.show(), float(self.t), over and self.falls, over and not self.falls)

    def render(self):
        return np.full((8, 8, 3), self.t, np.uint8)

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("name", ["dreamer_v1", "planet"])
def test_awake_is_the_agents_own_filtering(name):
    a = agent(name)
    awake, real = Awake(a.world, Track(a.act_space), render_mode="rgb_array"), Track(a.act_space)
    dreams = dreams_of(a)
    assert awake.observation_space == dreams.single_observation_space
    assert awake.action_space == dreams.single_action_space
    obs, _ = awake.reset(seed=0)
    seen = [obs]
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 2)).astype(np.float32)
    for action in actions:
        obs, reward, terminated, truncated, _ = awake.step(action)
        seen.append(obs)
    assert reward == 3.0 and terminated and not truncated
    assert np.array_equal(awake.env.told, actions)
    assert (awake.render() == 3).all()

    a.generators["dream"].manual_seed(int(np.random.default_rng(0).integers(2**63)))
    state, prev_action = a.rssm.initial(1), torch.zeros(1, 2)
    rows = [real.reset(0), *(real.step(action) for action in actions)]
    for t, row in enumerate(rows):
        told = {key: torch.from_numpy(value)[None] for key, value in row.obs.items()}
        scaled = a.world.scale(told)
        with torch.no_grad():
            is_first = torch.tensor([bool(row.is_first)])
            state = a.rssm.obs_step(state, prev_action, a.encoder(scaled), is_first, a.generators["dream"])
            assert np.array_equal(seen[t], a.rssm.feat(state)[0].numpy())
        prev_action = torch.from_numpy(actions[min(t, 2)])[None]


def test_awake_ends_when_reality_does():
    a = agent("dreamer_v1", ActionSpace(3, (3,)))
    awake = Awake(a.world, Track(a.act_space))
    awake.reset(seed=1)
    told = [awake.step(2) for _ in range(3)]
    assert [step[2] for step in told] == [False] * 3 and [step[3] for step in told] == [False, False, True]
    assert awake.env.told[0].tolist() == [0, 0, 1]
    assert awake.render() is None
    awake.close()
    awake.close()
    assert awake.env.closed == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(Awake(a.world, Track(a.act_space)))


# Dreams of a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on pictures that end, with a cont head."""
    tiny = dict(steps=60, prefill=40, train_every=10, train_updates=1, threads=1, eval_episodes=1)
    folder = tmp_path_factory.mktemp("runs") / "catch"
    return reverie.train(
        "dreamer_v1", "reverie/Catch-v0", preset="debug", run=folder, action_repeat=1, cont=True, **tiny
    )


def test_a_run_can_be_dreamt_of_through_gymnasium(run):
    envs = gymnasium.make_vec("reverie/Dream-v0", num_envs=16, run=str(run), starts=50)
    assert isinstance(envs, Dreams) and envs.num_envs == 16 and envs.steps == 9  # Catch lasts nine decisions
    assert envs.spec.id == "reverie/Dream-v0" and envs.spec.kwargs["run"] == str(run)
    assert 1 <= len(envs.starts.reward) <= 50 and envs.starts.reward.shape[1] == 5
    obs, _ = envs.reset(seed=0)
    assert obs.shape == (16, envs.world.rssm.features) and envs.action_space.shape == (16,)
    for _ in range(3):
        envs.step(envs.action_space.sample())
    envs.close()
    with pytest.raises(ReverieError, match="reset"):
        envs.step(envs.action_space.sample())
    hot = gymnasium.make_vec("reverie/Dream-v0", num_envs=2, run=run, steps=4, context=2, temperature=1.15)
    assert hot.world.temperature == 1.15 and hot.steps == 4 and hot.starts.reward.shape[1] == 2


def test_gymnasiums_checks_of_a_run(run):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("Dream", "Awake"):
            env = gymnasium.make(f"reverie/{name}-v0", run=str(run), frames=name == "Dream").unwrapped
            check_env(env)
            env.close()


def test_dream_and_reality_have_the_same_spaces(run):
    dream, awake = (gymnasium.make(f"reverie/{name}-v0", run=run) for name in ("Dream", "Awake"))
    assert dream.observation_space == awake.observation_space and dream.action_space == awake.action_space
    seen, _ = awake.reset(seed=3)
    total, over = 0.0, False
    while not over:
        seen, reward, terminated, truncated, _ = awake.step(awake.action_space.sample())
        total, over = total + reward, terminated or truncated
    assert terminated and total in (-1.0, 1.0) and seen in dream.observation_space


def test_starts_are_rows_of_the_replay_that_go_on():
    rng = np.random.default_rng(0)
    env = make_env("reverie/Catch-v0")
    replay = Replay(env.obs_space, env.act_space, 200)
    for seed in range(8):
        row = env.reset(seed)
        while not row.is_last:
            action = env.act_space.sample(rng, 1)[0]
            replay.add(row, action)
            row = env.step(action)
        replay.add(row, None)
    batch = contexts(replay, 4, 300, rng)
    assert 200 < len(batch.reward) < 300 and batch.reward.shape[1] == 4
    assert (
        not batch.is_last[:, -1].any() and batch.is_last[:, :-1].any()
    )  # they may cross from one to the next
    with pytest.raises(ReverieError, match="80 rows in a row and a dream's context is 81"):
        contexts(replay, 81, 3, rng)


def test_ppo_learns_in_a_dream_and_wakes_up(run):
    pytest.importorskip("stable_baselines3")
    path = Path(__file__).parents[1] / "examples" / "ppo_in_a_dream.py"
    spec = importlib.util.spec_from_file_location("ppo_in_a_dream", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = example.main(str(run), steps=300, rows=8, episodes=2, n_steps=32)
    assert set(found) == {"dream", "awake"} and all(np.isfinite(value).all() for value in found.values())
    assert -1.0 <= found["awake"][0] <= 1.0


# What can not be dreamt


def test_what_can_not_be_dreamt_is_said_in_a_sentence(run, tmp_path, monkeypatch):
    for options, words in (
        (dict(temperature=0.0), "temperature must be above 0 and finite, got 0.0"),
        (dict(temperature=float("nan")), "temperature"),
        (dict(steps=0), "steps >= 1"),
        (dict(n=0), "n >= 1"),
        (dict(render_mode="human"), "render_mode 'human' is not possible here; choose one of rgb_array"),
    ):
        with pytest.raises(ReverieError, match=words):
            ledger(**options)
    a = agent("dreamer_v1")
    with pytest.raises(ReverieError, match="no picture to show"):
        dreams_of(a, frames=True)
    batch = made_up(LEDGER, ActionSpace(2))
    ended = batch._replace(is_last=torch.ones_like(batch.is_last))
    with pytest.raises(ReverieError, match="does not end an episode"):
        Dreams(Ledger(), LEDGER, ActionSpace(2), ended, 1, steps=3)

    with pytest.raises(ReverieError, match="is not a run"):
        open_run(tmp_path)
    with pytest.raises(ReverieError, match="context >= 1"):
        open_run(run, context=0)
    with pytest.raises(ReverieError, match="a dream's context is 10000"):
        open_run(run, context=10_000)
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(ReverieError, match="no checkpoint"):
        gymnasium.make("reverie/Dream-v0", run=tmp_path)
    cls = presets.agent_class("dreamer_v1")
    load = cls.load_state_dict
    with monkeypatch.context() as m:
        m.setattr(cls, "load_state_dict", lambda self, state: load(self, {**state, "updates": 0}))
        with pytest.raises(ReverieError, match="has not learned anything yet"):
            open_run(run)
    monkeypatch.delattr(cls, "world")
    with pytest.raises(ReverieError, match="dreamer_v1, which learns no world"):
        open_run(run)


def test_misuse_is_said_in_a_sentence():
    dreams = ledger(2, autoreset_mode="Disabled")
    with pytest.raises(ReverieError, match="has not begun"):
        dreams.step(np.zeros((2, 2)))
    with pytest.raises(ReverieError, match="all be begun once"):
        dreams.reset(options={"reset_mask": np.array([True, False])})
    dreams.reset(seed=0)
    for mask in ([True, False], np.array([1, 0]), np.array([False, False]), np.array([True])):
        with pytest.raises(ReverieError, match="reset_mask should be a bool array of shape"):
            dreams.reset(options={"reset_mask": mask})
    with pytest.raises(ReverieError, match=r"needs actions for 2 rows, got float64 \(3, 2\)"):
        dreams.step(np.zeros((3, 2)))
    with pytest.raises(ReverieError, match="not finite"):
        dreams.step(np.full((2, 2), np.nan))
    dreams.step(np.array([[0, 0], [0, 1.0]]))
    with pytest.raises(ReverieError, match="1 of 2 dreams ended with the last step, the first is row 1"):
        dreams.step(np.zeros((2, 2)))
    shown = ledger(render_mode="rgb_array")
    with pytest.raises(ReverieError, match="has not begun"):
        shown.render()
