"""Files as they are found: the cases of the ONNX standard, and exports of PyTorch."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from onnx.backend.test.loader import load_model_tests

from deepshap_ir.errors import DeepShapError, UnsupportedOperatorError
from deepshap_ir.importing.importer import Imported, import_model
from deepshap_ir.importing.runner import Runner, newest_ir_version, newest_opset
from deepshap_ir.onnx_io import graph_to_model

CASES_PER_OPERATOR = 1

REFUSED = {
    "Bernoulli": UnsupportedOperatorError,
    "RandomUniformLike": UnsupportedOperatorError,
}


def is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def standard_cases() -> list[tuple[str, ModelProto, dict[str, Any], str]]:
    """One case per operator with float tensors in and out."""
    found: list[tuple[str, ModelProto, dict[str, Any], str]] = []
    seen: Counter[str] = Counter()
    for case in load_model_tests(kind="node"):
        model = case.model
        if model is None or not case.data_sets:
            continue
        operator = model.graph.node[0].op_type
        opset = max((entry.version for entry in model.opset_import if entry.domain == ""), default=0)
        inputs, outputs = case.data_sets[0]
        names = [value.name for value in model.graph.input]
        floats = [v.name for v, array in zip(model.graph.output, outputs, strict=False) if is_float(array)]
        usable = len(names) == len(inputs) and any(map(is_float, inputs)) and floats and opset <= newest_opset()
        if not usable or seen[operator] >= CASES_PER_OPERATOR or "training" in case.name or "neginf" in case.name:
            continue
        seen[operator] += 1
        model.ir_version = min(model.ir_version, newest_ir_version())
        found.append((case.name, model, dict(zip(names, inputs, strict=True)), floats[0]))
    return found


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_cases_of_the_standard() -> None:
    """Import checks itself against the file; here every shape and dtype is checked against a run, too."""
    cases = standard_cases()
    assert len(cases) > 130
    unexpected = []
    for name, model, arrays, output in cases:
        floats = {key: value for key, value in arrays.items() if is_float(value)}
        others = {key: value for key, value in arrays.items() if key not in floats}
        try:
            imported = import_model(model, floats, output=output, hold=others, batch_axes=dict.fromkeys(floats))
        except DeepShapError as error:
            dynamic = "through its input" in str(error)  # sizes, scales, axes given as an explained float
            if not dynamic and not isinstance(error, REFUSED.get(model.graph.node[0].op_type, ())):
                unexpected.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            continue
        graph = imported.graph
        made = [key for node in graph.nodes for key in node.outputs if key in graph.shapes]
        values = Runner(graph_to_model(graph, made)).run(imported.background)
        for key, value in values.items():
            if graph.shapes[key] != np.shape(value) or graph.dtypes[key] != np.asarray(value).dtype:
                unexpected.append(f"{name}: {key} is {np.shape(value)}, noted as {graph.shapes[key]}")
    assert not unexpected, "\n".join(unexpected)


def operators(imported: Imported) -> list[str]:
    return [node.operator for node in imported.graph.nodes]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="the exporter under test is torch's")


def exported(torch: Any, module: Any, rows: Any, opset: int) -> ModelProto:
    program = torch.onnx.export(
        module.eval(),
        (rows[:2],),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        input_names=["x"],
        output_names=["y"],
        verbose=False,
    )
    model: ModelProto = program.model_proto
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_transformer_layer_from_torch(torch: Any) -> None:
    torch.manual_seed(0)

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = torch.nn.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.layer(x).mean(1))

    module, rows = Model(), torch.randn(4, 5, 8)
    imported = import_model(exported(torch, module, rows, 18), rows.numpy())
    assert imported.warnings == []
    assert not {"Shape", "Concat", "ConstantOfShape", "Identity"} & set(operators(imported))
    assert imported.graph.shapes["y"] == (1, 3)
    for row in range(4):
        x = rows[row : row + 1]
        ours = Runner(graph_to_model(imported.graph)).run({"x": x.numpy()})["y"]
        np.testing.assert_allclose(ours, module(x).detach().numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_recurrent_and_split_layers_from_torch(torch: Any) -> None:
    torch.manual_seed(0)

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(4, 3, batch_first=True, bidirectional=True)

        def forward(self, x: Any) -> Any:
            a, b = torch.split(self.lstm(x)[0], [2, 4], -1)
            return torch.stack(torch.cat([b, a], -1).unbind(1)).sum(0)

    rows = torch.randn(3, 5, 4)
    imported = import_model(exported(torch, Model(), rows, 20), rows.numpy())
    lstm = next(node for node in imported.graph.nodes if node.op_type == "LSTM")
    assert lstm.outputs[1:] == ()
    assert all(name in imported.graph.constants for name in lstm.inputs[1:] if name)
    assert imported.graph.shapes["y"] == (1, 6)
