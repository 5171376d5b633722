"""AveragePool: each mean is shared out over the elements of its window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np

from deepshap_ir.extend import Array, Context, Value, Windows, rule


@rule("AveragePool")
def average_pool(ctx: Context, m: Sequence[Value]) -> Value:
    """``y[p] = sum_k x[p s + k d - pad] / n[p]``: ``m_x[i] = sum m_y[p] / n[p]`` over the windows p that contain i.

    ``n[p]`` counts the elements of window p within the input or, with `count_include_pad`, within its padding. What
    spreads ``m_y / n`` is, in this order, broadcasting for one window over everything, Resize for windows side by side,
    AveragePool again for stride 1, and a transposed convolution with ones.
    """
    op, kernel = ctx.op, ctx.attribute("kernel_shape")
    windows = Windows.of(ctx, kernel, ctx.shape()[2:], m[0].shape[2:])
    count = counted(windows, bool(ctx.attribute("count_include_pad", 0)))
    if set(windows.counts) == {1} and math.prod(windows.sizes) == _read(windows):
        return shared(m[0], 1 / count)
    if set(windows.dilations) == {1}:
        if windows.strides == windows.kernel and not any(windows.before):
            return _side_by_side(shared(m[0], 1 / count), windows)
        turned = [k - 1 - pad for k, pad in zip(kernel * 2, windows.pads, strict=True)]
        if set(windows.strides) == {1} and min(turned) >= 0:
            m_y = shared(m[0], math.prod(kernel) / count)
            return op.AveragePool(m_y, kernel_shape=kernel, pads=turned, count_include_pad=1)
    spread = op.ConvTranspose(
        op.Reshape(shared(m[0], 1 / count), [-1, 1, *windows.counts]),
        np.ones((1, 1, *kernel)),
        strides=list(windows.strides),
        dilations=list(windows.dilations),
        pads=[*windows.before, *(max(0, cut) for cut in windows.behind)],
        output_padding=[max(0, -cut) for cut in windows.behind],
    )
    return op.Reshape(spread, ctx.shape())


def _side_by_side(m: Value, windows: Windows) -> Value:
    """Each number repeated over its window; windows cut off or completed at the end."""
    op, rank = m.op, len(windows.kernel)
    spread: Value = op.Resize(
        m,
        None,
        op.constant([1, 1, *windows.kernel], np.float32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    if any(windows.behind):
        spread = op.Pad(spread, [0] * (4 + rank) + [-cut for cut in windows.behind])
    return spread


def counted(windows: Windows, with_padding: bool) -> Array:
    """How many elements each window averages, ``[*windows]``."""
    numbers = []
    for places, size, before, after in zip(_places(windows), windows.sizes, windows.before, windows.after, strict=True):
        first, last = (-before, size + after) if with_padding else (0, size)
        numbers.append(((places >= first) & (places < last)).sum(1).astype(np.float64))
    return reduce(np.multiply.outer, numbers)


def _read(windows: Windows) -> int:
    """How many elements of the input are in some window."""
    each = zip(_places(windows), windows.sizes, strict=True)
    return math.prod(len(np.unique(places[(places >= 0) & (places < size)])) for places, size in each)


def _places(windows: Windows) -> list[Array]:
    """Per dimension where element k of window p lies in the input, ``[windows, kernel]``."""
    each = zip(windows.counts, windows.kernel, windows.strides, windows.dilations, windows.before, strict=True)
    return [np.arange(n)[:, None] * s + np.arange(k) * d - before for n, k, s, d, before in each]


def shared(m: Value, factor: Array) -> Value:
    """`m` times a constant of its spatial shape; a number where all its elements are equal."""
    first = float(factor.flat[0])
    if not (factor == first).all():
        return m * factor
    return m if first == 1.0 else m * first
