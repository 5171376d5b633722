"""Rules for operators that are functions of the model: the call stays one node, whatever is around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, parser

from deepshap_ir import DeepExplainer, InputError
from deepshap_ir.engine.registry import BUILT_IN
from deepshap_ir.extend import RuleSet, rule
from tests.onnx_text import Array, data

BACKGROUND, SAMPLES = data(4, 3), data(3, 3, seed=1)

FUNCTIONS = """
<domain: "lab", opset_import: ["" : 18, "lab" : 1]> Wave <omega: float = 2.0> (x) => (y) {
  w = Constant<value_float: float = @omega>() k = CastLike(w, x) p = Mul(x, k) s = Sin(p) y = Add(s, x)
}
<domain: "lab", opset_import: ["" : 18, "lab" : 1]> Twice <rate: float> (x) => (y, z) {
  a = lab.Wave<omega: float = @rate>(x) y = lab.Wave(a) z = Neg(a)
}
<domain: "lab", opset_import: ["" : 18, "lab" : 1]> Shift (x, by) => (y) { y = Add(x, by) }
"""


def model(body: str, signature: str = "(float[N,3] x) => (float[N,3] y)", version: int = 18) -> ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : {version}, "lab" : 1]> g {signature} {body} '
    return parser.parse_model(text + FUNCTIONS.replace('"" : 18', f'"" : {version}'))


def wave(ctx: Any, m: Any) -> Any:
    """The secant of ``sin(omega x) + x``, marked by a factor of 2 where that is asked."""
    delta = ctx.delta_x()
    seen.append((ctx.node.name, ctx.attribute("omega"), ctx.shape()))
    return m[0] * ctx.delta_y() / ctx.op.Where(ctx.op.Equal(delta, 0.0), 1.0, delta)


seen: list[tuple[str, float, tuple[int, ...]]] = []
RULES = {"lab::Wave": wave}


def both(body: str, rules: Any = None, **more: Any) -> tuple[DeepExplainer, Array]:
    """The explainer with a rule for the function, whose attributions are those of the inlined model."""
    seen.clear()
    made = model(body, more.pop("signature", "(float[N,3] x) => (float[N,3] y)"), more.pop("version", 18))
    explainer = DeepExplainer(made, BACKGROUND, rules=RULES if rules is None else rules, **more)
    values = explainer.shap_values(SAMPLES)
    expected = DeepExplainer(made, BACKGROUND, **more).shap_values(SAMPLES)
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)
    return explainer, values


def rows(explainer: DeepExplainer) -> list[tuple[str, str]]:
    return [(row.node, row.operator) for row in explainer.rules()]


@pytest.mark.parametrize("more", [{}, {"precision": "float64"}, {"version": 15}])
def test_a_call_is_a_node(more: dict[str, Any]) -> None:
    body = "{ h = Tanh(x) [mine] w = lab.Wave<omega = 3.0>(h) y = Relu(w) }"
    explainer, _ = both(body, **more)
    assert ("mine", "lab::Wave") in rows(explainer)
    assert len(rows(explainer)) == 3
    assert seen[0] == ("mine", 3.0, (1, 3))


def test_defaults_of_attributes_and_references_in_nested_calls() -> None:
    explainer, _ = both("{ [two] a, b = lab.Twice<rate = 1.5>(x) y = Add(a, b) }")
    assert [operator for _, operator in rows(explainer)].count("lab::Wave") == 2
    assert sorted(omega for _, omega, _ in seen) == [1.5, 2.0]


def test_a_function_that_calls_one_with_a_rule() -> None:
    """Both have a rule: the outer one is asked, and its forward pass runs the inner one."""

    def twice(ctx: Any, m: Any) -> Any:
        delta = ctx.delta_x()
        safe = ctx.op.Where(ctx.op.Equal(delta, 0.0), 1.0, delta)
        return sum((m[j] * ctx.delta_y(j) / safe for j in (0, 1) if m[j] is not None), ctx.op.zeros(ctx.shape()))

    body = "{ [two] a, b = lab.Twice<rate = 1.5>(x) y = Add(a, b) }"
    explainer, _ = both(body, {"lab::Wave": wave, "lab::Twice": twice})
    assert rows(explainer)[0] == ("two", "lab::Twice")
    assert not seen
    inner = explainer.graph.nodes[0].attributes["body"]
    assert [node.operator for node in inner.nodes].count("lab::Wave") == 2
    one, _ = both(body.replace("y = Add(a, b)", "y = Relu(b)"), {"lab::Twice": twice})
    assert one.graph.nodes[0].outputs == ("", "b")


def test_called_often_and_by_others() -> None:
    explainer, _ = both("{ a, b = lab.Twice<rate = 1.0>(x) c, d = lab.Twice<rate = 2.0>(b) y = Sub(c, a) }")
    kept = [name for name, operator in rows(explainer) if operator == "lab::Wave"]
    assert len(set(kept)) == len(kept) == 4


def test_one_call_by_name() -> None:
    body = "{ [one] a = lab.Wave(x) [other] y = lab.Wave(a) }"
    explainer, _ = both(body, {"other": wave})
    assert [name for name, operator in rows(explainer) if operator == "lab::Wave"] == ["other"]


def test_inputs_that_are_constants() -> None:
    def shift(ctx: Any, m: Any) -> Any:
        constants.append(ctx.constant(1))
        return [m[0] if ctx.varies(0) else None, m[0] if ctx.varies(1) else None]

    constants: list[Any] = []
    both("<float[3] c = {1, 2, 3}> { a = lab.Shift(x, c) y = Relu(a) }", {"lab::Shift": shift})
    np.testing.assert_array_equal(constants[0], [1, 2, 3])
    both("{ t = Tanh(x) a = lab.Shift(x, t) y = Relu(a) }", {"lab::Shift": shift})
    assert constants[-1] is None


def test_in_the_body_of_a_loop() -> None:
    body = """<float[1,1] zero = {0}> {
      t = Transpose<perm = [1, 0]>(x) s = Unsqueeze(t, one)
      last, all = Scan<num_scan_inputs = 1, body = step (float[1,N] h, float[1,N] e) => (float[1,N] g, float[1,N] o) {
        a = Add(h, e) [inside] g = lab.Wave<omega = 0.5>(a) o = Identity(g) }>(first, s)
      y = Transpose<perm = [1, 0]>(last)
    }"""
    body = body.replace("<float[1,1] zero = {0}>", "<int64[1] one = {1}>").replace(
        "s = Unsqueeze(t, one)",
        "s = Unsqueeze(t, one) z = Sub(t, t) i = Constant<value_ints = [0]>() first = ReduceSum<keepdims = 1>(z, i)",
    )
    explainer, _ = both(body, signature="(float[N,3] x) => (float[N,1] y)")
    assert "lab::Wave" in [operator for _, operator in rows(explainer)]
    assert seen[0][1] == 0.5
    named, _ = both(body, {"inside": wave}, signature="(float[N,3] x) => (float[N,1] y)")
    assert "lab::Wave" in [operator for _, operator in rows(named)]


def test_an_expansion_of_a_function() -> None:
    rules = RuleSet()
    rules.expand("lab::Wave")(lambda ctx: ctx.op.Sin(ctx.x() * ctx.attribute("omega")) + ctx.x())
    explainer, _ = both("{ a = lab.Wave<omega = 3.0>(x) y = Relu(a) }", rules)
    assert [operator for _, operator in rows(explainer)] == ["Mul", "Sin", "Add", "Relu"]


def test_a_rule_for_all_explainers() -> None:
    try:
        rule("lab::Wave")(wave)
        seen.clear()
        DeepExplainer(model("{ a = lab.Wave(x) y = Relu(a) }"), BACKGROUND).shap_values(SAMPLES)
        assert seen
    finally:
        BUILT_IN.rules.pop("lab::Wave", None)


def test_named_sets_leave_functions_alone() -> None:
    explainer = DeepExplainer(model("{ a = lab.Wave(x) y = Relu(a) }"), BACKGROUND, rules="integrated_gradients")
    assert "lab::Wave" not in [operator for _, operator in rows(explainer)]


def test_values_inside_of_a_call() -> None:
    """The values of a function have no names outside; those of the graph around it keep theirs."""
    explainer, _ = both("{ h = Tanh(x) w = lab.Wave(h) y = Relu(w) }", at=["w"])
    assert explainer.input_names == ("w",)
    explainer, _ = both("{ h = Tanh(x) w = lab.Wave(h) y = Relu(w) }", at=["h"])
    with pytest.raises(InputError, match="no value 's'"):
        DeepExplainer(model("{ w = lab.Wave(x) y = Relu(w) }"), BACKGROUND, rules=RULES, at=["s"])
