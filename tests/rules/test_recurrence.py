"""Loops: layers against the same written out by hand, long ones, and what varies in them and what does not."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from deepshap_ir import DeepExplainer
from deepshap_ir.engine import recurrence
from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.registry import BUILT_IN, Resolver, RuleSet
from deepshap_ir.engine.value import Step, Value
from deepshap_ir.errors import RuleError, UnsupportedOperatorError
from deepshap_ir.extend import Context, Expansion
from deepshap_ir.graph import Graph, Node
from deepshap_ir.importing.runner import Runner
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


def by_hand(operator: str, weights: list[Array], steps: int) -> ModelProto:
    """The last hidden state over ``x [N, T, I]``, step after step."""
    w, r, bias = weights
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


def as_layer(operator: str, weights: list[Array], steps: int) -> ModelProto:
    """The same by the operator."""
    w, r, bias = weights
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
    layer, hand = (DeepExplainer(form(operator, weights, 6), x0) for form in (as_layer, by_hand))
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
    hand = DeepExplainer(by_hand("LSTM", [w, r, np.concatenate([b_w, b_r])], 5), x0)
    np.testing.assert_allclose(DeepExplainer(one, x0).shap_values(x), hand.shap_values(x), atol=1e-6)
    assert hand.expected_value is not None
    np.testing.assert_allclose(hand.expected_value, model(torch.from_numpy(x0)).detach().numpy().mean(0), atol=1e-6)


def test_a_thousand_steps() -> None:
    """Compiled as fast as ten, run in pieces that the memory holds, and sums to delta."""
    rng, g = np.random.default_rng(2), 4 * 16
    weights = [rng.uniform(-0.5, 0.5, shape) for shape in ((g, 8), (g, 16), (2 * g,))]
    x, x0 = data(2, 1000, 8), data(20, 1000, 8, seed=1)
    start = time.perf_counter()
    explainer = DeepExplainer(as_layer("LSTM", weights, 1000), x0, memory_limit="20MB")
    assert time.perf_counter() - start < 20
    explained = explainer.shap_values(x)
    assert explained.shape == (2, 1000, 8, 16)
    plan = explainer._evaluator().plan
    pieces = explainer._evaluator().pieces(16, 2, 20).sizes
    assert plan.explain.peak_bytes(pieces) <= 20e6
    assert plan.explain.peak_bytes({"output": 16, "sample": 2, "background": 20}) > 20e6
    assert len(plan.explain.model.graph.node) < 100


def decayed(ctx: Expansion) -> list[Value]:
    """``h' = tanh(h a + x b)`` from the last element to the first; `a` and `b` are read from outside."""
    op = ctx.op
    a, b = op.Sin(ctx.x(1)), op.Tanh(ctx.x(2))

    def body(states: list[Value], elements: list[Value]) -> tuple[list[Value], list[Value]]:
        h = op.Tanh(states[0] * a + elements[0] * (b * a))
        return [h], [h * h]

    last, stacked = op.scan(body, [op.zeros((1, 4))], [ctx.x(0)], reverse=True)
    return [*last, *stacked]


DECAYED = RuleSet()
DECAYED.expand("my::Decayed")(decayed)


def decayed_graph(explained: int, fed: tuple[str, ...] = ("x", "a", "b")) -> Graph:
    rng = np.random.default_rng(4)
    arrays = {"x": rng.normal(size=(5, 1, 4)), "a": rng.normal(size=(1, 4)), "b": rng.normal(size=(4,))}
    node = Node("n", "Decayed", ("x", "a", "b"), ("y", "all"), {}, "my", 1)
    shapes: dict[str, tuple[int, ...]] = {n: a.shape for n, a in arrays.items()} | {"y": (1, 4), "all": (5, 1, 4)}
    constants = {n: a for n, a in arrays.items() if n not in fed}
    dtypes: dict[str, np.dtype[Any]] = dict.fromkeys(shapes, np.dtype(np.float64))
    return Graph(fed, (("y", "all")[explained],), (node,), constants, shapes, dtypes, dict.fromkeys(fed, 0), {"": 18})


@pytest.mark.parametrize("explained", [0, 1])
@pytest.mark.parametrize("fed", [("x",), ("a",), ("b",), ("x", "b"), ("x", "a", "b")])
def test_laws_for_what_a_body_reads_from_outside(explained: int, fed: tuple[str, ...]) -> None:
    check_rule(decayed_graph(explained, fed), rule=DECAYED)


