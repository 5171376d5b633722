"""Patterns are joined however they are spelled, nothing is joined across a value that must survive."""

from __future__ import annotations

import io
import itertools
import logging
import warnings
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import pytest

from deepshap_ir.canonical import canonicalise
from deepshap_ir.evaluator import Reference
from deepshap_ir.graph import Graph
from deepshap_ir.importer import import_model
from deepshap_ir.product_trees import MOST_FACTORS
from deepshap_ir.registry import Resolver
from deepshap_ir.testing import Runner, check_rule
from tests.onnx_text import data, parsed, run

NUMBERS = {"zero": 0.0, "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "twenty": 20.0, "eps": 1e-5}
HEAD = " ".join(f"{name} = Constant<value_float={value}>()" for name, value in NUMBERS.items())
VECTORS = (
    "last = Constant<value_ints=[-1]>() gamma = Constant<value_floats=[1.0,2.0,-3.0,0.5]>() "
    "beta = Constant<value_floats=[1.0,-1.0,0.5,2.0]>()"
)
X3 = "(float[N,3,4] x) => (float[N,3,4] y)"


def load(body: str, signature: str = X3, version: int = 18) -> Graph:
    model = parsed(f"{{ {HEAD} {VECTORS} {body} }}", signature, version)
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim[1:]] for v in model.graph.input]
    rows = {v.name: data(3, *s, seed=k) for k, (v, s) in enumerate(zip(model.graph.input, shapes, strict=True))}
    return import_model(model, rows).graph


def operators(graph: Graph) -> list[str]:
    return [node.operator.removeprefix("deepshap_ir::") for node in graph.nodes]


