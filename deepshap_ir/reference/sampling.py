"""Resize, GridSample and QuantizeLinear for the reference evaluator, in double.

onnx 1.23: Resize computes cubic weights in float32, and with `align_corners` divides by a length that is no whole
number, as onnxruntime does not; GridSample rounds places to float32, takes them one by one,
and with `border` clips them before it takes cubic weights, as onnxruntime and PyTorch do not;
QuantizeLinear is missing for opsets before 19.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from onnx import helper, numpy_helper
from onnx.reference.op_run import OpRun

from deepshap_ir.engine.resizing import cubic, resized_axes
from deepshap_ir.graph import Array


class Resize(OpRun):
    """Each axis times its interpolation matrix."""

    def _run(
        self,
        x: Array,
        roi: Array | None = None,
        scales: Array | None = None,
        sizes: Array | None = None,
        antialias: int | None = None,
        axes: Sequence[int] | None = None,
        coordinate_transformation_mode: str | None = None,
        cubic_coeff_a: float | None = None,
        exclude_outside: int | None = None,
        extrapolation_value: float | None = None,
        keep_aspect_ratio_policy: str | None = None,
        mode: str | None = None,
        nearest_mode: str | None = None,
    ) -> tuple[Array]:
        attributes = {
            "antialias": antialias,
            "axes": axes,
            "coordinate_transformation_mode": coordinate_transformation_mode,
            "cubic_coeff_a": cubic_coeff_a,
            "exclude_outside": exclude_outside,
            "keep_aspect_ratio_policy": keep_aspect_ratio_policy,
            "mode": mode,
            "nearest_mode": nearest_mode,
        }
        y, inside = x.astype(np.float64), np.ones((1,) * x.ndim)
        for axis in resized_axes(x.shape, attributes, scales, sizes, roi):
            if axis.changes:
                matrix = axis.matrix(attributes)
                y = np.moveaxis(np.tensordot(y, matrix, (axis.place, 1)), -1, axis.place)
                if coordinate_transformation_mode == "tf_crop_and_resize":
                    shape = [-1 if a == axis.place else 1 for a in range(x.ndim)]
                    inside = inside * (matrix != 0).any(1).reshape(shape)
        y = np.where(inside, y, extrapolation_value or 0.0)
        if x.dtype.kind in "iu":
            y = np.clip(np.rint(y), np.iinfo(x.dtype).min, np.iinfo(x.dtype).max)
        return (y.astype(x.dtype),)


class GridSample(OpRun):
    """Interpolation at places that are given from -1 to 1, the last dimension first."""

    def _run(
        self,
        x: Array,
        grid: Array,
        mode: str | None = None,
        padding_mode: str | None = None,
        align_corners: int | None = None,
    ) -> tuple[Array]:
        mode = {"bilinear": "linear", "bicubic": "cubic", None: "linear"}.get(mode, mode)
        sizes = x.shape[2:]
        samples = [
            _samples(grid[..., len(sizes) - 1 - k], n, mode or "linear", padding_mode or "zeros", bool(align_corners))
            for k, n in enumerate(sizes)
        ]
        rows = np.arange(len(x)).reshape(-1, *[1] * (grid.ndim - 2))
        y = np.zeros((*grid.shape[:-1], x.shape[1]))
        for corner in itertools.product(*samples):
            weight = np.ones(grid.shape[:-1])
            for _, w in corner:
                weight = weight * w
            y += np.moveaxis(x, 1, -1)[(rows, *(i for i, _ in corner))] * weight[..., None]
        return (np.moveaxis(y, -1, 1).astype(x.dtype),)


def _samples(grid: Array, n: int, mode: str, padding: str, align: bool) -> list[tuple[Array, Array]]:
    """Along one dimension of length `n`, the elements that are read and their weights."""
    low, high = (0.0, n - 1.0) if align else (-0.5, n - 0.5)
    at = (grid.astype(np.float64) + 1) / 2 * (n - 1) if align else ((grid.astype(np.float64) + 1) * n - 1) / 2
    at = np.rint(at) if mode == "nearest" else at
    if mode != "cubic":  # which has the elements beyond the border padded, not the place
        at = _inside(at, n, low, high, padding)
    first = np.floor(at)
    f = at - first
    offsets: list[tuple[int, Array]]
    if mode == "nearest":
        offsets = [(0, np.ones_like(f))]
    elif mode == "linear":
        offsets = [(0, 1 - f), (1, f)]
    else:
        offsets = [(-1, cubic(1 + f, -0.75)), (0, cubic(f, -0.75)), (1, cubic(1 - f, -0.75)), (2, cubic(2 - f, -0.75))]
    found = []
    for offset, weight in offsets:
        place = _inside(first + offset, n, low, high, padding)
        known = (place >= 0) & (place <= n - 1) if padding == "zeros" else np.ones(place.shape, bool)
        found.append((np.clip(place, 0, n - 1).astype(np.int64), np.where(known, weight, 0.0)))
    return found


def _inside(at: Array, n: int, low: float, high: float, padding: str) -> Array:
    """Places beyond the border as `padding` has them."""
    if padding == "border":
        return np.clip(at, 0, n - 1)
    if padding == "reflection":
        span = max(high - low, 1.0)
        reflected = high - np.abs(span - (at - low) % (2 * span))
        return np.where((at < low) | (at > high), reflected, at)
    return at


class QuantizeLinear(OpRun):
    """``round(x / scale) + zero``, clipped to the type of the zero point."""

    def _run(
        self,
        x: Array,
        scale: Array,
        zero: Array | None = None,
        axis: int | None = None,
        block_size: int | None = None,
        output_dtype: int | None = None,
        precision: int | None = None,
        saturate: int | None = None,
    ) -> tuple[Array]:
        axis = (1 if axis is None else axis) % max(x.ndim, 1)
        dtype = np.dtype(np.uint8) if zero is None else zero.dtype
        if zero is None and output_dtype:
            dtype = helper.tensor_dtype_to_np_dtype(output_dtype)

        def laid(parameter: Array) -> Array:
            if parameter.size == 1:
                return parameter.reshape(())
            if block_size:
                return np.repeat(parameter, block_size, axis).take(range(x.shape[axis]), axis)
            return (
                parameter.reshape([-1 if a == axis else 1 for a in range(x.ndim)]) if parameter.ndim == 1 else parameter
            )

        y = x / laid(np.asarray(scale))
        shift = 0.0 if zero is None else laid(np.asarray(zero)).astype(y.dtype)
        if dtype.kind not in "iu":
            return (numpy_helper.saturate_cast(y + shift, dtype),)
        y = np.rint(y) + shift
        return (np.clip(y, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype),)


SAMPLING: list[type[OpRun]] = [GridSample, QuantizeLinear, Resize]
