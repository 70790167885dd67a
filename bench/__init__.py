"""Benchmarks: pytest-benchmark files, the tables of .ci/gpu, and what writes the README's report."""
