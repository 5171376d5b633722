"""Models of opsets that are newer than the installed onnxruntime, written with operators that it knows.

Most operators that a new opset brings are old ones that take more types. Those that are really new have a function
body in the standard.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, inliner

from deepshap_ir.errors import ModelError
from deepshap_ir.importing.runner import newest_opset, one_line
from deepshap_ir.importing.skeleton import restored, skeleton
from deepshap_ir.importing.subgraphs import all_nodes, replaced

_BODIES = "deepshap_ir.bodies"
"""Domain of bodies of the standard on their way into the model."""

_NEWEST_KERNELS = {"RoiAlign": 21}
"""Operator -> the newest opset for which onnxruntime 1.31 has its kernel; from then on only types were added."""

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def unknown_operators(model: ModelProto, opset: int) -> list[str]:
    """Standard operators of `model` that neither exist in the newest opset that onnxruntime loads nor have a body."""
    nodes = [*all_nodes(model.graph), *(node for function in model.functions for node in function.node)]
    names = {node.op_type for node in nodes if node.domain == ""}
    own = {function.name for function in model.functions if function.domain == ""}
    return sorted(n for n in names - own if not _known(n, newest_opset()) and not _has_body(n, opset))


def lower_opset(model: ModelProto, opset: int) -> ModelProto:
    """Return `model`, without local functions, at the newest opset that onnxruntime loads and has its kernels for.

    Operators that are not there yet are replaced by their bodies; the others are read as their older version. What
    that changes is found when the program is compared with the file.

    Raises
    ------
    ModelError : a body cannot be written out.
    """
    names = {node.op_type for node in all_nodes(model.graph) if node.domain == ""}
    target = min([newest_opset(), *(limit for name, limit in _NEWEST_KERNELS.items() if name in names)])
    if opset <= target:
        return model
    small, large = skeleton(model)
    try:
        small = _with_bodies(small, opset, target)
    except (RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"the model of opset {opset} cannot be written with operators of opset {target}: {one_line(error)}. "
            f"Install a newer onnxruntime or export to an older opset."
        ) from None
    _spell_modulus(small, opset)
    result = restored(small, large)
    for entry in result.opset_import:
        if entry.domain == "":
            entry.version = target
    return result


def _with_bodies(model: ModelProto, opset: int, target: int) -> ModelProto:
    """Replace the operators that `target` does not have by their bodies, as local functions that are inlined."""
    new = [node for node in model.graph.node if node.domain == "" and not _as_before(node, target)]
    if not new:
        return model
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {v.name: v.type.SerializeToString() for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    types |= {
        t.name: helper.make_tensor_type_proto(t.data_type, t.dims).SerializeToString() for t in inferred.initializer
    }
    for count, node in enumerate(new):
        schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
        if schema.has_context_dependent_function:
            version = max(v for v in schema.context_dependent_function_opset_versions if v <= opset)
            body = schema.get_context_dependent_function_with_opset_version(
                version, node.SerializeToString(), [types.get(name, b"") for name in node.input]
            )
        else:
            body = schema.get_function_with_opset_version(max(v for v in schema.function_opset_versions if v <= opset))
        function = FunctionProto.FromString(body)
        function.domain, function.name = _BODIES, f"{node.op_type}_{count}"
        del function.opset_import[:]
        function.opset_import.extend(model.opset_import)
        node.domain, node.op_type = _BODIES, function.name
        given = {attribute.name for attribute in node.attribute}
        node.attribute.extend(
            a.default_value for n, a in schema.attributes.items() if a.default_value.type and n not in given
        )
        model.functions.append(function)
    model.opset_import.add(domain=_BODIES, version=1)
    result = inliner.inline_local_functions(model)
    del result.functions[:]
    imports = [entry for entry in result.opset_import if entry.domain != _BODIES]
    del result.opset_import[:]
    result.opset_import.extend(imports)
    return result


def _known(op_type: str, opset: int) -> bool:
    return bool(onnx.defs.has(op_type, max_inclusive_version=opset, domain=""))


def _as_before(node: NodeProto, target: int) -> bool:
    """Whether `target` has the operator with all attributes that the node gives, or it has no body."""
    if not _known(node.op_type, target):
        return False
    known: Any = onnx.defs.get_schema(node.op_type, target, "").attributes
    newer = {attribute.name for attribute in node.attribute} - set(known)
    return not newer or not _has_body(node.op_type, onnx.defs.onnx_opset_version())


def _has_body(op_type: str, opset: int) -> bool:
    if not _known(op_type, opset):
        return False
    schema: Any = onnx.defs.get_schema(op_type, opset, "")
    return bool(schema.has_function or schema.has_context_dependent_function)


def _spell_modulus(model: ModelProto, opset: int) -> None:
    """``a - b floor(a / b)`` for the Mod of opset 28 of floating-point numbers, with the divisor's sign."""
    types: dict[str, int] = {}
    if opset >= 28 and any(_follows_divisor(node) for node in model.graph.node):
        inferred = onnx.shape_inference.infer_shapes(model).graph
        found = (*inferred.input, *inferred.value_info, *inferred.output)
        types = {value.name: value.type.tensor_type.elem_type for value in found}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if not _follows_divisor(node) or types.get(node.input[0]) not in _FLOATS:
            nodes.append(node)
            continue
        quotient, whole, product = (f"{node.output[0]}__{part}" for part in ("quotient", "whole", "product"))
        nodes += [
            helper.make_node("Div", list(node.input), [quotient]),
            helper.make_node("Floor", [quotient], [whole]),
            helper.make_node("Mul", [node.input[1], whole], [product]),
            helper.make_node("Sub", [node.input[0], product], list(node.output), name=node.name),
        ]
    model.graph.CopyFrom(replaced(model.graph, nodes))


def _follows_divisor(node: NodeProto) -> bool:
    return node.op_type == "Mod" and node.domain == "" and not any(a.name == "fmod" and a.i for a in node.attribute)
