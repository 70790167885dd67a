"""Prepare images as the published pipeline does: grey, standardised, CLAHE, gamma 1.2.

The pipeline is that of github.com/orobix/retina-unet, which the published runs of this series follow. It uses OpenCV,
here scikit-image does the same steps:

  grey         0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)
  standardise  (grey - mean) / deviation over the training set, then each image to [0, 1] by its own minimum and
               maximum. The second step undoes the first, in exact arithmetic; both are here as both are published
  CLAHE        8x8 tiles, clip limit 2.0 in OpenCV's unit, which is twice the mean of 256 bins: 2 / 256 in
               scikit-image's
  gamma 1.2    v^(1 / 1.2), which brightens: OpenCV's recipes take the inverse of the number
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from skimage import exposure

from .field import LUMINANCE
from .sample import Sample

CLIP_LIMIT, TILES, GAMMA = 2 / 256, 8, 1.2


@dataclass(frozen=True)
class Preparation:
    """The published preparation with the statistics of a training set; a checkpoint stores the two numbers.

    mean, deviation: of the grey levels (0 to 255) over all pixels of all training images.
    """

    mean: float
    deviation: float

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> Preparation:
        """Returns the preparation with the statistics of training images."""
        sums = np.zeros(3)
        for sample in samples:
            values = grey(sample.image).astype(np.float64)
            sums += values.size, values.sum(), (values**2).sum()
        if not sums[0]:
            raise ValueError("no images to compute mean and deviation from")
        mean = sums[1] / sums[0]
        return cls(float(mean), float(np.sqrt(max(sums[2] / sums[0] - mean**2, 0.0))))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns (H, W) float32 in [0, 1] from (H, W, 3) uint8."""
        values = (grey(image) - self.mean) / max(self.deviation, 1e-6)
        low, high = values.min(), values.max()
        values = (values - low) / max(high - low, 1e-6)
        tile = tuple(max(1, -(-side // TILES)) for side in values.shape)
        equal = exposure.equalize_adapthist(values, kernel_size=tile, clip_limit=CLIP_LIMIT)
        return exposure.adjust_gamma(np.clip(equal, 0, 1), 1 / GAMMA).astype(np.float32)


def grey(image: np.ndarray) -> np.ndarray:
    """Returns (H, W) float32, the luminance in grey levels, 0 to 255, of (H, W, 3) uint8."""
    return image.astype(np.float32) @ LUMINANCE
