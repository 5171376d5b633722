"""Calls of a model's functions for which there is a rule: inlined as all are, then one node again.

Marks survive inlining and all that is done to the file: operators of a domain of their own before and after each call,
which become Identities with a note. So a call in a loop, in a branch or in another function is found, however often
that was copied, and its body is what became of it, for one example, with constants folded.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from deepshap_ir.errors import InputError
from deepshap_ir.graph import Array, Graph, Node
from deepshap_ir.importing.subgraphs import all_names, all_nodes, bodies, captured, fresh
from deepshap_ir.onnx_io import attribute_value

DOMAIN = "deepshap_ir.calls"
"""Of the operators Enter and Exit, which exist only while the file is brought into one form."""

_NOTE = "deepshap_ir call "

Wanted = Callable[[Node], bool]
"""Whether the call of a function is to be kept: there is a rule for it, or an expansion."""


def mark_calls(model: ModelProto, wanted: Wanted) -> None:
    """Put marks around the calls that are wanted, in the graph, its subgraphs and the functions."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    versions = {entry.domain: entry.version for entry in model.opset_import}
    scopes = [model.graph, *model.functions]
    scopes += [body for scope in scopes for node in scope.node for body in _below(node)]
    taken = all_names(model.graph)
    for function in model.functions:
        taken |= {n for node in function.node for n in (*node.input, *node.output)} | {*function.input}
    count = 0
    for scope in scopes[::-1]:  # what is inside first, as nodes are copied
        nodes: list[NodeProto] = []
        for node in scope.node:
            called = (node.domain, node.op_type, node.overload) in functions
            if called and wanted(Node(node.name, node.op_type, (), (), {}, node.domain, versions.get(node.domain, 1))):
                nodes += _marked(node, count, taken)
                count += 1
            else:
                nodes.append(NodeProto.FromString(node.SerializeToString()))
        del scope.node[:]
        scope.node.extend(nodes)
    if count:
        for holder in (model, *model.functions):
            holder.opset_import.add(domain=DOMAIN, version=1)


def _below(node: NodeProto) -> Iterator[GraphProto]:
    for body in bodies(node):
        yield body
        for inner in body.node:
            yield from _below(inner)


def _marked(node: NodeProto, number: int, taken: set[str]) -> list[NodeProto]:
    call = NodeProto.FromString(node.SerializeToString())
    before, after = [], []
    for i, name in enumerate(node.input):
        if name:
            call.input[i] = fresh(f"{node.name or node.op_type}/input_{i}", taken)
            before.append(helper.make_node("Enter", [name], [call.input[i]], domain=DOMAIN, call=number, position=i))
    for j, name in enumerate(node.output):
        if name:
            call.output[j] = fresh(f"{node.name or node.op_type}/output_{j}", taken)
            mark = helper.make_node("Exit", [call.output[j]], [name], domain=DOMAIN, call=number, position=j)
            named = {"name": node.name, "op_type": node.op_type, "domain": node.domain}
            counts = {"inputs": len(node.input), "outputs": len(node.output)}
            mark.attribute.extend(helper.make_attribute(key, value) for key, value in {**named, **counts}.items())
            for attribute in node.attribute:  # as they are: inlining resolves those that refer to the caller's
                copy = mark.attribute.add()
                copy.CopyFrom(attribute)
                copy.name = f"of {attribute.name}"
            after.append(mark)
    return [*before, call, *after]


def note_marks(model: ModelProto) -> None:
    """Turn the marks into Identities that the engines run, with what they say as a note."""
    for node in all_nodes(model.graph):
        if node.domain == DOMAIN:
            note = base64.b64encode(node.SerializeToString()).decode()
            name = _text(node, "name") or _text(node, "op_type") if node.op_type == "Exit" else ""
            node.CopyFrom(helper.make_node("Identity", node.input, node.output, name, doc_string=_NOTE + note))
    imports = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(imports)


@dataclass
class _Call:
    """A call: the marks after it, the values that its marks before it make, and its nodes' outputs."""

    number: int
    exits: dict[int, tuple[NodeProto, NodeProto]] = field(default_factory=dict)
    entries: dict[int, str] = field(default_factory=dict)
    inside: set[str] = field(default_factory=set)
    fed: set[str] = field(default_factory=set)


def keep_calls(graph: Graph, proto: GraphProto, values: dict[str, Array], change: Callable[[Graph], Graph]) -> Graph:
    """`graph` with each marked call as one node, whose attribute ``body`` is what the function became.

    Parameters
    ----------
    proto : what `graph` was made of, with the marks.
    values : all values in one run.
    change : what is done to each body.

    Raises
    ------
    InputError : a value inside of a call is fed or asked for.
    """
    for call in sorted(_calls(proto), key=lambda call: len(call.inside)):  # those in another one's function first
        graph = _kept(graph, call, values, change)
    return graph


