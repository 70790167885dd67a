"""Benchmark tables for a GPU; each is a command that fills its part of the results file."""
