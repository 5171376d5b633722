"""Products of any nesting have one answer."""

from __future__ import annotations

import itertools
from typing import Any

from deepshap_ir.joins.product_trees import MOST_FACTORS
from deepshap_ir.testing import check_rule
from tests.joins.joining import assert_same, joined, operators

ABC = "(float[N,3,4] a, float[N,3,4] b, float[N,3,4] c) => (float[N,3,4] y)"
ABCD = "(float[N,3,4] a, float[N,1,4] b, float[N,3,4] c, float[N,3,1] d) => (float[N,3,4] y)"


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
