"""The comparison's networks and arithmetic: numbers that go into a claim are checked like any other."""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks import models
from benchmarks.compare import OURS, Case, Measured, Result, compare


@pytest.mark.parametrize(
    "build",
    [partial(models.mlp, 3, 4), partial(models.cnn, 3, 4), partial(models.resnet18, 3, 4, size=64)],
    ids=["mlp", "cnn", "resnet18"],
)
def test_both_forms_of_a_network_are_one_function_at_any_batch_size(build: Callable[[], models.Network]) -> None:
    network = build()
    session = onnxruntime.InferenceSession(network.onnx, providers=["CPUExecutionProvider"])
    for rows in (network.samples[:1], network.samples, network.background):
        with torch.no_grad():
            expected = network.module(torch.from_numpy(rows)).numpy()
        (outputs,) = session.run(["y"], {"x": rows})
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def result() -> Result:
    """Two samples, five references, one output; the peer explains one sample and is wrong by 0.5 in a delta of 4."""
    ours = Measured(
        2,
        first=[2.0, 1.5, 9.0],
        seconds=[1.0, 1.0, 9.0],
        forward=[0.05, 0.05, 0.9],
        attributions=np.array([[[1.0], [3]], [[2], [0]]]),
    )
    peer = Measured(1, seconds=[2.0, 4.0, 9.0], forward=[0.1, 0.1, 0.1], attributions=np.array([[[1.5], [3.0]]]))
    fx, mean_f0 = np.array([[5.0], [3.0]]), np.array([1.0])
    return Result(Case("", models.mlp, {}), 5, 1, 8, fx, mean_f0, {OURS: ours, "shap": peer})


def test_time_is_per_triple_and_ratios_are_medians_of_rounds() -> None:
    np.testing.assert_allclose(result().per_triple(OURS), [0.1, 0.1, 0.9])
    np.testing.assert_allclose(result().per_triple("shap"), [0.4, 0.8, 1.8])
    assert result().ratio("shap") == pytest.approx(4)
    assert result().passes(OURS) == pytest.approx(2)
    assert result().passes(OURS, first=True) == pytest.approx(3)
    assert result().passes("shap") == pytest.approx(8)
    assert result().forward() == pytest.approx(0.1)


def test_errors_are_relative_and_over_the_samples_that_both_explained() -> None:
    assert result().difference(OURS, "shap") == pytest.approx(0.5 / 3)
    assert result().additivity(OURS) == 0
    assert result().additivity("shap") == pytest.approx(0.5 / 4)


def test_a_side_that_fails_is_reported_and_leaves_the_others_running() -> None:
    def build(samples: int) -> models.Network:
        return models.mlp(samples, 6)._replace(module=torch.nn.Linear(3, 1))

    measured = compare(Case("", build, {OURS: 2, "shap": 1}), rounds=2, threads=1, progress=lambda doing: None)
    assert measured.sides["shap"].failure is not None
    assert "mat1 and mat2 shapes cannot be multiplied" in measured.sides["shap"].failure
    assert np.isnan(measured.ratio("shap"))
    assert np.isnan(measured.difference(OURS, "shap"))

    ours = measured.sides[OURS]
    assert ours.failure is None
    assert len(ours.first) == len(ours.seconds) == len(ours.forward) == 2
    assert measured.ratio(OURS) == 1
    assert measured.additivity(OURS) < 1e-4
    assert ours.memory.peak >= ours.memory.loaded
