"""An operator frees its arguments: the memory in use does not grow with the calls."""

import ctypes
import gc

import pytest
import torch

from atrous import ops

CALLS, LEAST = 2000, 16  # glibc's malloc counts 32 bytes at least for a block


class Usage(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def in_use():
    gc.collect()
    read = ctypes.CDLL(None).mallinfo2
    read.restype = Usage
    usage = read()
    return usage.uordblks + usage.hblkhd


def epilogue(z, mean, var):
    return torch.ops.atrous._epilogue(z, mean, var, None, None, mean, z, "tensor")


def convolution(z, mean, var):
    ones = [1, 1]
    return torch.ops.atrous._conv_epilogue(z, WEIGHT, mean, ones, ones, ones, 1, mean, var, None, None, None, z, "relu")


def winograd(z, mean, var):
    return torch.ops.atrous._winograd_epilogue(
        z, WEIGHT, None, False, [2, 2], False, mean, [1, 1], [1, 1], mean, var, None, None, None, z, "relu"
    )


def leaking(z, mean, var):
    """A fault that the test has to find."""
    ctypes.CDLL(None).malloc(32)
    return epilogue(z, mean, var)


WEIGHT = torch.randn(8, 8, 3, 3)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="malloc is not glibc's")
@pytest.mark.skipif(not ops.library_loaded, reason="the C++ library is not built")
@pytest.mark.parametrize("call", [epilogue, convolution, winograd, leaking])
def test_arguments_are_freed(call):
    tensors = torch.randn(2, 8, 3, 3), torch.zeros(8), torch.ones(8)
    for _ in range(100):
        call(*tensors)
    before = in_use()
    for _ in range(CALLS):
        call(*tensors)
    assert (in_use() - before < LEAST * CALLS) == (call is not leaking)
