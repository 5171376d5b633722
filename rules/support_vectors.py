"""Support vector machines of `ai.onnx.ml`, written with operators of the standard but for libsvm's probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepshap_ir.extend import Array, Context, Expansion, RuleError, Value, expand, rule
from deepshap_ir.rules.classical import as_output, floats, label, of_targets, of_two_classes, post_transform, rows
from deepshap_ir.rules.joined import joined
from deepshap_ir.rules.shapley import by_players


@expand("ai.onnx.ml::SVMRegressor")
def svm_regressor(ctx: Expansion) -> Value:
    """``sum_j c_j K(x, s_j) + rho``; of one class its sign."""
    op, x = ctx.op, rows(ctx)
    n, rho = int(ctx.attribute("n_supports", 0)), floats(ctx, "rho")
    weights = op.constant(floats(ctx, "coefficients").reshape(-1, 1), x.dtype)
    score = (_kernels(ctx, x, n) if n else x) @ weights + op.constant(rho[:1], x.dtype)
    if ctx.attribute("one_class", 0):
        score = op.Where(score > 0.0, op.constant(1.0, x.dtype), op.constant(-1.0, x.dtype))
    return as_output(ctx, of_targets(score, ctx.attribute("post_transform", "NONE")))


@expand("ai.onnx.ml::SVMClassifier")
def svm_classifier(ctx: Expansion) -> list[Value | None]:
    """Decision values of all pairs of classes, or the probabilities that libsvm makes of them."""
    op, x = ctx.op, rows(ctx)
    labels = ctx.attribute("classlabels_ints") or ctx.attribute("classlabels_strings") or []
    transform, rho = ctx.attribute("post_transform", "NONE"), floats(ctx, "rho")
    counts = ctx.attribute("vectors_per_class") or []
    n = sum(counts)
    if not n:
        weights = floats(ctx, "coefficients").reshape(max(len(labels), 1), -1)
        scores = x @ op.constant(weights.T, x.dtype) + op.constant(rho[:1], x.dtype)
        return [label(ctx, scores, labels), as_output(ctx, post_transform(scores, transform), 1)]
    weights = floats(ctx, "coefficients").reshape(-1, n)
    scores = _kernels(ctx, x, n) @ op.constant(_by_pairs(weights, counts), x.dtype) + op.constant(rho, x.dtype)
    prob_a, prob_b = floats(ctx, "prob_a"), floats(ctx, "prob_b")
    if prob_a.size:
        certain = op.Sigmoid(-(scores * op.constant(prob_a, x.dtype) + op.constant(prob_b, x.dtype)))
        probabilities = _coupled(ctx, op.Clip(certain, 1e-7, 1 - 1e-7), len(counts))
        return [label(ctx, None, labels), as_output(ctx, post_transform(probabilities, transform), 1)]
    if len(counts) == 2:
        both = of_two_classes(scores, transform, 0.0 if transform == "NONE" else 1.0)
        return [label(ctx, None, labels), as_output(ctx, both, 1)]
    return [label(ctx, None, labels), as_output(ctx, post_transform(scores, transform), 1)]


def _kernels(ctx: Expansion, x: Value, n: int) -> Value:
    """``K(x, s_j)`` for the `n` support vectors, ``[N, n]``.

    The distance is ``|x|^2 - 2 <x, s> + |s|^2``, with the mean support vector as the origin: no tensor is ``[n, F]``.
    """
    op, kind = ctx.op, ctx.attribute("kernel_type", "LINEAR")
    vectors = floats(ctx, "support_vectors").reshape(n, -1)
    gamma, offset, degree = (float(v) for v in (ctx.attribute("kernel_params") or [0.0, 0.0, 3.0]))
    if kind == "RBF":
        origin = vectors.mean(0)
        x, vectors = x - op.constant(origin, x.dtype), vectors - origin
        norms = op.constant((vectors**2).sum(1), x.dtype)
        product = x @ op.constant(vectors.T * 2.0, x.dtype)
        return op.Exp((op.ReduceSum(x * x, [-1]) - product + norms) * -gamma)
    product = x @ op.constant(vectors.T, x.dtype)
    if kind == "LINEAR":
        return product
    scaled = product * gamma + offset
    if kind == "POLY":
        return op.Pow(scaled, op.constant(np.float64(int(degree)), x.dtype))
    if kind == "SIGMOID":
        return op.Tanh(scaled)
    raise RuleError(f"kernel_type {kind!r} is none of LINEAR, POLY, RBF, SIGMOID")


def _by_pairs(weights: Array, counts: Sequence[int]) -> Array:
    """``[V, C (C - 1) / 2]`` from libsvm's ``[C - 1, V]``.

    Of classes i < j row j - 1 holds the coefficients of the vectors of i, and row i those of j.
    """
    ends = np.cumsum([0, *counts])
    columns = []
    for i in range(len(counts)):
        for j in range(i + 1, len(counts)):
            column = np.zeros(weights.shape[1], weights.dtype)
            column[ends[i] : ends[i + 1]] = weights[j - 1, ends[i] : ends[i + 1]]
            column[ends[j] : ends[j + 1]] = weights[i, ends[j] : ends[j + 1]]
            columns.append(column)
    return np.stack(columns, 1)


ITERATIONS = 8
"""Of libsvm's coupling of probabilities, which stops at a tolerance: within 5 in 12,000 random cases."""