def test_a_loop_of_two_elements_gives_shapley_values_of_its_products() -> None:
    """``h2 = (h0 x1 + c) x2``, with a fixed h0: one product of two players."""
    rules = RuleSet()

    @rules.expand("my::Loop")
    def loop(ctx: Expansion) -> Value:
        def body(states: list[Value], elements: list[Value]) -> tuple[list[Value], list[Value]]:
            return [states[0] * elements[0] + 0.5], []

        return ctx.op.scan(body, [ctx.op.constant(np.full((1,), 0.7))], [ctx.x()])[0][0]

    types: dict[str, np.dtype[Any]] = dict.fromkeys("xy", np.dtype(np.float64))
    node = Node("n", "Loop", ("x",), ("y",), {}, "my", 1)
    graph = Graph(("x",), ("y",), (node,), {}, {"x": (2, 1), "y": (1,)}, types, {"x": 0}, {"": 18})
    checked = check_rule(graph, rule=rules)
    x, x0 = checked.samples[0][1].ravel(), checked.references[0][2].ravel()
    phi = exact_shapley(lambda v: (v[:, 0] * 0.7 + 0.5) * v[:, 1] + 0.5, x, x0)
    got = checked.multipliers[0][1, 2].ravel() * (x - x0)
    np.testing.assert_allclose(got / got.sum(), phi / phi.sum(), atol=1e-10)


def test_what_no_element_changes_is_computed_once_before_the_loop() -> None:
    op = Emitter({"": 18})
    x = op.input("x", (5, 1, 4), np.float32, ["sample"])
    a = op.input("a", (1, 4), np.float32, [])

    def body(states: list[Value], elements: list[Value]) -> tuple[list[Value], list[Value]]:
        return [op.Tanh(states[0] * op.Sin(a) + elements[0] * op.Exp(op.Sin(a)))], []

    op.scan(body, [op.zeros((1, 4))], [x])
    assert [step.op_type for step in op.steps] == ["Sin", "Exp", "Scan"]
    assert [step.op_type for step in op.steps[-1].attributes["steps"]] == ["Mul", "Mul", "Add", "Tanh"]


def test_a_state_of_changing_shape_and_sequences_of_two_lengths_are_refused() -> None:
    op = Emitter({"": 18})
    x, z = (op.input(name, (n, 1, 4), np.float32, []) for name, n in (("x", 5), ("z", 6)))
    with pytest.raises(RuleError, match=r"makes a state Value\(.*float32\[1, 8\].* of Value\(.*float32\[1, 4\]"):
        op.scan(lambda s, e: ([op.Concat(s[0], e[0], axis=1)], []), [op.zeros((1, 4))], [x])
    with pytest.raises(RuleError, match=r"lengths \[5, 6\]; one length is needed"):
        op.scan(lambda s, e: (s, []), [op.zeros((1, 4))], [x, z])


LOOP = """{ last, all = Scan <num_scan_inputs = 1, body = b (float[N,4] s, float[N,4] e)
                                                   => (float[N,4] t, float[N,4] o) {
     p = Mul(s, e) \n [inner] q = %s(p) \n t = Add(q, h) \n o = Tanh(t) }> (x, w)
   z = ReduceSum <keepdims = 0> (all, zero) \n y = Add(last, z) }"""


def loop_model(operator: str = "Tanh") -> ModelProto:
    model = parsed(LOOP.replace("%s", operator), "(float[N,4] x, float[N,4] h) => (float[N,4] y)")
    constants = {"w": np.random.default_rng(0).normal(size=(6, 1, 4)).astype(np.float32), "zero": np.array([0])}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    return model


def loop_background() -> dict[str, Array]:
    return {"x": data(4, 4), "h": data(4, 4, seed=1)}


def test_operators_without_a_rule_in_a_body_are_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    Resolver()  # registers the built-in rules
    monkeypatch.delitem(BUILT_IN.rules, "Sin")
    with pytest.raises(UnsupportedOperatorError, match=r"No rule for 1 node .*\n  Sin \(opset 18\), node 'inner'"):
        DeepExplainer(loop_model("Sin"), loop_background())


def test_rules_of_the_user_hold_in_bodies() -> None:
    def half(ctx: Context, m: list[Value]) -> Value:
        return m[0] * 0.5

    x = {"x": data(2, 4, seed=2), "h": data(2, 4, seed=3)}
    for key in ("inner", "Sin"):
        explainer = DeepExplainer(loop_model("Sin"), loop_background(), rules={key: half})
        assert next(row.rule for row in explainer.rules() if row.node == "inner").endswith("half")
        wrong = explainer.shap_values(x, check_additivity=False)
        right = DeepExplainer(loop_model("Sin"), loop_background()).shap_values(x)
        assert np.abs(wrong[0] - right[0]).max() > 0.01


