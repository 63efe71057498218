"""Dyna-Q: the maze's numbers, the box of the book step by step, and a table that survives being saved."""

import gymnasium
import numpy as np
import pytest

from reverie import checkpoint, presets, train
from reverie.agents.dyna_q import Config, DynaQ, Outcome
from reverie.data.replay import Replay
from reverie.envs import make_env
from reverie.envs.small import DynaMaze
from reverie.run.folder import read_json
from reverie.types import ActionSpace, ReverieError, Space

SPACE, FOUR = {"vector": Space((54,))}, ActionSpace(4, (4,))
EYE = np.eye(54, dtype=np.float32)


def agent(seed=0, **settings):
    return DynaQ(SPACE, FOUR, Config(**settings), seed)


def show(cell, first=False):
    return {"vector": EYE[[cell]], "is_first": np.array([first])}


def play(learner, episodes):
    """Steps of each episode."""
    maze, steps = DynaMaze(), []
    for _ in range(episodes):
        (cell, _), count, over = maze.reset(), 0, False
        while not over:
            action = learner.act(show(cell, count == 0), (), "train")[0][0]
            after, reward, over, _, _ = maze.step(action.argmax())
            learner.learn(known(learner, cell), int(action.argmax()), reward, known(learner, after), over)
            cell, count = after, count + 1
        steps.append(count)
    return steps


def known(learner, cell):
    return learner.state(EYE[cell].tobytes())


# The maze


def cells():
    maze = DynaMaze()
    return [(r, c) for r in range(maze.rows) for c in range(maze.columns) if (r, c) not in maze.walls]


def distances():
    """Steps to the goal from every cell, by breadth."""
    maze, found = DynaMaze(), {DynaMaze.goal: 0}
    queue = [maze.goal]
    for at in queue:
        for cell in cells():
            if cell not in found and any(maze.after(cell, a) == at for a in range(4)):
                found[cell] = found[at] + 1
                queue.append(cell)
    return found


def first_passage(epsilon):
    """Expected steps from the start to the goal: with probability epsilon any move, else one of the best."""
    maze, away, free = DynaMaze(), distances(), cells()
    free.remove(maze.goal)
    chance = np.zeros((len(free), len(free)))
    for i, cell in enumerate(free):
        then = [maze.after(cell, a) for a in range(4)]
        best = [away[t] == min(map(away.get, then)) for t in then]
        for there, good in zip(then, best, strict=True):
            if there != maze.goal:
                chance[i, free.index(there)] += epsilon / 4 + (1 - epsilon) * good / sum(best)
    return np.linalg.solve(np.eye(len(free)) - chance, np.ones(len(free)))[free.index(maze.start)]


def test_the_maze_has_47_cells_and_the_goal_is_14_steps_away():
    assert len(cells()) == 47
    assert distances()[DynaMaze.start] == 14


@pytest.mark.parametrize(("epsilon", "steps"), [(1.0, 868.7254), (0.1, 15.8781), (0.05, 14.8855)])
def test_first_passage_times_are_the_sheets(epsilon, steps):
    assert first_passage(epsilon) == pytest.approx(steps, abs=1e-4)


def test_the_value_of_the_start():
    assert 0.95 ** (distances()[DynaMaze.start] - 1) == pytest.approx(0.513342, abs=1e-6)


