"""What depends on the inputs: what is refused, what folds, and control flow."""

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from deepshap_ir import DeepExplainer
from deepshap_ir.errors import ModelError, UnsupportedOperatorError
from deepshap_ir.importing.importer import import_model
from tests.onnx_text import data, operators, parsed


def test_all_operators_of_varying_shape_are_named_at_once() -> None:
    body = """<int64[1] one = {1}, int64[1] zero = {0}, int64[2] flat = {1, 4}, int64[2] back = {1, -1}> {
      [nz] n = NonZero(x) \n f = Cast <to = 1> (n) \n c = ReduceSum(f)
      i = Cast <to = 7> (x) \n j = Reshape(i, back) \n k = Slice(j, zero, one, one)
      q = Squeeze(k) \n qq = Unsqueeze(q, zero)
      [rs] r = Tile(x, flat2) \n [sl] s = Slice(x, zero, qq, one) \n [ok] o = Slice(x, zero, one, one)
      [un] z = NonZero(w) \n e = Shape(z) \n ef = Cast <to = 1> (e)
      t = ReduceSum(s) \n y = Sum(c, t, o, r, ef) }"""
    model = parsed(body.replace("flat2", "flat"), "(float[N,4] x, float[N,4] w) => (float[N,4] y)")
    with pytest.raises(UnsupportedOperatorError) as caught:
        import_model(model, [data(1, 4), data(1, 4)])
    message = str(caught.value)
    assert "between its inputs and 'y'" in message
    assert "NonZero node 'nz': the shape of its output depends on data" in message
    assert "Slice node 'sl': the shape of its output depends on data, through its input 'qq'" in message
    assert "NonZero node 'un'" in message
    assert "'ok'" not in message
    assert "Tile" not in message


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("{ [r] n = RandomNormalLike(x) \n y = Add(x, n) }", "RandomNormalLike node 'r': it is random"),
        ("{ [r] n = RandomNormal <shape = [1, 4]> () \n y = Add(x, n) }", "RandomNormal node 'r': it is random"),
        ("{ [r] y = Bernoulli(x) }", "Bernoulli node 'r'"),
        (
            "<bool t = {1}, float p = {0.5}> { [d] y = Dropout(x, p, t) }",
            "Dropout node 'd': it is random: it is in training mode",
        ),
        (
            "<float[4] a = {1, 1, 1, 1}> { [n] y, m, v = BatchNormalization <training_mode = 1> (x, a, a, a, a) }",
            "BatchNormalization node 'n': it is in training mode",
        ),
        (
            "{ i = Cast <to = 7> (x) \n q = Squeeze(i) \n r = Slice(q, z, o) \n [c] c = ConstantOfShape(r)"
            " y = Add(x, c) }",
            "ConstantOfShape node 'c': the shape of its output depends on data, through its input 'r'",
        ),
        (
            "{ s = Cast <to = 7> (x) \n q = Squeeze(s) \n r = Slice(q, z, o) \n [k] v, i = TopK(x, r) \n y = Relu(v) }",
            "TopK node 'k'",
        ),
    ],
)
def test_operators_that_cannot_stand_on_the_way(body: str, match: str) -> None:
    model = parsed(body)
    model.graph.initializer.extend([numpy_helper.from_array(np.array([i]), name) for i, name in enumerate("zo")])
    with pytest.raises(UnsupportedOperatorError, match=match):
        import_model(model, np.ones((3, 4)))


def test_what_is_beside_the_way_is_not_refused() -> None:
    body = """{ n = RandomNormalLike(x) \n s = Shape(n) \n c = ConstantOfShape <value = float[1] {1}> (s)
                z = NonZero(x) \n f = Cast <to = 1> (z) \n y = Add(x, c) \n w = ReduceSum(f) }"""
    model = parsed(body, "(float[N,4] x) => (float[N,4] y, float[1,1] w)")
    assert operators(import_model(model, data(3, 4), output="y")) == ["Add"]
    constant = (
        "<float[4] k = {1, 0, 3, 0}> { n = NonZero(k) \n f = Cast <to = 1> (n) \n s = ReduceSum(f) \n y = Add(x, s) }"
    )
    assert operators(import_model(parsed(constant), data(3, 4))) == ["Add"]
    off = "<bool t = {1}, float p = {0}> { y = Dropout(x, p, t) }"
    assert operators(import_model(parsed(off), data(3, 4))) == ["Dropout"]


def test_if_on_a_constant_takes_its_branch() -> None:
    body = """{ s = Shape(x) \n one = Constant <value_int = 1> () \n n = Gather(s, one)
      four = Constant <value_int = 4> () \n c = Equal(n, four) \n h = Relu(x)
      [choice] r = If(c) <
        then_branch = yes () => (float[N,4] t) { [inner] k = Neg(h)
           t = If(c) <then_branch = yes2 () => (float[N,4] p) {
                                two = Constant <value_float = 2.0> () \n p = Mul(k, two) },
                      else_branch = no2 () => (float[N,4] q) { q = Bernoulli(k) }> },
        else_branch = no () => (float[N,4] e) { k2 = RandomNormalLike(x) \n e = Add(k2, h) }>
      y = Add(r, x) }"""
    imported = import_model(parsed(body), data(3, 4))
    assert operators(imported) == ["Relu", "Neg", "Mul", "Add"]
    assert "inner" in [node.name for node in imported.graph.nodes]
    with pytest.raises(UnsupportedOperatorError, match="RandomNormalLike"):
        import_model(parsed(body.replace("[N,4]", "[N,5]"), "(float[N,5] x) => (float[N,5] y)"), data(3, 5))


