"""A model and a background in, the static graph of one example out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from onnx import ModelProto, helper

from deepshap_ir.errors import InputError, ModelError, UnsupportedOperatorError
from deepshap_ir.graph import Graph
from deepshap_ir.importing.calls import Wanted, keep_calls
from deepshap_ir.importing.control_flow import settle
from deepshap_ir.importing.dependence import Dependence, Refusal, dependence, labelling, operator, standing
from deepshap_ir.importing.feeds import Array, InputSpec, by_name, read, rows, suggest, take
from deepshap_ir.importing.interface import (
    Interface,
    cut,
    fed_specs,
    float_outputs,
    inside_dtypes,
    list_order,
    value_info,
)
from deepshap_ir.importing.load import load_model
from deepshap_ir.importing.loop_bodies import import_bodies
from deepshap_ir.importing.normalise import normalise
from deepshap_ir.importing.prune import prune
from deepshap_ir.importing.sequences import resolve_sequences
from deepshap_ir.importing.trace import build_graph, tidy, trace
from deepshap_ir.importing.verify import ROWS, Original, tolerance, verify

if TYPE_CHECKING:
    import onnx_ir

Pass = Callable[[Graph, frozenset[str]], Graph]
"""Graph and the names of values that must survive -> graph."""


def drop_identities(graph: Graph, protected: frozenset[str]) -> Graph:
    """Let the consumers of Identity, and of Cast to the same type, read its input.

    One whose output is protected or captured by name stays, as Identity: onnxruntime drops a Cast that changes
    nothing, and then misses its output where a subgraph captures it.
    """
    fixed = protected | set(graph.outputs) | {name for node in graph.nodes for name in node.captures}
    source: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(source.get(name, name) for name in node.inputs))
        types = [graph.dtypes.get(name) for name in (node.inputs[:1] + node.outputs[:1])]
        if node.operator == "Identity" or (node.operator == "Cast" and types[0] == types[1]):
            if node.outputs[0] not in fixed:
                source[node.outputs[0]] = node.inputs[0]
                continue
            node = replace(node, op_type="Identity", attributes={})
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


PASSES: list[Pass] = [resolve_sequences, drop_identities]
"""What `import_model` does to the graph, in order, between folding and verification."""


_SLOW_TRACE = 0.5
"""Seconds for one row from which on two rows are compared with the file, not four."""


@dataclass(frozen=True)
class Imported:
    """What `import_model` returns.

    Attributes
    ----------
    graph : of one example; its inputs are the explained ones, then those held at the sample's own value.
    model : the normalised file from which the graph was read, cut at the fed values.
    explained : names of the explained inputs.
    held : names of values that keep the sample's own value in the reference pass: other model inputs that are fed,
        and values in the middle named by ``hold=``.
    listed : the graph's inputs in the order in which a list of data for all of them has them, that of the file.
    output : name of the explained output.
    specs : of every graph input, to read more data with `deepshap_ir.importing.feeds.read`.
    background : input name -> rows, in the dtypes of the graph.
    rows : how many.
    warnings : sentences about what could not be checked.
    """

    graph: Graph
    model: ModelProto
    explained: tuple[str, ...]
    held: tuple[str, ...]
    listed: tuple[str, ...]
    output: str
    specs: tuple[InputSpec, ...]
    background: dict[str, Array]
    rows: int
    warnings: list[str]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The fed values in order: explained, then held."""
        return self.graph.inputs

    def read(
        self, data: Any, what: str = "samples", names: Sequence[str] | None = None
    ) -> tuple[dict[str, Array], int]:
        """Return data for the graph by input name, checked and cast, and the number of rows.

        Parameters
        ----------
        data : an array, a list in the order of the inputs, or a mapping by name.
        what : how messages call the data.
        names : the inputs that are needed; all by default.

        Raises
        ------
        InputError : names, shapes or dtypes do not fit.
        NonFiniteError : NaN or infinity.
        """
        given = self.named(data, what)
        missing = [name for name in names or self.graph.inputs if name not in given]
        if missing:
            raise InputError(f"{what}: missing {', '.join(map(repr, missing))}.{suggest(missing[0], list(given))}")
        known = {*self.graph.inputs, *(value.name for value in self.model.graph.input)}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(f"{what}: no input {unknown[0]!r}.{suggest(unknown[0], list(self.graph.inputs))}")
        specs = [spec for spec in self.specs if names is None or spec.name in names]
        arrays = {spec.name: read(given[spec.name], spec, what) for spec in specs}
        return arrays, rows(arrays, specs, what)

    def named(self, data: Any, what: str = "samples") -> dict[str, Any]:
        """Return data by input name, as they were given.

        Raises
        ------
        InputError : the number of arrays is not that of the inputs.
        """
        every = isinstance(data, (list, tuple)) and len(data) == len(self.listed)
        return by_name(data, self.listed if every else self.explained, what)


