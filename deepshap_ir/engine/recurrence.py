"""Loops of known length: the one operator that RNN, LSTM, GRU, Scan and Loop become.

The internal node `deepshap_ir::Scan` has the inputs ``states..., sequences..., captured...``, its body (a `Graph`) the
same with one element of each sequence, and the body's outputs are ``states..., elements...``; the node's outputs are
the last states and the stacked elements. Sequences lie along axis 0; they are read and written from the first element
to the last or, with ``reverse``, from the last to the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import helper

from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.lowering import Lowering, batching
from deepshap_ir.engine.value import INTERNAL, Step, Value, union
from deepshap_ir.errors import RuleError
from deepshap_ir.graph import Graph, Node
from deepshap_ir.onnx_io import scan_node

KEPT_BYTES = 1 << 24
"""Most bytes per row that the values in a loop may take to be kept for its backward pass."""

Body = Callable[[list[Value], list[Value]], tuple[Sequence[Value], Sequence[Value]]]
"""States and one element of each sequence -> new states and elements to stack."""


def is_loop(node: Node | Step) -> bool:
    """Whether a node or step is a `deepshap_ir::Scan`."""
    return node.domain == INTERNAL and node.op_type == "Scan"


def loop_length(step: Step) -> int:
    """How many elements an emitted loop runs over."""
    sequence = step.inputs[len(step.attributes["before"])]
    assert sequence is not None
    return sequence.shape[0]


def scan(
    op: Emitter, body: Body, states: Sequence[Value], sequences: Sequence[Value], reverse: bool = False
) -> tuple[list[Value], list[Value]]:
    """Emit a loop over sequences; the last states and the stacked elements.

    `body` may use values from outside; what it computes from these alone is computed once, before the loop. A loop over
    one element is its body. `body` is called several times: until the axes of the states, which begin as those of the
    initial ones, hold those that the body gives them.

    Parameters
    ----------
    states : initial states, for one example.
    sequences : ``[T, *shape]`` for one example.
    reverse : from the last element to the first.

    Raises
    ------
    RuleError : the body changes the shape or dtype of a state, or the sequences differ in length.
    """
    lengths = {v.shape[0] for v in sequences}
    if len(lengths) != 1:
        raise RuleError(f"the sequences of a loop have lengths {sorted(lengths)}; one length is needed")
    if lengths == {1}:
        last, out = body(list(states), [op.Squeeze(v, [0]) for v in sequences])
        return list(last), [op.Unsqueeze(v, [0]) for v in out]
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
    inside, outside = _split(_needed(steps, [*before, *elements], [*new, *out])[0], [*before, *elements])
    for step in outside:
        op.record(step)
    read = {v.name for step in inside for v in step.inputs if v is not None} | {v.name for v in (*new, *out)}
    pairs = [(v, e) for v, e in zip(sequences, elements, strict=True) if e.name in read]
    sequences, elements = ([pair[k] for pair in pairs or [(sequences[0], elements[0])]] for k in (0, 1))
    needed, captured = _needed(inside, [*before, *elements], [*new, *out])
    stacked = [((*lengths, *v.shape), v.dtype, v.axes) for v in out]
    results = tuple(op.placeholder(*t) for t in [*((v.shape, v.dtype, v.axes) for v in before), *stacked])
    parts = {"steps": needed, "before": before, "elements": elements, "new": list(new), "out": list(out)}
    op.record(Step("Scan", INTERNAL, (*states, *sequences, *captured), results, parts | {"reverse": reverse}))
    return list(results[: len(states)]), list(results[len(states) :])


def _needed(steps: Sequence[Step], inside: Sequence[Value], results: Sequence[Value]) -> tuple[list[Step], list[Value]]:
    """The steps that the results need, and the values from outside that these read."""
    wanted = {v.name for v in results}
    needed = []
    for step in reversed(steps):
        if any(v.name in wanted for v in step.outputs):
            step = trimmed(step, wanted)
            needed.append(step)
            wanted.update(v.name for v in step.inputs if v is not None)
    known = {v.name for v in inside} | {v.name for step in needed for v in step.outputs}
    read = [v for step in needed for v in step.inputs if v is not None] + list(results)
    outside = {v.name: v for v in read if v.name not in known and v.data is None}
    return needed[::-1], list(outside.values())


def _split(steps: Sequence[Step], inside: Sequence[Value]) -> tuple[list[Step], list[Step]]:
    """The steps that depend on values `inside` the loop, and the others."""
    moving = {v.name for v in inside}
    parts: tuple[list[Step], list[Step]] = ([], [])
    for step in steps:
        fixed = not any(v is not None and v.name in moving for v in step.inputs)
        parts[fixed].append(step)
        if not fixed:
            moving.update(v.name for v in step.outputs)
    return parts


def trimmed(step: Step, wanted: Collection[str]) -> Step:
    """A step without the stacked outputs that nothing wants, where it is a loop."""
    if not is_loop(step):
        return step
    parts = dict(step.attributes)
    before, elements = parts["before"], parts["elements"]
    n, fed = len(before), len(before) + len(elements)
    kept = [k for k, v in enumerate(step.outputs[n:]) if v.name in wanted]
    if len(kept) == len(parts["out"]):
        return step
    parts["out"] = [parts["out"][k] for k in kept]
    parts["steps"], captured = _needed(parts["steps"], [*before, *elements], [*parts["new"], *parts["out"]])
    outputs = (*step.outputs[:n], *(step.outputs[n + k] for k in kept))
    return replace(step, inputs=(*step.inputs[:fed], *captured), outputs=outputs, attributes=parts)


@batching("deepshap_ir::Scan")
def lower_scan(low: Lowering, step: Step) -> None:
    """An ONNX Scan whose states have all their axes from the start, over sequences with time in front."""
    parts = step.attributes
    before, elements, new, out = (parts[key] for key in ("before", "elements", "new", "out"))
    states = [v for v in step.inputs[: len(before)] if v is not None]
    sequences = [v for v in step.inputs[len(before) : len(before) + len(elements)] if v is not None]
    first = step.outputs[0].name
    names = [low.expand(v, b.axes) for v, b in zip(states, before, strict=True)]
    names += [_sequence(low, v) for v in sequences]
    inner = Lowering(prefix=f"{first}_")
    for nested in parts["steps"]:
        inner.step(nested)
    results = []
    for k, (value, axes) in enumerate([*zip(new, [b.axes for b in before], strict=True), *((v, v.axes) for v in out)]):
        results.append(inner.node("Identity", [inner.expand(value, axes)], f"{first}_result{k}"))
    low.initializers.update(inner.initializers)
    low.dimensions.update(inner.dimensions)
    body = helper.make_graph(
        inner.alive(results),
        f"{first}_body",
        [_typed(v.name, v) for v in (*before, *elements)],
        [_typed(name, v) for name, v in zip(results, (*new, *out), strict=True)],
    )
    stacked = step.outputs[len(before) :]
    made = [v.name for v in step.outputs[: len(before)]]
    made += [f"{v.name}_by_time" if v.axes else v.name for v in stacked]
    low.nodes.append(scan_node(names, made, body, len(elements), parts["reverse"]))
    for name, v in zip(made[len(before) :], stacked, strict=True):
        if v.axes:
            n = len(v.axes)
            low.node("Transpose", [name], v.name, perm=[*range(1, n + 1), 0, *range(n + 1, n + v.rank)])
            low.know("Transpose", [v.name], name, perm=_time_first(v))


def _sequence(low: Lowering, v: Value) -> str:
    """The tensor ``[T, *axes, *shape]`` of a sequence."""
    return low.node("Transpose", [low.name(v)], perm=_time_first(v)) if v.axes else low.name(v)


def _time_first(v: Value) -> list[int]:
    n = len(v.axes)
    return [n, *range(n), *range(n + 1, n + v.rank)]


def _typed(name: str, value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)


@dataclass(frozen=True)
class LoopRun:
    """What running a loop node gives.

    Attributes
    ----------
    outputs : of the node.
    before : its states before each element, ``[T, *shape]``.
    inside : the values that its body computes at each element, ``[T, *shape]``, by name; empty where they are more
        than `KEPT_BYTES`, as they are computed again then.
    """

    outputs: list[Value]
    before: list[Value]
    inside: dict[str, Value]

    def replay(self, op: Emitter, body: Graph, inputs: Sequence[Value], at: Callable[[Value], Value]) -> None:
        """Let the nodes of `body` on `inputs` be what they were at one element; `at` gives a sequence's element."""
        known = dict(zip(body.inputs, inputs, strict=True))
        known |= {name: op.constant(data) for name, data in body.constants.items()}
        for node in body.nodes:
            operands = [known.get(name) for name in node.inputs]
            if all(name in self.inside for name in node.outputs):
                results = op.remember(node, operands, [at(self.inside[name]) for name in node.outputs])
            else:
                results = op.node(node, operands, body)
            known |= {n: v for n, v in zip(node.outputs, results, strict=True) if v is not None}


