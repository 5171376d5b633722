"""Models that onnxruntime's tools fused or quantised: the attributions of the original, or close to them."""

import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from torch import Tensor, nn

from deepshap_ir import DeepExplainer
from deepshap_ir.errors import UnsupportedOperatorError

RNG = np.random.default_rng(0)
WIDTH, HEADS, LENGTH = 8, 2, 6


class Layer(nn.Module):
    """A layer of BERT as its first implementation spells it, which onnxruntime's optimiser knows."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), HEADS, WIDTH // HEADS).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self.heads(layer(x)) for layer in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.size(-1)) + mask
        found = torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3).contiguous()
        x = self.norm(self.dense(found.view(found.size(0), found.size(1), WIDTH)) + x)
        result: Tensor = self.last(self.narrow(nn.functional.gelu(self.wide(x))) + x)
        return result


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.segments = (nn.Embedding(n, WIDTH) for n in (20, LENGTH, 2))
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleList([Layer()])
        self.positions = nn.Buffer(torch.arange(LENGTH)[None])

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
        x = self.words(input_ids) + self.segments(token_type_ids) + self.places(self.positions[:, : input_ids.size(1)])
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        result: Tensor = self.out(x[:, 0])
        return result


def feeds(n: int) -> dict[str, Any]:
    mask = np.ones((n, LENGTH), np.int64)
    mask[0, 4:] = 0
    segments = np.repeat([[0, 0, 0, 1, 1, 1]], n, axis=0)
    return {"input_ids": RNG.integers(0, 20, (n, LENGTH)), "token_type_ids": segments, "attention_mask": mask}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any], Any]:
    """The file, background, samples and the attributions of the words."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    background, samples = feeds(4), feeds(2)
    torch.onnx.export(
        Encoder().eval(),
        tuple(torch.from_numpy(a) for a in samples.values()),
        str(path),
        dynamo=False,
        opset_version=14,
        input_names=list(samples),
        output_names=["y"],
        dynamic_axes={name: {0: "batch"} for name in (*samples, "y")},
    )
    return path, background, samples, words(onnx.load(path), background, samples)


def words(model: ModelProto, background: dict[str, Any], samples: dict[str, Any]) -> Any:
    """The attributions of the words, which sum to delta."""
    values = DeepExplainer(model, background, inputs=["input_ids"]).shap_values(samples)
    return np.asarray(values[0] if isinstance(values, list) else values)


def operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def fused(path: Path) -> ModelProto:
    from onnxruntime.transformers import optimizer

    model: ModelProto = optimizer.optimize_model(str(path), "bert", num_heads=HEADS, hidden_size=WIDTH).model
    return model


def test_a_fused_encoder(encoder: Any) -> None:
    path, background, samples, expected = encoder
    model = fused(path)
    assert operators(model).keys() >= {"Attention", "EmbedLayerNormalization", "SkipLayerNormalization", "BiasGelu"}
    np.testing.assert_allclose(words(model, background, samples), expected, atol=1e-5 * np.abs(expected).max())


def test_a_quantised_encoder(encoder: Any, tmp_path: Path) -> None:
    path, background, samples, expected = encoder
    onnx.save(fused(path), tmp_path / "fused.onnx")
    quantised = tmp_path / "quantised.onnx"
    quantize_dynamic(tmp_path / "fused.onnx", quantised, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
    model = onnx.load(quantised)
    assert operators(model).keys() >= {"QAttention", "QEmbedLayerNormalization", "MatMulInteger"}
    np.testing.assert_allclose(words(model, background, samples), expected, atol=0.05 * np.abs(expected).max())


@pytest.fixture(scope="module")
def network() -> tuple[bytes, Any, Any, Any]:
    """A convolutional network, background, samples and attributions."""
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Conv2d(4, 8, 3), nn.Sigmoid()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3), nn.Softmax(-1)),
    ).eval()
    background, samples = (RNG.normal(size=(n, 1, 8, 8)).astype(np.float32) for n in (5, 2))
    file: Any = io.BytesIO()
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    torch.onnx.export(
        module, (torch.from_numpy(samples),), file, dynamo=False, opset_version=17, input_names=["x"],
        output_names=["y"], dynamic_axes=axes,
    )  # fmt: skip
    expected = np.asarray(DeepExplainer(file.getvalue(), background).shap_values(samples))
    return file.getvalue(), background, samples, expected


def saved(content: bytes, level: Any, path: Path) -> ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def test_a_network_saved_at_the_extended_level(network: Any, tmp_path: Path) -> None:
    content, background, samples, expected = network
    model = saved(content, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, tmp_path / "extended.onnx")
    assert operators(model)["FusedConv"]
    got = np.asarray(DeepExplainer(model, background).shap_values(samples))
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_a_network_saved_for_one_processor_says_how_to_save_it(network: Any, tmp_path: Path) -> None:
    content, background, _, _ = network
    model = saved(content, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, tmp_path / "all.onnx")
    if not any(node.domain == "com.microsoft.nchwc" for node in model.graph.node):
        pytest.skip("onnxruntime has no blocked layout for this processor")
    with pytest.raises(UnsupportedOperatorError, match="ORT_ENABLE_EXTENDED"):
        DeepExplainer(model, background)


class Rows(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, rows: Any) -> None:
        self.rows = iter(rows)

    def get_next(self) -> Any:
        row = next(self.rows, None)
        return None if row is None else {"x": row[None]}


@pytest.mark.parametrize("kind", ["QDQ", "QOperator"])
def test_a_network_quantised_by_calibration(network: Any, tmp_path: Path, kind: str) -> None:
    content, background, samples, expected = network
    path, quantised = tmp_path / "model.onnx", tmp_path / "quantised.onnx"
    path.write_bytes(content)
    quantize_static(path, quantised, Rows(background), quant_format=QuantFormat[kind], weight_type=QuantType.QInt8)
    model = onnx.load(quantised)
    if kind == "QOperator":
        assert operators(model).keys() >= {"QLinearConv", "QLinearAveragePool", "QLinearSigmoid", "QLinearLeakyRelu"}
    got = np.asarray(DeepExplainer(model, background).shap_values(samples))
    np.testing.assert_allclose(got.sum((1, 2, 3)), expected.sum((1, 2, 3)), atol=0.05)
    assert np.corrcoef(got.reshape(-1), expected.reshape(-1))[0, 1] > 0.8
