"""Random shift against an explicit pad-and-crop, crops and intensity against their definitions."""
import math

import pytest
import torch
import torch.nn.functional as F

from Blocks.Augmentations import AmplitudeNoise, Intensity, Null, RandomCrop, RandomShift, ShiftIntensity


def images(b, c=3, h=12, w=10, dtype=torch.uint8):
    return torch.randint(256, (b, c, h, w), generator=torch.Generator().manual_seed(b)).to(dtype)


def crops(image, pad):
    """Every (2·pad + 1)² window of the edge-padded image: {(down, right): window}."""
    _, h, w = image.shape
    padded = F.pad(image[None].double(), (pad,) * 4, mode='replicate')[0].to(image.dtype)
    return {(i, j): padded[:, i:i + h, j:j + w] for i in range(2 * pad + 1) for j in range(2 * pad + 1)}


def offsets(x, shifted, pad):
    """The offset at which each image was cropped, all channels at once, bit for bit."""
    found = []
    for image, result in zip(x, shifted, strict=True):
        matches = [offset for offset, crop in crops(image, pad).items() if torch.equal(crop, result)]
        assert len(matches) == 1, f'a crop of the padded image, and only one: {matches}'
        found += matches
    return found


@pytest.mark.parametrize('pad, shape', [(4, (9, 84, 84)), (4, (4, 84, 84)), (2, (1, 12, 10)), (0, (3, 8, 8)), (1, (2, 5, 30))])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
def test_random_shift_is_pad_and_crop_bit_for_bit(pad, shape, dtype):
    x = images(6, *shape, dtype=dtype)
    before = x.clone()
    shifted = RandomShift(shape, pad)(x, torch.Generator().manual_seed(1))
    assert shifted.shape == x.shape and shifted.dtype == dtype and torch.equal(x, before)
    assert RandomShift(shape, pad).output_shape == shape
    offsets(x, shifted, pad)


def test_offsets_are_uniform_on_every_whole_pixel_of_both_axes():
    pad, n = 4, 2430
    x = torch.arange(12 * 12, dtype=torch.uint8).view(1, 1, 12, 12).expand(n, 1, 12, 12)
    shifted = RandomShift((1, 12, 12), pad)(x, torch.Generator().manual_seed(2))
    corner = shifted[:, 0, 5, 5].long()  # an inner pixel tells the offset: the image counts 12 a row
    down, right = corner // 12 - 5 + pad, corner % 12 - 5 + pad
    assert (down.min(), down.max(), right.min(), right.max()) == (0, 8, 0, 8)
    counts = torch.bincount(down * 9 + right, minlength=81)
    assert len(counts) == 81 and counts.min() > 0
    assert ((counts - n / 81) ** 2 / (n / 81)).sum() < 80 + 4 * math.sqrt(160)  # chi-square, 80 degrees of freedom
    assert offsets(x[:40], shifted[:40], pad) == list(zip(down[:40].tolist(), right[:40].tolist()))


def test_all_channels_shift_together_and_samples_differ():
    x = images(1, 9, 12, 12).expand(60, 9, 12, 12)
    shifted = RandomShift((9, 12, 12))(x, torch.Generator().manual_seed(3))
    assert len(set(offsets(x, shifted, 4))) > 30, 'crops of all 9 channels at one offset, a different one for each sample'


def test_draws_come_from_the_generator_and_differ_from_call_to_call():
    aug, x, random = RandomShift((3, 12, 12)), images(30, 3, 12, 12), torch.Generator().manual_seed(4)
    obs, next_obs = offsets(x, aug(x, random), 4), offsets(x, aug(x, random), 4)
    assert obs != next_obs and sum(a == b for a, b in zip(obs, next_obs)) < 10
    random.manual_seed(4)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert offsets(x, aug(x, random), 4) == obs and torch.equal(torch.get_rng_state(), before)


def test_random_shift_never_runs_in_half_precision():
    aug = RandomShift((3, 12, 12))
    for dtype in (torch.uint8, torch.float32):
        x = images(8, 3, 12, 12, dtype=dtype)
        plain = aug(x, torch.Generator().manual_seed(5))
        with torch.autocast('cpu', torch.bfloat16):
            half = aug(x, torch.Generator().manual_seed(5))
        assert half.dtype == dtype and torch.equal(half, plain)


def test_random_shift_takes_strided_images():
    x = images(4, 8, 12, 10)
    expected = RandomShift((4, 12, 10))(x[:, ::2].contiguous(), torch.Generator().manual_seed(6))
    assert torch.equal(RandomShift((4, 12, 10))(x[:, ::2], torch.Generator().manual_seed(6)), expected)
    channels_last = x[:, ::2].contiguous(memory_format=torch.channels_last)
    assert torch.equal(RandomShift((4, 12, 10))(channels_last, torch.Generator().manual_seed(6)), expected)


def test_random_shift_wants_images():
    with pytest.raises(ValueError, match=r'^Aug=RandomShift sees images \(C, H, W\), not \(17,\)$'):
        RandomShift((17,))


