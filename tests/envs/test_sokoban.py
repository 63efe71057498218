"""Sokoban against the rules as tables, batches against single games, and what search and files say of levels."""

import warnings
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st

import reverie.envs  # noqa: F401  (registers the worlds)
from reverie.envs import from_gymnasium, make_env, sokoban, sokoban_levels
from reverie.envs.compiled import streams
from reverie.envs.sokoban import Sokoban, Sokobans
from reverie.envs.sokoban_levels import (
    bank,
    check,
    dead_cells,
    draw,
    make_level,
    parse,
    read_boxoban,
    solve,
)
from reverie.types import ReverieError

NOTHING, UP, DOWN, LEFT, RIGHT = range(5)


def walled(row: str) -> np.ndarray:
    """The corridor ``row`` in a level, with a box and a target below that it has nothing to do with."""
    width = len(row) + 2
    return parse(["#" * width, f"#{row}#", f"#{'$.':#<{width - 2}}#", "#" * width])


def game(level: np.ndarray, **options: Any) -> Sokobans:
    env = Sokobans(1, levels=level[None], **options)
    env.reset(seed=0)
    return env


def transition(row: str, action: int, after: str) -> tuple[float, bool]:
    """Take ``action`` in the corridor ``row``; its outcome must look like ``after``."""
    env = game(walled(row))
    _, reward, terminated, truncated, _ = env.step([action])
    assert draw(env.cells.reshape(env.height, env.width)).splitlines()[1][1 : 1 + len(row)] == after
    assert not truncated
    return reward[0], terminated[0]


@pytest.mark.parametrize(
    ("before", "after", "reward"),
    [
        ("#@ #", "# @#", -0.1),
        ("#@#", "#@#", -0.1),
        ("#@$ .#", "# @$.#", -0.1),
        ("#@$#.#", "#@$#.#", -0.1),
        ("#@$$ ..#", "#@$$ ..#", -0.1),
        ("#@$*  .#", "#@$*  .#", -0.1),
        ("#@$.#", "# @*#", 0.9),
        ("#@* #", "# +$#", -1.1),
        ("#@*.$#", "# +*$#", -0.1),
        ("#@.$#", "# +$#", -0.1),
        ("#+ $#", "#.@$#", -0.1),
        ("#+* $#", "#.+$$#", -1.1),
    ],
)
def test_transitions_to_the_right(before: str, after: str, reward: float) -> None:
    assert transition(before, RIGHT, after) == (reward, False)
    assert transition(before[::-1], LEFT, after[::-1]) == (reward, False)


@pytest.mark.parametrize(("action", "back"), [(DOWN, UP), (UP, DOWN)])
def test_up_and_down_are_right_and_left_on_end(action: int, back: int) -> None:
    level = parse(["########", "#@$ . .#", "#   $  #", "########"]).T
    level = np.ascontiguousarray(level if action == DOWN else level[::-1])
    env = game(level)
    assert [env.step([a])[1][0] for a in (action, action, back, back)] == [-0.1, 0.9, -0.1, -0.1]
    assert env.missing[0] == 1


def test_the_last_box_ends_it() -> None:
    env = game(parse(["#####", "#@$.#", "#####"]))
    _, reward, terminated, truncated, _ = env.step([RIGHT])
    assert (reward[0], terminated[0], truncated[0]) == (10.9, True, False)


def test_doing_nothing_is_a_step() -> None:
    level = walled("@$.")
    env = game(level)
    obs, reward, *_ = env.step([NOTHING])
    assert reward[0] == -0.1 and np.array_equal(env.cells[0], level.ravel()) and env.clock[0] == 1
    assert np.array_equal(obs[0].argmax(-1), level)


def test_the_clock_truncates_and_a_level_begins() -> None:
    env = gymnasium.make_vec("reverie/SokobanSmall-v0", 3, levels=20)
    first, _ = env.reset(seed=1)
    total = np.zeros(3)
    for step in range(1, 121):
        obs, reward, terminated, truncated, _ = env.step(np.zeros(3, int))
        total += reward
        assert truncated.all() == (step == 120) and not terminated.any()
    assert np.allclose(total, -12.0) and np.array_equal(obs, first)
    obs, reward, terminated, truncated, _ = env.step(np.zeros(3, int))
    assert not reward.any() and not truncated.any() and not np.array_equal(obs, first)


