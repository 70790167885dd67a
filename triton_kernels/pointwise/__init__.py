"""Kernels without a convolution: the epilogue, its backward, and per-channel reductions."""
