"""Implicit-GEMM convolution kernels with a fused epilogue or fused batch statistics, their configs and cost model."""
