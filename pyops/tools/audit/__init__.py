"""python -m atrous audit."""
