"""One form for all files: no functions, a recent opset, no half precision, names on every node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    helper,
    inliner,
    numpy_helper,
    version_converter,
)
from onnx.defs import SchemaError, get_schema

from deepshap_ir.errors import ModelError
from deepshap_ir.importing.calls import Wanted, mark_calls, note_marks
from deepshap_ir.importing.half import raise_half
from deepshap_ir.importing.newer import lower_opset
from deepshap_ir.importing.older import open_optionals, scans_of_opset_8
from deepshap_ir.importing.prune import prune
from deepshap_ir.importing.runner import newest_ir_version, one_line
from deepshap_ir.importing.skeleton import restored, skeleton
from deepshap_ir.importing.subgraphs import all_nodes, bodies, fresh, replaced, unique_subgraph_names
from deepshap_ir.onnx_io import attribute_value

OPSET = 18
"""The opset to which older models are raised."""

_LATER = "deepshap_ir.later"
"""Domain in which operators wait that ``onnx.version_converter`` gets wrong."""


def normalise(model: ModelProto, outputs: Sequence[str], calls: Wanted | None = None) -> ModelProto:
    """Return another model with the values `outputs` of `model`, in the form that the importer reads.

    In this order:

    1. Only what `outputs` need is kept (`deepshap_ir.importing.prune`).
    2. Local functions are inlined, with the defaults of their attributes.
    3. Sparse initializers become dense, and optionals of known content what is in them.
    4. The standard opset is raised to 18, or lowered to the newest that onnxruntime knows; between, it stays.
    5. float16 and bfloat16 become float32 everywhere.
    6. Every node has a unique name: its own, else one like ``"Relu_12"``. Values keep their names.

    Parameters
    ----------
    calls : which calls of functions are to be found again, by `deepshap_ir.importing.calls.keep_calls`.

    Raises
    ------
    ModelError : a function cannot be inlined or the opset cannot be raised.
    """
    result = prune(model, outputs)
    _standard_domain(result)
    result = _inline_functions(result, calls)
    _densify(result.graph)
    open_optionals(result)
    result = prune(result, outputs)
    result = lower_opset(result, opset(result))
    result = _raise_opset(result)
    raise_half(result)
    note_marks(result)
    _strip_types(result)
    unique_subgraph_names(result.graph)
    _name_nodes(result.graph)
    result.ir_version = min(newest_ir_version(), 10)
    return result


def opset(model: ModelProto, domain: str = "") -> int:
    """Return the version of `domain` that `model` imports, 0 if it does not."""
    return max((entry.version for entry in model.opset_import if entry.domain == domain), default=0)


def _standard_domain(model: ModelProto) -> None:
    for node in all_nodes(model.graph):
        if node.domain == "ai.onnx":
            node.domain = ""
    for function in model.functions:
        for outer in function.node:
            for node in (outer, *(inner for body in bodies(outer) for inner in all_nodes(body))):
                if node.domain == "ai.onnx":
                    node.domain = ""
    if not opset(model):
        model.opset_import.add(domain="", version=OPSET)


def _inline_functions(model: ModelProto, calls: Wanted | None) -> ModelProto:
    if not model.functions:
        return model
    _spell_out_defaults(model)
    if calls is not None:
        mark_calls(model, calls)
    small, large = skeleton(model)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for function in small.functions:
        for entry in function.opset_import:
            if _same_operators(function, entry, versions.get(entry.domain, entry.version)):
                entry.version = versions.get(entry.domain, entry.version)
    convert = any(
        versions.get(entry.domain, entry.version) != entry.version
        for function in small.functions
        for entry in function.opset_import
    )
    try:
        if convert:
            small = onnx.shape_inference.infer_shapes(small)
        small = inliner.inline_local_functions(small, convert)
    except RuntimeError as error:
        names = sorted({f"{function.domain}::{function.name}" for function in model.functions})
        raise ModelError(f"the local functions {', '.join(names)} cannot be inlined: {one_line(error)}") from None
    del small.functions[:]
    return restored(small, large)


def _same_operators(function: FunctionProto, entry: OperatorSetIdProto, version: int) -> bool:
    """Whether all that `function` takes from an operator set is the same in another version of it.

    Where it is, nothing is to be converted, for which ``onnx.inliner`` needs types that calls in functions do not have.
    """
    domain = entry.domain
    nodes = [node for outer in function.node for node in (outer, *(n for b in bodies(outer) for n in all_nodes(b)))]
    try:
        return all(
            get_schema(op, entry.version, domain).since_version == get_schema(op, version, domain).since_version
            for op in {node.op_type for node in nodes if node.domain == domain}
        )
    except SchemaError:
        return False


def _spell_out_defaults(model: ModelProto) -> None:
    """Write the default attributes of functions at every call: the inliner of onnx drops them."""
    defaults = {(f.domain, f.name, f.overload): list(f.attribute_proto) for f in model.functions}
    calls = list(all_nodes(model.graph))
    for function in model.functions:
        for node in function.node:
            calls.append(node)
            calls.extend(inner for body in bodies(node) for inner in all_nodes(body))
    for node in calls:
        present = {attribute.name for attribute in node.attribute}
        key = (node.domain, node.op_type, node.overload)
        node.attribute.extend(default for default in defaults.get(key, []) if default.name not in present)


def _densify(graph: GraphProto) -> None:
    for tensor in graph.sparse_initializer:
        shape = tuple(tensor.dims)
        values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
        dense = np.zeros(shape, values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        graph.initializer.append(numpy_helper.from_array(dense, tensor.values.name))
    del graph.sparse_initializer[:]


def _raise_opset(model: ModelProto) -> ModelProto:
    if opset(model) >= OPSET:
        return model
    if opset(model) == 8:
        scans_of_opset_8(model)
    before = {name: node.name for node in model.graph.node for name in node.output if name}
    _hide(model.graph, opset(model))
    small, large = skeleton(model)
    small.ir_version = max(small.ir_version, 8)
    if not any(entry.domain == _LATER for entry in small.opset_import):
        small.opset_import.add(domain=_LATER, version=1)
    try:
        small = version_converter.convert_version(small, OPSET)
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"the model cannot be raised from opset {opset(model)} to {OPSET}: {one_line(error)} "
            f"Export it at opset {OPSET} or later."
        ) from None
    result = restored(small, large)
    _unhide(result.graph)
    imports = [entry for entry in result.opset_import if entry.domain != _LATER]
    del result.opset_import[:]
    result.opset_import.extend(imports)
    made = {name for node in result.graph.node for name in node.output}
    lost = sorted(set(before) - made)
    if lost:
        raise ModelError(f"raising the opset lost the values {', '.join(map(repr, lost[:5]))}.")
    for node in result.graph.node:
        if not node.name:
            node.name = next((before[name] for name in node.output if before.get(name)), "")
    return result


def _hide(graph: GraphProto, version: int) -> None:
    """Move Upsample and Resize-10 out of the converter's sight: their ``linear`` becomes another function there."""
    for node in all_nodes(graph):
        if node.domain == "" and (node.op_type == "Upsample" or (node.op_type == "Resize" and version == 10)):
            node.domain = _LATER


