"""The Unitree A1, DayDreamer's walking robot (Wu et al. 2022, arXiv 2206.14176), as a twin in MuJoCo.

Its body is the manufacturer's description (URDF and meshes) as the package ``pybullet`` ships it; physics is
MuJoCo's. What is between the policy and the motors follows the authors' released code::

    action in [-1, 1]  ->  joint angles  ->  Butterworth, 1.5 Hz  ->  straight lines over 50 commands of 1 ms
    ->  at most 0.2 rad from where the joint is  ->  PD: 100 (q* - q) - (1, 2, 2) q'  ->  at most 42 Nm

20 decisions a second; it begins on its back, nobody puts it on its feet, and no episode ends but by the clock.
Without the filter it does not learn to walk, one public attempt found.

Deviations: the reward reads the simulated velocity, where the robot estimates it by a Kalman filter.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from reverie.envs.pixels import MuJoCoCamera, choose_gl
from reverie.robots.base import Reading, Twin
from reverie.robots.filters import Butterworth
from reverie.types import ActionSpace, ReverieError, Space

# Per leg: hip, shoulder, knee; legs front right, front left, rear right, rear left.
LOW = np.tile([-0.7868, -0.99484, -2.6787], 4)  # rad, what an action can ask for
HIGH = np.tile([0.7868, 3.66519, -1.62839], 4)
STAND = np.tile([0.0, -0.2, 1.0], 4)  # the pose that the reward calls standing, normalised to [-1, 1]
STIFFNESS, DAMPING = 100.0, np.tile([1.0, 2.0, 2.0], 4)  # Nm/rad, Nm s/rad
TORQUE = 42.0  # Nm
COMMANDS = 50  # of 1 ms, in a decision
STRAY = 0.2  # rad a command may be from where the joint is
CUTOFF = 1.5  # Hz
SPEED = 0.3  # m/s, walking
PUSH, PUSH_EVERY = 0.8, 5.0  # m/s that a push adds, seconds between two, on average


def normalise(angles: np.ndarray) -> np.ndarray:
    """Joint angles "12" in rad as actions: -1 at LOW, 1 at HIGH."""
    return 2 * (angles - LOW) / (HIGH - LOW) - 1


def angles_of(action: np.ndarray) -> np.ndarray:
    """Actions "12" as joint angles in rad."""
    return LOW + (np.clip(action, -1, 1) + 1) / 2 * (HIGH - LOW)


def reward(up: float, joints: np.ndarray, velocity: np.ndarray, forward: np.ndarray) -> float:
    """A ladder: be upright; then have hips, shoulders and knees as in standing; then walk. From 5 to 14.

    ``up`` is the height of the body's up axis (cosine of the tilt), ``joints`` the normalised angles "12",
    ``velocity`` "3" in m/s and ``forward`` the body's x axis laid on the ground "3", both in the world's frame. A
    rung counts only when the one below it is above 0.7.
    """
    deviation = np.clip(np.abs(joints - STAND) / np.maximum(1 - STAND, 1 + STAND), 0, 1).reshape(4, 3).mean(0)
    rungs = [up / 2 + 0.5]
    for part in deviation:  # hip, shoulder, knee
        rungs.append(float(rungs[-1] > 0.7) * (1 - part))
    speed, ahead = float(np.linalg.norm(velocity)), float(velocity @ forward)
    straight = max(0.0, ahead) / speed if speed > 0 else 0.0
    walking = float(rungs[-1] > 0.7) * straight * np.clip(ahead / SPEED, -1, 1)
    return float(sum(rungs) + 10 * (walking + 1) / 2)


class A1(Twin):
    """``urdf`` is another copy of the robot's description, with meshes that MuJoCo reads beside it."""

    rate, episode, resets = 20.0, 250, False

    def __init__(
        self, seed: int = 0, urdf: str | Path | None = None, size: int = 240, renderer: str = "near"
    ):
        super().__init__(seed)
        self.obs_space = {"vector": Space((16,))}  # roll, pitch, their rates, 12 joint angles
        self.act_space = ActionSpace(12)
        self.model = build(Path(urdf) if urdf else find_urdf())
        import mujoco

        self._mj, self.data = mujoco, mujoco.MjData(self.model)
        self.trunk = self.model.body("trunk").id
        self.filter = Butterworth(CUTOFF, self.rate, 12)
        self.aim = np.zeros(12)  # the last filtered joint angles
        self._camera = MuJoCoCamera(self.model, self.data, size, renderer, "track")

    def reset(self) -> None:
        """On its back, turned and folded at random; lies there for a second."""
        self._mj.mj_resetData(self.model, self.data)
        roll, yaw = np.pi + self.rng.uniform(-0.3, 0.3), self.rng.uniform(-np.pi, np.pi)
        joints = self.rng.uniform(LOW, HIGH)
        self.place(joints, roll, yaw, height=0.25)
        for _ in range(20):
            self._move(joints)
        self.filter.reset(self.joints)
        self.aim = self.joints.copy()

    def place(self, joints: np.ndarray, roll: float = 0.0, yaw: float = 0.0, height: float = 0.3) -> None:
        """Put it somewhere, at rest: ``joints`` "12" and angles in rad, ``height`` of the trunk in m."""
        self._mj.mj_resetData(self.model, self.data)
        cr, sr, cy, sy = np.cos(roll / 2), np.sin(roll / 2), np.cos(yaw / 2), np.sin(yaw / 2)
        self.data.qpos[:] = [0, 0, height, cr * cy, sr * cy, sr * sy, cr * sy, *joints]
        self._mj.mj_forward(self.model, self.data)
        self.filter.reset(joints)
        self.aim = np.array(joints, np.float64)

    def push(self, velocity: np.ndarray) -> None:
        """A shove: changes the trunk's horizontal velocity by ``velocity`` "2" in m/s at once."""
        self.data.qvel[:2] += velocity
        self._mj.mj_forward(self.model, self.data)

    @property
    def joints(self) -> np.ndarray:
        """Joint angles "12" in rad."""
        return self.data.qpos[7:]

    @property
    def rotation(self) -> np.ndarray:
        """Body to world, "3 3"."""
        return self.data.xmat[self.trunk].reshape(3, 3)

    def sense(self) -> Reading:
        turn = self.rotation
        roll, pitch = np.arctan2(turn[2, 1], turn[2, 2]), -np.arcsin(np.clip(turn[2, 0], -1, 1))
        rates = self.data.qvel[3:5]  # a free joint's are in the body's frame, as a gyroscope's
        vector = np.concatenate([[roll, pitch], rates, self.joints]).astype(np.float32)
        forward = np.array([turn[0, 0], turn[1, 0], 0.0])
        forward /= max(float(np.linalg.norm(forward)), 1e-9)
        value = reward(float(turn[2, 2]), normalise(self.joints), self.data.qvel[:3], forward)
        return Reading({"vector": vector}, value)

    def send(self, action: np.ndarray) -> None:
        self._move(self.filter(angles_of(np.asarray(action, np.float64))))

    def stop(self) -> None:
        """Stay in the pose it has."""
        self.filter.reset(self.joints)
        self.aim = self.joints.copy()

    def _move(self, aim: np.ndarray) -> None:
        """One period of physics, from the last aim to this one."""
        for k in range(1, COMMANDS + 1):
            command = self.aim + (aim - self.aim) * (k / COMMANDS)
            here = self.data.qpos[7:]
            self.data.ctrl[:] = np.minimum(np.maximum(command, here - STRAY), here + STRAY)
            self._mj.mj_step(self.model, self.data)
        self._mj.mj_forward(self.model, self.data)  # so that what is read belongs to this moment
        self.aim = np.array(aim, np.float64)
        if not np.isfinite(self.data.qpos).all():
            raise ReverieError("the A1's physics went to infinity; make a new twin")

    def render(self) -> np.ndarray:
        return self._camera()

    def close(self) -> None:
        self._camera.close()


