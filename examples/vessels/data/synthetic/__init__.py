"""Synthetic fundus images, for tests and for machines without a data set."""

from .fundus import generate

__all__ = ["generate"]
