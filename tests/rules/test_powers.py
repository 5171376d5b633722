"""Powers of a varying base, of a varying exponent, and of both."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from deepshap_ir import DeepExplainer
from deepshap_ir.testing import check_rule, exact_shapley
from tests.rules.pairs import (
    Array,
    Case,
    Function,
    cast_after,
    contributions,
    grid,
    is_accurate_near_a_singularity,
    multipliers,
    worst_error,
)

WHOLE = [0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0]
POSITIVE = [-1.0, -2.0, -3.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.3, 1.7, 7.1, -1.3, 0.01]


CASES = [
    Case("Sqrt", np.sqrt, lambda x: 0.5 * x**-0.5, 1e-3, 6.0, within=True),
    Case("Reciprocal", lambda x: 1.0 / x, lambda x: -(x**-2.0), 1e-3, 6.0, within=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_laws_of_roots_and_reciprocals(case: Case) -> None:
    case.obeys_the_laws()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_roots_and_reciprocals_between_near_and_far_points(case: Case) -> None:
    case.is_accurate_near_and_far()


@pytest.mark.parametrize(
    ("operator", "f", "points"),
    [
        ("Sqrt", np.sqrt, [0.0, 1e-38, 1e-30, 1e-10, 1.0, 1e10, 3e38]),
        ("Reciprocal", lambda x: 1.0 / x, [1e-15, 1e-10, 1.0, 1e10, 1e18]),
    ],
)
def test_near_a_singularity(operator: str, f: Function, points: list[float]) -> None:
    is_accurate_near_a_singularity(operator, f, points)


def test_zero_between_two_zeros_under_a_root() -> None:
    """The slope is infinite and the delta 0; a finite multiplier keeps what lies upstream finite."""
    assert multipliers("Sqrt", [0.0], [0.0]) == [0.0]


@pytest.mark.parametrize("exponent", [*WHOLE, 40.0])
def test_laws_of_whole_powers(exponent: float) -> None:
    check_rule("Pow", [(1, 3, 4), np.array(exponent)], domain=(-1.5, 1.5), tolerance=1e-12, float32_tolerance=2e-5)


@pytest.mark.parametrize("exponent", POSITIVE)
def test_laws_on_positive_bases(exponent: float) -> None:
    exponent = float(np.float32(exponent))
    check_rule("Pow", [(1, 3, 4), np.array([exponent])], domain=(0.2, 3.0), tolerance=1e-12)


@pytest.mark.parametrize("exponent", [*WHOLE, *POSITIVE])
def test_float32_between_near_and_far_points(exponent: float) -> None:
    low, high = (-2.0, 2.0) if exponent in WHOLE else (0.05, 4.0)
    p = float(np.float32(exponent))
    x, x0 = grid(low, high, within=True)
    found = multipliers("Pow", x, x0, others=[np.array(p)])

    def derivative(x: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(p == 0, 0.0, p * x ** (p - 1))

    error, message = worst_error(found, lambda x: x**p, derivative, x, x0)
    assert error < 1e-6, message


def test_square_is_the_sum() -> None:
    assert multipliers("Pow", [3.0, 1.0], [4.0, -1.0], others=[np.array(2.0)]).tolist() == [7.0, 0.0]


@pytest.mark.parametrize("exponent", [0.5, 1.5, 0.3, 1.7, 2.0, 3.0, 1.0])
def test_from_and_at_zero(exponent: float) -> None:
    """From 0 the secant is ``x^(p-1)``; between two zeros it is the derivative, or 0 where that is infinite."""
    others = [np.array(exponent)]
    points = np.array([1e-20, 1e-3, 1.0, 1e3])
    found = multipliers("Pow", points, 0.0 * points, others=others)
    np.testing.assert_allclose(found, points ** (float(np.float32(exponent)) - 1), rtol=2e-6, atol=1e-38)
    assert multipliers("Pow", [0.0], [0.0], others=others) == [1.0 if exponent == 1 else 0.0]


def test_exponents_of_several_kinds() -> None:
    """Elements with exponents of their own: whole ones take any base."""
    whole = np.array([[2.0, 3.0, 1.0, 0.0, 4.0, 7.0]])
    check_rule("Pow", [(1, 5, 6), whole], domain=(-2.0, 2.0), tolerance=1e-12)
    check_rule("Pow", [(1, 5, 6), np.array([2.0, 0.5, -1.0, 0.0, 1.3, -2.5])], domain=(0.2, 2.0), tolerance=1e-12)
    zeros = np.zeros(6)
    np.testing.assert_array_equal(multipliers("Pow", zeros, zeros, others=[whole]), [0.0, 0.0, 1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("base", [np.array(2.0), np.array([[0.3], [1.0], [5.0]]), np.array([0.0, 0.5, 1.0, 2.0])])
def test_varying_exponent(base: Array) -> None:
    check_rule("Pow", [base, (1, 3, 4)], varying=[1], domain=(0.1, 3.0), tolerance=1e-12)


def test_whole_exponents_of_a_negative_base() -> None:
    def whole(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.integers(0, 4, shape).astype(np.float64)

    check_rule("Pow", [np.array([-2.0]), (1, 5)], varying=[1], domain=whole, derivative=False, tolerance=1e-12)


@pytest.mark.parametrize("shapes", [((1, 3, 4), (1, 3, 4)), ((1, 3, 4), (4,)), ((3, 1), (1, 3, 4)), ((), ())])
def test_both_varying(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    check_rule("Pow", list(shapes), varying=[0, 1], domain={0: (0.3, 2.0), 1: (-2.0, 3.0)}, tolerance=1e-12)


def test_both_are_players() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        x, x0 = rng.uniform([0.1, -3.0], [3.0, 3.0], (2, 2))
        phi = exact_shapley(lambda rows: rows[:, 0] ** rows[:, 1], x, x0)
        np.testing.assert_allclose(contributions("Pow", x, x0), phi, rtol=1e-10)


@pytest.mark.parametrize(("base", "exponent"), [(np.float32, np.int64), (np.float32, np.float64), (np.int32, np.int64)])
def test_operands_of_different_dtypes(base: Any, exponent: Any) -> None:
    """The exponent may be of any dtype; the power has the base's."""

    def whole(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.integers(1, 5, shape).astype(base)

    for power in (2, 3, 0):
        graph = cast_after("Pow", [np.ones((1, 4), base), np.array(power, exponent)])
        check_rule(graph, domain=whole, derivative=False, tolerance=1e-12)


EXPONENTS = [*(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"]


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("base", ["float32", "float64", "int32", "int64"])
def test_exponents_of_every_dtype_that_vary(base: str, exponent: str) -> None:
    """Also where onnxruntime has no kernel for the pair."""
    kind, other = (helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in (base, exponent))
    x, b = helper.make_tensor_value_info("x", kind, ["N", 3]), helper.make_tensor_value_info("b", other, ["N", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    nodes = [helper.make_node("Pow", ["x", "b"], ["p"]), helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT)]
    model = helper.make_model(
        helper.make_graph(nodes, "pow", [x, b], [y]), opset_imports=[helper.make_opsetid("", 15)], ir_version=8
    )
    a, a0 = np.array([[3, 2, 1]], base), np.array([[1, 2, 4]], base)
    b1, b0 = np.array([[2, 3, 3]], exponent), np.array([[3, 1, 3]], exponent)
    explainer = DeepExplainer(model, {"x": a0, "b": b0})
    of_a, of_b = (np.diagonal(phi[0]) for phi in explainer.shap_values({"x": a, "b": b1}))

    def f(x: Array, y: Array) -> Array:
        return x.astype(np.float64) ** y.astype(np.float64)

    np.testing.assert_allclose(of_a, (f(a, b1) - f(a0, b1) + f(a, b0) - f(a0, b0))[0] / 2, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_b, (f(a, b1) - f(a, b0) + f(a0, b1) - f(a0, b0))[0] / 2, rtol=1e-5, atol=1e-5)


def test_an_integer_power_is_rounded() -> None:
    """5^-1 is 0 and 5^0.5 is 2: steps, not powers."""

    def whole(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.integers(1, 9, shape).astype(np.int32)

    graph = cast_after("Pow", [np.ones((1, 4), np.int32), np.array(0.5, np.float32)])
    check_rule(graph, domain=whole, derivative=False, tolerance=1e-12)
    both = cast_after("Pow", [np.ones((1, 4), np.int32), np.ones((4,), np.int32)], [0, 1])
    check_rule(both, domain=lambda rng, shape: whole(rng, shape) % 4 + 1, derivative=False, tolerance=1e-12)
