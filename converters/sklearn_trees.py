"""Estimators of trees for skl2onnx, where its own converters go wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

Convert = Callable[[Any, Any, Any], None]
"""skl2onnx's form of a converter: ``(scope, operator, container)``."""


def tree_converters() -> dict[type, Convert]:
    """Converters by class of estimator, for ``custom_conversion_functions``."""
    from sklearn import ensemble, tree

    floats = [
        tree.DecisionTreeClassifier,
        tree.DecisionTreeRegressor,
        tree.ExtraTreeClassifier,
        tree.ExtraTreeRegressor,
        ensemble.ExtraTreesClassifier,
        ensemble.ExtraTreesRegressor,
        ensemble.GradientBoostingClassifier,
        ensemble.GradientBoostingRegressor,
        ensemble.HistGradientBoostingClassifier,
        ensemble.HistGradientBoostingRegressor,
        ensemble.IsolationForest,
        ensemble.RandomForestClassifier,
        ensemble.RandomForestRegressor,
    ]
    own = {ensemble.AdaBoostClassifier: ada_boost, ensemble.VotingClassifier: voting}
    return {**dict.fromkeys(floats, in_floats), **own}


class _Seen:
    """An object of which some attributes are others."""

    def __init__(self, seen: Any, **others: Any) -> None:
        self.__dict__.update(_seen=seen, **others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)


class _Plain(_Seen):
    """A container of nodes that takes numpy's numbers for Python's, which onnx demands of attributes.

    Where missing values go in `trees` is written too, which skl2onnx leaves out.
    """

    trees: list[Any]

    def add_node(self, op_type: str, inputs: Any, outputs: Any, **attributes: Any) -> Any:
        """Add a node."""
        plain = {name: _plain(value) for name, value in attributes.items()}
        if op_type.startswith("TreeEnsemble") and self.trees:
            places = zip(plain["nodes_treeids"], plain["nodes_nodeids"], strict=True)
            plain["nodes_missing_value_tracks_true"] = [int(self.trees[t].missing_go_to_left[i]) for t, i in places]
        return self._seen.add_node(op_type, inputs, outputs, **plain)


def _plain(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], bool | np.bool_ | np.integer):
        return [int(one) for one in value]
    if isinstance(value, list) and value and isinstance(value[0], np.floating):
        return [float(one) for one in value]
    return value


def _trees(estimator: Any) -> list[Any]:
    """The trees of an estimator whose ONNX has a tree for each, in their order."""
    if hasattr(estimator, "tree_"):
        return [estimator.tree_]
    members = getattr(estimator, "estimators_", [])
    return (
        [member.tree_ for member in members] if isinstance(members, list) and hasattr(estimator, "n_outputs_") else []
    )


def in_floats(scope: Any, operator: Any, container: Any, write: Convert | None = None) -> None:
    """Convert an estimator that compares float32 numbers with thresholds.

    scikit-learn rounds its data to float32, and ONNX's thresholds are float32: compared in double precision, a number
    may fall on the other side; and the operator's result is float32 where skl2onnx declares float64.

    Parameters
    ----------
    write : the converter of the floats, by default the one that is registered.
    """
    from skl2onnx.common._apply_operation import apply_cast
    from skl2onnx.common._registration import get_converter
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType
    from skl2onnx.proto import onnx_proto

    inputs, outputs, after = [], [], []
    for variable in operator.inputs:
        if isinstance(variable.type, DoubleTensorType | Int64TensorType):
            rounded = scope.declare_local_variable("rounded", FloatTensorType(list(variable.type.shape)))
            apply_cast(scope, variable.full_name, rounded.full_name, container, to=onnx_proto.TensorProto.FLOAT)
            variable = rounded
        inputs.append(variable)
    for variable in operator.outputs:
        if isinstance(variable.type, DoubleTensorType):
            single = scope.declare_local_variable("single", FloatTensorType(list(variable.type.shape)))
            after.append((single.full_name, variable.full_name))
            variable = single
        outputs.append(variable)
    seen = _Seen(operator, inputs=inputs, outputs=outputs)
    (write or get_converter(operator.type))(scope, seen, _Plain(container, trees=_trees(operator.raw_operator)))
    for single, double in after:
        apply_cast(scope, single, double, container, to=onnx_proto.TensorProto.DOUBLE)


def voting(scope: Any, operator: Any, container: Any) -> None:
    """Convert `sklearn.ensemble.VotingClassifier`, whatever its ``transform`` would do."""
    from skl2onnx.common._registration import get_converter

    model = copy.copy(operator.raw_operator)
    model.flatten_transform = False
    get_converter(operator.type)(scope, _Seen(operator, raw_operator=model), container)