def test_solving_on_the_last_step_is_no_truncation() -> None:
    env = game(parse(["#####", "#@$.#", "#####"]), max_episode_steps=1)
    _, _, terminated, truncated, _ = env.step([RIGHT])
    assert terminated[0] and not truncated[0]


def test_four_boxes_in_n_steps_without_a_loss_return_14_less_a_tenth_of_n() -> None:
    rows = ["#########", *["#@$.    #" if k == 0 else "# $.    #" for k in range(4)], "#########"]
    level = parse(rows)
    solution = solve(level)
    assert solution is not None
    env = game(level)
    total = sum(env.step([a])[1][0] for a in solution.actions)
    assert total == pytest.approx(14 - 0.1 * len(solution.actions)) and len(solution.actions) == 10


@given(st.integers(0, 10**6), st.integers(5, 9), st.integers(5, 9), st.integers(1, 3))
def test_rewards_and_cells_of_random_play(seed: int, height: int, width: int, boxes: int) -> None:
    """Against the rules said once more, slowly: rewards from the boxes in place before and after."""
    level = make_level(streams([seed])[0], height, width, boxes)
    env = game(level, max_episode_steps=None)
    actions = np.random.default_rng(seed).integers(5, size=60)
    for action in actions:
        before = env.cells[0].copy()
        obs, reward, terminated, _, _ = env.step([action])
        after = env.cells[0]
        placed = [(cells == sokoban_levels.BOX_ON_TARGET).sum() for cells in (before, after)]
        solved = placed[1] == boxes
        assert reward[0] == pytest.approx(-0.1 + placed[1] - placed[0] + 10 * solved)
        assert round(reward[0], 6) in (-1.1, -0.1, 0.9, 10.9)
        assert (before != after).sum() <= 3 and terminated[0] == solved
        assert np.array_equal(obs[0].reshape(-1, 7), np.eye(7, dtype=np.uint8)[after])
        assert np.isin(after, (3, 4)).sum() == boxes and np.isin(after, (5, 6)).sum() == 1
        assert np.isin(after, (2, 3, 6)).sum() == boxes and ((after == 0) == (before == 0)).all()
        if solved:
            break


# One game and many ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("obs", ["planes", "pixels"])
@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
@pytest.mark.parametrize("levels", [50, 0])
def test_a_batch_is_single_games_side_by_side(obs: str, mode: AutoresetMode, levels: int) -> None:
    options = {"levels": levels, "obs": obs, "max_episode_steps": 9}
    one = lambda: gymnasium.make("reverie/SokobanSmall-v0", disable_env_checker=True, **options)
    singles = SyncVectorEnv([one] * 5, autoreset_mode=mode)
    batch = gymnasium.make_vec("reverie/SokobanSmall-v0", 5, autoreset_mode=mode, **options)
    assert batch.metadata["autoreset_mode"] is mode
    assert batch.single_observation_space == singles.single_observation_space
    rng = np.random.default_rng(0)
    assert np.array_equal(singles.reset(seed=7)[0], batch.reset(seed=7)[0])
    for _ in range(60):
        actions = rng.integers(5, size=5)
        theirs, ours = singles.step(actions), batch.step(actions)
        for one_part, part in zip(theirs[:3], ours[:3], strict=True):
            assert np.array_equal(one_part, part)
        assert np.array_equal(theirs[3] & ~theirs[2], ours[3])  # a solved level was not cut off
        if mode is AutoresetMode.SAME_STEP and "final_obs" in theirs[4]:
            assert np.array_equal(theirs[4]["_final_obs"], ours[4]["_final_obs"])
            for a, b in zip(theirs[4]["final_obs"], ours[4]["final_obs"], strict=True):
                assert (a is None and b is None) or np.array_equal(a, b)


def test_disabled_autoreset_asks_for_a_reset() -> None:
    env = Sokobans(3, size=7, boxes=1, levels=20, max_episode_steps=4, autoreset_mode="Disabled")
    env.reset(seed=0)
    for _ in range(4):
        obs, _, _, truncated, _ = env.step(np.zeros(3, int))
    assert truncated.all()
    with pytest.raises(ReverieError, match="3 of 3 episodes ended"):
        env.step(np.zeros(3, int))
    env.clock[1] = 0
    again, _ = env.reset(options={"reset_mask": np.array([True, False, True])})
    assert np.array_equal(again[1], obs[1]) and env.over.tolist() == [False, True, False]
    with pytest.raises(ReverieError, match="the first is row 1"):
        env.step(np.zeros(3, int))


