"""A user's folders of images."""
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from Datasets.Labelled import load
from tests.Datasets.labelled_files import picture, put, smooth


def get(root, train=True, **options):
    return load('folder', train=train, root=root, **{'say': pytest.fail} | options)


def noise(seed, channels=3, height=12, width=12):
    return np.random.default_rng(seed).integers(0, 256, (channels, height, width), np.uint8)


def folders(root, test='test', channels=3, classes=('ant', 'bee', 'cow'), each=2):
    """PNGs, which keep every pixel. -> {part: [(label, image)] in the order of reading}."""
    written = {'train': [], test: []}
    for part in written:
        for label, name in enumerate(classes):
            for at in range(each):
                image = noise((len(part), label, at), channels)
                picture(root / part / name / f'{at:0{len(str(each - 1))}}.png', image)
                written[part].append((label, image))
    return written


def assert_read(source, expected):
    assert source.labels.tolist() == [label for label, _ in expected]
    np.testing.assert_array_equal(source.images, np.stack([image for _, image in expected]))


@pytest.mark.parametrize('test', ['test', 'val'])
def test_folders_are_classes(test, tmp_path):
    written = folders(tmp_path, test)
    for part, train in (('train', True), (test, False)):
        source = get(tmp_path, train)
        assert source.classes == ['ant', 'bee', 'cow'] and source.shape == (3, 12, 12) and source.name == 'folder'
        assert_read(source, written[part])


def test_test_goes_before_val(tmp_path):
    written = folders(tmp_path, 'test', each=3)
    folders(tmp_path, 'val', each=3)
    assert_read(get(tmp_path, False), written['test'])


def test_files_in_folders_below_count_and_what_is_no_image_is_passed_over(tmp_path):
    written = folders(tmp_path, classes=('ant', 'bee'))
    deep = noise(99)
    picture(tmp_path / 'train' / 'bee' / 'more' / 'x.BMP', deep)
    put(tmp_path / 'train' / 'ant' / 'notes.txt', b'hello')
    put(tmp_path / 'train' / 'ant' / '.hidden.png', b'no image')
    put(tmp_path / 'train' / '.cache' / 'a.png', b'no image')
    said = []
    assert_read(get(tmp_path, say=said.append), [*written['train'], (1, deep)])
    assert said == [f'{tmp_path}/train: 1 files are no images and are passed over, e.g. {tmp_path}/train/ant/notes.txt']


# --- modes

def test_images_that_are_all_grey_keep_one_channel(tmp_path):
    written = folders(tmp_path, channels=1)
    assert_read(get(tmp_path), written['train'])
    assert get(tmp_path, False).shape == (1, 12, 12)


@pytest.mark.parametrize('where', ['train', 'test'])
def test_one_image_in_colour_makes_both_parts_rgb(where, tmp_path):
    written = folders(tmp_path, channels=1)
    picture(tmp_path / where / 'cow' / 'z.png', noise(5))
    for part, train in (('train', True), ('test', False)):
        source = get(tmp_path, train)
        assert source.shape == (3, 12, 12)
        expected = [(label, np.repeat(image, 3, 0)) for label, image in written[part]] + ([(2, noise(5))] if part == where else [])
        assert_read(source, expected)


