"""Our numpy versions of operators agree with onnxruntime."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from deepshap_ir.graph import Array
from deepshap_ir.reference.operators import REPAIRED

RNG = np.random.default_rng(0)


def both(
    op_type: str, inputs: list[Array], attributes: Mapping[str, Any], outputs: int = 1, opset: int = 18
) -> list[list[Array]]:
    """The results of onnx.reference with our operators, and of onnxruntime."""
    names, results = [f"x{i}" for i in range(len(inputs))], [f"y{j}" for j in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, results, **attributes)],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in zip(names, inputs, strict=True)
        ],
        [helper.make_empty_tensor_value_info(n) for n in results],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    feeds = dict(zip(names, inputs, strict=True))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [ReferenceEvaluator(model, new_ops=REPAIRED).run(None, feeds), session.run(None, feeds)]


def numbers(*shape: int) -> Array:
    """Numbers with ties."""
    return RNG.integers(-4, 5, size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((2, 3, 7), {"kernel_shape": [3]}),
        ((2, 3, 7), {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}),
        ((1, 2, 7, 6), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
        ((1, 2, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
        ((1, 2, 7, 6), {"kernel_shape": [2, 3], "dilations": [2, 1]}),
        ((1, 2, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 3], "auto_pad": "SAME_UPPER"}),
        ((1, 2, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        ((1, 2, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID"}),
        ((2, 2, 4, 5, 3), {"kernel_shape": [2, 2, 2], "strides": [1, 2, 1], "pads": [0, 1, 0, 0, 1, 1]}),
        ((2, 2, 4, 5), {"kernel_shape": [2, 2], "storage_order": 1}),
    ],
)
def test_max_pool(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    """The largest and its index."""
    ours, theirs = both("MaxPool", [numbers(*shape)], attributes, outputs=2)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("image", "block", "attributes"),
    [
        ([5, 6], [2, 3], {}),
        ([5, 6], [3, 2], {"strides": [2, 2], "pads": [1, 0, 1, 1]}),
        ([6, 6], [2, 2], {"dilations": [2, 3], "pads": [0, 1, 1, 0]}),
        ([7], [3], {"strides": [2]}),
        ([3, 4, 5], [2, 2, 2], {"strides": [1, 2, 1], "pads": [0, 0, 1, 0, 0, 1]}),
    ],
)
def test_col2im(image: list[int], block: list[int], attributes: dict[str, Any]) -> None:
    """Columns that overlap add."""
    rank = len(image)
    pads = attributes.get("pads", [0] * 2 * rank)
    strides, dilations = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    spans = [n + pads[a] + pads[a + rank] - dilations[a] * (block[a] - 1) for a, n in enumerate(image)]
    windows = np.prod([(span - 1) // s + 1 for span, s in zip(spans, strides, strict=True)])
    data = numbers(2, 3 * int(np.prod(block)), int(windows))
    ours, theirs = both("Col2Im", [data, np.array(image), np.array(block)], attributes)
    np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(axis: int) -> None:
    """Negative axes and indices, and an axis of more than 64."""
    data, indices = numbers(5, 70, 4), RNG.integers(-4, 4, size=(5, 70, 4))
    ours, theirs = both("GatherElements", [data, indices], {"axis": axis})
    np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter_elements(reduction: str, axis: int) -> None:
    """Repeated places combine; without a reduction each place is written once."""
    data, updates = numbers(3, 4, 5), numbers(2, 3, 2)
    if reduction == "none":
        indices = np.argsort(RNG.normal(size=(2, 3, 2)), axis=axis)
    else:
        indices = RNG.integers(-2, 2, size=(2, 3, 2))
    ours, theirs = both("ScatterElements", [data, indices, updates], {"axis": axis, "reduction": reduction})
    np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize(
    ("op_type", "attributes", "opset"),
    [
        ("GroupNormalization", {"num_groups": 2, "epsilon": 1e-2}, 18),
        ("GroupNormalization", {"num_groups": 3}, 21),
        ("LRN", {"size": 3, "alpha": 0.5, "beta": 0.7, "bias": 2.0}, 18),
        ("LRN", {"size": 5}, 18),
        ("LpNormalization", {"p": 1, "axis": 1}, 18),
        ("LpNormalization", {"p": 2, "axis": 0}, 18),
        ("LpNormalization", {}, 18),
        ("MeanVarianceNormalization", {}, 18),
        ("MeanVarianceNormalization", {"axes": [1, 2]}, 18),
    ],
)
def test_normalization(op_type: str, attributes: dict[str, Any], opset: int) -> None:
    """Signals of several samples and channels, some of them zero."""
    x = numbers(2, 6, 3, 4)
    x[0, :, 1] = 0
    parameters = 0 if op_type != "GroupNormalization" else 6 if opset > 18 else 2
    inputs = [x, *[RNG.normal(size=parameters).astype(np.float32) for _ in range(2 if parameters else 0)]]
    ours, theirs = both(op_type, inputs, attributes, opset=opset)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, -1])
def test_log_softmax_far_below(axis: int) -> None:
    """Logits so far apart that Softmax is 0."""
    ours, theirs = both("LogSoftmax", [numbers(3, 5) * 200], {"axis": axis})
    assert np.isfinite(ours[0]).all()
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 30), (2, 30, 1), (1, 30, 2)])
def test_stft(shape: tuple[int, ...]) -> None:
    window = RNG.uniform(size=8).astype(np.float32)
    inputs = [numbers(*shape), np.array(3, np.int64), window]
    ours, theirs = both("STFT", inputs, {"onesided": int(shape[-1] != 2)})
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4)
