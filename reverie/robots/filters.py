"""A low-pass filter: what keeps a policy's jitter from a machine's gears."""

import math

import numpy as np

from reverie.types import ReverieError


class Butterworth:
    """Second-order low-pass of ``cutoff`` Hz for commands at ``rate`` Hz, each entry for itself.

    ::

        H(s) = 1 / (s^2 + sqrt(2) s + 1),   s = (1/K) (1 - z^-1) / (1 + z^-1),   K = tan(pi cutoff / rate)
        y_t  = b0 x_t + b1 x_{t-1} + b2 x_{t-2} - a1 y_{t-1} - a2 y_{t-2}

    (the bilinear transform, with the cut-off put where it belongs). At rest it passes everything: b and a have the
    same sum.
    """

    def __init__(self, cutoff: float, rate: float, size: int):
        if not 0 < cutoff < rate / 2:
            raise ReverieError(
                f"a low-pass of {cutoff} Hz needs commands at more than twice that, not {rate} Hz"
            )
        k = math.tan(math.pi * cutoff / rate)
        norm = 1 / (1 + math.sqrt(2) * k + k * k)
        self.b = np.array([k * k, 2 * k * k, k * k]) * norm
        self.a = np.array([1.0, 2 * (k * k - 1) * norm, (1 - math.sqrt(2) * k + k * k) * norm])
        self.reset(np.zeros(size))

    def reset(self, value: np.ndarray) -> None:
        """As if ``value`` "A" had been the command for ever."""
        value = np.asarray(value, np.float64)
        self.x, self.y = np.stack([value, value]), np.stack([value, value])  # the last two, newest first

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """The filtered command "A"."""
        value = np.asarray(value, np.float64)
        out = self.b[0] * value + self.b[1:] @ self.x - self.a[1:] @ self.y
        self.x, self.y = np.stack([value, self.x[0]]), np.stack([out, self.y[0]])
        return out
