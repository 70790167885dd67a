"""Puts every Python process that has this folder on PYTHONPATH, child processes included, under the stand-in.

STANDIN_CHIP: the compute capability, such as 90. STANDIN_ASKED: a folder in which each process records its launches.
"""

import atexit
import os
import sys
import tempfile
import time
from pathlib import Path

if os.environ.get("TRITON_INTERPRET") != "1":
    sys.path.append(str(Path(__file__).parents[1]))
    import standin

    _block = standin.gpu(int(os.environ["STANDIN_CHIP"]))
    _recorded = _block.__enter__()
    _clock = time.monotonic
    time.monotonic = lambda: _clock() / 1000  # time limits of tests assume compiled kernels

    @atexit.register
    def _write_record() -> None:
        if _recorded.kernels or _recorded.modules:
            handle, path = tempfile.mkstemp(suffix=".json", dir=os.environ["STANDIN_ASKED"])
            os.close(handle)
            Path(path).write_text(_recorded.as_json())
