"""What a model returns: tensors in nested structures, by name, and the one that is explained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deepshap_ir.errors import InputError
from deepshap_ir.importing.feeds import suggest


def leaves(value: Any, is_tensor: Callable[[Any], bool], name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses, named by their way: ``past.0.key``."""
    if is_tensor(value):
        yield name or "output", value
        return
    items: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif dataclasses.is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, tuple | list):
        keys = getattr(value, "_fields", None) or [str(i) if name else f"output_{i}" for i in range(len(value))]
        items = list(zip(keys, value, strict=True))
    for key, item in items:
        yield from leaves(item, is_tensor, f"{name}.{key}" if name else key)


def choose(
    found: Mapping[str, Any], output: str | int | None, is_float: Callable[[Any], bool], title: str
) -> list[str]:
    """Return the names of the outputs to export: the chosen one, or all where the name is none of them.

    Raises
    ------
    InputError : there is no such output, or no single one of floats.
    """
    names = list(found)
    if not names:
        raise InputError(f"{title} returns no tensor: nothing to explain.")
    if isinstance(output, str):
        return [output] if output in found else names
    if output is not None:
        if not -len(names) <= output < len(names):
            raise InputError(f"output: there is no output {output}; {title} returns {', '.join(map(repr, names))}.")
        return [names[output]]
    floats = [name for name, value in found.items() if is_float(value)]
    if len(floats) != 1:
        raise InputError(
            f"output: {title} returns {len(floats)} tensors of floats; choose one by name or index with output=."
            f"{suggest('', names)}"
        )
    return floats
