"""Pictures: MuJoCo drawn at a size an agent needs, and fast exact shrinking of any picture.

MuJoCo's stock quality (2048-texel shadow map, 4x MSAA, fine tessellation) costs 15 to 50 ms for a 64x64
picture in software, twenty to a hundred times the physics. Three presets say how it is drawn; physics,
rewards and states are the same under all of them:

    reference   the stock quality, pixel for pixel
    near        shadow map of 128 texels, no MSAA, coarser round shapes: about 1/255 from the stock picture
    fast        as near, without shadows and reflections: some lights are lost
"""

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from reverie.types import ReverieError


@dataclass(frozen=True)
class Preset:
    """How MuJoCo draws. None leaves the model's own value."""

    shadowsize: int | None = None
    offsamples: int | None = None
    slices: int | None = None
    stacks: int | None = None
    reflections: bool = True


PRESETS = {
    "reference": Preset(),
    "near": Preset(shadowsize=128, offsamples=0, slices=8, stacks=4),
    "fast": Preset(shadowsize=0, offsamples=0, slices=8, stacks=4, reflections=False),
}


def preset(name: str) -> Preset:
    """The preset called ``name``; raises ``ReverieError`` with the names there are."""
    if name not in PRESETS:
        raise ReverieError(f"there is no renderer {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


NO_GL = (
    "no OpenGL for pictures: install one with `apt-get install libosmesa6` (then MUJOCO_GL=osmesa) or "
    "`apt-get install libegl1 libopengl0 libgl1-mesa-dri` (then MUJOCO_GL=egl)"
)


def choose_gl() -> str:
    """Decide how MuJoCo finds OpenGL, before it is first imported: egl, else osmesa, else none.

    A ``MUJOCO_GL`` that is set is left alone, and so are systems that are not Linux. Returns the choice.
    """
    if sys.platform.startswith("linux") and not os.environ.get("MUJOCO_GL") and "mujoco" not in sys.modules:
        os.environ["MUJOCO_GL"] = "egl" if _egl_works() else "osmesa" if _loads("libOSMesa.so") else "disable"
    return os.environ.get("MUJOCO_GL", "")


def choose_sdl() -> None:
    """Let environments that draw with pygame do so without a screen, where there is none."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not screen:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


def _loads(*names: str) -> bool:
    for name in names:
        for suffix in ("", ".8", ".6", ".1", ".0"):
            try:
                ctypes.CDLL(name + suffix)
                break
            except OSError:
                continue
        else:
            return False
    return True


def _egl_works() -> bool:
    """Whether there is an EGL library with at least one device, and the OpenGL that goes with it."""
    if not _loads("libEGL.so", "libOpenGL.so"):
        return False
    egl = ctypes.CDLL("libEGL.so.1")
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return False
    kind = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
    count = ctypes.c_int(0)
    return bool(kind(address)(0, None, ctypes.byref(count))) and count.value > 0


class MuJoCoCamera:
    """Draws one MuJoCo model from one camera, ``size`` x ``size``, by a preset.

    The OpenGL context is made at the first picture, in the process and thread that draws it; the preset is
    written into ``model.vis`` then, which changes nothing but pictures.
    """

    def __init__(self, model: Any, data: Any, size: int, renderer: str, camera: Any = 0) -> None:
        self.model, self.data, self.size, self.camera = model, data, size, camera
        self.preset = preset(renderer)
        self._renderer: Any = None

    def __call__(self) -> np.ndarray:
        """A picture of the present state, uint8 "size size 3"."""
        if self._renderer is None:
            self._renderer = self._open()
        self._renderer.update_scene(self.data, camera=self.camera)
        return self._renderer.render()

    def _open(self) -> Any:
        import mujoco

        visual, how = self.model.vis, self.preset
        if how.shadowsize is not None:
            visual.quality.shadowsize = how.shadowsize
        if how.offsamples is not None:
            visual.quality.offsamples = how.offsamples
        if how.slices is not None:
            visual.quality.numslices, visual.quality.numstacks = how.slices, how.stacks
        if how is not PRESETS["reference"]:
            visual.global_.offwidth = visual.global_.offheight = self.size
        else:
            visual.global_.offwidth = max(self.size, visual.global_.offwidth)
            visual.global_.offheight = max(self.size, visual.global_.offheight)
        try:
            renderer = mujoco.Renderer(self.model, self.size, self.size)
        except Exception as error:
            raise ReverieError(f"MuJoCo cannot draw ({type(error).__name__}: {error}): {NO_GL}.") from error
        if not how.reflections:
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        return renderer

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """``image`` "h w c" as uint8 "size size c": each pixel the mean of the area it covers.

    Growing repeats pixels. Any number of channels; a picture that is not square is stretched.
    """
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    if channels == 3:  # not 4, which Pillow would take for transparency
        return np.array(_shrink(image, size))
    return np.stack([np.asarray(_shrink(image[..., c], size)) for c in range(channels)], axis=-1)


def _shrink(image: np.ndarray, size: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image)).resize((size, size), Image.Resampling.BOX)
