"""Steps: the secant of a function that jumps. Contributions are finite; multipliers grow as the points come close."""

from collections.abc import Sequence

from deepshap_ir.extend import Context, Value, rule
from deepshap_ir.rules.shapley import quotient


@rule("Sign", "Floor", "Ceil", "Round", "IsInf", "IsNaN")
def step(ctx: Context, m: Sequence[Value]) -> Value:
    """``dy / d``; 0 on one step, and where the delta is 0."""
    return m[0] * quotient(ctx.delta_y(), ctx.delta_x())


@rule("Not", "BitwiseNot")
def complement(ctx: Context, m: Sequence[Value]) -> Value:
    """``1 - x`` of a truth value, ``-1 - x`` or ``2^bits - 1 - x`` of an integer: linear."""
    return -m[0]
