"""Solving levels against simulated steps: what counts as one, and that whoever solves a level has solved it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reverie.envs.base import Rules
from reverie.envs.sokoban_levels import solve
from reverie.reproduce import levels as ways
from reverie.reproduce.levels import (
    Levels,
    carried_out,
    chance,
    new_levels,
    once,
    retries,
    solve_boxes,
    solve_levels,
    tree,
)
from reverie.types import ReverieError

SMALL = "reverie/SokobanSmall-v0"


@pytest.fixture(scope="module")
def six():
    return new_levels(SMALL, 6, 40, 0)


def board(picture):
    return picture.argmax(-1).astype(np.uint8)


class Guide:
    """Takes each level's shortest way, in whatever it is told follows; ``tells`` is its model."""

    actions, obs_space, config = 5, ("image",), SimpleNamespace(horizon=3)
    choices = torch.eye(5)

    def __init__(self, levels, tells, lost=()):
        self.levels, self.tells, self.acted, self.first = levels, tells, 0, 0
        self.way = {}  # from each board along the ways, what to do
        for i, picture in enumerate(levels.pictures):
            for action in [] if i in lost else solve(board(picture)).actions:
                self.way[picture.tobytes()] = action
                picture = levels.rules.step(picture[None], np.array([action]))[0][0]

    def initial(self, n):
        return ()

    def act(self, obs, carry, mode):
        assert mode == "eval"
        self.first, self.acted = self.first + int(obs["is_first"].sum()), self.acted + len(obs["image"])
        return np.eye(5)[[self.way.get(picture.tobytes(), 0) for picture in obs["image"]]], carry

    def see(self, pictures):
        return torch.from_numpy(pictures / 255)

    def predict(self, frame, action):
        return self.tells(self.levels.rules, frame, action)


def truth(rules, frame, action):
    seen, reward = rules.step((frame * 255).byte().numpy(), action.argmax(-1).numpy())
    return torch.from_numpy(seen / 255), None, torch.from_numpy(reward)


def lie(rules, frame, action):
    return frame, None, torch.full((len(frame),), 10.9)


def despair(rules, frame, action):
    return frame, None, torch.full((len(frame),), -0.1)


def test_playing_costs_a_future_for_each_action_and_step(six):
    agent = Guide(six, truth, lost=(2,))
    expected = [15.0 * len(solve(board(p)).actions) for p in six.pictures]
    expected[2] = np.inf
    assert once(agent, six).tolist() == expected


def test_trying_in_a_true_model_first_costs_a_step_more_each(six):
    expected = [16.0 * len(solve(board(p)).actions) for p in six.pictures]
    assert retries(Guide(six, truth), six, 3).tolist() == expected


def test_what_works_in_a_wrong_model_need_not_work(six):
    agent = Guide(six, lie)
    assert np.isinf(retries(agent, six, 3)).all()
    assert agent.acted == 6  # one step each, and off it went


def test_whoever_finds_nothing_in_its_model_plays_after_all(six):
    agent = Guide(six, despair)
    expected = [2 * 40 * 16 + 15.0 * len(solve(board(p)).actions) for p in six.pictures]
    assert retries(agent, six, 2).tolist() == expected
    assert agent.first == 6 * 3


def test_actions_are_carried_out_up_to_their_end(six):
    action = np.full((6, 40), -1)
    for i, picture in enumerate(six.pictures):
        found = solve(board(picture)).actions
        action[i, : len(found)] = found
    assert carried_out(six, action).all()
    assert not carried_out(six, np.where(np.arange(40) < 1, action, -1)).any()
    assert carried_out(six.take(np.zeros(0, int)), action[:0]).shape == (0,)


