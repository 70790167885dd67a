"""The phases of .ci/gpu as data: what runs on a GPU machine, in which order, and for how long at the most.

A command is a line of bash, run at the root of the checkout, with {python}, {results} and {bundle} filled in. The
limits of `right` and `fast` are what a first run of 15 minutes leaves: 270 and 420 seconds.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

NOT_AVAILABLE = 77  # exit status of a step that this machine cannot run, as automake and CTest have it


@dataclass(frozen=True)
class Step:
    name: str
    limit: int  # seconds, after which nothing of it runs any more
    command: str
    required: bool = False  # a failure ends the phase: nothing behind it means anything
    informative: bool = False  # a failure is recorded and does not count
    optional: bool = False  # it may answer NOT_AVAILABLE, which is recorded and does not count


PYTEST = "{python} -m pytest -n 14 -v --tb short"
CASES = "tests/test_cases_*.py tests/test_native*.py tests/test_ops.py"
TUNE = "{python} -m atrous tune resnet34 --device cuda"
SAVE_TABLE = Step("keep the tuned table", 10, "{python} bench/gpu/tuned.py {results}")

INSTALL_BUNDLE = Step("install the bundle", 25, "{python} bench/gpu/bundle.py install {bundle}", required=True)
# csrc is not compiled here: the GPU would wait for it. What `setup.py build_ext --inplace` left in pyops/ is used.
INSTALL_CHECKOUT = Step(
    "install the checkout", 25,
    "ATROUS_SKIP_NATIVE=1 {python} -m pip install --quiet --no-build-isolation --no-deps -e .", required=True,
)  # fmt: skip
INFO = Step("what is here", 15, "{python} -m atrous info", required=True)
LAUNCHES = Step("every kernel once", 25, "{python} -u tests/launches.py")

RIGHT = (
    INFO,
    LAUNCHES,
    # The convolution first; pytest takes a file once.
    Step("GPU tests", 100, f"{PYTEST} -m gpu tests/test_*conv*.py tests/test_*.py tests/gpu"),
    Step("the cases of every backend", 42, f"{PYTEST} -m 'not gate' --device cuda {CASES}"),
    Step("memcheck", 43, "{python} bench/gpu/sanitize.py memcheck", optional=True),
    Step("fuzzer", 20, "{python} tests/gpu/fuzz_conv.py --device cuda --seconds 12 --seed $(date +%Y%m%d)"),
)

FAST = (
    Step("ceilings", 15, "{python} bench/gpu/ceilings.py {results}"),
    Step("tune", 105, f"{TUNE} --dtype bfloat16 --batch 256,1,32 --seconds 85"),
    SAVE_TABLE,
    Step("sites", 90, "{python} bench/fused_table.py {results} --part sites --seconds 72"),
    Step("passes", 40, "{python} bench/pointwise_table.py {results} --seconds 28"),
    Step("networks", 60, "{python} bench/fused_table.py {results} --part networks --seconds 42"),
    Step("training", 45, "{python} bench/training_table.py {results} --part steps --seconds 30"),
    Step("tiles of csrc/cuda", 25, "{python} bench/gpu/conv_tiles.py {results} --seconds 15"),
    Step("max-autotune", 30, "{python} bench/fused_table.py {results} --part max_autotune --seconds 20"),
)

HEADERS = Step("headers of CUTLASS", 300, "{python} -m pip install --quiet --no-deps -r requirements-cuda.txt")
BUILD = Step(
    "build for this GPU", 1800,
    "TORCH_CUDA_ARCH_LIST=$({python} bench/record.py --arch) {python} -m pip install --quiet --no-build-isolation "
    "--no-deps -e .", required=True,
)  # fmt: skip
TUNE_BATCHES, TUNE_DILATED = "--batch 1,32,256 --seconds 600", "--output-stride 8 --size 512 --batch 1,8 --seconds 600"
FULL = (
    INFO,
    replace(LAUNCHES, limit=300),
    Step("CPU tests", 3600, f'{PYTEST} -m "not gpu and not gate" tests'),
    Step("GPU tests", 3600, f"{PYTEST} -m gpu tests"),
    Step("the cases of every backend", 3600, f"{PYTEST} -m 'not gate' --device cuda {CASES}"),
    Step("memcheck", 1800, "{python} bench/gpu/sanitize.py memcheck", optional=True),
    # They may misreport TMA and mbarrier: what they say is read, and decides nothing.
    Step("racecheck", 1800, "{python} bench/gpu/sanitize.py racecheck", optional=True, informative=True),
    Step("initcheck", 1800, "{python} bench/gpu/sanitize.py initcheck", optional=True, informative=True),
    Step("ceilings", 60, "{python} bench/gpu/ceilings.py {results}"),
    *(
        Step(f"tune {dtype}, {name}", 700, f"{TUNE} --dtype {dtype} {options}")
        for dtype in ("bfloat16", "float16")
        for name, options in (("224x224", TUNE_BATCHES), ("512x512, dilated", TUNE_DILATED))
    ),
    SAVE_TABLE,
    Step("cuDNN", 1300, "{python} bench/cudnn_table.py {results} --seconds 600"),
    Step("passes", 700, "{python} bench/pointwise_table.py {results} --seconds 600"),
    Step("sites", 1300, "{python} bench/fused_table.py {results} --part sites --seconds 1200"),
    Step("networks", 1300, "{python} bench/fused_table.py {results} --part networks --seconds 1200"),
    Step("training", 1300, "{python} bench/training_table.py {results} --seconds 600"),
    Step("tiles of csrc/cuda", 700, "{python} bench/gpu/conv_tiles.py {results} --seconds 600"),
    Step("max-autotune", 1900, "{python} bench/fused_table.py {results} --part max_autotune --seconds 1800"),
    Step("fuzzer", 7300, "{python} tests/gpu/fuzz_conv.py --device cuda --seconds 7200 --seed $(date +%Y%m%d)"),
)

PHASES = ("bundle", "right", "fast", "full")
NOW = {  # what .ci/gpu took before, and where it is now
    "build": "right", "test": "right", "sanitize": "right", "tune": "fast", "bench": "fast", "all": "full",
}  # fmt: skip
OFFLINE = ("right", "fast")  # pip asks no index


def steps(phase: str, python: str, results: Path, bundle: Path | None) -> list[Step]:
    """The steps of a phase, with their commands filled in. Without a bundle the checkout is installed."""
    found = {
        "bundle": (Step("bundle", 1800, "make gpu-bundle", required=True),),
        "right": (INSTALL_BUNDLE if bundle else INSTALL_CHECKOUT, *RIGHT),
        "fast": FAST,
        "full": (*([INSTALL_BUNDLE] if bundle else [HEADERS, BUILD]), *FULL),
    }[phase]
    words = {"python": python, "results": str(results), "bundle": str(bundle)}
    quoted = {name: shlex.quote(word) for name, word in words.items()}
    return [replace(step, command=step.command.format(**quoted)) for step in found]
