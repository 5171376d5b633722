"""Operators of com.microsoft: their expansions compute what onnxruntime's kernels do, and sum to delta.

`DeepExplainer` compares the program with the file, which onnxruntime runs with its own kernels, to 1e-4.
"""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, helper, numpy_helper

from deepshap_ir import DeepExplainer
from deepshap_ir.errors import DeepShapError

RNG = np.random.default_rng(0)
F32 = np.float32


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(F32)


def positive(*shape: int) -> Any:
    return RNG.uniform(0.5, 2, shape).astype(F32)


def whole(low: int, high: int, *shape: int, dtype: Any = np.int32) -> Any:
    return RNG.integers(low, high, shape).astype(dtype)


PRESENT = {"Attention": 2, "MultiHeadAttention": 3, "DecoderMaskedMultiHeadAttention": 3, "GroupQueryAttention": 3}
"""How many outputs a kernel writes where there is a past: without them onnxruntime refuses, or reads wild memory."""


def model_of(
    op_type: str, arrays: list[Any], attributes: dict[str, Any], fed: list[int], output: int = 0
) -> ModelProto:
    """One node of com.microsoft; the inputs `fed` are the model's, the others are stored in it."""
    names = ["" if a is None else f"x{k}" for k, a in enumerate(arrays)]
    outputs = [f"y{j}" for j in range(PRESENT.get(op_type, 1))]
    types = {k: helper.np_dtype_to_tensor_dtype(arrays[k].dtype) for k in fed}
    graph = helper.make_graph(
        [helper.make_node(op_type, names, outputs, domain="com.microsoft", **attributes)],
        "one",
        [helper.make_tensor_value_info(f"x{k}", types[k], arrays[k].shape) for k in fed],
        [helper.make_tensor_value_info(f"y{output}", 1, None)],
        [numpy_helper.from_array(a, f"x{k}") for k, a in enumerate(arrays) if a is not None and k not in fed],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def check(model: ModelProto, arrays: list[Any], fed: list[int], axes: dict[str, int | None]) -> None:
    """The attributions of the inputs that are floats sum to what onnxruntime's kernel says."""
    moved = {f"x{k}": arrays[k] for k in fed}
    sample = {n: (a * F32(0.5) + normal(*a.shape)).astype(a.dtype) if a.dtype == F32 else a for n, a in moved.items()}
    floats = [n for n in moved if moved[n].dtype == F32]
    explainer = DeepExplainer(model, moved, inputs=floats, batch_axes=axes)
    assert all(node.domain != "com.microsoft" for node in explainer.graph.nodes)
    values = explainer.shap_values([sample[n] for n in floats] if len(sample) == len(floats) else sample)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, y0 = (np.asarray(session.run(None, f)[-1], np.float64).reshape(-1) for f in (sample, moved | {}))
    total = sum(np.asarray(v).reshape(-1, y.size).sum(0) for v in (values if isinstance(values, list) else [values]))
    np.testing.assert_allclose(total, y - y0, atol=1e-4 * max(np.abs(y).max(), np.abs(y0).max()))
    assert np.abs(y - y0).max() > 1e-4


X, W, B = normal(1, 5, 8), normal(8, 24) * F32(0.5), normal(24)
TABLES = [np.cos(normal(16, 2)), np.sin(normal(16, 2))]

ATTENTION: dict[str, tuple[str, list[Any], dict[str, Any], list[int], int]] = {
    "plain": ("Attention", [X, W, B], {"num_heads": 2}, [0], 0),
    "scale": ("Attention", [X, W, B], {"num_heads": 2, "scale": 0.3}, [0], 0),
    "raw mask": ("Attention", [X, W, B, np.array([[1, 1, 0, 1, 0]], np.int32)], {"num_heads": 2}, [0], 0),
    "length": ("Attention", [X, W, B, np.array([3], np.int32)], {"num_heads": 2}, [0], 0),
    "length and start": ("Attention", [X, W, B, np.array([4, 1], np.int32)], {"num_heads": 2}, [0], 0),
    "3-D mask": ("Attention", [X, W, B, whole(0, 2, 1, 5, 5)], {"num_heads": 4}, [0], 0),
    "filter": (
        "Attention",
        [X, W, B, np.array([[1, 1, 0, 1, 0]], np.int32)],
        {"num_heads": 2, "mask_filter_value": -2.0},
        [0],
        0,
    ),
    "unidirectional": ("Attention", [X, W, B], {"num_heads": 2, "unidirectional": 1}, [0], 0),
    "unidirectional, mask": (
        "Attention",
        [X, W, B, np.array([[1, 1, 0, 1, 0]], np.int32)],
        {"num_heads": 2, "unidirectional": 1},
        [0],
        0,
    ),
    "sizes": ("Attention", [X, normal(8, 20), normal(20)], {"num_heads": 2, "qkv_hidden_sizes": [6, 6, 8]}, [0], 0),
    "relative": ("Attention", [X, W, B, None, None, normal(1, 2, 5, 5)], {"num_heads": 2}, [0, 5], 0),
    "past": ("Attention", [X, W, B, None, normal(2, 1, 2, 3, 4)], {"num_heads": 2, "unidirectional": 1}, [0, 4], 1),
    "past, output": ("Attention", [X, W, B, None, normal(2, 1, 2, 3, 4)], {"num_heads": 2}, [0, 4], 0),
    "three inputs": ("MultiHeadAttention", [X, normal(1, 6, 8), normal(1, 6, 8)], {"num_heads": 2}, [0, 1, 2], 0),
    "three inputs, bias": (
        "MultiHeadAttention",
        [X, normal(1, 6, 8), normal(1, 6, 10), normal(26)],
        {"num_heads": 2},
        [0, 1, 2],
        0,
    ),
    "by head": ("MultiHeadAttention", [X, normal(1, 2, 6, 4), normal(1, 2, 6, 4)], {"num_heads": 2}, [0, 1, 2], 0),
    "padding": (
        "MultiHeadAttention",
        [X, normal(1, 6, 8), normal(1, 6, 8), None, np.array([[1, 0, 1, 1, 0, 1]], np.int32)],
        {"num_heads": 2},
        [0, 1, 2],
        0,
    ),
    "causal, past": (
        "MultiHeadAttention",
        [X, normal(1, 5, 8), normal(1, 5, 8), None, None, normal(1, 1, 5, 8), normal(1, 2, 3, 4), normal(1, 2, 3, 4)],
        {"num_heads": 2, "unidirectional": 1},
        [0, 1, 2, 6],
        0,
    ),
    "present": (
        "MultiHeadAttention",
        [X, normal(1, 5, 8), normal(1, 5, 8), None, None, None, normal(1, 2, 3, 4), normal(1, 2, 3, 4)],
        {"num_heads": 2},
        [0, 1, 2, 6, 7],
        2,
    ),
    "decoder": (
        "DecoderMaskedMultiHeadAttention",
        [
            *(normal(1, 1, 8), normal(1, 1, 8), normal(1, 1, 8), None, normal(1, 2, 1, 4)),
            *(normal(1, 2, 6, 4), normal(1, 2, 6, 4), np.array([3], np.int32), None, None, normal(24)),
        ],
        {"num_heads": 2, "past_present_share_buffer": 1},
        [0, 1, 2, 5],
        0,
    ),
    "rotary": (
        "RotaryEmbedding",
        [X, np.array([3], np.int64), *TABLES],
        {"num_heads": 2},
        [0],
        0,
    ),
    "rotary, interleaved, by head": (
        "RotaryEmbedding",
        [normal(1, 3, 5, 4), whole(0, 16, 1, 5, dtype=np.int64), *TABLES],
        {"interleaved": 1},
        [0],
        0,
    ),
    "rotary, part": (
        "RotaryEmbedding",
        [normal(1, 5, 16), whole(0, 16, 1, 5, dtype=np.int64), *TABLES],
        {"num_heads": 2, "rotary_embedding_dim": 4},
        [0],
        0,
    ),
}
TOTAL = [np.array([4], np.int32), np.array(5, np.int32)]
LATER = [np.array([7], np.int32), np.array(8, np.int32)]
GROUPED: dict[str, tuple[list[Any], dict[str, Any], list[int], int]] = {
    "first": ([normal(1, 5, 32), normal(1, 5, 16), normal(1, 5, 16), None, None, *TOTAL], {}, [0, 1, 2], 0),
    "packed": ([normal(1, 5, 64), None, None, None, None, *TOTAL], {}, [0], 0),
    "rotary": (
        [normal(1, 5, 128), None, None, None, None, *TOTAL, np.cos(normal(16, 8)), np.sin(normal(16, 8))],
        {"do_rotary": 1},
        [0],
        0,
    ),
    "later": (
        [
            *(normal(1, 5, 64), normal(1, 5, 32), normal(1, 5, 32), normal(1, 2, 3, 16), normal(1, 2, 3, 16)),
            *(*LATER, np.cos(normal(16, 8)), np.sin(normal(16, 8))),
        ],
        {"do_rotary": 1, "rotary_interleaved": 1},
        [0, 1, 2, 3],
        0,
    ),
    "present": (
        [normal(1, 5, 32), normal(1, 5, 16), normal(1, 5, 16), normal(1, 2, 3, 8), normal(1, 2, 3, 8), *LATER],
        {},
        [0, 1, 2, 3],
        1,
    ),
    "window and cap": (
        [normal(1, 5, 32), normal(1, 5, 16), normal(1, 5, 16), None, None, *TOTAL],
        {"local_window_size": 2, "softcap": 3.0, "scale": 0.4},
        [0, 1, 2],
        0,
    ),
    "smooth": ([normal(1, 5, 64), None, None, None, None, *TOTAL], {"smooth_softmax": 1}, [0], 0),
    "bias and sink": (
        [normal(1, 5, 64), None, None, None, None, *TOTAL, None, None, None, normal(1, 4, 5, 5), normal(4)],
        {},
        [0],
        0,
    ),
}


@pytest.mark.parametrize("name", list(ATTENTION))
def test_attention(name: str) -> None:
    op_type, arrays, attributes, fed, output = ATTENTION[name]
    axes: dict[str, int | None] = {f"x{k}": 1 if arrays[k].ndim == 5 and arrays[k].shape[0] == 2 else 0 for k in fed}
    check(model_of(op_type, arrays, attributes, fed, output), arrays, fed, axes)


@pytest.mark.parametrize("name", list(GROUPED))
def test_group_query_attention(name: str) -> None:
    arrays, attributes, fed, output = GROUPED[name]
    model = model_of("GroupQueryAttention", arrays, {"num_heads": 4, "kv_num_heads": 2} | attributes, fed, output)
    check(model, arrays, fed, {f"x{k}": 0 for k in fed})


def byte(*shape: int) -> Any:
    return whole(90, 170, *shape, dtype=np.uint8)


S, Z = F32(0.02), np.uint8(128)
IN, OUT = [F32(0.03), np.uint8(120)], [F32(0.05), np.uint8(100)]

QUANTISED: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "add": ("QLinearAdd", [byte(1, 3, 4), S, Z, byte(3, 1), *IN, *OUT], {}),
    "multiply": ("QLinearMul", [byte(1, 3, 4), S, Z, byte(1, 3, 4), *IN, *OUT], {}),
    "sigmoid": ("QLinearSigmoid", [byte(1, 12), S, Z, F32(1 / 256), np.uint8(0)], {}),
    "leaky": ("QLinearLeakyRelu", [byte(1, 12), S, Z, *OUT], {"alpha": 0.2}),
    "softmax": ("QLinearSoftmax", [byte(1, 3, 4), S, Z, F32(1 / 256), np.uint8(0)], {"axis": -1, "opset": 13}),
    "softmax, old": ("QLinearSoftmax", [byte(1, 3, 4), S, Z, F32(1 / 256), np.uint8(0)], {"axis": 1, "opset": 12}),
    "pool": (
        "QLinearAveragePool",
        [byte(1, 2, 6, 6), S, Z, *OUT],
        {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "pool, channels last": (
        "QLinearAveragePool",
        [byte(1, 6, 6, 2), S, Z, *OUT],
        {"kernel_shape": [2, 3], "channels_last": 1},
    ),
    "global pool": ("QLinearGlobalAveragePool", [byte(1, 2, 5, 5), S, Z, *OUT], {}),
    "global pool, channels last": ("QLinearGlobalAveragePool", [byte(1, 5, 5, 2), S, Z, *OUT], {"channels_last": 1}),
    "convolution, channels last": (
        "QLinearConv",
        [byte(1, 5, 5, 2), S, Z, byte(3, 2, 2, 2), S, Z, *OUT, whole(-9, 9, 3)],
        {"channels_last": 1, "pads": [1, 0, 0, 1]},
    ),
    "convolution": ("QLinearConv", [byte(1, 2, 5), S, Z, byte(3, 2, 2), S, Z, *OUT], {"strides": [2]}),
    "max pool": ("NhwcMaxPool", [byte(1, 6, 6, 2)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "gemm": ("QGemm", [byte(1, 6), S, Z, byte(6, 4), S, Z, whole(-99, 99, 4), *OUT], {"alpha": 0.7}),
    "gemm, float": ("QGemm", [byte(1, 6), S, Z, byte(4, 6), S, Z], {"transB": 1}),
}


@pytest.mark.parametrize("name", list(QUANTISED))
def test_quantised(name: str) -> None:
    """x -> QuantizeLinear -> the operator -> DequantizeLinear."""
    op_type, arrays, attributes = QUANTISED[name]
    check_quantised(op_type, arrays, attributes, 0)


def test_quantised_where() -> None:
    condition = RNG.uniform(size=(3, 4)) < 0.5
    check_quantised("QLinearWhere", [condition, byte(1, 3, 4), S, Z, byte(3, 4), *IN, *OUT], {}, 1)


def test_quantised_concat() -> None:
    check_quantised("QLinearConcat", [*OUT, byte(1, 3, 4), S, Z, byte(1, 2, 4), *IN], {"axis": 1}, 2)


def check_quantised(op_type: str, arrays: list[Any], attributes: dict[str, Any], at: int) -> None:
    """The attributions of the input at position `at`."""
    model = model_of(op_type, arrays, attributes, [at])
    graph = model.graph
    scale, zero = (numpy_helper.from_array(np.asarray(a), n) for a, n in ((S, "scale"), (Z, "zero")))
    graph.initializer.extend([scale, zero])
    graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, arrays[at].shape))
    first = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], [f"x{at}"])
    last = helper.make_node("DequantizeLinear", ["y0", "scale", "zero"], ["y"])
    floats = not op_type.startswith(("QLinear", "Nhwc")) and not (op_type == "QGemm" and len(arrays) > 6)
    nodes = [first, *graph.node, *([] if floats else [last])]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output[0].name = "y0" if floats else "y"
    background = ((arrays[at].astype(F32) - Z) * S).astype(F32)
    samples = background[:, ...] * F32(0.6) + F32(0.1)
    explainer = DeepExplainer(model, background)
    assert all(node.domain != "com.microsoft" for node in explainer.graph.nodes)
    values = np.asarray(explainer.shap_values(samples))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, y0 = (np.asarray(session.run(None, {"x": a})[0]) for a in (samples, background))
    difference = (y - y0).reshape(-1)
    np.testing.assert_allclose(values.reshape(-1, y.size).sum(0), difference, atol=1e-4 * np.abs(y).max())
    assert np.abs(difference).max() > 0


