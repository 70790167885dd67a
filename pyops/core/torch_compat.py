"""Private names of torch, each behind a public one: those of its compilers are in dynamo_compat.py and
graph_compat.py, no file has others.

All were tried with torch 2.11.0, which CI runs on GPUs, and with torch 2.13.0, which it runs on CPUs. Only functions
import torch._dynamo and torch._inductor: each import takes a second.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import has_torch_function
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode  # sees every call of an operator
from torch.utils._pytree import tree_leaves as tree_leaves  # the values in nested lists, tuples and dicts
from torch.utils._pytree import tree_map as tree_map

T = TypeVar("T")

# Modules

NormBase = nn.modules.batchnorm._NormBase  # base class of every BatchNorm and InstanceNorm, those of apex included
has_global_hook = nn.modules.module._has_any_global_hook  # true if a hook runs with the forward of every module


def children(module: nn.Module) -> dict[str, Any]:
    """The dict of children, with None and with every name of a child: named_children() leaves these out."""
    return module._modules


def parameter(module: nn.Module, name: str) -> Any:
    """getattr(module, name), ten times as fast for a parameter: nn.Module finds it by a function in Python."""
    registered = module._parameters
    return registered[name] if name in registered else getattr(module, name)


def buffer(module: nn.Module, name: str) -> Tensor | None:
    """getattr(module, name), likewise for a buffer."""
    registered = module._buffers
    return registered[name] if name in registered else getattr(module, name)


def has_hooks(module: nn.Module) -> bool:
    """True if a call of the module runs hooks beside its forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def pad_widths(conv: nn.Conv2d) -> list[int]:
    """The widths with which F.pad does the padding of a convolution whose padding_mode is not "zeros"."""
    return conv._reversed_padding_repeated_twice


# Tensors and autograd


def version(tensor: Tensor) -> int:
    """The number of in-place changes so far; 0 for an inference tensor, which does not count them."""
    return 0 if tensor.is_inference() else tensor._version


def in_autocast_off(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run outside autocast."""

    def run(*args: Any) -> Any:
        with without_autocast():
            return function(*args)

    return run


def autocast_state() -> list[tuple[str, torch.dtype, bool]]:
    """The kinds of devices, with autocast's dtype and whether it is on."""
    devices = ("cpu", "cuda")
    return [(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)) for device in devices]


def same_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run under the autocast state that is active now."""
    state = autocast_state()

    def run(*args: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for device, dtype, enabled in state:
                if enabled != torch.is_autocast_enabled(device) or dtype != torch.get_autocast_dtype(device):
                    stack.enter_context(torch.autocast(device, dtype, enabled))
            return function(*args)

    return run


add_to_each, lerp_each = torch._foreach_add_, torch._foreach_lerp_  # in place, one call for a list of tensors


def storage_id(tensor: Tensor) -> int:
    """Identifies the storage while it is alive: on the meta device its data_ptr() is 0."""
    return tensor.untyped_storage()._cdata


def checkpointing() -> bool:
    """True inside torch.utils.checkpoint: its hooks are then the innermost ones for saved tensors."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"


# Operators and the dispatcher

OpOverload = torch._ops.OpOverload  # an operator of one schema, as graphs hold it
schema: Callable[[OpOverload], Any] = attrgetter("_schema")  # its arguments, their defaults and which it writes
without_autocast = torch._C._DisableAutocast  # a context in which no operator casts its arguments
outside_modes = torch.utils._python_dispatch._disable_current_modes  # a context in which no tracer sees a call
without_function_modes = torch._C.DisableTorchFunction  # a context in which no mode or subclass sees a torch function
collectives = torch.ops._c10d_functional  # torch.distributed's collectives as operators, which torch.compile traces
# oneDNN's convolution of a packed weight, and the operator that packs it; None in a torch without oneDNN
onednn_convolution = torch.ops.mkldnn._convolution_pointwise if torch.backends.mkldnn.is_available() else None
onednn_pack = torch.ops.mkldnn._reorder_convolution_weight if torch.backends.mkldnn.is_available() else None


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """True if oneDNN has instructions of this CPU for products of bfloat16 or float16 and need not emulate them."""
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, supported[dtype])()


def cpu_product_rate(dtype: torch.dtype) -> int:
    """Products of this dtype that oneDNN makes on this CPU in the time of one in fp32."""
    if dtype not in (torch.bfloat16, torch.float16) or not cpu_multiplies(dtype):
        return 1
    return 16 if torch.cpu._is_amx_tile_supported() else 2


def cpu_multiplies_int16() -> bool:
    """True if this CPU multiplies 16-bit integers twice as fast as fp32."""
    return torch.cpu._is_avx512_supported() and torch.cpu._is_vnni_supported()


def has_schema(operator: Any, text: str) -> bool:
    """True if the operator was registered with this schema, compared as torch parses both."""
    return str(schema(operator)) == str(torch._C.parse_schema(text))


