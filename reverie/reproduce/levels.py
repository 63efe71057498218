"""Levels of Sokoban solved, against the env steps that were simulated for each, and of other numbers of boxes than
those learned with (I2A, Sec. 4.4).

Four ways, in levels that nobody trained on, each with so many steps of the clock to solve one::

    once       I2A plays them: for every step it takes, it imagines H for each action
    retries    it plays in its model first, until an attempt seems to solve the level, and then does that
    tree       a search through the true rules, its leaves valued by a model-free agent
    chance     actions by chance under the true rules, from the beginning again and again

What is counted is how often a model or the rules were asked for what follows: whole boards, one at a time. ``once``
and ``retries`` then act for real, and their luck counts; a search through the true rules can do what it found.

The paper prints no constants of its tree search. Here it is UCT: actions never tried come first, then the highest
mean return, scaled to 0..1 over the tree, with 0.05 sqrt(ln N / n) on top. Boards that are the same are one node, and a
step that was simulated once is known for good; where that leads nowhere new, the board of the highest value is next.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from reverie.agents.i2a import picture
from reverie.envs.base import Rules
from reverie.envs.batch import batched
from reverie.media import atomic
from reverie.reproduce.runs import Clock
from reverie.run.trained import load
from reverie.types import ReverieError

ATTEMPTS = 16  # App. D.2
SOLVED = 5.0  # an imagined reward above this is that of the last box: the next lower is 0.9, this one 10.9
EXPLORE = 0.05  # of 0, 0.05, 0.1, 0.3, 0.7 and 1.4 what solved most, in 40 levels of 7x7
LEAST = 10  # simulated steps where the curves begin
WAYS = ("once", "retries", "tree", "chance")
BOXES = Clock("boxes", "boxes", "boxes_every", "boxes in a level", "solved")
CLOCKS = {way: Clock(way, "simulated", f"{way}_every", "simulated steps a level", "solved") for way in WAYS}


class Levels(NamedTuple):
    """n levels, and all there is to know of them."""

    pictures: np.ndarray  # "n h w c" uint8, as an agent sees them
    rules: Rules
    limit: int  # steps of an episode

    def take(self, rows: np.ndarray) -> Levels:
        return self._replace(pictures=self.pictures[rows])


def new_levels(env: str, n: int, limit: int, seed: int, **other: Any) -> Levels:
    """``n`` levels of the kind of ``env`` from a bank that no run learns from; ``other`` settings may differ."""
    make = batched(env)
    if make is None or make(1, **gymnasium.spec(env).kwargs).rules is None:
        raise ReverieError(f"levels are solved by their rules, and {env} shows none; use reverie/Sokoban-v0")
    worlds = make(n, **{**gymnasium.spec(env).kwargs, **other}, level_seed=1, levels=max(n, 1_000))
    obs, _ = worlds.reset(seed=seed)
    return Levels(
        obs * np.uint8(255 if worlds.single_observation_space.high.max() == 1 else 1), worlds.rules, limit
    )


# By an agent that imagines


class Played(NamedTuple):
    """An episode in each of n levels."""

    action: np.ndarray  # "n limit", -1 after the end
    solved: np.ndarray  # "n" bool

    @property
    def length(self) -> np.ndarray:
        return (self.action >= 0).sum(1)


def play(
    agent: Any, levels: Levels, follow: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> Played:
    """``follow`` says which pictures come next, and in which of them the level is solved."""
    n, seen, (key,) = len(levels.pictures), levels.pictures.copy(), agent.obs_space
    action, solved = np.full((n, levels.limit), -1), np.zeros(n, bool)
    for t in range(levels.limit):
        rows = np.flatnonzero(~solved)
        if not len(rows):
            break
        obs = {key: seen[rows], "is_first": np.full(len(rows), t == 0)}
        chosen, _ = agent.act(obs, agent.initial(len(rows)), "eval")
        action[rows, t] = chosen.argmax(1)
        seen[rows], solved[rows] = follow(seen[rows], action[rows, t])
    return Played(action, solved)


def in_earnest(levels: Levels) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """What follows by the true rules, for ``play``."""

    def follow(seen: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        after, _ = levels.rules.step(seen, action)
        return after, levels.rules.over(after)

    return follow


@torch.no_grad()
def _imagined(agent: Any, seen: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What follows by the agent's model, for ``play``."""
    frame, _, reward = agent.predict(agent.see(seen), agent.choices[torch.as_tensor(action)])
    return picture(frame), (reward > SOLVED).cpu().numpy()


def once(agent: Any, levels: Levels) -> np.ndarray:
    """The simulated steps that solved each level, "n"; infinite where it was not."""
    played = play(agent, levels, in_earnest(levels))
    return np.where(played.solved, played.length * agent.actions * agent.config.horizon, np.inf)


