"""Resize, GridSample and RoiAlign: what was read between elements goes back to them with the same weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product as combinations

import numpy as np

from deepshap_ir.extend import Array, Context, Expansion, RuleError, Value, expand, resized_axes, rule
from deepshap_ir.rules.reads import given_back
from deepshap_ir.rules.regions import largest_product, sampled_bins
from deepshap_ir.rules.shapley import quotient, shapley_values


@rule("Resize")
def resize(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``y = W_1 x W_2^T ...``: interpolation is separable and linear, so each axis goes back by its ``W_a^T``."""
    value, attributes = m[0], ctx.node.attributes
    given = [ctx.fixed(i, what) if ctx.has(i) else None for i, what in ((2, "scales"), (3, "sizes"), (1, "regions"))]
    for axis in resized_axes(ctx.shape(), attributes, *given):
        if axis.changes:
            value = _back(value, axis.place, axis.matrix(attributes))
    return [value, *[None] * (ctx.n_inputs - 1)]


def _back(m: Value, axis: int, matrix: Array) -> Value:
    """``W^T m`` along an axis; single reads are moved, not multiplied."""
    op, (length, size) = m.op, matrix.shape
    if ((matrix == 1).sum(1) == 1).all() and (matrix != 0).sum() == length:
        reads, times = matrix.argmax(1), length // size
        if times * size == length and (reads == np.repeat(np.arange(size), times)).all():
            blocks = op.Reshape(m, [*m.shape[:axis], size, times, *m.shape[axis + 1 :]])
            return op.ReduceSum(blocks, [axis + 1], keepdims=0)
        return given_back(m, axis, reads, size)
    rest = m.shape[axis + 1 :]
    if not rest:
        return m @ matrix
    columns = op.Reshape(m, [*m.shape[: axis + 1], -1])
    return op.Reshape(op.MatMul(matrix.T.copy(), columns), [*m.shape[:axis], size, *rest])


