"""Visual pick-and-place, DayDreamer's task for arms (Wu et al. 2022): a six-jointed arm, two bins, sparse reward.

Six discrete actions: one step of 4 cm along x or y within the bin, open or close the gripper, go down or up. It
goes up only while it holds something, and from bin to bin only while it holds something up. ::

    +1     something is held that was not
    -1     what was held is let go in the bin it was taken from
    +10    what is held has reached the other bin; the twin itself then opens the gripper, and goes down
           somewhere in that bin

Held means: the gripper is neither open nor closed. 2 decisions a second, 100 to an episode, never terminal. The
observation is a picture of 64x64 and what the arm knows of itself.

The arm is our own, drawn by the hand: six hinges, a parallel gripper with friction, three balls to carry; MuJoCo
moves it. Its hand follows an aim, so nobody solves for its joints.
Deviations: places are the cells of a grid; a reset puts the balls back too; walls stop the balls and not the
fingers.
"""

import numpy as np

from reverie.envs.pixels import MuJoCoCamera, choose_gl
from reverie.robots.base import Reading, Twin
from reverie.types import ActionSpace, ReverieError, Space

CELL = 0.04  # m, a step
CELLS = 5  # to a side of a bin
LOW, HIGH = 0.085, 0.2  # m, the hand with its fingers on the table, and above it
HELD = (0.015, 0.985)  # of the gripper's way from open (0) to closed (1), both ends excluded
MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1))  # of actions 0..3, in cells along x and y
GRIP, LIFT = 4, 5
OPENING = 0.04  # m, of each finger
BALLS = 3
RADIUS = 0.018  # m, of what is carried
CENTRE, APART = 0.45, 0.25  # m: the bins' x, and the y between their middles
PERIOD, STEP = 0.5, 0.002  # s


def bin_of(cell: tuple[int, int]) -> int:
    """0 for the left bin, 1 for the right."""
    return cell[1] // CELLS


def moved(cell: tuple[int, int], by: tuple[int, int], free: bool) -> tuple[int, int]:
    """Where a step leads: cells are (x, y) with y through both bins; only a ``free`` hand leaves its bin."""
    x = min(max(cell[0] + by[0], 0), CELLS - 1)
    y = min(max(cell[1] + by[1], 0), 2 * CELLS - 1)
    return (x, y) if free or bin_of((x, y)) == bin_of(cell) else (x, cell[1])


def place_of(cell: tuple[int, int]) -> np.ndarray:
    """The middle of a cell in m, "2"."""
    side, within = divmod(cell[1], CELLS)
    y = (side - 0.5) * APART + (within - (CELLS - 1) / 2) * CELL
    return np.array([CENTRE + (cell[0] - (CELLS - 1) / 2) * CELL, y])


