import sys

import numpy as np
import pytest

from Benchmarking.Video import write_video

av = pytest.importorskip('av')

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [144, 72, 17], [92, 186, 92], [213, 130, 74]], np.uint8)


def bars(height, width, shift=0):
    """Vertical bars, one per colour; `shift` moves them by whole bars."""
    return np.broadcast_to(np.roll(COLOURS, shift, 0).repeat(width // len(COLOURS) + 1, 0)[:width], (height, width, 3)).copy()


def read(path):
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return [frame.to_ndarray(format='rgb24') for frame in file.decode(stream)], stream


def test_round_trip_keeps_colours_count_and_speed(tmp_path):
    frames = [bars(210, 160, number) for number in range(30)]
    assert write_video(tmp_path / 'videos' / '100.mp4', iter(frames), fps=20) == 30
    decoded, stream = read(tmp_path / 'videos' / '100.mp4')
    assert len(decoded) == 30 and stream.average_rate == 20
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ('h264', 'yuv420p')
    assert float(stream.duration * stream.time_base) == 1.5
    width = 160 // len(COLOURS) + 1
    for sent, received in zip(frames, decoded, strict=True):
        assert received.shape == (210, 160, 3)
        centres = np.arange(width // 2, 160, width)
        assert np.abs(sent[100, centres].astype(int) - received[100, centres]).max() <= 10
        assert np.abs(sent.astype(int) - received).mean() < 6  # the edges between bars, where colour has half the resolution


def test_odd_sizes_are_padded_by_their_edge(tmp_path):
    frame = np.zeros((33, 21, 3), np.uint8)
    frame[:, -1] = 200
    write_video(tmp_path / 'odd.mp4', [frame] * 3)
    decoded, _ = read(tmp_path / 'odd.mp4')
    assert decoded[0].shape == (34, 22, 3)
    assert (decoded[0][:, -2:].astype(int) > 150).all() and decoded[0][33, 5].max() < 30


def test_scale_repeats_pixels(tmp_path):
    write_video(tmp_path / 'large.mp4', [bars(16, 16)], scale=4)
    decoded, _ = read(tmp_path / 'large.mp4')
    assert decoded[0].shape == (64, 64, 3)


def test_frames_are_streamed(tmp_path):
    alive, most = [0], [0]

    class Frame(np.ndarray):
        def __del__(self):
            alive[0] -= 1

    def frames():
        for _ in range(60):
            frame = np.zeros((16, 16, 3), np.uint8).view(Frame)
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield frame

    write_video(tmp_path / 'long.mp4', frames())
    assert most[0] < 30


@pytest.mark.parametrize(
    'frames',
    [
        [],
        [np.zeros((8, 8), np.uint8)],
        [np.zeros((8, 8, 3), np.float32)],
        [np.zeros((3, 8, 8), np.uint8)],
        [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)],
    ],
)
def test_bad_frames_leave_an_older_video_alone(tmp_path, frames):
    path = tmp_path / 'episode.mp4'
    path.write_bytes(b'older')
    with pytest.raises(ValueError, match='frame'):
        write_video(path, frames)
    assert path.read_bytes() == b'older' and len(list(tmp_path.iterdir())) == 1


def test_without_pyav_the_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ImportError, match='pip install av'):
        write_video(tmp_path / 'episode.mp4', [np.zeros((8, 8, 3), np.uint8)])
