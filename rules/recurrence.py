"""Loops: the body is differentiated once, and its backward body runs in reverse."""

from __future__ import annotations

from collections.abc import Sequence

from deepshap_ir.extend import Context, Value, rule
from deepshap_ir.recurrence import affected


@rule("deepshap_ir::Scan")
def loop(ctx: Context, m: Sequence[Value | None]) -> list[Value | None]:
    """Multipliers go through the body from the last element to the first.

    The states before each element, at sample and reference, are all that is kept of the forward pass; the body is run
    again at each element. Multipliers of what the body reads from outside are added up.
    """
    op, body = ctx.op, ctx.attribute("body")
    n, q = ctx.attribute("n_states"), ctx.attribute("n_sequences")
    fed = n + q
    varying = [i for i in range(ctx.n_inputs) if ctx.varies(i)]
    inside = affected(ctx.node, varying)
    states, captured = [k for k in range(n) if k in inside], [i for i in varying if i >= fed]
    moving = [i for i in varying if n <= i < fed]

    xs, x0s = [ctx.x(i) for i in range(ctx.n_inputs)], [ctx.x0(i) for i in range(ctx.n_inputs)]
    before = op.states_before(ctx.node, xs)
    before0 = [v0 if k in inside else before[k] for k, v0 in enumerate(op.states_before(ctx.node, x0s))]
    points, points0 = [*before, *xs[n:fed]], [*before0, *x0s[n:fed]]
    stacked = {j: value for j, value in enumerate(m) if j >= n and value is not None}
    sequences = list(dict.fromkeys([*points, *points0, *stacked.values()]))

    def zeros(i: int) -> Value:
        x = ctx.x(i)
        return op.zeros(x.shape[1:] if n <= i < fed else x.shape, x.dtype if x.is_float else op.dtype)

    def backward(sums: list[Value], elements: list[Value]) -> tuple[list[Value], list[Value]]:
        at = dict(zip(sequences, elements, strict=True))
        wanted: list[Value | None] = [None] * len(body.outputs)
        for k, value in zip(states, sums, strict=False):
            wanted[k] = value
        for j, value in stacked.items():
            wanted[j] = at[value]
        found = ctx.backward(body, [*map(at.get, points), *xs[fed:]], [*map(at.get, points0), *x0s[fed:]], wanted)
        given = {i: value for i, value in enumerate(found) if value is not None}
        given |= {i: zeros(i) for i in (*states, *moving, *captured) if i not in given}
        totals = [total + given[i] for i, total in zip(captured, sums[len(states) :], strict=True)]
        return [*(given[k] for k in states), *totals], [given[i] for i in moving]

    last = [zeros(k) if (value := m[k]) is None else value for k in states]
    ends, out = op.scan(backward, [*last, *map(zeros, captured)], sequences, reverse=not ctx.attribute("reverse"))
    result = dict(zip([*states, *captured, *moving], [*ends, *out], strict=True))
    return [result.get(i) for i in range(ctx.n_inputs)]
