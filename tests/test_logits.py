"""The value before the last Softmax, LogSoftmax or Sigmoid, however it is spelled and whatever moves it after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer, InputError
from tests.onnx_text import Array, data, parsed

BACKGROUND, SAMPLES = data(5, 4), data(3, 4, seed=1)
WEIGHT = "w = Constant <value = float[4,3] {0.5,1,0, -0.5,0,0.5, 1,0,-1, 0,0.5,0.5}> () h = Tanh(x) z = MatMul(h, w) "
AXES = "axis = Constant <value_ints=[1]> () "
ONE = "one = Constant <value_float=1.0> () "
TO = "(float[N,4] x) => (float[N,3] y)"

ENDS = {
    "softmax": "y = Softmax <axis=-1> (z)",
    "log softmax": "y = LogSoftmax <axis=1> (z)",
    "sigmoid": "y = Sigmoid(z)",
    "softmax spelled out": AXES + "e = Exp(z) s = ReduceSum <keepdims=1> (e, axis) y = Div(e, s)",
    "softmax of shifted numbers": AXES
    + "m = ReduceMax <keepdims=1> (z, axis) d = Sub(z, m) "
    + "e = Exp(d) s = ReduceSum <keepdims=1> (e, axis) y = Div(e, s)",
    "logarithm of softmax": "p = Softmax <axis=-1> (z) y = Log(p)",
    "z less logsumexp": AXES + "l = ReduceLogSumExp <keepdims=1> (z, axis) y = Sub(z, l)",
    "sigmoid spelled out": ONE + "n = Neg(z) e = Exp(n) b = Add(e, one) y = Div(one, b)",
    "sigmoid by tanh": ONE
    + "half = Constant <value_float=0.5> () t = Mul(z, half) u = Tanh(t) v = Add(u, one) y = Mul(v, half)",
    "logarithm of sigmoid": "p = Sigmoid(z) y = Log(p)",
    "normalised sigmoids": AXES + "p = Sigmoid(z) s = ReduceSum <keepdims=1> (p, axis) y = Div(p, s)",
    "behind Identity": "p = Softmax <axis=-1> (z) y = Identity(p)",
    "behind a type and back": "p = Sigmoid(z) d = Cast <to=11> (p) y = Cast <to=1> (d)",
}


def explained(body: str, signature: str = TO, **settings: Any) -> DeepExplainer:
    return DeepExplainer(parsed(f"{{ {body} }}", signature), BACKGROUND, **settings)


def z(x: Array) -> Array:
    weights = np.array([[0.5, 1, 0], [-0.5, 0, 0.5], [1, 0, -1], [0, 0.5, 0.5]])
    return np.asarray(np.tanh(x.astype(np.float64)) @ weights)


@pytest.mark.parametrize("end", ENDS)
def test_whatever_the_spelling(end: str) -> None:
    e = explained(WEIGHT + ENDS[end], logits=True)
    explanation = e(SAMPLES)
    np.testing.assert_allclose(explanation.outputs, z(SAMPLES), atol=1e-5)
    base: Any = e.expected_value
    np.testing.assert_allclose(base, z(BACKGROUND).mean(0), atol=1e-5)
    expected = explained(WEIGHT + "y = Identity(z)").shap_values(SAMPLES)
    np.testing.assert_allclose(explanation.values, expected, atol=1e-5)
    assert np.abs(explained(WEIGHT + ENDS[end]).shap_values(SAMPLES) - expected).max() > 0.01


MOVED: dict[str, tuple[str, str, Callable[[Array], Array]]] = {
    "reshape": ("s = Constant <value_ints=[-1,1,3]> () y = Reshape(p, s)", "float[N,1,3]", lambda p: p[:, None]),
    "one class": (
        "i = Constant <value = int64 {2}> () y = Gather <axis=1> (p, i)",
        "float[N]",
        lambda p: p[:, 2],
    ),
    "a slice": (
        "a = Constant <value_ints=[1]> () b = Constant <value_ints=[3]> () y = Slice (p, a, b, a)",
        "float[N,2]",
        lambda p: p[:, 1:],
    ),
    "transposed": (
        "t = Unsqueeze(p, k) y = Transpose <perm=[0,2,1]> (t)",
        "float[N,3,1]",
        lambda p: p[:, :, None],
    ),
}


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("squashing", ["Softmax <axis=-1>", "Sigmoid"])
def test_what_moves_probabilities_moves_logits(name: str, squashing: str) -> None:
    tail, shape, move = MOVED[name]
    k = "k = Constant <value_ints=[1]> () "
    e = explained(f"{k}{WEIGHT}p = {squashing} (z) {tail}", f"(float[N,4] x) => ({shape} y)", logits=True)
    expected = move(z(SAMPLES))
    outputs = e(SAMPLES).outputs
    np.testing.assert_allclose(outputs.reshape(expected.shape), expected, atol=1e-5)
    assert e.output_shape == (expected.shape[1:] or (1,))


@pytest.mark.parametrize("end", ["y = Concat <axis=1> (q, p)", "d = Concat <axis=1> (q, p) y = Identity(d)"])
def test_of_two_classes_the_other_has_the_negative(end: str) -> None:
    body = f"{ONE} w = Constant <value = float[4,1] {{1,2,3,4}}> () "
    body += f"z = MatMul(x, w) p = Sigmoid(z) q = Sub(one, p) {end}"
    e = explained(body, "(float[N,4] x) => (float[N,2] y)", logits=True)
    score = SAMPLES @ np.arange(1, 5)
    np.testing.assert_allclose(e(SAMPLES).outputs, np.stack([-score, score], 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (WEIGHT + "y = Relu(z)", r"the output 'y' does not end in Softmax, LogSoftmax, Sigmoid, but in Relu node '"),
        (
            WEIGHT + "p = Sigmoid(z) q = Mul(p, z) y = Identity(q)",
            r"does not end in .*, but in deepshap_ir::Swish node '",
        ),
        (ONE + WEIGHT + "p = Softmax <axis=-1> (z) y = Sub(one, p)", "but in Sub node '"),
        (WEIGHT + "p = Sigmoid(z) r = Relu(z) y = Concat <axis=1> (p, r)", "but in Relu node '"),
    ],
)
def test_where_there_is_none_what_was_found_is_said(body: str, message: str) -> None:
    shape = "float[N,6]" if "Concat" in body else "float[N,3]"
    with pytest.raises(InputError, match=r"^logits=True: .*" + message + r".*Leave logits out, or name .* output="):
        explained(body, f"(float[N,4] x) => ({shape} y)", logits=True)


def test_another_output_of_the_model() -> None:
    two = "(float[N,4] x) => (float[N,3] y, float[N,3] p)"
    e = explained(WEIGHT + "y = Relu(z) p = Softmax <axis=-1> (z)", two, output="p", logits=True)
    np.testing.assert_allclose(e(SAMPLES).outputs, z(SAMPLES), atol=1e-5)


def test_places_ranks_references_and_precision() -> None:
    e = explained(WEIGHT + ENDS["softmax"], logits=True, at=["h"], precision="float64")
    weights = np.array([[0.5, 1, 0], [-0.5, 0, 0.5], [1, 0, -1], [0, 0.5, 0.5]])
    np.testing.assert_allclose(e.multipliers(SAMPLES), np.broadcast_to(weights, (3, 4, 3)), atol=1e-12)
    own = DeepExplainer(parsed(f"{{ {WEIGHT}{ENDS['softmax']} }}", TO), lambda sample: BACKGROUND, logits=True)
    values, indexes = own.shap_values(SAMPLES, ranked_outputs=1)
    np.testing.assert_array_equal(indexes[:, 0], z(SAMPLES).argmax(1))
    np.testing.assert_allclose(
        values[..., 0].sum(1), z(SAMPLES).max(1) - z(BACKGROUND).mean(0)[indexes[:, 0]], atol=1e-5
    )


CLASSIFIERS = ["binary logistic", "multinomial logistic", "one against the rest", "network", "two-class network"]
CLASSIFIERS += ["trees"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_of_scikit_learn(name: str) -> None:
    """Also behind ZipMap, with the probability of the other class as what is left of 1."""
    pytest.importorskip("skl2onnx")
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neural_network import MLPClassifier

    x, y = load_iris(return_X_y=True)
    x, two = x.astype(np.float32), "two" in name or name in ("binary logistic", "trees")
    y = (y == 1).astype(int) if two else y
    model: Any = {
        "binary logistic": lambda: LogisticRegression(),
        "multinomial logistic": lambda: LogisticRegression(),
        "one against the rest": lambda: OneVsRestClassifier(LogisticRegression()),
        "network": lambda: MLPClassifier((6,), max_iter=30, random_state=0),
        "two-class network": lambda: MLPClassifier((6,), max_iter=30, random_state=0),
        "trees": lambda: GradientBoostingClassifier(n_estimators=5, random_state=0),
    }[name]()
    model.fit(x, y)
    e = DeepExplainer(to_onnx(model, x[:1]), x[:20], logits=True)
    explanation = e(x[::30])
    probabilities = model.predict_proba(x[::30])
    if name == "one against the rest":
        expected = model.decision_function(x[::30])
    elif two:
        expected = np.log(probabilities / (1 - probabilities))
    else:  # up to a number for each sample
        expected = np.log(probabilities)
        expected = expected - expected.mean(1, keepdims=True) + explanation.outputs.mean(1, keepdims=True)
    np.testing.assert_allclose(explanation.outputs, expected, atol=2e-4)
    np.testing.assert_allclose(explanation.values.sum(1) + explanation.base_values, explanation.outputs, atol=1e-4)
