"""The single-node models with which onnx tests its backends, as graphs that `check_rule` takes."""

from __future__ import annotations

import functools
import importlib
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node as cases
from numpy.typing import NDArray

from deepshap_ir.onnx_io import attribute_value

LARGEST = 3000
"""Number of elements up to which an operand is moderate."""
NEWEST = 26
"""The newest opset that onnxruntime runs."""


@dataclass(frozen=True)
class Case:
    """One node and its operands: an argument of `check_rule` is drawn for the float operands, the others are fixed."""

    name: str
    operator: str
    inputs: tuple[NDArray[Any] | None, ...]
    attributes: dict[str, Any]
    opset: int
    n_outputs: int

    def __str__(self) -> str:
        return self.name


@functools.cache
def node_cases(module: str) -> list[Case]:
    """The cases of one module of ``onnx.backend.test.case.node``, on float operands of moderate size.

    Importing one module takes a moment, where ``load_model_tests(kind="node")`` computes all 1,900 cases.
    """
    made = cases._NodeTestCases
    before = len(made)
    name = f"{cases.__name__}.{module}"
    if name in sys.modules:  # imported by a test that computes all cases: once more, and all as before
        names = dict(cases._existing_names)
        cases._existing_names.clear()
        importlib.reload(sys.modules[name])
        cases._existing_names.update(names)
        ours = made[before:]
        del made[before:]
    else:
        importlib.import_module(name)
        ours = made[before:]
    found = []
    for case in ours:
        if len(case.model.graph.node) != 1 or not case.data_sets:
            continue
        node = case.model.graph.node[0]
        fed = iter(case.data_sets[0][0])
        inputs = tuple(np.asarray(next(fed)) if name else None for name in node.input)
        outputs = [np.asarray(y) for y in case.data_sets[0][1]]
        if inputs[0] is None or inputs[0].dtype != np.float32 or outputs[0].dtype != np.float32:
            continue
        if max(a.size for a in (*outputs, *inputs) if a is not None) > LARGEST:
            continue
        opset = next(o.version for o in case.model.opset_import if not o.domain)
        read = min(max(18, opset), NEWEST)
        schema = onnx.defs.get_schema(node.op_type, read, "")
        attributes = {a.name: attribute_value(a) for a in node.attribute}
        if opset >= schema.since_version and attributes.keys() <= schema.attributes.keys():
            found.append(Case(case.name, node.op_type, inputs, attributes, read, len(node.output)))
    return found
