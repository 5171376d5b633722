"""Joined patterns: products of many players, functions of one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deepshap_ir.engine.backends import OnnxRuntime, Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.rule_sets import rule_set
from deepshap_ir.engine.value import INTERNAL
from deepshap_ir.graph import Graph, Node
from deepshap_ir.importing.importer import import_model
from deepshap_ir.joins.canonical import canonicalise
from deepshap_ir.joins.known import FUNCTIONS, POINTS, recognise
from deepshap_ir.rules.composite import elementwise
from deepshap_ir.testing import Runner, check_rule, exact_shapley
from tests.onnx_text import data, parsed


def product(shapes: list[tuple[int, ...]], powers: list[int]) -> Graph:
    """A Product whose body multiplies and divides from left to right; the first power is 1."""
    names = [f"x{k}" for k in range(len(shapes))]
    known = dict(zip(names, shapes, strict=True))
    nodes, left = [], names[0]
    for k, name in enumerate(names[1:], 1):
        known[f"p{k}"] = np.broadcast_shapes(known[left], known[name])
        nodes.append(Node(f"n{k}", "Mul" if powers[k] > 0 else "Div", (left, name), (f"p{k}",)))
        left = f"p{k}"
    dtypes = dict.fromkeys(known, np.dtype(np.float64))
    batch = dict.fromkeys(names, 0)
    body = Graph(tuple(names), (left,), tuple(nodes), {}, known, dtypes, {}, {"": 18})
    node = Node("product", "Product", tuple(names), (left,), {"powers": powers, "body": body}, INTERNAL, 1)
    return Graph(tuple(names), (left,), (node,), {}, known, dtypes, dict(batch), {"": 18})


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7])
def test_exact_shapley_of_a_product(n: int) -> None:
    rng = np.random.default_rng(n)
    x, x0 = rng.uniform(-2, 2, (2, n))
    powers = [1, *rng.choice([1, -1], n - 1)]
    runner = Runner(product([(1,)] * n, powers), Resolver(), Reference())
    found = runner.multipliers(list(x[:, None, None]), list(x0[:, None, None]), np.ones((1, 1)))
    phi = np.array([m.item() for m in found]) * (x - x0)
    expected = exact_shapley(lambda rows: np.prod(rows ** np.array(powers), axis=1), x, x0)
    np.testing.assert_allclose(phi, expected, rtol=1e-10, atol=1e-12)


def test_three_factors_by_the_formula() -> None:
    """``m_a = (bc + b0 c0)/3 + (b c0 + b0 c)/6``."""
    rng = np.random.default_rng(0)
    (a, b, c), (a0, b0, c0) = rng.normal(size=(2, 3, 1, 1, 4))
    runner = Runner(product([(1, 4)] * 3, [1, 1, 1]), Resolver(), Reference())
    m_a, _, _ = runner.multipliers([a, b, c], [a0, b0, c0], np.ones((1, 1, 4)))
    np.testing.assert_allclose(m_a[0, 0], (b * c + b0 * c0) / 3 + (b * c0 + b0 * c) / 6, atol=1e-12)


@pytest.mark.parametrize("powers", [[1, 1, 1], [1, 1, -1], [1, -1, -1, 1]], ids=str)
def test_laws_of_products_that_broadcast(powers: list[int]) -> None:
    shapes = [(1, 3, 4), (4,), (2, 1, 1, 4), (3, 1)][: len(powers)]
    check_rule(product(shapes, powers), domain=(0.5, 2.0))


def joined(body: str, width: int = 1) -> Graph:
    numbers = {"zero": 0.0, "half": 0.5, "one": 1.0, "three": 3.0, "twenty": 20.0}
    head = " ".join(f"{name} = Constant<value_float={value}>()" for name, value in numbers.items())
    model = parsed(f"{{ {head} {body} }}", f"(float[N,{width}] x) => (float[N,{width}] y)")
    graph = canonicalise(import_model(model, data(3, width)).graph, ())
    assert [node.domain for node in graph.nodes] == [INTERNAL]
    return graph


def sigmoid(x: Any) -> Any:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


CURVES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "silu": ("s = Sigmoid(x) y = Mul(x, s)", lambda x: x * sigmoid(x)),
    "mish": ("s = Softplus(x) t = Tanh(s) y = Mul(x, t)", lambda x: x * np.tanh(np.logaddexp(0, x))),
    "softplus": (
        "e = Exp(x) p = Add(e, one) l = Log(p) c = Greater(x, twenty) y = Where(c, x, l)",
        lambda x: np.logaddexp(0, x),
    ),
    "hard swish": ("h = HardSigmoid<alpha=0.16666667>(x) y = Mul(x, h)", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "square times sigmoid": ("s = Sigmoid(x) q = Mul(x, x) y = Mul(q, s)", lambda x: x * x * sigmoid(x)),
    "bump": ("q = Mul(x, x) n = Neg(q) e = Exp(n) y = Mul(x, e)", lambda x: x * np.exp(-x * x)),
    "fast wave": (
        "k = Constant<value_float=10.0>() u = Mul(x, k) s = Sin(u) y = Mul(x, s)",
        lambda x: x * np.sin(10 * x),
    ),
    "ratio": ("q = Mul(x, x) p = Add(q, one) y = Div(x, p)", lambda x: x / (1 + x * x)),
    "root": ("q = Mul(x, x) p = Add(q, one) r = Sqrt(p) y = Mul(x, r)", lambda x: x * np.sqrt(1 + x * x)),
}


@pytest.mark.parametrize("name", CURVES)
def test_float32_multipliers_at_any_distance(name: str) -> None:
    """Where the secant of rounded numbers has no digit left, the multiplier has nearly all of them."""
    body, f = CURVES[name]
    runner = Runner(joined(body, 13), Resolver(), OnnxRuntime())
    x0 = np.linspace(-2.9, 2.9, 13)
    for distance in (0.0, 1e-6, 1e-4, 1e-2, 0.3, 2.0):
        expected = mean_slope(f, x0, x0 + distance)
        got = runner.multipliers([(x0 + distance)[None, None]], [x0[None, None]], np.ones((1, 1, 13)))[0][0, 0, 0, 0]
        # float32 moves the points: by 2e-7 of 3, which the curvature turns into as much of the slope
        scale = 1.0 + np.abs(np.gradient(expected, x0)).max()
        np.testing.assert_allclose(got, expected, atol=3e-6 * scale)


def mean_slope(f: Callable[[Any], Any], x0: Any, x: Any) -> Any:
    """``(f(x) - f(x0)) / (x - x0)``, by a complex step or Richardson's central difference at close points."""
    if np.abs(x - x0).max() >= 1e-2:
        return (f(x) - f(x0)) / (x - x0)
    middle, h = (x + x0) / 2, 1e-3

    def central(h: float) -> Any:
        return (f(middle + h) - f(middle - h)) / (2 * h)

    return (4 * central(h / 2) - central(h)) / 3


