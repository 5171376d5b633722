"""Keras models: every way to give one, its data and its output; and it is left as it was."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deepshap_ir import DeepExplainer, InputError, ModelError
from tests.converters.keras_models import B, N, gap, rows

import keras  # isort: skip  # after the variable that silences TensorFlow
import tensorflow as tf  # isort: skip
from keras import layers  # isort: skip

ROOT = Path(__file__).parent.parent.parent
A, C, D = rows(5), rows(3, seed=1), rows(2, seed=2)
SAMPLES = [rows(5, n=N, seed=3), rows(3, n=N, seed=4), rows(2, n=N, seed=5)]


def mlp() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((5,)), layers.Dense(8, activation="relu"), layers.Dense(3)])


def several() -> Any:
    """Three inputs, the last without effect; two outputs."""
    keras.utils.set_random_seed(0)
    a, b, c = keras.Input((5,), name="a"), keras.Input((3,), name="b"), keras.Input((2,), name="c")
    joined = layers.Concatenate(name="joined")(
        [layers.Dense(4, activation="tanh")(a), layers.Dense(4, activation="relu")(b)]
    )
    hidden = layers.Dense(6, activation="relu", name="hidden")(joined)
    score = layers.Dense(2, name="score")(hidden)
    return keras.Model([a, b, c], [score, layers.Dense(3, activation="softmax", name="classes")(hidden)])


class Net(keras.Model):  # type: ignore[misc]
    """Takes an array, a list of arrays or a dict of arrays, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = layers.Dense(4, activation="relu"), layers.Dense(2)
        self.calls: list[int] = []

    def call(self, x: Any, training: bool = False) -> Any:
        self.calls.append(1)
        self.seen = x
        parts = [x[key] for key in sorted(x)] if isinstance(x, dict) else x
        joined = keras.ops.concatenate(parts, -1) if isinstance(parts, list | tuple) else parts
        return self.last(self.first(joined))


@pytest.fixture(scope="module")
def functional() -> Any:
    return several()


def test_model_pair_and_layer_are_the_same_where_they_mean_the_same() -> None:
    model, samples = mlp(), SAMPLES[0]
    phi = DeepExplainer(model, A).shap_values(samples)
    assert phi.shape == (N, 5, 3)
    assert gap(phi, model, samples, A) < 1e-5
    for pair in (
        (model.layers[0].input, model.layers[-1].output),
        (model.inputs, model.outputs),
        (model.inputs[0], model.outputs[0]),
        [model.inputs[0], model.layers[-1].output],
        (model, model.layers[0]),
    ):
        np.testing.assert_allclose(DeepExplainer(pair, A).shap_values(samples), np.asarray(phi), atol=1e-6)
    hidden = keras.Model(model.inputs, model.layers[0].output)
    at, into = np.asarray(hidden(A)), np.asarray(hidden(samples))
    middle = DeepExplainer((model.layers[1].input, model.layers[1].output), at).shap_values(into)
    np.testing.assert_allclose(DeepExplainer((model, model.layers[1]), A).shap_values(samples), middle, atol=1e-6)
    assert gap(middle, model, samples, A) < 1e-5
    ends = DeepExplainer((model.inputs[0], model.layers[0].output), A).shap_values(samples)
    assert gap(ends, hidden, samples, A) < 1e-5


def test_outputs_by_name_and_index(functional: Any) -> None:
    background = [A, C, D]
    by_index = [DeepExplainer(functional, background, output=i).shap_values(SAMPLES) for i in (0, 1, -1)]
    by_name = DeepExplainer(functional, background, output="classes").shap_values(SAMPLES)
    assert [a.shape for a in by_name] == [(N, 5, 3), (N, 3, 3), (N, 2, 3)]
    assert not by_name[2].any()
    for mine, last, named in zip(by_index[1], by_index[2], by_name, strict=True):
        np.testing.assert_allclose(mine, named, atol=1e-7)
        np.testing.assert_allclose(last, named, atol=1e-7)
    assert gap(by_index[0], lambda x: functional(x)[0], SAMPLES, background) < 1e-5
    assert gap(by_name, lambda x: functional(x)[1], SAMPLES, background) < 1e-5
    with pytest.raises(InputError, match=r"returns 2 tensors of floats; choose one .* 'score', 'classes'"):
        DeepExplainer(functional, background)
    with pytest.raises(InputError, match=r"there is no output 2; .* returns 'score', 'classes'"):
        DeepExplainer(functional, background, output=2)


