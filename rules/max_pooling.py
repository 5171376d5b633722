"""MaxPool: to the winners of the sample and of the reference, or by exact Shapley values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from deepshap_ir.extend import Array, Context, Value, rule
from deepshap_ir.rules.maximum import ratio, shapley_of_max, uses_shapley


@rule("MaxPool")
def max_pool(ctx: Context, m: Sequence[Value | None]) -> Value:
    """The winners' rule; exact Shapley values with the option ``max_pooling="shapley"``.

    A window that covers the whole input is a ReduceMax, and follows the option ``max`` as that does. The second output,
    Indices, does not vary continuously: nothing is booked to it.
    """
    if m[0] is None:
        return ctx.op.zeros(ctx.shape())
    windows = Windows.of(ctx)
    option = ("max", "shapley") if windows.cover_everything else ("max_pooling", "shap")
    return (shapley if uses_shapley(ctx, *option) else winners)(ctx, windows, m[0])


def winners(ctx: Context, windows: Windows, m: Value) -> Value:
    """``max(y, y0) - y0`` to the sample's winner, ``y - max(y, y0)`` to the reference's winner, as in SHAP.

    One of the two is 0. So with ``d = y - y0`` all goes to one element j, the sample's winner if ``d >= 0``, else the
    reference's, with the multiplier ``d / (x_j - x0_j)``. It lies in [0, 1], as ``|x_j - x0_j| >= |d|``. Of equal
    elements the first wins. Windows that overlap add.
    """
    op, (batch, channels) = ctx.op, ctx.shape()[:2]
    planes = [batch, channels, -1]
    d = op.Reshape(ctx.delta_y(), planes)
    j = op.Where(d >= 0.0, windows.winner(ctx, ctx.x()), windows.winner(ctx, ctx.x0()))
    picked = op.GatherElements(op.Reshape(ctx.delta_x(), planes), j, axis=2)
    chosen = op.cast(op.Equal(op.Unsqueeze(j, [2]), op.constant(windows.positions)), d.dtype)
    part = ratio(d, picked) * op.Reshape(m, planes)
    return windows.join(ctx, chosen * op.Unsqueeze(part, [2]))


def shapley(ctx: Context, windows: Windows, m: Value) -> Value:
    """The exact Shapley value of the maximum of each window."""
    op = ctx.op
    split, split0 = (op.Concat(*windows.elements(ctx, x), axis=-1) for x in (ctx.x(), ctx.x0()))
    factor = op.Transpose(shapley_of_max(split, split0), perm=[0, 1, 3, 2])
    return windows.join(ctx, factor * op.Reshape(m, [*ctx.shape()[:2], 1, -1]))


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
        """The windows of the node, with the padding that follows from `pads` or `auto_pad`."""
        size, out = ctx.shape()[2:], ctx.y().shape[2:]
        rank = len(size)
        kernel = tuple(ctx.attribute("kernel_shape"))
        strides = tuple(ctx.attribute("strides") or [1] * rank)
        dilations = tuple(ctx.attribute("dilations") or [1] * rank)
        before = tuple(ctx.attribute("pads") or [0] * rank)[:rank]
        mode = ctx.attribute("auto_pad", "NOTSET")
        if mode != "NOTSET":
            ends = cls(size, out, kernel, strides, dilations, (0,) * rank).ends
            total = [max(end, 0) if mode != "VALID" else 0 for end in ends]
            before = tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total)
        return cls(size, out, kernel, strides, dilations, before)

    @property
    def ends(self) -> tuple[int, ...]:
        """Per dimension, by how much the windows reach beyond the input; negative where they end before it."""
        parts = zip(self.size, self.out, self.kernel, self.strides, self.dilations, self.before, strict=True)
        return tuple(s * (o - 1) + d * (k - 1) + 1 - b - n for n, o, k, s, d, b in parts)

    @property
    def after(self) -> tuple[int, ...]:
        """Padding behind the input."""
        return tuple(max(end, 0) for end in self.ends)

    @property
    def offsets(self) -> list[tuple[int, ...]]:
        """The elements of a window in row-major order, relative to its first."""
        return [tuple(np.multiply(i, self.dilations)) for i in product(*map(range, self.kernel))]

    @property
    def positions(self) -> Array:
        """``[elements of a window, number of windows]``: where in a flat plane an element lies; -1 in the padding."""
        first = np.stack(np.meshgrid(*map(np.arange, self.out), indexing="ij")).reshape(len(self.out), -1)
        first = first * np.array(self.strides)[:, None] - np.array(self.before)[:, None]
        places = np.stack([first + np.array(offset)[:, None] for offset in self.offsets], axis=1)
        inside = ((places >= 0) & (places < np.array(self.size)[:, None, None])).all(0)
        flat = np.ravel_multi_index(tuple(places), self.size, mode="clip")
        return np.where(inside, flat, -1).astype(np.int32)

    @property
    def cover_everything(self) -> bool:
        """Whether there is one window and it holds every element."""
        positions = self.positions
        return positions.shape[1] == 1 and np.unique(positions[positions >= 0]).size == np.prod(self.size)

    def elements(self, ctx: Context, x: Value) -> list[Value]:
        """Per element of a window ``[n, C, number of windows, 1]``; in the padding the lowest finite number."""
        op, rank = ctx.op, len(self.size)
        x = ctx.as_float(x)
        if any(self.before) or any(self.after):
            lowest = op.constant(np.finfo(x.dtype).min, x.dtype)
            x = op.Pad(x, [0, 0, *self.before, 0, 0, *self.after], lowest)
        axes, steps = list(range(2, 2 + rank)), list(self.strides)
        parts = []
        for starts in self.offsets:
            ends = [b + s * (o - 1) + 1 for b, s, o in zip(starts, steps, self.out, strict=True)]
            part = op.Slice(x, list(map(int, starts)), list(map(int, ends)), axes, steps)
            parts.append(op.Reshape(part, [*x.shape[:2], -1, 1]))
        return parts

    def winner(self, ctx: Context, x: Value) -> Value:
        """``[n, C, number of windows]``: where in a flat plane the first largest element of each window lies."""
        op = ctx.op
        # the types are said because onnx infers one window too many with ceil_mode before opset 22
        types = [(ctx.y().shape, x.dtype), (ctx.y().shape, np.dtype(np.int64))]
        _, index = op.emit("MaxPool", "", [x], {**ctx.node.attributes, "storage_order": 0}, 2, types)
        within = op.Mod(index, op.constant(np.prod(self.size, dtype=np.int64)))
        flat: Value = op.Reshape(op.cast(within, np.int32), [*x.shape[:2], -1])
        return flat

    def join(self, ctx: Context, split: Value) -> Value:
        """``[n, C, elements of a window, number of windows]`` -> ``[n, C, *size]``, repeated elements added up."""
        op, (batch, channels, n) = ctx.op, split.shape[:3]
        flat = [1] if len(self.size) == 1 else []  # a signal is an image of one row
        if len(self.size) > 2 and max(self.dilations) > 1:  # where onnxruntime 1.31 misplaces columns
            joined = op.ConvTranspose(
                op.Reshape(split, [batch * channels, n, *self.out]),
                np.eye(n).reshape(n, 1, *self.kernel),
                strides=list(self.strides),
                dilations=list(self.dilations),
                pads=[*self.before, *self.after],
                output_padding=[max(-end, 0) for end in self.ends],
            )
        else:
            joined = op.Col2Im(
                op.Reshape(split, [batch * channels, n, -1]),
                [*flat, *self.size],
                [*flat, *self.kernel],
                strides=[*flat, *self.strides],
                dilations=[*flat, *self.dilations],
                pads=[*(0 for _ in flat), *self.before, *(0 for _ in flat), *self.after],
            )
        result: Value = op.Reshape(joined, [batch, channels, *self.size])
        return result
