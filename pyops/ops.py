"""The primitives torch.ops.atrous._*: their schemas, and who implements them where.

csrc builds libatrous.so, which owns the schemas and the CPU kernels. Without it Python defines the same schemas and
computes them in plain torch (ops_plain.py). On CUDA they are the Triton kernels (ops_cuda.py). Fakes: ops_fake.py.
None of the primitives is differentiable or mutates an input.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from . import ops_cuda, ops_fake, ops_plain

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


IN_PYTHON = ("_conv_statistics",)  # nothing to fuse on a CPU


def _register() -> torch.library.Library:
    library = torch.library.Library("atrous", "FRAGMENT" if library_loaded else "DEF")
    for name, schema in schemas().items():
        if not library_loaded:
            library.define(schema)
        for key, home in (("CPU", ops_plain), ("CUDA", ops_cuda)):
            built = library_loaded and key == "CPU" and name not in IN_PYTHON
            if hasattr(home, name) and not built:
                library.impl(name, getattr(home, name), key)
        torch.library.register_fake(f"atrous::{name}", getattr(ops_fake, name), lib=library)
    return library


_library = _register()  # the registrations live as long as this object
