"""Build, check and install the bundle: wheel and compiled kernels for a GPU machine, built without a GPU."""