def emit_node(op: Emitter, node: Node, inputs: Sequence[Value | None]) -> LoopRun:
    """Emit a `deepshap_ir::Scan` node."""
    key = ("loop", id(node.attributes["body"]), tuple(map(id, inputs)))
    if key not in op.memory:
        body, n, q = loop_parts(node)
        present = [v for v in inputs if v is not None]
        length = present[n].shape[0]
        moving = body.downstream(body.inputs[: n + q])
        kept = [name for step in body.nodes for name in step.outputs if name in moving]
        if length * sum(math.prod(body.shapes[k]) * body.dtypes[k].itemsize for k in kept) > KEPT_BYTES:
            kept = []

        def one(states: list[Value], elements: list[Value]) -> tuple[list[Value], list[Value]]:
            known = op.values(body, [*states, *elements, *present[n + q :]])
            found = [known[name] for name in body.outputs]
            return found[:n], [*found[n:], *states, *(known[name] for name in kept)]

        last, stacked = scan(op, one, present[:n], present[n : n + q], node.attributes["reverse"])
        outputs = len(body.outputs) - n
        before, inside = stacked[outputs : outputs + n], stacked[outputs + n :]
        op.memory[key] = LoopRun([*last, *stacked[:outputs]], before, dict(zip(kept, inside, strict=True)))
    run: LoopRun = op.memory[key]
    return run


