"""Names in the subgraphs of If, Loop, Scan and SequenceMap: what they capture, and renaming by scope."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnx import AttributeProto, GraphProto, NodeProto


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the subgraphs among the attributes of `node`."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def body_of(node: NodeProto) -> GraphProto:
    """Return the body of a Loop, Scan or SequenceMap, itself and no copy."""
    body: GraphProto = next(attribute.g for attribute in node.attribute if attribute.name == "body")
    return body


def defined(graph: GraphProto) -> set[str]:
    """Return the names that `graph` itself defines: inputs, initializers and outputs of nodes."""
    names = {value.name for value in graph.input}
    names.update(tensor.name for tensor in graph.initializer)
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    names.update(name for node in graph.node for name in node.output)
    return names


def graph_captures(graph: GraphProto) -> tuple[str, ...]:
    """Return the names that `graph` reads from outside, in order of first use."""
    own = defined(graph)
    found: dict[str, None] = {}
    for node in graph.node:
        for name in (*node.input, *captured(node)):
            if name and name not in own:
                found[name] = None
    for value in graph.output:
        if value.name not in own:
            found[value.name] = None
    return tuple(found)


def captured(node: NodeProto) -> tuple[str, ...]:
    """Return the names that the subgraphs of `node` read from outside, in order of first use."""
    return tuple(dict.fromkeys(name for body in bodies(node) for name in graph_captures(body)))


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of `graph` and of all graphs below it."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from all_nodes(body)


def all_names(graph: GraphProto) -> set[str]:
    """Return every value name in `graph` and in all graphs below it."""
    names = defined(graph) | {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for body in bodies(node):
            names.update(all_names(body))
    return names


def rename_captures(graph: GraphProto, mapping: Mapping[str, str]) -> None:
    """Rename, in place, values that `graph` reads from outside; a name that it defines itself hides the outer one."""
    own = defined(graph)
    visible = {old: new for old, new in mapping.items() if old not in own}
    if visible:
        _rename_reads(graph, visible)


def _rename_reads(graph: GraphProto, mapping: Mapping[str, str]) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = mapping.get(name, name)
        for body in bodies(node):
            rename_captures(body, mapping)
    for value in graph.output:
        value.name = mapping.get(value.name, value.name)


def rename(graph: GraphProto, mapping: Mapping[str, str]) -> None:
    """Rename, in place, values that `graph` defines or captures, and their uses in the graphs below."""
    for node in graph.node:
        for position, name in enumerate(node.output):
            node.output[position] = mapping.get(name, name)
    for value in (*graph.input, *graph.initializer):
        value.name = mapping.get(value.name, value.name)
    for tensor in graph.sparse_initializer:
        tensor.values.name = mapping.get(tensor.values.name, tensor.values.name)
    _rename_reads(graph, mapping)


def unique_subgraph_names(graph: GraphProto) -> None:
    """Rename, in place, values of subgraphs that hide another or share its name.

    Converters leave such names behind; onnxruntime refuses those that hide an outer value.
    """
    taken = all_names(graph)
    seen = defined(graph)
    for node in all_nodes(graph):
        for body in bodies(node):
            own = defined(body) - {""}
            mapping = {name: fresh(name, taken) for name in sorted(own & seen)}
            rename(body, mapping)
            seen |= defined(body)


def renamed(graph: GraphProto, captures: Mapping[str, str]) -> GraphProto:
    """Return a copy of the subgraph `graph` that reads other values from outside."""
    copy = GraphProto()
    copy.CopyFrom(graph)
    rename_captures(copy, captures)
    return copy


def replaced(graph: GraphProto, nodes: Iterable[NodeProto]) -> GraphProto:
    """Return a copy of `graph` with other nodes."""
    copy = GraphProto()
    copy.CopyFrom(graph)
    del copy.node[:]
    copy.node.extend(nodes)
    return copy


def fresh(name: str, taken: set[str]) -> str:
    """Return `name`, or `name` with the first free number, and note it in `taken`."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