def test_a_branch_may_return_what_it_captures() -> None:
    body = """{ c = Constant <value = bool {1}> () \n h = Relu(x)
      y = If(c) <then_branch = yes () => (float[N,4] t) { t = Identity(h) },
                 else_branch = no () => (float[N,4] e) { e = Neg(h) }> }"""
    assert operators(import_model(parsed(body), data(3, 4))) == ["Relu", "Identity"]


VARYING_IF = """{ i = Identity(x) \n s = ReduceSum <keepdims = 0> (x) \n z = Constant <value_float = 0.0> ()
  c = Greater(s, z) \n h = Cast <to = 1> (i)
  [choice] r = If(c) <then_branch = yes () => (float[N,4] t) { t = Mul(h, k) },
                      else_branch = no () => (float[N,4] e) { e = Neg(x) }>
  y = Abs(r) }"""


def test_if_on_data_that_mixes_the_rows_of_a_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="mixes the rows"):
        import_model(parsed("<float[4] k = {1, 2, 3, 4}>" + VARYING_IF), data(5, 4))


LOOP = """<int64 count = {3}, bool go = {1}, float[4] w = {1, 2, 3, 4}> { v = Relu(x)
  [loop] last, all = Loop(count, go, x) <body = b (int64 i, bool c, float[N,4] state)
                                                   => (bool c2, float[N,4] next, float[N,4] out) {
     p = Mul(state, w) \n next = Add(p, v) \n out = Neg(next) \n c2 = Identity(c) }>
  t = ReduceSum <keepdims = 0> (all, zero) \n y = Add(last, t) }"""


def with_zero(model: ModelProto) -> ModelProto:
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    return model


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Loop(count, go, x)", "Loop(times, go, x)"),
        ("Loop(count, go, x)", "Loop(count, flag, x)"),
        (
            "c2 = Identity(c)",
            "sum = ReduceSum <keepdims = 0> (next) \n one = Constant <value_float = 100.0> () \n c2 = Less(sum, one)",
        ),
        ("c2 = Identity(c)", "c2 = Identity(flag)"),
    ],
)
def test_loops_of_varying_length_are_refused(old: str, new: str) -> None:
    body = LOOP.replace(
        "v = Relu(x)",
        "v = Relu(x) \n s = ReduceSum <keepdims = 0> (v) \n times = Cast <to = 7> (s) \n flag = Cast <to = 9> (s)",
    )
    import_model(with_zero(parsed(body)), data(3, 4))
    with pytest.raises(UnsupportedOperatorError, match="Loop node 'loop': how often it runs depends on data"):
        import_model(with_zero(parsed(body.replace(old, new))), data(3, 4))


def test_operators_in_bodies_are_refused_too() -> None:
    body = LOOP.replace("out = Neg(next)", "[deep] out = RandomNormalLike(next)")
    with pytest.raises(UnsupportedOperatorError, match="RandomNormalLike node 'deep'"):
        import_model(with_zero(parsed(body)), data(3, 4))


def test_loops_that_no_input_reaches_fold() -> None:
    body = (
        LOOP.replace("Loop(count, go, x)", "Loop(count, go, w)")
        .replace("float[N,4]", "float[4]")
        .replace("Add(p, v)", "Add(p, w)")
    )
    body = body.replace("y = Add(last, t)", "yy = Add(last, t) \n y = Add(yy, x)")
    assert operators(import_model(with_zero(parsed(body)), data(3, 4))) == ["Add"]


def test_an_output_of_a_loop_that_does_not_vary_is_constant() -> None:
    body = """<int64 count = {3}, bool go = {1}, float k = {0}> {
      n, last = Loop(count, go, k, x) <body = b (int64 i, bool c, float m, float[N,4] s)
                                            => (bool c2, float m2, float[N,4] s2) {
         one = Constant <value_float = 1.0> () \n m2 = Add(m, one) \n s2 = Relu(s) \n c2 = Identity(c) }>
      y = Mul(last, n) }"""
    assert operators(import_model(parsed(body), data(3, 4))) == ["Relu", "Relu", "Relu", "Mul"]


def test_the_layout_of_onnxruntime_is_refused_with_advice() -> None:
    model = parsed("<float[8,8,1,1] w = {1}> { y = Relu(x) }", "(float[N,8,4,4] x) => (float[N,8,4,4] y)")
    del model.graph.initializer[:]
    node = model.graph.node[0]
    node.op_type, node.domain, node.name = "ReorderInput", "com.microsoft.nchwc", "layout"
    model.opset_import.add(domain="com.microsoft.nchwc", version=1)
    with pytest.raises(
        UnsupportedOperatorError, match=r"nchwc::ReorderInput node 'layout': .* without graph optimisation"
    ):
        import_model(model, data(3, 8, 4, 4))


def test_an_index_along_an_axis_of_one_is_known() -> None:
    """As PyTorch writes packed sequences: the batch is sorted by length, and of one row the order is known."""
    model = parsed(
        """<int64[1] one = {1}> {
           s = ReduceSum <keepdims = 0> (x, one) \n n = Shape <end = 1> (x) \n v, i = TopK <axis = 0> (s, n)
           z = ScatterElements(s, i, v) \n c = ReduceSum(x, one)
           a = ArgMax <axis = 1> (c) \n q = GatherElements <axis = 1> (c, a) \n w = Unsqueeze(z, one) \n p = Mul(w, q)
           y = Mul(x, p) }"""
    )
    rows = data(3, 4)
    explainer = DeepExplainer(model, rows)
    assert "ArgMax" not in {node.op_type for node in explainer.graph.nodes}
    x = data(2, 4, seed=1)
    y, y0 = (v * v.sum(1, keepdims=True) ** 2 for v in (x, rows))
    np.testing.assert_allclose(explainer.shap_values(x).sum(1), y - y0.mean(0), atol=1e-5)
