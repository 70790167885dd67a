"""Triton kernels and their launchers; they import only torch and triton, and core.spec for the type checker."""
