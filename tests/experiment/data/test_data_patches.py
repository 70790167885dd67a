"""Patches for training and for inference, and whole images: the inverses are exact."""

import numpy as np
import pytest

from examples.vessels.data import PatchSampler, crop, merge, pad, patches

DISC = np.hypot(*(np.mgrid[:90, :100] - 45)) <= 40


def image(shape=(90, 100), seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize("shape", [(48, 48), (50, 61), (97, 48), (30, 70), (20, 20)])
@pytest.mark.parametrize("stride", [1, 5, 48])
def test_merged_patches_are_the_image(shape, stride):
    original = image(shape)
    cut = patches(original, stride=stride)
    assert cut.shape[2:] == (48, 48)
    np.testing.assert_array_equal(merge(cut, shape, stride=stride), original)


def test_merge_averages_and_takes_any_batches():
    ones = np.ones((6, 8, 8)) * np.arange(6)[:, None, None]
    merged = merge([ones[:4], ones[4:]], (12, 16), size=8, stride=4)  # 2 x 3 patches
    assert merged[0, 0] == 0 and merged[0, 4] == 0.5 and merged[5, 5] == np.mean([0, 1, 3, 4]) and merged[11, 15] == 5


def test_merge_counts_the_patches():
    with pytest.raises(ValueError, match="12x8 has 2 patches of 8x8, got 3"):
        merge([np.zeros((3, 8, 8))], (8, 12), size=8, stride=4)
    with pytest.raises(ValueError, match="has 2 patches of 8x8, got 0"):
        merge([], (8, 12), size=8, stride=4)
    with pytest.raises(ValueError, match="stride is from 1 to size=48"):
        patches(image(), stride=49)


def test_patches_of_a_grid_are_a_view():
    assert patches(image((584, 565))).shape == (109, 105, 48, 48)
    assert not patches(image((584, 565))).flags.owndata


def test_random_patches_lie_in_the_field_and_match():
    where = np.arange(9000, dtype=np.float32).reshape(90, 100)  # each pixel's own number
    x, y = PatchSampler([where], [DISC], [DISC])(200, np.random.default_rng(0))
    assert x.shape == y.shape == (200, 1, 48, 48) and x.dtype == np.float32 and y.dtype == bool
    assert y.all()
    np.testing.assert_array_equal(x[:, 0] - x[:, :, 0, :1], np.broadcast_to(where[:48, :48], (200, 48, 48)))
    assert len(np.unique(x[:, 0, 0, 0])) > 60  # many places


def test_random_patches_are_reproducible_and_even():
    arguments = ([image(), image(seed=1) + 2], [DISC, ~DISC], [DISC, DISC])
    sampler = PatchSampler(*arguments)
    (x, y), (again, _), (other, _) = (sampler(21, np.random.default_rng(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(x, again)
    assert not np.array_equal(x, other)
    second = x.mean((1, 2, 3)) > 1.5
    assert second.sum() in (10, 11) and y[~second].all() and not y[second].any()


def test_turned_patches_are_the_eight_symmetries():
    original = image((48, 48))
    field = np.ones((48, 48), bool)
    x, y = PatchSampler([original], [original > 0.5], [field])(200, np.random.default_rng(0), turn=True)
    np.testing.assert_array_equal(y, x > 0.5)
    squares = [np.rot90(part, k) for part in (original, original[:, ::-1]) for k in range(4)]
    counts = [sum(np.array_equal(patch, square) for patch in x[:, 0]) for square in squares]
    assert sum(counts) == 200 and min(counts) > 8


def test_a_field_without_a_patch_is_named():
    small = np.zeros((90, 100), bool)
    small[10:50, 10:90] = True
    with pytest.raises(ValueError, match="no patch of 48x48 pixels lies in the field of view of image 1"):
        PatchSampler([image(), image()], [DISC, DISC], [DISC, small])
    with pytest.raises(ValueError, match="image 0 is 40x30 pixels, a patch 48x48"):
        PatchSampler([image((30, 40))], [DISC], [np.ones((30, 40), bool)])


@pytest.mark.parametrize("shape", [(584, 565), (8, 16), (3, 5)])
@pytest.mark.parametrize("multiple", [1, 2, 8])
def test_padded_images_crop_to_themselves(shape, multiple):
    original = image(shape)
    padded = pad(original, multiple)
    assert padded.shape == tuple(-(-side // multiple) * multiple for side in shape)
    np.testing.assert_array_equal(crop(padded, shape), original)