def test_pairs_of_tensors_begin_and_end_anywhere(functional: Any) -> None:
    a, b, _ = functional.inputs
    joined, (score, classes) = functional.get_layer("joined").output, functional.outputs
    expression = keras.ops.sum(classes[:, :2] * 2.0, -1)
    nodes = [(layer.name, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in functional.layers]

    def part(x: Any) -> Any:
        return functional([*x, np.zeros((len(x[0]), 2), np.float32)])

    samples, background = SAMPLES[:2], [A, C]
    phi = DeepExplainer(([a, b], expression), background).shap_values(samples)
    assert gap(phi, lambda x: 2.0 * np.asarray(part(x)[1])[:, :2].sum(-1), samples, background) < 1e-5
    at = rows(8)
    middle = DeepExplainer((joined, score), at).shap_values(rows(8, n=N, seed=1))
    assert middle.shape == (N, 8, 2)
    assert [(x.name, len(x._inbound_nodes), len(x._outbound_nodes)) for x in functional.layers] == nodes
    with pytest.raises(InputError, match=r"not connected to the inputs \('a'\) alone: it also needs 'b'"):
        DeepExplainer(([a], score), [A])
    with pytest.raises(InputError, match=r"the second of a pair of Keras tensors must be one .* not builtins.int"):
        DeepExplainer((a, 3), A)


def test_a_layer_takes_all_that_reads_its_inputs() -> None:
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 2))
    hidden = layers.Conv2D(3, 3, padding="same", activation="relu")(x)
    inner = layers.Conv2D(3, 3, padding="same", name="inner", activation="tanh")
    model = keras.Model(x, layers.Dense(2)(layers.Flatten()(layers.Add()([inner(hidden), hidden]))))
    background, samples = rows(6, 6, 2), rows(6, 6, 2, n=N, seed=1)
    phi = DeepExplainer((model, "inner"), background).shap_values(samples)
    assert phi.shape == (N, 6, 6, 3, 2)  # the skip connection reads it too, so nothing goes around it
    assert gap(phi, model, samples, background) < 1e-5
    with pytest.raises(InputError, match=r"has no layer 'iner'. Did you mean 'inner'"):
        DeepExplainer((model, "iner"), background)
    with pytest.raises(InputError, match=r"the layer 'conv2d\w*' is not among those of"):
        DeepExplainer((model, layers.Conv2D(3, 3)), background)
    with pytest.raises(InputError, match="layer is given beside the model, and at= too"):
        DeepExplainer((model, inner), background, at=["input"])


def test_a_layer_called_twice_is_explained_at_its_last_call() -> None:
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4, activation="tanh"), layers.Dense(5)])
    x = keras.Input((5,))
    model = keras.Model(x, layers.Dense(1)(inner(inner(x))))
    for layer in (inner, inner.layers[0]):
        phi = DeepExplainer((model, layer), A).shap_values(SAMPLES[0])
        assert phi.shape == (N, 5, 1)
        assert gap(phi, model, SAMPLES[0], A) < 1e-5


def test_a_layer_within_a_loop_cannot_be_told_apart() -> None:
    model = keras.Sequential([keras.Input((4, 2)), layers.RNN(layers.GRUCell(3)), layers.Dense(1)])
    with pytest.raises(InputError, match="the layer is called in a loop or function within Sequential"):
        DeepExplainer((model, model.layers[0].cell), rows(4, 2))


def test_subclassed_models_take_arrays_lists_and_dicts_and_are_left_as_they_were() -> None:
    for background, samples in (
        (A, SAMPLES[0]),
        ([A, C], SAMPLES[:2]),
        ({"a": A, "b": C}, {"a": SAMPLES[0], "b": SAMPLES[1]}),
    ):
        model = Net()
        with pytest.raises(InputError, match=r"Net 'net\w*' has never been called or built"):
            DeepExplainer(model, background)
        model(background)
        calls, seen, weights = list(model.calls), model.seen, model.get_weights()
        phi = DeepExplainer(model, background).shap_values(samples)
        assert (model.calls, model.seen is seen) == (calls, True)
        assert all(np.array_equal(x, y) for x, y in zip(model.get_weights(), weights, strict=True))
        assert gap(phi, model, samples, background) < 1e-5


def test_inputs_by_name(functional: Any) -> None:
    named = keras.Model(dict(zip("ba", functional.inputs[1::-1], strict=True)), {"out": functional.outputs[0]})
    data = {"b": C, "a": A}
    samples = {"a": SAMPLES[0], "b": SAMPLES[1]}
    explainer = DeepExplainer(named, data)
    assert sorted(explainer.input_names) == ["a", "b"]
    assert gap(explainer.shap_values(samples), lambda x: named(x)["out"], samples, data) < 1e-5
    with pytest.raises(InputError, match=r"has no input 'q'. There are: 'a', 'b'"):
        DeepExplainer(named, {"a": A, "q": C})
    with pytest.raises(InputError, match=r"the input 'b' of .* is missing"):
        DeepExplainer(named, {"a": A})
    with pytest.raises(InputError, match=r"takes 2 inputs \('a', 'b'\), given 1 array\."):
        DeepExplainer(named, A)
    frame = pd.DataFrame(A, columns=list("vwxyz"))
    model = mlp()
    explanation = DeepExplainer(model, frame)(pd.DataFrame(SAMPLES[0], columns=list("vwxyz"))[list("zyxwv")])
    assert list(explanation.feature_names) == list("vwxyz")
    np.testing.assert_allclose(explanation.values, DeepExplainer(model, A).shap_values(SAMPLES[0]), atol=1e-6)


