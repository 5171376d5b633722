"""The three ONNX models that explain a graph, and how much memory their pieces take.

One stream of steps is emitted for the whole job. Each step belongs to one of three programs by the batch axes of its
operands: what varies over references alone is run once per reference (`background`), what varies over samples alone
once per sample (`sample`), the rest once per (sample, reference, output) triple (`explain`). Values that cross from one
program to another become outputs of the first and inputs of the last.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

import deepshap_ir.engine.batching  # noqa: F401  (fills the table)
from deepshap_ir.engine.context import MADE_FOR_NAN, without_nan
from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.lowering import Lowering, dimension
from deepshap_ir.engine.recurrence import is_loop, loop_length, trimmed
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.value import AXES, BACKGROUND, OUTPUT, SAMPLE, Step, Value
from deepshap_ir.engine.walker import Walker, require_rules
from deepshap_ir.errors import InputError
from deepshap_ir.graph import Array, Graph, Node

STAGES = ("background", "sample", "explain")
IR_VERSION = 10
WEIGHT_BYTES = 1 << 20
"""Initializers from this size on stay outside the ONNX models."""


@dataclass(frozen=True)
class Program:
    """One ONNX model, its steps, and the values that go in and come out.

    Attributes
    ----------
    weights : the large initializers, to which the model only refers.
    """

    model: ModelProto
    steps: tuple[Step, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    dimensions: tuple[str, ...]
    weights: Mapping[str, Array] = field(default_factory=dict)

    def peak_bytes(self, sizes: Mapping[str, int]) -> int:
        """Most bytes alive at once, inputs and outputs included, for these lengths of the batch axes."""
        return _peak(self.steps, self.inputs, self.outputs, sizes)

    def widest(self, sizes: Mapping[str, int]) -> Value:
        """The largest value for these lengths of the batch axes; pieces are cut so that it fits the processor's cache.

        Where most of the work is in a loop it is one of those that the loop computes at each element.
        """
        places = [(times, [(nbytes(v, sizes), v) for v in values]) for times, values in _places(self.steps)]
        _, values = max(places, key=lambda place: place[0] * sum(size for size, _ in place[1]))
        return max(values, key=lambda one: (one[0], len(one[1].axes)))[1]


def _places(steps: Sequence[Step], times: int = 1) -> Iterator[tuple[int, list[Value]]]:
    """Outside of loops and in each of them: how often values are computed, and which."""
    yield times, [v for step in steps for v in step.outputs if not is_loop(step)]
    for step in steps:
        if is_loop(step):
            yield from _places(step.attributes["steps"], times * loop_length(step))


def _peak(steps: Sequence[Step], inputs: Sequence[Value], outputs: Sequence[Value], sizes: Mapping[str, int]) -> int:
    last: dict[str, int] = {}
    for k, step in enumerate(steps):
        last.update((v.name, k) for v in step.inputs if v is not None)
    kept = {v.name for v in (*inputs, *outputs)}
    alive = sum(nbytes(v, sizes) for v in inputs)
    peak = alive
    for k, step in enumerate(steps):
        made = sum(nbytes(v, sizes) for v in step.outputs)
        alive += made
        peak = max(peak, alive)
        if is_loop(step):  # its stacked outputs are there twice while their axes are brought to the front
            parts = step.attributes
            inner = _peak(parts["steps"], [*parts["before"], *parts["elements"]], [*parts["new"], *parts["out"]], sizes)
            peak = max(peak, alive + max(made, inner))
        done = {v.name: v for v in (*step.inputs, *step.outputs) if v is not None and last.get(v.name, k) == k}
        alive -= sum(nbytes(v, sizes) for v in done.values() if v.name not in kept and v.data is None)
    return peak


def nbytes(value: Value, sizes: Mapping[str, int]) -> int:
    """Bytes of `value` for these lengths of the batch axes."""
    return math.prod(sizes[a] for a in value.axes) * value.size * value.dtype.itemsize


@dataclass
class Plan:
    """All that the evaluator runs.

    Attributes
    ----------
    background, sample, explain : the three programs.
    result : role -> value among the programs' outputs. Of each attributed value `v`, summed over the background:
        ``("sum", v)``, the contributions, ``[K, N, *shape]``; on demand ``("multiplier", v)`` and
        ``("hypothetical", v)``; with details ``("squares", v)``, ``("absolute", v)``, their squared distances from
        their mean over the piece and their magnitudes, and ``("place", v)``, the value itself at the samples.
        ``("output",)`` and ``("base",)``: the explained output at samples and at references (summed over the background
        where it is computed per pair). ``("residual", node)``. The same for each reference, not summed,
        ``[K, N, B, *shape]``: ``("each sum", v)``, ``("each multiplier", v)``, ``("each hypothetical", v)`` and
        ``("each base",)``.
    per_pair_base : whether the base value depends on the sample, as it does with held inputs or own references.
    ranked : whether each sample has seeds of its own.
    """

    background: Program
    sample: Program
    explain: Program
    result: dict[tuple[str, ...], Value]
    places: tuple[str, ...]
    output: str
    per_pair_base: bool
    ranked: bool = False
    nodes: dict[str, Node] = field(default_factory=dict)

    def programs(self) -> dict[str, Program]:
        """Name -> program."""
        return {"background": self.background, "sample": self.sample, "explain": self.explain}


def build_plan(
    graph: Graph,
    resolver: Resolver,
    *,
    explained: Sequence[str],
    at: Sequence[str] = (),
    hold: Collection[str] = (),
    own_references: bool = False,
    ranked: bool = False,
    details: bool = False,
    ledger: bool = False,
    multipliers: bool = False,
    hypothetical: Mapping[str, int] | None = None,
    per_reference: bool = False,
    everywhere: bool = False,
) -> Plan:
    """Emit the programs that explain ``graph.outputs[0]``.

    Parameters
    ----------
    explained : the fed values that differ between sample and reference; the others are the sample's own in both.
    at : where attributions are wanted, if not at `explained`.
    hold : values that take the sample's own value in both passes.
    own_references : each sample has references of its own.
    ranked : each sample has outputs of its own to explain.
    details : also sum squares and magnitudes of the contributions.
    ledger : also give the residual of every node.
    multipliers : also give the sums of the multipliers themselves.
    hypothetical : value -> axis of its example; also give ``m[c] - sum_c' m[c'] x0[c']`` along it, the contributions if
        the sample had a one at `c` and zeros beside it; of other values their contributions.
    per_reference : also give what is summed over the background for each reference.
    everywhere : give the multipliers of all values, from the output backward, instead of attributions:
        ``("multiplier", name)``.
    """
    op = Emitter(graph.opsets, graph.float_dtype)
    walker = Walker(op, resolver, [] if ledger else None)
    xs, x0s = [], []
    for name in graph.inputs:
        shape, dtype = graph.shapes[name], graph.dtypes[name]
        batched = name in explained or graph.batch_axes.get(name, 0) is not None
        x = op.input(f"sample_{name}", shape, dtype, [SAMPLE] if batched else [])
        xs.append(x)
        axes = [SAMPLE, BACKGROUND] if own_references else [BACKGROUND]
        x0s.append(op.input(f"background_{name}", shape, dtype, axes) if name in explained else x)
    known = walker.forward(graph, xs, x0s, hold)
    output = graph.outputs[0]
    y, y0 = known[output]
    if y is y0:
        around = f" but through the held values {list(hold)}" if hold else ""
        raise InputError(f"output {output!r} does not depend on the explained inputs {list(explained)}{around}")
    places = tuple(at or explained)
    varying = {name for name, (x, x0) in known.items() if x is not x0}
    fixed = [name for name in places if name not in varying]
    if fixed:
        raise InputError(f"the values {fixed} do not vary with the explained inputs {list(explained)}")
    require_rules(graph, resolver, varying)

    seed = op.input("seed", graph.shapes[output], op.dtype, [OUTPUT, SAMPLE] if ranked else [OUTPUT])

    def per_output(value: Value) -> Value:
        """`value`, also where a multiplier is 0 whatever the seed."""
        return value if OUTPUT in value.axes else value + op.ReduceSum(seed, keepdims=0) * 0.0

    found = walker.backward(graph, known, {output: seed}, places)
    result: dict[tuple[str, ...], Value] = {("output",): y, ("base",): y0}
    per_pair_base = y0.axes != (BACKGROUND,)
    if per_pair_base:
        result["base",] = op.sum_over(y0 if y0.is_float else op.cast(y0, op.dtype), BACKGROUND)
    if per_reference:
        result["each base",] = y0
    bypassing = [name for name in explained if name not in places and name in found]
    if everywhere:
        wanted: dict[tuple[str, ...], Value] = {("multiplier", name): m for name, m in found.items()}
        return Plan(*split(op, list(dict.fromkeys(wanted.values()))), wanted, places, output, per_pair_base, ranked)
    for name in (*places, *bypassing):
        x, x0 = known[name]
        if details and name not in explained:
            result["place", name] = x
        m = found.get(name)
        if m is None:
            continue
        x_number, x0_number = op.cast(x, m.dtype), op.cast(x0, m.dtype)
        if any(node.operator in MADE_FOR_NAN for node in graph.nodes):
            x_number, x0_number = without_nan(x_number), without_nan(x0_number)
        delta = op.Sub(x_number, x0_number)
        pairs = {"sum": m * delta}
        if name in places and (multipliers or hypothetical):
            if not {SAMPLE, BACKGROUND} <= {*m.axes}:  # over all pairs, and not NaN where the delta is
                m = m + op.cast(op.Equal(delta, delta), m.dtype) * 0.0
            if multipliers:
                pairs["multiplier"] = m
            if hypothetical:
                axis = hypothetical.get(name)
                own = pairs["sum"] if axis is None else m - op.ReduceSum(m * x0_number, [axis], keepdims=1)
                pairs["hypothetical"] = own
        for role, pair in pairs.items():
            pair = per_output(pair)
            result[role, name] = op.sum_over(pair, BACKGROUND)
            if per_reference:
                result[f"each {role}", name] = pair
        if details:
            contribution = per_output(pairs["sum"])
            from_mean = contribution - op.sum_over(contribution, BACKGROUND, "ReduceMean")
            result["squares", name] = op.sum_over(from_mean, BACKGROUND, "ReduceSumSquare")
            result["absolute", name] = op.sum_over(contribution, BACKGROUND, "ReduceL1")
    nodes = {}
    for node, residual in walker.ledger or ():
        nodes[node.name] = node
        result["residual", node.name] = op.sum_over(per_output(residual), BACKGROUND)
    return Plan(*split(op, list(dict.fromkeys(result.values()))), result, places, output, per_pair_base, ranked, nodes)


def split(op: Emitter, wanted: Sequence[Value]) -> tuple[Program, Program, Program]:
    """The programs `background`, `sample` and `explain` that compute `wanted`, without steps that nothing needs."""
    needed = _needed(op, wanted)
    stage: dict[str, str | None] = {}
    for step in needed:
        axes = step.axes
        own = {(): None, (BACKGROUND,): "background", (SAMPLE,): "sample"}.get(axes, "explain")
        before = {stage.get(v.name) for v in step.inputs if v is not None} - {None}
        if (own is None and before) or before - {own}:
            own = "explain"
        stage.update((v.name, own) for v in step.outputs)
    made: dict[str, list[Step]] = {name: [] for name in STAGES}
    for step in needed:
        for name in STAGES if stage[step.outputs[0].name] is None else [str(stage[step.outputs[0].name])]:
            made[name].append(step)
    results: dict[str, list[Value]] = {name: [] for name in STAGES}
    for value in wanted:
        results[stage.get(value.name) or "explain"].append(value)
    later = {v.name: v for step in made["explain"] for v in step.inputs if v is not None}
    for name in ("background", "sample"):
        ours = {v.name: v for step in made[name] if stage[step.outputs[0].name] == name for v in step.outputs}
        results[name] += [v for n, v in ours.items() if n in later and v not in results[name]]
    programs = [_program(op, made[name], results[name]) for name in STAGES]
    return programs[0], programs[1], programs[2]


def _needed(op: Emitter, wanted: Iterable[Value], steps: Sequence[Step] | None = None) -> list[Step]:
    names = {v.name for v in wanted}
    needed = []
    for step in reversed(op.steps if steps is None else steps):
        if any(v.name in names for v in step.outputs):
            step = trimmed(step, names)
            needed.append(step)
            names.update(v.name for v in step.inputs if v is not None)
    return needed[::-1]


def _program(op: Emitter, steps: Sequence[Step], outputs: Sequence[Value]) -> Program:
    steps = _needed(op, outputs, steps)
    made = {v.name for step in steps for v in step.outputs}
    used = {v.name: v for step in steps for v in step.inputs if v is not None}
    used |= {v.name: v for v in outputs}
    inputs = [v for n, v in used.items() if n not in made and v.data is None]
    low = Lowering()
    for step in steps:
        low.step(step)
    renamed = []
    for k, value in enumerate(outputs):
        if value.name in made:
            renamed.append(value.name)
        else:  # onnxruntime does not take an input or initializer as an output
            renamed.append(low.node("Identity", [low.name(value)], f"result{k}"))
    dimensions = tuple(axis for axis in AXES if axis in low.dimensions)
    graph = helper.make_graph(
        low.alive(renamed),
        "deepshap",
        [
            *(_info(v.name, v) for v in inputs),
            *(helper.make_tensor_value_info(dimension(a), TensorProto.INT64, [1]) for a in dimensions),
        ],
        [_info(name, v) for name, v in zip(renamed, outputs, strict=True)],
        [_initializer(name, data) for name, data in low.initializers.items()],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in op.opsets.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    weights = {n: np.asarray(a, order="C") for n, a in low.initializers.items() if a.nbytes >= WEIGHT_BYTES}
    return Program(model, tuple(steps), tuple(inputs), tuple(outputs), dimensions, weights)


def _initializer(name: str, data: Array) -> TensorProto:
    """A constant; only a reference to it where it is large, so that the programs of a large model share its weights."""
    if data.nbytes < WEIGHT_BYTES:
        return numpy_helper.from_array(np.asarray(data, order="C"), name)
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(data.dtype), dims=data.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "memory"), ("offset", "0"), ("length", str(data.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _info(name: str, value: Value) -> ValueInfoProto:
    shape: list[str | int | None] = [*(f"size_of_{axis}" for axis in value.axes), *value.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)
