"""Joined patterns: products of many factors, and element-wise functions of one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from deepshap_ir.extend import Context, Graph, Node, Value, rule
from deepshap_ir.rules.einsum import gauss_legendre
from deepshap_ir.rules.elementwise import inverse_or_zero, mish, sigmoid, softplus, softsign, swish, tanh
from deepshap_ir.rules.smooth import smooth

Secant = Callable[[Context], Value]


@rule("deepshap_ir::Product")
def product(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``m_i = m integral of prod_{j != i} (P_j0 + t (P_j - P_j0)) dt``: the exact Shapley value of n players P.

    The integrand is a polynomial in t, so that ``ceil(n/2)`` Gauss-Legendre nodes are exact. A player is a factor, or
    the reciprocal of one that divides, for which ``-1 / (f f0)`` follows.
    """
    powers: Sequence[int] = ctx.attribute("powers")
    varying = [i for i in range(ctx.n_inputs) if ctx.varies(i)]
    fixed = _multiplied([_power(ctx.x(i), powers[i]) for i in range(ctx.n_inputs) if i not in varying and powers[i]])
    players = [(_power(ctx.x(i), powers[i]), _power(ctx.x0(i), powers[i])) for i in varying]
    shares: list[Value | None] = [None] * len(varying)
    for t, weight in gauss_legendre((len(varying) + 1) // 2):
        points = [p * t + p0 * (1.0 - t) for p, p0 in players]
        for k, others in enumerate(_all_but_one(points)):
            part = others if others is None or weight == 1.0 else others * weight
            known = shares[k]
            shares[k] = part if known is None or part is None else known + part
    result: list[Value | None] = [None] * ctx.n_inputs
    for i, share, (p, p0) in zip(varying, shares, players, strict=True):
        slope = -p * p0 if powers[i] < 0 else None
        factor = _multiplied([f for f in (share, slope, fixed) if f is not None])
        result[i] = m[0] if factor is None else m[0] * factor
    return result


def _power(factor: Value, power: int) -> Value:
    base = factor if power > 0 else inverse_or_zero(factor)
    value = base
    for _ in range(abs(power) - 1):
        value = value * base
    return value


def _multiplied(factors: Sequence[Value]) -> Value | None:
    total: Value | None = None
    for factor in factors:
        total = factor if total is None else total * factor
    return total


def _all_but_one(points: Sequence[Value]) -> list[Value | None]:
    """Per point the product of the others: those before it times those after it."""
    before: list[Value | None] = [None]
    after: list[Value | None] = [None]
    for k in range(len(points) - 1):
        before.append(_multiplied([p for p in (before[-1], points[k]) if p is not None]))
        after.append(_multiplied([p for p in (after[-1], points[-1 - k]) if p is not None]))
    return [_multiplied([p for p in pair if p is not None]) for pair in zip(before, after[::-1], strict=True)]


KNOWN: Mapping[str, Secant] = {
    "Gelu": smooth,
    "Mish": mish,
    "Sigmoid": sigmoid,
    "Softplus": softplus,
    "Softsign": softsign,
    "Swish": swish,
    "Tanh": tanh,
}
"""Operators that `deepshap_ir.joins.known` recognises, spelled with others: the secant of the operator itself."""


@rule(*(f"deepshap_ir::{name}" for name in KNOWN))
def known(ctx: Context, m: Sequence[Value]) -> Value:
    """The secant of the function that the pattern was recognised as."""
    return m[0] * KNOWN[ctx.node.op_type](ctx)


STEPS = frozenset(["Ceil", "Floor", "Round", "Sign"])
"""Operators whose floating-point result is constant between jumps."""

BOUNDED = frozenset(
    [
        *("Abs", "Add", "Cast", "Celu", "Clip", "Cos", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
        *("LeakyRelu", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Sin"),
        *("Softplus", "Softsign", "Sub", "Sum", "Swish", "Tanh", "Where"),
    ]
)
"""Operators with a finite secant at every point, which no number below 1e18 makes overflow."""

STEP = 1e-3
"""Relative half-width of the symmetric difference quotient."""


@rule("deepshap_ir::Elementwise")
def elementwise(ctx: Context, m: Sequence[Value]) -> Value:
    """The secant of the whole: the nodes' own secants chained, so that no small difference is divided by another.

    Paths add up, products follow the midpoint rule, and Where selects. Where a condition or a step differs between
    the two points, it is ``(y - y0) / (x - x0)``. So it is where an intermediate value is not finite; there it is the
    symmetric difference quotient if the delta is 0.
    """
    op, body = ctx.op, ctx.attribute("body")
    chained, same = _chained(ctx, body)
    delta = ctx.delta_x()
    secant: Value = ctx.delta_y() / delta
    if same is not None:
        chained = secant if chained is None else op.Where(same, chained, secant)
    if chained is None:
        return m[0] * 0.0
    if not {node.op_type for node in body.nodes} <= BOUNDED | STEPS:
        x = ctx.x()
        width = op.Max(abs(x), 1.0) * STEP
        slope = (ctx.forward(x + width) - ctx.forward(x - width)) / (width * 2.0)
        finite = op.Less(abs(chained), op.constant(np.inf, chained.dtype))
        chained = op.Where(finite, chained, op.Where(op.Equal(delta, 0.0), slope, secant))
    return m[0] * chained


def _chained(ctx: Context, body: Graph) -> tuple[Value | None, Value | None]:
    """The secant of the body's output as if no condition changed, and where none does (None where there is none).

    The secant is None where the output only has steps.
    """
    op = ctx.op
    at: dict[str, tuple[Value, Value]] = {name: (op.constant(a),) * 2 for name, a in body.constants.items()}
    at[body.inputs[0]] = (ctx.x(), ctx.x0())
    secants: dict[str, Value | None] = dict.fromkeys(["", *body.constants])
    secants[body.inputs[0]] = _one(ctx, body.inputs[0], body)
    changed: list[Value] = []
    for node in body.nodes:
        x, x0 = (op.node(node, [at[n][k] if n else None for n in node.inputs], body)[0] for k in (0, 1))
        output = node.outputs[0]
        assert x is not None
        assert x0 is not None
        at[output] = (x, x0)
        moves = any(secants[n] is not None for n in node.inputs)
        if moves and (not x.is_float or node.op_type in STEPS):
            changed.append(op.Equal(x, x0))
            secants[output] = None
        elif not moves:
            secants[output] = None
        elif node.operator == "Where":
            slopes = [op.constant(0.0, ctx.dtype) if (s := secants[n]) is None else s for n in node.inputs[1:]]
            secants[output] = op.Where(at[node.inputs[0]][0], *slopes)
        else:
            secants[output] = _through(ctx, node, body, at, secants)
    same: Value | None = None
    for unchanged in changed:
        same = unchanged if same is None else op.And(same, unchanged)
    return secants[body.outputs[0]], same


def _through(
    ctx: Context,
    node: Node,
    body: Graph,
    at: Mapping[str, tuple[Value, Value]],
    secants: Mapping[str, Value | None],
) -> Value:
    """The secant of the output of `node`: its multipliers for 1, times the secants of its inputs."""
    names = [n for n in dict.fromkeys(node.inputs) if n and n not in body.constants]
    constants = {n: a for n, a in body.constants.items() if n in node.inputs}
    alone = replace(body, inputs=tuple(names), outputs=node.outputs, nodes=(node,), constants=constants)
    xs = [at[n][0] for n in names]
    x0s = [at[n][1] if secants[n] is not None else at[n][0] for n in names]
    found = ctx.backward(alone, xs, x0s, [_one(ctx, node.outputs[0], body)])
    parts = [f * s for n, f in zip(names, found, strict=True) if f is not None and (s := secants[n]) is not None]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _one(ctx: Context, name: str, body: Graph) -> Value:
    return ctx.op.constant(np.ones((1,) * len(body.shapes[name])), ctx.dtype)
