"""Sums, signs and scales: the multiplier passes through, times a constant."""

from __future__ import annotations

from collections.abc import Sequence

from deepshap_ir.extend import Context, Value, rule


@rule("Identity")
def identity(ctx: Context, m: Sequence[Value | None]) -> Value | None:
    """``y = x``: ``m_x = m_y``."""
    return m[0]


@rule("Add", "Sum")
def add(ctx: Context, m: Sequence[Value | None]) -> list[Value | None]:
    """``y = sum_i x_i``: ``m_i = m_y`` for every term."""
    return [m[0]] * ctx.n_inputs


@rule("Sub")
def subtract(ctx: Context, m: Sequence[Value]) -> list[Value]:
    """``y = a - b``: ``m_a = m_y``, ``m_b = -m_y``."""
    return [m[0], -m[0]]


@rule("Neg")
def negate(ctx: Context, m: Sequence[Value]) -> Value:
    """``y = -x``: ``m_x = -m_y``."""
    return -m[0]
