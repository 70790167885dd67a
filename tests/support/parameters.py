"""The lists that tests are parametrized over: dtypes, and names of backends."""

from __future__ import annotations

import torch

from atrous.backends import selection
from atrous.core import checks

DTYPES = checks.DTYPES
HALVES = (torch.float16, torch.bfloat16)
# On a CPU, triton convolves only under the interpreter: test_triton_cases.py runs the cases there.
BACKENDS = ["auto", *(name for name in selection.backends() if name != "triton" or not selection.available(name))]
CPU_BACKENDS = tuple(name for name in selection.backends() if not selection.reasons(name, torch.empty(0, device="cpu")))