def loop_parts(node: Node) -> tuple[Graph, int, int]:
    """Body, number of states and number of sequences of a `deepshap_ir::Scan` node."""
    return node.attributes["body"], node.attributes["n_states"], node.attributes["n_sequences"]


def affected(node: Node, varying: Iterable[int]) -> set[int]:
    """The inputs of the body of a loop node that vary inside where the node's inputs at `varying` do, sorted out.

    A state varies from the first element on, or from the one at which it takes up something that varies.
    """
    body, n, _ = loop_parts(node)
    moving = set(varying)
    while True:
        reached = body.downstream(body.inputs[i] for i in moving)
        more = {k for k in range(n) if body.outputs[k] in reached} - moving
        if not more:
            return moving
        moving |= more


def affected_outputs(node: Node, varying: Iterable[int]) -> set[int]:
    """The outputs of a loop node that vary where its inputs at `varying` do."""
    body, n, _ = loop_parts(node)
    inside = affected(node, varying)
    reached = body.downstream(body.inputs[i] for i in inside)
    return {k for k, name in enumerate(body.outputs) if (k in inside if k < n else name in reached)}


def in_bodies(graph: Graph, change: Callable[[Graph], Graph]) -> Graph:
    """`graph` with the body of every loop changed."""
    nodes = tuple(
        replace(node, attributes={**node.attributes, "body": change(node.attributes["body"])})
        if is_loop(node)
        else node
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes)


def step_as_body(step: Step, opsets: dict[str, int], name: str) -> Graph:
    """The body of an emitted loop as a graph: its inputs are states, elements and what it reads from outside.

    Every output is the output of a node of its own, so that no two are one value. The names of its nodes begin with
    `name`, that of the loop.
    """
    parts = step.attributes
    before, elements = parts["before"], parts["elements"]
    captured = [v for v in step.inputs[len(before) + len(elements) :] if v is not None]
    results = [*parts["new"], *parts["out"]]
    nodes = []
    values = {v.name: v for v in (*before, *elements, *captured)}
    for k, inner in enumerate(parts["steps"]):
        values |= {v.name: v for v in (*inner.inputs, *inner.outputs) if v is not None and v.name}
        inputs = tuple("" if v is None else v.name for v in inner.inputs)
        outputs = tuple(v.name for v in inner.outputs)
        version = opsets.get(inner.domain, 1)
        own_name = f"{name}/{inner.op_type}_{k}"
        attributes = node_attributes(inner, opsets, own_name) if is_loop(inner) else inner.attributes
        nodes.append(Node(own_name, inner.op_type, inputs, outputs, attributes, inner.domain, version))
    names = [f"result_{k}" for k in range(len(results))]
    for result, value in zip(names, results, strict=True):
        values |= {value.name: value, result: value}
        nodes.append(Node(f"{name}/{result}", "Identity", (value.name,), (result,), {}, "", opsets[""]))
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


def node_attributes(step: Step, opsets: dict[str, int], name: str) -> dict[str, object]:
    """The attributes of the `deepshap_ir::Scan` node `name` that an emitted loop is."""
    parts = step.attributes
    return {
        "body": step_as_body(step, opsets, name),
        "n_states": len(parts["before"]),
        "n_sequences": len(parts["elements"]),
        "reverse": parts["reverse"],
    }
