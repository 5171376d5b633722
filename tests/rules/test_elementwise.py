"""Smooth functions with an exact secant: the laws, and the accuracy of the multipliers in float32."""

from typing import Any

import numpy as np
import pytest

from deepshap_ir.extend import Context, Value
from deepshap_ir.rules.elementwise import sigmoid
from deepshap_ir.testing import check_rule
from tests.rules.onnx_cases import node_cases
from tests.rules.pairs import Case, Function, grid, is_accurate_near_a_singularity, multipliers, worst_error


def logistic(x: Any) -> Any:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def mish_derivative(x: Any) -> Any:
    t = np.tanh(np.logaddexp(0.0, x))
    return t + x * (1.0 - t * t) * logistic(x)


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
]
PARTIAL = ("Exp", "Sinh", "Cosh")


@pytest.mark.parametrize("opset", [24, 25, 26])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_swish_at_opsets_where_onnxruntime_has_none(opset: int, alpha: float) -> None:
    check_rule("Swish", [(1, 3, 4)], attributes={"alpha": alpha}, opset=opset)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_laws(case: Case) -> None:
    case.obeys_the_laws()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_between_near_and_far_points(case: Case) -> None:
    case.is_accurate_near_and_far()


@pytest.mark.parametrize("case", [c for c in CASES if not c.within], ids=str)
def test_extreme_arguments(case: Case) -> None:
    case.is_accurate_up_to(88 if case.operator in PARTIAL else 1000)


@pytest.mark.parametrize(
    ("operator", "f", "points"),
    [
        ("Log", np.log, [1e-38, 1e-30, 1e-10, 1.0, 1e10, 3e38]),
        ("Acosh", np.arccosh, [1.0, 1.0000001, 1.1, 2.0, 1e10, 1e30]),
        ("Atanh", np.arctanh, [-0.9999999, -0.5, 0.0, 0.5, 0.9999999]),
    ],
)
def test_near_a_singularity(operator: str, f: Function, points: list[float]) -> None:
    is_accurate_near_a_singularity(operator, f, points)


def test_zero_between_two_points_of_infinite_slope() -> None:
    """The delta is 0 there, and a finite multiplier keeps what lies upstream finite."""
    assert multipliers("Acosh", [1.0], [1.0]) == [0.0]


@pytest.mark.parametrize(("operator", "x"), [("Log", -1.0), ("Sqrt", -1.0), ("Reciprocal", 0.0), ("Exp", 200.0)])
def test_an_unused_branch_may_be_infinite(operator: str, x: float) -> None:
    """Where the multiplier of the output is 0, that of the input is too, even if the secant is not finite."""
    assert multipliers(operator, [x, 0.5], [2.0, 2.0], seed=0.0).tolist() == [0.0, 0.0]
    assert np.isfinite(multipliers(operator, [x, 0.5], [2.0, 2.0])).tolist() == [False, True]


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (1, 2, 1, 2, 2)])
@pytest.mark.parametrize("operator", ["Sigmoid", "Erf", "Softplus"])
def test_any_rank(operator: str, shape: tuple[int, ...]) -> None:
    check_rule(operator, [shape])


POSITIVE = ("Acosh", "Log", "Pow", "Reciprocal", "Sqrt")
MODULES = (
    "abs acos acosh asin asinh atan atanh ceil clip cos cosh elu exp floor hardsigmoid hardswish leakyrelu log pow "
    "prelu reciprocal relu round selu shrink sigmoid sign sin sinh softplus softsign sqrt tan tanh thresholdedrelu"
)


@pytest.mark.parametrize("module", MODULES.split())
def test_cases_of_the_standard(module: str) -> None:
    """Every attribute and operand with which the standard tests its operators."""
    tried = node_cases(module)
    assert tried
    for case in tried:
        first, *rest = case.inputs
        assert first is not None
        low, high = (1.1, 3.0) if case.operator in POSITIVE else (-0.9, 0.9)
        check_rule(
            case.operator,
            [first.shape, *rest],
            attributes=case.attributes,
            opset=case.opset,
            domain=(low, high),
            derivative=case.operator not in ("Ceil", "Floor", "Round", "Sign"),
            # onnxruntime has no Pow of an unsigned exponent
            onnxruntime=not any(a is not None and a.dtype.kind == "u" for a in rest),
        )


def test_the_plain_secant_would_fail_there() -> None:
    """What the bound above guards against: (f(x) - f(x0)) / (x - x0) in float32."""
    x, x0 = grid(-12.0, 12.0)
    with np.errstate(invalid="ignore"):
        y, y0 = (np.float32(1.0) / (np.float32(1.0) + np.exp(-v)) for v in (x, x0))
        plain = np.where(x == x0, logistic(x) * logistic(-x), (y - y0) / (x - x0))
    assert worst_error(plain, logistic, lambda x: logistic(x) * logistic(-x), x, x0)[0] > 0.05


def test_known_answer() -> None:
    """2 tanh(x1) + 2 tanh(x2 - 1.5) from (0, 0) to (-1, -2)."""
    found = 2.0 * multipliers("Tanh", [-1.0, -3.5], [0.0, -1.5])
    np.testing.assert_allclose(found, [1.523188, 0.093030], atol=1e-6)


def test_the_checker_sees_a_rule_that_is_slightly_wrong() -> None:
    def wrong(ctx: Context, m: Any) -> Value:
        slightly_more: Value = m[0] * sigmoid(ctx) * 1.0005
        return slightly_more

    with pytest.raises(AssertionError, match="law 1"):
        check_rule("Sigmoid", [(1, 4)], rule=wrong)
