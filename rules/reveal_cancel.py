"""DeepLIFT's RevealCancel, chosen by name: ``rules="reveal_cancel"``.

Every difference is carried as a positive part P and a negative part N, ``P + N = dx``, so that inputs that cancel in a
sum get their share. After Shrikumar, Greenside and Kundaje, "Learning important features through propagating activation
differences" (2017), section 3.5.2:

* A function of one number hands on ``dy+ = (f(x0 + P) - f(x0) + f(x) - f(x0 + N)) / 2`` and ``dy-``, the same with P
  and N exchanged: the Shapley value of the two parts. ``m+ = dy+ / P`` is half the sum of two usual secants.
* A linear operator splits its terms ``w_i dx_i``, each with the whole ``dx_i``, by their sign.
* What moves numbers, adds or scales them moves, adds or scales the parts.

All other operators, products of two values that vary among them, keep their usual rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from deepshap_ir.extend import Array, Context, Parts, Value, named_rules

reveal_cancel = named_rules("reveal_cancel")

Multiplier = Value | Parts | None
Change = Callable[[Array], Array]

FUNCTIONS = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Elu", "Erf"),
    *("Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mod", "PRelu"),
    *("Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
    *("Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
    *(f"deepshap_ir::{name}" for name in ("Elementwise", "Gelu", "Mish", "Sigmoid", "Softplus", "Softsign")),
    *("deepshap_ir::Swish", "deepshap_ir::Tanh"),
)
MOVEMENT = (
    *("Add", "Cast", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Mean", "Neg"),
    *("Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Trilu"),
    *("Unsqueeze", "Mul", "Div", "BatchNormalization"),
)
POSITIVE = ("AveragePool", "CumSum", "GlobalAveragePool", "ReduceMean", "ReduceSum")
"""Linear operators whose weights are not negative."""
WEIGHTED = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")


def _varying(ctx: Context) -> list[int]:
    return [i for i in range(ctx.n_inputs) if ctx.varies(i)]


def _unless_split(m: Sequence[Multiplier]) -> tuple[list[Value | None], list[Value | None]]:
    """The multipliers of the positive parts and those of the negative parts."""
    return (
        [v.plus if isinstance(v, Parts) else v for v in m],
        [v.minus if isinstance(v, Parts) else v for v in m],
    )


def _whole(ctx: Context, m: Sequence[Multiplier]) -> list[Value | None]:
    """One multiplier for each output, each element of whose delta is one part."""
    return [v.by_sign(ctx.delta_y(j)) if isinstance(v, Parts) else v for j, v in enumerate(m)]


def _none(ctx: Context) -> list[Parts | None]:
    return [None] * len(ctx.node.outputs)


# --- functions of one number


def _points(ctx: Context) -> tuple[int, Parts, list[Value | None], list[Value | None]] | None:
    """Which input varies, its parts, and the inputs at ``x0 + P`` and at ``x0 + N``; None if not one alone does."""
    varying = _varying(ctx)
    if len(varying) != 1 or not ctx.x(varying[0]).is_float or not ctx.y().is_float:
        return None
    i = varying[0]
    parts = ctx.parts(i)
    moved = [[*ctx.xs[:i], ctx.x0(i) + part, *ctx.xs[i + 1 :]] for part in (parts.plus, parts.minus)]
    return i, parts, moved[0], moved[1]


def effects(ctx: Context) -> list[Parts | None]:
    """``dy+`` and ``dy-``."""
    found = _points(ctx)
    if found is None:
        return _none(ctx)
    at_plus, at_minus = (ctx.forward(*values) for values in found[2:])
    y, y0 = ctx.y(), ctx.y0()
    plus = ((at_plus - y0) + (y - at_minus)) * 0.5
    minus = ((at_minus - y0) + (y - at_plus)) * 0.5
    return [Parts(plus, minus, terms=False), *_none(ctx)[1:]]


@reveal_cancel.rule(*FUNCTIONS, parts=effects)
def function_of_one(ctx: Context, m: Sequence[Multiplier]) -> Sequence[Multiplier]:
    """``m+ = m_y+ (s(x0, x0 + P) + s(x0 + N, x)) / 2``, ``m-`` with P and N exchanged, s the usual secant."""
    found = _points(ctx)
    if found is None:
        return ctx.usual(_whole(ctx, m))
    i, _, with_plus, with_minus = found
    result: list[Multiplier] = [None] * ctx.n_inputs

    def half(own: list[Value | None], other: list[Value | None], m_y: list[Value | None]) -> Value:
        a, b = (ctx.at(*ends).usual(m_y)[i] for ends in ((own, ctx.x0s), (ctx.xs, other)))
        assert a is not None
        assert b is not None
        return (a + b) * 0.5

    positive, negative = _unless_split(m)
    result[i] = Parts(half(with_plus, with_minus, positive), half(with_minus, with_plus, negative))
    return result


# --- movement, sums and scales


def _scale(ctx: Context) -> Value | None:
    """By what a Mul, Div or BatchNormalization scales its first or only varying operand; None for the others."""
    op_type, varying = ctx.node.op_type, _varying(ctx)
    if op_type == "Mul":
        return ctx.x(1 - varying[0])
    if op_type == "Div":
        return ctx.x(1)
    if op_type == "BatchNormalization":
        return ctx.op.Reshape(ctx.x(1), [1, -1, *[1] * (len(ctx.shape()) - 2)])
    return None


def _moves(ctx: Context) -> bool:
    """Whether the node hands on parts as they are: at most one factor varies, and numbers stay numbers."""
    varying, op_type = _varying(ctx), ctx.node.op_type
    if not all(ctx.x(i).is_float for i in varying) or not ctx.y().is_float:
        return False
    if op_type in ("Add", "Sub", "Sum", "Mean", "Concat"):
        return True
    return varying == [0] or (op_type == "Mul" and varying == [1])


def moved_parts(ctx: Context) -> list[Parts | None]:
    """What the parts of each operand do to the outputs, those that are positive and those that are negative."""
    if not _moves(ctx):
        return _none(ctx)
    op, result = ctx.op, _none(ctx)
    for j, name in enumerate(ctx.node.outputs):
        if not name or not ctx.is_computed(j):
            continue
        changes = []
        for i in _varying(ctx):
            for part in _terms(ctx, i):
                inputs = [*ctx.x0s[:i], ctx.x0(i) + part, *ctx.x0s[i + 1 :]]
                changes.append(ctx.forward(*inputs, j=j) - ctx.y0(j))
        plus, minus = ([limit(c, 0.0) for c in changes] for limit in (op.Max, op.Min))
        result[j] = Parts(sum(plus[1:], plus[0]), sum(minus[1:], minus[0]))
    return result


def _terms(ctx: Context, i: int) -> tuple[Value, Value]:
    """The parts of input `i` as a sum sees them: a nonlinear operator's output is one term, by its sign."""
    parts, op = ctx.parts(i), ctx.op
    if parts.terms:
        return parts.plus, parts.minus
    return op.Max(ctx.delta_x(i), 0.0), op.Min(ctx.delta_x(i), 0.0)


