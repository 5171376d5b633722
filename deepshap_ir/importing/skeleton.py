"""A model without its large weights, for the passes of the onnx package that copy a model through text or bytes."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

_LARGE = 2**16


def skeleton(model: ModelProto) -> tuple[ModelProto, list[TensorProto]]:
    """Return a copy of `model` whose large initializers are typed inputs instead, and these initializers."""
    small = ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name != "graph":
            _copy_field(small, descriptor.name, value)
    large = []
    listed = {value.name for value in model.graph.input}
    for descriptor, value in model.graph.ListFields():
        if descriptor.name != "initializer":
            _copy_field(small.graph, descriptor.name, value)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _LARGE:
            small.graph.initializer.append(tensor)
            continue
        large.append(tensor)
        if tensor.name not in listed:
            small.graph.input.append(_declared(tensor))
    return small, large


def restored(small: ModelProto, large: list[TensorProto]) -> ModelProto:
    """Put the initializers that `skeleton` took away back in the place of the inputs, in `small` itself."""
    names = {tensor.name for tensor in large}
    inputs = [value for value in small.graph.input if value.name not in names]
    del small.graph.input[:]
    small.graph.input.extend(inputs)
    small.graph.initializer.extend(large)
    return small


def _declared(tensor: TensorProto) -> ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _copy_field(target: object, name: str, value: object) -> None:
    field = getattr(target, name)
    if hasattr(field, "extend"):
        field.extend(value)
    elif hasattr(field, "CopyFrom"):
        field.CopyFrom(value)
    else:
        setattr(target, name, value)
