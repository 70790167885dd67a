"""The bundle: wheel and compiled kernels for a GPU machine, built on one without a GPU."""
