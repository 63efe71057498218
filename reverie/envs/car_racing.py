"""CarRacing of World Models (Ha & Schmidhuber 2018): Gymnasium's own game, its picture drawn for less.

The stock class spends 99 % of its time on the picture: it turns 800 polygons one corner at a time, paints them
on 1000x800 pixels with dials below, and shrinks that to 96x96. Only the drawing is different here; tracks,
physics, rewards and flags are the stock class's. The observation is what World Models learn from, the stock
picture without its dials (rows 0 to 83 of 96), 64x64:

    fast     painted at a fifth of the size; 0.4/255 from the exact picture in the mean (worst frame 1.3)
    exact    the stock picture, cropped and shrunk with Pillow's bilinear filter, pixel for pixel
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import error, spaces
from gymnasium.utils import EzPickle
from PIL import Image

from reverie.envs.pixels import choose_sdl
from reverie.types import ReverieError

choose_sdl()
try:
    import pygame
    from gymnasium.envs.box2d import car_dynamics, car_racing
    from pygame import gfxdraw
except (ImportError, error.DependencyNotInstalled) as missing:
    raise ReverieError(f"CarRacing needs Box2D: pip install 'reverie[box2d]' ({missing}).") from missing

SIZE = 64
WIDTH, HEIGHT = car_racing.WINDOW_W, car_racing.WINDOW_H  # the stock picture before it is shrunk
DIALS = HEIGHT // 8  # its lowest rows; they are rows 0 to 99, as it is painted upside down
CROPPED = (car_racing.STATE_W, 84)  # the stock picture after it is shrunk, without dials
FINE = 2  # "fast" paints this many pixels for one of those, each way (a power of two: others cost a level)
REACH = math.hypot(WIDTH / 2, 3 / 4 * HEIGHT)  # from the car to the farthest corner in view
FIELD = car_racing.PLAYFIELD * np.array([(1.0, 1.0), (1.0, -1.0), (-1.0, -1.0), (-1.0, 1.0)])

Painting = Iterable[tuple[list[int], list[list[int]]]]  # colours and corners, from the bottom up
Part = tuple[slice, int, Any]  # a polygon's corners, its colour, and its wheel if it is a mark


class CarRacing(car_racing.CarRacing):
    """Gymnasium's ``CarRacing`` with a cheaper 64x64 picture; ``render()`` draws all of it for a human eye.

    ``exact`` chooses the picture. With ``full_episodes`` nothing terminates: a car that has finished or left
    the field may drive on, as in the 1,000 frames of every episode that World Models collect. ``stock`` are
    options of the stock class.
    """

    def __init__(
        self,
        render_mode: str | None = None,
        *,
        exact: bool = False,
        full_episodes: bool = False,
        **stock: Any,
    ) -> None:
        super().__init__(render_mode, **stock)
        EzPickle.__init__(self, render_mode, exact=exact, full_episodes=full_episodes, **stock)
        self.exact, self.full_episodes = exact, full_episodes
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        size = (WIDTH, HEIGHT) if exact else (FINE * CROPPED[0], FINE * CROPPED[1])
        self._canvas = pygame.Surface(size, depth=32)
        self._car_shape: CarShape | None = None

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        picture, reward, terminated, truncated, info = super().step(action)
        return picture, reward, terminated and not self.full_episodes, truncated, info

    def _create_track(self) -> bool:
        done = super()._create_track()
        if done:  # a car is made next
            self._ground, self._car_shape = Ground(self.grass_color, self.road_poly, self.road), None
        return done

    def _render(self, mode: str) -> Any:
        if mode != "state_pixels":
            return super()._render(mode)
        car: Any = self.car
        if self._car_shape is None:
            self._car_shape = CarShape(car)
        far, near = 0.1 * car_racing.SCALE, car_racing.ZOOM * car_racing.SCALE
        zoom = far * max(1 - self.t, 0) + near * min(self.t, 1)  # closer for a second
        view = View(car.hull.position, -car.hull.angle, zoom, self.exact)
        field = view.colours(self.bg_color[None])[0]
        paint = self._paint_exact if self.exact else self._paint_fast
        return paint(view, field, self._ground.seen(view), self._car_shape.seen(view))

    def _paint_exact(self, view: "View", field: list[int], ground: Painting, car: Painting) -> np.ndarray:
        """The stock class's strokes in its order, without those that leave no trace."""
        canvas = self._canvas
        canvas.fill(field if view.inside else 0)
        if not view.inside:
            ground = [(field, view(FIELD)), *ground]
        for colour, corners in ground:
            gfxdraw.aapolygon(canvas, corners, colour)
            gfxdraw.filled_polygon(canvas, corners, colour)
        for colour, corners in car:
            pygame.draw.polygon(canvas, colour, corners)
        # smoothscale narrows first, and each row for itself: turn the picture over when it is a tenth.
        painted = canvas.subsurface((0, DIALS, WIDTH, HEIGHT - DIALS))
        narrow = pygame.transform.smoothscale(painted, (CROPPED[0], HEIGHT - DIALS))
        upright = pygame.transform.flip(narrow, False, True)
        return _shrink(pygame.transform.smoothscale(upright, CROPPED))

    def _paint_fast(self, view: "View", field: list[int], ground: Painting, car: Painting) -> np.ndarray:
        canvas = self._canvas
        canvas.fill(field if view.inside else 0)
        if not view.inside:
            pygame.draw.polygon(canvas, field, view(FIELD))
        for painting in (ground, car):
            for colour, corners in painting:
                pygame.draw.polygon(canvas, colour, corners)
        return _shrink(pygame.transform.smoothscale(canvas, CROPPED))


