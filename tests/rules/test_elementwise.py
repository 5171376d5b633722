"""Smooth functions of one number: the laws, and the accuracy of the multipliers in float32."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from pairs import Function, grid, multipliers, worst_error

from deepshap_ir.extend import Context, Value
from deepshap_ir.rules.elementwise import sigmoid
from deepshap_ir.testing import check_rule

erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class Case:
    """An operator, its function and derivative, the range of its argument, and the opset where it appears."""

    operator: str
    f: Function
    derivative: Function
    low: float = -12.0
    high: float = 12.0
    within: bool = False
    opset: int = 18
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.operator + "".join(f"-{v}" for v in self.attributes.values())


def logistic(x: Any) -> Any:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def mish_derivative(x: Any) -> Any:
    t = np.tanh(np.logaddexp(0.0, x))
    return t + x * (1.0 - t * t) * logistic(x)


def normal(x: Any) -> Any:
    return 0.5 * (1.0 + erf(x / math.sqrt(2.0)))


def gelu_tanh_derivative(x: Any) -> Any:
    c, k = math.sqrt(2.0 / math.pi), 0.044715
    t = np.tanh(c * (x + k * x**3))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * k * x * x)


ALPHA = float(np.float32(1.7))
CASES = [
    Case("Tanh", np.tanh, lambda x: 1.0 - np.tanh(x) ** 2, -6.0, 6.0),
    Case("Sigmoid", logistic, lambda x: logistic(x) * logistic(-x)),
    Case(
        "Swish",
        lambda x: x * logistic(x),
        lambda x: logistic(x) * (1.0 + x * logistic(-x)),
        opset=24,
    ),
    Case(
        "Swish",
        lambda x: x * logistic(ALPHA * x),
        lambda x: logistic(ALPHA * x) * (1.0 + ALPHA * x * logistic(-ALPHA * x)),
        opset=24,
        attributes={"alpha": ALPHA},
    ),
    Case("Mish", lambda x: x * np.tanh(np.logaddexp(0.0, x)), mish_derivative),
    Case("Softplus", lambda x: np.logaddexp(0.0, x), logistic, -30.0, 30.0),
    Case("Softsign", lambda x: x / (1.0 + abs(x)), lambda x: (1.0 + abs(x)) ** -2.0, -6.0, 6.0),
    Case("Exp", np.exp, np.exp, -10.0, 10.0),
    Case("Sinh", np.sinh, np.cosh, -6.0, 6.0),
    Case("Cosh", np.cosh, np.sinh, -6.0, 6.0),
    Case("Log", np.log, lambda x: 1.0 / x, 1e-3, 6.0, within=True),
    Case("Asinh", np.arcsinh, lambda x: (1.0 + x * x) ** -0.5, -6.0, 6.0),
    Case("Acosh", np.arccosh, lambda x: (x * x - 1.0) ** -0.5, 1.001, 6.0, within=True),
    Case("Atanh", np.arctanh, lambda x: 1.0 / (1.0 - x * x), -0.999, 0.999, within=True),
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
    Case("Sin", np.sin, np.cos, -7.0, 7.0),
    Case("Cos", np.cos, lambda x: -np.sin(x), -7.0, 7.0),
    Case("Tan", np.tan, lambda x: np.cos(x) ** -2.0, -1.5, 1.5, within=True),
    Case("Atan", np.arctan, lambda x: 1.0 / (1.0 + x * x), -10.0, 10.0),
    Case("Asin", np.arcsin, lambda x: (1.0 - x * x) ** -0.5, -0.9999, 0.9999, within=True),
    Case("Acos", np.arccos, lambda x: -((1.0 - x * x) ** -0.5), -0.9999, 0.9999, within=True),
    Case("Sqrt", np.sqrt, lambda x: 0.5 * x**-0.5, 1e-3, 6.0, within=True),
    Case("Reciprocal", lambda x: 1.0 / x, lambda x: -(x**-2.0), 1e-3, 6.0, within=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_laws(case: Case) -> None:
    low, high = (case.low, case.high) if case.within else (-3.0, 3.0)
    margin = 0.05 * (high - low) if case.within else 0.0
    checked = check_rule(
        case.operator,
        [(1, 3, 2, 2)],
        attributes=case.attributes,
        opset=case.opset,
        domain=(low + margin, high - margin),
        tolerance=1e-12,
    )
    assert checked.float32_error is not None
    assert checked.float32_error < 2e-6


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (1, 2, 1, 2, 2)])
@pytest.mark.parametrize("operator", ["Sigmoid", "Erf", "Softplus"])
def test_any_rank(operator: str, shape: tuple[int, ...]) -> None:
    check_rule(operator, [shape])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_between_near_and_far_points(case: Case) -> None:
    """The error is a few roundings for every delta from 1e-7 to 10, and where it is 0 the derivative's."""
    x, x0 = grid(case.low, case.high, within=case.within)
    error, message = worst_error(
        multipliers(case.operator, x, x0, case.attributes, opset=case.opset), case.f, case.derivative, x, x0
    )
    assert error < 1e-6, message


