"""Registration of the primitives: schemas, fakes, opcheck."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atrous import ops, reference
from atrous.backends import selection
from atrous.core.spec import Epilogue
from atrous.ops import triton_impl
from atrous.triton_kernels.conv import configs

POINTWISE = (
    "_epilogue", "_epilogue_again", "_epilogue_reduce", "_epilogue_backward", "_epilogue_gradients", "_statistics",
    "_statistics_epilogue",
)  # fmt: skip
CONVOLUTIONS = (
    "_conv_epilogue",
    "_conv_statistics",
    "_winograd_weight",
    "_winograd_epilogue",
    "_winograd_weight_gradient",
)


TRITON = (*POINTWISE, "_conv_epilogue", "_conv_statistics")
DEVICE_TYPE = torch.get_default_device().type
BACKENDS = {"atrous": "native" if ops.library_loaded else "library", "atrous_triton": "triton"}
ALL = [*(("atrous", name) for name in ops.schemas()), *(("atrous_triton", name) for name in TRITON)]


def primitive(name, namespace="atrous"):
    return getattr(getattr(torch.ops, namespace), name).default


def skip_where_it_has_no_kernel(namespace, name, memory_format):
    """The Winograd primitives have C++ kernels for CPUs only; Triton's run on GPUs, and so do C++ convolutions of
    channels_last tensors."""
    key = {"cpu": "CPU", "cuda": "CUDA"}[DEVICE_TYPE]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", key):
        pytest.skip(f"{namespace}::{name} has no kernel here")
    if (namespace, name, key) == ("atrous", "_conv_epilogue", "CUDA") and memory_format != torch.channels_last:
        pytest.skip(f"{namespace}::{name} has no kernel for NCHW here")
    if reasons := selection.reasons(BACKENDS[namespace], torch.empty(0)):
        pytest.skip("; ".join(reasons))


def test_the_registered_schemas_are_those_of_schemas_def():
    assert set(ops.schemas()) == {*POINTWISE, *CONVOLUTIONS}
    for name, schema in ops.schemas().items():
        assert str(primitive(name)._schema) == str(torch._C.parse_schema("atrous::" + schema))
    assert {name for name in ops.schemas() if hasattr(triton_impl, name)} == set(TRITON)
    for name in TRITON:
        assert str(primitive(name, "atrous_triton")._schema) == str(primitive(name)._schema).replace("::", "_triton::")


def sample(name, memory_format=torch.contiguous_format, dtype=torch.float32):
    x = torch.randn(2, 16, 9, 7).to(dtype).contiguous(memory_format=memory_format)
    w = torch.randn(32, 16, 3, 3).to(dtype)
    vector = [torch.rand(32) + 0.5 for _ in range(5)]
    z = torch.conv2d(x, w, padding=1)
    tail = Epilogue(*vector[:4], slope_kind="tensor", slope=vector[4], residual=torch.randn_like(z))
    nhwc = x.contiguous(memory_format=torch.channels_last)
    as_nhwc = tail._replace(residual=tail.residual.contiguous(memory_format=torch.channels_last))
    return {
        "_epilogue": lambda: (z, *tail),
        "_epilogue_again": lambda: (z, *tail),
        "_epilogue_reduce": lambda: (torch.randn_like(z), z, *tail),
        "_epilogue_backward": lambda: (torch.randn_like(z), z, torch.randn(2, 32), True, False, *tail),
        "_epilogue_gradients": lambda: (torch.randn_like(z), z, True, True, True, True, *tail),
        "_statistics": lambda: (z,),
        "_statistics_epilogue": lambda: (z, *tail._replace(mean=None, var=None)),
        "_conv_statistics": lambda: (x, w, None, (1, 1), (1, 1), (1, 1), 1),
        "_conv_epilogue": lambda: (x, w, None, (1, 1), (1, 1), (1, 1), 1, *tail),
        "_winograd_weight_gradient": lambda: (nhwc, nhwc + 1, (1, 1), (1, 1), (4, 4)),
        "_winograd_weight": lambda: (w,),
        "_winograd_epilogue": lambda: (
            nhwc,
            w,
            primitive("_winograd_weight")(w),
            False,
            (2, 2),
            False,
            None,
            (1, 1),
            (1, 1),
            *as_nhwc,
        ),
    }[name]()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("namespace, name", ALL)
def test_opcheck(namespace, name, memory_format):
    skip_where_it_has_no_kernel(namespace, name, memory_format)
    torch.library.opcheck(primitive(name, namespace), sample(name, memory_format))


@pytest.mark.parametrize("namespace, name", ALL)
def test_arguments_that_need_gradients(namespace, name):
    """A primitive has no gradient of its own: an exported program in training calls it where torch records them."""
    skip_where_it_has_no_kernel(namespace, name, torch.channels_last)
    arguments, call = sample(name, torch.channels_last), primitive(name, namespace)
    expected = call(*arguments)
    results = call(*(a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments))
    torch.testing.assert_close(results, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("namespace, name", ALL)
def test_fakes_have_real_strides(namespace, name, memory_format):
    """Without a GPU, Triton's fakes are compared with the other namespace's operators, which share them."""
    skip_where_it_has_no_kernel("atrous" if DEVICE_TYPE == "cpu" else namespace, name, memory_format)
    arguments = sample(name, memory_format)
    real = primitive(name, "atrous" if DEVICE_TYPE == "cpu" else namespace)(*arguments)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        fake = primitive(name, namespace)(*fakes)
    for a, b in zip(*(value if isinstance(value, tuple) else (value,) for value in (fake, real)), strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("namespace, name", ALL)
def test_strides_of_maps_do_not_matter(namespace, name, memory_format):
    """A gradient, a residual and the input of Winograd in another layout: fakes may predict one that is not real."""
    skip_where_it_has_no_kernel(namespace, name, memory_format)
    run, arguments = primitive(name, namespace), sample(name, memory_format)
    names = [argument.name for argument in run._schema.arguments]
    turned = [n == "residual" or n == "grad" or (n == "input" and "winograd" in name) for n in names[: len(arguments)]]
    to_nhwc = memory_format is torch.contiguous_format and "winograd" not in name  # whose maps are channels_last
    layout = torch.channels_last if to_nhwc else torch.contiguous_format
    moved = [a.contiguous(memory_format=layout) if t and a is not None else a for a, t in zip(arguments, turned)]
    got, expected = (r if isinstance(r, tuple) else (r,) for r in (run(*moved), run(*arguments)))
    for a, b in zip(got, expected, strict=True):
        assert a.stride() == b.stride()
        rounding = 0.0 if ops.library_loaded or namespace == "atrous_triton" else 1e-4  # torch adds in memory's order
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)


def test_python_defines_the_primitives_where_the_library_is_absent(tmp_path):
    """A copy of the package without libatrous.so has the same schemas, runs plain torch and gives the same values."""
    code = """
