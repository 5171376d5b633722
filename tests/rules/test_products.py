"""Products: the midpoint rule, in every form of MatMul, Gemm, Mul and Div."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepshap_ir.engine.backends import OnnxRuntime, Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.importing.importer import import_model
from deepshap_ir.testing import Runner, check_rule, exact_shapley, one_node_graph
from tests.onnx_text import parsed
from tests.rules.onnx_cases import Case, node_cases

RNG = np.random.default_rng(7)


def draw(*shape: int) -> Any:
    return RNG.normal(size=shape)


def away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], size=(1,) * len(shape))


@pytest.mark.parametrize("operator", ["Mul", "Div"])
@pytest.mark.parametrize("varying", [[0], [1], [0, 1]])
@pytest.mark.parametrize(
    "shapes", [[(1, 4), (1, 4)], [(1, 3, 4), (4,)], [(4,), (2, 3, 4)], [(1, 3, 1), (2, 1, 4)], [(), (2,)]]
)
def test_mul_div(operator: str, varying: list[int], shapes: list[tuple[int, ...]]) -> None:
    inputs = [s if i in varying else draw(*s) + 3.0 for i, s in enumerate(shapes)]
    check_rule(operator, inputs, varying=varying, domain={1: away_from_zero} if operator == "Div" else (-2.0, 2.0))


MATMUL = [
    [(1, 3), (3, 4)],
    [(2, 3), (3, 4)],
    [(3,), (3,)],
    [(3,), (3, 4)],
    [(2, 3), (3,)],
    [(3,), (5, 3, 4)],
    [(5, 2, 3), (3,)],
    [(1, 2, 3), (1, 3, 4)],
    [(1, 5, 2, 3), (5, 3, 4)],
    [(5, 1, 2, 3), (1, 6, 3, 2)],
    [(2, 3), (5, 3, 2)],
    [(5, 2, 3), (3, 2)],
]


@pytest.mark.parametrize("varying", [[0], [1], [0, 1]])
@pytest.mark.parametrize("shapes", MATMUL, ids=str)
def test_matmul(shapes: list[tuple[int, ...]], varying: list[int]) -> None:
    check_rule("MatMul", [s if i in varying else draw(*s) for i, s in enumerate(shapes)], varying=varying)


C_SHAPES: list[tuple[int, ...] | None] = [None, (), (4,), (2, 1), (2, 4)]


@pytest.mark.parametrize("varying", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("c", C_SHAPES, ids=str)
def test_gemm(c: tuple[int, ...] | None, varying: list[int]) -> None:
    if c is None and 2 in varying:
        varying = [i for i in varying if i != 2] or [0]
    for flip_a, flip_b in [(0, 0), (1, 1)] if len(varying) == 1 else [(0, 1), (1, 0)]:
        shapes = [(3, 2) if flip_a else (2, 3), (4, 3) if flip_b else (3, 4), *([] if c is None else [c])]
        scales = {"alpha": 0.5, "beta": -2.0} if flip_a != flip_b else {}
        inputs = [s if i in varying else draw(*s) for i, s in enumerate(shapes)]
        check_rule("Gemm", inputs, varying=varying, attributes={"transA": flip_a, "transB": flip_b, **scales})


CASES = [case for module in ("mul", "div", "matmul", "gemm", "einsum") for case in node_cases(module)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases_of_onnx(case: Case) -> None:
    varying = [i for i, a in enumerate(case.inputs) if a is not None]
    check_rule(
        case.operator,
        [None if a is None else a.shape for a in case.inputs],
        varying=varying,
        attributes=case.attributes,
        opset=case.opset,
        domain={1: away_from_zero} if case.operator == "Div" else (-2.0, 2.0),
    )


def contributions(operator: str, x: list[Any], x0: list[Any], dtype: Any = np.float64) -> list[Any]:
    """Of every operand, for one pair and the sum of the outputs."""
    graph = one_node_graph(operator, [np.asarray(a, dtype) for a in x], list(range(len(x))))
    runner = Runner(graph, Resolver(), Reference())
    seeds = np.ones((1, *graph.shapes[graph.outputs[0]]))
    found = runner.multipliers([np.asarray(a)[None] for a in x], [np.asarray(a)[None] for a in x0], seeds)
    return [m[0, 0, 0] * (np.asarray(a) - np.asarray(b)) for m, a, b in zip(found, x, x0, strict=True)]


def test_number_to_agree_on() -> None:
    """``x0 x1``, reference (1, 2), sample (3, 4): attribution (6, 4)."""
    assert [float(p) for p in contributions("Mul", [3.0, 4.0], [1.0, 2.0])] == [6.0, 4.0]


@pytest.mark.parametrize("operator", ["Mul", "Div"])
def test_exact_shapley(operator: str) -> None:
    rng = np.random.default_rng(0)
    x, x0 = rng.uniform(0.5, 2.0, (2, 2))
    expected = exact_shapley(lambda r: r[:, 0] * r[:, 1] if operator == "Mul" else r[:, 0] / r[:, 1], x, x0)
    np.testing.assert_allclose(contributions(operator, list(x), list(x0)), expected, atol=1e-14)


@pytest.mark.parametrize("operator", ["Mul", "Div"])
def test_integers(operator: str) -> None:
    """The quotient is truncated, so that the players are those of a step; deltas of 0 get nothing."""
    rng = np.random.default_rng(1)
    a, a0 = rng.integers(-9, 9, (2, 40))
    b, b0 = rng.integers(1, 5, (2, 40))
    b0[:10] = b[:10]
    found = np.stack(contributions(operator, [a, b], [a0, b0], np.int64))

    def f(rows: Any) -> Any:
        return rows[:, 0] * rows[:, 1] if operator == "Mul" else np.trunc(rows[:, 0] / rows[:, 1])

    pairs = zip(np.stack([a, b], 1), np.stack([a0, b0], 1), strict=True)
    expected = np.stack([exact_shapley(f, x, x0) for x, x0 in pairs], 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_denominator_of_zero_that_a_where_does_not_select() -> None:
    """``Where(b == 0, 0, a / b)``, as TensorFlow's divide without NaN is written."""
    body = "{ zero = Constant<value_float=0.0>() c = Equal(b, zero) q = Div(a, b) y = Where(c, zero, q) }"
    model = parsed(body, "(float[N,4] a, float[N,4] b) => (float[N,4] y)")
    a, b = np.array([[2, 2, 3, 4]], np.float32), np.array([[0, 2, 0, 5]], np.float32)
    a0, b0 = np.array([[1, 1, 1, 1]], np.float32), np.array([[4, 0, 0, 3]], np.float32)
    graph = import_model(model, {"a": a0, "b": b0}).graph
    runner = Runner(graph, Resolver(), OnnxRuntime())
    seeds = np.eye(4)[:, None]
    m_a, m_b = runner.multipliers([a[None], b[None]], [a0[None], b0[None]], seeds)
    change = np.array([0 - 1 / 4, 2 / 2 - 0, 0, 4 / 5 - 1 / 3], np.float32)
    total = (m_a[:, 0, 0] * (a - a0) + m_b[:, 0, 0] * (b - b0)).sum((1, 2))
    np.testing.assert_allclose(total, change, atol=1e-6)


def test_a_rule_that_is_slightly_wrong_is_seen() -> None:
    def wrong(ctx: Any, m: Any) -> Any:
        return [m[0] * ctx.mid_x(1) * 1.0005, m[0] * ctx.mid_x(0)]

    with pytest.raises(AssertionError, match="law 1"):
        check_rule("Mul", [(1, 4), (1, 4)], varying=[0, 1], rule=wrong)


@pytest.mark.parametrize("attributes", [{}, {"transA": 1}, {"transB": 1, "alpha": 0.5, "beta": 2.0}], ids=str)
@pytest.mark.parametrize("varying", [[0], [1], [0, 1, 2]], ids=str)
def test_gemm_runs_over_the_batch_at_once(attributes: dict[str, Any], varying: list[int]) -> None:
    """No loop over rows: the product of two matrices is run once for all of them."""
    shapes = [(3, 2) if attributes.get("transA") else (2, 3), (4, 3) if attributes.get("transB") else (3, 4), (2, 1)]
    graph = one_node_graph("Gemm", [np.ones(s) for s in shapes], varying, attributes)
    programs = Runner(graph, Resolver(), Reference()).plan.programs().values()
    emitted = {node.op_type for program in programs for node in program.model.graph.node}
    assert "Scan" not in emitted
