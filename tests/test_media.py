"""Videos survive the way to disk and back; the open-loop picture says what was seen and what was made up."""

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from reverie import media
from reverie.types import ReverieError


def ball(length: int = 12, size: int = 16) -> np.ndarray:
    video = np.zeros((length, size, size, 3), np.uint8)
    for t in range(length):
        video[t, t % size : t % size + 3, 4:8] = (255, 180, 0)
    return video


def test_gif_comes_back(tmp_path):
    video = ball()
    path = media.save_gif(tmp_path / "deep" / "ball.gif", video, fps=10)
    with Image.open(path) as image:
        assert image.n_frames == len(video) and image.info["loop"] == 0 and image.info["duration"] == 100
        for t in range(len(video)):
            image.seek(t)
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - video[t]).max() <= 8


def test_mp4_comes_back_and_pads_odd_sides(tmp_path):
    video = media.enlarge(ball(10, 17), 3)
    path = media.save_mp4(tmp_path / "ball.mp4", video, fps=10)
    back = iio.imread(path, plugin="FFMPEG")
    assert back.shape == (10, 52, 52, 3)
    assert np.abs(back[:, :51, :51].astype(int) - video).mean() < 6


def test_grey_and_rgba_are_shown_as_rgb(tmp_path):
    grey = ball()[..., :1]
    rgba = np.concatenate([ball(), ball()[..., :1]], -1)
    assert media.grid([grey, rgba]).shape == (12, 16, 34, 3)
    assert media.save_gif(tmp_path / "grey.gif", grey).exists()


def test_error_is_signed_around_grey():
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert (media.error(black, black) == 128).all()
    assert (media.error(black, white) == 255).all()
    assert (media.error(white, black) == 0).all()


def test_open_loop_stacks_truth_prediction_error():
    truth = ball(10, 16)
    prediction = truth.copy()
    prediction[5:] = 0
    video = media.open_loop(truth, prediction, context=5)
    scale = 8  # 16 pixels shown as 128
    h = 16 * scale
    assert video.shape == (10, 6 + 3 * (h + 4) + 4, h + 8, 3)
    top = 6 + 4
    for row, frames in enumerate((truth, prediction, media.error(truth, prediction))):
        y = top + row * (h + 4)
        assert (video[:, y : y + h : scale, 4 : 4 + h : scale] == frames).all()


def test_a_reconstruction_stands_between_truth_and_prediction(tmp_path):
    truth, prediction, shown = ball(10, 16), np.zeros((10, 16, 16, 3), np.uint8), ball(10, 16) // 2
    video = media.open_loop(truth, prediction, 5, shown)
    h, top = 16 * 8, 6 + 4
    assert video.shape == (10, 6 + 4 * (h + 4) + 4, h + 8, 3)
    for row, frames in enumerate((truth, shown, prediction)):
        y = top + row * (h + 4)
        assert (video[:, y : y + h : 8, 4 : 4 + h : 8] == frames).all()
    orange = (video[9] == media.IMAGINED).all(-1).any(1).nonzero()[0]
    framed = orange[orange > top]  # below the bar of time: the prediction alone
    assert framed[0] == top + 2 * (h + 4) - 2 and framed[-1] == top + 2 * (h + 4) + h + 1
    strips = [
        media.save_strip(tmp_path / f"{i}.png", truth, prediction, 5, reconstruction=r)
        for i, r in ((0, None), (1, shown))
    ]
    three, four = (Image.open(path).height for path in strips)
    assert four - three == 96 + 4
    with pytest.raises(ReverieError, match="reconstruction"):
        media.open_loop(truth, prediction, 5, shown[:4])


def test_open_loop_marks_where_looking_ends():
    video = media.open_loop(ball(10), ball(10), context=4)
    orange = (video == media.IMAGINED).all(-1).any((1, 2))
    assert orange.tolist() == [False] * 4 + [True] * 6
    assert (video[3] == media.CONTEXT).all(-1).any()


def test_open_loop_of_many_stand_side_by_side():
    many = np.stack([ball(6), ball(6), ball(6)])
    one = media.open_loop(many[0], many[0], 2)
    assert media.open_loop(many, many, 2).shape == (6, one.shape[1], 3 * one.shape[2], 3)


def test_grid_holds_the_last_frame_and_leaves_white():
    long, short, small = ball(5), ball(3), ball(5, 8)
    sheet = media.grid([long, short, small], columns=2)
    assert sheet.shape == (5, 34, 34, 3)
    assert (sheet[4, :16, 18:] == short[-1]).all()
    assert (sheet[:, 26:, :16] == 255).all()


@pytest.mark.parametrize(
    ("length", "context", "columns"), [(50, 5, 12), (50, 0, 12), (6, 6, 4), (3, 1, 12), (50, 1, 2)]
)
def test_strip_columns_keep_both_ends(tmp_path, length, context, columns):
    path = media.save_strip(tmp_path / "strip.png", ball(length), ball(length), context, columns)
    with Image.open(path) as image:
        pixels = np.asarray(image)
    assert (pixels == media.IMAGINED).all(-1).any() == (context < length)
    assert (pixels == media.CONTEXT).all(-1).any() == (context > 0)
    steps = media._columns(length, context, columns)
    assert len(steps) <= columns and steps == sorted(set(steps))
    assert context == 0 or context - 1 in steps
    assert context == length or {context, length - 1} & set(steps)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "x.gif"
    path.write_bytes(b"old")

    def break_off() -> None:
        with media.atomic(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x.gif"]


@pytest.mark.parametrize(
    ("video", "match"),
    [
        (np.zeros((0, 4, 4, 3), np.uint8), "non-empty uint8"),
        (np.zeros((2, 4, 4, 2), np.uint8), "got 2"),
    ],
)
def test_bad_videos_are_refused_in_a_sentence(tmp_path, video, match):
    with pytest.raises(ReverieError, match=match):
        media.save_gif(tmp_path / "x.gif", video)


def test_bad_pairs_are_refused_in_a_sentence():
    with pytest.raises(ReverieError, match="make them equal"):
        media.open_loop(ball(5), ball(6), 2)
    with pytest.raises(ReverieError, match="context"):
        media.open_loop(ball(5), ball(5), 6)
    with pytest.raises(ReverieError, match="at least one"):
        media.grid([])
