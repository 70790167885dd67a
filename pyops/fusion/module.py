"""fuse(): a module with the class, the names and the very state of a model, whose calls run a compiled graph."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..backends import selection
from ..core.torch_compat import autocasts, has_global_hook, is_compiling, observer
from . import nested
from .compare import compare
from .compiler import check_then
from .report import Report
from .state import State

COMPILED = ("ScriptModule", "OptimizedModule")


class Fused:
    """The part of a fused module's class that stands before the model's own class."""

    __slots__ = ()
    _atrous: State
    __jit_unused_properties__ = ["fusion_report"]

    def __new__(cls, *args, **kwargs) -> Any:
        """Makes a plain module, where the model's own code calls its class, as a slice of nn.Sequential does."""
        return cls.__bases__[-1](*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Does not run that of the model's class, which may need arguments or register its subclasses."""

    def __call__(self, *args, **kwargs):
        state = self._atrous
        if is_compiling():
            return nested.run(state, args, kwargs)
        observed_by = observer((*args, *kwargs.values())) or (has_global_hook() and "a hook of all modules")
        if observed_by:
            return state.plain(f"in {observed_by}", args, kwargs, warn=False)
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocasts()
        return state.run((self.training, *modes), args, kwargs)  # type: ignore[attr-defined]

    @property
    def fusion_report(self) -> Report:
        """Every site: fused, or the reason why not. Filled as the model is called."""
        return self._atrous.compiler.report

    def __reduce_ex__(self, protocol):
        return _fused, (self._atrous.model, self._atrous.how)

    def __deepcopy__(self, memo):
        return _fused(copy.deepcopy(self._atrous.model, memo), self._atrous.how)

    def __copy__(self):
        return _fused(copy.copy(self._atrous.model), self._atrous.how)

    def _replicate_for_data_parallel(self):
        return self._atrous.model._replicate_for_data_parallel()


class Frozen(Fused):
    """A fused module that owns its tensors: BatchNorms are folded into convolutions, and again after a change."""

    __slots__ = ()

    def train(self, mode: bool = True):
        if mode:
            raise RuntimeError(
                "train: this model was frozen by atrous.fuse(freeze=True), its BatchNorms are folded into its "
                "convolutions; train the original model"
            )
        return super().train(False)  # type: ignore[misc]

    def refold(self) -> None:
        """Folds again at the next call: needed after a change that torch does not count, through `.data`."""
        self._atrous.compiler.store.clear()

    def _apply(self, *args, **kwargs):
        self.refold()
        return super()._apply(*args, **kwargs)  # type: ignore[misc]


def fuse(
    model: nn.Module,
    example_inputs=None,
    *,
    backend: str = "auto",
    freeze: bool = False,
    recompute: bool = True,
    dynamic: bool | None = None,
    then: str | None = None,
) -> nn.Module:
    """Returns the model as a module whose every act(bn(conv(x)) + r) is one call.

        y = dropout(act(bn(conv(x)) + r))        or        y = dropout(act(bn(conv(x))) + r)

    Such a call, a site, has two parts at least, or is a BatchNorm that takes the statistics of the batch. act: ReLU,
    LeakyReLU, PReLU or RReLU, as a module or as a function.

    The fused module is an instance of the model's class and has the model's attributes: one state, two classes.
    Parameters, buffers, children, hooks and training flags are the same objects, so that what is done to one of the two
    is done to both: train(), to(), load_state_dict(), pruning, a hook, a replaced child. The model itself, when called,
    runs as before, and so do its methods beside forward. deepcopy and pickle give a fused module again.

    The front end of torch.compile, Dynamo, traces the forward at the first call, and again for another mode, dtype,
    layout or attribute, and once for each axis whose size begins to vary. Such a call takes seconds: make it before the
    capture of a CUDA graph. Sites become operators of this package, all else runs as it is. A site ends where Dynamo
    breaks the graph.

    The plain model runs where Dynamo fails (a forward that it refuses, its limit of recompilations,
    TORCH_COMPILE_DISABLE), with one warning for each reason; and, without a warning, in a transform of torch.func, in
    forward-mode AD, for a tracer or a mode that sees operators, and under global hooks of modules. In code that
    torch.compile or torch.export traces, the sites become operators of that graph.

    Args:
        model: any nn.Module; a fused one is fused with other options.
        example_inputs: the model's input, or a tuple of its arguments, on which the two are compared in eval. It fills
            the report.
        backend: as for conv_bn_act.
        freeze: for deployment. The fused module has a deep copy of the model, in eval mode and without gradients, and
            its train() raises. BatchNorms are folded into convolutions of fp32 and fp64, but for those that run as
            Winograd's, which normalize each output as they write it and need no second copy of their weight. Weights
            are packed for the backend, values inside may be in channels_last; results have the model's strides, and its
            state_dict is that of the model. After a change of a tensor it folds and packs again; its method refold()
            asks for that after a write through `.data`, which torch does not count.
        recompute: in training, an activation that can be recomputed from what its site saves is not saved. False: it is
            saved, which avoids the recomputing passes.
        dynamic: as for torch.compile. With None a size that changes becomes a symbol, with True every size is one at
            once, and with False each size is compiled for itself.
        then: None, or "inductor": Inductor compiles the graph, or its forward and its backward (again for each
            height and width), with the sites as operators. A training graph that returns views or changes its inputs
            runs as it is; the report says so.

    Returns the fused module. Its fusion_report, a fusion.Report, is filled as it is called: every convolution, fused or
    the reason why not; graph breaks; calls that ran the plain model.

    Raises:
        TypeError: model is no nn.Module, or has a scripted, traced or compiled part; freeze, recompute or dynamic is of
            another type.
        ValueError: example_inputs do not fit the model; the backend or `then` is unknown; the model is frozen, or has
            lazy parameters.
        RuntimeError: the two differ on example_inputs.

    Source: Ansel et al. 2024 (doi:10.1145/3620665.3640366), for Dynamo and AOTAutograd.
    """
    model = _check(model)
    selection.check_name(backend)
    for name, flag in (("freeze", freeze), ("recompute", recompute)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: expected True or False, got {flag!r}")
    if dynamic not in (None, True, False):
        raise TypeError(f"dynamic: expected None, True or False, got {dynamic!r}")
    check_then(then)
    if freeze:
        with torch.inference_mode(False):
            model = copy.deepcopy(model).eval().requires_grad_(False)
    how = {"backend": backend, "freeze": freeze, "recompute": recompute, "dynamic": dynamic, "then": then}
    fused = _fused(model, how)
    if example_inputs is not None:
        compare(model, fused, example_inputs)
    return fused


def is_fused(model: nn.Module) -> bool:
    """Returns True for a module that fuse() returned, frozen or not."""
    return isinstance(model, Fused)


def is_frozen(model: nn.Module) -> bool:
    """Returns True for a module that fuse(model, freeze=True) returned."""
    return isinstance(model, Frozen)


@contextlib.contextmanager
def observed(model: nn.Module, observer: Callable[[Callable[..., Any], tuple], Any]) -> Iterator[None]:
    """Inside, a fused model calls observer(graph, arguments) in place of graph(*arguments)."""
    assert isinstance(model, Fused)
    compiler = model._atrous.compiler
    compiler.observer = observer
    try:
        yield
    finally:
        compiler.observer = None


def _fused(model: nn.Module, how: dict[str, Any]) -> nn.Module:
    """One state, two classes: the object's attributes are the model's own."""
    fused = object.__new__(_class(type(model), how["freeze"]))
    fused.__dict__ = model.__dict__
    object.__setattr__(fused, "_atrous", State(model, how))
    return fused


@functools.cache
def _class(kind: type[nn.Module], frozen: bool) -> type[nn.Module]:
    bases = (Frozen if frozen else Fused, kind)
    attributes = {"__slots__": ("_atrous",), "__module__": kind.__module__, "__doc__": kind.__doc__}
    slots = {name for base in kind.__mro__ for name, value in vars(base).items() if inspect.ismemberdescriptor(value)}
    return type(f"Fused{kind.__name__}", bases, attributes | {name: _of_the_model(name) for name in slots})


def _of_the_model(name: str) -> property:
    """An attribute of the model that is not in its __dict__, since the class has __slots__."""

    def get(fused: Fused) -> Any:
        return getattr(fused._atrous.model, name)

    def put(fused: Fused, value: Any) -> None:
        setattr(fused._atrous.model, name, value)

    def remove(fused: Fused) -> None:
        delattr(fused._atrous.model, name)

    return property(get, put, remove)


def _check(model: object) -> nn.Module:
    """The model itself, if it is a fused one: fuse() again gives it other options."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, Frozen):
        raise ValueError("model: expected a model that is not frozen: freeze=True cannot be undone or repeated")
    if isinstance(model, Fused):
        return model._atrous.model
    for path, module in model.named_modules():
        name = f"model.{path}" if path else "model"
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in COMPILED]
        if kinds:
            raise TypeError(f"{name}: expected a module as it was written, got a {kinds[-1]}: fuse first, then compile")
        if any(map(is_lazy, module.parameters(recurse=False))):
            raise ValueError(
                f"{name}: expected initialized parameters, got a lazy {type(module).__name__}: run it once"
            )
    return model
