"""What is not taken of a choice may be no number: it has no part, and nothing behind it has one."""

from __future__ import annotations

import numpy as np
import pytest

from deepshap_ir import DeepExplainer
from deepshap_ir.engine.choices import behind_choices
from deepshap_ir.importing.importer import import_model
from tests.onnx_text import Array, data, parsed

SIGNATURE = "(float[N,3] x, float[N,3] s) => (float[N,3] y)"
HEAD = "zero = Constant<value_float=0.0>() r = Relu(s) c = Greater(r, zero)"
RISKY = {
    "quotient": "q = Div(x, r) y = Where(c, q, zero)",
    "other side": "n = Not(c) q = Div(x, r) y = Where(n, x, q)",
    "inverse": "i = Reciprocal(r) q = Mul(x, i) y = Where(c, q, zero)",
    "logarithm": "l = Log(r) q = Mul(x, l) t = Add(q, x) y = Where(c, t, x)",
    "root": "n = Neg(x) f = Sqrt(s) q = Mul(n, f) y = Where(c, q, zero)",
    "three factors": "l = Log(r) q = Mul(x, l) p = Mul(q, s) y = Where(c, p, zero)",
    "moved": "l = Log(r) t = Transpose<perm=[1,0]>(l) b = Transpose<perm=[1,0]>(t) q = Mul(b, x) y = Where(c, q, zero)",
}


def expected(name: str, x: Array, s: Array) -> Array:
    x, s = x.astype(np.float64), s.astype(np.float64)
    taken, safe = s > 0, np.where(s > 0, s, 1.0)
    found = {
        "quotient": np.where(taken, x / safe, 0.0),
        "other side": np.where(taken, x / safe, x),
        "inverse": np.where(taken, x / safe, 0.0),
        "logarithm": np.where(taken, x * np.log(safe) + x, x),
        "root": np.where(taken, -x * np.sqrt(safe), 0.0),
        "three factors": np.where(taken, x * np.log(safe) * s, 0.0),
        "moved": np.where(taken, x * np.log(safe), 0.0),
    }
    return np.asarray(found[name])


@pytest.mark.parametrize("precision", [None, "float64"])
@pytest.mark.parametrize("name", RISKY)
def test_what_is_not_taken_may_be_no_number(name: str, precision: str | None) -> None:
    """At the sample, at the reference, at both and at none."""
    model = parsed(f"{{ {HEAD} {RISKY[name]} }}", SIGNATURE)
    x, s, x0, s0 = (data(6, 3, seed=seed) for seed in range(4))
    s[0], s0[:3] = -1.0, 0.0
    e = DeepExplainer(model, [x0, s0], precision=precision)
    phi = e.shap_values([x, s])
    delta = expected(name, x, s) - expected(name, x0, s0).mean(0)
    assert all(np.isfinite(values).all() for values in phi)
    np.testing.assert_allclose(sum(values.sum(1) for values in phi), delta, atol=2e-5 * np.abs(delta).max())


@pytest.mark.parametrize(
    ("body", "guarded"),
    [
        ("k = Constant<value_float=8.0>() q = Div(x, k) y = Where(c, q, s)", 0),
        ("t = Tanh(x) u = Mul(t, s) y = Where(c, u, x)", 0),
        ("q = Div(x, s) y = Tanh(q)", 0),
        ("q = Div(x, s) t = Tanh(q) y = Where(c, t, s)", 0),
        ("q = Div(x, s) m = Mul(q, x) y = Where(c, m, s)", 1),
    ],
    ids=["by a number", "bounded", "no choice", "bounded behind", "quotient and product"],
)
def test_only_what_may_be_no_number_is_guarded(body: str, guarded: int) -> None:
    graph = import_model(parsed(f"{{ {HEAD} {body} }}", SIGNATURE), [data(3, 3), data(3, 3, seed=1) + 3]).graph
    assert len(behind_choices(graph)) == guarded
