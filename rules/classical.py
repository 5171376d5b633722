"""`ai.onnx.ml` without its trees, written with operators of the standard.

Where the text of the standard leaves a choice, the functions are those of onnxruntime.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepshap_ir.extend import Array, Context, Expansion, RuleError, Value, expand, rule
from deepshap_ir.rules.joined import joined
from deepshap_ir.rules.shapley import quotient


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


def floats(ctx: Expansion, name: str) -> Array:
    """An attribute of floats, which are float32, in the dtype of the program."""
    return np.array(ctx.attribute(name, []), np.float32).astype(ctx.dtype)


def _input(ctx: Expansion, i: int = 0) -> Value:
    """Input `i` as floating-point numbers."""
    x = ctx.x(i)
    return x if x.is_float else ctx.op.cast(x, ctx.op.dtype)


def rows(ctx: Expansion) -> Value:
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
    return as_output(ctx, (_input(ctx) - floats(ctx, "offset")) * floats(ctx, "scale"))


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
    x, targets = rows(ctx), int(ctx.attribute("targets", 1))
    return as_output(ctx, of_targets(_affine(ctx, x, targets), ctx.attribute("post_transform", "NONE")))


@expand("ai.onnx.ml::LinearClassifier")
def linear_classifier(ctx: Expansion) -> list[Value | None]:
    """``x W^T + b``; one row of weights may stand for two classes."""
    x = rows(ctx)
    labels = ctx.attribute("classlabels_ints") or ctx.attribute("classlabels_strings") or []
    n = len(floats(ctx, "intercepts")) or len(floats(ctx, "coefficients")) // x.shape[-1]
    scores, transform = _affine(ctx, x, n), ctx.attribute("post_transform", "NONE")
    if n == 1 and len(labels) == 2:
        known = ctx.op.Concat(-scores, scores, axis=-1)
        return [label(ctx, known, labels), as_output(ctx, of_two_classes(scores, transform), 1)]
    return [label(ctx, scores, labels), as_output(ctx, post_transform(scores, transform), 1)]


def _affine(ctx: Expansion, x: Value, n: int) -> Value:
    # onnxruntime leaves out coefficients that are too many, as in the file that it brings along
    weights = floats(ctx, "coefficients")[: n * x.shape[-1]].reshape(n, -1)
    product = x @ ctx.op.constant(weights.T, x.dtype)
    intercepts = floats(ctx, "intercepts")
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
        raise RuleError(
            f"{ctx.node}: its indices are computed from a model input, as where the nearest rows or a weighted median "
            f"are looked up; only fixed indices are supported"
        )
    return as_output(ctx, ctx.op.Gather(ctx.x(), ctx.op.constant(indices.reshape(-1)), axis=-1))


@expand("ai.onnx.ml::LabelEncoder")
def label_encoder(ctx: Expansion) -> Value:
    """A table from numbers to numbers, as a sum of steps."""
    op, x = ctx.op, ctx.x()
    keys = _table(ctx, "keys")
    values = _table(ctx, "values")
    if keys is None or values is None:
        raise RuleError(f"{ctx.node}: it reads or gives strings, which have no delta")
    _, first = np.unique(keys, return_index=True)  # of several values of a key onnxruntime takes the first
    keys, values = keys[first], values[first]
    suffix = "float" if values.dtype.kind == "f" else "int64"
    default = ctx.attribute("default_tensor", ctx.attribute(f"default_{suffix}", -0.0 if suffix == "float" else -1))
    default = np.asarray(default).reshape(())
    known = op.Equal(op.Unsqueeze(x, [-1]), op.constant(keys.astype(x.dtype)))
    change = op.constant((values - default).astype(op.dtype))
    total = op.ReduceSum(op.Where(known, change, op.zeros((1,), op.dtype)), [-1], keepdims=0)
    return as_output(ctx, total + float(default))


@expand("ai.onnx.ml::CategoryMapper")
def category_mapper(ctx: Expansion) -> Value:
    """Refused: a table between numbers and strings. Two of them in a row are one table of numbers by then.

    Raises
    ------
    RuleError
        It is not followed by a table from strings to numbers, or it reads strings.
    """
    raise RuleError(f"{ctx.node}: it reads or gives strings, which have no delta")


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
