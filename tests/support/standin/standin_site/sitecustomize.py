"""With this folder on PYTHONPATH every Python process is under the stand-in, those that it starts too.

STANDIN_CHIP: the compute capability, 90. STANDIN_ASKED: a folder, in which each process leaves what it asked for.
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
    _asked = _block.__enter__()
    _clock = time.monotonic
    time.monotonic = lambda: _clock() / 1000  # budgets are for a GPU that finds its kernels compiled

    @atexit.register
    def _leave() -> None:
        if _asked.kernels or _asked.modules:
            handle, path = tempfile.mkstemp(suffix=".json", dir=os.environ["STANDIN_ASKED"])
            os.close(handle)
            Path(path).write_text(_asked.as_json())
