"""The backends that the fuzzer runs: those of the device, or csrc/cuda compiled for the CPU."""

from __future__ import annotations

import argparse
import sys
import tempfile
import types
from pathlib import Path

import torch

from atrous.backends import aten, selection
from atrous.core.spec import Epilogue, flat


def emulation(library: Path | None) -> types.SimpleNamespace:
    """csrc/cuda on the CPU as a backend: like `native` on a GPU, without tensor cores."""
    if library is None:
        import cuda_host

        library = cuda_host.build(Path(tempfile.mkdtemp(prefix="atrous-emulation-")))
    torch.ops.load_library(library)
    host = torch.ops.atrous_host

    def primitive(name, x):
        return lambda *arguments: getattr(host, name)(*flat(*arguments))

    def conv_epilogue(input, weight, bias, spec, e):
        return host._conv_epilogue(*flat(input, weight, bias, spec, e))

    def convolution(input, weight, bias, spec):
        return conv_epilogue(input, weight, bias, spec, Epilogue())

    return types.SimpleNamespace(
        name="emulation",
        one_launch_statistics=False,
        available=lambda: [],
        reasons=lambda input, weight, spec: [],
        primitive=primitive,
        epilogue=lambda z, e: host._epilogue(z, *e),
        conv_epilogue=conv_epilogue,
        convolution=convolution,
        convolution_statistics=aten.with_statistics(convolution, primitive),
        convolution_backward=aten.convolution_backward,
    )


def backends_of(options: argparse.Namespace) -> list[str]:
    """The named backend, or every one that runs on this device. Exits with the reasons if there is none."""
    if options.backend == "emulation":
        selection._BACKENDS["emulation"] = emulation(options.library)
        return ["emulation"]
    like = torch.empty(0, device=options.device)
    refused = {name: selection.reasons(name, like) for name in selection.backends()} | {"auto": []}
    names = list(refused) if options.backend == "all" else [options.backend]
    for name in names:
        if refused[name]:
            print(f"{name}: {'; '.join(refused[name])}")
    running = [name for name in names if not refused[name]]
    return running or sys.exit(2)
