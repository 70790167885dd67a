"""A GPU without values for torch: meta tensors that report CUDA, and the state of one device.

Shapes, strides, dtypes, autograd and offsets into memory are torch's own. A value that is read is 0, or True; a copy to
the CPU is zeros. So nothing that depends on values is tested: which branch a comparison takes, and assertions on
results.
"""

from __future__ import annotations

import contextlib
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # its import lists torch.cuda's functions, so it comes before any is replaced
import torch.fx.experimental._config
from torch.utils._python_dispatch import TorchDispatchMode

ADDRESS = 1 << 44  # as in standin_driver.c


def _getter(name: str) -> Callable[[torch.Tensor], Any]:
    """Torch's own attribute of a tensor. In a torch function mode, such as that of set_default_device, torch looks it
    up by name again and would find ours."""
    read = getattr(torch._C.TensorBase, name).__get__

    def get(x: torch.Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            return read(x)

    return get


_place, _is_meta = _getter("device"), _getter("is_meta")
_data_ptr = torch._C.TensorBase.data_ptr
aten = torch.ops.aten


class Values(TorchDispatchMode):
    """Redirects CUDA allocations to the meta device and our operators to their launchers, and answers reads of values.

    While torch's own operators run, tensors report the meta device, on which torch computes shapes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()

    @property
    def reports_cuda(self) -> bool:
        return getattr(self.thread, "reports_cuda", True)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func.namespace == "atrous_triton":
            from atrous.ops import triton_impl

            with self:  # torch disables a mode while it runs
                return getattr(triton_impl, func._schema.name.partition("::")[2])(*args, **kwargs)
        before, self.thread.reports_cuda = self.reports_cuda, False
        try:
            return self._on_cpu_or_meta(func, args, kwargs)
        finally:
            self.thread.reports_cuda = before

    def _on_cpu_or_meta(self, func, args, kwargs):
        on_meta = any(isinstance(x, torch.Tensor) and x.is_meta for x in args)
        if func in ANSWERS and on_meta:
            return ANSWERS[func](*args)
        device = kwargs.get("device")
        if device is not None and device.type == "cuda":
            kwargs["device"] = torch.device("meta")
            kwargs.pop("pin_memory", None)
        elif func is aten._to_copy.default and device is not None and device.type == "cpu" and on_meta:
            return torch.zeros_like(args[0], device="cpu", dtype=kwargs.get("dtype"))
        return func(*args, **kwargs)


def _scalar(x: torch.Tensor) -> Any:
    return True if x.dtype == torch.bool else 0.0 if x.is_floating_point() else 0


ANSWERS: dict[Any, Any] = {
    aten._local_scalar_dense.default: _scalar,
    aten.equal.default: lambda *_: True,
    aten.allclose.default: lambda *_: True,
}


_make_tensor = torch.tensor


def _tensor(data, *, device=None, requires_grad=False, **options):
    """torch.tensor, which looks for a real GPU before a mode can intercept it."""
    on_cpu = _make_tensor(data, device="cpu", **options)
    target = torch.empty(0, device=device).device  # the default device if None
    return (torch.empty_like(on_cpu, device=target) if target.type == "cuda" else on_cpu).requires_grad_(requires_grad)


def _compile(model=None, **_):
    """torch.compile as eager: our kernels are launched by the same calls, and kernels of Inductor are not tested."""
    return model if model is not None else lambda function: function


def _in_threads(values: Values):
    """threading.Thread.run under the mode, since modes are per thread."""
    run = threading.Thread.run

    def under(thread: threading.Thread) -> None:
        with values:
            run(thread)

    return under


class Graph:
    """torch.cuda.CUDAGraph: launches run once during capture; a replay does nothing."""

    def __init__(self, *_, **__) -> None: ...

    def replay(self) -> None: ...

    def reset(self) -> None: ...


class Event:
    """torch.cuda.Event: every interval is half a second, so that benchmarks repeat little."""

    def __init__(self, *_, **__) -> None: ...

    def record(self, *_) -> None: ...

    def synchronize(self) -> None: ...

    def wait(self, *_) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _) -> float:
        return 500.0


class Stream(contextlib.AbstractContextManager):
    cuda_stream, device = 0, None

    def __init__(self, *_, **__) -> None: ...

    def __exit__(self, *_) -> None: ...

    def __getattr__(self, name):
        return lambda *_, **__: None


@contextlib.contextmanager
def device(ordinal: int, capability: int, chip) -> Iterator[None]:
    """In this block torch has one GPU with this ordinal. chip: a standin.Chip."""
    gpu = torch.device("cuda", ordinal)
    captures: list[bool] = []
    values = Values()

    @contextlib.contextmanager
    def graph(*_, **__):
        captures.append(True)
        try:
            yield
        finally:
            captures.pop()

    properties = types.SimpleNamespace(
        name=chip.name, major=capability // 10, minor=capability % 10, multi_processor_count=chip.multiprocessors,
        L2_cache_size=50 << 20, total_memory=80 << 30, shared_memory_per_block_optin=chip.shared,
    )  # fmt: skip
    nothing = lambda *_, **__: None  # noqa: E731
    cuda = {
        "is_available": lambda: True, "device_count": lambda: ordinal + 1, "current_device": lambda: ordinal,
        "_lazy_init": nothing, "is_initialized": lambda: True, "synchronize": nothing, "empty_cache": nothing,
        "get_device_capability": lambda *_: (properties.major, properties.minor), "set_device": nothing,
        "get_device_properties": lambda *_: properties, "get_device_name": lambda *_: chip.name,
        "is_current_stream_capturing": lambda: bool(captures), "graph": graph, "CUDAGraph": Graph, "Event": Event,
        "Stream": Stream, "current_stream": Stream, "default_stream": Stream, "stream": lambda s: s,
        "device": lambda *_: contextlib.nullcontext(), "manual_seed": nothing, "manual_seed_all": nothing,
        "get_rng_state": lambda *_: torch.empty(0, dtype=torch.uint8, device="cpu"), "set_rng_state": nothing,
        "mem_get_info": lambda *_: (properties.total_memory,) * 2, "_sleep": nothing,
        "max_memory_allocated": lambda *_: 0, "memory_allocated": lambda *_: 0, "reset_peak_memory_stats": nothing,
        "is_bf16_supported": lambda *_, **__: True, "current_blas_handle": lambda: 0,
    }  # fmt: skip
    tensor = {
        "is_cuda": property(lambda x: values.reports_cuda and _is_meta(x)),
        "is_meta": property(lambda x: not values.reports_cuda and _is_meta(x)),
        "device": property(lambda x: gpu if values.reports_cuda and _is_meta(x) else _place(x)),
        "data_ptr": lambda x: ADDRESS + x.storage_offset() * x.element_size() if _is_meta(x) else _data_ptr(x),
    }
    with warnings.catch_warnings():  # torch's CUDA runtime finds our driver too old
        warnings.simplefilter("ignore")
        torch._C._ensureCUDADeviceGuardSet()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **cuda))
        stack.enter_context(mock.patch.object(torch._C, "_cuda_getCurrentRawStream", lambda *_: 0, create=True))
        for name, value in tensor.items():
            stack.enter_context(mock.patch.object(torch.Tensor, name, value, create=True))
        stack.enter_context(mock.patch.object(torch, "tensor", _tensor))
        stack.enter_context(mock.patch.object(torch, "compile", _compile))
        stack.enter_context(mock.patch.object(threading.Thread, "run", _in_threads(values)))
        stack.enter_context(torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True))
        stack.enter_context(values)
        yield
