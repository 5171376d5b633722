"""Kernels for operators of which only the expansion is known, so that a model with them can be run and imported."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from deepshap_ir.engine.context import Expansion
from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.expand import plain_attribute
from deepshap_ir.engine.program import split
from deepshap_ir.engine.registry import ExpandFunction, Resolver
from deepshap_ir.errors import RuleError
from deepshap_ir.graph import Array, Graph, Node
from deepshap_ir.reference.operators import REPAIRED


def expansion_functions(resolver: Resolver) -> list[type[OpRun]]:
    """Classes for ``onnx.reference`` that compute operators by the expansions that users gave."""
    return [_kernel(operator, function, resolver) for operator, function in resolver.own_expansions().items()]


def _kernel(operator: str, function: ExpandFunction, resolver: Resolver) -> type[OpRun]:
    domain, _, op_type = operator.rpartition("::")

    def run(self: Any, *arrays: Array | None, **_: Any) -> tuple[Array, ...]:
        given = {f"x{i}": array for i, array in enumerate(arrays) if array is not None}
        names = [f"x{i}" if array is not None else "" for i, array in enumerate(arrays)]
        attributes = {a.name: plain_attribute(a) for a in self.onnx_node.attribute}
        version = self.run_params["opsets"].get(domain, 1)
        outputs = tuple(self.onnx_node.output)
        node = Node(self.onnx_node.name or op_type, op_type, tuple(names), outputs, attributes, domain, version)
        shapes, dtypes = ({n: getattr(a, what) for n, a in given.items()} for what in ("shape", "dtype"))
        opsets = {"": 18} | self.run_params["opsets"]
        op = Emitter(opsets, next((a.dtype for a in given.values() if a.dtype.kind == "f"), np.dtype(np.float32)))
        graph = Graph(tuple(given), (), (node,), {}, shapes, dtypes, dict.fromkeys(given), opsets)
        xs = [op.input(name, shapes[name], dtypes[name], ()) if name else None for name in names]
        found = function(Expansion(node, graph, op, xs))
        results = list(found) if isinstance(found, list | tuple) else [found]
        if len(results) < len(outputs):
            raise RuleError(f"the expansion of {node} gives {len(results)} of {len(outputs)} outputs")
        wanted = results[: len(outputs)]
        program = split(op, [value for value in wanted if value is not None])[2]
        evaluator = ReferenceEvaluator(program.model, new_ops=[*expansion_functions(resolver), *REPAIRED])
        return tuple(map(np.asarray, evaluator.run(None, {v.name: given[v.name] for v in program.inputs})))

    return type(op_type, (OpRun,), {"op_domain": domain, "_run": run})
