"""Convolution: linear in its input, in its weights and in its bias; the midpoint rule where input and weights vary."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Array, Context, Value, Windows, rule
from deepshap_ir.rules.reads import surrounded


@rule("Conv")
def convolution(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``y[o, p] = b[o] + sum_{c,k} w[o, c, k] x[c, p s + k d - pad]``.

    ``m_x`` is the transposed convolution of ``m_y [n, O, *P]`` with the weights, and
    ``m_w[o, c, k] = sum_p m_y[o, p] x[c, p s + k d - pad]``; what varies beside is taken at its midpoint.
    """
    weights = ctx.x(1)
    windows = Windows.of(ctx, weights.shape[2:], ctx.shape()[2:], m[0].shape[2:])
    result: list[Value | None] = [None] * ctx.n_inputs
    if ctx.varies(0):
        fixed = ctx.constant(1)
        if fixed is not None and _correlates(fixed, windows, ctx.attribute("group", 1)):
            result[0] = _correlated(ctx, m[0], fixed, windows)
        else:
            result[0] = ctx.op.ConvTranspose(
                m[0],
                ctx.mid_x(1),
                group=ctx.attribute("group", 1),
                strides=list(windows.strides),
                dilations=list(windows.dilations),
                pads=windows.pads,
                output_padding=windows.rest,
            )
    if ctx.varies(1):
        result[1] = _of_weights(ctx, m[0], ctx.mid_x(0), windows)
    if ctx.varies(2):
        result[2] = _of_bias(m[0])
    return result


@rule("ConvTranspose")
def transposed_convolution(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``y[o, p s + k d - pad] += w[c, o, k] x[c, p]``: Conv with input and output exchanged.

    ``m_x`` is the convolution of ``m_y`` with the same weights, and
    ``m_w[c, o, k] = sum_p x[c, p] m_y[o, p s + k d - pad]``.
    """
    weights = ctx.x(1)
    windows = Windows.of(ctx, weights.shape[2:], m[0].shape[2:], ctx.shape()[2:])
    result: list[Value | None] = [None] * ctx.n_inputs
    if ctx.varies(0):
        result[0] = ctx.op.Conv(
            m[0],
            ctx.mid_x(1),
            group=ctx.attribute("group", 1),
            strides=list(windows.strides),
            dilations=list(windows.dilations),
            pads=windows.pads,
        )
    if ctx.varies(1):
        result[1] = _of_weights(ctx, ctx.mid_x(0), m[0], windows)
    if ctx.varies(2):
        result[2] = _of_bias(m[0])
    return result


@rule("Col2Im")
def columns_to_image(ctx: Context, m: Sequence[Value]) -> Value:
    """Overlapping blocks are added up: each gets the multipliers of its place."""
    image, block = ctx.fixed(1, "image lengths").tolist(), ctx.fixed(2, "block lengths").tolist()
    one = Windows.of(ctx, block, image, [1] * len(block))
    counts = [rest // stride + 1 for rest, stride in zip(one.rest, one.strides, strict=True)]
    return ctx.op.Reshape(unfolded(m[0], Windows.of(ctx, block, image, counts)), list(ctx.shape()))


def _correlates(weights: Array, windows: Windows, group: int) -> bool:
    """Whether Conv with turned weights is the faster transposed convolution; it is possible for stride 1 alone.

    onnxruntime unfolds ``C k^2`` rows for ConvTranspose and ``O k^2`` for Conv, with C input and O output channels of a
    group, so the fewer decide; but where C and O are multiples of 4, Conv works in blocks of 8 or more channels and
    unfolds nothing.
    """
    if any(s != 1 for s in windows.strides) or any(
        pad >= span for pad, span in zip(windows.pads, [*windows.spans] * 2, strict=True)
    ):
        return False
    channels, outputs = int(weights.shape[1]), int(weights.shape[0]) // group
    return channels >= outputs or (channels > 8 and channels % 4 == 0 and outputs % 4 == 0)


def _correlated(ctx: Context, m: Value, weights: Array, windows: Windows) -> Value:
    """Conv of `m` with the weights turned around, input and output channels exchanged within each group."""
    group = ctx.attribute("group", 1)
    grouped = weights.reshape(group, -1, *weights.shape[1:]).swapaxes(1, 2)
    turned = np.flip(grouped, axis=tuple(range(3, grouped.ndim))).reshape(-1, *grouped.shape[2:])
    return ctx.op.Conv(
        m,
        np.ascontiguousarray(turned),
        group=group,
        dilations=list(windows.dilations),
        pads=[span - 1 - pad for pad, span in zip(windows.pads, [*windows.spans] * 2, strict=True)],
    )


def _of_weights(ctx: Context, small: Value, large: Value, windows: Windows) -> Value:
    """``sum_{n,p} small[n, a, p] large[n, b, p s + k d - pad]``, ``[A, B / group, *kernel]``."""
    op, group = ctx.op, ctx.attribute("group", 1)
    n, channels, rows = large.shape[0], large.shape[1] // group, small.shape[1] // group
    columns = op.Reshape(unfolded(large, windows), [n, group, channels * math.prod(windows.kernel), -1])
    products = op.Reshape(small, [n, group, rows, -1]) @ op.Transpose(columns, perm=[0, 1, 3, 2])
    total = op.ReduceSum(products, [0], keepdims=0)
    return op.Reshape(total, [group * rows, channels, *windows.kernel])


def unfolded(x: Value, windows: Windows) -> Value:
    """The elements of all windows, 0 in the padding: ``[n, C, *sizes]`` -> ``[n, C, elements, windows]``."""
    room = zip(windows.before, windows.behind, strict=True)
    padded = surrounded(x, dict(enumerate(room, 2)))
    axes = list(range(2, x.rank))
    parts = []
    for offset in itertools.product(*map(range, windows.kernel)):
        starts = [i * d for i, d in zip(offset, windows.dilations, strict=True)]
        ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, windows.counts, windows.strides, strict=True)]
        part = x.op.Slice(padded, starts, ends, axes, list(windows.strides))
        parts.append(x.op.Reshape(part, [*x.shape[:2], 1, -1]))
    return x.op.Concat(*parts, axis=2)


def _of_bias(m: Value) -> Value:
    """The sum over all but the channels."""
    return m.op.ReduceSum(m, [a for a in range(m.rank) if a != 1], keepdims=0)
