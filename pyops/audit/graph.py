"""The graph of a model's operators, and the field of its last map in the image."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import fx, nn

from ..core.errors import summary
from . import operators
from .field import Field
from .operators import Pair


class Read(NamedTuple):
    """A map that a node reads: with taps for height and width, or at the node's own position if they are None."""

    source: fx.Node
    taps: operators.Axes | None = None


class ModelGraph:
    """A model's operators in the order in which they run, for an image of a given shape.

    axes: for each node that is a map, the dimensions of its height and width.
    reads: for each of them but the image, the maps that it reads.
    pooled: the global poolings that a node depends on.
    lost: for each node that depends on maps, but neither is one nor pools, the operator from which on that is so.
    """

    def __init__(self, model: nn.Module, shape: Sequence[int]):
        program = _export(model, shape)
        self.nodes = list(program.graph.nodes)
        self.axes: dict[fx.Node, Pair] = {}
        self.reads: dict[fx.Node, list[Read]] = {}
        self.pooled: dict[fx.Node, frozenset[fx.Node]] = {}
        self.lost: dict[fx.Node, fx.Node] = {}
        with torch.device("cpu"):  # taps are tensors; the model itself may need another default
            for node in self.nodes:
                if node.op == "call_function":
                    self._add(node)
                elif node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
                    self.image, self.axes[node] = node, (2, 3)

    def size(self, node: fx.Node) -> Pair:
        """Height and width of a map."""
        shape, (height, width) = operators.shape(node), self.axes[node]
        return shape[height], shape[width]

    def _add(self, node: fx.Node) -> None:
        inputs = node.all_input_nodes
        self.pooled[node] = frozenset().union(*(self.pooled.get(one, ()) for one in inputs))
        if operators.name(node) in operators.CREATING:
            return
        maps = [one for one in inputs if one in self.axes]
        lost = [self.lost[one] for one in inputs if one in self.lost]
        if lost or maps and not self._add_map(node, maps):
            self.lost[node] = lost[0] if lost else node

    def _add_map(self, node: fx.Node, maps: list[fx.Node]) -> bool:
        """Enters a node that is a map, or pools one globally; False for any other."""
        first, shape = maps[0], operators.shape(maps[0])
        if operators.is_global_pooling(node, self.axes[first], shape):
            self.pooled[node] |= {node}
            return True
        moved = operators.moved(node, self.axes[first], shape)
        if not moved and not self._is_followed(node, maps):
            return False
        places = {operators.axes_after(node, self.axes[one], operators.shape(one)) for one in maps}
        axes = places.pop()
        if axes is None or places:
            return False
        sizes = {tuple(operators.shape(node)[axis] for axis in axes)} | {self.size(one) for one in maps[bool(moved) :]}
        if len(sizes) > 1:  # one of them is broadcast
            return False
        self.axes[node] = axes
        self.reads[node] = [Read(one, moved if one is first else None) for one in maps]
        return True

    def _is_followed(self, node: fx.Node, maps: list[fx.Node]) -> bool:
        kind = operators.name(node)
        if kind in operators.VIEWS or kind in ("permute", "transpose"):
            return True
        return all(operators.is_followed(node, self.axes[one], len(operators.shape(one))) for one in maps)

    def last_maps(self) -> list[fx.Node]:
        """The maps that the model returns, or those that the rest of it computes its outputs of.

        The rest may flatten or pool a map, and then compute with vectors, which depend on all of it. Raises ValueError
        for any other operator between a map and the outputs, as it may read other positions.
        """
        waiting, seen, last = list(self.nodes[-1].all_input_nodes), set(), []
        while waiting:
            node = waiting.pop(0)
            if node in seen:
                continue
            seen.add(node)
            if node in self.axes:
                last.append(node)
                continue
            if node in self.lost and len(operators.shape(node)) > 2 and operators.name(node) not in operators.RESHAPING:
                first = self.lost[node]
                raise self.error(node if operators.name(first) in operators.RESHAPING else first)
            waiting += node.all_input_nodes
        return last

    def field(self, last: fx.Node) -> Field | None:
        """The image positions that the middle of a map reads; None if it reads none."""
        height, width = self.size(last)
        fields = {last: Field.at((height // 2, width // 2))}
        for node in reversed(self.nodes):
            if node not in fields or node is self.image:
                continue
            field = fields.pop(node)
            for source, taps in self.reads[node]:
                read = field.through(*taps) if taps else field
                if read:
                    fields[source] = fields[source].plus(read) if source in fields else read
        return fields[self.image].trimmed() if self.image in fields else None

    def before(self, last: fx.Node) -> set[fx.Node]:
        """The maps that a map depends on, and itself."""
        waiting, reached = [last], {last}
        while waiting:
            new = {read.source for read in self.reads.get(waiting.pop(), ())} - reached
            waiting += new
            reached |= new
        return reached

    def error(self, node: fx.Node) -> ValueError:
        """The error of an operator that cannot be followed."""
        return ValueError(
            "model: expected operators that keep the height and width of maps apart, "
            f"got {node.target} in {module_name(node) or 'the model itself'}"
        )


def module_name(node: fx.Node) -> str:
    """The module that called an operator: layer1.0.conv1."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def _export(model: nn.Module, shape: Sequence[int]) -> torch.export.ExportedProgram:
    like = next(model.parameters(), torch.empty(0))
    image = torch.zeros(tuple(shape), dtype=like.dtype, device=like.device)
    with _evaluation(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch.export itself
        try:
            model(image)
        except Exception as error:  # a user's own model may raise anything
            expected = "input_size: expected an image that the model accepts"
            raise ValueError(f"{expected}, got {tuple(shape)}: {summary(error)}") from error
        try:
            return torch.export.export(model, (image,), strict=False).run_decompositions({})
        except Exception as error:  # torch.export has no common base of its errors
            expected = "model: expected operators and control flow that torch.export can follow, not decided by values"
            raise ValueError(f"{expected}, got {summary(error)}") from error


@contextlib.contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, without gradients; afterwards in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
