"""Writes an episode as mp4 (H.264), frame by frame."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from Benchmarking import replacing

QUALITY = '18'  # x264's constant rate factor: 0 lossless, 18 looks lossless, 51 worst


def write_video(path: Path | str, frames: Iterable[np.ndarray], fps: int = 20, scale: int = 1) -> int:
    """Encodes frames as they come; the file appears under its name only when it is whole.

    Args:
        path: the .mp4 to write; an older one is replaced.
        frames: (H, W, 3) uint8 RGB each, all of one size. An odd side is padded by repeating its last row or column (colour needs even sides).
        fps: frames per second.
        scale: every pixel becomes scale × scale pixels; at 2 the colours of small objects stay sharp (colour is stored at half the resolution).

    Returns:
        How many frames were written.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: no frames, a frame of another shape or type, or fps or scale below 1.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError('videos need PyAV: pip install av, or set log_video=false') from error
    if fps < 1 or scale < 1:
        raise ValueError(f'fps={fps}, scale={scale}: expected both to be 1 or more')
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f'{path}: no frames to write; the episode is empty')
    shape, count = np.shape(first), 0
    with replacing(Path(path)) as temporary, av.open(str(temporary), 'w', format='mp4', options={'movflags': 'faststart'}) as file:
        stream: Any = None
        for count, frame in enumerate(chain([first], frames), start=1):
            picture = _prepared(frame, shape, count, scale)
            if stream is None:
                stream = _stream(file, picture.shape, fps)
            converted = av.VideoFrame.from_ndarray(picture, format='rgb24').reformat(
                format='yuv420p', dst_colorspace='ITU709', dst_color_range='MPEG', interpolation='AREA'
            )
            converted.pts, converted.time_base = count - 1, Fraction(1, fps)
            file.mux(stream.encode(converted))
        file.mux(stream.encode())
    return count


def _prepared(frame: np.ndarray, shape: tuple[int, ...], number: int, scale: int) -> np.ndarray:
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
        expected = f'{shape} uint8' if number > 1 else '(H, W, 3) uint8'
        raise ValueError(f'video frame {number} is {frame.shape} {frame.dtype}: expected {expected}')
    frame = frame.repeat(scale, 0).repeat(scale, 1)
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode='edge')


def _stream(file: Any, shape: tuple[int, ...], fps: int) -> Any:
    stream = file.add_stream('libx264', rate=fps, options={'crf': QUALITY, 'preset': 'veryfast'})
    stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], 'yuv420p'
    codec = stream.codec_context
    codec.thread_count = 1  # the learner has the other cores
    codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709, said in the file so that players need not guess
    codec.color_range = 1  # limited (16–235)
    return stream