_included_keys, _profiler_enabled = torch._C._dispatch_tls_local_include_set, torch.autograd._profiler_enabled
# Dispatch keys of ordinary calls, in inference mode and under autocast too: none of them observes operators.
_OBSERVING_KEYS = ~functools.reduce(
    torch._C.DispatchKeySet.__or__,
    (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in
     ("BackendSelect", "ADInplaceOrView", "AutocastCPU", "AutocastCUDA")),
).raw_repr()  # fmt: skip


def operators_observed() -> bool:
    """True if a mode, tracer, transform or profiler sees the operators that this thread calls."""
    return bool(_included_keys().raw_repr() & _OBSERVING_KEYS) or _profiler_enabled()


def caller(operator: Any) -> Callable[..., Any]:
    """An operator's overload without the Python function around it, which takes 0.3 us."""
    return operator._op


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """function.apply for calls outside transforms of torch.func, without the Python code that looks for them."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


# Compilers and transforms


def constant(function: T) -> T:
    """torch.compiler.assume_constant_result without its import of torch._dynamo."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_compiling() -> bool:
    """torch.compiler.is_compiling() for this thread. torch's flag is one for all: while a thread compiles, the calls of
    the others run as they are."""
    return torch.compiler.is_compiling() and _compiles()


@constant  # Dynamo asks while it traces
def _compiles() -> bool:
    """False if another thread has set the flag. Dynamo has its lock while it traces; torch.export takes none."""
    lock = getattr(sys.modules.get("torch._dynamo.convert_frame"), "compile_lock", None)
    if lock is None or lock._is_owned():
        return True
    if not lock.acquire(blocking=False):
        return False
    try:
        return torch.compiler.is_compiling()
    finally:
        lock.release()


_jit_traces = torch._C._is_tracing
autocasts: Callable[[], bool] = torch._C._is_any_autocast_enabled  # true if autocast is on for any kind of device
_innermost_transform = torch._C._functorch.peek_interpreter_stack


@constant  # Dynamo asks while it traces; it would take what the first of these returns for an object
def _transforming() -> bool:
    return _innermost_transform() is not None or forward_ad._current_level >= 0 or _jit_traces()


def intercepted() -> bool:
    """True under autocast, in a transform of torch.func, at a level of forward-mode AD and while torch.jit traces."""
    return autocasts() or _transforming()


def observer(values: Sequence[Any]) -> str:
    """The name of the tool that shall see torch's own operators in this call, which Dynamo must not compile; or ""."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return "a dispatch mode"
    if _transforming():
        return "a transform of torch.func, forward-mode AD or torch.jit.trace"
    return "a tensor's subclass or torch.fx" if any(map(_is_foreign, values)) else ""


def transformed(tensors: tuple) -> bool:
    """True if a call asks for more than values and gradients, and so needs torch's own operators.

    Such are a transform of torch.func, a level of forward-mode AD, torch.jit's tracer, torch.fx's stand-in of a tensor
    and a tensor of a class with operators of its own. Of a class that overrides no function there are no mixed calls:
    the first tensor, the layer's input, shows it.
    """
    foreign = has_torch_function(tensors) or type(tensors[0]) is not Tensor
    return _transforming() or (foreign and any(map(_is_foreign, tensors)))


def _is_foreign(value: object) -> bool:
    if isinstance(value, Tensor):  # a compiler's fake tensors trace our operators
        return type(value) not in (Tensor, nn.Parameter) and not type(value).__module__.startswith("torch._subclasses")
    return isinstance(value, torch.fx.Proxy)


def batched_gradients(grad: Tensor) -> bool:
    """True in a backward that torch.autograd.grad runs for several gradients at once (is_grads_batched)."""
    return torch._C._functorch.is_legacy_batchedtensor(grad)


def nonstrict_trace(function: Callable[..., T]) -> Callable[..., T]:
    """Makes Dynamo run the function on its fake tensors instead of tracing its code."""
    import torch._dynamo

    return torch._dynamo.nonstrict_trace(function)


def in_dynamo_graph() -> bool:
    """True while Dynamo traces a graph itself, and not a part that is a graph of its own, such as checkpointing's."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        return InstructionTranslator.current_tx().output.current_tracer.parent is None
    except AttributeError:  # a trace after Dynamo's own
        return False


def fake_tensors() -> AbstractContextManager:
    """A mode in which tensors have a device and no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def is_constraint_violation(error: Exception) -> bool:
    """True if torch.export raised the error because a dimension that should be dynamic cannot be."""
    from torch._dynamo.exc import UserError, UserErrorType

    return isinstance(error, UserError) and error.error_type == UserErrorType.CONSTRAINT_VIOLATION


def write_package(program: torch.export.ExportedProgram, path: Path, options: dict[str, Any]) -> None:
    """Compiles an exported program to an AOTInductor package, with those of the options that this torch knows."""
    import torch._inductor

    known = torch._inductor.list_options()
    options = {name: value for name, value in options.items() if name in known}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def load_package(path: Path) -> Callable:
    """The model in an AOTInductor package."""
    import torch._inductor

    return torch._inductor.aoti_load_package(str(path))
