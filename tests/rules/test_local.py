"""Products of many elements, determinants, Lp pools, top elements, unpooling."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deepshap_ir.errors import RuleError
from deepshap_ir.extend import Node
from deepshap_ir.testing import Checked, check_rule, exact_shapley, one_node_graph

AXES = [None, np.array([1]), np.array([0, -1])]


def close_to_shapley(checked: Checked, function: Any) -> None:
    """A pair's contributions are the exact Shapley values, times the seed of the one output."""
    m, x, x0 = (a[0] for a in (checked.multipliers, checked.samples, checked.references))
    phi = m[1, 2] * (x[1] - x0[2])
    exact = exact_shapley(function, x[1], x0[2])
    np.testing.assert_allclose(phi * exact.sum(), exact * phi.sum(), atol=1e-9)


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_product_of_elements(axes: Any, keepdims: int) -> None:
    inputs = [(2, 3, 2)] if axes is None else [(2, 3, 2), axes]
    check_rule("ReduceProd", inputs, attributes={"keepdims": keepdims})


def test_product_is_exact_shapley() -> None:
    close_to_shapley(check_rule("ReduceProd", [(7,)]), lambda rows: rows.prod(-1))


def test_product_with_zeros() -> None:
    check_rule("ReduceProd", [(2, 4)], domain=lambda g, shape: g.integers(0, 2, shape).astype(float), derivative=False)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_running_product(exclusive: int, reverse: int, axis: int) -> None:
    attributes = {"exclusive": exclusive, "reverse": reverse}
    # onnxruntime has no CumProd
    check_rule("CumProd", [(3, 4), np.array(axis)], attributes=attributes, opset=26, onnxruntime=False)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_determinant(n: int) -> None:
    checked = check_rule("Det", [(1, n, n)])
    if n < 4:
        close_to_shapley(checked, lambda rows: np.linalg.det(rows)[:, 0])


def test_large_determinants_are_refused() -> None:
    with pytest.raises(RuleError, match="the determinant of 6 rows has no rule; up to 5 have"):
        check_rule("Det", [(1, 6, 6)])


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [1, -1])
def test_top_elements(largest: int, axis: int) -> None:
    attributes = {"largest": largest, "axis": axis}
    inputs = [(1, 4, 5), np.array([3])]
    check_rule("TopK", inputs, attributes=attributes, outputs=2, derivative=False, domain=lambda g, s: g.normal(size=s))


@pytest.mark.parametrize("opset", [18, 22])
def test_unpooling(opset: int) -> None:
    indices, attributes = np.array([[[[5, 7], [13, 15]]]]), {"kernel_shape": [2, 2], "strides": [2, 2]}
    check_rule("MaxUnpool", [(1, 1, 2, 2), indices], attributes=attributes, opset=opset)


UNPOOLED: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 2, 8), {"kernel_shape": [2], "strides": [2]}),
    ((1, 2, 8), {"kernel_shape": [3], "strides": [3], "pads": [1, 0]}),
    ((1, 2, 4, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((1, 2, 7, 5), {"kernel_shape": [3, 3], "strides": [2, 2]}),  # windows meet: they hold the same largest element
    ((1, 1, 5, 4), {"kernel_shape": [2, 2], "strides": [1, 1]}),
    ((1, 1, 4, 4, 4), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
]


@pytest.mark.parametrize(("shape", "attributes"), UNPOOLED, ids=str)
@pytest.mark.parametrize("options", [{}, {"max_pooling": "shapley"}], ids=["shap", "shapley"])
def test_pooling_and_back(shape: tuple[int, ...], attributes: dict[str, Any], options: dict[str, Any]) -> None:
    """The indices vary; where no element wins in another window, no place does."""
    pool = one_node_graph("MaxPool", [np.zeros(shape)], [0], attributes, outputs=2)
    back = Node("back", "MaxUnpool", ("y0", "y1"), ("z",), attributes, "", pool.opsets[""])
    graph = replace(
        pool,
        nodes=(*pool.nodes, back),
        outputs=("z",),
        shapes=pool.shapes | {"z": shape},
        dtypes=pool.dtypes | {"z": np.dtype(np.float64)},
    )
    check_rule(graph, options=options, derivative=False)


def test_unpooling_into_another_shape_is_refused() -> None:
    inputs = [(1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]]), np.array([1, 1, 5, 5])]
    with pytest.raises(RuleError, match="the standard and onnxruntime do not agree"):
        check_rule("MaxUnpool", inputs, attributes={"kernel_shape": [2, 2], "strides": [2, 2]})


LP_POOLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 2, 7), {"kernel_shape": [2]}),
    ((2, 2, 7), {"kernel_shape": [3], "strides": [2], "pads": [1, 0], "dilations": [2], "p": 1}),
    ((1, 2, 6, 5), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "p": 3}),
    ((1, 1, 7, 6), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1, "p": 4}),
    ((1, 1, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 1, 4, 3, 4), {"kernel_shape": [2, 2, 2], "strides": [2, 1, 2]}),
]


@pytest.mark.parametrize(("shape", "attributes"), LP_POOLS, ids=str)
def test_lp_pools(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    check_rule("LpPool", [shape], attributes=attributes)
