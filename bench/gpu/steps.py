"""The phases of .ci/gpu as data: what runs on a GPU machine, in which order, and for how long at the most.

A command is a line of bash, run at the root of the checkout, with {python}, {results} and {bundle} filled in. The
limits of `right` and `fast` are what a first run of 15 minutes leaves: 270 and 420 seconds. A step is interrupted
5 seconds before its limit (process_group.GRACE), so one that counts its own seconds has 8 more to start and to end in.

torch.compile's max-autotune takes 1 to 4 minutes a network: `fast` cannot hold one, `full` has it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

NOT_AVAILABLE = 77  # exit status of a step that this machine cannot run, as automake and CTest have it


@dataclass(frozen=True)
class Step:
    name: str
    limit: int  # seconds: interrupted shortly before, killed then
    command: str
    required: bool = False  # a failure ends the phase: nothing behind it means anything
    informative: bool = False  # a failure is recorded and does not count
    optional: bool = False  # it may answer NOT_AVAILABLE, which is recorded and does not count


PYTEST = "{python} -m pytest -n 14 -v --tb short"
CASES = "tests/*/test_cases_*.py tests/*/test_native*.py tests/ops/test_ops.py"
TUNE = '{python} -m atrous tune resnet34 --device cuda --commit "$ATROUS_COMMIT"'
SAVE_TABLE = Step("keep the tuned table", 10, "{python} -m bench.gpu.tuned {results}")
FUZZ = "{python} tests/fuzz/fuzz_conv.py --device cuda --seed $(date +%Y%m%d) --json {results}/fuzz.json"

BUNDLE = "{python} -m bench.gpu.bundle.command"
INSTALL_BUNDLE = Step("install the bundle", 40, f"{BUNDLE} install {{bundle}}", required=True)
# csrc is not compiled here: the GPU would wait for it. What `setup.py build_ext --inplace` left in pyops/ is used.
INSTALL_CHECKOUT = Step(
    "install the checkout", 40,
    "ATROUS_SKIP_NATIVE=1 {python} -m pip install --quiet --no-build-isolation --no-deps -e .", required=True,
)  # fmt: skip
# After a bundle, a backend that does not run would leave its tests out, and nothing would be tested: that ends the run.
INFO = Step("what is here", 15, "{python} -m atrous info --require native,triton", required=True)
INFO_OF_CHECKOUT = replace(INFO, command="{python} -m atrous info --require triton")
LAUNCHES = Step("every kernel once", 25, "{python} -u tests/support/launches.py")

RIGHT = (
    LAUNCHES,
    # The convolution first; pytest takes a file once.
    Step("GPU tests", 93, f"{PYTEST} -m gpu tests/*/test_*conv*.py tests/*/test_*.py tests/bench/gpu"),
    Step("the cases of every backend", 40, f"{PYTEST} -m 'not gate' --device cuda {CASES}"),
    Step("memcheck", 37, "{python} -m bench.gpu.sanitize memcheck tests/support/launches.py --one", optional=True),
    Step("fuzzer", 20, f"{FUZZ} --seconds 6"),
)

FAST = (
    Step("ceilings", 15, "{python} -m bench.gpu.ceilings {results}"),
    Step("tune", 95, f"{TUNE} --dtype bfloat16 --batch 256,1,32 --seconds 78 --json {{results}}/tune.json"),
    SAVE_TABLE,
    Step("sites", 75, "{python} -m bench.tables.fused {results} --part sites --seconds 60"),
    Step("passes", 30, "{python} -m bench.tables.pointwise {results} --seconds 16"),
    Step("networks", 45, "{python} -m bench.tables.fused {results} --part networks --seconds 30"),
    Step("training", 35, "{python} -m bench.tables.training {results} --part steps --seconds 20"),
    Step("tiles of csrc/cuda", 20, "{python} -m bench.gpu.conv_tiles {results} --seconds 7"),
    # A compilation cannot be stopped, and how long one takes is torch's affair.
    Step(
        "torch.compile", 55, "{python} -m bench.tables.fused {results} --part compiled --seconds 42", informative=True
    ),
)

HEADERS = Step("headers of CUTLASS", 300, "{python} -m pip install --quiet --no-deps -r requirements-cuda.txt")
BUILD = Step(
    "build for this GPU", 1800,
    "TORCH_CUDA_ARCH_LIST=$({python} -m bench.record --arch) {python} -m pip install --quiet --no-build-isolation "
    "--no-deps -e .", required=True,
)  # fmt: skip
TUNE_BATCHES, TUNE_DILATED = "--batch 1,32,256 --seconds 600", "--output-stride 8 --size 512 --batch 1,8 --seconds 600"
FULL = (
    INFO,
    replace(LAUNCHES, limit=300),
    Step("CPU tests", 3600, f'{PYTEST} -m "not gpu and not gate" tests'),
    Step("GPU tests", 3600, f"{PYTEST} -m gpu tests"),
    Step("the cases of every backend", 3600, f"{PYTEST} -m 'not gate' --device cuda {CASES}"),
    Step("memcheck", 1800, "{python} -m bench.gpu.sanitize memcheck", optional=True),
    # They may misreport TMA and mbarrier: what they say is read, and decides nothing.
    Step("racecheck", 1800, "{python} -m bench.gpu.sanitize racecheck", optional=True, informative=True),
    Step("initcheck", 1800, "{python} -m bench.gpu.sanitize initcheck", optional=True, informative=True),
    Step("ceilings", 60, "{python} -m bench.gpu.ceilings {results}"),
    *(
        Step(
            f"tune {dtype}, {name}",
            700,
            f"{TUNE} --dtype {dtype} {options} --json {{results}}/tune-{dtype}-{name}.json",
        )
        for dtype in ("bfloat16", "float16")
        for name, options in (("224", TUNE_BATCHES), ("512-dilated", TUNE_DILATED))
    ),
    SAVE_TABLE,
    Step("cuDNN", 1300, "{python} -m bench.tables.cudnn {results} --seconds 600"),
    Step("passes", 700, "{python} -m bench.tables.pointwise {results} --seconds 600"),
    Step("sites", 1300, "{python} -m bench.tables.fused {results} --part sites --seconds 1200"),
    Step("networks", 1300, "{python} -m bench.tables.fused {results} --part networks --seconds 1200"),
    Step("training", 1300, "{python} -m bench.tables.training {results} --seconds 600"),
    Step("tiles of csrc/cuda", 700, "{python} -m bench.gpu.conv_tiles {results} --seconds 600"),
    Step("torch.compile", 1300, "{python} -m bench.tables.fused {results} --part compiled --seconds 1200"),
    Step("max-autotune", 1900, "{python} -m bench.tables.fused {results} --part max_autotune --seconds 1800"),
    Step("fuzzer", 7300, f"{FUZZ} --seconds 7200"),
)

PHASES = ("bundle", "right", "fast", "full")
NOW = {  # what .ci/gpu took before, and where it is now
    "build": "bundle", "test": "right", "sanitize": "right", "tune": "fast", "bench": "fast", "all": "full",
}  # fmt: skip
OFFLINE = ("right", "fast")  # pip asks no index


def steps(phase: str, python: str, results: Path, bundle: Path | None) -> list[Step]:
    """The steps of a phase, with their commands filled in. Without a bundle the checkout is installed."""
    start = (INSTALL_BUNDLE, INFO) if bundle else (INSTALL_CHECKOUT, INFO_OF_CHECKOUT)
    found = {
        "bundle": (Step("bundle", 1800, "make gpu-bundle", required=True),),
        "right": (*start, *RIGHT),
        "fast": (start[0], *FAST),
        "full": (*([INSTALL_BUNDLE] if bundle else [HEADERS, BUILD]), *FULL),
    }[phase]
    words = {"python": python, "results": str(results), "bundle": str(bundle)}
    quoted = {name: shlex.quote(word) for name, word in words.items()}
    return [replace(step, command=step.command.format(**quoted)) for step in found]