class PushedA1(A1):
    """The A1, pushed to some side now and then: what a policy that has learned to walk is to get used to."""

    def send(self, action: np.ndarray) -> None:
        if self.rng.random() < 1 / (PUSH_EVERY * self.rate):
            way = self.rng.uniform(-np.pi, np.pi)
            self.push(PUSH * np.array([np.cos(way), np.sin(way)]))
        super().send(action)


def find_urdf() -> Path:
    """The A1's description in the package pybullet, which itself is not loaded."""
    spec = find_spec("pybullet_data")
    if spec is None or spec.origin is None:
        raise ReverieError(
            "the A1 needs its description: pip install 'reverie[robots]' (it is in the package pybullet), or give "
            "A1(urdf=...) a copy of yours"
        )
    return Path(spec.origin).parent / "a1" / "a1.urdf"


def build(urdf: Path) -> Any:
    """The MuJoCo model: the description with a free base, motors, a floor and light."""
    choose_gl()
    try:
        import mujoco
    except ImportError as error:
        raise ReverieError(f"the A1 needs MuJoCo: pip install 'reverie[robots]' ({error})") from error
    text = urdf.read_text()
    at = text.index('<link name="trunk">')
    free = (
        f'<mujoco><compiler meshdir="{urdf.parent}" strippath="false" discardvisual="false" fusestatic="true"/>'
        '</mujoco><link name="base"/>'
        '<joint name="root" type="floating"><parent link="base"/><child link="trunk"/></joint>'
    )
    spec = mujoco.MjSpec.from_string(text[:at] + free + text[at:])
    spec.option.timestep = 0.001
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    for body in spec.bodies:
        for geom in list(body.geoms):
            if geom.type == mujoco.mjtGeom.mjGEOM_BOX and max(geom.size) < 0.001:
                spec.delete(geom)  # marks the IMU
            elif geom.contype:
                geom.group, geom.friction = 3, [0.8, 0.02, 0.01]  # touches, and is not drawn
            elif geom.type == mujoco.mjtGeom.mjGEOM_MESH:
                dark = geom.meshname in ("hip", "calf")
                geom.rgba = [0.2, 0.2, 0.22, 1] if dark else [0.95, 0.55, 0.15, 1]
    joints = [joint for joint in spec.joints if joint.type == mujoco.mjtJoint.mjJNT_HINGE]
    for i, joint in enumerate(joints):
        joint.actfrclimited = mujoco.mjtLimited.mjLIMITED_FALSE  # the motors have the limit
        joint.armature = 0.01
        motor = spec.add_actuator(name=joint.name, target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        motor.gaintype, motor.biastype = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
        motor.gainprm[0] = STIFFNESS
        motor.biasprm[:3] = [0, -STIFFNESS, -DAMPING[i]]
        motor.forcelimited, motor.forcerange = mujoco.mjtLimited.mjLIMITED_TRUE, [-TORQUE, TORQUE]
    for leg in ("FR", "FL", "RR", "RL"):
        spec.add_exclude(bodyname1="trunk", bodyname2=f"{leg}_upper")  # they overlap at the shoulder
    _furnish(spec, mujoco)
    return spec.compile()


def _furnish(spec: Any, mujoco: Any) -> None:
    """A floor to walk on, light, and a camera that follows."""
    spec.add_texture(
        name="floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.80, 0.82, 0.85],
        rgb2=[0.70, 0.72, 0.75],
        width=128,
        height=128,
    )
    floor = spec.add_material(name="floor", texrepeat=[2, 2], texuniform=True)
    floor.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.55, 0.70, 0.85],
        rgb2=[0.95, 0.97, 1.0],
        width=64,
        height=384,
    )
    world = spec.worldbody
    world.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[0, 0, 0.5],
        material="floor",
        friction=[0.8, 0.02, 0.01],
    )
    world.add_light(pos=[0, 0, 4], dir=[0.2, 0.2, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    spec.body("trunk").add_camera(
        name="track", pos=[0.9, -1.1, 0.5], xyaxes=[0.77, 0.63, 0, -0.21, 0.26, 0.94], fovy=40,
        mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACK,
    )  # fmt: skip
