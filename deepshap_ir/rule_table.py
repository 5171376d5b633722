"""Which rule explains which node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from deepshap_ir.engine.recurrence import affected, is_loop
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.graph import Graph


@dataclass(frozen=True)
class RuleRow:
    """A line of `deepshap_ir.DeepExplainer.rules`: a node, its operator, its rule, and whether that sums to delta."""

    node: str
    operator: str
    rule: str
    exact: bool


def rule_rows(graph: Graph, varying: Iterable[str], resolver: Resolver) -> Iterator[RuleRow]:
    """The rules of a graph between the varying values and its outputs, those in the body of a loop after the loop."""
    reached = graph.downstream(varying)
    needed = reached & graph.upstream(graph.outputs)
    for node in graph.nodes:
        rule = resolver.rule(node)
        if rule is not None and needed.intersection(node.outputs):
            yield RuleRow(node.name, node.operator, rule.name, rule.exact)
            if is_loop(node):
                body: Graph = node.attributes["body"]
                positions = [i for i, name in enumerate(node.inputs) if name in reached]
                inside = [body.inputs[i] for i in affected(node, positions)]
                yield from rule_rows(body, inside, resolver)
