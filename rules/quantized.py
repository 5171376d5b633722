"""Quantised operators: dequantise, compute, quantise. The roundings are steps, which have secants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, Expansion, RuleError, Value, expand, rule
from deepshap_ir.rules.shapley import by_players, quotient


@expand("DequantizeLinear")
def dequantize(ctx: Expansion) -> Value:
    """``(x - zero) scale``."""
    op, dtype = ctx.op, ctx.x(1).dtype
    x = op.cast(ctx.x(), dtype)
    if ctx.has(2):
        x = x - _laid(ctx, op.cast(ctx.x(2), dtype))
    return x * _laid(ctx, ctx.x(1))


@rule("QuantizeLinear")
def quantize(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``round(x / scale) + zero``, clipped: the secant of a step; with a varying scale the players' Shapley values."""
    if not (ctx.varies(1) or ctx.varies(2)):
        delta, change = ctx.delta_x(), ctx.delta_y()
        secant = quotient(ctx.op.cast(change, delta.dtype), delta)
        return [ctx.op.cast(m[0], ctx.x().dtype) * secant, *[None] * (ctx.n_inputs - 1)]
    if ctx.shape(1) not in ((), (1,)):
        raise RuleError("its scale varies, and is not one number; only one scale for all elements has a rule")
    return by_players(ctx, m[0])


def _laid(ctx: Expansion, parameter: Value) -> Value:
    """A scale or zero point in a shape that broadcasts to the input: one, per axis or per block."""
    op, shape = ctx.op, ctx.shape()
    block, axis = ctx.attribute("block_size", 0), ctx.attribute("axis", 1)
    if parameter.rank == 0 or parameter.size == 1:
        return op.Reshape(parameter, [1] * len(shape))
    if parameter.rank == 1 and not block:
        return op.Reshape(parameter, [-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
    if not block:
        return parameter
    axis %= len(shape)
    return op.Gather(parameter, np.arange(shape[axis]) // block, axis=axis)


@expand("DynamicQuantizeLinear")
def dynamic_quantize(ctx: Expansion) -> list[Value]:
    """The scale spreads the range of x, 0 included, over 0 to 255."""
    op, x = ctx.op, ctx.x()
    high = op.Max(op.ReduceMax(x, keepdims=0), op.constant(0.0, x.dtype))
    low = op.Min(op.ReduceMin(x, keepdims=0), op.constant(0.0, x.dtype))
    scale = (high - low) * (1 / 255)
    zero = op.cast(op.Clip(op.Round(-low / scale), 0.0, 255.0), np.uint8)
    return [op.QuantizeLinear(x, scale, zero), scale, zero]


def _dequantized(ctx: Expansion, i: int, axis: int) -> Value:
    """Inputs `i` to ``i + 2``: a tensor, its scale and its zero point, each one number or one per element of `axis`."""
    op, x, dtype = ctx.op, ctx.x(i), ctx.x(i + 1).dtype
    scale, zero = (_along(value, x.rank, axis) for value in (ctx.x(i + 1), op.cast(ctx.x(i + 2), dtype)))
    return (op.cast(x, dtype) - zero) * scale


def _along(parameter: Value, rank: int, axis: int) -> Value:
    if parameter.size == 1 or parameter.rank == 1:
        shape = [-1 if a == axis % rank else 1 for a in range(rank)]
        value: Value = parameter.op.Reshape(parameter, shape)
        return value
    return parameter


def _quantized(ctx: Expansion, value: Value, i: int) -> Value:
    """`value` with the scale and zero point of inputs `i` and ``i + 1``."""
    op, scale, zero = ctx.op, ctx.x(i), ctx.x(i + 1)
    if scale.size == 1:
        return op.QuantizeLinear(value, op.Reshape(scale, []), op.Reshape(zero, []))
    return op.QuantizeLinear(value, scale, zero, axis=value.rank - 2)


@expand("QLinearMatMul")
def quantized_matmul(ctx: Expansion) -> Value:
    """Dequantise, multiply, quantise."""
    product = ctx.op.MatMul(_dequantized(ctx, 0, -2), _dequantized(ctx, 3, -1))
    return _quantized(ctx, product, 6)


@expand("QLinearConv")
def quantized_convolution(ctx: Expansion) -> Value:
    """Dequantise, convolve, quantise; the bias has the scale of input times weights, and zero point 0."""
    op = ctx.op
    bias = [_bias(ctx)] if ctx.has(8) else []
    convolved = op.Conv(_dequantized(ctx, 0, 1), _dequantized(ctx, 3, 0), *bias, **ctx.node.attributes)
    return op.QuantizeLinear(convolved, op.Reshape(ctx.x(6), []), op.Reshape(ctx.x(7), []))


def _bias(ctx: Expansion) -> Value:
    return ctx.op.cast(ctx.x(8), ctx.x(1).dtype) * ctx.op.Reshape(ctx.x(1), []) * ctx.x(4)


@expand("MatMulInteger")
def integer_matmul(ctx: Expansion) -> Value:
    """``(a - zero_a) (b - zero_b)``; zero points are one number, or one per row of a and per column of b."""
    op = ctx.op
    a, b = _centred(ctx, 0, 2, -2), _centred(ctx, 1, 3, -1)
    return op.cast(op.MatMul(a, b), np.int32)


@expand("ConvInteger")
def integer_convolution(ctx: Expansion) -> Value:
    """A convolution of ``x - zero_x`` with ``w - zero_w``, one per output channel."""
    op = ctx.op
    convolved = op.Conv(_centred(ctx, 0, 2, -2), _centred(ctx, 1, 3, 0), **ctx.node.attributes)
    return op.cast(convolved, np.int32)


def _centred(ctx: Expansion, i: int, zero: int, axis: int) -> Value:
    op, x = ctx.op, ctx.op.cast(ctx.x(i), np.float32)
    if not ctx.has(zero):
        return x
    return x - _along(op.cast(ctx.x(zero), np.float32), x.rank, axis)
