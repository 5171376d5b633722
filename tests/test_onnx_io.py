"""Graphs as ONNX models, and attributes as plain values."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, numpy_helper

from deepshap_ir.errors import ModelError
from deepshap_ir.graph import Graph, Node
from deepshap_ir.importing.importer import import_model
from deepshap_ir.importing.runner import Runner
from deepshap_ir.importing.trace import complete_shapes
from deepshap_ir.onnx_io import INTERNAL_DOMAIN, attribute_proto, attribute_value, graph_to_model
from tests.onnx_text import data, parsed


def test_joined_nodes_are_written_as_their_bodies() -> None:
    f32 = np.dtype(np.float32)
    body = Graph(
        inputs=("a", "b"),
        outputs=("c",),
        nodes=(Node("n0", "Mul", ("a", "b"), ("t",)), Node("n1", "Add", ("t", "k"), ("c",))),
        constants={"k": np.array([10, 20], np.float32)},
        shapes={"a": (1, 2), "b": (1, 2), "t": (1, 2), "k": (2,), "c": (1, 2)},
        dtypes=dict.fromkeys("abtkc", f32),
        batch_axes={},
        opsets={"": 18},
    )
    join = {"body": body}
    graph = Graph(
        inputs=("x",),
        outputs=("y",),
        nodes=(
            Node("j", "Join", ("x", "k"), ("t",), join, INTERNAL_DOMAIN, 1),
            Node("j2", "Join", ("t", "x"), ("y",), join, INTERNAL_DOMAIN, 1),
        ),
        constants={"k": np.array([[2, 3]], np.float32)},
        shapes={"x": (1, 2), "k": (1, 2)},
        dtypes=dict.fromkeys("xk", f32),
        batch_axes={"x": 0},
        opsets={"": 18, INTERNAL_DOMAIN: 1},
    )
    model = graph_to_model(graph)
    onnx.checker.check_model(graph_to_model(complete_shapes(graph)))
    assert [node.op_type for node in model.graph.node] == ["Mul", "Add", "Mul", "Add"]
    x = np.array([[5, 7]], np.float32)
    np.testing.assert_array_equal(Runner(model).run({"x": x})["y"], (x * [2, 3] + [10, 20]) * x + [10, 20])
    completed = complete_shapes(graph)
    assert completed.shapes == {"x": (1, 2), "k": (1, 2), "t": (1, 2), "y": (1, 2)}
    assert completed.dtypes["y"] == np.float32


def test_a_batch_can_be_declared() -> None:
    graph = import_model(parsed("{ y = Relu(x) }"), data(3, 4)).graph
    model = graph_to_model(graph, batch="N")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert Runner(graph_to_model(graph, batch=3)).run({"x": data(3, 4)})["y"].shape == (3, 4)


def test_a_model_over_two_gigabytes_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepshap_ir.importing.runner._MAX_PROTO_BYTES", 1000)
    model = parsed("{ y = MatMul(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(data(4, 4000), "w"))
    assert import_model(model, data(3, 4)).graph.shapes["y"] == (1, 4000)


def test_what_neither_engine_runs() -> None:
    model = parsed("{ y = com.microsoft.Nonsense(x) }")
    with pytest.raises(ModelError, match=r"loads neither in onnxruntime \(.*Nonsense.*nor in onnx.reference \("):
        import_model(model, data(3, 4))
    wrong = parsed("<float[3] w = {1, 2, 3}> { h = Mul(x, w) \n y = Relu(h) }", "(float[N,M] x) => (float[N,3] y)")
    with pytest.raises(ModelError, match=r"the model does not run on x \[1, 4\]: .*Mul") as caught:
        import_model(wrong, data(3, 4))
    assert "onnxruntime_src" not in str(caught.value)


def test_attributes_are_plain_values() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    graph = parsed("{ y = Relu(x) }").graph
    values: list[Any] = [3, 2.5, "text", [1, 2], [1.5, 2.5], ["a", "b"], array, [array, array], graph]
    for value in values:
        back = attribute_value(attribute_proto("name", value))
        assert isinstance(back, type(value))
        if isinstance(value, GraphProto):
            assert back.SerializeToString() == value.SerializeToString()
        else:
            np.testing.assert_array_equal(back, value)
