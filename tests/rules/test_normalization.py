"""Normalisation: the laws, a replica in numpy, what is zero."""

from typing import Any

import numpy as np
import pytest

from deepshap_ir.engine.backends import OnnxRuntime, Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.errors import RuleError
from deepshap_ir.extend import Array, Context, Graph, Node, Value
from deepshap_ir.rules.normalization import layer_normalization
from deepshap_ir.testing import Runner, check_rule, exact_shapley, one_node_graph
from tests.rules.onnx_cases import Case, node_cases

FIXED = np.random.default_rng(0).normal(size=4)

SCALED: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("LayerNormalization", [(2, 3, 4), (4,), (4,)], {}, 18),
    ("LayerNormalization", [(5,), (5,), (5,)], {"axis": 0}, 18),
    ("LayerNormalization", [(2, 3, 4), (3, 4), (3, 4)], {"axis": 1, "epsilon": 0.25}, 18),
    ("LayerNormalization", [(2, 3, 4), (4,), (1, 4)], {"axis": -2}, 21),
    ("RMSNormalization", [(2, 3, 4), (4,)], {}, 23),
    ("RMSNormalization", [(2, 3, 4), (3, 4)], {"axis": -2, "epsilon": 0.25}, 23),
    ("RMSNormalization", [(2, 3, 4), ()], {"axis": 0}, 23),
    ("InstanceNormalization", [(2, 3, 5), (3,), (3,)], {}, 18),
    ("InstanceNormalization", [(2, 3, 4, 2), (3,), (3,)], {"epsilon": 0.25}, 22),
    ("GroupNormalization", [(2, 6, 4, 2), (3,), (3,)], {"num_groups": 3}, 18),
    ("GroupNormalization", [(1, 4, 5), (1,), (1,)], {"num_groups": 1, "epsilon": 0.25}, 18),
    ("GroupNormalization", [(2, 6, 4, 2), (6,), (6,)], {"num_groups": 3}, 21),
    ("GroupNormalization", [(2, 4, 3), (4,), (4,)], {"num_groups": 4}, 21),
]


VARYING = [
    (*case, varying)
    for case in SCALED
    for varying in ([0], [0, 1], [0, 1, 2], [1, 2], [1], [2])
    if max(varying) < len(case[1])
]


@pytest.mark.parametrize(("operator", "inputs", "attributes", "opset", "varying"), VARYING)
def test_laws(operator: str, inputs: list[Any], attributes: dict[str, Any], opset: int, varying: list[int]) -> None:
    check_rule(operator, inputs, varying=varying, attributes=attributes, opset=opset)


def test_no_bias_and_a_scale_of_ones() -> None:
    check_rule("LayerNormalization", [(2, 3, 4), np.ones(4)])


@pytest.mark.parametrize("explained", [0, 1, 2])
@pytest.mark.parametrize("axis", [-1, 1])
def test_mean_and_inverse_deviation(explained: int, axis: int) -> None:
    scale = FIXED if axis == -1 else np.tile(FIXED, (3, 1))
    check_rule("LayerNormalization", [(2, 3, 4), scale], attributes={"axis": axis}, outputs=3, explained=explained)


@pytest.mark.parametrize(
    ("operator", "shape", "attributes"),
    [
        ("LpNormalization", (2, 3, 4), {}),
        ("LpNormalization", (2, 3, 4), {"p": 2, "axis": 0}),
        ("LpNormalization", (2, 3, 4), {"p": 1, "axis": 1}),
        ("LpNormalization", (5,), {"p": 1}),
        ("MeanVarianceNormalization", (1, 3, 4, 2), {}),
        ("MeanVarianceNormalization", (2, 3, 4), {"axes": [-1]}),
        ("MeanVarianceNormalization", (2, 3, 4, 2), {"axes": [1, 2, 3]}),
        ("LRN", (1, 7, 2, 2), {"size": 3}),
        ("LRN", (2, 7, 2, 2), {"size": 3, "alpha": 4.0, "beta": 0.5, "bias": 0.5}),
        ("LRN", (1, 4, 3, 1), {"size": 7, "alpha": 4.0, "beta": 2.0}),
    ],
)
@pytest.mark.parametrize("size", [2.0, 50.0])
def test_laws_without_parameters(
    operator: str, shape: tuple[int, ...], attributes: dict[str, Any], size: float
) -> None:
    check_rule(operator, [shape], attributes=attributes, domain=(-size, size))


