"""Sequences of known length disappear."""

import numpy as np
import pytest
from onnx import numpy_helper

from deepshap_ir.errors import InputError
from deepshap_ir.importing.importer import import_model
from tests.onnx_text import data, operators, parsed, run


@pytest.mark.parametrize(
    "body",
    [
        "{ s = SplitToSequence <axis = 1, keepdims = 1> (x) \n a = SequenceAt(s, one) \n y = Mul(x, a) }",
        "{ s = SplitToSequence <axis = 1, keepdims = 0> (x) \n y = ConcatFromSequence <axis = 1, new_axis = 1> (s) }",
        "{ s = SplitToSequence <axis = -1> (x, three) \n y = ConcatFromSequence <axis = 1> (s) }",
        "<int64[2] p = {1, 3}> { s = SplitToSequence <axis = 1> (x, p) \n a = SequenceAt(s, minus)"
        " y = Concat <axis = 1> (a, one_column) }",
        "{ e = SequenceEmpty() \n r = Relu(x) \n s = SequenceInsert(e, r) \n t = SequenceInsert(s, x, zero)"
        " i = Identity(t) \n u = SequenceErase(i) \n n = SequenceLength(u) \n f = Cast <to = 1> (n)"
        " a = SequenceAt(t, one) \n y = Mul(a, f) }",
        "{ c = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> () \n s = SequenceConstruct(c, c)"
        " t = SequenceInsert(s, x, one) \n a = SequenceAt(t, one) \n b = SequenceAt(t, zero) \n y = Add(a, b) }",
    ],
)
def test_sequences_of_known_length_disappear(body: str) -> None:
    model = parsed(body)
    for name, value in {"zero": 0, "one": 1, "three": 3, "minus": -1}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    if "one_column" in body:
        model.graph.node.insert(0, parsed("{ one_column = Slice(x, start, end, start) }").graph.node[0])
        for name, value in {"start": 1, "end": 2}.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    imported = import_model(model, data(3, 4))
    assert not any("Sequence" in name for name in operators(imported))
    graph = imported.graph
    values = dict(zip(graph.shapes, run(graph, {"x": data(1, 4)}, list(graph.shapes)), strict=True))
    assert {name: value.shape for name, value in values.items()} == graph.shapes
    assert {name: value.dtype for name, value in values.items()} == graph.dtypes


def test_a_sequence_as_input_is_refused() -> None:
    model = parsed("<int64 i = {0}> { y = SequenceAt(s, i) }", "(seq(float[N,4]) s) => (float[N,4] y)")
    with pytest.raises(InputError, match=r"input 's' is a sequence, not a tensor"):
        import_model(model, data(3, 4))
