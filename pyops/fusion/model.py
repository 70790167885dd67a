"""fuse(): a model's twin whose sites run as one call each."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from ..backends import selection
from .compare import compare
from .describe import describe
from .freeze import EvalOnly, fold, independent, unfoldable
from .report import Report
from .rewrite import Forward
from .run import How
from .twin import twin
from .visit import Visit, calls, visit

WRAPPERS = ("GraphModule", "ScriptModule", "OptimizedModule", "DataParallel", "DistributedDataParallel",
            "FullyShardedDataParallel")  # fmt: skip


def fuse(
    model: nn.Module, example_inputs=None, *, backend: str = "auto", freeze: bool = False, recompute: bool = True
) -> nn.Module:
    """A twin of the model in which act(bn(conv(x)) + r) is one call wherever the model computes it.

    The twin has the model's classes, names, state_dict and the very same parameters and buffers, with training flags
    and hooks of its own; the model itself is not changed. Only the `forward` of modules that hold a site is
    regenerated, from torch.fx's trace of it in both modes. Parameters and BatchNorm vectors are read at each call, so
    nothing is stale after an optimizer step, load_state_dict, or a parameter, submodule or attribute was replaced.
    Moving or casting one moves both. What a forward reads outside of its module (a global, the environment) counts as
    it is now, and what it prints is printed now.

    Args:
        model: any nn.Module. What torch.fx cannot trace stays as it was, module by module, and the report says why.
        example_inputs: the model's input, or a tuple of its arguments: model and twin are run on it once, in eval mode.
        backend: as for conv_bn_act.
        recompute: in training, activations that a site can compute again from what it keeps are not kept; False: they
            are, which is faster by those passes.
        freeze: for deployment. The twin has tensors of its own, channels_last and without gradients; each convolution's
            BatchNorm is folded into it (nn.FrozenConv2d, nn.Identity); it is in eval mode and train() raises.

    Returns:
        the twin; its fusion_report lists every site, fused or the reason why not.

    Raises:
        TypeError: model is no nn.Module, or one that was already traced, scripted, compiled or wrapped.
        ValueError: example_inputs do not fit the model, the backend is unknown, or the model was frozen before.
        RuntimeError: the twin's outputs on example_inputs are not the model's.
    """
    _check(model)
    selection.named(backend)
    how = How(backend, bool(recompute))
    if freeze:
        result, report = _freeze(model, how)
    else:
        result = twin(model)
        visits = visit(result, (True, False), how)
        report = describe(visits)
        _install(visits, how)
    vars(result)["fusion_report"] = report
    if example_inputs is not None:
        compare(twin(model), result, example_inputs)
    return result


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        name = f"model.{path}" if path else "model"
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in WRAPPERS]
        if kinds:
            raise TypeError(
                f"{name}: expected a module as it was written, got a {kinds[-1]}: fuse first, then make that"
            )
        if any(map(is_lazy, module._parameters.values())):
            raise ValueError(
                f"{name}: expected initialised parameters, got a lazy {type(module).__name__}: run it once"
            )
        if isinstance(vars(module).get("train"), EvalOnly):
            raise ValueError("model: expected a model that is not frozen: freeze=True cannot be undone or repeated")


def _install(visits: list[Visit], how: How) -> None:
    for _, module, plans in visits:
        if any(plan.source for plan in plans.values()):
            vars(module)["forward"] = Forward(module, plans, how)


def _freeze(model: nn.Module, how: How) -> tuple[nn.Module, Report]:
    result = independent(model)
    visits = visit(result, (False,), how)
    counted = calls(visits)
    for found in visits:
        for chain in found.plans[False].chains:
            if chain.roles[0] == "conv" and len(chain.roles) > 1:
                paths = [str(node.target) for role, node in chain.steps if role in ("conv", "bn")]
                modules = [found.module.get_submodule(path) for path in paths]
                reason = unfoldable(modules, counted)
                chain.folded, chain.reason = not reason, f"not folded: {reason}" if reason else chain.reason
                if chain.folded:
                    fold(result, modules, how.backend)
    _install(visit(result, (False,), how), how)
    for module in result.modules():
        vars(module)["train"] = EvalOnly(module)
    return result, describe(visits, frozen=True)
