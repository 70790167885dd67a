"""The compiler pass: a graph in, a function out that runs its sites as fused operators."""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from ..backends import selection
from ..core import dynamo_compat, graph_compat
from ..core.errors import summary
from .checkpoints import inline_checkpoints
from .execution import constants, training
from .execution.lean import lean
from .execution.parts import NotInParts, in_parts
from .report import Graph, Report, path_of, site_of
from .sites.call import Options
from .sites.chains import Finder
from .sites.effects import autocasts, storage, value, without_gradients, written
from .sites.layouts import lower_sites
from .sites.rewrite import replace_sites
from .sites.site_script import script_of


@dataclass
class Compiler:
    """Compiles the graphs of one model. then: None, or "inductor", which compiles the rewritten graph."""

    options: Options = Options()
    then: str | None = None
    report: Report = field(default_factory=Report)
    store: constants.Store = field(default_factory=constants.Store)
    observer: Callable[[Callable[..., Any], tuple], Any] | None = None  # called in place of a graph, with its arguments
    mode: str | None = None  # Inductor's
    names: Callable[[], dict[int, str]] = dict  # id of a tensor of the model -> its name
    calls: dict[int, int] = field(default_factory=dict)  # thread -> how often it called compiled graphs
    _runs: dict[int, Callable[..., Any]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """A backend of torch.compile. The function leads to the graph only while this object lives: Dynamo keeps it."""
        number, known = self.add(gm, inputs), weakref.ref(self)
        return lambda *args: known().run(number, *args)  # type: ignore[union-attr]

    def add(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> int:
        """Compiles a graph; returns its number for run(). Where the pass fails, the graph runs as it is."""
        if dynamo_compat.draws_from_own_random():
            raise dynamo_compat.skip_frame("it draws from a random.Random of its own")
        record, number = Graph(), next(self._numbers)
        self.report.graphs.append(record)
        self._runs[number] = first_that_works(
            record.fallbacks, lambda: self.compile(gm, inputs, record), lambda: gm.forward
        )
        return number

    def run(self, number: int, *args: Any) -> Any:
        thread = threading.get_ident()
        self.calls[thread] = self.calls.get(thread, 0) + 1
        graph = self._runs[number]
        return graph(*args) if self.observer is None else self.observer(graph, args)

    def compile(self, gm: fx.GraphModule, inputs: Sequence[Any], record: Graph) -> Callable[..., Any]:
        gm = training.copied(gm)  # Dynamo reads its own afterwards
        inline_checkpoints(gm)
        known, places = self.names(), gm.graph.find_nodes(op="placeholder")
        names = {place.name: known[id(given)] for place, given in zip(places, inputs) if id(given) in known}

        def part(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            return self._compile(gm, inputs, record, names)

        try:
            in_several = in_parts(gm, inputs, part) if training.has_gradients(gm) else None
        except NotInParts as reason:
            rewritten(gm, self.options, record, names)
            record.sites = [replace(site, fused=False, reason=str(reason)) for site in record.sites]
            raise
        return in_several or part(gm, inputs)

    def _compile(
        self, gm: fx.GraphModule, inputs: Sequence[Any], record: Graph, names: dict[str, str]
    ) -> Callable[..., Any]:
        plain = training.copied(gm) if training.has_gradients(gm) else None
        rewritten(gm, self.options, record, names)
        if plain is None:
            without_gradients(gm)
            with torch.no_grad():  # else Inductor would give the results gradients
                run = self._without_gradients(gm)
            return torch.no_grad()(run) if torch.is_grad_enabled() else run
        if training.writes_into_a_leaf(plain):  # torch refuses it, in its own words
            return gm.forward
        finish = functools.partial(self._finish, half=True)
        routes = [lambda: training.compiled(gm, plain, inputs, self.options.recompute, self.then == "inductor", finish)]
        if training.writes(gm):  # a site on its own may save what is written later: both directions, not the second
            routes.append(lambda: graph_compat.with_aot_autograd(gm, inputs))
        return first_that_works(record.fallbacks, *routes, lambda: gm.forward)

    def _without_gradients(self, gm: fx.GraphModule) -> Callable[..., Any]:
        lower_sites(gm, self.options.freeze)
        if not self.options.freeze:
            return self._finish(gm)
        places = [node for node in gm.graph.nodes if node.op == "placeholder"]
        changed = {storage(target) for node in gm.graph.nodes for target in written(node)}
        owned = {node for node in places if any(kind in graph_compat.source_name(node) for kind in OWNED)}
        owned -= {node for node in owned if storage(node) in changed}
        return constants.frozen(gm, owned, self.store, self._finish)

    def _finish(self, gm: fx.GraphModule, half: bool = False) -> Callable[..., Any]:
        """half: of a training graph. It takes a list, and its operators do what autocast does."""
        if half:
            graph_compat.take_a_list(gm)
        if self.then != "inductor":
            return lean(gm, not half and autocasts(gm.graph))
        inputs = [value(node) for node in gm.graph.nodes if node.op == "placeholder"]
        return graph_compat.with_inductor(gm, inputs, self.mode)


def rewritten(
    gm: fx.GraphModule, options: Options, record: Graph, names: dict[str, str], part: set[fx.Node] | None = None
) -> None:
    """Replaces the sites of a graph by calls. part: those within it; None: all. record: gets the sites.

    names: input of the graph -> the name of the model's tensor that it is.
    """
    chains = [chain for chain in Finder(gm.graph).find() if part is None or part.issuperset(chain.nodes)]
    paths = [path_of(chain.nodes[0], names) for chain in chains]
    scripts = [script_of(chain, path, options) for chain, path in zip(chains, paths)]
    replace_sites(gm, chains, options)
    owners = {node: path for chain, path in zip(chains, paths) if chain.fusible for node in chain.nodes}
    record.sites += [site_of(chain, path, script, owners) for chain, path, script in zip(chains, paths, scripts)]
    modes = {record.mode, *map(training.mode, gm.graph.nodes)}
    record.mode = "train" if "train" in modes else "eval" if "eval" in modes else "both"


def first_that_works(refused: list[str], *routes: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """The result of the first route that does not raise. refused: receives the errors of those before it."""
    for route in routes[:-1]:
        try:
            return route()
        except Exception as error:
            refused.append(summary(error))
    return routes[-1]()


OWNED = ("_parameters[", "_buffers[")  # parts of the source of a model's own tensor


def dynamo_backend(
    gm: fx.GraphModule, inputs: Sequence[Any], *, options: dict[str, Any] | None = None, mode: str | None = None
) -> Callable[..., Any]:
    """Compiles a graph for torch.compile(model, backend="atrous", options={...}, mode=...): sites become operators.

    The entry point "atrous" names this function, so that torch.compile finds it without an import of atrous. Give
    fuse() the model where you can: it has a cache, a report and guards on hooks of its own, and can freeze.

    Args:
        gm, inputs: the graph and its fake inputs, from Dynamo.
        options: backend, recompute and then, as for fuse(), and report: a fusion.Report that receives the sites.
        mode: that of Inductor, with then="inductor".

    Returns a function of the graph's inputs. A graph that cannot be compiled runs as it is, and the report says why.
    Raises ValueError for an unknown option, backend or `then`.
    """
    given = {"backend": "auto", "recompute": True, "then": None, "report": Report(), **(options or {})}
    if unknown := given.keys() - {"backend", "recompute", "then", "report"}:
        raise ValueError(
            f"options: expected some of backend, recompute, then, report, got {', '.join(sorted(unknown))}"
        )
    check_then(given["then"])
    selection.check_name(given["backend"])
    sites = Options(given["backend"], bool(given["recompute"]), compiled=given["then"] is not None)
    compiler = Compiler(sites, given["then"], given["report"], mode=mode)
    return functools.partial(compiler.run, compiler.add(gm, inputs))


def check_then(then: object) -> None:
    if then not in (None, "inductor"):
        raise ValueError(f"then: expected None or 'inductor', got {then!r}")


def fuse_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any] | None = None,
    *,
    backend: str = "auto",
    freeze: bool = False,
    report: Report | None = None,
) -> fx.GraphModule:
    """Makes each site of an fx graph one operator, for people who write compilers; returns the graph that was given.

    Args:
        gm: a graph of torch's or aten's operators, as Dynamo, torch.export, make_fx and symbolic_trace give it. It runs
            without gradients. An exported program's graph is `program.graph_module`. Its inputs and outputs stay as
            they are.
        example_inputs: its inputs. They are needed if a node calls a module, or has no fake value (meta["val"] or
            meta["example_value"]): the graph then becomes one of aten's operators, for inputs of these shapes.
        backend: as for conv_bn_act. freeze: BatchNorms are folded into their convolutions, by operators in the graph on
            which a compiler's constant folding works. report: receives the sites.

    Raises TypeError for what is no graph, ValueError for an unknown backend and for example_inputs that are missing.
    """
    if not isinstance(gm, fx.GraphModule):
        raise TypeError(f"gm: expected a torch.fx.GraphModule, got {type(gm).__name__}")
    selection.check_name(backend)
    if not graph_compat.has_values(gm):
        if example_inputs is None:
            raise ValueError(
                "example_inputs: expected the graph's inputs, since its nodes have no fake values; got None"
            )
        with torch.no_grad():
            graph_compat.retrace(gm, example_inputs)
    record = Graph()
    rewritten(gm, Options(backend, freeze=bool(freeze), compiled=True), record, {})
    if report is not None:
        report.graphs.append(record)
    lower_sites(gm, freeze)
    return gm
