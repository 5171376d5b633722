"""An ONNX model against the model that it was made from, on background rows, at two batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import ModelProto, helper

from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.importing.feeds import Array, InputSpec, rows, take
from deepshap_ir.importing.half import has_half, raise_half
from deepshap_ir.importing.runner import Runner
from deepshap_ir.importing.verify import HALF_TOLERANCE, TOLERANCE, coarseness, find_gap, scale

__all__ = ["HALF_TOLERANCE", "TOLERANCE", "compare", "some_rows"]

ROWS = 3
"""One more than the two rows with which models are exported: what an exporter froze at 2 is seen."""

Original = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def some_rows(
    arrays: Mapping[str, Array], axes: Mapping[str, int | None], what: str = "background"
) -> dict[str, Array]:
    """Return three rows of every array; where there are fewer, more are made by moving the floats of the first.

    Raises
    ------
    InputError : the arrays have different numbers of rows, or none.
    """
    specs = _specs(arrays, axes)
    count = rows(arrays, specs, what)
    picked = sorted({0, count // 2, count - 1})
    found = take(arrays, specs, picked)
    first = take(arrays, specs, [0])
    for moved in range(len(picked), ROWS):
        for name, axis in axes.items():
            row = first[name]
            if axis is None:
                continue
            if row.dtype.kind == "f":
                row = row * row.dtype.type(1 - 0.25 * moved) + row.dtype.type(0.125)
            found[name] = np.concatenate([found[name], row], axis)
    return found


def compare(
    model: ModelProto,
    original: Original,
    arrays: Mapping[str, Array],
    axes: Mapping[str, int | None],
    tolerance: float = TOLERANCE,
) -> None:
    """Run both on one row and on all rows.

    Parameters
    ----------
    model : with a free batch, or made for one row.
    original : arrays by input name -> arrays by output name; the outputs of `model`.
    arrays : rows by input name.
    axes : input name -> axis of the batch, None where it has none.
    tolerance : relative to the largest output.

    Raises
    ------
    ModelError : the outputs differ in shape or value; the message has both numbers.
    """
    if has_half(model):
        copy = ModelProto()
        copy.CopyFrom(model)
        raise_half(copy)
        model = copy
    runner = Runner(model, "the converted model")
    specs = _specs(arrays, axes)
    count = rows(arrays, specs)
    pieces = [(1, take(arrays, specs, [0])), (count, take(arrays, specs, range(count)))]
    if _made_for_one_row(model, axes):
        pieces = [(1, take(arrays, specs, [row])) for row in range(count)]
    found = []
    for size, feeds in pieces:
        try:
            found.append((size, feeds, original(feeds)))
        except InputError:
            # a model need not take a single row, but must be compared on something
            if size == pieces[-1][0]:
                raise
    allowed = {}
    for name, first in found[0][2].items():
        # of all rows: that of one row may be next to nothing
        largest = scale([theirs[name] for *_, theirs in found])
        allowed[name] = max(tolerance * largest, coarseness(model, name) if first.dtype != np.float64 else 0.0)
    for size, feeds, theirs in found:
        where = f"on {size} background row{'s' * (size > 1)}"
        _check(_run(runner, model, feeds), theirs, where, allowed)


def _specs(arrays: Mapping[str, Array], axes: Mapping[str, int | None]) -> list[InputSpec]:
    return [InputSpec(name, array.dtype, batch_axis=axes.get(name, 0)) for name, array in arrays.items()]


def _made_for_one_row(model: ModelProto, axes: Mapping[str, int | None]) -> bool:
    """Tell whether `model` declares a batch of 1."""
    for value in model.graph.input:
        axis = axes.get(value.name)
        if axis is not None and value.type.tensor_type.HasField("shape"):
            return bool(value.type.tensor_type.shape.dim[axis].dim_value == 1)
    return False


def _run(runner: Runner, model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    dtypes = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in model.graph.input}
    return runner.run({name: array.astype(dtypes[name]) for name, array in feeds.items()})


def _check(
    ours: Mapping[str, Array],
    theirs: Mapping[str, Array],
    where: str,
    allowed: Mapping[str, float],
) -> None:
    for name, their in theirs.items():
        mine = np.asarray(ours[name])
        if mine.shape != their.shape:
            raise ModelError(
                f"the converted model is another function: {name!r} has shape {list(mine.shape)} in ONNX and "
                f"{list(their.shape)} in the original {where}."
            )
        gap = find_gap([mine], [their], allowed[name])
        if gap is not None:
            raise ModelError(
                f"the converted model is another function: {name!r} at {gap.at} is {gap.ours:.7g} in ONNX and "
                f"{gap.theirs:.7g} in the original {where} ({gap}). Does the model choose its way by the values "
                f"of its inputs, or draw random numbers?"
            )
