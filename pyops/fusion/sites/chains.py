"""Finds the sites of a graph: chains conv -> bn -> add -> activation -> add -> dropout that one call can replace.

A site runs at the place of its last node. That is legal if each value inside the chain has one user, and if nothing
between two of its nodes changes the modes or writes what the site reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from ...core.torch_compat import OpOverload
from . import effects, spellings
from .effects import is_tensor, storage, value

# role -> the roles that may stand before it in a chain; each role stands there once
AFTER = {
    "bn": ("conv",),
    "act": ("conv", "bn", "add"),
    "add": ("conv", "bn", "act"),
    "dropout": ("act", "add"),
}


@dataclass
class Chain:
    """A chain of nodes. steps: role -> node. reason: why the chain ends where it does, or is not fused at all."""

    steps: dict[str, fx.Node]
    nodes: list[fx.Node] = field(default_factory=list)  # those of the steps, and identities between them
    residual: fx.Node | None = None
    after: bool = False  # the residual is added after the activation
    reason: str = ""
    refusal: str = ""  # why its call cannot replace the chain
    other: fx.Node | None = None  # a node of another site, at which the chain ends

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def fusible(self) -> bool:
        """True if one call does the work of two operations, or updates the running statistics of a BatchNorm."""
        bn = None if self.refusal else self.steps.get("bn")
        return len(self.steps) > 1 or (bn is not None and uses_batch_statistics(bn))

    @property
    def pattern(self) -> str:
        """The operations in order, such as "conv+bn+add+relu"."""
        return "+".join(spellings.role(node) for node in self.steps.values())


def uses_batch_statistics(bn: fx.Node) -> bool:
    a = spellings.arguments(bn)
    return bool(a.training) or a.running_mean is None


class Finder:
    def __init__(self, graph: fx.Graph):
        self.nodes = list(graph.nodes)
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.taken: set[fx.Node] = set()
        self.last_use: dict[int, int] = {}  # storage -> the last node that uses a value in it
        for node in self.nodes:
            for used in (node, *node.all_input_nodes):
                self.last_use[storage(used) or 0] = self.order[node]

    def find(self) -> list[Chain]:
        """The sites of the graph, and the convolutions that no site begins with; in the order of their first nodes."""
        chains = []
        for head in ("conv", "bn", "add"):
            for node in reversed(self.nodes):  # the later one of two branches adds the earlier one
                if spellings.role(node) == head and node not in self.taken:
                    chain = self._chain(head, node)
                    if head == "conv" or chain.fusible:
                        chains.append(chain)
                        self.taken.update(chain.nodes if chain.fusible else ())
        return sorted(chains, key=lambda chain: self.order[chain.nodes[0]])

    def _chain(self, head: str, node: fx.Node) -> Chain:
        chain = Chain({head: node}, [node])
        chain.reason = chain.refusal = self._head_reason(chain, head, node)
        if head == "add" and not chain.reason:
            chain.residual = self._split(chain, node)[1]
        while not chain.reason:
            user = self._only_user(chain)
            if user is None:
                break
            step = self._step(chain, user)
            chain.reason = self._hazard(chain, user, step) if step else f"followed by {describe(user)}"
            if not chain.reason:
                self._append(chain, user, step)
        return chain

    def _only_user(self, chain: Chain) -> fx.Node | None:
        """The single user of the chain's end; otherwise None, and the reason is written into the chain."""
        users = list(chain.last.users)
        if len(users) != 1:
            chain.reason = f"used {len(users)} times" if users else "not used"
        elif users[0].op == "output":
            chain.reason = "an output of the graph"
        elif users[0] in self.taken:
            chain.reason, chain.other = _owned_by_another(users[0])
        else:
            return users[0]
        return None

    def _head_reason(self, chain: Chain, head: str, node: fx.Node) -> str:
        if not is_tensor(node):
            return "its value is not known when the graph is compiled"
        if value(node).dim() != 4 and head != "add":
            return f"it has {value(node).dim()} dimensions, not 4"
        a = spellings.arguments(node)
        if head == "conv" and a.transposed:
            return "it is a transposed convolution"
        if head == "add":
            return self._add_reason(chain, node)
        return ""

    def _step(self, chain: Chain, user: fx.Node) -> str:
        """The role of the chain's next node: "" if it ends, "identity" if the node returns its input."""
        role, first = spellings.role(user), chain.last
        a = spellings.arguments(user) if role else None
        if a is None or not is_tensor(user) or (role != "add" and a.input is not first):
            return ""
        if role in ("dropout", "feature_dropout") and (not a.training or a.p == 0.0):
            return "identity"
        if role == "dropout" and isinstance(a.p, fx.Node):
            return ""
        role = "act" if role in spellings.ACTIVATIONS else role
        last = next(reversed(chain.steps))
        last = "act" if last in spellings.ACTIVATIONS else last
        return role if role in AFTER and role not in chain.steps and last in AFTER[role] else ""

    def _hazard(self, chain: Chain, user: fx.Node, step: str) -> str:
        """Why this node cannot be the chain's next one; "" if it can."""
        between = self.nodes[self.order[chain.last] + 1 : self.order[user]]
        read = {storage(node) for node in self._reads(chain)} - {None}
        changed = {storage(target) for node in chain.nodes for target in effects.written(node)} - {None}
        for node in between:
            if effects.is_barrier(node):
                return f"{describe(node)} stands before its {describe(user)}"
            if any(storage(target) in read for target in effects.written(node)):
                return f"{describe(node)} writes what it reads"
            if any(storage(used) in changed for used in node.all_input_nodes):
                return f"{describe(node)} reads what it writes"
        if value(user).dtype != value(chain.last).dtype and step != "add":
            return f"its {describe(user)} has another dtype"
        return self._add_reason(chain, user) if step == "add" else ""

    def _reads(self, chain: Chain) -> list[fx.Node]:
        return [used for node in chain.nodes for used in node.all_input_nodes if used not in chain.nodes]

    def _add_reason(self, chain: Chain, add: fx.Node) -> str:
        pair = spellings.operands(add)
        if not pair or not all(map(is_tensor, pair)):
            return "a number is added, or a scaled tensor"
        chained, other = self._split(chain, add)
        if other is chained:
            return "its output is added to itself"
        size = value(chained).shape
        if value(add).shape != size:
            return f"the sum has another shape than {tuple(size)}"
        if chain.steps.get("act") is not None and self._activated(add):
            return "the sum and its activation are a site of their own"
        if spellings.in_place(add) and pair[0] is other and not self._dead(other, add):
            return "the sum is written into a tensor that is used elsewhere"
        if "add" in chain.steps and spellings.in_place(add) and not self._dead(pair[0], add):
            return "the sum is written into a tensor that is used elsewhere"
        return ""

    def _split(self, chain: Chain, add: fx.Node) -> tuple[fx.Node, fx.Node]:
        """The operand that the chain continues, or that has the shape of the sum; and the residual."""
        first, second = spellings.operands(add)
        chained = second if second is chain.last else first
        if chain.last is add and value(first).shape != value(add).shape:
            chained = second
        return chained, first if chained is second else second

    def _activated(self, add: fx.Node) -> bool:
        users = list(add.users)
        return len(users) == 1 and spellings.role(users[0]) in spellings.ACTIVATIONS

    def _dead(self, node: fx.Node, writer: fx.Node) -> bool:
        """True if nothing but `writer` and what follows from its result sees the memory of the node afterwards."""
        inputs = any(n.op in ("placeholder", "get_attr") and storage(n) == storage(node) for n in self.nodes)
        own = {n for n in self.nodes if storage(n) == storage(node) and self.order[n] <= self.order[writer]} - {writer}
        used_later = any(self.order[user] > self.order[writer] for n in own for user in n.users)
        return not inputs and not used_later

    def _append(self, chain: Chain, node: fx.Node, step: str) -> None:
        if step == "add":
            chain.residual, chain.after = self._split(chain, node)[1], "act" in chain.steps
        if step != "identity":
            chain.steps[step] = node
        chain.nodes.append(node)


def _owned_by_another(node: fx.Node) -> tuple[str, fx.Node | None]:
    """Why a chain ends at a node that another site contains, and the node unless that site begins with it."""
    if spellings.role(node) == "conv":
        return f"followed by {describe(node)}", None
    operation = "addition" if spellings.role(node) == "add" else describe(node)
    return f"its {operation} is fused into another layer", node


def describe(node: fx.Node) -> str:
    """The name of a node's operation, such as "silu"; that of its module's class if that says more."""
    if node.op != "call_function":
        return str(node.target)
    name = getattr(node.target, "__name__", str(node.target))
    return name.split(".")[0] if isinstance(node.target, OpOverload) else name
