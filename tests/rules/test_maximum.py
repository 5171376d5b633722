"""Max, Min, ReduceMax, ReduceMin, GlobalMaxPool: the laws, exact Shapley values, the winners' rule, ties."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from deepshap_ir.engine.backends import OnnxRuntime, Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.extend import Array
from deepshap_ir.testing import Runner, check_rule, exact_shapley, one_node_graph
from tests.rules.onnx_cases import Case, node_cases

SHAPLEY: dict[str, Any] = {}
WINNERS = {"max": "shap"}


def contributions(
    operator: str, inputs: Sequence[Array], x: Sequence[Array], x0: Sequence[Array], options: Mapping[str, Any]
) -> list[Array]:
    """Contributions of one pair, summed over all outputs."""
    graph = one_node_graph(operator, inputs, range(len(x)))
    seed = np.ones((1, *graph.shapes[graph.outputs[0]]))
    run = Runner(graph, Resolver((), options), Reference())
    found = run.multipliers([a[None] for a in x], [a[None] for a in x0], seed)
    return [m[0, 0, 0] * (a - a0) for m, a, a0 in zip(found, x, x0, strict=True)]


@pytest.mark.parametrize("operator", ["Max", "Min"])
@pytest.mark.parametrize("options", [SHAPLEY, WINNERS], ids=["shapley", "shap"])
@pytest.mark.parametrize(
    ("inputs", "varying"),
    [
        ([(2, 3)], [0]),
        ([(2, 3), np.array([0.1, -0.2, 0.3])], [0]),
        ([np.array([[0.5], [-0.5]]), (3,)], [1]),
        ([(3,), np.array(0.2), np.array([[0.1], [-0.3]])], [0]),
        ([(2, 3), (3,)], [0, 1]),
        ([(2, 1), (3,), np.array(0.2)], [0, 1]),
        ([(2, 1), (), (1, 3)], [0, 1, 2]),
        ([(2, 3), (2, 3), (2, 3), np.full((2, 3), 0.3), (3,)], [0, 1, 2, 4]),
    ],
)
def test_operands(operator: str, options: dict[str, Any], inputs: list[Any], varying: list[int]) -> None:
    check_rule(operator, inputs, varying=varying, options=options)


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("options", [SHAPLEY, WINNERS], ids=["shapley", "shap"])
@pytest.mark.parametrize(("axes", "keepdims"), [(None, 0), (None, 1), ([1], 0), ([-1], 1), ([2, 0], 0), ([0, -2], 1)])
@pytest.mark.parametrize("opset", [18, 20])
def test_axes(operator: str, options: dict[str, Any], axes: list[int] | None, keepdims: int, opset: int) -> None:
    given = [] if axes is None else [np.array(axes)]
    check_rule(operator, [(2, 3, 4), *given], attributes={"keepdims": keepdims}, options=options, opset=opset)


@pytest.mark.parametrize("shape", [(1, 2, 5), (2, 3, 4, 3), (1, 2, 2, 3, 2)], ids=str)
def test_global_max_pool(shape: tuple[int, ...]) -> None:
    check_rule("GlobalMaxPool", [shape])


def test_nothing_is_reduced() -> None:
    attributes = {"noop_with_empty_axes": 1}
    checked = check_rule("ReduceMax", [(2, 3), np.array([], np.int64)], attributes=attributes)
    assert checked.gap < 1e-12
    check_rule("ReduceMin", [(2, 1, 3), np.array([1])], attributes={"keepdims": 0})


CASES = [c for m in ("max", "min", "reducemax", "reducemin", "globalmaxpool") for c in node_cases(m)]


@pytest.mark.parametrize("case", [c for c in CASES if "empty_set" not in c.name], ids=str)
def test_standard_cases(case: Case) -> None:
    drawn = [a.shape if a is not None and a.dtype == np.float32 else a for a in case.inputs]
    varying = [i for i, a in enumerate(drawn) if isinstance(a, tuple)]
    check_rule(case.operator, drawn, varying=varying, attributes=case.attributes, opset=case.opset)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("kind", ["normal", "ties", "one side"])
def test_exact_shapley_values(operator: str, n: int, kind: str) -> None:
    """Also where numbers are equal, and where all rise."""
    rng = np.random.default_rng(n)
    reduce = np.max if operator == "ReduceMax" else np.min
    for _ in range(10):
        x, x0 = rng.integers(-2, 3, size=(2, n)) * 1.0 if kind == "ties" else rng.normal(size=(2, n))
        if kind == "one side":
            x, x0 = x + 3, x0 - 3
        found = contributions(operator, [x], [x], [x0], SHAPLEY)[0]
        np.testing.assert_allclose(found, exact_shapley(lambda z: reduce(z, axis=1), x, x0), atol=1e-10)


@pytest.mark.parametrize("operator", ["Max", "Min"])
@pytest.mark.parametrize("varying", [1, 2, 3, 4])
@pytest.mark.parametrize("fixed", [0, 1, 2])
def test_exact_shapley_values_of_operands(operator: str, varying: int, fixed: int) -> None:
    rng = np.random.default_rng(10 * varying + fixed)
    reduce = np.max if operator == "Max" else np.min
    for _ in range(10):
        constants = rng.integers(-3, 4, size=fixed) / 2
        x, x0 = rng.integers(-3, 4, size=(2, varying)) / 2
        inputs = [*map(np.array, x), *map(np.array, constants)]

        def function(rows: Array, constants: Array = constants) -> Array:
            result: Array = reduce(np.concatenate([rows, np.tile(constants, (len(rows), 1))], axis=1), axis=1)
            return result

        found = contributions(operator, inputs, inputs[:varying], [*map(np.array, x0)], SHAPLEY)
        np.testing.assert_allclose(np.array(found), exact_shapley(function, x, x0), atol=1e-10)


def test_an_operand_that_occurs_twice() -> None:
    """``Max(x, x, b)`` is ``Max(x, b)``; its operands are players of their own."""
    graph = one_node_graph("Max", [np.array([1.0]), np.array([1.0])], [0, 1])
    same = Runner(graph, Resolver(), Reference())
    x, x0 = np.array([[3.0]]), np.array([[1.0]])
    found = same.multipliers([x, x], [x0, x0], np.ones((1, 1)))
    np.testing.assert_allclose(np.concatenate(found).ravel(), [0.5, 0.5])


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
def test_the_winners_rule(operator: str) -> None:
    """To the first winner of the sample where the value rises (falls, for a minimum), else to the reference's."""
    sign = 1 if operator == "ReduceMax" else -1
    x, x0 = sign * np.array([3.0, 5, 5, 0]), sign * np.array([1.0, 2, 4, 4])
    found = contributions(operator, [x], [x], [x0], WINNERS)[0]
    np.testing.assert_allclose(found, [0, sign, 0, 0])
    found = contributions(operator, [x], [x0], [x], WINNERS)[0]
    np.testing.assert_allclose(found, [0, -sign, 0, 0])


