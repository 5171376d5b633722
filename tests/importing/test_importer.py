"""From a file and a background to the static graph of one example."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from deepshap_ir import DeepExplainer
from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.importing.importer import import_model
from deepshap_ir.importing.runner import Runner
from tests.onnx_text import data, operators, parsed, run

FLATTEN = """<float[6,2] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}>
{ [first] h = Relu(x)
  s = Shape(h) \n zero = Constant <value_int = 0> () \n n = Gather(s, zero) \n axes = Constant <value_ints = [0]> ()
  n1 = Unsqueeze(n, axes) \n rest = Constant <value_ints = [-1]> () \n shape = Concat <axis = 0> (n1, rest)
  r = Reshape(h, shape) \n [last] y = MatMul(r, w) }"""


def test_shape_arithmetic_disappears() -> None:
    imported = import_model(parsed(FLATTEN, "(float[N,2,3] x) => (float[N,2] y)"), data(5, 2, 3))
    graph = imported.graph
    assert operators(imported) == ["Relu", "Reshape", "MatMul"]
    assert [node.name for node in graph.nodes if node.op_type != "Reshape"] == ["first", "last"]
    assert set(graph.constants) == {"shape", "w"}
    np.testing.assert_array_equal(graph.constants["shape"], [1, -1])
    assert graph.shapes == {"x": (1, 2, 3), "h": (1, 2, 3), "shape": (2,), "r": (1, 6), "w": (6, 2), "y": (1, 2)}
    assert graph.dtypes["y"] == np.float32
    assert graph.batch_axes == {"x": 0}
    assert graph.opsets[""] == graph.nodes[0].version == 18
    assert imported.input_names == imported.explained == ("x",)
    assert (imported.output, imported.held, imported.rows, imported.warnings) == ("y", (), 5, [])
    assert imported.background["x"].shape == (5, 2, 3)


def test_the_graph_runs_as_the_model() -> None:
    x = data(5, 2, 3)
    model = parsed(FLATTEN, "(float[N,2,3] x) => (float[N,2] y)")
    graph = import_model(model, x).graph
    expected = Runner(model).run({"x": x})["y"]
    for row in range(5):
        np.testing.assert_allclose(run(graph, {"x": x[row : row + 1]})[0], expected[row : row + 1], rtol=1e-6)
    h, shape = run(graph, {"x": x[:1]}, ["h", "shape"])
    np.testing.assert_array_equal(h, np.maximum(x[:1], 0))
    np.testing.assert_array_equal(shape, [1, -1])


def test_other_lengths_come_from_the_background() -> None:
    model = parsed("{ y = Softmax(x) }", "(float[N,T,C] x) => (float[N,T,C] y)")
    assert import_model(model, data(3, 5, 2)).graph.shapes["y"] == (1, 5, 2)
    assert import_model(model, data(3, 7, 2)).graph.shapes["y"] == (1, 7, 2)


def test_what_only_shapes_decide_is_constant() -> None:
    body = """{ s = Shape(x) \n c = ConstantOfShape <value = float[1] {2}> (s)
      one = Constant <value_int = 1> () \n four = Constant <value_int = 4> () \n zero = Constant <value_int = 0> ()
      r = Range(zero, four, one) \n p = Cast <to = 1> (r) \n e = Expand(p, s) \n l = CastLike(p, x)
      y = Sum(x, c, e, l) }"""
    imported = import_model(parsed(body), data(3, 4))
    assert operators(imported) == ["Sum"]
    np.testing.assert_array_equal(imported.graph.constants["e"], [[0, 1, 2, 3]])


@pytest.mark.parametrize("length", [0, 2])
def test_what_has_no_elements_is_constant(length: int) -> None:
    """The past of a cache, of which there is none at first."""
    body = """{ k = Concat<axis=1>(past, x) pt = Transpose<perm=[0,2,1]>(past) xt = Transpose<perm=[0,2,1]>(x)
        s0 = MatMul(x, pt) s1 = MatMul(x, xt) s = Concat<axis=2>(s0, s1) p = Softmax(s) o = MatMul(p, k)
        z = ReduceMean<keepdims=0>(o, one) sum = ReduceSum<keepdims=0>(past, one) y = Add(z, sum) }"""
    model = parsed(body, "(float[N,3,4] x, float[N,P,4] past) => (float[N,4] y) <int64[1] one = {1}>")
    samples, background = ([data(3, 3, 4, seed=k), data(3, length, 4, seed=k + 1)] for k in (0, 2))
    phi = DeepExplainer(model, background).shap_values(samples)
    assert phi[1].shape == (3, length, 4, 4)
    assert operators(import_model(model, background)).count("Transpose") == (2 if length else 1)


def test_fixed_and_wrong_declarations() -> None:
    body = "{ h = Relu(x) \n s = Constant <value_ints = [1, -1]> () \n y = Reshape(h, s) }"
    fixed = import_model(parsed(body, "(float[1,2,2] x) => (float[1,4] y)"), data(6, 2, 2))
    assert fixed.graph.shapes["y"] == (1, 4)
    assert fixed.rows == 6
    model = parsed("{ y = Relu(x) }", "(float[N,4] x) => (float[7,7,7] y)")
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [3]))
    assert import_model(model, data(2, 4)).graph.shapes["y"] == (1, 4)
    bare = parsed("{ y = Relu(x) }")
    bare.graph.input[0].type.tensor_type.ClearField("shape")
    bare.graph.output[0].ClearField("type")
    assert import_model(bare, data(2, 5, 6)).graph.shapes["y"] == (1, 5, 6)


def test_a_fixed_batch_of_three_is_compared_at_three() -> None:
    imported = import_model(parsed("{ y = Relu(x) }", "(float[3,4] x) => (float[3,4] y)"), data(2, 4))
    assert imported.graph.shapes["y"] == (1, 4)
    with pytest.raises(ModelError, match="mixes the rows of its batch"):
        import_model(
            parsed("{ m = ReduceMax <keepdims = 1> (x) \n y = Sub(x, m) }", "(float[3,4] x) => (float[3,4] y)"),
            data(2, 4),
        )


def test_initializers_as_inputs_and_half_precision() -> None:
    model = parsed("<float[4] b = {1, 2, 3, 4}> { y = Add(x, b) }", "(float[N,4] x, float[4] b) => (float[N,4] y)")
    assert import_model(model, data(2, 4)).explained == ("x",)
    half = parsed(
        "{ h = MatMul(x, w) \n c = Cast <to = 1> (h) \n z = Relu(c) \n y = Cast <to = 10> (z) }",
        "(float16[N,4] x) => (float16[N,3] y)",
    )
    half.graph.initializer.append(numpy_helper.from_array(data(4, 3).astype(np.float16), "w"))
    imported = import_model(half, data(5, 4))
    assert operators(imported) == ["MatMul", "Relu", "Identity"]
    assert {str(dtype) for dtype in imported.graph.dtypes.values()} == {"float32"}


def test_double_stays_and_runs_in_the_reference_where_onnxruntime_cannot() -> None:
    signature = "(double[N,1,5,5] x) => (double[N,1,4,4] y)"
    model = parsed("<double[1,1,2,2] w = {1, 2, 3, 4}> { h = Conv(x, w) \n y = Softplus(h) }", signature)
    assert Runner(model).engine == "onnx.reference"
    graph = import_model(model, np.random.default_rng(0).normal(size=(3, 1, 5, 5))).graph
    assert graph.dtypes["y"] == np.float64
    assert graph.shapes["y"] == (1, 1, 4, 4)


def test_unread_optional_outputs_are_dropped() -> None:
    body = "<float r = {0.5}> { h, mask = Dropout(x, r) \n v, i = TopK <axis = 1> (h, k) \n y = Abs(v) }"
    model = parsed(body, "(float[N,4] x) => (float[N,2] y)")
    model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "k"))
    nodes = {node.op_type: node for node in import_model(model, data(3, 4)).graph.nodes}
    assert nodes["Dropout"].outputs == ("h",)
    assert nodes["TopK"].outputs == ("v", "i")


TWO = """{ h = Relu(x) \n label = ArgMax <axis = 1, keepdims = 0> (h) \n p = Softmax(h)
           z = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2, 3]> (p) }"""


def test_the_only_float_output_is_meant() -> None:
    model = parsed(TWO, "(float[N,4] x) => (int64[N] label, float[N,4] p, seq(map(int64, float)) z)")
    assert import_model(model, data(3, 4)).output == "p"
    assert import_model(model, data(3, 4), output=1).output == "p"
    assert import_model(model, data(3, 4), output=-2).output == "p"
    assert operators(import_model(model, data(3, 4), output="h")) == ["Relu"]


@pytest.mark.parametrize(
    ("nodes", "picker"),
    [
        ("y = ArgMax <axis = 1> (x)", "ArgMax"),
        ("v, y = TopK <axis = 1> (x, one)", "TopK"),
        ("i = ArgMin <axis = 1> (x) \n l = Add(i, one) \n y = Cast <to = 6> (l)", "ArgMin"),
        ("i = ArgMax <axis = 1> (x) \n y = ai.onnx.ml.ArrayFeatureExtractor (four, i)", "ArgMax"),
        (
            "y, z = ai.onnx.ml.LinearClassifier <coefficients = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0], "
            "intercepts = [0.0, 0.0], classlabels_ints = [0, 1]> (x)",
            "ai.onnx.ml::LinearClassifier",
        ),
    ],
)
def test_labels_are_refused_with_the_outputs_of_floats(nodes: str, picker: str) -> None:
    kind = "int32" if "to = 6" in nodes else "int64"
    body = f"<int64[1] one = {{1}}, int64[1,4] four = {{1, 2, 3, 4}}> {{ {nodes} \n p = Exp(x) \n q = Abs(x) }}"
    model = parsed(body, f"(float[N,4] x) => ({kind}[N,1] y, float[N,4] p, float[N,4] q)")
    for output in ("y", 0):
        said = rf"'y' is of whole numbers that choose .*{picker} node .* explain an output of floats: 'p', 'q'\."
        with pytest.raises(InputError, match=said):
            import_model(model, data(3, 4), output=output)


def test_a_label_alone_is_refused_with_what_it_is_chosen_by() -> None:
    model = parsed("{ h = Relu(x) \n y = ArgMax <axis = 1> (h) }", "(float[N,4] x) => (int64[N,1] y)")
    with pytest.raises(InputError, match=r"the numbers that it is chosen by, such as output='h'\."):
        import_model(model, data(3, 4), output="y")


@pytest.mark.parametrize(
    "nodes",
    [
        "b = Greater(x, s) \n y = Cast <to = 7> (b)",
        "y = Cast <to = 7> (x)",
        "i = ArgMax <axis = 1> (x) \n c = Cast <to = 7> (x) \n y = Add(c, i)",
    ],
)
def test_whole_numbers_that_are_no_labels_stay(nodes: str) -> None:
    model = parsed(f"<float s = {{0.5}}> {{ {nodes} }}", "(float[N,4] x) => (int64[N,4] y)")
    assert import_model(model, data(3, 4), output="y").graph.dtypes["y"] == np.int64


def test_outputs_that_cannot_be_chosen() -> None:
    two = parsed("{ y = Relu(x) \n logits = Abs(x) }", "(float[N,4] x) => (float[N,4] y, float[N,4] logits)")
    with pytest.raises(InputError, match=r"2 float outputs, 'y', 'logits'; choose one"):
        import_model(two, data(2, 4))
    with pytest.raises(InputError, match=r"no output 2; the model has 2: 'y', 'logits'"):
        import_model(two, data(2, 4), output=2)
    with pytest.raises(InputError, match=r"no value 'logit'\. Did you mean 'logits'\? There are: 'y', 'logits'"):
        import_model(two, data(2, 4), output="logit")
    label = parsed("{ y = ArgMax(x) }", "(float[N,4] x) => (int64[1,4] y)")
    with pytest.raises(InputError, match="none of the outputs 'y' is a float tensor"):
        import_model(label, data(2, 4))
    constant = parsed("<float[4] c = {1, 2, 3, 4}> { h = Relu(x) \n y = Abs(c) }", "(float[N,4] x) => (float[4] y)")
    with pytest.raises(InputError, match="the output 'y' does not depend on 'x'; it is a constant of the model"):
        import_model(constant, data(2, 4))


SUM = parsed(
    "{ [a] h = Relu(x) \n [b] k = Mul(h, w) \n [c] m = Tanh(k) \n y = Add(m, h) }",
    "(float[N,4] x, float[N,4] w) => (float[N,4] y)",
)


def test_data_as_list_mapping_or_array() -> None:
    for background in ([data(3, 4), data(3, 4, seed=1)], {"w": data(3, 4, seed=1), "x": data(3, 4)}):
        imported = import_model(SUM, background)
        assert imported.explained == imported.graph.inputs == ("x", "w")
        np.testing.assert_array_equal(imported.background["w"], data(3, 4, seed=1))
    nested = import_model(parsed("{ y = Relu(x) }"), [[1, 2, 3, 4], [5, 6, 7, 8]])
    assert nested.background["x"].dtype == np.float32
    assert nested.rows == 2
    with pytest.raises(InputError, match=r"background: expected 2 arrays \(inputs 'x', 'w'\), given 1"):
        import_model(SUM, data(3, 4))
    with pytest.raises(InputError, match="missing input 'w'; the model needs 'x', 'w'"):
        import_model(SUM, {"x": data(3, 4)})
    with pytest.raises(InputError, match=r"no input 'ww'. Did you mean 'w'"):
        import_model(SUM, {"x": data(3, 4), "ww": data(3, 4)})


def test_inputs_that_are_not_explained_are_held() -> None:
    imported = import_model(SUM, {"w": data(3, 4), "x": data(3, 4)}, inputs=["x"])
    assert imported.explained == ("x",)
    assert imported.held == ("w",)
    assert imported.graph.inputs == ("x", "w")
    assert import_model(SUM, {"w": data(3, 4), "x": data(3, 4)}, hold=["w"]).held == ("w",)
    constant = import_model(SUM, data(3, 4), hold={"w": np.full((1, 4), 2.0)})
    assert constant.graph.inputs == ("x",)
    np.testing.assert_array_equal(constant.graph.constants["w"], [[2, 2, 2, 2]])
    assert constant.held == ()
    with pytest.raises(InputError, match=r"'x' do not determine the output 'y'.*input 'w'.*hold=\{'w': array\}"):
        import_model(SUM, data(3, 4), inputs=["x"])
    with pytest.raises(InputError, match="'w' is held at a constant, so it takes no data"):
        import_model(SUM, {"x": data(3, 4), "w": data(3, 4)}, hold={"w": np.ones((1, 4))})


def test_values_in_the_middle() -> None:
    imported = import_model(SUM, {"k": data(3, 4), "h": data(3, 4)}, inputs=["k", "h"])
    assert operators(imported) == ["Tanh", "Add"]
    assert imported.graph.inputs == ("k", "h")
    tail = import_model(SUM, data(3, 4), inputs=["k"], output="m")
    assert [node.name for node in tail.graph.nodes] == ["c"]
    with pytest.raises(InputError, match="'k' do not determine the output 'y': it also needs the model input 'x'"):
        import_model(SUM, data(3, 4), inputs=["k"])
    around = import_model(SUM, {"k": data(3, 4), "x": data(3, 4)}, inputs=["k"])
    assert (around.explained, around.held) == (("k",), ("x",))
    with pytest.raises(InputError, match="the output 'k' does not depend on the value 'm'"):
        import_model(SUM, data(3, 4), inputs=["m"], output="k")


def test_a_value_of_several_outputs_can_be_fed() -> None:
    model = parsed("{ a, b = Split <axis = 1, num_outputs = 2> (x) \n y = Concat <axis = 1> (b, a) }")
    imported = import_model(model, {"a": data(3, 2), "x": data(3, 4)}, inputs=["a"])
    assert imported.held == ("x",)
    x, a = data(1, 4), data(1, 2, seed=1)
    np.testing.assert_array_equal(run(imported.graph, {"x": x, "a": a})[0], np.concatenate([x[:, 2:], a], axis=1))


def test_held_and_kept_values_in_the_middle_survive() -> None:
    model = parsed("{ h = Identity(x) \n k = Identity(h) \n m = Identity(k) \n y = Relu(m) }")
    assert [node.outputs[0] for node in import_model(model, data(3, 4)).graph.nodes] == ["y"]
    kept = import_model(model, data(3, 4), keep=["h"], hold=["k"])
    assert [node.outputs[0] for node in kept.graph.nodes] == ["h", "k", "y"]
    assert kept.held == ("k",)
    fixed = import_model(SUM, {"x": data(3, 4)}, hold={"k": data(1, 4)})
    assert fixed.graph.inputs == ("x",)
    assert set(fixed.graph.constants) == {"m"}


def test_names_that_do_not_fit() -> None:
    model = parsed("<float[4] c = {1, 2, 3, 4}> { d = Abs(c) \n h = Relu(x) \n z = Neg(h) \n y = Add(h, d) }")
    with pytest.raises(InputError, match="no input determines the value 'd': it is a constant"):
        import_model(model, data(2, 4), keep=["d"])
    with pytest.raises(InputError, match="the output 'y' does not depend on the value 'z'"):
        import_model(model, data(2, 4), keep=["z"])
    for option, called in (("keep", "at"), ("inputs", "inputs"), ("hold", "hold")):
        with pytest.raises(InputError, match=rf"^{called}: the model has no value 'hh'.*Did you mean 'h'"):
            import_model(model, data(2, 4), **{option: ["hh"]})  # type: ignore[arg-type]
        with pytest.raises(InputError, match=rf"^{called}: expected a list of names, given the text 'h'"):
            import_model(model, data(2, 4), **{option: "h"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'x' is both in inputs= and in hold="):
        import_model(model, data(2, 4), inputs=["x"], hold=["x"])
    with pytest.raises(InputError, match="inputs: a name is listed twice"):
        import_model(model, data(2, 4), inputs=["x", "x"])
    with pytest.raises(InputError, match="batch_axes: the model has no input 'q'"):
        import_model(model, data(2, 4), batch_axes={"q": 0})


def test_inputs_that_the_output_does_not_need() -> None:
    model = parsed("{ y = Relu(x) \n z = Relu(w) }", "(float[N,4] x, float[N,2] w) => (float[N,4] y, float[N,2] z)")
    assert import_model(model, data(3, 4), output="y").graph.inputs == ("x",)
    both = import_model(model, [data(3, 4), data(3, 2)], output="y")
    assert both.graph.inputs == ("x", "w")
    assert both.graph.shapes["w"] == (1, 2)
    with pytest.raises(InputError, match=r"the output 'y' does not depend on 'w'; it depends on 'x'"):
        import_model(model, {"x": data(3, 4), "w": data(3, 2)}, inputs=["w"], output="y")


def test_an_input_of_which_only_the_shape_matters() -> None:
    body = """{ h = Relu(x) \n s = Shape <start = 0, end = 1> (x) \n m = Constant <value_ints = [-1]> ()
                t = Concat <axis = 0> (s, m) \n y = Reshape(h, t) }"""
    model = parsed(body, "(float[N,2,3] x) => (float[N,6] y)")
    imported = import_model(model, data(4, 2, 3, seed=1), inputs=["h"])
    assert imported.graph.inputs == ("h",)
    np.testing.assert_array_equal(imported.graph.constants["t"], [1, -1])
    free = parsed(body, "(float[N,M,3] x) => (float[N,6] y)")
    with pytest.raises(InputError, match="it also needs the model input 'x'"):
        import_model(free, data(4, 2, 3), inputs=["h"])
    assert import_model(free, {"h": data(4, 2, 3), "x": data(4, 2, 3)}, inputs=["h"]).graph.inputs == ("h",)


def test_outputs_that_are_no_numbers() -> None:
    model = parsed("{ y = SequenceConstruct(x) }", "(float[N,4] x) => (seq(float[N,4]) y)")
    with pytest.raises(InputError, match="the output 'y' is a sequence, a map or absent; only numbers"):
        import_model(model, data(3, 4), output="y")
    text = parsed("{ y = Cast <to = 8> (x) }", "(float[N,4] x) => (string[N,4] y)")
    with pytest.raises(InputError, match="the output 'y' is text; only numbers can be explained, so name another"):
        import_model(text, data(3, 4), output="y")


def test_text_can_be_fed() -> None:
    encoder = 'ai.onnx.ml.LabelEncoder <keys_strings = ["red", "blue"], values_floats = [1.0, 2.0]>'
    model = parsed(
        f"{{ h = {encoder} (colour) \n y = Add(h, x) }}", "(float[N,1] x, string[N,1] colour) => (float[N,1] y)"
    )
    colours = np.array([["red"], ["blue"], ["red"]])
    imported = import_model(model, {"x": data(3, 1), "colour": colours}, inputs=["x"])
    assert imported.held == ("colour",)
    assert imported.graph.dtypes["colour"] == np.dtype(object)


def test_the_scores_that_a_zipmap_names_are_explained() -> None:
    ml = helper.make_opsetid("ai.onnx.ml", 1)
    nodes = [
        helper.make_node("Softmax", ["x"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        helper.make_node("ZipMap", ["scores"], ["named"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])
    scores = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    named = helper.make_value_info("named", helper.make_sequence_type_proto(scores))
    graph = helper.make_graph(nodes, "classifier", [x], [label, named])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), ml], ir_version=10)
    for output in (None, "named", 1):
        assert import_model(model, data(4, 3), output=output).output == "scores"


def test_an_input_that_all_rows_share_is_guessed_where_the_model_does_not_run() -> None:
    model = parsed("{ t = MatMul(x, w) y = Softmax(t) }", "(float[N,4] x, float[4,3] w) => (float[N,3] y)")
    with pytest.raises(ModelError, match=r"does not run on .*If all rows share 'w', say so: batch_axes=\{'w': None\}"):
        import_model(model, [data(4, 4), data(4, 3)])
    with pytest.raises(InputError, match=r"'x' has 5, 'w' has 4.*no batch axis: batch_axes=\{'w': None\}"):
        import_model(model, [data(5, 4), data(4, 3)])
    assert import_model(model, [data(5, 4), data(4, 3)], batch_axes={"w": None}).graph.shapes["w"] == (4, 3)
