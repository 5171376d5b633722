"""Operators that move elements, in every form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.program import build_plan
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.walker import Walker
from deepshap_ir.errors import RuleError
from deepshap_ir.rules.movement import sliced
from deepshap_ir.testing import check_rule, one_node_graph
from tests.rules.onnx_cases import node_cases

RNG = np.random.default_rng(4)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def whole(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.integers(-5, 6, shape)


PLAIN: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Reshape", [(1, 2, 3), ints(-1, 2)], {}),
    ("Reshape", [(2, 3), ints(0, 3, 1)], {}),
    ("Reshape", [(2, 3), ints(3, 2)], {"allowzero": 1}),
    ("Reshape", [(1,), ints()], {}),
    ("Reshape", [(), ints(1, 1)], {}),
    ("Flatten", [(2, 3, 4)], {}),
    ("Flatten", [(2, 3, 4)], {"axis": 0}),
    ("Flatten", [(2, 3, 4)], {"axis": -1}),
    ("Squeeze", [(1, 2, 1, 3)], {}),
    ("Squeeze", [(1, 2, 1, 3), ints(-2)], {}),
    ("Unsqueeze", [(2, 3), ints(0, -1)], {}),
    ("Transpose", [(2, 3, 4)], {}),
    ("Transpose", [(2, 3, 4)], {"perm": [1, 2, 0]}),
    ("Expand", [(2, 1, 3), ints(4, 1, 5, 1)], {}),
    ("Expand", [(2, 1, 3), ints(2, 5, 3)], {}),
    ("Expand", [(3,), ints(1)], {}),
    ("Tile", [(2, 3), ints(2, 3)], {}),
    ("Tile", [(2, 3), ints(1, 1)], {}),
    ("Tile", [(2, 1, 3), ints(1, 4, 1)], {}),
    ("DepthToSpace", [(1, 8, 2, 3)], {"blocksize": 2}),
    ("DepthToSpace", [(1, 18, 2, 3)], {"blocksize": 3, "mode": "DCR"}),
    ("DepthToSpace", [(2, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [(1, 2, 4, 6)], {"blocksize": 2}),
    ("Trilu", [(2, 4, 5)], {}),
    ("Trilu", [(4, 4), np.array(1)], {"upper": 0}),
    ("Trilu", [(2, 4, 5), np.array(-2)], {"upper": 1}),
    ("CenterCropPad", [(4, 5), ints(2, 7)], {}),
    ("CenterCropPad", [(4, 5), ints(5, 2)], {}),
    ("CenterCropPad", [(4, 5, 6), ints(7, 3)], {"axes": [0, -1]}),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes"), PLAIN, ids=str)
def test_one_moved_operand(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    check_rule(operator, inputs, attributes=attributes)


@pytest.mark.parametrize("opset", [19, 21, 23, 24, 25])
def test_newer_opsets_read_alike(opset: int) -> None:
    check_rule("Reshape", [(2, 3), ints(3, 2)], opset=opset)
    check_rule("Transpose", [(2, 3)], opset=opset)
    check_rule("Squeeze", [(2, 1), ints(1)], opset=opset)
    check_rule("Pad", [(2, 3), ints(0, 1, 1, 0)], opset=opset)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("varying", [[0], [2], [0, 1, 2]], ids=str)
def test_concat(axis: int, varying: list[int]) -> None:
    shapes = [[2, 3, 4], [2, 3, 4], [2, 3, 4]]
    shapes[1][axis] = 1
    inputs = [tuple(s) if i in varying else RNG.normal(size=s) for i, s in enumerate(shapes)]
    check_rule("Concat", inputs, varying=varying, attributes={"axis": axis})


@pytest.mark.parametrize("explained", [0, 1, 2])
@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        ([(6, 2)], {"num_outputs": 3}),
        ([(2, 7)], {"axis": 1, "num_outputs": 3}),
        ([(7, 2), ints(1, 2, 4)], {"axis": -2}),
    ],
    ids=str,
)
def test_split_with_pieces_that_are_not_used(inputs: list[Any], attributes: dict[str, Any], explained: int) -> None:
    check_rule("Split", inputs, attributes=attributes, outputs=3, explained=explained)


@pytest.mark.parametrize("used", [[0, 1, 2], [0, 2], [1, 2], [1]], ids=str)
def test_split_with_pieces_that_are(used: list[int]) -> None:
    """The pieces come together again in a sum."""
    graph = one_node_graph("Split", [RNG.normal(size=(6, 2)), ints(2, 2, 2)], [0], outputs=3)
    total = type(graph.nodes[0])("sum", "Sum", tuple(f"y{k}" for k in used), ("total",))
    graph.shapes["total"], graph.dtypes["total"] = graph.shapes["y0"], graph.dtypes["y0"]
    graph.nodes, graph.outputs = (*graph.nodes, total), ("total",)
    check_rule(graph)


SLICES: list[list[Any]] = [
    [ints(1), ints(3), ints(1)],
    [ints(1, 0), ints(3, 4)],
    [ints(0), ints(100), ints(-1), ints(2)],
    [ints(-1), ints(-100), ints(0), ints(-1)],
    [ints(3), ints(0), ints(1), ints(-2)],
    [ints(1, 1), ints(-1, 3), ints(0, 2), ints(1, 1)],
    [ints(1, 3, 0), ints(4, 0, 5), ints(0, 1, 2), ints(2, -1, 3)],
    [ints(100), ints(-100), ints(2), ints(-1)],
    [ints(-3), ints(2**62), ints(2), ints(1)],
]


@pytest.mark.parametrize("operands", SLICES, ids=str)
def test_slice(operands: list[Any]) -> None:
    check_rule("Slice", [(4, 5, 6), *operands])


@pytest.mark.parametrize(
    ("start", "end", "step", "places"),
    [
        (0, 5, 1, [0, 1, 2, 3, 4]),
        (-2, 9, 1, [3, 4]),
        (-9, 9, 3, [0, 3]),
        (9, -9, -2, [4, 2, 0]),
        (-9, -99, -1, [0]),
        (4, -1, -1, []),
        (7, 9, 1, []),
        (3, 1, 1, []),
    ],
)
def test_out_of_range_places_are_clamped(start: int, end: int, step: int, places: list[int]) -> None:
    assert sliced(start, end, step, 5).tolist() == places


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    "operands",
    [
        [ints(0, 1, 2, 0, 2, 1)],
        [ints(0, -1, 2, 0, 2, -1)],
        [ints(0, -1, -2, 0, -1, -1)],
        [ints(1, 2, 2, 1), None, ints(-1, 1)],
        [ints(0, 0, 0, 0, 0, 0), np.array(3.0)],
    ],
    ids=str,
)
def test_pad(mode: str, operands: list[Any]) -> None:
    check_rule("Pad", [(2, 4, 5), *operands], attributes={"mode": mode}, opset=19)


@pytest.mark.parametrize("varying", [[2], [0, 2]], ids=str)
@pytest.mark.parametrize("pads", [ints(0, 1, 2, 0, 2, 1), ints(0, -1, 2, 0, 2, -1), ints(0, -1, 0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_pad_with_a_varying_value(varying: list[int], pads: Any, shape: tuple[int, ...]) -> None:
    operands = [RNG.normal(size=(2, 4, 5)) if 0 not in varying else (2, 4, 5), pads, shape]
    check_rule("Pad", operands, varying=varying)


def test_pads_of_wide_rows() -> None:
    check_rule("Pad", [(1, 2, 600), ints(0, 1, 7, 0, 0, 9)], attributes={"mode": "edge"})
    check_rule("Pad", [(1, 3, 600), ints(0, 2, 7, 0, 1, 9)], attributes={"mode": "reflect"})


@pytest.mark.parametrize("operator", ["Reshape", "Transpose", "Concat", "Slice", "Pad", "Expand"])
def test_integers_move_too(operator: str) -> None:
    operands = {
        "Reshape": [ints(3, 2)],
        "Slice": [ints(1), ints(3), ints(1)],
        "Pad": [ints(0, 1, 1, 0)],
        "Expand": [ints(2, 2, 3)],
        "Concat": [ints(1, 2, 3).reshape(1, 3)],
    }
    graph = one_node_graph(
        operator,
        [np.zeros((2, 3), np.int64), *operands.get(operator, [])],
        [0],
        {"axis": 0} if operator == "Concat" else {},
    )
    cast = type(graph.nodes[0])("cast", "Cast", ("y0",), ("out",), {"to": 11})
    graph.shapes["out"], graph.dtypes["out"] = graph.shapes["y0"], np.dtype(np.float64)
    graph.nodes, graph.outputs = (*graph.nodes, cast), ("out",)
    check_rule(graph, domain=whole, derivative=False)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "emitted"),
    [
        ("Slice", [ints(1, 1), ints(3, 4), ints(1, 2)], {}, ["Pad"]),
        ("Concat", [np.zeros((2, 4, 1))], {"axis": 2}, ["Slice"]),
        ("Pad", [ints(0, 1, 2, 0, 2, 1)], {}, ["Slice"]),
        ("Reshape", [ints(8, 5)], {}, ["Reshape"]),
        ("Transpose", [], {"perm": [2, 0, 1]}, ["Transpose"]),
        ("Gather", [ints(3)], {"axis": 1}, ["Pad"]),
    ],
    ids=str,
)
def test_frequent_movements_go_back_in_one_pass(
    operator: str, inputs: list[Any], attributes: dict[str, Any], emitted: list[str]
) -> None:
    graph = one_node_graph(operator, [np.zeros((2, 4, 5)), *inputs], [0], attributes)
    steps = build_plan(graph, Resolver(), explained=["x0"], multipliers=True).explain.steps
    assert [s.op_type for s in steps if s.op_type in {*emitted, "Gather", "MatMul", "ScatterElements"}] == emitted


@pytest.mark.parametrize(("operator", "what"), [("Slice", "starts"), ("Tile", "repeats"), ("Pad", "pads")])
def test_what_a_model_input_determines_is_refused(operator: str, what: str) -> None:
    op = Emitter({"": 18})
    given = {"Slice": [ints(0), ints(2)], "Tile": [ints(1, 1)], "Pad": [ints(0, 0, 0, 0)]}[operator]
    graph = one_node_graph(operator, [np.zeros((2, 3)), *given], [0])
    x, x0 = (op.input(name, (2, 3), np.float32, [axis]) for name, axis in (("x", "sample"), ("x0", "background")))
    fed = [op.input(f"fed{i}", a.shape, np.int64, ["sample"]) for i, a in enumerate(given)]
    known = {"x0": (x, x0), **{f"x{i + 1}": (v, v) for i, v in enumerate(fed)}, "y0": (x, x0)}
    walker = Walker(op, Resolver())
    with pytest.raises(RuleError, match=f"its {what} are computed from a model input; only fixed {what} are supported"):
        walker.apply(walker.context(graph.nodes[0], graph, known), [x])


MODULES = (
    "reshape flatten squeeze unsqueeze transpose expand tile concat split slice pad center_crop_pad depthtospace "
    "spacetodepth trilu reversesequence"
)


@pytest.mark.parametrize("module", MODULES.split())
def test_cases_of_onnx(module: str) -> None:
    tried = [case for case in node_cases(module) if "zero" not in case.name and "out_of_bounds" not in case.name]
    assert tried or module == "trilu"  # whose cases are integers
    for case in tried:
        varying = [i for i, a in enumerate(case.inputs) if a is not None and a.dtype == np.float32 and a.ndim]
        inputs = [a.shape if i in varying and a is not None else a for i, a in enumerate(case.inputs)]
        check_rule(
            case.operator,
            inputs,
            varying=varying,
            attributes=case.attributes,
            opset=case.opset,
            outputs=case.n_outputs,
        )
