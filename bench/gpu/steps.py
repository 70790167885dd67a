"""The phases of .ci/gpu as data: the steps that run on a GPU machine, their order and their time limits.

A command is a line of bash, run at the root of the checkout, with {python}, {results} and {bundle} filled in. The
limits of `right` and `fast` add up to 270 and 420 seconds, so that a first run fits into 15 minutes. A step is
interrupted 5 seconds before its limit (process_group.GRACE), so the limit of a step with --seconds is at least 13 more.

torch.compile's max-autotune takes 1 to 4 minutes per network: too long for `fast`, so it is in `full` alone.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

NOT_AVAILABLE = 77  # exit status of a step that this machine cannot run, as in automake and CTest
GPU_LOST = 75  # likewise: a new process goes on, by --continue; as in atrous.testing, which needs torch


@dataclass(frozen=True)
class Step:
    name: str
    limit: int  # seconds until it is killed; it is interrupted shortly before
    command: str
    required: bool = False  # a failure ends the phase: the later steps would be meaningless
    informative: bool = False  # a failure is recorded and does not change the exit status
    optional: bool = False  # it may exit with NOT_AVAILABLE, which is no failure


# A worker that compiles with Inductor starts as many processes as there are CPUs by default: 14 times 16.
PYTEST = "TORCHINDUCTOR_COMPILE_THREADS=2 {python} -m pytest -n 14 -v --tb short --failures-at-once"
CASES = "tests/*/test_cases_*.py tests/*/test_native*.py tests/ops/test_ops.py"
TUNE = '{python} -m atrous tune resnet34 --device cuda --commit "$ATROUS_COMMIT"'
SAVE_TABLE = Step("save the tuning table", 10, "{python} -m bench.gpu.tuned {results}")
FUZZ = "{python} tests/fuzz/fuzz_conv.py --device cuda --seed $(date +%Y%m%d) --json {results}/fuzz.json"

BUNDLE = "{python} -m bench.gpu.bundle.command"
INSTALL_BUNDLE = Step("install the bundle", 40, f"{BUNDLE} install {{bundle}}", required=True)
# csrc is not compiled, since the GPU would idle meanwhile; a library that `setup.py build_ext --inplace` built is used.
INSTALL_CHECKOUT = Step(
    "install the checkout", 40,
    "ATROUS_SKIP_NATIVE=1 {python} -m pip install --quiet --no-build-isolation --no-deps -e .", required=True,
)  # fmt: skip
# With a bundle every backend must run: otherwise its tests would be skipped, so a missing one ends the phase.
INFO = Step("info", 30, "{python} -m atrous info --require native,triton", required=True)
INFO_OF_CHECKOUT = replace(INFO, command="{python} -m atrous info --require triton")
# The files with tests that have the marker gpu, those of the convolutions first: each worker collects all that it is
# given, and the tree has 13,600 tests.
GPU_TESTS = (
    "tests/csrc/test_cuda_conv.py",
    "tests/triton/conv/test_triton_conv.py",
    "tests/triton/conv/test_triton_conv_configs.py",
    "tests/triton/conv/test_triton_conv_on_gpu.py",
    "tests/triton/conv/test_triton_conv_operands.py",
    "tests/triton/conv/test_triton_conv_values.py",
    "tests/triton/test_counters.py",
    "tests/triton/test_triton_epilogue.py",
    "tests/triton/test_triton_gradients.py",
    "tests/triton/test_triton_gradients_values.py",
    "tests/triton/test_triton_statistics.py",
    "tests/ops/test_graphs.py",
    "tests/tools/tune/test_tuner.py",
    "tests/bench/test_bench.py",
    "tests/bench/test_bench_fused.py",
    "tests/bench/test_bench_pointwise.py",
)
PROGRAM = "tests/support/kernels/launches.py"
LAUNCHES = Step("every kernel once", 25, f"{{python}} -u {PROGRAM}")

RIGHT = (
    LAUNCHES,
    Step("GPU tests", 78, f"{PYTEST} -m gpu {' '.join(GPU_TESTS)}"),
    Step("the cases of every backend", 40, f"{PYTEST} -m 'not gate' --device cuda {CASES}"),
    Step("memcheck", 37, f"{{python}} -m bench.gpu.sanitize memcheck {PROGRAM} --one", optional=True),
    Step("fuzzer", 20, f"{FUZZ} --seconds 6"),
)

FAST = (
    Step("ceilings", 15, "{python} -m bench.gpu.ceilings {results}"),
    Step("tune", 85, f"{TUNE} --dtype bfloat16 --batch 256,1,32 --seconds 68 --json {{results}}/tune.json"),
    SAVE_TABLE,
    Step("layers", 75, "{python} -m bench.tables.fused {results} --part layers --seconds 60"),
    Step("passes", 30, "{python} -m bench.tables.pointwise {results} --seconds 16"),
    Step("networks", 55, "{python} -m bench.tables.fused {results} --part networks --seconds 40"),
    Step("training", 35, "{python} -m bench.tables.training {results} --part steps --seconds 20"),
    Step("tiles of csrc/cuda", 20, "{python} -m bench.gpu.conv_tiles {results} --seconds 7"),
    # A compilation cannot be interrupted and its time depends on torch alone, so a timeout is no failure.
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
    # These may misreport TMA and mbarrier, so their results are informative.
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
    Step("layers", 1300, "{python} -m bench.tables.fused {results} --part layers --seconds 1200"),
    Step("networks", 1300, "{python} -m bench.tables.fused {results} --part networks --seconds 1200"),
    Step("training", 1300, "{python} -m bench.tables.training {results} --seconds 600"),
    Step("tiles of csrc/cuda", 700, "{python} -m bench.gpu.conv_tiles {results} --seconds 600"),
    Step("torch.compile", 1300, "{python} -m bench.tables.fused {results} --part compiled --seconds 1200"),
    Step("max-autotune", 1900, "{python} -m bench.tables.fused {results} --part max_autotune --seconds 1800"),
    Step("fuzzer", 7300, f"{FUZZ} --seconds 7200"),
)

PHASES = ("bundle", "right", "fast", "full")
REPLACED = {  # former phases, and those that include them now
    "build": "bundle", "test": "right", "sanitize": "right", "tune": "fast", "bench": "fast", "all": "full",
}  # fmt: skip
OFFLINE = ("right", "fast")  # pip uses no index


def steps(phase: str, python: str, results: Path, bundle: Path | None) -> list[Step]:
    """The steps of a phase with complete commands. Without a bundle the checkout is installed."""
    start = (INSTALL_BUNDLE, INFO) if bundle else (INSTALL_CHECKOUT, INFO_OF_CHECKOUT)
    chosen = {
        "bundle": (Step("bundle", 1800, "make gpu-bundle", required=True),),
        "right": (*start, *RIGHT),
        "fast": (start[0], *FAST),
        "full": (*([INSTALL_BUNDLE] if bundle else [HEADERS, BUILD]), *FULL),
    }[phase]
    values = {"python": python, "results": str(results), "bundle": str(bundle)}
    quoted = {name: shlex.quote(value) for name, value in values.items()}
    return [replace(step, command=step.command.format(**quoted)) for step in chosen]
