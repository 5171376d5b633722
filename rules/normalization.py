"""Normalisation over axes: Layer, RMS, Instance, Group, Lp, mean and variance, local response.

All are ``y = c / s``: a signal c, ``x`` or ``x - mean x``, over its size s. So ``c = y s`` is a product, for which the
midpoint rule gives ``dc = ds (y + y0)/2 + dy (s + s0)/2``; solved for dy,

``dy = 2/(s + s0) dc - (y + y0)/(s + s0) ds``.

``ds`` is linear in dc: where ``s^2 = mean c^2 + epsilon`` it is ``<c + c0, dc> / (n (s + s0))``. No delta is ever a
denominator, and nothing is large where one of the two signals is small.

The midpoint rule of ``c * 1/s`` is complete as well, and the same where ``s = s0``. But elsewhere its two terms grow
with ``1/s0`` and cancel: on 8 numbers it is off the exact Shapley values by 0.8 of their size at ``s = 5 s0`` and by 70
at ``x0 = 0`` (epsilon 1e-5), where this rule is off by 0.15 and 0.25.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, RuleError, Value, rule
from deepshap_ir.rules.elementwise import inverse_or_zero
from deepshap_ir.rules.softmax import logarithmic_mean

TINY = 1e-30
"""Added to a sum that is 0 only where what it divides is 0."""

Multipliers = Sequence["Value | None"]


@rule("LayerNormalization", "deepshap_ir::LayerNormalization")
def layer_normalization(ctx: Context, m: Multipliers) -> list[Value | None]:
    """``(x - mean)/s scale + bias`` over the axes from `axis` on; Mean and ``InvStdDev = 1/s`` as well."""
    return _trailing(ctx, m, centred=True)


@rule("RMSNormalization", "deepshap_ir::RMSNormalization")
def rms_normalization(ctx: Context, m: Multipliers) -> list[Value | None]:
    """``x/s scale`` over the axes from `axis` on."""
    return _trailing(ctx, m, centred=False)


@rule("InstanceNormalization")
def instance_normalization(ctx: Context, m: Multipliers) -> list[Value | None]:
    """``(x - mean)/s scale + bias`` over the positions of each channel."""
    shape = ctx.shape()
    parameters = [1, shape[1], *[1] * (len(shape) - 2)]
    return _scaled(ctx, m, shape, range(2, len(shape)), parameters, centred=True)


@rule("GroupNormalization")
def group_normalization(ctx: Context, m: Multipliers) -> list[Value | None]:
    """``(x - mean)/s scale + bias`` over groups of channels; parameters per group before opset 21, then per channel."""
    batch, channels = ctx.shape()[:2]
    groups = ctx.attribute("num_groups")
    layout = [batch, groups, channels // groups, math.prod(ctx.shape()[2:])]
    return _scaled(ctx, m, layout, [2, 3], [1, groups, ctx.shape(1)[0] // groups, 1], centred=True)


@rule("MeanVarianceNormalization")
def mean_variance_normalization(ctx: Context, m: Sequence[Value]) -> Value:
    """``(x - mean)/(s + 1e-9)``."""
    axes = sorted(a % len(ctx.shape()) for a in ctx.attribute("axes", [0, 2, 3]))
    signal, signal0 = (_Signal(x, axes, 0.0, True) for x in (ctx.x(), ctx.x0()))
    return signal.multiplier(signal0, m[0])


@rule("LpNormalization")
def lp_normalization(ctx: Context, m: Sequence[Value]) -> Value:
    """``x / |x|_p`` along an axis, 0 where all of it is 0.

    For p = 1, ``d|x| = (x + x0)/(|x| + |x0|) dx``.
    """
    op, p = ctx.op, ctx.attribute("p", 2)
    axes = [ctx.attribute("axis", -1) % len(ctx.shape())]
    x, x0 = ctx.x(), ctx.x0()
    if p == 2:
        root = math.sqrt(ctx.shape()[axes[0]])
        return _Signal(x, axes, 0.0, False).multiplier(_Signal(x0, axes, 0.0, False), m[0] * (1 / root))
    if p != 1:
        raise RuleError(f"LpNormalization with p={p}: only 1 and 2 are defined")
    slope = (x + x0) / (abs(x) + abs(x0) + TINY)
    half = _inverse((op.ReduceSum(abs(x), axes) + op.ReduceSum(abs(x0), axes)) * 0.5)
    return (m[0] - slope * op.ReduceSum(m[0] * (ctx.y() + ctx.y0()) * 0.5, axes)) * half


@rule("deepshap_ir::OwnSize")
def own_size(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``y = c / s`` of a signal and its own size, by the product ``c = y s``; by that of c and ``1/s`` where s changes
    its sign.

    ``m_c = 2 m / (s + s0)`` and ``m_s = -m (y + y0) / (s + s0)``.
    """
    op, s, s0 = ctx.op, ctx.x(1), ctx.x0(1)
    apart = op.Not(op.Or((s > 0.0) & (s0 > 0.0), (s < 0.0) & (s0 < 0.0)))
    one = op.constant(1.0, s.dtype)
    half = 1.0 / op.Where(apart, one, s * 0.5 + s0 * 0.5)
    r, r0 = (inverse_or_zero(v) for v in (s, s0))
    mean, y, y0 = op.Where(apart, r * 0.5 + r0 * 0.5, half), ctx.y(), ctx.y0()
    pull = op.Where(apart, y * r0 + y0 * r, (y + y0) * half) * -0.5
    return [m[0] * mean if ctx.varies(0) else None, m[0] * pull if ctx.varies(1) else None]