import shutil, sys, pathlib, torch
source, kernels, target = map(pathlib.Path, sys.argv[1:4])
shutil.copytree(source, target / "atrous", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
shutil.copytree(kernels, target / "atrous" / "triton_kernels", dirs_exist_ok=True)
sys.meta_path = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
sys.path.insert(0, str(target))
import atrous
from atrous import ops, reference
from atrous.backends import selection
assert str(target) in atrous.__file__ and not ops.library_loaded
assert "not built" in selection.available("native")[0]
x = torch.randn(2, 4, 5, 5); m, v = torch.randn(4), torch.rand(4) + 0.5
y = atrous.bn_act(x, m, v, slope=0.1)
assert torch.allclose(y, torch.nn.functional.leaky_relu(torch.nn.functional.batch_norm(x, m, v), 0.1), atol=1e-6)
low = atrous.bn_act(x.bfloat16().contiguous(memory_format=torch.channels_last), m, v, slope="relu")
assert low.dtype == torch.bfloat16 and low.is_contiguous(memory_format=torch.channels_last)
torch.ops.atrous._epilogue(*(t.clone().requires_grad_() for t in (x, m, v)))  # torch.batch_norm refuses such an m
print("ok")
"""
    source = str(reference.__file__).removesuffix("/reference.py")
    kernels = str(Path(configs.__file__).parents[1])
    command = [sys.executable, "-c", code, source, kernels, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "ok", done.stderr
