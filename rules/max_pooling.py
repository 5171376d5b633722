"""MaxPool: to the winners of the sample and of the reference, or by exact Shapley values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from deepshap_ir.extend import Array, Context, Value, Windows, rule
from deepshap_ir.rules.maximum import ratio, shapley_of_max, uses_shapley
from deepshap_ir.rules.shapley import quotient


@rule("MaxPool")
def max_pool(ctx: Context, m: Sequence[Value | None]) -> Value:
    """The winners' rule; exact Shapley values with the option ``max_pooling="shapley"``. Windows that overlap add.

    What the jump of an index, the second output, changes is shared between the two winners.
    """
    indices = places(ctx, m[1]) if len(m) > 1 and m[1] is not None else None
    if m[0] is None:
        return ctx.op.zeros(ctx.shape(), ctx.as_float(ctx.x()).dtype) if indices is None else indices
    windows = Windows.of(ctx, ctx.attribute("kernel_shape"), ctx.shape()[2:], m[0].shape[2:])
    if uses_shapley(ctx, "max_pooling", "shap"):
        values = joined(shapley(ctx, windows, m[0]), windows)
    else:
        values = winners(ctx, windows, m[0])
    return values if indices is None else values + indices


def places(ctx: Context, m: Value) -> Value:
    """The index jumps from the reference's winner b to the sample's winner a: the Shapley values of these two.

    The game is "a is above b"; of equal elements the first is above.
    """
    op, planes = ctx.op, [*ctx.shape()[:2], -1]
    a, b = winner(ctx, ctx.x()), winner(ctx, ctx.x0())
    x, x0 = (op.Reshape(ctx.as_float(z), planes) for z in (ctx.x(), ctx.x0()))
    (x_a, x_b), (x0_a, x0_b) = ([op.GatherElements(z, j, axis=2) for j in (a, b)] for z in (x, x0))

    def above(at_a: Value, at_b: Value) -> Value:
        return op.cast(op.Greater(at_a, at_b) | (op.Less(a, b) & op.Equal(at_a, at_b)), op.dtype)

    change = op.Reshape(op.cast(m, op.dtype) * op.cast(ctx.y(1) - ctx.y0(1), op.dtype), planes)
    lead = (above(x_a, x0_b) - above(x0_a, x_b)) * 0.5
    whole = op.zeros([*planes[:2], int(np.prod(ctx.shape()[2:]))], op.dtype)
    for j, phi, delta in ((a, change * (lead + 0.5), x_a - x0_a), (b, change * (0.5 - lead), x_b - x0_b)):
        whole = op.ScatterElements(whole, j, quotient(phi, op.cast(delta, op.dtype)), axis=2, reduction="add")
    result: Value = op.Reshape(whole, list(ctx.shape()))
    return result


def winners(ctx: Context, windows: Windows, m: Value) -> Value:
    """``max(y, y0) - y0`` to the sample's winner, ``y - max(y, y0)`` to the reference's winner, as in SHAP.

    One of the two is 0. So with ``d = y - y0`` all goes to one element j, the sample's winner if ``d >= 0``, else the
    reference's, with the multiplier ``d / (x_j - x0_j)``. It lies in [0, 1], as ``|x_j - x0_j| >= |d|``. Of equal
    elements the first wins.
    """
    op, planes = ctx.op, [*ctx.shape()[:2], -1]
    d = op.Reshape(ctx.delta_y(), planes)
    j = op.Where(d >= 0.0, winner(ctx, ctx.x()), winner(ctx, ctx.x0()))
    picked = op.GatherElements(op.Reshape(ctx.delta_x(), planes), j, axis=2)
    given = ratio(d, picked) * op.Reshape(m, planes)
    if windows.overlap:  # to scatter is faster than to spell out every element of every window
        nothing = op.Reshape(op.zeros(ctx.shape(), given.dtype), planes)
        whole = op.ScatterElements(nothing, j, given, axis=2, reduction="add")
        return op.Reshape(whole, list(ctx.shape()))
    chosen = op.cast(op.Equal(op.Unsqueeze(j, [2]), op.constant(positions(windows))), d.dtype)
    return joined(chosen * op.Unsqueeze(given, [2]), windows)


def shapley(ctx: Context, windows: Windows, m: Value) -> Value:
    """The exact Shapley values of the maximum of each window, ``[n, C, elements of a window, windows]``."""
    op = ctx.op
    x, x0 = (op.Concat(*elements(ctx, z, windows), axis=-1) for z in (ctx.x(), ctx.x0()))
    factor: Value = op.Transpose(shapley_of_max(x, x0), perm=[0, 1, 3, 2])
    return factor * op.Reshape(m, [*ctx.shape()[:2], 1, -1])


def winner(ctx: Context, x: Value) -> Value:
    """``[n, C, windows]``: where in a flat plane the first largest element of each window lies."""
    op = ctx.op
    # the types are said because onnx infers one window too many with ceil_mode before opset 22
    types = [(ctx.y().shape, x.dtype), (ctx.y().shape, np.dtype(np.int64))]
    _, index = op.emit("MaxPool", "", [x], {**ctx.node.attributes, "storage_order": 0}, 2, types)
    within = op.Mod(index, op.constant(np.prod(ctx.shape()[2:], dtype=np.int64)))
    flat: Value = op.Reshape(op.cast(within, np.int32), [*x.shape[:2], -1])
    return flat


def elements(ctx: Context, x: Value, windows: Windows) -> list[Value]:
    """Each element of all windows, ``[n, C, windows, 1]``; in the padding the lowest finite number."""
    op, steps = ctx.op, windows.strides
    x = ctx.as_float(x)
    after = [max(0, end) for end in windows.behind]
    if any(windows.before) or any(after):
        lowest = op.constant(np.finfo(x.dtype).min, x.dtype)
        x = op.Pad(x, [0, 0, *windows.before, 0, 0, *after], lowest)
    found = []
    for offset in product(*map(range, windows.kernel)):
        starts = [i * d for i, d in zip(offset, windows.dilations, strict=True)]
        ends = [start + s * (n - 1) + 1 for start, s, n in zip(starts, steps, windows.counts, strict=True)]
        part = op.Slice(x, starts, ends, list(range(2, x.rank)), list(steps))
        found.append(op.Reshape(part, [*x.shape[:2], -1, 1]))
    return found


def positions(windows: Windows) -> Array:
    """``[elements of a window, windows]``: where in a flat plane each element lies; -1 in the padding."""
    shape = (*windows.kernel, *windows.counts)
    offset, window = np.split(np.indices(shape).reshape(2 * len(windows.kernel), -1), 2)
    column = [np.array(a)[:, None] for a in (windows.strides, windows.dilations, windows.before, windows.sizes)]
    place = window * column[0] + offset * column[1] - column[2]
    inside = ((place >= 0) & (place < column[3])).all(0)
    flat = np.ravel_multi_index(tuple(place), windows.sizes, mode="clip")
    return np.where(inside, flat, -1).astype(np.int32).reshape(int(np.prod(windows.kernel)), -1)


def joined(parts: Value, windows: Windows) -> Value:
    """``[n, C, elements of a window, windows]`` -> ``[n, C, *sizes]``: elements in several windows are added up."""
    op, (batch, channels, n) = parts.op, parts.shape[:3]
    after = [max(0, end) for end in windows.behind]
    if len(windows.sizes) > 2 and max(windows.dilations) > 1:  # there Col2Im of onnxruntime 1.31 misplaces elements
        whole = op.ConvTranspose(
            op.Reshape(parts, [batch * channels, n, *windows.counts]),
            np.eye(n).reshape(n, 1, *windows.kernel),
            strides=list(windows.strides),
            dilations=list(windows.dilations),
            pads=[*windows.before, *after],
            output_padding=[max(0, -end) for end in windows.behind],
        )
    else:
        row = [1] if len(windows.sizes) == 1 else []  # a signal is an image of one row
        none = [0] * len(row)
        whole = op.Col2Im(
            op.Reshape(parts, [batch * channels, n, -1]),
            [*row, *windows.sizes],
            [*row, *windows.kernel],
            strides=[*row, *windows.strides],
            dilations=[*row, *windows.dilations],
            pads=[*none, *windows.before, *none, *after],
        )
    result: Value = op.Reshape(whole, [batch, channels, *windows.sizes])
    return result
