"""MaxPool: the laws, a replica of SHAP's rule, exact Shapley values, ties."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from deepshap_ir.engine.backends import Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.extend import Array, Context, Node, Value
from deepshap_ir.rules.max_pooling import max_pool
from deepshap_ir.testing import Runner, check_rule, exact_shapley, one_node_graph
from tests.rules.onnx_cases import Case, node_cases

POOLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 2, 7), {"kernel_shape": [2]}),
    ((2, 1, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 0], "dilations": [2]}),
    ((1, 2, 8, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((1, 2, 7, 7), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((1, 2, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 2, 7, 6), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1}),
    ((1, 1, 8, 8), {"kernel_shape": [2, 2], "dilations": [3, 2], "pads": [0, 1, 1, 0]}),
    ((1, 1, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 1, 7, 6), {"kernel_shape": [2, 3], "strides": [2, 3], "auto_pad": "SAME_LOWER"}),
    ((1, 1, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID", "storage_order": 1}),
    ((1, 1, 7, 6), {"kernel_shape": [1, 1], "strides": [3, 3]}),
    ((1, 1, 3, 4), {"kernel_shape": [3, 4]}),
    ((2, 2, 4, 4, 4), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    ((1, 1, 4, 5, 3), {"kernel_shape": [3, 3, 3], "strides": [2, 1, 2], "pads": [1, 1, 1, 1, 1, 1]}),
    ((1, 2, 5, 4, 6), {"kernel_shape": [2, 2, 2], "dilations": [1, 2, 1], "strides": [2, 1, 1]}),
]


def pair(
    x: Array, x0: Array, seed: Array, attributes: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> Array:
    """Multipliers of one pair."""
    graph = one_node_graph("MaxPool", [x.astype(np.float64)], [0], attributes)
    found = Runner(graph, Resolver((), options), Reference()).multipliers([x[None]], [x0[None]], seed[None])[0]
    first: Array = found[0, 0, 0]
    return first


def places(shape: tuple[int, ...], out: tuple[int, ...], attributes: Mapping[str, Any]) -> list[list[tuple[int, ...]]]:
    """The elements of each window of an unbatched image, in row-major order; explicit padding only."""
    kernel, rank = attributes["kernel_shape"], len(shape)
    strides, dilations = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    pads = attributes.get("pads", [0] * 2 * rank)
    windows = []
    for window in product(*map(range, out)):
        found = [
            tuple(
                p * s + k * d - pad for p, s, k, d, pad in zip(window, strides, offset, dilations, pads, strict=False)
            )
            for offset in product(*map(range, kernel))
        ]
        windows.append([i for i in found if all(0 <= a < n for a, n in zip(i, shape, strict=True))])
    return windows


def as_shap(x: Array, x0: Array, seed: Array, attributes: Mapping[str, Any]) -> Array:
    """Contributions by SHAP's rule, window after window."""
    result = np.zeros(x.shape)
    flat = seed.reshape(*x.shape[:2], -1)
    for n, c in product(*map(range, x.shape[:2])):
        for k, window in enumerate(places(x.shape[2:], seed.shape[2:], attributes)):
            values, values0 = [x[n, c][i] for i in window], [x0[n, c][i] for i in window]
            y, y0 = max(values), max(values0)
            result[n, c][window[values.index(y)]] += flat[n, c, k] * (max(y, y0) - y0)
            result[n, c][window[values0.index(y0)]] += flat[n, c, k] * (y - max(y, y0))
    return result


@pytest.mark.parametrize(("shape", "attributes"), POOLS)
@pytest.mark.parametrize("options", [{}, {"max_pooling": "shapley"}], ids=["shap", "shapley"])
def test_laws(shape: tuple[int, ...], attributes: dict[str, Any], options: dict[str, Any]) -> None:
    checked = check_rule("MaxPool", [shape], attributes=attributes, options=options)
    assert checked.float32_error is not None


@pytest.mark.parametrize("case", [c for c in node_cases("maxpool") if c.n_outputs == 1], ids=str)
def test_standard_cases(case: Case) -> None:
    check_rule(case.operator, [case.inputs[0].shape], attributes=case.attributes, opset=case.opset)  # type: ignore[union-attr]


def test_numbers_to_agree_on() -> None:
    """Windows overlap: their contributions add up."""
    x, x0 = np.array([[[0.0, 1, 4, 3]]]), np.array([[[2.0, 0, 1, 5]]])
    m = pair(x, x0, np.array([[[1.0, 2, 3]]]), {"kernel_shape": [2]})
    np.testing.assert_allclose(m * (x - x0), [[[-1, 0, 6, -3]]], atol=1e-12)