def test_seeds_decide() -> None:
    def episode(seed: int | list[int]) -> list[np.ndarray]:
        env = gymnasium.make_vec("reverie/SokobanSmall-v0", 4, levels=100, max_episode_steps=5)
        rows = [env.reset(seed=seed)[0]]
        return rows + [env.step(np.full(4, k % 5))[0] for k in range(30)]

    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert same(episode(3), episode(3)) and same(episode(3), episode([3, 4, 5, 6]))
    assert not same(episode(3), episode(4))
    one, two = (np.stack(episode(seed)) for seed in (3, 4))
    assert np.array_equal(one[:, 1], two[:, 0])  # row i has seed + i


def test_gymnasiums_checker() -> None:
    for obs in ("planes", "pixels"):
        env = gymnasium.make("reverie/SokobanSmall-v0", levels=20, obs=obs, render_mode="rgb_array").unwrapped
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env)
        assert env.render().shape == (56, 56, 3) and env.render().dtype == np.uint8
    text = gymnasium.make("reverie/SokobanSmall-v0", levels=20, render_mode="ansi")
    text.reset(seed=0)
    assert text.render() == text.unwrapped.text() and set(text.render()) <= set("# .$@\n")


def test_pictures_are_sprites_of_the_planes() -> None:
    env = Sokobans(4, size=(6, 8), boxes=2, levels=30, obs="pixels", render_mode="rgb_array")
    env.reset(seed=0)
    for step in range(40):
        pixels, *_ = env.step(np.full(4, step % 5))
        assert pixels.shape == (4, 48, 64, 3)
        for picture, cells in zip(pixels, env.cells.reshape(4, 6, 8), strict=True):
            tiles = picture.reshape(6, 8, 8, 8, 3).swapaxes(1, 2)
            assert np.array_equal(tiles, sokoban.SPRITES[cells])
    frames = env.render()
    assert np.array_equal(np.stack(frames), pixels)
    assert len({sprite.tobytes() for sprite in sokoban.SPRITES}) == 7


def test_observations_are_not_overwritten() -> None:
    env = Sokobans(2, size=7, boxes=2, levels=20)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    for action in (1, 2, 3, 4):
        env.step([action, action])
    assert np.array_equal(first, kept)


def test_observations_may_be_overwritten_if_asked() -> None:
    options = {"size": 7, "boxes": 1, "levels": 20, "max_episode_steps": 3, "autoreset_mode": "SameStep"}
    env, other = Sokobans(5, copy=False, **options), Sokobans(5, **options)
    first, _ = env.reset(seed=0)
    other.reset(seed=0)
    kept = []
    for actions in np.random.default_rng(0).integers(5, size=(30, 5)):
        obs, *_, info = env.step(actions)
        theirs, *_, same = other.step(actions)
        assert obs.base is first.base and np.array_equal(obs, theirs)
        kept += [pair for pair in zip(info.get("final_obs", []), same.get("final_obs", []), strict=True)]
    assert kept and all(np.array_equal(a, b) for a, b in kept if a is not None)  # last rows are not


@pytest.mark.parametrize("obs", ["planes", "pixels"])
def test_the_rules_say_what_follows_from_a_picture(obs: str) -> None:
    """Along solutions, and of steps beside them: the next pictures, their rewards, and the end."""
    for level in bank(3, 7, 7, 2):
        env = from_gymnasium(Sokoban(levels=level[None], obs=obs), image_size=None)
        rules, row = env.rules, env.reset(0)
        assert rules is not None
        taken = [NOTHING, *solve(level).actions]
        for k in range(len(taken)):
            (seen,) = row.obs.values()
            assert not rules.over(seen[None])[0]
            after, reward = rules.step(seen[None].repeat(5, 0), np.arange(5))
            for other in range(5):
                env.reset(0)
                for one in [*taken[:k], other]:
                    row = env.step(np.eye(5, dtype=np.float32)[one])
                assert np.array_equal(after[other], *row.obs.values())
                assert reward[other] == row.reward and rules.over(after)[other] == row.is_terminal
            env.reset(0)
            for one in taken[: k + 1]:
                row = env.step(np.eye(5, dtype=np.float32)[one])
        assert row.is_terminal
        (seen,) = row.obs.values()
        still, nothing = rules.step(seen[None].repeat(5, 0), np.arange(5))
        assert (still == seen).all() and not nothing.any()  # it is over


