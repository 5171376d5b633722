"""Element-wise functions of two or three varying operands: the exact Shapley value of that many players.

For two, ``phi_a = 1/2 [f(a, b) - f(a0, b) + f(a, b0) - f(a0, b0)]`` and ``m_a = m_y phi_a / (a - a0)``; for one, the
secant.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from deepshap_ir.extend import Context, Value, rule
from deepshap_ir.rules.elementwise import TINY


def quotient(dy: Value, delta: Value, derivative: Value | None = None) -> Value:
    """``dy / delta``, and `derivative` (0 where none is given) where `delta`, and so `dy`, is exactly 0."""
    return (dy if derivative is None else dy + derivative * TINY) / (delta + TINY)


def shapley_values(f: Callable[[frozenset[int]], Value], players: Sequence[int]) -> dict[int, Value]:
    """``phi_i = sum over sets S without i of |S|! (n-|S|-1)! / n! [f(S + i) - f(S)]``."""
    n, values = len(players), {}
    for i in players:
        others = [p for p in players if p != i]
        terms = [
            (f(frozenset({i, *s})) - f(frozenset(s)))
            * (math.factorial(k) * math.factorial(n - k - 1) / math.factorial(n))
            for k in range(n)
            for s in combinations(others, k)
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        values[i] = total
    return values


def by_players(ctx: Context, m: Value, derivatives: Mapping[int, Value] | None = None) -> list[Value | None]:
    """The multipliers of all varying operands; `derivatives` at the sample, by operand, are for deltas of exactly 0."""
    inputs = [i for i in range(ctx.n_inputs) if ctx.has(i)]
    players = [i for i in inputs if ctx.varies(i)]

    def f(at_sample: frozenset[int]) -> Value:
        if len(at_sample) in (0, len(players)):
            return ctx.as_float(ctx.y() if at_sample else ctx.y0())
        mixed = [None if i not in inputs else ctx.x(i) if i in at_sample else ctx.x0(i) for i in range(ctx.n_inputs)]
        return ctx.as_float(ctx.forward(*mixed))

    result: list[Value | None] = [None] * ctx.n_inputs
    for i, phi in shapley_values(f, players).items():
        delta = _delta(ctx, i)  # the exponent of Pow may be of another dtype than the power
        phi, m_y = (ctx.op.cast(value, delta.dtype) for value in (phi, m))
        result[i] = m_y * quotient(phi, delta, (derivatives or {}).get(i))
    return result


def _delta(ctx: Context, i: int) -> Value:
    """``x - x0``, 0 where both are the same infinity, as masks are."""
    delta = ctx.delta_x(i)
    if not ctx.x(i).is_float:
        return delta
    finite: Value = ctx.op.Where(ctx.op.Equal(ctx.x(i), ctx.x0(i)), ctx.op.constant(0.0, delta.dtype), delta)
    return finite


@rule("And", "Or", "Xor", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
@rule("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def discrete(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """The Shapley value of the operands; Booleans count as 0 and 1."""
    return by_players(ctx, m[0])


@rule("Mod")
def mod(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """The Shapley value of dividend and divisor; the derivatives are 1 and minus the whole quotient."""
    dividend, divisor = ctx.as_float(ctx.x(0)), ctx.as_float(ctx.x(1))
    whole = (ctx.as_float(ctx.y()) - dividend) / divisor
    return by_players(ctx, m[0], {0: dividend * 0.0 + 1.0, 1: whole})
