"""MaxRoiPool, and RoiAlign of the largest product, as onnxruntime computes them."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from deepshap_ir import DeepExplainer

RNG = np.random.default_rng(0)
REGIONS = np.array([[0.2, 0.3, 4.1, 3.7], [-3.0, 1.0, 2.0, 9.0], [1, 1, 2, 2]], np.float32)
ALIGN = {"output_height": 2, "output_width": 3, "mode": "max"}

CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "sampled": ("RoiAlign", [REGIONS, np.zeros(3, np.int64)], ALIGN | {"sampling_ratio": 2, "spatial_scale": 0.9}),
    "as many samples as there are elements": ("RoiAlign", [REGIONS, np.zeros(3, np.int64)], ALIGN),
    "not shifted": (
        "RoiAlign",
        [REGIONS, np.zeros(3, np.int64)],
        ALIGN | {"coordinate_transformation_mode": "output_half_pixel", "sampling_ratio": 1},
    ),
    "whole": (
        "MaxRoiPool",
        [np.array([[0, 0, 0, 4, 5], [0, 1.4, 2.2, 3, 3], [0, 4, 4, 9, 9]], np.float32)],
        {"pooled_shape": [2, 3]},
    ),
    "scaled": ("MaxRoiPool", [np.array([[0, 0, 0, 9, 7]], np.float32)], {"pooled_shape": [3, 2], "spatial_scale": 0.5}),
}


@pytest.mark.parametrize("name", list(CASES))
def test_regions(name: str) -> None:
    """Where a product is the largest at sample and reference alike, it gets all; the sum is the difference."""
    op_type, fixed, attributes = CASES[name]
    names = [f"c{k}" for k in range(len(fixed))]
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *names], ["y"], **attributes)],
        "regions",
        [helper.make_tensor_value_info("x", 1, [1, 2, 6, 5])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(a, n) for a, n in zip(fixed, names, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    x, x0 = (RNG.normal(size=(1, 2, 6, 5)).astype(np.float32) for _ in range(2))
    values = np.asarray(DeepExplainer(model, x0).shap_values(x))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, y0 = (np.asarray(session.run(None, {"x": a})[0]) for a in (x, x0))
    np.testing.assert_allclose(values.reshape(*x.shape, -1).sum((0, 1, 2, 3)), (y - y0).reshape(-1), atol=1e-5)
    scaled = np.asarray(DeepExplainer(model, x * np.float32(0.5)).shap_values(x))
    np.testing.assert_allclose(scaled.reshape(*x.shape, -1).sum((0, 1, 2, 3)), (y * 0.5).reshape(-1), atol=1e-5)
