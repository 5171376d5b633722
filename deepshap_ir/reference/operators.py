"""Operators that `onnx.reference` computes wrongly or one number at a time, in numpy.

onnx 1.23: ConvTranspose mixes up the channels of groups, AveragePool and MaxPool shift windows with `ceil_mode` or
SAME_LOWER, AveragePool refuses `auto_pad`, GlobalMaxPool takes pictures only, Erf and Gelu round to float32, Mean does
not broadcast, GatherElements takes no negative axis and no more than 64 elements, LRN takes samples for channels,
LpNormalization with p = 1 forgets signs, GroupNormalization and MeanVarianceNormalization round to float32; Col2Im,
ScatterElements and the pools need seconds for a small image; LogSoftmax is -inf where Softmax is 0; Scan goes along the
first axis only, and only forward.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from deepshap_ir.graph import Array
from deepshap_ir.reference.recurrent import RECURRENT
from deepshap_ir.reference.sampling import SAMPLING
from deepshap_ir.reference.spectral import STFT

Sizes = Sequence[int]
"""One number per spatial dimension."""


class Mean(OpRun):
    """The mean of operands that broadcast."""

    def _run(self, *terms: Array) -> tuple[Array]:
        return (np.asarray(sum(terms[1:], terms[0]) / len(terms), dtype=terms[0].dtype),)


class Erf(OpRun):
    """The error function in the precision of its operand."""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """``x P(x)`` with the normal distribution P, or its approximation by tanh."""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:
        if approximate == "tanh":
            t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        else:
            t = np.vectorize(math.erf, otypes=[x.dtype])(x * math.sqrt(0.5))
        return ((x * 0.5 * (1 + t)).astype(x.dtype),)


class ConvTranspose(OpRun):
    """``y[n, o, i s + k d - pad] += x[n, c, i] w[c, o, k]``."""

    def _run(
        self,
        x: Array,
        w: Array,
        bias: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sizes | None = None,
        group: int | None = None,
        kernel_shape: Sizes | None = None,
        output_padding: Sizes | None = None,
        output_shape: Sizes | None = None,
        pads: Sequence[int] | None = None,
        strides: Sizes | None = None,
    ) -> tuple[Array]:
        group, sizes, kernel = group or 1, x.shape[2:], w.shape[2:]
        rank = len(sizes)
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        extra = output_padding or [0] * rank
        full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)]
        if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            out = list(output_shape or [n * s for n, s in zip(sizes, strides, strict=True)])[-rank:]
            total = [max(0, f + e - o) for f, e, o in zip(full, extra, out, strict=True)]
            before = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
        else:
            pads = [0] * 2 * rank if auto_pad == "VALID" or not pads else pads
            before = list(pads[:rank])
            out = [f + e - a - b for f, e, a, b in zip(full, extra, before, pads[rank:], strict=True)]
        channels = w.shape[1] * group
        room = [max(f, b + o) for f, b, o in zip(full, before, out, strict=True)]
        result = np.zeros((x.shape[0], channels, *room), x.dtype)
        grouped = x.reshape(x.shape[0], group, -1, math.prod(sizes))
        weights = w.reshape(group, -1, *w.shape[1:])
        for offset in itertools.product(*map(range, kernel)):
            at: Any = (..., *offset)
            factor = weights[at].swapaxes(1, 2)
            result[_places(offset, dilations, strides, sizes)] += (factor @ grouped).reshape(-1, channels, *sizes)
        result = result[_places(before, [1] * rank, [1] * rank, out)]
        return (result if bias is None else result + bias.reshape(-1, *[1] * rank),)


class AveragePool(OpRun):
    """The mean over windows, of what lies within the input or, with `count_include_pad`, within the padding."""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        count_include_pad: int | None = None,
        dilations: Sizes | None = None,
        kernel_shape: Sizes | None = None,
        pads: Sequence[int] | None = None,
        strides: Sizes | None = None,
    ) -> tuple[Array]:
        kernel = list(kernel_shape or [])
        rank = len(kernel)
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        padding, beyond, out = _windows(x.shape[2:], kernel, strides, dilations, pads, auto_pad, ceil_mode)

        def sums(array: Array) -> Array:
            padded = np.pad(array, beyond)
            total = np.zeros((*array.shape[:2], *out), array.dtype)
            for offset in itertools.product(*map(range, kernel)):
                total += padded[_places(offset, dilations, strides, out)]
            return total

        ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
        counted = np.pad(ones, padding, constant_values=1 if count_include_pad else 0)
        return (sums(np.pad(x, padding)) / sums(counted),)


class MaxPool(OpRun):
    """The largest of each window and, where wanted, its flat index in the whole of `x`."""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: Sizes | None = None,
        kernel_shape: Sizes | None = None,
        pads: Sequence[int] | None = None,
        storage_order: int | None = None,
        strides: Sizes | None = None,
    ) -> tuple[Array, ...]:
        kernel = list(kernel_shape or [])
        rank = len(kernel)
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        padding, beyond, out = _windows(x.shape[2:], kernel, strides, dilations, pads, auto_pad, ceil_mode)
        numbers = np.arange(x.size)
        if storage_order:
            axes = [0, 1, *range(2, x.ndim)[::-1]]
            numbers = numbers.reshape([x.shape[a] for a in axes]).transpose(np.argsort(axes))
        numbers = np.pad(np.pad(numbers.reshape(x.shape), padding), beyond)
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        padded = np.pad(np.pad(x, padding, constant_values=lowest), beyond, constant_values=lowest)
        chosen = [_places(offset, dilations, strides, out) for offset in itertools.product(*map(range, kernel))]
        values = np.stack([padded[places] for places in chosen])
        first = values.argmax(0)[None]
        found = np.take_along_axis(np.stack([numbers[places] for places in chosen]), first, 0)[0]
        return (np.take_along_axis(values, first, 0)[0], found)[: len(self.onnx_node.output)]


class Pad(OpRun):
    """Negative pads cut off, before the others are filled."""

    def _run(
        self,
        x: Array,
        pads: Array,
        constant_value: Array | None = None,
        axes: Array | None = None,
        mode: str | None = None,
    ) -> tuple[Array]:
        places = range(x.ndim) if axes is None else [int(a) % x.ndim for a in axes]
        width = [(0, 0)] * x.ndim
        for a, before, after in zip(places, *np.split(np.asarray(pads), 2), strict=True):
            width[a] = (int(before), int(after))
        kept = tuple(slice(max(0, -b), n - max(0, -a)) for n, (b, a) in zip(x.shape, width, strict=True))
        filled = [(max(0, b), max(0, a)) for b, a in width]
        if mode in (None, "constant"):
            value = 0 if constant_value is None else np.asarray(constant_value).reshape(())
            return (np.pad(x[kept], filled, constant_values=value),)
        return (np.pad(x[kept], filled, mode=mode),)  # type: ignore[call-overload]


class GlobalMaxPool(OpRun):
    """The largest of each channel, whatever the number of spatial dimensions."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class Col2Im(OpRun):
    """The sum of columns into the image from which windows were cut."""

    def _run(
        self,
        data: Array,
        image_shape: Array,
        block_shape: Array,
        dilations: Sizes | None = None,
        pads: Sequence[int] | None = None,
        strides: Sizes | None = None,
    ) -> tuple[Array]:
        sizes, kernel = image_shape.tolist(), block_shape.tolist()
        rank = len(sizes)
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        padding, _, out = _windows(sizes, kernel, strides, dilations, pads, None, 0)
        columns = data.reshape(len(data), -1, math.prod(kernel), *out)
        image = np.zeros((*columns.shape[:2], *(n + a + b for n, (a, b) in zip(sizes, padding[2:], strict=True))))
        for k, offset in enumerate(itertools.product(*map(range, kernel))):
            image[_places(offset, dilations, strides, out)] += columns[:, :, k]
        inside = _places([a for a, _ in padding[2:]], [1] * rank, [1] * rank, sizes)
        return (image[inside].astype(data.dtype),)


