"""Products of two factors: the midpoint rule, which is the exact two-player Shapley value and never divides.

Where one factor does not vary its midpoint is the factor itself, so that the linear case needs no code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepshap_ir.extend import Context, Value, rule
from deepshap_ir.rules.elementwise import inverse_or_zero


@rule("Mul")
def mul(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``m_a = m (b + b0)/2``, ``m_b = m (a + a0)/2``."""
    return [m[0] * ctx.mid_x(1 - i) if ctx.varies(i) else None for i in (0, 1)]


@rule("Div")
def div(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``m_a = m (1/b + 1/b0)/2``, ``m_b = -m (a + a0)/(2 b b0) = -m (a/b 1/b0 + a0/b0 1/b)/2``.

    ``1/b`` counts as 0 where b is 0, so that a branch that a Where does not select stays 0.
    """
    if not ctx.y().is_float:
        return _integer_div(ctx, m[0])
    r, r0 = inverse_or_zero(ctx.x(1)), inverse_or_zero(ctx.x0(1))
    m_a = m[0] * _half_sum(r, r0) if ctx.varies(0) else None
    if not ctx.varies(1):
        return [m_a, None]
    if ctx.varies(0):
        return [m_a, m[0] * (ctx.x(0) * r * -0.5 * r0 + ctx.x0(0) * r0 * -0.5 * r)]
    return [m_a, m[0] * (-ctx.x(0) * r * r0)]


def _half_sum(value: Value, value0: Value) -> Value:
    """``(value + value0)/2``, `value` where they are the same one."""
    return value if value is value0 else value * 0.5 + value0 * 0.5


def _integer_div(ctx: Context, m: Value) -> list[Value | None]:
    """The two-player Shapley value of the truncated quotient, over the delta; 0 where the delta is 0."""
    y, y0 = ctx.as_float(ctx.y()), ctx.as_float(ctx.y0())
    a_moved = ctx.as_float(ctx.forward(ctx.x(0), ctx.x0(1)))
    b_moved = ctx.as_float(ctx.forward(ctx.x0(0), ctx.x(1)))
    result: list[Value | None] = []
    for i, (own, other) in enumerate([(a_moved, b_moved), (b_moved, a_moved)]):
        delta = ctx.delta_x(i)
        still = ctx.op.Equal(delta, 0.0)
        share = ((y - other) + (own - y0)) * 0.5 / ctx.op.Where(still, 1.0, delta)
        result.append(m * share if ctx.varies(i) else None)
    return result


@rule("MatMul")
def matmul(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``m_A = M B_mid^T``, ``m_B = A_mid^T M``; vectors are matrices with one row or one column."""
    op, left, right = ctx.op, len(ctx.shape(0)) == 1, len(ctx.shape(1)) == 1
    m_y = op.Unsqueeze(m[0], [*[-2] * left, *[-1] * right]) if left != right else m[0]
    if left and right:
        m_y = op.Reshape(m[0], [1, 1])
    m_a = m_b = None
    if ctx.varies(0):
        b_t = _mid(ctx, 1, lambda b: op.Unsqueeze(b, [0]) if right else transposed(ctx, b))
        m_a = m_y @ b_t
        m_a = op.Squeeze(m_a, [-2]) if left else m_a
    if ctx.varies(1):
        a_t = _mid(ctx, 0, lambda a: op.Unsqueeze(a, [1]) if left else transposed(ctx, a))
        m_b = a_t @ m_y
        m_b = op.Squeeze(m_b, [-1]) if right else m_b
    return [m_a, m_b]


@rule("Gemm")
def gemm(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``alpha A' B' + beta C``, where ``A'``, ``B'`` are perhaps transposed: as MatMul, and ``m_C = beta m``."""
    alpha, beta = ctx.attribute("alpha", 1.0), ctx.attribute("beta", 1.0)
    a_flipped, b_flipped = bool(ctx.attribute("transA", 0)), bool(ctx.attribute("transB", 0))

    def scaled(factor: Value, flip: bool) -> Value:
        factor = transposed(ctx, factor) if flip else factor
        return factor if alpha == 1.0 else factor * alpha

    result: list[Value | None] = [None] * ctx.n_inputs
    if ctx.varies(0):
        m_a = m[0] @ _mid(ctx, 1, lambda b: scaled(b, not b_flipped))
        result[0] = transposed(ctx, m_a) if a_flipped else m_a
    if ctx.varies(1):
        m_b = _mid(ctx, 0, lambda a: scaled(a, not a_flipped)) @ m[0]
        result[1] = transposed(ctx, m_b) if b_flipped else m_b
    if ctx.varies(2):
        result[2] = m[0] if beta == 1.0 else m[0] * beta
    return result


def transposed(ctx: Context, matrix: Value) -> Value:
    """The last two axes exchanged."""
    order = list(range(matrix.rank))
    flipped: Value = ctx.op.Transpose(matrix, perm=[*order[:-2], order[-1], order[-2]])
    return flipped


def _mid(ctx: Context, i: int, form: Callable[[Value], Value]) -> Value:
    """`form`, which is linear, of the midpoint of input `i`: per row, so that only the sum is per pair."""
    x = form(ctx.as_float(ctx.x(i)))
    return _half_sum(x, form(ctx.as_float(ctx.x0(i)))) if ctx.varies(i) else x
