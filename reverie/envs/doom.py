"""Doom's Take Cover (Kempka et al. 2016, ViZDoom) as World Models play it, ``doom/take_cover``.

Monsters at the far wall throw fireballs; the agent can only move sideways, and gets 1 for every tic it lives.
World Models (Ha & Schmidhuber 2018) act by one number, at every tic: below -1/3 moves left, above 1/3 right.
The skill is the scenario's own, 4. ViZDoom sets no limit; here the clock cuts an episode after 2,100 tics.
"""

import contextlib
import os
import tempfile
from typing import Any

import numpy as np

from reverie.envs.base import Env, after, check_action, first
from reverie.envs.pixels import resize
from reverie.types import ActionSpace, ReverieError, Space, Step

LIMIT = 2100
NAMES = ("take_cover",)


class Doom(Env):
    """One game; the picture is the player's view (160x120, no status bar) as ``size`` x ``size``, None as it is.

    The dead see nothing: their row repeats the last picture. ``endless`` takes the clock away. Raises
    ``ReverieError`` for a scenario that is not there, or when vizdoom is not installed.
    """

    def __init__(self, scenario: str, *, size: int | None = 64, endless: bool = False) -> None:
        self.name = f"doom/{scenario}"
        self.act_space = ActionSpace(1)
        self.obs_space = {"image": Space((size, size, 3) if size else (120, 160, 3), "uint8")}
        self._size, self._limit = size, None if endless else LIMIT
        self._game = _load(scenario)
        self._taken, self._running = 0, False

    def reset(self, seed: int) -> Step:
        self._game.set_seed(seed % 2**32)
        if self._game.is_running():
            self._game.new_episode()
        else:
            # The game leaves a folder where it is started, and its settings when it ends.
            self._game.set_doom_config_path(os.devnull)
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.chdir(folder):
                self._game.init()
        self._taken, self._running = 0, True
        return first(self._look())

    def step(self, action: np.ndarray) -> Step:
        if not self._running:
            raise ReverieError(f"{self.name}: step() before reset(), or after a last row; call reset(seed).")
        reward = self._game.make_action(buttons(float(check_action(action, self.act_space, self.name)[0])))
        self._taken += 1
        dead = self._game.is_episode_finished()
        late = self._limit is not None and self._taken >= self._limit
        self._running = not (dead or late)
        return after(self._look(), reward, dead, late)

    def _look(self) -> dict[str, np.ndarray]:
        state = self._game.get_state()
        if state is not None:  # as it is when the player has died
            self._view = state.screen_buffer
        return {"image": self._view.copy() if self._size is None else resize(self._view, self._size)}

    def render(self) -> np.ndarray:
        return self._view.copy()

    def close(self) -> None:
        self._game.close()


def buttons(action: float) -> list[bool]:
    """Which of MOVE_LEFT and MOVE_RIGHT the number presses."""
    return [action < -1 / 3, action > 1 / 3]


def _load(scenario: str) -> Any:
    """The scenario's game, not yet started, its window hidden."""
    try:
        import vizdoom
    except ImportError as error:
        raise ReverieError(
            f"doom/{scenario} needs ViZDoom: pip install 'reverie[doom]' ({error})."
        ) from error
    if scenario not in NAMES:
        known = " and ".join(f"doom/{name}" for name in NAMES)
        raise ReverieError(f"there is no doom/{scenario}; there is {known}.")
    game = vizdoom.DoomGame()
    game.load_config(os.path.join(vizdoom.scenarios_path, f"{scenario}.cfg"))
    game.set_available_buttons([vizdoom.Button.MOVE_LEFT, vizdoom.Button.MOVE_RIGHT])
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_render_hud(False)
    game.set_window_visible(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    return game
