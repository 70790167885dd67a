"""Small models in the spellings of public code, each with the layers that fuse() has to find in it, counted by hand."""

from . import branches, classic, layers, mobile, norms, segmentation, spellings  # noqa: F401  # they add their entries
from .entry import ZOO, Entry, parse

__all__ = ["ZOO", "Entry", "parse"]
