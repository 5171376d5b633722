"""Cutting a model down to what some values need, between given inputs and wanted outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto, ValueInfoProto

from deepshap_ir.importing.subgraphs import captured


def prune(model: ModelProto, outputs: Sequence[str], inputs: Mapping[str, ValueInfoProto] | None = None) -> ModelProto:
    """Return a new model with the nodes, initializers and inputs that `outputs` need.

    Initializers are taken out of the inputs. ``value_info`` and the types of the outputs are dropped, because files
    declare wrong ones and nothing needs them.

    Parameters
    ----------
    outputs : names of values anywhere in the main graph.
    inputs : values that are given: nothing above them stays. By default the inputs of the model.
    """
    graph = model.graph
    given = dict(inputs or {})
    needed = set(outputs) - set(given)
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output if name):
            kept.append(node)
            needed.update(name for name in (*node.input, *captured(node)) if name and name not in given)
    result = ModelProto()
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if model.HasField(field):
            setattr(result, field, getattr(model, field))
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    result.graph.name = graph.name or "graph"
    result.graph.node.extend(reversed(kept))
    result.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
    result.graph.sparse_initializer.extend(
        tensor for tensor in graph.sparse_initializer if tensor.values.name in needed
    )
    constants = {tensor.name for tensor in graph.initializer}
    constants.update(tensor.values.name for tensor in graph.sparse_initializer)
    result.graph.input.extend(given.values())
    result.graph.input.extend(
        value
        for value in graph.input
        if value.name in needed and value.name not in constants and value.name not in given
    )
    result.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
    _rename_recomputed(result, set(given))
    return result


def _rename_recomputed(model: ModelProto, given: set[str]) -> None:
    """Give another name to what a node of several outputs still makes of a given value."""
    for node in model.graph.node:
        for position, name in enumerate(node.output):
            if name in given:
                node.output[position] = f"{name}__recomputed"