def joined(body: str, signature: str = X3, protected: Collection[str] = (), version: int = 18) -> Graph:
    """The canonical graph of a model, which computes what the model does, and whose rules obey the laws."""
    before = load(body, signature, version)
    after = canonicalise(before, protected)
    feeds = {name: data(*before.shapes[name], seed=5 + k) for k, name in enumerate(before.inputs)}
    for expected, got in zip(run(before, feeds, before.outputs), run(after, feeds, after.outputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)
    return after


FUNCTIONS = {
    "silu": ("s = Sigmoid(x) y = Mul(x, s)", "Swish"),
    "silu as a quotient": ("n = Neg(x) e = Exp(n) p = Add(one, e) y = Div(x, p)", "Swish"),
    "quick gelu": ("k = Constant<value_float=1.702>() u = Mul(x, k) s = Sigmoid(u) y = Mul(x, s)", "Swish"),
    "gelu": ("r = Sqrt(two) d = Div(x, r) e = Erf(d) p = Add(e, one) q = Mul(x, p) y = Mul(q, half)", "Gelu"),
    "gelu, other order": (
        "r = Sqrt(half) d = Mul(x, r) e = Erf(d) p = Add(one, e) h = Mul(p, half) y = Mul(h, x)",
        "Gelu",
    ),
    "gelu by tanh": (
        "k = Constant<value_float=0.044715>() c = Constant<value_float=0.7978845608>() t = Pow(x, three) "
        "kt = Mul(k, t) a = Add(x, kt) u = Mul(c, a) th = Tanh(u) p = Add(th, one) h = Mul(x, half) y = Mul(h, p)",
        "Gelu",
    ),
    "gelu by tanh, cubes by products": (
        "k = Constant<value_float=0.044715>() c = Constant<value_float=0.7978845608>() s = Mul(x, x) t = Mul(s, x) "
        "kt = Mul(k, t) a = Add(x, kt) u = Mul(c, a) th = Tanh(u) p = Add(th, one) h = Mul(x, p) y = Mul(h, half)",
        "Gelu",
    ),
    "softplus": ("e = Exp(x) p = Add(one, e) y = Log(p)", "Softplus"),
    "softplus with a threshold": (
        "e = Exp(x) p = Add(e, one) l = Log(p) c = Greater(x, twenty) y = Where(c, x, l)",
        "Softplus",
    ),
    "mish": ("s = Softplus(x) t = Tanh(s) y = Mul(x, t)", "Mish"),
    "mish spelled out": ("e = Exp(x) p = Add(e, one) s = Log(p) t = Tanh(s) y = Mul(x, t)", "Mish"),
    "sigmoid": ("n = Neg(x) e = Exp(n) p = Add(e, one) y = Reciprocal(p)", "Sigmoid"),
    "sigmoid, the other way": ("e = Exp(x) p = Add(e, one) y = Div(e, p)", "Sigmoid"),
    "tanh": ("e = Exp(x) n = Neg(x) f = Exp(n) d = Sub(e, f) s = Add(e, f) y = Div(d, s)", "Tanh"),
    "softsign": ("a = Abs(x) p = Add(a, one) y = Div(x, p)", "Softsign"),
    "hard swish": ("h = HardSigmoid<alpha=0.16666667>(x) y = Mul(x, h)", "Elementwise"),
    "masked logarithm": ("c = Greater(x, zero) l = Log(x) y = Where(c, l, zero)", "Elementwise"),
    "leaky by a mask": (
        "c = Greater(x, zero) f = Cast<to=1>(c) p = Mul(x, f) k = Mul(x, half) y = Add(p, k)",
        "Elementwise",
    ),
    "elu": ("c = Greater(x, zero) e = Exp(x) d = Sub(e, one) y = Where(c, x, d)", "Elementwise"),
    "square times sigmoid": ("s = Sigmoid(x) q = Mul(x, x) y = Mul(q, s)", "Elementwise"),
    "sawtooth": ("f = Floor(x) d = Sub(x, f) y = Mul(d, x)", "Elementwise"),
    "two bounds": (
        "c = Less(x, one) n = Neg(one) g = Greater(x, n) a = And(c, g) q = Mul(x, x) y = Where(a, q, zero)",
        "Elementwise",
    ),
    "with parameters": ("u = Mul(x, gamma) s = Sigmoid(u) v = Add(x, beta) y = Mul(s, v)", "Elementwise"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_one_number_is_one_node(name: str) -> None:
    body, operator = FUNCTIONS[name]
    graph = joined(body)
    assert operators(graph) == [operator]
    assert graph.nodes[-1].outputs == ("y",)
    steps = any(word in body for word in ("Floor", "Greater", "Less"))
    check_rule(graph, derivative=not steps, tolerance=1e-7, float32_tolerance=1e-5)


def test_swish_keeps_its_slope() -> None:
    graph = joined(FUNCTIONS["quick gelu"][0])
    assert graph.nodes[0].attributes["alpha"] == pytest.approx(1.702, abs=1e-6)


UNJOINED = {
    "a chain": ("s = Sigmoid(x) t = Tanh(s) y = Mul(t, half)", ["Sigmoid", "Tanh", "Mul"]),
    "a sum": ("s = Sigmoid(x) y = Add(x, s)", ["Sigmoid", "Add"]),
    "another shape": ("m = ReduceMax(x, last) y = Mul(x, m)", ["ReduceMax", "Mul"]),
    "a broadcast": (
        "k = Constant<value = float[2,1,1] {1.0, 2.0}>() u = Mul(x, k) s = Sigmoid(u) y = Mul(x, s)",
        ["Mul", "Sigmoid", "Mul"],
    ),
}


@pytest.mark.parametrize("name", UNJOINED)
def test_what_has_nothing_to_join_stays(name: str) -> None:
    body, expected = UNJOINED[name]
    signature = "(float[1,3,4] x) => (float[2,3,4] y)" if name == "a broadcast" else X3
    assert operators(joined(body, signature)) == expected


def test_the_largest_function_is_joined_and_its_parts_for_other_readers() -> None:
    body = "s = Sigmoid(x) a = Mul(x, s) c = Greater(x, half) f = Where(c, x, a) m = ReduceMax(a, last) y = Add(f, m)"
    graph = joined(body)
    assert sorted(operators(graph)) == ["Add", "Elementwise", "ReduceMax", "Swish"]
    assert {node.inputs for node in graph.nodes if node.op_type in ("Elementwise", "Swish")} == {("x",)}


def test_regions_in_a_row_are_joined_one_by_one() -> None:
    assert operators(joined("s = Sigmoid(x) a = Mul(x, s) t = Softplus(a) u = Tanh(t) y = Mul(a, u)")) == [
        "Swish",
        "Mish",
    ]


@pytest.mark.parametrize("inner", ["s", "t", "u"])
def test_nothing_is_joined_across_a_protected_value(inner: str) -> None:
    body = "s = Softplus(x) t = Tanh(s) u = Mul(x, t) y = Relu(u)"
    graph = joined(body, protected=[inner])
    assert inner in {name for node in graph.nodes for name in node.outputs}
    expected = {
        "s": ["Softplus", "Tanh", "Mul", "Relu"],
        "t": ["Softplus", "Tanh", "Mul", "Relu"],
        "u": ["Mish", "Relu"],
    }
    assert operators(graph) == expected[inner]


OWN = {
    "x sigmoid(x)": ("s = Sigmoid(x) y = Mul(x, s)", X3, ["Sigmoid", "Mul"]),
    "softmax": ("e = Exp(x) s = ReduceSum(e, last) y = Div(e, s)", X3, ["Exp", "ReduceSum", "Div"]),
    "square": ("s = Sigmoid(x) y = Mul(s, s)", X3, ["Sigmoid", "Mul"]),
    "pool": ("y = GlobalMaxPool(x)", "(float[N,2,4,6] x) => (float[] y)", ["GlobalMaxPool"]),
}


@pytest.mark.parametrize("name", OWN)
def test_a_node_with_a_rule_of_the_users_stays_as_it_is(name: str) -> None:
    body, signature, expected = OWN[name]
    before = load(body, signature)
    for own in before.nodes:
        graph = canonicalise(before, (), own=[own.name])
        assert own in graph.nodes
    assert operators(canonicalise(before, (), own=[node.name for node in before.nodes])) == expected
    assert operators(canonicalise(before, ())) != expected


SOFTMAX = {
    "plain": ("e = Exp(x) s = ReduceSum(e, last) y = Div(e, s)", ["Softmax"]),
    "shifted": ("m = ReduceMax(x, last) z = Sub(x, m) e = Exp(z) s = ReduceSum(e, last) y = Div(e, s)", ["Softmax"]),
    "squeezed": (
        "m = ReduceMax<keepdims=0>(x, last) u = Unsqueeze(m, last) z = Sub(x, u) e = Exp(z) "
        "s = ReduceSum<keepdims=0>(e, last) v = Unsqueeze(s, last) y = Div(e, v)",
        ["Softmax"],
    ),
    "reciprocal": ("e = Exp(x) s = ReduceSum(e, last) r = Reciprocal(s) y = Mul(r, e)", ["Softmax"]),
    "of logarithms": ("l = LogSoftmax<axis=1>(x) y = Exp(l)", ["Softmax"]),
    "repeated sum": (
        "e = Exp(x) s = ReduceSum(e, last) n = Constant<value_ints=[1,3,4]>() t = Expand(s, n) y = Div(e, t)",
        ["Softmax"],
    ),
    "two axes": (
        "a = Constant<value_ints=[1,2]>() e = Exp(x) s = ReduceSum(e, a) y = Div(e, s)",
        ["ReduceLogSumExp", "Sub", "Exp"],
    ),
    "logarithm": ("s = Softmax(x) y = Log(s)", ["LogSoftmax"]),
    "log-softmax": (
        "m = ReduceMax(x, last) z = Sub(x, m) e = Exp(z) s = ReduceSum(e, last) l = Log(s) y = Sub(z, l)",
        ["LogSoftmax"],
    ),
    "minus logsumexp": ("l = ReduceLogSumExp(x, last) y = Sub(x, l)", ["LogSoftmax"]),
    "minus shifted logsumexp": (
        "m = ReduceMax(x, last) z = Sub(x, m) e = Exp(z) s = ReduceSum(e, last) l = Log(s) k = Add(m, l) y = Sub(x, k)",
        ["LogSoftmax"],
    ),
}
SUMS = {
    "logsumexp": "e = Exp(x) s = ReduceSum<keepdims=0>(e, last) y = Log(s)",
    "reduced": "e = Exp(x) y = ReduceLogSum<keepdims=0>(e, last)",
    "shifted": (
        "m = ReduceMax(x, last) z = Sub(x, m) e = Exp(z) s = ReduceSum<keepdims=0>(e, last) l = Log(s) "
        "q = Squeeze(m, last) y = Add(l, q)"
    ),
}


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax(name: str) -> None:
    body, expected = SOFTMAX[name]
    graph = joined(body)
    assert operators(graph) == expected
    check_rule(graph)


@pytest.mark.parametrize("name", SUMS)
def test_log_sum_exp(name: str) -> None:
    graph = joined(SUMS[name], "(float[N,3,4] x) => (float[N,3] y)")
    assert operators(graph) == ["ReduceLogSumExp"]
    check_rule(graph)


def test_softmax_over_two_axes_has_the_multipliers_of_one_axis() -> None:
    flat = joined(
        "n = Constant<value_ints=[1,12]>() f = Reshape(x, n) s = Softmax(f) "
        "k = Constant<value_ints=[1,3,4]>() y = Reshape(s, k)"
    )
    assert_same(flat, joined(SOFTMAX["two axes"][0]))


def test_a_protected_sum_is_not_joined() -> None:
    body = "e = Exp(x) s = ReduceSum(e, last) y = Div(e, s)"
    assert operators(joined(body, protected=["s"])) == ["Exp", "ReduceSum", "Div"]
    assert operators(joined(body, protected=["e"])) == ["Exp", "ReduceSum", "Div"]


NORM = "m = ReduceMean(x, last) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, last) p = Add(v, eps) s = Sqrt(p)"
NORMS = {
    "quotient": (NORM + " n = Div(d, s) k = Mul(n, gamma) y = Add(k, beta)", ["LayerNormalization"]),
    "no scale": (NORM + " y = Div(d, s)", ["LayerNormalization"]),
    "reciprocal": (
        NORM + " r = Reciprocal(s) n = Mul(r, d) k = Mul(gamma, n) y = Add(beta, k)",
        ["LayerNormalization"],
    ),
    "power": (
        "h = Constant<value_float=-0.5>() m = ReduceMean(x, last) d = Sub(x, m) q = Pow(d, two) "
        "v = ReduceMean(q, last) p = Add(eps, v) r = Pow(p, h) y = Mul(d, r)",
        ["LayerNormalization"],
    ),
    "as batch normalization": (
        NORM + " r = Div(one, s) i = Mul(r, gamma) xi = Mul(x, i) mi = Mul(m, i) o = Sub(beta, mi) y = Add(xi, o)",
        ["LayerNormalization"],
    ),
    "as batch normalization without bias": (
        NORM + " r = Reciprocal(s) xi = Mul(x, r) mi = Mul(r, m) y = Sub(xi, mi)",
        ["LayerNormalization"],
    ),
    "two moments": (
        "m = ReduceMean(x, last) q = Mul(x, x) v1 = ReduceMean(q, last) mm = Mul(m, m) v = Sub(v1, mm) p = Add(v, eps) "
        "s = Sqrt(p) d = Sub(x, m) n = Div(d, s) y = Mul(n, gamma)",
        ["LayerNormalization"],
    ),
    "axes in front": (
        "a = Constant<value_ints=[1]>() m = ReduceMean(x, a) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, a) "
        "p = Add(v, eps) s = Sqrt(p) y = Div(d, s)",
        ["Transpose", "LayerNormalization", "Transpose"],
    ),
    "root mean square": (
        "q = Pow(x, two) v = ReduceMean(q, last) p = Add(v, eps) s = Sqrt(p) n = Div(x, s) y = Mul(n, gamma)",
        ["RMSNormalization"],
    ),
    "root mean square, inverse": (
        "q = Mul(x, x) v = ReduceMean(q, last) p = Add(v, eps) s = Sqrt(p) r = Reciprocal(s) y = Mul(x, r)",
        ["RMSNormalization"],
    ),
    "root mean square of two axes": (
        "a = Constant<value_ints=[1,2]>() q = Mul(x, x) v = ReduceMean(q, a) p = Add(v, eps) s = Sqrt(p) y = Div(x, s)",
        ["RMSNormalization"],
    ),
    "another mean": (
        "a = Constant<value_ints=[1]>() m = ReduceMean(x, a) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, last) "
        "p = Add(v, eps) s = Sqrt(p) y = Div(d, s)",
        ["ReduceMean", "Sub", "RMSNormalization"],
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    body, expected = NORMS[name]
    graph = joined(body)
    assert operators(graph) == expected
    check_rule(graph)


@pytest.mark.parametrize("inner", ["m", "d", "v", "s"])
def test_a_protected_part_of_a_norm_is_kept(inner: str) -> None:
    graph = joined(NORM + " y = Div(d, s)", protected=[inner])
    assert "LayerNormalization" not in operators(graph)
    assert inner in {name for node in graph.nodes for name in node.outputs}


ABC = "(float[N,3,4] a, float[N,3,4] b, float[N,3,4] c) => (float[N,3,4] y)"
ABCD = "(float[N,3,4] a, float[N,1,4] b, float[N,3,4] c, float[N,3,1] d) => (float[N,3,4] y)"


def assert_same(*graphs: Graph, tolerance: float = 1e-9) -> None:
    """All graphs, which have the same inputs, give the same multipliers."""
    rng = np.random.default_rng(1)
    shapes = graphs[0].shapes
    samples, references = ([rng.uniform(0.5, 2.0, (2, *shapes[n])) for n in graphs[0].inputs] for _ in range(2))
    seeds = rng.normal(size=(2, *shapes[graphs[0].outputs[0]]))
    answers = [
        Runner(g.astype(np.float64), Resolver(), Reference()).multipliers(samples, references, seeds) for g in graphs
    ]
    for answer in answers[1:]:
        for first, other in zip(answers[0], answer, strict=True):
            np.testing.assert_allclose(other, first, atol=tolerance)


def associations(names: list[str]) -> list[str]:
    """Every way to multiply `names` two at a time, as nodes."""
    found: list[tuple[str, Any]] = []

    def build(terms: list[Any]) -> None:
        if len(terms) == 1:
            found.append(("", terms[0]))
            return
        for i, j in itertools.combinations(range(len(terms)), 2):
            build([t for k, t in enumerate(terms) if k not in (i, j)] + [(terms[i], terms[j])])

    build(list(names))
    bodies = []
    for _, tree in found:
        lines: list[str] = []

        def emit(term: Any, lines: list[str] = lines) -> str:
            if isinstance(term, str):
                return term
            left, right = (emit(t, lines) for t in term)
            lines.append(f"p{len(lines)} = Mul({left}, {right})")
            return f"p{len(lines) - 1}"

        last = emit(tree)
        bodies.append(" ".join([*lines[:-1], lines[-1].replace(f"{last} =", "y =")]))
    return sorted(set(bodies))


def test_products_of_three_do_not_depend_on_nesting() -> None:
    graphs = [joined(body, ABC) for body in associations(["a", "b", "c"])]
    assert len(graphs) == 3
    assert all(operators(graph) == ["Product"] for graph in graphs)
    assert_same(*graphs)


def test_products_of_four_with_broadcasting_do_not_depend_on_nesting() -> None:
    graphs = [joined(body, ABCD) for body in associations(["a", "b", "c", "d"])[::4]]
    assert all(operators(graph) == ["Product"] for graph in graphs)
    assert_same(*graphs)
    check_rule(graphs[0])


QUOTIENTS = [
    "p = Mul(a, b) y = Div(p, c)",
    "p = Div(a, c) y = Mul(b, p)",
    "p = Div(c, b) y = Div(a, p)",
    "n = Neg(b) p = Mul(n, a) q = Neg(p) y = Div(q, c)",
]


def test_quotients_are_factors() -> None:
    graphs = [joined(body, ABC) for body in QUOTIENTS]
    assert all(operators(graph) == ["Product"] for graph in graphs)
    assert_same(*graphs)
    check_rule(graphs[0], domain=(0.5, 2.0))


EQUAL_FACTORS = [
    "p = Mul(a, a) y = Mul(p, c)",
    "p = Mul(a, c) y = Mul(p, a)",
    "p = Mul(c, a) y = Mul(a, p)",
    "p = Pow(a, two) y = Mul(c, p)",
]
GATED = [
    "s = Sigmoid(a) p = Mul(a, s) y = Mul(p, c)",
    "s = Sigmoid(a) p = Mul(a, c) y = Mul(p, s)",
    "s = Sigmoid(a) p = Mul(s, c) y = Mul(a, p)",
]
AC = "(float[N,3,4] a, float[N,3,4] c) => (float[N,3,4] y)"


def test_equal_factors_are_one_player() -> None:
    graphs = [joined(body, AC) for body in EQUAL_FACTORS]
    assert all(operators(graph) == ["Pow", "Mul"] for graph in graphs)
    assert_same(*graphs)


SQUARES = [
    "p = Mul(a, c) y = Mul(p, p)",
    "p = Mul(a, c) y = Pow(p, two)",
    "p = Mul(a, a) q = Mul(c, c) y = Mul(p, q)",
    "p = Mul(a, c) q = Mul(a, p) y = Mul(q, c)",
    "p = Neg(a) q = Mul(p, c) y = Pow(q, two)",
]


def test_powers_of_products_are_products_of_powers() -> None:
    graphs = [joined(body, AC) for body in SQUARES]
    assert all(operators(graph)[:2] == ["Pow", "Pow"] for graph in graphs)
    assert_same(*graphs)


def test_a_long_chain_of_squares_does_not_grow() -> None:
    body = " ".join(f"p{k + 1} = Mul(p{k}, p{k})" for k in range(1, 12))
    graph = joined(f"p1 = Mul(a, c) {body} y = Tanh(p12)", AC)
    assert len(graph.nodes) < 40
    check_rule(graph, domain=(0.99, 1.01))


def test_a_product_of_more_players_than_are_joined_is_joined_in_parts() -> None:
    names = [f"a{k}" for k in range(MOST_FACTORS + 3)]
    chain = ["p1 = Mul(a0, a1)", *(f"p{k} = Mul(p{k - 1}, a{k})" for k in range(2, len(names)))]
    body = " ".join(chain).replace(f"p{len(names) - 1} =", "y =")
    graph = joined(body, f"({', '.join(f'float[N,1] {name}' for name in names)}) => (float[N,1] y)")
    assert operators(graph) == ["Product", "Product"]


def test_functions_of_one_number_are_one_player() -> None:
    graphs = [joined(body, AC) for body in GATED]
    assert all(operators(graph) == ["Swish", "Mul"] for graph in graphs)
    assert_same(*graphs)


def test_equal_expressions_are_equal_factors() -> None:
    graph = joined("s = Sigmoid(a) t = Sigmoid(a) p = Mul(s, c) y = Mul(p, t)", AC)
    assert operators(graph) == ["Sigmoid", "Pow", "Mul"]


def test_a_product_that_is_protected_or_read_twice_is_a_factor() -> None:
    body = "p = Mul(a, b) y = Mul(p, c)"
    assert operators(joined(body, ABC, protected=["p"])) == ["Mul", "Mul"]
    assert operators(joined("p = Mul(a, b) q = Mul(p, c) y = Add(p, q)", ABC)) == ["Mul", "Mul", "Add"]


def test_constants_are_no_players() -> None:
    assert operators(joined("k = Mul(a, gamma) y = Mul(k, c)", AC)) == ["Mul", "Mul"]
    graph = joined("k = Mul(a, gamma) p = Mul(k, c) y = Mul(p, b)", ABC)
    assert operators(graph) == ["Product"]
    check_rule(graph)


def test_products_of_integers_stay() -> None:
    body = "i = Cast<to=7>(a) j = Cast<to=7>(c) p = Mul(i, j) q = Mul(p, i) y = Cast<to=1>(q)"
    assert operators(joined(body, AC)) == ["Cast", "Cast", "Mul", "Mul", "Cast"]


def test_equal_values_stay_apart_where_one_is_protected() -> None:
    body = "s = Sigmoid(x) t = Sigmoid(x) y = Add(s, t)"
    assert operators(joined(body)) == ["Sigmoid", "Add"]
    assert operators(joined(body, protected=["s"])) == ["Sigmoid", "Sigmoid", "Add"]
    assert operators(joined("s = Add(x, gamma) t = Add(gamma, x) y = Sub(s, t)")) == ["Add", "Sub"]
    assert operators(joined("s = Sub(x, gamma) t = Sub(gamma, x) y = Sub(s, t)")) == ["Sub", "Sub", "Sub"]


POOLS = {
    "GlobalMaxPool(x)": "ReduceMax",
    "GlobalAveragePool(x)": "ReduceMean",
    "MaxPool<kernel_shape=[4,6]>(x)": "ReduceMax",
    "MaxPool<kernel_shape=[6,8],pads=[1,1,1,1]>(x)": "ReduceMax",
    "AveragePool<kernel_shape=[4,6]>(x)": "ReduceMean",
    "AveragePool<kernel_shape=[6,8],pads=[1,1,1,1]>(x)": "ReduceMean",
    "AveragePool<kernel_shape=[6,8],pads=[1,1,1,1],count_include_pad=1>(x)": "AveragePool",
    "MaxPool<kernel_shape=[2,6]>(x)": "MaxPool",
    "MaxPool<kernel_shape=[2,6],strides=[4,1]>(x)": "MaxPool",
    "MaxPool<kernel_shape=[2,3],dilations=[2,2]>(x)": "MaxPool",
    'MaxPool<kernel_shape=[4,6],auto_pad="SAME_UPPER",strides=[4,6]>(x)': "MaxPool",
}


@pytest.mark.parametrize("pool", POOLS)
def test_a_window_over_everything_is_a_reduction(pool: str) -> None:
    graph = joined(f"y = {pool}", "(float[N,2,4,6] x) => (float[] y)")
    assert operators(graph) == [POOLS[pool]]


def test_pools_that_compute_the_same_have_the_same_multipliers() -> None:
    signature = "(float[N,2,4,6] x) => (float[] y)"
    assert_same(*(joined(f"y = {pool}", signature) for pool in ("GlobalMaxPool(x)", "MaxPool<kernel_shape=[4,6]>(x)")))


def test_maximum_with_indices_stays() -> None:
    body = "m, i = MaxPool<kernel_shape=[4,6]>(x) f = Cast<to=1>(i) y = Add(m, f)"
    assert "MaxPool" in operators(joined(body, "(float[1,2,4,6] x) => (float[] y)"))


@pytest.mark.parametrize("dynamo", [False, True])
def test_what_torch_exports(dynamo: bool) -> None:
    """One after another, all functions that torch spells out."""
    torch = pytest.importorskip("torch")

    class Spelled(torch.nn.Module):  # type: ignore[misc, name-defined]
        """A cumulative sum stands between what would be one function of one number together."""

        def forward(self, x: Any) -> Any:
            functional = torch.nn.functional
            x = functional.silu(x).cumsum(-1)
            x = functional.gelu(x).cumsum(-1)
            x = functional.gelu(x, approximate="tanh").cumsum(-1)
            x = functional.softsign(x).cumsum(-1)
            x = torch.where(x > 20.0, x, torch.log(1.0 + torch.exp(x)))
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            centred = x - x.mean(-1, keepdim=True)
            x = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)
            powers = torch.exp(x - x.amax(-1, keepdim=True))
            return powers / powers.sum(-1, keepdim=True)

    torch.manual_seed(0)
    example = torch.randn(1, 3, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            logging.getLogger("torch").setLevel(logging.ERROR)
            model = torch.onnx.export(Spelled(), (example,), dynamo=True, verbose=False).model_proto
        else:
            file = io.BytesIO()
            torch.onnx.export(Spelled(), (example,), file, dynamo=False, opset_version=17)
            model = onnx.load_from_string(file.getvalue())
    rows = data(3, 3, 6)
    before = import_model(model, rows).graph
    graph = canonicalise(before, ())
    functions = ["Swish", "Gelu", "Gelu", "Softsign", "Softplus", "RMSNormalization", "LayerNormalization", "Softmax"]
    assert [name for name in operators(graph) if name != "CumSum"] == functions
    feeds = {graph.inputs[0]: rows[:1]}
    np.testing.assert_allclose(run(graph, feeds)[0], run(before, feeds)[0], rtol=1e-5)
