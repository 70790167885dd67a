"""fuse(model): replaces each conv -> bn -> (add) -> activation site of an ordinary model by one fused call."""

from .model import fuse
from .report import Report, Site

__all__ = ["Report", "Site", "fuse"]
