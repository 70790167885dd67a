"""Synthetic fundus images, for tests and for machines without a data set."""

from .fundus import COUNT, generate

__all__ = ["COUNT", "generate"]
