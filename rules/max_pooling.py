"""MaxPool: to the winners of the sample and of the reference, or by exact Shapley values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from deepshap_ir.extend import Context, Value, rule

TINY = 1e-30
"""Added to numerator and denominator of a ratio in [0, 1], so that 0/0 is 1, the derivative at zero delta."""


@rule("MaxPool")
def max_pool(ctx: Context, m: Sequence[Value | None]) -> Value:
    """``max(y, y0) - y0`` to the sample's winner, ``y - max(y, y0)`` to the reference's winner, as in SHAP.

    One of the two is 0. So with ``d = y - y0`` the whole goes to the sample's winner j if ``d >= 0``, with the multiplier
    ``d / (x_j - x0_j)``, else to the reference's. The denominator is at least as large as ``|d|``: the multiplier lies
    in [0, 1]. Of equal elements the first wins. Windows that overlap add.
    """
    op = ctx.op
    if m[0] is None:
        return op.zeros(ctx.shape())
    windows = Windows.of(ctx)
    x, x0 = windows.split(ctx, ctx.x()), windows.split(ctx, ctx.x0())
    won, won0 = windows.winners(ctx, x), windows.winners(ctx, x0)
    y, y0 = op.Unsqueeze(ctx.y(), [2]), op.Unsqueeze(ctx.y0(), [2])
    d = y - y0
    up = d >= 0.0
    there = op.Where(up, y - op.ReduceSum(won * x0, [2]), y0 - op.ReduceSum(won0 * x, [2]))
    ratio = (op.Abs(d) + TINY) / (there + TINY)
    factor = op.Where(up, won, won0) * ratio
    return windows.join(ctx, factor * op.Unsqueeze(m[0], [2]))


@dataclass(frozen=True)
class Windows:
    """Where the windows of a pooling node lie; one entry per spatial dimension."""

    size: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]

    @classmethod
    def of(cls, ctx: Context) -> Windows:
        """The windows of the node; padding as it results from `pads` or `auto_pad`."""
        size, out = ctx.shape()[2:], ctx.y().shape[2:]
        rank = len(size)
        kernel = tuple(ctx.attribute("kernel_shape"))
        strides = tuple(ctx.attribute("strides") or [1] * rank)
        dilations = tuple(ctx.attribute("dilations") or [1] * rank)
        before = tuple(ctx.attribute("pads") or [0] * rank)[:rank]
        mode = ctx.attribute("auto_pad", "NOTSET")
        if mode.startswith("SAME"):
            spans = [s * (o - 1) + d * (k - 1) + 1 for s, o, d, k in zip(strides, out, dilations, kernel, strict=True)]
            total = [max(span - n, 0) for span, n in zip(spans, size, strict=True)]
            before = tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total)
        elif mode == "VALID":
            before = (0,) * rank
        return cls(size, out, kernel, strides, dilations, before)

    @property
    def ends(self) -> tuple[int, ...]:
        """Per dimension, by how much the windows reach beyond the input; negative where they end before it."""
        spans = zip(self.size, self.out, self.kernel, self.strides, self.dilations, self.before, strict=True)
        return tuple(s * (o - 1) + d * (k - 1) + 1 - b - n for n, o, k, s, d, b in spans)

    def split(self, ctx: Context, x: Value) -> Value:
        """``[n, C, *size]`` -> ``[n, C, elements of a window, *out]``."""
        op, rank = ctx.op, len(self.size)
        after = [max(e, 0) for e in self.ends]
        if any(self.before) or any(after):
            lowest = op.constant(np.finfo(x.dtype).min, x.dtype)
            x = op.Pad(x, [0, 0, *self.before, 0, 0, *after], lowest)
        axes = list(range(2, 2 + rank))
        parts = []
        for offset in product(*map(range, self.kernel)):
            starts = [i * d for i, d in zip(offset, self.dilations, strict=True)]
            ends = [b + s * (o - 1) + 1 for b, s, o in zip(starts, self.strides, self.out, strict=True)]
            parts.append(op.Unsqueeze(op.Slice(x, starts, ends, axes, list(self.strides)), [2]))
        return op.Concat(*parts, axis=2)  # type: ignore[no-any-return]

    def winners(self, ctx: Context, split: Value) -> Value:
        """1 at the first largest element of each window, else 0."""
        op, n = ctx.op, split.shape[2]
        positions = np.arange(n).reshape(1, 1, n, *[1] * len(self.size))
        return op.cast(op.Equal(op.ArgMax(split, axis=2), op.constant(positions)), split.dtype)

    def join(self, ctx: Context, split: Value) -> Value:
        """The inverse of `split`: elements that are in several windows add."""
        op, (batch, channels, n) = ctx.op, split.shape[:3]
        joined = op.ConvTranspose(
            op.Reshape(split, [batch * channels, n, *self.out]),
            np.eye(n).reshape(n, 1, *self.kernel),
            kernel_shape=list(self.kernel),
            strides=list(self.strides),
            dilations=list(self.dilations),
            pads=[*self.before, *[max(e, 0) for e in self.ends]],
            output_padding=[max(-e, 0) for e in self.ends],
        )
        return op.Reshape(joined, [batch, channels, *self.size])  # type: ignore[no-any-return]