def test_only_pictures_that_show_all_have_rules() -> None:
    shown = dict(image_size=None)
    assert make_env("reverie/SokobanSmall-v0", **shown, time_limit=9).rules is not None
    assert make_env("reverie/SokobanSmall-v0", **shown, pixels=True).rules is not None
    assert make_env("reverie/Sokoban-v0", image_size=80, pixels=True).rules is not None
    assert make_env("reverie/SokobanSmall-v0", **shown, action_repeat=2).rules is None
    assert make_env("reverie/SokobanSmall-v0", image_size=14).rules is None
    assert make_env("reverie/MiniPacman-v0", **shown).rules is None  # where ghosts are going is not shown
    rules = make_env("reverie/SokobanSmall-v0", **shown).rules
    assert rules is not None
    wall = np.zeros((1, 7, 7, 7), np.uint8)
    wall[..., 0] = 255
    for strange in (np.zeros_like(wall), wall):  # nothing in any cell; no player
        with pytest.raises(ReverieError, match="these pictures are none of Sokoban"):
            rules.step(strange, np.zeros(1, np.int64))


def test_a_copied_state_goes_the_same_way() -> None:
    options = {"size": 7, "boxes": 2, "levels": 40, "max_episode_steps": 11}
    env, other = Sokobans(6, **options), Sokobans(3, **options)
    env.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(15):
        env.step(rng.integers(5, size=6))
    state, seen = env.get_state(), env.look()
    rows = np.array([4, 4, 1])
    other.set_state(env.get_state(rows))
    assert np.array_equal(other.look(), seen[rows])
    actions = rng.integers(5, size=(30, 6))
    future = [env.step(a)[:4] for a in actions]
    theirs = [other.step(a[rows])[:4] for a in actions]
    env.set_state(state)
    assert np.array_equal(env.look(), seen)
    again = [env.step(a)[:4] for a in actions]
    for a, b, c in zip(future, again, theirs, strict=True):
        for x, y, z in zip(a, b, c, strict=True):
            assert np.array_equal(x, y) and np.array_equal(x[rows], z)
    env.set_state({name: part[:2] for name, part in state.items()}, np.array([5, 3]))
    assert np.array_equal(env.look()[[5, 3]], seen[:2])
    with pytest.raises(ReverieError, match="3 rows need 'cells' of shape"):
        other.set_state(state)
    with pytest.raises(ReverieError, match="a state of this world has"):
        other.set_state({"cells": state["cells"]})


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        ([5, 0], "from 0 to 4, got 0 to 5"),
        ([0, -1], "got -1 to 0"),
        ([0.0, 1.0], "whole numbers"),
        ([1], "as many"),
    ],
)
def test_bad_actions_get_one_sentence(actions: list, words: str) -> None:
    env = Sokobans(2, size=7, boxes=1, levels=5)
    with pytest.raises(ReverieError, match="call reset"):
        env.step([0, 0])
    env.reset(seed=0)
    with pytest.raises(ReverieError, match=words):
        env.step(actions)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 3, "boxes": 1}, "3 by 3 cells with 1 boxes has no solvable level"),
        ({"size": 3, "boxes": 1, "levels": 0}, "no solvable level"),
        ({"size": (4, 2), "boxes": 1}, "no solvable level"),
        ({"size": 5, "boxes": 4}, "no solvable level was found|no solvable level of"),
        ({"boxes": 0}, "no solvable level"),
        ({"obs": "text"}, "planes or pixels"),
        ({"levels": -1}, "n >= 1"),
        ({"num_envs": 0, "levels": 5}, "num_envs >= 1"),
        ({"max_episode_steps": 0, "levels": 5}, "max_episode_steps >= 1"),
        ({"render_mode": "human", "levels": 5}, "rgb_array, ansi"),
        ({"nodes": 1}, "nodes >= 2"),
    ],
)
def test_bad_settings_get_one_sentence(options: dict, words: str) -> None:
    with pytest.raises(ReverieError, match=words):
        Sokobans(**options)