class PickPlace(Twin):
    """Observations: ``image``, the hand's ``pose`` (x y z in m, roll pitch yaw in rad), ``joints`` in rad, ``gripper``
    (0 open, 1 closed), and one-hot (none, left, right) the ``side`` it is at and the side it ``grasped`` at."""

    rate, episode, resets = 2.0, 100, True

    def __init__(self, seed: int = 0, size: int = 64, renderer: str = "near"):
        super().__init__(seed)
        self.obs_space = {
            "image": Space((size, size, 3), "uint8"),
            "pose": Space((6,)),
            "joints": Space((6,)),
            "gripper": Space((1,)),
            "side": Space((3,)),
            "grasped": Space((3,)),
        }
        self.act_space = ActionSpace(6, (6,))
        choose_gl()
        try:
            import mujoco
        except ImportError as error:
            raise ReverieError(f"the arm needs MuJoCo: pip install 'reverie[robots]' ({error})") from error
        self._mj = mujoco
        self.model = mujoco.MjModel.from_xml_string(scene())
        self.data = mujoco.MjData(self.model)
        self.hand = self.model.body("hand").id
        self.fingers = [self.model.joint(name).qposadr[0] for name in ("left_finger", "right_finger")]
        self.balls = [self.model.joint(f"ball{i}").qposadr[0] for i in range(BALLS)]
        self._camera = MuJoCoCamera(self.model, self.data, size, renderer, "front")
        self.cell, self.height, self.closed = (0, 0), HIGH, False
        self.grasped_in = -1  # the bin in which what is held was taken; -1: nothing is held
        self.earned = 0.0

    # What the hand does

    def reset(self) -> None:
        """The balls lie somewhere in one bin; the open hand goes down somewhere in it."""
        self._mj.mj_resetData(self.model, self.data)
        side = int(self.rng.integers(2))
        for i, cell in enumerate(self.rng.permutation(CELLS * CELLS)[:BALLS]):
            x, y = place_of((int(cell) // CELLS, side * CELLS + int(cell) % CELLS))
            at = self.balls[i]
            self.data.qpos[at : at + 7] = [x, y, RADIUS, 1, 0, 0, 0]
        self.cell, self.height, self.closed = (CELLS // 2, side * CELLS + CELLS // 2), HIGH, False
        self.grasped_in, self.earned = -1, 0.0
        self.data.mocap_pos[0] = [*place_of(self.cell), HIGH]
        self._pass(1.0)
        self._go_down_in(side)

    def send(self, action: np.ndarray) -> None:
        choice, up = int(np.argmax(action)), self.height == HIGH
        if choice < GRIP:
            self.cell = moved(self.cell, MOVES[choice], free=up and self.held)
        elif choice == GRIP:
            self.closed = not self.closed
        elif up:
            self.height = LOW
        elif self.held:
            self.height = HIGH
        self._pass(PERIOD)
        self.earned = self._judge()

    def _judge(self) -> float:
        """The reward of the period that ends now, and what the twin does about it."""
        held, here = self.held, bin_of(self.cell)
        if held and self.grasped_in < 0:
            self.grasped_in = here
            return 1.0
        if held and here != self.grasped_in:
            self.closed, self.grasped_in = False, -1
            self._pass(PERIOD)
            self._go_down_in(here)
            return 10.0
        if not held and self.grasped_in >= 0:
            self.closed, self.height, self.grasped_in = False, LOW, -1
            self._pass(PERIOD)
            return -1.0
        return 0.0

    def _go_down_in(self, side: int) -> None:
        self.cell = (int(self.rng.integers(CELLS)), side * CELLS + int(self.rng.integers(CELLS)))
        self.height = HIGH
        self._pass(PERIOD)
        self.height = LOW
        self._pass(PERIOD)

    def stop(self) -> None:
        """Stay where it is, with the gripper as it is."""
        self.data.mocap_pos[0] = self.data.xpos[self.hand]

    # What it knows

    @property
    def gripper(self) -> float:
        """0 open, 1 closed."""
        return float(1 - sum(self.data.qpos[at] for at in self.fingers) / (2 * OPENING))

    @property
    def held(self) -> bool:
        return self.closed and bool(HELD[0] < self.gripper < HELD[1])

    def sense(self) -> Reading:
        turn = self.data.xmat[self.hand].reshape(3, 3)
        angles = [
            np.arctan2(turn[2, 1], turn[2, 2]),
            -np.arcsin(np.clip(turn[2, 0], -1, 1)),
            np.arctan2(turn[1, 0], turn[0, 0]),
        ]
        sides = np.eye(3, dtype=np.float32)
        obs = {
            "image": self._camera(),
            "pose": np.array([*self.data.xpos[self.hand], *angles], np.float32),
            "joints": self.data.qpos[:6].astype(np.float32),
            "gripper": np.array([self.gripper], np.float32),
            "side": sides[1 + bin_of(self.cell)],
            "grasped": sides[1 + self.grasped_in],
        }
        return Reading(obs, self.earned)

    def render(self) -> np.ndarray:
        return self._camera()

    def close(self) -> None:
        self._camera.close()

    # Physics

    def _pass(self, seconds: float) -> None:
        """The hand goes to where it should be in the first half of ``seconds``; then it rests."""
        start, end = self.data.mocap_pos[0].copy(), np.array([*place_of(self.cell), self.height])
        self.data.ctrl[:] = -0.01 if self.closed else OPENING + 0.01  # pushes against the end of its way
        n = round(seconds / STEP)
        for k in range(1, n + 1):
            self.data.mocap_pos[0] = start + (end - start) * min(1.0, 2 * k / n)
            self._mj.mj_step(self.model, self.data)
        self._mj.mj_forward(self.model, self.data)
        if not np.isfinite(self.data.qpos).all():
            raise ReverieError("the arm's physics went to infinity; make a new twin")


def scene() -> str:
    """The arm, two bins and the balls, as MJCF."""
    side = CELLS * CELL / 2 + 0.01  # half of a bin's inside

    def walls(y: float) -> str:
        colour = 'rgba="0.2 0.22 0.27 1"'
        boxes = [
            (CENTRE, y - side - 0.004, side + 0.008, 0.004),
            (CENTRE, y + side + 0.004, side + 0.008, 0.004),
            (CENTRE - side - 0.004, y, 0.004, side),
            (CENTRE + side + 0.004, y, 0.004, side),
        ]
        return "".join(
            f'<geom type="box" pos="{x} {at} 0.012" size="{dx} {dy} 0.012" {colour}/>'
            for x, at, dx, dy in boxes
        )

    colours = ("0.85 0.2 0.2", "0.2 0.65 0.3", "0.95 0.75 0.1")
    balls = "".join(
        f'<body pos="0.3 0.{i}5 {RADIUS}"><freejoint name="ball{i}"/><geom type="sphere" size="{RADIUS}" mass="0.03" '
        f'rgba="{colours[i % 3]} 1" contype="3" conaffinity="3" friction="1 0.01 0.001" condim="6"/></body>'
        for i in range(BALLS)
    )

    def finger(name: str, way: int) -> str:
        return (
            f'<body name="{name}" pos="{way * 0.004} 0 -0.05"><joint name="{name}_finger" type="slide" '
            f'axis="{way} 0 0" range="0 {OPENING}" damping="4" armature="0.1" solreflimit="0.01 1"/><geom type="box" '
            f'size="0.004 0.018 0.03" mass="0.03" contype="2" conaffinity="2" friction="2 0.05 0.01" condim="6" '
            f'rgba="0.15 0.15 0.17 1"/></body>'
        )

    def link(name: str, axis: str, length: float, radius: float, inner: str, pos: str) -> str:
        return (
            f'<body name="{name}" pos="{pos}" gravcomp="1"><joint name="{name}" axis="{axis}" damping="3" '
            f'armature="0.05"/><geom type="capsule" fromto="0 0 0 0 0 {length}" size="{radius}" mass="0.8" '
            f'contype="0" conaffinity="0" rgba="0.80 0.84 0.90 1"/>{inner}</body>'
        )

    hand = (
        '<body name="hand" pos="0 0 0.08" quat="0 1 0 0" gravcomp="1"><geom type="box" size="0.05 0.02 0.015" '
        'mass="0.2" contype="0" conaffinity="0" rgba="0.25 0.27 0.3 1"/>'
        f"{finger('left', 1)}{finger('right', -1)}</body>"
    )
    wrist3 = link("wrist3", "0 0 1", 0.05, 0.025, hand, "0 0 0.06")
    wrist2 = link("wrist2", "1 0 0", 0.05, 0.025, wrist3, "0 0 0.06")
    wrist1 = link("wrist1", "0 1 0", 0.05, 0.028, wrist2, "0 0 0.34")
    elbow = link("elbow", "0 1 0", 0.32, 0.03, wrist1, "0 0 0.36")
    lift = link("lift", "0 1 0", 0.34, 0.036, elbow, "0 0 0.08")
    pan = link("pan", "0 0 1", 0.06, 0.05, lift, "0 0 0.12")
    return f"""
<mujoco>
  <option timestep="{STEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual><headlight ambient="0.35 0.35 0.35" diffuse="0.5 0.5 0.5"/></visual>
  <worldbody>
    <light pos="0.4 0 1.6" dir="0 0 -1" castshadow="true"/>
    <camera name="front" pos="0.93 0 0.5" xyaxes="0 1 0 -0.74 0 0.67" fovy="54"/>
    <geom name="table" type="plane" size="1.5 1.5 0.1" rgba="0.55 0.54 0.52 1" friction="0.8 0.02 0.002"/>
    {walls(-APART / 2)}{walls(APART / 2)}
    {pan}{balls}
    <body name="aim" mocap="true" pos="{CENTRE} 0 {HIGH}"/>
  </worldbody>
  <equality><weld body1="aim" body2="hand" relpose="0 0 0 1 0 0 0" solref="0.01 1" torquescale="0.5"/></equality>
  <actuator>
    <position joint="left_finger" kp="400" forcerange="-8 8"/>
    <position joint="right_finger" kp="400" forcerange="-8 8"/>
  </actuator>
</mujoco>"""