def test_palettes_transparency_cmyk_and_16_bits_become_rgb_bytes(tmp_path):
    written = folders(tmp_path, classes=('a', 'b'), each=1)
    colour, alpha = noise(1), noise(2, 1)
    here = tmp_path / 'train' / 'b'
    picture(here / '1.png', np.concatenate([colour, alpha]))  # RGBA: the colours as they are
    Image.fromarray(alpha[0]).convert('LA').save(here / '2.png')
    few = np.random.default_rng(4).integers(0, 4, (12, 12)).astype(np.uint8)
    table = [200, 10, 0, 0, 250, 3, 9, 9, 9, 77, 66, 55]
    palette = Image.frombytes('P', (12, 12), few.tobytes())
    palette.putpalette(table)
    palette.save(here / '3.png', transparency=bytes([0, 128, 255, 255]))
    deep = np.random.default_rng(5).integers(0, 65536, (12, 12)).astype(np.uint16)
    Image.fromarray(deep).save(here / '4.png')
    Image.fromarray(colour.transpose(1, 2, 0)).convert('CMYK').save(here / '5.tif')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        source = get(tmp_path)
    assert source.labels.tolist() == [0, 1, 1, 1, 1, 1, 1] and source.shape == (3, 12, 12)
    np.testing.assert_array_equal(source.images[1], written['train'][1][1])
    np.testing.assert_array_equal(source.images[2], colour)
    np.testing.assert_array_equal(source.images[3], np.repeat(alpha, 3, 0))
    np.testing.assert_array_equal(source.images[4], np.array(table, np.uint8).reshape(4, 3)[few].transpose(2, 0, 1))
    np.testing.assert_array_equal(source.images[5], np.repeat((deep // 256).astype(np.uint8)[None], 3, 0))
    np.testing.assert_array_equal(source.images[6], colour)


def test_16_bit_and_black_and_white_images_are_grey(tmp_path):
    folders(tmp_path, channels=1, classes=('a',), each=1)
    deep, bits = np.random.default_rng(5).integers(0, 65536, (12, 12)).astype(np.uint16), noise(6, 1)[0] > 127
    Image.fromarray(deep).save(tmp_path / 'train' / 'a' / '1.png')
    Image.fromarray(bits).save(tmp_path / 'train' / 'a' / '2.png')
    source = get(tmp_path)
    np.testing.assert_array_equal(source.images[1, 0], deep // 256)
    np.testing.assert_array_equal(source.images[2, 0], bits * 255)


# --- sizes

@pytest.mark.parametrize('stream', [False, True])
def test_sizes_that_differ_name_two_files(stream, tmp_path):
    folders(tmp_path)
    picture(tmp_path / 'train' / 'bee' / '1.png', noise(1, height=12, width=17))
    with pytest.raises(ValueError) as caught:
        get(tmp_path, stream=stream)
    assert str(caught.value) == (f'images differ in size: {tmp_path}/train/ant/0.png has 12×12 pixels, {tmp_path}/train/bee/1.png 17×12; '
                                 'image_size=N makes them all N×N')


def test_parts_that_differ_in_size_name_two_files(tmp_path):
    folders(tmp_path, classes=('a',), each=1)
    picture(tmp_path / 'test' / 'a' / '0.png', noise(1, height=20, width=12))
    with pytest.raises(ValueError, match=rf'differ in size: {tmp_path}/train/a/0.png has 12×12 pixels, {tmp_path}/test/a/0.png 12×20'):
        get(tmp_path, False)
    assert get(tmp_path, False, image_size=9).shape == (3, 9, 9)


@pytest.mark.parametrize('size', [8, 40])
def test_the_shorter_side_is_resized_and_the_middle_cut_out(size, tmp_path):
    """Against torchvision's own transforms of the same file."""
    from Blocks.Vision import import_torchvision
    transforms = import_torchvision('transforms')
    reference = transforms.Compose([transforms.Resize(size, antialias=True), transforms.CenterCrop(size)])
    shapes = [(30, 20), (20, 30), (24, 24), (31, 64)]
    for at, (height, width) in enumerate(shapes):
        picture(tmp_path / 'train' / 'a' / f'{at}.png', noise(at, 3, height, width))
    source = get(tmp_path, image_size=size)
    for at in range(len(shapes)):
        expected = np.asarray(reference(Image.open(tmp_path / 'train' / 'a' / f'{at}.png')))
        np.testing.assert_array_equal(source.images[at], expected.transpose(2, 0, 1))


# --- many files

def test_many_files_are_decoded_by_threads_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr('Datasets.Labelled.Readers.free_cores', lambda: 2)
    written = folders(tmp_path, each=150)
    source = get(tmp_path)
    assert_read(source, written['train'])
    stream = pickle.loads(pickle.dumps(get(tmp_path, stream=True)))
    assert stream.reader.threads == 2 and stream.images is None
    np.testing.assert_array_equal(np.concatenate(list(stream.reader.chunks())), source.images)
    for index in (299, 0, 64):
        np.testing.assert_array_equal(stream.read(index), source.images[index])
    for path in ('train/cow/120.png', 'train/bee/003.png'):
        (tmp_path / path).write_bytes(b'\x89PNG')
    for _ in range(3):
        with pytest.raises(ValueError, match=rf'^{tmp_path}/train/bee/003.png is corrupt'):  # always the first
            get(tmp_path)


# --- what is wrong

def fails(root, train=True, **options):
    with pytest.raises(ValueError) as caught:
        get(root, train, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('suffix', ['png', 'jpg', 'gif', 'webp', 'bmp', 'tif'])
def test_a_truncated_image_is_named(suffix, stream, tmp_path):
    for at in range(3):
        picture(tmp_path / 'train' / 'a' / f'{at}.{suffix}', noise(at, 3, 40, 40))
    path = tmp_path / 'train' / 'a' / f'1.{suffix}'
    path.write_bytes(path.read_bytes()[:-300])
    if stream:
        source = get(tmp_path, stream=True, image_size=20)
        with pytest.raises(ValueError, match=rf'^{path} is corrupt, or no image \('):
            source.read(1)
        source.read(2)
    else:
        assert fails(tmp_path).startswith(f'{path} is corrupt, or no image (')


@pytest.mark.parametrize('body', [b'', b'not an image at all', b'\x89PNG\r\n\x1a\n'])
@pytest.mark.parametrize('at', [0, 1])
def test_what_only_looks_like_an_image_is_named(body, at, tmp_path):
    folders(tmp_path)
    path = put(tmp_path / 'train' / 'ant' / f'{at}.png', body)
    assert fails(tmp_path).startswith(f'{path} is corrupt, or no image (')
    assert fails(tmp_path, stream=True).startswith(f'{path} is corrupt, or no image (')


def test_a_file_that_goes_while_it_is_streamed_is_named(tmp_path):
    folders(tmp_path)
    source = get(tmp_path, stream=True)
    (tmp_path / 'train' / 'ant' / '1.png').unlink()
    with pytest.raises(ValueError, match=rf'^{tmp_path}/train/ant/1.png is missing$'):
        source.read(1)


def test_pixels_of_floats_are_refused(tmp_path):
    folders(tmp_path, classes=('a',))
    Image.fromarray(np.zeros((12, 12), np.float32)).save(tmp_path / 'train' / 'a' / '0.tif')
    assert fails(tmp_path) == f'{tmp_path}/train/a/0.tif: its pixels have mode F, expected 8 or 16 bits a channel'


def test_missing_and_empty_folders(tmp_path):
    text = fails(tmp_path / 'nowhere')
    assert text.startswith(f'task=classify/folder: no folder {tmp_path}/nowhere/train; expected ')
    picture(tmp_path / 'ant' / '0.png', noise(0))
    picture(tmp_path / 'bee' / '0.png', noise(0))
    assert fails(tmp_path).endswith('found ant, bee')
    (tmp_path / 'train').mkdir()
    assert fails(tmp_path) == f'{tmp_path}/train has no folder: expected one for each class'
    folders(tmp_path, classes=('ant', 'bee'))
    (tmp_path / 'train' / 'cow').mkdir()
    assert fails(tmp_path) == f'{tmp_path}/train/cow has no image: every class needs some'
    put(tmp_path / 'train' / 'cow' / 'list.csv', b'')
    assert fails(tmp_path) == f'{tmp_path}/train/cow has no image: every class needs some'


def test_without_a_test_part_training_goes_on_and_testing_says_so(tmp_path):
    written = folders(tmp_path)
    (tmp_path / 'test').rename(tmp_path / 'holdout')
    assert_read(get(tmp_path), written['train'])
    assert fails(tmp_path, False) == f'task=classify/folder: no test part: expected {tmp_path}/test/<class>/<images>, or val in place of test'


def test_classes_are_those_of_training(tmp_path):
    folders(tmp_path)
    (tmp_path / 'test' / 'bee').rename(tmp_path / 'test' / 'wasp')
    text = fails(tmp_path, False)
    assert text == f'{tmp_path}/train and {tmp_path}/test have different classes: only the first has bee'
    (tmp_path / 'test' / 'wasp').rename(tmp_path / 'gone')
    assert 'only the first has bee' in fails(tmp_path, False)
    (tmp_path / 'gone').rename(tmp_path / 'test' / 'bee')
    picture(tmp_path / 'test' / 'dog' / '0.png', noise(0))
    assert fails(tmp_path, False) == f'{tmp_path}/test and {tmp_path}/train have different classes: only the first has dog'


def test_jpegs_are_what_pillow_makes_of_them(tmp_path):
    path = picture(tmp_path / 'train' / 'a' / '0.jpeg', smooth(3, 33, 47), quality=40)
    np.testing.assert_array_equal(get(tmp_path).images[0], np.asarray(Image.open(path).convert('RGB')).transpose(2, 0, 1))


def test_a_folder_that_may_not_be_read_is_told_as_the_system_tells_it(tmp_path, monkeypatch):
    folders(tmp_path)

    def closed(folder):
        raise PermissionError(13, 'Permission denied', str(folder))

    monkeypatch.setattr('Datasets.Labelled.Folder.class_folders', closed)
    with pytest.raises(PermissionError, match=rf"Permission denied: '{tmp_path}/train'"):
        get(tmp_path)
