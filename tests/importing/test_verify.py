"""The program against the file: batches that mix, batches elsewhere, passes that break the function."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import numpy_helper

from deepshap_ir import DeepExplainer, InputError, ModelError
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.graph import Graph
from deepshap_ir.importing import importer, verify
from deepshap_ir.importing.importer import Pass, import_model
from deepshap_ir.specialisation import rewrite
from tests.onnx_text import data, parsed


@pytest.mark.parametrize(
    "body",
    [
        "{ m = ReduceMean <keepdims = 1> (x, vector) \n y = Sub(x, m) }",
        "{ c = CumSum(x, zero) \n y = Relu(c) }",
        "{ y = Softmax <axis = 0> (x) }",
        "<int64[2] f = {1, -1}, int64[2] b = {-1, 4}> { r = Reshape(x, f) \n s = Softmax(r) \n y = Reshape(s, b) }",
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_a_model_that_mixes_its_batch_is_refused(body: str, rows: int) -> None:
    model = parsed(body)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "vector"))
    with pytest.raises(ModelError, match=r"of background row \d.* alone and .* in a batch of \d") as caught:
        import_model(model, data(rows, 4))
    assert "The model mixes the rows of its batch" in str(caught.value)


def test_equal_rows_do_not_hide_a_mixed_batch() -> None:
    model = parsed("{ m = ReduceMean <keepdims = 1> (x, zero) \n y = Sub(x, m) }")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    with pytest.raises(ModelError, match=r"is 0 alone and 0\.0625 in a batch of 2 .* mixes"):
        import_model(model, np.ones((5, 4)))


def test_an_output_without_a_batch_is_refused() -> None:
    model = parsed("{ y = ReduceMean <keepdims = 0> (x) }", "(float[N,4] x) => (float y)")
    with pytest.raises(ModelError, match=r"shape \[\] for one row and \[\] for 4 rows.*mixes"):
        import_model(model, data(9, 4))


def test_batch_axes() -> None:
    body = "{ t = Transpose <perm = [1, 0, 2]> (state) \n s = ReduceSum <keepdims = 0> (t, one) \n y = Add(s, x) }"
    model = parsed(body, "(float[N,4] x, float[2,N,4] state) => (float[N,4] y)")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    feeds = {"x": data(5, 4), "state": data(2, 5, 4)}
    for axis in (1, -2):
        imported = import_model(model, feeds, batch_axes={"state": axis})
        assert imported.graph.batch_axes == {"x": 0, "state": 1}
        assert imported.graph.shapes["state"] == (2, 1, 4)
        assert imported.specs[1].shape == (2, None, 4)
    with pytest.raises(InputError, match="'x' has 5, 'state' has 2"):
        import_model(model, feeds)
    with pytest.raises(InputError, match="'state' has 3 axes, so its batch cannot be axis 3"):
        import_model(model, feeds, batch_axes={"state": 3})


def test_inputs_without_a_batch() -> None:
    model = parsed("{ h = Mul(x, scale) \n y = Relu(h) }", "(float[N,4] x, float[4] scale) => (float[N,4] y)")
    imported = import_model(model, {"x": data(5, 4), "scale": data(4)}, inputs=["x"], batch_axes={"scale": None})
    assert imported.graph.batch_axes == {"x": 0, "scale": None}
    assert imported.graph.shapes["scale"] == (4,)
    scalar = parsed("{ h = Mul(x, scale) \n y = Relu(h) }", "(float[N,4] x, float scale) => (float[N,4] y)")
    assert import_model(scalar, {"x": data(5, 4), "scale": np.float32(2)}).graph.batch_axes["scale"] is None
    fixed = import_model(model, data(5, 4), hold={"scale": np.arange(4)})
    np.testing.assert_array_equal(fixed.graph.constants["scale"], [0, 1, 2, 3])


def test_a_constant_has_one_row_which_every_row_of_a_batch_gets() -> None:
    model = parsed("{ y = Concat <axis = 1> (x, h) }", "(float[N,4] x, float[N,3] h) => (float[N,7] y)")
    assert import_model(model, data(5, 4), hold={"h": data(1, 3)}).warnings == []
    with pytest.raises(InputError, match=r"hold: 'h' has the batch along axis 0.*one row there, given 5.*hold=\['h'\]"):
        import_model(model, data(5, 4), hold={"h": data(5, 3)})


def test_rows_that_the_batch_multiplies() -> None:
    body = "<int64[2] s = {-1, 2}> { h = Relu(x) \n y = Reshape(h, s) }"
    imported = import_model(parsed(body, "(float[N,4] x) => (float[M,2] y)"), data(3, 4))
    assert imported.graph.shapes["y"] == (2, 2)


def test_a_model_that_takes_one_row_only_is_compared_there() -> None:
    body = "<int64[2] s = {2, 2}> { h = Relu(x) \n y = Reshape(h, s) }"
    imported = import_model(parsed(body, "(float[N,4] x) => (float[2,2] y)"), data(3, 4))
    assert len(imported.warnings) == 1
    assert "compared with the original one row at a time only" in imported.warnings[0]
    with pytest.warns(UserWarning, match="one row at a time only"):
        DeepExplainer(parsed(body, "(float[N,4] x) => (float[2,2] y)"), data(3, 4))


def test_a_pass_that_changes_the_function_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph, protected: frozenset[str]) -> Graph:
        assert protected == {"y", "h"}
        return replace(graph, constants={name: array + 1 for name, array in graph.constants.items()})

    model = parsed("<float[4] c = {1, 2, 3, 4}> { h = Relu(x) \n y = Add(h, c) }")
    monkeypatch.setattr(importer, "PASSES", [wrong])
    with pytest.raises(
        ModelError,
        match=r"not the model: output 'y' at \[0, 2\] is 4\.64\d* in the program and 3\.64\d* in the original at "
        r"batch 1 \(background row 0; difference 1, allowed 0\.000",
    ):
        import_model(model, data(3, 4), keep=["h"])
    monkeypatch.setattr(importer, "PASSES", [])
    with pytest.raises(ModelError, match="not the model"):
        import_model(model, data(3, 4), keep=["h"], rewrite=wrong)


@pytest.mark.parametrize(("size", "fine"), [(1e-36, False), (1e-38, True), (1e-41, True)])
def test_what_is_below_the_smallest_normal_numbers_is_equal(
    size: float, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that is off by a half, as if it kept no digits of such numbers."""
    model = parsed("{ y = Mul(x, c) }")
    model.graph.initializer.append(numpy_helper.from_array(np.array(size, np.float32), "c"))

    def halved(graph: Graph, protected: frozenset[str]) -> Graph:
        return replace(graph, constants={name: array / 2 for name, array in graph.constants.items()})

    monkeypatch.setattr(importer, "PASSES", [halved])
    if fine:
        import_model(model, data(3, 4))
    else:
        with pytest.raises(ModelError, match=r"difference .*e-37, allowed .*e-37"):
            import_model(model, data(3, 4))


