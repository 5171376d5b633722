"""Quantised operators: their expansions are the operators, and the steps sum to delta."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deepshap_ir.engine.backends import OnnxRuntime
from deepshap_ir.engine.expand import expand_graph
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.errors import RuleError
from deepshap_ir.graph import Node
from deepshap_ir.importing.importer import import_model
from deepshap_ir.onnx_io import graph_to_model
from deepshap_ir.specialisation import rewrite
from deepshap_ir.testing import Runner, check_rule, one_node_graph

RNG = np.random.default_rng(0)


def integers(*shape: int, dtype: Any = np.uint8) -> Any:
    return (
        RNG.integers(100, 150, shape).astype(dtype) if dtype == np.uint8 else RNG.integers(-90, 90, shape).astype(dtype)
    )


def scales(*shape: int) -> Any:
    return RNG.uniform(0.01, 0.05, shape).astype(np.float32)


ZERO = np.uint8(128)
ONE = np.float32(0.02)


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        ([integers(2, 3, 4), ONE, ZERO], {}),
        ([integers(2, 3, 4), ONE], {}),
        ([integers(2, 3, 4), scales(3), integers(3)], {}),
        ([integers(2, 3, 4), scales(4), integers(4)], {"axis": -1}),
        ([integers(2, 3, 4), scales(2, 3, 2), integers(2, 3, 2)], {"axis": 2, "block_size": 2}),
        ([integers(2, 5), scales(2, 3)], {"axis": 1, "block_size": 2}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_dequantize(inputs: list[Any], attributes: dict[str, Any]) -> None:
    """The expansion against the operator; scale and integers vary."""
    graph = one_node_graph("DequantizeLinear", inputs, [0, 1], attributes, opset=21)
    graph.opsets[""] = 21
    written = expand_graph(graph, Resolver())
    assert {node.op_type for node in written.nodes} <= {"Cast", "Sub", "Mul", "Reshape", "Gather"}
    evaluators = [ReferenceEvaluator(graph_to_model(g)) for g in (graph, written)]
    feeds = {"x0": integers(*inputs[0].shape), "x1": inputs[1]}
    expected, got = (np.asarray(next(iter(e.run(None, feeds)))) for e in evaluators)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        ([(2, 3), ONE, ZERO], {}),
        ([(2, 3, 4), scales(3), integers(3)], {}),
        ([(2, 3, 4), scales(4), integers(4)], {"axis": -1}),
        ([(2, 3, 4), scales(2, 3, 2), integers(2, 3, 2)], {"axis": 2, "block_size": 2}),
    ],
    ids=str,
)
def test_quantize_by_the_secant(inputs: list[Any], attributes: dict[str, Any]) -> None:
    arrays = [RNG.normal(size=a) if isinstance(a, tuple) else a for a in inputs]
    arrays = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    graph = one_node_graph("QuantizeLinear", arrays, [0], attributes, opset=21)
    graph = replace(
        graph,
        nodes=(*graph.nodes, Node("cast", "Cast", ("y0",), ("z",), {"to": 11})),
        outputs=("z",),
        shapes=graph.shapes | {"z": graph.shapes["y0"]},
        dtypes=graph.dtypes | {"z": np.dtype(np.float64)},
        opsets={"": 21},
    )
    # in float32 a number on a step falls to the other side, so onnxruntime is checked in test_model alone
    check_rule(graph, derivative=False, onnxruntime=False)


def test_scales_that_vary_per_axis_are_refused() -> None:
    with pytest.raises(RuleError, match="its scale varies, and is not one number"):
        check_rule("QuantizeLinear", [(2, 3), (3,), integers(3)], varying=[1], domain={1: (0.01, 0.05)})


def quantised(op_type: str, parts: list[Any], attributes: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """x -> QuantizeLinear -> the operator -> DequantizeLinear."""
    arrays: dict[str, Any] = {f"c{k}": np.asarray(a) for k, a in enumerate(parts)}
    arrays |= {"sx": np.float32(0.03), "zx": ZERO}
    integer = op_type.endswith("Integer")
    if integer:
        names = ["q", "c0", "zx", "c1"]
        last = helper.make_node("Cast", ["r"], ["y"], to=1)
    else:
        names = ["q", "sx", "zx", *[f"c{k}" for k in range(len(parts))]]
        last = helper.make_node("DequantizeLinear", ["r", "c3", "c4"], ["y"])
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
            helper.make_node(op_type, names, ["r"], **attributes),
            last,
        ],
        "quantised",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


MODELS = [
    ("QLinearMatMul", [integers(4, 3), ONE, ZERO, np.float32(0.05), ZERO], {}, (1, 4)),
    ("QLinearMatMul", [integers(4, 3), scales(3), integers(3), np.float32(0.05), ZERO], {}, (2, 4)),
    (
        "QLinearConv",
        [integers(3, 2, 2, 2), ONE, ZERO, np.float32(0.05), ZERO, np.array([4, -5, 6], np.int32)],
        {"pads": [1, 1, 0, 0]},
        (1, 2, 4, 4),
    ),
    (
        "QLinearConv",
        [integers(3, 2, 2, 2, dtype=np.int8), scales(3), np.zeros(3, np.int8), np.float32(0.05), ZERO],
        {},
        (1, 2, 4, 4),
    ),
    ("MatMulInteger", [integers(4, 3), ZERO], {}, (1, 4)),
    ("ConvInteger", [integers(3, 2, 2, 2), ZERO], {}, (1, 2, 4, 4)),
]


@pytest.mark.parametrize(
    ("op_type", "parts", "attributes", "shape"), MODELS, ids=[f"{m[0]}{k}" for k, m in enumerate(MODELS)]
)
def test_model(op_type: str, parts: list[Any], attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = quantised(op_type, parts, attributes, shape)
    x, x0 = (RNG.normal(size=shape).astype(np.float32) for _ in range(2))
    resolver = Resolver()
    imported = import_model(model, x0, batch_axes={"x": None}, rewrite=lambda g, keep: rewrite(g, keep, resolver))
    runner = Runner(imported.graph, resolver, OnnxRuntime())
    seed = RNG.normal(size=(1, *imported.graph.shapes["y"]))
    (m,) = runner.multipliers([x[None]], [x0[None]], seed)
    expected = (runner.delta([x[None]], [x0[None]])[0, 0] * seed[0]).sum()
    assert abs(expected) > 1e-3
    assert (m[0, 0, 0] * (x - x0)).sum() == pytest.approx(expected, rel=1e-4, abs=1e-4)
