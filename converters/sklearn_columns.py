"""Transformers of single columns as sums of steps and ramps: skl2onnx looks them up by indices, which have no delta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.helper import np_dtype_to_tensor_dtype

from deepshap_ir.converters.sklearn_trees import Convert


def column_converters() -> dict[type, Convert]:
    """Converters by class of estimator, for ``custom_conversion_functions``."""
    from sklearn import preprocessing

    return {preprocessing.KBinsDiscretizer: bins, preprocessing.QuantileTransformer: quantiles}


class _Columns:
    """Nodes that read the columns of a table, each beside K numbers of its own: ``[N, F, K]``.

    Parameters
    ----------
    scope, operator, container : as skl2onnx gives them to a converter.
    """

    def __init__(self, scope: Any, operator: Any, container: Any) -> None:
        from skl2onnx.common.data_types import guess_numpy_type

        self.scope, self.container = scope, container
        self.dtype = np.dtype(guess_numpy_type(operator.outputs[0].type))
        x = self.add("Cast", operator.inputs[0].full_name, to=np_dtype_to_tensor_dtype(self.dtype))
        self.x = self.add("Unsqueeze", x, self.constant([-1], np.int64))

    def add(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """The name of what one more node makes."""
        output = output or self.scope.get_unique_variable_name(op_type.lower())
        self.container.add_node(
            op_type, list(inputs), output, name=self.scope.get_unique_operator_name(op_type), **attributes
        )
        return output

    def constant(self, values: Any, dtype: Any = None) -> str:
        """The name of a constant."""
        array = np.asarray(values, self.dtype if dtype is None else dtype)
        name: str = self.scope.get_unique_variable_name("constant")
        kind = np_dtype_to_tensor_dtype(array.dtype)
        self.container.add_initializer(name, kind, list(array.shape), array.reshape(-1).tolist())
        return name

    def padded(self, rows: Sequence[Any], end: float) -> str:
        """One row of numbers for each column, all of one length, as a constant."""
        width = max(map(len, rows))
        return self.constant([[*row, *[end] * (width - len(row))] for row in rows])

    def steps(self, operator: str, edges: str) -> str:
        """1 where the column is above the edge, else 0."""
        return self.add("Cast", self.add(operator, self.x, edges), to=np_dtype_to_tensor_dtype(self.dtype))

    def total(self, terms: str, output: str) -> None:
        """The sum over the K, ``[N, F]``."""
        self.add("ReduceSum", terms, self.constant([-1], np.int64), output=output, keepdims=0)


def bins(scope: Any, operator: Any, container: Any) -> None:
    """KBinsDiscretizer: the number of edges at or below x, or one step up and one down for each bin."""
    binned, result = operator.raw_operator, operator.outputs[0].full_name
    columns = _Columns(scope, operator, container)
    inner = [edges[1:-1] for edges in binned.bin_edges_]
    if binned.encode == "ordinal":
        columns.total(
            columns.steps("GreaterOrEqual", columns.padded([[*row, np.inf] for row in inner], np.inf)), result
        )
        return
    up = columns.steps("GreaterOrEqual", columns.padded([[-np.inf, *row] for row in inner], np.inf))
    down = columns.steps("GreaterOrEqual", columns.padded([[*row, np.inf] for row in inner], np.inf))
    width = max(map(len, inner)) + 1
    flat = columns.add("Reshape", columns.add("Sub", up, down), columns.constant([-1, width * len(inner)], np.int64))
    kept = [j * width + k for j, row in enumerate(inner) for k in range(len(row) + 1)]
    columns.add("Gather", flat, columns.constant(kept, np.int64), output=result, axis=1)


def quantiles(scope: Any, operator: Any, container: Any) -> None:
    """QuantileTransformer: ramps between the quantiles, and steps where several are equal.

    There the result is the mean of the two sides, at the ends of the range 0 and 1.
    """
    from skl2onnx.common._registration import get_converter

    fitted = operator.raw_operator
    if fitted.output_distribution != "uniform":
        get_converter(operator.type)(scope, operator, container)
        return
    columns = _Columns(scope, operator, container)
    starts: list[Any] = []
    lengths: list[Any] = []
    slopes: list[Any] = []
    above: list[Any] = []
    at: list[Any] = []
    for values in np.asarray(fitted.quantiles_, columns.dtype).T:
        place, first, count = np.unique(values, return_index=True, return_counts=True)
        before, after = fitted.references_[first], fitted.references_[first + count - 1]
        length = np.diff(place.astype(np.float64))
        starts.append(place)
        lengths.append([*length, 0.0])
        slopes.append([*(before[1:] - after[:-1]) / length, 0.0])
        jump = (after - before) / 2
        above.append([2 * jump[0], *jump[1:-1], 0.0] if len(place) > 1 else [1.0])
        at.append([0.0, *jump[1:-1], 2 * jump[-1]] if len(place) > 1 else [0.0])
    edges, nothing = columns.padded(starts, np.inf), columns.constant(0.0)
    from_edge = columns.add("Max", columns.add("Sub", columns.x, columns.padded(starts, 0.0)), nothing)
    ramps = columns.add("Min", from_edge, columns.padded(lengths, 0.0))
    terms = columns.add("Mul", ramps, columns.padded(slopes, 0.0))
    for operator_name, jumps in (("Greater", above), ("GreaterOrEqual", at)):
        if np.any(np.concatenate(jumps)):
            step = columns.add("Mul", columns.steps(operator_name, edges), columns.padded(jumps, 0.0))
            terms = columns.add("Add", terms, step)
    columns.total(terms, operator.outputs[0].full_name)