def multiplier(body: str, x: float, x0: float) -> float:
    runner = Runner(joined(body), Resolver(), OnnxRuntime())
    return float(runner.multipliers([np.array([[[x]]])], [np.array([[[x0]]])], np.ones((1, 1, 1)))[0].item())


MASKED = "c = Greater(x, zero) l = Log(x) y = Where(c, l, zero)"
GUARDED = "e = Exp(x) p = Add(e, one) l = Log(p) c = Greater(x, three) y = Where(c, x, l)"
PRODUCT_OF_ROOTS = "q = Mul(x, x) r = Sqrt(q) s = Sigmoid(x) y = Mul(r, s)"


def test_a_branch_that_is_not_finite_where_not_selected() -> None:
    assert multiplier(MASKED, 2.0, 1.0) == pytest.approx(np.log(2.0), rel=1e-6)
    assert multiplier(MASKED, 2.0, -1.0) == pytest.approx(np.log(2.0) / 3, rel=1e-6)
    assert multiplier(MASKED, -2.0, 0.0) == 0.0
    assert multiplier(MASKED, -1.0, -1.0) == 0.0
    assert multiplier(MASKED, 2.0, 2.0) == pytest.approx(0.5, rel=1e-6)


def test_a_jump_has_the_secant_of_the_whole() -> None:
    """The two branches of this Softplus differ by 0.05 at the threshold."""
    h = 2.0**-12
    assert multiplier(GUARDED, 3 + h, 3 - h) == pytest.approx((3 + h - np.logaddexp(0, 3 - h)) / (2 * h), rel=1e-4)
    assert multiplier(GUARDED, 200.0, 100.0) == pytest.approx(1.0, rel=1e-6)
    assert multiplier(GUARDED, 200.0, 200.0) == pytest.approx(1.0, rel=1e-6)


