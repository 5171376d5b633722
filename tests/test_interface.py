"""The interface of `shap.DeepExplainer`, form by form: what may be given, and what comes back.

Forms that belong to one framework, (module, layer) or a pair of Keras tensors say, are in `tests/converters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import shap
import torch

from deepshap_ir import DeepExplainer, InputError
from tests.onnx_text import Array, data, parsed

mpl.use("Agg")

B, N, NAMES = 6, 3, ["age", "height", "weight", "pulse"]
BACKGROUND, SAMPLES = data(B, 4), data(N, 4, seed=1)
NET = "{ w = Constant <value = float[4,3] {1,2,0, -1,0,1, 2,2,1, 0,-2,1}> () h = MatMul(x, w) y = Tanh(h) }"
TO_THREE = "(float[N,4] x) => (float[N,3] y)"
TO_ONE = "(float[N,4] x) => (float[N,1] y)"
ONE = "{ k = Constant <value_ints=[1]> () a = Tanh(x) y = ReduceSum <keepdims=1> (a, k) }"
TWO = "{ a = Mul(x, h) y = Tanh(a) }"
TWO_INPUTS = "(float[N,4] x, float[N,4] h) => (float[N,4] y)"


class Tensor:
    """Of a framework that nobody has heard of."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self._array if dtype is None else self._array.astype(dtype)


def tensorflow_tensor(array: Array) -> Any:
    return pytest.importorskip("tensorflow").constant(array)


def column_by_column(array: Array) -> Any:
    return pd.DataFrame(dict(zip(NAMES, array.T, strict=True)))


FORMS: dict[str, Callable[[Array], Any]] = {
    "array": lambda a: a,
    "float64": lambda a: a.astype(np.float64),
    "list of rows": lambda a: a.tolist(),
    "mapping": lambda a: {"x": a},
    "frame": column_by_column,
    "mapping of frames": lambda a: {"x": column_by_column(a)},
    "torch": torch.tensor,
    "torch that records": lambda a: torch.tensor(a, requires_grad=True),
    "bfloat16": lambda a: torch.tensor(a).bfloat16(),
    "tensorflow": tensorflow_tensor,
    "another framework": Tensor,
}


@pytest.fixture(scope="module")
def plain() -> DeepExplainer:
    return DeepExplainer(parsed(NET, TO_THREE), BACKGROUND)


@pytest.mark.parametrize("form", FORMS)
def test_data_and_samples_in_any_form(form: str, plain: DeepExplainer) -> None:
    expected, given = plain.shap_values(SAMPLES), FORMS[form]
    atol = 0.02 if form == "bfloat16" else 1e-6
    e = DeepExplainer(parsed(NET, TO_THREE), given(BACKGROUND))
    np.testing.assert_allclose(e.shap_values(SAMPLES), expected, atol=atol)
    np.testing.assert_allclose(plain.shap_values(given(SAMPLES)), expected, atol=atol)
    own = DeepExplainer(parsed(NET, TO_THREE), lambda sample: given(BACKGROUND))
    np.testing.assert_allclose(own.shap_values(given(SAMPLES)), expected, atol=atol)
    if form not in ("mapping", "mapping of frames", "list of rows"):
        listed = DeepExplainer(parsed(NET, TO_THREE), [given(BACKGROUND)]).shap_values([given(SAMPLES)])
        assert isinstance(listed, list)
        np.testing.assert_allclose(listed[0], expected, atol=atol)


# --- what comes back


def of_two() -> DeepExplainer:
    return DeepExplainer(parsed(TWO, TWO_INPUTS), [BACKGROUND, BACKGROUND[::-1]])


