"""The rules of our own worlds as machine code where numba is installed, and as plain Python where it is not.

``@compiled`` marks a function that loops over cells and rows. It sees arrays and numbers only, and gives the same
numbers either way; so does ``uniform``, the randomness of such functions, whose state is an array of theirs.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

try:
    import numba
except ImportError:
    numba = None  # type: ignore[assignment]

Function = TypeVar("Function", bound=Callable)

# Moduli and factors of L'Ecuyer's combined generator (1988): all products fit into 64 bits with a sign.
M1, M2, A1, A2 = 2147483563, 2147483399, 40014, 40692


def compiled(function: Function) -> Function:
    """``function`` as machine code, kept on disk between processes; as it is where numba is missing."""
    plain: Any = inspect.unwrap(function)  # without what tests wrap around it
    if numba is None:
        return plain
    fast: Any
    try:
        fast = numba.njit(cache=True, nogil=True)(plain)
    except RuntimeError:  # no folder to keep it in
        fast = numba.njit(nogil=True)(plain)
    return fast


@lru_cache(1)
def say_if_slow() -> None:
    """Warn, once, where the worlds of this folder are plain Python."""
    if numba is None:
        warnings.warn(
            "numba is missing, so Sokoban and MiniPacman run as plain Python, 40 to 160 times slower; "
            "pip install 'reverie[worlds]'",
            RuntimeWarning,
            stacklevel=2,
        )


def streams(seeds: Sequence[int], key: int = 0) -> np.ndarray:
    """A random state, int64 "2", for every seed: "n 2". ``key`` tells apart what shares a seed."""
    x = np.array([seed % 2**64 for seed in seeds], np.uint64)
    words = []
    for salt in (2 * key + 1, 2 * key + 2):  # SplitMix64, salted twice
        y = x + np.array([salt * 0x9E3779B97F4A7C15 % 2**64], np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            y = (y ^ (y >> np.uint64(shift))) * np.array([factor], np.uint64)
        words.append(y ^ (y >> np.uint64(31)))
    rest = np.stack(words, 1) % np.array([M1 - 1, M2 - 1], np.uint64)
    return 1 + rest.astype(np.int64)


@compiled
def uniform(random):
    """A number in [0, 1); moves the state ``random`` on."""
    a = A1 * random[0] % M1
    b = A2 * random[1] % M2
    random[0] = a
    random[1] = b
    return ((a - b) % (M1 - 1)) / (M1 - 1)


@compiled
def below(random, n):
    """A whole number in 0 .. n - 1."""
    return int(uniform(random) * n)
