"""MiniPacman: its map, what every event is worth, how ghosts walk, and batches against single games."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import reverie.envs  # noqa: F401  (registers the worlds)
from reverie.envs import make_env
from reverie.envs.mini_pacman import CORRIDORS, MAZE, NEXT, TASKS, WIDTH, MiniPacmans
from reverie.types import ReverieError

STAY, RIGHT, UP, LEFT, DOWN = range(5)
FLOOR, FOOD, PILL, PACMAN, GHOST, EDIBLE = range(1, 7)  # planes
AWAY = 13 * WIDTH + 17  # the lower right corner


def at(row: int, column: int) -> int:
    return row * WIDTH + column


def scene(pacman: int, ghosts: tuple = (), pills: tuple = (AWAY, AWAY), n: int = 1, **options) -> MiniPacmans:
    """``n`` games with Pacman here and ghosts (cell, way) there, and food everywhere."""
    env = MiniPacmans(n, **options)
    env.reset(seed=0)
    env.pacman[:], env.ghosts[:], env.pills[:] = pacman, -1, pills
    for g, (cell, way) in enumerate(ghosts):
        env.ghosts[:, g], env.ways[:, g] = cell, way
    return env


def test_the_map() -> None:
    assert MAZE.shape == (15, 19) and MAZE.sum() == 138 == len(CORRIDORS)
    assert np.array_equal(MAZE, MAZE[::-1]) and np.array_equal(MAZE, MAZE[:, ::-1])
    exits = (NEXT[CORRIDORS, 1:] != CORRIDORS[:, None]).sum(1)
    assert np.bincount(exits).tolist() == [0, 0, 114, 16, 8]
    assert MAZE.ravel()[NEXT[CORRIDORS]].all()
    assert not (MAZE[0].any() or MAZE[:, 0].any())


def test_a_level_begins_as_it_should() -> None:
    env = MiniPacmans(300)
    env.reset(seed=0)
    assert (env.food.sum(1) == 138).all() and (env.pills >= 0).all() and MAZE.ravel()[env.pills].all()
    assert ((env.ghosts >= 0).sum(1) == 1).all() and (env.power == 0).all()
    down = env.ghosts[:, 0] // WIDTH - env.pacman // WIDTH
    right = env.ghosts[:, 0] % WIDTH - env.pacman % WIDTH
    near = (down >= -5) & (down < 5) & (right >= -5) & (right < 5)
    assert not near.any()
    assert ((down == 5) & (abs(right) < 5)).any()  # the rectangle is open on that side
    assert len(np.unique(env.pacman)) > 100 and set(env.ways[:, 0]) == {0, 1, 2, 3}


@pytest.mark.parametrize("faithful", [False, True])
def test_ghosts_of_each_level(faithful: bool) -> None:
    env = scene(at(1, 1), task="rush", faithful_paper=faithful)
    counts = []
    for _ in range(6):
        counts.append(int((env.ghosts >= 0).sum()))
        env.ghosts[:], env.pills[:] = -1, (NEXT[env.pacman[0], STAY], -1)
        env.step([STAY])
    assert counts[1:] == ([2, 2, 3, 3, 4] if faithful else [1, 2, 2, 3, 3])
    assert env.stage[0] == 7


@pytest.mark.parametrize("task", TASKS)
def test_what_events_are_worth(task: str) -> None:
    step, food, pill, ghost, death = {
        "regular": (0, 1, 2, 5, 0),
        "avoid": (0.1, -0.1, -5, -10, -20),
        "hunt": (0, 0, 1, 10, -20),
        "ambush": (0, -0.1, 0, 10, -20),
        "rush": (0, -0.1, 10, 0, 0),
    }[task]

    def after(env: MiniPacmans, action: int = STAY) -> tuple[float, bool, list[int]]:
        _, reward, terminated, truncated, info = env.step([action])
        assert not truncated[0] and info["events"].shape == (1, 5)
        return reward[0], bool(terminated[0]), info["events"][0].tolist()

    env = scene(at(1, 1), task=task)
    assert after(env, LEFT) == (pytest.approx(step + food), False, [1, 1, 0, 0, 0])  # into a wall, on food
    assert after(env) == (pytest.approx(step), False, [1, 0, 0, 0, 0])
    assert after(env, RIGHT) == (pytest.approx(step + food), False, [1, 1, 0, 0, 0])
    env = scene(at(1, 1), pills=(at(1, 2), AWAY), task=task)
    assert after(env, RIGHT) == (pytest.approx(step + food + pill), False, [1, 1, 1, 0, 0])
    assert env.power[0] == 20
    env = scene(at(1, 1), ghosts=((at(1, 2), 0), (AWAY, 0)), pills=(at(1, 2), AWAY), task=task)
    assert after(env, RIGHT) == (pytest.approx(step + food + pill + ghost), False, [1, 1, 1, 1, 0])
    env = scene(at(1, 1), ghosts=((at(1, 2), 0),), task=task)
    assert after(env, RIGHT) == (pytest.approx(step + food + death), True, [1, 1, 0, 0, 1])


def test_sums_the_sheet_names() -> None:
    """Hunt may pay 11 and -19, avoid 0, rush 9.9, ambush 9.9 and -20.1."""
    worth = {task: np.array(TASKS[task].worth) for task in TASKS}
    assert worth["hunt"] @ [1, 1, 1, 1, 0] == 11 and worth["hunt"] @ [1, 0, 1, 0, 1] == -19
    assert worth["avoid"] @ [1, 1, 0, 0, 0] == 0 and worth["rush"] @ [1, 1, 1, 0, 0] == pytest.approx(9.9)
    assert worth["ambush"] @ [1, 1, 0, 1, 0] == pytest.approx(9.9)
    assert worth["ambush"] @ [1, 1, 0, 0, 1] == pytest.approx(-20.1)


def test_an_episode_ends_with_the_first_death() -> None:
    env = scene(at(1, 1), ghosts=((at(1, 2), 0), (at(1, 2), 2)), task="avoid")
    _, reward, terminated, _, info = env.step([RIGHT])
    assert terminated[0] and reward[0] == pytest.approx(-20.0) and info["events"][0, 4] == 1


def test_one_pill_and_one_ghost_a_step() -> None:
    ghosts, pills = ((at(1, 2), 0), (at(1, 2), 0), (AWAY, 0)), (at(1, 2), at(1, 2))
    env = scene(at(1, 1), ghosts, pills, n=200, task="hunt")
    *_, info = env.step(np.full(200, RIGHT))
    assert (info["events"][:, 2] == 1).all() and (info["events"][:, 3] == 1).all()
    assert ((env.ghosts >= 0).sum(1) == 2).all()  # the other lives, whether it stays or flees
    *_, info = env.step(np.full(200, STAY))
    assert (info["events"][:, 2] == 1).all() and (env.pills == -1).all()
    stayed = info["events"][:, 3] == 1
    assert 0.5 < stayed.mean() < 1.0  # it flees one step in four


def test_power_lasts_twenty_steps() -> None:
    env = scene(at(1, 1), pills=(at(1, 1), AWAY))
    env.step([STAY])
    left = []
    while env.power[0] > 0:
        left.append(int(env.power[0]))
        env.step([STAY])
    assert left == list(range(20, 0, -1))


@pytest.mark.parametrize(("task", "steps"), [("avoid", 128), ("hunt", 80), ("ambush", 80)])
def test_levels_that_the_clock_ends(task: str, steps: int) -> None:
    env = scene(at(1, 1), task=task)
    env.food[:] = False
    env.food[0, at(3, 5)] = True
    for _ in range(steps - 1):
        env.step([STAY])
    assert env.stage[0] == 1
    obs, _, terminated, truncated, _ = env.step([STAY])
    assert env.stage[0] == 2 and env.timer[0] == 0 and env.food[0].sum() == 138
    assert not terminated[0] and not truncated[0]
    assert obs[0, ..., FOOD].sum() == 1 and obs[0, 1, 1, PACMAN] == 1  # the old level, once more
    assert env.step([STAY])[0][0, ..., FOOD].sum() > 130


@pytest.mark.parametrize("task", TASKS)
def test_levels_that_are_cleared(task: str) -> None:
    def stage(food: bool, pills: bool, ghosts: bool) -> int:
        """After Pacman took the last food, the last pill or the last ghost, with all else still there."""
        env = scene(at(1, 1), ((at(1, 2), 0), *(() if ghosts else ((AWAY, 0),))), task=task)
        env.pills[:] = (at(1, 2), -1) if pills else (AWAY, AWAY - 1)
        env.food[:] = False
        env.food[0, at(1, 2)] = True
        env.food[0, AWAY] = not food
        env.power[:] = 5
        env.step([RIGHT])
        if env.stage[0] == 2:
            assert env.food[0].sum() == 138 and env.timer[0] == 0 and env.power[0] == 0
        return int(env.stage[0])

    assert stage(True, False, False) == (2 if task in ("regular", "avoid") else 1)
    assert stage(False, True, False) == (2 if task == "rush" else 1)
    assert stage(False, False, True) == (2 if task in ("hunt", "ambush") else 1)


def test_all_food_of_a_level_is_worth_142_with_its_pills() -> None:
    """Walk over everything, once, without ghosts."""
    env = scene(at(1, 1), pills=(at(1, 1), at(5, 9)))
    total = 0.0
    for cell in (at(1, 1), *CORRIDORS):
        env.pacman[0] = cell
        total += env.step([STAY])[1][0]
    assert total == 142 and env.stage[0] == 2


# Ghosts ---------------------------------------------------------------------------------------------------


def walk(cell: int, way: int, pacman: int, steps: int, power: int = 0) -> list[int]:
    """Where a ghost that always moves, and never by chance, goes."""
    env = scene(pacman, ghosts=((cell, way),), faithful_paper=True)
    went = [cell]
    for _ in range(steps):
        env.power[:] = power
        env.pacman[:], env.timer[:] = pacman, 0
        env.step([STAY])
        went.append(int(env.ghosts[0, 0]))
    return went


def test_a_ghost_goes_on_in_a_corridor_and_round_a_bend() -> None:
    assert walk(at(1, 3), 2, at(13, 17), 4) == [at(1, 3), at(1, 2), at(1, 1), at(2, 1), at(3, 1)]


def test_a_ghost_does_not_turn_back_for_pacman() -> None:
    assert walk(at(1, 7), 0, at(1, 6), 1) == [at(1, 7), at(1, 8)]


def test_a_ghost_chases_at_a_junction_and_flees_power() -> None:
    """Row 3, column 3 has four exits; the ghost comes from the left."""
    junction = at(3, 3)
    assert (NEXT[junction, 1:] != junction).all()
    assert walk(junction, 0, at(11, 3), 1)[-1] == at(4, 3)
    assert walk(junction, 0, at(1, 3), 1)[-1] == at(2, 3)
    assert walk(junction, 0, at(3, 15), 1)[-1] == at(3, 4)
    assert walk(junction, 0, at(3, 15), 1, power=5)[-1] == at(
        2, 3
    )  # up and down tie, right is worse; back is out
    assert walk(junction, 0, at(11, 9), 1, power=5)[-1] == at(2, 3)
    assert walk(junction, 0, at(3, 1), 1)[-1] == at(2, 3)  # it would like to go back; the first of a tie
    assert walk(junction, 0, at(1, 1), 1)[-1] == at(2, 3)


@pytest.mark.parametrize(
    ("stage", "power", "speed"), [(1, 0, 0.5), (3, 0, 0.7), (9, 0, 1.0), (1, 9, 0.25), (3, 9, 0.35)]
)
def test_ghosts_move_now_and_then(stage: int, power: int, speed: float) -> None:
    env = scene(at(11, 9), ghosts=((at(1, 3), 2),), n=4000)
    env.stage[:], env.power[:] = stage, power
    env.step(np.full(4000, STAY))
    assert (env.ghosts[:, 0] == at(1, 2)).mean() == pytest.approx(speed, abs=0.03)


def test_one_in_twenty_goes_by_chance_at_a_junction() -> None:
    env = scene(at(11, 3), ghosts=((at(3, 3), 0),), n=8000)
    env.stage[:] = 9  # always moves
    env.step(np.full(8000, STAY))
    went = env.ghosts[:, 0]
    for cell, share in (
        (at(4, 3), 0.95 + 0.05 / 3),
        (at(2, 3), 0.05 / 3),
        (at(3, 4), 0.05 / 3),
        (at(3, 2), 0),
    ):
        assert (went == cell).mean() == pytest.approx(share, abs=0.008)


def test_on_paper_pacman_runs_with_power() -> None:
    env = scene(at(1, 5), faithful_paper=True)
    env.power[:] = 5
    *_, info = env.step([RIGHT])
    assert env.pacman[0] == at(1, 7) and info["events"][0, 1] == 2
    env.pacman[:] = at(1, 12)
    env.step([RIGHT])
    assert env.pacman[0] == at(1, 13)  # a wall stops it halfway
    env = scene(at(1, 5), ghosts=((at(1, 6), 0), (AWAY, 0)), faithful_paper=True, task="hunt")
    env.power[:] = 5
    assert env.step([RIGHT])[1][0] == 10  # whom it passes, it eats
    env = scene(at(1, 5), faithful_paper=True)
    env.step([RIGHT])
    assert env.pacman[0] == at(1, 6)


def test_paths_that_cross_are_a_meeting() -> None:
    env = scene(at(1, 5), ghosts=((at(1, 6), 2),), faithful_paper=True, task="hunt")
    assert env.step([RIGHT])[1][0] == -20


# Pictures, batches, checkers ------------------------------------------------------------------------------


def test_planes_and_pixels_show_the_same() -> None:
    options = {"power_bar": True, "render_mode": "rgb_array"}
    ghosts, pills = ((at(1, 9), 0), (at(1, 5), 0), (at(5, 5), 0)), (at(3, 3), at(1, 5))
    planes = scene(at(1, 5), ghosts, pills, **options)
    pixels = scene(at(1, 5), ghosts, pills, obs="pixels", **options)
    for env in (planes, pixels):
        env.food[0, at(7, 1)] = False
        env.stage[:] = -9  # ghosts stand still
    seen, picture = planes.step([STAY])[0][0], pixels.step([STAY])[0][0]
    assert seen.shape == (15, 19, 8) and picture.shape == (15, 19, 3) and (seen.sum(-1) == 1).all()
    assert seen[1, 5, PACMAN] and tuple(picture[1, 5]) == (0, 255, 0)  # above pill and ghost
    assert seen[1, 9, EDIBLE] and tuple(picture[1, 9]) == (255, 255, 0)
    assert seen[3, 3, PILL] and tuple(picture[3, 3]) == (0, 255, 255)
    assert seen[3, 5, FOOD] and tuple(picture[3, 5]) == (0, 0, 255)
    assert seen[7, 1, FLOOR] and tuple(picture[7, 1]) == (0, 0, 0)
    assert seen[0, 0, 0] and tuple(picture[0, 0]) == (255, 255, 255)
    assert seen[14, :, 7].all()  # 20 steps of power, as many as fit
    for env in (planes, pixels):
        env.power[:] = 11
    seen, picture = planes.step([STAY])[0][0], pixels.step([STAY])[0][0]
    assert tuple(picture[1, 9]) == (255, 128, 0) and seen[14, :, 7].sum() == 10
    for env in (planes, pixels):
        env.power[:] = 1
    seen, picture = planes.step([STAY])[0][0], pixels.step([STAY])[0][0]
    assert seen[1, 9, GHOST] and tuple(picture[1, 9]) == (255, 0, 0)
    assert np.array_equal(pixels.render()[0][::8, ::8], picture)
    assert MiniPacmans(1).single_observation_space.shape == (15, 19, 7)


@pytest.mark.parametrize("task", ["regular", "hunt"])
@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
def test_a_batch_is_single_games_side_by_side(task: str, mode: AutoresetMode) -> None:
    options = {"task": task, "max_episode_steps": 70}
    one = lambda: gymnasium.make("reverie/MiniPacman-v0", disable_env_checker=True, **options)
    singles = SyncVectorEnv([one] * 4, autoreset_mode=mode)
    batch = gymnasium.make_vec("reverie/MiniPacman-v0", 4, autoreset_mode=mode, **options)
    rng = np.random.default_rng(0)
    assert np.array_equal(singles.reset(seed=7)[0], batch.reset(seed=7)[0])
    ends = 0
    for _ in range(300):
        actions = rng.integers(5, size=4)
        theirs, ours = singles.step(actions), batch.step(actions)
        for part, other in zip(theirs[:3], ours[:3], strict=True):
            assert np.array_equal(part, other)
        ends += int(theirs[2].sum())
        assert np.array_equal(theirs[3] & ~theirs[2], ours[3])
        if mode is AutoresetMode.NEXT_STEP:
            assert np.array_equal(theirs[4]["events"], ours[4]["events"])
    assert ends > 3


@pytest.mark.parametrize("task", ["", "Avoid", "Hunt", "Ambush", "Rush"])
def test_gymnasiums_checker(task: str) -> None:
    env = gymnasium.make(f"reverie/MiniPacman{task}-v0", render_mode="rgb_array", power_bar=task == "Hunt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    assert env.unwrapped.render().shape == (120, 152, 3)
    text = gymnasium.make(f"reverie/MiniPacman{task}-v0", render_mode="ansi")
    text.reset(seed=0)
    assert set(text.render()) <= set("# .oCMm=\n") and text.render().count("C") == 1


def test_a_copied_state_goes_the_same_way() -> None:
    env, other = MiniPacmans(5, task="avoid", power_bar=True), MiniPacmans(2, task="avoid", power_bar=True)
    env.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(50):
        env.step(rng.integers(5, size=5))
    rows = np.array([3, 0])
    other.set_state(env.get_state(rows))
    for actions in rng.integers(5, size=(200, 5)):
        for part, theirs in zip(env.step(actions)[:4], other.step(actions[rows])[:4], strict=True):
            assert np.array_equal(part[rows], theirs)


def test_bad_settings_get_one_sentence() -> None:
    with pytest.raises(ReverieError, match="regular, avoid, hunt, ambush, rush; got 'flee'"):
        MiniPacmans(1, task="flee")
    with pytest.raises(ReverieError, match="planes or pixels"):
        MiniPacmans(1, obs="rgb")


def test_a_world_model_may_live_here() -> None:
    env = make_env("reverie/MiniPacmanRush-v0", image_size=None)
    assert env.reset(3).obs["image"].shape == (15, 19, 7)
    assert make_env("reverie/MiniPacmanRush-v0", pixels=True).reset(3).obs["image"].shape == (64, 64, 3)


def test_random_play_scores_as_the_published_code_does() -> None:
    """Mean return of random play, cap 1000, in the code that is followed; there over 60 episodes."""
    known = {
        "regular": (9.4, 7.1),
        "avoid": (-16.7, 4.7),
        "hunt": (-20.2, 2.6),
        "ambush": (-20.9, 0.5),
        "rush": (0.7, 5.2),
    }
    for task, (mean, deviation) in known.items():
        env = MiniPacmans(400, task=task, max_episode_steps=1000, autoreset_mode="Disabled")
        env.reset(seed=0)
        rng = np.random.default_rng(1)
        scores, alive = np.zeros(400), np.ones(400, bool)
        while alive.any():
            env.over[:] = False
            _, reward, terminated, truncated, _ = env.step(rng.integers(5, size=400))
            scores += reward * alive
            alive &= ~(terminated | truncated)
        assert abs(scores.mean() - mean) < 3 * deviation * (1 / 60 + 1 / 400) ** 0.5 + 0.1, (
            task,
            scores.mean(),
        )
