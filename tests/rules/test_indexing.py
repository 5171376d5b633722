"""Gather and Scatter in every form: fixed, fed and varying indices."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from deepshap_ir.engine.backends import Backend, OnnxRuntime, Reference
from deepshap_ir.engine.evaluator import Evaluator
from deepshap_ir.engine.program import build_plan
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.errors import RuleError
from deepshap_ir.testing import Runner, check_rule, exact_shapley, one_node_graph
from tests.rules.onnx_cases import node_cases

RNG = np.random.default_rng(6)


def draw(*shape: int) -> Any:
    return RNG.normal(size=shape)


def ints(*values: Any) -> Any:
    return np.array(values, np.int64)


def numbered(rows: list[Any]) -> list[Any]:
    return [pytest.param(*row, id=f"{row[0]}-{k}") for k, row in enumerate(rows)]


INDICES = [
    np.array(2),
    ints(1),
    ints(0, 1, 2, 3),
    ints(3, 2, 1, 0),
    ints(0, 2),
    ints(-1, 1),
    ints([0, 0], [1, 3], [0, -1]),
    ints(3, 0, 2, 1),
    ints(1, 2).astype(np.int32),
]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("indices", INDICES, ids=str)
def test_gather(axis: int, indices: Any) -> None:
    check_rule("Gather", [(4, 4, 4), indices], attributes={"axis": axis})


def test_gather_from_a_long_axis() -> None:
    check_rule("Gather", [(1, 70_000), ints([3, 5], [3, -1])], attributes={"axis": 1})
    check_rule("Gather", [(1, 700, 2), ints([3, 5], [3, -1])], attributes={"axis": 1})


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("indices", [ints([0, 1, -1], [2, 2, 2]), ints([0], [1]), ints([2, 1, 0, 0])], ids=str)
def test_gather_elements(axis: int, indices: Any) -> None:
    check_rule("GatherElements", [(3, 4), indices], attributes={"axis": axis})


@pytest.mark.parametrize(
    ("shape", "indices", "batch"),
    [
        ((3, 4, 5), ints([0, 1], [2, -1], [0, 1]), 0),
        ((3, 4, 5), ints([0, 1, 2], [2, 3, -1]), 0),
        ((3, 4), ints(1, 2), 0),
        ((2, 4, 5), ints([1], [-1]), 1),
        ((2, 4, 5), ints([[1], [0]], [[2], [2]]), 1),
        ((2, 3, 4), ints([[1], [0], [1]], [[2], [2], [3]]), 2),
    ],
    ids=str,
)
def test_gather_nd(shape: tuple[int, ...], indices: Any, batch: int) -> None:
    check_rule("GatherND", [shape, indices], attributes={"batch_dims": batch})


@pytest.mark.parametrize(("shape", "time_axis"), [((4, 3, 2), 0), ((3, 4), 1)])
def test_reverse_sequence(shape: tuple[int, ...], time_axis: int) -> None:
    attributes = {"time_axis": time_axis, "batch_axis": 1 - time_axis}
    check_rule("ReverseSequence", [shape, ints(1, 4, 2)], attributes=attributes)


SCATTERED: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("ScatterElements", [draw(3, 4), ints([0, 1, -1], [3, 2, 1]), draw(2, 3)], {"axis": 1}),
    ("ScatterElements", [draw(3, 4), ints([0, 2, 1, -1]), draw(1, 4)], {"axis": -2}),
    ("ScatterND", [draw(4, 3, 2), ints([0], [2]), draw(2, 3, 2)], {}),
    ("ScatterND", [draw(4, 3, 2), ints([[0, 1, 1]], [[2, -1, 0]]), draw(2, 1)], {}),
    ("ScatterND", [draw(5), ints([4], [1]), draw(2)], {}),
]


@pytest.mark.parametrize(("operator", "operands", "attributes"), numbered(SCATTERED))
@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("varying", [[0], [2], [0, 2]], ids=str)
def test_scatter(
    operator: str, operands: list[Any], attributes: dict[str, Any], reduction: str, varying: list[int]
) -> None:
    inputs = [a.shape if i in varying else a for i, a in enumerate(operands)]
    check_rule(operator, inputs, varying=varying, attributes={**attributes, "reduction": reduction})


@pytest.mark.parametrize("varying", [[0], [2], [0, 2]], ids=str)
def test_updates_of_one_place_add_up(varying: list[int]) -> None:
    for operator, operands in {
        "ScatterElements": [draw(4), ints(1, 1, 3), draw(3)],
        "ScatterND": [draw(4, 2), ints([1], [1], [3]), draw(3, 2)],
    }.items():
        inputs = [a.shape if i in varying else a for i, a in enumerate(operands)]
        check_rule(operator, inputs, varying=varying, attributes={"reduction": "add"})
        check_rule(operator, inputs, varying=varying, attributes={"reduction": "none"})  # the last one stays


@pytest.mark.parametrize("operator", ["ScatterElements", "ScatterND"])
@pytest.mark.parametrize("reduction", ["mul", "max", "min"])
@pytest.mark.parametrize("varying", [[0], [2], [0, 2]], ids=str)
def test_what_meets_at_one_place_are_players(operator: str, reduction: str, varying: list[int]) -> None:
    indices = ints(1, 2, 1) if operator == "ScatterElements" else ints([1], [2], [1])
    inputs = [a.shape if i in varying else a for i, a in enumerate([draw(4), indices, draw(3)])]
    check_rule(operator, inputs, varying=varying, attributes={"reduction": reduction}, derivative=reduction == "mul")


FED: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Gather", [draw(4, 3), ints([0, 1], [3, 3])], {"axis": 0}),
    ("Gather", [draw(4, 3), ints(2, -1)], {"axis": 1}),
    ("Gather", [draw(1, 4, 3), np.array(1)], {"axis": 1}),
    ("GatherElements", [draw(3, 4), ints([0, 1, -1, 2], [2, 2, 2, 0])], {"axis": 0}),
    ("GatherND", [draw(3, 4, 5), ints([0, 1], [2, -1], [0, 1])], {}),
    ("GatherND", [draw(2, 4, 5), ints([1], [-1])], {"batch_dims": 1}),
    *[
        (operator, operands, {**attributes, "reduction": reduction})
        for operator, operands, attributes in SCATTERED
        for reduction in ("none", "add")
    ],
]


@pytest.mark.parametrize(("operator", "operands", "attributes"), numbered(FED))
@pytest.mark.parametrize("backend", [Reference(), OnnxRuntime()], ids=["reference", "onnxruntime"])
@pytest.mark.parametrize("batched", [True, False])
def test_indices_that_are_the_samples_own(
    operator: str, operands: list[Any], attributes: dict[str, Any], backend: Backend, batched: bool
) -> None:
    """An input that is not explained is the same at sample and reference, but it is known only when data come."""
    fed = list(range(len(operands)))
    graph = one_node_graph(operator, operands, fed, attributes).astype(np.float32)
    if not batched:
        graph.batch_axes["x1"] = None
    explained = [f"x{i}" for i in fed if i != 1]
    plan = build_plan(graph, Resolver(), explained=explained)
    shapes = [(3, *a.shape) for a in operands]
    samples = {f"x{i}": draw(*shapes[i]).astype(np.float32) for i in fed if i != 1}
    samples["x1"] = np.stack([operands[1]] * 3) if batched else operands[1]
    if batched:
        samples["x1"][1] = np.flip(operands[1], 0) if operands[1].ndim else operands[1]
    references = {name: draw(2, *graph.shapes[name]).astype(np.float32) for name in explained}
    seeds = draw(2, *graph.shapes["y0"]).astype(np.float32)
    rows = Evaluator(plan, backend, 1 << 30, progress=False).evaluate(samples, references, seeds, 2)
    total = sum(rows.sums["sum", name].reshape(2, 3, -1).sum(-1) for name in explained)
    delta = (rows.output - rows.base).reshape(3, -1)
    np.testing.assert_allclose(total, 2 * seeds.reshape(2, -1) @ delta.T, rtol=1e-4, atol=1e-4)


def within(low: int, high: int) -> Any:
    return lambda rng, shape: rng.integers(low, high, shape)


EMBEDDED: list[tuple[str, list[Any], list[int], dict[str, Any], Any]] = [
    ("Gather", [draw(7, 3), np.zeros((1, 4), np.int64)], [1], {}, within(0, 7)),
    ("Gather", [(7, 3), np.zeros((1, 4), np.int64)], [0, 1], {}, within(0, 7)),
    ("Gather", [draw(3, 7), np.zeros(2, np.int64)], [1], {"axis": 1}, within(-7, 7)),
    ("Gather", [draw(7), np.array(0)], [1], {}, within(0, 7)),
    ("Gather", [draw(7, 3), np.zeros((1, 4), np.int32)], [1], {}, within(0, 7)),
    ("GatherElements", [(3, 4), np.zeros((3, 2), np.int64)], [0, 1], {"axis": 1}, within(0, 4)),
    ("GatherElements", [draw(3, 4), np.zeros((2, 4), np.int64)], [1], {"axis": 0}, within(0, 3)),
    ("GatherND", [draw(7, 3), np.zeros((4, 1), np.int64)], [1], {}, within(0, 7)),
    ("GatherND", [(2, 7, 3), np.zeros((2, 4, 1), np.int64)], [0, 1], {"batch_dims": 1}, within(0, 7)),
    ("GatherND", [draw(5, 4, 3), np.zeros((6, 2), np.int64)], [1], {}, within(-4, 4)),
    ("GatherND", [(3, 4), np.zeros((1, 5, 2), np.int64)], [0, 1], {}, within(0, 3)),
    ("GatherND", [draw(2, 3, 3, 3), np.zeros((2, 2, 3), np.int64)], [1], {"batch_dims": 1}, within(0, 3)),
    ("ReverseSequence", [(4, 3, 2), np.ones(3, np.int64)], [0, 1], {}, within(1, 5)),
    ("ReverseSequence", [draw(3, 4), np.ones(3, np.int64)], [1], {"time_axis": 1, "batch_axis": 0}, within(1, 5)),
]


@pytest.mark.parametrize(("operator", "inputs", "varying", "attributes", "domain"), numbered(EMBEDDED))
def test_varying_indices(
    operator: str, inputs: list[Any], varying: list[int], attributes: dict[str, Any], domain: Any
) -> None:
    check_rule(
        operator, inputs, varying=varying, attributes=attributes, domain={0: (-1.0, 1.0), 1: domain}, derivative=False
    )


def test_the_contribution_of_a_token_is_the_change_of_its_embedding() -> None:
    table, x, x0, seed = draw(5, 3), ints(1, 4, 2), ints(3, 4, 0), draw(3, 3)
    run = Runner(one_node_graph("Gather", [table, x], [1]), Resolver(), Reference())
    (m,) = run.multipliers([x[None]], [x0[None]], seed[None])
    np.testing.assert_allclose(m[0, 0, 0] * (x - x0), (seed * (table[x] - table[x0])).sum(1), rtol=1e-6)


def test_table_and_index_share_as_the_shapley_value_says() -> None:
    table, table0, i, i0 = draw(3), draw(3), ints(2), ints(0)
    run = Runner(one_node_graph("Gather", [table, i], [0, 1]), Resolver(), Reference())
    ms = run.multipliers([table[None], i[None]], [table0[None], i0[None]], np.ones((1, 1)))

    def chosen(rows: Any) -> Any:
        tables = np.where(rows[:, :1] == 1, table, table0)
        return np.take_along_axis(tables, np.where(rows[:, 1:] == 1, i, i0), 1)[:, 0]

    phi = exact_shapley(chosen, np.ones(2), np.zeros(2))
    got = [np.sum(ms[0][0, 0, 0] * (table - table0)), np.sum(ms[1][0, 0, 0] * (i - i0))]
    np.testing.assert_allclose(got, phi, rtol=1e-6)


def test_varying_indices_of_many_numbers_are_refused() -> None:
    with pytest.raises(RuleError, match="its indices vary, and are 5 numbers each; up to 4 have a rule"):
        check_rule("GatherND", [draw(2, 2, 2, 2, 2), ints([0, 1, 0, 1, 0])], varying=[1], domain=within(0, 2))


WRITTEN: list[tuple[str, list[Any], list[int], dict[str, Any]]] = [
    ("ScatterElements", [(2, 5), np.zeros((2, 4), np.int64), (2, 4)], [0, 1, 2], {"axis": 1}),
    ("ScatterElements", [draw(5, 2), np.zeros((3, 2), np.int64), draw(3, 2)], [1], {}),
    ("ScatterND", [(5, 3), np.zeros((1, 4, 1), np.int64), (1, 4, 3)], [1, 2], {}),
    ("ScatterND", [draw(5), np.zeros((4, 1), np.int64), draw(4)], [1], {}),
]


@pytest.mark.parametrize("reduction", ["add", "none"])
@pytest.mark.parametrize(("operator", "inputs", "varying", "attributes"), numbered(WRITTEN))
def test_what_is_written_at_varying_places(
    operator: str, inputs: list[Any], varying: list[int], attributes: dict[str, Any], reduction: str
) -> None:
    """Counts of words: a place has the change of the multiplier that it finds. Places meet, and the last stays."""
    domain = {0: (-1.0, 1.0), 1: within(-5, 5), 2: (-1.0, 1.0)}
    check_rule(
        operator,
        inputs,
        varying=varying,
        attributes={**attributes, "reduction": reduction},
        domain=domain,
        onnxruntime=operator == "ScatterElements" or reduction == "add",  # its ScatterND writes in no fixed order
        derivative=False,
    )


@pytest.mark.parametrize("reduction", ["add", "none"])
def test_varying_places_of_several_numbers_are_refused(reduction: str) -> None:
    with pytest.raises(RuleError, match="its indices vary, and are 2 numbers each; only single numbers"):
        check_rule(
            "ScatterND",
            [draw(4, 4), ints(1, 2), draw()],
            varying=[1],
            attributes={"reduction": reduction},
            domain=within(0, 3),
            derivative=False,
        )


def test_an_update_that_is_uncovered_is_the_doing_of_the_one_that_left() -> None:
    """Both write at place 1 at the reference, where the second stays; at the sample it has moved to place 3."""
    inputs = [np.zeros(4), ints(1, 3), np.array([5.0, 7.0])]
    graph = one_node_graph("ScatterElements", inputs, [1])
    seed = np.array([[1.0, 10, 100, 1000]])
    m = Runner(graph, Resolver(), Reference()).multipliers([ints([1, 3])], [ints([1, 1])], seed)[0]
    np.testing.assert_allclose(np.asarray(m).reshape(2) * [0, 2], [0, 10 * 5 + (1000 - 10) * 7])


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_compress_by_fixed_marks(axis: int | None) -> None:
    marks = np.array([True, False, True])
    check_rule("Compress", [(3, 4), marks], attributes={} if axis is None else {"axis": axis})


@pytest.mark.parametrize("module", ["gather", "gatherelements", "gathernd", "scatterelements", "scatternd"])
def test_cases_of_onnx(module: str) -> None:
    tried = [case for case in node_cases(module) if case.attributes.get("reduction", "none") in ("none", "add")]
    assert tried
    for case, updates in itertools.product(tried, [False, True]):
        varying = [0, 2] if updates and len(case.inputs) > 2 else [0]
        inputs = [a.shape if i in varying and a is not None else a for i, a in enumerate(case.inputs)]
        check_rule(case.operator, inputs, varying=varying, attributes=case.attributes, opset=case.opset)
