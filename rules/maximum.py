"""Max, Min, ReduceMax, ReduceMin and GlobalMaxPool by exact Shapley values.

``max z`` is the integral over levels t of "some z_i is above t". For each t that is a game between
``A = {i: x_i > t >= x0_i}``, alpha players, and ``B = {i: x0_i > t >= x_i}``, beta players. From
``floor = max_i min(x_i, x0_i)`` on there is nobody else above t, and the Shapley values are

``(alpha - 1)! beta! / (alpha + beta)!`` in A and ``-(beta - 1)! alpha! / (alpha + beta)!`` in B;

below, one element is above t at both points, and nothing changes. ``min z`` is ``-max(-z)``.

The option ``max="shap"`` gives all to the winners instead, as SHAP does in max pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Context, Value, rule

TINY = 1e-30
"""Added to both sides of a quotient in [0, 1], so that 0/0 is 1, the derivative at zero delta."""


@rule("Max", "Min")
def extreme(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """The largest, or smallest, of several operands, element by element."""
    varying = [i for i in range(ctx.n_inputs) if ctx.varies(i)]
    fixed = [_upward(ctx, ctx.x(i)) for i in range(ctx.n_inputs) if not ctx.varies(i)]
    xs, x0s = [_upward(ctx, ctx.x(i)) for i in varying], [_upward(ctx, ctx.x0(i)) for i in varying]
    if uses_shapley(ctx) and len(xs) == 1:
        factors = [_share(xs[0], x0s[0], ctx.op.Max(*fixed))] if fixed else [ctx.op.constant(1.0, xs[0].dtype)]
    elif uses_shapley(ctx) and len(xs) == 2:
        factors = _of_two(xs, x0s, fixed)
    else:
        factors = _of_stack(ctx, [*xs, *fixed], [*x0s, *fixed])
    found = dict(zip(varying, factors, strict=False))
    return [m[0] * found[i] if i in found else None for i in range(ctx.n_inputs)]


@rule("ReduceMax", "ReduceMin", "GlobalMaxPool")
def reduced_extreme(ctx: Context, m: Sequence[Value]) -> Value:
    """The largest, or smallest, element along axes."""
    op, shape = ctx.op, ctx.shape()
    reduced = _axes(ctx)
    if int(np.prod([shape[a] for a in reduced])) == 1:
        return op.Reshape(m[0], list(shape))
    order = [a for a in range(len(shape)) if a not in reduced] + reduced
    kept = [shape[a] for a in order[: len(shape) - len(reduced)]]

    def flat(x: Value) -> Value:
        """The reduced axes as one, the last."""
        moved = x if order == sorted(order) else op.Transpose(x, perm=order)
        result: Value = op.Reshape(_upward(ctx, moved), [*kept, -1])
        return result

    factor = multipliers_of_max(ctx, flat(ctx.x()), flat(ctx.x0()))
    result: Value = op.Reshape(factor * op.Reshape(m[0], [*kept, 1]), [shape[a] for a in order])
    return result if order == sorted(order) else op.Transpose(result, perm=np.argsort(order).tolist())


def uses_shapley(ctx: Context, option: str = "max", default: str = "shapley") -> bool:
    """Whether the explainer's `option` is "shapley", and not "shap"."""
    return bool(ctx.options.get(option, default) == "shapley")


def multipliers_of_max(ctx: Context, x: Value, x0: Value) -> Value:
    """Multipliers of the elements along the last axis of `x` for their maximum, by the rule that is chosen."""
    return shapley_of_max(x, x0) if uses_shapley(ctx) else winners_of_max(x, x0)


def winners_of_max(x: Value, x0: Value) -> Value:
    """``d / (x_j - x0_j)``, ``d = max x - max x0``, for the winner j: that of `x` if ``d >= 0``, else that of `x0`."""
    op = x.op
    d = op.ReduceMax(x, [-1]) - op.ReduceMax(x0, [-1])
    j = op.Where(d >= 0.0, op.ArgMax(x, axis=-1), op.ArgMax(x0, axis=-1))
    chosen = op.cast(op.Equal(j, op.constant(np.arange(x.shape[-1]))), x.dtype)
    return chosen * ratio(d, op.GatherElements(x - x0, j, axis=-1))


def ratio(part: Value, whole: Value) -> Value:
    """``part / whole`` for two numbers of one sign, `part` being the smaller; 1 where both are 0."""
    return (abs(part) + TINY) / (abs(whole) + TINY)