def import_model(
    source: str | os.PathLike[str] | bytes | BinaryIO | ModelProto | onnx_ir.Model,
    background: Any,
    *,
    output: str | int | None = None,
    inputs: Sequence[str] | None = None,
    hold: Sequence[str] | Mapping[str, Any] = (),
    keep: Sequence[str] = (),
    batch_axes: Mapping[str, int | None] | None = None,
    rewrite: Pass | None = None,
    calls: Wanted | None = None,
    what: str = "background",
) -> Imported:
    """Reduce a model to the static graph of one example, and check that it is still the model.

    Parameters
    ----------
    source : as `deepshap_ir.importing.load.load_model` takes it.
    background : an array, a list of arrays in the order of the inputs, or a mapping by name; rows lie along the batch
        axis.
    output : a name (a graph output or any value in the middle), an index among the graph outputs, or None for the
        only float output.
    inputs : names of the explained values, model inputs or values in the middle; all model inputs by default.
    hold : values that keep the sample's own value in the reference pass, or a mapping from names to an array (the
        value is that constant) or None (the sample's own).
    keep : values in the middle that must survive.
    batch_axes : input -> axis of the batch, or None where the whole array is one value for all rows. 0 by default.
    rewrite : one more pass over the graph, before it is compared with the file.
    calls : which calls of the model's own functions stay nodes, with their ``body``; the others are inlined.
    what : how messages call the background.

    Raises
    ------
    ModelError : the model cannot be read or run, or the graph differs from it.
    InputError : names or data do not fit the model.
    NonFiniteError : NaN or infinity in the background.
    UnsupportedOperatorError : operators whose output shape depends on data, or that are random, between the inputs
        and the output.
    """
    original = load_model(source)
    face = Interface.of(original, output, inputs, hold, keep, batch_axes)
    whole = normalise(original, [face.output], calls)
    face.check_reach(whole)
    model = cut(whole, face)
    specs, arrays = fed_specs(model, face, background, what)
    count = rows(arrays, specs)
    first = take(arrays, specs, [0])
    model, refusals = settle(model, first, [face.output])
    # before the trace, which such operators can break, and after it, when it is known which Dropout is in training
    _refuse(model, dependence(model.graph, arrays), face.output, list(arrays), refusals)
    start = time.perf_counter()
    try:
        values = trace(model, first)
    except ModelError as error:
        raise ModelError(f"{error}{face.shared_by_all_rows(specs)}") from None
    slow = time.perf_counter() - start > _SLOW_TRACE
    found = dependence(model.graph, arrays, values)
    _check_output(values[face.output], face.output, original, model, found)
    _refuse(model, found, face.output, list(arrays))
    face.check_dependence(model, found, list(arrays))

    fed = face.fed(model, found, arrays)
    graph = build_graph(
        model, values, found, fed, [face.output], {s.name: s.batch_axis for s in specs if s.name in fed}
    )

    def change(body: Graph) -> Graph:
        return _changed(body, PASSES, frozenset())

    graph = keep_calls(import_bodies(graph, values, model, change), model.graph, values, change)
    protected = frozenset({face.output, *face.keep, *face.held_inside})
    _require_places(graph, protected)
    plain = tidy(_changed(graph, PASSES, protected))
    graph = tidy(rewrite(plain, protected)) if rewrite else plain
    warnings = verify(graph, _original(original, face, specs), arrays, count, 2 if slow else ROWS, plain)
    return Imported(
        graph=graph,
        model=model,
        explained=tuple(name for name in fed if name in face.explained),
        held=(*(name for name in fed if name not in face.explained), *face.held_inside),
        listed=tuple(list_order(face, fed)),
        output=face.output,
        specs=tuple(_exact(spec, graph) for name in fed for spec in specs if spec.name == name),
        background={name: np.array(arrays[name]) for name in fed},  # the caller may change theirs
        rows=count,
        warnings=warnings,
    )


