"""Pictures and films to files: PNG, GIF, MP4. Frames are RGB, (height, width, 3) of uint8."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from xrl.common.files import write_atomic

# MPEG-4 part 2: OpenCV's packages hold no encoder of H.264, and VP9 costs thirty times as much. Players and slides show
# it; browsers do not, and are given the GIF.
CODEC = "mp4v"
COLORS = 128   # of a GIF
SAMPLED = 4    # frames that its palette is made of


def encode_png(picture: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", picture[..., ::-1])[1])


def encode_gif(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """With one palette for all frames and without dithering, so that what stands still does not flicker. (OpenCV's
    encoder dithers, and its files are three times as large.)"""
    from PIL import Image
    pictures = [Image.fromarray(frame) for frame in frames]
    sample = np.concatenate(frames[::max(1, len(frames) // SAMPLED)][:SAMPLED])
    palette = Image.fromarray(sample).quantize(COLORS, Image.Quantize.MEDIANCUT)
    reduced = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    data = io.BytesIO()
    reduced[0].save(data, "GIF", save_all=True, append_images=reduced[1:], duration=round(1000 / fps), loop=0)
    return data.getvalue()


def write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Raises OSError where this build of OpenCV has no encoder, or the file cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = (side + side % 2 for side in frames[0].shape[:2])  # encoders want even sides
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    try:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*CODEC), fps, (width, height))  # type: ignore
        if not writer.isOpened():
            raise OSError(f"{path}: OpenCV cannot write an MP4 file here (`xrl doctor` says more)")
        for frame in frames:
            even = np.pad(frame, [(0, height - len(frame)), (0, width - frame.shape[1]), (0, 0)], mode="edge")
            writer.write(np.ascontiguousarray(even[..., ::-1]))
        writer.release()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_film(path: Path, frames: Sequence[np.ndarray], fps: float) -> bytes:
    """``path`` (without an ending) .gif and .mp4; returns the GIF."""
    gif = encode_gif(frames, fps)
    write_atomic(path.with_name(path.name + ".gif"), gif, durable=False)
    write_mp4(path.with_name(path.name + ".mp4"), frames, fps)
    return gif
