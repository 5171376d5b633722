"""Models in which patterns are joined, and what must not change by it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from deepshap_ir.engine.backends import Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.graph import Graph
from deepshap_ir.importing.importer import import_model
from deepshap_ir.joins.canonical import canonicalise
from deepshap_ir.testing import Runner
from tests.onnx_text import data, parsed, run

NUMBERS = {"zero": 0.0, "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "twenty": 20.0, "eps": 1e-5}
HEAD = " ".join(f"{name} = Constant<value_float={value}>()" for name, value in NUMBERS.items())
VECTORS = (
    "last = Constant<value_ints=[-1]>() gamma = Constant<value_floats=[1.0,2.0,-3.0,0.5]>() "
    "beta = Constant<value_floats=[1.0,-1.0,0.5,2.0]>()"
)
X3 = "(float[N,3,4] x) => (float[N,3,4] y)"


def load(body: str, signature: str = X3, version: int = 18) -> Graph:
    model = parsed(f"{{ {HEAD} {VECTORS} {body} }}", signature, version)
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim[1:]] for v in model.graph.input]
    rows = {v.name: data(3, *s, seed=k) for k, (v, s) in enumerate(zip(model.graph.input, shapes, strict=True))}
    return import_model(model, rows).graph


def operators(graph: Graph) -> list[str]:
    return [node.operator.removeprefix("deepshap_ir::") for node in graph.nodes]


def joined(body: str, signature: str = X3, protected: Collection[str] = (), version: int = 18) -> Graph:
    """The canonical graph of a model, which computes what the model does, and whose rules obey the laws."""
    before = load(body, signature, version)
    after = canonicalise(before, protected)
    feeds = {name: data(*before.shapes[name], seed=5 + k) for k, name in enumerate(before.inputs)}
    for expected, got in zip(run(before, feeds, before.outputs), run(after, feeds, after.outputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)
    return after


def assert_same(*graphs: Graph, tolerance: float = 1e-9) -> None:
    """All graphs, which have the same inputs, give the same multipliers."""
    rng = np.random.default_rng(1)
    shapes = graphs[0].shapes
    samples, references = ([rng.uniform(0.5, 2.0, (2, *shapes[n])) for n in graphs[0].inputs] for _ in range(2))
    seeds = rng.normal(size=(2, *shapes[graphs[0].outputs[0]]))
    answers = [
        Runner(g.astype(np.float64), Resolver(), Reference()).multipliers(samples, references, seeds) for g in graphs
    ]
    for answer in answers[1:]:
        for first, other in zip(answers[0], answer, strict=True):
            np.testing.assert_allclose(other, first, atol=tolerance)
