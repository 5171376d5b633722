"""`check_rule` passes right rules and rejects each kind of wrong one; `exact_shapley` is what its definition says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from onnx.reference.op_run import OpRun

from deepshap_ir.engine.registry import RuleFunction
from deepshap_ir.engine.value import BACKGROUND, SAMPLE
from deepshap_ir.errors import RuleError
from deepshap_ir.extend import Array, Context, Graph, Node, Value
from deepshap_ir.testing import Domain, check_rule, exact_shapley


def square(ctx: Context, m: Sequence[Value]) -> list[Value]:
    """``x + x0``, half to each operand: exact, without a division."""
    return [m[0] * ctx.mid_x(1), m[0] * ctx.mid_x(0)]


def tanh(ctx: Context, m: Sequence[Value]) -> Value:
    """The secant, and the derivative where the delta is 0 or nearly so."""
    op, delta = ctx.op, ctx.delta_x()
    small = abs(delta) < 1e-4
    secant = ctx.delta_y() / op.Where(small, 1.0, delta)
    middle = op.Tanh(ctx.mid_x())
    return m[0] * op.Where(small, 1.0 - middle * middle, secant)


def test_right_rules_pass() -> None:
    checked = check_rule("Tanh", [(1, 5)], rule=tanh)
    assert checked.gap < 1e-12
    assert checked.derivative_error is not None
    assert checked.derivative_error < 1e-4
    assert checked.float32_error is not None
    assert checked.float32_error < 1e-4
    assert checked.multipliers[0].shape == (3, 4, 1, 5)
    assert (checked.samples[0].shape, checked.references[0].shape) == ((3, 1, 5), (4, 1, 5))
    check_rule("Mul", [(2, 3), (3,)], rule=square, varying=[0, 1])


def test_the_numbers_of_a_check_are_those_of_the_rule() -> None:
    checked = check_rule("Mul", [(1, 2), (1, 2)], rule=square, varying=[0, 1], seed=5)
    x, y = checked.samples
    x0, y0 = checked.references
    rng = np.random.default_rng(5)
    for shape in [(1, 2), (1, 2), (3, 1, 2), (3, 1, 2), (4, 1, 2), (4, 1, 2)]:
        rng.uniform(size=shape)
    seed = rng.normal(size=(2, 1, 2))[0]
    np.testing.assert_allclose(checked.multipliers[0], seed * (y[:, None] + y0) / 2)
    np.testing.assert_allclose(checked.multipliers[1], seed * (x[:, None] + x0) / 2)


def scaled(factor: float) -> RuleFunction:
    return lambda ctx, m: tanh(ctx, m) * factor


def nan_at_zero(ctx: Context, m: Sequence[Value]) -> Value:
    return m[0] * (ctx.delta_y() / ctx.delta_x())


def zero_at_zero(ctx: Context, m: Sequence[Value]) -> Value:
    """Sums to delta, but is not the derivative where sample and reference agree."""
    delta = ctx.delta_x()
    zero = ctx.op.Equal(delta, 0.0)
    return m[0] * ctx.op.Where(zero, 0.0, ctx.delta_y() / ctx.op.Where(zero, 1.0, delta))


def loses_digits(ctx: Context, m: Sequence[Value]) -> Value:
    """Right in float64; in float32 the large number swallows the digits of the small one."""
    same = (ctx.x() + 1e6) - 1e6
    return tanh(ctx, m) * ((same + 5.0) / (ctx.x() + 5.0))


def not_linear(ctx: Context, m: Sequence[Value]) -> Value:
    """Shares the delta by the squares of the multipliers: complete for each output, but not linear in them."""
    op, contribution = ctx.op, tanh(ctx, m)
    total = op.ReduceSum(contribution * ctx.delta_x(), keepdims=1)
    weights = m[0] * m[0] + 0.1
    share = weights / op.ReduceSum(weights, keepdims=1)
    delta = ctx.delta_x()
    safe = op.Where(abs(delta) < 1e-9, 1.0, delta)
    return op.Where(abs(delta) < 1e-9, 0.0, total * share / safe)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (scaled(1.0005), r"contributions miss the delta by 0\.000\d+ of their size \(law 1\)"),
        (scaled(0.9995), r"contributions miss the delta by 0\.000\d+ of their size \(law 1\)"),
        (scaled(-1.0), r"contributions miss the delta by 1\.\d+ of their size \(law 1\)"),
        (nan_at_zero, r"the multiplier of varying input 0 is not finite \(law 2\)"),
        (zero_at_zero, r"at a small delta the multiplier is .* away from the derivative \(law 4\)"),
        (not_linear, r"not linear in those of the output, off by .* \(law 3\)"),
        (loses_digits, r"onnxruntime's float32 contributions are .* away from the reference's \(law 5\)"),
    ],
)
def test_wrong_rules_are_rejected(rule: RuleFunction, message: str) -> None:
    with pytest.raises(AssertionError, match=rf"^Tanh \{{\}} on \[\(1, 5\)\]: .*{message}"):
        check_rule("Tanh", [(1, 5)], rule=rule)


@pytest.mark.parametrize("axis", [SAMPLE, BACKGROUND])
def test_a_rule_that_looks_at_other_rows_is_rejected(axis: str) -> None:
    def leaking(ctx: Context, m: Sequence[Value]) -> list[Value]:
        """Moves something of all rows from one operand to the other: the sum over both stays right."""
        own = ctx.x(0) if axis == SAMPLE else ctx.x0(0)
        moved = ctx.op.sum_over(own, axis)
        exact = square(ctx, m)
        return [exact[0] + m[0] * moved * ctx.delta_x(1), exact[1] - m[0] * moved * ctx.delta_x(0)]

    with pytest.raises(AssertionError, match=r"a pair's multiplier depends on other rows, by .* \(law 2\)"):
        check_rule("Mul", [(1, 3), (1, 3)], rule=leaking, varying=[0, 1])


def test_a_wrong_dtype_is_an_error_of_the_contract() -> None:
    with pytest.raises(RuleError, match="multiplier of dtype float32 for input 0, expected float64"):
        check_rule("Tanh", [(1, 5)], rule=lambda ctx, m: ctx.op.cast(tanh(ctx, m), np.float32))


def test_a_derivative_may_be_left_out_where_there_is_none() -> None:
    assert check_rule("Tanh", [(1, 5)], rule=zero_at_zero, derivative=False).derivative_error is None


def test_domains_choose_the_numbers() -> None:
    checked = check_rule("Log", [(1, 5)], domain=(0.5, 0.75))
    assert 0.5 <= checked.samples[0].min() <= checked.samples[0].max() <= 0.75
    positive: dict[int, Domain] = {0: (1.0, 2.0), 1: lambda rng, shape: rng.integers(3, 5, shape).astype(np.float64)}
    checked = check_rule("Div", [(1, 5), (1, 5)], varying=[0, 1], domain=positive)
    assert set(np.unique(checked.samples[1])) <= {3.0, 4.0}


class Twice(OpRun):
    """An operator that ONNX does not define."""

    op_domain = "my"

    def _run(self, x: Array) -> tuple[Array]:
        return (2 * x,)


def test_a_rule_of_an_operator_of_ones_own() -> None:
    check_rule("my::Twice", [(1, 5)], rule=lambda ctx, m: m[0] * 2.0, opset=1, new_ops=[Twice])
    with pytest.raises(AssertionError, match=r"my::Twice .* \(law 1\)"):
        check_rule("my::Twice", [(1, 5)], rule=lambda ctx, m: m[0] * 2.001, opset=1, new_ops=[Twice])


def test_a_whole_graph_may_be_checked() -> None:
    shapes: dict[str, tuple[int, ...]] = {"u": (1, 3), "v": (1, 3), "s": (1, 3), "y": (1, 3)}
    nodes = (Node("add", "Add", ("u", "v"), ("s",)), Node("act", "Sigmoid", ("s",), ("y",)))
    types = dict.fromkeys(shapes, np.dtype(np.float32))
    graph = Graph(("u", "v"), ("y",), nodes, {}, shapes, types, {"u": 0, "v": 0}, {"": 18})
    checked = check_rule(graph)
    assert len(checked.multipliers) == 2
    np.testing.assert_allclose(checked.multipliers[0], checked.multipliers[1])


def test_several_outputs_of_which_one_is_explained() -> None:
    split = {"axis": 1, "num_outputs": 2}
    checked = check_rule("Split", [(1, 5)], attributes=split, outputs=2, explained=1)
    assert np.all(checked.multipliers[0][..., :3] == 0)
    assert np.all(checked.multipliers[0][..., 3:] != 0)


# --- exact Shapley values


def by_permutations(function: Callable[[Array], Array], x: Array, x0: Array) -> Array:
    """The definition: mean over all orders of what each player adds."""
    total = np.zeros(x.size)
    for order in itertools.permutations(range(x.size)):
        point = x0.copy()
        before = function(point[None])[0]
        for i in order:
            point[i] = x[i]
            after = function(point[None])[0]
            total[i] += after - before
            before = after
    return total / math.factorial(x.size)


def test_exact_shapley_is_the_mean_over_all_orders() -> None:
    rng = np.random.default_rng(0)
    x, x0 = rng.normal(size=(2, 5))

    def f(rows: Array) -> Array:
        values: Array = np.tanh(rows[:, 0] * rows[:, 1]) + rows.max(1) * rows[:, 2] ** 2
        return values

    np.testing.assert_allclose(exact_shapley(f, x, x0), by_permutations(f, x, x0), rtol=1e-12)


def test_exact_shapley_of_several_outputs_and_any_shape() -> None:
    x, x0 = np.arange(4.0).reshape(2, 2), np.zeros((2, 2))

    def f(rows: Array) -> Array:
        return np.stack([rows.sum((1, 2)), rows.prod((1, 2))], axis=1)

    phi = exact_shapley(f, x, x0)
    assert phi.shape == (2, 2, 2)
    np.testing.assert_allclose(phi[..., 0], x)
    np.testing.assert_allclose(phi[..., 1], 0)


def test_too_many_players_are_refused() -> None:
    with pytest.raises(ValueError, match=r"15 players have 32768 subsets; at most 14 are tried"):
        exact_shapley(lambda rows: rows.sum(1), np.zeros(15), np.ones(15))


def test_the_product_of_two_numbers() -> None:
    phi = exact_shapley(lambda rows: rows.prod(1), np.array([3.0, 4.0]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(phi, [6, 4])
