"""Check a rule by the laws that every rule obeys.

```python
from deepshap_ir.testing import check_rule

check_rule("Sigmoid", [(1, 5)])                                  # a registered rule, one input of shape (1, 5)
check_rule("MatMul", [(2, 3), (3, 4)], varying=[0, 1])           # both operands vary
check_rule("Conv", [(1, 2, 5, 5), weights], attributes={"pads": [1, 1, 1, 1]})
check_rule("Softplus", [(1, 5)], rule=my_rule)                   # your own rule
check_rule("my::Op", [(1, 5)], rule=my_rule, new_ops=[MyOp])     # of your own operator, in numpy
```

`MyOp` is an `onnx.reference.op_run.OpRun` of that name with ``op_domain = "my"``; onnxruntime is left out then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper
from onnx.reference import ReferenceEvaluator

from deepshap_ir.engine.backends import Backend, OnnxRuntime, Reference
from deepshap_ir.engine.evaluator import Evaluator
from deepshap_ir.engine.expand import expand_graph
from deepshap_ir.engine.inference import onnx_node
from deepshap_ir.engine.program import Plan, build_plan
from deepshap_ir.engine.registry import Resolver, RuleFunction, RuleSet
from deepshap_ir.engine.rule_sets import rule_set
from deepshap_ir.graph import Array, Graph, Node
from deepshap_ir.reference.operators import REPAIRED

Domain = tuple[float, float] | Callable[[np.random.Generator, tuple[int, ...]], Array]
EVERYTHING = 1 << 30


@dataclass(frozen=True)
class Checked:
    """What a check saw.

    Attributes
    ----------
    gap : largest ``|sum of contributions - delta|`` over pairs, relative to the magnitude of the contributions.
    derivative_error : largest relative distance of the multiplier at a small delta from the numerical derivative.
    float32_error : largest relative distance of onnxruntime in float32 from the reference evaluator in float64.
    multipliers : per varying input, ``[N, B, *shape]``: the multipliers of the drawn pairs for the first seed.
    samples, references : the drawn rows, ``[N, *shape]`` and ``[B, *shape]`` per varying input.
    """

    gap: float
    derivative_error: float | None
    float32_error: float | None
    multipliers: list[Array]
    samples: list[Array]
    references: list[Array]


def one_node_graph(
    operator: str,
    inputs: Sequence[Array | None],
    varying: Sequence[int],
    attributes: Mapping[str, Any] | None = None,
    opset: int = 18,
    outputs: int = 1,
    explained: int = 0,
    new_ops: Sequence[Any] = (),
) -> Graph:
    """The graph of one operator in which the inputs at `varying` are fed and the others are constants."""
    domain, _, op_type = operator.rpartition("::")
    names = [f"x{i}" if a is not None else "" for i, a in enumerate(inputs)]
    results = [f"y{j}" for j in range(outputs)]
    node = Node("node", op_type, tuple(names), tuple(results), dict(attributes or {}), domain, opset)
    arrays = {n: a for n, a in zip(names, inputs, strict=True) if a is not None}
    proto = helper.make_graph(
        [onnx_node(op_type, domain, names, results, node.attributes)],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in arrays.items()
        ],
        [helper.make_empty_tensor_value_info(n) for n in results],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid(domain, opset)], ir_version=10)
    with np.errstate(all="ignore"):
        computed = ReferenceEvaluator(model, new_ops=[*new_ops, *REPAIRED]).run(None, arrays)
    found = dict(zip(results, map(np.asarray, computed), strict=True))
    known = arrays | found
    fed = tuple(names[i] for i in varying)
    return Graph(
        fed,
        (results[explained],),
        (node,),
        {n: a for n, a in arrays.items() if n not in fed},
        {n: a.shape for n, a in known.items()},
        {n: a.dtype for n, a in known.items()},
        dict.fromkeys(fed, 0),
        {"": 18} | {domain: opset},
    )


def check_rule(
    operator: str | Graph,
    inputs: Sequence[Any] = (),
    *,
    rule: RuleFunction | RuleSet | None = None,
    varying: Sequence[int] = (0,),
    attributes: Mapping[str, Any] | None = None,
    opset: int = 18,
    outputs: int = 1,
    explained: int = 0,
    domain: Domain | Mapping[int, Domain] = (-2.0, 2.0),
    options: Mapping[str, Any] | None = None,
    new_ops: Sequence[Any] = (),
    derivative: bool = True,
    onnxruntime: bool = True,
    tolerance: float = 1e-8,
    derivative_tolerance: float = 1e-3,
    float32_tolerance: float = 2e-4,
    seed: int = 0,
) -> Checked:
    """Check the laws of a rule: see the module's examples.

    1. Contributions sum to delta, for every pair and every seed, in float64 (`tolerance`, relative).
    2. Multipliers are finite at zero delta, and a pair's multiplier does not depend on the other rows.
    3. Multipliers are linear in those of the output.
    4. As the delta tends to 0, they tend to the derivative (`derivative`; not for order statistics and steps).
    5. onnxruntime in float32 agrees with the reference evaluator in float64 (`onnxruntime`).

    Parameters
    ----------
    operator : ``"OpType"`` or ``"domain::OpType"``, or a whole `Graph`, whose inputs all vary.
    inputs : per operator input an array, None where it is absent, or a shape (tuple) for one to be drawn.
    varying : positions of the inputs that differ between sample and reference; they are drawn from `domain`.
    domain : ``(low, high)`` for uniform numbers, or ``(rng, shape) -> array``, or one of these per input position.
    explained : which of the operator's `outputs` is explained.
    new_ops : `onnx.reference` implementations of operators that ONNX does not define; onnxruntime is not asked then.

    Raises
    ------
    AssertionError
        A law is broken; the message gives the numbers.
    """
    rng = np.random.default_rng(seed)

    def draw(i: int, shape: tuple[int, ...], dtype: Any = np.float64) -> Array:
        chosen = domain.get(i, (-2.0, 2.0)) if isinstance(domain, Mapping) else domain
        if callable(chosen):
            return np.asarray(chosen(rng, shape))
        return rng.uniform(*chosen, size=shape).astype(dtype)

    if isinstance(operator, Graph):
        graph = operator.astype(np.float64)
        varying = range(len(graph.inputs))
        what = f"graph of {len(graph.nodes)} nodes"
    else:
        arrays = [draw(i, a) if isinstance(a, tuple) else a for i, a in enumerate(inputs)]
        arrays = [a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a for a in map(_array, arrays)]
        graph = one_node_graph(operator, arrays, varying, attributes, opset, outputs, explained, new_ops)
        what = f"{operator} {dict(attributes or {})} on {[a.shape for a in arrays if a is not None]}"
    rules = rule if isinstance(rule, RuleSet) else rule_set({str(operator): rule} if rule is not None else None)
    resolver = Resolver([rules], options)
    graph = expand_graph(graph, resolver)

    n, b, k = 3, 4, 2
    shapes = [graph.shapes[name] for name in graph.inputs]
    samples = [draw(i, (n, *shape)) for i, shape in zip(varying, shapes, strict=True)]
    references = [draw(i, (b, *shape)) for i, shape in zip(varying, shapes, strict=True)]
    for x, x0 in zip(samples, references, strict=True):
        x[0] = x0[0]  # a pair with zero delta
    seeds = rng.normal(size=(k, *graph.shapes[graph.outputs[0]]))
    seeds = np.concatenate([seeds, seeds[:1] - 2 * seeds[1:]])

    run = Runner(graph, resolver, Reference(new_ops))
    ms = run.multipliers(samples, references, seeds)
    _finite(ms, what)
    gap = _sum_to_delta(run, ms, samples, references, seeds)
    assert gap <= tolerance, f"{what}: contributions miss the delta by {gap:.3g} of their size (law 1)"
    for m in ms:
        off = _relative(m[2], m[0] - 2 * m[1])
        assert off <= 1e-8, f"{what}: multipliers are not linear in those of the output, off by {off:.3g} (law 3)"
    alone = run.multipliers([x[1:2] for x in samples], [x0[2:3] for x0 in references], seeds)
    together = run.sums(samples, references, seeds)
    for m, single, total in zip(ms, alone, together, strict=True):
        off = max(_relative(single[:, 0, 0], m[:, 1, 2]), _relative(total, m.sum(2)))
        assert off <= 1e-8, f"{what}: a pair's multiplier depends on other rows, by {off:.3g} (law 2)"
    derivative_error = None
    if derivative:
        derivative_error = _derivative_error(run, samples, seeds, rng)
        assert derivative_error <= derivative_tolerance, (
            f"{what}: at a small delta the multiplier is {derivative_error:.3g} away from the derivative (law 4)"
        )
    float32_error = None
    if onnxruntime and not new_ops:
        in_float32 = Runner(graph.astype(np.float32), resolver, OnnxRuntime())
        got = in_float32.multipliers(samples, references, seeds)
        _finite(got, what + " in float32")
        deltas = [_delta(x, x0) for x, x0 in zip(samples, references, strict=True)]
        float32_error = max(_relative(g * d, m * d) for g, m, d in zip(got, ms, deltas, strict=True))
        assert float32_error <= float32_tolerance, (
            f"{what}: onnxruntime's float32 contributions are {float32_error:.3g} away from the reference's (law 5)"
        )
    return Checked(gap, derivative_error, float32_error, [m[0] for m in ms], samples, references)


class Runner:
    """Multipliers of every pair of a graph's rows."""

    def __init__(self, graph: Graph, resolver: Resolver, backend: Backend) -> None:
        self.graph = graph
        self.plan: Plan = build_plan(graph, resolver, explained=graph.inputs, multipliers=True)
        self.evaluator = Evaluator(self.plan, backend, EVERYTHING, progress=False)

    def multipliers(self, samples: Sequence[Array], references: Sequence[Array], seeds: Array) -> list[Array]:
        """Per input ``[K, N, B, *shape]``, zeros where nothing depends on it."""
        rows = range(len(references[0]))
        pairs = [self.sums(samples, [x0[j : j + 1] for x0 in references], seeds) for j in rows]
        return [np.stack(found, axis=2) for found in zip(*pairs, strict=True)]

    def sums(self, samples: Sequence[Array], references: Sequence[Array], seeds: Array) -> list[Array]:
        """Per input the sum over the references, ``[K, N, *shape]``."""
        found = self._evaluate(samples, references, seeds).sums
        shapes = [(len(seeds), len(x), *self.graph.shapes[n]) for n, x in zip(self.graph.inputs, samples, strict=True)]
        return [
            found.get(("multiplier", name), np.zeros(shape))
            for name, shape in zip(self.graph.inputs, shapes, strict=True)
        ]

    def delta(self, samples: Sequence[Array], references: Sequence[Array]) -> Array:
        """``f(x) - f(x0)`` of every pair, ``[N, B, *shape]``."""
        seeds = np.zeros((1, *self.graph.shapes[self.graph.outputs[0]]))
        found = [
            self._evaluate(samples, [x0[j : j + 1] for x0 in references], seeds) for j in range(len(references[0]))
        ]
        return np.stack([rows.output - rows.base for rows in found], axis=1)

    def output(self, samples: Sequence[Array]) -> Array:
        """``f(x)`` of every sample, ``[N, *shape]``."""
        seeds = np.zeros((1, *self.graph.shapes[self.graph.outputs[0]]))
        return np.asarray(self._evaluate(samples, [x[:1] for x in samples], seeds).output)

    def _evaluate(self, samples: Sequence[Array], references: Sequence[Array], seeds: Array) -> Any:
        def typed(arrays: Sequence[Array]) -> dict[str, Array]:
            return {n: a.astype(self.graph.dtypes[n]) for n, a in zip(self.graph.inputs, arrays, strict=True)}

        seeds = seeds.astype(self.plan.explain.model and _seed_dtype(self.plan))
        return self.evaluator.evaluate(typed(samples), typed(references), seeds, len(references[0]))


