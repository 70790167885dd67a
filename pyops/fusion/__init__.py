"""fuse(model): runs each conv -> bn -> (add) -> activation site of an ordinary model as one fused call."""

from .module import fuse
from .report import Report, Site

__all__ = ["Report", "Site", "fuse"]
