"""Images of the experiment: published data sets, a folder of one's own, or synthetic ones; patches and preparation."""

from .sample import DataError, Sample, describe

__all__ = ["DataError", "Sample", "describe"]
