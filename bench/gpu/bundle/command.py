"""Build, check and install the bundle: an archive that a CPU machine prepares for a machine with a GPU.

Run as python -m bench.gpu.bundle.command:

    build --arch 9.0a --python 3.12 --torch 2.11.0 --triton 3.6.0 [--interpreter PYTHON] [--steps NAME,NAME]
    download (the same options)   fetch torch, Triton and CUTLASS, as build would
    check (the same options) [ARCHIVE]
    install ARCHIVE               on the GPU machine, into the Python that runs this command
    installed                     check that an installed bundle is still in place

An archive has a wheel of the package for that Python, torch and chip, the entries of Triton's cache (kernels, launchers
and cuda_utils) that `.ci/gpu right` and `fast` request, and bundle.json, which names the target. Tests and benchmarks
are not included: the GPU machine needs the checkout too. --interpreter names a Python with that torch and triton, and
with pytest, numpy, hypothesis, setuptools and ninja; by default pip creates one in build/gpu-bundle. --steps: include
the kernels of these steps alone; the archive is then named partial-..., and .ci/gpu installs it only if ATROUS_BUNDLE
names it.

`make gpu-bundle`, `gpu-bundle-download` and `gpu-bundle-check` call the first three. Exit status 2, with one sentence:
the bundle cannot be built or does not fit this machine; nothing is written or installed. Exit status 1: `check` finds
that the steps request other kernels than the archive has.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.gpu.bundle import build as bundle_build
from bench.gpu.bundle import install as bundle_install
from bench.gpu.bundle import python as bundle_python
from bench.gpu.bundle.facts import BundleError, Target


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "download", "check"):
        command = commands.add_parser(name)
        for option in Target._fields:
            command.add_argument(f"--{option}", required=True)
        command.add_argument("--interpreter", type=Path, metavar="PYTHON")
        command.add_argument(
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
    except BundleError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
