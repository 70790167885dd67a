"""A key of tuning tables, entries for it, a table of them, and the call that has the key."""

from __future__ import annotations

import torch

from atrous.core.spec import Spec
from atrous.triton_kernels.conv.configs import CONV
from atrous.tuning.device_id import device_name, versions
from atrous.tuning.format import Entry, Key, Table

CPU = torch.device("cpu")
SPEC = Spec((1, 1), (2, 2), (2, 2))
KEY = Key(16, 32, (9, 7), (3, 3), (1, 1), (2, 2), (2, 2), 1, 4, "float32", "NCHW", False, False, False, False)
LIBRARY = Entry("library", None, {"library": 0.25, "native": 0.5})
NATIVE = Entry("native", None, {"library": 0.5, "native": 0.25})
TRITON = Entry("triton", CONV[3]._replace(splits=4), {"library": 0.5, "triton": 0.125})


def table(entries, **changes):
    return Table(device_name(CPU), versions(CPU), "2026-11-24", entries)._replace(**changes)


def call(batch=3, dtype=torch.float32, layout=torch.contiguous_format):
    x = torch.zeros(batch, 16, 9, 7, dtype=dtype).contiguous(memory_format=layout)
    return x, torch.zeros(32, 16, 3, 3, dtype=dtype)


def make_loop(path):
    path.symlink_to(path)