@rule("LRN")
def local_response_normalization(ctx: Context, m: Sequence[Value]) -> Value:
    """``x/s``, ``s = u^beta``, ``u = bias + alpha/size sum x^2`` over neighbouring channels.

    ``ds = beta L(s) / L(u) du``, with logarithmic means L between the two points.
    """
    op, channels, beta, size = ctx.op, ctx.shape()[1], ctx.attribute("beta", 0.75), ctx.attribute("size")
    weight = ctx.attribute("alpha", 1e-4) / size
    shift = np.arange(channels) - np.arange(channels)[:, None]
    near = ((shift >= -((size - 1) // 2)) & (shift <= size // 2)).astype(np.float64)
    x, x0, y, y0, m_y = (
        op.Reshape(v, [ctx.shape()[0], channels, -1]) for v in (ctx.x(), ctx.x0(), ctx.y(), ctx.y0(), m[0])
    )
    log_u, log_u0 = (op.Log(op.MatMul(near, z * z) * weight + ctx.attribute("bias", 1.0)) for z in (x, x0))
    log_s, log_s0 = log_u * beta, log_u0 * beta
    half = 2.0 / (op.Exp(log_s) + op.Exp(log_s0))
    slope = logarithmic_mean(log_s, log_s0) / logarithmic_mean(log_u, log_u0) * (beta * weight / 2)
    pull = op.MatMul(near.T.copy(), m_y * (half * slope * (y + y0)))
    result: Value = op.Reshape(m_y * half - (x + x0) * pull, list(ctx.shape()))
    return result


class _Signal:
    """``c``, ``s`` and ``y = c/s`` at one of the two points; y is 0 where c is."""

    def __init__(self, x: Value, axes: Sequence[int], epsilon: float, centred: bool) -> None:
        op = x.op
        self.axes, self.epsilon, self.centred = list(axes), epsilon, centred
        self.count = math.prod(x.shape[a] for a in axes)
        self.c = x - op.ReduceMean(x, self.axes) if centred else x
        self.s: Value = op.Sqrt(op.ReduceMean(self.c * self.c, self.axes) + epsilon)
        self.r = 1.0 / self.s if epsilon else _inverse(self.s)
        self.y = self.c * self.r

    def multiplier(self, other: _Signal, m: Value, m_mean: Value | None = None, m_r: Value | None = None) -> Value:
        """That of x, from those of y and, where given, of ``mean x`` and of ``r = 1/s``.

        ``m_x = 2/(s + s0) m - (c + c0) (<m, y + y0>/(s + s0) + m_r r r0) / (n (s + s0))``, less its mean where the
        signal is centred; ``c + c0`` has the mean 0 then.
        """
        op, total = m.op, self.s + other.s
        inverse = 1.0 / total if self.epsilon else _inverse(total)
        half = inverse * 2.0
        pull = op.ReduceSum(m * (self.y + other.y), self.axes) * (inverse * inverse * (1 / self.count))
        if m_r is not None:
            pull = pull + m_r * (self.r * other.r * inverse * (1 / self.count))
        result = m * half - (self.c + other.c) * pull
        shift = op.ReduceMean(m, self.axes) * half if self.centred else None
        if m_mean is not None:
            shift = m_mean * (-1 / self.count) if shift is None else shift - m_mean * (1 / self.count)
        return result if shift is None else result - shift


def _inverse(size: Value) -> Value:
    """``1 / size``, 0 where the size is 0."""
    op = size.op
    inverse: Value = op.Where(op.Equal(size, 0.0), op.constant(0.0, size.dtype), 1.0 / size)
    return inverse


def _trailing(ctx: Context, m: Multipliers, centred: bool) -> list[Value | None]:
    """Normalisation over the axes from `axis` on, with parameters that broadcast."""
    shape = ctx.shape()
    first = ctx.attribute("axis", -1) % len(shape)
    parameters = [*[1] * (len(shape) - len(ctx.shape(1))), *ctx.shape(1)] if ctx.has(1) else []
    return _scaled(ctx, m, shape, range(first, len(shape)), parameters, centred)


def _scaled(
    ctx: Context, m: Multipliers, layout: Sequence[int], axes: Sequence[int], parameters: Sequence[int], centred: bool
) -> list[Value | None]:
    """Normalisation of x in the shape `layout`, then scale and bias in the shape `parameters`."""
    op, epsilon = ctx.op, ctx.attribute("epsilon", 1e-5)
    given = [*m, None, None]
    signal, signal0 = (_Signal(laid(x, layout), axes, epsilon, centred) for x in (ctx.x(), ctx.x0()))
    m_y = op.zeros(layout) if given[0] is None else laid(given[0], layout)
    answer: list[Value | None] = [None] * ctx.n_inputs
    if ctx.varies(2):
        answer[2] = laid(_collected(m_y, parameters), ctx.shape(2))
    if ctx.varies(1):
        mean = (signal.y + signal0.y) * 0.5
        answer[1] = laid(_collected(m_y * mean, parameters), ctx.shape(1))
    if ctx.varies(0):
        scale = ctx.constant(1)
        if ctx.has(1) and (scale is None or (scale != 1).any()):
            m_y = m_y * laid(ctx.mid_x(1), parameters)
        answer[0] = laid(signal.multiplier(signal0, m_y, given[1], given[2]), ctx.shape())
    return answer


def laid(value: Value, shape: Sequence[int]) -> Value:
    """`value` in another shape of as many elements."""
    return value if value.shape == tuple(shape) else value.op.Reshape(value, list(shape))


def _collected(m: Value, shape: Sequence[int]) -> Value:
    """`m` summed over the dimensions along which `shape` is 1."""
    summed = [a for a, (have, want) in enumerate(zip(m.shape, shape, strict=True)) if want == 1 and have != 1]
    return m.op.ReduceSum(m, summed) if summed else m