@rule("GridSample")
def grid_sample(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``y = S(g) x``: ``m_x = (S(g) + S(g0))^T m / 2``; a place p gets ``<m_p, (S(g) - S(g0))_p (x + x0)/2>``.

    That is the Shapley value of data and grid. The contribution of a place is shared among its coordinates by their
    Shapley values.
    """
    result: list[Value | None] = [None, None]
    if ctx.varies(0):
        result[0] = _mean([_scattered(ctx, g, m[0]) for g in dict.fromkeys([ctx.x(1), ctx.x0(1)])])
    if ctx.varies(1):
        result[1] = places_by_shapley(ctx, m[0], 1)
    return result


def _scattered(ctx: Context, grid: Value, m: Value) -> Value:
    """``S(grid)^T m``, corner by corner."""
    op, shape = ctx.op, ctx.shape()
    sizes, places = shape[2:], math.prod(grid.shape[1:-1])
    flat = op.Reshape(m, [*shape[:2], places])
    total: Value = op.zeros([*shape[:2], math.prod(sizes)], m.dtype)
    columns = [
        op.Reshape(column, [shape[0], places])
        for column in op.Split(grid, [1] * len(sizes), axis=-1, outputs=len(sizes))
    ]
    samples = [_samples(ctx, column, n) for column, n in zip(columns[::-1], sizes, strict=True)]
    for corner in combinations(*samples):
        index, weight = corner[0]
        for (i, w), n in zip(corner[1:], sizes[1:], strict=True):
            index, weight = index * float(n) + i, weight * w
        at = op.Expand(op.Unsqueeze(op.cast(index, np.int64), [1]), list(flat.shape))
        total = op.ScatterElements(total, at, flat * op.Unsqueeze(weight, [1]), axis=2, reduction="add")
    return op.Reshape(total, list(shape))


def _samples(ctx: Context, grid: Value, n: int) -> list[tuple[Value, Value]]:
    """Along a dimension of length `n`, the elements that are read, as floating-point numbers, and their weights."""
    op, align, padding = ctx.op, ctx.attribute("align_corners", 0), ctx.attribute("padding_mode", "zeros")
    mode = ctx.attribute("mode", "linear").removeprefix("bi")
    low, high = (0.0, n - 1.0) if align else (-0.5, n - 0.5)
    at = (grid + 1.0) * ((n - 1) / 2) if align else (grid + 1.0) * (n / 2) - 0.5
    at = op.Round(at) if mode == "nearest" else at
    if mode != "cubic":  # which has the elements beyond the border padded, not the place
        at = _inside(at, n, low, high, padding)
    first: Value = op.Floor(at)
    f = at - first
    one = op.constant(np.ones(f.shape), f.dtype)
    weights = {
        "nearest": lambda: [(0.0, one)],
        "linear": lambda: [(0.0, one - f), (1.0, f)],
        "cubic": lambda: [(-1.0, _far(f + 1.0)), (0.0, _near(f)), (1.0, _near(one - f)), (2.0, _far(-f + 2.0))],
    }[mode]()
    found = []
    for offset, weight in weights:
        place = _inside(first + offset, n, low, high, padding)
        if padding == "zeros":
            known = op.And(place >= 0.0, place <= n - 1.0)
            weight = op.Where(known, weight, op.constant(0.0, f.dtype))
        found.append((op.Clip(place, 0.0, n - 1.0), weight))
    return found


def _inside(at: Value, n: int, low: float, high: float, padding: str) -> Value:
    """Places beyond the border as `padding` has them."""
    op = at.op
    if padding == "border":
        return op.Clip(at, 0.0, n - 1.0)
    if padding == "reflection":
        span = max(high - low, 1.0)
        turns = op.Floor((at - low) * (0.5 / span))
        reflected = -abs(turns * (2 * span) - (at - low) + span) + high
        return op.Where(op.Or(at < low, at > high), reflected, at)
    return at


def _near(d: Value) -> Value:
    return (d * 1.25 - 2.25) * d * d + 1.0


def _far(d: Value) -> Value:
    return ((d * -0.75 + 3.75) * d - 6.0) * d + 3.0


@expand("AffineGrid")
def affine_grid(ctx: Expansion) -> Value:
    """``g_p = theta (p, 1)``: a product with the places of the result, from -1 to 1, the last dimension first."""
    op, sizes = ctx.op, ctx.constant(1)
    if sizes is None:
        raise RuleError("its size is computed from a model input; only a fixed size is supported")
    lengths = [int(n) for n in sizes[2:]]
    ends = [(n - 1 if ctx.attribute("align_corners", 0) else n) for n in lengths]
    lines = [(2 * np.arange(n) - (n - 1)) / max(end, 1) for n, end in zip(lengths, ends, strict=True)]
    grid = np.stack([*np.meshgrid(*lines, indexing="ij")[::-1], np.ones(lengths)], -1)
    places = grid.reshape(-1, len(lengths) + 1).astype(ctx.x().dtype)
    product = op.MatMul(places, op.Transpose(ctx.x(), perm=[0, 2, 1]))
    result: Value = op.Reshape(product, [int(sizes[0]), *lengths, len(lengths)])
    return result


@rule("RoiAlign")
def roi_align(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``y = S(r) x``, as for GridSample; S is what the operator makes of the unit images.

    The mode "max" takes the largest product of an element and its weight: `deepshap_ir.rules.regions`.

    Raises
    ------
    RuleError
        The mode is "max", and the regions vary.
    """
    if ctx.attribute("mode", "avg") != "avg":
        return [_largest(ctx, m[0]), *[None] * (ctx.n_inputs - 1)]
    op, shape = ctx.op, ctx.shape()
    batch, channels, pixels = shape[0], shape[1], math.prod(shape[2:])
    images = ctx.fixed(2, "batch indices").reshape(-1)
    units = op.constant(np.eye(pixels).reshape(1, pixels, *shape[2:]), m[0].dtype)
    result: list[Value | None] = [None] * ctx.n_inputs
    if ctx.varies(0):
        flat, parts = op.Reshape(m[0], [len(images), channels, -1]), []
        for rois in dict.fromkeys([ctx.x(1), ctx.x0(1)]):
            types = [((len(images), pixels, *m[0].shape[2:]), m[0].dtype)]
            inputs = [units, rois, op.constant(np.zeros(len(images), np.int64))]
            weights = op.emit("RoiAlign", "", inputs, ctx.node.attributes, 1, types)[0]
            weights = op.Transpose(op.Reshape(weights, [len(images), pixels, -1]), perm=[0, 2, 1])
            parts.append(op.Reshape(op.MatMul(flat, weights), [len(images), channels * pixels]))
        member = (images == np.arange(batch)[:, None]).astype(np.float64)
        result[0] = op.Reshape(op.MatMul(member, _mean(parts)), list(shape))
    if ctx.varies(1):
        result[1] = places_by_shapley(ctx, m[0], 1)
    return result


def _largest(ctx: Context, m: Value) -> Value:
    """The largest product of an element and its weight, in each bin."""
    pooled = [ctx.attribute(f"output_{side}", 1) for side in ("height", "width")]
    ratio, scale = ctx.attribute("sampling_ratio", 0), ctx.attribute("spatial_scale", 1.0)
    aligned = ctx.opset >= 16 and ctx.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    regions = ctx.fixed(1, "regions") * scale
    bins = [sampled_bins(r, ctx.shape()[2:], pooled, ratio, 0.5 if aligned else 0.0) for r in regions]
    return largest_product(ctx, m, ctx.fixed(2, "batch indices").reshape(-1), bins)


def places_by_shapley(ctx: Context, m: Value, i: int) -> Value:
    """The multiplier of input `i`, which says where the first input is read: Shapley values of its last axis.

    What is read is ``(x + x0)/2``, and the contribution of a place is a sum over the axes of y that it has not.
    """
    op, n = ctx.op, ctx.shape(i)[-1]
    points = [op.Split(v, [1] * n, axis=-1, outputs=n) for v in (ctx.x0(i), ctx.x(i))]
    mid = ctx.mid_x(0)

    def f(at_sample: frozenset[int]) -> Value:
        mixed = op.Concat(*(points[k in at_sample][k] for k in range(n)), axis=-1)
        read = m * ctx.forward(*(mid if j == 0 else mixed if j == i else ctx.x(j) for j in range(ctx.n_inputs)))
        kept: Value = _over_places(read, ctx.shape(i))
        return kept

    shares = shapley_values(f, range(n))
    return quotient(
        op.Concat(*(op.Reshape(shares[k], [*ctx.shape(i)[:-1], 1]) for k in range(n)), axis=-1), ctx.delta_x(i)
    )


def _over_places(read: Value, shape: Sequence[int]) -> Value:
    """The sum over the axes of y that no place has: the channels, and the bins of a region."""
    summed = [1] if read.rank == len(shape) else list(range(1, read.rank))
    value: Value = read.op.ReduceSum(read, summed, keepdims=0)
    return value


def _mean(values: Sequence[Value]) -> Value:
    return values[0] if len(values) == 1 else (values[0] + values[1]) * 0.5


@expand("DeformConv")
def deformable_convolution(ctx: Expansion) -> Value:
    """``y = W (mask * sampled) + bias``: each element of each window is sampled between the elements of x."""
    op, shape, kernel = ctx.op, ctx.shape(), ctx.shape(1)[2:]
    result = ctx.graph.shapes[ctx.node.outputs[0]]
    if len(kernel) != 2 or min(shape[2:]) < 2:
        raise RuleError("only pictures of at least 2 by 2 elements have an expansion")
    groups, offset_groups = ctx.attribute("group", 1), ctx.attribute("offset_group", 1)
    strides, dilations = ctx.attribute("strides") or [1, 1], ctx.attribute("dilations") or [1, 1]
    pads, (rows, columns) = ctx.attribute("pads") or [0] * 4, result[2:]
    batch, elements = shape[0] * offset_groups, math.prod(kernel)

    starts = [np.arange(n) * s - pad for n, s, pad in zip((rows, columns), strides, pads, strict=False)]
    steps = [np.arange(k) * d for k, d in zip(kernel, dilations, strict=True)]
    y = steps[0][:, None, None, None] + starts[0][:, None] + np.zeros((1, kernel[1], 1, columns))
    x = steps[1][:, None, None] + starts[1] + np.zeros((kernel[0], 1, rows, 1))
    places = np.stack([y, x], 2).reshape(elements, 2, rows, columns)
    moved = op.Reshape(ctx.x(2), [batch, elements, 2, rows, columns]) + places.astype(ctx.x(2).dtype)
    scale = np.array([2 / (n - 1) for n in shape[2:]]).reshape(2, 1, 1)
    grid = op.Gather(op.Transpose(moved * scale - 1.0, perm=[0, 1, 3, 4, 2]), [1, 0], axis=4)
    linear = "linear" if ctx.op.opsets[""] >= 20 else "bilinear"
    sampled: Value = op.GridSample(
        op.Reshape(ctx.x(), [batch, -1, *shape[2:]]),
        op.Reshape(grid, [batch, elements * rows, columns, 2]),
        mode=linear,
        padding_mode="zeros",
        align_corners=1,
    )
    sampled = op.Reshape(sampled, [shape[0], offset_groups, -1, elements, rows * columns])
    if ctx.has(4):
        sampled = sampled * op.Reshape(ctx.x(4), [shape[0], offset_groups, 1, elements, rows * columns])
    sampled = op.Reshape(sampled, [shape[0], groups, -1, rows * columns])
    weights = op.Reshape(ctx.x(1), [groups, result[1] // groups, -1])
    value: Value = op.Reshape(op.MatMul(weights, sampled), list(result))
    return value + op.Reshape(ctx.x(3), [1, -1, 1, 1]) if ctx.has(3) else value