@pytest.mark.parametrize("n", [40, 900])
def test_many_players_in_float32(n: int) -> None:
    """Multipliers lie in [0, 1], and sum to delta."""
    rng = np.random.default_rng(n)
    x, x0 = rng.normal(size=(2, 1, 3, n))
    graph = one_node_graph("ReduceMax", [x[0].astype(np.float32), np.array([1])], [0])
    m = Runner(graph, Resolver(), OnnxRuntime()).multipliers([x], [x0], np.ones((1, 3, 1)))[0][0, 0, 0]
    assert m.min() >= 0
    assert m.max() <= 1 + 1e-6
    total = (m * (x - x0)[0]).sum(-1)
    np.testing.assert_allclose(total, x[0].max(-1) - x0[0].max(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "x0", "expected"),
    [
        ([2.0, 1, 0], [2.0, 1, 0], [1, 0, 0]),
        ([2.0, 2, 0], [2.0, 2, 0], [0.5, 0.5, 0]),
        ([2.0, 5, 0], [2.0, 1, 0], [0.5, 0.75, 0]),
    ],
)
def test_at_zero_delta(x: list[float], x0: list[float], expected: list[float]) -> None:
    """An element that does not move has the multiplier that it would have if it moved a little."""
    graph = one_node_graph("ReduceMax", [np.array(x)], [0], {"keepdims": 0})
    run = Runner(graph, Resolver(), Reference())
    m = run.multipliers([np.array([x])], [np.array([x0])], np.ones(1))[0][0, 0, 0]
    np.testing.assert_allclose(m, expected, atol=1e-12)


@pytest.mark.parametrize("operator", ["Max", "Min"])
@pytest.mark.parametrize("bound", [-np.inf, np.inf])
def test_an_infinite_bound(operator: str, bound: float) -> None:
    """A bound that never or always decides."""
    x, x0 = np.array([1.0, 2]), np.array([0.5, 3])
    found = contributions(operator, [x, np.array(bound)], [x], [x0], SHAPLEY)[0]
    free = (operator == "Max") == (bound < 0)
    np.testing.assert_allclose(found, x - x0 if free else [0, 0])


def test_of_integers() -> None:
    """Large ones too: 3 and 5 of 2^20 are exact in float32."""
    scale = 1 << 20

    def integers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.integers(-5, 6, size=shape) * scale

    graph = one_node_graph("ReduceMax", [np.zeros((2, 4), np.int64), np.array([1])], [0])
    run = Runner(graph, Resolver(), OnnxRuntime())
    rng = np.random.default_rng(0)
    x, x0 = integers(rng, (3, 2, 4)), integers(rng, (2, 2, 4))
    m = run.multipliers([x], [x0], np.ones((1, 2, 1)))[0][0]
    delta = x.max(-1)[:, None] - x0.max(-1)[None]
    np.testing.assert_allclose((m * (x[:, None] - x0[None])).sum(-1), delta, rtol=1e-5, atol=scale * 1e-5)


def test_of_truth_values() -> None:
    """From opset 20 on, ReduceMax is also "any". The third, had it become true, would be one of three."""
    graph = one_node_graph("ReduceMax", [np.zeros((1, 3), bool), np.array([1])], [0], opset=20)
    run = Runner(graph, Resolver(), Reference())
    x, x0 = np.array([[[True, True, False]]]), np.array([[[False, False, False]]])
    m = run.multipliers([x], [x0], np.ones((1, 1, 1)))[0][0, 0, 0, 0]
    np.testing.assert_allclose(m, [1 / 2, 1 / 2, 1 / 3], rtol=1e-6)
