"""Triton kernels and their launchers; they import torch and triton only."""