def test_gymnasium_finds_nothing_wrong_with_the_maze():
    from gymnasium.utils.env_checker import check_env

    env = gymnasium.make("reverie/DynaMaze-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    env.reset()
    assert env.render().shape == (144, 216, 3)
    assert (env.render()[60, 10] == (213, 94, 0)).all()  # the agent at the start


def test_walls_and_borders_stay_and_the_goal_ends():
    env = gymnasium.make("reverie/DynaMaze-v0")
    obs, _ = env.reset()
    assert obs == 18
    assert env.step(2)[0] == 18  # the border
    assert env.step(3)[0] == 19
    assert env.step(3)[0] == 19  # a wall
    env.unwrapped.at = (1, 8)
    assert env.step(0) == (8, 1.0, True, False, {})


# The book's box


def test_after_the_first_episode_without_planning_one_entry_is_alpha():
    learner = agent(planning_steps=0)
    play(learner, 1)
    values = np.array(learner.q)
    assert np.count_nonzero(values) == 1 and values.max() == pytest.approx(0.1)


def test_one_real_step_by_hand():
    learner = agent(planning_steps=0, lr=0.5, discount=0.9)
    a, b = learner.state(b"a"), learner.state(b"b")
    learner.q[b][3] = 2.0
    assert learner.learn(a, 1, 1.0, b, False) == pytest.approx(1 + 0.9 * 2)
    assert learner.q[a] == [0, pytest.approx(1.4), 0, 0]
    assert learner.model == {a: {1: Outcome(1.0, b, False, 1)}}
    assert learner.learn(a, 1, 1.0, b, True) == pytest.approx(1 - 1.4)  # nothing follows a true end
    assert learner.model[a][1] == Outcome(1.0, b, True, 2)  # the last outcome is remembered


def test_planning_repeats_what_is_known_until_it_is_true():
    learner = agent(planning_steps=4_000)
    cells = [learner.state(bytes([i])) for i in range(4)]
    for i in range(3):  # a corridor walked once
        learner.learn(cells[i], 0, float(i == 2), cells[i + 1], i == 2)
    assert learner.q[0][0] == pytest.approx(0.95**2, abs=1e-6)
    assert learner.q[1][0] == pytest.approx(0.95, abs=1e-6)
    assert learner.q[2][0] == pytest.approx(1, abs=1e-6)
    assert learner.q[3] == [0, 0, 0, 0] and 3 not in learner.model  # the goal is never left


def test_states_are_planned_from_alike_however_often_they_were_seen():
    learner = agent(planning_steps=0)
    a, b = learner.state(b"a"), learner.state(b"b")
    for _ in range(99):
        learner.learn(a, 0, 0.0, a, False)
    learner.learn(b, 2, 0.0, b, False)
    seen = []
    learner.backup = lambda s, *_: seen.append(s) or 0.0
    object.__setattr__(learner.config, "planning_steps", 2_000)
    learner.learn(b, 2, 0.0, b, False)
    assert 0.45 < np.mean(np.array(seen) == a) < 0.55


def test_dyna_q_plus_wonders_about_what_it_has_not_tried():
    plain, plus = agent(planning_steps=500), agent(planning_steps=500, kappa=1e-2)
    for learner in (plain, plus):
        a = learner.state(b"a")
        for _ in range(4):
            learner.learn(a, 0, 0.0, a, False)
    assert plain.q[0] == [0, 0, 0, 0]
    assert min(plus.q[0][1:]) > plus.q[0][0]  # three actions were never tried
    assert plus.model[0][1] == Outcome(0.0, 0, False, 0)  # and are thought to lead nowhere


# Acting


def test_ties_are_broken_at_random_and_epsilon_is_for_training():
    learner = agent(epsilon=0.2)
    picks = [learner.act(show(0), (), "eval")[0].argmax() for _ in range(800)]
    assert np.bincount(picks, minlength=4).min() > 150
    state = learner.state(EYE[0].tobytes())
    learner.q[state][2] = 1.0
    assert {int(learner.act(show(0), (), "eval")[0].argmax()) for _ in range(50)} == {2}
    share = np.mean([learner.act(show(0), (), "train")[0].argmax() == 2 for _ in range(4_000)])
    assert share == pytest.approx(0.8 + 0.2 / 4, abs=0.03)


def test_looking_adds_no_state():
    learner = agent()
    learner.act(show(7), (), "train")
    assert learner.q == [] and learner.number == {}


@pytest.mark.parametrize(
    ("space", "words"), [(ActionSpace(2), "continuous numbers"), (ActionSpace(5, (2, 3)), "several choices")]
)
def test_other_actions_are_refused_in_a_sentence(space, words):
    with pytest.raises(ReverieError, match=words):
        DynaQ(SPACE, space)


def test_a_table_that_never_ends_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr("reverie.agents.dyna_q.LIMIT", 3)
    learner = agent()
    for i in range(3):
        learner.state(bytes([i]))
    with pytest.raises(ReverieError, match="come again"):
        learner.state(b"one more")


# A run


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(tmp_path):
    whole, half = (agent(kappa=1e-3, planning_steps=5) for _ in range(2))
    play(whole, 1), play(half, 1)
    checkpoint.save(tmp_path, 1, half.state_dict())
    other = agent(seed=5, kappa=1e-3, planning_steps=5)
    other.load_state_dict(checkpoint.load(tmp_path)[1])
    assert play(other, 3) == play(whole, 3)
    assert other.q == whole.q and other.model == whole.model and other.left == whole.left


@pytest.mark.parametrize("streams", [1, 3])
def test_each_row_is_learned_from_once_whatever_the_number_of_environments(streams):
    envs = [make_env("reverie/DynaMaze-v0", time_limit=3 + i) for i in range(streams)]
    replay, learner, rng = (
        Replay(SPACE, FOUR, 200, streams),
        agent(planning_steps=0),
        np.random.default_rng(0),
    )
    rows, actions, steps = [None] * streams, None, 0
    for k in range(31):
        for i, env in enumerate(envs):
            fresh = rows[i] is None or rows[i].is_last
            rows[i] = env.reset(0) if fresh else env.step(actions[i])
            steps += not fresh
        actions = FOUR.sample(rng, streams)
        for i, row in enumerate(rows):
            replay.add(row, actions[i], i)
        if k % 4 != 1:  # now and then an update comes late
            learner.update(learner.sample(replay, rng))
            learner.update(learner.sample(replay, rng))  # and often too early: nothing new, nothing learned
    assert learner.time == steps


def test_a_run_learns_from_every_step_and_goes_on(tmp_path):
    settings = dict(run=tmp_path / "run", time_limit=30, eval_every=0, eval_episodes=1)
    for steps in (60, 120):
        run = train("dyna_q", "reverie/DynaMaze-v0", steps=steps, **settings)
        assert read_json(run / "evaluation.json")["updates"] == steps - 1
    tables = checkpoint.load(run / "checkpoints")[1]["agent"]["tables"]
    assert tables["model"][:, 5].max() == 120 and tables["model"][:, 3].max() < len(tables["q"]) <= 47


@pytest.mark.slow
def test_a_run_learns_the_way(tmp_path):
    run = train("dyna_q", "reverie/DynaMaze-v0", run=tmp_path / "run", steps=3_000, eval_every=0)
    found = read_json(run / "evaluation.json")
    assert found["mean"] == 1.0 and max(found["lengths"]) <= 20


def test_the_figures_order_in_a_few_episodes():
    """More planning, fewer steps: the second and third episode together."""
    second = {
        n: np.sum([play(agent(seed, planning_steps=n), 3)[1:] for seed in range(3)]) for n in (0, 5, 50)
    }
    assert second[50] < second[5] < second[0]


def test_presets():
    assert presets.resolve("dyna_q", ["plus"]).kappa > 0
    assert presets.resolve("dyna_q", []).planning_steps == 50
    assert all(table.numel() == 0 for table in agent().state_dict()["tables"].values())