def test_a_world_model_may_live_here() -> None:
    env = make_env("reverie/SokobanSmall-v0", image_size=None)
    row = env.reset(3)
    assert row.obs["image"].shape == (7, 7, 7) and set(np.unique(row.obs["image"])) == {0, 255}
    pictures = make_env("reverie/SokobanSmall-v0", pixels=True)
    assert pictures.reset(3).obs["image"].shape == (64, 64, 3)
    short = make_env("reverie/SokobanSmall-v0", time_limit=200)
    short.reset(0)
    noop = np.eye(5, dtype=np.float32)[0]
    rows = [short.step(noop) for _ in range(200)]
    assert [bool(row.is_last) for row in rows] == [False] * 199 + [True]


# Levels ---------------------------------------------------------------------------------------------------


def test_stencils_cover_3_3_3_4_3_cells_and_the_centre() -> None:
    assert sokoban_levels.STENCILS.sum(1).tolist() == [3, 3, 3, 4, 3]
    assert sokoban_levels.STENCILS[:, 4].all()


@pytest.mark.parametrize(
    ("height", "width", "boxes", "n"),
    [(7, 7, 2, 200), (7, 7, 1, 60), (10, 10, 4, 30), (6, 9, 3, 40), (10, 10, 7, 8)],
)
def test_every_level_made_can_be_solved(height: int, width: int, boxes: int, n: int) -> None:
    levels = bank(n, height, width, boxes, seed=11)
    assert check(levels).shape == (n, height, width)
    assert not np.isin(levels, (3, 6)).any()  # nobody begins on a target
    assert ((levels == 4).sum((1, 2)) == boxes).all() and ((levels == 2).sum((1, 2)) == boxes).all()
    assert len(np.unique(levels.reshape(n, -1), axis=0)) > 0.9 * n
    for level in levels:
        if boxes == 7:  # too many states to search: pull backwards, push forwards
            assert not dead_cells(level)[level == 4].any()
            continue
        solution = solve(level)
        assert solution is not None
        env = game(level, max_episode_steps=None)
        ends = [env.step([action])[2][0] for action in solution.actions]
        assert ends == [False] * (len(ends) - 1) + [True]


@pytest.mark.parametrize(
    ("size", "boxes", "steps", "share"),
    [(7, 1, 20, 0.23), (7, 2, 40, 0.062), (7, 2, 120, 0.12), (8, 2, 40, 0.033)],
)
def test_how_often_random_play_solves(size: int, boxes: int, steps: int, share: float) -> None:
    """As with another generator of the same kind, of the paper's walk and 20,000 states."""
    walk = round(1.5 * 2 * size)
    env = Sokobans(
        2000, size=size, boxes=boxes, levels=1000, walk=walk, nodes=20_000, max_episode_steps=steps
    )
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    solved, fresh = np.zeros(2000, bool), np.ones(2000, bool)
    for _ in range(steps):
        terminated = env.step(rng.integers(5, size=2000))[2]
        solved |= terminated & fresh
        fresh &= ~terminated
    assert solved.mean() == pytest.approx(share, abs=4 * (share / 1000) ** 0.5 + 0.01 * share)


def test_the_same_seed_makes_the_same_level() -> None:
    make = lambda seed: make_level(streams([seed])[0], 8, 8, 2)
    assert np.array_equal(make(1), make(1)) and not np.array_equal(make(1), make(2))


