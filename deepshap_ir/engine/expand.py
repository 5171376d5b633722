"""Rewrite operators that have no rule with operators that have one.

By a registered expansion (`deepshap_ir.extend.expand`), else by the function body that the ONNX standard gives for the
operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx
from onnx import helper

from deepshap_ir.engine.context import Expansion
from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.inference import onnx_node
from deepshap_ir.engine.recurrence import in_bodies, is_loop, node_attributes
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.value import SAMPLE, Value
from deepshap_ir.errors import DeepShapError, RuleError
from deepshap_ir.graph import Graph, Node

DEPTH = 20
"""An expansion whose operators expand further than this goes round in a circle."""


def expand_graph(graph: Graph, resolver: Resolver) -> Graph:
    """`graph` with every expandable node on the way from its inputs rewritten, until nothing changes.

    The bodies of loops are rewritten too.

    Names of the rewritten nodes' outputs survive. A node that has neither rule nor expansion stays as it is.

    Raises
    ------
    RuleError
        An expansion fails, gives another number, shape or dtype of outputs, or never ends.
    """
    known = replace(
        graph, constants=dict(graph.constants), shapes=dict(graph.shapes), dtypes=dict(graph.dtypes), nodes=()
    )
    varying = graph.downstream(graph.inputs)
    nodes: list[Node] = []
    used = {*graph.outputs, *(name for node in graph.nodes for name in node.reads)}
    waiting = [(node, 0) for node in reversed(graph.nodes)]
    while waiting:
        node, depth = waiting.pop()
        asked = node if depth else replace(node, outputs=tuple(n if n in used else "" for n in node.outputs))
        made = _rewritten(asked, known, resolver) if any(name in varying for name in node.reads) else None
        if made is None:
            nodes.append(node)
            continue
        if depth >= DEPTH:
            raise RuleError(f"{node}: its expansion does not end in operators that have rules")
        varying.update(name for new in made for name in new.outputs)
        waiting.extend((new, depth + 1) for new in reversed(made))
    return in_bodies(replace(known, nodes=tuple(nodes)), lambda body: expand_graph(body, resolver))


def _rewritten(node: Node, graph: Graph, resolver: Resolver) -> list[Node] | None:
    """The nodes that replace `node`, None where it stays; their values are entered in `graph`."""
    function = resolver.expansion(node)
    if function is None and (resolver.rule(node) is not None or not _has_body(node)):
        return None
    op = Emitter(graph.opsets)
    op.dtype = next((graph.dtypes[n] for n in node.inputs if n and graph.dtypes[n].kind == "f"), op.dtype)
    xs = [_operand(op, name, graph) if name else None for name in node.inputs]
    if function is None:
        results = standard_body(node, graph, op, xs)
    else:
        try:
            answer = function(Expansion(node, graph, op, xs))
        except DeepShapError:
            raise
        except Exception as error:
            raise RuleError(
                f"the expansion {function.__name__} of {node} failed: {type(error).__name__}: {error}"
            ) from error
        results = list(answer) if isinstance(answer, list | tuple) else [answer]
    _check(node, graph, results)
    return _as_nodes(node, graph, op, xs, results)


def _operand(op: Emitter, name: str, graph: Graph) -> Value:
    if name in graph.constants:
        return op.constant(graph.constants[name])
    apart = f"model's {name}"  # the emitter names its own values v1, v2 and so on, as a model may
    return op.input(apart, graph.shapes[name], graph.dtypes[name], [SAMPLE])


def _check(node: Node, graph: Graph, results: list[Value | None]) -> None:
    for j, name in enumerate(node.outputs):
        value = results[j] if j < len(results) else None
        if not name:
            continue
        if value is None:
            raise RuleError(f"the expansion of {node} gives no output {j}, which the model uses")
        given, expected = (value.shape, value.dtype), (graph.shapes[name], graph.dtypes[name])
        if given != expected:
            named = [f"{dtype} {list(shape)}" for shape, dtype in (given, expected)]
            raise RuleError(f"the expansion of {node} gives {named[0]} for output {j}, expected {named[1]}")


def _as_nodes(node: Node, graph: Graph, op: Emitter, xs: list[Value | None], results: list[Value | None]) -> list[Node]:
    """The emitter's steps as nodes; their values are entered in `graph`."""
    names = {v.name: n for n, v in zip(node.inputs, xs, strict=True) if v is not None}
    made: list[Node] = []
    finals = {}
    for name, value in zip(node.outputs, results, strict=False):
        if name and value is not None and value.name in op.by_output and value.name not in finals:
            finals[value.name] = name

    def name_of(value: Value | None) -> str:
        if value is None:
            return ""
        if value.name not in names:
            name = finals.get(value.name, f"{node.name}/{value.name}")
            while value.name not in finals and name in graph.shapes:
                name += "'"
            names[value.name] = name
            enter(name, value)
        return names[value.name]

    def enter(name: str, value: Value) -> None:
        graph.shapes[name], graph.dtypes[name] = value.shape, value.dtype
        if value.data is not None:
            graph.constants[name] = value.data

    for k, step in enumerate(op.steps):
        inputs = tuple(name_of(v) for v in step.inputs)
        outputs = tuple(name_of(v) for v in step.outputs)
        name = f"{node.name}/{step.op_type}_{k}"
        version = graph.opsets.get(step.domain, 1)
        attributes = node_attributes(step, graph.opsets, name) if is_loop(step) else step.attributes
        made.append(Node(name, step.op_type, inputs, outputs, attributes, step.domain, version))
    for name, value in zip(node.outputs, results, strict=False):
        if name and value is not None and names.get(value.name) != name:
            made.append(Node(f"{node.name}/{name}", "Identity", (name_of(value),), (name,), {}, "", graph.opsets[""]))
    return made