def shapley_of_max(x: Value, x0: Value) -> Value:
    """The Shapley values of ``max`` along the last axis, over their deltas: ``[..., n]``.

    Between neighbours of the 2n sorted numbers alpha and beta are constant: they count the numbers of `x` and of `x0`
    above. With ``share = alpha! beta! / (alpha + beta)!`` a player of A gets the integral of ``share / alpha`` from the
    floor to ``x_i``, a player of B that of ``-share / beta`` to ``x0_i``. All others lie at or below the floor.

    At zero delta only an element at the floor has a derivative other than 0: it would be one player more.
    """
    op, n = x.op, x.shape[-1]
    last = op.constant(np.array(-1))
    floor = op.ReduceMax(op.Min(x, x0), [-1])
    levels, order = op.TopK(op.Concat(op.Max(x, floor), op.Max(x0, floor), axis=-1), [2 * n], axis=-1, outputs=2)
    of_x = order < n
    rank = op.constant(np.arange(1.0, 2 * n + 1), x.dtype)
    alpha = op.CumSum(op.cast(of_x, x.dtype), last)
    beta = rank - alpha
    share = op.Exp(op.CumSum(op.Log(op.Where(of_x, alpha, beta) / rank), last))
    area = share * (levels - op.Concat(op.Slice(levels, [1], [2 * n], [-1]), floor, axis=-1))
    gain = op.CumSum(area / op.Max(alpha, op.constant(1.0, x.dtype)), last, reverse=1)
    loss = op.CumSum(area / op.Max(beta, op.constant(1.0, x.dtype)), last, reverse=1)
    there = op.ScatterElements(op.zeros(levels.shape, x.dtype), order, op.Where(of_x, gain, loss), axis=-1)
    value = op.Max(op.Slice(there, [0], [n], [-1]), op.Slice(there, [n], [2 * n], [-1]))
    above = levels > floor
    players = op.ReduceSum(op.cast(above, x.dtype), [-1])
    lowest = op.ReduceMin(op.Where(above, share, op.constant(1.0, x.dtype)), [-1])
    still = op.cast(op.Equal(x, x0) & op.Equal(x, floor), x.dtype)
    derivative = lowest / ((players + 1.0) * op.Max(op.ReduceSum(still, [-1]), op.constant(1.0, x.dtype)))
    return value / (abs(x - x0) + TINY) + still * derivative


def _share(x: Value, x0: Value, other: Value) -> Value:
    """``(max(x, c) - max(x0, c)) / (x - x0)`` with ``c = other``, in [0, 1]."""
    op = x.op
    return op.Clip(op.Max(x - other, x0 - other) / (abs(x - x0) + TINY), 0.0, 1.0)


def _of_two(xs: Sequence[Value], x0s: Sequence[Value], fixed: Sequence[Value]) -> list[Value]:
    """Two players: the mean of what each adds to the other's sample and to the other's reference."""
    factors = []
    for i in (0, 1):
        op, j = xs[i].op, 1 - i
        shares = [_share(xs[i], x0s[i], op.Max(z, *fixed) if fixed else z) for z in (xs[j], x0s[j])]
        factors.append((shares[0] + shares[1]) * 0.5)
    return factors


def _of_stack(ctx: Context, xs: Sequence[Value], x0s: Sequence[Value]) -> list[Value]:
    """Any number of players, those with zero delta included."""
    op = ctx.op
    shape = np.broadcast_shapes(*(x.shape for x in xs))

    def stack(values: Sequence[Value]) -> Value:
        columns = [op.Unsqueeze(v if v.shape == shape else op.Expand(v, list(shape)), [-1]) for v in values]
        return op.Concat(*columns, axis=-1)

    factor = multipliers_of_max(ctx, stack(xs), stack(x0s))
    return [op.Gather(factor, op.constant(np.array(k)), axis=-1) for k in range(len(xs))]


def _upward(ctx: Context, x: Value) -> Value:
    """`x` as floating-point numbers, for a minimum their negatives; -inf (of masks) as the lowest finite number."""
    x = ctx.as_float(x)
    x = -x if ctx.node.op_type.endswith("Min") else x
    highest: Value = ctx.op.Max(x, ctx.op.constant(np.finfo(x.dtype).min, x.dtype))
    return highest


def _axes(ctx: Context) -> list[int]:
    """The reduced axes, sorted."""
    rank = len(ctx.shape())
    if ctx.node.op_type == "GlobalMaxPool":
        return list(range(2, rank))
    given = ctx.constant(1)
    if given is None or given.size == 0:
        return [] if ctx.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(a) % rank for a in given.reshape(-1))
