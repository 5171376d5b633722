"""Max pooling moves ahead of activations that rise, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer
from deepshap_ir.engine.backends import Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.graph import Graph
from deepshap_ir.importing.importer import import_model
from deepshap_ir.joins.canonical import canonicalise
from deepshap_ir.joins.pooling import pool_first
from deepshap_ir.testing import Runner
from tests.onnx_text import data, parsed, run

SIGNATURE = "(float[N,2,5,6] x) => (float[N,K] y)"
POOL = "p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a) y = Flatten(p)"
SPLIT = "p = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(a) y = Flatten(p)"
CONSTANTS = """slopes = Constant<value = float[2,1,1] {0.5, 0.0}>() uneven = Constant<value = float[6] {1,2,1,2,1,2}>()
    below = Constant<value = float[2,1,1] {0.5, -0.5}>() zero = Constant<value = float {0}>()
    six = Constant<value = float {6}>() huge = Constant<value = float {3.4e38}>()
    plane = Constant<value = int64 {60}>()"""
MOVED = [
    "a = Relu(x)",
    "a = LeakyRelu<alpha=0.1>(x)",
    "a = LeakyRelu<alpha=0.0>(x)",
    "a = PRelu(x, slopes)",
    "a = Elu(x)",
    "a = Selu(x)",
    "a = Celu<alpha=0.5>(x)",
    "a = Softplus(x)",
    "a = Clip(x, zero)",
    "a = Clip(x, zero, huge)",
    "b = Relu(x) a = Selu(b)",
]
LEFT = [
    "a = LeakyRelu<alpha=-0.1>(x)",
    "a = PRelu(x, below)",
    "a = PRelu(x, uneven)",
    "a = Elu<alpha=-1.0>(x)",
    "a = Clip(x, zero, six)",
    "a = Sigmoid(x)",
    "a = Neg(x)",
]


def load(body: str) -> Graph:
    model = parsed(f"{{ {CONSTANTS} {body} }}", SIGNATURE, 18)
    return canonicalise(import_model(model, data(3, 2, 5, 6)).graph, ())


def order(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


@pytest.mark.parametrize("activation", MOVED)
@pytest.mark.parametrize("pool", [POOL, SPLIT], ids=["overlap", "no overlap"])
def test_moves_ahead_and_gives_the_same_numbers(activation: str, pool: str) -> None:
    """Also where elements tie, as small whole numbers often do, and where sample and reference are equal."""
    before = load(f"{activation} {pool}")
    after = pool_first(before, [*before.inputs, *before.outputs])
    assert order(after)[0] == "MaxPool"
    assert sorted(order(after)) == sorted(order(before))
    assert {node.name for node in after.nodes} == {node.name for node in before.nodes}
    rng = np.random.default_rng(2)
    sample, reference = rng.integers(-3, 4, (2, 3, *before.shapes["x"])).astype(np.float64)
    reference[2] = sample[2]
    (expected,), (got,) = (run(graph, {"x": sample[0].astype(np.float32)}, graph.outputs) for graph in (before, after))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    seeds = rng.normal(size=(3, *before.shapes[before.outputs[0]]))
    answers = []
    for graph in (before, after):
        runner = Runner(graph.astype(np.float64), Resolver(), Reference())
        answers.append(runner.multipliers([sample], [reference], seeds)[0] * (sample[:, None] - reference))
    assert np.abs(answers[0]).max() > 0.1
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-12)


@pytest.mark.parametrize("activation", LEFT)
def test_stays_behind_what_may_fall_or_is_flat_above(activation: str) -> None:
    graph = load(f"{activation} {POOL}")
    assert order(pool_first(graph, [*graph.inputs, *graph.outputs])) == order(graph)


@pytest.mark.parametrize(
    "body",
    [
        "a = Relu(x) p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) s = Add(p, a) y = Flatten(s)",
        """a = Relu(x) p, i = MaxPool<kernel_shape=[2,2]>(a) m = Mod(i, plane) c = Cast<to=1>(m) s = Add(p, c)
        y = Flatten(s)""",
    ],
    ids=["another reader", "indices"],
)
def test_stays_where_more_is_read(body: str) -> None:
    graph = load(body)
    assert order(pool_first(graph, [*graph.inputs, *graph.outputs])) == order(graph)


def test_stays_where_the_activation_is_wanted() -> None:
    graph = load(f"a = Relu(x) {POOL}")
    assert order(pool_first(graph, ["x", "a", "y"])) == order(graph)


def one(ctx: Any, m: Any) -> Any:
    """Any rule will do, as nothing runs."""
    return ctx.op.zeros(ctx.shape())


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({}, True),
        ({"options": {"max_pooling": "shap"}}, True),
        ({"options": {"max_pooling": "shapley"}}, False),
        ({"rules": {"Relu": one}}, False),
        ({"rules": {"MaxPool": one}}, False),
        ({"rules": {"Flatten": one}}, True),
        ({"rules": "reveal_cancel"}, False),
    ],
    ids=["none", "shap", "shapley", "Relu", "MaxPool", "Flatten", "reveal_cancel"],
)
def test_moves_only_under_the_built_in_rules(options: dict[str, Any], moved: bool) -> None:
    explainer = DeepExplainer(parsed(f"{{ a = Relu(x) {POOL} }}", SIGNATURE, 18), data(3, 2, 5, 6), **options)
    assert order(explainer.graph)[:2] == (["MaxPool", "Relu"] if moved else ["Relu", "MaxPool"])
