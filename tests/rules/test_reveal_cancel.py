"""RevealCancel against a slow replica of its paper in numpy, and against exact Shapley values."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from deepshap_ir import DeepExplainer
from deepshap_ir.engine.backends import Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.rule_sets import rule_sets
from deepshap_ir.importing.runner import Runner
from deepshap_ir.testing import Runner as Multipliers
from deepshap_ir.testing import exact_shapley
from tests.onnx_text import Array, data, parsed

Function = Callable[[Array], Array]


def relu(z: Array) -> Array:
    return np.maximum(z, 0)


def dense(layers: list[tuple[Array, Array]], function: str = "Relu") -> Any:
    """A network with `function` after every layer but the last."""
    names, lines = "x", []
    constants = []
    for k, (w, b) in enumerate(layers):
        constants += [(f"w{k}", w), (f"b{k}", b)]
        out = "y" if k == len(layers) - 1 else f"h{k}"
        lines.append(f"{out} = Gemm({names}, w{k}, b{k})")
        if out != "y":
            lines.append(f"a{k} = {function}(h{k})")
            names = f"a{k}"
    n, outputs = layers[0][0].shape[0], layers[-1][0].shape[1]
    model = parsed("{ " + " ".join(lines) + " }", f"(float[N,{n}] x) => (float[N,{outputs}] y)")
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in constants)
    return model


def run(layers: list[tuple[Array, Array]], x: Array, f: Function = relu) -> Array:
    for w, b in layers[:-1]:
        x = f(x @ w + b)
    return x @ layers[-1][0] + layers[-1][1]


def replica(layers: list[tuple[Array, Array]], x: Array, x0: Array, f: Function = relu) -> Array:
    """The contributions ``[features, outputs]`` by loops over the equations of the paper, forward and backward."""
    values, values0 = [x.astype(float)], [x0.astype(float)]
    for w, b in layers[:-1]:
        values.append(f(values[-1] @ w + b))
        values0.append(f(values0[-1] @ w + b))
    m = layers[-1][0].astype(float)  # multipliers of the last hidden values, [hidden, outputs]
    for k in reversed(range(len(layers) - 1)):
        w, b = layers[k]
        dx, h0 = values[k] - values0[k], values0[k] @ w + b
        below = np.zeros((len(dx), m.shape[1]))
        for j in range(w.shape[1]):
            terms = w[:, j] * dx
            plus, minus = terms[terms > 0].sum(), terms[terms < 0].sum()
            plus, minus = plus or 1e-9, minus or -1e-9  # a part that is 0 has the derivative
            m_plus = (f(h0[j] + plus) - f(h0[j]) + f(h0[j] + minus + plus) - f(h0[j] + minus)) / 2 / plus
            m_minus = (f(h0[j] + minus) - f(h0[j]) + f(h0[j] + plus + minus) - f(h0[j] + plus)) / 2 / minus
            for i in range(len(dx)):
                if terms[i] > 0:
                    below[i] += w[i, j] * m_plus * m[j]
                elif terms[i] < 0:
                    below[i] += w[i, j] * m_minus * m[j]
                else:  # half of it to each part, as the paper has it: its delta is 0, but not that of its own parts
                    below[i] += w[i, j] * (m_plus + m_minus) / 2 * m[j]
        m = below
    return np.asarray(m * (x - x0)[:, None])


def layers_of(*widths: int, seed: int = 0) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(widths)
    return [(rng.normal(size=(a, b)).astype(np.float32), rng.normal(size=b).astype(np.float32)) for a, b in pairs]


@pytest.mark.parametrize(("function", "f"), [("Relu", relu), ("Tanh", np.tanh)])
@pytest.mark.parametrize("backend", ["onnxruntime", "reference"])
def test_dense_networks_agree_with_the_paper(function: str, f: Function, backend: str) -> None:
    layers = layers_of(5, 6, 4, 2)
    samples, background = data(3, 5, seed=1), data(4, 5, seed=2)
    explainer = DeepExplainer(dense(layers, function), background, rules="reveal_cancel", backend=backend)
    expected = [np.mean([replica(layers, x, x0, f) for x0 in background], axis=0) for x in samples]
    np.testing.assert_allclose(explainer.shap_values(samples), expected, rtol=1e-4, atol=1e-5)


MINIMUM = [(np.array([[1, 1], [0, -1]]), np.zeros(2)), (np.array([[1], [-1]]), np.zeros(1))]
"""``min(a, b) = relu(a) - relu(a - b)`` for positive numbers, the example of section 3.5.1."""


def test_the_minimum_is_shared() -> None:
    explainer = DeepExplainer(dense(MINIMUM), np.zeros((1, 2), np.float32), rules="reveal_cancel")
    found = explainer.shap_values(np.array([[2, 1], [3, 4]], np.float32))[..., 0]
    np.testing.assert_allclose(found, [[0.5, 0.5], [1.5, 1.5]], atol=1e-6)
    usual = DeepExplainer(dense(MINIMUM), np.zeros((1, 2), np.float32)).shap_values(np.array([[2, 1]], np.float32))
    np.testing.assert_allclose(usual[..., 0], [[0, 1]], atol=1e-6)


def test_an_and_of_three_is_nearer_to_the_exact_values_than_rescale() -> None:
    """``relu(a + b + c - 2)``: the inputs count together only."""
    layers = [(np.ones((3, 1)), np.array([-2.0])), (np.ones((1, 1)), np.zeros(1))]
    x, x0 = np.array([1, 1, 1.0]), np.zeros(3)
    found = DeepExplainer(dense(layers), x0[None].astype(np.float32), rules="reveal_cancel").shap_values(
        x[None].astype(np.float32)
    )
    np.testing.assert_allclose(found[0, :, 0], [1 / 3] * 3, atol=1e-6)


def test_nearer_to_exact_shapley_values_than_rescale() -> None:
    errors: dict[str | None, list[float]] = {None: [], "reveal_cancel": []}
    for seed in range(5):
        layers = layers_of(6, 8, 1, seed=seed)
        x, x0 = data(1, 6, seed=seed + 10), data(1, 6, seed=seed + 20)
        exact = exact_shapley(partial(run, layers), x[0], x0[0])
        for rules, found in errors.items():
            values = DeepExplainer(dense(layers), x0, rules=rules).shap_values(x)[0]
            found.append(float(np.abs(values - exact).sum() / np.abs(exact).sum()))
    usual, revealed = (np.mean(found) for found in errors.values())
    assert revealed < 0.75 * usual


def agrees(spelled: str, plain: str) -> None:
    """Two ways to write one function have the same attributions, and not those of the usual rules."""
    background, samples = data(4, 4), data(3, 4, seed=1)
    models = [parsed(body, "(float[N,4] x) => (float[N,2] y)") for body in (spelled, plain)]
    found = [DeepExplainer(model, background, rules="reveal_cancel").shap_values(samples) for model in models]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    usual = DeepExplainer(models[1], background).shap_values(samples)
    assert np.abs(usual - found[0]).max() > 1e-2


PLAIN = "{ h = Gemm(x, w, b) a = Relu(h) y = MatMul(a, v) }"


@pytest.mark.parametrize(
    "spelled",
    [
        "{ p = MatMul(x, w) h = Add(b, p) a = Relu(h) y = MatMul(a, v) }",
        "{ p = MatMul(x, w) n = Neg(p) h = Sub(b, n) a = Relu(h) y = MatMul(a, v) }",
        "{ p = Gemm<alpha = -0.5>(x, w) d = Mul(p, k) h = Add(d, b) a = Relu(h) y = MatMul(a, v) }",
        "{ t = Transpose<perm = [1, 0]>(w) p = Gemm<transB = 1>(x, t, b) q = Unsqueeze(p, one) h = Squeeze(q, one) "
        "a = Relu(h) y = MatMul(a, v) }",
        '{ p = Einsum<equation = "ni,ij->nj">(x, w) h = Sum(p, b) a = Relu(h) y = MatMul(a, v) }',
        "{ t = Transpose(w) f = Unsqueeze(t, two) c = Unsqueeze(x, two) p = Conv(c, f, b) h = Flatten(p) a = Relu(h) "
        "y = MatMul(a, v) }",
        "{ t = Unsqueeze(w, two) c = Unsqueeze(x, two) p = ConvTranspose(c, t, b) h = Flatten(p) a = Relu(h) "
        "y = MatMul(a, v) }",
        "{ u = Unsqueeze(x, two) e = Unsqueeze(w, zero) q = Mul(u, e) p = ReduceSum<keepdims = 0>(q, one) "
        "h = Add(p, b) a = Relu(h) y = MatMul(a, v) }",
        "{ p = MatMul(x, w) h = BatchNormalization<epsilon = 0.0>(p, s, b, z, i) a = Relu(h) y = MatMul(a, v) }",
        "{ l, r = Split<num_outputs = 2, axis = 1>(x) wl, wr = Split<num_outputs = 2, axis = 0>(w) p = MatMul(l, wl) "
        "q = MatMul(r, wr) g = Add(p, q) h = Add(g, b) a = Relu(h) y = MatMul(a, v) }",
    ],
)
def test_however_a_layer_is_written(spelled: str) -> None:
    weights = (
        "<float[4,3] w = {1, -2, 0.5, -1, 0.25, 2, 0.5, 1.5, -1, -0.75, 1, 1}, float[3] b = {0.1, -0.2, 0.3}, "
        "float[3,2] v = {1, -1, 0.5, 2, -1, 1}, float k = {-2}, int64[1] zero = {0}, int64[1] one = {1}, "
        "int64[1] two = {2}, float[3] s = {1, 1, 1}, float[3] z = {0, 0, 0}, float[3] i = {1, 1, 1}>"
    )
    agrees(f"{weights} {spelled}", f"{weights} {PLAIN}")


@pytest.mark.parametrize(
    "attributes", ["", "<strides = [2, 1], pads = [1, 0, 1, 1]>", "<group = 2>", "<dilations = [2, 1]>"]
)
def test_a_convolution_is_the_matrix_that_it_is(attributes: str) -> None:
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(2, 1 if "group" in attributes else 2, 2, 2)).astype(np.float32)
    head = f"{{ c = Conv{attributes}(x, k, b) h = Flatten(c) "
    image = "(float[N,2,4,3] x) => (float[N,M] y)"
    conv = parsed(head + "a = Relu(h) y = MatMul(a, v) }", image)
    linear = parsed(head + "y = Identity(h) }", image)
    bias = np.array([0.3, -0.2], np.float32)
    weights = [numpy_helper.from_array(kernel, "k"), numpy_helper.from_array(bias, "b")]
    linear.graph.initializer.extend(weights)
    rows = np.concatenate([np.zeros((1, 24)), np.eye(24)]).reshape(-1, 2, 4, 3).astype(np.float32)
    made = Runner(linear).run({"x": rows})["y"]
    matrix, offset = made[1:] - made[0], made[0]
    last = rng.normal(size=(matrix.shape[1], 2)).astype(np.float32)
    conv.graph.initializer.extend([*weights, numpy_helper.from_array(last, "v")])
    x, x0 = data(2, 2, 4, 3, seed=5), data(2, 2, 4, 3, seed=6)
    found = DeepExplainer(conv, x0, rules="reveal_cancel").shap_values(x)
    plain = DeepExplainer(dense([(matrix, offset), (last, np.zeros(2))]), x0.reshape(2, 24), rules="reveal_cancel")
    np.testing.assert_allclose(found.reshape(2, 24, 2), plain.shap_values(x.reshape(2, 24)), rtol=1e-3, atol=1e-5)


def test_an_activation_is_one_term_of_a_sum() -> None:
    """What the parts of its input did to it does not reach the next layer: a ReLU's output counts as a whole."""
    layers = layers_of(4, 5, 3, 1, seed=4)
    samples, background = data(2, 4, seed=5), data(2, 4, seed=6)
    model = dense(layers)
    residual = model.graph.node.add(op_type="Mul", name="scaled")
    residual.input.extend(["a0", "one"])
    residual.output.append("a0_scaled")
    model.graph.initializer.append(numpy_helper.from_array(np.array(1.0, np.float32), "one"))
    explainer = DeepExplainer(model, background, rules="reveal_cancel")
    expected = [np.mean([replica(layers, x, x0) for x0 in background], axis=0) for x in samples]
    np.testing.assert_allclose(explainer.shap_values(samples), expected, rtol=1e-4, atol=1e-5)