RETURNS: dict[str, tuple[Callable[[], DeepExplainer], Any, Any]] = {
    "1 input, K outputs": (lambda: DeepExplainer(parsed(NET, TO_THREE), BACKGROUND), SAMPLES, (N, 4, 3)),
    "1 input, 1 output": (lambda: DeepExplainer(parsed(ONE, TO_ONE), BACKGROUND), SAMPLES, (N, 4, 1)),
    "a list of one input": (lambda: DeepExplainer(parsed(ONE, TO_ONE), [BACKGROUND]), [SAMPLES], [(N, 4, 1)]),
    "n inputs": (of_two, [SAMPLES, SAMPLES], [(N, 4, 4), (N, 4, 4)]),
    "n inputs by name": (of_two, {"h": SAMPLES, "x": SAMPLES}, [(N, 4, 4), (N, 4, 4)]),
    "one sample": (of_two, [SAMPLES[:1], SAMPLES[:1]], [(1, 4, 4), (1, 4, 4)]),
}


@pytest.mark.parametrize("row", RETURNS)
def test_shapes_and_dtypes(row: str) -> None:
    make, samples, shapes = RETURNS[row]
    e = make()
    values, k = e.shap_values(samples), e.output_shape[0]
    parts = values if isinstance(values, list) else [values]
    assert ([a.shape for a in values] if isinstance(values, list) else values.shape) == shapes
    assert all(a.dtype == np.float64 for a in parts)
    base = e.expected_value
    assert isinstance(base, np.ndarray)
    assert base.shape == (k,)
    assert base.dtype == np.float64
    outputs = np.asarray((lambda found: found[0] if isinstance(found, list) else found)(e(samples)).outputs)
    gap = sum(a.sum(1) for a in parts) - (outputs.reshape(len(outputs), k) - base)
    np.testing.assert_allclose(gap, 0, atol=1e-5)


@pytest.mark.parametrize("order", ["max", "min", "max_abs"])
@pytest.mark.parametrize("row", RETURNS)
def test_ranked_outputs_pass_the_check_in_every_order(row: str, order: str) -> None:
    make, samples, _ = RETURNS[row]
    e = make()
    whole = e.shap_values(samples)
    ranked, indexes = e.shap_values(samples, 1, order, True)
    assert indexes.shape == (len(indexes), 1)
    assert isinstance(ranked, list) == isinstance(whole, list)
    pairs = zip(ranked, whole, strict=True) if isinstance(whole, list) else [(ranked, whole)]
    for part, every in pairs:
        np.testing.assert_allclose(part, np.take_along_axis(every, indexes[:, None], 2), atol=1e-6)


def test_the_expected_value_of_a_function_follows_the_samples() -> None:
    e = DeepExplainer(parsed(NET, TO_THREE), lambda sample: BACKGROUND + sample[0])
    before: Any = e.expected_value
    e.shap_values(SAMPLES)
    after: Any = e.expected_value
    assert before is None
    assert after.shape == (N, 3)


@pytest.mark.parametrize("row", RETURNS)
def test_one_row_in_the_words_of_shap(row: str) -> None:
    make, samples, _ = RETURNS[row]
    e = make()
    arrays = [samples[n] for n in e.input_names] if isinstance(samples, dict) else samples
    arrays = arrays if isinstance(arrays, list) else [arrays]
    found = e.explain_row(*(a[0] for a in arrays), max_evals=500, main_effects=False, batch_size=10, outputs=None)
    assert set(found) == {"values", "expected_values", "mask_shapes", "main_effects", "clustering"}
    whole = e.shap_values(arrays)
    first = [a[0] for a in whole] if len(whole) > 1 else whole[0][0]
    np.testing.assert_allclose(found["values"], first, atol=1e-6)
    base: Any = e.expected_value
    np.testing.assert_allclose(found["expected_values"], base, atol=1e-6)
    assert found["mask_shapes"] == [(4,)] * len(whole)
    assert (found["main_effects"], found["clustering"]) == (None, None)


