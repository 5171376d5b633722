"""Operators that are rewritten with others: by the bodies of the ONNX standard, and by registered expansions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from deepshap_ir import DeepExplainer, RuleError
from deepshap_ir.engine.expand import expand_graph
from deepshap_ir.engine.registry import Resolver, Rule
from deepshap_ir.engine.rule_sets import rule_set
from deepshap_ir.extend import Context, Expansion, Graph, Node, RuleSet
from deepshap_ir.onnx_io import graph_to_model
from deepshap_ir.reference.operators import REPAIRED
from deepshap_ir.testing import one_node_graph
from tests.onnx_text import Array, data, parsed


class Without(Resolver):
    """All rules but those of one operator."""

    def __init__(self, op_type: str) -> None:
        super().__init__()
        self.op_type = op_type

    def rule(self, node: Node, after: Rule | None = None) -> Rule | None:
        return None if node.op_type == self.op_type else super().rule(node, after)

    def expansion(self, node: Node) -> Any:
        return None if node.op_type == self.op_type else super().expansion(node)


def run(graph: Graph, feeds: dict[str, Array]) -> list[Array]:
    with np.errstate(all="ignore"):
        found = ReferenceEvaluator(graph_to_model(graph), new_ops=REPAIRED).run(None, feeds)
    return [np.asarray(a) for a in found]


def numbers(*shape: int, seed: int = 0) -> Array:
    return data(*shape, seed=seed)


X = numbers(2, 3, 4)
BODIES: list[tuple[str, list[Array | None], dict[str, Any], int]] = [
    ("Celu", [X], {"alpha": 0.5}, 18),
    ("Elu", [X], {"alpha": 0.5}, 18),
    ("Selu", [X], {}, 18),
    ("HardSigmoid", [X], {"alpha": 0.3, "beta": 0.4}, 18),
    ("HardSwish", [X], {}, 18),
    ("LeakyRelu", [X], {"alpha": 0.2}, 18),
    ("Mish", [X], {}, 18),
    ("Softplus", [X], {}, 18),
    ("Softsign", [X], {}, 18),
    ("ThresholdedRelu", [X], {"alpha": 0.5}, 18),
    ("Shrink", [X], {"lambd": 0.5, "bias": 0.1}, 18),
    ("Relu", [X], {}, 18),
    ("PRelu", [X, numbers(4)], {}, 18),
    ("Clip", [X, np.array(-0.5, np.float32), np.array(0.5, np.float32)], {}, 18),
    ("Clip", [X, None, np.array(0.5, np.float32)], {}, 18),
    ("Gelu", [X], {}, 20),
    ("Gelu", [X], {"approximate": "tanh"}, 20),
    ("Swish", [X], {"alpha": 1.5}, 24),
    ("Softmax", [X], {"axis": 1}, 18),
    ("LogSoftmax", [X], {}, 18),
    ("LayerNormalization", [X, numbers(4), numbers(4)], {"epsilon": 0.1}, 18),
    ("LayerNormalization", [X, numbers(3, 4)], {"axis": 1}, 18),
    ("GroupNormalization", [numbers(2, 4, 3), numbers(4), numbers(4)], {"num_groups": 2}, 21),
    ("RMSNormalization", [X, numbers(4)], {}, 23),
    ("MeanVarianceNormalization", [numbers(2, 3, 2, 2)], {}, 18),
    ("ReduceL2", [X, np.array([1])], {}, 18),
    ("ReduceL1", [X, np.array([1])], {"keepdims": 0}, 18),
    ("ReduceSumSquare", [X], {}, 18),
    ("ReduceLogSumExp", [X, np.array([0, -1])], {}, 18),
    ("GreaterOrEqual", [X, numbers(4)], {}, 18),
    ("LessOrEqual", [X, numbers(4)], {}, 18),
    ("Attention", [numbers(1, 2, 3, 4), numbers(1, 2, 5, 4, seed=1), numbers(1, 2, 5, 4, seed=2)], {}, 23),
    ("CenterCropPad", [X, np.array([2, 3, 2])], {}, 18),
]


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "opset"), BODIES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_standard_body_is_the_operator(
    operator: str, inputs: list[Array | None], attributes: dict[str, Any], opset: int
) -> None:
    graph = one_node_graph(operator, inputs, [0], attributes, opset)
    expanded = expand_graph(graph, Without(operator))
    assert operator not in {node.op_type for node in expanded.nodes}
    assert all(Resolver().rule(node) or not expanded.downstream(["x0"]) & {*node.reads} for node in expanded.nodes)
    assert expanded.outputs == graph.outputs
    for node in expanded.nodes:
        assert node.name.startswith("node/")
        for name in filter(None, node.outputs):
            assert name in expanded.shapes
            assert name in expanded.dtypes
    assert inputs[0] is not None
    np.testing.assert_allclose(
        run(expanded, {"x0": inputs[0]})[0], run(graph, {"x0": inputs[0]})[0], rtol=1e-4, atol=1e-5
    )


def test_shapes_and_dtypes_of_a_body_are_true() -> None:
    graph = one_node_graph("LayerNormalization", [X, numbers(4), numbers(4)], [0])
    expanded = expand_graph(graph, Without("LayerNormalization"))
    names = [name for node in expanded.nodes for name in node.outputs if name]
    model = graph_to_model(expanded, names)
    for name, value in zip(names, ReferenceEvaluator(model).run(None, {"x0": X}), strict=True):
        assert (np.shape(value), np.asarray(value).dtype) == (expanded.shapes[name], expanded.dtypes[name])


def test_only_what_the_inputs_reach_is_rewritten() -> None:
    nodes = (
        Node("fixed", "Selu", ("w",), ("v",)),
        Node("moving", "Selu", ("x",), ("u",)),
        Node("sum", "Add", ("u", "v"), ("y",)),
    )
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys("xuvwy", (1, 4))
    graph = Graph(
        ("x",),
        ("y",),
        nodes,
        {"w": numbers(1, 4)},
        shapes,
        dict.fromkeys(shapes, np.dtype(np.float32)),
        {"x": 0},
        {"": 18},
    )
    expanded = expand_graph(graph, Without("Selu"))
    assert [node.op_type for node in expanded.nodes].count("Selu") == 1
    assert expanded.nodes[0] == nodes[0]
    np.testing.assert_allclose(run(expanded, {"x": X[0, :1]})[0], run(graph, {"x": X[0, :1]})[0], rtol=1e-5)


# --- registered expansions


def twice(ctx: Expansion) -> Any:
    return ctx.x() + ctx.x()


def explained(body: str, expand: Callable[[Expansion], Any], operator: str = "Neg") -> Array:
    rules = RuleSet()
    rules.expand(operator)(expand)
    explainer = DeepExplainer(parsed(body), data(5, 4), rules=rules)
    values: Array = explainer.shap_values(data(3, 4, seed=1))
    return values


def test_an_expansion_replaces_the_operator() -> None:
    """The rules see what the expansion writes; its output keeps its name."""
    rules = RuleSet()
    rules.expand("Neg")(lambda ctx: ctx.op.Sub(0.0, ctx.x()))
    explainer = DeepExplainer(parsed("{ [minus] a = Neg(x) y = Exp(a) }"), data(5, 4), rules=rules, at=["a"])
    assert [(row.node, row.operator) for row in explainer.rules()] == [("minus/Sub_0", "Sub"), ("Exp_1", "Exp")]
    assert explainer.shap_values(data(3, 4, seed=1)).shape == (3, 4, 4)


def test_what_an_expansion_sees() -> None:
    def looks(ctx: Expansion) -> Any:
        assert ctx.shape() == (1, 4)
        assert ctx.dtype == np.float32
        assert (ctx.opset, ctx.n_inputs, ctx.has(1), ctx.has(2)) == (18, 2, True, False)
        assert ctx.attribute("alpha", 7) == 7
        assert ctx.constant(0) is None
        assert ctx.constant(1) == np.float32(-0.5)
        assert (ctx.wanted(0), ctx.wanted(1)) == (True, False)
        return ctx.op.Max(ctx.x(), ctx.x(1))

    body = "{ low = Constant <value_float=-0.5> () y = Clip(x, low) }"
    values = explained(body, looks, "Clip")
    usual = DeepExplainer(parsed(body), data(5, 4)).shap_values(data(3, 4, seed=1))
    np.testing.assert_allclose(values, usual, atol=1e-6)


def test_an_expansion_may_give_an_input_a_constant_or_one_value_twice() -> None:
    signature = "(float[N,4] x) => (float[N,2] a, float[N,2] b)"
    body = "{ a, b = Split <axis=1, num_outputs=2> (x) y = Mul(a, b) }"
    rules = RuleSet()

    def halves(ctx: Expansion) -> list[Any]:
        half = ctx.op.Slice(ctx.x(), [0], [2], [1])
        return [half, half]

    rules.expand("Split")(halves)
    graph = expand_graph(_imported(body, signature, "y"), Resolver([rules]))
    expected = data(1, 4)[:, :2] ** 2
    np.testing.assert_allclose(run(graph, {"x": data(1, 4)})[0], expected, rtol=1e-6)

    rules = RuleSet()
    rules.expand("Split")(
        lambda ctx: [ctx.op.constant(np.array([[1, 2]], np.float32)), ctx.op.Slice(ctx.x(), [2], [4], [1])]
    )
    graph = expand_graph(_imported(body, signature, "y"), Resolver([rules]))
    np.testing.assert_allclose(run(graph, {"x": data(1, 4)})[0], [1, 2] * data(1, 4)[:, 2:], rtol=1e-6)

    rules = RuleSet()
    rules.expand("Neg")(lambda ctx: ctx.x())
    graph = expand_graph(_imported("{ a = Neg(x) y = Exp(a) }"), Resolver([rules]))
    np.testing.assert_allclose(run(graph, {"x": data(1, 4)})[0], np.exp(data(1, 4)), rtol=1e-6)


def _imported(body: str, signature: str = "(float[N,4] x) => (float[N,4] y)", output: str | None = None) -> Graph:
    from deepshap_ir.importing.importer import import_model

    return import_model(parsed(body, signature), data(5, 4), output=output, rewrite=None).graph


@pytest.mark.parametrize(
    ("expand", "message"),
    [
        (lambda ctx: ctx.op.Reshape(ctx.x(), [4]), r"gives float32 \[4\] for output 0, expected float32 \[1, 4\]"),
        (lambda ctx: ctx.x() > 0, r"gives bool \[1, 4\] for output 0, expected float32 \[1, 4\]"),
        (lambda ctx: [], "gives no output 0, which the model uses"),
        (lambda ctx: None, "gives no output 0, which the model uses"),
        (lambda ctx: 1 / 0, r"the expansion <lambda> of Neg node 'minus' failed: ZeroDivisionError: division by zero"),
        (lambda ctx: ctx.x(3), "Neg node 'minus': input 3 is absent"),
        (lambda ctx: ctx.op.Neg(ctx.x()), "its expansion does not end in operators that have rules"),
        (lambda ctx: ctx.op.Neg(ctx.op.Neg(ctx.op.Neg(ctx.x()))), "does not end in operators that have rules"),
    ],
)
def test_a_broken_expansion_is_named(expand: Callable[[Expansion], Any], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        explained("{ [minus] a = Neg(x) y = Exp(a) }", expand)


def test_a_rule_for_the_node_spares_it_from_the_expansion() -> None:
    rules = RuleSet()
    rules.expand("Neg")(lambda ctx: ctx.op.Sub(0.0, ctx.x()))

    def minus(ctx: Context, m: Any) -> Any:
        return -m[0]

    resolver = Resolver([rule_set({"first": minus}), rules])
    expanded = expand_graph(_imported("{ [first] a = Neg(x) [second] y = Neg(a) }"), resolver)
    assert [(node.name, node.op_type) for node in expanded.nodes] == [("first", "Neg"), ("second/Sub_0", "Sub")]


def test_values_may_be_called_as_the_emitter_calls_its_own() -> None:
    """``v1``, ``v2``, ... and ``c1``, ... are names that exporters give too."""
    body = """{ axes = Constant <value_ints=[1]> () v1 = Sigmoid(x) v2 = ReduceL2 <keepdims=1> (v1, axes) c1 = Sin(x)
        v3 = Mish(c1) v4 = ReduceL1 <keepdims=1> (v3, axes) v5 = Mul(v2, v4) c2 = Tanh(v5) y = Add(c2, v1) }"""
    renamed = body
    for name in ("v1", "v2", "v3", "v4", "v5", "c1", "c2"):
        renamed = renamed.replace(name, f"value_{name}")
    values = [DeepExplainer(parsed(text), data(5, 4)).shap_values(data(3, 4, seed=1)) for text in (body, renamed)]
    np.testing.assert_allclose(values[0], values[1], atol=1e-6)


def test_values_may_be_called_as_expansions_call_theirs() -> None:
    body = """{ axes = Constant <value_ints=[1]> () "n/v2" = Sin(x) "n/v3" = Cos(x)
        [n] a = ReduceL2 <keepdims=1> (x, axes) b = Add("n/v2", "n/v3") y = Mul(a, b) }"""
    values = [
        DeepExplainer(parsed(text), data(5, 4)).shap_values(data(3, 4, seed=1))
        for text in (body, body.replace('"n/v2"', "s").replace('"n/v3"', "t"))
    ]
    np.testing.assert_allclose(values[0], values[1], atol=1e-6)
