"""Smooth functions without an exact secant."""

import math
from typing import Any

import numpy as np
import pytest

from tests.rules.pairs import Case

erf = np.vectorize(math.erf, otypes=[np.float64])


def normal(x: Any) -> Any:
    return 0.5 * (1.0 + erf(x / math.sqrt(2.0)))


def gelu_tanh_derivative(x: Any) -> Any:
    c, k = math.sqrt(2.0 / math.pi), 0.044715
    t = np.tanh(c * (x + k * x**3))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * k * x * x)


CASES = [
    Case("Erf", erf, lambda x: 2.0 / math.sqrt(math.pi) * np.exp(-x * x), -5.0, 5.0),
    Case(
        "Gelu",
        lambda x: x * normal(x),
        lambda x: normal(x) + x * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi),
        -7.0,
        7.0,
        opset=20,
    ),
    Case(
        "Gelu",
        lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
        gelu_tanh_derivative,
        -7.0,
        7.0,
        opset=20,
        attributes={"approximate": "tanh"},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_laws(case: Case) -> None:
    case.obeys_the_laws()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_between_near_and_far_points(case: Case) -> None:
    case.is_accurate_near_and_far()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_extreme_arguments(case: Case) -> None:
    case.is_accurate_up_to(1000)
