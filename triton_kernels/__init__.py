"""Triton kernels and their launchers; they import only torch and triton."""
