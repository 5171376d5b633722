"""What was read along an axis goes back to where it was read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Array, Value

WIDEST_MATRIX = 1 << 18
"""Reads along the last axis go back by a matrix of up to so many elements: onnxruntime gathers there one by one."""


def given_back(m: Value, axis: int, reads: Array, size: int) -> Value:
    """The multiplier of x where ``y[.., j, ..] = x[.., reads[j], ..]``: what was read more than once adds up.

    Parameters
    ----------
    m : multiplier of y.
    reads : ``[J]``, places along `axis` of x, not negative.
    size : length of x along `axis`.
    """
    op, n = m.op, len(reads)
    steps = set(np.diff(reads).tolist())
    if n == 0:
        return op.zeros([*m.shape[:axis], size, *m.shape[axis + 1 :]], m.dtype)
    if steps == {-1}:
        return given_back(op.Slice(m, [-1], [-n - 1], [axis], [-1]), axis, reads[::-1], size)
    if steps <= {1}:
        return surrounded(m, {axis: (int(reads[0]), size - 1 - int(reads[-1]))})
    if math.prod(m.shape[axis + 1 :]) == 1 and n * size <= WIDEST_MATRIX:
        matrix = np.zeros((n, size))
        matrix[np.arange(n), reads] = 1
        rows: Value = op.Reshape(m, [*m.shape[:axis], n]) @ matrix
        return op.Reshape(rows, [*m.shape[:axis], size, *m.shape[axis + 1 :]])
    return _tabulated(m, axis, reads, size)


def _tabulated(m: Value, axis: int, reads: Array, size: int) -> Value:
    """Sums over tables of 1, 2, 4, ... reads of a place: at most twice as many are looked up as there are."""
    op, n = m.op, len(reads)
    count = np.bincount(reads, minlength=size)
    order, ends = np.argsort(reads, kind="stable"), np.cumsum(count)
    widths = 1 << np.ceil(np.log2(np.maximum(count, 1))).astype(np.int64)
    if (count == 0).any() or (widths != count).any():
        m = surrounded(m, {axis: (0, 1)})  # place n holds the zero that fills the tables
    parts, places = [], []
    for width in np.unique(widths):
        chosen = np.flatnonzero(widths == width)
        table = np.full((len(chosen), width), n)
        for row, place in zip(table, chosen, strict=True):
            row[: count[place]] = order[ends[place] - count[place] : ends[place]]
        in_order = np.array_equal(table.reshape(-1), np.arange(m.shape[axis]))
        part = m if in_order else op.Gather(m, table.reshape(-1), axis=axis)
        if width > 1:
            part = op.Reshape(part, [*m.shape[:axis], *table.shape, *m.shape[axis + 1 :]])
            part = op.ReduceSum(part, [axis + 1], keepdims=0)
        parts.append(part)
        places.append(chosen)
    if len(parts) == 1:
        return parts[0]
    return op.Gather(op.Concat(*parts, axis=axis), np.argsort(np.concatenate(places)), axis=axis)


def surrounded(m: Value, room: dict[int, tuple[int, int]]) -> Value:
    """`m` with so many zeros before and after it along each axis; negative numbers cut off."""
    pads = np.zeros((2, m.rank), np.int64)
    for axis, (before, after) in room.items():
        pads[:, axis] = before, after
    axes = np.flatnonzero(pads.any(0))
    if len(axes) and pads.max() <= 0:
        return m.op.Slice(m, -pads[0, axes], np.array(m.shape)[axes] + pads[1, axes], axes)
    return m.op.Pad(m, pads.reshape(-1)) if len(axes) else m


def taken(m: Value, axes: Sequence[int], places: Array) -> Value:
    """The elements of `m` at `places` of its leading `axes`, taken as one axis: ``[*places, *other axes]``."""
    rest = m.shape[len(axes) :]
    return m.op.Gather(m.op.Reshape(m, [-1, *rest]), places, axis=0)
