import numpy as np
import pytest
from PIL import Image

from Benchmarking.Sheet import BACKGROUND, GAP, SIDE, sheet, write_sheet


def plain(*values, channels=1, height=2, width=3):
    """Images of one value each."""
    return np.stack([np.full((channels, height, width), value, np.uint8) for value in values])


def test_bytes_as_floats_in_minus_one_to_one_come_back_exactly():
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    for dtype in (np.float32, np.float64):
        assert (sheet(every / dtype(127.5) - dtype(1), scale=1) == sheet(every, scale=1)).all()


def test_black_white_and_the_middle():
    images = np.array([-1, -0.5, 0, 0.5, 1, 1 + 1e-4], np.float32).reshape(6, 1, 1, 1)
    row = sheet(images, columns=6, scale=1)[GAP, GAP :: 1 + GAP, 0]
    assert row.tolist() == [0, 64, 128, 191, 255, 255]  # (x + 1) × 127.5, rounded


def test_tiles_lie_row_by_row_with_gaps_around_them():
    images = plain(10, 20, 30, 40, 50)
    canvas = sheet(images, scale=1)  # 3 columns, 2 rows of 2 × 3 pixels
    assert canvas.shape == (3 * GAP + 2 * 2, 4 * GAP + 3 * 3, 3) and canvas.dtype == np.uint8
    corners = canvas[GAP :: 2 + GAP, GAP :: 3 + GAP, 0]
    assert corners.tolist() == [[10, 20, 30], [40, 50, BACKGROUND]]
    for value in (10, 20, 30, 40, 50):
        assert (canvas == value).all(2).sum() == 6
    assert (canvas == BACKGROUND).all(2).sum() == canvas.shape[0] * canvas.shape[1] - 5 * 6


def test_rows_and_columns_of_an_image_stay_what_they_are():
    image = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(1, 3, 2, 4) * 10
    assert (sheet(image, scale=1)[GAP:-GAP, GAP:-GAP] == image[0].transpose(1, 2, 0)).all()


@pytest.mark.parametrize('columns, expected', [(0, (2, 2)), (1, (4, 1)), (3, (2, 3)), (4, (1, 4)), (9, (1, 4))])
def test_columns(columns, expected):
    canvas = sheet(plain(1, 2, 3, 4), columns=columns, scale=1)
    assert canvas.shape[:2] == (expected[0] * (2 + GAP) + GAP, expected[1] * (3 + GAP) + GAP)


def test_scale_repeats_pixels():
    image = np.array([[[[1, 2], [3, 4]]]], np.uint8)
    assert sheet(image, scale=3)[GAP:-GAP, GAP:-GAP, 0].tolist() == np.kron([[1, 2], [3, 4]], np.ones((3, 3), int)).tolist()


def test_small_images_are_enlarged_and_large_sheets_are_not():
    assert sheet(np.zeros((1, 1, 28, 28), np.uint8)).shape[0] == 3 * 28 + 2 * GAP
    assert sheet(np.zeros((1, 3, 200, 100), np.uint8)).shape == (200 + 2 * GAP, 100 + 2 * GAP, 3)
    many = sheet(np.zeros((2500, 1, 28, 28), np.uint8))  # 50 × 50: 1400 pixels as they are, 2800 at twice the size
    assert many.shape[0] == 50 * (28 + GAP) + GAP <= SIDE


@pytest.mark.parametrize(
    'channels, shown',
    [(1, [0, 0, 0]), (2, [1, 1, 1]), (3, [0, 1, 2]), (4, [3, 3, 3]), (6, [3, 4, 5]), (9, [6, 7, 8])],
)
def test_of_a_stack_of_frames_the_newest_is_shown(channels, shown):
    image = np.arange(channels, dtype=np.uint8).reshape(1, channels, 1, 1)
    assert sheet(image, scale=1)[GAP, GAP].tolist() == shown


@pytest.mark.parametrize(
    'images, options, said',
    [
        (np.zeros((0, 1, 4, 4), np.uint8), {}, '(0, 1, 4, 4)'),
        (np.zeros((2, 4, 4), np.uint8), {}, '(2, 4, 4)'),
        (np.zeros((2, 0, 4, 4), np.uint8), {}, '(2, 0, 4, 4)'),
        (np.zeros((2, 1, 4, 4), np.int64), {}, 'int64'),
        (np.full((2, 1, 4, 4), 255.0), {}, '255'),
        (np.full((2, 1, 4, 4), -1.1), {}, '-1.1'),
        (np.full((2, 1, 4, 4), np.nan), {}, 'nan'),
        (plain(1), {'columns': -1}, 'columns=-1'),
        (plain(1), {'scale': 0}, 'scale=0'),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(images, options, said):
    with pytest.raises(ValueError, match='expected') as caught:
        sheet(images, **options)
    assert said in str(caught.value) and '\n' not in str(caught.value)


def test_the_file_holds_the_sheet_and_replaces_an_older_one(tmp_path):
    images = np.random.default_rng(0).uniform(-1, 1, (7, 3, 8, 8)).astype(np.float32)
    for part in (images[:2], images):
        file = write_sheet(tmp_path / 'sheets' / '100.png', part, columns=4, scale=2)
        assert file == tmp_path / 'sheets' / '100.png' and file.read_bytes().startswith(b'\x89PNG')
        assert (np.asarray(Image.open(file)) == sheet(part, columns=4, scale=2)).all()
    assert [path.name for path in file.parent.iterdir()] == ['100.png']


def test_a_failed_writing_leaves_the_older_file(tmp_path, monkeypatch):
    file = write_sheet(tmp_path / '100.png', plain(1))
    before = file.read_bytes()

    def fail(image, file, **options):
        file.write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(Image.Image, 'save', fail)
    with pytest.raises(OSError, match='disk full'):
        write_sheet(tmp_path / '100.png', plain(2))
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
