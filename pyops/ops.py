"""The primitives torch.ops.atrous._*: schemas where the library is absent, fakes, and the implementations in Python.

csrc builds libatrous.so, which owns the schemas and the CPU kernels. Without it Python defines the same schemas and
computes `_epilogue` and `_conv_epilogue` in plain torch. On CUDA both are the Triton kernels where Triton runs.
None of the primitives is differentiable or mutates an input.
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from . import reference, tuning
from .layout import memory_format
from .spec import Epilogue, Spec

_HERE = Path(__file__).parent


def schemas() -> dict[str, str]:
    """name -> schema, from schemas.def, the one list of them."""
    text = (_HERE / "schemas.def").read_text()
    epilogue = re.search(r'#define EPILOGUE "(.*)"', text)
    assert epilogue is not None
    found = re.findall(r'^OP\("(.*)"\)$', text.replace('" EPILOGUE "', epilogue[1]), re.MULTILINE)
    return {schema.partition("(")[0]: schema for schema in found}


def _load_library() -> str | None:
    """None, or why libatrous.so is not there. A library that does not fit these sources is an error, not an absence."""
    path = _HERE / "libatrous.so"
    if not path.exists():
        return "libatrous.so is not built (pip install --no-build-isolation . builds it)"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"libatrous.so does not load: {error}"
    for name, schema in schemas().items():
        built = getattr(torch.ops.atrous, name, None)
        if built is None or str(built.default._schema) != str(torch._C.parse_schema("atrous::" + schema)):
            raise ImportError(f"{path} was built from other sources ({name} differs): build it again")
    return None


library_error = _load_library()
library_loaded = library_error is None
triton_found = importlib.util.find_spec("triton") is not None


def accumulate_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _plain_epilogue(z: Tensor, *arguments) -> Tensor:
    """In fp32 (fp64), as the kernels do: one rounding, at the end."""
    wide = accumulate_type(z.dtype)
    cast = [a.to(wide) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    return torch.empty_like(z).copy_(reference.epilogue(z.to(wide), *cast))


def _conv_then_epilogue(input, weight, bias, stride, padding, dilation, groups, *arguments) -> Tensor:
    z = torch.ops.aten.convolution(input, weight, bias, stride, padding, dilation, False, (0, 0), groups)
    return torch.ops.atrous._epilogue(z, *arguments)


def capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured: a kernel that is not compiled yet cannot be launched then."""
    return x.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


OLDEST_CARD = (8, 0)  # that the Triton kernels are made for


@lru_cache
def triton_runs(device: torch.device) -> bool:
    """Whether there is Triton for this card: it is installed, and the card is of sm_80 or newer."""
    return triton_found and torch.cuda.get_device_capability(device) >= OLDEST_CARD


def _cuda_epilogue(z: Tensor, *arguments) -> Tensor:
    if not triton_runs(z.device):
        return _plain_epilogue(z, *arguments)
    from .triton_kernels.launch import NotCompiled
    from .triton_kernels.pointwise import epilogue

    try:
        return epilogue(z, *arguments)
    except NotCompiled:  # a graph is being captured
        return _plain_epilogue(z, *arguments)


def triton_conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *arguments) -> Tensor:
    """`_conv_epilogue` by Triton, in the config that was measured, or the predicted one. Raises NotCompiled."""
    from .triton_kernels.conv import conv_epilogue

    geometry, residual = (tuple(stride), tuple(padding), tuple(dilation), groups), Epilogue(*arguments).residual
    entry = tuning.measured(input, weight, Spec(*geometry), residual is not None)
    measured, layout = entry.config if entry is not None else None, memory_format(input, weight)
    return conv_epilogue(input, weight, bias, *geometry, *arguments, memory_format=layout, measured=measured)


def _cuda_conv_epilogue(input, weight, bias, *arguments) -> Tensor:
    run = triton_conv_epilogue if triton_runs(input.device) else _conv_then_epilogue
    return run(input, weight, bias, *arguments)


def _fake_epilogue(z, *arguments):
    return torch.empty_like(z)


def _fake_conv_epilogue(input, weight, bias, stride, padding, dilation, groups, *arguments):
    z = torch.ops.aten.convolution(input, weight, bias, stride, padding, dilation, False, (0, 0), groups)
    return torch.empty_like(z)


def _fake_winograd_weight(weight):
    panels = (weight.shape[0] + 15) // 16
    return weight.new_empty((panels, 16, weight.shape[1], 16), dtype=torch.float32)


def _fake_winograd_epilogue(input, transformed, out_channels, bias, padding, dilation, *arguments):
    height, width = (input.shape[i + 2] + 2 * padding[i] - 2 * dilation[i] for i in (0, 1))
    shape = (input.shape[0], out_channels, height, width)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


def _register() -> torch.library.Library:
    library = torch.library.Library("atrous", "FRAGMENT" if library_loaded else "DEF")
    if not library_loaded:
        for schema in schemas().values():
            library.define(schema)
        library.impl("_epilogue", _plain_epilogue, "CPU")
        library.impl("_conv_epilogue", _conv_then_epilogue, "CPU")
    library.impl("_epilogue", _cuda_epilogue, "CUDA")
    library.impl("_conv_epilogue", _cuda_conv_epilogue, "CUDA")
    for name in schemas():
        torch.library.register_fake(f"atrous::{name}", globals()[f"_fake{name}"], lib=library)
    return library


_library = _register()  # the registrations live as long as this object
