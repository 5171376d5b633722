"""TensorFlow without Keras, and tf_keras: modules, functions, graphs with sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer, InputError, ModelError
from tests.converters.keras_models import N, gap, rows

import tensorflow as tf  # isort: skip  # after the variable that silences it
import tf_keras  # isort: skip

v1 = tf.compat.v1
A, SAMPLES = rows(5), rows(5, n=N, seed=1)


class Module(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(rows(3, n=5, seed=3), name="weight")
        self.bias = tf.Variable(np.ones(3, np.float32), name="bias")
        self.calls: list[int] = []

    def __call__(self, x: Any) -> Any:
        self.calls.append(1)
        return tf.nn.tanh(x @ self.weight + self.bias)


class Served(Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 5), tf.float32, name="features")])  # type: ignore[untyped-decorator]
    def __call__(self, x: Any) -> Any:
        return tf.nn.relu(x @ self.weight + self.bias)

    @tf.function(input_signature=[tf.TensorSpec((None, 5), tf.float32)])  # type: ignore[untyped-decorator]
    def other(self, x: Any) -> Any:
        return {"double": 2.0 * x, "square": x * x}


def test_modules_functions_and_concrete_functions() -> None:
    module = Module()
    function = tf.function(module.__call__)
    concrete = function.get_concrete_function(tf.TensorSpec((None, 5), tf.float32, name="x"))
    expected = DeepExplainer(module, A).shap_values(SAMPLES)
    assert module.calls == [1]  # of the trace above
    assert gap(expected, module, SAMPLES, A) < 1e-5
    for model in (function, concrete):
        np.testing.assert_allclose(DeepExplainer(model, A).shap_values(SAMPLES), expected, atol=1e-6)
    np.testing.assert_allclose(DeepExplainer(module, A.astype(np.float64)).shap_values(SAMPLES), expected, atol=1e-6)
    two = tf.function(lambda x: {"a": module(x), "b": tf.nn.softmax(x)})
    phi = DeepExplainer(two, A, output="b").shap_values(SAMPLES)
    assert gap(phi, tf.nn.softmax, SAMPLES, A) < 1e-5
    module.weight.assign(2.0 * module.weight)
    assert gap(DeepExplainer(module, A).shap_values(SAMPLES), module, SAMPLES, A) < 1e-5


def test_loaded_saved_models(tmp_path: Path) -> None:
    module = Served()
    tf.saved_model.save(module, str(tmp_path / "one"), {"serving_default": module.__call__})
    loaded = tf.saved_model.load(str(tmp_path / "one"))
    expected = DeepExplainer(loaded, A).shap_values(SAMPLES)
    assert gap(expected, module, SAMPLES, A) < 1e-5
    for model in (tmp_path / "one", loaded.signatures["serving_default"]):
        np.testing.assert_allclose(DeepExplainer(model, A).shap_values(SAMPLES), expected, atol=1e-6)
    plain, several = tf.Module(), tf.Module()
    several.module = module
    signatures = {"one": module.other.get_concrete_function(), "two": module.__call__.get_concrete_function()}
    tf.saved_model.save(several, str(tmp_path / "two"), signatures)
    several = tf.saved_model.load(str(tmp_path / "two"))
    with pytest.raises(InputError, match=r"several signatures, none of which is the default; .* 'one', 'two'"):
        DeepExplainer(several, A)
    phi = DeepExplainer(several.signatures["one"], A, output="square").shap_values(SAMPLES)
    assert gap(phi, lambda x: x * x, SAMPLES, A) < 1e-5
    with pytest.raises(InputError, match="cannot be called, and has no signatures"):
        DeepExplainer(plain, A)


@pytest.fixture(scope="module")
def graph() -> tuple[Any, dict[str, Any]]:
    """A session, and the tensors of its graph by name: dropout under a switch, one input for nothing."""
    with tf.Graph().as_default():
        x, y = (v1.placeholder(tf.float32, (None, n), name=name) for n, name in ((5, "x"), (2, "y")))
        phase = v1.placeholder_with_default(True, (), name="keras_learning_phase")
        hidden = tf.nn.relu(x @ v1.get_variable("w", initializer=rows(3, n=5)) + 1.0, name="hidden")
        dropped = tf.cond(phase, lambda: tf.nn.dropout(hidden, rate=0.5), lambda: hidden)
        out = tf.nn.softmax(dropped @ v1.get_variable("v", initializer=rows(2, n=3)), name="out")
        other = tf.reduce_sum(out * y, -1, name="other")
        session = v1.Session()
        found = {"x": x, "y": y, "phase": phase, "hidden": hidden, "out": out, "other": other}
        with pytest.raises(
            InputError,
            match=r"variables without a value in the session \(Could not find variable [wv]\b.*: run their init",
        ):
            DeepExplainer((x, out), A, session=session)
        session.run(v1.global_variables_initializer())
    return session, found


def test_tensors_of_graphs_with_sessions(graph: tuple[Any, dict[str, Any]]) -> None:
    session, t = graph

    def run(start: str, end: str) -> Any:
        return lambda value: session.run(t[end], {t[start]: value, t["phase"]: False})

    expected = DeepExplainer((t["x"], t["out"]), A, session=session).shap_values(SAMPLES)
    assert gap(expected, run("x", "out"), SAMPLES, A) < 1e-5
    flagged = DeepExplainer(([t["x"]], [t["out"]]), A, session=session, learning_phase_flags=[t["phase"]])
    np.testing.assert_allclose(flagged.shap_values(SAMPLES), expected, atol=1e-7)
    with session.as_default():
        middle = DeepExplainer((t["hidden"], t["out"]), rows(3)).shap_values(rows(3, n=N, seed=1))
    assert gap(middle, run("hidden", "out"), rows(3, n=N, seed=1), rows(3)) < 1e-5
    both = DeepExplainer(([t["x"], t["y"]], t["other"]), [A, rows(2)], session=session)
    assert both.input_names == ("x", "y")
    assert [a.shape for a in both.shap_values([SAMPLES, rows(2, n=N)])] == [(N, 5, 1), (N, 2, 1)]
    unused = DeepExplainer(([t["x"], t["y"]], t["out"]), {"y": rows(2), "x": A}, session=session)
    assert not unused.shap_values([SAMPLES, rows(2, n=N)])[1].any()


def test_pairs_of_tensors_that_cannot_be_explained(graph: tuple[Any, dict[str, Any]]) -> None:
    session, t = graph
    for pair, settings, message in (
        ((t["x"], t["out"]), {}, "need session=, or a default session"),
        ((t["x"], t["out"]), {"session": v1.Session(graph=tf.Graph())}, "of another graph than the tensors"),
        ((t["x"], t["other"]), {"session": session}, r"not connected to the inputs \('x:0'\) alone: .* needs 'y'"),
        ((t["x"], [t["out"], t["other"]]), {"session": session}, "returns 2 tensors of floats; choose one by name"),
        ((tf.constant(A), tf.constant(A)), {}, "must be a tensor of a graph or a list of them, not EagerTensor"),
    ):
        with pytest.raises(InputError, match=message):
            DeepExplainer(pair, A, **settings)


def test_branches_that_read_variables_are_refused() -> None:
    with tf.Graph().as_default():
        x, w = v1.placeholder(tf.float32, (None, 5)), v1.get_variable("w", initializer=rows(3, n=5))
        switch = v1.placeholder_with_default(False, ())
        y = tf.cond(switch, lambda: 2.0 * (x @ w), lambda: x @ w)
        session = v1.Session()
        session.run(v1.global_variables_initializer())
    with pytest.raises(InputError, match=r"'cond' \((Stateless)?If\) .* reads variables within a branch or loop"):
        DeepExplainer((x, y), A, session=session, learning_phase_flags=switch)


def test_tf_keras_models_pairs_and_layers(tmp_path: Path) -> None:
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    model = tf_keras.Sequential([layers.Input((4, 2)), layers.LSTM(4), layers.Dropout(0.5), layers.Dense(2)])
    background, samples = rows(4, 2), rows(4, 2, n=N, seed=1)
    phi = DeepExplainer(model, background).shap_values(samples)
    assert gap(phi, model, samples, background) < 1e-5
    model.save(tmp_path / "model.keras")
    for same in (
        (model.layers[0].input, model.layers[-1].output),
        tmp_path / "model.keras",
    ):
        np.testing.assert_allclose(DeepExplainer(same, background).shap_values(samples), phi, atol=1e-6)
    at = DeepExplainer((model, model.layers[-1]), background).shap_values(samples)
    assert at.shape == (N, 4, 2)
    assert gap(at, model, samples, background) < 1e-5


def test_tf_keras_graphs_and_subclasses_are_left_as_they_were() -> None:
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    a, b = layers.Input((5,), name="a"), layers.Input((3,), name="b")
    joined = layers.Concatenate()([layers.Dense(4, activation="relu")(a), layers.BatchNormalization()(b)])
    model = tf_keras.Model([a, b], [layers.Dense(2, name="out")(joined), joined])
    nodes = [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in model.layers]
    data, samples = [A, rows(3)], [SAMPLES, rows(3, n=N, seed=2)]
    phi = DeepExplainer(model, data, output="out").shap_values(samples)
    assert gap(phi, lambda x: model(x)[0], samples, data) < 1e-5
    into = np.asarray(model(samples)[1])
    middle = DeepExplainer((joined, model.outputs[0]), np.asarray(model(data)[1])).shap_values(into)
    assert gap(middle, lambda x: model(x)[0], samples, data) < 1e-5
    assert [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in model.layers] == nodes

    class Net(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.drop = layers.Dense(3, activation="gelu"), layers.Dropout(0.5)

        def call(self, x: Any) -> Any:
            return self.drop(self.inner(x))

    net = Net()
    with pytest.raises(InputError, match="has never been called or built"):
        DeepExplainer(net, A)
    net(A)
    assert gap(DeepExplainer(net, A).shap_values(SAMPLES), net, SAMPLES, A) < 1e-5


def test_mixed_precision_of_tf_keras() -> None:
    policy = tf_keras.mixed_precision.Policy("mixed_float16")
    model = tf_keras.Sequential(
        [tf_keras.layers.Input((5,)), tf_keras.layers.Dense(4, activation="tanh", dtype=policy)]
    )
    assert gap(DeepExplainer(model, A).shap_values(SAMPLES), model, SAMPLES, A) < 1e-2
    assert model.layers[0].dtype_policy is policy
    assert model.layers[0].compute_dtype == "float16"


FORMULAS = {
    "erfc": tf.math.erfc,
    "expm1": tf.math.expm1,
    "log1p": lambda x: tf.math.log1p(x * x),
    "lgamma": lambda x: tf.math.lgamma(x * x + 0.1),
    "digamma": lambda x: tf.math.digamma(x * x + 0.1),
    "multiply_no_nan": lambda x: tf.math.multiply_no_nan(x / tf.nn.relu(x[:, :1]), tf.nn.relu(x[:, :1])),
    "xlogy": lambda x: tf.math.xlogy(tf.nn.relu(x), tf.nn.relu(x)),
    "xlog1py": lambda x: tf.math.xlog1py(x, x * x),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_operators_that_are_written_with_others(name: str) -> None:
    """Also of doubles, and where a factor of 0 takes what would be no number."""
    function = tf.function(FORMULAS[name])
    phi = DeepExplainer(function, A).shap_values(SAMPLES)
    assert gap(phi, FORMULAS[name], SAMPLES, A) < 1e-5
    rows = A.astype(np.float64)
    assert gap(DeepExplainer(function, rows).shap_values(rows[:2]), FORMULAS[name], rows[:2], rows) < 1e-5


def test_operators_without_a_counterpart_are_named() -> None:
    with pytest.raises(ModelError, match=r"no counterpart in ONNX: .*Igamma"):
        DeepExplainer(tf.function(lambda x: tf.math.igamma(x * x, 9.0)), A)