def test_one_row_at_a_place_inside() -> None:
    e = DeepExplainer(parsed(NET, TO_THREE), BACKGROUND, at=["h"])
    found = e.explain_row(SAMPLES[0])
    assert found["values"].shape == (3, 3)
    assert found["mask_shapes"] == [(3,)]


def test_maskers_are_not_for_this_explainer() -> None:
    assert DeepExplainer.supports_model_with_masker(None, None) is False
    assert shap.DeepExplainer.supports_model_with_masker(None, None) is False


def test_arguments_by_position_are_those_of_shap() -> None:
    import inspect

    ours, theirs = inspect.signature(DeepExplainer.__init__), inspect.signature(shap.DeepExplainer.__init__)
    assert list(ours.parameters)[:5] == list(theirs.parameters)
    ours, theirs = (inspect.signature(cls.shap_values) for cls in (DeepExplainer, shap.DeepExplainer))
    assert list(ours.parameters)[:5] == list(theirs.parameters)
    for name, parameter in theirs.parameters.items():
        assert ours.parameters[name].default == parameter.default


def test_tensorflow_sessions_are_no_part_of_other_models() -> None:
    forms: list[dict[str, Any]] = [{"session": object()}, {"learning_phase_flags": [object()]}]
    for settings in forms:
        with pytest.raises(InputError, match="session= and learning_phase_flags= belong to TensorFlow 1 graphs"):
            DeepExplainer(parsed(NET, TO_THREE), BACKGROUND, **settings)


def test_session_and_flags_reach_the_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepshap_ir.converters import onnx_file, registry

    seen: list[Any] = []
    usual = onnx_file.convert

    def convert(model: Any, background: Any, settings: Any) -> Any:
        seen.append((settings.session, settings.learning_phase_flags))
        return usual(model, background, settings)

    monkeypatch.setattr(onnx_file, "TAKES_SESSION", True, raising=False)
    monkeypatch.setattr(onnx_file, "convert", convert)
    monkeypatch.setattr(registry, "converters", lambda: (onnx_file,))
    DeepExplainer(parsed(NET, TO_THREE), BACKGROUND, "session", ["flag"])
    DeepExplainer(parsed(NET, TO_THREE), lambda sample: BACKGROUND, "session", ["flag"]).shap_values(SAMPLES)
    assert seen == [("session", ["flag"])] * 2


# --- DataFrames


def test_columns_are_matched_by_name() -> None:
    frame, samples = pd.DataFrame(BACKGROUND, columns=NAMES), pd.DataFrame(SAMPLES, columns=NAMES)
    e = DeepExplainer(parsed(NET, TO_THREE), frame)
    expected = e.shap_values(SAMPLES)
    explanation = e(samples[NAMES[::-1]])
    np.testing.assert_array_equal(explanation.values, expected)
    assert list(explanation.feature_names) == NAMES
    assert list(e(SAMPLES).feature_names) == NAMES
    with pytest.raises(
        InputError, match=r"^samples of input 'x': missing column 'height', 'pulse'\. .*: 'age', 'weight'"
    ):
        e.shap_values(samples[["age", "weight"]])
    with pytest.raises(InputError, match="column 'label' is not in the background; leave it out"):
        e.shap_values(samples.assign(label=0))
    own = DeepExplainer(parsed(NET, TO_THREE), lambda sample: frame)
    assert list(own(samples).feature_names) == NAMES


COLUMNS = "{ a = Mul(age, height) b = Add(a, weight) y = Tanh(b) }"


