"""Gather and Scatter: elements that are moved by index."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deepshap_ir.extend import Array, Context, Expansion, RuleError, Value, expand, rule
from deepshap_ir.rules.reads import given_back, taken
from deepshap_ir.rules.scattering import combined
from deepshap_ir.rules.shapley import quotient, shapley_values

Multipliers = list[Value | None]

MOST_COORDINATES = 4
"""Numbers of a varying index that are players of their own: the node is computed twice as often for one more."""


@rule("Gather")
def gather(ctx: Context, m: Sequence[Value]) -> Multipliers:
    """``y[.., p, ..] = x[.., i_p, ..]``: ``m_y`` is added up at the indices."""
    op, shape, indices = ctx.op, ctx.shape(), ctx.shape(1)
    axis = ctx.attribute("axis", 0) % len(shape)

    def back(i: Value) -> Value:
        flat = op.Reshape(m[0], np.array([*shape[:axis], math.prod(indices), *shape[axis + 1 :]], np.int64))
        if i.data is not None:
            return given_back(flat, axis, i.data.reshape(-1) % shape[axis], shape[axis])
        column = op.Reshape(i, [-1, *[1] * (flat.rank - axis - 1)])
        zeros = op.zeros(shape, flat.dtype)
        return op.ScatterElements(zeros, op.Expand(column, list(flat.shape)), flat, axis=axis, reduction="add")

    return _read(ctx, m[0], back, [a for a in range(m[0].rank) if not axis <= a < axis + len(indices)])


@rule("GatherElements")
def gather_elements(ctx: Context, m: Sequence[Value]) -> Multipliers:
    """``y[.., p, ..] = x[.., i[.., p, ..], ..]``: each number is added up where it was read."""
    op, shape = ctx.op, ctx.shape()
    axis = ctx.attribute("axis", 0) % len(shape)

    def back(i: Value) -> Value:
        if i.data is None:
            return op.ScatterElements(op.zeros(shape, m[0].dtype), i, m[0], axis=axis, reduction="add")
        places = element_places(i.data, shape, axis).reshape(-1)
        return op.Reshape(given_back(op.Reshape(m[0], [-1]), 0, places, math.prod(shape)), list(shape))

    return _read(ctx, m[0], back, [])


@rule("GatherND")
def gather_nd(ctx: Context, m: Sequence[Value]) -> Multipliers:
    """``y[b, p] = x[b, i_bp1, i_bp2, ..]``, numbers or slices: each is added up where it was read."""
    op, shape, indices = ctx.op, ctx.shape(), ctx.shape(1)
    batch, depth = ctx.attribute("batch_dims", 0), ctx.attribute("batch_dims", 0) + indices[-1]

    def back(i: Value) -> Value:
        if i.data is not None:
            places = slice_places(i.data, shape, batch).reshape(-1)
            flat = op.Reshape(m[0], [places.size, *shape[depth:]])
            return op.Reshape(given_back(flat, 0, places, math.prod(shape[:depth])), list(shape))
        rows = np.moveaxis(np.indices(indices[:-1])[:batch], 0, -1)
        i = op.Concat(rows, i, axis=-1) if batch else i
        return op.ScatterND(op.zeros(shape, m[0].dtype), i, m[0], reduction="add")

    others = list(range(len(indices) - 1, m[0].rank))
    result = _read(ctx, m[0], back, others, indices[-1] == 1)
    if ctx.varies(1) and indices[-1] > 1:
        result[1] = _coordinates(ctx, m[0], others)
    return result


@rule("ReverseSequence")
def reverse_sequence(ctx: Context, m: Sequence[Value]) -> Multipliers:
    """Its own inverse; with fixed lengths, by the places that were read. A length is an index of its row."""
    op, shape = ctx.op, ctx.shape()
    batch_axis, time_axis = ctx.attribute("batch_axis", 1), ctx.attribute("time_axis", 0)

    def back(lengths: Value) -> Value:
        if lengths.data is None:
            reversed_: Value = op.ReverseSequence(m[0], lengths, batch_axis=batch_axis, time_axis=time_axis)
            return reversed_
        places = np.arange(shape[0] * shape[1]).reshape(shape[:2])
        for row, length in zip(np.moveaxis(places, batch_axis, 0), lengths.data, strict=True):
            row[:length] = row[:length][::-1].copy()
        value = given_back(op.Reshape(m[0], [-1, *shape[2:]]), 0, places.reshape(-1), places.size)
        return op.Reshape(value, list(shape))

    return _read(ctx, m[0], back, [a for a in range(len(shape)) if a != batch_axis])


def _coordinates(ctx: Context, m: Value, others: list[int]) -> Value:
    """Of indices of several numbers each number is a player: by its Shapley value, averaged over the elements' ends."""
    op, indices = ctx.op, ctx.shape(1)
    n = indices[-1]
    if n > MOST_COORDINATES:
        raise RuleError(f"its indices vary, and are {n} numbers each; up to {MOST_COORDINATES} have a rule")
    tables = list(dict.fromkeys([ctx.x(0), ctx.x0(0)]))

    def f(at_sample: frozenset[int]) -> Value:
        chosen = op.constant(np.array([k in at_sample for k in range(n)]))
        index = op.Where(chosen, ctx.x(1), ctx.x0(1))
        y = m * _mean([ctx.as_float(ctx.forward(x, index)) for x in tables])
        return op.Reshape(op.ReduceSum(y, others, keepdims=0) if others else y, [*indices[:-1], 1])

    phi = shapley_values(f, range(n))
    return quotient(op.cast(op.Concat(*(phi[k] for k in range(n)), axis=-1), op.dtype), ctx.delta_x(1))


