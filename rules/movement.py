"""Operators that only move elements: the multipliers move back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Array, Context, Value, rule
from deepshap_ir.rules.reads import given_back, surrounded

Multipliers = list[Value | None]


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(ctx: Context, m: Sequence[Value]) -> Value:
    """The same elements in another shape: back to the input's shape."""
    return ctx.op.Reshape(m[0], np.array(ctx.shape(), np.int64))


@rule("Transpose")
def transpose(ctx: Context, m: Sequence[Value]) -> Value:
    """``y[i_p(0), i_p(1), ...] = x[i_0, i_1, ...]``: the inverse permutation."""
    permutation = ctx.attribute("perm") or range(m[0].rank)[::-1]
    return ctx.op.Transpose(m[0], perm=np.argsort(permutation).tolist())


@rule("Expand")
def expand(ctx: Context, m: Sequence[Value]) -> Value:
    """Repetition along axes of length 1: itself, as the sum over these axes is the engine's."""
    return m[0]


@rule("Tile")
def tile(ctx: Context, m: Sequence[Value]) -> Value:
    """Repetition of the whole: the sum over the copies."""
    shape, repeats = ctx.shape(), ctx.fixed(1, "repeats").tolist()
    split = [n for pair in zip(repeats, shape, strict=True) for n in pair]
    copies = [2 * axis for axis, times in enumerate(repeats) if times != 1]
    total = ctx.op.ReduceSum(ctx.op.Reshape(m[0], split), copies, keepdims=0) if copies else m[0]
    return ctx.op.Reshape(total, np.array(shape, np.int64))


@rule("Concat")
def concat(ctx: Context, m: Sequence[Value]) -> Multipliers:
    """Each operand gets its piece of ``m_y``."""
    axis = ctx.attribute("axis") % m[0].rank
    ends = np.cumsum([ctx.shape(i)[axis] for i in range(ctx.n_inputs)]).tolist()
    return [
        ctx.op.Slice(m[0], [end - ctx.shape(i)[axis]], [end], [axis]) if ctx.varies(i) else None
        for i, end in enumerate(ends)
    ]