@pytest.mark.parametrize("shape", ["[N,1]", "[N]"])
def test_one_frame_for_several_inputs_of_one_column(shape: str) -> None:
    model = parsed(COLUMNS, f"(float{shape} age, float{shape} height, float{shape} weight) => (float{shape} y)")
    background = pd.DataFrame(BACKGROUND[:, :3], columns=NAMES[:3])
    samples = pd.DataFrame(SAMPLES[:, :3], columns=NAMES[:3])
    e = DeepExplainer(model, background)
    by_name = {name: samples[name].to_numpy().reshape(N, *([1] if shape == "[N,1]" else [])) for name in NAMES[:3]}
    expected = e.shap_values(by_name)
    for form in (samples, samples[["weight", "age", "height"]]):
        for got, want in zip(e.shap_values(form), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    explanations = e(samples)
    if shape == "[N,1]":
        assert [list(part.feature_names) for part in explanations] == [["age"], ["height"], ["weight"]]
    with pytest.raises(InputError, match=r"samples: missing 'height'"):
        e.shap_values(samples.drop(columns="height"))
    with pytest.raises(InputError, match=r"samples: no input 'label'"):
        e.shap_values(samples.assign(label=0))
    own = DeepExplainer(model, lambda sample: background)
    for got, want in zip(own.shap_values(samples), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


# --- samples of several lengths


LENGTHS = "{ t = Tanh(x) k = Constant <value_ints=[1]> () y = ReduceMean <keepdims=0> (t, k) }"
ANY_LENGTH = "(float[N,L,4] x) => (float[N,4] y)"


def test_references_by_a_function_follow_the_length_of_the_samples() -> None:
    asked = []

    def references(sample: list[Array]) -> Array:
        asked.append(sample[0].shape)
        return data(B, *sample[0].shape, seed=5)

    e = DeepExplainer(parsed(LENGTHS, ANY_LENGTH), references)
    for length in (5, 8, 5, 3):
        samples = data(N, length, 4, seed=length)
        expected = DeepExplainer(parsed(LENGTHS, ANY_LENGTH), data(B, length, 4, seed=5)).shap_values(samples)
        np.testing.assert_allclose(e.shap_values(samples), expected, atol=1e-6)
        assert e.graph.shapes["x"] == (1, length, 4)
    assert asked == [(5, 4)] * N + [(8, 4)] * N + [(5, 4)] * N + [(3, 4)] * N
    assert len(e._known) == 3


def test_shapes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepshap_ir.explainer as module
    from deepshap_ir.importing.importer import import_model

    made, usual = [], import_model

    def imported(*arguments: Any, **settings: Any) -> Any:
        made.append(arguments[1].shape)
        return usual(*arguments, **settings)

    monkeypatch.setattr("deepshap_ir.specialisation.import_model", imported)
    monkeypatch.setattr(module, "KEPT", 2)
    e = DeepExplainer(parsed(LENGTHS, ANY_LENGTH), lambda sample: 0 * sample[0][None])
    for length in (5, 8, 5, 3, 5, 8):  # 8 was used least when 3 came
        e.shap_values(data(N, length, 4))
    assert [shape[1] for shape in made] == [5, 8, 3, 8]


def test_lengths_that_do_not_fit() -> None:
    e = DeepExplainer(parsed(LENGTHS, ANY_LENGTH), data(B, 5, 4))
    message = (
        r"samples of input 'x': expected shape \[rows, 5, 4\], given \[3, 8, 4\]\. The background fixes .* function"
    )
    with pytest.raises(InputError, match=message):
        e.shap_values(data(N, 8, 4))
    own = DeepExplainer(parsed(LENGTHS, "(float[N,5,4] x) => (float[N,4] y)"), lambda sample: data(B, 5, 4))
    own.shap_values(data(N, 5, 4))
    with pytest.raises(InputError, match=r"samples of input 'x': expected shape \[rows, 5, 4\], given \[3, 8, 4\]"):
        own.shap_values(data(N, 8, 4))
    with pytest.raises(InputError, match=r"samples of input 'x': expected shape \[rows, 5, 4\], given \[3, 20\]"):
        own.shap_values(data(N, 20))
    own.shap_values(data(N, 5, 4))
    other = DeepExplainer(parsed(LENGTHS, ANY_LENGTH), lambda sample: data(B, 5, 4))
    other.shap_values(data(N, 5, 4))
    message = r"references of sample 0 of input 'x': expected shape \[rows, 8, 4\], given \[6, 5, 4\]"
    with pytest.raises(InputError, match=message):
        other.shap_values(data(N, 8, 4))


# --- into shap's plots, as it is


@pytest.fixture
def figure() -> Iterator[Callable[[], Any]]:
    yield plt.gcf
    plt.close("all")


def test_plots_of_features(figure: Callable[[], Any]) -> None:
    e = DeepExplainer(parsed(ONE, TO_ONE), pd.DataFrame(BACKGROUND, columns=NAMES))
    explanation = e(SAMPLES)
    shap.plots.waterfall(explanation[0], show=False)
    written = [text.get_text() for axes in figure().axes for text in (*axes.texts, *axes.get_yticklabels())]
    assert any(name in text for text in written for name in NAMES)
    assert any(f"{explanation.base_values[0]:.3f}".strip("-") in text for text in _every_text(figure()))
    for plot in (shap.plots.bar, shap.plots.beeswarm):
        plt.close("all")
        plot(explanation, show=False)
        labels = [text.get_text() for axes in figure().axes for text in axes.get_yticklabels()]
        assert set(NAMES) <= set(labels)


def _every_text(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def test_plots_of_one_of_several_outputs(figure: Callable[[], Any], plain: DeepExplainer) -> None:
    explanation = plain(SAMPLES)
    shap.plots.waterfall(explanation[0, :, 2], show=False)
    shap.plots.beeswarm(explanation[..., 1], show=False)
    shap.plots.bar(explanation[..., "Output 0"], show=False)
    shap.plots.waterfall(plain(SAMPLES, per_reference=True)[0, 1][..., 2], show=False)


@pytest.mark.parametrize("outputs", [1, 2])
def test_plots_of_pictures(figure: Callable[[], Any], outputs: int) -> None:
    body = """{ t = Tanh(x) k = Constant <value_ints=[1,2]> () s = ReduceSum <keepdims=0> (t, k)
        i = Constant <value_ints=[%s]> () y = Gather <axis=1> (s, i) }"""
    model = parsed(body % ",".join("01"[:outputs]), f"(float[N,8,9,3] x) => (float[N,{outputs}] y)")
    pictures = np.abs(data(B, 8, 9, 3)) % 1
    explanation = DeepExplainer(model, pictures[2:])(pictures[:2])
    shap.plots.image(explanation, show=False)
    assert len([axes for axes in figure().axes if axes.images]) >= 2 * (1 + outputs)


TOKENS = """{ table = Constant <value = float[6,3] {1,2,0, -1,0,1, 2,2,1, 0,-2,1, 1,1,1, 0.5,0,-1}> ()
    e = Gather <axis=0> (table, x) t = Tanh(e) k = Constant <value_ints=[1]> () s = ReduceSum <keepdims=0> (t, k)
    w = Constant <value = float[3,2] {1,0, 0,1, 1,-1}> () y = MatMul(s, w) }"""


def test_plots_of_texts() -> None:
    words = np.array(["the ", "film ", "was ", "not ", "very ", "good "])
    tokens = np.random.default_rng(0).integers(0, 6, (B + N, 5))
    tokens[B] = [0, 1, 2, 3, 5]
    explanation = DeepExplainer(parsed(TOKENS, "(int64[N,5] x) => (float[N,2] y)"), tokens[:B])(tokens[B:])
    assert explanation.values.shape == (N, 5, 2)
    explanation.data = words[tokens[B:]]
    for part in (explanation[0, :, 0], explanation[0], explanation[..., 1], explanation):
        html = shap.plots.text(part, display=False)
        assert all(word.strip() in html for word in words[[0, 1, 2, 3, 5]])
    one = shap.plots.text(explanation[0, :, 0], display=False)
    assert f"{explanation.values[0, 1, 0]:.3f}" in one