def _read(
    ctx: Context, m: Value, back: Callable[[Value], Value], others: list[int], single: bool = True
) -> Multipliers:
    """The multipliers of elements and indices, from what takes ``m_y`` back to the elements for given indices.

    Varying indices i (of an embedding) get ``phi_p = <m_p, x[i_p] - x[i0_p]>``, the sum over the axes `others` of y, as
    ``m_p = phi_p / (i_p - i0_p)``. Where the elements vary too, both are players: each has the mean of its
    contributions at the two ends of the other.
    """
    op = ctx.op
    result: Multipliers = [None, None]
    if ctx.varies(0):
        result[0] = _mean([back(i) for i in dict.fromkeys([ctx.x(1), ctx.x0(1)])])
    if ctx.varies(1) and single:
        tables = dict.fromkeys([ctx.x(0), ctx.x0(0)])
        jump = _mean([ctx.as_float(ctx.forward(x, ctx.x(1))) - ctx.as_float(ctx.forward(x, ctx.x0(1))) for x in tables])
        phi = op.ReduceSum(m * jump, others, keepdims=0) if others else m * jump
        slope = quotient(op.Reshape(op.cast(phi, op.dtype), np.array(ctx.shape(1), np.int64)), ctx.delta_x(1))
        result[1] = slope
    return result


def _mean(values: Sequence[Value]) -> Value:
    return values[0] if len(values) == 1 else (values[0] + values[1]) * 0.5


@rule("ScatterElements")
def scatter_elements(ctx: Context, m: Sequence[Value]) -> Multipliers:
    """``y[.., i[.., p, ..], ..] = updates[.., p, ..]``, or added to it; the data elsewhere."""
    axis = ctx.attribute("axis", 0) % len(ctx.shape())
    fixed = ctx.constant(1)
    if fixed is not None:
        return _written(ctx, m[0], element_places(fixed, ctx.shape(), axis), len(ctx.shape()))
    op, nothing = ctx.op, ctx.op.zeros(ctx.shape(2), m[0].dtype)
    return _written_at_random(
        ctx,
        m[0],
        lambda i: op.ScatterElements(m[0], i, nothing, axis=axis),
        lambda values, i: op.GatherElements(values, i, axis=axis),
    )


