"""Softmax, LogSoftmax and LogSumExp by logarithmic means.

With ``p = softmax(x)``, ``q = softmax(x0)`` and the logarithmic mean ``L = (p - q) / (ln p - ln q)``, ``L = p`` where the
two are equal, the weights ``w = L / sum L`` satisfy

``sum_j L_j d(ln p_j) = sum_j (p_j - q_j) = 0``, hence ``d logsumexp = sum_j w_j dx_j``.

So every multiplier below sums to delta, does not change when a number is added to all logits, and is the derivative
where ``p = q``. These are the weights of the Sato-Vartia index.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, Value, rule

SERIES_BELOW = 1.0
"""Below this ``|ln p - ln q|`` the logarithmic mean is a series: the quotient loses digits there."""


@rule("Softmax")
def softmax(ctx: Context, m: Sequence[Value]) -> Value:
    """``L m - L <L, m> / sum L``."""
    op, axis = ctx.op, _axis(ctx)
    means = logarithmic_mean(op.LogSoftmax(ctx.x(), axis=axis), op.LogSoftmax(ctx.x0(), axis=axis))
    weighted = means * m[0]
    share = op.ReduceSum(weighted, [axis]) / op.ReduceSum(means, [axis])
    return weighted - means * share


@rule("LogSoftmax")
def log_softmax(ctx: Context, m: Sequence[Value]) -> Value:
    """``m - w sum(m)``."""
    op, axis = ctx.op, _axis(ctx)
    means = logarithmic_mean(ctx.y(), ctx.y0())
    weights = means / op.ReduceSum(means, [axis])
    return m[0] - weights * op.ReduceSum(m[0], [axis])


@rule("ReduceLogSumExp")
def log_sum_exp(ctx: Context, m: Sequence[Value]) -> Value:
    """``w m``."""
    op = ctx.op
    given = ctx.constant(1)
    axes = [int(a) for a in given.reshape(-1)] if given is not None else []
    if not axes and ctx.attribute("noop_with_empty_axes", 0):
        return m[0]
    axes = [a % len(ctx.shape()) for a in axes] or list(range(len(ctx.shape())))
    kept = [1 if a in axes else n for a, n in enumerate(ctx.shape())]
    means = logarithmic_mean(ctx.x() - op.Reshape(ctx.y(), kept), ctx.x0() - op.Reshape(ctx.y0(), kept))
    return means * (op.Reshape(m[0], kept) / op.ReduceSum(means, axes))


def logarithmic_mean(log_p: Value, log_q: Value) -> Value:
    """``(p - q) / (ln p - ln q)`` from ``ln p`` and ``ln q``.

    With ``u = ln p - ln q`` it is ``sqrt(p q) sinh(u/2) / (u/2)``, which is a series for small `u`. It is 0 where both
    logarithms are -inf, and infinite where just one is: no finite multiplier carries an infinite delta.
    """
    op = log_p.op
    u = _finite(log_p) - _finite(log_q)
    z = u * u
    series = op.Exp(log_p * 0.5) * op.Exp(log_q * 0.5) * _polynomial(z, [1, 1 / 24, 1 / 1920, 1 / 322560, 1 / 92897280])
    quotient = (_present(log_p) - _present(log_q)) / u
    return op.Where(z < SERIES_BELOW**2, series, quotient)


def _polynomial(z: Value, coefficients: Sequence[float]) -> Value:
    """``sum_k coefficients[k] z^k``."""
    total = z * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        total = (total + c) * z
    return total + coefficients[0]


def _finite(log_p: Value) -> Value:
    """`log_p` with a number in the place of -inf."""
    return log_p.op.Where(log_p.op.IsInf(log_p), -1e4, log_p)


def _present(log_p: Value) -> Value:
    """``p``, infinite where it is exactly 0 because its logit is -inf."""
    op = log_p.op
    return op.Where(op.IsInf(log_p), op.constant(np.inf, log_p.dtype), op.Exp(log_p))


def _axis(ctx: Context) -> int:
    axis: int = ctx.attribute("axis", -1)
    return axis % len(ctx.shape())