def test_the_plain_secant_would_fail_there() -> None:
    """What the bound above guards against: (f(x) - f(x0)) / (x - x0) in float32."""
    x, x0 = grid(-12.0, 12.0)
    with np.errstate(invalid="ignore"):
        y, y0 = (np.float32(1.0) / (np.float32(1.0) + np.exp(-v)) for v in (x, x0))
        plain = np.where(x == x0, logistic(x) * logistic(-x), (y - y0) / (x - x0))
    assert worst_error(plain, logistic, lambda x: logistic(x) * logistic(-x), x, x0)[0] > 0.05


EXTREMES = np.array([-1000, -110, -88, -87.3, -50, -20, -9, -0.5, 0, 1e-3, 0.5, 9, 20, 50, 80.5, 88, 110, 1000])
EVERYWHERE = [c for c in CASES if not c.within and c.operator not in ("Exp", "Sinh", "Cosh")]


@pytest.mark.parametrize("case", EVERYWHERE, ids=str)
def test_extreme_arguments(case: Case) -> None:
    """Saturated, overflowing and underflowing arguments keep their accuracy."""
    x, x0 = (a.ravel().astype(np.float32) for a in np.meshgrid(EXTREMES, EXTREMES))
    found = multipliers(case.operator, x, x0, case.attributes, opset=case.opset)
    with np.errstate(over="ignore"):
        error, message = worst_error(found, case.f, case.derivative, x, x0)
    assert error < 1e-6, message


@pytest.mark.parametrize("case", [c for c in CASES if c.operator in ("Exp", "Sinh", "Cosh")], ids=str)
def test_up_to_overflow(case: Case) -> None:
    """As far as f itself is finite, 88 in float32."""
    kept = EXTREMES[abs(EXTREMES) <= 88]
    x, x0 = (a.ravel().astype(np.float32) for a in np.meshgrid(kept, kept))
    error, message = worst_error(multipliers(case.operator, x, x0), case.f, case.derivative, x, x0)
    assert error < 1e-6, message


@pytest.mark.parametrize(
    ("operator", "f", "points"),
    [
        ("Sqrt", np.sqrt, [0.0, 1e-38, 1e-30, 1e-10, 1.0, 1e10, 3e38]),
        ("Log", np.log, [1e-38, 1e-30, 1e-10, 1.0, 1e10, 3e38]),
        ("Reciprocal", lambda x: 1.0 / x, [1e-15, 1e-10, 1.0, 1e10, 1e18]),
        ("Acosh", np.arccosh, [1.0, 1.0000001, 1.1, 2.0, 1e10, 1e30]),
        ("Asin", np.arcsin, [-1.0, -0.9999999, -0.5, 0.0, 0.5, 0.9999999, 1.0]),
        ("Acos", np.arccos, [-1.0, -0.9999999, -0.5, 0.0, 0.5, 0.9999999, 1.0]),
        ("Atanh", np.arctanh, [-0.9999999, -0.5, 0.0, 0.5, 0.9999999]),
    ],
)
def test_near_a_singularity(operator: str, f: Function, points: list[float]) -> None:
    x, x0 = (a.ravel().astype(np.float32) for a in np.meshgrid(points, points))
    apart = x != x0
    a, b = x[apart].astype(np.float64), x0[apart].astype(np.float64)
    found = multipliers(operator, x, x0)
    np.testing.assert_allclose(found[apart], (f(a) - f(b)) / (a - b), rtol=1e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("operator", "point"), [("Sqrt", 0.0), ("Acosh", 1.0), ("Asin", -1.0), ("Acos", 1.0)])
def test_zero_between_two_points_of_infinite_slope(operator: str, point: float) -> None:
    """The delta is 0 there, and a finite multiplier keeps what lies upstream finite."""
    assert multipliers(operator, [point], [point]) == [0.0]


@pytest.mark.parametrize(("operator", "x"), [("Log", -1.0), ("Sqrt", -1.0), ("Reciprocal", 0.0), ("Exp", 200.0)])
def test_an_unused_branch_may_be_infinite(operator: str, x: float) -> None:
    """Where the multiplier of the output is 0, that of the input is too, even if the secant is not finite."""
    assert multipliers(operator, [x, 0.5], [2.0, 2.0], seed=0.0).tolist() == [0.0, 0.0]
    assert np.isfinite(multipliers(operator, [x, 0.5], [2.0, 2.0])).tolist() == [False, True]


def test_known_answer() -> None:
    """2 tanh(x1) + 2 tanh(x2 - 1.5) from (0, 0) to (-1, -2)."""
    found = 2.0 * multipliers("Tanh", [-1.0, -3.5], [0.0, -1.5])
    np.testing.assert_allclose(found, [1.523188, 0.093030], atol=1e-6)


def test_the_checker_sees_a_rule_that_is_slightly_wrong() -> None:
    def wrong(ctx: Context, m: Any) -> Value:
        return m[0] * sigmoid(ctx) * 1.0005

    with pytest.raises(AssertionError, match="law 1"):
        check_rule("Sigmoid", [(1, 4)], rule=wrong)
