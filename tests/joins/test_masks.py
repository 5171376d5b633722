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


def attention(form: str, low: float = -np.inf, more: str = "") -> ModelProto:
    mask, masked = FORMS[form]
    text = ATTENTION.replace("MASKED", masked + more).replace("MASK", mask)
    model = parsed(text, "(int64[N,5] x) => (float[N,4] y)")
    constants = {"table": RNG.normal(size=(9, 4)), "zero": np.array(0), "axis": np.array([1]), "low": low, "none": 0.0}
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


def test_infinity_that_something_else_reads_stays() -> None:
    model = attention("chosen", more="\n worst = ReduceMin <keepdims = 1> (m)")
    model.graph.node[-1].input[0] = "q"
    model.graph.node[-1].output[0] = "y"
    index = len(model.graph.node) - 1
    model.graph.node.insert(index, parsed("{ q = Add(o, worst) \n y = Relu(x) }").graph.node[0])
    with pytest.raises(NonFiniteError, match=r"-inf"):
        DeepExplainer(model, np.array([[1, 2, 3, 4, 5], [8, 2, 7, 5, 5]])).shap_values(np.array([[1, 2, 3, 0, 0]]))
