"""Small networks of each family against exact Shapley values: all subsets of the inputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from onnx import ModelProto

from deepshap_ir import DeepExplainer
from deepshap_ir.importing.runner import Runner
from deepshap_ir.testing import exact_shapley
from tests.onnx_text import Array, data, parsed


class Net(NamedTuple):
    """A model in ONNX text, its signature, and what the numbers are drawn from."""

    body: str
    inputs: int = 4
    outputs: int = 1
    low: float = -2.0
    high: float = 2.0
    options: dict[str, Any] | None = None

    @property
    def model(self) -> ModelProto:
        return parsed(self.body, f"(float[N,{self.inputs}] x) => (float[N,{self.outputs}] y)")


def columns(*names: str) -> str:
    """Nodes that cut `x` into its columns."""
    return f"{', '.join(names)} = Split <axis=1, num_outputs={len(names)}> (x) "


def constant(name: str, array: Any) -> str:
    array = np.asarray(array, np.float32)
    if not array.ndim:
        return f"{name} = Constant <value_float={float(array)}> () "
    numbers = ", ".join(f"{v:.6f}" for v in array.reshape(-1))
    return f"{name} = Constant <value = float{list(array.shape)} {{{numbers}}}> () "


WEIGHTS = constant("w", data(4, 3, seed=3)) + constant("v", data(3, 2, seed=4))
AXIS = "axis = Constant <value_ints=[1]> () "


def both(net: Net, pairs: int = 6) -> tuple[Array, Array]:
    """Attributions and exact Shapley values of several pairs, ``[pairs, inputs, outputs]``."""
    run = Runner(net.model)

    def function(rows: Array) -> Array:
        values: Array = np.concatenate([run.run({"x": r[None].astype(np.float32)})["y"] for r in rows])
        return values.astype(np.float64)

    rng = np.random.default_rng(1)
    samples, references = rng.uniform(net.low, net.high, (2, pairs, net.inputs)).astype(np.float32)
    got, exact = [], []
    for x, x0 in zip(samples, references, strict=True):
        explainer = DeepExplainer(net.model, x0[None], precision="float64", options=net.options)
        got.append(explainer.shap_values(x[None])[0])
        exact.append(exact_shapley(function, x, x0))
    return np.stack(got), np.stack(exact)


EXACT = {
    "sum of functions of one number": Net(
        "{ a = Tanh(x) b = Softplus(x) s = Sub(a, b) "
        + WEIGHTS
        + " h = Relu(x) m = MatMul(h, w) n = MatMul(s, w) y = Add(m, n) }",
        outputs=3,
    ),
    "two factors": Net("{ " + columns("a", "b") + " f = Sigmoid(a) g = Tanh(b) y = Mul(f, g) }", 2),
    "four factors": Net("{ " + columns("a", "b", "c", "d") + " f = Mul(a, b) g = Mul(f, c) y = Mul(d, g) }"),
    "a power of a factor": Net("{ " + columns("a", "b") + " f = Mul(a, b) y = Mul(f, a) }", 2),
    "a product of matrices": Net(
        "{ s = Constant <value_ints=[0,2,2]> () r = Reshape(x, s) t = Transpose <perm=[0,2,1]> (r) "
        "one = Constant <value = float[2,1] {1, -2}> () p = MatMul(r, one) flat = Constant <value_ints=[0,2]> () "
        "y = Reshape(p, flat) }",
        outputs=2,
    ),
    "an inner product": Net(
        "{ " + AXIS + " a, b = Split <axis=1, num_outputs=2> (x) p = Mul(a, b) y = ReduceSum(p, axis) }"
    ),
    "a quotient": Net("{ " + columns("a", "b") + " y = Div(a, b) }", 2, low=0.5),
    "a power": Net("{ " + columns("a", "b") + " y = Pow(a, b) }", 2, low=0.5),
    "the largest": Net("{ " + AXIS + " y = ReduceMax(x, axis) }", 6),
    "the smallest": Net("{ " + AXIS + " y = ReduceMin(x, axis) }", 6),
    "the largest of three": Net("{ " + columns("a", "b", "c") + " y = Max(a, b, c) }", 3),
    "the smaller of two": Net("{ " + columns("a", "b") + " y = Min(a, b) }", 2),
    "largest of windows": Net(
        "{ s = Constant <value_ints=[0,1,6]> () r = Reshape(x, s) p = MaxPool <kernel_shape=[3], strides=[3]> (r) "
        "flat = Constant <value_ints=[0,2]> () y = Reshape(p, flat) }",
        6,
        2,
        options={"max_pooling": "shapley"},
    ),
    "largest of overlapping windows": Net(
        "{ s = Constant <value_ints=[0,1,5]> () r = Reshape(x, s) p = MaxPool <kernel_shape=[3]> (r) "
        "flat = Constant <value_ints=[0,3]> () y = Reshape(p, flat) }",
        5,
        3,
        options={"max_pooling": "shapley"},
    ),
    "a choice": Net(
        "{ " + columns("a", "b", "c") + constant("zero", 0) + " t = Greater(a, zero) y = Where(t, b, c) }", 3
    ),
    "a comparison": Net("{ " + columns("a", "b") + " t = Greater(a, b) y = Cast <to=1> (t) }", 2),
}


@pytest.mark.parametrize("name", EXACT)
def test_where_the_rule_is_exact(name: str) -> None:
    got, exact = both(EXACT[name])
    assert np.abs(exact).max() > 0.1
    np.testing.assert_allclose(got, exact, atol=2e-6 * np.abs(exact).max())


BOUNDED: dict[str, tuple[Net, float]] = {  # relative L1 error: about 1.3 times what it is
    "relu": (Net("{ " + WEIGHTS + " h = MatMul(x, w) a = Relu(h) y = MatMul(a, v) }", outputs=2), 0.18),
    "two layers of relu": (
        Net(
            "{ " + WEIGHTS + constant("u", data(3, 3, seed=5)) + " h = MatMul(x, w) a = Relu(h) i = MatMul(a, u) "
            "b = Relu(i) y = MatMul(b, v) }",
            outputs=2,
        ),
        0.3,
    ),
    "gates": (
        Net(
            "{ " + WEIGHTS + " h = MatMul(x, w) g = Sigmoid(h) t = Tanh(h) p = Mul(g, t) y = MatMul(p, v) }", outputs=2
        ),
        0.36,
    ),
    "softmax": (Net("{ " + WEIGHTS + " h = MatMul(x, w) y = Softmax <axis=1> (h) }", outputs=3), 0.34),
    "softmax of two": (Net("{ y = Softmax <axis=1> (x) }", 2, 2), 0.06),
    "softmax of the inputs": (Net("{ y = Softmax <axis=1> (x) }", 4, 4), 0.1),
    "log softmax": (Net("{ y = LogSoftmax <axis=1> (x) }", 4, 4), 0.06),
    "layer norm": (
        Net(
            "{ "
            + constant("s", np.ones(4))
            + WEIGHTS
            + " n = LayerNormalization <epsilon=0.1> (x, s) y = MatMul(n, w) }",
            outputs=3,
        ),
        0.22,
    ),
    "max of units": (Net("{ " + WEIGHTS + AXIS + " h = MatMul(x, w) y = ReduceMax(h, axis) }"), 0.15),
    "max pooling as shap does it": (
        Net(
            "{ s = Constant <value_ints=[0,1,6]> () r = Reshape(x, s) p = MaxPool <kernel_shape=[3], strides=[3]> (r) "
            "flat = Constant <value_ints=[0,2]> () y = Reshape(p, flat) }",
            6,
            2,
        ),
        0.75,
    ),
    "attention": (
        Net(
            "{ s = Constant <value_ints=[0,3,2]> () r = Reshape(x, s) t = Transpose <perm=[0,2,1]> (r) "
            "k = MatMul(r, t) "
            "p = Softmax <axis=-1> (k) o = MatMul(p, r) flat = Constant <value_ints=[0,6]> () y = Reshape(o, flat) }",
            6,
            6,
            low=-1,
            high=1,
        ),
        0.15,
    ),
    "a choice between branches": (
        Net(
            "{ " + WEIGHTS + constant("zero", 0) + " h = MatMul(x, w) t = Less(h, zero) e = Exp(h) p = Add(h, h) "
            "c = Where(t, e, p) y = MatMul(c, v) }",
            outputs=2,
        ),
        0.35,
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_where_the_rule_is_near(name: str) -> None:
    net, bound = BOUNDED[name]
    got, exact = both(net)
    np.testing.assert_allclose(got.sum(1), exact.sum(1), atol=1e-5)
    error = np.abs(got - exact).sum() / np.abs(exact).sum()
    print(f"{name}: relative error {error:.3f}")
    assert error < bound


# --- numbers to agree on


def attributions(model: ModelProto, x: Any, x0: Any, **settings: Any) -> Array:
    explainer = DeepExplainer(model, np.array([x0], np.float32), **settings)
    values: Array = explainer.shap_values(np.array([x], np.float32))[0]
    return values[:, 0]


def shifted(function: str) -> ModelProto:
    """``2 f(x1) + 2 f(x2 - 1.5)``."""
    body = "{ " + AXIS + constant("c", [0, -1.5]) + constant("two", 2)
    body += f" s = Add(x, c) f = {function}(s) t = Mul(f, two) y = ReduceSum(t, axis) }}"
    return Net(body, 2).model


def test_relu_with_a_shift() -> None:
    found = attributions(shifted("Relu"), [1, 2], [0, 0])
    np.testing.assert_allclose(found, [2, 1], rtol=1e-6)
    np.testing.assert_allclose(found / [1, 2], [2, 0.5], rtol=1e-6)


def test_tanh_with_a_shift() -> None:
    found = attributions(shifted("Tanh"), [-1, -2], [0, 0])
    np.testing.assert_allclose(found / [-1, -2], [1.523188, 0.093030], rtol=1e-5)


def test_overlapping_max_pooling() -> None:
    body = "{ s = Constant <value_ints=[0,1,4]> () r = Reshape(x, s) p = MaxPool <kernel_shape=[2]> (r) "
    body += (
        constant("w", [[1], [2], [3]])
        + " flat = Constant <value_ints=[0,3]> () f = Reshape(p, flat) y = MatMul(f, w) }"
    )
    found = attributions(Net(body).model, [0, 1, 4, 3], [2, 0, 1, 5])
    np.testing.assert_allclose(found, [-1, 0, 6, -3], atol=1e-6)


def test_softmax_of_two_logits() -> None:
    model = Net("{ y = Softmax <axis=1> (x) }", 2, 2).model
    found = attributions(model, [1, -1], [0, 0])
    np.testing.assert_allclose(found, [0.190, 0.190], atol=5e-4)


def test_a_product() -> None:
    model = Net("{ " + columns("a", "b") + " y = Mul(a, b) }", 2).model
    found = attributions(model, [3, 4], [1, 2])
    np.testing.assert_allclose(found, [6, 4], rtol=1e-6)
    np.testing.assert_allclose(found / [2, 2], [3, 2], rtol=1e-6)


def test_several_references_average_exact_values() -> None:
    net = EXACT["four factors"]
    rng = np.random.default_rng(2)
    x, references = rng.normal(size=(1, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    got = DeepExplainer(net.model, references).shap_values(x)[0, :, 0]
    exact = np.mean([exact_shapley(lambda rows: rows.prod(1), x[0], x0) for x0 in references], axis=0)
    np.testing.assert_allclose(got, exact, rtol=1e-4)