def test_a_search_asks_nothing_twice_and_finds_what_there_is(six):
    """Every level is solved in the end."""
    asked: list = []

    def step(seen, action):
        asked.extend((p.tobytes(), int(a)) for p, a in zip(seen, action, strict=True))
        return six.rules.step(seen, action)

    three = six.take(np.arange(2, 5))._replace(rules=Rules(step, six.rules.over))
    blind = lambda seen: np.zeros(len(seen))
    cost = tree(blind, three, 20_000)
    assert np.isfinite(cost).all()
    assert len(asked) == len(set(asked)) == cost.sum()
    assert (cost >= [len(solve(board(p)).actions) for p in three.pictures]).all()
    few = int(cost.min())
    assert np.array_equal(tree(blind, three, few), np.where(cost <= few, cost, np.inf))


def test_a_search_ends_where_nothing_is_left_to_see(six):
    """The box in the corner stays there, and the player can be in one of the other cells: nothing else to find."""
    lost = np.zeros((7, 7), np.uint8)
    lost[2:4, 2:5] = 1  # two rows of floor
    lost[2, 2], lost[3, 3], lost[3, 4] = 4, 2, 5  # box, target, player
    assert solve(lost) is None
    asked: list = []

    def step(seen, action):
        asked.append(int(action[0]))
        return six.rules.step(seen, action)

    picture = (255 * np.eye(7, dtype=np.uint8))[lost][None]
    stuck = Levels(picture, Rules(step, six.rules.over), 40)
    assert np.isinf(tree(lambda seen: np.zeros(len(seen)), stuck, 10_000)).all()
    assert len(asked) == 5 * 5  # five actions in five cells


def test_a_value_that_knows_is_of_use(six):
    """Leaves valued by how far they are from solved."""

    def far(seen):
        found = [
            solve(board(p)) if not over else None for p, over in zip(seen, six.rules.over(seen), strict=True)
        ]
        return np.array([-20.0 if one is None else 10 - 0.5 * len(one.actions) for one in found])

    one = six.take(np.arange(1))
    known, blind = (tree(v, one, 600)[0] for v in (far, lambda seen: np.zeros(len(seen))))
    assert known < 0.5 * blind


def test_chance_begins_again_and_is_seeded(six):
    cost = chance(six, 900, seed=1)
    assert np.array_equal(cost, chance(six, 900, seed=1))
    assert ((cost <= 900) | np.isinf(cost)).all() and np.isfinite(chance(six, 4_000, seed=2)).any()


def test_curves_end_where_they_were_asked_to(tmp_path, monkeypatch):
    monkeypatch.setattr(ways, "chance", lambda levels, within, seed: np.array([20, 300, np.inf, 4]))
    solve_levels("chance", 500, SMALL, tmp_path, 0, dict(eval_episodes=4, time_limit=40))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    x, y = [row["simulated"] for row in rows], [row["eval/solved"] for row in rows]
    assert (x[0], x[-1]) == (10, 500) and (y[0], y[-1]) == (0.25, 0.75) and y == sorted(y)
    assert [b for a, b in zip(x, y, strict=True) if a >= 300] == [0.75] * sum(a >= 300 for a in x)


def test_levels_of_one_box_and_more_are_played(tmp_path, monkeypatch):
    seen = []

    class Still:
        obs_space = ("image",)

        def initial(self, n):
            return ()

        def act(self, obs, carry, mode):
            seen.append({int(n) for n in (obs["image"][..., 4] > 0).sum((1, 2))})
            return np.eye(5)[np.zeros(len(obs["image"]), int)], carry

    monkeypatch.setattr(ways, "load", lambda folder: SimpleNamespace(agent=Still()))
    asked = dict(eval_episodes=3, time_limit=2, world="there")
    solve_boxes(3, SMALL, tmp_path, 0, asked)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["boxes"], row["eval/solved"]) for row in rows] == [(1, 0.0), (2, 0.0), (3, 0.0)]
    assert seen == [{1}, {1}, {2}, {2}, {3}, {3}]


def test_worlds_without_rules_are_refused():
    with pytest.raises(ReverieError, match="reverie/MiniPacman-v0 shows none"):
        new_levels("reverie/MiniPacman-v0", 2, 40, 0)
