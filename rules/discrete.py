"""Indices: of the largest element, and of an element that is marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, Expansion, Value, expand, rule
from deepshap_ir.rules.shapley import quotient


@rule("ArgMax", "ArgMin", exact=False)
def position(ctx: Context, m: Sequence[Value]) -> Value:
    """0: where the largest element is has no part of any element. What it changes is left unattributed."""
    return ctx.op.zeros(ctx.shape(), ctx.as_float(ctx.x()).dtype)


@rule("OneHot")
def one_hot(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``y = off + (on - off) e_i``: indices i and the two values are the players, each by its mean at the other's ends.

    An index gets ``phi = <m, (on - off) (e_i - e_i0)>``, the sum over the marks, as ``phi / (i - i0)``.
    """
    op, axis = ctx.op, ctx.attribute("axis", -1) % m[0].rank
    depth = m[0].shape[axis]

    def marks(i: Value) -> Value:
        """``e_i`` as numbers."""
        whole = op.cast(i, np.int64)
        index = op.Unsqueeze(op.Where(whole < 0, whole + depth, whole), [axis])
        places = np.arange(depth).reshape([-1 if a == axis else 1 for a in range(m[0].rank)])
        return op.cast(op.Equal(index, op.constant(places)), m[0].dtype)

    e, e0 = marks(ctx.x(0)), marks(ctx.x0(0))
    mid = (e + e0) * 0.5 if ctx.varies(0) else e
    result: list[Value | None] = [None, None, None]
    if ctx.varies(0):
        step = op.cast(_last(ctx.mid_x(2), 1) - _last(ctx.mid_x(2), 0), m[0].dtype)
        phi = op.ReduceSum(m[0] * (e - e0), [axis], keepdims=0) * step
        delta = ctx.delta_x(0)
        result[0] = quotient(op.cast(phi, delta.dtype), delta)
    if ctx.varies(2):
        on = op.ReduceSum(m[0] * mid, keepdims=0)
        off = op.ReduceSum(m[0], keepdims=0) - on
        result[2] = op.Concat(op.Reshape(off, [1]), op.Reshape(on, [1]), axis=0)
    return result


def _last(values: Value, k: int) -> Value:
    number: Value = values.op.Gather(values, np.array(k), axis=0)
    return number


@expand("OptionalGetElement")
def optional_element(ctx: Expansion) -> Value:
    """A tensor itself."""
    return ctx.x()