def test_intermediate_infinities_leave_the_secant_or_the_difference_quotient() -> None:
    overflowing = "e = Exp(x) p = Add(e, three) l = Log(p) t = Tanh(l) y = Mul(x, t)"
    assert multiplier(overflowing, 200.0, 100.0) == pytest.approx(1.0, rel=1e-6)
    assert multiplier(overflowing, 200.0, 200.0) == pytest.approx(1.0, rel=1e-3)
    assert multiplier(PRODUCT_OF_ROOTS, 0.0, 0.0) == pytest.approx(0.0, abs=1e-3)


def test_steps_inside() -> None:
    sawtooth = "f = Floor(x) d = Sub(x, f) y = Mul(d, x)"
    assert multiplier(sawtooth, 1.75, 1.25) == pytest.approx((0.75 * 1.75 - 0.25 * 1.25) / 0.5, rel=1e-6)
    assert multiplier(sawtooth, 2.25, 1.75) == pytest.approx((0.25 * 2.25 - 0.75 * 1.75) / 0.5, rel=1e-6)
    assert multiplier(sawtooth, 1.5, 1.5) == pytest.approx(2.0, rel=1e-6)


def test_only_steps() -> None:
    staircase = "f = Floor(x) c = Greater(x, one) y = Where(c, f, zero)"
    assert multiplier(staircase, 2.5, 2.25) == 0.0
    assert multiplier(staircase, 2.5, 0.5) == pytest.approx(1.0, rel=1e-6)


def test_a_condition_that_does_not_depend_on_the_number() -> None:
    head = "one = Constant<value_float=1.0>() c = Constant<value = bool[4] {1, 0, 1, 0}>()"
    model = parsed(f"{{ {head} s = Sigmoid(x) a = Mul(x, s) y = Where(c, a, x) }}")
    graph = canonicalise(import_model(model, data(3, 4)).graph, ())
    assert [node.op_type for node in graph.nodes] == ["Elementwise"]
    check_rule(graph)


def test_a_wrong_multiplier_is_seen() -> None:
    def slightly_wrong(ctx: Any, m: Any) -> Any:
        return elementwise(ctx, m) * 1.0005

    graph = joined(CURVES["square times sigmoid"][0])
    with pytest.raises(AssertionError, match="law 1"):
        check_rule(graph, rule=rule_set({"deepshap_ir::Elementwise": slightly_wrong}))


@pytest.mark.parametrize("case", FUNCTIONS, ids=lambda case: f"{case[0]} {case[1]}")
def test_known_functions_are_recognised_from_the_operators_themselves(case: Any) -> None:
    name, attributes, f = case
    node = Node("node", name, ("x",), ("y",), attributes, "", 22)
    dtypes = dict.fromkeys("xy", np.dtype(np.float64))
    body = Graph(("x",), ("y",), (node,), {}, dict.fromkeys("xy", POINTS.shape), dtypes, {}, {"": 22})
    assert recognise(body) == (name, attributes)
    assert np.isfinite(f(POINTS)).all()


def test_a_function_that_is_a_thousandth_off_is_not_recognised() -> None:
    names = [name for name, _, _ in FUNCTIONS]
    graph = joined("k = Constant<value_float=1.001>() s = Softplus(x) t = Tanh(s) u = Mul(t, k) y = Mul(x, u)")
    assert graph.nodes[0].op_type not in names