def test_local_response_of_an_even_number() -> None:
    # onnxruntime takes odd sizes only
    check_rule("LRN", [(1, 6, 2, 2)], attributes={"size": 4, "alpha": 2.0}, onnxruntime=False)


CASES = [
    case
    for module in (
        "layernormalization",
        "rmsnormalization",
        "instance_normalization",
        "groupnormalization",
        "lpnormalization",
        "meanvariancenormalization",
        "lrn",
    )
    for case in node_cases(module)
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_standard_cases(case: Case) -> None:
    drawn = [a.shape if a is not None else None for a in case.inputs]
    if case.operator == "MeanVarianceNormalization":
        drawn[0] = (1, *drawn[0][1:])  # type: ignore[index]
    check_rule(
        case.operator,
        drawn,
        attributes=case.attributes,
        opset=case.opset,
        outputs=case.n_outputs,
        onnxruntime=case.attributes.get("size", 1) % 2 == 1,
    )


def pair(graph: Graph, x: Array, x0: Array, seed: Array, backend: Reference | OnnxRuntime | None = None) -> Array:
    """Multipliers of one pair."""
    found = Runner(graph, Resolver(), backend or Reference()).multipliers([x[None]], [x0[None]], seed[None])[0]
    first: Array = found[0, 0, 0]
    return first


@pytest.mark.parametrize("centred", [True, False])
def test_replica(centred: bool) -> None:
    """``m_c = 2/(s + s0) m - <m, y + y0>/(s + s0) (c + c0)/(n (s + s0))``."""
    rng = np.random.default_rng(1)
    n, epsilon = 6, 0.25
    x, x0, seed = rng.normal(size=(3, n))
    scale = rng.normal(size=n)
    c, c0 = (z - z.mean() if centred else z for z in (x, x0))
    s, s0 = (np.sqrt((z * z).mean() + epsilon) for z in (c, c0))
    m = seed * scale
    expected = 2 / (s + s0) * m - m @ (c / s + c0 / s0) * (c + c0) / (n * (s + s0) ** 2)
    expected -= expected.mean() if centred else 0
    operator = "LayerNormalization" if centred else "RMSNormalization"
    graph = one_node_graph(operator, [x, scale], [0], {"axis": 0, "epsilon": epsilon}, opset=23)
    np.testing.assert_allclose(pair(graph, x, x0, seed), expected, atol=1e-12)


def joined(shape: tuple[int, ...], scale: Array, epsilon: float) -> Graph:
    """``x / sqrt(mean x^2 + epsilon) * scale`` over the last axis, as one joined node."""
    kept, double = (*shape[:-1], 1), np.dtype(np.float64)
    body = Graph(
        ("x", "scale"),
        ("y",),
        (
            Node("square", "Mul", ("x", "x"), ("xx",)),
            Node("mean", "ReduceMean", ("xx", "axes"), ("mean",)),
            Node("shift", "Add", ("mean", "epsilon"), ("shifted",)),
            Node("root", "Sqrt", ("shifted",), ("s",)),
            Node("quotient", "Div", ("x", "s"), ("unit",)),
            Node("product", "Mul", ("unit", "scale"), ("y",)),
        ),
        {"axes": np.array([-1]), "epsilon": np.array(epsilon)},
        {"x": shape, "xx": shape, "mean": kept, "shifted": kept, "s": kept, "unit": shape, "y": shape}
        | {"scale": scale.shape, "axes": (1,), "epsilon": ()},
        dict.fromkeys(["x", "xx", "mean", "shifted", "s", "unit", "y", "scale", "epsilon"], double)
        | {"axes": np.dtype(np.int64)},
        {"x": None, "scale": None},
        {"": 18},
    )
    attributes = {"axis": -1, "epsilon": epsilon, "body": body}
    node = Node("norm", "RMSNormalization", ("x", "scale"), ("y",), attributes, "deepshap_ir", 1)
    shapes = {"x": shape, "scale": scale.shape, "y": shape}
    opsets = {"": 18, "deepshap_ir": 1}
    return Graph(("x",), ("y",), (node,), {"scale": scale}, shapes, dict.fromkeys(shapes, double), {"x": 0}, opsets)


def test_a_joined_node() -> None:
    """Spelled out in an older opset, it has the rule of RMSNormalization."""
    graph = joined((2, 4), FIXED, 0.25)
    check_rule(graph)
    same = one_node_graph("RMSNormalization", [np.zeros((2, 4)), FIXED], [0], {"epsilon": 0.25}, opset=23)
    x, x0, seed = np.random.default_rng(2).normal(size=(3, 2, 4))
    np.testing.assert_allclose(pair(graph, x, x0, seed), pair(same, x, x0, seed), atol=1e-12)


@pytest.mark.parametrize("backend", [Reference(), OnnxRuntime()], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("operator", "attributes"),
    [("LpNormalization", {"p": 1}), ("LpNormalization", {"p": 2}), ("MeanVarianceNormalization", {"axes": [1]})],
)
def test_a_signal_of_zeros(operator: str, attributes: dict[str, Any], backend: Reference | OnnxRuntime) -> None:
    """There the result is 0 by definition: from it and to it contributions sum to delta, and on it they are 0."""
    x, x0, seed = np.array([[1.0, -2, 4, -3]]), np.zeros((1, 4)), np.array([[1.0, 2, 3, 4]])
    dtype = np.float64 if isinstance(backend, Reference) else np.float32
    graph = one_node_graph(operator, [x], [0], attributes).astype(dtype)
    size = {"p=1": 10, "p=2": np.sqrt(30), "axes": np.sqrt(7.5)}[
        "axes" if "axes" in attributes else f"p={attributes['p']}"
    ]
    m = pair(graph, x, x0, seed, backend)
    assert (m * x).sum() == pytest.approx((seed * x).sum() / size, rel=1e-5)
    np.testing.assert_allclose(pair(graph, x0, x, seed, backend), m, rtol=1e-5)
    np.testing.assert_array_equal(pair(graph, x0, x0, seed, backend), 0)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("ratio", "largest"), [(1.0, 0.1), (0.5, 0.1), (0.2, 0.25), (0.0, 0.35)])
