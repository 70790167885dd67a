"""Export a fused model as an AOTInductor package, which C++ runs with libtorch and libatrous.so, without Python."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...backends import selection
from ...core.torch_compat import is_constraint_violation, load_package, tree_leaves, write_package
from ...fusion import Report, fuse_graph
from ...fusion.compare import agree, outputs

BACKENDS = ("native", "library", "auto")  # those whose operators are in C++
OPTIONS = {
    "freezing": True,  # values that depend only on weights, such as prepacked weights, are computed once, at export
    # Code that the compiler generates runs on any x86-64 CPU with AVX2; our operators choose instructions at run time.
    "cpp.march": "",
    "cpp.simdlen": 256,
    "aot_inductor.check_lowerbound": False,  # AOTI_RUNTIME_CHECK_INPUTS=1 would refuse a batch of 1
}


class Exported(NamedTuple):
    """difference: the largest between the outputs of package and model. seconds: the time of the compilation."""

    report: Report
    difference: float
    seconds: float


@torch.no_grad()
def export(
    model: nn.Module, example: Tensor, path: Path, *, backend: str = "native", dynamic: bool = True, about=None
) -> Exported:
    """Writes a model, fused and frozen, as a package for CPUs, after comparing its outputs with the model's.

    Args:
        model: in eval mode, on the CPU. example: its input, (N, C, H, W) with N > 1 where the batch is dynamic.
        path: FILE.pt2; it is replaced only after the package has been checked.
        backend: one of BACKENDS. dynamic: the package takes any batch size; else only that of the example.
        about: names and texts to save in the package as its metadata.

    Raises:
        RuntimeError: libatrous.so is missing, or the package's outputs differ from the model's.
        ValueError: the batch cannot be dynamic. Also what torch raises if it cannot export or compile the model.
    """
    missing = selection.available("native")
    if missing:
        raise RuntimeError(f"export needs the C++ library: {missing[0]}")
    outputs(model, (example,))
    report = Report(frozen=True)
    with tempfile.TemporaryDirectory(prefix=".atrous-", dir=path.absolute().parent) as folder:
        package = Path(folder, path.name)
        start = time.perf_counter()
        with _quiet():
            program = _trace(model, example, dynamic)
            fuse_graph(program.graph_module, backend=backend, freeze=True, report=report)
            write_package(program, package, {**OPTIONS, "aot_inductor.metadata": about or {}})
        seconds = time.perf_counter() - start
        more = [example[:1], torch.cat([example, example[:1]])] if dynamic else []
        difference = _difference(model, package, [example, *more])
        os.replace(package, path)
    return Exported(report, difference, seconds)


def _trace(model: nn.Module, example: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    batch = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    try:
        return torch.export.export(model, (example,), dynamic_shapes=batch)
    except Exception as error:
        if not is_constraint_violation(error):
            raise
        wanted = "dynamic: expected a model that takes any number of images; use --batch N for this one"
        raise ValueError(wanted) from error


def _difference(model: nn.Module, package: Path, inputs: list[Tensor]) -> float:
    with _quiet():
        loaded = load_package(package)
    return max(agree(tree_leaves(model(x)), tree_leaves(loaded(x)), "export", "package") for x in inputs)


@contextlib.contextmanager
def _quiet():
    """Silences torch's warnings about its own deprecations and about a package that is not specific to this CPU."""
    log = logging.getLogger("torch.export.pt2_archive._package")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)