RARE = "{ s = Add(x, low) \n p = Sigmoid(s) \n t = Transpose(p) \n y = Transpose(t) }"


@pytest.mark.parametrize(("double", "fine"), [(False, True), (True, False)], ids=["float32", "float64"])
def test_a_sigmoid_is_compared_as_onnxruntime_computes_it(
    double: bool, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probability of a rare event: in float32 onnxruntime has 8e-8 for 1e-7, in float64 it has all digits."""
    kind = "double" if double else "float"
    model = parsed(RARE, f"({kind}[N,4] x) => ({kind}[N,4] y)")
    dtype = np.float64 if double else np.float32
    model.graph.initializer.append(numpy_helper.from_array(np.array(-16, dtype), "low"))

    def moved(graph: Graph, protected: frozenset[str]) -> Graph:
        return replace(graph, constants={name: array - dtype(0.1) for name, array in graph.constants.items()})

    monkeypatch.setattr(importer, "PASSES", [moved])
    rows = data(3, 4).astype(dtype)
    if fine:
        import_model(model, rows)
    else:
        with pytest.raises(ModelError, match="not the model"):
            import_model(model, rows)


def test_half_precision_has_a_floor_of_a_few_last_digits() -> None:
    assert verify.floor(np.dtype(np.float16), np.dtype(np.float32)) == 16 * 2.0**-24
    assert verify.floor(np.dtype(np.float64)) == 16 * 2.0**-1022
    assert verify.floor(np.dtype(np.int64), np.dtype(bool)) == 0


@pytest.mark.parametrize("size", [1e-38, 1e-41, 1e-43])
def test_outputs_of_few_digits_are_explained(size: float) -> None:
    model = parsed("{ p = Softmax(x) \n y = Mul(p, c) }")
    model.graph.initializer.append(numpy_helper.from_array(np.array(size, np.float32), "c"))
    phi = DeepExplainer(model, data(4, 4)).shap_values(data(2, 4, seed=1))
    assert 0 < np.abs(phi).max() < size


def test_a_squeeze_that_takes_the_batch_away_at_one_row() -> None:
    model = parsed("{ s = ReduceSum <keepdims = 1> (x, one) \n y = Squeeze(s) }", "(float[N,4] x) => (float[M] y)")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    assert import_model(model, data(3, 4)).graph.shapes["y"] == ()


def test_kernels_that_round_are_not_the_program_s_fault() -> None:
    """onnxruntime's STFT of 400 numbers loses four digits, which the logarithm of a faint band shows."""
    t = np.arange(800) / 16000
    model = parsed(
        "<int64 step = {160}> { s = STFT(x, step, window) \n p = ReduceSumSquare <axes = [-1], keepdims = 0> (s) \n "
        "m = Add(p, least) \n y = Log(m) }",
        "(float[N,800] x) => (float[N,M,201] y)",
        version=17,
    )
    model.graph.initializer.append(numpy_helper.from_array(np.hanning(400).astype(np.float32), "window"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1e-4, np.float32), "least"))
    background = np.stack([np.sin(2 * np.pi * f * t) + 1e-4 * np.cos(9 * f * t) for f in (200, 330)])
    resolver = Resolver()
    imported = import_model(model, background, rewrite=lambda graph, keep: rewrite(graph, keep, resolver))
    assert "as its kernels round" in imported.warnings[0]