class GatherElements(OpRun):
    """One element per index along the axis."""

    def _run(self, data: Array, indices: Array, axis: int | None = None) -> tuple[Array]:
        axis = (axis or 0) % data.ndim
        read = tuple(slice(None if a == axis else n) for a, n in enumerate(indices.shape))
        return (np.take_along_axis(data[read], indices.astype(np.int64), axis),)


class ScatterElements(OpRun):
    """One element per index along the axis, put in or combined with what is there."""

    def _run(
        self, data: Array, indices: Array, updates: Array, axis: int | None = None, reduction: str | None = None
    ) -> tuple[Array]:
        axis, result = (axis or 0) % data.ndim, data.copy()
        places = list(np.ix_(*map(np.arange, indices.shape)))
        places[axis] = indices.astype(np.int64)
        combine = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}.get(reduction or "none")
        if combine is None:
            result[tuple(places)] = updates
        else:
            combine.at(result, tuple(places), updates)
        return (result,)


class LogSoftmax(OpRun):
    """``x - log(sum(exp x))``; not the logarithm of a probability that is rounded to 0."""

    def _run(self, x: Array, axis: int | None = None) -> tuple[Array]:
        axis = -1 if axis is None else axis
        below = x - x.max(axis, keepdims=True)
        return (below - np.log(np.exp(below).sum(axis, keepdims=True)),)