def test_the_score_of_a_room_counts_swaps_of_boxes_and_not_pulls() -> None:
    """With one box there is one swap, however often it was pulled: the score is how far it came."""
    keys, table = sokoban_levels._keys(64), np.empty(1 << 11, np.int64)
    far = []
    for seed in range(40):
        level = np.empty(64, np.uint8)
        score = sokoban_levels._make(streams([seed])[0], 8, 8, 1, 35, 500, keys, table, level)
        (box,), (target,) = (np.flatnonzero(level == code) for code in (4, 2))
        assert score == abs(box // 8 - target // 8) + abs(box % 8 - target % 8)
        far.append(score)
    assert max(far) > 4


def test_more_states_make_levels_longer() -> None:
    def length(nodes: int) -> float:
        levels = [make_level(streams([seed])[0], 8, 8, 2, nodes=nodes) for seed in range(60)]
        return float(np.mean([len(solve(level).actions) for level in levels]))

    assert length(10) + 1 < length(2000)


def test_solve_finds_the_shortest_way() -> None:
    level = parse(["#######", "#.$ @ #", "#     #", "#######"])
    solution = solve(level)
    assert solution is not None and solution.actions == [LEFT, LEFT]
    around = solve(parse(["#######", "#@  $.#", "#######"]))
    assert around is not None and around.actions == [RIGHT] * 3
    for seed in range(40):
        level = make_level(streams([seed])[0], 6, 6, 2)
        assert len(solve(level).actions) == shortest(level)


@pytest.mark.parametrize(
    "rows",
    [
        ["#####", "#$ @#", "#  .#", "#####"],  # in a corner
        ["######", "# $@ #", "#   .#", "######"],  # along a wall without target
        ["#######", "#@$ $.#", "#.    #", "#######"],  # two along a wall with one target
        ["########", "#@#    #", "# # $  #", "# #  . #", "# #    #", "########"],  # out of reach
    ],
)
def test_what_cannot_be_solved_has_no_solution(rows: list[str]) -> None:
    assert solve(parse(rows)) is None


def test_a_search_that_is_too_small_says_so() -> None:
    with pytest.raises(ReverieError, match="20 states did not decide"):
        solve(bank(1, 10, 10, 4, seed=3)[0], nodes=20)


def test_dead_cells_are_those_a_lone_box_is_lost_in() -> None:
    """For every cell of a room: dead where search says that one box there cannot be brought home."""
    room = parse(["#######", "#@    #", "#  ## #", "#  .  #", "#   # #", "#######"])
    dead = dead_cells(room)
    for r, c in np.argwhere(room == 1):
        if (r, c) == (1, 1):
            continue
        places = np.argwhere(np.isin(room, (1, 5)))
        solvable = False
        for place in places:
            level = np.where(room == 5, 1, room).astype(np.uint8)
            level[r, c] = 4
            if tuple(place) == (r, c):
                continue
            level[tuple(place)] = 5
            solvable = solvable or shortest(level) is not None
        assert dead[r, c] == (not solvable), (r, c)


def shortest(level: np.ndarray) -> int | None:
    """Steps of the shortest solution: a slow search of its own, that knows nothing of dead cells."""
    wall, goals = level == 0, {tuple(place) for place in np.argwhere(level == 2)}
    start = tuple(np.argwhere(level == 5)[0]), frozenset(tuple(place) for place in np.argwhere(level == 4))
    found, seen = deque([(start, 0)]), {start}
    while found:
        (player, boxes), steps = found.popleft()
        if boxes == goals:
            return steps
        for dr, dc in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            to, beyond = (player[0] + dr, player[1] + dc), (player[0] + 2 * dr, player[1] + 2 * dc)
            if wall[to] or (to in boxes and (wall[beyond] or beyond in boxes)):
                continue
            state = to, boxes - {to} | {beyond} if to in boxes else boxes
            if state not in seen:
                seen.add(state)
                found.append((state, steps + 1))
    return None


def test_a_bank_is_kept_and_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path))
    bank.cache_clear()
    few = bank(5, 7, 7, 2, seed=1)
    (file,) = tmp_path.iterdir()
    bank.cache_clear()
    many = bank(8, 7, 7, 2, seed=1)
    assert np.array_equal(many[:5], few) and list(tmp_path.iterdir()) == [file]
    with np.load(file, allow_pickle=False) as kept:
        assert np.array_equal(kept["levels"], many)
    monkeypatch.setattr(sokoban_levels, "make_level", None)  # nothing is made again
    bank.cache_clear()
    assert np.array_equal(bank(6, 7, 7, 2, seed=1), many[:6])
    monkeypatch.undo()
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path))
    file.write_bytes(file.read_bytes()[:100])  # a broken file is made again
    bank.cache_clear()
    assert np.array_equal(bank(8, 7, 7, 2, seed=1), many)
    bank.cache_clear()
    assert not np.array_equal(bank(8, 7, 7, 2, seed=2), many)
    with pytest.raises(ValueError, match="read-only"):
        many[0] = 0


