"""Cut images into patches for training, and into overlapping patches for inference, whose predictions are averaged.

There are two ways of inference, and their figures are not the same; a table names the way.

  patches      As published. The network sees what it saw in training: 48x48 pixels, with its own zero padding around
               them. A pixel's probability is the mean over all patches that cover it, (size / stride)^2 of them away
               from the border, seen from as many positions, which smooths. The cost is as many times that of one pass.
  whole image  One pass over the image, padded to a multiple of the network's stride. Every pixel away from the border
               has its full receptive field, also where that is wider than 48 pixels, and no padding in it: other
               inputs than those of training, where taps of a large dilation fell into padding. Nothing is averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SIZE, STRIDE = 48, 5  # pixels, as published


class PatchSampler:
    """Draws training patches from random places; the places of each field of view are found once.

    images, truths, fields: (H, W) of each image. A patch lies in its field of view with all its pixels, as published.

    Raises ValueError for a field that holds no such patch.
    """

    def __init__(
        self, images: Sequence[np.ndarray], truths: Sequence[np.ndarray], fields: Sequence[np.ndarray], size: int = SIZE
    ):
        self.size = size
        self.places = [corners(field, size, i) for i, field in enumerate(fields)]
        self.images, self.truths = ([sliding_window_view(v, (size, size)) for v in part] for part in (images, truths))

    def __call__(self, count: int, rng: np.random.Generator, turn: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Returns (count, 1, size, size) twice, images and truths in their own types.

        Each image gives as many patches as any other, up to one, in random order.
        turn: each patch gets one of the eight symmetries of the square at random.
        """
        first = int(rng.integers(len(self.images)))  # a batch smaller than the number of images begins anywhere
        owner = rng.permutation((first + np.arange(count)) % len(self.images))
        x, y = (np.empty((count, self.size, self.size), part[0].dtype) for part in (self.images, self.truths))
        for i in np.unique(owner):
            chosen = owner == i
            places = self.places[i][rng.integers(len(self.places[i]), size=np.count_nonzero(chosen))]
            top, left = np.divmod(places, self.images[i].shape[1])
            x[chosen], y[chosen] = self.images[i][top, left], self.truths[i][top, left]
        if turn:
            _turn((x, y), rng.integers(8, size=count))
        return x[:, None], y[:, None]


def corners(field: np.ndarray, size: int, index: int = 0) -> np.ndarray:
    """Returns the upper left corners of all patches in a field of view, as y * (W - size + 1) + x.

    index: the image's number, for the messages.
    """
    if min(field.shape) < size:
        raise ValueError(f"image {index} is {field.shape[1]}x{field.shape[0]} pixels, a patch {size}x{size}")
    places = np.flatnonzero(window_sums(field, size, size) == size * size).astype(np.int32)
    if not len(places):
        raise ValueError(f"no patch of {size}x{size} pixels lies in the field of view of image {index}")
    return places


def window_sums(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns (H - height + 1, W - width + 1): how many pixels of a mask each window of height x width holds."""
    sums = np.pad(mask.astype(np.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]


def _turn(arrays: Sequence[np.ndarray], symmetry: np.ndarray) -> None:
    """Turns patches in place, each by its number from 0 to 7: quarter turns, and from 4 on a mirroring before."""
    for number in range(1, 8):
        chosen = symmetry == number
        for array in arrays:
            part = array[chosen]
            array[chosen] = np.rot90(part[:, :, ::-1] if number >= 4 else part, number % 4, (1, 2))


def patches(image: np.ndarray, size: int = SIZE, stride: int = STRIDE) -> np.ndarray:
    """Returns (Y, X, size, size): overlapping patches that cover an image (H, W); a view, nothing is copied.

    The image is padded with zeros below and on the right until the patches fit, as published. The patches of a line,
    patches(image)[y], are a batch of X.
    """
    if not 1 <= stride <= size:
        raise ValueError(f"stride is from 1 to size={size}, so that every pixel is covered; got {stride}")
    padded = np.pad(image, [(0, steps * stride + size - side) for steps, side in _grid(image.shape, size, stride)])
    return sliding_window_view(padded, (size, size))[::stride, ::stride]


def merge(
    batches: Iterable[np.ndarray], shape: tuple[int, int], size: int = SIZE, stride: int = STRIDE
) -> np.ndarray:  # fmt: skip
    """Returns (H, W) float32: the mean of all patches at each pixel; merge(patches(image), image.shape) is the image.

    batches: the patches (n, size, size) in the order of `patches`, in batches of any length, so that not all of them
    need be in memory. shape: (H, W) of the image.
    """
    (down, _), (across, _) = _grid(shape, size, stride)
    total = np.zeros((down * stride + size, across * stride + size))
    counts = np.zeros_like(total)
    expected, number = (down + 1) * (across + 1), 0
    for batch in batches:
        for patch in batch:
            y, x = (position * stride for position in divmod(number, across + 1))
            if number < expected:
                total[y : y + size, x : x + size] += patch
                counts[y : y + size, x : x + size] += 1
            number += 1
    if number != expected:
        raise ValueError(f"an image of {shape[1]}x{shape[0]} has {expected} patches of {size}x{size}, got {number}")
    return (total / counts)[: shape[0], : shape[1]].astype(np.float32)


def _grid(shape: tuple[int, ...], size: int, stride: int) -> list[tuple[int, int]]:
    """Returns (steps, side) of both axes: the last patch begins at steps * stride."""
    return [(max(0, -(-(side - size) // stride)), side) for side in shape]


def pad(image: np.ndarray, multiple: int) -> np.ndarray:
    """Returns (H', W'): the image mirrored below and on the right to multiples of the network's stride."""
    return np.pad(image, [(0, -side % multiple) for side in image.shape], mode="symmetric")


def crop(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns (..., H, W): the image before `pad`; shape: its (H, W)."""
    return image[..., : shape[0], : shape[1]]
