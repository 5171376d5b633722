"""A value over its own size is one node."""

import numpy as np
import pytest

from deepshap_ir import DeepExplainer
from deepshap_ir.testing import check_rule, exact_shapley
from tests.joins.joining import joined, operators
from tests.onnx_text import Array, data, parsed

L2 = "o = Mul(x, x) p = ReduceSum<keepdims=1>(o, last) n = Sqrt(p) s = Max(n, eps) "
RANGE = "h = ReduceMax(x, last) l = ReduceMin(x, last) w = Sub(h, l) t = Add(w, eps) "
SIZES = {
    "maximum": L2 + "y = Div(x, s)",
    "expanded": L2 + "t = Shape(x) r = Expand(s, t) y = Div(x, r)",
    "reciprocal": L2 + "r = Reciprocal(s) y = Mul(r, x)",
    "share": "h = Exp(x) t = Tanh(h) n = ReduceSum<keepdims=1>(t, last) y = Div(t, n)",
    "deviation": "m = ReduceMean(x, last) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, last) s = Sqrt(v) "
    "t = Add(s, eps) y = Div(d, t)",
    "range": RANGE + "d = Sub(x, l) y = Div(d, t)",
    "image": "g = Mul(x, gamma) k = ReduceSum<keepdims=1>(g, last) " + L2 + "e = Div(k, s) y = Mul(e, gamma)",
    "to the top": RANGE + "d = Sub(h, x) y = Div(d, t)",
    "gated": L2 + "r = Div(p, s) v = Mul(r, x) y = Div(v, s)",
    "sign changes": "n = ReduceSum<keepdims=1>(x, last) y = Div(x, n)",
}


@pytest.mark.parametrize("name", SIZES)
def test_a_value_over_its_own_size(name: str) -> None:
    graph = joined(SIZES[name])
    assert "OwnSize" in operators(graph)
    if name != "sign changes":
        check_rule(graph, derivative=name not in ("range", "to the top"))


@pytest.mark.parametrize(
    "body",
    [
        "w = Constant<value_ints=[0]>() f = Gather<axis=2>(x, w) a = Abs(f) s = Add(a, one) y = Div(x, s)",
        "e = Exp(x) s = Add(e, one) y = Div(x, s)",
        L2 + "t = Tanh(x) u = Add(t, s) y = Div(u, gamma)",
    ],
    ids=["an element", "its own element", "a constant"],
)
def test_other_quotients_stay(body: str) -> None:
    assert "OwnSize" not in operators(joined(body))
    assert "OwnSize" not in operators(joined(SIZES["maximum"], protected=["n"]))


def test_the_cosine_of_two_values_is_divided_by_one_size_after_the_other() -> None:
    sizes = " ".join(f"n{v} = ReduceL2<keepdims=1>({v}, last) s{v} = Max(n{v}, eps)" for v in "ab")
    body = (
        f"eps = Constant<value_float=1e-8>() {sizes} d = Mul(a, b) t = ReduceSum(d, last) m = Mul(sa, sb) y = Div(t, m)"
    )
    model = parsed(f"{{ {body} }}", "(float[N,4] a, float[N,4] b) => (float[N,1] y) <int64[1] last = {-1}>")
    samples = [data(3, 4), data(3, 4, seed=1)]
    explainer = DeepExplainer(model, [np.zeros((1, 4), np.float32)] * 2)
    assert [row.operator for row in explainer.rules()].count("deepshap_ir::OwnSize") == 2
    a, b = samples
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    phi = explainer.shap_values(samples)
    np.testing.assert_allclose(sum(p.sum((1, 2)) for p in phi), cosine, atol=1e-6)


@pytest.mark.parametrize(
    "spelling", ["d = Div(x, s) y = MatMul(d, w)", "u = MatMul(x, w) y = Div(u, s)", "u = Gemm(x, w) y = Div(u, s)"]
)
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_small_references_are_near_the_exact_values(spelling: str, scale: float) -> None:
    """Multipliers of the two factors alone would be 1e12 at a reference of zeros, and their sum off by thousands."""
    head = "last = Constant<value_ints=[-1]>() eps = Constant<value_float=1e-12>()"
    weights = "w = Constant<value = float[4, 2] {1, 2, -1, 3, 2, 1, 1, -2}>()"
    model = parsed(f"{{ {head} {weights} {L2} {spelling} }}", "(float[N,4] x) => (float[N,2] y)")
    x, x0 = data(1, 4), data(1, 4, seed=1) * np.float32(scale)
    w = np.array([[1, 2], [-1, 3], [2, 1], [1, -2]], np.float32)
    phi = DeepExplainer(model, x0).shap_values(x)[0]

    def f(rows: Array) -> Array:
        return np.asarray(rows @ w / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))

    np.testing.assert_allclose(phi.sum(0), (f(x) - f(x0))[0], atol=1e-6)
    exact = exact_shapley(lambda rows: f(rows)[:, 0], x[0].astype(float), x0[0].astype(float))
    assert np.abs(phi[:, 0] - exact).sum() < 0.7 * np.abs(exact).sum()
