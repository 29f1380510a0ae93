"""Dreams as pictures: images side by side with what came, vectors as lines. Drawn with OpenCV, which every run has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from xrl.common.inspection import Dream

SCALE = 2               # of images
GAP, TITLE, STRIP = 12, 30, 66  # pixels: between panels, for a line of text, of a chart
WIDEST_ROW = 4          # charts side by side
WIDEST = 320            # pixels of a film
MOST_ENTRIES = 16       # of a vector; further ones are left out

# RGB.
PAPER, INK, FAINT, CONTEXT = (255, 255, 255), (40, 44, 52), (200, 204, 210), (238, 241, 246)
TRUE, IMAGINED = (110, 116, 126), (214, 92, 20)
COLORS = {"true": TRUE, "imagined": IMAGINED}


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels in which a chart is drawn."""

    x: int
    y: int
    width: int
    height: int


def dream_frames(dream: Dream, title: str) -> list[np.ndarray]:
    """A film of a dream of images, a frame for each row: real, dreamed and error side by side, below them reward and
    probability to go on over the steps since the last row that the model saw. RGB, T of (height, width, 3) of uint8."""
    names = [name for name, image in dream.rows.obs.items() if image.ndim == 4]
    films = [np.concatenate(panels, 2) for panels in (_panels(dream, name) for name in names)]
    pictures = np.concatenate(films, 1)
    width, top = pictures.shape[2], TITLE + 20
    page = paper(top + pictures.shape[1] + 2 * (STRIP + TITLE) + 2 * GAP, width)
    text(page, title, GAP, 21, bold=True)
    for place, label in enumerate(("real", "dreamed", "error")):
        text(page, label, GAP + place * (width - GAP) // 3, TITLE + 13)
    boxes = _strips(page, dream, top + pictures.shape[1] + GAP)
    return [_frame(page, dream, t, pictures[t], top, boxes) for t in range(len(pictures))]


def dream_plot(dream: Dream, title: str) -> np.ndarray:
    """A dream of vectors: true and imagined entries over time, reward and probability to go on. RGB, (height, width, 3)
    of uint8."""
    series = [(f"{name}[{i}]" if vectors.shape[1] > 1 else name, vectors[:, i], dream.look.obs[name][:, i])
              for name, vectors in dream.rows.obs.items() if vectors.ndim == 2 for i in range(vectors.shape[1])]
    left_out = len(series) - MOST_ENTRIES
    series = [*series[:MOST_ENTRIES], *_heads(dream)]
    columns = min(WIDEST_ROW, len(series))
    rows, width, height = -(-len(series) // columns), 230, 150
    page = paper(TITLE + 20 + rows * height, GAP + columns * width)
    text(page, title, GAP, 21, bold=True)
    more = f"; {left_out} more entries are not shown" if left_out > 0 else ""
    _legend(page, GAP, TITLE + 13, more)
    for place, (label, true, imagined) in enumerate(series):
        x, y = GAP + place % columns * width, TITLE + 20 + place // columns * height
        text(page, label, x, y + 18)
        chart(page, Box(x, y + 26, width - 46, height - 52), dream.context, {"true": true, "imagined": imagined})
    return page


def _panels(dream: Dream, name: str) -> list[np.ndarray]:
    """Real, dreamed and error of an image, each (T, height, width, 3) with a margin on its left."""
    real, dreamed = dream.rows.obs[name], dream.look.obs[name]
    off = np.abs(real.astype(np.int16) - dreamed).max(-1).astype(np.uint8)
    error = np.stack([cv2.applyColorMap(picture, cv2.COLORMAP_INFERNO)[..., ::-1] for picture in off])
    panels = [enlarged(film) for film in (real, dreamed, error)]
    edges = [(0, 0), (0, GAP // 2), (GAP, 0), (0, 0)]
    panels = [np.pad(panel, edges, constant_values=255) for panel in panels]
    return [*panels[:2], np.pad(panels[2], [(0, 0), (0, 0), (0, GAP), (0, 0)], constant_values=255)]


def enlarged(film: np.ndarray) -> np.ndarray:
    """(T, H, W, 1 or 3) -> (T, SCALE H, SCALE W, 3), pixels kept sharp."""
    film = film.repeat(3, -1) if film.shape[-1] == 1 else film
    return film.repeat(SCALE, 1).repeat(SCALE, 2)


def _heads(dream: Dream) -> list[tuple[str, np.ndarray, np.ndarray]]:
    goes_on = (~dream.rows.is_terminal).astype(np.float32)
    return [("reward", dream.reward, dream.look.reward), ("probability to go on", goes_on, dream.look.cont)]


def _strips(page: np.ndarray, dream: Dream, top: int) -> list[Box]:
    boxes: list[Box] = []
    for label, true, imagined in _heads(dream):
        text(page, label, GAP, top + 14)
        if not boxes:
            _legend(page, page.shape[1] - 190, top + 14)
        box = Box(GAP, top + 20, page.shape[1] - 2 * GAP - 34, STRIP - 8)
        chart(page, box, dream.context, {"true": true, "imagined": imagined})
        boxes.append(box)
        top += STRIP + TITLE
    return boxes


def _frame(page: np.ndarray, dream: Dream, t: int, pictures: np.ndarray, top: int, boxes: Sequence[Box]) -> np.ndarray:
    frame = page.copy()
    frame[top:top + len(pictures)] = pictures
    ahead = t - dream.context + 1
    text(frame, "seen" if ahead <= 0 else f"step {ahead}", frame.shape[1] - 64, 21)
    for box in boxes:
        x = across(box, t, len(dream.reward))
        cv2.line(frame, (x, box.y), (x, box.y + box.height), INK, 1)
    return frame


def chart(page: np.ndarray, box: Box, context: int, series: dict[str, np.ndarray]) -> None:
    """Lines over rows; the rows that the model saw are shaded, ticks count the steps since."""
    count = len(next(iter(series.values())))
    low, high = _range(np.concatenate([*series.values()]))
    edge = across(box, context - 1, count)
    cv2.rectangle(page, (box.x, box.y), (edge, box.y + box.height), CONTEXT, -1)
    cv2.rectangle(page, (box.x, box.y), (box.x + box.width, box.y + box.height), FAINT, 1)
    every = 10 if count - context >= 20 else 5
    for step in range(0, count - context + 1, every):
        x = across(box, context - 1 + step, count)
        cv2.line(page, (x, box.y + box.height), (x, box.y + box.height + 3), TRUE, 1)
        text(page, f"+{step}" if step else "0", x - 8, box.y + box.height + 15, small=True)
    for value, y in ((high, box.y + 10), (low, box.y + box.height)):
        text(page, f"{value:.3g}", box.x + box.width + 4, y, small=True)
    for name, values in series.items():
        xs = [across(box, t, count) for t in range(count)]
        ys = box.y + box.height - 2 - (values - low) / (high - low) * (box.height - 4)
        points = np.stack([np.array(xs), ys.round()], 1).astype(np.int32)
        cv2.polylines(page, [points], False, COLORS[name], 1 if name == "true" else 2, cv2.LINE_AA)


def across(box: Box, t: int, count: int) -> int:
    return box.x + round(t * box.width / max(count - 1, 1))


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = max(0.05 * (high - low), 1e-3 * max(abs(low), abs(high)), 1e-6)
    return low - room, high + room


def _legend(page: np.ndarray, x: int, y: int, more: str = "") -> None:
    for name, color in COLORS.items():
        cv2.line(page, (x, y - 4), (x + 18, y - 4), color, 2)
        text(page, name, x + 24, y)
        x += 24 + 8 * len(name) + GAP
    text(page, f"shaded: seen{more}" if more or x < 200 else "", x, y)


def shrunk(picture: np.ndarray, like: tuple[int, ...] | None = None) -> np.ndarray:
    """A picture (height, width, 3) at most WIDEST wide; ``like``: of that shape instead."""
    height, width = picture.shape[:2] if like is None else like[:2]
    scale = min(1.0, WIDEST / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return picture if size == picture.shape[1::-1] else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def paper(height: int, width: int) -> np.ndarray:
    """An empty page; even sides, because video encoders want them."""
    return np.full((height + height % 2, width + width % 2, 3), PAPER, np.uint8)


def text(page: Any, words: str, x: int, y: int, *, bold: bool = False, small: bool = False) -> None:
    """``y``: of the base line."""
    size = 0.36 if small else 0.52 if bold else 0.44
    cv2.putText(page, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)
