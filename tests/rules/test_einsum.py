"""Einsum: every form of equation, any operands varying."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from deepshap_ir.engine.backends import Reference
from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.errors import RuleError
from deepshap_ir.rules.einsum import adjoint, parse
from deepshap_ir.testing import Runner, check_rule, exact_shapley, one_node_graph

ONE = [
    ("ij->ji", (2, 3)),
    ("ii->i", (3, 3)),
    ("ii", (3, 3)),
    ("iji->j", (2, 3, 2)),
    ("ij->i", (2, 3)),
    ("ij->", (2, 3)),
    ("...ij->...i", (4, 2, 3)),
    ("b...->...", (2, 3, 4)),
    ("...ii->...", (2, 3, 3)),
    ("ba", (2, 3)),
]
TWO = [
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 2)),
    ("bij, bjk", (2, 3, 4), (2, 4, 2)),
    ("bqhd,bkhd->bhqk", (1, 3, 2, 4), (1, 2, 2, 4)),
    ("i,i", (3,), (3,)),
    ("i,j->ij", (3,), (2,)),
    ("ij,jk->k", (2, 3), (3, 4)),
    ("ij,kl->i", (2, 3), (2, 2)),
    ("...ij,...jk->...ik", (2, 3, 4), (4, 2)),
    ("...ij,...jk->...ik", (1, 2, 2, 3), (4, 1, 3, 2)),
    ("i...,i...->...", (2, 3, 1), (2, 4)),
    ("ii,ij->j", (2, 2), (2, 3)),
    ("b...j,jk->b...k", (1, 2, 3), (3, 2)),
    ("aBc,cD->aBD", (1, 2, 3), (3, 2)),
]
THREE = [
    ("i,i,i->i", (3,), (3,), (3,)),
    ("ij,jk,kl->il", (2, 3), (3, 2), (2, 2)),
    ("bi,ij,bj->b", (2, 3), (3, 4), (2, 4)),
]


@pytest.mark.parametrize(("equation", "shape"), ONE)
def test_one_operand(equation: str, shape: tuple[int, ...]) -> None:
    check_rule("Einsum", [shape], attributes={"equation": equation})


@pytest.mark.parametrize("varying", [[0], [1], [0, 1]], ids=str)
@pytest.mark.parametrize("case", TWO, ids=str)
def test_two_operands(case: Any, varying: list[int]) -> None:
    equation, *shapes = case
    inputs = [s if i in varying else np.random.default_rng(1).normal(size=s) for i, s in enumerate(shapes)]
    # onnxruntime refuses ellipses of different ranks, in the model already
    ranks = {
        len(s) - len(t.replace("...", "")) for t, s in zip(equation.split("->")[0].split(","), shapes, strict=True)
    }
    runs = "..." not in equation or len(ranks) == 1
    check_rule("Einsum", inputs, varying=varying, attributes={"equation": equation}, onnxruntime=runs)


@pytest.mark.parametrize("varying", [[2], [0, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("case", THREE, ids=str)
def test_three_operands(case: Any, varying: list[int]) -> None:
    equation, *shapes = case
    inputs = [s if i in varying else np.random.default_rng(1).normal(size=s) for i, s in enumerate(shapes)]
    check_rule("Einsum", inputs, varying=varying, attributes={"equation": equation})


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_operands_are_players_of_exact_shapley(n: int) -> None:
    """Each operand has one element, so operands and numbers are the same players."""
    rng = np.random.default_rng(n)
    x, x0 = rng.normal(size=(2, n))
    equation = ",".join("i" * n) + "->"
    graph = one_node_graph("Einsum", [np.zeros(1)] * n, list(range(n)), {"equation": equation})
    runner = Runner(graph, Resolver(), Reference())
    found = runner.multipliers(list(x[:, None, None]), list(x0[:, None, None]), np.ones(1))
    phi = np.array([m.item() for m in found]) * (x - x0)
    np.testing.assert_allclose(phi, exact_shapley(lambda rows: rows.prod(1), x, x0), atol=1e-12)


def test_same_as_matmul() -> None:
    rng = np.random.default_rng(0)
    shapes = [(2, 3), (3, 4)]
    samples, references = [[rng.normal(size=(2, *s)) for s in shapes] for _ in range(2)]
    seeds = rng.normal(size=(2, 2, 4))
    answers = []
    for operator, attributes in (("Einsum", {"equation": "ij,jk->ik"}), ("MatMul", {})):
        graph = one_node_graph(operator, [np.zeros(s) for s in shapes], [0, 1], attributes)
        answers.append(Runner(graph, Resolver(), Reference()).multipliers(samples, references, seeds))
    for a, b in zip(*answers, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_too_many_axes_are_refused_by_name() -> None:
    letters = [chr(c) for c in itertools.chain(range(97, 123), range(65, 91))]
    equation = f"{''.join(letters[:27])}a,{''.join(letters[26:])}->"
    shapes = [(1,) * 28, (1,) * 26]
    op = Emitter({"": 18}, np.dtype(np.float64))
    values = [op.input("a", shapes[0], np.float64, []), op.input("b", shapes[1], np.float64, [])]
    with pytest.raises(RuleError, match="53 different axes; at most 52"):
        adjoint(parse(equation, shapes, ()), 0, [None, values[1]], op.input("m", (), np.float64, []))
