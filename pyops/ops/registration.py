"""The primitives torch.ops.atrous._* and torch.ops.atrous_triton._*: their schemas, and who implements them where.

atrous: csrc builds libatrous.so, which owns the schemas and the kernels in C++, on CUDA too where it was built with it.
What it lacks is plain torch (ops_plain.py), and without it Python defines the same schemas.
atrous_triton: the Triton kernels (ops_cuda.py), on CUDA, under the same schemas. They need names of their own, since a
dispatcher has one kernel for an operator on a device, and a compiled graph keeps an operator and not a row.
Fakes of both: ops_fake.py. None of the primitives is differentiable or mutates an input.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from . import eager, fake, triton_impl

_HERE = Path(__file__).parents[1]


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


def _register() -> tuple[torch.library.Library, torch.library.Library]:
    library = torch.library.Library("atrous", "FRAGMENT" if library_loaded else "DEF")
    triton = torch.library.Library("atrous_triton", "DEF")
    for name, schema in schemas().items():
        if not library_loaded:
            library.define(schema)
        for key in ("CPU", "CUDA"):
            built = torch._C._dispatch_has_kernel_for_dispatch_key(f"atrous::{name}", key)
            if hasattr(eager, name) and not built:
                library.impl(name, getattr(eager, name), key)
        torch.library.register_fake(f"atrous::{name}", getattr(fake, name), lib=library)
        if hasattr(triton_impl, name):
            triton.define(schema)
            triton.impl(name, getattr(triton_impl, name), "CUDA")
            torch.library.register_fake(f"atrous_triton::{name}", getattr(fake, name), lib=triton)
    return library, triton


_libraries = _register()  # the registrations live as long as these objects
