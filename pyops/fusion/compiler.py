"""The compiler pass: a graph in, a function out that runs its sites as fused operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from ..backends import selection
from ..core import dynamo_compat
from . import constants, training
from .call import Options
from .checkpoints import inline_checkpoints
from .effects import value
from .layouts import lower_in_channels_last
from .lean import lean
from .report import Graph, Report, site_of
from .rewrite import lower, replace_sites


@dataclass
class Compiler:
    """Compiles the graphs of one model. then: None, or "inductor", which compiles the rewritten graph."""

    options: Options = Options()
    then: str | None = None
    report: Report = field(default_factory=Report)
    store: constants.Store = field(default_factory=constants.Store)
    observer: Callable[[Callable[..., Any], tuple], Any] | None = None  # called in place of a graph, with its arguments
    mode: str | None = None  # Inductor's
    calls: int = 0  # of compiled graphs

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """A backend of torch.compile. It never raises for a graph: where the pass fails, the graph runs as it is."""
        if dynamo_compat.draws_from_own_random():
            raise dynamo_compat.skip_frame("it draws from a random.Random of its own")
        record = Graph("eval")
        self.report.graphs.append(record)
        run = first_that_works(record.fallbacks, lambda: self.compile(gm, inputs, record), lambda: gm.forward)

        def counted(*args: Any) -> Any:
            self.calls += 1
            return run(*args) if self.observer is None else self.observer(run, args)

        return counted

    def compile(self, gm: fx.GraphModule, inputs: Sequence[Any], record: Graph) -> Callable[..., Any]:
        gm = training.copied(gm)  # Dynamo reads its own afterwards
        inline_checkpoints(gm)
        plain = training.copied(gm)
        chains = replace_sites(gm, self.options)
        record.sites = list(map(site_of, chains))
        record.mode = "train" if any(map(training.trains, gm.graph.nodes)) else "eval"
        if not any(isinstance(v := value(o), Tensor) and v.requires_grad for o in training.outputs(gm)):
            return self._without_gradients(gm)
        if self.then == "inductor":
            return self._finish(gm)
        return first_that_works(
            record.fallbacks,
            lambda: training.compiled(gm, plain, inputs, self.options.recompute),
            lambda: dynamo_compat.with_aot_autograd(gm, inputs),
            lambda: gm.forward,
        )

    def _without_gradients(self, gm: fx.GraphModule) -> Callable[..., Any]:
        if not self.options.freeze:
            lower(gm)
            return self._finish(gm)
        lower_in_channels_last(gm)
        places = [node for node in gm.graph.nodes if node.op == "placeholder"]
        owned = {node for node in places if any(kind in dynamo_compat.source_name(node) for kind in OWNED)}
        return constants.frozen(gm, owned, self.store, self._finish)

    def _finish(self, gm: fx.GraphModule) -> Callable[..., Any]:
        if self.then != "inductor":
            return lean(gm)
        inputs = [value(node) for node in gm.graph.nodes if node.op == "placeholder"]
        return dynamo_compat.with_inductor(gm, inputs, self.mode)


def first_that_works(refused: list[str], *routes: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """The result of the first route that does not raise. refused: receives the errors of those before it."""
    for route in routes[:-1]:
        try:
            return route()
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            refused.append(f"{type(error).__name__}: {lines[0]}")
    return routes[-1]()


OWNED = ("_parameters[", "_buffers[")  # parts of the source of a model's own tensor


def dynamo_backend(
    gm: fx.GraphModule, inputs: Sequence[Any], *, options: dict[str, Any] | None = None, mode: str | None = None
) -> Callable[..., Any]:
    """torch.compile(model, backend="atrous", options={...}, mode=...).

    options: backend, recompute and then of fuse(), and report, a fusion.Report that is filled. mode: that of Inductor,
    with then="inductor". Raises ValueError for an unknown option.
    """
    given = {"backend": "auto", "recompute": True, "then": None, "report": Report(), **(options or {})}
    if unknown := given.keys() - {"backend", "recompute", "then", "report"}:
        raise ValueError(
            f"options: expected some of backend, recompute, then, report, got {', '.join(sorted(unknown))}"
        )
    check_then(given["then"])
    selection.check_name(given["backend"])
    sites = Options(given["backend"], bool(given["recompute"]), compiled=given["then"] is not None)
    return Compiler(sites, given["then"], given["report"], mode=mode)(gm, inputs)


def check_then(then: object) -> None:
    if then not in (None, "inductor"):
        raise ValueError(f"then: expected None or 'inductor', got {then!r}")


def fuse_graph(
    gm: fx.GraphModule, *, backend: str = "auto", freeze: bool = False, report: Report | None = None
) -> fx.GraphModule:
    """Makes each site of an fx graph one operator, for people who write compilers; returns the graph that was given.

    Args:
        gm: a graph of torch.export or Dynamo, whose nodes have fake values (meta["val"] or meta["example_value"]). It
            runs without gradients. An exported program's graph is `program.graph_module`. Its placeholders and outputs
            stay as they are.
        backend: as for conv_bn_act. freeze: BatchNorms are folded into their convolutions, by operators in the graph on
            which a compiler's constant folding works. report: receives the sites.
    """
    selection.check_name(backend)
    record = Graph("eval")
    record.sites = list(map(site_of, replace_sites(gm, Options(backend, freeze=bool(freeze), compiled=True))))
    if report is not None:
        report.graphs.append(record)
    lower_in_channels_last(gm) if freeze else lower(gm)
    return gm