def _require_places(graph: Graph, names: Iterable[str]) -> None:
    """Refuse values that are inside of the call of a function that stays one node."""
    known = {*graph.inputs, *(name for node in graph.nodes for name in node.outputs)}
    for node in graph.nodes:
        body = node.attributes.get("body")
        inside = {n for inner in body.nodes for n in inner.outputs} if isinstance(body, Graph) else set()
        for name in names:
            if name in inside and name not in known:
                raise InputError(f"{name!r} is a value inside of {node}, which is kept whole for its rule.")


def _changed(graph: Graph, passes: Sequence[Pass], protected: frozenset[str]) -> Graph:
    for apply in passes:
        graph = apply(graph, protected)
    return graph


def _exact(spec: InputSpec, graph: Graph) -> InputSpec:
    """Return `spec` with the shape that the graph is made for."""
    shape = graph.shapes[spec.name]
    axis = spec.batch_axis if spec.batch_axis is None else spec.batch_axis % len(shape)
    return replace(spec, shape=tuple(None if i == axis else dim for i, dim in enumerate(shape)), batch_axis=axis)


def _check_output(value: Any, name: str, original: ModelProto, model: ModelProto, found: Dependence) -> None:
    """Refuse what is no tensor of numbers, and whole numbers that are labels: no input has a part in one."""
    others = [other for other in float_outputs(original) if other != name]
    remedy = f"explain an output of floats: {', '.join(map(repr, others))}"
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        array = isinstance(value, np.ndarray)
        kind = "a sequence, a map or absent" if not array else "text" if value.dtype == object else f"{value.dtype}"
        remedy = remedy if others else "name another: output="
        raise InputError(f"the output {name!r} is {kind}; only numbers can be explained, so {remedy}.")
    node = labelling(model.graph, name, found) if value.dtype.kind != "f" else None
    if node is not None:
        remedy = remedy if others else f"explain the numbers that it is chosen by, such as output={node.input[0]!r}"
        raise InputError(
            f"the output {name!r} is of whole numbers that choose among classes or places ({operator(node)} node "
            f"{node.name!r}), of which no input has a part; {remedy}."
        )


def _refuse(
    model: ModelProto, found: Dependence, output: str, fed: Sequence[str], more: Sequence[Refusal] = ()
) -> None:
    found.refusals += more
    refused = standing(model.graph, [output], found)
    if refused:
        lines = (f"  {operator(r.node)} node {r.node.name!r}: {r.reason}" for r in refused)
        remedy = "".join(
            f"\nThis depends on {name!r}: where it is the same for all samples, make it a constant, "
            f"hold={{{name!r}: value}}."
            for name in fed
            if _stands_without(model, output, [other for other in fed if other != name], more)
        )
        raise UnsupportedOperatorError(
            f"the model cannot be explained between its inputs and {output!r}:\n" + "\n".join(lines) + remedy,
            [name for r in refused for name in r.outer.output if name],
        )


def _stands_without(model: ModelProto, output: str, fed: Sequence[str], refusals: Sequence[Refusal]) -> bool:
    """Whether nothing is refused if only `fed` are fed, and the output still depends on them."""
    found = dependence(model.graph, fed)
    found.refusals += [r for r in refusals if r.node.op_type != "If" or found.depends(r.node.input)]
    return found.depends([output]) and not standing(model.graph, [output], found)


def _original(original: ModelProto, face: Interface, specs: Sequence[InputSpec]) -> Original:
    """Return the file as it was given, cut only where a value in the middle is fed, returned or held."""
    types = inside_dtypes(original, face.inside)
    fed = {*(spec.name for spec in specs), *face.constants}
    whole = not types and fed >= set(face.declared) and face.output in {value.name for value in original.graph.output}
    given = {name: value_info(name, dtype) for name, dtype in types.items()}
    model = original if whole else prune(original, [face.output], given)
    dtypes = {
        name: np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for name, value in face.declared.items()
    }
    return Original(
        model=model,
        output=face.output,
        specs=specs,
        dtypes=dtypes | types,
        fixed=face.constants,
        fixed_axes=face.constant_axes(),
        batch=face.declared_batch(),
        tolerance=tolerance(original),
    )
