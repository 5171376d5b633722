"""Masks made of data, on their way to a softmax."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from deepshap_ir import DeepExplainer
from deepshap_ir.errors import NonFiniteError
from deepshap_ir.importing.runner import Runner
from tests.onnx_text import parsed

RNG = np.random.default_rng(0)
ATTENTION = """{ e = Gather(table, x) \n pad = Equal(x, zero) \n MASK
  t = Transpose <perm = [0, 2, 1]> (e) \n s = MatMul(e, t) \n MASKED
  p = Softmax(m) \n o = MatMul(p, e) \n y = ReduceMean <keepdims = 0> (o, axis) }"""
FORMS = {
    "added": ("b = Where(pad, low, none) \n u = Unsqueeze(b, axis)", "m = Add(s, u)"),
    "negated": ("n = Not(pad) \n b = Where(n, none, low) \n u = Unsqueeze(b, axis)", "m = Add(s, u)"),
    "chosen": ("u = Unsqueeze(pad, axis)", "m = Where(u, low, s)"),
}


def attention(form: str, low: float = -np.inf, more: str = "", guard: str = "") -> ModelProto:
    mask, masked = FORMS[form]
    if guard:
        more += "\n q = Softmax(m) \n " + guard
    text = ATTENTION.replace("MASKED", masked + more).replace("MASK", mask)
    if guard:
        text = text.replace("p = Softmax(m) \n o", "o")
    model = parsed(text, "(int64[N,5] x) => (float[N,4] y)")
    constants = {
        "table": RNG.normal(size=(9, 4)),
        "zero": np.array(0),
        "axis": np.array([1]),
        "last": np.array([-1]),
        "low": low,
        "none": 0.0,
    }
    for name, value in constants.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize("form", FORMS)
def test_a_pad_is_a_player(form: str) -> None:
    """In sample or reference alone, in both, or in none: attributions sum to delta, as of any low number."""
    x, x0 = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]]), np.array([[8, 2, 0, 0, 0], [3, 3, 1, 1, 2], [1, 0, 5, 6, 0]])
    state = RNG.bit_generator.state
    infinite = attention(form)
    RNG.bit_generator.state = state
    finite = attention(form, -1e9)
    phi = DeepExplainer(infinite, x0).shap_values(x)
    delta = Runner(infinite).run({"x": x})["y"] - Runner(infinite).run({"x": x0})["y"].mean(0)
    np.testing.assert_allclose(phi.sum(1), delta, atol=1e-5)
    np.testing.assert_allclose(phi, DeepExplainer(finite, x0).shap_values(x), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_all_masked_is_not_a_number_as_in_the_file(form: str) -> None:
    x0 = np.array([[8, 2, 0, 0, 0], [3, 3, 1, 1, 2]])
    e = DeepExplainer(attention(form), x0)
    e.shap_values(np.array([[1, 0, 0, 0, 0]]))
    with pytest.raises(NonFiniteError, match=r"Softmax node .* gives nan at sample 1"):
        e.shap_values(np.array([[1, 2, 3, 0, 0], [0, 0, 0, 0, 0]]))


@pytest.mark.parametrize("low", [-1e9, -3.4e38])
@pytest.mark.parametrize("form", FORMS)
def test_rows_masked_by_a_large_number_are_uniform_where_all_is_masked(form: str, low: float) -> None:
    """The scores that jump share the change, which a large number for all of them would round away."""
    x0 = np.array([[8, 2, 0, 0, 0], [0, 0, 0, 0, 0], [3, 3, 1, 1, 2]])
    x = np.array([[0, 0, 0, 0, 0], [1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    model = attention(form, low)
    phi = DeepExplainer(model, x0).shap_values(x)
    delta = Runner(model).run({"x": x})["y"] - Runner(model).run({"x": x0})["y"].mean(0)
    np.testing.assert_allclose(phi.sum(1), delta, atol=1e-5)
    assert np.abs(phi).max() < 10 * np.abs(delta).max()
    exact = DeepExplainer(model, x0, precision="float64").shap_values(x)
    np.testing.assert_allclose(phi, exact, atol=1e-5)


@pytest.mark.parametrize("low", [-1e4, -1e9, np.finfo(np.float32).min])
def test_masks_that_are_computed(low: float) -> None:
    """``(1 - mask) * low`` is added to the scores, or ``mask * -low`` is taken from them."""
    mask = "f = Cast<to = 1>(pad) \n b = Mul(f, low) \n u = Unsqueeze(b, axis)"
    x0 = np.array([[8, 2, 0, 0, 0], [0, 0, 0, 0, 0], [3, 3, 1, 1, 2]])
    x = np.array([[0, 0, 0, 0, 0], [1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    for sign, masked in ((1, "m = Add(s, u)"), (-1, "m = Sub(s, u)")):
        FORMS["computed"] = (mask, masked)
        try:
            model = attention("computed", sign * low)
        finally:
            del FORMS["computed"]
        phi = DeepExplainer(model, x0).shap_values(x)
        delta = Runner(model).run({"x": x})["y"] - Runner(model).run({"x": x0})["y"].mean(0)
        np.testing.assert_allclose(phi.sum(1), delta, atol=1e-5)
        assert np.abs(phi).max() < 10 * np.abs(delta).max()


GUARDS = {
    "IsNaN": "g = IsNaN(q) \n p = Where(g, none, q)",
    "compared": "g = Equal(m, low) \n f = Cast<to = 1>(g) \n r = ReduceMin(f, last) \n d = Cast<to = 9>(r)"
    " \n p = Where(d, none, q)",
}


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_softmax_that_is_guarded_is_what_the_guard_says(form: str, guard: str) -> None:
    """Where all is masked the model puts zeros, in samples as in references."""
    model = attention(form, guard=GUARDS[guard])
    x = np.array([[1, 2, 3, 0, 0], [0, 0, 0, 0, 0], [4, 0, 0, 0, 0]])
    x0 = np.array([[8, 2, 0, 0, 0], [3, 3, 1, 1, 2], [0, 0, 0, 0, 0]])
    y, y0 = (Runner(model).run({"x": rows})["y"] for rows in (x, x0))
    assert not y[1].any()
    for precision, tolerance in ((None, 1e-5), ("float64", 1e-9)):
        phi = DeepExplainer(model, x0, precision=precision).shap_values(x)
        np.testing.assert_allclose(phi.sum(1), y - y0.mean(0), atol=max(tolerance, 1e-6))


@pytest.mark.parametrize("guard", GUARDS)
def test_masks_of_data_and_of_places(guard: str) -> None:
    """A row sees what comes before it, and no pads: those in front are masked as a whole."""
    model = attention("added", more="\n v = Where(seen, m, low)", guard=GUARDS[guard].replace("m,", "v,"))
    node = next(n for n in model.graph.node if n.op_type == "Softmax")
    node.input[0] = "v"
    model.graph.initializer.append(numpy_helper.from_array(np.tri(5, dtype=bool), "seen"))
    x = np.array([[0, 0, 3, 2, 1], [1, 2, 3, 4, 5], [0, 5, 0, 6, 7]])
    x0 = np.array([[0, 2, 1, 7, 8], [3, 3, 1, 1, 2], [0, 0, 0, 4, 4]])
    y, y0 = (Runner(model).run({"x": rows})["y"] for rows in (x, x0))
    phi = DeepExplainer(model, x0).shap_values(x)
    np.testing.assert_allclose(phi.sum(1), y - y0.mean(0), atol=1e-5)


def test_a_masked_log_softmax_is_minus_infinity_as_in_the_file() -> None:
    body = """{ s = MatMul(x, w) \n c = Greater(x, high) \n m = Where(c, low, s) \n l = LogSoftmax(m) \n END }"""

    def model(end: str) -> ModelProto:
        found = parsed(body.replace("END", end), "(float[N,3] x) => (float[N,K] y)")
        for name, value in {"w": RNG.normal(size=(3, 3)), "high": 1.0, "low": -np.inf}.items():
            found.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        found.graph.initializer.append(numpy_helper.from_array(np.array([2]), "two"))
        return found

    x0 = np.array([[0.5, 0.1, 0.3], [0.2, -0.4, 0.8]], np.float32)
    x = np.array([[0.1, 0.4, 0.2], [2.0, 0.3, -0.3]], np.float32)
    for end, rows in (("y = Exp(l)", x), ("y = Gather<axis = 1>(l, two)", x)):
        found = model(end)
        e = DeepExplainer(found, x0)
        delta = Runner(found).run({"x": rows})["y"] - Runner(found).run({"x": x0})["y"].mean(0)
        np.testing.assert_allclose(e.shap_values(rows).sum(1), delta, atol=1e-5)
    found = model("y = Identity(l)")
    e = DeepExplainer(found, x0)
    e.shap_values(x[:1])
    with pytest.raises(NonFiniteError, match="gives -inf at sample 0"):
        e.shap_values(x[1:])


def test_infinity_that_something_else_reads_stays() -> None:
    model = attention("chosen", more="\n worst = ReduceMin (m, last)")
    model.graph.node[-1].input[0] = "q"
    model.graph.node[-1].output[0] = "y"
    index = len(model.graph.node) - 1
    model.graph.node.insert(index, parsed("{ q = Add(o, worst) \n y = Relu(x) }").graph.node[0])
    with pytest.raises(NonFiniteError, match=r"-inf"):
        DeepExplainer(model, np.array([[1, 2, 3, 4, 5], [8, 2, 7, 5, 5]])).shap_values(np.array([[1, 2, 3, 0, 0]]))


ADDED, BESIDE = "m = Add(s, b)", "c = Add(x, k) \n m = Where(g, low, c)"


@pytest.mark.parametrize(
    ("masked", "causal", "precision"),
    [(ADDED, 0.0, None), (ADDED, 0.0, "float64"), (BESIDE, -1e9, None), (BESIDE, -3e38, "float64")],
)
def test_a_row_that_is_masked_as_a_whole_is_that_of_the_file(masked: str, causal: float, precision: str | None) -> None:
    """Where the lowest float swallows large scores, and beside another mask."""
    text = f"{{ g = Greater(x, half) \n b = Where(g, low, none) \n s = Mul(x, large) \n {masked} \n y = Softmax(m) }}"
    model = parsed(text, "(float[N,4] x) => (float[N,4] y)")
    low, places = np.finfo(np.float32).min, np.array([0, causal, causal, causal])
    for name, value in {"half": 0.5, "low": low, "none": 0.0, "large": 60.0, "k": places}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    x = np.array([[0.6, 0.9, 1.2, 2], [0.7, -1, -1, -1]], np.float32)  # all, and what the other constant leaves
    x0 = -np.abs(RNG.normal(size=(3, 4))).astype(np.float32)
    phi = DeepExplainer(model, x0, precision=precision).shap_values(x)
    delta = Runner(model).run({"x": x})["y"] - Runner(model).run({"x": x0})["y"].mean(0)
    np.testing.assert_allclose(phi.sum(1), delta, atol=1e-5)


def test_scores_are_compared_with_infinity_of_a_higher_rank() -> None:
    """The comparison broadcasts as that of the file does."""
    text = """{ g = Greater(x, half) \n m = Where(g, low, x) \n p = Softmax(m) \n e = Equal(m, lows)
      w = Where(e, none, p) \n y = Squeeze(w, axis) }"""
    model = parsed(text, "(float[N,4] x) => (float[N,4] y)")
    for name, value in {"half": 0.5, "low": -np.inf, "none": 0.0, "lows": np.full((1, 1, 1), -np.inf)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis"))
    x, x0 = np.array([[0.6, 0.1, 0.2, 2]], np.float32), np.array([[0.1, 0.9, -0.2, 0.3]], np.float32)
    phi = DeepExplainer(model, x0).shap_values(x)
    delta = Runner(model).run({"x": x})["y"] - Runner(model).run({"x": x0})["y"]
    np.testing.assert_allclose(phi.sum(1), delta, atol=1e-6)
