"""A value of one example, the operator that makes it, and the batch axes over which it varies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from numpy.typing import ArrayLike

from deepshap_ir.graph import Array

if TYPE_CHECKING:
    from deepshap_ir.engine.emitter import Emitter

OUTPUT, SAMPLE, BACKGROUND = "output", "sample", "background"
AXES = (OUTPUT, SAMPLE, BACKGROUND)

INTERNAL = "deepshap_ir"
"""Domain of operators that exist only here: joined patterns (with a `body`), and `SumOver`."""


class Value:
    """A value of one example inside the program that is being written.

    Attributes
    ----------
    shape : shape for one example.
    dtype : numpy dtype.
    axes : the batch axes over which the value varies, in the order of `AXES`.
    data : the array where the value is a constant known now, else None.

    Python arithmetic and comparisons on values emit the ONNX operator of the same meaning.
    """

    __slots__ = ("axes", "data", "dtype", "name", "op", "shape")
    __array_ufunc__ = None  # numpy leaves ``array * value`` to `__rmul__`

    def __init__(
        self,
        op: Emitter,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        axes: tuple[str, ...] = (),
        data: Array | None = None,
    ) -> None:
        self.op = op
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.axes = axes
        self.data = data

    @property
    def rank(self) -> int:
        """Number of dimensions for one example."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements for one example."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the value is a floating-point number."""
        return self.dtype.kind == "f"

    def __repr__(self) -> str:
        return f"Value({self.name}, {self.dtype.name}{list(self.shape)}, axes={'*'.join(self.axes) or 'none'})"

    def __add__(self, other: Operand) -> Value:
        return self.op.Add(self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.op.Add(other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.op.Sub(self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.op.Sub(other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.op.Mul(self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.op.Mul(other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self.op.Div(self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self.op.Div(other, self)

    def __matmul__(self, other: Operand) -> Value:
        return self.op.MatMul(self, other)

    def __rmatmul__(self, other: Operand) -> Value:
        return self.op.MatMul(other, self)

    def __neg__(self) -> Value:
        return self.op.Neg(self)

    def __abs__(self) -> Value:
        return self.op.Abs(self)

    def __gt__(self, other: Operand) -> Value:
        return self.op.Greater(self, other)

    def __lt__(self, other: Operand) -> Value:
        return self.op.Less(self, other)

    def __ge__(self, other: Operand) -> Value:
        return self.op.GreaterOrEqual(self, other)

    def __le__(self, other: Operand) -> Value:
        return self.op.LessOrEqual(self, other)

    def __and__(self, other: Operand) -> Value:
        return self.op.And(self, other)

    def __or__(self, other: Operand) -> Value:
        return self.op.Or(self, other)

    def __invert__(self) -> Value:
        return self.op.Not(self)

    def __pow__(self, other: Operand) -> Value:
        return self.op.Pow(self, other)

    def __rpow__(self, other: Operand) -> Value:
        return self.op.Pow(other, self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int | float | np.ndarray | np.generic):
            raise TypeError("== of values is whether they are one: compare numbers with op.Equal")
        return self is other

    __hash__ = object.__hash__

    def __getitem__(self, index: Any) -> Value:
        raise TypeError(f"{self!r} is known only when the program runs: take parts with op.Slice or op.Gather")

    def __array__(self, *_: object, **__: object) -> Array:
        raise TypeError(f"{self!r} is known only when the program runs: write op.Where, not np.where")

    def __iter__(self) -> Iterator[Value]:
        raise TypeError(f"{self!r} is known only when the program runs: op.ReduceSum sums, op.Slice takes parts")

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} is known only when the program runs: select with op.Where, not with 'if'")


Operand = Value | ArrayLike
Type = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape for one example, and dtype."""


class Operator(Protocol):
    """``op.Relu``: emits one operator; a tuple where ``outputs=n`` is given."""

    @overload
    def __call__(self, *inputs: Operand | None, outputs: None = None, **attributes: Any) -> Value: ...

    @overload
    def __call__(self, *inputs: Operand | None, outputs: int, **attributes: Any) -> tuple[Value, ...]: ...


@dataclass(frozen=True, eq=False)
class Step:
    """One operator for one example: its operands (None where absent), results and Python attributes."""

    op_type: str
    domain: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Any]

    @property
    def axes(self) -> tuple[str, ...]:
        """The union of the operands' batch axes."""
        return union(*self.inputs)


def union(*values: Value | None) -> tuple[str, ...]:
    """The batch axes that any of `values` has, in the order of `AXES`."""
    present = {axis for value in values if value is not None for axis in value.axes}
    return tuple(axis for axis in AXES if axis in present)
