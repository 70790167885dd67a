"""fuse(model): runs each conv -> bn -> (add) -> activation site of an ordinary model as one fused call."""

from .compiler import dynamo_backend, fuse_graph
from .module import fuse, is_frozen, is_fused, observed
from .report import Report, Site

__all__ = ["Report", "Site", "dynamo_backend", "fuse", "fuse_graph", "is_frozen", "is_fused",
           "observed"]  # fmt: skip
