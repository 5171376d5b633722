"""The program against the file it came from, on background rows, alone and in a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from deepshap_ir.errors import ModelError
from deepshap_ir.graph import Graph
from deepshap_ir.importing.feeds import Array, InputSpec, take
from deepshap_ir.importing.half import has_half
from deepshap_ir.importing.runner import Runner, one_line
from deepshap_ir.importing.subgraphs import all_nodes
from deepshap_ir.onnx_io import graph_to_model

TOLERANCE = 1e-4
HALF_TOLERANCE = 1e-2
"""Relative to the largest output. A half-precision file rounds every value to 3 (float16) or 2 (bfloat16) digits."""

ROUNDED_TOLERANCE = 5e-2
"""For a quantised file: where a number falls on the other side of a step, what follows is off by a step."""

KERNEL_TOLERANCE = 5e-2
"""How far onnxruntime's kernels may be from the file's operators in float64."""

ROWS = 4

_DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")


def floor(*dtypes: np.dtype[Any]) -> float:
    """The largest difference between outputs of these dtypes that says nothing, however small the outputs are.

    Below the smallest normal number few digits are kept, and many kernels flush to 0. Those of float16 do not, and its
    smallest normal number is no small one: there it is the last digit that counts.
    """
    limits = [np.finfo(dtype) for dtype in dtypes if dtype.kind == "f"]
    least = [each.smallest_subnormal if each.bits == 16 else each.smallest_normal for each in limits]
    return 16 * max(map(float, least), default=0.0)


SIGMOID = 2.0**-22
"""How far onnxruntime's Sigmoid may be from the function in float32, however small this is; it was 8e-8 at -16."""

