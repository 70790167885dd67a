"""Generate the README's tables from bench/results."""
