"""If, Loop, Scan and SequenceMap: as one loop and written out, what is read before the loop, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from deepshap_ir import DeepExplainer
from deepshap_ir.errors import UnsupportedOperatorError
from deepshap_ir.graph import Graph
from deepshap_ir.importing import control_flow
from deepshap_ir.importing.importer import import_model
from tests.onnx_text import data, operators, parsed

Array = NDArray[Any]

SIGNATURE = "(float[N,6,4] x) => (float[N,4] y)"
WEIGHTS = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32) / 2
SINGLE = "(float[1,6,4] x) => (float[1,4] y)"
CONSTANTS: dict[str, Any] = {
    "T": np.array(6),
    "many": np.array(600),
    "none": np.array(0),
    "yes": np.array(True),
    "w": WEIGHTS,
    "h0": np.ones((1, 4), np.float32),
    "h1": np.full((1, 4), 2, np.float32),
    "k0": np.array(0),
    "last": np.array(5),
    "zero": np.array(0),
    "one": np.array(1),
    "two": np.array(2),
    "five": np.array(5),
    "axis0": np.array([0]),
    "axis1": np.array([1]),
    "half": np.array(0.5, np.float32),
    "four": np.arange(4, dtype=np.float32),
}


def model(text: str, signature: str = SIGNATURE, **constants: Any) -> ModelProto:
    made = parsed(text, signature)
    for name, array in {**CONSTANTS, **constants}.items():
        if name in text:
            made.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return made


LOOPS: dict[str, tuple[str, list[str]]] = {
    # name: the model, and the operators in the body of its loop, the Identity of every output left out
    "the element of the iteration": (
        """{ y = Loop(T, , h0) <body = b (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2) {
               e = Gather <axis = 1> (x, i) \n p = MatMul(h, w) \n s = Add(p, e) \n h2 = Tanh(s)
               c2 = Identity(c) }> }""",
        ["MatMul", "Add", "Tanh"],
    ),
    "a slice that moves": (
        """{ y = Loop(T, , h0) <body = b (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2) {
               j = Unsqueeze(i, axis0) \n k = Add(j, axis1) \n e1 = Slice(x, j, k, axis1) \n e = Squeeze(e1, axis1)
               p = MatMul(h, w) \n s = Add(p, e) \n h2 = Tanh(s) \n c2 = Identity(c) }> }""",
        ["Squeeze", "MatMul", "Add", "Tanh"],
    ),
    "a counter of its own that ends the loop": (
        """{ n, l, all = Loop(many, , k0, h0) <body = b (int64 i, bool c, int64 k, float[N,4] h)
                                               => (bool c2, int64 k2, float[N,4] h2, float[N,4] o) {
               e = Gather <axis = 1> (x, k) \n p = Mul(h, e) \n h2 = Tanh(p) \n o = Neg(h2) \n k2 = Add(k, one)
               c2 = Less(k2, five) }>
             f = Cast <to = 1> (n) \n s = ReduceSum <keepdims = 0> (all, axis0) \n t = Add(s, l) \n y = Mul(t, f) }""",
        ["Mul", "Tanh", "Neg"],
    ),
    "no count, and backward": (
        """{ n, y = Loop(, yes, last, h0) <body = b (int64 i, bool c, int64 k, float[N,4] h)
                                             => (bool c2, int64 k2, float[N,4] h2) {
               e = Gather <axis = 1> (x, k) \n p = Mul(h, e) \n h2 = Tanh(p) \n k2 = Sub(k, one)
               c2 = GreaterOrEqual(k2, zero) }> }""",
        ["Mul", "Tanh"],
    ),
    "states that change places and one that stays": (
        """{ a, b, d = Loop(T, yes, h0, h1, x) <body = q (int64 i, bool c, float[N,4] a, float[N,4] b, float[N,6,4] z)
                                                  => (bool c2, float[N,4] b, float[N,4] n, float[N,6,4] z2) {
               e = Gather <axis = 1> (z, i) \n z1 = Identity(z) \n z2 = Identity(z1) \n p = Mul(a, e) \n n = Tanh(p)
               c2 = Identity(c) }>
             s = Add(a, b) \n r = ReduceSum <keepdims = 0> (d, axis1) \n y = Add(s, r) }""",
        ["Mul", "Tanh"],
    ),
    "the number of the iteration": (
        """{ h = ReduceSum <keepdims = 0> (x, axis1) \n y = Loop(T, , h) <
             body = q (int64 i, bool c, float[N,4] a) => (bool c2, float[N,4] n) {
               f = Cast <to = 1> (i) \n g = Add(a, f) \n n = Sin(g) \n c2 = Identity(c) }> }""",
        ["Add", "Sin"],
    ),
    "nothing but a state": (
        """{ h = ReduceSum <keepdims = 0> (x, axis1)
             y = Loop(T, , h) <body = q (int64 i, bool c, float[N,4] a) => (bool c2, float[N,4] n) {
                   n = Sin(a) \n c2 = Identity(c) }> }""",
        ["Sin"],
    ),
    "an If on the number of the iteration": (
        """{ y = Loop(T, , h0) <body = b (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2) {
               e = Gather <axis = 1> (x, i) \n z = Equal(i, two)
               q = If(z) <then_branch = t () => (float[N,4] a) { a = Neg(h) },
                          else_branch = f () => (float[N,4] b2) { b2 = Tanh(e) }>
               s = Add(q, h) \n h2 = Sin(s) \n c2 = Identity(c) }> }""",
        ["Neg", "Tanh", "Where", "Add", "Sin"],
    ),
    "an If on a constant": (
        """{ y = Loop(T, , h0) <body = b (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2) {
               e = Gather <axis = 1> (x, i)
               q = If(yes) <then_branch = t () => (float[N,4] a) { a = Add(h, e) },
                            else_branch = f () => (float[N,4] b2) { b2 = RandomNormalLike(e) }>
               h2 = Sin(q) \n c2 = Identity(c) }> }""",
        ["Add", "Sin"],
    ),
    "an If on data": (
        """{ y = Loop(T, , h0) <body = b (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2) {
               e = Gather <axis = 1> (x, i) \n m = ReduceSum <keepdims = 0> (e) \n z = Greater(m, half)
               q = If(z) <then_branch = t () => (float[N,4] a) { a = Neg(h) },
                          else_branch = f () => (float[N,4] b2) { b2 = Tanh(e) }>
               s = Add(q, h) \n h2 = Sin(s) \n c2 = Identity(c) }> }""",
        ["ReduceSum", "Greater", "Neg", "Tanh", "Reshape", "Where", "Add", "Sin"],
    ),
    "a loop in a loop": (
        """{ y = Loop(T, , h0) <body = b (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2) {
               e = Gather <axis = 1> (x, i)
               q = Loop(T, , h) <body = d (int64 j, bool cc, float[N,4] g) => (bool cc2, float[N,4] g2) {
                     f = Gather <axis = 1> (x, j) \n u = Mul(f, e) \n v = Add(u, g) \n g2 = Tanh(v)
                     cc2 = Identity(cc) }>
               s = Add(q, e) \n h2 = Sin(s) \n c2 = Identity(c) }> }""",
        ["Scan", "Add", "Sin"],
    ),
    "a layer in a loop": (
        """{ y = Loop(T, , h0) <body = b (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2) {
               e = Gather <axis = 1> (x, i) \n t1 = Unsqueeze(e, axis0) \n h3 = Unsqueeze(h, axis0)
               t = Concat <axis = 0> (t1, h3)
               all, l = RNN <hidden_size = 4> (t, rw, rr, , , h3) \n m = Squeeze(l, axis0) \n n = Softmax(m)
               h2 = Mul(n, h) \n c2 = Identity(c) }> }""",
        ["Unsqueeze", "Unsqueeze", "Concat", "Gather", "Scan", "Unsqueeze", "Squeeze", "Softmax", "Mul"],
    ),
    "a sequence that is appended to": (
        """{ s0 = SequenceEmpty()
             s, h = Loop(T, , s0, h0) <body = b (int64 i, bool c, seq(float[N,4]) q, float[N,4] h)
                                           => (bool c2, seq(float[N,4]) q2, float[N,4] h2) {
               e = Gather <axis = 1> (x, i) \n p = Mul(h, e) \n h2 = Tanh(p) \n q2 = SequenceInsert(q, h2)
               c2 = Identity(c) }>
             k = ConcatFromSequence <axis = 1, new_axis = 1> (s) \n m = MatMul(k, w)
             l = ConcatFromSequence <axis = 1> (s) \n n = MatMul(l, w244) \n r = ReduceSum <keepdims = 0> (m, axis1)
             y = Add(r, n) }""",
        ["Mul", "Tanh"],
    ),
    "a tensor that is appended to": (
        """{ u = Concat <axis = 1> (h0, h0)
             s, h = Loop(T, , u, h0) <body = b (int64 i, bool c, float[N,M] q, float[N,4] h)
                                          => (bool c2, float[N,M] q2, float[N,4] h2) {
               e = Gather <axis = 1> (x, i) \n p = Mul(h, e) \n h2 = Tanh(p) \n q1 = Concat <axis = -1> (q, h2)
               q2 = Identity(q1) \n c2 = Identity(c) }>
             y = MatMul(s, w324) }""",
        ["Mul", "Tanh"],
    ),
    "axes, directions and several states": (
        """{ h, g, o1, o2 = Scan <num_scan_inputs = 2, scan_input_axes = [1, 2], scan_input_directions = [1, 0],
                                  scan_output_axes = [1, -1], scan_output_directions = [0, 1],
               body = b (float[N,4] h, float[N,6] g, float[N,4] a, float[N,6] d)
                   => (float[N,4] h2, float[N,6] g2, float[N,4] o, float[N,6] r) {
               p = Mul(h, a) \n k = Tanh(p) \n h2 = Add(k, a) \n q = Mul(g, d)
               m = ReduceMean <keepdims = 1> (p, axis1) \n g2 = Add(q, m) \n o = Neg(h2)
               r = Sin(g2) }> (h0, g0, x, x6)
             x2 = Slice(x, axis0, pair, pair) \n x6 = Concat <axis = 2> (x, x2)
             s = ReduceSum <keepdims = 0> (o1, axis1) \n t = Add(h, s) \n u = ReduceMean <keepdims = 0> (o2, axis1)
             v = MatMul(u, w64) \n w1 = ReduceSum(g, axis1) \n y1 = Add(t, v) \n y = Add(y1, w1) }""",
        ["Mul", "Tanh", "Add", "Mul", "ReduceMean", "Add", "Neg", "Sin"],
    ),
}
MORE: dict[str, Any] = {
    "rw": np.random.default_rng(1).normal(size=(1, 4, 4)).astype(np.float32),
    "rr": np.random.default_rng(2).normal(size=(1, 4, 4)).astype(np.float32),
    "g0": np.ones((1, 6), np.float32),
    "pair": np.array([2]),
    "w244": np.random.default_rng(4).normal(size=(24, 4)).astype(np.float32),
    "w324": np.random.default_rng(5).normal(size=(32, 4)).astype(np.float32),
    "w64": np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32),
}


def loop(name: str) -> ModelProto:
    made = model(LOOPS[name][0], SINGLE if "on data" in name else SIGNATURE, **MORE)
    late = [node for node in made.graph.node if node.output[0] in ("x2", "x6")]
    for node in reversed(late):
        made.graph.node.remove(node)
        made.graph.node.insert(0, node)
    return made


def body(graph: Graph) -> Graph:
    (found,) = [node.attributes["body"] for node in graph.nodes if node.operator == "deepshap_ir::Scan"]
    assert isinstance(found, Graph)
    return found


@pytest.mark.parametrize("name", LOOPS)
def test_one_loop_and_its_iterations_have_the_same_attributions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x0, x = data(4, 6, 4), data(2, 6, 4, seed=1)
    one = DeepExplainer(loop(name), x0)
    assert [node.op_type for node in body(one.graph).nodes if node.op_type != "Identity"] == LOOPS[name][1]
    monkeypatch.setattr(control_flow, "SHORT", 100)
    many = DeepExplainer(loop(name), x0)
    assert not any(node.op_type == "Scan" and "RNN" not in node.name for node in many.graph.nodes)
    np.testing.assert_allclose(one.shap_values(x), many.shap_values(x), atol=2e-5)


def test_names_of_nodes_survive() -> None:
    text = LOOPS["nothing but a state"][0].replace("n = Sin", "[wave] n = Sin")
    assert "wave" in [node.name for node in body(import_model(model(text), data(3, 6, 4)).graph).nodes]
    short = import_model(model(text.replace("Loop(T", "Loop(two")), data(3, 6, 4))
    assert [node.name for node in short.graph.nodes if node.op_type == "Sin"] == ["wave/0", "wave/1"]


WRITTEN_OUT: dict[str, str] = {
    "a sequence that grows at its front": """{ s0 = SequenceEmpty()
        s, h = Loop(T, , s0, h0) <body = b (int64 i, bool c, seq(float[N,4]) q, float[N,4] h)
                                      => (bool c2, seq(float[N,4]) q2, float[N,4] h2) {
          e = Gather <axis = 1> (x, i) \n p = Mul(h, e) \n h2 = Tanh(p) \n q2 = SequenceInsert(q, h2, zero)
          c2 = Identity(c) }>
        k = ConcatFromSequence <axis = 0, new_axis = 1> (s) \n y = ReduceSum <keepdims = 0> (k, axis0) }""",
    "a sequence that is read": """{ s = SplitToSequence <axis = 1, keepdims = 0> (x)
        y = Loop(T, , h0) <body = b (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2) {
          e = SequenceAt(s, i) \n p = Mul(h, e) \n h2 = Tanh(p) \n c2 = Identity(c) }> }""",
    "a tensor that grows": """{ u = Unsqueeze(h0, axis1)
        s = Loop(T, , u) <body = b (int64 i, bool c, float[N,M,4] q) => (bool c2, float[N,M,4] q2) {
          k = ReduceSum(q, axis1) \n e0 = Gather <axis = 1> (x, i) \n e = Unsqueeze(e0, axis1) \n v = Mul(k, e)
          h = Tanh(v) \n q2 = Concat <axis = 1> (q, h) \n c2 = Identity(c) }>
        y = ReduceSum <keepdims = 0> (s, axis1) }""",
    "a prefix of growing length": """{
        y = Loop(T, , h0) <body = b (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2) {
          j = Unsqueeze(i, axis0) \n k = Add(j, axis1) \n e = Slice(x, axis0, k, axis1)
          m = ReduceMean <keepdims = 0> (e, axis1) \n p = Mul(h, m) \n h2 = Tanh(p) \n c2 = Identity(c) }> }""",
    "branches of two shapes": """{
        y = Loop(T, , h0) <body = b (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2) {
          e = Gather <axis = 1> (x, i) \n z = Equal(i, two)
          q = If(z) <then_branch = t () => (float[N,1] a) { a = ReduceSum(h, axis1) },
                     else_branch = f () => (float[N,4] b2) { b2 = Tanh(e) }>
          s = Add(q, h) \n h2 = Sin(s) \n c2 = Identity(c) }> }""",
    "a loop as long as the number of the iteration": """{
        y = Loop(T, , h0) <body = b (int64 i, bool c, float[N,4] h) => (bool c2, float[N,4] h2) {
          e = Gather <axis = 1> (x, i)
          q = Loop(i, , h) <body = d (int64 j, bool cc, float[N,4] g) => (bool cc2, float[N,4] g2) {
                u = Add(g, e) \n g2 = Tanh(u) \n cc2 = Identity(cc) }>
          s = Add(q, e) \n h2 = Sin(s) \n c2 = Identity(c) }> }""",
    "a map over a sequence": """{ s = SplitToSequence <axis = 1, keepdims = 0> (x)
        m, n = SequenceMap(s, four, s) <body = b (float[N,4] e, float[4] k, float[N,4] z)
                                               => (float[N,4] o, float[N,4] p) {
                 q = Mul(e, k) \n o = Tanh(q) \n p = Mul(o, z) }>
        a = ConcatFromSequence <axis = 0, new_axis = 1> (m) \n b = ConcatFromSequence <axis = 0, new_axis = 1> (n)
        d = Mul(a, b) \n y = ReduceSum <keepdims = 0> (d, axis0) }""",
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_what_no_loop_can_do_is_written_out(name: str) -> None:
    explainer = DeepExplainer(model(WRITTEN_OUT[name]), data(4, 6, 4))
    names = {node.op_type for node in explainer.graph.nodes}
    assert not names & {"Loop", "SequenceMap", "SequenceAt", "SequenceInsert", "If"}
    assert ("Scan" in names) == ("as long as" in name)
    assert np.abs(explainer.shap_values(data(2, 6, 4, seed=1))).max() > 1e-3


def test_a_loop_that_does_not_run() -> None:
    text = """{ h = ReduceSum <keepdims = 0> (x, axis1) \n a = Loop(none, , h) <
                body = q (int64 i, bool c, float[N,4] a) => (bool c2, float[N,4] n) { n = Sin(a) \n c2 = Identity(c) }>
                y = Exp(a) }"""
    assert operators(import_model(model(text), data(3, 6, 4))) == ["ReduceSum", "Exp"]


def keras_gru(steps: int = 7) -> ModelProto:
    """As tf2onnx writes a while loop: two counters of its own, an And of their limits, an array read by position."""
    rng = np.random.default_rng(5)
    w, r, b = (rng.uniform(-0.7, 0.7, shape).astype(np.float32) for shape in ((3, 12), (4, 12), (2, 12)))
    text = """{ t = Transpose <perm = [1, 0, 2]> (x)
      time, n, state, all = Loop(count, yes, zero, zero, start) <
        body = while (int64 iteration, bool go, int64 time, int64 n, float[M,4] h)
               => (bool go2, int64 time2, int64 n2, float[M,4] h2, float[M,4] out) {
          e = Gather(t, time) \n m = MatMul(e, w) \n a = Add(m, b0) \n p = MatMul(h, r) \n q = Add(p, b1)
          az, ar, an = Split <axis = 1, num_outputs = 3> (a) \n qz, qr, qn = Split <axis = 1, num_outputs = 3> (q)
          sz = Add(az, qz) \n z = Sigmoid(sz) \n sr = Add(ar, qr) \n rr = Sigmoid(sr) \n k = Mul(rr, qn)
          g = Add(an, k) \n f = Tanh(g) \n zh = Mul(z, h) \n iz = Sub(unit, z) \n izf = Mul(iz, f) \n h2 = Add(zh, izf)
          out = Identity(h2) \n time2 = Add(time, one) \n n2 = Add(n, one) \n l1 = Less(time2, limit)
          l2 = Less(n2, limit) \n go2 = And(l1, l2) }>
      y = Identity(state) }"""
    constants = {
        "count": np.array(2**31 - 1),
        "limit": np.array(steps),
        "start": np.zeros((1, 4), np.float32),
        "unit": np.ones((), np.float32),
        "w": w,
        "r": r,
        "b0": b[0],
        "b1": b[1],
    }
    return model(text, f"(float[N,{steps},3] x) => (float[N,4] y)", **constants)


def test_a_recurrent_layer_of_keras_is_the_layer_of_the_standard() -> None:
    loop_model = keras_gru()
    arrays = {t.name: numpy_helper.to_array(t) for t in loop_model.graph.initializer}
    layer = model(
        """{ t = Transpose <perm = [1, 0, 2]> (x)
             all, l = GRU <hidden_size = 4, linear_before_reset = 1> (t, W, R, B)
             y = Squeeze(l, axis0) }""",
        "(float[N,7,3] x) => (float[N,4] y)",
        W=arrays["w"].T[None],
        R=arrays["r"].T[None],
        B=np.concatenate([arrays["b0"], arrays["b1"]])[None],
    )
    x0, x = data(4, 7, 3), data(2, 7, 3, seed=1)
    by_loop, by_layer = DeepExplainer(loop_model, x0), DeepExplainer(layer, x0)
    assert not {"Gather", "Less", "And"} & {node.op_type for node in body(by_loop.graph).nodes}
    np.testing.assert_allclose(by_loop.shap_values(x), by_layer.shap_values(x), atol=1e-6)


def test_a_convolutional_recurrent_layer() -> None:
    text = """{ t = Transpose <perm = [1, 0, 2, 3, 4]> (x)
      n, h, c = Loop(count, yes, zero, start, start) <
        body = while (int64 i, bool go, int64 n, float[M,2,4,4] h, float[M,2,4,4] c)
               => (bool go2, int64 n2, float[M,2,4,4] h2, float[M,2,4,4] c2) {
          e = Gather(t, n) \n a = Conv <pads = [1, 1, 1, 1]> (e, wx) \n b = Conv <pads = [1, 1, 1, 1]> (h, wh)
          s = Add(a, b) \n gi, go1, gf, gc = Split <axis = 1, num_outputs = 4> (s) \n i1 = HardSigmoid(gi)
          o = HardSigmoid(go1) \n f = HardSigmoid(gf) \n g = Tanh(gc)
          fc = Mul(f, c) \n ig = Mul(i1, g) \n c2 = Add(fc, ig) \n tc = Tanh(c2)
          h2 = Mul(o, tc) \n n2 = Add(n, one) \n go2 = Less(n2, limit) }>
      y = ReduceMean <keepdims = 0> (h, planes) }"""
    rng = np.random.default_rng(6)
    wx, wh = (rng.uniform(-0.5, 0.5, (8, c, 3, 3)).astype(np.float32) for c in (1, 2))
    constants = {"count": np.array(100), "limit": np.array(6), "start": np.zeros((1, 2, 4, 4), np.float32)}
    made = model(text, "(float[N,6,1,4,4] x) => (float[N,2] y)", wx=wx, wh=wh, planes=np.array([2, 3]), **constants)
    explainer = DeepExplainer(made, data(3, 6, 1, 4, 4))
    assert "Conv" in [node.op_type for node in body(explainer.graph).nodes]
    assert explainer.shap_values(data(2, 6, 1, 4, 4, seed=1)).shape == (2, 6, 1, 4, 4, 2)


CHOICE = """{ s = ReduceSum <keepdims = 0> (x, axis1) \n m = ReduceSum <keepdims = 0> (s) \n c = Greater(m, half)
  [choice] y, u = If(c) <then_branch = t () => (float[N,4] a, int64 k) {
                           n = Neg(s) \n a = Exp(n) \n k = Identity(one) },
                         else_branch = f () => (float[N,4] b, int64 j) { b = Tanh(s) \n j = Identity(two) }> }"""


def test_a_choice_that_depends_on_data_is_that_of_where() -> None:
    chosen = model(CHOICE, SINGLE)
    spelled = model(
        """{ s = ReduceSum <keepdims = 0> (x, axis1) \n m = ReduceSum <keepdims = 0> (s) \n c = Greater(m, half)
             n = Neg(s) \n a = Exp(n) \n b = Tanh(s) \n y = Where(c, a, b) }""",
        SINGLE,
    )
    x0, x = data(5, 6, 4), data(3, 6, 4, seed=1)
    np.testing.assert_allclose(
        DeepExplainer(chosen, x0).shap_values(x), DeepExplainer(spelled, x0).shap_values(x), atol=1e-6
    )


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (
            "a = Exp(n)",
            "a = ReduceSum(n)",
            r"they differ in what they return for 'y': float32\[1, 1\] and float32\[1, 4\]",
        ),
        ("b = Tanh(s)", "z = Reshape(s, axis0) \n b = Tanh(z)", r"not both run: .*Reshape"),
        ("b = Tanh(s)", "[r] b = RandomNormalLike(s)", r"RandomNormalLike node 'r': it is random"),
    ],
)
def test_choices_that_cannot_both_be_computed_are_refused(old: str, new: str, match: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=match):
        import_model(model(CHOICE.replace(old, new), SINGLE), data(4, 6, 4))


def test_an_input_that_would_do_as_a_constant_is_named() -> None:
    """The rate of a sound chooses the branch, or the number of steps the shape in one of them."""
    text = """{ fast = Greater(rate, limit)
        y = If (fast) <then_branch = t () => (float[N,4] a) { a = Exp(x) },
                       else_branch = e () => (float[N,2] b) { b = Slice(x, zero, steps, one) }> }"""
    found = parsed(text, "(float[N,4] x, float rate, int64[1] steps) => (float[N,K] y)")
    for name, value in {"limit": np.float32(9), "zero": np.array([0]), "one": np.array([1])}.items():
        found.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    rows = {"x": data(3, 4), "rate": np.float32(16), "steps": np.array([2])}
    once = {"batch_axes": {"rate": None, "steps": None}, "inputs": ["x"]}
    remedy = r"depends on 'rate': .* make it a constant, hold=\{'rate': value\}\."
    with pytest.raises(UnsupportedOperatorError, match=remedy) as refused:
        import_model(found, rows, **once)  # type: ignore[arg-type]
    assert "hold={'steps': value}" in str(refused.value)
    assert "hold={'x'" not in str(refused.value)
    del rows["rate"]
    assert import_model(found, rows, hold={"rate": np.float32(16)}, **once).graph.inputs == ("x",)  # type: ignore[arg-type]


def test_a_choice_in_a_loop_is_refused_once() -> None:
    text = LOOPS["an If on data"][0].replace("b2 = Tanh(e)", "b2 = ReduceSum(e)")
    with pytest.raises(UnsupportedOperatorError) as refused:
        import_model(model(text, SINGLE), data(4, 6, 4))
    assert str(refused.value).count("which branch runs depends on data") == 1
    assert "Loop node" in str(refused.value)


def test_what_would_have_to_be_written_out_too_often_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_flow, "MOST_NODES", 20)
    with pytest.raises(
        UnsupportedOperatorError,
        match=r"Loop node 'Loop_1': its state 'q' becomes float32\[1, 2, 4\] from float32\[1, 1, 4\], and its "
        r"6 iterations of 7 nodes are too many to be written out",
    ):
        import_model(model(WRITTEN_OUT["a tensor that grows"]), data(4, 6, 4))


def scripted(writes: str) -> ModelProto:
    """As PyTorch's script writes ``y[:, t] = h``."""
    return model(
        """{ h, y3 = Loop(T, , h0, y0) <body = b (int64 t, bool c, float[N,4] h, float[N,6,4] y)
                                           => (bool c2, float[N,4] h2, float[N,6,4] y2) {
               all = Slice(x, axis0, end, axis0, axis1) \n e = Gather <axis = 1> (all, t) \n p = MatMul(h, w)
               s = Add(p, e) \n h2 = Tanh(s) \n old = Gather <axis = 1> (y, t) \n shape = Shape(old)
               new = Expand(h2, shape) \n row = Unsqueeze(t, axis0) \n at = Concat <axis = 0> (axis0, row)
               places = Unsqueeze(at, axis0)
               WRITES \n c2 = Identity(c) }>
             y = ReduceSum <keepdims = 0> (y3, axis1) }""".replace("WRITES", writes),
        SIGNATURE,
        y0=np.zeros((1, 6, 4), np.float32),
        end=np.array([2**62]),
    )


