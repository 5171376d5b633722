"""Tables from numbers to strings and on from these to numbers: one table, as strings have no delta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deepshap_ir.graph import Node
from deepshap_ir.joins.rewriting import Pattern, Rewriter

ENCODER, MAPPER, ONE_HOT = (f"ai.onnx.ml::{name}" for name in ("LabelEncoder", "CategoryMapper", "OneHotEncoder"))
DEFAULTS = {"strings": "_Unused", "int64s": -1, "floats": -0.0}


@dataclass(frozen=True)
class _Table:
    """Keys and values of a node, each with its kind, "strings", "int64s" or "floats"; what all other keys have."""

    keys: list[Any]
    kind_of_keys: str
    values: list[Any]
    kind: str
    default: Any

    def attributes(self) -> dict[str, Any]:
        """Those of the LabelEncoder that is this table."""
        named = {f"keys_{self.kind_of_keys}": self.keys, f"values_{self.kind}": self.values}
        return {**named, f"default_{self.kind.removesuffix('s')}": self.default}


def through_strings(graph: Rewriter, node: Node) -> list[Node] | None:
    """A LabelEncoder, CategoryMapper or OneHotEncoder of the strings that a table of numbers gives."""
    if node.operator not in (ENCODER, MAPPER, ONE_HOT):
        return None
    first = graph.made_by(node.inputs[0], ENCODER, MAPPER)
    to_strings = _table(graph, first) if first is not None else None
    if first is None or to_strings is None or to_strings.kind_of_keys == "strings" or to_strings.kind != "strings":
        return None
    if node.operator == ONE_HOT:
        names = _strings(node.attributes.get("cats_strings", ()))
        on = _Table(names, "strings", list(range(len(names))), "int64s", -1) if len(set(names)) == len(names) else None
    else:
        on = _table(graph, node)
    if on is None or on.kind_of_keys != "strings":
        return None
    lookup = dict(zip(on.keys, on.values, strict=True))
    values = [lookup.get(name, on.default) for name in to_strings.values]
    default = lookup.get(to_strings.default, on.default)
    whole = replace(to_strings, values=values, kind=on.kind, default=default).attributes()
    table = replace(node, op_type="LabelEncoder", inputs=first.inputs, attributes=whole)
    if node.operator != ONE_HOT:
        return [table]
    ids = graph.value(graph.shape(node.inputs[0]), np.int64, f"{node.outputs[0]}/ids")
    kept = {name: value for name, value in node.attributes.items() if name != "cats_strings"}
    marks = replace(node, inputs=(ids,), attributes={**kept, "cats_int64s": on.values})
    return [replace(table, name=f"{node.name}/ids", outputs=(ids,)), marks]


def _table(graph: Rewriter, node: Node) -> _Table | None:
    """The table of a LabelEncoder or CategoryMapper; None where a key has two values, or a tensor holds them."""
    given = node.attributes
    from_strings = graph.graph.dtypes[node.inputs[0]].kind == "O"
    if node.operator == MAPPER or "classes_strings" in given:
        names = _strings(given.get("cats_strings", given.get("classes_strings", ())))
        numbers = list(given.get("cats_int64s", range(len(names))))
        sides = [(names, "strings"), (numbers, "int64s")]
        (keys, kind_of_keys), (values, kind) = sides if from_strings else sides[::-1]
    else:
        found = [_side(given, side) for side in ("keys", "values")]
        if found[0] is None or found[1] is None:
            return None
        (keys, kind_of_keys), (values, kind) = found[0], found[1]
    if len(set(keys)) < len(keys) or len(keys) != len(values):
        return None
    default = given.get(f"default_{kind.removesuffix('s')}", DEFAULTS[kind])
    return _Table(keys, kind_of_keys, values, kind, _strings([default])[0] if kind == "strings" else default)


def _side(given: Any, side: str) -> tuple[list[Any], str] | None:
    for kind in DEFAULTS:
        values = given.get(f"{side}_{kind}")
        if values:
            return (_strings(values) if kind == "strings" else list(values)), kind
    return None


def _strings(values: Sequence[Any]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


TEXTS: list[Pattern] = [through_strings]