def test_where_reference_and_sample_are_equal_the_multiplier_is_the_derivative() -> None:
    layers = layers_of(4, 5, 1)
    x = data(1, 4)
    explainer = DeepExplainer(dense(layers, "Tanh"), x, rules="reveal_cancel", precision="float64")
    np.testing.assert_array_equal(explainer.shap_values(x), 0)
    runner = Multipliers(explainer.graph, Resolver(rule_sets("reveal_cancel")), Reference())
    (m,) = runner.multipliers([x[:, None]], [x[:, None]], np.ones((1, 1, 1)))
    w, b = (a.astype(float) for a in layers[0])
    slope = 1 - np.tanh(x.astype(float) @ w + b) ** 2
    np.testing.assert_allclose(m.reshape(-1), (w * slope) @ layers[1][0][:, 0], rtol=1e-6)


def test_attributions_at_a_layer_and_held_values() -> None:
    layers = layers_of(4, 5, 3, 1, seed=7)
    samples, background = data(2, 4, seed=8), data(3, 4, seed=9)
    inner = DeepExplainer(dense(layers), background, rules="reveal_cancel", at=["a0"]).shap_values(samples)
    hidden, hidden0 = (relu(a @ layers[0][0] + layers[0][1]) for a in (samples, background))
    expected = [np.mean([replica(layers[1:], x, x0) for x0 in hidden0], axis=0) for x in hidden]
    np.testing.assert_allclose(inner, expected, rtol=1e-4, atol=1e-5)
    before = DeepExplainer(dense(layers), background, rules="reveal_cancel", at=["h0"])
    before.shap_values(samples)  # sums to delta


def test_with_rules_of_ones_own() -> None:
    """A rule behind the named set is what RevealCancel asks at its points."""
    asked = []

    def twice(ctx: Any, m: Any) -> Any:
        asked.append(ctx.node.op_type)
        return ctx.usual(m)

    layers, x, x0 = layers_of(4, 5, 1), data(2, 4), data(2, 4, seed=1)
    expected = DeepExplainer(dense(layers), x0, rules="reveal_cancel").shap_values(x)
    found = DeepExplainer(dense(layers), x0, rules=["reveal_cancel", {"Relu": twice}])
    np.testing.assert_array_equal(found.shap_values(x), expected)
    assert set(asked) == {"Relu"}
    assert {row.rule for row in found.rules()} == {"reveal_cancel.weighted", "reveal_cancel.function_of_one"}
