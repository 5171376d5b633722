"""Sums and means over axes, global average pooling and running sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer
from deepshap_ir.engine.backends import Reference
from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.walker import Walker
from deepshap_ir.errors import RuleError
from deepshap_ir.graph import Graph, Node
from deepshap_ir.testing import Runner, check_rule, one_node_graph
from tests.onnx_text import data, parsed
from tests.rules.onnx_cases import node_cases


def multipliers(operator: str, inputs: list[Any], seed: Any, attributes: dict[str, Any] | None = None) -> Any:
    graph = one_node_graph(operator, inputs, [0], attributes)
    row = np.zeros((1, *inputs[0].shape))
    return Runner(graph, Resolver(), Reference()).multipliers([row], [row], seed[None])[0][0, 0, 0]


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, [], [1], [-1], [0, -1], [2, 0, 1]], ids=str)
def test_over_axes(operator: str, keepdims: int, axes: list[int] | None) -> None:
    given = [] if axes is None else [np.array(axes, np.int64)]
    check_rule(operator, [(2, 3, 4), *given], attributes={"keepdims": keepdims})


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("axes", [[], [np.array([], np.int64)]], ids=["absent", "empty"])
def test_no_axes_may_mean_none(operator: str, axes: list[Any]) -> None:
    seed = np.arange(6.0).reshape(2, 3)
    got = multipliers(operator, [np.zeros((2, 3)), *axes], seed, {"noop_with_empty_axes": 1})
    np.testing.assert_array_equal(got, seed)


def test_the_multiplier_of_a_mean_is_shared_out() -> None:
    got = multipliers("ReduceMean", [np.zeros((2, 3)), np.array([1])], np.array([[3.0], [6.0]]))
    np.testing.assert_allclose(got, [[1, 1, 1], [2, 2, 2]])


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean"])
def test_integers_are_summed_exactly_and_averaged_with_rounding(operator: str) -> None:
    graph = Graph(
        ("x",),
        ("out",),
        (
            Node("n", operator, ("x", "axes"), ("i",), {"keepdims": 0}),
            Node("to_float", "Cast", ("i",), ("out",), {"to": 11}),
        ),
        {"axes": np.array([1])},
        {"x": (2, 3), "axes": (1,), "i": (2,), "out": (2,)},
        {n: np.dtype(d) for n, d in {"x": np.int64, "axes": np.int64, "i": np.int64, "out": np.float64}.items()},
        {"x": 0},
        {"": 18},
    )
    # onnx.reference rounds a mean of integers down, onnxruntime towards 0
    check_rule(graph, domain=lambda rng, shape: rng.integers(0, 6, shape), derivative=False)


@pytest.mark.parametrize("operator", ["ReduceSum", "CumSum"])
def test_axes_that_are_computed_are_refused(operator: str) -> None:
    op = Emitter({"": 18})
    graph = one_node_graph(operator, [np.zeros((2, 3)), np.array(1)], [0])
    x, x0 = (op.input(name, (2, 3), np.float32, [axis]) for name, axis in (("x", "sample"), ("x0", "background")))
    axes = op.input("axes", (), np.int64, ["sample"])
    y = op.input("y", (2, 1), np.float32, ["sample"])
    walker = Walker(op, Resolver())
    context = walker.context(graph.nodes[0], graph, {"x0": (x, x0), "x1": (axes, axes), "y0": (y, y)})
    with pytest.raises(RuleError, match="axes are computed from a model input; only fixed axes are supported"):
        walker.apply(context, [y])


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 3, 4, 5), (1, 2, 3, 2, 2)], ids=str)
def test_global_average_pool(shape: tuple[int, ...]) -> None:
    check_rule("GlobalAveragePool", [shape])


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [np.array(1), np.array(-1), np.array(0, np.int32)], ids=str)
def test_running_sums(exclusive: int, reverse: int, axis: Any) -> None:
    check_rule("CumSum", [(2, 3, 4), axis], attributes={"exclusive": exclusive, "reverse": reverse})


@pytest.mark.parametrize("module", ["reducesum", "reducemean", "globalaveragepool", "cumsum"])
def test_cases_of_onnx(module: str) -> None:
    for case in node_cases(module):
        x, *rest = case.inputs
        assert x is not None
        if x.size:
            check_rule(case.operator, [x.shape, *rest], attributes=case.attributes, opset=case.opset)
    assert node_cases(module) or module == "cumsum"  # whose cases are in float64


@pytest.mark.parametrize("opset", [13, 18])
def test_the_norm_of_doubles_stays_in_doubles(opset: int) -> None:
    given = ("(x, axes)", "<int64[1] axes = {1}>") if opset == 18 else ("<axes = [1]>(x)", "")
    model = parsed(f"{{ y = ReduceL2{given[0]} }}", f"(double[N,4] x) => (double[N,1] y) {given[1]}", opset)
    x, x0 = (data(2, 4, seed=k).astype(np.float64) for k in (0, 1))
    phi = DeepExplainer(model, x0[:1]).shap_values(x)
    expected = np.linalg.norm(x, axis=1) - np.linalg.norm(x0[0])
    np.testing.assert_allclose(phi.sum((1, 2)), expected, rtol=1e-12)
