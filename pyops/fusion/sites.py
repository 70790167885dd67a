"""Finds the sites of a traced forward: chains conv -> bn -> add -> activation whose inner values have one user."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx, nn

from ..core import activation
from .aliasing import Aliasing
from .nodes import ACTS, ADDS, KINDS, NAMES, PRELU, name_of, not_fusible, operands, slope, target, uses


@dataclass
class Chain:
    """Nodes that one call can replace. steps: (role, node) in order; reason: why the chain ends there."""

    steps: list[tuple[str, fx.Node]]
    reason: str = ""
    residual: int = 0  # operand of the add that is the residual
    names: list[str] = field(default_factory=list)  # parts of the pattern
    folded: bool = False

    def node(self, role: str) -> fx.Node | None:
        return next((node for r, node in self.steps if r == role), None)

    @property
    def head(self) -> fx.Node:
        return self.steps[0][1]

    @property
    def tail(self) -> fx.Node:
        return self.steps[-1][1]

    @property
    def roles(self) -> list[str]:
        return [role for role, _ in self.steps if role != "identity"]

    @property
    def refused(self) -> bool:
        """True if its first module cannot be part of any site."""
        return bool(self.reason) and len(self.steps) == 1

    @property
    def after(self) -> bool:
        """True if the residual is added after the activation."""
        return self.roles[-2:] == ["act", "add"]


class Finder:
    """Finds the chains of a graph. modules: those of the owner, by path."""

    def __init__(self, graph: fx.Graph, owner: nn.Module):
        self.nodes = list(graph.nodes)
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.modules = dict(owner.named_modules(remove_duplicate=False))
        self.aliasing = Aliasing(self.modules)

    def find(self) -> list[Chain]:
        """Returns the chain of every convolution, then those of BatchNorms and sums that belong to no convolution."""
        chains: list[Chain] = []
        for head in ("conv", "bn"):
            taken = {node for chain in chains for _, node in chain.steps}
            chains += [self._trunk(n, head) for n in self.nodes if self.role(n) == head and n not in taken]
        for node in self.nodes:
            if self.role(node) == "add":
                self._add(node, chains)
        # a convolution alone is reported, with its users as the reason; a BatchNorm or a sum alone is not
        sites = [
            c for c in chains if c.roles[0] == "conv" or len(c.roles) > 1 or (c.reason and not self._after_conv(c))
        ]
        for chain in sites:
            if len(chain.roles) == 1 and not chain.reason:
                names = ", ".join(map(name_of, chain.tail.users))
                chain.reason = f"followed by {names}" if names else "its output is not used"
        return sorted(sites, key=lambda chain: self.order[chain.head])

    def _after_conv(self, chain: Chain) -> bool:
        """True if the chain of the convolution before it already gives the reason."""
        return any(self.role(node) == "conv" for node in chain.head.all_input_nodes)

    def role(self, node: fx.Node) -> str:
        if node.op == "call_module":
            module = self.modules.get(target(node))
            if type(module) is not nn.Identity and activation.is_activation(module):
                return "act"
            return next((role for role, kinds in KINDS.items() if isinstance(module, kinds)), "")
        if node.op in ("call_function", "call_method"):
            if node.target in ADDS:
                return "add" if operands(node) else ""
            return "act" if node.target in ACTS or node.target in PRELU else ""
        return ""

    def _trunk(self, node: fx.Node, head: str) -> Chain:
        """Builds conv -> bn -> act; an add is appended later, when both of its operands are known."""
        chain = Chain([])
        chain.reason = self._refusal(chain, node, head)
        chain.steps.append((head, node))
        chain.names.append(head)
        if not chain.reason:
            self._extend(chain, ("bn", "act") if head == "conv" else ("act",))
        return chain

    def _extend(self, chain: Chain, wanted: tuple[str, ...]) -> None:
        """Appends the tail's user while it has one of the wanted roles, each at most once and in order."""
        while True:
            following = {self.role(user): user for user in chain.tail.users}
            role = next((r for r in ("identity", *wanted) if r in following), None)
            if role is None:
                return
            chain.reason = self._refusal(chain, following[role], role)
            if chain.reason:
                return
            self._take(chain, role, following[role])
            wanted = wanted[wanted.index(role) + 1 :] if role in wanted else wanted

    def _take(self, chain: Chain, role: str, node: fx.Node) -> None:
        chain.steps.append((role, node))
        if role != "identity":
            chain.names.append(self._act_name(node) if role == "act" else role)

    def _act_name(self, node: fx.Node) -> str:
        return NAMES[type(self.modules[target(node)])] if node.op == "call_module" else ACTS[node.target]

    def _refusal(self, chain: Chain, node: fx.Node, role: str) -> str:
        """Returns the reason why this node cannot be the next step of the chain; "" if it can."""
        if chain.steps and uses(chain.tail) != 1:
            return f"the output of {name_of(chain.tail)} is used {uses(chain.tail)} times"
        if node.op == "call_module":
            if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
                return f"{name_of(node)} is not called with one tensor alone"
            reason = not_fusible(target(node), self.modules[target(node)])
            if reason:
                return reason
        elif role == "act" and slope(node) is None:
            return f"the slope of {name_of(node)} is not a constant (that of an activation module may be learned)"
        return self._hazard(chain, node)

    def _hazard(self, chain: Chain, node: fx.Node) -> str:
        """Returns why the nodes between the tail and `node`, which then run before the call, forbid it; "" if none."""
        if not chain.steps:
            return ""
        add = chain.node("add")
        read = self.aliasing.roots(chain.head.all_input_nodes[0]) if chain.roles[0] != "add" else frozenset()
        if add is not None:
            read = read.union(*map(self.aliasing.roots, operands(add)))
        modules = {n.target for n in (node, *(n for _, n in chain.steps)) if n.op == "call_module"}
        for between in self.nodes[self.order[chain.tail] + 1 : self.order[node]]:
            if between.op == "call_module" and between.target in modules:
                return f"{between.target} is called again before {name_of(node)}"
            if self.aliasing.may_write(between) & read:
                return f"{name_of(between)} may change its input in place before {name_of(node)}"
        return ""

    def _add(self, node: fx.Node, chains: list[Chain]) -> None:
        left, right = operands(node)
        if left is right:
            return self._add_act(node, chains)
        activated = any(self.role(user) == "act" for user in node.users) and uses(node) == 1
        able = [c for c in chains if c.tail in (left, right) and "add" not in c.roles and not c.refused]
        # act(conv) + r followed by another activation: the sum and that activation are a separate site
        able = [c for c in able if "act" not in c.roles or not activated]
        able.sort(key=lambda c: ("act" not in c.roles, self.order[c.tail]))
        while able:
            chain = able.pop()
            chain.residual = 1 if chain.tail is left else 0
            chain.reason = self._refusal(chain, node, "add") or self._in_place(node, chain.tail)
            if not chain.reason:
                self._take(chain, "add", node)
                if "act" not in chain.roles:
                    self._extend(chain, ("act",))
                return
        self._add_act(node, chains)

    def _add_act(self, node: fx.Node, chains: list[Chain]) -> None:
        chain = Chain([("add", node)], residual=1, names=["add"])
        self._extend(chain, ("act",))
        if len(chain.roles) > 1 or chain.reason:
            reason = self._in_place(node, None)
            chains.append(Chain(chain.steps[:1], reason, names=["add"]) if reason else chain)

    def _in_place(self, node: fx.Node, chained: fx.Node | None) -> str:
        """x += y changes x; it equals x + y only if no other node can see x."""
        first = operands(node)[0]
        if not ADDS[node.target] or first is chained or self.aliasing.private(first):
            return ""
        return f"{name_of(node)} changes {name_of(first)} in place, which others may use"
