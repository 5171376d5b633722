"""Convolution: linear in its input and in its weights."""

from __future__ import annotations

from collections.abc import Sequence

from deepshap_ir.extend import Context, Value, rule


def window_pads(ctx: Context, kernel: Sequence[int], sizes: Sequence[int], outputs: Sequence[int]) -> list[int]:
    """Explicit pads ``[before..., after...]`` of sliding windows, `auto_pad` resolved.

    Parameters
    ----------
    kernel : extent of the window per spatial axis, dilation included.
    sizes, outputs : spatial lengths of the input and of the output.
    """
    rank = len(kernel)
    mode = ctx.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(ctx.attribute("pads", [0] * 2 * rank))
    if mode == "VALID":
        return [0] * 2 * rank
    strides = ctx.attribute("strides", [1] * rank)
    totals = [
        max(0, (out - 1) * stride + extent - size)
        for size, out, extent, stride in zip(sizes, outputs, kernel, strides, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return small + large if mode == "SAME_UPPER" else large + small


@rule("Conv")
def convolution(ctx: Context, m: Sequence[Value]) -> Value:
    """``y = x * w``: ``m_x`` is the transposed convolution of ``m_y`` with the weights."""
    weights = ctx.x(1)
    kernel, sizes, outputs = weights.shape[2:], ctx.shape()[2:], m[0].shape[2:]
    rank = len(kernel)
    strides = ctx.attribute("strides", [1] * rank)
    dilations = ctx.attribute("dilations", [1] * rank)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = window_pads(ctx, extents, sizes, outputs)
    reached = [(n - 1) * s + e for n, s, e in zip(outputs, strides, extents, strict=True)]
    rest = [n + pads[a] + pads[a + rank] - r for a, (n, r) in enumerate(zip(sizes, reached, strict=True))]
    value: Value = ctx.op.ConvTranspose(
        m[0],
        weights,
        group=ctx.attribute("group", 1),
        strides=strides,
        dilations=dilations,
        pads=pads,
        output_padding=rest,
    )
    return value
