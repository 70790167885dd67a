"""The dilation of a network: the input positions that it reads, its holes, and rates without holes."""

from .audit import Audit, audit_dilation
from .layers import Layer
from .rates import Stack, Suggestion

__all__ = ["Audit", "Layer", "Stack", "Suggestion", "audit_dilation"]
