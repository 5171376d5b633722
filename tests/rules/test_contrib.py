"""Models that onnxruntime optimised give the attributions of the original."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from deepshap_ir import DeepExplainer

RNG = np.random.default_rng(0)

MODELS = {
    "FusedConv": """(float[N,2,6] x) => (float[N,4] y) 
        <float[3,2,3] w = {W}, float[3] b = {0.1, -0.2, 0.3}, float[12,4] v = {V}>
        { h = Conv (x, w, b) r = Relu(h) f = Flatten(r) y = MatMul(f, v) }""",
    "Gelu": """(float[N,4] x) => (float[N,4] y)
        <float[1] r = {1.4142135}, float[1] o = {1.0}, float[1] a = {0.5}, float[4] b = {0.1, 0.2, -0.3, 0.4}>
        { z = Add(x, b) d = Div(z, r) e = Erf(d) f = Add(e, o) g = Mul(z, f) y = Mul(g, a) }""",
    "SkipLayerNormalization": """(float[N,3,4] x) => (float[N,3,4] y)
        <float[4] s = {1.0, 2.0, 0.5, -1.0}, float[4] b = {0.1, 0.2, -0.3, 0.4}>
        { k = Tanh(x) z = Add(x, k) y = LayerNormalization <axis: int = -1> (z, s, b) }""",
    "FusedMatMul": """(float[N,3,4] x) => (float[N,3,3] y)
        { t = Transpose <perm = [0, 2, 1]> (x) k = Tanh(x) y = MatMul(k, t) }""",
}


def numbers(n: int) -> str:
    return ", ".join(f"{value:.4f}" for value in RNG.normal(size=n))


def model(name: str) -> onnx.ModelProto:
    body = MODELS[name].replace("W", numbers(18)).replace("V", numbers(48))
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {body}')


@pytest.mark.parametrize("name", list(MODELS))
def test_an_optimised_model_has_the_same_attributions(name: str, tmp_path: Path) -> None:
    original = model(name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(original.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(options.optimized_model_filepath)
    assert any(node.domain == "com.microsoft" for node in optimised.graph.node)
    shape = [d.dim_value for d in original.graph.input[0].type.tensor_type.shape.dim][1:]
    background, x = RNG.normal(size=(5, *shape)).astype(np.float32), RNG.normal(size=(2, *shape)).astype(np.float32)
    expected, got = (np.asarray(DeepExplainer(m, background).shap_values(x)) for m in (original, optimised))
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max() + 1e-6)
