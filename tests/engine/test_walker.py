"""The contract of a rule: what the walker checks, and what it does with the multipliers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer, RuleError, UnsupportedOperatorError
from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.program import build_plan
from deepshap_ir.engine.registry import Resolver, RuleFunction
from deepshap_ir.engine.walker import fit
from deepshap_ir.extend import Context, Graph, Node, Value
from tests.onnx_text import Array, data, parsed

BACKGROUND, SAMPLES = data(5, 4), data(3, 4, seed=1)
RELU = "{ [act] y = Relu(x) }"
ADD = "{ a = Relu(x) b = Sigmoid(x) [both] y = Add(a, b) }"


def explain(body: str, rules: dict[str, RuleFunction] | None = None, check: bool = True, **settings: Any) -> Array:
    """Attributions of `SAMPLES`, ``[3, 4, outputs]``."""
    explainer = DeepExplainer(parsed(body), BACKGROUND, rules=rules, **settings)
    values: Array = explainer.shap_values(SAMPLES, check_additivity=check)
    return values


def mean_delta(function: Callable[[Array], Array] = lambda x: x) -> Array:
    """Mean over the references of ``f(x) - f(x0)``, ``[3, ...]``."""
    difference = function(SAMPLES.astype(np.float64)) - function(BACKGROUND.astype(np.float64)).mean(0)
    return np.asarray(difference)


def diagonal(values: Array) -> Array:
    """The attribution of each input to the output of the same position."""
    return np.diagonal(values, axis1=1, axis2=2)


# --- what a rule may not do


def wrong(answer: Callable[[Context, Sequence[Any]], Any]) -> RuleFunction:
    def broken(ctx: Context, m: Sequence[Any]) -> Any:
        return answer(ctx, m)

    return broken


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda ctx, m: None, "gives a NoneType; expected one multiplier per input, 1 in all"),
        (lambda ctx, m: [m[0], m[0]], "gives 2 entries; expected one multiplier per input, 1 in all"),
        (lambda ctx, m: [], "gives 0 entries"),
        (lambda ctx, m: [None], "gives no multiplier for input 0, which varies; a zero must be said: op.zeros"),
        (lambda ctx, m: [np.ones((1, 4))], "gives a ndarray for input 0, not a Value"),
        (lambda ctx, m: 1.0, "gives a float; expected one multiplier"),
        (lambda ctx, m: ctx.op.cast(m[0], np.float64), "a multiplier of dtype float64 for input 0, expected float32"),
        (lambda ctx, m: m[0] > 0, "a multiplier of dtype bool for input 0, expected float32"),
        (lambda ctx, m: ctx.op.zeros((1, 3)), r"a multiplier of shape \(1, 3\) for input 0 of shape \(1, 4\)"),
        (lambda ctx, m: ctx.op.zeros((2, 2)), r"a multiplier of shape \(2, 2\) for input 0"),
        (lambda ctx, m: 1 / 0, "failed: ZeroDivisionError: division by zero"),
        (lambda ctx, m: ctx.x(1), "input 1 is absent"),
        (lambda ctx, m: ctx.y(3), "output 3 is absent"),
        (
            lambda ctx, m: m[0] if ctx.x() > 0 else m[0] * 0.0,
            "failed: TypeError: .* select with op.Where, not with 'if'",
        ),
        (lambda ctx, m: m[0] @ np.ones((7, 4)), "MatMul does not fit operands of shapes"),
    ],
)
def test_a_broken_rule_is_named_with_node_and_shapes(answer: RuleFunction, message: str) -> None:
    with pytest.raises(RuleError, match=message) as caught:
        explain(RELU, {"Relu": wrong(answer)})
    assert r"the rule tests.engine.test_walker.broken at Relu node 'act', inputs [(1, 4)]" in str(caught.value)


def test_one_multiplier_is_not_enough_for_two_varying_inputs() -> None:
    with pytest.raises(RuleError, match=r"gives one multiplier, but the inputs \[0, 1\] vary; return one for each"):
        explain(ADD, {"Add": lambda ctx, m: m[0]})


def test_a_varying_input_may_not_be_none() -> None:
    with pytest.raises(RuleError, match="gives no multiplier for input 1, which varies"):
        explain(ADD, {"Add": lambda ctx, m: [m[0], None]})


def test_an_error_of_the_library_keeps_its_class() -> None:
    def refuse(ctx: Context, m: Sequence[Value]) -> Value:
        raise UnsupportedOperatorError("no finite multiplier for this mode")

    with pytest.raises(
        UnsupportedOperatorError, match=r"refuse at Relu node 'act'.*: no finite multiplier for this mode"
    ):
        explain(RELU, {"Relu": refuse})


def test_all_missing_rules_are_listed_before_anything_runs() -> None:
    nodes = (
        Node("one", "Mystery", ("x",), ("a",), domain="my", version=3),
        Node("known", "Relu", ("a",), ("b",)),
        Node("two", "Enigma", ("b", "w"), ("y",), domain="my", version=3),
        Node("aside", "Riddle", ("x",), ("z",), domain="my", version=3),
        Node("fixed", "Puzzle", ("w",), ("w2",), domain="my", version=3),
    )
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys("xabyz", (1, 4)) | {"w": (4,), "w2": (4,)}
    types = {name: np.dtype(np.float32) for name in shapes}
    weights = {"w": np.ones(4, np.float32)}
    graph = Graph(("x",), ("y",), nodes, weights, shapes, types, {"x": 0}, {"": 18, "my": 3})
    with pytest.raises(UnsupportedOperatorError) as caught:
        build_plan(graph, Resolver(), explained=["x"])
    assert str(caught.value) == (
        "No rule for 2 nodes between the explained inputs and the output:\n"
        "  my::Mystery (opset 3), node 'one': [1, 4] -> [1, 4]\n"
        "  my::Enigma (opset 3), node 'two': [1, 4], [4] -> [1, 4]\n"
        "Give one with rules={'my::Mystery': my_rule}, where my_rule(ctx, m) returns one multiplier per input "
        "(see deepshap_ir.extend), or hold the node's output constant with hold=[name]. "
        'rules="universal" takes any function of floating-point numbers, by differences.'
    )


# --- what the walker does with the multipliers


def test_multipliers_of_several_consumers_add() -> None:
    body = "{ a = Relu(x) b = Neg(x) c = Relu(b) d = Sub(a, c) y = Add(d, x) }"
    values = explain(body)
    np.testing.assert_allclose(diagonal(values), 2 * mean_delta(), atol=1e-6)


def test_one_value_at_two_inputs_of_a_node() -> None:
    np.testing.assert_allclose(diagonal(explain("{ y = Add(x, x) }")), 2 * mean_delta(), atol=1e-6)
    np.testing.assert_allclose(diagonal(explain("{ y = Mul(x, x) }")), mean_delta(np.square), atol=1e-5)


def test_a_value_that_is_read_and_explained() -> None:
    """The output of the model is itself an operand of a node that the output does not need."""
    values = explain("{ y = Relu(x) z = Exp(y) }", output="y")
    np.testing.assert_allclose(diagonal(values), mean_delta(lambda x: np.maximum(x, 0)), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 4), lambda m: m),
        ((4,), lambda m: m),
        ((1, 1), lambda m: m[..., :1].repeat(4, -1)),
        ((), lambda m: m[..., :1].repeat(4, -1)),
        ((5, 1, 4), lambda m: 5 * m),
        ((5, 1, 1), lambda m: 5 * m[..., :1].repeat(4, -1)),
        ((3, 4), lambda m: 3 * m),
    ],
)
def test_broadcasting_of_a_multiplier_is_undone(shape: tuple[int, ...], expected: Callable[[Array], Array]) -> None:
    """A multiplier in the shape to which the input was broadcast is summed, a smaller one repeated."""
    op = Emitter({"": 18})
    numbers = np.arange(1.0, 5.0, dtype=np.float32)
    given = np.broadcast_to(numbers[: shape[-1]] if shape else numbers[0], shape)
    fitted = fit(op, op.constant(given), (1, 4))
    assert fitted is not None
    assert fitted.data is not None
    np.testing.assert_array_equal(fitted.data, expected(numbers[None]))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (4, 1, 2), (0,)])
def test_a_multiplier_that_fits_in_no_way(shape: tuple[int, ...]) -> None:
    op = Emitter({"": 18})
    assert fit(op, op.zeros(shape), (1, 4)) is None


def test_broadcasting_is_undone_end_to_end() -> None:
    """A number per row times a vector: the walker sums over the columns."""
    body = """{ axis = Constant <value_ints=[1]> () s = ReduceSum <keepdims=1> (x, axis)
        ones = Constant <value_floats=[1.0, 2.0, 3.0, 4.0]> () t = Mul(s, ones) y = Add(t, x) }"""
    values = explain(body)
    delta = mean_delta()
    expected = delta[:, :, None] * np.arange(1.0, 5.0) + np.eye(4) * delta[:, :, None]
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_what_a_rule_gives_for_fixed_inputs_is_dropped() -> None:
    body = "{ two = Constant <value_float=2.0> () y = Mul(x, two) }"

    def generous(ctx: Context, m: Sequence[Value]) -> list[Value]:
        assert [ctx.varies(0), ctx.varies(1)] == [True, False]
        assert ctx.x(1) is ctx.x0(1)
        constant = ctx.constant(1)
        assert constant is not None
        return [m[0] * constant, m[0] * 1e30]

    np.testing.assert_allclose(diagonal(explain(body, {"Mul": generous})), 2 * mean_delta(), atol=1e-6)


def test_outputs_that_nothing_uses_have_no_multiplier() -> None:
    signature = "(float[N,4] x) => (float[N,2] b)"
    seen = []

    def split(ctx: Context, m: Sequence[Value | None]) -> Value:
        seen.append([value is None for value in m])
        assert m[1] is not None
        return ctx.op.Concat(ctx.op.zeros((1, 2)), m[1], axis=1)

    model = parsed("{ a, b = Split <axis=1, num_outputs=2> (x) }", signature)
    values = DeepExplainer(model, BACKGROUND, rules={"Split": split}).shap_values(SAMPLES)
    assert seen == [[True, False]]
    np.testing.assert_allclose(diagonal(values[:, 2:]), mean_delta()[:, 2:], atol=1e-6)
    np.testing.assert_array_equal(values[:, :2], 0)


def test_a_multiplier_of_zero_may_be_a_constant() -> None:
    """It varies over no batch axis at all, and its contributions are zeros of the usual shape."""
    body = "{ a = Relu(x) b = Floor(x) y = Add(a, b) }"
    values = explain(body, {"Floor": lambda ctx, m: ctx.op.zeros(ctx.shape())}, check=False)
    np.testing.assert_allclose(diagonal(values), mean_delta(lambda x: np.maximum(x, 0)), atol=1e-6)
    alone = explain("{ y = Floor(x) }", {"Floor": lambda ctx, m: ctx.op.zeros(ctx.shape())}, check=False)
    np.testing.assert_array_equal(alone, np.zeros((3, 4, 4)))
    per_row = explain("{ y = Floor(x) }", {"Floor": lambda ctx, m: ctx.x() * 0.0}, check=False)
    np.testing.assert_array_equal(per_row, np.zeros((3, 4, 4)))


# --- what a rule sees


def test_context_tells_shapes_dtype_and_attributes() -> None:
    def looks(ctx: Context, m: Sequence[Value]) -> Value:
        assert ctx.shape() == (1, 4)
        assert ctx.dtype == np.float32
        assert ctx.attribute("alpha") == pytest.approx(0.25)
        assert ctx.attribute("beta", 7) == 7
        assert (ctx.opset, ctx.n_inputs, ctx.has(0), ctx.has(1)) == (18, 1, True, False)
        assert ctx.options["max_pooling"] == "shapley"
        assert (ctx.x().axes, ctx.x0().axes) == (("sample",), ("background",))
        assert ctx.delta_y().axes == ("sample", "background")
        assert m[0].axes == ("output",)
        return m[0] * (ctx.delta_y() / ctx.delta_x())

    explain("{ y = LeakyRelu <alpha=0.25> (x) }", {"LeakyRelu": looks}, options={"max_pooling": "shapley"})


def test_mid_x_is_the_mean_of_both_points_and_a_fixed_input_itself() -> None:
    def square(ctx: Context, m: Sequence[Value]) -> list[Value]:
        return [m[0] * ctx.mid_x(1), m[0] * ctx.mid_x(0)]

    np.testing.assert_allclose(
        diagonal(explain("{ y = Mul(x, x) }", {"Mul": square})), mean_delta(np.square), atol=1e-5
    )
    body = "{ three = Constant <value_float=3.0> () y = Mul(x, three) }"
    np.testing.assert_allclose(diagonal(explain(body, {"Mul": square})), 3 * mean_delta(), atol=1e-5)


def test_forward_runs_the_node_on_other_inputs() -> None:
    def players(ctx: Context, m: Sequence[Value]) -> list[Value]:
        """Exact Shapley value of two players, by the node at mixed points."""
        both, first = ctx.y(), ctx.forward(ctx.x(0), ctx.x0(1))
        second, none = ctx.forward(ctx.x0(0), ctx.x(1)), ctx.y0()
        phi = [(both - second + first - none) * 0.5, (both - first + second - none) * 0.5]
        return [m[0] * (p / ctx.delta_x(i)) for i, p in enumerate(phi)]

    body = "{ a = Sigmoid(x) b = Tanh(x) y = Mul(a, b) }"
    np.testing.assert_allclose(explain(body, {"Mul": players}), explain(body), atol=1e-5)


def derivative_at_the_sample(ctx: Context, m: Sequence[Value]) -> Any:
    """Asks itself, through `vjp`, what it is at one point."""
    if ctx.y() is not ctx.y0():
        assert ctx.varies()
        return ctx.vjp([ctx.x()], m)
    assert ctx.varies()
    return m[0] * ctx.op.Sigmoid(ctx.x())


def test_vjp_is_the_rule_at_one_point() -> None:
    values = explain("{ y = Softplus(x) }", {"Softplus": derivative_at_the_sample}, check=False)
    slope = 1 / (1 + np.exp(-SAMPLES.astype(np.float64)))
    np.testing.assert_allclose(diagonal(values), slope * mean_delta(), atol=1e-5)


def along_the_path(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
    """Mean of the derivatives at two Gauss points: exact for products."""
    if ctx.y() is ctx.y0():
        return [m[0] * ctx.x(1), m[0] * ctx.x(0)]
    parts = []
    for t in (0.5 - 3**-0.5 / 2, 0.5 + 3**-0.5 / 2):
        points = [ctx.x0(i) + (ctx.x(i) - ctx.x0(i)) * t for i in (0, 1)]
        parts.append(ctx.vjp(points, m))
    return [(a + b) * 0.5 if a is not None and b is not None else None for a, b in zip(*parts, strict=True)]


def test_a_rule_may_integrate_over_points() -> None:
    body = "{ a = Sigmoid(x) b = Tanh(x) y = Mul(a, b) }"
    np.testing.assert_allclose(explain(body, {"Mul": along_the_path}), explain(body), atol=1e-5)


def test_at_gives_other_points_and_their_outputs() -> None:
    def halves(ctx: Context, m: Sequence[Value]) -> Value:
        """From the reference to half way and from there to the sample."""
        middle = ctx.mid_x()
        low, high = ctx.at([middle], [ctx.x0()]), ctx.at([ctx.x()], [middle])
        assert low.delta_x().axes == ("sample", "background")
        return m[0] * ((low.delta_y() + high.delta_y()) / (low.delta_x() + high.delta_x()))

    values = explain("{ y = Exp(x) }", {"Exp": halves})
    np.testing.assert_allclose(diagonal(values), mean_delta(np.exp), rtol=1e-4)


def test_backward_walks_through_a_subgraph() -> None:
    """A rule that is given by a graph of operators that have rules."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(["u", "v", "w"], (1, 4))
    types = dict.fromkeys(shapes, np.dtype(np.float32))
    nodes = (Node("tanh", "Tanh", ("u",), ("v",)), Node("square", "Mul", ("v", "v"), ("w",)))
    square_of_tanh = Graph(("u",), ("w",), nodes, {}, shapes, types, {"u": 0}, {"": 18})

    def by_graph(ctx: Context, m: Sequence[Value]) -> list[Value | None]:
        return ctx.backward(square_of_tanh, [ctx.x()], [ctx.x0()], m)

    values = explain("{ y = Exp(x) }", {"Exp": by_graph}, check=False)
    np.testing.assert_allclose(diagonal(values), mean_delta(lambda x: np.tanh(x) ** 2), atol=1e-5)


