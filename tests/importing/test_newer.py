"""Opsets that are newer than the installed onnxruntime."""

import numpy as np
import onnx
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from deepshap_ir.errors import ModelError
from deepshap_ir.importing import newer
from deepshap_ir.importing.importer import import_model
from deepshap_ir.importing.load import load_model
from deepshap_ir.importing.runner import newest_opset

pytestmark = pytest.mark.skipif(newest_opset() >= 28, reason="the installed onnxruntime knows opset 28")


def text(opset: int, body: str) -> onnx.ModelProto:
    return parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[1,4] x) => (float[1,4] y) {body}'
    )


@pytest.mark.parametrize(
    ("opset", "body", "operators"),
    [
        (27, "{y = Relu(x)}", ["Relu"]),
        (28, "{y = SwiGLU <alpha: float = 0.5> (x, x)}", ["Swish", "Mul"]),
        (28, "{t = Abs(x) u = Mod(x, t) y = Celu(u)}", ["Abs", "Div", "Floor", "Mul", "Sub", "Celu"]),
    ],
)
def test_read_as_an_older_opset(opset: int, body: str, operators: list[str]) -> None:
    model = text(opset, body)
    x = np.array([[-1.25, 2.5, -3.0, 0.5]], np.float32)
    imported = import_model(model, x)
    assert [node.op_type for node in imported.graph.nodes] == operators
    assert imported.graph.opsets[""] == newest_opset()
    got = newer.lower_opset(model, opset)
    found, expected = (np.asarray(next(iter(ReferenceEvaluator(m).run(None, {"x": x})))) for m in (got, model))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_operator_that_cannot_be_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newer, "_has_body", lambda *_: False)
    with pytest.raises(
        ModelError, match=r"opset 28; opsets 7 to .*, to which SwiGLU cannot be brought: install a newer"
    ):
        load_model(text(28, "{y = SwiGLU(x, x)}"))


def test_older_models_stay() -> None:
    model = text(18, "{y = Relu(x)}")
    assert newer.lower_opset(model, 18) is model
