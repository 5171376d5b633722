"""Conversions of models that are alive, so that a second explainer of a model does not export it again."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from deepshap_ir.converters.registry import Conversion
from deepshap_ir.errors import ModelError
from deepshap_ir.importing.feeds import Array

KEPT = 4
"""Exports that are remembered of one model, the latest ones."""

_remembered: dict[int, dict[Hashable, Any]] = {}
"""Of a model, by its id, for as long as it lives."""

T = TypeVar("T")


def content(arrays: Iterable[Array]) -> str:
    """Return a short name of what is in some arrays."""
    digest = hashlib.blake2b()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def shapes(rows: Mapping[str, Array], axes: Mapping[str, int | None]) -> Hashable:
    """Return what an export depends on of rows by input name: dtypes, and shapes without the batch axis."""
    return tuple(
        (name, str(a.dtype), axes[name], tuple(n for i, n in enumerate(a.shape) if i != axes[name]))
        for name, a in rows.items()
    )


def remembered(model: Any, key: Hashable, export: Callable[[], T], conversion: Callable[[T], Conversion]) -> Conversion:
    """Return the conversion of `model` as it was exported before, if that still agrees, or of a new export.

    Parameters
    ----------
    key : what an export depends on.
    conversion : what is made of an export.
    """
    known = _remembered.get(id(model), {})
    earlier = known.get(key)
    if earlier is not None:
        found = conversion(earlier)
        try:
            found.check()
        except ModelError:
            # something has changed that the key does not show, a list that the model reads say
            known.pop(key, None)  # another thread may have found it too
        else:
            return found
    exported = export()
    if id(model) not in _remembered:
        weakref.finalize(model, _remembered.pop, id(model), None)
    kept = _remembered.setdefault(id(model), {})
    kept[key] = exported
    while len(kept) > KEPT:
        kept.pop(next(iter(kept)), None)
    return conversion(exported)
