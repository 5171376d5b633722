"""Rules for all operators that are chosen by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from onnx.reference.op_run import OpRun

from deepshap_ir import AdditivityError, DeepExplainer, RuleError, UnsupportedOperatorError
from deepshap_ir.engine.rule_sets import rule_set
from deepshap_ir.testing import check_rule
from tests.onnx_text import Array, data, parsed

WEIGHTS = (
    "<float[4,3] w = {1, -2, 0.5, -1, 0.25, 2, 0.5, 1.5, -1, -0.75, 1, 1}, float[3] b = {0.1, -0.2, 0.3}, "
    "float[3,2] v = {1, -1, 0.5, 2, -1, 1}>"
)
NET = WEIGHTS + "{ h = Gemm(x, w, b) [act] a = Tanh(h) [last] p = MatMul(a, v) [soft] y = Softmax(p) }"
SIGNATURE = "(float[N,4] x) => (float[N,2] y)"
BACKGROUND, SAMPLES = data(3, 4), data(2, 4, seed=1)


def function(x: Array, w: Mapping[str, Array]) -> Array:
    p = np.tanh(x @ w["w"] + w["b"]) @ w["v"]
    return np.asarray(np.exp(p) / np.exp(p).sum(-1, keepdims=True))


def weights() -> dict[str, Array]:
    from onnx import numpy_helper

    return {t.name: numpy_helper.to_array(t).astype(float) for t in parsed(NET, SIGNATURE).graph.initializer}


def gradient(x: Array, w: Mapping[str, Array]) -> Array:
    """``[4, 2]`` by symmetric differences."""
    step = 1e-5 * np.eye(4)
    return np.stack([(function(x + s, w) - function(x - s, w)) / 2e-5 for s in step])


def test_gradient_is_gradient_times_delta() -> None:
    explainer = DeepExplainer(parsed(NET, SIGNATURE), BACKGROUND, rules="gradient")
    found = explainer.shap_values(SAMPLES, check_additivity=False)
    w = weights()
    expected = [gradient(x.astype(float), w) * (x - BACKGROUND.mean(0))[:, None] for x in SAMPLES]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert not any(row.exact for row in explainer.rules())


def test_gradient_does_not_pass_for_a_sum() -> None:
    explainer = DeepExplainer(parsed(NET, SIGNATURE), BACKGROUND, rules="gradient")
    with pytest.raises(
        AdditivityError,
        match=r"The rule alternatives\.gradient_at_sample is not made to sum to delta.* check_additivity=False",
    ):
        explainer.shap_values(SAMPLES)


def test_gradient_reaches_into_loops() -> None:
    """An RNN becomes a loop."""
    rnn = (
        "{ s = Unsqueeze(x, one) t = Transpose<perm = [2, 0, 1]>(s) "
        "h, y3 = RNN<hidden_size = 1>(t, wi, wr) y = Squeeze(y3, zero) }"
    )
    more = "<int64[1] one = {1}, int64[1] zero = {0}, float[1,1,1] wi = {0.7}, float[1,1,1] wr = {-0.6}>"
    model = parsed(more + rnn, "(float[N,4] x) => (float[N,1] y)")
    found = DeepExplainer(model, BACKGROUND, rules="gradient").shap_values(SAMPLES, check_additivity=False)

    def last(x: Array) -> float:
        h = 0.0
        for value in x:
            h = float(np.tanh(0.7 * value - 0.6 * h))
        return h

    for x, got in zip(SAMPLES.astype(float), found, strict=True):
        slope = np.array([(last(x + s) - last(x - s)) / 2e-5 for s in 1e-5 * np.eye(4)])
        np.testing.assert_allclose(got[:, 0], slope * (x - BACKGROUND.mean(0)), rtol=1e-3, atol=1e-5)


def test_integrated_gradients_per_node() -> None:
    """Exact per node where the node is a function of one number: the secant; Softmax by its own path."""
    explainer = DeepExplainer(parsed(NET, SIGNATURE), BACKGROUND, rules="integrated_gradients")
    found = explainer.shap_values(SAMPLES)  # sums to delta
    usual = DeepExplainer(parsed(NET, SIGNATURE), BACKGROUND, rules={"Softmax": "integrated_gradients"})
    np.testing.assert_allclose(found, usual.shap_values(SAMPLES), rtol=1e-4, atol=1e-6)
    w, total = weights(), np.zeros((4, 2))
    for x0 in BACKGROUND.astype(float):
        x = SAMPLES[0].astype(float)
        h, h0 = x @ w["w"] + w["b"], x0 @ w["w"] + w["b"]
        p, p0 = np.tanh(h) @ w["v"], np.tanh(h0) @ w["v"]
        jacobian = np.zeros((2, 2))
        for t in (np.arange(2000) + 0.5) / 2000:
            q = np.exp(p0 + t * (p - p0))
            q /= q.sum()
            jacobian += (np.diag(q) - np.outer(q, q)) / 2000
        secant = (np.tanh(h) - np.tanh(h0)) / (h - h0)
        total += (w["w"] * secant) @ w["v"] @ jacobian * (x - x0)[:, None] / len(BACKGROUND)
    np.testing.assert_allclose(found[0], total, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("operator", ["Sigmoid", "Exp", "Softmax", "LogSoftmax"])
def test_integrated_gradients_obeys_the_laws(operator: str) -> None:
    check_rule(operator, [(1, 4)], rule=rule_set("integrated_gradients"))


class Coupled(OpRun):
    """``a b^2 sin(a)``, and the sum of a over all."""

    op_domain = "lab"

    def _run(self, a: Array, b: Array) -> tuple[Array, Array]:
        return (a * b**2 * np.sin(a)).astype(a.dtype), np.asarray(a.sum(-1, keepdims=True) ** 3, a.dtype)


@pytest.mark.parametrize("explained", [0, 1])
def test_universal_needs_no_rule(explained: int) -> None:
    """Of two inputs and two outputs, in numpy alone: sums to delta, and the derivative as the delta vanishes."""
    check_rule(
        "lab::Coupled",
        [(1, 3), (1, 3)],
        rule=rule_set("universal"),
        varying=[0, 1] if explained == 0 else [0],
        outputs=2,
        explained=explained,
        new_ops=[Coupled],
        derivative_tolerance=1e-2,
    )


def test_universal_is_asked_last() -> None:
    explainer = DeepExplainer(parsed(NET, SIGNATURE), BACKGROUND, rules="universal")
    assert {row.rule.split(".")[0] for row in explainer.rules()}.isdisjoint({"alternatives"})
    with pytest.raises(UnsupportedOperatorError, match=r"rules=\"universal\" takes any"):
        check_rule("lab::Coupled", [(1, 3), (1, 3)], outputs=2, new_ops=[Coupled])


def test_universal_refuses_what_has_no_derivative() -> None:
    with pytest.raises(RuleError, match=r"the universal rule needs derivatives, and input 0 is of type int64"):
        check_rule(
            "lab::Coupled",
            [np.ones((1, 3), np.int64), (1, 3)],
            rule=rule_set("universal"),
            varying=[0],
            domain=lambda rng, shape: rng.integers(0, 5, shape),
            outputs=2,
            new_ops=[Coupled],
        )


@pytest.mark.parametrize("key", ["Tanh", "act"])
def test_a_named_rule_for_one_operator_or_node(key: str) -> None:
    explainer = DeepExplainer(parsed(NET, SIGNATURE), BACKGROUND, rules={key: "gradient"})
    named = [row.node for row in explainer.rules() if row.rule == "alternatives.gradient_at_sample"]
    assert named == ["act"]
