"""Benchmarks: pytest-benchmark files, the tables that .ci/gpu fills, and the README's report."""
