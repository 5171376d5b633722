"""Loops: layers against the same written out by hand, long ones, and what varies in them and what does not."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from deepshap_ir import DeepExplainer
from deepshap_ir.emitter import Emitter, Value
from deepshap_ir.errors import RuleError, UnsupportedOperatorError
from deepshap_ir.extend import Context, Expansion, expand, rule
from deepshap_ir.graph import Graph, Node
from deepshap_ir.registry import RuleSet
from deepshap_ir.testing import check_rule, exact_shapley
from tests.onnx_text import data, parsed

Array = NDArray[Any]

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STEPS = {
    "RNN": """a{t} = MatMul(h{t}, R) \n s{t} = Add(g{t}, a{t}) \n h{u} = Tanh(s{t})""",
    "GRU": """a{t} = MatMul(h{t}, R) \n b{t} = Add(a{t}, Rb)
        gz{t}, gr{t}, gh{t} = Split <axis = 1, num_outputs = 3> (g{t})
        az{t}, ar{t}, ah{t} = Split <axis = 1, num_outputs = 3> (b{t})
        sz{t} = Add(gz{t}, az{t}) \n z{t} = Sigmoid(sz{t})
        sr{t} = Add(gr{t}, ar{t}) \n r{t} = Sigmoid(sr{t}) \n p{t} = Mul(r{t}, ah{t}) \n sn{t} = Add(gh{t}, p{t})
        n{t} = Tanh(sn{t}) \n k{t} = Mul(z{t}, h{t}) \n y{t} = Sub(one, z{t}) \n v{t} = Mul(y{t}, n{t})
        h{u} = Add(v{t}, k{t})""",
    "LSTM": """a{t} = MatMul(h{t}, R) \n s{t} = Add(g{t}, a{t})
        si{t}, so{t}, sf{t}, sc{t} = Split <axis = 1, num_outputs = 4> (s{t}) \n i{t} = Sigmoid(si{t})
        o{t} = Sigmoid(so{t}) \n f{t} = Sigmoid(sf{t}) \n n{t} = Tanh(sc{t}) \n p{t} = Mul(f{t}, c{t})
        q{t} = Mul(i{t}, n{t}) \n c{u} = Add(p{t}, q{t}) \n v{t} = Tanh(c{u}) \n h{u} = Mul(o{t}, v{t})""",
}


def by_hand(operator: str, w: Array, r: Array, bias: Array, steps: int) -> ModelProto:
    """The last hidden state over ``x [N, T, I]``, step after step."""
    g = GATES[operator] * r.shape[1]
    before = bias[:g] + (0 if operator == "GRU" else bias[g:])
    constants = {"W": w.T, "R": r.T, "b": before, "Rb": bias[g:], "one": np.ones(1), "h0": np.zeros((1, r.shape[1]))}
    lines = ["c0 = Identity(h0)"]
    for t in range(steps):
        constants[f"t{t}"] = np.array(t)
        lines.append(f"x{t} = Gather <axis = 1> (x, t{t}) \n m{t} = MatMul(x{t}, W) \n g{t} = Add(m{t}, b)")
        lines.append(STEPS[operator].format(t=t, u=t + 1))
    lines.append(f"y = Identity(h{steps})")
    model = parsed("{" + "\n".join(lines) + "}", f"(float[N,{steps},{w.shape[1]}] x) => (float[N,{r.shape[1]}] y)")
    for name, array in constants.items():
        array = array.astype(np.int64 if name[0] == "t" else np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def as_layer(operator: str, w: Array, r: Array, bias: Array, steps: int) -> ModelProto:
    """The same by the operator."""
    more = ", linear_before_reset = 1" if operator == "GRU" else ""
    model = parsed(
        f"""{{ t = Transpose <perm = [1, 0, 2]> (x)
              all, last = {operator} <hidden_size = {r.shape[1]} {more}> (t, W, R, b)
              y = Squeeze(last, zero) }}""",
        f"(float[N,{steps},{w.shape[1]}] x) => (float[N,{r.shape[1]}] y)",
    )
    for name, array in {"W": w[None], "R": r[None], "b": bias[None], "zero": np.zeros(1)}.items():
        array = array.astype(np.int64 if name == "zero" else np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize("operator", GATES)
def test_the_same_written_out_by_hand_has_the_same_attributions(operator: str) -> None:
    rng, g = np.random.default_rng(2), GATES[operator] * 4
    weights = [rng.uniform(-0.8, 0.8, shape) for shape in ((g, 3), (g, 4), (2 * g,))]
    x, x0 = data(3, 6, 3), data(5, 6, 3, seed=1)
    layer, hand = (DeepExplainer(form(operator, *weights, 6), x0) for form in (as_layer, by_hand))
    assert sum(node.op_type == "Scan" for node in layer.graph.nodes) == 1
    assert not any(node.op_type == "Scan" for node in hand.graph.nodes)
    np.testing.assert_allclose(layer.shap_values(x), hand.shap_values(x), atol=1e-6)


def test_a_layer_of_pytorch() -> None:
    torch = pytest.importorskip("torch")

    class Last(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.layer(x)[0][:, -1]

    model = Last().eval()
    x, x0 = data(3, 5, 3), data(4, 5, 3, seed=1)
    one = torch.onnx.export(model, (torch.from_numpy(x0[:1]),), dynamo=True, verbose=False).model_proto
    assert any(node.op_type == "LSTM" for node in one.graph.node)
    i, f, g, o = (np.arange(4 * k, 4 * k + 4) for k in range(4))
    order = np.concatenate([i, o, f, g])
    w, r, b_w, b_r = (p.detach().numpy()[order] for p in model.layer.parameters())
    hand = DeepExplainer(by_hand("LSTM", w, r, np.concatenate([b_w, b_r]), 5), x0)
    np.testing.assert_allclose(DeepExplainer(one, x0).shap_values(x), hand.shap_values(x), atol=1e-6)
    np.testing.assert_allclose(hand.expected_value, model(torch.from_numpy(x0)).detach().numpy().mean(0), atol=1e-6)


def test_a_thousand_steps() -> None:
    """Compiled as fast as ten, run in pieces that the memory holds, and sums to delta."""
    rng, g = np.random.default_rng(2), 4 * 16
    weights = [rng.uniform(-0.5, 0.5, shape) for shape in ((g, 8), (g, 16), (2 * g,))]
    x, x0 = data(2, 1000, 8), data(20, 1000, 8, seed=1)
    start = time.perf_counter()
    explainer = DeepExplainer(as_layer("LSTM", *weights, 1000), x0, memory_limit="20MB")
    assert time.perf_counter() - start < 20
    explained = explainer.shap_values(x)
    assert explained.shape == (2, 1000, 8, 16)
    plan = explainer._evaluator().plan
    pieces = explainer._evaluator().pieces(16, 2, 20)
    assert plan.explain.peak_bytes(pieces) <= 20e6
    assert plan.explain.peak_bytes({"output": 16, "sample": 2, "background": 20}) > 20e6
    assert len(plan.explain.model.graph.node) < 100