def test_near_exact_shapley_values(centred: bool, ratio: float, largest: float) -> None:
    """Also where one signal is small, or 0: the median distance over 25 pairs, relative to the values."""
    rng = np.random.default_rng(5)
    graph = one_node_graph(
        "LayerNormalization" if centred else "RMSNormalization", [np.ones(7), np.ones(7)], [0], {"axis": 0}, opset=23
    )
    run = Runner(graph, Resolver(), Reference())
    distances = []
    for _ in range(25):
        x, x0, seed = rng.normal(size=(3, 7))
        x0 *= ratio

        def function(rows: Array, seed: Array = seed) -> Array:
            c = rows - rows.mean(1, keepdims=True) if centred else rows
            total: Array = c @ seed / np.sqrt((c * c).mean(1) + 1e-5)
            return total

        exact = exact_shapley(function, x, x0)
        found = run.multipliers([x[None]], [x0[None]], seed[None])[0][0, 0, 0] * (x - x0)
        distances.append(abs(found - exact).sum() / abs(exact).sum())
    assert np.median(distances) < largest


@pytest.mark.parametrize("operator", ["LayerNormalization", "RMSNormalization"])
def test_from_a_reference_of_zeros_in_float32(operator: str) -> None:
    """There 1/s is 316 times as large as at the sample: no contribution is."""
    x, x0 = 3 * np.random.default_rng(3).normal(size=(2, 1, 64))
    x0 *= 0
    graph = one_node_graph(operator, [x.astype(np.float32), np.ones(64, np.float32)], [0], opset=23)
    seed = np.random.default_rng(4).normal(size=(1, 64))
    m = pair(graph, x, x0, seed, OnnxRuntime())
    c = x - x.mean() if operator == "LayerNormalization" else x
    delta = (seed * c).sum() / np.sqrt((c * c).mean() + 1e-5)
    assert (m * x).sum() == pytest.approx(delta, rel=1e-5)
    assert abs(m * x).sum() < 5 * abs(seed * c).sum() / np.sqrt((c * c).mean())


def test_other_norms_are_refused() -> None:
    graph = one_node_graph("LpNormalization", [np.ones((1, 3))], [0], {"p": 3})
    with pytest.raises(RuleError, match="p=3: only 1 and 2 are defined"):
        Runner(graph, Resolver(), Reference())


def test_a_rule_that_is_slightly_wrong_is_rejected() -> None:
    def inflated(ctx: Context, m: Any) -> list[Value | None]:
        return [None if v is None else v * 1.0005 for v in layer_normalization(ctx, m)]

    with pytest.raises(AssertionError, match="miss the delta"):
        check_rule("LayerNormalization", [(1, 6), np.ones(6)], rule=inflated)
