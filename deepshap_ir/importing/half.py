"""float16 and bfloat16 models in float32."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, TypeProto, numpy_helper

from deepshap_ir.importing.subgraphs import bodies

HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})

_DTYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype", "softmax_precision", "stash_type"})


def has_half(model: ModelProto) -> bool:
    """Tell whether any input, tensor or dtype attribute of `model` is float16 or bfloat16."""
    return any(_visit(graph, change=False) for graph in (model.graph, *_function_graphs(model)))


def raise_half(model: ModelProto) -> bool:
    """Turn float16 and bfloat16 into float32 in `model` itself; tell whether there were any."""
    return _visit(model.graph, change=True)


def _function_graphs(model: ModelProto) -> list[GraphProto]:
    return [GraphProto(node=function.node) for function in model.functions]


def _visit(graph: GraphProto, change: bool) -> bool:
    found = False
    for tensor in graph.initializer:
        found |= _tensor(tensor, change)
    for sparse in graph.sparse_initializer:
        found |= _tensor(sparse.values, change)
    for value in (*graph.input, *graph.output, *graph.value_info):
        found |= _type(value.type, change)
    for node in graph.node:
        for attribute in node.attribute:
            found |= _attribute(attribute, change)
        for body in bodies(node):
            found |= _visit(body, change)
    return found


def _attribute(attribute: AttributeProto, change: bool) -> bool:
    found = False
    if attribute.HasField("t"):
        found |= _tensor(attribute.t, change)
    if attribute.HasField("sparse_tensor"):
        found |= _tensor(attribute.sparse_tensor.values, change)
    if attribute.HasField("tp"):
        found |= _type(attribute.tp, change)
    for tensor in attribute.tensors:
        found |= _tensor(tensor, change)
    if attribute.type == AttributeProto.INT and attribute.name in _DTYPE_ATTRIBUTES and attribute.i in HALF:
        found = True
        if change:
            attribute.i = TensorProto.FLOAT
    return found


def _tensor(tensor: TensorProto, change: bool) -> bool:
    if tensor.data_type not in HALF:
        return False
    if change:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return True


def _type(declared: TypeProto, change: bool) -> bool:
    kind = declared.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(declared, kind)
        found = tensor.elem_type in HALF
        if found and change:
            tensor.elem_type = TensorProto.FLOAT
        return found
    if kind in ("sequence_type", "optional_type"):
        return _type(getattr(declared, kind).elem_type, change)
    if kind == "map_type":
        return _type(declared.map_type.value_type, change)
    return False
