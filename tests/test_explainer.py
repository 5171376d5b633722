"""What people touch: forms of data, shapes of results, held values, places, outputs, explanations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer, InputError
from deepshap_ir.extend import Context, Value
from tests.onnx_text import Array, data, parsed

BACKGROUND, SAMPLES = data(5, 4), data(3, 4, seed=1)
NET = "{ a = Sigmoid(x) b = Tanh(x) y = Mul(a, b) }"
ONE = "{ axes = Constant <value_ints=[1]> () a = Tanh(x) y = ReduceSum <keepdims=1> (a, axes) }"
TO_ONE = "(float[N,4] x) => (float[N,1] y)"
TWO_INPUTS = "(float[N,4] x, float[N,4] h) => (float[N,4] y)"
DOUBLE = "(double[N,4] x) => (double[N,4] y)"
HALF = "(float16[N,4] x) => (float16[N,4] y)"


def net(x: Array) -> Array:
    x = x.astype(np.float64)
    return np.asarray(np.tanh(x) / (1 + np.exp(-x)))


def explainer(body: str = NET, signature: str | None = None, background: Any = BACKGROUND, **settings: Any) -> Any:
    model = parsed(body) if signature is None else parsed(body, signature)
    return DeepExplainer(model, background, **settings)


def total(values: Array, features: int = 1) -> Array:
    """Sum over the features of ``[N, *features, *outputs]``."""
    return np.asarray(values.sum(tuple(range(1, 1 + features))))


def test_a_background_that_the_caller_changes_is_that_of_the_beginning() -> None:
    """Before the first call, and between calls, of which the later ones know the values at it."""
    background = BACKGROUND.copy()
    made, expected = explainer(background=background), explainer().shap_values(SAMPLES)
    for _ in range(2):
        background *= 3
        np.testing.assert_array_equal(made.shap_values(SAMPLES, check_additivity=False), expected)


# --- shapes


def test_one_input_and_several_outputs() -> None:
    values = explainer().shap_values(SAMPLES)
    assert (values.shape, values.dtype) == ((3, 4, 4), np.float64)
    np.testing.assert_allclose(total(values), net(SAMPLES) - net(BACKGROUND).mean(0), atol=1e-6)


def test_one_output_keeps_its_axis() -> None:
    e = explainer(ONE, TO_ONE)
    assert e.shap_values(SAMPLES).shape == (3, 4, 1)
    assert e.expected_value.shape == (1,)
    assert e.output_shape == (1,)


@pytest.mark.parametrize(
    ("body", "signature"),
    [
        (ONE.replace("keepdims=1", "keepdims=0"), "(float[N,4] x) => (float[N] y)"),
        ("{ a = Tanh(x) y = ReduceSum <keepdims=0> (a) }", "(float[1,4] x) => (float y)"),
    ],
)
def test_an_output_without_an_axis_of_its_own_is_one_output(body: str, signature: str) -> None:
    e = explainer(body, signature)
    values = e.shap_values(SAMPLES)
    assert values.shape == (3, 4, 1)
    np.testing.assert_allclose(values, explainer(ONE, TO_ONE).shap_values(SAMPLES), atol=1e-6)
    assert e.expected_value.shape == (1,)


def test_outputs_of_any_rank() -> None:
    body = "{ s = Constant <value_ints=[0,2,2]> () r = Reshape(x, s) y = Exp(r) }"
    e = explainer(body, "(float[N,4] x) => (float[N,2,2] y)")
    values = e.shap_values(SAMPLES)
    assert values.shape == (3, 4, 2, 2)
    assert e.expected_value.shape == (2, 2)
    assert e(SAMPLES).values.shape == (3, 4, 2, 2)
    np.testing.assert_allclose(total(values), e(SAMPLES).outputs - e.expected_value, atol=1e-5)
    ranked, indexes = e.shap_values(SAMPLES, ranked_outputs=3)
    assert (ranked.shape, indexes.shape) == ((3, 4, 3), (3, 3))


def test_several_inputs_give_a_list() -> None:
    e = explainer("{ a = Mul(x, h) y = Exp(a) }", TWO_INPUTS, [BACKGROUND, BACKGROUND[::-1]])
    values = e.shap_values([SAMPLES, SAMPLES[::-1]])
    assert isinstance(values, list)
    assert [v.shape for v in values] == [(3, 4, 4), (3, 4, 4)]
    by_name = e.shap_values({"h": SAMPLES[::-1], "x": SAMPLES})
    np.testing.assert_array_equal(by_name[0], values[0])
    np.testing.assert_array_equal(by_name[1], values[1])
    assert e.input_names == ("x", "h")


@pytest.mark.parametrize("listed", [list, tuple])
def test_a_list_of_one_gives_a_list_of_one(listed: Callable[[Any], Sequence[Array]]) -> None:
    values = explainer(background=listed([BACKGROUND])).shap_values(listed([SAMPLES]))
    assert isinstance(values, list)
    assert [v.shape for v in values] == [(3, 4, 4)]


def test_forms_of_data() -> None:
    pandas = pytest.importorskip("pandas")
    torch = pytest.importorskip("torch")
    expected = explainer().shap_values(SAMPLES)
    forms: list[Callable[[Array], Any]] = [
        lambda a: {"x": a},
        lambda a: a.tolist(),
        lambda a: a.astype(np.float64),
        pandas.DataFrame,
        torch.tensor,
    ]
    for form in forms:
        np.testing.assert_allclose(explainer(background=form(BACKGROUND)).shap_values(form(SAMPLES)), expected)


def test_pictures_keep_their_shape() -> None:
    body = "{ w = Constant <value = float[2,1,2,2] {1,2,3,4, -1,0,1,2}> () y = Conv(x, w) }"
    e = explainer(body, "(float[N,1,3,5] x) => (float[N,2,2,4] y)", data(6, 1, 3, 5))
    values = e.shap_values(data(2, 1, 3, 5))
    assert values.shape == (2, 1, 3, 5, 2, 2, 4)


# --- ranked outputs


@pytest.mark.parametrize("order", ["max", "min", "max_abs"])
def test_ranked_outputs(order: str) -> None:
    e = explainer()
    all_values, outputs = e.shap_values(SAMPLES), net(SAMPLES)
    values, indexes = e.shap_values(SAMPLES, ranked_outputs=2, output_rank_order=order)
    assert (values.shape, indexes.shape) == ((3, 4, 2), (3, 2))
    key = {"max": -outputs, "min": outputs, "max_abs": -np.abs(outputs)}[order]
    np.testing.assert_array_equal(indexes, np.argsort(key, axis=1)[:, :2])
    np.testing.assert_allclose(values, np.take_along_axis(all_values, indexes[:, None], 2), atol=1e-6)


def test_ranked_outputs_of_several_inputs() -> None:
    e = explainer("{ a = Mul(x, h) y = Exp(a) }", TWO_INPUTS, [BACKGROUND, BACKGROUND[::-1]])
    values, indexes = e.shap_values([SAMPLES, SAMPLES], ranked_outputs=1)
    assert [v.shape for v in values] == [(3, 4, 1), (3, 4, 1)]
    assert indexes.shape == (3, 1)


def test_an_explanation_of_ranked_outputs_says_which() -> None:
    explanation = explainer()(SAMPLES, ranked_outputs=2)
    assert explanation.values.shape == (3, 4, 2)
    assert explanation.base_values.shape == (3, 2)
    assert explanation.output_indexes.shape == (3, 2)
    assert explanation.output_names[0, 0] == f"Output {explanation.output_indexes[0, 0]}"
    gap = total(explanation.values) - (explanation.outputs - explanation.base_values)
    np.testing.assert_allclose(gap, 0, atol=1e-6)


# --- expected value


def test_expected_value_is_the_mean_output() -> None:
    e = explainer()
    np.testing.assert_allclose(e.expected_value, net(BACKGROUND).mean(0), rtol=1e-6)
    e.shap_values(SAMPLES, ranked_outputs=1)
    assert e.expected_value.shape == (4,)


def test_expected_value_of_own_references_is_one_per_sample() -> None:
    e = explainer(background=lambda sample: BACKGROUND + sample[0])
    before: Any = e.expected_value
    assert before is None
    e.shap_values(SAMPLES)
    expected = np.stack([net(BACKGROUND + x).mean(0) for x in SAMPLES])
    np.testing.assert_allclose(e.expected_value, expected, rtol=1e-5)
    e.shap_values(SAMPLES[:2], ranked_outputs=1)
    np.testing.assert_allclose(e.expected_value, expected[:2], rtol=1e-5)


# --- references by a function


def test_a_function_is_given_the_sample_without_batch_axis() -> None:
    seen = []

    def references(sample: list[Array]) -> list[Array]:
        seen.append([a.shape for a in sample])
        return [BACKGROUND, BACKGROUND[::-1]]

    e = explainer("{ a = Mul(x, h) y = Exp(a) }", TWO_INPUTS, references)
    values = e.shap_values([SAMPLES, SAMPLES])
    assert set(map(tuple, seen)) == {((4,), (4,))}
    shared = explainer("{ a = Mul(x, h) y = Exp(a) }", TWO_INPUTS, [BACKGROUND, BACKGROUND[::-1]])
    for got, expected in zip(values, shared.shap_values([SAMPLES, SAMPLES]), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_random_references_still_sum_to_the_delta() -> None:
    rng = np.random.default_rng(0)
    e = explainer(background=lambda sample: rng.permuted(np.tile(sample[0], (20, 1)), axis=1))
    explanation = e(SAMPLES)
    assert explanation.base_values.shape == (3, 4)
    np.testing.assert_allclose(total(explanation.values), net(SAMPLES) - explanation.base_values, atol=1e-5)


def test_a_function_gives_no_held_values() -> None:
    body = "{ a = Mul(x, h) y = Exp(a) }"
    own = explainer(body, TWO_INPUTS, lambda sample: BACKGROUND, hold=["h"])
    shared = explainer(body, TWO_INPUTS, {"x": BACKGROUND, "h": BACKGROUND}, hold=["h"])
    samples = {"x": SAMPLES, "h": SAMPLES[::-1]}
    np.testing.assert_allclose(own.shap_values(samples), shared.shap_values(samples), atol=1e-5)


def test_before_the_first_samples_a_function_fixes_no_shapes() -> None:
    e = explainer(background=lambda sample: BACKGROUND)
    with pytest.raises(InputError, match="the references are a function: explain some samples first"):
        e.graph  # noqa: B018
    e.shap_values(SAMPLES)
    assert e.graph.shapes["x"] == (1, 4)


# --- held values


def test_a_held_input_takes_the_value_of_the_sample() -> None:
    e = explainer("{ a = Mul(x, h) y = Exp(a) }", TWO_INPUTS, {"x": BACKGROUND, "h": BACKGROUND}, hold=["h"])
    held = SAMPLES[::-1]
    values = e.shap_values({"x": SAMPLES, "h": held})
    base = np.exp(BACKGROUND * held[:, None]).mean(1)
    np.testing.assert_allclose(e.expected_value, base, rtol=1e-5)
    np.testing.assert_allclose(total(values), np.exp(SAMPLES * held) - base, atol=1e-5)
    assert e.input_names == ("x",)


def test_inputs_that_are_not_named_are_held() -> None:
    body = "{ a = Mul(x, h) y = Exp(a) }"
    background, samples = {"x": BACKGROUND, "h": BACKGROUND}, {"x": SAMPLES, "h": SAMPLES[::-1]}
    chosen = explainer(body, TWO_INPUTS, background, inputs=["x"])
    held = explainer(body, TWO_INPUTS, background, hold=["h"])
    np.testing.assert_array_equal(chosen.shap_values(samples), held.shap_values(samples))


@pytest.mark.parametrize("settings", [{"hold": ["x"]}, {"inputs": ["h"]}], ids=str)
def test_a_list_with_held_inputs_is_in_the_order_of_the_model(settings: dict[str, Any]) -> None:
    """Not the explained ones first, which would give each input the data of the other."""
    e = explainer("{ a = Tanh(x) y = Mul(a, h) }", TWO_INPUTS, [BACKGROUND, 2 * BACKGROUND], **settings)
    h = SAMPLES[::-1]
    (values,) = e.shap_values([SAMPLES, h])
    np.testing.assert_array_equal(values, e.shap_values({"h": h, "x": SAMPLES}))
    np.testing.assert_allclose(total(values), np.tanh(SAMPLES) * (h - 2 * BACKGROUND.mean(0)), atol=1e-5)


def test_an_input_held_at_a_constant_needs_no_data() -> None:
    constant = np.arange(4, dtype=np.float32)
    e = explainer("{ y = Mul(x, h) }", "(float[N,4] x, float[4] h) => (float[N,4] y)", hold={"h": constant})
    values = e.shap_values(SAMPLES)
    np.testing.assert_allclose(total(values), constant * (SAMPLES - BACKGROUND.mean(0)), atol=1e-6)


def test_a_held_value_in_the_middle() -> None:
    values = explainer(hold=["a"]).shap_values(SAMPLES)
    gate = 1 / (1 + np.exp(-SAMPLES.astype(np.float64)))
    expected = gate * (np.tanh(SAMPLES) - np.tanh(BACKGROUND).mean(0))
    np.testing.assert_allclose(np.diagonal(values, axis1=1, axis2=2), expected, atol=1e-6)


def test_an_input_that_nothing_reads_gets_nothing() -> None:
    e = explainer("{ y = Tanh(x) }", TWO_INPUTS, [BACKGROUND, BACKGROUND])
    used, unused = e.shap_values([SAMPLES, SAMPLES])
    assert np.abs(used).max() > 0
    np.testing.assert_array_equal(unused, np.zeros((3, 4, 4)))
    explanations = e([SAMPLES, SAMPLES])
    np.testing.assert_array_equal(explanations[1].values, 0)
    np.testing.assert_array_equal(explanations[1].standard_error, 0)


# --- other places, inputs and outputs


def test_data_may_be_fed_in_the_middle() -> None:
    hidden, hidden0 = np.tanh(SAMPLES), np.tanh(BACKGROUND)
    values = explainer("{ h = Tanh(x) y = Exp(h) }", background=hidden0, inputs=["h"]).shap_values(hidden)
    expected = explainer("{ h = Tanh(x) y = Exp(h) }", at=["h"]).shap_values(SAMPLES)
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_attributions_may_be_in_the_middle() -> None:
    explanation = explainer("{ h = Tanh(x) y = Exp(h) }", at=["h"])(SAMPLES)
    np.testing.assert_allclose(explanation.data, np.tanh(SAMPLES), rtol=1e-6)
    np.testing.assert_allclose(
        total(explanation.values), np.exp(np.tanh(SAMPLES)) - np.exp(np.tanh(BACKGROUND)).mean(0), atol=1e-6
    )
    np.testing.assert_array_equal(explanation.unattributed, 0)


def test_what_goes_around_a_place_is_unattributed() -> None:
    e = explainer("{ h = Tanh(x) a = Exp(h) y = Add(a, x) }", at="h")
    explanation = e(SAMPLES)
    np.testing.assert_allclose(explanation.unattributed, SAMPLES - BACKGROUND.mean(0), atol=1e-6)
    np.testing.assert_allclose(
        total(explanation.values) + explanation.unattributed, explanation.outputs - explanation.base_values, atol=1e-6
    )
    assert e.shap_values(SAMPLES).shape == (3, 4, 4)


def test_several_places() -> None:
    e = explainer("{ h = Tanh(x) g = Sigmoid(x) y = Mul(h, g) }", at=["h", "g"])
    values = e.shap_values(SAMPLES)
    assert [v.shape for v in values] == [(3, 4, 4)] * 2
    explanations = e(SAMPLES)
    np.testing.assert_allclose(explanations[1].data, 1 / (1 + np.exp(-SAMPLES)), rtol=1e-6)
    np.testing.assert_allclose(total(values[0]) + total(values[1]), net(SAMPLES) - net(BACKGROUND).mean(0), atol=1e-6)


def test_a_place_that_reaches_the_output_through_others_alone() -> None:
    """Nothing is left for it; it has its data all the same."""
    e = explainer("{ h = Tanh(x) g = Exp(h) y = Neg(g) }", at=["h", "g"])
    through, last = e(SAMPLES)
    np.testing.assert_array_equal(through.values, 0)
    np.testing.assert_allclose(through.data, np.tanh(SAMPLES), rtol=1e-6)
    np.testing.assert_allclose(total(last.values), last.outputs - last.base_values, atol=1e-6)


def test_any_value_may_be_the_output() -> None:
    two = "(float[N,4] x) => (float[N,4] h, float[N,4] y)"
    body = "{ h = Tanh(x) m = Exp(h) y = Neg(m) }"
    for output, function in ((0, np.tanh), ("y", lambda x: -np.exp(np.tanh(x))), ("m", lambda x: np.exp(np.tanh(x)))):
        e = explainer(body, two, output=output)
        expected = function(SAMPLES) - function(BACKGROUND).mean(0)
        np.testing.assert_allclose(total(e.shap_values(SAMPLES)), expected, atol=1e-6)
    assert explainer(body, two, output=-1).output_name == "y"


def test_integers_and_truth_values_are_numbers() -> None:
    to_int = "(int64[N,4] x) => (float[N,4] y)"
    e = explainer("{ f = Cast <to=1> (x) y = Exp(f) }", to_int, np.arange(20).reshape(5, 4) % 3)
    assert e.shap_values(np.arange(12).reshape(3, 4) % 2).shape == (3, 4, 4)
    body = "{ zero = Constant <value_float=0.0> () y = Greater(x, zero) }"
    delta = (SAMPLES > 0) - (BACKGROUND > 0).mean(0)
    to_bool = "(float[N,4] x) => (bool[N,4] y)"
    for background, precision in ((BACKGROUND, None), (lambda sample: BACKGROUND, None), (BACKGROUND, "float64")):
        e = explainer(body, to_bool, background, output="y", precision=precision)
        np.testing.assert_allclose(total(e.shap_values(SAMPLES)), delta, atol=1e-6)


# --- batch axes


def test_a_batch_may_lie_along_another_axis() -> None:
    body = "{ axes = Constant <value_ints=[0]> () a = ReduceSum <keepdims=0> (x, axes) y = Tanh(a) }"
    e = explainer(body, "(float[2,N,4] x) => (float[N,4] y)", data(2, 5, 4), batch_axes={"x": 1})
    samples = data(2, 3, 4, seed=1)
    explanation = e(samples)
    assert explanation.values.shape == (3, 2, 4, 4)
    np.testing.assert_array_equal(explanation.data, samples.swapaxes(0, 1))
    np.testing.assert_allclose(
        total(explanation.values, 2), np.tanh(samples.sum(0)) - np.tanh(data(2, 5, 4).sum(0)).mean(0), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(), (4,)])
@pytest.mark.parametrize("form", ["array", "function"])
def test_an_input_without_a_batch_axis_is_explained_too(shape: tuple[int, ...], form: str) -> None:
    signature = f"(float[N,4] x, float{list(shape) if shape else ''} s) => (float[N,4] y)"
    s0, s1 = np.full(shape, 2, np.float32), np.full(shape, 3, np.float32)
    background: Any = [BACKGROUND, s0] if form == "array" else lambda sample: [BACKGROUND, s0]
    e = explainer("{ a = Mul(x, s) y = Tanh(a) }", signature, background, batch_axes={"s": None})
    values = e.shap_values([SAMPLES, s1])
    assert [v.shape for v in values] == [(3, 4, 4), (3, *shape, 4)]
    delta = np.tanh(SAMPLES * s1) - np.tanh(BACKGROUND * s0).mean(0)
    np.testing.assert_allclose(total(values[0]) + total(values[1], len(shape)), delta, atol=1e-5)


def test_a_held_input_without_a_batch_axis() -> None:
    signature = "(float[N,4] x, float[4] s) => (float[N,4] y)"
    background = {"x": BACKGROUND, "s": np.full(4, 2, np.float32)}
    settings: dict[str, Any] = {"batch_axes": {"s": None}, "hold": ["s"]}
    e = explainer("{ a = Mul(x, s) y = Tanh(a) }", signature, background, **settings)
    np.testing.assert_allclose(e.expected_value, np.tanh(2 * BACKGROUND).mean(0), rtol=1e-5)
    values = e.shap_values({"x": SAMPLES, "s": np.full(4, 3)})
    np.testing.assert_allclose(total(values), np.tanh(3 * SAMPLES) - np.tanh(3 * BACKGROUND).mean(0), atol=1e-5)
    np.testing.assert_allclose(e.expected_value, np.tanh(3 * BACKGROUND).mean(0), rtol=1e-5)


# --- precision


def test_a_double_model_stays_double() -> None:
    e = explainer("{ a = Tanh(x) y = Exp(a) }", DOUBLE, BACKGROUND.astype(np.float64))
    samples = SAMPLES.astype(np.float64)
    explanation = e(samples)
    gap = total(explanation.values) - (np.exp(np.tanh(samples)) - explanation.base_values)
    assert np.abs(gap).max() < 1e-12


def test_precision_makes_any_model_double() -> None:
    explanation = explainer(precision="float64")(SAMPLES)
    gap = total(explanation.values) - (explanation.outputs - explanation.base_values)
    assert np.abs(gap).max() < 1e-12
    np.testing.assert_allclose(explanation.outputs, net(SAMPLES), rtol=1e-12)
    np.testing.assert_allclose(explanation.values, explainer().shap_values(SAMPLES), atol=1e-6)


def test_a_half_model_is_explained_in_single_precision() -> None:
    values = explainer(NET, HALF, BACKGROUND.astype(np.float16)).shap_values(SAMPLES.astype(np.float16))
    np.testing.assert_allclose(values, explainer().shap_values(SAMPLES), atol=5e-3)


def test_a_double_model_that_onnxruntime_lacks_runs_in_single_precision_with_a_warning() -> None:
    """onnxruntime has no double kernel of Erf."""
    background, samples = BACKGROUND.astype(np.float64), SAMPLES.astype(np.float64)
    exact = explainer("{ y = Erf(x) }", DOUBLE, background, precision="float64").shap_values(samples)
    warning = r"lacks double-precision kernels .*Erf.*precision='float64'"
    with pytest.warns(UserWarning, match=warning):
        e = explainer("{ y = Erf(x) }", DOUBLE, background)
    np.testing.assert_allclose(e.shap_values(samples), exact, atol=1e-6)
    np.testing.assert_allclose(e(samples).values, exact, atol=1e-6)
    e = explainer("{ y = Erf(x) }", DOUBLE, lambda sample: background)
    with pytest.warns(UserWarning, match=warning):
        values = e.shap_values(samples)
    np.testing.assert_allclose(values, exact, atol=1e-6)


def test_a_model_of_mixed_precision() -> None:
    body = "{ d = Cast <to=11> (x) e = Exp(d) f = Cast <to=1> (e) y = Tanh(f) }"
    values = explainer(body).shap_values(SAMPLES)
    np.testing.assert_allclose(total(values), np.tanh(np.exp(SAMPLES)) - np.tanh(np.exp(BACKGROUND)).mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("2GB", 2e9), ("500 MiB", 500 * 2**20), ("1.5kb", 1500), ("7", 7), ("1TB", 1e12), ("3 B", 3), (123, 123)],
)
@pytest.mark.filterwarnings("ignore:one triple")
def test_memory_limits(limit: int | str, expected: float) -> None:
    e = explainer(memory_limit=limit)
    assert e.memory_limit == expected
    np.testing.assert_allclose(e.shap_values(SAMPLES), explainer().shap_values(SAMPLES), atol=1e-6)


# --- explanations


def test_an_explanation_holds_all_there_is() -> None:
    e = explainer(ONE, TO_ONE)
    explanation = e(SAMPLES)
    assert explanation.values.shape == (3, 4)  # the axis of an only output is dropped
    np.testing.assert_allclose(explanation.values, e.shap_values(SAMPLES)[..., 0], atol=1e-7)
    np.testing.assert_array_equal(explanation.data, SAMPLES)
    np.testing.assert_allclose(explanation.base_values, np.tile(e.expected_value, 3), rtol=1e-6)
    np.testing.assert_allclose(explanation.outputs, np.tanh(SAMPLES).sum(1), rtol=1e-6)
    assert explanation.unattributed is None
    assert explanation.feature_names is None


def test_standard_error_is_that_of_the_mean_over_the_references() -> None:
    each = np.stack([explainer(background=BACKGROUND[i : i + 1]).shap_values(SAMPLES) for i in range(5)])
    explanation = explainer()(SAMPLES)
    np.testing.assert_allclose(explanation.values, each.mean(0), atol=1e-6)
    np.testing.assert_allclose(explanation.standard_error, each.std(0, ddof=1) / np.sqrt(5), atol=1e-6)


@pytest.mark.parametrize("references", [40, 130])
def test_a_standard_error_that_is_small_beside_the_values(references: int) -> None:
    """Contributions near 1000 that differ by 0.01: their squares agree in all digits of float32."""
    background = data(references, 4, seed=2) * 0.01 - 1000
    explanation = explainer("{ y = Identity(x) }", background=background)(0 * SAMPLES)
    spread = background.astype(np.float64).std(0, ddof=1) / np.sqrt(references)
    errors = np.diagonal(explanation.standard_error, axis1=1, axis2=2)
    np.testing.assert_allclose(errors, np.tile(spread, (3, 1)), rtol=0.02)


def test_one_reference_has_no_standard_error() -> None:
    assert explainer(background=BACKGROUND[:1])(SAMPLES).standard_error is None


def test_columns_name_the_features() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(SAMPLES, columns=["a", "b", "c", "d"])
    assert list(explainer()(frame).feature_names) == ["a", "b", "c", "d"]
    named = explainer(background=pandas.DataFrame(BACKGROUND, columns=["e", "f", "g", "h"]))
    assert list(named(SAMPLES).feature_names) == ["e", "f", "g", "h"]
    assert explainer("{ h = Tanh(x) y = Exp(h) }", at="h")(frame).feature_names is None


def test_samples_are_not_changed() -> None:
    background, samples = BACKGROUND.copy(), SAMPLES.copy()
    background.flags.writeable = samples.flags.writeable = False
    explainer(background=background)(samples)
    np.testing.assert_array_equal(samples, SAMPLES)


def test_the_check_may_be_left_out() -> None:
    def half(ctx: Context, m: Sequence[Value]) -> Value:
        return m[0] * 0.5

    e = explainer("{ y = Neg(x) }", rules={"Neg": half})
    values = e.shap_values(SAMPLES, check_additivity=False)
    np.testing.assert_allclose(total(values), 0.5 * (SAMPLES - BACKGROUND.mean(0)), atol=1e-6)
    assert e(SAMPLES, check_additivity=False).values.shape == (3, 4, 4)


def test_samples_in_any_number_and_order() -> None:
    e = explainer()
    values = e.shap_values(np.concatenate([SAMPLES, SAMPLES[::-1], BACKGROUND]))
    np.testing.assert_allclose(values[:3], e.shap_values(SAMPLES), atol=1e-7)
    np.testing.assert_allclose(values[3:6], values[:3][::-1], atol=1e-7)
    one = e.shap_values(SAMPLES[1:2])
    np.testing.assert_allclose(one[0], values[1], atol=1e-7)


def test_a_reference_explained_by_itself_has_no_contributions() -> None:
    values = explainer(background=BACKGROUND[:1]).shap_values(BACKGROUND[:1])
    np.testing.assert_array_equal(values, 0)


def test_outputs_in_pieces_meet_the_same_references() -> None:
    """More outputs than fit one piece: a random function is asked once for each sample."""
    asked = []

    def references(sample: list[Array]) -> Array:
        asked.append(sample[0])
        return data(5, 4, seed=len(asked))

    e = explainer(background=references, memory_limit=2000)
    got = e(SAMPLES)
    assert e._evaluator().pieces(4, 3, 5).sizes["output"] < 4
    np.testing.assert_array_equal(asked, SAMPLES)
    base = np.stack([net(data(5, 4, seed=1 + i)).mean(0) for i in range(3)])
    np.testing.assert_allclose(got.base_values, base, rtol=1e-5)
    np.testing.assert_allclose(total(got.values), net(SAMPLES) - base, atol=1e-6)


@pytest.mark.parametrize("ranked", [None, 3])
def test_outputs_in_pieces_give_the_same(ranked: int | None) -> None:
    e, whole = explainer(memory_limit=1000, threads=2), explainer()
    assert e._evaluator().pieces(4, 3, 5).sizes["output"] < 3
    got, expected = e(SAMPLES, ranked), whole(SAMPLES, ranked)
    for part in ("values", "base_values", "outputs", "standard_error"):
        np.testing.assert_allclose(getattr(got, part), getattr(expected, part), atol=1e-6)
    for node, residual in e.ledger(SAMPLES).items():
        np.testing.assert_allclose(residual, whole.ledger(SAMPLES)[node], atol=1e-6)


def test_the_ledger_adds_up_to_the_gap() -> None:
    def leaking(ctx: Context, m: Sequence[Value]) -> list[Value]:
        return [m[0] * ctx.x(1), m[0] * ctx.x(0)]

    e = explainer(rules={"Mul": leaking})
    values = e.shap_values(SAMPLES, check_additivity=False)
    gap = net(SAMPLES) - net(BACKGROUND).mean(0) - total(values)
    assert np.abs(gap).max() > 1e-2
    np.testing.assert_allclose(sum(e.ledger(SAMPLES).values()), gap, atol=1e-6)


def test_probabilities_of_rare_events() -> None:
    """Below 1e-7 onnxruntime's Sigmoid has no digits that are right; that is no leak of a rule."""
    body = "<int64[1] one = {1}, float high = {16.5}> { s = Sub(x, high) p = Sigmoid(s) y = Squeeze(p, one) }"
    model = parsed(body, "(float[N,1,4] x) => (float[N,4] y)")
    background, samples = data(40, 1, 4), data(20, 1, 4, seed=1)
    phi = DeepExplainer(model, background).shap_values(samples)
    y, y0 = (1 / (1 + np.exp(16.5 - rows.astype(np.float64))) for rows in (samples, background))
    np.testing.assert_allclose(phi.sum((1, 2)), (y - y0.mean(0))[:, 0], atol=3e-7)
