"""Piecewise linear activations, and those with an exponential piece."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from deepshap_ir.testing import check_rule, exact_shapley
from tests.rules.pairs import Array, Function, cast_after, contributions, grid, multipliers, worst_error


def number(value: float) -> float:
    """An attribute as the runtime reads it."""
    return float(np.float32(value))


@dataclass(frozen=True)
class Case:
    """An operator with its attributes and constant inputs, its function, its derivative, and its kinks."""

    operator: str
    f: Function
    derivative: Function
    kinks: tuple[float, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    others: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return "-".join([self.operator, *map(str, self.attributes.values()), *map(str, self.others)])


def leaky(alpha: float) -> tuple[Function, Function]:
    return lambda x: np.where(x > 0, x, alpha * x), lambda x: np.where(x > 0, 1.0, alpha)


def clip(low: float, high: float) -> tuple[Function, Function]:
    return lambda x: np.clip(x, low, high), lambda x: 1.0 * ((x > low) & (x < high))


def hard_sigmoid(alpha: float, beta: float) -> tuple[Function, Function]:
    return lambda x: np.clip(alpha * x + beta, 0, 1), lambda x: alpha * (abs(alpha * x + beta - 0.5) < 0.5)


def shrink(size: float, bias: float) -> tuple[Function, Function]:
    return lambda x: np.where(abs(x) > size, x - bias * np.sign(x), 0.0), lambda x: 1.0 * (abs(x) > size)


def exponential(alpha: float, beta: float, gamma: float) -> tuple[Function, Function]:
    return (
        lambda x: gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / beta)),
        lambda x: gamma * np.where(x > 0, 1.0, alpha / beta * np.exp(np.minimum(x, 0) / beta)),
    )


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


SELU = 1.67326319217681884765625, 1.0, 1.05070102214813232421875
SIXTH = number(1 / 6)
CASES = [
    Case("Relu", *leaky(0.0), (0,)),
    Case("Abs", abs, np.sign, (0,)),
    Case("LeakyRelu", *leaky(number(0.01)), (0,)),
    Case("LeakyRelu", *leaky(-0.5), (0,), {"alpha": -0.5}),
    Case("LeakyRelu", *leaky(1.5), (0,), {"alpha": 1.5}),
    Case("PRelu", *leaky(0.25), (0,), {}, (scalar(0.25),)),
    Case("Clip", *clip(0, 6), (0, 6), {}, (scalar(0), scalar(6))),
    Case("Clip", *clip(-1.3, 0.7), (-1.3, 0.7), {}, (np.array(-1.3), np.array(0.7))),
    Case("Clip", *clip(2, 1), (), {}, (scalar(2), scalar(1))),
    Case("Clip", *clip(1, np.inf), (1,), {}, (scalar(1),)),
    Case("Clip", *clip(-np.inf, 0.5), (0.5,), {}, (None, scalar(0.5))),
    Case("Clip", *clip(-np.inf, 0.5), (0.5,), {}, (scalar(-np.inf), scalar(0.5))),
    Case("Clip", *clip(-np.inf, 0.5), (0.5,), {}, (scalar(-3.4028235e38), scalar(0.5))),
    Case("Clip", *clip(-np.inf, np.inf), ()),
    Case("HardSigmoid", *hard_sigmoid(number(0.2), 0.5), (-2.5, 2.5)),
    Case("HardSigmoid", *hard_sigmoid(SIXTH, 0.5), (-3, 3), {"alpha": SIXTH}),
    Case("HardSigmoid", *hard_sigmoid(-0.5, 0.25), (-1.5, 0.5), {"alpha": -0.5, "beta": 0.25}),
    Case("HardSigmoid", *hard_sigmoid(0.0, 0.25), (), {"alpha": 0.0, "beta": 0.25}),
    Case(
        "HardSwish",
        lambda x: x * np.clip(SIXTH * x + 0.5, 0, 1),
        lambda x: np.where(abs(x) < 3, 2 * SIXTH * x + 0.5, x >= 3),
        (-3, 3),
    ),
    Case("ThresholdedRelu", lambda x: np.where(x > 1, x, 0.0), lambda x: 1.0 * (x > 1), (1,)),
    Case("ThresholdedRelu", lambda x: np.where(x > -2, x, 0.0), lambda x: 1.0 * (x > -2), (-2,), {"alpha": -2.0}),
    Case("Shrink", *shrink(0.5, 0.0), (-0.5, 0.5)),
    Case("Shrink", *shrink(1.5, 1.5), (-1.5, 1.5), {"lambd": 1.5, "bias": 1.5}),
    Case("Shrink", *shrink(1.5, number(0.3)), (-1.5, 1.5), {"lambd": 1.5, "bias": number(0.3)}),
    Case("Elu", *exponential(1.0, 1.0, 1.0), ()),
    Case("Elu", *exponential(2.0, 1.0, 1.0), (0,), {"alpha": 2.0}),
    Case("Celu", *exponential(1.0, 1.0, 1.0), ()),
    Case("Celu", *exponential(0.5, 0.5, 1.0), (), {"alpha": 0.5}),
    Case("Selu", *exponential(*SELU), (0,)),
    Case("Selu", *exponential(2.0, 1.0, 3.0), (0,), {"alpha": 2.0, "gamma": 3.0}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_laws(case: Case) -> None:
    check_rule(
        case.operator,
        [(1, 3, 2, 2), *case.others],
        attributes=case.attributes,
        domain=(-5.0, 5.0),
        tolerance=1e-12,
        float32_tolerance=2e-6,
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_between_near_and_far_points(case: Case) -> None:
    """A few roundings for every delta, except that a kink itself is rounded."""
    x, x0 = grid(-6.0, 6.0)
    at_kink = np.zeros(len(x), bool)
    for kink in case.kinks:
        at_kink |= (np.minimum(x, x0) <= kink + 1e-6) & (np.maximum(x, x0) >= kink - 1e-6) & (abs(x - x0) < 1e-2)
    x, x0 = x[~at_kink], x0[~at_kink]
    found = multipliers(case.operator, x, x0, case.attributes, case.others)
    error, message = worst_error(found, case.f, case.derivative, x, x0)
    assert error < 1e-6, message


@pytest.mark.parametrize("operator", ["Relu", "LeakyRelu", "Abs", "HardSwish", "Elu", "Selu"])
def test_extreme_arguments(operator: str) -> None:
    case = next(c for c in CASES if c.operator == operator)
    points = np.array([-1e30, -1e4, -100, -9, -1e-3, 0, 1e-3, 9, 100, 1e4, 1e30])
    x, x0 = (a.ravel().astype(np.float32) for a in np.meshgrid(points, points))
    error, message = worst_error(multipliers(operator, x, x0), case.f, case.derivative, x, x0)
    assert error < 1e-6, message


@pytest.mark.parametrize(
    ("operator", "attributes", "others", "kink", "slope"),
    [
        ("Relu", {}, [], 0.0, 0.0),
        ("Relu", {}, [], -0.0, 0.0),
        ("LeakyRelu", {"alpha": 0.25}, [], 0.0, 0.25),
        ("PRelu", {}, [scalar(0.25)], 0.0, 0.25),
        ("Abs", {}, [], 0.0, 0.0),
        ("Clip", {}, [scalar(0), scalar(6)], 0.0, 0.0),
        ("Clip", {}, [scalar(0), scalar(6)], 6.0, 0.0),
        ("Clip", {}, [scalar(2)], 2.0, 0.0),
        ("HardSigmoid", {"alpha": 0.25}, [], 2.0, 0.0),
        ("ThresholdedRelu", {}, [], 1.0, 0.0),
        ("Shrink", {}, [], 0.5, 0.0),
    ],
)
def test_flat_side_at_a_kink(
    operator: str, attributes: dict[str, Any], others: list[Any], kink: float, slope: float
) -> None:
    assert multipliers(operator, [kink], [kink], attributes, others) == [slope]


@pytest.mark.parametrize(("x", "x0"), [(1e-38, -1e-38), (-1e-38, 1e-38), (1e-38, 0.0), (-1e-38, -1e-38), (3e37, -3e37)])
def test_relu_of_tiny_and_huge_numbers(x: float, x0: float) -> None:
    """Contributions are right even where multipliers of numbers below 1e-30 are not."""
    found = multipliers("Relu", [x], [x0])
    assert 0.0 <= found <= 1.0
    np.testing.assert_allclose(found * (x - x0), max(x, 0.0) - max(x0, 0.0), rtol=1e-6, atol=1e-37)


def test_known_answer() -> None:
    """2 relu(x1) + 2 relu(x2 - 1.5) from (0, 0) to (1, 2)."""
    assert (2.0 * multipliers("Relu", [1.0, 0.5], [0.0, -1.5])).tolist() == [2.0, 0.5]


SLOPES = [(), (1,), (3, 1, 1), (1, 3, 1, 1), (3, 2, 2)]


@pytest.mark.parametrize("shape", SLOPES)
@pytest.mark.parametrize("varying", [[0], [1], [0, 1]])
def test_prelu(shape: tuple[int, ...], varying: list[int]) -> None:
    inputs = [
        np.linspace(-2.0, 2.0, 12).reshape(1, 3, 2, 2),
        np.linspace(-0.5, 1.5, 36)[: int(np.prod(shape))].reshape(shape),
    ]
    check_rule("PRelu", inputs, varying=varying, tolerance=1e-12)


@pytest.mark.parametrize("bounds", [[0], [0, 1], [0, 2], [0, 1, 2], [1], [2], [1, 2]])
def test_varying_bounds(bounds: list[int]) -> None:
    inputs = [np.linspace(-3.0, 3.0, 12).reshape(1, 3, 4), np.array(-0.7), np.array(0.9)]
    check_rule("Clip", inputs, varying=bounds, tolerance=1e-12)


def test_one_varying_bound_and_no_other() -> None:
    check_rule("Clip", [(1, 3, 4), ()], varying=[0, 1])
    check_rule("Clip", [(1, 3, 4), None, ()], varying=[0, 2])


def test_varying_bounds_are_players() -> None:
    rng = np.random.default_rng(3)
    for x, x0 in rng.normal(size=(50, 2, 3)):
        phi = exact_shapley(lambda rows: np.minimum(np.maximum(rows[:, 0], rows[:, 1]), rows[:, 2]), x, x0)
        np.testing.assert_allclose(contributions("Clip", x, x0), phi, atol=1e-12)


def test_varying_slope_is_a_player() -> None:
    rng = np.random.default_rng(4)
    for x, x0 in rng.normal(size=(50, 2, 2)):
        phi = exact_shapley(lambda rows: np.where(rows[:, 0] > 0, rows[:, 0], rows[:, 0] * rows[:, 1]), x, x0)
        np.testing.assert_allclose(contributions("PRelu", x, x0), phi, atol=1e-12)


def integers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(-5, 6, shape).astype(np.int32)


@pytest.mark.parametrize(
    ("operator", "others"), [("Relu", []), ("Abs", []), ("Clip", [np.int32(-2), np.int32(3)]), ("Clip", [np.int32(-2)])]
)
def test_integers(operator: str, others: list[Any]) -> None:
    inputs = [np.zeros((1, 4, 3), np.int32), *map(np.asarray, others)]
    check_rule(cast_after(operator, inputs), domain=integers, derivative=False, tolerance=1e-12)
