"""One step of an optimiser, written with element-wise operators."""

from __future__ import annotations

from deepshap_ir.extend import Expansion, Value, expand

DOMAIN = "ai.onnx.preview.training"


@expand(f"{DOMAIN}::Adagrad")
def adagrad(ctx: Expansion) -> list[Value]:
    """``g = norm x + dx``, ``h' = h + g^2``, ``x' = x - r g / (sqrt h' + epsilon)``; r falls with the step count."""
    op, xs, hs = ctx.op, [], []
    rate = ctx.x(0) / (op.cast(ctx.x(1), ctx.x(0).dtype) * ctx.attribute("decay_factor", 0.0) + 1.0)
    for x, g, h in _grouped(ctx, 3):
        g = x * ctx.attribute("norm_coefficient", 0.0) + g
        h = h + g * g
        xs.append(x - rate * g / (op.Sqrt(h) + ctx.attribute("epsilon", 1e-6)))
        hs.append(h)
    return [*xs, *hs]


@expand(f"{DOMAIN}::Adam")
def adam(ctx: Expansion) -> list[Value]:
    """``v' = alpha v + (1 - alpha) g``, ``h' = beta h + (1 - beta) g^2``, ``x' = x - r v' / (sqrt h' + epsilon)``.

    After the first step r is ``r sqrt(1 - beta^t) / (1 - alpha^t)``.
    """
    op, alpha, beta = ctx.op, ctx.attribute("alpha", 0.9), ctx.attribute("beta", 0.999)
    rate, count = ctx.x(0), op.cast(ctx.x(1), ctx.x(0).dtype)

    def left(base: float) -> Value:
        """``1 - base^t``."""
        value: Value = 1.0 - op.Pow(op.constant(base, rate.dtype), count)
        return value

    corrected = op.Where(count > 0.0, rate * op.Sqrt(left(beta)) / left(alpha), rate)
    decay = 1.0 - ctx.attribute("norm_coefficient_post", 0.0)
    xs, vs, hs = [], [], []
    for x, g, v, h in _grouped(ctx, 4):
        g = x * ctx.attribute("norm_coefficient", 0.0) + g
        v, h = v * alpha + g * (1 - alpha), h * beta + g * g * (1 - beta)
        xs.append((x - corrected * v / (op.Sqrt(h) + ctx.attribute("epsilon", 1e-6))) * decay)
        vs.append(v)
        hs.append(h)
    return [*xs, *vs, *hs]


@expand(f"{DOMAIN}::Momentum")
def momentum(ctx: Expansion) -> list[Value]:
    """``v' = alpha v + b g``, ``x' = x - r v'``, or ``x - r (g + alpha v')`` by Nesterov; b is 1 in the first step."""
    op, alpha, rate = ctx.op, ctx.attribute("alpha"), ctx.x(0)
    first = op.Greater(ctx.x(1), op.constant(0, ctx.x(1).dtype))
    b = op.Where(first, op.constant(ctx.attribute("beta"), rate.dtype), op.constant(1.0, rate.dtype))
    xs, vs = [], []
    for x, g, v in _grouped(ctx, 3):
        g = x * ctx.attribute("norm_coefficient") + g
        v = v * alpha + g * b
        xs.append(x - rate * (g + v * alpha if ctx.attribute("mode") == "nesterov" else v))
        vs.append(v)
    return [*xs, *vs]


def _grouped(ctx: Expansion, kinds: int) -> list[tuple[Value, ...]]:
    """For each tensor that is optimised, itself, its gradient and its states."""
    n = (ctx.n_inputs - 2) // kinds
    return [tuple(ctx.x(2 + kind * n + k) for kind in range(kinds)) for k in range(n)]
