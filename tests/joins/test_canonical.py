"""Patterns are joined however they are spelled, nothing is joined across a value that must survive."""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

import numpy as np
import onnx
import pytest

from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.rule_sets import rule_set
from deepshap_ir.importing.importer import import_model
from deepshap_ir.joins.canonical import canonicalise
from deepshap_ir.specialisation import rewrite
from deepshap_ir.testing import check_rule
from tests.joins.joining import X3, assert_same, joined, load, operators
from tests.onnx_text import data, run

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
    assert operators(joined(body, protected=["e"])) == ["Exp", "ReduceSum", "OwnSize"]


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


def test_an_explainers_own_rule_keeps_its_node() -> None:
    graph = load("s = Sigmoid(x) y = Mul(x, s)")
    own = Resolver([rule_set({"Mul": lambda ctx, m: [m[0] * ctx.mid_x(1), m[0] * ctx.mid_x(0)]})])
    assert operators(rewrite(graph, frozenset(), Resolver())) == ["Swish"]
    assert operators(rewrite(graph, frozenset(), own)) == ["Sigmoid", "Mul"]
