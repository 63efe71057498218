"""Videos for a human eye: uint8 arrays "t h w c" become GIFs, MP4s and printed strips.

What is special here: an *open-loop* picture has three rows, always in this order: what happened, what the
model said would happen, and the signed error (prediction - truth, around middle grey: grey is right,
brighter is too bright, darker is too dark). Between the first two there may be a fourth: what the model makes
of each frame when it is shown it (its reconstruction). Frames the model was shown (the context) carry a grey bar,
frames it only imagined an orange one, so that nobody mistakes a reconstruction for a prediction. Small
frames are enlarged by whole numbers, without smoothing: a pixel stays a pixel. Files appear whole or not at
all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from reverie.types import ReverieError

CONTEXT = (154, 160, 166)  # the grey of frames the model saw
IMAGINED = (213, 94, 0)  # the orange of frames it made up
PAPER = (255, 255, 255)
INK = (60, 64, 67)
CELLS = np.array(  # of planes, first to last
    [
        (66, 66, 82),
        (222, 214, 196),
        (235, 130, 130),
        (86, 160, 90),
        (176, 120, 60),
        (54, 96, 176),
        (150, 90, 170),
        (0, 150, 150),
        (230, 190, 60),
        (110, 110, 110),
        (20, 20, 20),
        (250, 250, 250),
    ],
    np.uint8,
)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``, same suffix; synced and renamed to it if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_gif(path: str | Path, video: UInt8[np.ndarray, "t h w c"], fps: int | float = 20) -> Path:
    """Write an endlessly looping GIF with one palette for all frames (no flicker). Returns the path.

    GIF counts time in 1/100 s: ``fps`` is rounded to that, and 50 is the most that viewers play.
    """
    frames = _rgb(video)
    palette = _palette(frames)
    images = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    duration = max(2, round(100 / fps)) * 10
    with atomic(path) as temporary:
        images[0].save(
            temporary, save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=False
        )
    return Path(path)


def save_mp4(path: str | Path, video: UInt8[np.ndarray, "t h w c"], fps: int | float = 20) -> Path:
    """Write an H.264 file that every browser plays; odd sides are padded by one pixel. Returns the path."""
    frames = _rgb(video)
    odd_h, odd_w = frames.shape[1] % 2, frames.shape[2] % 2
    frames = np.pad(frames, ((0, 0), (0, odd_h), (0, odd_w), (0, 0)), mode="edge")
    with atomic(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            size=(frames.shape[2], frames.shape[1]),
            fps=fps,
            codec="libx264",
            quality=7,
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-preset", "veryfast", "-movflags", "+faststart"],
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
    return Path(path)


def save_strip(
    path: str | Path,
    truth: UInt8[np.ndarray, "t h w c"],
    prediction: UInt8[np.ndarray, "*shape"],
    context: int,
    columns: int = 12,
    reconstruction: UInt8[np.ndarray, "_ _ _ _"] | UInt8[np.ndarray, "_ _ _ _ _"] | None = None,
) -> Path:
    """Write a PNG to print: rows truth, (reconstruction,) prediction, error; columns are time steps, context left.

    About ``columns`` steps are shown: at most a quarter of them context (ending at its last frame), the
    others spread evenly over the imagined part, its first and last frame included. Returns the path.
    """
    rows = _rows(truth, prediction, context, reconstruction)
    steps = _columns(len(truth), context, columns)
    scale = _scale(truth.shape[1], truth.shape[2], 96)
    shown = [enlarge(video[steps], scale) for video in rows.values()]
    h, w = shown[0].shape[1:3]

    pad, gap, left, top = 4, 22, 86 if reconstruction is None else 112, 46
    xs, x = [], left
    for i, step in enumerate(steps):
        if i and step >= context > steps[i - 1]:
            x += gap - pad
        xs.append(x)
        x += w + pad
    image = Image.new("RGB", (x + 12 - pad, top + len(rows) * (h + pad) + 8), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for i, step in enumerate(steps):
        colour = CONTEXT if step < context else IMAGINED
        draw.rectangle((xs[i], top - 9, xs[i] + w - 1, top - 6), fill=colour)
        draw.text((xs[i] + w / 2, top - 13), f"{step + 1}", fill=INK, font=font, anchor="mb")
        for row, frames in enumerate(shown):
            image.paste(Image.fromarray(frames[i]), (xs[i], top + row * (h + pad)))
    seen = [x for x, step in zip(xs, steps, strict=True) if step < context]
    made = [x for x, step in zip(xs, steps, strict=True) if step >= context]
    if seen:
        draw.text((seen[0], 3), "seen", fill=INK, font=font)
    if made:
        draw.text((made[0], 3), "imagined without looking", fill=IMAGINED, font=font)
    if seen and made:
        middle = (seen[-1] + w + made[0]) // 2
        for y in range(top - 9, top + len(rows) * (h + pad), 8):
            draw.line((middle, y, middle, y + 3), fill=INK, width=1)
    for row, name in enumerate(rows):
        draw.text((left - 10, top + row * (h + pad) + h / 2), name, fill=INK, font=font, anchor="rm")
    with atomic(path) as temporary:
        image.save(temporary, optimize=True)
    return Path(path)


def save_futures(
    path: str | Path,
    truth: UInt8[np.ndarray, "t h w c"],
    earned: np.ndarray,
    taken: np.ndarray,
    imagined: UInt8[np.ndarray, "a k h w c"],
    told: np.ndarray,
) -> Path:
    """Write a PNG of one moment: what happened next, and below it one imagined future for each first action, with the
    reward under every frame.

    ``truth`` begins with the moment itself (t = k + 1); ``earned`` "k" and ``taken`` "k" are what arrived with the
    others and the numbers of the actions that led there; ``told`` "a k" are expected rewards. The future that begins
    as reality did is marked. Returns the path.
    """
    if (
        len(truth) != imagined.shape[1] + 1
        or told.shape != imagined.shape[:2]
        or len(earned) != len(truth) - 1
    ):
        raise ReverieError(
            f"a strip of futures needs one frame more of truth than of each future, and a reward for each; got "
            f"{truth.shape}, {earned.shape}, {imagined.shape} and {told.shape}"
        )
    scale = _scale(truth.shape[1], truth.shape[2], 96)
    real = enlarge(_rgb(truth), scale)
    h, w = real.shape[1:3]
    pad, under, left, top = 6, 18, 96, 26
    image = Image.new(
        "RGB", (left + len(truth) * (w + pad) + 6, top + (len(imagined) + 1) * (h + under + pad)), PAPER
    )
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    place = lambda row, column: (left + column * (w + pad), top + row * (h + under + pad))
    for column in range(len(truth)):
        draw.text(
            (place(0, column)[0] + w / 2, 5),
            f"+{column}" if column else "now",
            fill=INK,
            font=font,
            anchor="mt",
        )
    for row in range(len(imagined) + 1):
        frames = real if row == 0 else np.concatenate([real[:1], enlarge(_rgb(imagined[row - 1]), scale)])
        rewards = earned if row == 0 else told[row - 1]
        name = "what happened" if row == 0 else f"action {row - 1}"
        colour = IMAGINED if row and row - 1 == taken[0] else INK
        draw.text((left - 8, place(row, 0)[1] + h / 2), name, fill=colour, font=font, anchor="rm")
        for column in range(row > 0, len(frames)):
            x, y = place(row, column)
            image.paste(Image.fromarray(frames[column]), (x, y))
            if column:
                text = f"{rewards[column - 1]:+.2f}" + (f"  by {taken[column - 1]}" if row == 0 else "")
                draw.text((x + w / 2, y + h + 3), text, fill=colour, font=font, anchor="mt")
                if row:
                    draw.rectangle((x - 2, y - 2, x + w + 1, y + h + 1), outline=IMAGINED, width=2)
    with atomic(path) as temporary:
        image.save(temporary, optimize=True)
    return Path(path)


def open_loop(
    truth: UInt8[np.ndarray, "*n t h w c"],
    prediction: UInt8[np.ndarray, "*shape"],
    context: int,
    reconstruction: UInt8[np.ndarray, "_ _ _ _"] | UInt8[np.ndarray, "_ _ _ _ _"] | None = None,
) -> UInt8[np.ndarray, "t hh ww 3"]:
    """A video of truth, (reconstruction,) prediction and signed error, top to bottom, with a bar that tells the time.

    ``prediction`` covers all T frames; its first ``context`` are reconstructions of what the model was
    shown. With a leading axis n the episodes stand side by side. Error is (prediction - truth) / 2 + 128.
    """
    if truth.ndim == 5:
        if truth.shape != prediction.shape:
            _same(truth[0], prediction[0], "prediction")
            raise ReverieError(
                f"truth has shape {truth.shape} and prediction {prediction.shape}; make them equal"
            )
        others = [None] * len(truth) if reconstruction is None else reconstruction
        each = [_stack(t, p, context, r) for t, p, r in zip(truth, prediction, others, strict=True)]
        return np.concatenate(each, axis=2)
    return _stack(truth, prediction, context, reconstruction)


def grid(
    videos: Sequence[UInt8[np.ndarray, "_ _ _ _"]], columns: int | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """n videos side by side, row by row; shorter ones hold their last frame, smaller ones stand on white.

    Without ``columns`` the sheet comes out about half as wide again as high, with few places left empty.
    """
    if not videos:
        raise ReverieError("a grid needs at least one video, got none; pass a list of uint8 arrays 't h w c'")
    clips = [_rgb(v) for v in videos]
    t, h, w = (max(c.shape[i] for c in clips) for i in range(3))
    columns = columns or _landscape(len(clips), h, w)
    rows = -(-len(clips) // columns)
    pad = 2
    sheet = np.full((t, rows * (h + pad) - pad, columns * (w + pad) - pad, 3), 255, np.uint8)
    for i, clip in enumerate(clips):
        y, x = (i // columns) * (h + pad), (i % columns) * (w + pad)
        held = np.minimum(np.arange(t), len(clip) - 1)
        sheet[:, y : y + clip.shape[1], x : x + clip.shape[2]] = clip[held]
    return sheet


def error(
    truth: UInt8[np.ndarray, "*t h w c"], prediction: UInt8[np.ndarray, "*t h w c"]
) -> UInt8[np.ndarray, "*t h w c"]:
    """Signed error around grey, (prediction - truth) / 2 + 128: 128 is right, 255 far too bright."""
    return ((prediction.astype(np.int16) - truth.astype(np.int16)) // 2 + 128).clip(0, 255).astype(np.uint8)


def enlarge(video: UInt8[np.ndarray, "t h w c"], scale: int) -> UInt8[np.ndarray, "t hh ww c"]:
    """Every pixel becomes a block of ``scale`` x ``scale``."""
    return video.repeat(scale, axis=1).repeat(scale, axis=2)


def _stack(
    truth: np.ndarray, prediction: np.ndarray, context: int, reconstruction: np.ndarray | None
) -> np.ndarray:
    rows = _rows(truth, prediction, context, reconstruction)
    t, h, w, _ = truth.shape
    scale, pad, bar = _scale(h, w, 128), 4, 6
    h, w = h * scale, w * scale
    sheet = np.full((t, bar + len(rows) * (h + pad) + pad, w + 2 * pad, 3), 255, np.uint8)
    for row, video in enumerate(rows.values()):
        y = bar + pad + row * (h + pad)
        sheet[:, y : y + h, pad : pad + w] = enlarge(video, scale)
    y = bar + pad + [*rows].index("prediction") * (h + pad)
    for step in range(t):  # the bar grows with time: grey while looking, then orange
        seen = pad + round(w * min(step + 1, context) / t)
        now = pad + round(w * (step + 1) / t)
        sheet[step, pad - 2 : bar, pad:seen] = CONTEXT
        sheet[step, pad - 2 : bar, seen:now] = IMAGINED
        if step >= context:  # and the imagined frame itself is framed
            sheet[step, y - 2 : y, pad - 2 : pad + w + 2] = IMAGINED
            sheet[step, y + h : y + h + 2, pad - 2 : pad + w + 2] = IMAGINED
            sheet[step, y - 2 : y + h + 2, pad - 2 : pad] = IMAGINED
            sheet[step, y - 2 : y + h + 2, pad + w : pad + w + 2] = IMAGINED
    return sheet


def _rows(
    truth: np.ndarray, prediction: np.ndarray, context: int, reconstruction: np.ndarray | None
) -> dict[str, np.ndarray]:
    """The rows of an open-loop picture, by name, top to bottom, all with three channels."""
    _same(truth, prediction, "prediction")
    if not 0 <= context <= len(truth):
        raise ReverieError(
            f"context must lie between 0 and the {len(truth)} frames of the video, got {context}"
        )
    rows = {"truth": _rgb(truth)}
    if reconstruction is not None:
        _same(truth, reconstruction, "reconstruction")
        rows["reconstruction"] = _rgb(reconstruction)
    rows["prediction"] = _rgb(prediction)
    return {**rows, "error": error(rows["truth"], rows["prediction"])}


def _same(truth: np.ndarray, other: np.ndarray, name: str) -> None:
    if truth.shape != other.shape:
        raise ReverieError(f"truth has shape {truth.shape} and {name} {other.shape}; make them equal")


def _columns(length: int, context: int, columns: int) -> list[int]:
    seen = min(context, max(1, columns // 4)) if context < length else min(context, columns)
    made = min(length - context, max(1, columns - seen))
    before = np.linspace(context - 1, max(0, context - 1 - 2 * (seen - 1)), seen).round().astype(int)[::-1]
    after = np.linspace(context, length - 1, made).round().astype(int)
    return sorted({int(i) for i in [*before, *after]})


def _landscape(n: int, h: int, w: int) -> int:
    def ugliness(columns: int) -> float:
        rows = -(-n // columns)
        return abs(np.log(columns * w / (rows * h) / 1.6)) + 0.3 * (rows * columns - n)

    return min(range(1, n + 1), key=ugliness)


def _scale(h: int, w: int, least: int) -> int:
    return max(1, -(-least // max(h, w)))


def _rgb(video: np.ndarray) -> np.ndarray:
    """Any uint8 video with 1, 3 or 4 channels as three channels, or planes of cells (5 channels and more), of which the
    highest is set, in a colour each; refuses the rest."""
    if not (isinstance(video, np.ndarray) and video.dtype == np.uint8 and video.ndim == 4 and video.size):
        got = f"{getattr(video, 'dtype', type(video).__name__)} {getattr(video, 'shape', '')}"
        raise ReverieError(f"a video is a non-empty uint8 array 't h w c', got {got}; convert it first")
    channels = video.shape[-1]
    if channels > 4:
        return CELLS[video.argmax(-1) % len(CELLS)]
    if channels not in (1, 3, 4):
        raise ReverieError(
            f"a video has 1 (grey), 3 (RGB) or 4 channels, or is planes of cells (5 and more), got {channels}; "
            f"pick the ones to show"
        )
    return np.repeat(video, 3, axis=-1) if channels == 1 else np.ascontiguousarray(video[..., :3])


def _palette(frames: np.ndarray) -> Image.Image:
    """256 colours that fit the whole video, from about 200,000 pixels of at most 16 of its frames."""
    few = frames[np.linspace(0, len(frames) - 1, min(16, len(frames))).round().astype(int)].reshape(-1, 3)
    pixels = few[:: -(-len(few) // 200_000)]
    return Image.fromarray(pixels[None]).quantize(256, method=Image.Quantize.MEDIANCUT)