def _has_body(node: Node) -> bool:
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, node.version, node.domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def standard_body(node: Node, graph: Graph, op: Emitter, xs: list[Value | None]) -> list[Value | None]:
    """Emit the function body that the ONNX standard gives for `node`."""
    schema: Any = onnx.defs.get_schema(node.op_type, node.version, node.domain)
    attributes = {
        n: helper.get_attribute_value(a.default_value) for n, a in schema.attributes.items() if a.default_value.type
    }
    attributes |= node.attributes
    # where an output is left out that the standard wants beside another, onnx makes no body
    outputs = [name or f"{node.name}__unread{k}" for k, name in enumerate(node.outputs)]
    proto = onnx_node(node.op_type, node.domain, node.inputs, outputs, attributes)
    if schema.has_context_dependent_function:
        types = [
            helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(v.dtype), v.shape).SerializeToString()
            if v is not None
            else b""
            for v in xs
        ]
        versions = schema.context_dependent_function_opset_versions
        version = max((v for v in versions if v <= op.opsets[""]), default=versions[0])
        body = schema.get_context_dependent_function_with_opset_version(version, proto.SerializeToString(), types)
    else:
        versions = schema.function_opset_versions
        version = max((v for v in versions if v <= op.opsets[""]), default=versions[0])
        body = schema.get_function_with_opset_version(version)
    return emit_function(onnx.FunctionProto.FromString(body), op, xs, attributes)


def emit_function(
    function: onnx.FunctionProto, op: Emitter, xs: list[Value | None], attributes: Mapping[str, Any]
) -> list[Value | None]:
    """Emit the nodes of a function on `xs`, with `attributes` in place of its attribute references."""
    known: dict[str, Value | None] = dict.fromkeys(["", *function.input])
    known.update(zip(function.input, xs, strict=False))
    _emit_protos(function.node, op, known, attributes)
    return [known.get(name) for name in function.output]


def _emit_protos(
    nodes: Iterable[onnx.NodeProto], op: Emitter, known: dict[str, Value | None], attributes: Mapping[str, Any]
) -> None:
    """Emit nodes on the values `known`, and enter their results there."""
    for proto in nodes:
        given = {}
        for a in proto.attribute:
            if a.ref_attr_name:
                if attributes.get(a.ref_attr_name) is not None:
                    given[a.name] = attributes[a.ref_attr_name]
            else:
                given[a.name] = plain_attribute(a)
        inputs = [known[n] for n in proto.input]
        results: Sequence[Value | None]
        if proto.op_type == "Constant":
            results = (op.constant(_constant(given)),)
        elif proto.op_type == "CastLike" and inputs[0] is not None and inputs[1] is not None:
            results = (op.cast(inputs[0], inputs[1].dtype),)
        elif proto.op_type == "If" and inputs[0] is not None and inputs[0].data is not None:
            branch = given["then_branch" if inputs[0].data.all() else "else_branch"]
            _emit_protos(branch.node, op, known, attributes)
            results = [known[value.name] for value in branch.output]
        else:
            operator = f"{proto.domain}::{proto.op_type}" if proto.domain else proto.op_type
            results = op.call(operator, *inputs, outputs=len(proto.output), **given)
        known.update(zip(proto.output, results, strict=True))


def plain_attribute(attribute: onnx.AttributeProto) -> Any:
    """An attribute as `Node` keeps it."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    return value


def _constant(attributes: Mapping[str, Any]) -> Any:
    """The array of a Constant node."""
    import numpy as np

    for key, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if key in attributes:
            return np.array(attributes[key], dtype)
    return attributes["value"]
