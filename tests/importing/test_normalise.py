"""One form for all files: each step alone, and the same numbers before and after."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper, parser

from deepshap_ir.errors import ModelError
from deepshap_ir.importing.half import has_half
from deepshap_ir.importing.load import load_model
from deepshap_ir.importing.normalise import normalise, opset
from deepshap_ir.importing.prune import prune
from deepshap_ir.importing.runner import Runner, newest_opset
from deepshap_ir.importing.skeleton import restored, skeleton
from deepshap_ir.importing.subgraphs import all_names, all_nodes, bodies, captured, defined, rename_captures

Array = NDArray[Any]


def parsed(
    body: str,
    version: int = 17,
    signature: str = "(float[N,4] x) => (float[N,4] y)",
    more: str = "",
    tensors: Sequence[TensorProto | SparseTensorProto] = (),
) -> ModelProto:
    imports = f'"" : {version}, "ai.onnx.ml" : 3, "local" : 1'
    model = parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> g {signature} {body} {more}")
    for tensor in tensors:
        if isinstance(tensor, TensorProto):
            model.graph.initializer.append(tensor)
        else:
            model.graph.sparse_initializer.append(tensor)
    return load_model(model)


def both(model: ModelProto, feeds: Mapping[str, Array], output: str = "y") -> tuple[Array, Array, ModelProto]:
    """Run `output` of the file and of its normalised form."""
    result = normalise(model, [output])
    before = Runner(model).run(feeds, [output])[output]
    after = Runner(result).run(feeds)[output]
    return before, after, result


def data(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# --- pruning -------------------------------------------------------------------------------------------------------


def test_only_what_the_output_needs_is_kept() -> None:
    model = parsed(
        """<float[4] b = {1, 2, 3, 4}, float[4] c = {1, 2, 3, 4}>
        { h = Relu(x) \n y = Add(h, b) \n z = Add(w, c) \n label = ArgMax <axis = 1> (y) }""",
        signature="(float[N,4] x, float[N,4] w) => (float[N,4] y, float[N,4] z, int64[N,1] label)",
    )
    result = normalise(model, ["y"])
    assert [node.op_type for node in result.graph.node] == ["Relu", "Add"]
    assert [value.name for value in result.graph.input] == ["x"]
    assert [tensor.name for tensor in result.graph.initializer] == ["b"]
    assert [value.name for value in result.graph.output] == ["y"]
    middle = normalise(model, ["h"])
    assert [node.op_type for node in middle.graph.node] == ["Relu"]


def test_maps_and_sequences_go_with_zipmap() -> None:
    model = parsed(
        """{ scores = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0, 3.0, 4.0], targets = 1> (x)
             y = Softmax(x) \n m = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2, 3]> (y) }""",
        signature="(float[N,4] x) => (seq(map(int64, float)) m, float[N,4] y)",
    )
    result = normalise(model, ["y"])
    assert [node.op_type for node in result.graph.node] == ["Softmax"]


def test_initializers_leave_the_inputs() -> None:
    model = parsed(
        "<float[4] b = {1, 2, 3, 4}> { y = Add(x, b) }", signature="(float[N,4] x, float[4] b) => (float[N,4] y)"
    )
    assert [value.name for value in model.graph.input] == ["x", "b"]
    before, after, result = both(model, {"x": data(2, 4)})
    assert [value.name for value in result.graph.input] == ["x"]
    np.testing.assert_array_equal(before, after)


def test_wrong_declared_shapes_are_dropped() -> None:
    model = parsed(
        "{ h = Relu(x) \n y = Transpose <perm = [1, 0]> (h) }", signature="(float[N,4] x) => (float[7,7,7] y)"
    )
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [9, 9, 9]))
    result = normalise(model, ["y"])
    assert not result.graph.value_info
    assert not result.graph.output[0].HasField("type")
    assert not result.graph.input[0].type.tensor_type.HasField("shape")
    assert Runner(result).run({"x": data(2, 4)})["y"].shape == (4, 2)


def test_pruning_between_values_in_the_middle() -> None:
    model = parsed("{ h = Relu(x) \n a, b = Split <axis = 1> (h) \n s = Add(a, b) \n y = Concat <axis = 1> (s, b) }")
    given = {"a": helper.make_tensor_value_info("a", TensorProto.FLOAT, None)}
    result = prune(model, ["y"], given)
    assert [value.name for value in result.graph.input] == ["a", "x"]
    feeds = {"a": data(1, 2, seed=1), "x": data(1, 4)}
    expected = np.maximum(feeds["x"], 0)[:, 2:]
    actual = Runner(result).run(feeds)["y"]
    np.testing.assert_allclose(actual, np.concatenate([feeds["a"] + expected, expected], axis=1))


# --- functions -----------------------------------------------------------------------------------------------------

LEAKY = """<domain: "local", opset_import: ["" : 17]>
leaky <slope: float = 0.25> (a) => (b) { t = LeakyRelu <alpha: float = @slope> (a) \n b = Identity(t) }
"""


def test_functions_are_inlined_with_the_defaults_of_their_attributes() -> None:
    model = parsed("{ h = local.leaky(x) \n y = local.leaky <slope = 0.5> (h) }", more=LEAKY)
    x = -np.ones((1, 4), np.float32)
    _, after, result = both(model, {"x": x})
    np.testing.assert_allclose(after, -0.125 * np.ones((1, 4)))
    assert {node.op_type for node in result.graph.node} == {"LeakyRelu", "Identity"}
    assert not result.functions
    assert {"x", "h", "y"} <= all_names(result.graph)


def test_functions_in_functions_and_in_subgraphs() -> None:
    more = (
        LEAKY
        + """<domain: "local", opset_import: ["" : 17, "local" : 1]>
    twice <slope: float = 0.5> (a) => (c) { b = local.leaky(a) \n c = local.leaky <slope: float = @slope> (b) }"""
    )
    model = parsed(
        """{ s = ReduceSum <keepdims = 0> (x) \n zero = Constant <value_float = 0.0> () \n c = Greater(s, zero)
        y = If(c) <then_branch = yes () => (float[N,4] a) { a = local.twice(x) },
                   else_branch = no () => (float[N,4] b) { b = local.leaky <slope = 0.1> (x) }> }""",
        more=more,
    )
    for x in (data(1, 4), -data(1, 4)):
        before, after, result = both(model, {"x": x})
        np.testing.assert_allclose(after, before)
    assert {node.op_type for node in all_nodes(result.graph)} >= {"If", "LeakyRelu"}


def test_functions_of_another_opset() -> None:
    more = """<domain: "local", opset_import: ["" : 12]>
    total (a) => (b) { s = ReduceSum <axes = [1], keepdims = 1> (a) \n b = Sub(a, s) }"""
    model = parsed("{ h = Abs(x) \n y = local.total(h) }", more=LEAKY)
    del model.functions[:]
    model.functions.append(parser.parse_function(more))
    result = normalise(model, ["y"])
    x = data(2, 4)
    expected = np.abs(x) - np.abs(x).sum(1, keepdims=True)
    np.testing.assert_allclose(Runner(result).run({"x": x})["y"], expected, rtol=1e-6)


@pytest.mark.parametrize("opset", [16, 18])
def test_functions_of_another_opset_in_functions(opset: int) -> None:
    """The types of what a call in a function gives are unknown, and not needed where no operator changed."""
    inner = LEAKY.replace("17", str(opset))
    more = (
        inner
        + f"""<domain: "local", opset_import: ["" : {opset}, "local" : 1]>
    gated (a) => (c) {{ b = local.leaky(a) \n c = Mul(a, b) }}"""
    )
    x = -data(2, 4)
    before, after, result = both(parsed("{ y = local.gated(x) }", more=more), {"x": x})
    np.testing.assert_allclose(after, before)
    assert {node.op_type for node in result.graph.node} == {"LeakyRelu", "Identity", "Mul"}


# --- opsets --------------------------------------------------------------------------------------------------------

OLD = [
    (7, '{ y = Upsample <scales = [1.0, 1.0, 2.0, 3.0], mode = "nearest"> (x) }', (2, 3, 4, 5)),
    (7, '{ y = Upsample <scales = [1.0, 1.0, 2.0, 2.0], mode = "linear"> (x) }', (2, 3, 4, 5)),
    (7, "{ y = Dropout <ratio = 0.5> (x) }", (2, 3)),
    (7, "{ y = Softmax <axis = 1> (x) }", (2, 3, 4)),
    (7, "{ y = LogSoftmax <axis = 2> (x) }", (2, 3, 4)),
    (7, "{ y = Slice <axes = [1, 2], starts = [1, -3], ends = [3, 1000]> (x) }", (2, 3, 4)),
    (7, "{ y = Clip <min = -0.5, max = 0.25> (x) }", (2, 3)),
    (7, "{ y = Clip (x) }", (2, 3)),
    (7, "{ h = Squeeze <axes = [1]> (x) \n y = Unsqueeze <axes = [0, 3]> (h) }", (2, 1, 4)),
    (7, "{ y = ReduceSum <axes = [-1, 1], keepdims = 0> (x) }", (2, 3, 4)),
    (7, "{ y = ReduceMean <keepdims = 1> (x) }", (2, 3, 4)),
    (7, "{ a, b = Split <axis = 1, split = [1, 2]> (x) \n y = Concat <axis = 1> (b, a) }", (2, 3, 4)),
    (7, '{ y = Pad <pads = [0, 1, 0, 0, 2, 1], mode = "constant", value = 1.5> (x) }', (2, 3, 4)),
    (7, '{ y = Pad <pads = [0, 1, 0, 0, 2, 1], mode = "reflect"> (x) }', (2, 4, 4)),
    (7, "{ y, i = TopK <k = 2, axis = 1> (x) }", (2, 5)),
    (7, "{ y = Flatten <axis = 2> (x) }", (2, 3, 4)),
    (7, "{ y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }", (2, 3, 4, 6)),
    (7, "{ y = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 0, 0], count_include_pad = 1> (x) }", (2, 3, 4, 6)),
    (7, "{ y = Hardmax <axis = 1> (x) }", (2, 3)),
    (7, "<float[3] w = {0.1, 0.2, 0.3}> { y = PRelu(x, w) }", (2, 4, 3)),
    (7, "<float[3] a = {1, 2, 3}, float[3] b = {0.1, 0.2, 0.3}> { y = InstanceNormalization(x, a, b) }", (2, 3, 4)),
    (
        7,
        "<float[3] a = {1, 2, 3}, float[3] b = {0.1, 0.2, 0.3}> { y = BatchNormalization(x, a, b, b, a) }",
        (2, 3, 4),
    ),
    (7, "{ s = Shape(x) \n c = ConstantOfShape <value = float[1] {2.5}> (s) \n y = Add(x, c) }", (2, 3)),
    (8, "{ y = Sum(x, x, x) }", (2, 3)),
    (9, '<float[4] s = {1, 1, 2, 2}> { y = Upsample <mode = "linear"> (x, s) }', (2, 3, 4, 5)),
    (9, '<float[4] s = {1, 1, 2, 3}> { y = Upsample <mode = "nearest"> (x, s) }', (2, 3, 4, 5)),
    (9, "<int64[1,2] i = {1, 0}, float[1,2] u = {5, 6}> { y = Scatter <axis = 0> (x, i, u) }", (2, 2)),
    (10, '<float[4] s = {1, 1, 2, 2}> { y = Resize <mode = "linear"> (x, s) }', (2, 3, 4, 5)),
    (10, '<float[4] s = {1, 1, 1.5, 2}> { y = Resize <mode = "nearest"> (x, s) }', (2, 3, 4, 5)),
    (10, '<float[4] s = {1, 1, 0.4, 2}> { y = Resize <mode = "nearest"> (x, s) }', (2, 3, 7, 5)),
    (10, '<float[4] s = {1, 1, 0.4, 0.6}> { y = Resize <mode = "linear"> (x, s) }', (2, 3, 7, 5)),
    (
        10,
        """<float[1] f = {2}, float[3] o = {1, 1, 3}>
        { s = Concat <axis = 0> (o, f) \n y = Resize <mode = "nearest"> (x, s) }""",
        (2, 3, 7, 5),
    ),
    (11, "{ y = Softmax(x) }", (2, 3, 4)),
    (11, "<int64[3] p = {0, 1, 0}> { y = CumSum(x, one) }", (2, 3)),
    (12, "{ y = GlobalAveragePool(x) }", (2, 3, 4, 5)),
    (13, "<int64[2] k = {1, 2}> { y = ReduceSum(x, k) }", (2, 3, 4)),
    (13, "{ y = ReduceMax <axes = [1]> (x) }", (2, 3, 4)),
    (16, "{ y = LeakyRelu <alpha = 0.2> (x) }", (2, 3)),
]


@pytest.mark.parametrize(("version", "body", "shape"), OLD, ids=[f"{v} {b[2:50]}" for v, b, _ in OLD])
def test_old_opsets_are_raised(version: int, body: str, shape: tuple[int, ...]) -> None:
    if version == 7 and "ConstantOfShape" in body:
        version = 9
    body = body.replace("<int64[3] p = {0, 1, 0}>", "<int64 one = {1}>")
    model = parsed(body, version, "(float x) => (float y)")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    before, after, result = both(model, {"x": data(*shape)})
    assert opset(result) == 18
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-7)


def test_recent_opsets_stay() -> None:
    for version in (18, 20, newest_opset()):
        assert opset(normalise(parsed("{ y = Relu(x) }", version), ["y"])) == version


def test_group_normalization_keeps_its_meaning() -> None:
    body = "<float[2] s = {1, 2}, float[2] b = {3, 4}> { y = GroupNormalization <num_groups = 2> (x, s, b) }"
    model = parsed(body, 18, "(float[N,4,3] x) => (float[N,4,3] y)")
    before, after, _ = both(model, {"x": data(2, 4, 3)})
    np.testing.assert_allclose(after, before)


def test_old_subgraphs_are_raised_without_hiding_names() -> None:
    model = parsed(
        """{ s = ReduceSum <keepdims = 0> (x) \n zero = Constant <value = float {0.0}> () \n c = Greater(s, zero)
        h = Unsqueeze <axes = [0]> (x)
        r = If(c) <then_branch = yes () => (float[N,4] a) {
                       a0 = Squeeze <axes = [0]> (h) \n a = Softmax <axis = 0> (a0) },
                   else_branch = no () => (float[N,4] b) {
                       b0 = Squeeze <axes = [0]> (h) \n b = ReduceSum <axes = [1]> (b0) }>
        y = Add(r, x) }""",
        11,
    )
    for x in (data(1, 4), -data(1, 4)):
        before, after, result = both(model, {"x": x})
        np.testing.assert_allclose(after, before, rtol=1e-6)
    seen = defined(result.graph)
    for node in all_nodes(result.graph):
        for body in bodies(node):
            assert not seen & defined(body)
            seen |= defined(body)


def test_numeric_value_names_survive_new_values() -> None:
    model = parsed(
        """{ "1" = Unsqueeze <axes = [0]> (x) \n "2" = ReduceSum <axes = [0], keepdims = 0> ("1")
             "3" = Softmax <axis = 0> ("2") \n y = Clip <min = 0.0, max = 0.5> ("3") }""",
        9,
    )
    before, after, result = both(model, {"x": data(3, 4)})
    np.testing.assert_allclose(after, before, rtol=1e-6)
    assert {"x", "1", "2", "3", "y"} <= all_names(result.graph)


def test_what_cannot_be_raised_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> ModelProto:
        raise RuntimeError("adapter\nmissing")

    monkeypatch.setattr("deepshap_ir.importing.normalise.version_converter.convert_version", fails)
    with pytest.raises(ModelError, match="cannot be raised from opset 17 to 18: adapter missing Export it at opset 18"):
        normalise(parsed("{ y = Relu(x) }"), ["y"])


# --- names ---------------------------------------------------------------------------------------------------------


def test_node_names_survive_and_are_unique() -> None:
    model = parsed(
        "{ [first] a = ReduceSum <axes = [1]> (x) \n b = Relu(a) \n [twin] c = Abs(b) \n [twin] y = Add(c, x) }", 11
    )
    names = {node.output[0]: node.name for node in normalise(model, ["y"]).graph.node}
    assert names["a"] == "first"
    assert names["b"].startswith("Relu_")
    assert {names["c"], names["y"]} == {"twin", "twin_2"}
    assert len(set(names.values())) == len(names)


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_is_raised_everywhere(half: int) -> None:
    # the ONNX text format takes the bits of half-precision numbers, here of 1, 2 and 3
    name, bits = (
        ("float16", (15360, 16384, 16896)) if half == TensorProto.FLOAT16 else ("bfloat16", (16256, 16384, 16448))
    )
    model = parsed(
        f"""{{ one = Constant <value = {name} {{{bits[0]}}}> () \n s = Shape(x)
        two = ConstantOfShape <value = {name}[1] {{{bits[1]}}}> (s)
        wide = Cast <to = 1> (x) \n narrow = Cast <to = {half}> (wide) \n like = CastLike(wide, one)
        small = Neg(narrow) \n e = EyeLike <dtype = {half}> (x)
        c = Constant <value = bool {{1}}> ()
        i = If(c) <then_branch = yes () => ({name}[4,4] a) {{
                       k = Constant <value = {name} {{{bits[2]}}}> () \n a = Mul(small, k) }},
                   else_branch = no () => ({name}[4,4] b) {{ b = Abs(like) }}>
        y = Sum(i, w, one, two, e) }}""",
        signature=f"({name}[4,4] x) => ({name}[4,4] y)",
        tensors=[helper.make_tensor("w", half, [4], [0.5, 1.0, 1.5, 2.0])],
    )
    assert has_half(model)
    result = normalise(model, ["y"])
    assert not has_half(result)
    x = np.round(data(4, 4) * 4) / 4
    value = Runner(result).run({"x": x})["y"]
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, -3 * x + [0.5, 1.0, 1.5, 2.0] + 3 + np.eye(4))


def test_half_precision_in_sequences_and_functions_is_seen() -> None:
    sequence = parsed("{ y = Relu(x) }")
    sequence.graph.output.append(
        helper.make_value_info(
            "s", helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT16, None))
        )
    )
    assert has_half(sequence)
    function = parsed(
        "{ y = local.f(x) }", more='<domain: "local", opset_import: ["" : 17]> f (a) => (b) { b = Cast <to = 10> (a) }'
    )
    assert has_half(function)
    assert not has_half(parsed("{ y = Relu(x) }"))


def test_double_stays() -> None:
    model = parsed(
        "{ c = Constant <value = double {2}> () \n y = Mul(x, c) }", signature="(double[N,4] x) => (double[N,4] y)"
    )
    before, after, _ = both(model, {"x": data(2, 4, dtype=np.float64)})
    assert after.dtype == np.float64
    np.testing.assert_array_equal(after, before)


def test_sparse_initializers_become_dense() -> None:
    values = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "w")
    for indices in (np.array([1, 6], np.int64), np.array([[0, 1], [1, 2]], np.int64)):
        sparse = SparseTensorProto(values=values, indices=numpy_helper.from_array(indices), dims=[2, 4])
        model = parsed("{ y = MatMul(w, x) }", signature="(float[4,3] x) => (float[2,3] y)", tensors=[sparse])
        x = data(4, 3)
        dense = np.array([[0, 2, 0, 0], [0, 0, 3, 0]], np.float32)
        np.testing.assert_allclose(Runner(normalise(model, ["y"])).run({"x": x})["y"], dense @ x, rtol=1e-6)


# --- tools ---------------------------------------------------------------------------------------------------------


def test_skeleton_and_back() -> None:
    model = parsed("{ y = MatMul(x, w) }", tensors=[numpy_helper.from_array(data(4, 40_000), "w")])
    small, large = skeleton(model)
    assert small.ByteSize() < 1000
    assert [value.name for value in small.graph.input] == ["x", "w"]
    onnx.checker.check_model(small)
    assert restored(small, large).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_captures_respect_scope() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x, bool c) => (float[N,4] y) { h = Relu(x)
        y = If(c) <then_branch = yes () => (float[N,4] a) {
                       k = Abs(x)
                       a = If(c) <then_branch = yes2 () => (float[N,4] p) { p = Add(h, x) },
                                  else_branch = no2 () => (float[N,4] q) { q = Abs(k) }> },
                   else_branch = no () => (float[N,4] h) { h = Neg(x) }> }"""
    )
    outer = model.graph.node[-1]
    assert captured(outer) == ("x", "c", "h")
    for body in bodies(outer):
        rename_captures(body, {"h": "other", "x": "input"})
    assert captured(outer) == ("input", "c", "other")
    assert [value.name for value in list(bodies(outer))[1].output] == ["h"]


