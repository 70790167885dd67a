"""The primitive operators torch.ops.atrous._* and torch.ops.atrous_triton._*."""

from .registration import library_error, library_loaded, schemas

# isort: split
from . import flops as flops  # needs the registered operators

__all__ = ["library_error", "library_loaded", "schemas"]
