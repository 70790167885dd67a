"""Images of the experiment: published data sets, a folder of one's own, or synthetic ones; patches and preparation."""

from .cut import PatchSampler, crop, merge, pad, patches
from .layouts import Layout
from .loading import hold_out, load
from .preprocess import Preparation
from .sample import DataError, Sample, describe

__all__ = [
    "DataError", "Layout", "PatchSampler", "Preparation", "Sample", "crop", "describe", "hold_out", "load",
    "merge", "pad", "patches",
]  # fmt: skip
