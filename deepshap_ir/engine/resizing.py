"""The interpolation of Resize, axis by axis, as matrices.

Which element the mode "nearest" reads can hang on the last digit of a coordinate, and the length of a result on that of
``scale * length``. So both are computed as onnxruntime does, in float32 and in its order of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepshap_ir.graph import Array

DEFAULTS: Mapping[str, Any] = {
    "antialias": 0,
    "axes": None,
    "coordinate_transformation_mode": "half_pixel",
    "cubic_coeff_a": -0.75,
    "exclude_outside": 0,
    "extrapolation_value": 0.0,
    "keep_aspect_ratio_policy": "stretch",
    "mode": "nearest",
    "nearest_mode": "round_prefer_floor",
}
"""The attributes of Resize where a node does not give them."""

_TIE = 1e-6
"""How far from halfway between two elements onnxruntime still takes a coordinate for halfway."""


@dataclass(frozen=True)
class ResizedAxis:
    """One axis of a Resize: its place, lengths, exact scale, and the part of it that is cropped, from 0 to 1."""

    place: int
    size: int
    result: int
    scale: float
    crop: tuple[float, float]

    def matrix(self, attributes: Mapping[str, Any]) -> Array:
        """``[result, size]``: the weights with which each element of the result reads the input."""
        given = dict(DEFAULTS) | {k: v for k, v in attributes.items() if v is not None}
        mode, size = given["mode"], self.size
        real = np.float32 if mode == "nearest" else np.float64
        x, outside = self._coordinates(given["coordinate_transformation_mode"], real)
        below = np.ceil(x).astype(np.int64) - 1  # the element left of x, also where x is one
        fraction = x - below
        if mode == "nearest":
            first, weights = below + _rounds_up(given["nearest_mode"], fraction), np.ones((self.result, 1))
        else:
            shrink = min(self.scale, 1.0) if given["antialias"] else 1.0
            reach = 1 if mode == "linear" else 2
            start = int(np.floor(-reach / shrink)) + 1
            distance = np.arange(start, 2 - start)[None] - fraction[:, None]
            a = float(given["cubic_coeff_a"])
            kernel: Callable[[Array], Array] = _triangle if mode == "linear" else lambda d: cubic(d, a)
            weights = kernel(np.abs(distance * shrink))
            weights = weights / weights.sum(1, keepdims=True)
            first = below + start
        places = first[:, None] + np.arange(weights.shape[1])
        if given["exclude_outside"]:
            weights = np.where((places < 0) | (places >= size), 0.0, weights)
            total = weights.sum(1, keepdims=True)
            weights = weights / np.where(total == 0, 1.0, total)
        matrix = np.zeros((self.result, size))
        np.add.at(matrix, (np.arange(self.result)[:, None], np.clip(places, 0, size - 1)), weights)
        matrix[outside] = 0.0
        return matrix

    @property
    def changes(self) -> bool:
        """Whether the result is not the input itself."""
        return (self.size, self.scale, self.crop) != (self.result, 1.0, (0.0, 1.0))

    def _coordinates(self, mode: str, real: type[np.floating[Any]]) -> tuple[Array, Array]:
        """Where each element of the result lies in the input, and whether that is extrapolated."""
        size, length, scale = real(self.size), self.result, real(self.scale)
        y, half, one = np.arange(length, dtype=real), real(0.5), real(1)
        outside = np.zeros(length, bool)
        if mode == "align_corners":
            x = y * 0 if length == 1 else y * (size - one) / real(length - 1)
        elif mode == "asymmetric":
            x = y / scale
        elif mode == "tf_crop_and_resize":
            start, end = map(real, self.crop)
            last = size - one
            x = (
                start * last + y * (end - start) * last / real(length - 1)
                if length > 1
                else half * (start + end) * last
            )
            x = x + y * 0
            outside = (x < 0) | (x > last)
        elif mode == "pytorch_half_pixel" and length == 1:
            x = y * 0 - half
        else:
            x = (y + half) / scale - half
            if mode == "half_pixel_symmetric":
                x = size / real(2) * (one - real(length) / (scale * size)) + x
        return x, outside


def resized_axes(
    shape: Sequence[int],
    attributes: Mapping[str, Any],
    scales: Array | None,
    sizes: Array | None,
    regions: Array | None,
) -> list[ResizedAxis]:
    """The axes that a Resize names, with their exact scales; none where no length changes.

    Given sizes make the scales; a policy that keeps the aspect ratio makes one for all axes.
    """
    given = dict(DEFAULTS) | {k: v for k, v in attributes.items() if v is not None}
    places = [a % len(shape) for a in given["axes"] or range(len(shape))]
    crop = [0.0] * len(places) + [1.0] * len(places)
    if given["coordinate_transformation_mode"] == "tf_crop_and_resize" and regions is not None:
        crop = regions.astype(np.float64).tolist()
    if scales is not None and scales.size:
        factors = scales.astype(np.float64).tolist()
        results = [int(np.float32(f) * np.float32(shape[a])) for a, f in zip(places, factors, strict=True)]
    else:
        assert sizes is not None
        results = sizes.tolist()
        factors = [n / shape[a] for n, a in zip(results, places, strict=True)]
        policy = given["keep_aspect_ratio_policy"]
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(places)
            results = [int(factor * shape[a] + 0.5) for a in places]
    ends = zip(crop[: len(places)], crop[len(places) :], strict=True)
    if results == [shape[a] for a in places]:
        return []  # onnxruntime copies the input then, whatever the scales and the crop
    axes = zip(places, results, factors, ends, strict=True)
    return [ResizedAxis(a, shape[a], n, factor, end) for a, n, factor, end in axes]


def _rounds_up(rounding: str, fraction: Array) -> Array:
    """Whether each coordinate is rounded to the element right of it; `fraction` is in (0, 1]."""
    whole = fraction == 1
    up = {
        "round_prefer_floor": fraction > 0.5 + _TIE,
        "round_prefer_ceil": fraction > 0.5 - _TIE,
        "floor": whole,
        "ceil": fraction > 0,
    }[rounding]
    return np.asarray(whole | up, np.int64)


def _triangle(distance: Array) -> Array:
    return np.asarray(np.clip(1 - distance, 0, 1))


def cubic(d: Array, a: float) -> Array:
    """The kernel of cubic convolution with the free parameter `a`."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.asarray(np.where(d <= 1, near, np.where(d < 2, far, 0.0)))
