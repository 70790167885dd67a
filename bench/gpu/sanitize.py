"""Run compute-sanitizer on small launches of the kernels, or report why it cannot run on this machine.

    python -m bench.gpu.sanitize memcheck|racecheck|initcheck [PROGRAM [ARGUMENT ...]]

PROGRAM is tests/support/kernels/launches.py by default.

Exit status 77: the tool is not installed, or it does not work here, as on virtual machines that it refuses. A probe
that calls the driver alone detects this before any kernel runs, so that no error of a kernel is mistaken for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.gpu.steps import NOT_AVAILABLE

ROOT = Path(__file__).parents[2]
FOLDERS = ("/usr/local/cuda/bin", os.path.join(os.environ.get("CUDA_HOME", ""), "bin"))
# Creates a context and one allocation through the driver API; fails if the tool does not support the machine.
PROBE = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
for name, *arguments in (
    ("cuInit", 0), ("cuDeviceGet", ctypes.byref(device), 0),
    ("cuDevicePrimaryCtxRetain", ctypes.byref(context), device), ("cuCtxSetCurrent", context),
    ("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(1 << 20)), ("cuMemFree_v2", memory),
):
    status = getattr(cuda, name)(*arguments)
    if status:
        raise SystemExit(f"{name} answers {status}")
"""


def main(tool: str, program: list[str]) -> int:
    sanitizer = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], *FOLDERS]))
    if sanitizer is None:
        print("compute-sanitizer is not on the PATH (it comes with the CUDA toolkit)")
        return NOT_AVAILABLE
    command = [sanitizer, "--tool", tool, "--error-exitcode", "1", os.environ.get("PYTHON") or sys.executable]
    probe = subprocess.run([*command, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if probe.returncode:
        lines = [line.strip("= ") for line in probe.stdout.splitlines() if line.strip("= ")]
        print(f"compute-sanitizer does not work here: {'; '.join(lines[:4]) or f'exit status {probe.returncode}'}")
        return NOT_AVAILABLE
    # Without torch's caching allocator each tensor is its own allocation, so that every overrun is detected.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    status = subprocess.run([*command, "-u", *program], cwd=ROOT, env=os.environ | alone).returncode
    return 1 if status < 0 or status == NOT_AVAILABLE else status


if __name__ == "__main__":
    if sys.argv[1:2] not in (["memcheck"], ["racecheck"], ["initcheck"]):
        print(f"sanitize.py: expected memcheck, racecheck or initcheck, got {sys.argv[1:2]}", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1], sys.argv[2:] or ["tests/support/kernels/launches.py"]))
