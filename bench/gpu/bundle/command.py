"""The bundle: what a CPU machine prepares for a machine with a GPU, as one archive.

    bundle.py build --arch 9.0a --python 3.12 --torch 2.11.0 --triton 3.6.0 [--interpreter PYTHON] [--steps NAME,NAME]
    bundle.py download (the same options)   what build fetches: torch, Triton and CUTLASS
    bundle.py check (the same options) [ARCHIVE]
    bundle.py install ARCHIVE      on the GPU machine, with the Python that is to run there
    bundle.py installed            whether what was installed is still in its place

An archive holds a wheel of the package for that Python, torch and chip, Triton's cache with the kernels, launchers and
cuda_utils that `.ci/gpu right` and `fast` ask for, and bundle.json, which says what it is for. The checkout travels
beside it: tests and benches are not in it. --interpreter names a Python that has that torch and triton, pytest, numpy,
hypothesis, setuptools and ninja; without it one is made in build/gpu-bundle, by pip. --steps: kernels of these steps
alone; the archive is then named partial-..., and .ci/gpu installs it only where ATROUS_BUNDLE names it.

`make gpu-bundle`, `gpu-bundle-download` and `gpu-bundle-check` call the first three. Exit status: 2, with one sentence,
for what cannot be built, or must not be installed here: no archive is written then, and no package is replaced; 1 if
`check` finds that the steps ask for other kernels than the archive holds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.gpu.bundle import build as bundle_build
from bench.gpu.bundle import install as bundle_install
from bench.gpu.bundle import python as bundle_python
from bench.gpu.bundle.facts import Mistake, Target


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "download", "check"):
        made = commands.add_parser(name)
        for option in Target._fields:
            made.add_argument(f"--{option}", required=True)
        made.add_argument("--interpreter", type=Path, metavar="PYTHON")
        made.add_argument(
            "--steps", type=lambda text: text.split(","), metavar="NAME,NAME", help="default: all that launch kernels"
        )
    commands.choices["check"].add_argument("archive", type=Path, nargs="?")
    commands.add_parser("install").add_argument("archive", type=Path)
    commands.add_parser("installed")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = options().parse_args(argv)
    try:
        if args.command == "install":
            return bundle_install.install(args.archive)
        if args.command == "installed":
            return bundle_install.installed()
        target = Target(*(getattr(args, name) for name in Target._fields))
        if args.command == "download":
            return bundle_python.download(target, args.interpreter)
        if args.command == "build":
            return bundle_build.build(target, args.interpreter, args.steps)
        return bundle_build.check(target, args.interpreter, args.steps, args.archive)
    except Mistake as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
