"""What a researcher may get wrong in a rule, and what the error says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from deepshap_ir import AdditivityError, DeepExplainer, RuleError
from deepshap_ir.extend import Context
from tests.onnx_text import Array, data, parsed

BACKGROUND, SAMPLES = data(3, 4), data(2, 4, seed=1)
RELU = "{ [act] y = Relu(x) }"
LOOP = """<int64[1] one = {1}, int64[1] zero = {0}, float[1,1,2] w = {0.5, -1}, float[1,1,1] r = {0.7}> {
    s = Reshape(x, shape) t = Transpose<perm = [1, 0, 2]>(s) [layer] h, last = RNN<hidden_size = 1>(t, w, r)
    y = Squeeze(last, zero) }""".replace("int64[1] zero", "int64[3] shape = {-1, 2, 2}, int64[1] zero")
SCAN = """<int64[1] one = {1}> {
    t = Transpose<perm = [1, 0]>(x) s = Unsqueeze(t, one) f = Identity(first)
    last, all = Scan<num_scan_inputs = 1, body = step (float[1,N] h, float[1,N] e) => (float[1,N] g, float[1,N] o) {
        [sum] a = Add(h, e) [squash] g = Tanh(a) o = Identity(g) }>(f, s)
    y = Transpose<perm = [1, 0]>(last) }""".replace(
    "f = Identity(first)", "z = Sub(t, t) i = Constant<value_ints = [0]>() f = ReduceSum<keepdims = 1>(z, i)"
)
ONE = "(float[N,4] x) => (float[N,1] y)"
kept: list[Any] = []


def explain(body: str, rules: Any, signature: str = "(float[N,4] x) => (float[N,4] y)", check: bool = True) -> Array:
    explainer = DeepExplainer(parsed(body, signature), BACKGROUND, rules=rules)
    found: Array = explainer.shap_values(SAMPLES, check_additivity=check)
    return found


def keep(ctx: Context, m: Any) -> Any:
    kept.append(m[0])
    return kept[0]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda c, m: np.tanh(c.x()) * m[0], r"TypeError.*write ctx\.op\.Tanh\(x\), not np\.tanh\(x\)"),
        (lambda c, m: math.sqrt(c.x()) * m[0], r"TypeError.*write ctx\.op\.Tanh\(x\), not np\.tanh\(x\)"),
        (lambda c, m: float(c.x()) * m[0], r"TypeError.*write ctx\.op\.Tanh\(x\), not np\.tanh\(x\)"),
        (
            lambda ctx, m: np.where(ctx.x() > 0, m[0], 0),
            "known only when the program runs: write op.Where, not np.where",
        ),
        (
            lambda ctx, m: sum(ctx.x()) * m[0],
            "known only when the program runs: op.ReduceSum sums, op.Slice takes parts",
        ),
        (lambda c, m: c.x()[0] * m[0], "take parts with op.Slice or op.Gather"),
        (lambda c, m: m[0] if c.x() > 0 else m[0] * 0, "select with op.Where, not with 'if'"),
        (lambda c, m: c.op.Where(c.x() == 0, m[0], 0.0), "compare numbers with op.Equal"),
        (
            lambda ctx, m: m * ctx.x(),
            r"an operand is a list of values, not one value; m has an entry per output: m\[0\]",
        ),
        (
            lambda ctx, m: m[0] * ctx.attribute("alpha"),
            r"Mul: operand 1 \(B\) is None.*ctx\.attribute\(name, default\)",
        ),
        (
            lambda ctx, m: ctx.op.LeakyRelu(m[0], alpha=ctx.x()),
            "the attribute 'alpha' is Value.* an attribute is fixed",
        ),
        (
            lambda ctx, m: ctx.op.LeakyRelu(m[0], alfa=0.1),
            "LeakyRelu of opset 18 has no attribute 'alfa'; it has 'alpha'",
        ),
        (lambda c, m: c.op.ReduceSum(m[0], axes=[1]), "ReduceSum of opset 18 has no attribute 'axes'"),
        (
            lambda ctx, m: ctx.op.ReduceSum(m[0], ctx.op.cast(ctx.x(), np.int64)),
            "the shape of output 0 depends on data",
        ),
        (lambda c, m: c.op.Rellu(m[0]), "ONNX has no operator 'Rellu'; did you mean 'Relu'"),
        (lambda c, m: c.op.relu(m[0]), "'relu': operators are spelled as in ONNX, such as op.Relu"),
        (lambda c, m: c.forward(m[0] * np.ones((3, 1))), r"input 0 is given in shape \(3, 4\), the node has it in"),
        (lambda c, m: c.forward(), "input 0 is not given"),
        (lambda c, m: c.forward(c.x(), c.x()), "2 inputs are given, the node has 1"),
        (lambda c, m: c.vjp([c.x()], m), "RecursionError.*ctx.vjp asks the node's rule, which is this one"),
        (lambda c: c.x(), r"TypeError: .* takes 1 positional argument but 2 were given"),
        (lambda c, m: (v for v in m), "gives a generator; expected one multiplier per input, 1 in all"),
        (lambda c, m: 0.5, "gives a float; expected one multiplier per input"),
    ],
)
def test_the_error_says_what_to_write(rule: Callable[..., Any], message: str) -> None:
    with pytest.raises(RuleError, match="(?s)" + message) as caught:
        explain(RELU, {"Relu": rule})
    assert "at Relu node 'act', inputs [(1, 4)]" in str(caught.value)


def test_values_may_not_be_kept() -> None:
    kept.clear()
    explain(RELU, {"Relu": lambda ctx, m: ctx.usual([kept.append(m[0]) or m[0]])})  # type: ignore[func-returns-value]
    with pytest.raises(RuleError, match="gives a value of another program for input 0; it may not keep values"):
        explain(RELU, {"Relu": keep})
    with pytest.raises(RuleError, match="is of another program; a rule may not keep values from one call to the next"):
        explain(RELU, {"Relu": lambda ctx, m: m[0] * kept[0]})


def test_an_output_that_nothing_uses() -> None:
    body = "{ [cut] a, b = Split<num_outputs = 2, axis = 1>(x) c = Relu(b) y = Concat<axis = 1>(c, c) }"
    with pytest.raises(RuleError, match=r"Split node 'cut'.*Concat: operand 0 .* is None\. So is an entry of m where"):
        explain(body, {"Split": lambda ctx, m: ctx.op.Concat(m[0], m[1], axis=1)})


def test_a_rule_that_forgets_the_reference_leaks() -> None:
    body = "{ a = Relu(x) b = Sigmoid(x) [both] y = Mul(a, b) }"
    with pytest.raises(AdditivityError, match=r"Nodes that leak most: Mul node 'both'"):
        explain(body, {"Mul": lambda ctx, m: [m[0] * ctx.x(1), m[0] * ctx.x(0)]})


def test_powers_are_written_in_python() -> None:
    def square_root_of_square(ctx: Context, m: Sequence[Any]) -> Any:
        return ctx.usual([m[0] * (ctx.x() ** 2 + 1.0) / (1.0 + ctx.x() * ctx.x())])

    np.testing.assert_allclose(
        explain(RELU, {"Relu": square_root_of_square}), explain(RELU, None), rtol=1e-5, atol=1e-7
    )


def halved(ctx: Context, m: Sequence[Any]) -> Any:
    return [None if v is None else v * 0.5 for v in ctx.usual(m)]


@pytest.mark.parametrize(("body", "operator"), [(LOOP, "Tanh"), (SCAN, "Tanh"), (SCAN, "squash")])
def test_a_rule_for_what_is_in_a_loop(body: str, operator: str) -> None:
    usual = explain(body, None, ONE)
    np.testing.assert_allclose(explain(body, {operator: lambda ctx, m: ctx.usual(m)}, ONE), usual, rtol=1e-5, atol=1e-6)
    found = explain(body, {operator: halved}, ONE, check=False)
    assert np.abs(found - usual).max() > 1e-3


@pytest.mark.parametrize("body", [LOOP, SCAN])
def test_an_error_in_a_loop_names_the_node_in_it(body: str) -> None:
    with pytest.raises(RuleError, match=r"broken at Tanh node '(layer|squash)[^']*'.*select with op\.Where"):
        explain(body, {"Tanh": broken}, ONE)


def broken(ctx: Context, m: Sequence[Any]) -> Any:
    return m[0] if ctx.x() > 0 else m[0] * 0


def test_another_softmax_for_one_node() -> None:
    body = "{ [one] a = Softmax(x) b = Mul(a, a) [two] y = Softmax(b) }"
    explainer = DeepExplainer(parsed(body), BACKGROUND, rules={"two": "integrated_gradients"})
    rules = {row.node: row.rule for row in explainer.rules()}
    assert (rules["one"], rules["two"]) == ("softmax.softmax", "alternatives.integrated_gradients")
    explainer.shap_values(SAMPLES)  # sums to delta


def test_a_rule_that_returns_a_constant_of_another_dtype() -> None:
    """Numbers and arrays beside a value take its dtype; a constant alone is what it is."""
    explain(RELU, {"Relu": lambda ctx, m: m[0] * np.ones((1, 4), np.float64)}, check=False)
    with pytest.raises(RuleError, match="a multiplier of dtype float64 for input 0, expected float32"):
        explain(RELU, {"Relu": lambda ctx, m: ctx.op.constant(np.ones((1, 4)))})


def test_rounding_at_an_output_that_is_0_everywhere_is_no_leak() -> None:
    """What the rules give to such an output cancels but for the last digits, and it has no size of its own."""
    body = """{
        v, i = MaxPool <kernel_shape = [2], strides = [2]> (x)
        r = Relu(v)
        y = MaxUnpool <kernel_shape = [2], strides = [2]> (r, i)
    }"""
    model = parsed(body, "(float[N,2,8] x) => (float[N,2,8] y)")
    for seed in range(5):
        samples, references = data(2, 2, 8, seed=seed), data(3, 2, 8, seed=100 + seed)
        DeepExplainer(model, references, precision="float64").shap_values(samples)


@pytest.mark.parametrize("chooses", ["v, i = TopK<axis = 1>(x, k)", "i = ArgMax<axis = 1>(x)"])
def test_what_indices_change_is_called_that(chooses: str) -> None:
    choose = f"k = Constant<value_ints = [1]>() {chooses} e = Exp(x) y = GatherElements<axis = 1>(e, i)"
    with pytest.raises(AdditivityError, match=r"What indices change is left unattributed; hold=\['i'\] keeps"):
        explain(f"{{ {choose} }}", {})