def packed(values: Any, bits: int) -> Any:
    """Numbers of `bits` bits into bytes along the last axis, the first in the lowest bits."""
    parts = values.reshape(*values.shape[:-1], -1, 8 // bits).astype(np.uint8)
    return sum(parts[..., k] << np.uint8(k * bits) for k in range(8 // bits)).astype(np.uint8)


BLOCKS = whole(0, 16, 6, 3, 16)  # N = 6, K = 40: three blocks of 16, of which the last has 8
FLOATS: dict[str, tuple[str, list[Any], dict[str, Any], list[int]]] = {
    "bits 4": ("MatMulNBits", [normal(1, 3, 40), packed(BLOCKS, 4), positive(18)], {"bits": 4}, [0]),
    "bits 4, zeros": (
        "MatMulNBits",
        [normal(1, 40), packed(BLOCKS, 4), positive(18), packed(np.pad(whole(0, 16, 6, 3), [(0, 0), (0, 1)]), 4)],
        {"bits": 4},
        [0],
    ),
    "bits 8, bias": (
        "MatMulNBits",
        [normal(1, 40), whole(0, 256, 6, 3, 16, dtype=np.uint8), positive(18) / F32(50), None, None, normal(6)],
        {"bits": 8},
        [0],
    ),
    "dynamic": ("DynamicQuantizeMatMul", [normal(1, 3, 8), byte(8, 4), S, Z, normal(4)], {}, [0]),
    "dynamic, by column": (
        "DynamicQuantizeMatMul",
        [normal(1, 8), whole(-90, 90, 8, 4, dtype=np.int8), positive(4), np.zeros(4, np.int8)],
        {},
        [0],
    ),
    "recurrent": (
        "DynamicQuantizeLSTM",
        [
            *(normal(4, 1, 3), whole(-90, 90, 2, 3, 20, dtype=np.int8), whole(-90, 90, 2, 5, 20, dtype=np.int8)),
            *(normal(2, 40), None, normal(2, 1, 5), normal(2, 1, 5), None),
            *(positive(2) / F32(90), np.zeros(2, np.int8), positive(2, 20) / F32(90), np.zeros((2, 20), np.int8)),
        ],
        {"hidden_size": 5, "direction": "bidirectional"},
        [0, 5],
    ),
    "distance": ("CDist", [normal(4, 3), normal(5, 3)], {"metric": "euclidean"}, [0, 1]),
    "squared distance": ("CDist", [normal(4, 3), normal(5, 3)], {"metric": "sqeuclidean"}, [0, 1]),
    "windows": ("UnfoldTensor", [normal(1, 7, 2)], {"dim": 1, "size": 3, "step": 2}, [0]),
    "sampling": ("GridSample", [normal(1, 2, 4, 4), RNG.uniform(-1, 1, (1, 3, 3, 2)).astype(F32)], {}, [0]),
    "axis": ("ExpandDims", [normal(1, 3), np.array(1, np.int32)], {}, [0]),
    "triangle": ("Trilu", [normal(1, 4, 4)], {"upper": 0}, [0]),
    "pad": ("Pad", [normal(1, 4), np.array([0, 1, 0, 2], np.int64), F32(3.0)], {"mode": "constant"}, [0]),
    "transposed": (
        "ConvTransposeWithDynamicPads",
        [normal(1, 2, 4, 4), normal(2, 3, 3, 3), np.array([1, 0, 0, 1], np.int64)],
        {"strides": [2, 2]},
        [0],
    ),
    "batch turned": ("FusedMatMul", [normal(3, 1, 4), normal(1, 4, 5)], {"transBatchA": 1, "alpha": 0.5}, [0]),
    "silu": ("ScaledSiLU", [normal(1, 6)], {"alpha": 1.3}, [0]),
}


@pytest.mark.parametrize("name", list(FLOATS))
def test_of_floats(name: str) -> None:
    op_type, arrays, attributes, fed = FLOATS[name]
    if op_type == "MatMulNBits":
        attributes = attributes | {"N": 6, "K": 40, "block_size": 16}
    arrays = [None if a is None else np.asarray(a) for a in arrays]
    check(model_of(op_type, arrays, attributes, fed), arrays, fed, {f"x{k}": None for k in fed})


IDS = np.array([[3, 0, 5, 2]], np.int32)
BYTES = [(byte(8, 6), F32(0.02), Z), (byte(4, 6), F32(0.03), Z), (byte(2, 6), F32(0.01), Z)]
LAST = [(byte(6), F32(0.01), np.uint8(7)), (byte(6), F32(0.02), Z)]
EMBEDDINGS: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "three tables": (
        "EmbedLayerNormalization",
        [IDS, np.array([[0, 1, 1, 0]], np.int32), normal(8, 6), normal(4, 6), normal(2, 6), normal(6), normal(6)],
        {"epsilon": 1e-5},
    ),
    "positions": (
        "EmbedLayerNormalization",
        [
            *(IDS, None, normal(8, 6), normal(4, 6), None, normal(6), normal(6), np.array([[1, 1, 1, 0]], np.int32)),
            np.array([[2, 3, 0, 1]], np.int32),
        ],
        {},
    ),
    "quantised": (
        "QEmbedLayerNormalization",
        [
            *(IDS, np.array([[0, 1, 1, 0]], np.int32), *(t[0] for t in (*BYTES, *LAST)), None),
            *(t[1] for t in (*BYTES, *LAST)),
            *(t[2] for t in (*BYTES, *LAST)),
        ],
        {},
    ),
    "blocks": (
        "GatherBlockQuantized",
        [packed(whole(0, 16, 8, 32), 4), IDS, positive(8, 2)],
        {"bits": 4, "block_size": 16, "quantize_axis": 1},
    ),
    "blocks, zeros": (
        "GatherBlockQuantized",
        [whole(0, 256, 8, 32, dtype=np.uint8), IDS, positive(8, 2) / F32(99), whole(90, 160, 8, 2, dtype=np.uint8)],
        {"bits": 8, "block_size": 16, "quantize_axis": 1},
    ),
}


@pytest.mark.parametrize("name", list(EMBEDDINGS))
def test_embeddings(name: str) -> None:
    """Ids are explained: a number per token."""
    op_type, arrays, attributes = EMBEDDINGS[name]
    at = 1 if op_type.startswith("Gather") else 0
    model = model_of(op_type, arrays, attributes, [at])
    if op_type != "GatherBlockQuantized":
        model.graph.node[0].output.append("mask_index")
    samples = np.array([[1, 0, 4, 7]], np.int32)
    explainer = DeepExplainer(model, IDS)
    assert all(node.domain != "com.microsoft" for node in explainer.graph.nodes)
    values = np.asarray(explainer.shap_values(samples))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, y0 = (np.asarray(session.run(["y0"], {f"x{at}": ids})[0]) for ids in (samples, IDS))
    np.testing.assert_allclose(values[0].sum(0), (y - y0)[0], atol=1e-4)


def test_quantised_attention() -> None:
    """x -> QuantizeLinear -> QAttention."""
    arrays = [byte(1, 5, 8), whole(-90, 90, 8, 24, dtype=np.int8), B, S, F32(0.01), np.array([4], np.int32), Z]
    check_quantised("QAttention", [*arrays, np.int8(0)], {"num_heads": 2, "unidirectional": 1}, 0)


def test_integers_to_float() -> None:
    arrays = [byte(1, 5, 8), byte(8, 4), S, positive(4) / F32(50), Z, np.full(4, 120, np.uint8), normal(4)]
    check_quantised("MatMulIntegerToFloat", arrays, {}, 0)


@pytest.mark.parametrize(
    ("op_type", "arrays", "attributes", "fed", "message"),
    [
        ("GroupQueryAttention", GROUPED["first"][0], {"num_heads": 4, "kv_num_heads": 2}, [0, 5], "hold={name: array}"),
        ("RotaryEmbedding", ATTENTION["rotary"][1], {"num_heads": 2, "is_packed_batching": 1}, [0], "no expansion"),
    ],
    ids=["length that is fed", "packed batch"],
)
def test_what_has_no_expansion_says_so(
    op_type: str, arrays: list[Any], attributes: dict[str, Any], fed: list[int], message: str
) -> None:
    model = model_of(op_type, arrays, attributes, fed)
    with pytest.raises(DeepShapError, match=message):
        DeepExplainer(model, {f"x{k}": arrays[k] for k in fed}, inputs=["x0"])