def _seed_dtype(plan: Plan) -> Any:
    return next((v.dtype for v in plan.explain.inputs if v.name == "seed"), np.float64)


def _array(a: Any) -> Array | None:
    return None if a is None else np.asarray(a)


def _finite(ms: Sequence[Array], what: str) -> None:
    for i, m in enumerate(ms):
        assert np.isfinite(m).all(), f"{what}: the multiplier of varying input {i} is not finite (law 2)"


def _delta(samples: Array, references: Array) -> Array:
    """``x - x0`` of every pair, as numbers."""
    return samples[:, None].astype(np.float64) - references[None].astype(np.float64)


def _relative(got: Array, expected: Array) -> float:
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
    return float(np.abs(got - expected).max(initial=0.0)) / scale


def _sum_to_delta(
    run: Runner, ms: Sequence[Array], samples: Sequence[Array], references: Sequence[Array], seeds: Array
) -> float:
    delta = run.delta(samples, references)
    expected = np.einsum("kp,nbp->knb", seeds.reshape(len(seeds), -1), delta.reshape(*delta.shape[:2], -1))
    total, size = np.zeros_like(expected), np.abs(expected)
    for m, x, x0 in zip(ms, samples, references, strict=True):
        part = (m * _delta(x, x0)).reshape(*expected.shape, -1)
        total += part.sum(-1)
        size = np.maximum(size, np.abs(part).sum(-1))
    return float(np.abs(total - expected).max() / max(size.max(), 1e-30))


