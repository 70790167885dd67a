"""Convolution, BatchNorm, residual and activation as one differentiable function that saves little and recomputes."""

from .function import LayerConfig, fused_layer

__all__ = ["LayerConfig", "fused_layer"]
