"""A fake CUDA device in CPU memory, to run tests with `--device cuda` on a machine without a GPU.

    PYTHONPATH=tests/support python -m pytest -p fake_cuda --device cuda tests/api/test_cases_types.py

Tensors report cuda:0, and every operator runs on the CPU tensor that they wrap. Errors of a real GPU are raised: for
tensors of two devices in one call, a CPU generator, numpy, autocast for "cpu". There are no GPU kernels: the backends
`library` and `native` run, `triton` does not. torch.compile sees a tensor subclass and is not supported.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
TWO_DEVICE_OPERATORS = ("copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "set_")
REFUSAL = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
original = SimpleNamespace(
    generator=torch.Generator, autocast=torch.autocast, tensor=torch.tensor, to=Tensor.to, type=Tensor.type
)


class CudaTensor(Tensor):
    """A tensor that reports cuda:0 and wraps `on_cpu`, the tensor that holds its values."""

    on_cpu: Tensor
    device, is_cuda, is_cpu = (property(lambda self, value=value: value) for value in (CUDA, True, False))

    @staticmethod
    def __new__(cls, on_cpu: Tensor):
        options = {name: getattr(on_cpu, name) for name in ("dtype", "layout")}
        if not on_cpu.is_sparse:
            options |= {"strides": on_cpu.stride(), "storage_offset": on_cpu.storage_offset()}
        self = Tensor._make_wrapper_subclass(cls, on_cpu.size(), device="cpu", **options)
        self.on_cpu = on_cpu
        return self

    def __init__(self, on_cpu: Tensor):
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return dispatch(operator, args, kwargs or {})

    def get_device(self):
        return 0

    def data_ptr(self):
        return self.on_cpu.data_ptr()

    def untyped_storage(self):
        return self.on_cpu.untyped_storage()

    def numpy(self, *arguments, **named):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def cpu(self, **named):
        return self.to(CPU)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copy = memo[id(self)] = CudaTensor(self.on_cpu.clone()).requires_grad_(self.requires_grad)
            copy._is_param = getattr(self, "_is_param", False)
            copy.grad = self.grad.__deepcopy__(memo) if self.grad is not None else None
        return memo[id(self)]

    def __repr__(self, **named):
        return f"Cuda{self.on_cpu!r}"


def dispatch(operator, args, kwargs):
    """Runs the operator on the wrapped tensors and wraps its results if they would be on the GPU."""
    values = list(tree_iter((args, kwargs)))
    fakes, device = [x for x in values if isinstance(x, CudaTensor)], kwargs.get("device")
    refuse_mixed_devices(operator, values, fakes)
    on_cuda = bool(fakes) if device is None else torch.device(device).type == "cuda"
    for x in values:
        if isinstance(x, original.generator) and generators.get(x._cdata, "cpu") != ("cuda" if on_cuda else "cpu"):
            raise RuntimeError(f"Expected a generator of {'cuda' if on_cuda else 'cpu'}, got the other one")
    if device is not None and on_cuda:
        kwargs = {**kwargs, "device": CPU}
    args, kwargs = tree_map(lambda x: x.on_cpu if isinstance(x, CudaTensor) else x, (args, kwargs))
    wrappers = {id(x.on_cpu): x for x in fakes}  # for results of in-place operators

    def wrap(x):
        if not on_cuda or not isinstance(x, Tensor) or x.is_meta:
            return x
        return wrappers.get(id(x)) if id(x) in wrappers else CudaTensor(x)

    return tree_map(wrap, operator(*args, **kwargs))


def refuse_mixed_devices(operator, values, fakes):
    """Raises torch's error if a call mixes fake CUDA tensors with CPU tensors that are not scalars."""
    namespace, name = operator._schema.name.split("::")
    for x in values if fakes and name not in TWO_DEVICE_OPERATORS else ():
        if isinstance(x, Tensor) and not isinstance(x, CudaTensor) and (x.dim() or namespace != "aten"):
            raise RuntimeError(f"{namespace}::{name}: {REFUSAL}")


class Dispatch(TorchDispatchMode):
    """Handles operators without a tensor argument."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return dispatch(operator, args, kwargs or {})


generators: dict[int, str] = {}


class Generator(original.generator):
    def __new__(cls, device="cpu"):
        self = original.generator.__new__(cls)
        generators[self._cdata] = torch.device(device).type
        return self

    def __init__(self, device="cpu"):
        pass


class Autocast(original.autocast):
    """Autocast for "cuda" is the CPU's autocast; autocast for "cpu" does not apply to CUDA tensors."""

    def __init__(self, device_type, dtype=torch.bfloat16, enabled=True, cache_enabled=None):
        super().__init__("cpu", dtype, enabled and device_type == "cuda", cache_enabled)


def to(self, *args, copy=False, **kwargs):
    args = [x.device if isinstance(x, Tensor) else x for x in args]
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None and torch.device(device).type != self.device.type:
        return torch.ops.aten._to_copy(self, device=device, dtype=dtype, memory_format=layout)
    return original.to(self, dtype or self.dtype, copy=copy, **({"memory_format": layout} if layout else {}))


def tensor(data, *, dtype=None, device=None, requires_grad=False):
    device = torch.device(device or torch.get_default_device())
    on_cpu = original.tensor(data, dtype=dtype, device="cpu" if device.type == "cuda" else device)
    return to(on_cpu, device).requires_grad_(requires_grad)


def kernel_reasons(dtype, channels_last, input, weight, stride, padding, dilation, groups) -> tuple[str, ...]:
    """The main refusals of csrc/cuda, which this library does not have."""
    computed = channels_last and groups == 1 and dtype != torch.float64 and weight[0] % 8 == 0
    return () if computed or 0 in input else ("input: expected one that the kernels of a GPU convolve",)


def install() -> None:
    """Installs the device for the whole process."""
    from atrous.backends import native
    from atrous.core import torch_compat
    from atrous.ops import device_support, triton_impl

    answers = {
        "_lazy_init": None, "synchronize": None, "set_rng_state": None, "is_available": True, "current_device": 0,
        "device_count": 1, "get_device_name": "fake", "get_device_capability": (9, 0),
        "is_current_stream_capturing": False,
        "get_device_properties": SimpleNamespace(
            major=9, minor=0, multi_processor_count=132, L2_cache_size=1 << 14, name="fake", total_memory=80 << 30
        ),
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *arguments, answer=answer: answer)
    torch.cuda.get_rng_state = lambda *arguments: torch.get_rng_state()
    torch.get_default_device = lambda: CUDA
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a Parameter cannot become one of a subclass
    torch.Generator, torch.tensor, Tensor.to, Tensor.cuda = Generator, tensor, to, lambda self, *device: to(self, CUDA)
    torch.autocast = torch.amp.autocast_mode.autocast = Autocast
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    torch.is_autocast_enabled, torch.get_autocast_dtype = lambda *device: enabled("cpu"), lambda *device: dtype("cpu")
    triton_impl.triton_installed = False
    device_support.native_reasons = lambda device: ()
    native._ask_library = kernel_reasons
    foreign = torch_compat._is_foreign  # our operators run on these tensors, as on the fake tensors of a compiler
    torch_compat._is_foreign = lambda value: type(value) is not CudaTensor and foreign(value)
    Dispatch().__enter__()


def pytest_configure(config):
    if config.getoption("--device") == "cuda":
        install()
