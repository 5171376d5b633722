"""Element-wise functions of two varying operands against exact Shapley values."""

from typing import Any

import numpy as np
import pytest

from deepshap_ir.testing import check_rule, exact_shapley
from tests.rules.pairs import Array, cast_after, contributions


def small(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(-2, 3, shape).astype(np.float64)


def whole(dtype: Any, low: int, high: int) -> Any:
    return lambda rng, shape: rng.integers(low, high, shape).astype(dtype)


COMPARISONS = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
OPERATORS: list[tuple[str, dict[str, Any], Any, Any]] = [
    # operator, attributes, how the operands are drawn, the function in numpy
    *(
        (name, {}, small, f)
        for name, f in zip(COMPARISONS, [np.equal, np.greater, np.greater_equal, np.less, np.less_equal], strict=True)
    ),
    *(
        (name, {}, whole(bool, 0, 2), f)
        for name, f in zip(["And", "Or", "Xor"], [np.logical_and, np.logical_or, np.logical_xor], strict=True)
    ),
    *(
        (name, {}, whole(np.int32, -9, 9), f)
        for name, f in zip(
            ["BitwiseAnd", "BitwiseOr", "BitwiseXor"], [np.bitwise_and, np.bitwise_or, np.bitwise_xor], strict=True
        )
    ),
    ("BitShift", {"direction": "LEFT"}, whole(np.uint32, 0, 7), np.left_shift),
    ("BitShift", {"direction": "RIGHT"}, whole(np.uint8, 0, 7), np.right_shift),
    ("Mod", {}, whole(np.int32, 1, 9), np.mod),
    ("Mod", {"fmod": 1}, whole(np.int64, 1, 9), np.fmod),
    ("Mod", {"fmod": 1}, lambda rng, shape: rng.uniform(0.5, 3.0, shape), np.fmod),
]


def label(value: Any) -> str:
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(("operator", "attributes", "drawn", "f"), OPERATORS, ids=label)
@pytest.mark.parametrize("varying", [[0], [1], [0, 1]])
def test_laws(operator: str, attributes: dict[str, Any], drawn: Any, f: Any, varying: list[int]) -> None:
    rng = np.random.default_rng(1)
    shapes = [(1, 3, 4), (3, 1)] if varying != [1] else [(1,), (1, 3, 4)]
    graph = cast_after(operator, [drawn(rng, shape) for shape in shapes], varying, attributes)
    check_rule(graph, domain=drawn, derivative=False, tolerance=1e-12)


@pytest.mark.parametrize(("operator", "attributes", "drawn", "f"), OPERATORS, ids=label)
def test_exact_shapley_values(operator: str, attributes: dict[str, Any], drawn: Any, f: Any) -> None:
    rng = np.random.default_rng(2)
    for _ in range(25):
        x, x0 = drawn(rng, (2,)), drawn(rng, (2,))
        phi = exact_shapley(lambda rows: f(rows[:, 0], rows[:, 1]).astype(np.float64), x, x0)
        np.testing.assert_allclose(contributions(operator, x, x0, attributes), phi, atol=1e-12)


def test_the_derivatives_of_mod() -> None:
    """``a - b trunc(a / b)``: 1 and minus the whole quotient, also where the delta is 0."""
    checked = check_rule(
        "Mod", [(1, 6), (6,)], varying=[0, 1], attributes={"fmod": 1}, domain={0: (4.0, 9.0), 1: (2.0, 3.0)}
    )
    assert checked.derivative_error is not None
    assert checked.derivative_error < 1e-6
