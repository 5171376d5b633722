"""Reading models: from everywhere, checked, with one clear line when something is wrong."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import ModelProto, helper, numpy_helper, parser

from deepshap_ir.errors import ModelError
from deepshap_ir.importing.load import load_model
from deepshap_ir.importing.runner import newest_ir_version, newest_opset

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }
"""


def with_weights(size: int = 512) -> ModelProto:
    weights = np.arange(4 * size, dtype=np.float32).reshape(4, size)
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,M] y) {y = MatMul(x, w)}'
    )
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    return model


def test_every_source_gives_the_same_model(tmp_path: Path) -> None:
    model = parser.parse_model(TEXT)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    content = path.read_bytes()
    with path.open("rb") as file:
        sources: list[Any] = [
            path,
            str(path),
            content,
            bytearray(content),
            io.BytesIO(content),
            file,
            model,
            onnx_ir.from_proto(model),
        ]
        loaded = [load_model(source) for source in sources]
    for other in loaded:
        assert [node.op_type for node in other.graph.node] == ["Relu"]
        assert other.graph.input[0].name == "x"
        assert other.opset_import[0].version == 17


def test_the_callers_model_is_not_touched() -> None:
    model = parser.parse_model(TEXT)
    model.opset_import[0].domain = "ai.onnx"
    before = model.SerializeToString()
    loaded = load_model(model)
    loaded.graph.node[0].op_type = "Abs"
    assert model.SerializeToString() == before
    assert loaded.opset_import[0].domain == ""


@pytest.mark.parametrize("how", ["path", "file", "onnx_ir"])
def test_external_data_are_loaded(tmp_path: Path, how: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(with_weights(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    if how == "path":
        loaded = load_model(path)
    elif how == "onnx_ir":
        loaded = load_model(onnx_ir.load(path))
    else:
        with path.open("rb") as file:
            loaded = load_model(file)
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0])[1, :3], [512, 513, 514])


def test_missing_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(with_weights(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    content = path.read_bytes()
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(
        ModelError, match=r"model\.onnx': its external data cannot be loaded \(files weights\.bin expected in"
    ):
        load_model(path)
    with pytest.raises(ModelError, match=r"1 tensors are stored in other files \(weights\.bin\).*Give the path"):
        load_model(content)
    with pytest.raises(ModelError, match="whose folder is unknown"):
        load_model(onnx.load(path, load_external_data=False))


def test_truncated_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(with_weights(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"external data cannot be loaded|not a valid ONNX model"):
        load_model(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx': no such file \(the current folder is "):
        load_model(tmp_path / "nowhere.onnx")
    with pytest.raises(ModelError, match="is a folder, and no SavedModel"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file", b"\x89PNG\r\n\x1a\n" * 20, b"hello"])
def test_not_onnx(content: bytes) -> None:
    with pytest.raises(ModelError, match="not an ONNX model"):
        load_model(content)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_truncated(tmp_path: Path, share: float) -> None:
    content = with_weights().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"cut\.onnx': not an ONNX model, or truncated") as caught:
        load_model(path)
    assert caught.value.__suppress_context__


def test_other_types_and_text_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a model is a path, bytes.* not <class 'int'>"):
        load_model(3)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="open it with mode 'rb'"):
        load_model(io.StringIO("text"))  # type: ignore[arg-type]


def test_opset_too_new_and_too_old() -> None:
    model = parser.parse_model(TEXT)
    newest = onnx.defs.onnx_opset_version()
    model.opset_import[0].version = newest + 1
    with pytest.raises(ModelError, match=rf"opset {newest + 1}; opsets 7 to {newest_opset()} can be explained"):
        load_model(model)
    model.opset_import[0].version = 99
    with pytest.raises(ModelError, match=r"opset 99.*install a newer onnxruntime or export to an older opset"):
        load_model(model)
    model.opset_import[0].version = 6
    with pytest.raises(ModelError, match=r"opset 6;.*export again"):
        load_model(model)
    del model.opset_import[:]
    with pytest.raises(ModelError, match="imports no operator set"):
        load_model(model)


def test_a_newer_ir_version_is_lowered() -> None:
    model = parser.parse_model(TEXT)
    model.ir_version = newest_ir_version() + 1
    assert load_model(model).ir_version == newest_ir_version()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{ y = Relu(z) }", "z"),
        ("{ y = Rleu(x) }", "Rleu"),
        ("{ y = Relu <slope = 1.0> (x) }", "slope"),
        ("{ y = Relu(x) \n y = Abs(x) }", "y"),
    ],
)
def test_failing_checker(text: str, cause: str) -> None:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) {text}')
    with pytest.raises(ModelError, match=rf"^the ModelProto: not a valid ONNX model: .*{cause}") as caught:
        load_model(model)
    assert "\n" not in str(caught.value)


def test_duplicate_opset_imports_are_merged() -> None:
    model = parser.parse_model(TEXT)
    model.opset_import.extend([helper.make_opsetid("ai.onnx", 13), helper.make_opsetid("ai.onnx.ml", 1)])
    loaded = load_model(model)
    assert {entry.domain: entry.version for entry in loaded.opset_import} == {"": 17, "ai.onnx.ml": 1}
    assert len(loaded.opset_import) == 2


def test_large_weights_survive_the_checker() -> None:
    loaded = load_model(with_weights(20_000))
    assert numpy_helper.to_array(loaded.graph.initializer[0]).shape == (4, 20_000)
    assert [value.name for value in loaded.graph.input] == ["x"]


def test_an_old_file_whose_initializers_are_no_inputs() -> None:
    """onnxruntime runs it, though before IR version 4 the standard wants them among the inputs."""
    model = parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 9]> g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> '
        "{ y = Mul(x, w) }"
    )
    assert load_model(model).ir_version == 3
