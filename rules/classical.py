"""`ai.onnx.ml` without its trees, written with operators of the standard.

Where the text of the standard leaves a choice, the functions are those of onnxruntime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deepshap_ir.extend import Array, Context, Emitter, Expansion, Graph, Node, RuleError, Value, expand, rule
from deepshap_ir.rules.shapley import by_players, quotient


def post_transform(scores: Value, name: str) -> Value:
    """`scores`, ``[N, C]``, as NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO or PROBIT."""
    op = scores.op
    if name == "NONE":
        return scores
    if name == "SOFTMAX":
        return op.Softmax(scores, axis=-1)
    if name == "LOGISTIC":
        return op.Sigmoid(scores)
    if name == "SOFTMAX_ZERO":
        return _softmax_zero(scores)
    if name == "PROBIT":
        return _probit(scores)
    raise RuleError(f"post_transform {name!r} is none of NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO, PROBIT")


def of_targets(scores: Value, name: str) -> Value:
    """`post_transform`, but of a single target PROBIT alone, as onnxruntime has it."""
    return scores if scores.shape[-1] == 1 and name != "PROBIT" else post_transform(scores, name)


def of_two_classes(score: Value, name: str, rest: float = 1.0) -> Value:
    """The scores ``[N, 2]`` of two classes from that of the second: the other gets what is left of `rest`.

    onnxruntime does so for every transform but LOGISTIC, which it takes of the negative and of the score.
    """
    op = score.op
    if name == "LOGISTIC":
        return op.Sigmoid(op.Concat(-score, score, axis=-1))
    if name == "PROBIT":
        raise RuleError("PROBIT of a single score for two classes has no second column in onnxruntime")
    return op.Concat(rest - score, score, axis=-1)


def _softmax_zero(scores: Value) -> Value:
    """Softmax in which a score of 0 has the probability 0."""
    op = scores.op
    raised = op.Exp(scores - op.ReduceMax(scores, [-1]))
    kept = op.Where(abs(scores) > 1e-7, raised, op.zeros((1,), scores.dtype))
    return kept / op.ReduceSum(kept, [-1])


def _probit(scores: Value) -> Value:
    """``sqrt(2) erfinv(2 p - 1)``, by the approximation of onnxruntime (Winitzki's, with a = 0.147)."""
    op = scores.op
    u = scores * 2.0 - 1.0
    log = op.Log((1.0 - u) * (1.0 + u))
    v = log * 0.5 + 2.0 / (math.pi * 0.147)
    size: Value = op.Sqrt(op.Sqrt(v * v - log * (1.0 / 0.147)) - v)
    return op.Where(u < 0.0, -size, size) * 1.41421356


def _floats(ctx: Expansion, name: str) -> Array:
    """An attribute of floats, which are float32, in the dtype of the program."""
    return np.array(ctx.attribute(name, []), np.float32).astype(ctx.dtype)


def _input(ctx: Expansion, i: int = 0) -> Value:
    """Input `i` as floating-point numbers."""
    x = ctx.x(i)
    return x if x.is_float else ctx.op.cast(x, ctx.op.dtype)


def _rows(ctx: Expansion) -> Value:
    """The input as floating-point rows ``[N, F]``."""
    x = _input(ctx)
    return ctx.op.Reshape(x, [1, -1]) if x.rank == 1 else x


def as_output(ctx: Expansion, value: Value, j: int = 0) -> Value:
    """`value` in shape and dtype of output `j`."""
    name = ctx.node.outputs[j] if j < len(ctx.node.outputs) else ""
    if not name:
        return value
    shape = ctx.graph.shapes[name]
    value = value if value.shape == shape else ctx.op.Reshape(value, list(shape))
    return ctx.op.cast(value, ctx.graph.dtypes[name])


def label(ctx: Expansion, scores: Value | None, labels: Sequence[Any]) -> Value | None:
    """Output 0, the class of the highest of `scores`, where it is wanted.

    Raises
    ------
    RuleError : it is wanted, and no number or not the class of the highest score.
    """
    if not ctx.wanted(0):
        return None
    if scores is None or not labels or isinstance(labels[0], str):
        raise RuleError(
            f"{ctx.node}: its labels cannot be explained; explain its scores (output={ctx.node.outputs[-1]!r})"
        )
    found = ctx.op.Gather(ctx.op.constant(np.array(labels, np.int64)), ctx.op.ArgMax(scores, axis=-1, keepdims=0))
    return as_output(ctx, found, 0)


@expand("ai.onnx.ml::Scaler")
def scaler(ctx: Expansion) -> Value:
    """``(x - offset) scale``."""
    return as_output(ctx, (_input(ctx) - _floats(ctx, "offset")) * _floats(ctx, "scale"))


@expand("ai.onnx.ml::Normalizer")
def normalizer(ctx: Expansion) -> Value:
    """Divided by the largest, the sum of magnitudes, or the root of the sum of squares, of a row."""
    op, x = ctx.op, _input(ctx)
    norm = ctx.attribute("norm", "MAX")
    if norm == "MAX":
        size = op.ReduceMax(x, [-1])
    elif norm == "L1":
        size = op.ReduceL1(x, [-1])
    else:
        return as_output(ctx, op.LpNormalization(x, axis=-1, p=2))
    return as_output(ctx, x / size)


@expand("ai.onnx.ml::LinearRegressor")
def linear_regressor(ctx: Expansion) -> Value:
    """``x W^T + b``."""
    x, targets = _rows(ctx), int(ctx.attribute("targets", 1))
    return as_output(ctx, of_targets(_affine(ctx, x, targets), ctx.attribute("post_transform", "NONE")))


@expand("ai.onnx.ml::LinearClassifier")
def linear_classifier(ctx: Expansion) -> list[Value | None]:
    """``x W^T + b``; one row of weights may stand for two classes."""
    x = _rows(ctx)
    labels = ctx.attribute("classlabels_ints") or ctx.attribute("classlabels_strings") or []
    n = len(_floats(ctx, "coefficients")) // x.shape[-1]
    scores, transform = _affine(ctx, x, n), ctx.attribute("post_transform", "NONE")
    if n == 1 and len(labels) == 2:
        known = ctx.op.Concat(-scores, scores, axis=-1)
        return [label(ctx, known, labels), as_output(ctx, of_two_classes(scores, transform), 1)]
    return [label(ctx, scores, labels), as_output(ctx, post_transform(scores, transform), 1)]


def _affine(ctx: Expansion, x: Value, n: int) -> Value:
    product = x @ ctx.op.constant(_floats(ctx, "coefficients").reshape(n, -1).T, x.dtype)
    intercepts = _floats(ctx, "intercepts")
    return product + ctx.op.constant(intercepts, x.dtype) if intercepts.size else product


@expand("ai.onnx.ml::FeatureVectorizer")
def feature_vectorizer(ctx: Expansion) -> Value:
    """The inputs side by side, each cut or filled up with zeros to its dimension."""
    op, parts = ctx.op, []
    for i, width in enumerate(ctx.attribute("inputdimensions")):
        x = _input(ctx, i)
        x = op.Reshape(x, [-1, 1]) if x.rank == 1 else x
        if x.shape[1] > width:
            x = op.Slice(x, [0], [width], [1])
        elif x.shape[1] < width:
            x = op.Concat(x, op.zeros((x.shape[0], width - x.shape[1]), x.dtype), axis=1)
        parts.append(op.cast(x, ctx.dtype))
    return as_output(ctx, parts[0] if len(parts) == 1 else op.Concat(*parts, axis=1))


@expand("ai.onnx.ml::Binarizer")
def binarizer(ctx: Expansion) -> Value:
    """1 above the threshold, else 0."""
    x = ctx.x()
    threshold = ctx.op.constant(np.float32(ctx.attribute("threshold", 0.0)), x.dtype)
    return ctx.op.cast(ctx.op.Greater(x, threshold), x.dtype)


@expand("ai.onnx.ml::OneHotEncoder")
def one_hot_encoder(ctx: Expansion) -> Value:
    """1 where the number is the category."""
    op, x, categories = ctx.op, ctx.x(), ctx.attribute("cats_int64s")
    if not categories:
        raise RuleError(f"{ctx.node}: its categories are strings, which have no delta")
    x = op.cast(x, np.int64) if x.is_float else x
    equal = op.Equal(op.Unsqueeze(x, [-1]), op.constant(np.array(categories, x.dtype)))
    return as_output(ctx, op.cast(equal, np.float32))


@expand("ai.onnx.ml::ArrayFeatureExtractor")
def array_feature_extractor(ctx: Expansion) -> Value:
    """Elements of the last axis."""
    indices = ctx.constant(1)
    if indices is None:
        raise RuleError(f"{ctx.node}: its indices are computed from a model input; only fixed indices are supported")
    return as_output(ctx, ctx.op.Gather(ctx.x(), ctx.op.constant(indices.reshape(-1)), axis=-1))


@expand("ai.onnx.ml::LabelEncoder")
def label_encoder(ctx: Expansion) -> Value:
    """A table from numbers to numbers, as a sum of steps."""
    op, x = ctx.op, ctx.x()
    keys = _table(ctx, "keys")
    values = _table(ctx, "values")
    if keys is None or values is None:
        raise RuleError(f"{ctx.node}: it reads or gives strings, which have no delta")
    suffix = "float" if values.dtype.kind == "f" else "int64"
    default = ctx.attribute("default_tensor", ctx.attribute(f"default_{suffix}", -0.0 if suffix == "float" else -1))
    default = np.asarray(default).reshape(())
    known = op.Equal(op.Unsqueeze(x, [-1]), op.constant(keys.astype(x.dtype)))
    change = op.constant((values - default).astype(op.dtype))
    total = op.ReduceSum(op.Where(known, change, op.zeros((1,), op.dtype)), [-1], keepdims=0)
    return as_output(ctx, total + float(default))


def _table(ctx: Expansion, side: str) -> Array | None:
    for suffix, dtype in (("floats", np.float32), ("int64s", np.int64)):
        if ctx.attribute(f"{side}_{suffix}"):
            return np.array(ctx.attribute(f"{side}_{suffix}"), dtype)
    tensor = ctx.attribute(f"{side}_tensor")
    return None if tensor is None or np.asarray(tensor).dtype.kind not in "fiu" else np.asarray(tensor)


@expand("ai.onnx.ml::Imputer")
def imputer(ctx: Expansion) -> Value:
    """Another value where the input is NaN, or a given number; one function of one number."""
    x = ctx.x()
    kind = "floats" if ctx.attribute("imputed_value_floats") else "int64s"
    values = np.array(ctx.attribute(f"imputed_value_{kind}")).astype(x.dtype)
    replaced = ctx.attribute("replaced_value_float" if kind == "floats" else "replaced_value_int64", 0)

    def impute(fed: Sequence[Value]) -> list[Value]:
        op, x = fed[0].op, fed[0]
        absent = op.IsNaN(x) if np.isnan(replaced) else op.Equal(x, op.constant(np.array(replaced, x.dtype)))
        return [op.Where(absent, op.constant(values), x)]

    return joined(ctx.op, "Imputer", [x], impute)


@rule("deepshap_ir::Imputer")
def imputed(ctx: Context, m: Sequence[Value]) -> Value:
    """The secant; 1 at zero delta."""
    return m[0] * quotient(ctx.delta_y(), ctx.delta_x(), ctx.op.constant(1.0, ctx.dtype))


@expand("ai.onnx.ml::SVMRegressor")
def svm_regressor(ctx: Expansion) -> Value:
    """``sum_j c_j K(x, s_j) + rho``; of one class its sign."""
    op, x = ctx.op, _rows(ctx)
    n, rho = int(ctx.attribute("n_supports", 0)), _floats(ctx, "rho")
    weights = op.constant(_floats(ctx, "coefficients").reshape(-1, 1), x.dtype)
    score = (_kernels(ctx, x, n) if n else x) @ weights + op.constant(rho[:1], x.dtype)
    if ctx.attribute("one_class", 0):
        score = op.Where(score > 0.0, op.constant(1.0, x.dtype), op.constant(-1.0, x.dtype))
    return as_output(ctx, of_targets(score, ctx.attribute("post_transform", "NONE")))


@expand("ai.onnx.ml::SVMClassifier")
def svm_classifier(ctx: Expansion) -> list[Value | None]:
    """Decision values of all pairs of classes, or the probabilities that libsvm makes of them."""
    op, x = ctx.op, _rows(ctx)
    labels = ctx.attribute("classlabels_ints") or ctx.attribute("classlabels_strings") or []
    transform, rho = ctx.attribute("post_transform", "NONE"), _floats(ctx, "rho")
    counts = ctx.attribute("vectors_per_class") or []
    n = sum(counts)
    if not n:
        weights = _floats(ctx, "coefficients").reshape(max(len(labels), 1), -1)
        scores = x @ op.constant(weights.T, x.dtype) + op.constant(rho[:1], x.dtype)
        return [label(ctx, scores, labels), as_output(ctx, post_transform(scores, transform), 1)]
    weights = _floats(ctx, "coefficients").reshape(-1, n)
    scores = _kernels(ctx, x, n) @ op.constant(_by_pairs(weights, counts), x.dtype) + op.constant(rho, x.dtype)
    prob_a, prob_b = _floats(ctx, "prob_a"), _floats(ctx, "prob_b")
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
    vectors = _floats(ctx, "support_vectors").reshape(n, -1)
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
"""Of libsvm's coupling of probabilities; it stops after at most 5, at a tolerance."""


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


def joined(
    op: Emitter, name: str, inputs: Sequence[Value], body: Callable[[list[Value]], list[Value]], **attributes: Any
) -> Value:
    """Emit what `body` makes of `inputs` as one node ``deepshap_ir::name``, for a rule of its own; its first output."""
    inner = Emitter(op.opsets, op.dtype)
    fed = [inner.input(f"x{k}", v.shape, v.dtype, ["sample"]) for k, v in enumerate(inputs)]
    results = body(fed)
    types = [(v.shape, v.dtype) for v in results]
    given = {"body": _as_graph(inner, fed, results), **attributes}
    return op.emit(name, "deepshap_ir", inputs, given, len(results), types)[0]


def _as_graph(op: Emitter, inputs: Sequence[Value], results: Sequence[Value]) -> Graph:
    """The recorded steps as a graph."""
    nodes = [
        Node(
            f"{step.op_type}_{k}",
            step.op_type,
            tuple(v.name if v is not None else "" for v in step.inputs),
            tuple(v.name for v in step.outputs),
            step.attributes,
            step.domain,
            op.opsets[""],
        )
        for k, step in enumerate(op.steps)
    ]
    every = {v.name: v for step in op.steps for v in (*step.inputs, *step.outputs) if v is not None}
    every |= {v.name: v for v in (*inputs, *results)}
    return Graph(
        tuple(v.name for v in inputs),
        tuple(v.name for v in results),
        tuple(nodes),
        {n: v.data for n, v in every.items() if v.data is not None},
        {n: v.shape for n, v in every.items()},
        {n: v.dtype for n, v in every.items()},
        {},
        op.opsets,
    )