def _coupled(ctx: Expansion, certain: Value, n: int) -> Value:
    """``[N, n]`` from the probabilities of all pairs, ``[N, n (n - 1) / 2]``, as one node."""
    if n > 3:
        raise RuleError(
            f"{ctx.node}: the probabilities of {n} classes are coupled by iterations, which have a rule for at most 3; "
            "export the decision values (raw scores) instead"
        )
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    columns = ctx.op.Split(certain, [1] * len(pairs), outputs=len(pairs), axis=-1) if n > 2 else (certain,)
    return joined(ctx.op, "Coupling", list(columns), lambda fed: [_coupling(dict(zip(pairs, fed, strict=True)), n)])


def _coupling(given: dict[tuple[int, int], Value], n: int) -> Value:
    """The probabilities P that best explain those of pairs (Wu, Lin and Weng 2004, second approach)."""
    op = given[0, 1].op
    r = {(i, j): given[i, j] if i < j else 1.0 - given[j, i] for i in range(n) for j in range(n) if i != j}
    q = {(i, j): -(r[j, i] * r[i, j]) for i, j in r}
    for t in range(n):
        q[t, t] = _total([r[j, t] * r[j, t] for j in range(n) if j != t])
    p = [op.Add(r[0, 1] * 0.0, 1.0 / n) for _ in range(n)]
    for _ in range(ITERATIONS):
        before = p
        slope = [_total([q[t, j] * p[j] for j in range(n)]) for t in range(n)]
        energy = _total([p[t] * slope[t] for t in range(n)])
        errors = [abs(s - energy) for s in slope]
        done = op.Less(op.Max(*errors), 0.005 / n)
        for t in range(n):
            step = (energy - slope[t]) / q[t, t]
            scale = 1.0 / (1.0 + step)
            energy = (energy + step * (step * q[t, t] + slope[t] * 2.0)) * scale * scale
            slope = [(slope[j] + step * q[t, j]) * scale for j in range(n)]
            p = [(p[j] + step if j == t else p[j]) * scale for j in range(n)]
        p = [op.Where(done, old, new) for old, new in zip(before, p, strict=True)]
    return op.Concat(*p, axis=-1)


def _total(terms: Sequence[Value]) -> Value:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@rule("deepshap_ir::Coupling")
def coupling(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """The Shapley values of the probabilities of pairs."""
    return by_players(ctx, m[0])
