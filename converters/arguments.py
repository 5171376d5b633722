"""A background, matched with what a model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepshap_ir.errors import InputError
from deepshap_ir.importing.feeds import Array, as_array, is_list, suggest

Pack = Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
"""Tensors in the order of the inputs -> arguments and keyword arguments."""


@dataclass(frozen=True)
class Arguments:
    """The background by input name, and how tensors in this order are given to the model."""

    arrays: Mapping[str, Array]
    pack: Pack

    @property
    def names(self) -> list[str]:
        """The inputs, in order."""
        return list(self.arrays)


def by_parameters(parameters: Sequence[str], background: Any, title: str, keyword: bool = False) -> Arguments:
    """Match the background with the parameters of a function, one of which may take a list or a dict of arrays.

    Parameters
    ----------
    title : how messages call the function.
    keyword : the function takes keyword arguments alone.

    Raises
    ------
    InputError : there is nothing to match, or it is no array of numbers.
    """
    if not parameters:
        raise InputError(f"{title} takes no arrays.")
    if is_mapping(background):
        given = {str(name): numbers(value, str(name)) for name, value in background.items()}
        keys = list(given)
        if all(name in parameters for name in keys):
            return Arguments(given, lambda tensors: ((), dict(zip(keys, tensors, strict=True))))
        if keyword or (len(parameters) > 1 and any(name in parameters for name in keys)):
            name = next(name for name in keys if name not in parameters)
            raise InputError(f"background: {title} has no input {name!r}.{suggest(name, parameters)}")
        return Arguments(given, lambda tensors: ((dict(zip(keys, tensors, strict=True)),), {}))
    values = list(background) if is_list(background) else [background]
    if keyword and len(values) != len(parameters):
        raise InputError(_count(title, parameters, len(values)))
    if len(values) == 1 or len(values) <= len(parameters):
        names = list(parameters[: len(values)])
        arrays = {name: numbers(value, name) for name, value in zip(names, values, strict=True)}
        if keyword:
            return Arguments(arrays, lambda tensors: ((), dict(zip(names, tensors, strict=True))))
        return Arguments(arrays, lambda tensors: (tuple(tensors), {}))
    if len(parameters) > 1:
        raise InputError(_count(title, parameters, len(values)))
    names = [f"{parameters[0]}_{i}" for i in range(len(values))]
    arrays = {name: numbers(value, name) for name, value in zip(names, values, strict=True)}
    return Arguments(arrays, lambda tensors: ((list(tensors),), {}))


def by_names(names: Sequence[str], background: Any, title: str) -> dict[str, Array]:
    """Match the background with the names of inputs, all of which are needed.

    Raises
    ------
    InputError : names or numbers of arrays differ, or one is no array of numbers.
    """
    if is_mapping(background):
        given = {str(name): value for name, value in background.items()}
        unknown = next((name for name in given if name not in names), None)
        missing = next((name for name in names if name not in given), None)
        if unknown is not None:
            raise InputError(f"background: {title} has no input {unknown!r}.{suggest(unknown, names)}")
        if missing is not None:
            raise InputError(f"background: the input {missing!r} of {title} is missing.{suggest(missing, list(given))}")
        return {name: numbers(given[name], name) for name in names}
    values = list(background) if is_list(background) and (len(names) > 1 or len(background) == 1) else [background]
    if len(values) != len(names):
        raise InputError(_count(title, names, len(values)))
    return {name: numbers(value, name) for name, value in zip(names, values, strict=True)}


def _count(title: str, names: Sequence[str], given: int) -> str:
    return (
        f"background: {title} takes {len(names)} input{'s' * (len(names) != 1)} "
        f"({', '.join(map(repr, names))}), given {given} array{'s' * (given != 1)}."
    )


def is_mapping(value: Any) -> bool:
    """Tell arrays by name from an array or a DataFrame."""
    return isinstance(value, Mapping) and not hasattr(value, "__array__")


def numbers(value: Any, name: str) -> Array:
    """Return the background of an input as an array of numbers.

    Raises
    ------
    InputError : it is ragged, sparse, or of strings.
    """
    kind = type(value).__name__
    if "Ragged" in kind or "Sparse" in kind:
        remedy = "pad it to one length" if "Ragged" in kind else "make it dense"
        raise InputError(f"background of input {name!r} is a {kind}; {remedy} first.")
    try:
        array = as_array(value)
        if array.dtype.kind == "O":
            array = np.array(array.tolist())
    except ValueError as error:
        raise InputError(f"background of input {name!r} is ragged ({error}); pad it to one length first.") from None
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise InputError(f"background of input {name!r}: expected numbers, given {array.dtype}.")
    return array


def cast(array: Array, dtype: str | None, name: str, floats: str = "float32") -> Array:
    """Return rows in the dtype that the model wants; where it does not say, floats as `floats`.

    Raises
    ------
    InputError : floats are given for whole numbers.
    """
    if dtype is None:
        is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
        return array.astype(floats) if is_float else array
    if array.dtype.kind == "f" and np.dtype(dtype).kind in "iub":
        whole = array.astype(dtype)
        if not np.array_equal(whole, array):
            raise InputError(f"background of input {name!r}: expected {dtype}, given {array.dtype}.")
        return whole
    return array.astype(dtype)
