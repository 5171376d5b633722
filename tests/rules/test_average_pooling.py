"""AveragePool of every form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepshap_ir.engine.backends import Reference
from deepshap_ir.engine.program import build_plan
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.testing import Runner, check_rule, one_node_graph
from tests.rules.onnx_cases import node_cases

RNG = np.random.default_rng(5)


def multiplier(x: Any, seed: Any, attributes: dict[str, Any]) -> Any:
    run = Runner(one_node_graph("AveragePool", [x], [0], attributes), Resolver(), Reference())
    return run.multipliers([x[None]], [x[None] * 0], seed[None])[0][0, 0, 0]


@pytest.mark.parametrize("pads", [[0, 0], [1, 1], [0, 1], [1, 0], [2, 1]], ids=str)
@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("ceil", [0, 1])
def test_one_dimension(pads: list[int], include: int, ceil: int) -> None:
    for size, kernel, stride in [(7, 1, 2), (8, 2, 1), (7, 2, 2), (8, 2, 3), (8, 3, 1), (7, 3, 2), (7, 3, 3)]:
        if max(pads) < kernel:
            attributes = {"kernel_shape": [kernel], "strides": [stride], "pads": pads}
            check_rule(
                "AveragePool",
                [(1, 2, size)],
                attributes={**attributes, "ceil_mode": ceil, "count_include_pad": include},
            )


MORE: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [2, 3], "strides": [2, 3], "ceil_mode": 1},
    {"kernel_shape": [2, 3], "strides": [2, 3], "pads": [1, 0, 0, 2]},
    {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 1, 2, 0], "count_include_pad": 1},
    {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [2, 0, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [5, 6]},
    {"kernel_shape": [7, 6], "pads": [1, 0, 1, 0]},
    {"kernel_shape": [7, 6], "pads": [1, 0, 1, 0], "count_include_pad": 1},
    {"kernel_shape": [4, 6], "strides": [4, 6]},
    {"kernel_shape": [1, 1], "strides": [2, 3]},
    *[
        {"kernel_shape": [4, 2], "strides": strides, "auto_pad": mode, "count_include_pad": include}
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for strides in ([1, 1], [3, 2])
        for include in (0, 1)
    ],
]


@pytest.mark.parametrize("attributes", MORE, ids=str)
def test_two_dimensions(attributes: dict[str, Any]) -> None:
    check_rule("AveragePool", [(2, 3, 5, 6)], attributes=attributes)


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]},
        {"kernel_shape": [2, 1, 3], "pads": [1, 0, 2, 0, 0, 1]},
        {"kernel_shape": [2, 3, 2], "strides": [2, 1, 2], "ceil_mode": 1, "count_include_pad": 1},
    ],
    ids=str,
)
def test_three_dimensions(attributes: dict[str, Any]) -> None:
    check_rule("AveragePool", [(1, 2, 4, 3, 5)], attributes=attributes)


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 2, 1]], ids=str)
@pytest.mark.parametrize("strides", [[1, 1], [2, 3]], ids=str)
@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("opset", [19, 22])
def test_dilations(pads: list[int], strides: list[int], include: int, ceil: int, opset: int) -> None:
    attributes: dict[str, Any] = {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": pads, "strides": strides}
    attributes |= {"ceil_mode": ceil, "count_include_pad": include}
    check_rule("AveragePool", [(1, 2, 7, 8)], attributes=attributes, opset=opset)


@pytest.mark.parametrize(
    ("attributes", "operators"),
    [
        ({"kernel_shape": [4, 4]}, set()),
        ({"kernel_shape": [2, 2], "strides": [2, 2]}, {"Resize"}),
        ({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {"AveragePool"}),
        ({"kernel_shape": [3, 3], "strides": [2, 2]}, {"ConvTranspose"}),
    ],
    ids=str,
)
def test_each_form_goes_back_by_its_cheapest_operator(attributes: dict[str, Any], operators: set[str]) -> None:
    graph = one_node_graph("AveragePool", [np.zeros((1, 2, 4, 4))], [0], attributes)
    emitted = {step.op_type for step in build_plan(graph, Resolver(), explained=["x0"]).explain.steps}
    assert emitted & {"Resize", "AveragePool", "ConvTranspose"} == operators


def test_overlapping_windows_add() -> None:
    seed = np.array([[[3.0, 6.0, 9.0]]])
    got = multiplier(np.zeros((1, 1, 5)), seed, {"kernel_shape": [3]})
    np.testing.assert_allclose(got, [[[1, 3, 6, 5, 3]]])


def test_the_multiplier_is_that_of_a_loop() -> None:
    """A direct replica: every window gives ``m_y / n`` to each of the n elements that it counts."""
    seed = RNG.normal(size=(1, 1, 3, 4))
    expected = np.zeros((5, 6))
    for p, q in np.ndindex(3, 4):
        rows = [r for r in range(p * 2 - 1, p * 2 + 2) if 0 <= r < 5]
        columns = [c for c in range(q * 2 - 1, q * 2 + 1) if 0 <= c < 6]
        expected[np.ix_(rows, columns)] += seed[0, 0, p, q] / (len(rows) * len(columns))
    attributes = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    np.testing.assert_allclose(multiplier(np.zeros((1, 1, 5, 6)), seed, attributes)[0, 0], expected, rtol=1e-12)


def test_cases_of_onnx() -> None:
    tried = node_cases("averagepool")
    assert len(tried) > 5
    for case in tried:
        assert case.inputs[0] is not None
        check_rule(case.operator, [case.inputs[0].shape], attributes=case.attributes, opset=case.opset)
