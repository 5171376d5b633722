"""Steps and complements."""

from typing import Any

import numpy as np
import pytest

from deepshap_ir.testing import check_rule
from tests.rules.pairs import Array, cast_after, multipliers


@pytest.mark.parametrize("operator", ["Sign", "Floor", "Ceil", "Round"])
@pytest.mark.parametrize("shape", [(), (1, 3, 4)])
def test_steps_sum_to_delta(operator: str, shape: tuple[int, ...]) -> None:
    check_rule(operator, [shape], domain=(-3.0, 3.0), derivative=False, tolerance=1e-12)


@pytest.mark.parametrize("operator", ["IsInf", "IsNaN"])
def test_finite_numbers_are_neither_infinite_nor_nan(operator: str) -> None:
    graph = cast_after(operator, [np.ones((1, 4))])
    found = check_rule(graph, derivative=False)
    assert not np.any(found.multipliers)


def test_no_multiplier_for_an_infinite_sample() -> None:
    """Nothing finite times an infinite delta is 1; so the answer is not finite, and no silent 0."""
    assert not np.isfinite(multipliers("Sign", [np.nan], [1.0])).any()


@pytest.mark.parametrize(
    ("operator", "x", "x0", "multiplier"),
    [
        ("Floor", 1.25, 0.75, 2.0),
        ("Floor", 1.75, 1.25, 0.0),
        ("Round", 0.5, -0.5, 0.0),
        ("Round", 1.5, 0.5, 2.0),
        ("Sign", 2.0, -2.0, 0.5),
        ("Sign", 0.5, 0.0, 2.0),
        ("Ceil", 1.25, 1.25, 0.0),
    ],
)
def test_secants(operator: str, x: float, x0: float, multiplier: float) -> None:
    assert multipliers(operator, [x], [x0]) == [multiplier]


@pytest.mark.parametrize(
    ("operator", "dtype", "low", "high"),
    [
        ("Not", bool, 0, 2),
        ("BitwiseNot", np.int32, -5, 6),
        ("BitwiseNot", np.uint8, 0, 256),
        ("Sign", np.int32, -3, 4),
    ],
)
def test_integers_and_truth_values(operator: str, dtype: Any, low: int, high: int) -> None:
    def drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.integers(low, high, shape).astype(dtype)

    check_rule(cast_after(operator, [np.zeros((1, 3, 4), dtype)]), domain=drawn, derivative=False, tolerance=1e-12)