def test_intensity_is_one_factor_an_image_within_a_tenth_of_one():
    x = images(4000, 4, 2, 3) // 2 + 1  # no zeros
    out = Intensity((4, 2, 3))(x, torch.Generator().manual_seed(7))
    factor = (out.double() / x.double()).flatten(1)
    assert out.dtype == torch.float32 and torch.allclose(factor, factor[:, :1].expand_as(factor), rtol=1e-6)
    factor = factor[:, 0]
    assert factor.min().item() == pytest.approx(0.9, abs=1e-6) and factor.max().item() == pytest.approx(1.1, abs=1e-6), 'clipped at two deviations'
    assert factor.mean().item() == pytest.approx(1, abs=0.004)
    # variance of a normal clipped at ±2: P(|z| < 2) − 4 φ(2) + 8 (1 − Φ(2)) = 0.9545 − 0.2160 + 0.1820
    assert factor.std().item() == pytest.approx(0.05 * math.sqrt(0.9205), rel=0.05)
    assert ((factor < 0.9 + 1e-6) | (factor > 1.1 - 1e-6)).double().mean().item() == pytest.approx(0.0455, abs=0.012)


def test_intensity_does_not_clamp_and_scales():
    x = torch.full((500, 1, 2, 2), 255, dtype=torch.uint8)
    assert Intensity((1, 2, 2))(x, torch.Generator().manual_seed(8)).max() > 270
    assert Intensity((1, 2, 2), scale=0.5)(x, torch.Generator().manual_seed(8)).max() > 500


def test_shift_intensity_is_the_pair():
    x = images(20, 4, 12, 12)
    random = torch.Generator().manual_seed(9)
    expected = Intensity((4, 12, 12), 0.2)(RandomShift((4, 12, 12), 2)(x, random), random)
    assert torch.equal(ShiftIntensity((4, 12, 12), 2, 0.2)(x, torch.Generator().manual_seed(9)), expected)


@pytest.mark.parametrize('aug', [Null, RandomShift, Intensity, ShiftIntensity])
def test_acting_sees_the_image_as_it_is(aug):
    x = images(3, 4, 12, 12)
    random = torch.get_rng_state()
    assert aug((4, 12, 12)).evaluate(x) is x and torch.equal(torch.get_rng_state(), random)
    assert aug((4, 12, 12)).output_shape == (4, 12, 12) and not list(aug((4, 12, 12)).parameters())


def test_no_augmentation():
    x = images(3)
    assert Null((3, 12, 10))(x, torch.Generator()) is x


def places(size):
    """A picture whose two channels tell row and column."""
    rows = torch.arange(size)[:, None].expand(size, size)
    return torch.stack([rows, rows.T]).to(torch.uint8)


def test_a_random_crop_is_a_window_and_every_place_is_as_likely():
    """100 → 84: offsets 0 to 16, each of the 17 the same number of times but for chance; one for all channels of a sample."""
    crop = RandomCrop((2, 100, 100), size=84)
    seen = crop(places(100).repeat(8000, 1, 1, 1), torch.Generator().manual_seed(0))
    assert seen.shape == (8000, 2, 84, 84) and crop.output_shape == (2, 84, 84)
    top, left = seen[:, 0, 0, 0].long(), seen[:, 1, 0, 0].long()
    for offset in (top, left):
        counts = torch.bincount(offset, minlength=17).double()
        assert len(counts) == 17 and ((counts - 8000 / 17) ** 2 / (8000 / 17)).sum() < 39.3  # chi-square, 16 degrees of freedom, 99.9 %
    assert torch.equal(seen[:, 0, :, 5].long(), top[:, None] + torch.arange(84)) and torch.equal(seen[:, 1, 5].long(), left[:, None] + torch.arange(84))


def test_acting_sees_the_middle_and_a_picture_of_that_size_passes():
    crop = RandomCrop((2, 100, 100), size=84)
    middle = crop.evaluate(places(100)[None])
    assert middle.shape == (1, 2, 84, 84) and middle[0, :, 0, 0].tolist() == [8, 8]
    same_size = RandomCrop((2, 84, 84), size=84)
    picture = places(84)[None]
    assert torch.equal(same_size(picture), picture) and torch.equal(same_size.evaluate(picture), picture)
    with pytest.raises(ValueError, match='Aug=RandomCrop size=84'):
        RandomCrop((2, 64, 64))


def test_amplitude_and_noise():
    x = torch.full((4000, 3), 2.0)
    seen = AmplitudeNoise((3,), scale=0.5, noise=0.0)(x, torch.Generator().manual_seed(0))
    assert (seen[:, 0] == seen[:, 1]).all() and 1.0 <= seen.min() < 1.01 and 2.99 < seen.max() <= 3.0 and seen.mean() == pytest.approx(2, abs=0.03)
    noisy = AmplitudeNoise((3,), scale=0.0, noise=0.1)(x, torch.Generator().manual_seed(0))
    assert (noisy - x).std() == pytest.approx(0.1, rel=0.03) and torch.equal(AmplitudeNoise((3,)).evaluate(x), x)
