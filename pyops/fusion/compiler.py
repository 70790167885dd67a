"""The compiler pass: a graph in, a function out that runs its sites as fused operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from ..core import dynamo_compat
from . import constants, training
from .call import Options
from .effects import value
from .layouts import lower_in_channels_last
from .report import Graph, Report, site_of
from .rewrite import lower, replace_sites


@dataclass
class Compiler:
    """Compiles the graphs of one model. then: None, or "inductor", which compiles the rewritten graph."""

    options: Options = Options()
    then: str | None = None
    report: Report = field(default_factory=Report)
    store: constants.Store = field(default_factory=constants.Store)
    calls: int = 0  # of compiled graphs

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """A backend of torch.compile."""
        if dynamo_compat.draws_from_own_random():
            reason = "it draws from a random.Random of its own"
            raise dynamo_compat.skip_frame(reason)
        run = self.compile(gm, inputs)

        def counted(*args: Any) -> Any:
            self.calls += 1
            return run(*args)

        return counted

    def compile(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """The graph as it is, where this fails: a backend never raises."""
        plain = training.copied(gm)
        chains = replace_sites(gm, self.options)
        record = Graph("train" if any(map(training.trains, gm.graph.nodes)) else "eval", list(map(site_of, chains)))
        self.report.graphs.append(record)
        gradients = any(isinstance(v := value(o), Tensor) and v.requires_grad for o in training.outputs(gm))
        if not gradients:
            return self._without_gradients(gm, inputs)
        if self.then == "inductor":
            return dynamo_compat.with_inductor(gm, inputs, None)
        for route in (training.compiled, training.with_aot_autograd):
            try:
                return route(gm, plain, inputs, self.options.recompute)
            except Exception as error:
                record.fallbacks.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        return gm.forward

    def _without_gradients(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        if not self.options.freeze:
            lower(gm)
            return dynamo_compat.with_inductor(gm, inputs, None) if self.then == "inductor" else gm.forward
        lower_in_channels_last(gm)
        places = [node for node in gm.graph.nodes if node.op == "placeholder"]
        owned = {node for node in places if any(kind in dynamo_compat.source_name(node) for kind in OWNED)}
        return constants.frozen(gm, owned, self.store)


OWNED = ("_parameters[", "_buffers[")  # parts of the source of a model's own tensor
