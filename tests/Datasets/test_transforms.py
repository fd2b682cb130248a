"""torchvision's transforms, drawn for every sample: against torchvision's own functions on one image at a time."""
import numpy as np
import pytest
import torch

from Blocks.Vision import import_torchvision
from Datasets.Transforms import Transforms

F = import_torchvision('transforms.v2.functional')
SHAPE = (3, 10, 12)


def images(n, shape=SHAPE, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8))


def applied(recipe, n=400, epoch=0, seed=0, shape=SHAPE):
    x = images(n, shape)
    return x, Transforms(recipe, shape, seed)(x, epoch, np.arange(n), n)


@pytest.mark.parametrize('name, flip', [('RandomHorizontalFlip', F.horizontal_flip), ('RandomVerticalFlip', F.vertical_flip)])
@pytest.mark.parametrize('p', [None, 0.2, 0.0, 1.0])
def test_each_image_is_flipped_or_not_by_itself(name, flip, p):
    x, seen = applied({name: {} if p is None else {'p': p}})
    flipped = [torch.equal(image, flip(before)) for before, image in zip(x, seen)]
    assert all(done or torch.equal(image, before) for done, before, image in zip(flipped, x, seen))
    assert np.mean(flipped) == pytest.approx(0.5 if p is None else p, abs=0.07)


@pytest.mark.parametrize('arguments', [{'padding': 2}, {'padding': [1, 3]}, {'padding': 2, 'padding_mode': 'reflect'},
                                       {'padding': 3, 'fill': 7}], ids=str)
def test_each_image_has_a_crop_of_its_own(arguments):
    x, seen = applied({'RandomCrop': arguments}, 300)
    padding = arguments['padding'] if isinstance(arguments['padding'], list) else [arguments['padding']] * 2
    padded = [F.pad(image, arguments['padding'], fill=arguments.get('fill', 0), padding_mode=arguments.get('padding_mode', 'constant')) for image in x]
    found = []
    for big, small in zip(padded, seen):
        places = [(top, left) for top in range(2 * padding[1] + 1) for left in range(2 * padding[0] + 1)
                  if torch.equal(big[:, top:top + 10, left:left + 12], small)]
        assert len(places) == 1
        found.append(places[0])
    assert len(set(found)) == (2 * padding[1] + 1) * (2 * padding[0] + 1), 'every place, the last ones included'


def test_a_crop_without_size_has_that_of_the_image():
    x, seen = applied({'RandomCrop': {'padding': 4}}, 5)
    assert seen.shape == x.shape


def test_any_other_transform_has_parameters_for_each_image():
    x = images(1).expand(50, *SHAPE).contiguous()
    seen = Transforms({'ColorJitter': {'brightness': 0.5}}, SHAPE, 0)(x, 0, np.arange(50), 50)
    assert len({image.numpy().tobytes() for image in seen}) > 30 and seen.dtype == torch.uint8


def test_what_a_sample_gets_depends_on_seed_pass_and_place_alone():
    recipe = {'RandomHorizontalFlip': {}, 'RandomCrop': {'padding': 2}, 'RandomRotation': {'degrees': 30}}
    x, one = images(60), Transforms(recipe, SHAPE, 3)
    whole = one(x, 5, np.arange(60), 60)
    order = np.random.default_rng(0).permutation(60)
    again = Transforms(recipe, SHAPE, 3)
    torch.manual_seed(99)
    parts = torch.cat([again(x[at], 5, at, 60) for at in np.array_split(order, 7)])
    assert torch.equal(parts, whole[order])
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(99)), "torch's own stream is left alone"
    assert not torch.equal(one(x, 6, np.arange(60), 60), whole) and not torch.equal(Transforms(recipe, SHAPE, 4)(x, 5, np.arange(60), 60), whole)


def test_floats_from_0_to_1_are_scaled_back():
    v2 = import_torchvision('transforms.v2')
    x, seen = applied({'RandomErasing': {'p': 0.0}, 'ToDtype': {'dtype': torch.float32, 'scale': True}}, 4)
    assert torch.equal(seen, x) and v2.ToDtype(torch.float32, scale=True)(x).dtype == torch.float32


@pytest.mark.parametrize('recipe, shape, message', [
    ({'RandomHorizontalFlop': {}}, SHAPE,
     'replay.transform=RandomHorizontalFlop: torchvision.transforms.v2 has no such transform; nearest: RandomHorizontalFlip'),
    ({'RandomCrop': {'sise': 3}}, SHAPE, "replay.transform.RandomCrop: .*unexpected keyword argument 'sise'"),
    ({'RandomCrop': {'size': 5}}, SHAPE, r'replay.transform.RandomCrop: makes \(3, 5, 5\) of images \(3, 10, 12\); expected one that keeps their shape'),
    ({'RandomCrop': {'size': 20}}, SHAPE, r'replay.transform.RandomCrop: does not fit images \(3, 10, 12\): size=\[20, 20\] is more than'),
    ({'RandomHorizontalFlip': {'p': 3}}, SHAPE, 'replay.transform.RandomHorizontalFlip: '),
    ({'Normalize': {'mean': [0.5], 'std': [0.1]}}, SHAPE, 'replay.transform.Normalize: does not fit images'),
    ({'RandomHorizontalFlip': {}}, (7,), r'replay.transform=RandomHorizontalFlip: the data are vectors \(7,\)'),
    ('RandomHorizontalFlip', SHAPE, 'replay.transform=RandomHorizontalFlip: expected names with arguments'),
    ({'Compose': {}}, SHAPE, 'replay.transform.Compose: ')])
def test_a_transform_that_does_not_exist_or_fit_is_one_line(recipe, shape, message):
    with pytest.raises(ValueError, match=f'^{message}') as error:
        Transforms(recipe, shape, 0)
    assert '\n' not in str(error.value)