def test_rank_one_outputs_and_multi_argument_calls() -> None:
    class Product(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = layers.Dense(4, activation="relu"), layers.Dense(1)

        def call(self, x: Any, y: Any) -> Any:
            return self.out(self.inner(x) * self.inner(y))[:, 0]

    keras.utils.set_random_seed(0)
    model, background, samples = Product(), [A, A[::-1].copy()], [SAMPLES[0], SAMPLES[0] + 1.0]
    model(*background)
    explainer = DeepExplainer(model, background)
    assert explainer.input_names == ("x", "y")
    phi = explainer.shap_values(samples)
    assert [a.shape for a in phi] == [(N, 5, 1)] * 2
    assert gap(phi, lambda x: model(*x), samples, background) < 1e-5


def test_one_row_alone_and_fixed_batches() -> None:
    class One(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = layers.Dense(4, activation="relu")

        def call(self, x: Any) -> Any:
            return keras.ops.reshape(self.inner(x), (1, 4))

    model = One()
    model(A[:1])
    phi = DeepExplainer(model, A).shap_values(SAMPLES[0])
    assert gap(phi, lambda x: np.concatenate([model(row[None]) for row in x]), SAMPLES[0], A) < 1e-5
    fixed = keras.Sequential([keras.Input(batch_shape=(1, 5)), layers.Dense(3, activation="relu")])
    assert gap(DeepExplainer(fixed, A).shap_values(SAMPLES[0]), fixed, SAMPLES[0], A) < 1e-5


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_explained_in_float32_and_left_as_it_was(policy: str) -> None:
    keras.utils.set_random_seed(0)
    inner = [layers.Dense(8, activation="relu", dtype=policy), layers.Dense(3, dtype=policy)]
    model = keras.Sequential([keras.Input((5,)), *inner])
    explainer = DeepExplainer(model, A)
    assert gap(explainer.shap_values(SAMPLES[0]), model, SAMPLES[0], A) < 2e-2  # of the model's own rounding
    assert [layer.dtype_policy.name for layer in inner] == [policy] * 2
    single = keras.Sequential([keras.Input((5,)), layers.Dense(8, activation="relu"), layers.Dense(3)])
    single.set_weights(model.get_weights())
    np.testing.assert_allclose(
        explainer.shap_values(SAMPLES[0]), DeepExplainer(single, A).shap_values(SAMPLES[0]), atol=1e-6
    )


def test_conversions_are_remembered_until_the_model_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    import tf2onnx

    calls = []
    original = tf2onnx.convert.from_graph_def

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(tf2onnx.convert, "from_graph_def", counted)
    model = mlp()

    def explain(conversions: int, background: Any = A) -> None:
        calls.clear()
        assert gap(DeepExplainer(model, background).shap_values(SAMPLES[0]), model, SAMPLES[0], background) < 1e-5
        assert len(calls) == conversions

    explain(1)
    explain(0)
    explain(0, rows(5, n=9, seed=7))
    model.layers[0].kernel.assign(2.0 * model.layers[0].kernel)
    explain(1)
    model.layers[0].activation = keras.activations.tanh
    explain(1)
    model.compile("sgd", "mse")
    model.fit(A, rows(3), verbose=0)
    explain(1)


def test_an_interrupt_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    layer = model.layers[1]
    before = [dict(vars(x)) for x in model._flatten_layers()]

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tf, "function", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DeepExplainer((model, layer), A)
    monkeypatch.undo()
    assert "call" not in vars(layer)
    for x, was in zip(model._flatten_layers(), before, strict=True):
        assert all(vars(x)[name] is value for name, value in was.items())
    model.compile("sgd", "mse")
    model.fit(A, rows(3), verbose=0)


def test_nothing_is_printed_or_warned(capfd: pytest.CaptureFixture[str]) -> None:
    model = keras.Sequential([keras.Input((4, 2)), layers.Masking(), layers.Flatten(), layers.Dense(2)])
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DeepExplainer(model, rows(4, 2))
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_explained_is_refused_with_a_reason() -> None:
    kept = keras.Sequential([keras.Input(batch_shape=(3, 4, 2)), layers.LSTM(3, stateful=True), layers.Dense(1)])
    with pytest.raises(InputError, match=r"is stateful \('lstm\w*'\): what it returns depends on the calls before"):
        DeepExplainer(kept, rows(4, 2))
    words = keras.Input((1,), dtype="string")
    lookup = keras.Model(
        words, layers.Dense(1)(layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(words))
    )
    with pytest.raises(InputError, match="takes strings, which have no differences"):
        DeepExplainer(lookup, np.array([["a"], ["b"]]))
    model = mlp()
    with pytest.raises(
        InputError, match=r"background of input 'input_layer\w*' is a RaggedTensor; pad it to one length"
    ):
        DeepExplainer(model, tf.ragged.constant([[1.0], [1.0, 2.0]]))
    with pytest.raises(InputError, match=r"is ragged .*; pad it to one length first"):
        DeepExplainer(model, [[1.0], [1.0, 2.0]])
    with pytest.raises(InputError, match="expected numbers, given <U1"):
        DeepExplainer(model, np.array([["a"]]))
    with pytest.raises(InputError, match=r"fails on rows of the background \(input_layer\w* \[3, 4\] of float32\)"):
        DeepExplainer(model, rows(4))
    with pytest.raises(InputError, match="session= and learning_phase_flags= belong to TensorFlow 1 graphs"):
        DeepExplainer(model, A, session=object())

    class Chooses(keras.Model):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x if keras.ops.sum(x) > 0 else -x

    chooses = Chooses()
    chooses(A)
    with pytest.raises(ModelError, match=r"TensorFlow cannot trace Chooses .* Python `bool`"):
        DeepExplainer(chooses, A)
    hashed = keras.Sequential([keras.Input((5,)), layers.Hashing(3), layers.Dense(2)])
    with pytest.raises(ModelError, match=r"TensorFlow operators that have no counterpart in ONNX: .*StringToHash"):
        DeepExplainer(hashed, A)


def test_integer_inputs_give_the_embedding_to_explain() -> None:
    keras.utils.set_random_seed(0)
    words = keras.Input((6,), dtype="int32")
    embedded = layers.Embedding(20, 4, mask_zero=True, name="embedding")(words)
    model = keras.Model(words, layers.Dense(1, activation="sigmoid")(layers.LSTM(5)(embedded)))
    ids = np.random.default_rng(0).integers(1, 20, (B, 6))
    ids[1, 4:] = ids[3, 2:] = 0
    samples = ids[::-1][:N].copy()
    phi = DeepExplainer(model, ids).shap_values(samples)
    assert phi.shape == (N, 6, 1)
    assert gap(phi, model, samples, ids) < 1e-5
    full = np.random.default_rng(1).integers(1, 20, (B, 6))
    vectors = DeepExplainer((model, model.layers[2]), full)
    assert vectors.shap_values(full[:2]).shape == (2, 6, 4, 1)
    with pytest.raises(InputError, match=r"expected int32, given float64"):
        DeepExplainer(model, ids + 0.5)


def test_callable_backgrounds(functional: Any) -> None:
    model = mlp()
    explainer = DeepExplainer(model, lambda sample: A + sample[0][0])
    phi = explainer.shap_values(SAMPLES[0][:2])
    one = DeepExplainer(model, A + SAMPLES[0][1, 0]).shap_values(SAMPLES[0][1:2])
    np.testing.assert_allclose(phi[1:], one, atol=1e-6)


def test_keras_on_torch_goes_without_tensorflow() -> None:
    script = (
        "import sys, numpy as np, keras, torch\n"
        "from keras import layers\n"
        "from deepshap_ir import DeepExplainer\n"
        "assert keras.backend.backend() == 'torch'\n"
        "m = keras.Sequential([keras.Input((4, 2)), layers.LSTM(3), layers.Dense(2)])\n"
        "b, x = np.random.randn(5, 4, 2).astype('f'), np.random.randn(3, 4, 2).astype('f')\n"
        "phi = DeepExplainer(m, b).shap_values(x)\n"
        "pair = DeepExplainer((m.layers[0].input, m.layers[-1].output), b).shap_values(x)\n"
        "at = DeepExplainer((m, m.layers[1]), b).shap_values(x)\n"
        "d = m(x).detach().numpy() - m(b).detach().numpy().mean(0)\n"
        "gaps = phi.sum((1, 2)) - d, phi - pair, at.sum(1) - d\n"
        "print(max(abs(a).max() for a in gaps) < 1e-5 * abs(d).max())\n"
        "print('tensorflow' in sys.modules)\n"
    )
    environment = {"KERAS_BACKEND": "torch", "PATH": "", "HOME": str(Path.home())}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    )
    assert run.stdout.split() == ["True", "False"]