class View:
    """From the field to the pixels of a canvas.

    In the stock picture the car is in the middle, at a quarter of the height of 1000x800 upside down. The
    arithmetic is the stock class's, operation for operation, because a corner that is cut off to another pixel
    would show.
    """

    def __init__(self, position: Any, angle: float, zoom: float, exact: bool) -> None:
        self.cos, self.sin = pygame.Vector2(1.0, 0.0).rotate_rad(angle)
        x, y = pygame.Vector2(-position[0] * zoom, -position[1] * zoom).rotate_rad(angle)
        self.x, self.y, self.zoom, self.exact = WIDTH / 2 + x, HEIGHT / 4 + y, zoom, exact
        farthest = max(abs(position[0]), abs(position[1])) + REACH / zoom
        self.inside = farthest < car_racing.PLAYFIELD - 1.0  # only the field is in view

    def stock(self, points: np.ndarray) -> np.ndarray:
        """Where ``points`` "... 2" of the field are in the stock picture."""
        x, y = points[..., 0], points[..., 1]
        out = np.empty(points.shape)
        out[..., 0] = (self.cos * x - self.sin * y) * self.zoom + self.x
        out[..., 1] = (self.sin * x + self.cos * y) * self.zoom + self.y
        return out

    def __call__(self, points: np.ndarray) -> list[Any]:
        """The canvas's pixels of ``points`` "... 2", nested lists."""
        out = self.stock(points)
        if not self.exact:  # small, upright, and the dials are below
            out[..., 1] = HEIGHT - out[..., 1]
            out *= FINE * CROPPED[0] / WIDTH, FINE * CROPPED[1] / (HEIGHT - DIALS)
        return out.astype(int).tolist()

    def colours(self, colours: np.ndarray) -> list[list[int]]:
        """What to paint so that ``colours`` "n 3" look as in the stock picture, lists."""
        colours = colours.astype(int)
        if not self.exact:  # both passes of the stock class's smoothscale lose a level, ours none
            colours = np.maximum(colours - 2, 0)
        return colours.tolist()


