"""Every test runs on one thread, with shapes and types of the whole package checked as it runs."""

import os

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

from collections.abc import Iterator

from jaxtyping import install_import_hook

install_import_hook("reverie", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("reverie", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("reverie")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Banks of levels are made for the tests, and not left in anybody's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REVERIE_CACHE", str(tmp_path_factory.getbasetemp() / "reverie"))
        yield


@pytest.fixture(scope="session")
def gl() -> None:
    """Asks for a machine that can draw MuJoCo pictures."""
    import numpy as np

    from reverie.envs.pixels import MuJoCoCamera, choose_gl

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


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_flush_denormal(False)  # a learner sets it for its process; hypothesis needs every float
    torch.set_num_threads(1)
