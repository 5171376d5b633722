"""A pair of symbolic Keras tensors: the model between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deepshap_ir.converters.keras_calls import is_symbol, library, name_of, unique
from deepshap_ir.converters.registry import comes_from
from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.importing.runner import one_line


@dataclass(frozen=True)
class Pair:
    """The model between tensors.

    Attributes
    ----------
    model : functional, with the layers that are there.
    names : of its inputs.
    owner : what lives as long as the user's model.
    """

    model: Any
    names: tuple[str, ...]
    owner: Any


def between(inputs: Any, outputs: Any) -> Pair:
    """Return the model from tensors of a Keras graph, or lists of them, to others.

    Raises
    ------
    InputError : these are not tensors of a Keras graph, or the outputs need inputs that are not among them.
    """
    ends = _listed(outputs, "second")
    if isinstance(inputs, list | tuple) and not inputs:  # model.layers[0].input, where that is an InputLayer
        inputs = _missing([], ends)
        if len(inputs) > 1:
            raise InputError(
                f"the first of a pair of Keras tensors is an empty list, and the output needs several inputs "
                f"({', '.join(repr(name_of(symbol)) for symbol in inputs)}): give them in a list, such as model.inputs."
            )
    starts = _listed(inputs, "first")
    names = tuple(unique([name_of(symbol) for symbol in starts]))
    missing = [name_of(symbol) for symbol in _missing(starts, ends)]
    if missing:
        raise InputError(
            f"the output is not connected to the inputs ({', '.join(map(repr, names))}) alone: it also needs "
            f"{', '.join(map(repr, missing))}; give them in the list of inputs."
        )
    try:
        with _same_nodes([*starts, *ends]):
            model = library(ends[0]).Model(starts, ends[0] if len(ends) == 1 else ends)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"Keras makes no model of the pair of tensors: {one_line(error)}") from error
    return Pair(model, names, ends[0])


def _listed(value: Any, which: str) -> list[Any]:
    found = list(value.values()) if isinstance(value, dict) else value
    found = list(found) if isinstance(found, list | tuple) else [found]
    for symbol in found:
        if not is_symbol(symbol):
            kind = type(symbol)
            raise InputError(
                f"the {which} of a pair of Keras tensors must be one or a list of them, such as model.input or "
                f"layer.output, not {kind.__module__}.{kind.__qualname__}."
            )
    if not found:
        raise InputError(f"the {which} of a pair of Keras tensors is an empty list.")
    return found


def _missing(starts: Sequence[Any], ends: Sequence[Any]) -> list[Any]:
    """Return the model's inputs that `ends` need beside `starts`."""
    given, found = {id(symbol) for symbol in starts}, []
    seen: set[int] = set()
    stack = list(ends)
    while stack:
        symbol = stack.pop()
        if id(symbol) in given or id(symbol) in seen:
            continue
        seen.add(id(symbol))
        above = _above(symbol)
        if not above:
            found.append(symbol)
        stack.extend(above)
    return found


def _above(symbol: Any) -> list[Any]:
    """Return the tensors from which the operation of `symbol` computes it."""
    operation, index = symbol._keras_history[:2]
    node = operation._inbound_nodes[index]
    return list(node.keras_inputs if comes_from(symbol, "tf_keras") else node.input_tensors)


@contextmanager
def _same_nodes(symbols: Sequence[Any]) -> Iterator[None]:
    """Leave the nodes of the graph above `symbols` as they were: a model from its middle adds to them."""
    saved: list[tuple[list[Any], list[Any]]] = []
    seen: set[int] = set()
    stack = list(symbols)
    while stack:
        symbol = stack.pop()
        if id(symbol) in seen:
            continue
        seen.add(id(symbol))
        stack.extend(_above(symbol))
        operation = symbol._keras_history[0]
        if id(operation) not in seen:
            seen.add(id(operation))
            saved += [(nodes, list(nodes)) for nodes in (operation._inbound_nodes, operation._outbound_nodes)]
    try:
        yield
    finally:
        for nodes, before in saved:
            nodes[:] = before
