"""Operators of ``com.microsoft`` that onnxruntime's optimiser writes, with those of the standard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
    if ctx.attribute("transBatchA", 0) or ctx.attribute("transBatchB", 0):
        raise RuleError("transBatchA and transBatchB have no expansion")
    op = ctx.op
    factors: list[Value] = []
    for i, name in enumerate(("transA", "transB")):
        value, rank = ctx.x(i), ctx.x(i).rank
        turned = ctx.attribute(name, 0) and rank > 1
        factors.append(op.Transpose(value, perm=[*range(rank - 2), rank - 1, rank - 2]) if turned else value)
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


def _sum(ctx: Expansion, bias: int) -> Value:
    total = ctx.x(0) + ctx.x(1)
    return total + ctx.x(bias) if ctx.has(bias) else total


def _root_mean_square(ctx: Expansion, x: Value, scale: Value, epsilon: float) -> Value:
    op, axis = ctx.op, ctx.attribute("axis", -1) % x.rank
    axes: Any = list(range(axis, x.rank))
    size = op.Sqrt(op.ReduceMean(x * x, axes) + ctx.attribute("epsilon", epsilon))
    return x / size * scale
