"""The convolution: configs, cost model, main loop, and the kernels with the epilogue or with statistics."""
