"""Steering a rolling toy by a camera above it, DayDreamer's Sphero Ollie (Wu et al. 2022), as a twin in MuJoCo.

Two motors, two numbers in [-1, 1]: 70/255 of what they can do. The picture from above is all that is seen; where
the toy points must be told from how it moved. The reward is minus its distance to one fixed goal, in arenas, and
is read off the same picture by colour. 2 decisions a second, 100 to an episode, never terminal.

The body is our own: a cylinder on two wheels, as the Ollie is, within four walls.
"""

import numpy as np

from reverie.envs.pixels import MuJoCoCamera, choose_gl
from reverie.robots.base import Reading, Twin
from reverie.types import ActionSpace, ReverieError, Space

GOAL = np.array([0.825, 0.165])  # of the arena, which is [0, 1] x [0, 1]
NEAR = 0.1  # of the goal: a success
GEAR = 70 / 255  # of the motors' range that a policy may use
BURST = 100 / 255  # ... and that a reset uses
FULL = 50.0  # rad/s of a wheel at its motor's end
STEP = 0.002  # s


def reward(position: np.ndarray) -> float:
    """Minus the distance "2" to the goal."""
    return -float(np.linalg.norm(position - GOAL))


def locate(image: np.ndarray) -> np.ndarray | None:
    """Where the blue is in a picture "h w 3" of the arena: x to the right, y up, both in [0, 1]; None if nowhere."""
    red, green, blue = (image[..., i].astype(int) for i in range(3))
    rows, columns = np.nonzero((blue > 90) & (blue > 2 * red) & (2 * blue > 3 * green))
    if len(rows) == 0:
        return None
    height, width = image.shape[:2]
    return np.array([(columns.mean() + 0.5) / width, 1 - (rows.mean() + 0.5) / height])


class Ball(Twin):
    rate, episode, resets = 2.0, 100, True

    def __init__(self, seed: int = 0, size: int = 64, renderer: str = "near"):
        super().__init__(seed)
        self.obs_space = {"image": Space((size, size, 3), "uint8")}
        self.act_space = ActionSpace(2)
        choose_gl()
        try:
            import mujoco
        except ImportError as error:
            raise ReverieError(f"the ball needs MuJoCo: pip install 'reverie[robots]' ({error})") from error
        self._mj = mujoco
        self.model = mujoco.MjModel.from_xml_string(SCENE)
        self.data = mujoco.MjData(self.model)
        self._camera = MuJoCoCamera(self.model, self.data, size, renderer, "above")
        self.seen = np.array([0.5, 0.5])  # where it was last seen

    @property
    def position(self) -> np.ndarray:
        """Where it really is, "2"."""
        return self.data.qpos[:2].copy()

    def reset(self) -> None:
        """Five bursts of a second at random, then four seconds to come to rest."""
        self._mj.mj_resetData(self.model, self.data)
        x, y = self.rng.uniform(0.2, 0.8, 2)
        turn = self.rng.uniform(-np.pi, np.pi) / 2
        self.data.qpos[:7] = [x, y, 0.03, np.cos(turn), 0, 0, np.sin(turn)]
        for _ in range(5):
            self._drive(self.rng.choice([-BURST, BURST], 2), 1.0)
        self._drive(np.zeros(2), 4.0)

    def sense(self) -> Reading:
        image = self._camera()
        found = locate(image)
        self.seen = self.seen if found is None else found
        return Reading({"image": image}, reward(self.seen))

    def send(self, action: np.ndarray) -> None:
        self._drive(GEAR * np.clip(action, -1, 1), 1 / self.rate)

    def stop(self) -> None:
        self.data.ctrl[:] = 0

    def render(self) -> np.ndarray:
        return self._camera()

    def close(self) -> None:
        self._camera.close()

    def _drive(self, speeds: np.ndarray, seconds: float) -> None:
        """Left and right wheel at ``speeds`` "2", as parts of the motors' range."""
        self.data.ctrl[:] = FULL * np.asarray(speeds)
        self._mj.mj_step(self.model, self.data, round(seconds / STEP))
        self._mj.mj_forward(self.model, self.data)


WALL = '<geom type="box" rgba="0.5 0.5 0.5 1" friction="0.1 0.01 0.01" '
SCENE = f"""
<mujoco>
  <option timestep="{STEP}" integrator="implicitfast"/>
  <visual><headlight ambient="0.5 0.5 0.5" diffuse="0.3 0.3 0.3" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="above" pos="0.5 0.5 1.2071" fovy="45"/>
    <geom type="plane" pos="0.5 0.5 0" size="0.8 0.8 0.1" rgba="0.85 0.83 0.8 1"/>
    {WALL} pos="0.5 -0.02 0.03" size="0.54 0.02 0.03"/>{WALL} pos="0.5 1.02 0.03" size="0.54 0.02 0.03"/>
    {WALL} pos="-0.02 0.5 0.03" size="0.02 0.5 0.03"/>{WALL} pos="1.02 0.5 0.03" size="0.02 0.5 0.03"/>
    <body name="toy" pos="0.5 0.5 0.03">
      <freejoint/>
      <geom type="cylinder" euler="90 0 0" size="0.028 0.035" mass="0.12" contype="0" conaffinity="0"
            rgba="0.1 0.25 0.9 1"/>
      <geom type="sphere" pos="0.024 0 -0.018" size="0.011" mass="0.01"
            friction="0 0 0" condim="1" rgba="0.1 0.25 0.9 1"/>
      <geom type="sphere" pos="-0.024 0 -0.018" size="0.011" mass="0.01"
            friction="0 0 0" condim="1" rgba="0.1 0.25 0.9 1"/>
      <geom type="sphere" size="0.04" mass="0.001" contype="2" conaffinity="0" rgba="0 0 0 0"/>
      <body pos="0 0.042 0"><joint name="left" axis="0 1 0" damping="0.0005"/>
        <geom type="cylinder" euler="90 0 0" size="0.03 0.006" mass="0.02"
              friction="1 0.01 0.001" rgba="0.1 0.2 0.8 1"/></body>
      <body pos="0 -0.042 0"><joint name="right" axis="0 1 0" damping="0.0005"/>
        <geom type="cylinder" euler="90 0 0" size="0.03 0.006" mass="0.02"
              friction="1 0.01 0.001" rgba="0.1 0.2 0.8 1"/></body>
    </body>
  </worldbody>
  <actuator>
    <velocity joint="left" kv="0.005" forcerange="-0.03 0.03"/>
    <velocity joint="right" kv="0.005" forcerange="-0.03 0.03"/>
  </actuator>
</mujoco>"""
