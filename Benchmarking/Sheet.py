"""Images as one picture: a grid of tiles, for what a generator makes."""

from pathlib import Path
from typing import Any

import numpy as np

from Benchmarking import replacing

GAP = 2  # pixels between tiles and around them
BACKGROUND = 228  # grey of the gaps and of empty places: neither black nor white images run into it
TILE = 96  # pixels: small images are enlarged up to this side
SIDE = 2048  # pixels: no enlarging beyond this side of the whole sheet
SLACK = 1e-3  # how far a float pixel may lie outside [−1, 1], for rounding


def sheet(images: Any, columns: int = 0, scale: int | None = None) -> np.ndarray:
    """Lays images out row by row.

    Args:
        images: (N, C, H, W), uint8 0–255 or float in [−1, 1] (−1 is black, 1 is white). C = 1 is grey, C = 3 RGB. Of more channels, which are a
            stack of frames, the newest frame is shown: the last 3 where C is a multiple of 3, else the last one, in grey.
        columns: tiles per row, at most N; 0 makes the grid about square.
        scale: every pixel becomes scale × scale pixels; None enlarges small images by a whole number so that one can see them.

    Returns:
        (h, w, 3) uint8, h and w with thin gaps between the tiles and around them.

    Raises:
        ValueError: no images, another shape or type, floats outside [−1, 1] or NaN, columns below 0, or scale below 1.
    """
    images = rgb(images)
    count, height, width = images.shape[:3]
    if columns < 0 or (scale is not None and scale < 1):
        raise ValueError(f'columns={columns}, scale={scale}: expected columns of 0 (square) or more, and scale None or 1 or more')
    columns = min(columns or int(np.ceil(np.sqrt(count))), count)
    rows = -(-count // columns)
    if scale is None:
        scale = max(1, min(TILE // max(height, width), SIDE // max(rows * height, columns * width)))
    height, width = height * scale + GAP, width * scale + GAP
    canvas = np.full((rows * height + GAP, columns * width + GAP, 3), BACKGROUND, np.uint8)
    for number, image in enumerate(images):
        top, left = GAP + number // columns * height, GAP + number % columns * width
        canvas[top : top + height - GAP, left : left + width - GAP] = image.repeat(scale, 0).repeat(scale, 1)
    return canvas


def write_sheet(file: Path | str, images: Any, **kw: Any) -> Path:
    """Writes `sheet(images, **kw)` as PNG; an older file is replaced as a whole.

    Returns:
        The file.
    """
    from PIL import Image

    picture = Image.fromarray(sheet(images, **kw))
    with replacing(Path(file)) as temporary:
        picture.save(temporary, format='PNG')
    return Path(file)


def rgb(images: Any) -> np.ndarray:
    """What of the channels is shown, in colour.

    Args:
        images: (N, C, H, W) as of `sheet`.

    Returns:
        (N, H, W, 3) uint8

    Raises:
        ValueError: as of `sheet`.
    """
    images = np.asarray(images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f'images of shape {images.shape}: expected (N, C, H, W), none of them 0')
    shown = images[:, -3:] if images.shape[1] % 3 == 0 else images[:, -1:].repeat(3, 1)
    return np.ascontiguousarray(pixels(shown).transpose(0, 2, 3, 1))


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 0–255 of what is that already, or float in [−1, 1]. Raises: ValueError: as of `sheet`."""
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f'images of type {images.dtype}: expected uint8 0–255, or float in [−1, 1]')
    low, high = float(images.min()), float(images.max())
    if not (low >= -1 - SLACK and high <= 1 + SLACK):  # NaN fails both
        raise ValueError(f'float images from {low:.4g} to {high:.4g}: expected them in [−1, 1]')
    return np.rint((images.astype(np.float32).clip(-1, 1) + 1) * np.float32(127.5)).astype(np.uint8)
