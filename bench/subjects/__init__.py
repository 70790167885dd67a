"""Computations to benchmark, each with the providers that can run it."""
