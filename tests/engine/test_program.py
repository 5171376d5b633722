"""What runs once per reference, once per sample and once per triple, and how much memory that takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.program import Plan, Program, build_plan, split
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.value import BACKGROUND, OUTPUT, SAMPLE, Step
from deepshap_ir.errors import InputError
from deepshap_ir.graph import Graph
from deepshap_ir.importing.importer import import_model
from tests.onnx_text import data, parsed

TWO_LAYERS = """{ w = Constant <value = float[4,4] {1,2,0,-1, 0,1,3,0, -2,0,1,1, 1,1,0,2}> ()
    h = MatMul(x, w) a = Relu(h) y = MatMul(a, w) }"""


def graph_of(body: str, signature: str = "(float[N,4] x) => (float[N,4] y)", **settings: Any) -> Graph:
    model = parsed(body, signature)
    background = {v.name: data(5, 4) for v in model.graph.input}
    return import_model(model, background, **settings).graph


def plan_of(body: str, **options: Any) -> Plan:
    return build_plan(graph_of(body), Resolver(), explained=["x"], **options)


def operators(program: Program) -> list[str]:
    return [step.op_type for step in program.steps]


def step_of(program: Program, op_type: str) -> Step:
    return next(step for step in program.steps if step.op_type == op_type)


# --- where a step belongs


def test_forward_passes_run_once_per_row_and_secants_once_per_pair() -> None:
    plan = plan_of(TWO_LAYERS)
    assert operators(plan.sample).count("MatMul") == 2
    assert operators(plan.background).count("MatMul") == 2
    assert {step.axes for step in plan.sample.steps} == {(SAMPLE,)}
    assert {step.axes for step in plan.background.steps} == {(BACKGROUND,)}
    back = [step for step in plan.explain.steps if step.op_type == "MatMul"]
    assert [step.axes for step in back] == [(OUTPUT,), (OUTPUT, SAMPLE, BACKGROUND)]
    assert (SAMPLE, BACKGROUND) in {step.axes for step in plan.explain.steps}


def test_what_is_linear_touches_no_pair() -> None:
    """Contributions of a linear model are the only values per pair."""
    plan = plan_of("{ w = Constant <value = float[4,2] {1,2,0,-1,0,1,3,0}> () y = MatMul(x, w) }")
    pairs = [step.op_type for step in plan.explain.steps if {SAMPLE, BACKGROUND} <= {*step.axes}]
    assert pairs == ["Sub", "Mul", "SumOver"]
    assert operators(plan.background) == ["MatMul"]


def test_what_nothing_needs_is_left_out() -> None:
    """The forward pass of the reference ends where only its base value is needed, and details are not computed."""
    plan = plan_of("{ y = Relu(x) unused = Exp(y) }")
    assert operators(plan.sample).count("Relu") == operators(plan.background).count("Relu") == 1
    assert "Exp" not in [*operators(plan.sample), *operators(plan.background), *operators(plan.explain)]
    roles = {role[0] for role in plan.result}
    assert roles == {"output", "base", "sum"}
    assert {role[0] for role in plan_of(TWO_LAYERS, details=True).result} == roles | {"squares", "absolute"}
    with_ledger = plan_of(TWO_LAYERS, ledger=True)
    assert {role[1] for role in with_ledger.result if role[0] == "residual"} == set(with_ledger.nodes)


def test_nothing_below_a_place_goes_backward() -> None:
    plan = plan_of(TWO_LAYERS.replace("Relu", "Tanh"), at=["a"])
    assert "Tanh" not in operators(plan.explain)
    assert operators(plan.explain).count("MatMul") == 1


def test_values_cross_from_one_program_to_the_next() -> None:
    plan = plan_of(TWO_LAYERS)
    made = {v.name for program in (plan.sample, plan.background) for v in program.outputs}
    fed = {v.name for v in plan.explain.inputs}
    assert fed <= made | {"sample_x", "background_x", "seed"}


@pytest.mark.parametrize("options", [{}, {"details": True, "ledger": True}, {"ranked": True}, {"own_references": True}])
def test_programs_are_standard_onnx(options: dict[str, bool]) -> None:
    plan = plan_of(TWO_LAYERS, **options)
    for program in plan.programs().values():
        if program.outputs:
            onnx.checker.check_model(program.model, full_check=True)
            assert {node.domain for node in program.model.graph.node} <= {"", "ai.onnx"}


def test_axes_of_what_is_fed() -> None:
    def axes(**options: Any) -> dict[str, tuple[str, ...]]:
        programs = plan_of("{ y = Exp(x) }", **options).programs().values()
        return {
            v.name: v.axes
            for p in programs
            for v in p.inputs
            if v.name.split("_")[0] in ("sample", "background", "seed")
        }

    assert axes() == {"sample_x": (SAMPLE,), "background_x": (BACKGROUND,), "seed": (OUTPUT,)}
    assert axes(own_references=True)["background_x"] == (SAMPLE, BACKGROUND)
    assert axes(ranked=True)["seed"] == (OUTPUT, SAMPLE)


def test_the_base_is_per_pair_only_where_it_depends_on_the_sample() -> None:
    assert not plan_of(TWO_LAYERS).per_pair_base
    assert plan_of(TWO_LAYERS, own_references=True).per_pair_base
    assert plan_of("{ h = Sigmoid(x) y = Mul(h, x) }", hold=["h"]).per_pair_base


def test_a_held_input_without_a_batch_axis_varies_over_none() -> None:
    model = parsed("{ a = Mul(x, s) y = Exp(a) }", "(float[N,4] x, float[4] s) => (float[N,4] y)")
    background = {"x": data(5, 4), "s": data(4)}
    graph = import_model(model, background, inputs=["x"], batch_axes={"s": None}).graph
    plan = build_plan(graph, Resolver(), explained=["x"])
    assert {v.axes for p in plan.programs().values() for v in p.inputs if v.name == "sample_s"} == {()}
    assert {step.axes for step in plan.background.steps} == {(BACKGROUND,)}
    assert not plan.per_pair_base
    graph = import_model(model, background, batch_axes={"s": None}).graph
    plan = build_plan(graph, Resolver(), explained=["x", "s"])
    assert {v.axes for p in plan.programs().values() for v in p.inputs if v.name == "sample_s"} == {(SAMPLE,)}


# --- splitting by hand


def test_split_makes_three_programs_of_any_steps() -> None:
    op = Emitter({"": 18})
    x = op.input("x", (3,), np.float32, [SAMPLE])
    x0 = op.input("x0", (3,), np.float32, [BACKGROUND])
    table = op.input("table", (3,), np.float32, [])
    shared = op.Exp(table)
    a, b = op.Exp(x) + shared, op.Exp(x0) + shared
    pair = a * b
    background, sample, explain = split(op, [pair, a])
    assert operators(background) == ["Exp", "Exp", "Add"]  # what all rows share is computed in each program
    assert operators(sample) == ["Exp", "Exp", "Add"]
    assert operators(explain) == ["Mul"]
    assert [v.name for v in sample.outputs] == [a.name]
    assert {v.name for v in explain.inputs} == {a.name, b.name}


def test_split_takes_inputs_and_constants_as_results() -> None:
    op = Emitter({"": 18})
    x = op.input("x", (3,), np.float32, [SAMPLE])
    constant = op.constant(np.ones(3, np.float32))
    programs = split(op, [x, constant])
    assert sum(len(p.outputs) for p in programs) == 2
    for program in programs:
        if program.outputs:
            onnx.checker.check_model(program.model, full_check=True)


# --- memory


def test_peak_is_the_most_that_lives_at_once() -> None:
    op = Emitter({"": 18})
    x = op.input("x", (100,), np.float32, [SAMPLE])
    wide = op.Expand(x, [50, 100])
    narrow = op.ReduceSum(op.Exp(wide), [0], keepdims=0)
    _, program, _ = split(op, [narrow])
    row = 100 * 4
    assert program.peak_bytes({SAMPLE: 1}) == row + 2 * 50 * row
    assert program.peak_bytes({SAMPLE: 7}) == 7 * program.peak_bytes({SAMPLE: 1})


def test_peak_grows_with_every_axis() -> None:
    explain = plan_of(TWO_LAYERS).explain
    one = {OUTPUT: 1, SAMPLE: 1, BACKGROUND: 1}
    for axis in one:
        assert explain.peak_bytes(one | {axis: 100}) > explain.peak_bytes(one)


def test_values_that_cross_live_to_the_end() -> None:
    """An output of a program is not freed when its last reader is done."""
    op = Emitter({"": 18})
    x = op.input("x", (100,), np.float32, [SAMPLE])
    first = op.Exp(x)
    last = op.ReduceSum(first, keepdims=0)
    _, program, _ = split(op, [first, last])
    assert program.peak_bytes({SAMPLE: 1}) == 400 + 400 + 4


# --- what cannot be explained


def test_an_output_that_nothing_explained_reaches() -> None:
    graph = graph_of("{ y = Exp(h) z = Add(x, h) }", "(float[N,4] x, float[N,4] h) => (float[N,4] y)", inputs=["h"])
    with pytest.raises(InputError, match=r"output 'y' does not depend on the explained inputs \['x'\]"):
        build_plan(graph, Resolver(), explained=["x"])


def test_a_place_that_does_not_vary() -> None:
    graph = graph_of("{ a = Exp(h) y = Add(x, a) }", "(float[N,4] x, float[N,4] h) => (float[N,4] y)")
    with pytest.raises(InputError, match=r"the values \['a'\] do not vary with the explained inputs \['x'\]"):
        build_plan(graph, Resolver(), explained=["x"], at=["a"])