@pytest.mark.parametrize(("shape", "attributes"), [p for p in POOLS if "auto_pad" not in p[1]])
def test_is_shaps_rule_also_with_ties(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    x, x0 = rng.integers(-2, 3, size=(2, *shape)).astype(np.float64)
    seed = rng.normal(size=one_node_graph("MaxPool", [x], [0], attributes).shapes["y0"])
    m = pair(x, x0, seed, attributes)
    np.testing.assert_allclose(m * (x - x0), as_shap(x, x0, seed, attributes), atol=1e-12)


@pytest.mark.parametrize("attributes", [{"kernel_shape": [3]}, {"kernel_shape": [2], "strides": [2], "pads": [1, 0]}])
def test_exact_shapley_values_on_request(attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    x, x0 = rng.normal(size=(2, 1, 1, 7))
    windows = places((7,), (5 if len(attributes) == 1 else 4,), attributes)
    seed = rng.normal(size=(1, 1, len(windows)))

    def pooled(rows: Array) -> Array:
        largest = np.stack([rows[:, 0, 0, [i for (i,) in w]].max(-1) for w in windows], axis=-1)
        total: Array = largest @ seed[0, 0]
        return total

    m = pair(x, x0, seed, attributes, {"max_pooling": "shapley"})
    np.testing.assert_allclose(m * (x - x0), exact_shapley(pooled, x, x0), atol=1e-10)


def test_at_zero_delta_the_first_winner_has_the_derivative() -> None:
    x = np.array([[[1.0, 3, 3, 2]]])
    np.testing.assert_array_equal(pair(x, x, np.full((1, 1, 1), 5.0), {"kernel_shape": [4]}), [[[0, 5, 0, 0]]])


def test_of_integers() -> None:
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2]}
    graph = one_node_graph("MaxPool", [np.zeros((1, 2, 6, 6), np.int8)], [0], attributes)
    cast = Node("cast", "Cast", ("y0",), ("z",), {"to": TensorProto.FLOAT})
    graph = replace(
        graph,
        nodes=(*graph.nodes, cast),
        outputs=("z",),
        shapes=graph.shapes | {"z": graph.shapes["y0"]},
        dtypes=graph.dtypes | {"z": np.dtype(np.float32)},
    )

    def integers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.integers(-5, 6, size=shape)

    check_rule(graph, domain=integers, derivative=False)  # between integers there is none


@pytest.mark.parametrize("attributes", [{"kernel_shape": [2], "strides": [2]}, {"kernel_shape": [3]}], ids=str)
def test_what_indices_change_is_shared_between_the_winners(attributes: dict[str, Any]) -> None:
    """In windows of two elements these are the exact Shapley values of the indices."""
    rng = np.random.default_rng(0)
    x, x0 = rng.normal(size=(2, 1, 2, 6))
    graph = one_node_graph("MaxPool", [x], [0], attributes, outputs=2, explained=1)
    windows = places((6,), graph.shapes["y1"][2:], attributes)
    seed = rng.normal(size=graph.shapes["y1"])
    m = Runner(graph, Resolver(), Reference()).multipliers([x[None]], [x0[None]], seed[None])[0][0, 0, 0]
    phi = m * (x - x0)

    def indices(rows: Array, window: list[int]) -> Array:
        found: Array = np.array(window, np.float64)[rows[:, window].argmax(-1)]
        return found

    for c, weights in enumerate(seed[0]):

        def weighted(rows: Array, weights: Array = weights) -> Array:
            per_window = [weight * indices(rows, [i for (i,) in w]) for weight, w in zip(weights, windows, strict=True)]
            total: Array = np.sum(per_window, axis=0)
            return total

        exact = exact_shapley(weighted, x[0, c], x0[0, c])
        np.testing.assert_allclose(phi[0, c].sum(), exact.sum(), atol=1e-12)
        if len(windows[0]) == 2:
            np.testing.assert_allclose(phi[0, c], exact, atol=1e-12)


def test_a_rule_that_is_slightly_wrong_is_rejected() -> None:
    def inflated(ctx: Context, m: Any) -> Value:
        return max_pool(ctx, m) * 1.0005  # type: ignore[no-any-return]

    with pytest.raises(AssertionError, match="miss the delta"):
        check_rule("MaxPool", [(1, 1, 6)], attributes={"kernel_shape": [2]}, rule=inflated)