def test_a_state_that_does_not_vary_is_the_sample_s_own() -> None:
    """Its comparison is that of a fixed value: no multiplier, so no step to divide by."""
    model = parsed(
        """{ last, n = Scan <num_scan_inputs = 1, body = b (float[N,4] s, float[N,4] k, float[N,4] e)
                                                  => (float[N,4] t, float[N,4] l, float[N,4] o) {
               l = Mul(k, e) \n big = Greater(l, k) \n p = Sin(s)
               t = Where(big, p, s) \n o = Identity(p) }> (x, h, w)
             y = Identity(last) }""",
        "(float[N,4] x, float[N,4] h) => (float[N,4] y)",
    )
    model.graph.node[0].output.insert(1, "unread")
    weights = np.random.default_rng(0).normal(size=(6, 1, 4)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    explainer = DeepExplainer(model, loop_background(), inputs=["x"])
    operators = {s.op_type for step in explainer._evaluator().plan.explain.steps for s in inner_steps(step)}
    assert "Cast" not in operators
    assert np.isfinite(explainer.shap_values({"x": data(2, 4, seed=2), "h": data(2, 4, seed=3)})).all()


def inner_steps(step: Step) -> list[Step]:
    return [step, *(s for inner in step.attributes.get("steps", ()) for s in inner_steps(inner))]


def test_the_ledger_of_a_loop_is_even() -> None:
    explainer = DeepExplainer(loop_model(), loop_background(), precision="float64")
    residuals = explainer.ledger({"x": data(2, 4, seed=2), "h": data(2, 4, seed=3)})
    assert any("Scan" in name for name in residuals)
    assert max(np.abs(r).max() for r in residuals.values()) < 1e-12


def test_computing_a_body_again_gives_the_same_as_keeping_what_it_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    x = {"x": data(2, 4, seed=2), "h": data(2, 4, seed=3)}
    kept = DeepExplainer(loop_model(), loop_background())
    monkeypatch.setattr(recurrence, "KEPT_BYTES", 0)
    again = DeepExplainer(loop_model(), loop_background())
    loops = [next(s for s in e._evaluator().plan.explain.steps if s.op_type == "Scan") for e in (kept, again)]
    # the secants of two tanh; and the tanh themselves, at sample and reference
    assert [sum(s.op_type == "Tanh" for s in inner_steps(step)) for step in loops] == [2, 6]
    for a, b in zip(kept.shap_values(x), again.shap_values(x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_stacks_that_nothing_reads_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "KEPT_BYTES", 0)
    model = loop_model()
    del model.graph.node[1:]
    model.graph.node[0].output[0] = "y"
    plan = DeepExplainer(model, loop_background())._evaluator().plan
    loops = [step for program in (plan.background, plan.sample) for step in program.steps if step.op_type == "Scan"]
    assert len(loops) == 2
    assert [len(step.outputs) for step in loops] == [2, 2]


@pytest.mark.parametrize("axes", [([0, 0], [0, 0]), ([1, 0], [1, -1])], ids=str)
@pytest.mark.parametrize("directions", [([0, 0], [0, 0]), ([1, 1], [1, 1]), ([1, 0], [0, 1])], ids=str)
def test_scan_in_numpy(axes: tuple[list[int], list[int]], directions: tuple[list[int], list[int]]) -> None:
    model = parsed(
        """{ last, a, b = Scan <num_scan_inputs = 2, body = body (float[4] s, float[4] e, float[4] f)
                                              => (float[4] t, float[4] o, float[4] p) {
               p = Mul(s, e) \n t = Add(p, f) \n o = Sub(t, h) }> (s, x, z) }""",
        "(float[4] h, float[4] s, float[K,L] x, float[6,4] z) => (float[4] last, float[a,b] a, float[a,b] b)",
    )
    node = model.graph.node[0]
    for name, given in (("axes", axes), ("directions", directions)):
        for side, values in zip(("input", "output"), given, strict=True):
            node.attribute.append(helper.make_attribute(f"scan_{side}_{name}", values))
    x = data(6, 4)
    feeds = {"h": data(4), "s": data(4, seed=1), "x": x.T if axes[0][0] else x, "z": data(6, 4, seed=2)}
    ours, theirs = (Runner(model, reference=reference).run(feeds) for reference in (True, False))
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)


def test_nodes_of_a_layer_are_named_after_it() -> None:
    """So that a rule for a node of the model is for no other."""
    weights = [np.zeros(shape) for shape in ((16, 3), (16, 4), (32,))]
    rows = DeepExplainer(as_layer("LSTM", weights, 3), data(2, 3, 3)).rules()
    assert len({row.node for row in rows}) == len(rows)
    assert all(row.node.startswith("LSTM_") for row in rows if row.operator in ("MatMul", "Sigmoid", "Tanh", "Mul"))


@pytest.mark.parametrize("operator", GATES)
def test_float64(operator: str) -> None:
    """onnxruntime loads a layer of float64, and does not run it."""
    rng, g = np.random.default_rng(4), GATES[operator] * 3
    weights = [rng.uniform(-0.8, 0.8, shape) for shape in ((g, 2), (g, 3), (2 * g,))]
    x, x0 = data(2, 4, 2).astype(np.float64), data(3, 4, 2, seed=1).astype(np.float64)
    layer = as_layer(operator, weights, 4)
    for value in (*layer.graph.input, *layer.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in layer.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    explainer = DeepExplainer(layer, x0, precision="float64")
    f = Runner(layer).run
    delta = f({"x": x})["y"] - f({"x": x0})["y"].mean(0)
    np.testing.assert_allclose(explainer.shap_values(x).sum((1, 2)), delta, atol=1e-12)
