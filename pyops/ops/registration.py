"""Registers the primitives torch.ops.atrous._* and torch.ops.atrous_triton._* with their implementations per device.

atrous: libatrous.so, built from csrc, owns the schemas and the C++ kernels, for CUDA if it was built with CUDA. What it
lacks runs in plain torch (eager.py); without the library Python defines the same schemas.
atrous_triton: the Triton kernels (triton_impl.py), on CUDA, with the same schemas. They need a namespace of their own,
since the dispatcher has one kernel per operator and device, and a compiled graph stores operators, not backends.
The fakes of both are in fake.py. No primitive is differentiable or mutates an input.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ..core.torch_compat import has_schema, onednn_pack
from . import eager, fake, triton_impl

_HERE = Path(__file__).parents[1]


def schemas() -> dict[str, str]:
    """name -> schema, read from schemas.def, the only list of the primitives."""
    text = (_HERE / "schemas.def").read_text()
    epilogue = re.search(r'#define EPILOGUE "(.*)"', text)
    assert epilogue is not None
    listed = re.findall(r'^OP\("(.*)"\)$', text.replace('" EPILOGUE "', epilogue[1]), re.MULTILINE)
    return {schema.partition("(")[0]: schema for schema in listed}


def _load_library() -> str | None:
    """Loads libatrous.so; returns None, or the reason why it cannot.

    Raises ImportError if the library was built from other sources.
    """
    path = _HERE / "libatrous.so"
    if not path.exists():
        return "libatrous.so is not built (pip install --no-build-isolation . builds it)"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"libatrous.so does not load: {error}"
    for name, schema in schemas().items():
        built = getattr(torch.ops.atrous, name, None)
        if built is None or not has_schema(built.default, "atrous::" + schema):
            raise ImportError(f"{path} was built from other sources ({name} differs): build it again")
    return None


library_error = _load_library()
library_loaded = library_error is None


without_gradients = torch.no_grad()  # torch's operators inside a primitive would record their gradients


def _register() -> tuple[torch.library.Library, torch.library.Library]:
    library = torch.library.Library("atrous", "FRAGMENT" if library_loaded else "DEF")
    triton = torch.library.Library("atrous_triton", "DEF")
    for name, schema in schemas().items():
        if not library_loaded:
            library.define(schema)
        for key in ("CPU", "CUDA"):
            built = getattr(torch.ops.atrous, name).default.has_kernel_for_dispatch_key(key)
            if hasattr(eager, name) and not built:
                library.impl(name, without_gradients(getattr(eager, name)), key)
        torch.library.register_fake(f"atrous::{name}", getattr(fake, name), lib=library)
        if hasattr(triton_impl, name):
            triton.define(schema)
            triton.impl(name, without_gradients(getattr(triton_impl, name)), "CUDA")
            torch.library.register_fake(f"atrous_triton::{name}", getattr(fake, name), lib=triton)
    return library, triton


def _register_pack() -> torch.library.Library | None:
    """A fake of oneDNN's packing, so that the weights of a frozen graph are packed once: torch has none."""
    if onednn_pack is None:
        return None
    library = torch.library.Library("mkldnn", "FRAGMENT")
    try:
        torch.library.register_fake(onednn_pack.default.name(), fake.pack, lib=library)
    except RuntimeError:  # a later torch has one
        return None
    return library


_libraries = *_register(), _register_pack()  # the registrations last as long as these objects
