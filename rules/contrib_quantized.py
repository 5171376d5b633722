"""Quantised operators of ``com.microsoft``: dequantise, compute, quantise."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepshap_ir.extend import Array, Expansion, RuleError, Value, expand
from deepshap_ir.rules.contrib import embedded
from deepshap_ir.rules.contrib_attention import self_attention
from deepshap_ir.rules.recurrent import layer, lstm_cell

DOMAIN = "com.microsoft"


def real(ctx: Expansion, x: int, scale: int | None = None, zero: int | None = None, axis: int = -1) -> Value:
    """``(x - zero) scale``, by default of the two inputs after x; each one number, or one per place on `axis`."""
    op, scale, zero = ctx.op, x + 1 if scale is None else scale, x + 2 if zero is None else zero
    dtype = ctx.x(scale).dtype
    value = op.cast(ctx.x(x), dtype)
    if ctx.has(zero):
        value = value - _laid(op.cast(ctx.x(zero), dtype), value.rank, axis)
    return value * _laid(ctx.x(scale), value.rank, axis)


def _laid(parameter: Value, rank: int, axis: int) -> Value:
    if parameter.size > 1 and parameter.rank > 1:
        return parameter
    laid: Value = parameter.op.Reshape(parameter, [-1 if a == axis % rank else 1 for a in range(rank)])
    return laid


def quantised(ctx: Expansion, value: Value, scale: int, like: int = 0) -> Value:
    """`value` with the scale and zero point of inputs `scale` and the next; its type is that of input `like`."""
    op = ctx.op
    zero = ctx.x(scale + 1) if ctx.has(scale + 1) else op.constant(np.zeros((), ctx.x(like).dtype))
    result: Value = op.QuantizeLinear(value, op.Reshape(ctx.x(scale), []), op.Reshape(zero, []))
    return result


@expand(f"{DOMAIN}::QLinearAdd")
def add(ctx: Expansion) -> Value:
    """``a + b``."""
    return quantised(ctx, real(ctx, 0) + real(ctx, 3), 6)


@expand(f"{DOMAIN}::QLinearMul")
def multiply(ctx: Expansion) -> Value:
    """``a b``."""
    return quantised(ctx, real(ctx, 0) * real(ctx, 3), 6)


@expand(f"{DOMAIN}::QLinearSigmoid")
def sigmoid(ctx: Expansion) -> Value:
    """``1 / (1 + exp(-x))``."""
    return quantised(ctx, ctx.op.Sigmoid(real(ctx, 0)), 3)


@expand(f"{DOMAIN}::QLinearLeakyRelu")
def leaky_relu(ctx: Expansion) -> Value:
    """x where positive, else ``alpha x``."""
    return quantised(ctx, ctx.op.LeakyRelu(real(ctx, 0), alpha=ctx.attribute("alpha", 0.01)), 3)


@expand(f"{DOMAIN}::QLinearSoftmax")
def softmax(ctx: Expansion) -> Value:
    """Along `axis`, or in opsets before 13 over all axes from `axis` on."""
    op, x, axis = ctx.op, real(ctx, 0), ctx.attribute("axis", -1)
    if ctx.attribute("opset") >= 13:
        return quantised(ctx, op.Softmax(x, axis=axis), 3)
    shape, axis = x.shape, axis % x.rank
    flat = op.Softmax(op.Reshape(x, [int(np.prod(shape[:axis])), -1]), axis=-1)
    return quantised(ctx, op.Reshape(flat, list(shape)), 3)


@expand(f"{DOMAIN}::QLinearConcat")
def concatenate(ctx: Expansion) -> Value:
    """Tensors with scales of their own, side by side."""
    parts = [real(ctx, i) for i in range(2, ctx.n_inputs, 3)]
    return quantised(ctx, ctx.op.Concat(*parts, axis=ctx.attribute("axis")), 0, like=2)


@expand(f"{DOMAIN}::QLinearWhere")
def where(ctx: Expansion) -> Value:
    """x where the condition holds, else y."""
    return quantised(ctx, ctx.op.Where(ctx.x(0), real(ctx, 1), real(ctx, 4)), 7, like=1)


@expand(f"{DOMAIN}::QLinearReduceMean")
def reduce_mean(ctx: Expansion) -> Value:
    """The mean over `axes`."""
    axes: Any = ctx.attribute("axes")
    mean = ctx.op.ReduceMean(real(ctx, 0), *([axes] if axes else []), keepdims=ctx.attribute("keepdims", 1))
    return quantised(ctx, mean, 3)


@expand(f"{DOMAIN}::QLinearAveragePool", f"{DOMAIN}::QLinearGlobalAveragePool")
def average_pool(ctx: Expansion) -> Value:
    """The mean of a window, or of all places."""
    op, x, last = ctx.op, real(ctx, 0), bool(ctx.attribute("channels_last", 0))
    x = channels_first(x) if last else x
    if ctx.node.op_type == "QLinearGlobalAveragePool":
        pooled = op.GlobalAveragePool(x)
    else:
        pooled = op.AveragePool(x, **_without(ctx, "channels_last"))
    return quantised(ctx, channels_last(pooled) if last else pooled, 3)


@expand(f"{DOMAIN}::NhwcMaxPool")
def max_pool(ctx: Expansion) -> Value:
    """The largest integer of a window; channels come last."""
    op, x = ctx.op, ctx.x()
    pooled = op.MaxPool(channels_first(op.cast(x, np.float32)), **ctx.node.attributes)
    return op.cast(channels_last(pooled), x.dtype)


def channels_first(x: Value) -> Value:
    """``[N, *places, C]`` -> ``[N, C, *places]``."""
    result: Value = x.op.Transpose(x, perm=[0, x.rank - 1, *range(1, x.rank - 1)])
    return result


def channels_last(x: Value) -> Value:
    """``[N, C, *places]`` -> ``[N, *places, C]``."""
    result: Value = x.op.Transpose(x, perm=[0, *range(2, x.rank), 1])
    return result


def _without(ctx: Expansion, *names: str) -> dict[str, Any]:
    return {name: value for name, value in ctx.node.attributes.items() if name not in names}


@expand(f"{DOMAIN}::QLinearConv")
def convolution(ctx: Expansion) -> Value:
    """Dequantise, convolve, quantise; the bias has the scale of input times weights. Channels may come last."""
    op, x, last = ctx.op, real(ctx, 0), bool(ctx.attribute("channels_last", 0))
    bias = []
    if ctx.has(8):
        bias = [op.cast(ctx.x(8), x.dtype) * op.Reshape(ctx.x(1), []) * ctx.x(4)]
    x = channels_first(x) if last else x
    convolved = op.Conv(x, real(ctx, 3, axis=0), *bias, **_without(ctx, "channels_last"))
    return quantised(ctx, channels_last(convolved) if last else convolved, 6)


@expand(f"{DOMAIN}::QGemm")
def gemm(ctx: Expansion) -> Value:
    """``alpha a b + c``, quantised where there is a scale for it."""
    op, alpha = ctx.op, ctx.attribute("alpha", 1.0)
    a, b = real(ctx, 0), real(ctx, 3, axis=0 if ctx.attribute("transB", 0) else -1)
    turn = {name: ctx.attribute(name, 0) for name in ("transA", "transB")}
    product = op.Gemm(a, b, alpha=alpha, **turn)
    if ctx.has(6):
        product = product + op.cast(ctx.x(6), a.dtype) * op.Reshape(ctx.x(1), []) * ctx.x(4) * alpha
    return quantised(ctx, product, 7) if ctx.has(7) else product


@expand(f"{DOMAIN}::MatMulIntegerToFloat")
def matmul_integer_to_float(ctx: Expansion) -> Value:
    """``(a - zero_a) scale_a (b - zero_b) scale_b + bias``."""
    product: Value = ctx.op.MatMul(real(ctx, 0, 2, 4), real(ctx, 1, 3, 5))
    return product + ctx.x(6) if ctx.has(6) else product


@expand(f"{DOMAIN}::DynamicQuantizeMatMul")
def dynamic_quantize_matmul(ctx: Expansion) -> Value:
    """``a b + bias``, a rounded to 256 steps over its range."""
    product: Value = ctx.op.MatMul(rounded(ctx.x(0)), real(ctx, 1, 2, 3))
    return product + ctx.x(4) if ctx.has(4) else product


def rounded(x: Value) -> Value:
    """`x` quantised to 256 steps over its range, and back."""
    op = x.op
    q, scale, zero = op.call("DynamicQuantizeLinear", x, outputs=3)
    result: Value = op.DequantizeLinear(q, scale, zero)
    return result


@expand(f"{DOMAIN}::DynamicQuantizeLSTM")
def dynamic_quantize_lstm(ctx: Expansion) -> list[Value]:
    """LSTM with quantised weights ``[D, I, 4 H]`` and ``[D, H, 4 H]``; what they multiply is rounded to 256 steps."""
    weights = {}
    for i, scale in ((1, 8), (2, 10)):
        dtype = ctx.x(scale).dtype
        s, zero = (_per_gate(ctx.op.cast(ctx.x(k), dtype)) for k in (scale, scale + 1))
        weights[i] = ctx.op.Transpose((ctx.op.cast(ctx.x(i), dtype) - zero) * s, perm=[0, 2, 1])
    return layer(ctx, lstm_cell, 2, ["Sigmoid", "Tanh", "Tanh"], weights, rounded)


def _per_gate(parameter: Value) -> Value:
    """``[D]`` or ``[D, 4 H]`` -> ``[D, 1, 1 or 4 H]``."""
    result: Value = parameter.op.Reshape(parameter, [parameter.shape[0], 1, parameter.size // parameter.shape[0]])
    return result


def unpacked(packed: Array, bits: int, count: int) -> Array:
    """Numbers of 2, 4 or 8 bits in bytes along the last axis, the first in the lowest bits."""
    if bits not in (2, 4, 8):
        raise RuleError(f"numbers of {bits} bits have no expansion")
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    whole: Array = np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)
    return whole[..., :count]


@expand(f"{DOMAIN}::MatMulNBits")
def matmul_n_bits(ctx: Expansion) -> Value:
    """``a b^T + bias`` with constant weights ``[N, K]`` that are quantised in blocks along K."""
    op, bits = ctx.op, ctx.attribute("bits", 4)
    n, k, size = (ctx.attribute(name) for name in ("N", "K", "block_size"))
    if ctx.has(4) or ctx.attribute("weight_prepacked", 0):
        raise RuleError("g_idx and prepacked weights have no expansion")
    packed, scales, zeros = (_constant(ctx, i) for i in (1, 2, 3))
    blocks = -(-k // size)
    scale = np.asarray(scales).reshape(n, blocks, 1)
    whole = unpacked(np.asarray(packed).reshape(n, blocks, -1), bits, size).astype(scale.dtype)
    weights = (whole - _zero_points(zeros, n, blocks, bits, scale.dtype)) * scale
    product: Value = op.MatMul(ctx.x(0), np.ascontiguousarray(weights.reshape(n, -1)[:, :k].T))
    return product + ctx.x(5) if ctx.has(5) else product


def _zero_points(zeros: Array | None, n: int, blocks: int, bits: int, dtype: Any) -> Array:
    if zeros is None:
        return np.full((1, 1, 1), 2 ** (bits - 1), dtype)
    if zeros.dtype == np.uint8:
        zeros = unpacked(zeros.reshape(n, -1), bits, blocks)
    result: Array = zeros.reshape(n, blocks, 1).astype(dtype)
    return result


def _constant(ctx: Expansion, i: int) -> Array | None:
    if not ctx.has(i):
        return None
    array = ctx.constant(i)
    if array is None:
        raise RuleError(f"input {i}, quantised weights, comes from a model input; only constants are unpacked")
    return array


@expand(f"{DOMAIN}::GatherBlockQuantized")
def gather_block_quantized(ctx: Expansion) -> Value:
    """Rows of a constant table that is quantised in blocks along an axis."""
    op, bits = ctx.op, ctx.attribute("bits", 4)
    data, scales, zeros = (_constant(ctx, i) for i in (0, 2, 3))
    assert data is not None
    assert scales is not None
    rank, size = data.ndim, ctx.attribute("block_size", 128)
    axis = ctx.attribute("quantize_axis", 1) % rank
    small = data.dtype == np.uint8
    if small:
        data = unpacked(data, bits, data.shape[-1] * 8 // bits)
    along = np.arange(data.shape[axis]) // size

    def spread(parameter: Array) -> Array:
        return np.asarray(np.take(parameter, along, axis=axis), scales.dtype)

    middle: Any = 2 ** (bits - 1) if small else 0
    if zeros is not None:
        middle = spread(unpacked(zeros, bits, scales.shape[-1]) if small else zeros)
    table = (data.astype(scales.dtype) - middle) * spread(scales)
    result: Value = op.Gather(op.constant(table), ctx.x(1), axis=ctx.attribute("gather_axis", 0))
    return result


@expand(f"{DOMAIN}::QAttention")
def attention(ctx: Expansion) -> list[Value | None]:
    """Self-attention of ``x W + b`` with quantised x and W."""
    projected = ctx.op.MatMul(real(ctx, 0, 3, 6), real(ctx, 1, 4, 7))
    if ctx.has(2):
        projected = projected + ctx.x(2)
    return self_attention(ctx, projected, mask=5, past=8, extra=ctx.n_inputs)


@expand(f"{DOMAIN}::QEmbedLayerNormalization")
def embed_layer_normalization(ctx: Expansion) -> list[Value | None]:
    """The rows of three quantised tables for word, position and segment, added and normalised."""
    values = [real(ctx, i, i + 6, i + 11) if ctx.has(i) else None for i in range(2, 7)]
    gamma, beta = values[3:]
    assert gamma is not None
    assert beta is not None
    return embedded(ctx, values[:3], gamma, beta, mask=7, positions=ctx.n_inputs)
