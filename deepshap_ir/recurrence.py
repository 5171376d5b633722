"""Loops of known length: the one operator that RNN, LSTM, GRU, Scan and Loop become.

The internal node `deepshap_ir::Scan` has the inputs ``states..., sequences..., captured...``, its body (a `Graph`) the
same with one element of each sequence, and the body's outputs are ``states..., elements...``; the node's outputs are
the last states and the stacked elements. Sequences lie along axis 0 and run forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from onnx import helper

from deepshap_ir.batching import Lowering, batching
from deepshap_ir.emitter import INTERNAL, Emitter, Step, Value, union
from deepshap_ir.errors import RuleError
from deepshap_ir.graph import Graph, Node

Body = Callable[[list[Value], list[Value]], tuple[Sequence[Value], Sequence[Value]]]
"""States and one element of each sequence -> new states and elements to stack."""


def scan(
    op: Emitter, body: Body, states: Sequence[Value], sequences: Sequence[Value], length: int | None = None
) -> tuple[list[Value], list[Value]]:
    """Emit a loop over sequences; the last states and the stacked elements.

    `body` may use values from outside. It is called several times: until the axes of the states, which begin as those
    of the initial ones, hold those that the body gives them.

    Parameters
    ----------
    states : initial states, for one example.
    sequences : ``[T, *shape]`` for one example.

    Raises
    ------
    RuleError : the body changes the shape or dtype of a state, or the sequences differ in length.
    """
    lengths = {v.shape[0] for v in sequences}
    if len(lengths) != 1:
        raise RuleError(f"the sequences of a loop have lengths {sorted(lengths)}; one length is needed")
    axes = [v.axes for v in states]
    while True:
        before = [op.placeholder(v.shape, v.dtype, a) for v, a in zip(states, axes, strict=True)]
        elements = [op.placeholder(v.shape[1:], v.dtype, v.axes) for v in sequences]
        with op.nested() as steps:
            new, out = body(before, elements)
        for old, value in zip(before, new, strict=True):
            if (old.shape, old.dtype) != (value.shape, value.dtype):
                raise RuleError(f"the body of a loop makes a state {value!r} of {old!r}")
        wider = [union(a, b) for a, b in zip(before, new, strict=True)]
        if wider == axes:
            break
        axes = wider
    needed, captured = _captured(steps, [*before, *elements], [*new, *out])
    stacked = [((lengths.copy().pop(), *v.shape), v.dtype, v.axes) for v in out]
    results = tuple(op.placeholder(*t) for t in [*((v.shape, v.dtype, v.axes) for v in before), *stacked])
    parts = {"steps": needed, "before": before, "elements": elements, "new": list(new), "out": list(out)}
    op.record(Step("Scan", INTERNAL, (*states, *sequences, *captured), results, parts))
    return list(results[: len(states)]), list(results[len(states) :])


def _captured(
    steps: Sequence[Step], inside: Sequence[Value], results: Sequence[Value]
) -> tuple[list[Step], list[Value]]:
    """The steps that the results need, and the values from outside that these read."""
    wanted = {v.name for v in results}
    needed = []
    for step in reversed(steps):
        if any(v.name in wanted for v in step.outputs):
            needed.append(step)
            wanted.update(v.name for v in step.inputs if v is not None)
    known = {v.name for v in inside} | {v.name for step in needed for v in step.outputs}
    read = [v for step in needed for v in step.inputs if v is not None] + list(results)
    outside = {v.name: v for v in read if v.name not in known and v.data is None}
    return needed[::-1], list(outside.values())


@batching("deepshap_ir::Scan")
def lower_scan(low: Lowering, step: Step) -> None:
    """An ONNX Scan whose states have all their axes from the start, over sequences with time in front."""
    parts = step.attributes
    before, elements, new, out = (parts[key] for key in ("before", "elements", "new", "out"))
    states = step.inputs[: len(before)]
    sequences = step.inputs[len(before) : len(before) + len(elements)]
    first = step.outputs[0].name if step.outputs else "scan"
    names = [low.expand(v, b.axes) for v, b in zip(states, before, strict=True) if v is not None]
    for v in sequences:
        assert v is not None
        n = len(v.axes)
        moved = [n, *range(n), *range(n + 1, n + v.rank)]
        names.append(low.node("Transpose", [low.name(v)], perm=moved) if n else low.name(v))
    inner = Lowering(prefix=f"{first}_")
    for nested in parts["steps"]:
        inner.step(nested)
    results = []
    for k, (value, axes) in enumerate([*zip(new, [b.axes for b in before], strict=True), *((v, v.axes) for v in out)]):
        results.append(inner.node("Identity", [inner.expand(value, axes)], f"{first}_result{k}"))
    low.initializers.update(inner.initializers)
    low.dimensions.update(inner.dimensions)
    body = helper.make_graph(
        inner.nodes,
        f"{first}_body",
        [_typed(v.name, v) for v in (*before, *elements)],
        [_typed(name, v) for name, v in zip(results, (*new, *out), strict=True)],
    )
    made = [v.name for v in step.outputs[: len(before)]]
    made += [v.name if not v.axes else f"{v.name}_by_time" for v in step.outputs[len(before) :]]
    low.nodes.append(helper.make_node("Scan", names, made, body=body, num_scan_inputs=len(elements)))
    for name, v in zip(made[len(before) :], step.outputs[len(before) :], strict=True):
        if v.axes:
            n = len(v.axes)
            low.node("Transpose", [name], v.name, perm=[*range(1, n + 1), 0, *range(n + 1, n + v.rank)])


def _typed(name: str, value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)


def emit_node(op: Emitter, node: Node, inputs: Sequence[Value | None]) -> tuple[list[Value], list[Value]]:
    """Emit a `deepshap_ir::Scan` node; its outputs, and its states before each element, ``[T, *shape]``."""
    key = ("loop", id(node.attributes["body"]), tuple(id(v) for v in inputs))
    if key not in op.memory:
        body, n, q = loop_parts(node)
        present = [v for v in inputs if v is not None]

        def one(states: list[Value], elements: list[Value]) -> tuple[list[Value], list[Value]]:
            found = op.graph(body, [*states, *elements, *present[n + q :]])
            return found[:n], [*found[n:], *states]

        last, stacked = scan(op, one, present[:n], present[n : n + q])
        outputs = len(stacked) - n
        op.memory[key] = ([*last, *stacked[:outputs]], stacked[outputs:])
    outputs_and_states: tuple[list[Value], list[Value]] = op.memory[key]
    return outputs_and_states


def loop_parts(node: Node) -> tuple[Graph, int, int]:
    """Body, number of states and number of sequences of a `deepshap_ir::Scan` node."""
    return node.attributes["body"], node.attributes["n_states"], node.attributes["n_sequences"]


def step_as_body(step: Step, opsets: dict[str, int]) -> Graph:
    """The body of an emitted loop as a graph: its inputs are states, elements and what it reads from outside.

    Every output is the output of a node of its own, so that no two are one value.
    """
    parts = step.attributes
    before, elements = parts["before"], parts["elements"]
    captured = [v for v in step.inputs[len(before) + len(elements) :] if v is not None]
    results = [*parts["new"], *parts["out"]]
    nodes = []
    values = {v.name: v for v in (*before, *elements, *captured)}
    for k, inner in enumerate(parts["steps"]):
        values |= {v.name: v for v in (*inner.inputs, *inner.outputs) if v is not None}
        inputs = tuple("" if v is None else v.name for v in inner.inputs)
        outputs = tuple(v.name for v in inner.outputs)
        version = opsets.get(inner.domain, 1)
        attributes = inner.attributes
        if inner.domain == INTERNAL and inner.op_type == "Scan":
            attributes = node_attributes(inner, opsets)
        nodes.append(Node(f"{inner.op_type}_{k}", inner.op_type, inputs, outputs, attributes, inner.domain, version))
    names = [f"result_{k}" for k in range(len(results))]
    for name, value in zip(names, results, strict=True):
        values |= {value.name: value, name: value}
        nodes.append(Node(name, "Identity", (value.name,), (name,), {}, "", opsets[""]))
    inputs = tuple(v.name for v in (*before, *elements, *captured))
    return Graph(
        inputs=inputs,
        outputs=tuple(names),
        nodes=tuple(nodes),
        constants={n: v.data for n, v in values.items() if v.data is not None and n not in names},
        shapes={n: v.shape for n, v in values.items()},
        dtypes={n: v.dtype for n, v in values.items()},
        batch_axes=dict.fromkeys(inputs),
        opsets=opsets,
    )


def node_attributes(step: Step, opsets: dict[str, int]) -> dict[str, object]:
    """The attributes of the `deepshap_ir::Scan` node that an emitted loop is."""
    parts = step.attributes
    body = step_as_body(step, opsets)
    return {"body": body, "n_states": len(parts["before"]), "n_sequences": len(parts["elements"])}