@reveal_cancel.rule(*MOVEMENT, parts=moved_parts)
def moved(ctx: Context, m: Sequence[Multiplier]) -> Sequence[Multiplier]:
    """The usual multipliers of each part; exchanged where the sign changes."""
    if not any(isinstance(v, Parts) for v in m) or not _moves(ctx):
        return ctx.usual(_whole(ctx, m))
    positive, negative = _unless_split(m)
    scale = _scale(ctx)
    if scale is not None:
        upward = scale > 0.0
        both = list(zip(positive, negative, strict=True))
        positive = [None if a is None or b is None else ctx.op.Where(upward, a, b) for a, b in both]
        negative = [None if a is None or b is None else ctx.op.Where(upward, b, a) for a, b in both]
    plus, minus = ctx.usual(positive), ctx.usual(negative)
    result: list[Multiplier] = []
    for i, (a, b) in enumerate(zip(plus, minus, strict=True)):
        if a is None or b is None:
            result.append(a)
            continue
        turned = ctx.node.op_type == "Neg" or (ctx.node.op_type == "Sub" and i == 1)
        pair = Parts(b, a) if turned else Parts(a, b)
        result.append(pair if ctx.parts(i).terms else pair.by_sign(ctx.delta_x(i)))
    return result


# --- linear operators with weights


