"""What a rule or an expansion writes, checked where it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

import onnx

from deepshap_ir.engine.value import Value
from deepshap_ir.errors import RuleError


def check_call(
    op_type: str, domain: str, opset: int, program: Any, values: Sequence[Value | None], attributes: Mapping[str, Any]
) -> None:
    """Check an operator that is to be emitted into `program`.

    Raises
    ------
    RuleError : an attribute is a value, an operand is missing or of another program, or ONNX has no such operator or
        attribute.
    """
    for key, value in attributes.items():
        if isinstance(value, Value):
            raise RuleError(
                f"{op_type}: the attribute {key!r} is {value!r}, which the program computes; an attribute is fixed"
            )
    for value in values:
        if value is not None and value.op is not program:
            raise RuleError(
                f"{op_type}: {value!r} is of another program; a rule may not keep values from one call to the next"
            )
    if domain:
        return
    if not _versions(op_type):
        close = get_close_matches(op_type, _operators(), n=1)
        raise RuleError(f"ONNX has no operator {op_type!r}{f'; did you mean {close[0]!r}?' if close else ''}")
    schema = _schema(op_type, opset)
    if schema is None:
        return
    known = schema.attributes
    unknown = [key for key in attributes if key not in known]
    if unknown:
        listed = ", ".join(map(repr, known)) or "none"
        raise RuleError(f"{op_type} of opset {opset} has no attribute {unknown[0]!r}; it has {listed}")
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for i, formal in enumerate(schema.inputs):
        required = i < schema.min_input and formal.option != optional
        if required and (i >= len(values) or values[i] is None):
            raise RuleError(
                f"{op_type}: operand {i} ({formal.name}) is None. So is an entry of m where nothing uses that output, "
                "and an attribute that the node leaves out: ctx.attribute(name, default)"
            )


@cache
def _schema(op_type: str, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


@cache
def _operators() -> tuple[str, ...]:
    return tuple({s.name for s in onnx.defs.get_all_schemas() if not s.domain})


@cache
def _versions(op_type: str) -> bool:
    return _schema(op_type, onnx.defs.onnx_opset_version()) is not None or op_type in {
        s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain
    }
