"""Where, with any of its operands varying."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from deepshap_ir.engine.backends import Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.testing import Runner, check_rule, exact_shapley, one_node_graph


def coin(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.integers(0, 2, shape).astype(float)


SUBSETS = [list(s) for n in (1, 2, 3) for s in itertools.combinations(range(3), n)]
SHAPES = [[(1, 4), (1, 4), (1, 4)], [(4,), (2, 1, 4), (3, 1)], [(2, 3), (3,), ()], [(), (2, 3), (1, 3)]]


@pytest.mark.parametrize("varying", SUBSETS, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_laws(varying: list[int], shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(3)
    inputs = [
        coin(rng, shapes[0]).astype(bool),
        *(s if i in varying else rng.normal(size=s) for i, s in enumerate(shapes) if i),
    ]
    check_rule("Where", inputs, varying=varying, domain={0: coin}, derivative=0 not in varying)


def test_integer_branches() -> None:
    """In float32, as every program without floating-point values."""
    graph = one_node_graph("Where", [np.zeros(4, bool), np.arange(4), np.arange(4)], [0, 1, 2])
    runner = Runner(graph, Resolver(), Reference())
    rng = np.random.default_rng(0)
    x, x0 = ([coin(rng, (3, 4)), *rng.integers(-5, 5, (2, 3, 4))] for _ in range(2))
    found = runner.multipliers(x, x0, np.ones((1, 4)))
    total = sum(m[0] * (a[:, None] - b) for m, a, b in zip(found, x, x0, strict=True))
    np.testing.assert_allclose(total, runner.delta(x, x0), atol=1e-5)


def multipliers(x: Any, x0: Any) -> list[Any]:
    """Of c, a and b, each a number per pair of values in `x` and `x0` (arrays ``[3, n]``)."""
    graph = one_node_graph("Where", [np.zeros(x.shape[1], bool), x[1], x[2]], [0, 1, 2])
    runner = Runner(graph, Resolver(), Reference())
    found = runner.multipliers([v[None] for v in x], [v[None] for v in x0], np.ones((1, x.shape[1])))
    return [m[0, 0, 0] for m in found]


@pytest.mark.parametrize(("c", "c0"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_three_players(c: float, c0: float) -> None:
    x, x0 = np.array([c, 2.0, -1.0]), np.array([c0, 0.5, 3.0])
    expected = exact_shapley(lambda r: np.where(r[:, 0] > 0.5, r[:, 1], r[:, 2]), x, x0)
    got = np.array(multipliers(x[:, None], x0[:, None]))[:, 0]
    np.testing.assert_allclose(got * (x - x0), expected, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_branch_that_is_not_finite_where_not_selected_is_no_player(bad: float) -> None:
    """All states of the two points: which branch each selects, and which unselected values are not finite."""
    for c, c0, spoilt, spoilt0 in itertools.product([0.0, 1.0], [0.0, 1.0], [False, True], [False, True]):
        x, x0 = np.array([c, 2.0, -1.0]), np.array([c0, 0.5, 3.0])
        y, y0 = (x[1] if c else x[2]), (x0[1] if c0 else x0[2])
        x[2 if c else 1] = bad if spoilt else x[2 if c else 1]
        x0[2 if c0 else 1] = bad if spoilt0 else x0[2 if c0 else 1]
        got = np.array(multipliers(x[:, None], x0[:, None]))[:, 0]
        assert np.isfinite(got).all()
        moved = np.isfinite(x) & np.isfinite(x0)
        assert (got[~moved] == 0).all()
        x[~moved], x0[~moved] = 0.0, 0.0
        players = [i for i in range(3) if moved[i] and x[i] != x0[i]]
        np.testing.assert_allclose(np.sum(got * (x - x0)), y - y0, atol=1e-12)
        if c != c0 and not spoilt and spoilt0:
            # the branch that the sample selects moved from nowhere: the other one and c share the change
            assert set(players) == {0, 1 if c0 else 2}


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_constant_that_is_not_finite_where_it_is_never_selected(bad: float) -> None:
    """As in ``where(isnan(x), nan, y)``; where it begins to be selected nothing finite adds up."""
    graph = one_node_graph("Where", [np.zeros(2, bool), np.full(2, bad), np.zeros(2)], [0, 2])
    runner = Runner(graph, Resolver(), Reference())
    for c0, finite in ((0.0, True), (1.0, False)):
        x, x0 = [np.zeros((1, 2)), np.ones((1, 2))], [np.array([[0.0, c0]]), np.full((1, 2), 3.0)]
        m_c, m_b = (m.reshape(-1) for m in runner.multipliers(x, x0, np.ones((1, 2))))
        assert m_c[0] == 0
        assert np.isfinite(m_c).all() == finite
        assert m_b[0] == 1


def test_a_condition_that_does_not_vary_selects() -> None:
    """Not a product with a mask: an infinite multiplier below an unselected branch is dropped."""
    graph = one_node_graph("Where", [np.array([True, False]), np.zeros(2), np.ones(2)], [1, 2])
    runner = Runner(graph, Resolver(), Reference())
    row = np.zeros((1, 2))
    m_a, m_b = runner.multipliers([row, row], [row, row], np.array([[3.0, np.inf]]))
    assert m_a.reshape(-1).tolist() == [3.0, 0.0]
    assert m_b.reshape(-1).tolist() == [0.0, np.inf]
