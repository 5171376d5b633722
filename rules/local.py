"""Functions of neighbourhoods and of whole axes that are other operators in disguise, and those of several factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations, product

import numpy as np

from deepshap_ir.extend import Context, Expansion, RuleError, Value, Windows, expand, rule
from deepshap_ir.rules.einsum import gauss_legendre
from deepshap_ir.rules.reduction import reduced_axes, spread
from deepshap_ir.rules.shapley import quotient


@expand("LpPool")
def lp_pool(ctx: Expansion) -> Value:
    """``(sum |x|^p)^(1/p)`` over windows: a convolution with ones of each channel."""
    op, shape, kernel = ctx.op, ctx.shape(), ctx.attribute("kernel_shape")
    counts = ctx.graph.shapes[ctx.node.outputs[0]][2:]
    windows = Windows.of(ctx, kernel, shape[2:], counts)
    powers = _powers(ctx)
    behind = [max(0, end) for end in windows.behind]
    padded = op.Pad(powers, [0, 0, *windows.before, 0, 0, *behind])
    sums = op.Conv(
        op.Reshape(padded, [shape[0] * shape[1], 1, *padded.shape[2:]]),
        np.ones((1, 1, *kernel), padded.dtype),
        strides=list(windows.strides),
        dilations=list(windows.dilations),
    )
    fit = op.Slice(sums, [0] * len(counts), list(counts), list(range(2, 2 + len(counts))))
    return _root(ctx, op.Reshape(fit, [*shape[:2], *counts]))


@expand("GlobalLpPool")
def global_lp_pool(ctx: Expansion) -> Value:
    """``(sum |x|^p)^(1/p)`` over all positions."""
    return _root(ctx, ctx.op.ReduceSum(_powers(ctx), list(range(2, len(ctx.shape()))), keepdims=1))


def _powers(ctx: Expansion) -> Value:
    p = ctx.attribute("p", 2)
    if p == 1:
        return abs(ctx.x())
    return ctx.op.Pow(ctx.x() if p % 2 == 0 else abs(ctx.x()), ctx.op.constant(float(p), ctx.x().dtype))


def _root(ctx: Expansion, sums: Value) -> Value:
    p = ctx.attribute("p", 2)
    if p == 1:
        return sums
    return ctx.op.Sqrt(sums) if p == 2 else ctx.op.Pow(sums, ctx.op.constant(1 / p, sums.dtype))


@rule("ReduceProd")
def reduce_product(ctx: Context, m: Sequence[Value]) -> Value:
    """``m_i = m integral of prod_{j != i} (x_j0 + t (x_j - x_j0)) dt``, exact Shapley by Gauss-Legendre nodes."""
    op, shape, axes = ctx.op, ctx.shape(), reduced_axes(ctx)
    if not axes:
        return m[0]
    order = [a for a in range(len(shape)) if a not in axes] + axes
    kept = [shape[a] for a in order[: len(shape) - len(axes)]]
    count = math.prod(shape[a] for a in axes)

    def flat(x: Value) -> Value:
        result: Value = op.Reshape(op.Transpose(ctx.as_float(x), perm=order), [*kept, count])
        return result

    share = all_but_one(flat(ctx.x()), flat(ctx.x0()))
    back = op.Transpose(op.Reshape(share, [shape[a] for a in order]), perm=np.argsort(order).tolist())
    return back * spread(ctx, m[0], axes)


def all_but_one(x: Value, x0: Value) -> Value:
    """Along the last axis, the mean over the straight line from `x0` to `x` of the product of all other elements."""
    total: Value | None = None
    for t, weight in gauss_legendre((x.shape[-1] + 1) // 2):
        point = x * t + x0 * (1.0 - t)
        part = _before(point) * _before(point, reverse=True) * weight
        total = part if total is None else total + part
    assert total is not None
    return total


def _before(x: Value, reverse: bool = False) -> Value:
    """The product of the elements before each along the last axis (after it, in reverse), in ``log n`` steps."""
    op, n = x.op, x.shape[-1]
    one = op.constant(np.ones((*x.shape[:-1], 1)), x.dtype)
    parts = [op.Slice(x, [1], [n], [-1]), one] if reverse else [one, op.Slice(x, [0], [n - 1], [-1])]
    value: Value = op.Concat(*parts, axis=-1)
    step = 1
    while step < n:
        pad = op.constant(np.ones((*x.shape[:-1], step)), x.dtype)
        moved = [op.Slice(value, [step], [n], [-1]), pad] if reverse else [pad, op.Slice(value, [0], [n - step], [-1])]
        value = value * op.Concat(*moved, axis=-1)
        step *= 2
    return value


@rule("CumProd")
def cumulative_product(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """Each running product is a product of so many players: by Gauss-Legendre nodes along the straight line.

    ``m_i = integral of sum_{j >= i} m_j prod_{k <= j, k != i} z_k dt``, ``z = x0 + t (x - x0)``. With ``P_i`` the
    product of those before i and ``S_i = m_i + z_{i+1} S_{i+1}``, that is the integral of ``P_i S_i``.
    """
    op, shape = ctx.op, ctx.shape()
    axis = int(ctx.fixed(1, "axis").reshape(())) % len(shape)
    reverse, exclusive = ctx.attribute("reverse", 0), ctx.attribute("exclusive", 0)
    n = shape[axis]
    order = [a for a in range(len(shape)) if a != axis] + [axis]

    def laid(x: Value) -> Value:
        moved = op.Transpose(x, perm=order)
        return op.Slice(moved, [-1], [-n - 1], [-1], [-1]) if reverse else moved

    x, x0, m_y = laid(ctx.as_float(ctx.x())), laid(ctx.as_float(ctx.x0())), laid(m[0])
    if exclusive:  # y_j is the product of those before j: as if the multipliers were one place further on
        none = op.constant(np.zeros((*x.shape[:-1], 1)), x.dtype)
        m_y = op.Concat(op.Slice(m_y, [1], [n], [-1]), none, axis=-1)
    total: Value | None = None
    for t, weight in gauss_legendre((n + 1) // 2):
        point = x * t + x0 * (1.0 - t)
        part = _before(point) * _suffix(m_y, point) * weight
        total = part if total is None else total + part
    assert total is not None
    turned = op.Slice(total, [-1], [-n - 1], [-1], [-1]) if reverse else total
    return [op.Transpose(turned, perm=np.argsort(order).tolist()), None]


def _suffix(m: Value, z: Value) -> Value:
    """``S_i = m_i + z_{i+1} S_{i+1}`` along the last axis, in ``log n`` steps."""
    op, n = z.op, z.shape[-1]

    def moved(value: Value, step: int) -> Value:
        none = op.constant(np.zeros((*z.shape[:-1], step)), z.dtype)
        return op.Concat(op.Slice(value, [step], [n], [-1]), none, axis=-1)

    factor, total, step = moved(z, 1), m, 1
    while step < n:
        if total.shape != z.shape:
            total = op.Expand(total, list(z.shape))
        total = total + factor * moved(total, step)
        factor = factor * moved(factor, step)
        step *= 2
    return total


@rule("Det")
def determinant(ctx: Context, m: Sequence[Value]) -> Value:
    """``m integral of the cofactors along the straight line dt``: exact, as they are polynomials, by Gauss-Legendre.

    A sum over permutations spells the cofactors of small matrices.

    Raises
    ------
    RuleError
        The matrix is large: the adjugate ``det(z) z^-T`` has no operator.
    """
    op, n = ctx.op, ctx.shape()[-1]
    if n > LARGEST:
        raise RuleError(f"the determinant of {n} rows has no rule; up to {LARGEST} have")
    total: Value | None = None
    for t, weight in gauss_legendre((n + 1) // 2):
        part = _cofactors(ctx.x() * t + ctx.x0() * (1.0 - t)) * weight
        total = part if total is None else total + part
    assert total is not None
    return total * op.Unsqueeze(m[0], [-2, -1])


LARGEST = 5
"""Rows of a matrix whose determinant is spelled out."""


def _cofactors(z: Value) -> Value:
    """``d det / d z_ij``, ``[..., n, n]``."""
    op, n = z.op, z.shape[-1]
    lead = z.rank - 2
    flat = op.Reshape(z, [*z.shape[:-2], n * n])
    columns: list[list[int]] = []
    signs: list[list[float]] = []
    for i, j in product(range(n), range(n)):
        rows = [a for a in range(n) if a != i]
        others = [b for b in range(n) if b != j]
        for order in permutations(range(n - 1)):
            columns.append([a * n + others[b] for a, b in zip(rows, order, strict=True)])
            swaps = sum(order[a] > order[b] for a in range(n - 1) for b in range(a + 1, n - 1))
            signs.append([(-1.0) ** (i + j + swaps)])
    terms = math.factorial(n - 1)
    value: Value | None = None
    for k in range(n - 1):
        factor = op.Gather(flat, np.array([c[k] for c in columns]), axis=lead)
        value = factor if value is None else value * factor
    if value is None:
        return op.constant(np.ones(z.shape), z.dtype)
    signed = value * np.array(signs)[:, 0]
    total = op.ReduceSum(op.Reshape(signed, [*z.shape[:-2], n * n, terms]), [-1], keepdims=0)
    result: Value = op.Reshape(total, list(z.shape))
    return result


@expand("TensorScatter")
def tensor_scatter(ctx: Expansion) -> Value:
    """A cache whose row b takes the update from position ``w_b`` on: a scatter at fixed places."""
    op, shape, axis = ctx.op, ctx.shape(), ctx.attribute("axis", -2) % len(ctx.shape())
    update, length = ctx.shape(1), ctx.shape()[axis]
    starts = ctx.constant(2) if ctx.has(2) else np.zeros(shape[0], np.int64)
    steps = np.arange(update[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    if starts is None:
        first = op.Reshape(ctx.x(2), [-1, *[1] * (len(shape) - 1)])
        places = op.Expand(first + op.constant(steps), list(update))
        if ctx.attribute("mode", "linear") == "circular":
            places = op.Mod(places, op.constant(np.int64(length)))
    else:
        fixed = starts.reshape(-1, *[1] * (len(shape) - 1)) + steps
        fixed = fixed % length if ctx.attribute("mode", "linear") == "circular" else fixed
        places = op.constant(np.broadcast_to(fixed, update).copy())
    result: Value = op.ScatterElements(ctx.x(), places, ctx.x(1), axis=axis)
    return result


@expand("MaxUnpool")
def max_unpool(ctx: Expansion) -> Value:
    """``y[i_p] = x[p]`` in the flattened output, which is 0 elsewhere."""
    op, shape = ctx.op, _own_shape(ctx)
    zeros = op.zeros((math.prod(shape),), ctx.x().dtype)
    whole = op.ScatterElements(zeros, op.Reshape(ctx.x(1), [-1]), op.Reshape(ctx.x(), [-1]), axis=0)
    result: Value = op.Reshape(whole, shape)
    return result


def _own_shape(ctx: Expansion) -> list[int]:
    """The shape that the kernel gives.

    Raises
    ------
    RuleError
        The model asks for another shape: the standard counts the indices in the kernel's, onnxruntime in the other.
    """
    kernel = ctx.attribute("kernel_shape")
    rank = len(kernel)
    strides, pads = ctx.attribute("strides") or [1] * rank, ctx.attribute("pads") or [0] * 2 * rank
    each = zip(ctx.shape()[2:], kernel, strides, pads, pads[rank:], strict=False)
    own = [*ctx.shape()[:2], *((n - 1) * s + k - before - after for n, k, s, before, after in each)]
    fixed = ctx.constant(2) if ctx.has(2) else np.array(own)
    asked = None if fixed is None else fixed.tolist()
    if asked is None:
        raise RuleError(f"{ctx.node}: its shape is computed from a model input; only a fixed shape is supported")
    if own != asked:
        raise RuleError(
            f"{ctx.node}: its output has the shape {asked}, its kernel gives {own}: where elements are put then, "
            f"the standard and onnxruntime do not agree"
        )
    return own


@rule("TopK")
def top(ctx: Context, m: Sequence[Value | None]) -> list[Value | None]:
    """``m_x = 1/2 (P + P0)^T m`` for the selections P and P0 at the two points; the rest is booked to the order.

    What is booked, ``rho = <m, dy> - <m_x, dx>``, goes to the elements by ``rho dx / |dx|^2``, so that nothing is lost.
    The derivative is exact, and where both points have the same order nothing is booked. Indices have multiplier 0.
    """
    op, shape = ctx.op, ctx.shape()
    axis = ctx.attribute("axis", -1) % len(shape)
    m_y = m[0]
    rest: list[Value | None] = [None] * (ctx.n_inputs - 1)
    if m_y is None:
        return [op.zeros(shape, ctx.dtype), *rest]
    attributes = {**ctx.node.attributes, "axis": axis}
    parts = []
    for x in (ctx.x(), ctx.x0()):
        places = op.emit("TopK", "", [x, ctx.x(1)], attributes, 2)[1]
        parts.append(op.ScatterElements(op.zeros(shape, m_y.dtype), places, m_y, axis=axis))
    mean, dx = (parts[0] + parts[1]) * 0.5, ctx.delta_x()
    booked = op.ReduceSum(m_y * ctx.delta_y(), [axis]) - op.ReduceSum(mean * dx, [axis])
    size = op.ReduceSum(dx * dx, [axis])
    return [mean + dx * quotient(booked, size), *rest]