def retries(agent: Any, levels: Levels, attempts: int = ATTEMPTS) -> np.ndarray:
    """The same, if each level is tried in the model first. The first attempt that seems to solve it is carried out,
    whether it does or not; where none does, the level is played as it is."""
    n, each = len(levels.pictures), agent.actions * agent.config.horizon + 1
    spent, cost, left = np.zeros(n), np.full(n, np.inf), np.arange(n)
    for _ in range(attempts):
        if not len(left):
            break
        tried = play(agent, levels.take(left), lambda seen, action: _imagined(agent, seen, action))
        spent[left] += tried.length * each
        hopeful = left[tried.solved]
        works = carried_out(levels.take(hopeful), tried.action[tried.solved])
        cost[hopeful[works]] = spent[hopeful[works]]
        left = left[~tried.solved]
    if len(left):
        cost[left] = spent[left] + once(agent, levels.take(left))
    return cost


def carried_out(levels: Levels, action: np.ndarray) -> np.ndarray:
    """Whether these actions "n limit" solve their levels, "n" bool."""
    seen = levels.pictures
    for t in range(action.shape[1]):
        going = np.flatnonzero(action[:, t] >= 0)
        if len(going):
            seen = seen.copy()
            seen[going] = levels.rules.step(seen[going], action[going, t])[0]
    return levels.rules.over(seen)


# By search through the true rules


class Node:
    """A board, and for each action what it led to: the next node, its reward, visits and the sum of returns."""

    __slots__ = ("actions", "after", "depth", "picture", "reward", "total", "value", "visits")

    def __init__(self, seen: np.ndarray, value: float, depth: int, actions: list[int]):
        self.picture, self.value = seen, value
        self.depth = depth  # the fewest steps that are known to lead here
        self.actions, n = actions, len(actions)  # in the order in which they are tried
        self.after: list[Node | None] = [None] * n
        self.reward, self.visits, self.total = [0.0] * n, [0] * n, [0.0] * n

    @property
    def untried(self) -> int | None:
        return next((action for action in self.actions if self.after[action] is None), None)


class Tree:
    """UCT from one board. ``descend`` says what to simulate next, ``learn`` takes in what came of it."""

    def __init__(self, root: np.ndarray, actions: int, limit: int, discount: float, seed: int):
        self.limit, self.discount, self.rng = limit, discount, np.random.default_rng(seed)
        self.choices = actions
        self.nodes: dict[bytes, Node] = {}  # by what the board looks like
        self.count = itertools.count()
        self.new: list[tuple[float, int, Node]] = []  # a heap, the highest value first; some are new no more
        self.root = self._node(root, 0.0, 0)
        self.low, self.high = math.inf, -math.inf
        self.path: list[tuple[Node, int]] = []

    def _node(self, seen: np.ndarray, value: float, depth: int) -> Node:
        key = seen.tobytes()
        if key not in self.nodes:
            self.nodes[key] = Node(seen, value, self.limit, self.rng.permutation(self.choices).tolist())
        node = self.nodes[key]
        if depth < node.depth:
            if node.depth == self.limit and node.untried is not None:
                heapq.heappush(self.new, (-node.value, next(self.count), node))
            node.depth = depth
        return node

    def descend(self, tries: int = 3) -> tuple[np.ndarray, int] | None:
        """A board and an action that were never simulated together; None if none is left.

        Where a few ways down end among what is known, it is the board of the highest value.
        """
        for _ in range(tries):
            node, self.path, on_path = self.root, [], {id(self.root)}
            while len(self.path) < self.limit and (action := self._pick(node, on_path)) is not None:
                self.path.append((node, action))
                after = node.after[action]
                if after is None:
                    return node.picture, action
                node = after
                on_path.add(id(node))
            self._back_up(node.value)
        while self.new:
            node = self.new[0][-1]
            if (action := node.untried) is not None:
                self.path = [(node, action)]
                return node.picture, action
            heapq.heappop(self.new)
        return None

    def _pick(self, node: Node, on_path: set[int]) -> int | None:
        if (untried := node.untried) is not None:
            return untried
        best, highest = None, -math.inf
        total, scale = sum(node.visits), max(self.high - self.low, 1e-8)
        for action in node.actions:
            n = node.visits[action]
            if id(node.after[action]) in on_path:
                continue
            mean = (node.total[action] / n - self.low) / scale if n else 1.0
            worth = mean + EXPLORE * math.sqrt(math.log(total + 1) / (n + 1e-8))
            if worth > highest:
                best, highest = action, worth
        return best

    def learn(self, seen: np.ndarray, reward: float, value: float) -> None:
        """The step that ``descend`` named led there."""
        node, action = self.path[-1]
        after = self._node(seen, value, node.depth + 1)
        node.reward[action] = reward
        node.after[action] = after
        if after is node:  # nothing moved: never again
            node.actions.remove(action)
            self.path.pop()
        self._back_up(after.value)

    def _back_up(self, worth: float) -> None:
        for node, action in reversed(self.path):
            worth = node.reward[action] + self.discount * worth
            node.visits[action] += 1
            node.total[action] += worth
            mean = node.total[action] / node.visits[action]
            self.low, self.high = min(self.low, mean), max(self.high, mean)