# --- ends of the walk


def test_nothing_goes_beyond_a_place() -> None:
    """Above a place of attributions no rule is asked, so none need exist that sums to delta."""
    body = "{ hidden = Exp(x) a = Relu(hidden) y = Neg(a) }"

    def never(ctx: Context, m: Sequence[Value]) -> Value:
        raise AssertionError("asked beyond the place")

    values = explain(body, {"Exp": never}, at=["hidden"])
    np.testing.assert_allclose(diagonal(values), -mean_delta(np.exp), rtol=1e-4)


def test_nothing_goes_through_a_held_value() -> None:
    body = "{ gate = Sigmoid(x) y = Mul(x, gate) }"
    values = explain(body, hold=["gate"])
    gate = 1 / (1 + np.exp(-SAMPLES.astype(np.float64)))
    np.testing.assert_allclose(diagonal(values), gate * mean_delta(), atol=1e-5)


def test_the_ledger_names_the_leak() -> None:
    body = "{ [first] a = Relu(x) [leak] b = Tanh(a) [last] y = Exp(b) }"

    def leaking(ctx: Context, m: Sequence[Value]) -> Value:
        return m[0] * 0.5 * (ctx.delta_y() / (ctx.delta_x() + 1e-20))

    explainer = DeepExplainer(parsed(body), BACKGROUND, rules={"Tanh": leaking})
    values = explainer.shap_values(SAMPLES, check_additivity=False)
    ledger = explainer.ledger(SAMPLES)
    assert set(ledger) == {"first", "leak", "last"}
    gap = mean_delta(lambda x: np.exp(np.tanh(np.maximum(x, 0)))) - values.sum(1)
    assert np.abs(gap).max() > 0.1
    np.testing.assert_allclose(ledger["leak"], gap, atol=1e-5)
    for name in ("first", "last"):
        np.testing.assert_allclose(ledger[name], 0, atol=1e-5)
