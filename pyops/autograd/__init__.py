"""Convolution, batch normalisation and activation as one differentiable function; what is saved and recomputed."""

from .function import Call, site

__all__ = ["Call", "site"]