def ada_boost(scope: Any, operator: Any, container: Any) -> None:
    """Convert `sklearn.ensemble.AdaBoostClassifier`.

    Each tree votes for the class of its leaf, so the votes are written into the leaves: one ensemble of trees, with
    no choice of a largest probability, which has no delta to hand on.
    """
    from sklearn.tree import DecisionTreeClassifier

    model = operator.raw_operator
    if model.n_classes_ < 2 or not all(isinstance(tree, DecisionTreeClassifier) for tree in model.estimators_):
        in_floats(scope, operator, container)
        return
    in_floats(scope, operator, container, _votes)


def _votes(scope: Any, operator: Any, container: Any) -> None:
    """``f_c = sum_t w_t (1 if tree t says c, else -1 / (K - 1))``; its softmax, twice as steep for two classes."""
    from skl2onnx.common.tree_ensemble import sklearn_threshold
    from skl2onnx.proto import onnx_proto

    model = operator.raw_operator
    classes = int(model.n_classes_)
    raw = container.get_options(model, {"raw_scores": False})["raw_scores"]
    nodes: dict[str, list[Any]] = {f"nodes_{name}": [] for name in _NODES}
    leaves: dict[str, list[Any]] = {f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}
    total = float(np.sum(model.estimator_weights_[: len(model.estimators_)]))
    for number, (estimator, weight) in enumerate(zip(model.estimators_, model.estimator_weights_, strict=False)):
        tree = estimator.tree_
        for i in range(tree.node_count):
            leaf = tree.children_left[i] == -1
            threshold = 0.0 if leaf else float(sklearn_threshold(tree.threshold[i], np.float32, "BRANCH_LEQ"))
            true, false = (0, 0) if leaf else (int(tree.children_left[i]), int(tree.children_right[i]))
            missing = 0 if leaf else int(tree.missing_go_to_left[i])
            values = (number, i, 0 if leaf else int(tree.feature[i]), threshold, "LEAF" if leaf else "BRANCH_LEQ")
            for name, value in zip(_NODES, (*values, true, false, missing), strict=True):
                nodes[f"nodes_{name}"].append(value)
            if not leaf:
                continue
            said = estimator.classes_[int(np.argmax(tree.value[i, 0]))]
            for c, label in enumerate(model.classes_):
                vote = 1.0 if label == said else -1.0 / (classes - 1)
                for name, value in zip(leaves, (number, i, c, vote * weight / total), strict=True):
                    leaves[name].append(value)
    votes = scope.get_unique_variable_name("votes")
    container.add_node(
        "TreeEnsembleRegressor",
        [operator.inputs[0].full_name],
        votes,
        op_domain="ai.onnx.ml",
        op_version=3,
        name=scope.get_unique_operator_name("TreeEnsembleRegressor"),
        n_targets=classes,
        **nodes,
        **leaves,
    )
    scores = operator.outputs[1].full_name
    factor = 1.0 / (classes - 1)
    if raw:
        factor = 2.0 if classes == 2 else 1.0  # of two classes, the decision is f_1 - f_0
    scale, labels = scope.get_unique_variable_name("scale"), scope.get_unique_variable_name("labels")
    scaled = scores if raw else scope.get_unique_variable_name("scaled")
    best = scope.get_unique_variable_name("best")
    container.add_initializer(scale, onnx_proto.TensorProto.FLOAT, [1], [factor])
    numbers = np.issubdtype(model.classes_.dtype, np.number)
    kind = onnx_proto.TensorProto.INT64 if numbers else onnx_proto.TensorProto.STRING
    known = [int(label) if numbers else str(label).encode() for label in model.classes_]
    container.add_initializer(labels, kind, [classes], known)
    unique = scope.get_unique_operator_name
    container.add_node("Mul", [votes, scale], scaled, name=unique("Mul"))
    if not raw:
        container.add_node("Softmax", [scaled], scores, name=unique("Softmax"), axis=1)
    container.add_node("ArgMax", [votes], best, name=unique("ArgMax"), axis=1, keepdims=0)
    container.add_node("Gather", [labels, best], operator.outputs[0].full_name, name=unique("Gather"))


_NODES = (
    "treeids",
    "nodeids",
    "featureids",
    "values",
    "modes",
    "truenodeids",
    "falsenodeids",
    "missing_value_tracks_true",
)