class Ground:
    """Grass and road of one track: all polygons, in the order of painting."""

    def __init__(self, grass: np.ndarray, road: list[Any], tiles: Any) -> None:
        squares = _grass()
        self.quads = np.concatenate([squares, np.array([corners for corners, _ in road])])
        self.centres = self.quads.mean(1)
        self.radii = np.linalg.norm(self.quads - self.centres[:, None], axis=-1).max(1)
        self.colours = np.concatenate([np.tile(grass, (len(squares), 1)), [colour for _, colour in road]])
        # The game repaints a visited tile in place: let it write into these rows.
        rows, waiting = self.colours[len(squares) :], iter(tiles)
        for i, (corners, colour) in enumerate(road):
            if isinstance(colour, np.ndarray):  # kerbs have tuples, and keep their colour
                next(waiting).color = rows[i]
                road[i] = (corners, rows[i])

    def seen(self, view: View) -> Painting:
        """What may leave a trace above the dials."""
        x, y = view.stock(self.centres).T
        r = self.radii * view.zoom + 2.0
        seen = np.flatnonzero((x > -r) & (x < WIDTH + r) & (y > DIALS - r) & (y < HEIGHT + r))
        return zip(view.colours(self.colours[seen]), view(self.quads[seen]), strict=True)


class CarShape:
    """The polygons of one car: four wheels, each with a mark that turns with it, and four for the hull."""

    def __init__(self, car: Any) -> None:
        self.bodies = car.drawlist
        colours = [[255 * c for c in body.color] for body in self.bodies]
        self.colours = np.array([*colours, car_dynamics.WHEEL_WHITE])
        self.parts: list[Part] = []
        self.body: list[int] = []  # of every corner
        corners: list[Any] = []

        def add(shape: Any, body: int, colour: int, wheel: Any = None) -> None:
            self.parts.append((slice(len(corners), len(corners) + len(shape)), colour, wheel))
            corners.extend(shape)
            self.body.extend([body] * len(shape))

        for i, body in enumerate(self.bodies):
            for fixture in body.fixtures:
                add(fixture.shape.vertices, i, i)
            if body is not car.hull:
                add([(0.0, 0.0)] * 4, i, len(self.bodies), body)
        self.corners = np.array(corners, np.float32)  # seen from their bodies; single precision, as Box2D's

    def seen(self, view: View) -> Painting:
        shown = []
        for part, colour, wheel in self.parts:
            mark = None if wheel is None else _mark(wheel.phase)
            if mark is not None:
                self.corners[part] = mark
            if wheel is None or mark is not None:
                shown.append((part, colour))
        places = [(body.transform.q, body.transform.position) for body in self.bodies]
        rows = np.array([(turn.c, turn.s, at.x, at.y) for turn, at in places], np.float32)
        c, s, at_x, at_y = rows[self.body].T
        x, y = self.corners.T
        corners = view(np.stack([(c * x - s * y) + at_x, (s * x + c * y) + at_y], 1).astype(float))
        colours = view.colours(self.colours)
        return [(colours[colour], corners[part]) for part, colour in shown]


def _mark(phase: float) -> list[tuple[float, float]] | None:
    """The corners of the mark on a wheel that has turned by ``phase``; None while it is on the far side."""
    start, end = math.cos(phase), math.cos(phase + 1.2)
    far = math.sin(phase) > 0, math.sin(phase + 1.2) > 0
    if all(far):
        return None
    start = math.copysign(1.0, start) if far[0] else start
    end = math.copysign(1.0, end) if far[1] else end
    w, r = car_dynamics.WHEEL_W * car_dynamics.SIZE, car_dynamics.WHEEL_R
    low, high = r * start * car_dynamics.SIZE, r * end * car_dynamics.SIZE
    return [(-w, low), (w, low), (w, high), (-w, high)]


def _grass() -> np.ndarray:
    """The lighter squares of the field, float64 "400 4 2"."""
    d = car_racing.GRASS_DIM
    corners = [
        [(d * x + d, d * y), (d * x, d * y), (d * x, d * y + d), (d * x + d, d * y + d)]
        for x in range(-20, 20, 2)
        for y in range(-20, 20, 2)
    ]
    return np.array(corners)


def _shrink(picture: Any) -> np.ndarray:
    """A surface of the ``CROPPED`` size as uint8 "64 64 3"."""
    image = Image.frombuffer("RGB", picture.get_size(), picture.get_buffer().raw, "raw", "BGRX", 0, 1)
    return np.array(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