def _derivative_error(run: Runner, samples: Sequence[Array], seeds: Array, rng: np.random.Generator) -> float:
    """Distance of ``<m, direction>`` between close points from the central difference along a random direction."""
    step = 1e-5
    directions = [rng.normal(size=x.shape) for x in samples]
    worst, scale = 0.0, 1e-6
    for k in range(len(samples[0])):
        x = [s[k : k + 1] for s in samples]
        d = [s[k : k + 1] for s in directions]
        plus = [a + step * b for a, b in zip(x, d, strict=True)]
        minus = [a - step * b for a, b in zip(x, d, strict=True)]
        change = run.delta(plus, minus)[0, 0].reshape(-1) / (2 * step)
        expected = seeds.reshape(len(seeds), -1) @ change
        for near in (x, [a + 1e-9 * b for a, b in zip(x, d, strict=True)]):
            ms = run.multipliers(near, x, seeds)
            got = sum((m[:, 0, 0] * b[0]).reshape(len(seeds), -1).sum(-1) for m, b in zip(ms, d, strict=True))
            worst = max(worst, float(np.abs(got - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
    return worst / scale


def exact_shapley(function: Callable[[Array], Array], x: Array, x0: Array) -> Array:
    """Exact Shapley values of a function of few numbers, by all subsets.

    Parameters
    ----------
    function : rows ``[R, *shape]`` -> ``[R]`` or ``[R, K]``.
    x, x0 : one sample and one reference, ``[*shape]`` with at most 14 elements.

    Returns
    -------
    ``[*shape]``, or ``[*shape, K]``: the contribution of each element of `x`.
    """
    d = x.size
    if d > 14:
        raise ValueError(f"{d} players have {2**d} subsets; at most 14 are tried")
    subsets = (np.arange(2**d)[:, None] >> np.arange(d)) & 1 == 1
    rows = np.where(subsets, x.reshape(-1), x0.reshape(-1)).reshape(-1, *x.shape)
    values = np.asarray(function(rows), dtype=np.float64)
    sizes = subsets.sum(1)
    weights = np.array([math.factorial(s) * math.factorial(d - s - 1) / math.factorial(d) for s in range(d)])
    phi = []
    for i in range(d):
        without = np.flatnonzero(~subsets[:, i])
        change = values[without + 2**i] - values[without]
        phi.append(np.tensordot(weights[sizes[without]], change, axes=1))
    return np.stack(phi).reshape(*x.shape, *values.shape[1:])
