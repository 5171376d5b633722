"""Scatter with a product, a maximum or a minimum: what meets at one place are the players of it."""

from __future__ import annotations

import math

import numpy as np

from deepshap_ir.extend import Array, Context, Value
from deepshap_ir.rules.local import all_but_one
from deepshap_ir.rules.maximum import multipliers_of_max


def combined(ctx: Context, m: Value, places: Array, depth: int) -> list[Value | None]:
    """The Shapley values of the element of the data and of the updates that meet it, over their deltas.

    `places` are fixed, in the `depth` leading axes of the data, taken as one. Each place has a row of a table with all
    that meets there, filled with what changes nothing.
    """
    op, shape, reduction = ctx.op, ctx.shape(), ctx.attribute("reduction")
    size, rest = math.prod(shape[:depth]), list(shape[depth:])
    flat = places.reshape(-1)
    count = np.bincount(flat, minlength=size)
    table = np.full((size, 1 + count.max(initial=0)), size + flat.size)
    table[:, 0] = np.arange(size)
    column = np.zeros(flat.size, np.int64)
    seen = np.ones(size, np.int64)
    for k, place in enumerate(flat):
        column[k] = seen[place]
        table[place, seen[place]] = size + k
        seen[place] += 1
    lowest = float(np.finfo(ctx.as_float(ctx.x()).dtype).min)
    sign = -1.0 if reduction == "min" else 1.0

    def players(data: Value, updates: Value) -> Value:
        parts = [op.Reshape(ctx.as_float(data), [size, *rest]), op.Reshape(ctx.as_float(updates), [flat.size, *rest])]
        parts = [part * sign for part in parts] if sign < 0 else parts
        neutral = op.constant(np.full([1, *rest], 1.0 if reduction == "mul" else lowest), parts[0].dtype)
        met = op.Gather(op.Concat(*parts, neutral, axis=0), table, axis=0)
        order = [0, *range(2, 2 + len(rest)), 1]
        value: Value = op.Transpose(met, perm=order)
        return value

    z, z0 = players(ctx.x(0), ctx.x(2)), players(ctx.x0(0), ctx.x0(2))
    share = all_but_one(z, z0) if reduction == "mul" else multipliers_of_max(ctx, z, z0)
    shared = op.Unsqueeze(op.Reshape(m, [size, *rest]), [-1]) * share
    rows = op.Reshape(op.Transpose(shared, perm=[0, shared.rank - 1, *range(1, shared.rank - 1)]), [-1, *rest])
    width = table.shape[1]
    data = op.Reshape(op.Gather(rows, np.arange(size) * width, axis=0), list(shape))
    updates = op.Gather(rows, flat * width + column, axis=0)
    return [data, None, op.Reshape(updates, list(ctx.shape(2)))]
