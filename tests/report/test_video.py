"""Pictures and films: what comes back is what went in, and a place that cannot be written leaves nothing."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest

from xrl.report.video import encode_gif, encode_png, write_film, write_mp4

COLORS = ((250, 10, 10), (10, 250, 10), (10, 10, 250))


def frames_of(height=32, width=48, colors=COLORS):
    """Each of one colour, RGB; a white corner tells up from down."""
    frames = [np.full((height, width, 3), color, np.uint8) for color in colors]
    for frame in frames:
        frame[:height // 2, :width // 2] = 255
    return frames


def read_mp4(path):
    film, found = cv2.VideoCapture(str(path)), []
    while (read := film.read())[0]:
        found.append(read[1][..., ::-1])
    return found, film.get(cv2.CAP_PROP_FPS)


def read_gif(data, tmp_path):
    (tmp_path / "read.gif").write_bytes(data)
    done, film = cv2.imreadanimation(str(tmp_path / "read.gif"))
    assert done
    return [frame[..., 2::-1] for frame in film.frames], film.durations


def near(frame, expected, most):
    return np.abs(frame.astype(int) - expected).mean() < most


def test_a_png_is_the_picture_itself():
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    data = encode_png(picture)
    assert data.startswith(b"\x89PNG")
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], picture)


@pytest.mark.parametrize("fps", [10, 25])
def test_a_gif_has_every_frame_for_its_time(tmp_path, fps):
    frames = frames_of()
    found, durations = read_gif(encode_gif(frames, fps), tmp_path)
    assert len(found) == 3 and np.asarray(durations).ravel().tolist() == [1000 / fps] * 3
    assert all(near(one, other, 12) for one, other in zip(found, frames, strict=True))


def test_other_readers_see_the_same_gif():
    pil = pytest.importorskip("PIL.Image")
    frames = frames_of()
    with pil.open(io.BytesIO(encode_gif(frames, 10))) as film:
        assert film.n_frames == 3 and film.size == (48, 32) and film.info["duration"] == 100
        for index, frame in enumerate(frames):
            film.seek(index)
            assert near(np.asarray(film.convert("RGB")), frame, 12)


def test_equal_frames_are_one_that_stays_as_long(tmp_path):
    found, durations = read_gif(encode_gif(frames_of(colors=(*COLORS[:1] * 2, *COLORS[1:2] * 3)), 10), tmp_path)
    assert len(found) == 2 and np.asarray(durations).ravel().tolist() == [200, 300]


@pytest.mark.parametrize(("height", "width"), [(32, 48), (210, 160)])
def test_an_mp4_reads_back(tmp_path, height, width):
    frames = frames_of(height, width)
    write_mp4(tmp_path / "new" / "film.mp4", frames, 30)
    found, fps = read_mp4(tmp_path / "new" / "film.mp4")
    assert len(found) == 3 and fps == 30 and [path.name for path in (tmp_path / "new").iterdir()] == ["film.mp4"]
    for one, other in zip(found, frames, strict=True):
        assert one.shape == (height, width, 3) and near(one, other, 25)


@pytest.mark.parametrize(("height", "width"), [(41, 61), (40, 61), (41, 60)])
def test_odd_sides_are_made_even_and_nothing_is_left_out(tmp_path, height, width):
    write_mp4(tmp_path / "film.mp4", frames_of(height, width), 30)
    found, _ = read_mp4(tmp_path / "film.mp4")
    assert [frame.shape for frame in found] == [(height + height % 2, width + width % 2, 3)] * 3
    assert near(found[0][:height, :width], frames_of(height, width)[0], 25)


def test_a_film_is_a_gif_and_an_mp4_and_gives_the_gif(tmp_path):
    data = write_film(tmp_path / "dream_000000000100", frames_of(), 10)
    assert {path.name for path in tmp_path.iterdir()} == {"dream_000000000100.gif", "dream_000000000100.mp4"}
    assert (tmp_path / "dream_000000000100.gif").read_bytes() == data
    assert len(read_mp4(tmp_path / "dream_000000000100.mp4")[0]) == 3


def test_a_film_is_replaced(tmp_path):
    for count in (3, 1):
        write_film(tmp_path / "f", frames_of(colors=COLORS[:count]), 10)
    assert len(read_mp4(tmp_path / "f.mp4")[0]) == 1 and len(list(tmp_path.iterdir())) == 2


def test_a_place_that_is_no_folder_is_an_oserror(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for write in (lambda path: write_mp4(path, frames_of(), 10), lambda path: write_film(path, frames_of(), 10)):
        with pytest.raises(OSError, match="file"):
            write(tmp_path / "file" / "film")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_build_without_the_encoder_says_so_and_leaves_no_half_file(tmp_path, monkeypatch):
    class Closed:
        def __init__(self, path, *arguments):
            (tmp_path / path).write_bytes(b"half")

        def isOpened(self):
            return False

    monkeypatch.setattr(cv2, "VideoWriter", Closed)
    with pytest.raises(OSError, match=r"film.mp4: OpenCV cannot write an MP4 file here \(`xrl doctor` says more\)"):
        write_mp4(tmp_path / "film.mp4", frames_of(), 10)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_dies_leaves_no_half_file(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_mp4(tmp_path / "film.mp4", Dying(frames_of()), 10)
    assert list(tmp_path.iterdir()) == []


class Dying(list):
    """Frames of which only the first can be had."""

    def __iter__(self):
        yield self[0]
        raise ZeroDivisionError
