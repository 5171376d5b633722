"""Tree ensembles against exact Shapley values, onnxruntime and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from deepshap_ir import DeepExplainer
from deepshap_ir.errors import RuleError
from deepshap_ir.graph import Array
from deepshap_ir.rules.trees import radau
from deepshap_ir.testing import exact_shapley

MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER"]
FEATURES = 4


def model_of(op_type: str, attributes: Mapping[str, Any], version: int = 3, dtype: int = TensorProto.FLOAT) -> Any:
    outputs = ["label", "y"] if op_type.endswith("Classifier") else ["y"]
    node = helper.make_node(op_type, ["x"], outputs, name="trees", domain="ai.onnx.ml", **attributes)
    graph = helper.make_graph(
        [node],
        "trees",
        [helper.make_tensor_value_info("x", dtype, ["N", FEATURES])],
        [helper.make_empty_tensor_value_info("y")],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", version)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def random_trees(
    seed: int,
    trees: int = 3,
    depth: int = 4,
    targets: int = 1,
    modes: Sequence[str] = ("BRANCH_LEQ",),
    missing: bool = False,
    grid: bool = False,
    every: bool = False,
) -> dict[str, list[Any]]:
    """Attributes as of TreeEnsembleRegressor; on a grid, thresholds are numbers of the data; `every`: all targets."""
    rng = np.random.default_rng(seed)
    nodes: list[tuple[int, int, int, str, float, int, int, int]] = []
    leaves: list[tuple[int, int, int, float]] = []
    for tree in range(trees):
        count = [0]

        def grow(level: int, tree: int = tree, count: list[int] = count) -> int:
            me = count[0]
            count[0] += 1
            if level == depth or (level > 1 and rng.random() < 0.2):
                nodes.append((tree, me, 0, "LEAF", 0.0, 0, 0, 0))
                for t in range(targets) if every else [int(rng.integers(targets))]:
                    leaves.append((tree, me, t, float(rng.normal())))
                return me
            place = len(nodes)
            nodes.append((tree, me, 0, "LEAF", 0.0, 0, 0, 0))
            value = float(rng.integers(-1, 2)) if grid else float(np.float32(rng.normal() * 0.7))
            a, b = grow(level + 1), grow(level + 1)
            nan = int(missing and rng.random() < 0.5)
            nodes[place] = (tree, me, int(rng.integers(FEATURES)), str(rng.choice(list(modes))), value, a, b, nan)
            return me

        grow(0)
    names = ["treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids"]
    found = {f"nodes_{n}": [row[k] for row in nodes] for k, n in enumerate([*names, "missing_value_tracks_true"])}
    found |= {f"target_{n}": [row[k] for row in leaves] for k, n in enumerate(["treeids", "nodeids", "ids", "weights"])}
    return found


def regressor(targets: int = 1, **kwargs: Any) -> dict[str, Any]:
    extra = {k: kwargs.pop(k) for k in list(kwargs) if k in ("aggregate_function", "post_transform", "base_values")}
    return {**random_trees(targets=targets, **kwargs), "n_targets": targets, **extra}


def predict(model: onnx.ModelProto) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    dtype = np.float64 if session.get_inputs()[0].type == "tensor(double)" else np.float32
    return lambda rows: session.run(["y"], {"x": rows.astype(dtype)})[0]


def rows(seed: int, n: int, grid: bool = False) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.integers(-1, 2, (n, FEATURES)) if grid else rng.normal(size=(n, FEATURES))).astype(np.float32)


def assert_exact(model: onnx.ModelProto, samples: Array, references: Array, tolerance: float = 2e-6) -> None:
    """Attributions are the exact Shapley values, averaged over the references."""
    got = DeepExplainer(model, references).shap_values(samples)
    f = predict(model)
    expected = [np.mean([exact_shapley(f, x, x0) for x0 in references], 0) for x in samples]
    np.testing.assert_allclose(got, np.array(expected).reshape(got.shape), atol=tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_exact(seed: int) -> None:
    model = model_of("TreeEnsembleRegressor", regressor(seed=seed, trees=5, depth=6))
    assert_exact(model, rows(1, 3), rows(2, 3))


@pytest.mark.parametrize("mode", MODES[:6])
def test_modes_on_ties(mode: str) -> None:
    model = model_of("TreeEnsembleRegressor", regressor(seed=5, modes=[mode], grid=True))
    assert_exact(model, rows(1, 4, grid=True), rows(2, 3, grid=True))


def test_mixed_modes_and_several_targets() -> None:
    attributes = regressor(seed=7, targets=3, trees=4, modes=MODES[:6], grid=True)
    assert_exact(model_of("TreeEnsembleRegressor", attributes), rows(1, 4, grid=True), rows(2, 3, grid=True))


def test_leaves_that_add_to_every_target() -> None:
    attributes = regressor(seed=8, targets=2, every=True, base_values=[1.0, 2.0])
    assert_exact(model_of("TreeEnsembleRegressor", attributes), rows(1, 3), rows(2, 3))


def test_average_and_base() -> None:
    attributes = regressor(seed=8, aggregate_function="AVERAGE", base_values=[0.5])
    assert_exact(model_of("TreeEnsembleRegressor", attributes), rows(1, 3), rows(2, 3))


@pytest.mark.parametrize("aggregate", ["MIN", "MAX"])
def test_extreme_tree_sums_to_delta(aggregate: str) -> None:
    attributes = regressor(seed=9, targets=2, every=True, aggregate_function=aggregate)
    model, samples, references = model_of("TreeEnsembleRegressor", attributes), rows(1, 5), rows(2, 4)
    explainer = DeepExplainer(model, references)
    delta = predict(model)(samples) - predict(model)(references).mean(0)
    np.testing.assert_allclose(explainer.shap_values(samples).sum(1), delta, atol=1e-5)


def test_extreme_of_a_target_that_some_leaves_do_not_know_is_refused() -> None:
    attributes = regressor(seed=9, targets=2, aggregate_function="MAX")
    with pytest.raises(RuleError, match="some of whose leaves do not know a target"):
        DeepExplainer(model_of("TreeEnsembleRegressor", attributes), rows(2, 2))


def test_doubles_are_compared_as_doubles() -> None:
    attributes: dict[str, Any] = regressor(seed=3)
    number, close = 1.0 + 1e-12, 1.0
    for name in ("nodes_values", "target_weights"):
        values = np.array(attributes.pop(name), np.float64)
        attributes[f"{name}_as_tensor"] = onnx.numpy_helper.from_array(
            np.full_like(values, number) if name == "nodes_values" else values
        )
    model = model_of("TreeEnsembleRegressor", attributes, dtype=TensorProto.DOUBLE)
    samples, references = np.full((1, FEATURES), close), np.full((1, FEATURES), 1.0 + 2e-12)
    assert predict(model)(samples) != predict(model)(references)
    got = DeepExplainer(model, references).shap_values(samples)
    expected = exact_shapley(predict(model), samples[0], references[0])
    np.testing.assert_allclose(got[0], expected, atol=1e-6)


def test_more_conditions_than_bits() -> None:
    """Paths about 30 features take two integers per leaf."""
    n = 30
    ids = list(range(2 * n + 1))
    attributes: dict[str, Any] = {
        "n_targets": 1,
        "nodes_treeids": [0] * len(ids),
        "nodes_nodeids": ids,
        "nodes_featureids": [*range(n), *[0] * (n + 1)],
        "nodes_modes": ["BRANCH_LEQ"] * n + ["LEAF"] * (n + 1),
        "nodes_values": [0.0] * len(ids),
        "nodes_truenodeids": [*range(1, n), 2 * n, *[0] * (n + 1)],
        "nodes_falsenodeids": [*range(n, 2 * n), *[0] * (n + 1)],
        "target_treeids": [0] * (n + 1),
        "target_nodeids": ids[n:],
        "target_ids": [0] * (n + 1),
        "target_weights": np.linspace(-1, 2, n + 1).tolist(),
    }
    model = model_of("TreeEnsembleRegressor", attributes)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = n
    rng = np.random.default_rng(0)
    samples, references = -np.abs(rng.normal(size=(2, n))).astype("f4"), -np.abs(rng.normal(size=(3, n))).astype("f4")
    samples[0, 28], references[0, 29], references[1, 3:] = 1.0, 1.0, 1.0
    got = DeepExplainer(model, references).shap_values(samples)
    delta = predict(model)(samples) - predict(model)(references).mean(0)
    np.testing.assert_allclose(got.sum(1), delta, atol=1e-5)
    # between this reference and a sample on the whole path the value is that of the first feature at the reference
    alone = DeepExplainer(model, references[1:2]).shap_values(samples[1:])[0, :, 0]
    w, expected = attributes["target_weights"], np.zeros(n)
    for i in range(3, n):
        after = [w[k] / ((k - 3) * (k - 2)) for k in range(i + 1, n)]
        expected[i] = sum(after) + w[n] / (n - 3) - w[i] / (i - 2)
    np.testing.assert_allclose(alone, expected, atol=1e-6)


@pytest.mark.parametrize("modes", [["BRANCH_LEQ"], ["BRANCH_GTE", "BRANCH_LT"]])
def test_missing_values(modes: list[str]) -> None:
    """NaN on either side, or on both: the contribution is that of a value which takes the branch of NaN."""
    model = model_of("TreeEnsembleRegressor", regressor(seed=4, trees=5, modes=modes, missing=True))
    samples, references = rows(1, 4), rows(2, 4)
    samples[0, :2], references[:2, 1:3], samples[2] = np.nan, np.nan, np.nan
    assert_exact(model, samples, references)


def version_5(members: bool) -> dict[str, Any]:
    """Two trees: a set or a threshold, then thresholds; and a single leaf."""

    def tensor(values: Sequence[float], dtype: Any) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.array(values, dtype))

    extra = {"membership_values": tensor([-1.0, 1.0, np.nan], np.float32)} if members else {}
    return {
        "n_targets": 2,
        "aggregate_function": 1,
        "tree_roots": [0, 3],
        "nodes_modes": tensor([6 if members else 4, 0, 3, 0], np.uint8),
        "nodes_featureids": [0, 1, 2, 0],
        "nodes_splits": tensor([1.0, 0.0, 0.0, 0.0], np.float32),
        "nodes_truenodeids": [1, 0, 2, 4],
        "nodes_trueleafs": [0, 1, 1, 1],
        "nodes_falsenodeids": [2, 1, 3, 4],
        "nodes_falseleafs": [0, 1, 1, 1],
        "leaf_targetids": [0, 1, 0, 1, 0],
        "leaf_weights": tensor([5.0, -2.0, 3.0, 0.5, 0.25], np.float32),
        **extra,
    }


@pytest.mark.parametrize("members", [False, True])
def test_version_5(members: bool) -> None:
    model = model_of("TreeEnsemble", version_5(members), version=5)
    assert_exact(model, rows(1, 5, grid=True), rows(2, 4, grid=True))


def classifier(ids: str, transform: str, labels: int, positive: bool = True, base: Sequence[float] = ()) -> Any:
    attributes: dict[str, Any] = random_trees(seed=11, targets=labels if ids == "all" else 1, every=True)
    for name in ("treeids", "nodeids", "ids", "weights"):
        attributes[f"class_{name}"] = attributes.pop(f"target_{name}")
    if positive:
        attributes["class_weights"] = [abs(w) / 10 for w in attributes["class_weights"]]
    attributes |= {"classlabels_int64s": list(range(labels)), "post_transform": transform}
    return model_of("TreeEnsembleClassifier", attributes | ({"base_values": list(base)} if base else {}))


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize(
    ("ids", "labels", "positive", "base"),
    [
        ("all", 3, True, ()),
        ("all", 3, False, (0.1, 0.2, 0.3)),
        ("all", 2, True, ()),
        ("one", 2, True, ()),
        ("one", 2, False, ()),
        ("one", 2, False, (0.3,)),
    ],
)
def test_classifiers_sum_to_delta(transform: str, ids: str, labels: int, positive: bool, base: Sequence[float]) -> None:
    model, samples, references = classifier(ids, transform, labels, positive, base), rows(1, 5), rows(2, 4)
    delta = predict(model)(samples) - predict(model)(references).mean(0)
    got = DeepExplainer(model, references).shap_values(samples)
    np.testing.assert_allclose(got.sum(1), delta, atol=1e-5)
    assert abs(got).max() > 1e-3


def test_probit_of_probabilities() -> None:
    model, samples, references = classifier("all", "PROBIT", 3, base=(0.3, 0.3, 0.3)), rows(1, 5), rows(2, 4)
    delta = predict(model)(samples) - predict(model)(references).mean(0)
    np.testing.assert_allclose(DeepExplainer(model, references).shap_values(samples).sum(1), delta, atol=1e-4)


def test_probit_of_one_score_for_two_classes_is_refused() -> None:
    with pytest.raises(RuleError, match="PROBIT of a single score"):
        DeepExplainer(classifier("one", "PROBIT", 2), rows(2, 2))


def test_float64_agrees_with_float32() -> None:
    model, samples, references = model_of("TreeEnsembleRegressor", regressor(seed=2)), rows(1, 3), rows(2, 3)
    single = DeepExplainer(model, references).shap_values(samples)
    double = DeepExplainer(model, references, precision="float64").shap_values(samples)
    np.testing.assert_allclose(single, double, atol=1e-6)


def stacked(front: bool) -> Any:
    """A linear layer and Tanh in front of trees of two targets, or trees in front of them."""
    rng = np.random.default_rng(6)
    attributes = regressor(seed=6, targets=2, every=True)
    if front:
        w = rng.normal(size=(FEATURES, FEATURES)).astype(np.float32)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("TreeEnsembleRegressor", ["h"], ["y"], domain="ai.onnx.ml", **attributes),
        ]
    else:
        w = rng.normal(size=(2, 3)).astype(np.float32)
        nodes = [
            helper.make_node("TreeEnsembleRegressor", ["x"], ["t"], domain="ai.onnx.ml", **attributes),
            helper.make_node("MatMul", ["t", "w"], ["h"]),
            helper.make_node("Tanh", ["h"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes,
        "stacked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_empty_tensor_value_info("y")],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


@pytest.mark.parametrize("front", [True, False])
def test_series_of_models(front: bool) -> None:
    model, samples, references = stacked(front), rows(1, 5), rows(2, 4)
    got = DeepExplainer(model, references).shap_values(samples)
    delta = predict(model)(samples) - predict(model)(references).mean(0)
    np.testing.assert_allclose(got.sum(1), delta, atol=1e-5)


def test_linear_model_behind_trees_is_exact() -> None:
    model = stacked(front=False)
    model.graph.node[2].op_type = "Identity"
    assert_exact(model, rows(1, 3), rows(2, 3))


def exported(forest: Any) -> Any:
    """A scikit-learn forest from the arrays of its trees."""
    found: dict[str, Any] = {f"nodes_{n}": [] for n in ("treeids", "nodeids", "featureids", "modes", "values")}
    found |= {f"nodes_{n}": [] for n in ("truenodeids", "falsenodeids")}
    found |= {f"target_{n}": [] for n in ("treeids", "nodeids", "ids", "weights")}
    for k, estimator in enumerate(forest.estimators_):
        tree = estimator.tree_
        leaf = tree.children_left < 0
        found["nodes_treeids"] += [k] * tree.node_count
        found["nodes_nodeids"] += range(tree.node_count)
        found["nodes_featureids"] += np.maximum(tree.feature, 0).tolist()
        found["nodes_modes"] += ["LEAF" if is_leaf else "BRANCH_LEQ" for is_leaf in leaf]
        found["nodes_values"] += tree.threshold.astype(np.float32).tolist()
        found["nodes_truenodeids"] += np.maximum(tree.children_left, 0).tolist()
        found["nodes_falsenodeids"] += np.maximum(tree.children_right, 0).tolist()
        places = np.flatnonzero(leaf)
        found["target_treeids"] += [k] * len(places)
        found["target_nodeids"] += places.tolist()
        found["target_ids"] += [0] * len(places)
        found["target_weights"] += tree.value[places, 0, 0].tolist()
    return model_of("TreeEnsembleRegressor", {**found, "n_targets": 1, "aggregate_function": "AVERAGE"})


def test_agrees_with_shap_on_a_forest() -> None:
    shap = pytest.importorskip("shap", reason="compares with shap.TreeExplainer")
    ensemble = pytest.importorskip("sklearn.ensemble", reason="fits a scikit-learn forest")
    x = rows(0, 400)
    y = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + x[:, 3]
    forest = ensemble.RandomForestRegressor(30, max_depth=8, random_state=0).fit(x, y)
    references, samples = x[:40], x[100:120]
    got = DeepExplainer(exported(forest), references).shap_values(samples)[..., 0]
    other = shap.TreeExplainer(forest, references, feature_perturbation="interventional", model_output="raw")
    np.testing.assert_allclose(got, other.shap_values(samples, check_additivity=False), atol=1e-5)


@pytest.mark.parametrize("missing", [False, True])
def test_missing_values_and_infinite_thresholds(missing: bool) -> None:
    """``x <= inf`` sends all numbers one way and NaN the other; every kind of branch, with and without that."""
    attributes = regressor(seed=13, trees=8, depth=5, modes=MODES[:6], missing=missing, grid=True)
    rng = np.random.default_rng(3)
    attributes["nodes_values"] = [
        float(rng.choice([np.inf, -np.inf])) if rng.random() < 0.2 else value for value in attributes["nodes_values"]
    ]
    model, samples, references = model_of("TreeEnsembleRegressor", attributes), rows(1, 5, grid=True), rows(2, 4, True)
    for data in (samples, references):
        data[rng.random(data.shape) < 0.3] = np.nan
    assert_exact(model, samples, references)


@pytest.mark.parametrize("conditions", [1, 2, 5, 10, 24, 60])
def test_weights_are_exact_on_the_nodes(conditions: int) -> None:
    nodes = radau(conditions // 2 + 1)
    assert nodes[0][0] == 0
    assert min(t for t, _ in nodes[1:]) > 0 if conditions > 1 else len(nodes) == 1
    for u in range(1, conditions + 1):
        for v in range(conditions + 1 - u):
            weight = u * sum(share * t ** (u - 1) * (1 - t) ** v for t, share in nodes)
            np.testing.assert_allclose(weight, 1 / math.comb(u + v, u), atol=1e-10)
