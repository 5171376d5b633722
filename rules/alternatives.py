"""Other rules for all operators, chosen by name: ``rules="gradient"``, ``"integrated_gradients"``, ``"universal"``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, RuleError, Value, named_rules

POINTS = 8
"""Gauss-Legendre points on the way from the reference to the sample; exact for polynomials of degree 16."""

gradient = named_rules("gradient")
integrated = named_rules("integrated_gradients")
universal = named_rules("universal", last=True)


@gradient.for_all(exact=False)
def gradient_at_sample(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """The derivative at the sample, so that attributions are gradient times delta. They do not sum to delta."""
    return ctx.at(ctx.xs).usual(m)


@integrated.for_all()
def integrated_gradients(ctx: Context, m: Sequence[Value | None]) -> list[Value | None]:
    """The mean derivative on the straight line from reference to sample, of this node alone, made complete.

    ``sum_k w_k f'(x0 + t_k dx)^T m_y``, and what is missing to delta shared out as `completed` does. A node with an
    input that is no floating-point number has its usual rule.
    """
    if not all(ctx.x(i).is_float for i in _varying(ctx)):
        return ctx.usual(m)
    parts = [(weight, ctx.at(_between(ctx, t)).usual(m)) for t, weight in _quadrature()]
    return completed(ctx, m, [_mean([(w, found[i]) for w, found in parts]) for i in range(ctx.n_inputs)])


@universal.for_all()
def any_function(ctx: Context, m: Sequence[Value | None]) -> list[Value | None]:
    """As `integrated_gradients`, the derivative by symmetric differences of the function itself.

    For operators of which nothing is known. The node is run ``16 n`` times for n numbers that vary in one example.

    Raises
    ------
    RuleError : an input that varies is no floating-point number.
    """
    for i in _varying(ctx):
        if not ctx.x(i).is_float:
            raise RuleError(f"the universal rule needs derivatives, and input {i} is of type {ctx.x(i).dtype}")
    found: list[Value | None] = [None] * ctx.n_inputs
    for i in _varying(ctx):
        found[i] = _mean([(weight, _difference(ctx, m, i, _between(ctx, t))) for t, weight in _quadrature()])
    return completed(ctx, m, found)


def completed(ctx: Context, m: Sequence[Value | None], found: Sequence[Value | None]) -> list[Value | None]:
    """Multipliers that sum to delta: ``m + rho dx / |dx|^2``, with what is missing, ``rho = <m_y, dy> - <m, dx>``.

    What is below the rounding error of the sums counts as nothing, as a small delta would magnify it.
    """
    op = ctx.op
    missing: Value = op.constant(0.0, ctx.dtype)
    size = squares = missing
    for j, m_y in enumerate(m):
        if m_y is not None:
            missing = missing + total(m_y * ctx.delta_y(j))
            size = size + total(abs(m_y) * (abs(ctx.as_float(ctx.y(j))) + abs(ctx.as_float(ctx.y0(j)))))
    for i, value in enumerate(found):
        if value is not None:
            dx = ctx.delta_x(i)
            missing = missing - total(value * dx)
            squares = squares + total(dx * dx)
    rounding = size * float(8 * np.finfo(ctx.dtype).eps)
    share = op.Where(abs(missing) > rounding, missing, 0.0) / op.Where(squares > 0.0, squares, 1.0)
    return [None if value is None else value + share * ctx.delta_x(i) for i, value in enumerate(found)]


def total(value: Value) -> Value:
    """The sum of all elements of one example."""
    summed: Value = value.op.ReduceSum(value, keepdims=0)
    return summed


def _varying(ctx: Context) -> list[int]:
    return [i for i in range(ctx.n_inputs) if ctx.varies(i)]


def _quadrature() -> list[tuple[float, float]]:
    points, weights = np.polynomial.legendre.leggauss(POINTS)
    return [(float(t), float(w)) for t, w in zip((points + 1) / 2, weights / 2, strict=True)]


def _between(ctx: Context, t: float) -> list[Value | None]:
    """The inputs at ``(1 - t) x0 + t x``."""
    return [
        x0 * (1 - t) + x * t if x is not None and x0 is not None and ctx.varies(i) else x
        for i, (x, x0) in enumerate(zip(ctx.xs, ctx.x0s, strict=True))
    ]


def _mean(parts: Sequence[tuple[float, Value | None]]) -> Value | None:
    terms = [value * weight for weight, value in parts if value is not None]
    return sum(terms[1:], terms[0]) if terms else None


def _difference(ctx: Context, m: Sequence[Value | None], i: int, point: Sequence[Value | None]) -> Value:
    """``<m_y, f(x + h e) - f(x - h e)> / 2h`` for every element e of input `i`, one after the other."""
    op, x = ctx.op, point[i]
    assert x is not None
    step = float(np.finfo(ctx.dtype).eps ** (1 / 3)) * (abs(x) + 1.0)
    used = [j for j, m_y in enumerate(m) if m_y is not None]

    def moved(_: list[Value], element: list[Value]) -> tuple[list[Value], list[Value]]:
        width = step * element[0]
        ends = [ctx.at([*point[:i], end, *point[i + 1 :]]) for end in (x + width, x - width)]
        apart = [ctx.as_float(ends[0].y(j)) - ctx.as_float(ends[1].y(j)) for j in used]
        return [], [op.Reshape(value, [-1]) for value in apart]

    directions = np.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    columns = op.scan(moved, [], [op.constant(directions)])[1]
    found = [column @ op.Reshape(m_y, [-1, 1]) for column, m_y in zip(columns, _given(m), strict=True)]
    slope: Value = op.Reshape(sum(found[1:], found[0]), list(x.shape)) / (step * 2.0)
    return slope


def _given(m: Sequence[Value | None]) -> list[Value]:
    return [m_y for m_y in m if m_y is not None]