@rule("ScatterND")
def scatter_nd(ctx: Context, m: Sequence[Value]) -> Multipliers:
    """``y[i_p1, i_p2, ..] = updates[p]``, numbers or slices, or added to it; the data elsewhere."""
    fixed = ctx.constant(1)
    if fixed is not None:
        return _written(ctx, m[0], slice_places(fixed, ctx.shape(), 0), ctx.shape(1)[-1])
    op, nothing = ctx.op, ctx.op.zeros(ctx.shape(2), m[0].dtype)
    return _written_at_random(ctx, m[0], lambda i: op.ScatterND(m[0], i, nothing), op.GatherND)


def _written(ctx: Context, m: Value, places: Array, depth: int) -> Multipliers:
    """Updates at fixed `places` of the `depth` leading axes, taken as one; of several at one place the last stays."""
    op, shape = ctx.op, ctx.shape()
    if ctx.attribute("reduction", "none") in ("mul", "max", "min"):
        return combined(ctx, m, places, depth)
    flat = places.reshape(-1)
    updates = op.Reshape(taken(m, range(depth), flat), np.array(ctx.shape(2), np.int64))
    if _adds(ctx):
        return [m, None, updates]
    zero = op.constant(0.0, m.dtype)
    written = np.zeros(math.prod(shape[:depth]), bool)
    written[flat] = True
    last = np.zeros(written.size, np.int64)
    last[flat] = np.arange(flat.size)
    stays = (last[flat] == np.arange(flat.size)).reshape(*places.shape, *[1] * (updates.rank - places.ndim))
    data = op.Where(written.reshape(*shape[:depth], *[1] * (len(shape) - depth)), zero, m)
    return [data, None, updates if stays.all() else op.Where(stays, updates, zero)]


def _written_at_random(
    ctx: Context, m: Value, overwritten: Callable[[Value], Value], taken_at: Callable[[Value, Value], Value]
) -> Multipliers:
    """Updates at places that are known only when the program runs.

    `overwritten` has ``m_y`` with zeros at given places, `taken_at` takes numbers from places.

    Varying places i to which updates u are added get ``phi_p = <m[i_p] - m[i0_p], u_p>``, and u the mean of both: the
    Shapley values. So do updates that take the place of the data d, for ``u_p - d[i_p]``, where no two meet; where they
    do, the last of them stays.
    """
    op = ctx.op
    if not ctx.varies(1):
        return [m if _adds(ctx) else overwritten(ctx.x(1)), None, taken_at(m, ctx.x(1))]
    numbers = ctx.shape(1)[-1] if ctx.node.op_type == "ScatterND" else 1
    if numbers > 1:
        raise RuleError(f"its indices vary, and are {numbers} numbers each; only single numbers have a rule then")
    others = list(range(len(ctx.shape(1)) - 1, len(ctx.shape(2)))) if ctx.node.op_type == "ScatterND" else []

    def slope(phi: Value) -> Value:
        return quotient(op.Reshape(op.cast(phi, op.dtype), np.array(ctx.shape(1), np.int64)), ctx.delta_x(1))

    def over_slices(phi: Value) -> Value:
        return op.ReduceSum(phi, others, keepdims=0) if others else phi

    here, there = taken_at(m, ctx.x(1)), taken_at(m, ctx.x0(1))
    updates = ctx.as_float(ctx.mid_x(2))
    if _adds(ctx):
        return [m, slope(over_slices((here - there) * updates)), (here + there) * 0.5]
    meeting = _Meeting.of(ctx)
    data = ctx.as_float(ctx.mid_x(0))
    stays, stays0 = (meeting.stays(places, len(others)) for places in (meeting.places, meeting.places0))
    zero = op.constant(0.0, m.dtype)
    here, there = op.Where(stays, here, zero), op.Where(stays0, there, zero)
    phi = here * (updates - taken_at(data, ctx.x(1))) - there * (updates - taken_at(data, ctx.x0(1)))
    moved = meeting.among_moved(op.Reshape(over_slices(phi), list(meeting.places.shape)))
    return [(overwritten(ctx.x(1)) + overwritten(ctx.x0(1))) * 0.5, slope(moved), (here + there) * 0.5]


