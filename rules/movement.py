"""Operators that only move elements: the multipliers move back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, Value, rule


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(ctx: Context, m: Sequence[Value]) -> Value:
    """The same elements in another shape: back to the input's shape."""
    value: Value = ctx.op.Reshape(m[0], ctx.shape())
    return value


@rule("Transpose")
def transpose(ctx: Context, m: Sequence[Value]) -> Value:
    """``y[i_p(0), i_p(1), ...] = x[i_0, i_1, ...]``: the inverse permutation."""
    permutation = ctx.attribute("perm") or range(m[0].rank)[::-1]
    value: Value = ctx.op.Transpose(m[0], perm=np.argsort(permutation).tolist())
    return value