def test_dynamic_quantisation_reads_the_whole_batch() -> None:
    model = parsed(
        "<float a = {30}> { q, s, z = DynamicQuantizeLinear(x) \n d = DequantizeLinear(q, s, z) \n m = Mul(d, a) \n "
        "y = Sigmoid(m) }",
    )
    background = np.array([[0.1, 0.2, 0.3, 0.7], [10.0, -50.0, 1.0, 2.0]])
    (warning,) = import_model(model, background).warnings
    assert "takes the range of a number from all rows of a batch" in warning


def test_a_step_of_a_quantised_file_is_allowed_but_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(by: float) -> Pass:
        return lambda graph, _: replace(graph, constants=graph.constants | {"c": graph.constants["c"] + np.float32(by)})

    text = "<float s = {0.01}, uint8 z = {0}, float[4] c = {1, 1, 1, 1}> { h = Add(x, c) \n "
    model = parsed(text + "q = QuantizeLinear(h, s, z) \n y = DequantizeLinear(q, s, z) }")
    monkeypatch.setattr(importer, "PASSES", [])
    background = np.array([[0.0, 0.2, 0.4, 0.8]])
    import_model(model, background, rewrite=shifted(0.01))
    with pytest.raises(ModelError, match="not the model"):
        import_model(model, background, rewrite=shifted(0.3))
