"""Loops: the body is differentiated once, and its backward body runs in reverse."""

from __future__ import annotations

from collections.abc import Sequence

from deepshap_ir.extend import Context, Value, rule


@rule("deepshap_ir::Scan")
def loop(ctx: Context, m: Sequence[Value | None]) -> list[Value | None]:
    """Multipliers go through the body from the last element to the first.

    The states before each element, at sample and reference, are all that is kept of the forward pass; the body is run
    again at each element. Multipliers of what the body reads from outside are added up.
    """
    op, body = ctx.op, ctx.attribute("body")
    n, q = ctx.attribute("n_states"), ctx.attribute("n_sequences")
    xs, x0s = [ctx.x(i) for i in range(ctx.n_inputs)], [ctx.x0(i) for i in range(ctx.n_inputs)]
    before, before0 = op.states_before(ctx.node, xs), op.states_before(ctx.node, x0s)
    length = xs[n].shape[0]

    def reverse(value: Value) -> Value:
        return op.Slice(value, [-1], [-length - 1], [0], [-1])

    def pairs(a: Sequence[Value], b: Sequence[Value]) -> list[tuple[Value, Value]]:
        reversed_a = [reverse(v) for v in a]
        return [(r, r if u is v else reverse(v)) for r, u, v in zip(reversed_a, a, b, strict=True)]

    points = pairs([*before, *xs[n : n + q]], [*before0, *x0s[n : n + q]])
    stacked = [(j, reverse(value)) for j, value in enumerate(m) if j >= n and value is not None]
    captured = [i for i in range(n + q, ctx.n_inputs) if ctx.varies(i)]
    sequences = list(dict.fromkeys([*(v for pair in points for v in pair), *(v for _, v in stacked)]))
    zeros = [op.zeros(ctx.shape(i)) for i in range(ctx.n_inputs)]

    def backward(states: list[Value], elements: list[Value]) -> tuple[list[Value], list[Value]]:
        at = dict(zip(sequences, elements, strict=True))
        inside = [at[a] for a, _ in points] + xs[n + q :]
        inside0 = [at[b] for _, b in points] + x0s[n + q :]
        outputs: list[Value | None] = [*states[:n], *[None] * (len(body.outputs) - n)]
        for j, value in stacked:
            outputs[j] = at[value]
        found = ctx.backward(body, inside, inside0, outputs)
        given = [
            z if v is None else v for v, z in zip(found, [*zeros[:n], *element_zeros, *zeros[n + q :]], strict=True)
        ]
        sums = [total + given[i] for total, i in zip(states[n:], captured, strict=True)]
        return [*given[:n], *sums], given[n : n + q]

    element_zeros = [op.zeros(ctx.shape(i)[1:]) for i in range(n, n + q)]
    last = [zero if given is None else given for zero, given in zip(zeros, m[:n], strict=False)]
    found, out = op.scan(backward, [*last, *(zeros[i] for i in captured)], sequences)
    by_captured = dict(zip(captured, found[n:], strict=True))
    return [*found[:n], *(reverse(v) for v in out), *(by_captured.get(i) for i in range(n + q, ctx.n_inputs))]
