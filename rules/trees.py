"""Tree ensembles by exact interventional TreeSHAP, for every (sample, reference) pair.

For one leaf of value v let U be the features whose conditions on its path the sample meets and the reference does not,
V the reverse. A leaf with a condition that neither meets gives nothing to anyone; any other gives

``v (|U| - 1)! |V|! / (|U| + |V|)!`` to each of U and ``-v |U|! (|V| - 1)! / (|U| + |V|)!`` to each of V.

Of a leaf in reach, U are all conditions that the reference violates, and V all that the sample violates. So the
violations of each row, bits of an integer, say by one bitwise And whether a leaf is in reach of a pair; the weights are
``integral of t^(|U|-1) (1-t)^|V| dt``, to which Gauss-Legendre nodes give the exact value as a sum of products of a
number of the sample and one of the reference; and two products with the rows' own matrices of violations sum them over
the leaves.

Lundberg et al. 2020 (Nature Machine Intelligence 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepshap_ir.extend import Array, Context, Expansion, RuleError, Value, expand, rule
from deepshap_ir.rules.classical import as_output, label, of_targets, of_two_classes
from deepshap_ir.rules.einsum import gauss_legendre
from deepshap_ir.rules.joined import joined
from deepshap_ir.rules.shapley import quotient
from deepshap_ir.rules.tree_tables import MODES, Forest, Leaf, forest_by_ids, forest_by_position

BITS = 24
"""Conditions per integer: as many as float32 adds up exactly."""

LEAVES = 512
"""Leaves in one piece of the ensemble, of large ensembles more."""


@dataclass(frozen=True)
class Piece:
    """Leaves that are computed together.

    Attributes
    ----------
    literals : ``[L, S, J]``: places in "violations of the tests, of their opposites, and 0".
    slots : ``[L, F']``: for each of the features the place of its slot in ``[L S, 0]``.
    values : ``[L, T']``: what the leaves add to each of the targets.
    features, targets : ``[F']``, ``[T']``: which they are.
    """

    literals: Array
    slots: Array
    values: Array
    features: Array
    targets: Array

    @property
    def conditions(self) -> int:
        """S, the most conditions of a leaf."""
        return int(self.literals.shape[1])

    @property
    def words(self) -> int:
        """Integers per leaf."""
        return -(-self.conditions // BITS)


@expand("ai.onnx.ml::TreeEnsembleRegressor")
def tree_ensemble_regressor(ctx: Expansion) -> Value:
    """Sums over the trees, or the extreme tree, plus base values."""
    attributes = ctx.node.attributes
    forest = forest_by_ids(attributes, "target", int(ctx.attribute("n_targets", 1)))
    scores = _aggregated(ctx, forest, ctx.attribute("aggregate_function", "SUM"))
    scores = _plus_base(ctx, scores)
    return as_output(ctx, of_targets(scores, ctx.attribute("post_transform", "NONE")), 0)


@expand("ai.onnx.ml::TreeEnsemble")
def tree_ensemble(ctx: Expansion) -> Value:
    """The operator of version 5, whose attributes are numbers."""
    forest = forest_by_position(ctx.node.attributes)
    aggregate = ("AVERAGE", "SUM", "MIN", "MAX")[int(ctx.attribute("aggregate_function", 1))]
    transform = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")[int(ctx.attribute("post_transform", 0))]
    return as_output(ctx, of_targets(_aggregated(ctx, forest, aggregate), transform), 0)


@expand("ai.onnx.ml::TreeEnsembleClassifier")
def tree_ensemble_classifier(ctx: Expansion) -> list[Value | None]:
    """Sums per class. Trees that know one of two classes give the other what is left of 1.

    Or, where a weight is negative, of 0: that is what onnxruntime does.
    """
    labels = ctx.attribute("classlabels_int64s") or ctx.attribute("classlabels_strings") or []
    forest = forest_by_ids(ctx.node.attributes, "class", len(labels))
    transform, n_base = ctx.attribute("post_transform", "NONE"), _base(ctx).size
    classes = {t for leaf in forest.leaves for t in leaf.weights}
    if len(labels) == 2 and classes == {0} and n_base < 2:
        rest = 1.0 if all(w >= 0 for leaf in forest.leaves for ws in leaf.weights.values() for w in ws) else 0.0
        score = _plus_base(ctx, _sums(ctx, Forest(forest.tests, forest.leaves, 1, forest.n_trees)))
        both = of_two_classes(score, transform, rest)
        return [label(ctx, both, labels), as_output(ctx, both, 1)]
    if len(labels) == 2 and not _always_known(forest, 1):
        raise RuleError(
            "which rows have a score for its second class depends on data, and onnxruntime's answer on that"
        )
    scores = _plus_base(ctx, _sums(ctx, forest))
    return [label(ctx, scores, labels), as_output(ctx, of_targets(scores, transform), 1)]


def _always_known(forest: Forest, target: int) -> bool:
    """Whether some tree adds to `target` wherever it ends."""
    unknown = {leaf.tree for leaf in forest.leaves if target not in leaf.weights}
    return len(unknown) < forest.n_trees


def _base(ctx: Expansion) -> Array:
    """The base values, one per target, or one, or none."""
    base = ctx.attribute("base_values_as_tensor")
    if base is None or np.size(base) == 0:
        base = np.array(ctx.attribute("base_values", []), np.float32)
    return np.asarray(base).reshape(-1)


def _plus_base(ctx: Expansion, scores: Value) -> Value:
    base = _base(ctx)
    return scores + ctx.op.constant(base, scores.dtype) if base.size else scores


def _aggregated(ctx: Expansion, forest: Forest, aggregate: str) -> Value:
    """``[N, T]``: the targets of all trees together."""
    if aggregate == "SUM":
        return _sums(ctx, forest)
    if aggregate == "AVERAGE":
        return _sums(ctx, forest) * (1.0 / forest.n_trees)
    extreme = {"MIN": min, "MAX": max}[aggregate]
    for leaf in forest.leaves:
        leaf.weights = {t: [extreme(ws)] for t, ws in leaf.weights.items()}
    known = [[{t in leaf.weights for leaf in forest.leaves if leaf.tree == k} for k in range(forest.n_trees)]
             for t in range(forest.n_targets)]  # fmt: skip
    if any(len(some) > 1 for row in known for some in row):
        raise RuleError(f"{ctx.node}: {aggregate} over trees some of whose leaves do not know a target")
    each = _sums(ctx, forest.by_tree())
    columns = []
    for t, row in enumerate(known):
        places = [t * forest.n_trees + k for k, some in enumerate(row) if some == {True}]
        trees = ctx.op.Gather(each, ctx.op.constant(np.array(places, np.int64)), axis=-1)
        reduce = ctx.op.ReduceMin if aggregate == "MIN" else ctx.op.ReduceMax
        columns.append(reduce(trees, [-1], keepdims=1))
    return columns[0] if len(columns) == 1 else ctx.op.Concat(*columns, axis=-1)


def _sums(ctx: Expansion, forest: Forest) -> Value:
    """The ensemble as one node: its program gives the sums ``[N, T]`` and what the rule needs of a row.

    A single row has no N there: products of matrices that have a dimension of 1 less take half the time.
    """
    op, x = ctx.op, ctx.x()
    x = x if x.is_float else op.cast(x, op.dtype)
    n = 1 if x.rank == 1 else x.shape[0]
    pieces = cut(forest)
    if not pieces:
        return op.Expand(op.constant(_constant(forest), x.dtype), [n, forest.n_targets])
    x = op.Reshape(x, [-1]) if n == 1 else x
    total = joined(op, "Trees", [x], lambda fed: program(fed[0], forest, pieces), pieces=tuple(pieces))
    return op.Reshape(total, [1, -1]) if n == 1 else total


def cut(forest: Forest) -> list[Piece]:
    """The leaves in pieces: those that add to the same targets, and have as many words, together."""
    groups: dict[Any, list[tuple[Leaf, dict[int, list[tuple[int, bool]]]]]] = {}
    for leaf in forest.leaves:
        if leaf.path and any(any(ws) for ws in leaf.weights.values()):
            slots = forest.slots(leaf)
            key = (tuple(sorted(leaf.weights)), -(-len(slots) // BITS))
            groups.setdefault(key, []).append((leaf, slots))
    size = max(LEAVES, len(forest.leaves) // 64)
    pieces = []
    for targets, _ in groups:
        members = groups[targets, _]
        count = -(-len(members) // size)
        for part in np.array_split(np.arange(len(members)), count):
            pieces.append(_piece(forest, [members[k] for k in part], targets))
    return pieces


def _constant(forest: Forest) -> Array:
    """``[T]``: what trees of a single leaf give."""
    total = np.zeros(forest.n_targets)
    for leaf in forest.leaves:
        for t, weights in leaf.weights.items():
            total[t] += 0.0 if leaf.path else sum(weights)
    return total


def _piece(
    forest: Forest, leaves: Sequence[tuple[Leaf, dict[int, list[tuple[int, bool]]]]], targets: Sequence[int]
) -> Piece:
    n = len(forest.tests)
    features = sorted({f for _, slots in leaves for f in slots})
    s = max((len(slots) for _, slots in leaves), default=0)
    s = s if s <= BITS else -(-s // BITS) * BITS
    j = max((len(found) for _, slots in leaves for found in slots.values()), default=1)
    literals = np.full((len(leaves), s, j), 2 * n, np.int64)
    places = np.full((len(leaves), len(features)), len(leaves) * s, np.int64)
    values = np.zeros((len(leaves), len(targets)))
    for row, (leaf, slots) in enumerate(leaves):
        for k, (feature, found) in enumerate(slots.items()):
            literals[row, k] = found[0][0] + (0 if found[0][1] else n)
            literals[row, k, : len(found)] = [number + (0 if holds else n) for number, holds in found]
            places[row, features.index(feature)] = row * s + k
        values[row] = [sum(leaf.weights[t]) for t in targets]
    return Piece(literals, places, values, np.array(features, np.int64), np.array(targets, np.int64))


def program(x: Value, forest: Forest, pieces: Sequence[Piece]) -> list[Value]:
    """From rows ``[..., F]`` the sums ``[..., T]``, and what the rule needs of each piece.

    That is the violations as bits, ``[..., L, words]``, their number, ``[..., L]``, and by feature, ``[..., L, F']``;
    the last times the leaves' values where these have one target.
    """
    op, rows = x.op, list(x.shape[:-1])
    total = op.constant(_constant(forest), x.dtype)
    found: list[Value] = []
    violated, zero = _violations(x, forest), op.zeros((*rows, 1), x.dtype)
    both = op.Concat(violated, 1.0 - violated, zero, axis=-1)
    for piece in pieces:
        leaves, s, _ = piece.literals.shape
        values = op.constant(piece.values, x.dtype)
        each = op.ReduceMax(op.Gather(both, op.constant(piece.literals), axis=-1), [-1], keepdims=0)
        bits = min(s, BITS)
        power = op.constant(2.0 ** np.arange(bits), x.dtype)
        code = op.cast(op.MatMul(op.Reshape(each, [*rows, leaves, piece.words, bits]), power), np.int32)
        count = op.ReduceSum(each, [-1], keepdims=0)
        reached = op.cast(op.Equal(count, 0.0), x.dtype)
        total = total + _spread(reached @ values, piece.targets, forest.n_targets)
        with_zero = op.Concat(op.Reshape(each, [*rows, leaves * s]), zero, axis=-1)
        by_feature = op.Gather(with_zero, op.constant(piece.slots), axis=-1)
        found += [code, count, by_feature * values if len(piece.targets) == 1 else by_feature]
    return [total, *found]


def _violations(x: Value, forest: Forest) -> Value:
    """``[N, tests]``: 1 where a test fails, else 0."""
    op = x.op
    columns = []
    for mode in MODES:
        tests = [test for test in forest.tests if test[0] == mode]
        if not tests:
            continue
        value = op.Gather(x, op.constant(np.array([feature for _, feature, _, _ in tests], np.int64)), axis=-1)
        if mode == "BRANCH_MEMBER":
            sets = [np.atleast_1d(np.array(members, np.float64)) for _, _, members, _ in tests]
            table = np.full((len(sets), max(map(len, sets), default=1)), np.nan)
            for row, members in zip(table, sets, strict=True):
                row[: len(members)] = members
            equal = op.Equal(op.Unsqueeze(value, [-1]), op.constant(table, x.dtype))
            passed = op.ReduceMax(op.cast(equal, x.dtype), [-1], keepdims=0) > 0.0
        else:
            passed = _compare(mode, value, op.constant(np.array([number for _, _, number, _ in tests]), x.dtype))
        missing = np.array([nan for _, _, _, nan in tests])
        if missing.any():
            passed = op.Or(passed, op.And(op.IsNaN(value), op.constant(missing)))
        columns.append(1.0 - op.cast(passed, x.dtype))
    return columns[0] if len(columns) == 1 else op.Concat(*columns, axis=-1)


def _compare(mode: str, x: Value, number: Value) -> Value:
    op = x.op
    if mode == "BRANCH_NEQ":
        return op.Not(op.Equal(x, number))
    name = {"LEQ": "LessOrEqual", "LT": "Less", "GTE": "GreaterOrEqual", "GT": "Greater", "EQ": "Equal"}
    return op.call(name[mode.removeprefix("BRANCH_")], x, number)


def _spread(columns: Value, places: Array, n: int) -> Value:
    """``[..., n]`` with `columns` at `places`, and 0 elsewhere."""
    if len(places) == n and (places == np.arange(n)).all():
        return columns
    chosen = np.zeros((len(places), n))
    chosen[np.arange(len(places)), places] = 1.0
    return columns @ columns.op.constant(chosen, columns.dtype)


@rule("deepshap_ir::Trees")
def interventional(ctx: Context, m: Sequence[Value]) -> Value:
    """``m_f = sum over targets t of m_t phi_tf / (x_f - x0_f)``."""
    op, (*rows, n_features), n_targets = ctx.op, ctx.shape(), m[0].shape[-1]
    parts: list[Value] = []
    by_target: dict[int, Value] = {}
    for k, piece in enumerate(ctx.attribute("pieces")):
        code, count, violated = (ctx.y(1 + 3 * k + i) for i in range(3))
        code0, count0, violated0 = (ctx.y0(1 + 3 * k + i) for i in range(3))
        gain, loss = _weights(piece.conditions, op.BitwiseAnd(code, code0), count, count0)
        letters = "n" if rows else ""
        term = f"{letters}l,{letters}lf->{letters}f"
        if len(piece.targets) > 1:
            values = op.constant(piece.values.T, ctx.dtype)
            gain, loss = op.Unsqueeze(gain, [-2]) * values, op.Unsqueeze(loss, [-2]) * values
            term = f"{letters}tl,{letters}lf->{letters}tf"
        phi = op.Einsum(gain, violated0, equation=term) - op.Einsum(loss, violated, equation=term)
        phi = _spread(phi, piece.features, n_features)
        if len(piece.targets) > 1:
            chosen = np.eye(n_targets)[:, piece.targets]
            parts.append(phi if len(piece.targets) == n_targets else op.constant(chosen, ctx.dtype) @ phi)
        else:
            t = int(piece.targets[0])
            by_target[t] = by_target[t] + phi if t in by_target else phi
    if by_target:
        zero = op.zeros((*rows, n_features), ctx.dtype)
        stacked = [op.Unsqueeze(by_target.get(t, zero), [-2]) for t in range(n_targets)]
        parts.append(stacked[0] if n_targets == 1 else op.Concat(*stacked, axis=-2))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    secants = quotient(total, op.Unsqueeze(ctx.delta_x(), [-2]))
    if n_targets == 1:
        return m[0] * op.Squeeze(secants, [-2])
    return op.Squeeze(op.Unsqueeze(m[0], [-2]) @ secants, [-2])


def _weights(conditions: int, common: Value, v: Value, u: Value) -> tuple[Value, Value]:
    """What a leaf gives to each of U and takes from each of V, ``[..., L]``, from the violations in common."""
    op = v.op
    common = op.Squeeze(common, [-1]) if common.shape[-1] == 1 else op.ReduceMax(common, [-1], keepdims=0)
    in_reach = op.cast(op.Equal(common, op.constant(0, np.int32)), v.dtype)
    gain, loss = op.constant(0.0, v.dtype), op.constant(0.0, v.dtype)
    for k, (t, weight) in enumerate(gauss_legendre((conditions + 1) // 2)):
        log_t, log_rest, log_weight = math.log(t), math.log(1.0 - t), math.log(weight)
        more = op.Exp(v * log_rest) * op.Exp((u - 1.0) * log_t + log_weight)
        less = op.Exp((v - 1.0) * log_rest) * op.Exp(u * log_t + log_weight)
        gain, loss = (gain + more, loss + less) if k else (more, less)
    return gain * in_reach, loss * in_reach