class GroupNormalization(OpRun):
    """Groups of channels with mean 0 and variance 1, then scale and bias per channel or, before opset 21, per group."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        epsilon: float | None = None,
        num_groups: int | None = None,
        stash_type: int | None = None,
    ) -> tuple[Array]:
        grouped = x.reshape(len(x), num_groups or 1, -1)
        spread = np.sqrt(grouped.var(-1, keepdims=True) + float(1e-5 if epsilon is None else epsilon))
        normalised = ((grouped - grouped.mean(-1, keepdims=True)) / spread).reshape(x.shape)
        shape = [-1, *[1] * (x.ndim - 2)]
        scale, bias = (np.repeat(a, x.shape[1] // a.size).reshape(shape) for a in (scale, bias))
        return ((normalised * scale + bias).astype(x.dtype),)


class MeanVarianceNormalization(OpRun):
    """``(x - mean) / (standard deviation + 1e-9)``."""

    def _run(self, x: Array, axes: Sequence[int] | None = None) -> tuple[Array]:
        over = tuple([0, 2, 3] if axes is None else axes)
        deviation = x.std(over, keepdims=True) + 1e-9
        return (((x - x.mean(over, keepdims=True)) / deviation).astype(x.dtype),)


class LpNormalization(OpRun):
    """``x / |x|_p``, 0 where all is 0."""

    def _run(self, x: Array, axis: int | None = None, p: int | None = None) -> tuple[Array]:
        norm = np.linalg.norm(x, ord=2 if p is None else p, axis=-1 if axis is None else axis, keepdims=True)
        return ((x / np.where(norm == 0, 1, norm)).astype(x.dtype),)


class LRN(OpRun):
    """``x / (bias + alpha/size sum of squares of neighbouring channels)^beta``."""

    def _run(
        self,
        x: Array,
        alpha: float | None = None,
        beta: float | None = None,
        bias: float | None = None,
        size: int | None = None,
    ) -> tuple[Array]:
        alpha, beta, bias = (float(d if v is None else v) for v, d in ((alpha, 1e-4), (beta, 0.75), (bias, 1.0)))
        size = size or 1
        before = (size - 1) // 2
        padded = np.pad(x * x, [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)])
        squares = sum(padded[:, i : i + x.shape[1]] for i in range(size))
        return ((x / (bias + alpha / size * squares) ** beta).astype(x.dtype),)


def _windows(
    sizes: Sizes,
    kernel: Sizes,
    strides: Sizes,
    dilations: Sizes,
    pads: Sequence[int] | None,
    auto_pad: str | None,
    ceil_mode: int | None,
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[int]]:
    """For `numpy.pad` of ``[n, C, *sizes]``: the padding, what windows need behind it; and their number."""
    rank = len(sizes)
    pads = [0] * 2 * rank if auto_pad == "VALID" or not pads else pads
    padding, beyond, out = [(0, 0), (0, 0)], [(0, 0), (0, 0)], []
    for a, (size, k, s, d) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        span, before, after = (k - 1) * d + 1, pads[a], pads[a + rank]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            n = -(-size // s)
            needed = max(0, (n - 1) * s + span - size)
            before = needed // 2 if auto_pad == "SAME_UPPER" else needed - needed // 2
            after = needed - before
        else:
            rest = size + before + after - span
            n = (-(-rest // s) if ceil_mode else rest // s) + 1
            if ceil_mode and (n - 1) * s >= size + before:  # the last window must not begin behind the input
                n -= 1
        padding.append((before, after))
        beyond.append((0, max(0, (n - 1) * s + span - size - before - after)))
        out.append(n)
    return padding, beyond, out


def _places(offset: Sizes, dilations: Sizes, strides: Sizes, counts: Sizes) -> Any:
    """The index of `counts` positions per trailing dimension, from ``offset * dilation`` in steps of the stride."""
    chosen = zip(offset, dilations, strides, counts, strict=True)
    return (..., *(slice(i * d, i * d + (n - 1) * s + 1, s) for i, d, s, n in chosen))


class Scan(OpRun):
    """A loop over sequences along any axis, in either direction, whose body sees the values around it."""

    body: Any
    num_scan_inputs: int
    scan_input_axes: Sequence[int] | None
    scan_input_directions: Sequence[int] | None
    scan_output_axes: Sequence[int] | None
    scan_output_directions: Sequence[int] | None

    def need_context(self) -> bool:
        """Whether `_run` is given the values around the node."""
        return True

    def _run(self, *inputs: Array, context: dict[str, Any] | None = None, **_: Any) -> tuple[Array, ...]:
        n = len(inputs) - self.num_scan_inputs
        states, sequences = inputs[:n], []
        for k, array in enumerate(inputs[n:]):
            moved = np.moveaxis(array, _entry(self.scan_input_axes, k), 0)
            sequences.append(moved[::-1] if _entry(self.scan_input_directions, k) else moved)
        rows = []
        for elements in zip(*sequences, strict=True):
            fed = dict(zip(self.body.input_names, (*states, *elements), strict=True))
            found = self.body.run(None, {**(context or {}), **fed})
            states = tuple(found[:n])
            rows.append(found[n:])
        stacked = []
        for k, column in enumerate(zip(*rows, strict=True)):
            array = np.stack(column[::-1] if _entry(self.scan_output_directions, k) else column)
            stacked.append(np.moveaxis(array, 0, _entry(self.scan_output_axes, k)))
        return (*states, *stacked)


def _entry(numbers: Sequence[int] | None, position: int) -> int:
    """An element of an attribute; 0, the default, where it is absent."""
    return numbers[position] if numbers else 0


REPAIRED: list[type[OpRun]] = [
    AveragePool,
    Col2Im,
    ConvTranspose,
    Erf,
    GatherElements,
    GlobalMaxPool,
    Gelu,
    GroupNormalization,
    LRN,
    LogSoftmax,
    LpNormalization,
    MaxPool,
    Mean,
    MeanVarianceNormalization,
    Pad,
    Scan,
    ScatterElements,
    *RECURRENT,
    *SAMPLING,
    STFT,
]
"""Given to every `onnx.reference.ReferenceEvaluator` (`new_ops`)."""