@dataclass(frozen=True)
class _Meeting:
    """Updates of which the last at one place stays, the places being known only when the program runs.

    Attributes
    ----------
    places, places0 : index of each update along `axis`, at the sample and at the reference.
    table : shape of a table with a number for each place.
    """

    places: Value
    places0: Value
    table: tuple[int, ...]
    axis: int

    @classmethod
    def of(cls, ctx: Context) -> _Meeting:
        """Those of a ScatterElements, or of a ScatterND by single numbers."""
        if ctx.node.op_type == "ScatterElements":
            return cls(ctx.x(1), ctx.x0(1), ctx.shape(), ctx.attribute("axis", 0) % len(ctx.shape()))
        places, places0 = (ctx.op.Reshape(i, [-1]) for i in (ctx.x(1), ctx.x0(1)))
        return cls(places, places0, ctx.shape()[:1], 0)

    def stays(self, places: Value, slices: int) -> Value:
        """Whether an update at `places` is the last at its place; with so many axes of its slice."""
        op, axis, shape = places.op, self.axis, list(places.shape)
        turn = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        turns = op.constant(np.broadcast_to(turn, shape).copy())
        nobody = op.constant(np.full(self.table, -1))
        last = op.GatherElements(op.ScatterElements(nobody, places, turns, axis=axis), places, axis=axis)
        marks: Value = op.Equal(last, turns)
        return op.Reshape(marks, [*shape, *[1] * slices]) if slices else marks

    def among_moved(self, phi: Value) -> Value:
        """What an update that did not move gains or loses is the doing of those that came to its place or left it."""
        op, axis = phi.op, self.axis
        still = op.Equal(self.places, self.places0)
        zero, zeros = op.constant(0.0, phi.dtype), op.zeros(self.table, phi.dtype)
        moved = op.cast(op.Not(still), phi.dtype)

        def added(values: Value, places: Value) -> Value:
            return op.ScatterElements(zeros, places, values, axis=axis, reduction="add")

        came_or_left = added(moved, self.places) + added(moved, self.places0)
        share = added(op.Where(still, phi, zero), self.places) / op.Max(came_or_left, op.constant(1.0, phi.dtype))
        doing = op.GatherElements(share, self.places, axis=axis) + op.GatherElements(share, self.places0, axis=axis)
        result: Value = op.Where(still, zero, phi + doing)
        return result


def _adds(ctx: Context) -> bool:
    reduction = ctx.attribute("reduction", "none")
    if reduction not in ("none", "add"):
        raise RuleError(f"reduction={reduction!r} has a rule only where the indices are fixed")
    return bool(reduction == "add")


def element_places(indices: Array, shape: Sequence[int], axis: int) -> Array:
    """Where GatherElements reads and ScatterElements writes in the flattened data, ``[*indices]``."""
    grid: list[Array] = list(np.indices(indices.shape))
    grid[axis] = indices % shape[axis]
    return np.asarray(np.ravel_multi_index(grid, tuple(shape)))


def slice_places(indices: Array, shape: Sequence[int], batch: int) -> Array:
    """Where GatherND reads and ScatterND writes in the leading axes of the data, taken as one: ``[*indices[:-1]]``."""
    depth = batch + indices.shape[-1]
    ids = np.arange(math.prod(shape[:depth])).reshape(shape[:depth])
    rows = np.indices(indices.shape[:-1])[:batch]
    return np.asarray(ids[(*rows, *np.moveaxis(indices, -1, 0))])


@expand("Compress")
def compress(ctx: Expansion) -> Value:
    """The elements that a fixed condition marks; the importer has refused others."""
    op, x, marks = ctx.op, ctx.x(), ctx.constant(1)
    assert marks is not None
    axis = ctx.attribute("axis")
    x = op.Reshape(x, [-1]) if axis is None else x
    return op.Gather(x, np.flatnonzero(marks), axis=0 if axis is None else axis)