def _unhide(graph: GraphProto) -> None:
    """Turn the hidden nodes into Resize-18."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in all_nodes(graph):
        if node.op_type == "Constant" and node.attribute[0].name in ("value", "value_floats"):
            known[node.output[0]] = np.asarray(attribute_value(node.attribute[0]))
    for body in [graph, *(inner for node in all_nodes(graph) for inner in bodies(node))]:
        if any(node.domain == _LATER for node in body.node):
            nodes = [made for node in body.node for made in (_resize(node, known) if node.domain == _LATER else [node])]
            body.CopyFrom(replaced(body, nodes))


def _resize(node: NodeProto, known: Mapping[str, NDArray[Any]]) -> list[NodeProto]:
    """Return Upsample or Resize-10 as Resize-18: asymmetric coordinates; nearest rounds down, or up where it shrinks.

    Axes that shrink and axes that grow need a node each then.
    """
    attributes = {attribute.name: attribute_value(attribute) for attribute in node.attribute}
    scales = np.asarray(attributes["scales"]) if "scales" in attributes else known.get(node.input[1])
    mode = "linear" if attributes.get("mode", "nearest") in ("linear", "bilinear") else "nearest"
    if scales is None:
        return [_resize_node(node, node.input[0], node.input[1], node.output[0], mode, "floor")]
    if mode == "linear" or not np.any(scales < 1):
        return _resize_by(node, node.input[0], scales, node.output[0], mode, "floor")
    smaller = f"{node.output[0]}__smaller"
    return [
        *_resize_by(node, node.input[0], np.minimum(scales, 1), smaller, mode, "ceil"),
        *_resize_by(node, smaller, np.maximum(scales, 1), node.output[0], mode, "floor"),
    ]


def _resize_by(
    node: NodeProto, data: str, scales: NDArray[Any], output: str, mode: str, rounding: str
) -> list[NodeProto]:
    name = f"{output}__scales"
    constant = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(scales.astype(np.float32)))
    return [constant, _resize_node(node, data, name, output, mode, rounding)]


def _resize_node(node: NodeProto, data: str, scales: str, output: str, mode: str, rounding: str) -> NodeProto:
    return helper.make_node(
        "Resize",
        [data, "", scales],
        [output],
        name=node.name if output == node.output[0] else "",
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode=rounding,
    )


def _strip_types(model: ModelProto) -> None:
    """Drop declared shapes: files declare wrong ones, and the trace knows the true ones."""
    for value in model.graph.input:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for value in model.graph.output:
        value.ClearField("type")
    for graph in _graphs(model.graph):
        del graph.value_info[:]


def _graphs(graph: GraphProto) -> list[GraphProto]:
    return [graph, *(body for node in all_nodes(graph) for body in bodies(node))]


def _name_nodes(graph: GraphProto) -> None:
    nodes = list(all_nodes(graph))
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    for position, node in enumerate(nodes):
        if not node.name:
            node.name = fresh(f"{node.op_type}_{position}", taken)
        elif node.name in seen:
            node.name = fresh(node.name, taken)
        seen.add(node.name)