def _weights(ctx: Context) -> int | None:
    """Which operand holds the weights: the one beside the one that varies; None where it is not so simple."""
    varying = _varying(ctx)
    if varying not in ([0], [1]) or ctx.n_inputs < 2:
        return None
    if ctx.node.op_type.startswith("Conv") and varying != [0]:
        return None
    if ctx.node.op_type == "Einsum" and ctx.n_inputs != 2:
        return None
    return 1 - varying[0]


def _with(ctx: Context, values: Sequence[Value | None], weights: Value | None) -> list[Value | None]:
    """Inputs with other weights and without a bias; as they are where there are no weights."""
    k = _weights(ctx)
    if k is None or weights is None:
        return list(values)
    return [weights if i == k else v if i < 2 else None for i, v in enumerate(values)]


def _signed(ctx: Context) -> tuple[Value, Value]:
    """The positive and the negative weights, of the terms that are added: Gemm's alpha may turn them round."""
    k = _weights(ctx)
    assert k is not None
    w = ctx.x(k)
    plus, minus = (
        (ctx.op.constant(np.maximum(w.data, 0)), ctx.op.constant(np.minimum(w.data, 0)))
        if w.data is not None
        else (ctx.op.Max(w, 0.0), ctx.op.Min(w, 0.0))
    )
    return (minus, plus) if ctx.node.op_type == "Gemm" and ctx.attribute("alpha", 1.0) < 0 else (plus, minus)


def weighted_parts(ctx: Context) -> list[Parts | None]:
    """The positive terms ``w_i dx_i`` and the negative ones."""
    if _weights(ctx) is None or not ctx.y().is_float:
        return _none(ctx)
    i = _varying(ctx)[0]
    plus, minus = _signed(ctx)
    rising, falling = ctx.op.Max(ctx.delta_x(i), 0.0), ctx.op.Min(ctx.delta_x(i), 0.0)

    def product(delta: Value, weights: Value) -> Value:
        return ctx.forward(*_with(ctx, [delta if k == i else v for k, v in enumerate(ctx.xs)], weights))

    return [
        Parts(
            product(rising, plus) + product(falling, minus),
            product(rising, minus) + product(falling, plus),
        )
    ]


@reveal_cancel.rule(*WEIGHTED, parts=weighted_parts)
def weighted(ctx: Context, m: Sequence[Multiplier]) -> Sequence[Multiplier]:
    """``sum_j w_ij m_j+`` over the positive terms and ``sum_j w_ij m_j-`` over the negative ones."""
    if not isinstance(m[0], Parts) or _weights(ctx) is None:
        return ctx.usual(_whole(ctx, m))
    i = _varying(ctx)[0]
    plus, minus = _signed(ctx)

    def back(weights: Value, m_y: Value) -> Value:
        found = ctx.at(_with(ctx, ctx.xs, weights), _with(ctx, ctx.x0s, weights)).usual([m_y])[i]
        assert found is not None
        return found

    pair = Parts(
        back(plus, m[0].plus) + back(minus, m[0].minus),
        back(plus, m[0].minus) + back(minus, m[0].plus),
    )
    result: list[Multiplier] = [None] * ctx.n_inputs
    result[i] = pair.by_sign(ctx.delta_x(i))
    return result


def summed_parts(ctx: Context) -> list[Parts | None]:
    """The sums over the positive and over the negative deltas."""
    if _varying(ctx) != [0] or not ctx.x().is_float:
        return _none(ctx)
    delta = ctx.delta_x()
    plus, minus = (ctx.forward(limit(delta, 0.0), *ctx.xs[1:]) for limit in (ctx.op.Max, ctx.op.Min))
    return [Parts(plus, minus)]


@reveal_cancel.rule(*POSITIVE, parts=summed_parts)
def summed(ctx: Context, m: Sequence[Multiplier]) -> Sequence[Multiplier]:
    """The usual multipliers of the part to which each delta belongs."""
    if not isinstance(m[0], Parts) or _varying(ctx) != [0]:
        return ctx.usual(_whole(ctx, m))
    plus, minus = ctx.usual([m[0].plus])[0], ctx.usual([m[0].minus])[0]
    assert plus is not None
    assert minus is not None
    return [Parts(plus, minus).by_sign(ctx.delta_x()), *[None] * (ctx.n_inputs - 1)]