def test_without_a_place_for_banks_they_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "file" / "below"))
    bank.cache_clear()
    assert bank(3, 7, 7, 1, seed=9).shape == (3, 7, 7)
    bank.cache_clear()


# Boxoban files --------------------------------------------------------------------------------------------

LEVELS = (
    "; 0\n#####\n#@  #\n# $ #\n# . #\n#####\n\n; 1\n#####\n#.  #\n# $ #\n#  @#\n#####\n\n; 2\n#####\n#@$.#\n# $.#\n"
    "#   #\n#####\n\n"
)


def test_boxoban_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "000.txt"
    file.write_text(LEVELS)
    levels = read_boxoban(file)
    assert levels.shape == (3, 5, 5)
    assert draw(levels[1]) == "#####\n#.  #\n# $ #\n#  @#\n#####"
    (tmp_path / "001.txt").write_text(LEVELS)
    assert np.array_equal(read_boxoban(tmp_path), np.concatenate([levels, levels]))
    env = Sokobans(64, levels=str(file))
    obs, _ = env.reset(seed=0)
    assert obs.shape == (64, 5, 5, 7) and set(env.level) == {0, 1, 2}
    assert np.array_equal(obs.argmax(-1), levels[env.level])
    single = Sokoban(levels=file)
    assert single.reset(seed=0)[0].shape == (5, 5, 7)


def test_the_size_of_a_boxoban_file() -> None:
    text = "".join(f"; {k}\n" + "\n".join(["#" * 10] * 10) + "\n\n" for k in range(1000))
    assert len(text) == 116_890


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-20], "level 2 of .*cut short"),
        (lambda text: text[:-4], "level 2 of .*row 5 has .* cut short"),
        (lambda text: text[: text.index("; 2") + 4], "level 2 of .*no rows; is it cut short"),
        (lambda text: text[: text.index("; 2") + 10], "level 2 of .*1 by 5 cells and level 0 .*cut short"),
        (lambda text: text[:30], "level 0 of .*not walled in|level 0 of .*cut short"),
        (lambda text: text.replace("#.  #", "#   #"), r"level 1 of .*more boxes \(1\) than targets \(0\)"),
        (lambda text: text.replace("# $.#", "#  .#"), r"level 2 of .*fewer boxes \(1\) than targets \(2\)"),
        (lambda text: text.replace("#  @#", "#   #"), "level 1 of .*has no player"),
        (lambda text: text.replace("#@$.#", "#@$+#"), "level 2 of .*has 2 players"),
        (lambda text: text.replace("#.  #", "#.x #"), "level 1 of .*row 2 has 'x'"),
        (lambda text: text.replace("#.  #", " .  #"), "level 1 of .*not walled in"),
        (lambda text: text.replace("# $ #\n# . #", "# * #\n#   #"), "level 0 of .*solved already"),
        (lambda text: "", "no level in"),
    ],
)
def test_a_bad_file_is_refused_with_the_levels_number(tmp_path: Path, change: Any, words: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_text(change(LEVELS))
    with pytest.raises(ReverieError, match=words):
        Sokobans(2, levels=file)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="cannot be read"):
        read_boxoban(tmp_path / "none.txt")
    with pytest.raises(ReverieError, match="no level files"):
        read_boxoban(tmp_path)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReverieError, match="cannot be read"):
        read_boxoban(tmp_path)


def test_levels_given_as_arrays_are_checked() -> None:
    with pytest.raises(ReverieError, match="level 1 has no player"):
        Sokobans(2, levels=np.stack([parse(["#####", "#@$.#", "#####"]), parse(["#####", "# $.#", "#####"])]))
    with pytest.raises(ReverieError, match="uint8 of shape"):
        Sokobans(2, levels=np.zeros((2, 5), np.uint8))


def test_the_planes_of_a_board_smaller_than_their_number_are_not_turned() -> None:
    """6 x 9 cells with seven planes: fewer rows than planes."""
    env = gymnasium.make("reverie/Sokoban-v0", size=(6, 9), boxes=1, levels=1)
    ours = from_gymnasium(env, image_size=None)
    assert ours.obs_space["image"].shape == (6, 9, 7)
    theirs, _ = env.reset(seed=3)
    assert np.array_equal(ours.reset(3).obs["image"], 255 * theirs)