def scan_of_opset_8(first: str = '""') -> ModelProto:
    return parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 8]> g (float[1,3,4] x) => (float[1,4] h, float[1,3,4] y) {{
          s = ReduceMean <axes = [1], keepdims = 0> (x) \n n = Constant <value = int64[1] {{3}}> ()
          [loop] h, y = Scan <num_scan_inputs = 1, directions = [1], body = b (float[4] k, float[4] e)
                              => (float[4] k2, float[4] o) {{
            p = Mul(k, e) \n k2 = Tanh(p) \n q = ReduceSum <axes = [0], keepdims = 1> (k2) \n o = Add(e, q) }}>
                       ({first}, s, x) }}"""
    )


def test_scan_of_opset_8() -> None:
    model = scan_of_opset_8()
    x = np.random.default_rng(0).normal(size=(1, 3, 4)).astype(np.float32)
    before, after = Runner(model).run({"x": x}), Runner(normalise(model, ["h", "y"])).run({"x": x})
    for name in ("h", "y"):
        np.testing.assert_allclose(before[name], after[name], atol=1e-6)


def test_lengths_in_a_scan_of_opset_8_are_refused() -> None:
    with pytest.raises(ModelError, match=r"Scan node 'loop' of opset 8 has sequence lengths.*at opset 9 or later"):
        normalise(scan_of_opset_8("n"), ["y"])


def test_optionals_of_known_content_are_opened() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[N,4] x) => (float[N,4] y) {
          o = Optional(x) \n i = Identity(o) \n has = OptionalHasElement(i)
          s = SplitToSequence <axis = 1> (x) \n os = Optional(s) \n at = Constant <value_int = -1> ()
          z = If(has) <then_branch = t () => (float[N,4] u) { u = OptionalGetElement(i) },
                       else_branch = f () => (float[N,4] v) { v = Neg(x) }>
          q = OptionalGetElement(os) \n e = SequenceAt(q, at) \n y = Mul(z, e) }"""
    )
    plain = normalise(model, ["y"])
    assert not any("Optional" in node.op_type for node in all_nodes(plain.graph))
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_allclose(Runner(plain).run({"x": x})["y"], x * x[:, -1:], atol=1e-6)