@rule("Split")
def split(ctx: Context, m: Sequence[Value | None]) -> Multipliers:
    """The pieces side by side; zeros where a piece is not used."""
    op, shape, n = ctx.op, ctx.shape(), len(ctx.node.outputs)
    axis = ctx.attribute("axis", 0) % len(shape)
    if ctx.has(1):
        sizes = ctx.fixed(1, "lengths").tolist()
    else:
        length = -(-shape[axis] // n)
        sizes = [min(length, shape[axis] - k * length) for k in range(n)]
    used = [k for k, value in enumerate(m) if value is not None]
    first, last = used[0], used[-1]
    parts = [
        op.zeros([*shape[:axis], sizes[k], *shape[axis + 1 :]], ctx.as_float(ctx.x()).dtype) if value is None else value
        for k, value in enumerate(m[first : last + 1], first)
    ]
    whole = op.Concat(*parts, axis=axis) if len(parts) > 1 else parts[0]
    return [surrounded(whole, {axis: (sum(sizes[:first]), sum(sizes[last + 1 :]))}), *[None] * (ctx.n_inputs - 1)]


@rule("Slice")
def slice_(ctx: Context, m: Sequence[Value]) -> Value:
    """Each axis on its own: zeros where nothing was read."""
    shape, value = ctx.shape(), m[0]
    starts, ends = ctx.fixed(1, "starts"), ctx.fixed(2, "ends")
    axes = ctx.fixed(3, "axes") if ctx.has(3) else np.arange(len(starts))
    steps = ctx.fixed(4, "steps") if ctx.has(4) else np.ones(len(starts), np.int64)
    room = {}
    for start, end, axis, step in zip(starts, ends, axes % len(shape), steps, strict=True):
        reads = sliced(int(start), int(end), int(step), shape[axis])
        if step == 1 and len(reads):
            room[int(axis)] = (int(reads[0]), shape[axis] - 1 - int(reads[-1]))
        else:
            value = given_back(value, int(axis), reads, shape[axis])
    return surrounded(value, room)


def sliced(start: int, end: int, step: int, size: int) -> Array:
    """The places that Slice reads along an axis of length `size`, out of range values clamped as ONNX says."""
    start, end = (place + size if place < 0 else place for place in (start, end))
    low, high = (0, size) if step > 0 else (-1, size - 1)
    return np.arange(np.clip(start, max(low, 0), high), np.clip(end, low, high), step)


@rule("Pad")
def pad(ctx: Context, m: Sequence[Value]) -> Multipliers:
    """What was padded is cut off; copies of elements (reflect, edge, wrap) add to them.

    The value with which a constant padding fills gets the sum over the padding.
    """
    op, shape, mode = ctx.op, ctx.shape(), ctx.attribute("mode", "constant")
    pads = ctx.fixed(1, "pads").reshape(2, -1).T.tolist()
    axes = (ctx.fixed(3, "axes") % len(shape)).tolist() if ctx.has(3) else range(len(shape))
    room = dict(zip(axes, pads, strict=True))
    result: Multipliers = [None] * ctx.n_inputs
    if mode == "constant":
        result[0] = surrounded(m[0], {axis: (-before, -after) for axis, (before, after) in room.items()})
        if ctx.varies(2):
            padding = np.ones(m[0].shape, bool)
            padding[
                tuple(
                    slice(max(0, room[a][0]), n - max(0, room[a][1])) if a in room else slice(None)
                    for a, n in enumerate(m[0].shape)
                )
            ] = False
            filled = op.Where(padding, m[0], op.constant(0.0, m[0].dtype))
            result[2] = op.Reshape(op.ReduceSum(filled, keepdims=0), np.array(ctx.shape(2), np.int64))
        return result
    value = m[0]
    for axis, (before, after) in room.items():
        kept = np.arange(max(0, -before), shape[axis] - max(0, -after))
        reads = np.pad(kept, (max(0, before), max(0, after)), mode=mode)
        value = given_back(value, axis, reads, shape[axis])
    result[0] = value
    return result


@rule("CenterCropPad")
def center_crop_pad(ctx: Context, m: Sequence[Value]) -> Value:
    """What was cut off gets zeros, what was padded is cut off; the odd element is at the end."""
    shape = ctx.shape()
    room = {}
    for axis in ctx.attribute("axes") or range(len(shape)):
        longer = shape[axis] - m[0].shape[axis]
        before = abs(longer) // 2 * (1 if longer > 0 else -1)
        room[axis % len(shape)] = (before, longer - before)
    return surrounded(m[0], room)


@rule("DepthToSpace")
def depth_to_space(ctx: Context, m: Sequence[Value]) -> Value:
    """The blocks go back into the channels."""
    block = ctx.attribute("blocksize")
    if ctx.attribute("mode", "DCR") == "DCR":
        return ctx.op.SpaceToDepth(m[0], blocksize=block)
    n, channels, height, width = m[0].shape
    blocks = ctx.op.Reshape(m[0], [n, channels, height // block, block, width // block, block])
    return ctx.op.Reshape(ctx.op.Transpose(blocks, perm=[0, 1, 3, 5, 2, 4]), list(ctx.shape()))


@rule("SpaceToDepth")
def space_to_depth(ctx: Context, m: Sequence[Value]) -> Value:
    """The channels go back into blocks."""
    return ctx.op.DepthToSpace(m[0], blocksize=ctx.attribute("blocksize"), mode="DCR")


@rule("Trilu")
def triangle(ctx: Context, m: Sequence[Value]) -> Value:
    """The same triangle."""
    diagonal = [ctx.x(1)] if ctx.has(1) else []
    return ctx.op.Trilu(m[0], *diagonal, upper=ctx.attribute("upper", 1))
