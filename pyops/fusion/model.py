"""fuse(): a copy of a model, with shared parameters, whose sites each run as one call."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from ..backends import selection
from .compare import compare
from .describe import describe
from .freeze import EvalOnly, fold, independent, unfoldable
from .report import Report
from .rewrite import Forward
from .run import FuseOptions
from .shared_copy import shared_copy
from .visit import Visit, calls, visit

WRAPPERS = ("GraphModule", "ScriptModule", "OptimizedModule", "DataParallel", "DistributedDataParallel",
            "FullyShardedDataParallel")  # fmt: skip


def fuse(
    model: nn.Module, example_inputs=None, *, backend: str = "auto", freeze: bool = False, recompute: bool = True
) -> nn.Module:
    """Returns a copy of the model in which every act(bn(conv(x)) + r) is one call.

    The copy has the model's classes, names and state_dict, and shares its parameters and buffers; training flags and
    hooks are its own. The model itself is not changed. Only the `forward` of modules with a site is regenerated, from
    torch.fx traces in both modes. Parameters and BatchNorm vectors are read at each call, so nothing is stale after an
    optimizer step or load_state_dict, or after a parameter, submodule or attribute was replaced. Moving or casting one
    model does so to both. A global or environment variable that a forward reads keeps the value that it had when the
    forward was traced, and a forward that prints does so only then.

    Args:
        model: any nn.Module. A module that torch.fx cannot trace stays as it was, and the report says why.
        example_inputs: the model's input, or a tuple of its arguments, on which model and copy are compared in eval.
        backend: as for conv_bn_act.
        recompute: in training, an activation that can be recomputed from what its site saves is not saved. False: it
            is saved, which avoids the recomputing passes.
        freeze: for deployment. The copy has its own tensors, channels_last and without gradients; each BatchNorm is
            folded into its convolution (nn.FrozenConv2d, nn.Identity); the copy is in eval mode and train() raises.

    Returns:
        The copy. Its fusion_report lists every site: fused, or the reason why not.

    Raises:
        TypeError: model is no nn.Module, or is already traced, scripted, compiled or wrapped.
        ValueError: example_inputs do not fit the model, the backend is unknown, or the model is already frozen.
        RuntimeError: model and copy differ on example_inputs.
    """
    _check(model)
    selection.check_name(backend)
    options = FuseOptions(backend, bool(recompute))
    if freeze:
        result, report = _freeze(model, options)
    else:
        result = shared_copy(model)
        visits = visit(result, (True, False), options)
        report = describe(visits)
        _install(visits, options)
    vars(result)["fusion_report"] = report
    if example_inputs is not None:
        compare(shared_copy(model), result, example_inputs)
    return result


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        name = f"model.{path}" if path else "model"
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in WRAPPERS]
        if kinds:
            raise TypeError(f"{name}: expected a module as it was written, got a {kinds[-1]}: fuse first, then wrap")
        if any(map(is_lazy, module.parameters(recurse=False))):
            raise ValueError(
                f"{name}: expected initialized parameters, got a lazy {type(module).__name__}: run it once"
            )
        if isinstance(vars(module).get("train"), EvalOnly):
            raise ValueError("model: expected a model that is not frozen: freeze=True cannot be undone or repeated")


def _install(visits: list[Visit], options: FuseOptions) -> None:
    for _, module, plans in visits:
        if any(plan.source for plan in plans.values()):
            vars(module)["forward"] = Forward(module, plans, options)


def _freeze(model: nn.Module, options: FuseOptions) -> tuple[nn.Module, Report]:
    result = independent(model)
    visits = visit(result, (False,), options)
    counted = calls(visits)
    for visited in visits:
        for chain in visited.plans[False].chains:
            if chain.roles[0] == "conv" and len(chain.roles) > 1:
                paths = [str(node.target) for role, node in chain.steps if role in ("conv", "bn")]
                modules = [visited.module.get_submodule(path) for path in paths]
                reason = unfoldable(modules, counted)
                chain.folded, chain.reason = not reason, f"not folded: {reason}" if reason else chain.reason
                if chain.folded:
                    fold(result, modules, options.backend)
    _install(visit(result, (False,), options), options)
    for module in result.modules():
        vars(module)["train"] = EvalOnly(module)
    return result, describe(visits, frozen=True)