@pytest.mark.parametrize(
    ("writes", "outside"),
    [
        ("y2 = ScatterND(y, places, new)", True),
        ("z = ScatterND(y, places, new) \n y2 = Identity(z)", True),
        ('y2 = ScatterND <reduction = "add"> (y, places, new)', False),
        ("z = ScatterND(y, places, new) \n y2 = Sin(z)", False),
        ("half_row = Div(places, pair) \n y2 = ScatterND(y, half_row, new)", False),
    ],
)
def test_rows_that_are_written_in_turn_are_written_after_the_loop(
    writes: str, outside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scripted(writes)
    made.graph.initializer.append(numpy_helper.from_array(np.array([2]), "pair"))
    x0, x = data(4, 6, 4), data(2, 6, 4, seed=1)
    one = DeepExplainer(made, x0)
    assert ("ScatterND" in [node.op_type for node in one.graph.nodes]) == outside
    assert ("ScatterND" in [node.op_type for node in body(one.graph).nodes]) != outside
    assert not {"Gather", "Slice", "Shape"} & {node.op_type for node in body(one.graph).nodes}
    monkeypatch.setattr(control_flow, "SHORT", 100)
    np.testing.assert_allclose(one.shap_values(x), DeepExplainer(made, x0).shap_values(x), atol=2e-5)