def tree(
    value: Callable[[np.ndarray], np.ndarray],
    levels: Levels,
    within: int,
    actions: int = 5,
    discount: float = 0.99,
    seed: int = 0,
) -> np.ndarray:
    """The simulated steps after which a search has solved each level, "n"; infinite if not ``within`` so many.
    ``value`` of pictures "m h w c" is "m". All searches take a step together."""
    n = len(levels.pictures)
    cost, spent = np.full(n, np.inf), np.zeros(n, np.int64)
    trees = {i: Tree(levels.pictures[i], actions, levels.limit, discount, seed + i) for i in range(n)}
    while trees:
        asked = {i: one for i, it in trees.items() if (one := it.descend()) is not None}
        trees = {i: trees[i] for i in asked}  # one that has seen all there is stops
        if not asked:
            break
        seen = np.stack([board for board, _ in asked.values()])
        after, reward = levels.rules.step(seen, np.array([action for _, action in asked.values()]))
        over, worth = levels.rules.over(after), value(after)
        for k, i in enumerate(asked):
            spent[i] += 1
            if over[k]:
                cost[i] = spent[i]
            if over[k] or spent[i] >= within:
                del trees[i]
                continue
            trees[i].learn(after[k], float(reward[k]), float(worth[k]))
    return cost


def chance(levels: Levels, within: int, actions: int = 5, seed: int = 0) -> np.ndarray:
    """The same for actions by chance, each episode from the level's beginning."""
    rng, n = np.random.default_rng(seed), len(levels.pictures)
    cost, seen, left = np.full(n, np.inf), levels.pictures.copy(), np.arange(n)
    for t in range(within):
        if not len(left):
            break
        if t % levels.limit == 0:
            seen = levels.pictures[left].copy()
        seen, _ = levels.rules.step(seen, rng.integers(actions, size=len(left)))
        over = levels.rules.over(seen)
        cost[left[over]] = t + 1
        left, seen = left[~over], seen[~over]
    return cost


# As runs of a claim


def solve_levels(
    way: str, within: int, env: str, run_dir: Path, seed: int, overrides: dict[str, Any]
) -> None:
    """One of ``WAYS``, with ``eval_episodes`` levels of ``time_limit`` steps and an agent from the run ``world``;
    into ``metrics.jsonl`` goes the share of levels solved within so many simulated steps."""
    begin = time.perf_counter()
    levels = new_levels(env, overrides["eval_episodes"], overrides["time_limit"], seed)
    if way == "chance":
        cost = chance(levels, within, seed=seed)
    else:
        agent: Any = load(overrides["world"]).agent
        if way == "tree":
            (key,) = agent.obs_space

            @torch.no_grad()
            def value(seen: np.ndarray) -> np.ndarray:
                return agent.net(agent.see({key: seen}))[1].cpu().numpy()

            cost = tree(value, levels, within, agent.act_space.size, agent.config.discount, seed)
        else:
            cost = once(agent, levels) if way == "once" else retries(agent, levels)
    steps = np.unique(np.geomspace(min(LEAST, within), within, 80).round().astype(int))
    _write(run_dir, begin, [{"simulated": int(x), "eval/solved": float((cost <= x).mean())} for x in steps])


def solve_boxes(most: int, env: str, run_dir: Path, seed: int, overrides: dict[str, Any]) -> None:
    """Levels of 1, 2, .. ``most`` boxes, otherwise as those that the agent of the run ``world`` learned in, played by
    it once each; the share that it solved of each kind."""
    begin, agent, rows = time.perf_counter(), load(overrides["world"]).agent, []
    for boxes in range(1, most + 1):
        levels = new_levels(env, overrides["eval_episodes"], overrides["time_limit"], seed, boxes=boxes)
        solved = play(agent, levels, in_earnest(levels)).solved
        rows.append({"boxes": boxes, "eval/solved": float(solved.mean())})
    _write(run_dir, begin, rows)


def _write(run_dir: Path, begin: float, rows: list[dict[str, Any]]) -> None:
    counted = {"env_steps": 0, "updates": 0, "seconds": round(time.perf_counter() - begin, 3)}
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic(run_dir / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps({**counted, **row}) + "\n" for row in rows), "utf-8")
