"""Data as people give them, into one array per input of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepshap_ir.errors import InputError, NonFiniteError

Array = NDArray[Any]


@dataclass(frozen=True)
class InputSpec:
    """What is fed under one name.

    Attributes
    ----------
    dtype : of the array that the graph takes.
    shape : with the batch axis; None where the model does not say.
    batch_axis : where the rows are, None if the whole array is one value that all rows share.
    allows_nan : an operator made for missing values consumes the input.
    allows_infinity : the value is not explained, so its infinities (an attention mask) never enter a difference.
    columns : labels of the columns, by which a DataFrame is matched; None where the background had none.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None = None
    batch_axis: int | None = 0
    allows_nan: bool = False
    allows_infinity: bool = False
    columns: tuple[Any, ...] | None = None


def suggest(name: str, names: Sequence[str]) -> str:
    """Return the end of a message about an unknown name: close matches, then what there is."""
    names = list(dict.fromkeys(names))
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    listed = ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"{hint} There are: {listed or 'none'}."


def is_list(data: Any) -> bool:
    """Tell a list of arrays, one per input, from one array (nested lists of numbers included)."""
    return isinstance(data, (list, tuple)) and len(data) > 0 and all(hasattr(item, "__array__") for item in data)


def as_array(value: Any) -> Array:
    """Return a tensor of any framework as an array, wherever it is and whatever it records."""
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # torch; numpy knows no bfloat16
        value = value.to_dense() if value.is_sparse else value
        return np.asarray((value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy(force=True))
    return np.asarray(value)


def columns(data: Any) -> tuple[Any, ...] | None:
    """Return the labels of the columns of a DataFrame, None for anything else."""
    return tuple(data.columns) if hasattr(data, "columns") and hasattr(data, "to_numpy") else None


def by_name(data: Any, names: Sequence[str], what: str = "background") -> dict[str, Any]:
    """Return data given as an array, a list of arrays, a mapping or a DataFrame as input name -> array.

    A DataFrame beside several inputs has a column for each of them.

    Parameters
    ----------
    names : the inputs, in order.
    what : how messages call the data.

    Raises
    ------
    InputError : the number of arrays is not that of the inputs.
    """
    if isinstance(data, Mapping) and not hasattr(data, "__array__"):
        return {str(name): value for name, value in data.items()}
    labels = columns(data)
    if labels is not None and len(names) > 1 and any(name in labels for name in names):
        return {str(label): data[[label]] for label in labels}
    arrays = list(data) if is_list(data) else [data]
    if len(arrays) != len(names):
        raise InputError(
            f"{what}: expected {len(names)} array{'s' * (len(names) != 1)} "
            f"(inputs {', '.join(map(repr, names))}), given {len(arrays)}."
        )
    return dict(zip(names, arrays, strict=True))


def read(value: Any, spec: InputSpec, what: str = "background") -> Array:
    """Return `value` as an array of the dtype and shape that `spec` asks for.

    Integers become floats and float64 becomes float32; floats never become integers.

    Raises
    ------
    InputError : the dtype or the shape does not fit.
    NonFiniteError : NaN or infinity, at which row.
    """
    value = _matched(value, spec, what)
    try:
        array = as_array(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{what} of input {spec.name!r} is no array: {error}") from None
    where = f"{what} of input {spec.name!r}"
    if columns(value) and array.ndim == 2 and array.shape[1] == 1 and len(spec.shape or (0, 0)) == 1:
        array = array[:, 0]  # of one column, for an input without an axis for it
    array = _cast(array, spec.dtype, where)
    _check_shape(array, spec, where)
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        _refuse_non_finite(array, spec, where)
    return array


def rows(arrays: Mapping[str, Array], specs: Sequence[InputSpec], what: str = "background") -> int:
    """Return how many rows the arrays have.

    Raises
    ------
    InputError : the inputs have different numbers of rows, or none.
    """
    counts = {s.name: arrays[s.name].shape[s.batch_axis] for s in specs if s.batch_axis is not None}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise InputError(
            f"{what}: the inputs differ in their number of rows: {listed}. One that all rows share has no batch axis: "
            f"batch_axes={{{next(reversed(counts))!r}: None}}."
        )
    count = next(iter(counts.values()), 1)
    if count == 0:
        raise InputError(f"{what}: no rows (input {next(iter(counts))!r} is empty).")
    return count


def take(arrays: Mapping[str, Array], specs: Sequence[InputSpec], indices: Sequence[int]) -> dict[str, Array]:
    """Return some rows of every array, along its batch axis; shared arrays as they are."""
    return {
        s.name: arrays[s.name] if s.batch_axis is None else np.take(arrays[s.name], list(indices), axis=s.batch_axis)
        for s in specs
    }


def _matched(value: Any, spec: InputSpec, what: str) -> Any:
    """Return a DataFrame with its columns in the order of the background's."""
    given = columns(value)
    if given is None or spec.columns is None or given == spec.columns:
        return value
    where = f"{what} of input {spec.name!r}"
    missing = [label for label in spec.columns if label not in given]
    if missing:
        raise InputError(f"{where}: missing column {', '.join(map(repr, missing))}.{suggest(str(missing[0]), given)}")
    more = [label for label in given if label not in spec.columns]
    if more:
        raise InputError(f"{where}: column {', '.join(map(repr, more))} is not in the background; leave it out.")
    return value[list(spec.columns)]


def _cast(array: Array, dtype: np.dtype[Any], where: str) -> Array:
    if array.dtype == dtype:
        return array
    if dtype == np.dtype(object):
        return array.astype(object)
    if array.dtype.kind == "O":
        array = np.array(array.tolist())
    given = "f" if array.dtype.name == "bfloat16" else array.dtype.kind
    fits = given in "fiub" if dtype.kind == "f" else given in "iub" and bool(np.all(array.astype(dtype) == array))
    if not fits:
        raise InputError(f"{where}: expected {dtype}, given {array.dtype}. Convert it to {dtype} first.")
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == given == "f" and np.any(too_large := np.isinf(cast) & np.isfinite(array)):
        raise NonFiniteError(f"{where}: {array[too_large][0]:.6g} is too large for {dtype}.")
    return cast


def _check_shape(array: Array, spec: InputSpec, where: str) -> None:
    axis = spec.batch_axis
    if spec.shape is None:
        if axis is not None and not -array.ndim <= axis < array.ndim:
            raise InputError(f"{where}: expected rows along axis {axis}, given shape {list(array.shape)}.")
        return
    fits = len(spec.shape) == array.ndim and all(
        expected is None or expected == given or position == axis
        for position, (expected, given) in enumerate(zip(spec.shape, array.shape, strict=True))
    )
    if not fits:
        dims = ", ".join(
            "rows" if position == axis else "any" if dim is None else str(dim)
            for position, dim in enumerate(spec.shape)
        )
        raise InputError(f"{where}: expected shape [{dims}], given {list(array.shape)}.")


def _refuse_non_finite(array: Array, spec: InputSpec, where: str) -> None:
    bad = ~np.isfinite(array)
    if spec.allows_nan:
        bad &= ~np.isnan(array)
    if spec.allows_infinity:
        bad &= ~np.isinf(array)
    if not bad.any():
        return
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    row = f"row {index[spec.batch_axis]}" if spec.batch_axis is not None else "the shared value"
    raise NonFiniteError(f"{where}: {array[index]} in {row}, at index {list(index)}. Remove or impute such rows.")
