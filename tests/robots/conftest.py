"""Skips what needs OpenGL where there is none."""

import numpy as np
import pytest

from reverie.envs.pixels import MuJoCoCamera, choose_gl


@pytest.fixture(scope="session")
def gl() -> None:
    """Asks for a machine that can draw MuJoCo pictures."""
    choose_gl()
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = MuJoCoCamera(model, data, 16, "near", -1)
    try:
        drawn = bool(np.asarray(camera()).any())
    except Exception as error:
        pytest.skip(f"no OpenGL: {error}")
    finally:
        camera.close()
    if not drawn:
        pytest.skip("OpenGL draws nothing here")