_HANDING_ON = ("Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def coarseness(model: ModelProto, output: str) -> float:
    """The smallest difference that says something of `output`: 0, or that of a Sigmoid from which it comes as it is."""
    producer = {name: node for node in model.graph.node for name in node.output}
    names = [output]
    while names:
        node = producer.get(names.pop())
        if node is not None and node.op_type == "Sigmoid":
            return SIGMOID
        if node is not None and node.op_type in _HANDING_ON:
            names += node.input
    return 0.0


def tolerance(model: ModelProto) -> float:
    """How far the program may be from `model`, relative to the largest output."""
    operators = {node.op_type for node in all_nodes(model.graph)}
    if any(name == "QuantizeLinear" or name.startswith("QLinear") or name in _DYNAMIC for name in operators):
        return ROUNDED_TOLERANCE
    return HALF_TOLERANCE if has_half(model) else TOLERANCE


@dataclass(frozen=True)
class Original:
    """The model as it was given, ready to be compared.

    Attributes
    ----------
    model : the file, cut where values in the middle are fed.
    output : the value to compare.
    specs : of everything that is fed to it and changes from row to row, or is shared by all rows.
    dtypes : input name -> dtype in the file.
    fixed : input name -> array, for inputs held at a constant.
    fixed_axes : where they have the batch, None where they have none.
    batch : the length of the batch that the file declares, None if it is free.
    tolerance : relative to the largest output.
    """

    model: ModelProto
    output: str
    specs: Sequence[InputSpec]
    dtypes: Mapping[str, np.dtype[Any]]
    fixed: Mapping[str, Array]
    fixed_axes: Mapping[str, int | None]
    batch: int | None
    tolerance: float

    def allowed(self, values: Sequence[Array]) -> float:
        """Return how far the program may be from these outputs of the file."""
        single = all(value.dtype != np.float64 for value in values)
        return max(self.tolerance * scale(values), coarseness(self.model, self.output) if single else 0.0)

    def feeds(self, arrays: Mapping[str, Array], size: int) -> dict[str, Array]:
        """Return what the file is fed for `size` rows, in its own dtypes."""
        values = dict(arrays)
        for name, array in self.fixed.items():
            axis = self.fixed_axes[name]
            values[name] = array if axis is None else np.repeat(array, size, axis)
        return {name: np.asarray(value).astype(self.dtypes[name], copy=False) for name, value in values.items()}


def verify(
    graph: Graph,
    original: Original,
    arrays: Mapping[str, Array],
    count: int,
    compared: int = ROWS,
    plain: Graph | None = None,
) -> list[str]:
    """Compare `graph` with the original on a few rows, one at a time and together; return warnings.

    Parameters
    ----------
    arrays : the background, by input name.
    count : its number of rows.
    compared : how many of them to compare at most.
    plain : the graph with the file's own operators. Where `graph` differs from what onnxruntime makes of the file, it
        may agree with this in float64: then onnxruntime's kernels are at fault.

    Raises
    ------
    ModelError : they differ by more than the tolerance; or the model mixes the rows of a batch.
    """
    labels, rows = _distinct_rows(arrays, original.specs, count, compared)
    program = Runner(graph_to_model(graph), "the imported program")
    ours = [_program(program, graph, row) for row in rows]
    runner = Runner(original.model, "the original model")
    warnings: list[str] = []
    if original.batch in (None, 1):
        theirs = [_run(runner, original, row) for row in rows]
        try:
            _compare_alone(original, labels, ours, theirs)
        except ModelError:
            near = find_gap(ours, theirs, KERNEL_TOLERANCE * scale(theirs)) is None
            exact = _in_float64(plain, rows) if plain is not None and near else None
            gap = find_gap(ours, theirs, 0.0)
            if exact is None or gap is None:
                raise
            _compare_alone(original, labels, ours, exact)
            warnings.append(
                f"onnxruntime's result for the file is off by {gap.size / scale(theirs):.1e}, as its kernels round; "
                f"the program was compared with the file's operators in float64"
            )
        ours = theirs
    if original.batch == 1 or all(spec.batch_axis is None for spec in original.specs):
        return warnings
    size = original.batch or len(rows)
    batch = [rows[position % len(rows)] for position in range(size)]
    together = {
        spec.name: rows[0][spec.name]
        if spec.batch_axis is None
        else np.concatenate([row[spec.name] for row in batch], axis=spec.batch_axis)
        for spec in original.specs
    }
    try:
        result = _run(runner, original, together, size)
    except ModelError as error:
        if original.batch is not None:
            raise
        warnings.append(f"compared with the original one row at a time only: {one_line(error)}")
        return warnings
    order = [position % len(rows) for position in range(size)]
    try:
        _compare_together(original, [labels[i] for i in order], [ours[i] for i in order], result)
    except ModelError as error:
        if not {node.op_type for node in all_nodes(original.model.graph)} & {*_DYNAMIC}:
            raise
        warnings.append(
            f"its dynamic quantisation takes the range of a number from all rows of a batch; every row is explained as "
            f"if it were alone ({one_line(error).split(' The model mixes')[0]})"
        )
    return warnings


def _in_float64(plain: Graph, rows: Sequence[Mapping[str, Array]]) -> list[Array] | None:
    """What `plain` gives in float64 by ``onnx.reference``, None where that does not run it."""
    exact = plain.astype(np.float64)
    try:
        runner = Runner(graph_to_model(exact), "the program in float64", reference=True)
        return [_program(runner, exact, {n: row[n].astype(exact.dtypes[n]) for n in exact.inputs}) for row in rows]
    except ModelError:
        return None


def _distinct_rows(
    arrays: Mapping[str, Array], specs: Sequence[InputSpec], count: int, compared: int
) -> tuple[list[str], list[dict[str, Array]]]:
    """Return a few rows of the background and what to call them; where all are equal, one that is moved a little.

    Equal rows would hide a model that mixes its batch.
    """
    picked = sorted({position * (count - 1) // max(compared - 1, 1) for position in range(compared)})
    rows = [take(arrays, specs, [index]) for index in picked]
    first = rows[0]
    if all(np.array_equal(row[name], first[name]) for row in rows for name in first):
        moved = {
            spec.name: first[spec.name] * first[spec.name].dtype.type(0.75) + first[spec.name].dtype.type(0.125)
            if spec.batch_axis is not None and first[spec.name].dtype.kind == "f"
            else first[spec.name]
            for spec in specs
        }
        return ["background row 0", "background row 0, times 0.75 plus 0.125"], [first, moved]
    return [f"background row {index}" for index in picked], rows


def _program(runner: Runner, graph: Graph, row: Mapping[str, Array]) -> Array:
    return np.asarray(runner.run({name: row[name] for name in graph.inputs})[graph.outputs[0]])


def _run(runner: Runner, original: Original, feeds: Mapping[str, Array], size: int = 1) -> Array:
    return np.asarray(runner.run(original.feeds(feeds, size), [original.output])[original.output])


@dataclass(frozen=True)
class Gap:
    """The largest difference between two lists of arrays: in which pair, at which element, and how large it may be."""

    which: int
    at: list[int]
    ours: float
    theirs: float
    size: float
    allowed: float

    def __str__(self) -> str:
        return f"difference {self.size:.3g}, allowed {self.allowed:.3g}"


def find_gap(ours: Sequence[Array], theirs: Sequence[Array], allowed: float) -> Gap | None:
    """Return the largest difference between arrays of the same shapes, None where it is within what is allowed.

    Parameters
    ----------
    allowed : at least; see `floor`.
    """
    differences = [_difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    which = int(np.argmax([np.max(difference, initial=0.0) for difference in differences]))
    mine, other = ours[which], theirs[which]
    allowed = max(allowed, floor(mine.dtype, other.dtype))
    size = float(np.max(differences[which], initial=0.0))
    if size <= allowed:
        return None
    at = np.unravel_index(int(np.argmax(differences[which])), mine.shape)
    return Gap(which, [int(i) for i in at], float(mine[at]), float(other[at]), size, allowed)


def scale(values: Sequence[Array]) -> float:
    """Return the largest finite magnitude, 0 where there is none."""
    finite = [np.abs(value[np.isfinite(value)]) for value in (np.asarray(v, np.float64) for v in values)]
    return max((float(np.max(value, initial=0.0)) for value in finite), default=0.0)


def _difference(ours: Array, theirs: Array) -> Array:
    """Return the absolute difference; 0 where both are the same NaN or infinity, infinity where one is."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        return np.where(same, 0.0, np.nan_to_num(np.abs(ours - theirs), nan=np.inf))


def _compare_alone(original: Original, labels: Sequence[str], ours: Sequence[Array], theirs: Sequence[Array]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape:
            raise ModelError(
                f"the imported program is not the model: output {original.output!r} has shape {list(mine.shape)} "
                f"in the program and {list(other.shape)} in the original at batch 1."
            )
    gap = find_gap(ours, theirs, original.allowed(theirs))
    if gap is not None:
        raise ModelError(
            f"the imported program is not the model: output {original.output!r} at {gap.at} is {gap.ours:.7g} in the "
            f"program and {gap.theirs:.7g} in the original at batch 1 ({labels[gap.which]}; {gap})."
        )


_MIXES = (
    "The model mixes the rows of its batch, so that no row has an output of its own and its attributions would be "
    "those of another function. If the batch is not axis 0 of every input, say where it is: "
    "batch_axes={input: axis, or None where there is no batch}."
)


def _rows_of(together: Array, size: int, shape: tuple[int, ...]) -> list[Array] | None:
    """Split the output of a batch into what each of `size` rows should give, None if no axis is the batch.

    The batch axis may be absent from `shape`: a Squeeze without axes takes it away at batch 1.
    """
    for axis, length in enumerate(together.shape):
        others = together.shape[:axis] + together.shape[axis + 1 :]
        if length == size and others == shape:
            return list(np.moveaxis(together, axis, 0))
        if together.ndim == len(shape) and length == size * shape[axis] and others == shape[:axis] + shape[axis + 1 :]:
            return np.split(together, size, axis)
    return None


def _compare_together(original: Original, labels: Sequence[str], ours: Sequence[Array], together: Array) -> None:
    size = len(ours)
    shape = ours[0].shape
    theirs = _rows_of(together, size, shape)
    if theirs is None or any(value.shape != shape for value in ours):
        raise ModelError(
            f"output {original.output!r} has shape {list(shape)} for one row and {list(together.shape)} for {size} "
            f"rows. {_MIXES}"
        )
    gap = find_gap(ours, theirs, original.allowed(theirs))
    if gap is not None:
        raise ModelError(
            f"output {original.output!r} at {gap.at} of {labels[gap.which]} is {gap.ours:.7g} alone and "
            f"{gap.theirs:.7g} in a batch of {size} ({gap}). {_MIXES}"
        )
