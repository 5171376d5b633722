"""Largest values of regions of pictures: MaxRoiPool, and RoiAlign where it takes the largest product.

Which elements a bin reads, and with which weights, follows from the regions, which must be fixed: then y is the maximum
of ``w_k x_k``, and its products are the players.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Array, Context, Value, rule
from deepshap_ir.rules.maximum import multipliers_of_max
from deepshap_ir.rules.reads import given_back

Bins = list[tuple[list[int], list[float]]]
"""Per bin, row by row: the places that it reads in a picture, and their weights."""


@rule("MaxRoiPool")
def max_roi_pool(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """The largest element of each bin of regions ``[image, x1, y1, x2, y2]``; 0 of an empty one."""
    regions = ctx.fixed(1, "regions")
    ends = regions[:, 1:] * ctx.attribute("spatial_scale", 1.0)
    ends = np.sign(ends) * np.floor(np.abs(ends) + 0.5)  # a half goes away from 0
    bins = [whole_bins(region, ctx.shape()[2:], ctx.attribute("pooled_shape")) for region in ends]
    return [largest_product(ctx, m[0], regions[:, 0].astype(np.int64), bins), None]


def whole_bins(region: Array, size: Sequence[int], pooled: Sequence[int]) -> Bins:
    """Bins of whole elements, which overlap where they do not divide the region."""
    left, top, right, bottom = (int(v) for v in region)
    spans = []
    for first, last, length, count in ((top, bottom, size[0], pooled[0]), (left, right, size[1], pooled[1])):
        step = max(last - first + 1, 1) / count
        ends = [(math.floor(k * step) + first, math.ceil((k + 1) * step) + first) for k in range(count)]
        spans.append([range(min(max(a, 0), length), min(max(b, 0), length)) for a, b in ends])
    found: Bins = []
    for rows in spans[0]:
        for columns in spans[1]:
            places = [y * size[1] + x for y in rows for x in columns]
            found.append((places, [1.0] * len(places)) if places else ([0], [0.0]))
    return found


def sampled_bins(region: Array, size: Sequence[int], pooled: Sequence[int], ratio: int, offset: float) -> Bins:
    """Bins of points between elements: four elements each, with the weights of linear interpolation."""
    left, top, right, bottom = (float(v) - offset for v in region)
    height, width = bottom - top, right - left
    if not offset:
        height, width = max(height, 1.0), max(width, 1.0)
    steps = height / pooled[0], width / pooled[1]
    counts = [ratio if ratio > 0 else math.ceil(step) for step in steps]
    found: Bins = []
    for i in range(pooled[0]):
        for j in range(pooled[1]):
            places: list[int] = []
            weights: list[float] = []
            for a in range(counts[0]):
                for b in range(counts[1]):
                    y = top + steps[0] * (i + (a + 0.5) / counts[0])
                    x = left + steps[1] * (j + (b + 0.5) / counts[1])
                    ys, xs = _between(y, size[0]), _between(x, size[1])
                    places += [p * size[1] + q for p, _ in ys for q, _ in xs]
                    weights += [v * w for _, v in ys for _, w in xs]
            found.append((places, weights))
    return found


def _between(place: float, length: int) -> list[tuple[int, float]]:
    """The two elements beside a place and their weights, which are 0 off the picture."""
    if not -1.0 <= place <= length:
        return [(0, 0.0), (0, 0.0)]
    place = max(place, 0.0)
    low = min(int(place), length - 1)
    high = min(low + 1, length - 1)
    part = 0.0 if low == length - 1 else place - low
    return [(low, 1.0 - part), (high, part)]


def largest_product(ctx: Context, m: Value, images: Array, bins: Sequence[Bins]) -> Value:
    """The multiplier of the pictures ``[N, C, H, W]``; `bins` per region, and the picture that it lies in."""
    op, (_, channels, *size) = ctx.op, ctx.shape()
    most = max(len(places) for region in bins for places, _ in region)

    def even(values: Sequence[float]) -> list[float]:
        """Repeated, so that all bins have as many."""
        return [values[k % len(values)] for k in range(most)]

    places = np.array([[even(p) for p, _ in region] for region in bins], np.int64)
    weights = np.array([[even(w) for _, w in region] for region in bins])[:, None]
    planes = images[:, None] * channels + np.arange(channels)
    index = planes[:, :, None, None] * math.prod(size) + places[:, None]
    factor = op.constant(weights, m.dtype)
    x, x0 = (op.Gather(op.Reshape(v, [-1]), index, axis=0) * factor for v in (ctx.x(), ctx.x0()))
    each = multipliers_of_max(ctx, x, x0) * factor * op.Reshape(m, [*index.shape[:3], 1])
    flat = given_back(op.Reshape(each, [-1]), 0, index.reshape(-1), math.prod(ctx.shape()))
    result: Value = op.Reshape(flat, list(ctx.shape()))
    return result
