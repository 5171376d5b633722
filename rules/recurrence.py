"""Loops: the body is differentiated once, and its backward body runs in reverse."""

from __future__ import annotations

from collections.abc import Sequence

from deepshap_ir.extend import Context, Value, rule


@rule("deepshap_ir::Scan")
def loop(ctx: Context, m: Sequence[Value | None]) -> list[Value | None]:
    """Multipliers go through the body from the last element to the first.

    What the forward pass computed at each element is kept, at sample and reference; where that is too much only the
    states before each element are, and the body is run again. Multipliers of what it reads from outside are added up.
    """
    op, body = ctx.op, ctx.attribute("body")
    n, q = ctx.attribute("n_states"), ctx.attribute("n_sequences")
    fed = n + q
    varying = [i for i in range(ctx.n_inputs) if ctx.varies(i)]
    inside = ctx.moving()
    states, captured = [k for k in range(n) if k in inside], [i for i in varying if i >= fed]
    moving = [i for i in varying if n <= i < fed]

    xs, x0s = [ctx.x(i) for i in range(ctx.n_inputs)], [ctx.x0(i) for i in range(ctx.n_inputs)]
    run, run0 = op.loop(ctx.node, xs), op.loop(ctx.node, x0s)
    before0 = [v0 if k in inside else v for k, (v, v0) in enumerate(zip(run.before, run0.before, strict=True))]
    points, points0 = [*run.before, *xs[n:fed]], [*before0, *x0s[n:fed]]
    stacked = {j: value for j, value in enumerate(m) if j >= n and value is not None}
    kept = [*run.inside.values(), *run0.inside.values()]
    sequences = list(dict.fromkeys([*points, *points0, *stacked.values(), *kept]))

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
        here, here0 = [*(at[v] for v in points), *xs[fed:]], [*(at[v] for v in points0), *x0s[fed:]]
        run.replay(op, body, here, at.__getitem__)
        run0.replay(op, body, here0, at.__getitem__)
        found = ctx.backward(body, here, here0, wanted)
        given = {i: value for i, value in enumerate(found) if value is not None}
        given |= {i: zeros(i) for i in (*states, *moving, *captured) if i not in given}
        totals = [total + given[i] for i, total in zip(captured, sums[len(states) :], strict=True)]
        return [*(given[k] for k in states), *totals], [given[i] for i in moving]

    last = [zeros(k) if (value := m[k]) is None else value for k in states]
    ends, out = op.scan(backward, [*last, *map(zeros, captured)], sequences, reverse=not ctx.attribute("reverse"))
    result = dict(zip([*states, *captured, *moving], [*ends, *out], strict=True))
    return [result.get(i) for i in range(ctx.n_inputs)]
