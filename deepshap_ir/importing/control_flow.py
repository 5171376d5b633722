"""If, Loop, Scan and SequenceMap of a file in the two forms that the rest knows: nodes one after the other, or Scan.

`settle` works on the file, before it is traced. An If whose condition is known is its branch; one whose condition
varies is both branches and a Where. A Loop of known length is a Scan. A loop that is short, carries sequences, or gives
its values another shape in each iteration is written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from deepshap_ir.errors import ModelError
from deepshap_ir.graph import Array
from deepshap_ir.importing.branches import branch_nodes, choice_nodes
from deepshap_ir.importing.counted_loops import CountedLoop, UnfitError
from deepshap_ir.importing.dependence import Refusal, dependence, operator, standing
from deepshap_ir.importing.iterations import (
    Names,
    loop_written_out,
    map_written_out,
    scan_along_first_axis,
    scan_layout,
    scan_written_out,
)
from deepshap_ir.importing.prune import prune
from deepshap_ir.importing.subgraphs import (
    all_names,
    all_nodes,
    body_of,
    captured,
    fresh,
    graph_captures,
    replaced,
    unique_subgraph_names,
)
from deepshap_ir.importing.trace import run_model
from deepshap_ir.onnx_io import elem_type

SHORT = 4
"""Loops of at most so many iterations are written out."""
MOST_NODES = 20_000
"""No loop is written out to more nodes than this."""

Nodes = Callable[[], list[NodeProto]]


def settle(model: ModelProto, row: Mapping[str, Any], outputs: Sequence[str]) -> tuple[ModelProto, list[Refusal]]:
    """Return a model with the same `outputs` whose only operators with a body are Scans, and what stands in the way.

    What no fed value reaches stays as it is, and so do nodes that `dependence` refuses and those named in a `Refusal`.

    Parameters
    ----------
    row : one row of the values that are fed; what does not depend on them is known.
    """
    done: dict[str, Refusal | None] = {}
    while True:
        work = _Round(model, row, done)
        if not work.todo:
            return model, [refusal for refusal in done.values() if refusal is not None]
        nodes = [made for node in model.graph.node for made in work.settled(node)]
        model = prune(_with_nodes(model, nodes), outputs)
        unique_subgraph_names(model.graph)


def body_model(
    body: GraphProto, fed: Mapping[str, Array], constants: Mapping[str, Array], like: ModelProto
) -> ModelProto:
    """Return the body of a loop as a model of its own.

    Parameters
    ----------
    fed : a value for each input, and for captured values that vary.
    constants : captured values that do not.
    like : the model around it.
    """
    graph = GraphProto()
    graph.CopyFrom(body)
    del graph.input[:]
    graph.input.extend(helper.make_tensor_value_info(name, elem_type(a.dtype), None) for name, a in fed.items())
    graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    for value in graph.output:
        value.ClearField("type")
    return helper.make_model(graph, opset_imports=like.opset_import, ir_version=like.ir_version)


class _Round:
    """What is known of a model as it stands, and how its nodes are settled.

    Attributes
    ----------
    done : names of nodes that stay; with a refusal those that cannot.
    todo : names of the nodes to settle.
    """

    def __init__(self, model: ModelProto, row: Mapping[str, Any], done: dict[str, Refusal | None]) -> None:
        self.model, self.row, self.done = model, row, done
        self.found = dependence(model.graph, row)
        refused = {refusal.outer.name for refusal in self.found.refusals}
        nodes = [
            node
            for node in model.graph.node
            if operator(node) in _SETTLED
            and node.name not in done
            and node.name not in refused
            and self.found.depends(node.output)
        ]
        self.todo = {node.name for node in nodes}
        self.names = Names(all_names(model.graph), {node.name for node in all_nodes(model.graph)})
        needed = {name for node in nodes for name in (*node.input, *captured(node)) if name}
        self.values: dict[str, Any] = {name: value for name, value in row.items() if name in needed}
        self.values |= {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in needed}
        made = sorted(needed - set(self.values))
        if made:
            self.values |= self._run(model, made)

    def settled(self, node: NodeProto) -> list[NodeProto]:
        """Return the nodes that take the place of `node`."""
        if node.name not in self.todo:
            return [node]
        try:
            return list(_SETTLED[operator(node)](self, node))
        except UnfitError as reason:
            self.done[node.name] = Refusal(node, node, str(reason))
            return [node]

    def _run(self, model: ModelProto, outputs: Sequence[str]) -> dict[str, Any]:
        return run_model(prune(model, outputs), "a part of the model", self.row)

    def _if(self, node: NodeProto) -> list[NodeProto]:
        if not self.found.depends(node.input):
            taken = bool(np.reshape(self.values[node.input[0]], -1)[0])
            return branch_nodes(node, taken, node.output, self.names.nodes)
        results = [
            [fresh(f"{name}/{side}", self.names.values) if name else "" for name in node.output] for side in _SIDES
        ]
        nodes = [
            made for yes, names in zip((True, False), results, strict=True) for made in self._branch(node, yes, names)
        ]
        nodes += choice_nodes(node, results[0], results[1], self.names.values, self.names.nodes)
        made = [name for names in results for name in names if name]
        try:
            values = self._run(_with_nodes(self.model, self._in_place_of(node, nodes)), made)
        except ModelError as error:
            raise UnfitError(f"which branch runs depends on data, and not both run: {error}") from None
        for name, a, b in zip(node.output, *results, strict=True):
            if name and _kind(values[a]) != _kind(values[b]):
                raise UnfitError(
                    f"which branch runs depends on data, and they differ in what they return for {name!r}: "
                    f"{_kind(values[a])} and {_kind(values[b])}"
                )
        return nodes

    def _branch(self, node: NodeProto, yes: bool, outputs: Sequence[str]) -> list[NodeProto]:
        return branch_nodes(node, yes, outputs, self.names.nodes)

    def _in_place_of(self, node: NodeProto, nodes: Sequence[NodeProto]) -> list[NodeProto]:
        return [made for other in self.model.graph.node for made in (nodes if other.name == node.name else [other])]

    def _loop(self, node: NodeProto) -> list[NodeProto]:
        def counted(node: NodeProto) -> CountedLoop:
            initial = [self.values[name] for name in node.input[2:]]
            return CountedLoop(node, initial, self.found, self.names, lambda extended: self._outputs(node, extended))

        count = counted(node).length()

        def as_scan() -> list[NodeProto]:
            loop = counted(self._inside_first(node))
            scan, firsts = loop.as_scan()
            made = sorted(set(graph_captures(body_of(scan))) - set(self.values))
            if made:
                self.values |= self._run(_with_nodes(self.model, self._in_place_of(node, loop.before)), made)
            n = len(scan.input) - len(firsts)
            states = {v.name: self.values[name] for v, name in zip(body_of(scan).input, scan.input[:n], strict=False)}
            self._settle_body(scan, n, states | firsts)
            return [*loop.before, scan, *loop.after]

        def write_out() -> list[NodeProto]:
            return loop_written_out(node, self.names, count, {} if count else self._outputs(node, node))

        return self._either(node, count, as_scan, write_out)

    def _either(self, node: NodeProto, count: int, as_scan: Nodes, write_out: Nodes) -> list[NodeProto]:
        """What `as_scan` gives, or what `write_out` does for a short loop or where a Scan cannot do it."""
        reason = ""
        if count > SHORT:
            try:
                nodes = as_scan()
                self.done[node.name] = None
                return nodes
            except UnfitError as error:
                if error.final:
                    raise
                reason = str(error)
        self._allow(node, count, reason)
        return write_out()

    def _outputs(self, node: NodeProto, extended: NodeProto) -> dict[str, Any]:
        """All outputs of `extended`, run in place of `node`."""
        names = [name for name in extended.output if name]
        try:
            return self._run(_with_nodes(self.model, self._in_place_of(node, [extended])), names)
        except ModelError as error:
            raise UnfitError(f"its iterations do not give values of one shape ({error})") from None

    def _scan(self, node: NodeProto) -> list[NodeProto]:
        n, axes, directions = scan_layout(node)
        count = int(np.shape(self.values[node.input[n]])[axes[0][0]])

        def as_scan() -> list[NodeProto]:
            inside = [value.name for value in body_of(node).input]
            fed = {name: self.values[outer] for name, outer in zip(inside, node.input, strict=True)}
            for name, axis, direction in zip(inside[n:], axes[0], directions[0], strict=True):
                fed[name] = np.asarray(np.take(fed[name], -1 if direction else 0, axis))
            settled = NodeProto()
            settled.CopyFrom(node)
            results = [np.ndim(value) + 1 for value in self._settle_body(settled, n, fed)]
            operands = [np.ndim(self.values[name]) for name in node.input]
            return scan_along_first_axis(settled, self.names, count, operands, results)

        return self._either(node, count, as_scan, lambda: scan_written_out(node, self.names, count))

    def _inside_first(self, node: NodeProto) -> NodeProto:
        """A Loop with what is inside its body settled, as far as that goes for all iterations alike."""
        copy = NodeProto()
        copy.CopyFrom(node)
        body = body_of(copy)
        if not any(operator(inner) in _SETTLED for inner in body.node):
            return node
        counter, condition, *states = body.input
        fed = {value.name: self.values[name] for value, name in zip(states, node.input[2:], strict=True)}
        for value, first in ((counter, np.int64(0)), (condition, True)):
            fed[value.name] = np.full((1,) * len(value.type.tensor_type.shape.dim), first)
        self._settle_inside(body, fed)
        return copy

    def _settle_inside(
        self, body: GraphProto, fed: Mapping[str, Any]
    ) -> tuple[ModelProto, dict[str, Any], list[Refusal]]:
        """Settle what is inside a body, in place; it as a model, what that is fed, and what stands in the way."""
        outside = {name: self.values[name] for name in graph_captures(body)}
        for name, value in {**fed, **outside}.items():
            if not isinstance(value, np.ndarray):
                raise UnfitError(f"it reads {name!r}, which is no tensor")
        row = {**fed, **{name: value for name, value in outside.items() if self.found.depends([name])}}
        constants = {name: value for name, value in outside.items() if name not in row}
        outputs = [value.name for value in body.output]
        model, refusals = settle(body_model(body, row, constants, self.model), row, outputs)
        initializers = [tensor for tensor in model.graph.initializer if tensor.name not in constants]
        del body.node[:], body.initializer[:]
        body.node.extend(model.graph.node)
        body.initializer.extend(initializers)
        return model, row, refusals

    def _settle_body(self, scan: NodeProto, n_states: int, fed: Mapping[str, Any]) -> list[Array]:
        """Settle the body of a Scan in place, and give it a node of its own for every output; values of these.

        Raises
        ------
        UnfitError : what a Scan cannot do: sequences, a state of changing shape, shapes that depend on the element.
        """
        body = body_of(scan)
        results = [fresh(f"{scan.name}/{value.name}", self.names.values) for value in body.output]
        for value, name in zip(body.output, results, strict=True):
            body.node.append(self.names.node("Identity", [value.name], name))
        del body.output[:]
        body.output.extend(ValueInfoProto(name=name) for name in results)
        model, row, refusals = self._settle_inside(body, fed)
        found = dependence(model.graph, row)
        for refusal in [*refusals, *standing(model.graph, results, found)]:
            final = operator(refusal.node) == "If" and self.found.depends(refusal.node.input)
            raise UnfitError(f"{operator(refusal.node)} node {refusal.node.name!r} in it: {refusal.reason}", final)
        values = run_model(model, f"the body of {scan.name!r}", row)
        for name, result in list(zip(fed, results, strict=False))[:n_states]:
            if _kind(row[name]) != _kind(values[result]):
                raise UnfitError(f"its state {name!r} becomes {_kind(values[result])} from {_kind(row[name])}")
        for side, known in ((body.input, row), (body.output, values)):  # onnxruntime infers no shapes inside a Loop
            types = [
                helper.make_tensor_value_info(v.name, elem_type(known[v.name].dtype), known[v.name].shape) for v in side
            ]
            del side[:]
            side.extend(types)
        return [values[name] for name in results]

    def _map(self, node: NodeProto) -> list[NodeProto]:
        values = [self.values[name] for name in node.input]
        count = len(values[0])
        self._allow(node, count, "")
        return map_written_out(node, self.names, count, [isinstance(value, list) for value in values])

    def _allow(self, node: NodeProto, count: int, reason: str) -> None:
        """Refuse to write out what is too long."""
        size = sum(1 for _ in all_nodes(body_of(node)))
        if count * size > MOST_NODES:
            because = f"{reason}, and " if reason else ""
            raise UnfitError(f"{because}its {count} iterations of {size} nodes are too many to be written out")


_SIDES = ("then", "else")
_SETTLED = {"If": _Round._if, "Loop": _Round._loop, "Scan": _Round._scan, "SequenceMap": _Round._map}


def _with_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    result.graph.CopyFrom(replaced(model.graph, nodes))
    return result


def _kind(value: Any) -> str:
    """``"float32[2, 3]"``."""
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else "no tensor"
