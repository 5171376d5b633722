"""Pooling whose window covers the whole input: a reduction, so that one function has one answer."""

from __future__ import annotations

import numpy as np

from deepshap_ir.graph import Node
from deepshap_ir.joins.rewriting import Pattern, Rewriter

REDUCTIONS = {
    "MaxPool": "ReduceMax",
    "GlobalMaxPool": "ReduceMax",
    "AveragePool": "ReduceMean",
    "GlobalAveragePool": "ReduceMean",
}


def whole_window(graph: Rewriter, node: Node) -> list[Node] | None:
    """MaxPool over everything is ReduceMax, AveragePool is ReduceMean; the global ones are so by name."""
    op_type = REDUCTIONS.get(node.operator)
    if op_type is None or any(node.outputs[1:]):
        return None
    shape = graph.shape(node.inputs[0])
    if not node.op_type.startswith("Global") and not _covers(node, shape[2:], graph.shape(node.outputs[0])[2:]):
        return None
    axes = graph.constant(np.arange(2, len(shape), dtype=np.int64), f"{node.outputs[0]}/axes")
    return [graph.node(node, op_type, [node.inputs[0], axes], attributes={"keepdims": 1})]


def _covers(node: Node, shape: tuple[int, ...], result: tuple[int, ...]) -> bool:
    """Whether the one window of `node` reads every element, and, for a mean, nothing else."""
    kernel = node.attributes["kernel_shape"]
    pads = node.attributes.get("pads") or [0] * 2 * len(shape)
    dilations = node.attributes.get("dilations") or [1] * len(shape)
    padded = node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if padded or any(n != 1 for n in result) or any(d != 1 and n > 1 for d, n in zip(dilations, shape, strict=True)):
        return False
    ends = [k - before for k, before in zip(kernel, pads, strict=False)]
    counts_pads = node.op_type == "AveragePool" and node.attributes.get("count_include_pad", 0)
    exact = list(kernel) == list(shape) and not any(pads)
    return exact if counts_pads else all(end >= n for end, n in zip(ends, shape, strict=True))


WINDOWS: list[Pattern] = [whole_window]