def _mark(node: NodeProto) -> NodeProto | None:
    if not node.doc_string.startswith(_NOTE):
        return None
    mark = NodeProto()
    mark.ParseFromString(base64.b64decode(node.doc_string.removeprefix(_NOTE)))
    return mark


def _number(mark: NodeProto, name: str) -> int:
    return int(next(a.i for a in mark.attribute if a.name == name))


def _text(mark: NodeProto, name: str) -> str:
    return str(next(a.s.decode() for a in mark.attribute if a.name == name))


def _calls(proto: GraphProto) -> list[_Call]:
    marks = {node.output[0]: mark for node in proto.node if (mark := _mark(node)) is not None}
    producer = {name: node for node in proto.node for name in node.output if name}
    found: list[_Call] = []
    for name, mark in marks.items():
        if mark.op_type != "Exit":
            continue
        call = _Call(_number(mark, "call"))
        call.exits[_number(mark, "position")] = (mark, producer[name])
        waiting = [name]
        while waiting:
            value = waiting.pop()
            entry = marks.get(value)
            if entry is not None and entry.op_type == "Enter" and _number(entry, "call") == call.number:
                call.entries[_number(entry, "position")] = value
            elif value in producer and value not in call.inside:
                call.inside.update(filter(None, producer[value].output))
                waiting += [n for n in (*producer[value].input, *captured(producer[value])) if n]
            elif value not in producer:
                call.fed.add(value)
        same = [c for c in found if c.number == call.number and {*c.entries.values()} & {*call.entries.values()}]
        for other in same:
            for attribute in ("exits", "entries", "inside", "fed"):
                getattr(other, attribute).update(getattr(call, attribute))
        if not same:
            found.append(call)
    return found


def _kept(graph: Graph, call: _Call, values: dict[str, Array], change: Callable[[Graph], Graph]) -> Graph:
    mark, exit_ = call.exits[min(call.exits)]
    plain = {a.name: attribute_value(a) for a in mark.attribute}
    entries = set(call.entries.values())
    nodes = [node for node in graph.nodes if call.inside.intersection(node.outputs)]
    made = {j: node.output[0] for j, (_, node) in call.exits.items()}
    made = {j: name for j, name in made.items() if any(name in node.outputs for node in nodes)}
    if not made:
        return graph
    name, operator = exit_.name, f"{plain['domain']}::{plain['op_type']}"
    sources = {node.outputs[0]: node.inputs[0] for node in graph.nodes if entries.intersection(node.outputs)}
    inner = {n for node in nodes for n in node.outputs if n} - {*made.values()}
    read = {n for node in graph.nodes if node not in nodes for n in node.reads} | {*graph.outputs}
    for value in sorted((inner & read) | (call.fed & {*graph.inputs})):
        raise InputError(f"{value!r} is a value inside of {operator} node {name!r}, which is kept whole for its rule.")
    constants = dict(graph.constants)
    shapes, dtypes = dict(graph.shapes), dict(graph.dtypes)
    inputs, body_inputs = [], []
    for i in range(plain["inputs"]):
        entry = call.entries.get(i)
        body_inputs.append(entry or f"{name}/absent_{i}")
        if entry is None or entry in sources:
            inputs.append("" if entry is None else sources[entry])
            continue
        constants[entry] = np.asarray(values[entry])
        shapes[entry], dtypes[entry] = constants[entry].shape, constants[entry].dtype
        inputs.append(entry)
    anything = next(iter(made.values()))
    reads = {n for node in nodes for n in node.reads}
    known = {*reads, *(n for node in nodes for n in node.outputs if n), *entries}
    body = Graph(
        tuple(body_inputs),
        tuple(made.get(j, anything) for j in range(plain["outputs"])),
        tuple(nodes),
        {n: a for n, a in constants.items() if n in reads and n not in body_inputs},
        {n: shapes[n] for n in known if n in shapes},
        {n: dtypes[n] for n in known if n in dtypes},
        {},
        graph.opsets,
    )
    attributes = {key.removeprefix("of "): value for key, value in plain.items() if key.startswith("of ")}
    version = graph.opsets.get(plain["domain"], 1)
    outputs = tuple(made.get(j, "") for j in range(plain["outputs"]))
    attributes["body"] = change(body)
    node = Node(name, plain["op_type"], tuple(inputs), outputs, attributes, plain["domain"], version)
    kept: list[Node] = []
    for other in graph.nodes:
        if other is nodes[-1]:
            kept.append(node)
        elif other not in nodes and not entries.intersection(other.outputs):
            kept.append(other)
    return replace(graph, nodes=tuple(kept), constants=constants, shapes=shapes, dtypes=dtypes)
