"""Operators of ``com.microsoft`` that onnxruntime's optimiser writes, with those of the standard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepshap_ir.extend import Expansion, RuleError, Value, expand

DOMAIN = "com.microsoft"

ACTIVATIONS = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}
"""Activation -> the names of its parameters."""


def activated(ctx: Expansion, value: Value, parameters: Sequence[float]) -> Value:
    """The activation that is fused into the node."""
    name = ctx.attribute("activation", "")
    if not name:
        return value
    if name not in ACTIVATIONS:
        raise RuleError(f"the fused activation {name!r} is not known")
    if name == "Clip":
        low, high = parameters
        clipped: Value = ctx.op.Clip(value, low, high)
        return clipped
    given: dict[str, Any] = dict(zip(ACTIVATIONS[name], parameters, strict=False))
    (result,) = ctx.op.emit(name, "", [value], given)
    return result


@expand(f"{DOMAIN}::FusedConv")
def fused_convolution(ctx: Expansion) -> Value:
    """``activation(Conv(x, w) + bias + z)``."""
    extra = ("activation", "activation_params")
    attributes = {name: a for name, a in ctx.node.attributes.items() if name not in extra}
    value: Value = ctx.op.Conv(*(ctx.x(i) for i in range(3) if ctx.has(i)), **attributes)
    if ctx.has(3):
        value = value + ctx.x(3)
    return activated(ctx, value, ctx.attribute("activation_params", []))


@expand(f"{DOMAIN}::FusedGemm")
def fused_gemm(ctx: Expansion) -> Value:
    """``activation(Gemm(a, b, c))``."""
    attributes = {name: a for name, a in ctx.node.attributes.items() if not name.startswith("activation")}
    value: Value = ctx.op.Gemm(*(ctx.x(i) for i in range(3) if ctx.has(i)), **attributes)
    parameters = [ctx.attribute(f"activation_{name}", 0.0) for name in ("alpha", "beta")]
    return activated(ctx, value, parameters)


@expand(f"{DOMAIN}::FusedMatMul", f"{DOMAIN}::TransposeMatMul")
def fused_matmul(ctx: Expansion) -> Value:
    """``alpha a b``, each factor transposed where asked."""
    op = ctx.op
    factors: list[Value] = []
    for i, name in enumerate("AB"):
        value, order = ctx.x(i), list(range(ctx.x(i).rank))
        if ctx.attribute(f"transBatch{name}", 0) and len(order) > 2:
            order = [*order[1:-1], 0, order[-1]]
        if ctx.attribute(f"trans{name}", 0) and len(order) > 1:
            order = [*order[:-2], order[-1], order[-2]]
        factors.append(op.Transpose(value, perm=order))
    product: Value = op.MatMul(*factors)
    alpha = ctx.attribute("alpha", 1.0)
    return product if alpha == 1.0 else product * alpha


@expand(f"{DOMAIN}::Gelu", f"{DOMAIN}::BiasGelu")
def gelu(ctx: Expansion) -> Value:
    """``x (1 + erf(x / sqrt 2)) / 2``, of ``x + bias``."""
    x = ctx.x() + ctx.x(1) if ctx.has(1) else ctx.x()
    return x * 0.5 * (ctx.op.Erf(x * math.sqrt(0.5)) + 1.0)


@expand(f"{DOMAIN}::FastGelu")
def fast_gelu(ctx: Expansion) -> Value:
    """``x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2``, of ``x + bias``."""
    x = ctx.x() + ctx.x(1) if ctx.has(1) else ctx.x()
    return x * 0.5 * (ctx.op.Tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1.0)


@expand(f"{DOMAIN}::QuickGelu")
def quick_gelu(ctx: Expansion) -> Value:
    """``x sigmoid(alpha x)``."""
    return ctx.x() * ctx.op.Sigmoid(ctx.x() * ctx.attribute("alpha", 1.702))


@expand(f"{DOMAIN}::SkipLayerNormalization")
def skip_layer_normalization(ctx: Expansion) -> list[Value | None]:
    """Layer normalisation of ``x + skip + bias``; the sum is the fourth output."""
    total = _sum(ctx, 4)
    bias = [ctx.x(3)] if ctx.has(3) else []
    epsilon = ctx.attribute("epsilon", 1e-12)
    return [ctx.op.LayerNormalization(total, ctx.x(2), *bias, epsilon=epsilon), None, None, total]


@expand(f"{DOMAIN}::SkipSimplifiedLayerNormalization")
def skip_simplified_layer_normalization(ctx: Expansion) -> list[Value | None]:
    """RMS normalisation of ``x + skip + bias``; the sum is the fourth output."""
    total = _sum(ctx, 3)
    return [_root_mean_square(ctx, total, ctx.x(2), 1e-12), None, None, total]


@expand("SimplifiedLayerNormalization")
def simplified_layer_normalization(ctx: Expansion) -> Value:
    """RMS normalisation."""
    return _root_mean_square(ctx, ctx.x(), ctx.x(1), 1e-5)


@expand(f"{DOMAIN}::EmbedLayerNormalization")
def embed_layer_normalization(ctx: Expansion) -> list[Value | None]:
    """The rows of three tables for word, position and segment, added and normalised.

    The other outputs: how many words the mask has, and the sum.
    """
    tables = [ctx.x(2), ctx.x(3), ctx.x(4) if ctx.has(4) else None]
    return embedded(ctx, tables, ctx.x(5), ctx.x(6), mask=7, positions=8)


def embedded(
    ctx: Expansion, tables: Sequence[Value | None], gamma: Value, beta: Value, mask: int, positions: int
) -> list[Value | None]:
    """Rows of `tables` by word, position and segment, added and normalised; the number of words; the sum."""
    op, ids = ctx.op, ctx.x(0)
    words, places, segments = tables
    where = ctx.x(positions) if ctx.has(positions) else op.constant(np.arange(ids.shape[1])[None])
    total = op.Gather(words, ids, axis=0) + op.Gather(places, where, axis=0)
    if segments is not None:
        total = total + op.Gather(segments, ctx.x(1), axis=0)
    count = None
    if ctx.wanted(1):
        empty = op.constant(np.zeros(ids.shape[:1], np.int32))
        count = op.ReduceSum(ctx.x(mask), [1], keepdims=0) if ctx.has(mask) else empty
    epsilon = ctx.attribute("epsilon", 1e-12)
    return [op.LayerNormalization(total, gamma, beta, epsilon=epsilon), count, total]


@expand(f"{DOMAIN}::GridSample")
def grid_sample(ctx: Expansion) -> Value:
    """The operator of the standard."""
    names = {"bilinear": "linear", "bicubic": "cubic"}
    mode = ctx.attribute("mode", "bilinear")
    mode = names.get(mode, mode) if ctx.op.opsets[""] >= 20 else mode
    given = {name: ctx.attribute(name) for name in ("padding_mode", "align_corners") if ctx.attribute(name) is not None}
    result: Value = ctx.op.GridSample(ctx.x(0), ctx.x(1), mode=mode, **given)
    return result


@expand(*(f"{DOMAIN}::{name}" for name in ("QuantizeLinear", "DequantizeLinear", "Trilu", "GatherND", "Pad")))
def of_the_standard(ctx: Expansion) -> Value:
    """The operator of the standard, which these were before it had them."""
    given = [ctx.x(i) if ctx.has(i) else None for i in range(ctx.n_inputs)]
    (result,) = ctx.op.emit(ctx.node.op_type, "", given, ctx.node.attributes)
    return result


@expand(f"{DOMAIN}::ExpandDims")
def expand_dims(ctx: Expansion) -> Value:
    """A new axis of length 1."""
    result: Value = ctx.op.Unsqueeze(ctx.x(), ctx.op.Reshape(ctx.op.cast(ctx.x(1), np.int64), [1]))
    return result


@expand(f"{DOMAIN}::UnfoldTensor")
def unfold(ctx: Expansion) -> Value:
    """All windows of `size` along `dim`, `step` apart, on a new last axis."""
    x, dim = ctx.x(), ctx.attribute("dim", -1) % ctx.x().rank
    size, step = ctx.attribute("size"), ctx.attribute("step", 1)
    starts = np.arange(0, x.shape[dim] - size + 1, step)
    windows = ctx.op.Gather(x, starts[:, None] + np.arange(size), axis=dim)
    order = [a for a in range(x.rank + 1) if a != dim + 1]
    result: Value = ctx.op.Transpose(windows, perm=[*order, dim + 1])
    return result


@expand(f"{DOMAIN}::CDist")
def pairwise_distance(ctx: Expansion) -> Value:
    """Distances of the rows of two matrices."""
    op, metric = ctx.op, ctx.attribute("metric", "sqeuclidean")
    if metric not in ("euclidean", "sqeuclidean"):
        raise RuleError(f"the metric {metric!r} has no expansion")
    apart = op.Unsqueeze(ctx.x(0), [1]) - op.Unsqueeze(ctx.x(1), [0])
    squares: Value = op.ReduceSum(apart * apart, [2], keepdims=0)
    return op.Sqrt(squares) if metric == "euclidean" else squares


@expand(f"{DOMAIN}::ConvTransposeWithDynamicPads")
def conv_transpose_with_pads(ctx: Expansion) -> Value:
    """ConvTranspose with pads from an input, which must be fixed."""
    pads = ctx.constant(2)
    if ctx.has(2) and pads is None:
        raise RuleError("its pads come from a model input; fix that input to a constant: hold={name: array}")
    bias = [ctx.x(3)] if ctx.has(3) else []
    given = dict(ctx.node.attributes) | ({} if pads is None else {"pads": [int(p) for p in pads]})
    result: Value = ctx.op.ConvTranspose(ctx.x(0), ctx.x(1), *bias, **given)
    return result


@expand(f"{DOMAIN}::ScaledSiLU")
def scaled_silu(ctx: Expansion) -> Value:
    """``z sigmoid(z)`` of ``z = scale x``."""
    z = ctx.x() * (ctx.x(1) if ctx.has(1) else ctx.attribute("alpha", 1.0))
    return z * ctx.op.Sigmoid(z)


def _sum(ctx: Expansion, bias: int) -> Value:
    total = ctx.x(0) + ctx.x(1)
    return total + ctx.x(bias) if ctx.has(bias) else total


def _root_mean_square(ctx: Expansion, x: Value, scale: Value, epsilon: float) -> Value:
    op, axis = ctx.op, ctx.attribute("axis", -1) % x.rank
    axes: Any = list(range(axis, x.rank))
    size = op.Sqrt(op.ReduceMean(x * x, axes) + ctx.attribute("epsilon", epsilon))
    return x / size * scale
