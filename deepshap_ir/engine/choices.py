"""Products behind the branches of a choice, of which a factor may be no number where the branch is not taken."""

from __future__ import annotations

import numpy as np

from deepshap_ir.engine.value import INTERNAL
from deepshap_ir.graph import Graph, Node

UNBOUNDED = frozenset(["Acosh", "Asin", "Acos", "Atanh", "Div", "Exp", "Log", "Pow", "Reciprocal", "Sqrt", "Tan"])
"""Operators whose value or slope may be no number where their operands are numbers."""

HANDING_ON = frozenset(
    [
        *("Abs", "Add", "Cast", "Concat", "Expand", "Gather", "Identity", "Max", "Min", "Neg", "Relu"),
        *("Reshape", "Slice", "Squeeze", "Sub", "Sum", "Transpose", "Unsqueeze"),
    ]
)
"""Operators that make no number of what is none."""

JOINED = f"{INTERNAL}::Elementwise"
GUARDED = ("Mul", f"{INTERNAL}::Product", JOINED)
"""Products, and functions of one number in which there may be one."""


def behind_choices(graph: Graph) -> set[str]:
    """Names of products whose multiplier 0 must stay 0, though a factor may be infinite or NaN.

    ``Where(c, x log(s), 0)`` gives ``x log(s)`` the multiplier 0 where c is false, and there s may be 0. The rules of
    the operators in `UNBOUNDED` see to their own.
    """
    risky: set[str] = set()
    for node in graph.nodes:
        handed_on = node.operator in HANDING_ON or node.operator in GUARDED
        if _is_risky(graph, node) or (handed_on and risky.intersection(node.inputs)):
            risky.update(node.outputs)
    branches: set[str] = set()
    found = set()
    for node in reversed(graph.nodes):
        if node.operator == "Where":
            branches.update(node.inputs[1:])
        elif branches.intersection(node.outputs) and node.operator in HANDING_ON | UNBOUNDED | {*GUARDED}:
            branches.update(node.inputs)
            if node.operator in GUARDED and risky.intersection([*node.inputs, *node.outputs]):
                found.add(node.name)
    return found


def _is_risky(graph: Graph, node: Node) -> bool:
    if node.operator == "Div":
        divisor = graph.constants.get(node.inputs[1])
        return divisor is None or not np.all(divisor)
    return node.operator in UNBOUNDED or node.operator == JOINED
