"""Einsum: the adjoint is another Einsum; several varying operands are the players of a product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from deepshap_ir.extend import Context, RuleError, Value, rule

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Equation:
    """An Einsum equation with every axis named by a number, ellipses included.

    Attributes
    ----------
    terms : per operand, the labels of its axes; an axis of length 1 that is broadcast has a label of its own.
    result : the labels of the output's axes.
    sizes : label -> length.
    """

    terms: tuple[tuple[int, ...], ...]
    result: tuple[int, ...]
    sizes: dict[int, int]


@rule("Einsum")
def einsum(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """``m_i = integral over t of the adjoint at the other operands' x0 + t (x - x0)``.

    That is exact Shapley, by ``ceil(n/2)`` Gauss-Legendre nodes for n varying operands: one at the midpoint for two.
    """
    equation = parse(ctx.attribute("equation"), [ctx.shape(i) for i in range(ctx.n_inputs)], m[0].shape)
    varying = [i for i in range(ctx.n_inputs) if ctx.varies(i)]
    result: list[Value | None] = [None] * ctx.n_inputs
    for t, weight in gauss_legendre((len(varying) + 1) // 2):
        points = [between(ctx, i, t) for i in range(ctx.n_inputs)]
        for i in varying:
            others: list[Value | None] = [None if i == j else point for j, point in enumerate(points)]
            part = adjoint(equation, i, others, m[0])
            part = part if weight == 1.0 else part * weight
            known = result[i]
            result[i] = part if known is None else known + part
    return result


def gauss_legendre(n: int) -> list[tuple[float, float]]:
    """Nodes and weights on [0, 1], exact for polynomials up to degree ``2 n - 1``."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return [((1.0 + float(t)) / 2, float(w) / 2) for t, w in zip(nodes, weights, strict=True)]


def between(ctx: Context, i: int, t: float) -> Value:
    """Input `i` at ``x0 + t (x - x0)``, scaled per row so that only the sum is per pair."""
    x = ctx.as_float(ctx.x(i))
    return x * t + ctx.as_float(ctx.x0(i)) * (1.0 - t) if ctx.varies(i) else x


def adjoint(equation: Equation, i: int, others: Sequence[Value | None], m: Value) -> Value:
    """The transpose in operand `i` of the map that the `others` (None at `i`) make of it, applied to `m`."""
    operands, terms = [m], [equation.result]
    for term, value in zip(equation.terms, others, strict=True):
        if value is not None:
            operands.append(value)
            terms.append(term)
    fresh = count(max(equation.sizes, default=0) + 1)
    known = {label for term in terms for label in term}
    target: list[int] = []
    for label in equation.terms[i]:
        size = equation.sizes[label]
        if label in target:  # a repeated letter reads a diagonal: its adjoint fills one
            copy = next(fresh)
            operands.append(m.op.constant(np.eye(size), m.dtype))
            terms.append((label, copy))
            target.append(copy)
            continue
        if label not in known:  # a letter of this operand alone is summed over: its adjoint repeats
            operands.append(m.op.constant(np.ones(size), m.dtype))
            terms.append((label,))
        target.append(label)
    letters = _letters([*terms, tuple(target)])
    spelled = ",".join("".join(letters[label] for label in term) for term in terms)
    transposed: Value = m.op.Einsum(*operands, equation=f"{spelled}->{''.join(letters[label] for label in target)}")
    return transposed


def _letters(terms: Sequence[tuple[int, ...]]) -> dict[int, str]:
    labels = list(dict.fromkeys(label for term in terms for label in term))
    if len(labels) > len(LETTERS):
        raise RuleError(f"Einsum over {len(labels)} different axes; at most {len(LETTERS)} can be spelled")
    return dict(zip(labels, LETTERS, strict=False))


def parse(equation: str, shapes: Sequence[tuple[int, ...]], result_shape: tuple[int, ...]) -> Equation:
    """Give every axis a label: letters, axes of an ellipsis counted from its end, and broadcast axes of length 1."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = [c for c in left if c.isalpha()]
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in letters if letters.count(c) == 1))
    named = [_labels(term, len(shape)) for term, shape in zip(terms, shapes, strict=True)]
    result = _labels(right, len(result_shape))
    sizes: dict[int, int] = {}
    for term, shape in zip([*named, result], [*shapes, result_shape], strict=True):
        for label, size in zip(term, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 0)) if size else 0
    fresh = count(max(sizes, default=0) + 1)
    for term, shape in zip(named, shapes, strict=True):
        for position, (label, size) in enumerate(zip(term, shape, strict=True)):
            if size != sizes[label]:
                term[position] = next(fresh)
                sizes[term[position]] = size
    return Equation(tuple(map(tuple, named)), tuple(result), sizes)


def _labels(term: str, rank: int) -> list[int]:
    """Numbers for the letters of a term; 1000 and on for the axes of its ellipsis, from the last one."""
    before, dots, after = term.partition("...")
    labels = [ord(c) for c in before + after]
    if dots:
        labels[len(before) : len(before)] = [1000 + k for k in range(rank - len(labels))][::-1]
    return labels
