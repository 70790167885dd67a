"""The passes without a convolution: epilogue, its backward, and the reductions over channels."""
