"""The worlds with numba and without: the same numbers. Randomness that is random enough."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import reverie
from reverie.envs import compiled
from reverie.envs.compiled import below, streams, uniform

PLAY = """
import hashlib
import numpy as np
from reverie.envs.mini_pacman import MiniPacmans
from reverie.envs.sokoban import Sokobans
from reverie.envs.sokoban_levels import bank, solve

heard = hashlib.sha256()
levels = bank(3, 6, 7, 2, seed=4)
heard.update(levels.tobytes() + str([solve(level) for level in levels]).encode())
worlds = [Sokobans(4, levels=levels, max_episode_steps=20), Sokobans(2, size=6, boxes=1, levels=0, obs="pixels")]
worlds += [MiniPacmans(3, task="avoid", power_bar=True), MiniPacmans(3, task="hunt", faithful_paper=True)]
for world in worlds:
    heard.update(world.reset(seed=1)[0].tobytes())
    for actions in np.random.default_rng(0).integers(5, size=(60, world.num_envs)):
        for part in world.step(actions)[:4]:
            heard.update(part.tobytes())
print(heard.hexdigest())
"""


def test_the_worlds_are_the_same_without_numba(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("numba")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(reverie.__file__).parents[1]),
        "REVERIE_CACHE": str(tmp_path / "alone"),
        "PYTHONWARNINGS": "always",
    }
    blocked = "import sys\nsys.modules['numba'] = None\n" + PLAY
    alone = subprocess.run([sys.executable, "-c", blocked], env=environment, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    assert alone.stderr.count("pip install 'reverie[worlds]'") == 1
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "here"))
    exec(PLAY, {})
    here = capsys.readouterr()
    assert "numba" not in here.err
    assert alone.stdout == here.out and len(here.out) == 2 * hashlib.sha256().digest_size + 1


def test_where_compiled_code_cannot_be_kept_it_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    asked = []

    def njit(cache: bool = False, **options: bool):
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled.compiled(lambda x: x + 1)(1) == 2 and asked == [True, False]


def test_numbers_are_uniform() -> None:
    random = streams([5])[0]
    numbers = np.array([uniform(random) for _ in range(20_000)])
    assert stats.kstest(numbers, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
    assert numbers.min() >= 0 and numbers.max() < 1


def test_the_first_numbers_of_neighbouring_seeds_are_uniform_too() -> None:
    for key in (0, 1):
        first = np.array([uniform(random) for random in streams(range(5000), key)])
        assert stats.kstest(first, "uniform").pvalue > 0.01
        assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05
    assert not np.array_equal(streams([3], 0), streams([3], 1))
    assert len(np.unique(streams(range(5000)), axis=0)) == 5000
    assert streams([-1, 2**63, 10**30]).min() >= 1  # any seed will do


def test_whole_numbers_below() -> None:
    random = streams([6])[0]
    counts = np.bincount([below(random, 7) for _ in range(7000)], minlength=7)
    assert len(counts) == 7 and stats.chisquare(counts).pvalue > 0.01


def test_a_generator_by_hand() -> None:
    """L'Ecuyer (1988): s1' = 40014 s1 mod 2147483563, s2' = 40692 s2 mod 2147483399."""
    random = np.array([1, 1])
    assert uniform(random) == ((40014 - 40692) % 2147483562) / 2147483562
    assert random.tolist() == [40014, 40692]
