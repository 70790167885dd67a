"""Builds the CPU part of csrc with a sanitizer and runs drawn calls of its operators: `make sanitize-all`.

    python tests/support/sanitize/sanitized.py --seed 3 --count 1000

`address` is AddressSanitizer with UndefinedBehaviorSanitizer, `thread` is ThreadSanitizer. The sources and flags are
those of setup.py, but for the optimization, and threads.cpp replaces torch's parallel_for. drawn_calls.py makes the
calls, in a Python process with the sanitizer's runtime preloaded: torch's tensors then come from its allocator.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[3]
HERE = ROOT / "tests/support/sanitize"
sys.path[:0] = [str(ROOT / "tests/support" / name) for name in ("gates", "host_cuda")]

import cuda_gate  # noqa: E402
import cuda_host  # noqa: E402
from filelock import FileLock  # noqa: E402
from torch.utils.cpp_extension import include_paths, library_paths  # noqa: E402

FOLDER = ROOT / "build/sanitize"
CALLS = HERE / "drawn_calls.py"
THREADS = (HERE / "threads.cpp").relative_to(ROOT).as_posix()
# One version of each function, not inlined into its callers: with all of them a build takes ten minutes.
ONE_VERSION = ["-march=x86-64-v3", "-DATROUS_CLONES=", "-DATROUS_NARROW=", "-DATROUS_AVX512="]
# A division by zero is no fault here: dropout of 1 has the scale 1 / 0, for elements that are all dropped. Accesses to
# null are AddressSanitizer's. ThreadSanitizer has the kernels for narrow vectors, on any processor.
FLAGS = {
    "address": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize=null", "-D_GLIBCXX_ASSERTIONS"],
    "thread": ["-fsanitize=thread", "'-D__builtin_cpu_supports(level)=false'"],
}
NINJA = """\
rule compile
  command = g++ {compile} -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = g++ {link} $in -o $out {libraries}
build atrous/libatrous.so: link {linked}
"""


def sources() -> list[str]:
    """The sources of libatrous.so without CUDA, and threads.cpp, relative to the checkout."""
    return [*cuda_gate.setup().cpu_sources(), THREADS]


def ninja_file(sanitizer: str, compiled: Mapping[str, Path], linked: list[str]) -> str:
    """The text of build.ninja. compiled: object -> source; linked: all objects."""
    common = [*FLAGS[sanitizer], "-fno-sanitize-recover=all", "-pthread"]
    compile = [*cuda_gate.setup().lines("csrc/flags.txt"), "-O1", "-g1", "-fPIC", *ONE_VERSION, *common]
    wrapped = [f"-Wl,--wrap=torch_{name}" for name in ("parallel_for", "get_num_threads")]
    folders = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    text = NINJA.format(
        compile=" ".join([*compile, *(f"-isystem {path}" for path in include_paths())]),
        link=" ".join(["-shared", *common, *wrapped]),
        libraries=" ".join([*folders, "-ltorch_cpu"]),
        linked=" ".join(linked),
    )
    return text + "".join(f"build {name}: compile {source}\n" for name, source in compiled.items())


def package(folder: Path) -> None:
    """Links the sources of the package into folder/atrous, beside its own libatrous.so."""
    (folder / "atrous").mkdir(parents=True, exist_ok=True)
    for path in (*(ROOT / "pyops").iterdir(), ROOT / "triton_kernels"):
        link = folder / "atrous" / path.name
        if path.suffix != ".so" and path.name != "__pycache__" and not link.is_symlink():
            link.symlink_to(path)


def build(sanitizer: str) -> Path:
    """Builds what has changed; returns the folder of the package."""
    folder = FOLDER / sanitizer
    package(folder)
    with FileLock(folder / "lock"):
        compiled = {f"{name}.o": ROOT / name for name in sources()}
        make(folder, ninja_file(sanitizer, compiled, list(compiled)))
    return folder


def planted(sanitizer: str, folder: Path, unit: str, file: str, right: str, wrong: str) -> Path:
    """Builds in `folder` with a fault: one unit is compiled with `right` replaced by `wrong` in a file of csrc."""
    clean = build(sanitizer)
    package(folder)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    text = (folder / file).read_text()
    assert text.count(right) == 1, (file, right)
    (folder / file).write_text(text.replace(right, wrong))
    linked = [f"{unit}.o", *(str(clean / f"{name}.o") for name in sources() if name != unit)]
    make(folder, ninja_file(sanitizer, {f"{unit}.o": folder / unit}, linked))
    return folder


def make(folder: Path, text: str) -> None:
    (folder / "build.ninja").write_text(text)
    subprocess.run([sys.executable, "-m", "ninja", "--quiet", "-C", str(folder)], check=True)


def run(folder: Path, sanitizer: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs drawn_calls.py with the package of this folder. On a report the process ends with another exit status."""
    environment = os.environ | cuda_host.environment(sanitizer) | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment["TSAN_OPTIONS"] += f":suppressions={HERE / 'suppressions.txt'}"
    command = [sys.executable, str(CALLS), *options]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sanitizer", choices=FLAGS, help="default: both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="calls of each kind (default: %(default)s)")
    options = parser.parse_args()
    status = 0
    for sanitizer in [options.sanitizer] if options.sanitizer else FLAGS:
        done = run(build(sanitizer), sanitizer, "--seed", str(options.seed), "--count", str(options.count))
        log = FOLDER / f"{sanitizer}.log"
        log.write_text(done.stdout)
        lines = done.stdout.splitlines()
        print(f"{sanitizer}: exit status {done.returncode}, {log.relative_to(ROOT)}", *lines[-1:], sep="\n", flush=True)
        if done.returncode:
            print(*lines[-100:], sep="\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
