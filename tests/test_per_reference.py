"""Contributions and multipliers for each reference, and their means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer, InputError
from deepshap_ir.engine import pieces
from tests.onnx_text import Array, data, parsed

B, N = 5, 3
BACKGROUND, SAMPLES = data(B, 4), data(N, 4, seed=1)
NET = "{ a = Sigmoid(x) b = Tanh(x) y = Mul(a, b) }"
TWO = "{ a = Mul(x, h) g = Tanh(a) y = Exp(g) }"
TWO_INPUTS = "(float[N,4] x, float[N,4] h) => (float[N,4] y)"
PICTURE = """{ w = Constant <value = float[2,1,2,2] {1,2,3,4, -1,0,1,2}> () c = Conv(x, w) r = Relu(c)
    k = Constant <value_ints=[1,2,3]> () y = ReduceMean <keepdims=0> (r, k) }"""
SETTINGS: dict[str, tuple[Callable[[], Any], Any]] = {
    "one input": (lambda: DeepExplainer(parsed(NET), BACKGROUND), SAMPLES),
    "a linear model": (lambda: DeepExplainer(parsed("{ y = Neg(x) }"), BACKGROUND), SAMPLES),
    "several inputs": (
        lambda: DeepExplainer(parsed(TWO, TWO_INPUTS), [BACKGROUND, BACKGROUND[::-1]]),
        [SAMPLES, SAMPLES + 1],
    ),
    "an input that nothing reads": (
        lambda: DeepExplainer(parsed("{ y = Tanh(x) }", TWO_INPUTS), [BACKGROUND, BACKGROUND]),
        [SAMPLES, SAMPLES],
    ),
    "own references": (lambda: DeepExplainer(parsed(NET), lambda x: BACKGROUND + x[0]), SAMPLES),
    "held input": (
        lambda: DeepExplainer(parsed(TWO, TWO_INPUTS), {"x": BACKGROUND, "h": BACKGROUND}, hold=["h"]),
        {"x": SAMPLES, "h": SAMPLES + 1},
    ),
    "a place inside": (lambda: DeepExplainer(parsed(NET), BACKGROUND, at=["a"]), SAMPLES),
    "double": (lambda: DeepExplainer(parsed(NET), BACKGROUND, precision="float64"), SAMPLES),
    "a picture": (
        lambda: DeepExplainer(parsed(PICTURE, "(float[N,1,3,5] x) => (float[N] y)"), data(B, 1, 3, 5)),
        data(N, 1, 3, 5, seed=1),
    ),
}


def listed(values: Any) -> list[Array]:
    return values if isinstance(values, list) else [values]


@pytest.mark.parametrize("ranked", [None, 1])
@pytest.mark.parametrize("name", SETTINGS)
def test_their_mean_is_the_ordinary_result(name: str, ranked: int | None) -> None:
    make, samples = SETTINGS[name]
    e = make()
    for method in (e.shap_values, e.multipliers):
        ordinary, each = method(samples, ranked), method(samples, ranked, per_reference=True)
        if ranked is not None:
            np.testing.assert_array_equal(ordinary[1], each[1])
            ordinary, each = ordinary[0], each[0]
        assert isinstance(ordinary, list) == isinstance(each, list)
        for one, many in zip(listed(ordinary), listed(each), strict=True):
            assert many.shape == (N, B, *one.shape[1:])
            np.testing.assert_allclose(many.mean(1), one, atol=2e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_multiplier_times_the_difference_is_the_contribution(name: str) -> None:
    make, samples = SETTINGS[name]
    e = make()
    explanations: list[Any] = listed(e(samples))
    contributions = listed(e.shap_values(samples, per_reference=True))
    multipliers = listed(e.multipliers(samples, per_reference=True))
    background = e._latest.imported.background if not callable(e.data) else None
    for i, place in enumerate(e.input_names):
        x = np.asarray(explanations[i].data)[:, None, ..., None]
        if background is None:
            x0 = np.stack([BACKGROUND + row for row in SAMPLES])[..., None]
        elif place in background:
            x0 = background[place][None, ..., None]
        else:
            x0 = (1 / (1 + np.exp(-BACKGROUND)))[None, ..., None]
        np.testing.assert_allclose(multipliers[i] * (x - x0), contributions[i], atol=2e-6)


def test_each_reference_is_explained_as_if_it_were_alone() -> None:
    each = DeepExplainer(parsed(NET), BACKGROUND).shap_values(SAMPLES, per_reference=True)
    for j in range(B):
        alone = DeepExplainer(parsed(NET), BACKGROUND[j : j + 1])
        np.testing.assert_allclose(each[:, j], alone.shap_values(SAMPLES), atol=1e-6)
        np.testing.assert_allclose(alone.multipliers(SAMPLES, per_reference=True)[:, 0], alone.multipliers(SAMPLES))


def test_multipliers_of_a_linear_model_are_its_weights() -> None:
    body = "{ w = Constant <value = float[4,2] {1,2, 3,4, 5,6, 7,8}> () y = MatMul(x, w) }"
    e = DeepExplainer(parsed(body, "(float[N,4] x) => (float[N,2] y)"), BACKGROUND)
    weights = np.arange(1, 9).reshape(4, 2)
    np.testing.assert_allclose(e.multipliers(SAMPLES), np.broadcast_to(weights, (N, 4, 2)), rtol=1e-6)
    ranked, indexes = e.multipliers(SAMPLES, ranked_outputs=1)
    np.testing.assert_allclose(ranked[..., 0], weights.T[indexes[:, 0]], rtol=1e-6)


def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, background = data(9, 4, seed=2), data(11, 4, seed=3)
    expected = DeepExplainer(parsed(NET), background).shap_values(samples, per_reference=True)
    monkeypatch.setattr(pieces, "REFERENCES_PER_SUM", 4)
    for limit, threads in ((4000, 1), (4000, 2), (20_000, 2)):
        e = DeepExplainer(parsed(NET), background, memory_limit=limit, threads=threads)
        np.testing.assert_allclose(e.shap_values(samples, per_reference=True), expected, atol=1e-6)


def test_an_explanation_of_pairs_adds_up_for_each_reference() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(BACKGROUND, columns=list("abcd"))
    explanation = DeepExplainer(parsed(NET), frame)(SAMPLES, per_reference=True)
    assert explanation.values.shape == (N, B, 4, 4)
    assert explanation.base_values.shape == explanation.outputs.shape == (N, B, 4)
    gap = explanation.values.sum(2) - (explanation.outputs - explanation.base_values)
    np.testing.assert_allclose(gap, 0, atol=1e-6)
    np.testing.assert_allclose(explanation.base_values[1], net(BACKGROUND), rtol=1e-5)
    rows = explanation[2]
    np.testing.assert_array_equal(rows.data, np.broadcast_to(SAMPLES[2], (B, 4)))
    assert list(rows.feature_names) == list("abcd")
    pair = explanation[2, 3][..., 1]
    np.testing.assert_array_equal(pair.values, explanation.values[2, 3, :, 1])
    assert pair.base_values == explanation.base_values[2, 3, 1]


def test_an_explanation_of_pairs_knows_what_goes_around_a_place() -> None:
    e = DeepExplainer(parsed("{ h = Tanh(x) a = Exp(h) y = Add(a, x) }"), BACKGROUND, at="h")
    explanation = e(SAMPLES, per_reference=True)
    np.testing.assert_allclose(explanation.unattributed, SAMPLES[:, None] - BACKGROUND, atol=1e-6)
    ranked = e(SAMPLES, ranked_outputs=2, per_reference=True)
    assert ranked.unattributed.shape == (N, B, 2)
    assert ranked.base_values.shape == (N, B, 2)
    total = ranked.values.sum(2) + ranked.unattributed
    np.testing.assert_allclose(total, ranked.outputs - ranked.base_values, atol=1e-5)


def test_pairs_of_own_references_and_several_inputs() -> None:
    e = DeepExplainer(parsed(TWO, TWO_INPUTS), lambda x: [BACKGROUND + x[0], BACKGROUND - x[1]])
    explanations = e([SAMPLES, SAMPLES], per_reference=True)
    total = sum(part.values.sum(2) for part in explanations)
    np.testing.assert_allclose(total, explanations[0].outputs - explanations[0].base_values, atol=1e-5)
    expected = np.exp(np.tanh((BACKGROUND + SAMPLES[:, None]) * (BACKGROUND - SAMPLES[:, None])))
    np.testing.assert_allclose(explanations[1].base_values, expected, rtol=1e-4)


def test_more_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    e = DeepExplainer(parsed(NET), BACKGROUND)
    monkeypatch.setattr("deepshap_ir.specialisation.available_memory", lambda: 1000)
    message = r"4 outputs of 3 samples for each of 5 references take 3,840 bytes, more than the 1,000 that are free"
    with pytest.raises(InputError, match=message):
        e.shap_values(SAMPLES, per_reference=True)


def net(x: Array) -> Array:
    x = x.astype(np.float64)
    return np.asarray(np.tanh(x) / (1 + np.exp(-x)))
