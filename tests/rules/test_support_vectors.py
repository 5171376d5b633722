"""Support vector machines against onnxruntime's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer
from deepshap_ir.errors import RuleError
from tests.rules.test_classical import FEATURES, assert_exact, assert_sums, model_of, rows

LINEAR = {"kernel_type": "LINEAR", "kernel_params": [0.0, 0.0, 3.0]}
KERNELS: dict[str, list[float]] = {
    "LINEAR": [0.0, 0.0, 3.0],
    "POLY": [0.3, 1.0, 3.0],
    "RBF": [0.4, 0.0, 3.0],
    "SIGMOID": [0.3, 0.1, 3.0],
}


def vectors(counts: Sequence[int], kernel: str) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    n = sum(counts)
    return {
        "kernel_type": kernel,
        "kernel_params": KERNELS[kernel],
        "support_vectors": rng.normal(size=n * FEATURES).tolist(),
        "coefficients": rng.normal(size=n * max(len(counts) - 1, 1)).tolist(),
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_svm_regressor(kernel: str) -> None:
    attributes = {**vectors([5], kernel), "n_supports": 5, "rho": [0.3]}
    assert_sums(model_of("SVMRegressor", attributes), rows(1, 4), rows(2, 3), 1e-4)


def test_svm_of_one_class() -> None:
    attributes = {**vectors([5], "RBF"), "n_supports": 5, "rho": [0.0], "one_class": 1}
    assert_sums(model_of("SVMRegressor", attributes), rows(1, 8), rows(2, 4))


def test_linear_svm_without_vectors() -> None:
    assert_exact(
        model_of("SVMRegressor", {"coefficients": [0.5, -1.0, 2.0, 0.25], "rho": [0.3], **LINEAR}),
        rows(1, 4),
        rows(2, 3),
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("counts", [[2, 3], [2, 3, 2]])
@pytest.mark.parametrize("probabilities", [False, True])
def test_svm_classifier(kernel: str, counts: list[int], probabilities: bool) -> None:
    pairs = len(counts) * (len(counts) - 1) // 2
    attributes = {**vectors(counts, kernel), "rho": [0.1] * pairs, "vectors_per_class": counts}
    attributes["classlabels_ints"] = list(range(len(counts)))
    if probabilities:
        attributes |= {"prob_a": [-1.2] * pairs, "prob_b": [0.2] * pairs}
    assert_sums(model_of("SVMClassifier", attributes, ["label", "y"]), rows(1, 4), rows(2, 3), 1e-4)


@pytest.mark.parametrize("transform", ["LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("counts", [[2, 3], [2, 3, 2]])
def test_svm_classifier_with_transform(transform: str, counts: list[int]) -> None:
    pairs = len(counts) * (len(counts) - 1) // 2
    attributes = {**vectors(counts, "RBF"), "rho": [0.1] * pairs, "vectors_per_class": counts}
    attributes |= {"classlabels_ints": list(range(len(counts))), "post_transform": transform}
    assert_sums(model_of("SVMClassifier", attributes, ["label", "y"]), rows(1, 4), rows(2, 3), 1e-4)


def test_probabilities_of_many_classes_are_refused() -> None:
    counts = [1, 1, 1, 1]
    attributes = {**vectors(counts, "RBF"), "rho": [0.1] * 6, "vectors_per_class": counts}
    attributes |= {"classlabels_ints": [0, 1, 2, 3], "prob_a": [-1.0] * 6, "prob_b": [0.0] * 6}
    with pytest.raises(RuleError, match="export the decision values"):
        DeepExplainer(model_of("SVMClassifier", attributes, ["label", "y"]), rows(2, 3))
