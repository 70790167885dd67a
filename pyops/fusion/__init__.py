"""fuse(model): an ordinary model whose conv -> bn -> (add) -> activation sites each run as one call."""

from .model import fuse
from .report import Report, Site

__all__ = ["Report", "Site", "fuse"]
