"""Sine, cosine, tangent and their inverses."""

import numpy as np
import pytest

from tests.rules.pairs import Case, Function, is_accurate_near_a_singularity, multipliers

CASES = [
    Case("Sin", np.sin, np.cos, -7.0, 7.0),
    Case("Cos", np.cos, lambda x: -np.sin(x), -7.0, 7.0),
    Case("Tan", np.tan, lambda x: np.cos(x) ** -2.0, -1.5, 1.5, within=True),
    Case("Atan", np.arctan, lambda x: 1.0 / (1.0 + x * x), -10.0, 10.0),
    Case("Asin", np.arcsin, lambda x: (1.0 - x * x) ** -0.5, -0.9999, 0.9999, within=True),
    Case("Acos", np.arccos, lambda x: -((1.0 - x * x) ** -0.5), -0.9999, 0.9999, within=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_laws(case: Case) -> None:
    case.obeys_the_laws()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_between_near_and_far_points(case: Case) -> None:
    case.is_accurate_near_and_far()


@pytest.mark.parametrize("case", [c for c in CASES if not c.within], ids=str)
def test_extreme_arguments(case: Case) -> None:
    case.is_accurate_up_to(1000)


@pytest.mark.parametrize(("operator", "f"), [("Asin", np.arcsin), ("Acos", np.arccos)])
def test_near_a_singularity(operator: str, f: Function) -> None:
    is_accurate_near_a_singularity(operator, f, [-1.0, -0.9999999, -0.5, 0.0, 0.5, 0.9999999, 1.0])


@pytest.mark.parametrize(("operator", "point"), [("Asin", -1.0), ("Acos", 1.0)])
def test_zero_between_two_points_of_infinite_slope(operator: str, point: float) -> None:
    assert multipliers(operator, [point], [point]) == [0.0]
