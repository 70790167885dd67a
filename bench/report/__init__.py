"""The README's tables, from bench/results."""
