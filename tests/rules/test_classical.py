"""`ai.onnx.ml` without trees: sum to delta on onnxruntime's numbers, and exact Shapley values where they are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from deepshap_ir import DeepExplainer, RuleError
from deepshap_ir.graph import Array
from deepshap_ir.testing import exact_shapley

FEATURES = 4
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=3 * FEATURES).round(3).tolist()


def model_of(
    op_type: str,
    attributes: dict[str, Any],
    outputs: Sequence[str] = ("y",),
    dtype: int = TensorProto.FLOAT,
    constants: dict[str, Array] | None = None,
    after: Sequence[Any] = (),
    shape: Sequence[Any] = ("N", FEATURES),
) -> ModelProto:
    """One node, of which ``y`` is explained, on ``x`` and constants; `after` are nodes behind it."""
    constants = constants or {}
    node = helper.make_node(op_type, ["x", *constants], list(outputs), name="node", domain="ai.onnx.ml", **attributes)
    graph = helper.make_graph(
        [node, *after],
        "classical",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def predict(model: ModelProto) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    dtypes = {"tensor(int64)": np.int64, "tensor(double)": np.float64}
    dtype = dtypes.get(session.get_inputs()[0].type, np.float32)
    return lambda rows: session.run(["y"], {"x": rows.astype(dtype)})[0]


def assert_sums(model: ModelProto, samples: Array, references: Array, tolerance: float = 1e-5) -> Array:
    """Attributions sum to what onnxruntime says of the original; they are returned."""
    got = np.asarray(DeepExplainer(model, references).shap_values(samples), np.float64)
    delta = predict(model)(samples) - predict(model)(references).mean(0)
    assert np.isfinite(got).all()
    assert abs(got).max() > 1e-4
    np.testing.assert_allclose(got.sum(1), delta, atol=tolerance * max(1.0, abs(delta).max()))
    return got


def assert_exact(model: ModelProto, samples: Array, references: Array, tolerance: float = 1e-5) -> None:
    got = DeepExplainer(model, references).shap_values(samples)
    f = predict(model)
    expected = [np.mean([exact_shapley(f, x, x0) for x0 in references], 0) for x in samples]
    np.testing.assert_allclose(got, np.array(expected).reshape(got.shape), atol=tolerance)


def rows(seed: int, n: int, low: float = -2.0, high: float = 2.0) -> Array:
    return np.random.default_rng(seed).uniform(low, high, (n, FEATURES)).astype(np.float32)


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("Scaler", {"offset": [1.0, 2.0, 3.0, 4.0], "scale": [0.5, 2.0, 1.0, -1.0]}),
        ("Scaler", {"offset": [1.0], "scale": [0.5]}),
        ("Binarizer", {"threshold": 0.3}),
        ("FeatureVectorizer", {"inputdimensions": [FEATURES]}),
        ("FeatureVectorizer", {"inputdimensions": [6]}),
        ("FeatureVectorizer", {"inputdimensions": [3]}),
        ("LinearRegressor", {"coefficients": WEIGHTS[:4], "intercepts": [0.5]}),
        ("LinearRegressor", {"coefficients": WEIGHTS[:8], "intercepts": [0.5, 1.0], "targets": 2}),
        ("Imputer", {"imputed_value_floats": [9.0], "replaced_value_float": float("nan")}),
    ],
)
def test_each_feature_for_itself(op_type: str, attributes: dict[str, Any]) -> None:
    assert_exact(model_of(op_type, attributes), rows(1, 4), rows(2, 3))


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
@pytest.mark.parametrize("low", [-2.0, 0.5])
def test_normalizer(norm: str, low: float) -> None:
    assert_sums(model_of("Normalizer", {"norm": norm}), rows(1, 4, low), rows(2, 3, low))


TRANSFORMS = ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("targets", [1, 3])
def test_linear_regressor(transform: str, targets: int) -> None:
    attributes = {"coefficients": WEIGHTS[: 4 * targets], "intercepts": [0.1] * targets, "targets": targets}
    assert_sums(model_of("LinearRegressor", attributes | {"post_transform": transform}), rows(1, 4), rows(2, 3))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("n", "labels"), [(3, [0, 1, 2]), (2, [0, 1]), (1, [0, 1])])
def test_linear_classifier(transform: str, n: int, labels: list[int]) -> None:
    attributes = {"coefficients": WEIGHTS[: 4 * n], "intercepts": [0.1] * n, "classlabels_ints": labels}
    model = model_of("LinearClassifier", attributes | {"post_transform": transform}, ["label", "y"])
    assert_sums(model, rows(1, 4), rows(2, 3))


@pytest.mark.parametrize("op_type", ["LinearClassifier", "LinearRegressor"])
def test_probit(op_type: str) -> None:
    attributes: dict[str, Any] = {"coefficients": [0.1, 0.2, 0.05, 0.1] * 2, "intercepts": [0.1, 0.3]}
    attributes |= {"targets": 2} if op_type == "LinearRegressor" else {"classlabels_ints": [0, 1]}
    model = model_of(
        op_type, attributes | {"post_transform": "PROBIT"}, ["y"] if op_type == "LinearRegressor" else ["label", "y"]
    )
    assert_sums(model, rows(1, 4, 0.1, 1.0), rows(2, 3, 0.1, 1.0), 1e-4)


def test_labels_of_strings_may_stand_beside_scores() -> None:
    attributes = {"coefficients": WEIGHTS, "intercepts": [0.0] * 3, "classlabels_strings": ["a", "b", "c"]}
    assert_exact(model_of("LinearClassifier", attributes, ["label", "y"]), rows(1, 3), rows(2, 3))


def test_imputer_of_missing_values() -> None:
    """A reference or a sample that is missing counts as the number put in its place."""
    behind = [helper.make_node("MatMul", ["imputed", "w"], ["y"])]
    attributes = {"imputed_value_floats": [0.5, 1.0, 1.5, 2.0], "replaced_value_float": float("nan")}
    model = model_of("Imputer", attributes, ["imputed"], after=behind)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((FEATURES, 1), np.float32), "w"))
    samples, references = rows(1, 4), rows(2, 3)
    samples[0, :2], references[1, 1:3], samples[2] = np.nan, np.nan, np.nan
    assert_exact(model, samples, references)


def test_imputer_of_a_number() -> None:
    attributes = {"imputed_value_int64s": [7], "replaced_value_int64": 0}
    model = model_of(
        "Imputer", attributes, ["i"], TensorProto.INT64, after=[helper.make_node("Cast", ["i"], ["y"], to=1)]
    )
    samples, references = np.array([[0, 1, 2, 3], [3, 0, 0, 5]]), np.array([[1, 1, 0, 0], [0, 2, 0, 4]])
    assert_exact(model, samples, references)


def test_one_hot_encoder() -> None:
    model = model_of("OneHotEncoder", {"cats_int64s": [1, 2, 5], "zeros": 1}, dtype=TensorProto.INT64)
    samples, references = np.array([[1, 2, 5, 7], [2, 2, 1, 1]]), np.array([[5, 2, 1, 1], [1, 1, 1, 2]])
    assert_exact(model, samples, references)


@pytest.mark.parametrize("indices", [[2], [3, 0, 0]])
def test_array_feature_extractor(indices: list[int]) -> None:
    model = model_of("ArrayFeatureExtractor", {}, constants={"i": np.array(indices)})
    assert_exact(model, rows(1, 3), rows(2, 3))


@pytest.mark.parametrize(
    ("keys", "values", "default"),
    [
        ({"keys_int64s": [0, 1, 3]}, {"values_floats": [0.5, -2.0, 4.0]}, {"default_float": 9.0}),
        ({"keys_int64s": [0, 1, 3]}, {"values_floats": [0.5, -2.0, 4.0]}, {}),
        ({"keys_int64s": [1, 0, 1]}, {"values_floats": [0.5, -2.0, 4.0]}, {}),
        ({"keys_floats": [0.0, 1.0, 3.0]}, {"values_floats": [0.5, -2.0, 4.0]}, {"default_float": 1.0}),
    ],
)
def test_label_encoder(keys: dict[str, Any], values: dict[str, Any], default: dict[str, Any]) -> None:
    dtype = TensorProto.INT64 if "keys_int64s" in keys else TensorProto.FLOAT
    model = model_of("LabelEncoder", keys | values | default, dtype=dtype)
    kind = np.int64 if dtype == TensorProto.INT64 else np.float32
    samples, references = np.array([[0, 1, 2, 3], [3, 0, 1, 1]], kind), np.array([[1, 1, 0, 0], [3, 2, 0, 4]], kind)
    assert_exact(model, samples, references)


NAMES = {"cats_int64s": [0, 1, 3], "cats_strings": ["a", "b", "c"]}
SAMPLES, REFERENCES = np.array([[0, 1, 2, 3], [3, 0, 1, 1]]), np.array([[1, 1, 0, 0], [3, 2, 0, 4]])


def ml_node(op_type: str, source: str, target: str, **attributes: Any) -> Any:
    return helper.make_node(op_type, [source], [target], domain="ai.onnx.ml", **attributes)


NUMBERS = [helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]
TO_NUMBERS: dict[str, list[Any]] = {
    "LabelEncoder": [ml_node("LabelEncoder", "s", "y", keys_strings=["c", "a"], values_floats=[0.5, 2.0])],
    "the default, a key": [
        ml_node("LabelEncoder", "s", "y", keys_strings=["z", "a"], values_floats=[0.5, 2.0], default_float=9.0)
    ],
    "CategoryMapper": [
        ml_node("CategoryMapper", "s", "i", cats_strings=["a", "b"], cats_int64s=[7, -2], default_int64=4),
        *NUMBERS,
    ],
    "two tables": [
        ml_node("LabelEncoder", "s", "t", keys_strings=["a", "b"], values_strings=["u", "v"], default_string="w"),
        ml_node("LabelEncoder", "t", "i", keys_strings=["u", "w"], values_int64s=[5, 8]),
        *NUMBERS,
    ],
    "OneHotEncoder": [
        ml_node("OneHotEncoder", "s", "o", cats_strings=["c", "a"], zeros=1),
        helper.make_node("Flatten", ["o"], ["y"]),
    ],
}


@pytest.mark.parametrize("behind", TO_NUMBERS)
@pytest.mark.parametrize("first", ["CategoryMapper", "LabelEncoder"])
def test_from_ids_to_strings_and_on_to_numbers(first: str, behind: str) -> None:
    """Two tables are one: strings between them have no delta."""
    attributes: dict[str, Any] = {"default_string": "z"}
    if first == "CategoryMapper":
        attributes |= NAMES
    else:
        attributes |= {"keys_int64s": NAMES["cats_int64s"], "values_strings": NAMES["cats_strings"]}
    model = model_of(first, attributes, ["s"], TensorProto.INT64, after=TO_NUMBERS[behind])
    assert_exact(model, SAMPLES, REFERENCES)


def test_strings_that_no_table_takes_on_are_refused() -> None:
    twice = [ml_node("LabelEncoder", "s", "y", keys_strings=["a", "a"], values_floats=[0.5, 2.0])]
    model = model_of("CategoryMapper", NAMES, ["s"], TensorProto.INT64, after=twice)
    with pytest.raises(RuleError, match="CategoryMapper node 'node': it reads or gives strings, which have no delta"):
        DeepExplainer(model, REFERENCES)


def test_a_mapper_of_strings_is_refused() -> None:
    model = model_of("CategoryMapper", NAMES, ["i"], TensorProto.STRING, after=NUMBERS)
    with pytest.raises(RuleError, match="CategoryMapper node 'node': it reads or gives strings, which have no delta"):
        DeepExplainer(model, np.array([["a", "b", "c", "z"]], dtype=object))
