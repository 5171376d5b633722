"""Multipliers of functions of one number, for many (sample, reference) pairs at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto

from deepshap_ir.evaluator import OnnxRuntime, Reference
from deepshap_ir.graph import Graph, Node
from deepshap_ir.registry import Resolver
from deepshap_ir.testing import Runner, one_node_graph

Array = NDArray[Any]
Function = Callable[[Array], Any]


def multipliers(
    operator: str,
    x: ArrayLike,
    x0: ArrayLike,
    attributes: Mapping[str, Any] | None = None,
    others: Sequence[Array | None] = (),
    opset: int = 18,
    seed: float = 1.0,
) -> Array:
    """The multiplier of each pair, for `seed` at the output, in float32 by onnxruntime.

    Parameters
    ----------
    x, x0 : ``[n]``, one pair per element.
    others : the operator's further inputs, constants.
    """
    x, x0 = np.asarray(x, np.float32), np.asarray(x0, np.float32)
    graph = one_node_graph(operator, [x[None].astype(np.float64), *others], [0], attributes, opset).astype(np.float32)
    run = Runner(graph, Resolver(), OnnxRuntime())
    found: Array = run.multipliers([x[None, None]], [x0[None, None]], np.full((1, 1, len(x)), seed))[0]
    return found[0, 0, 0, 0]


def grid(low: float, high: float, largest: float = 10.0, within: bool = False) -> tuple[Array, Array]:
    """Pairs from `low` to `high`, deltas of both signs from 1e-7 to `largest`, and 0; `within`: both in the range."""
    rng = np.random.default_rng(0)
    points = np.concatenate([np.linspace(low, high, 31), rng.uniform(low, high, 31)]).astype(np.float32)
    sizes = np.geomspace(1e-7, largest, 60)
    deltas = np.concatenate([-sizes, [0.0], sizes]).astype(np.float32)
    x0 = np.repeat(points, len(deltas))
    x = x0 + np.tile(deltas, len(points))
    kept = (x >= low) & (x <= high) if within else np.ones(len(x), bool)
    return x[kept], x0[kept]


def worst_error(got: Array, f: Function, derivative: Function, x: Array, x0: Array) -> tuple[float, str]:
    """The largest error of multipliers `got`, relative to ``max(1, |f'| at the ends, |secant|)``, and where it is."""
    a, b = x.astype(np.float64), x0.astype(np.float64)
    same = a == b
    # in float64 the secant is off by no more than 1e-9, as the deltas are 1e-7 or more
    expected = np.where(same, derivative(a), (f(a) - f(b)) / np.where(same, 1.0, a - b))
    slope = np.maximum(abs(derivative(a)), abs(derivative(b)))
    error = abs(got - expected) / np.maximum(1.0, np.maximum(slope, abs(expected)))
    error = np.where(np.isfinite(got), error, np.inf)
    k = int(error.argmax())
    return float(error[k]), f"off by {error[k]:.3g} from {x0[k]!r} to {x[k]!r}: {got[k]!r}, expected {expected[k]!r}"


def cast_after(
    operator: str,
    inputs: Sequence[Array | None],
    varying: Sequence[int] = (0,),
    attributes: Mapping[str, Any] | None = None,
    opset: int = 18,
) -> Graph:
    """An operator of integers or truth values, cast to floating-point numbers."""
    graph = one_node_graph(operator, inputs, varying, attributes, opset)
    cast = Node("cast", "Cast", graph.outputs, ("z",), {"to": TensorProto.DOUBLE}, "", opset)
    return replace(
        graph,
        outputs=("z",),
        nodes=(*graph.nodes, cast),
        shapes=graph.shapes | {"z": graph.shapes[graph.outputs[0]]},
        dtypes=graph.dtypes | {"z": np.dtype(np.float64)},
    )


def contributions(operator: str, x: Array, x0: Array, attributes: Mapping[str, Any] | None = None) -> Array:
    """``m_i (x_i - x0_i)`` of operands that are one number each, ``[n]``; floats in float64, in numpy."""
    operands = [np.array(v) for v in x]
    graph = cast_after(operator, operands, range(len(x)), attributes)
    run = Runner(graph, Resolver(), Reference())
    found = run.multipliers([np.array([v]) for v in x], [np.array([v]) for v in x0], np.ones(1))
    return np.array([m.item() for m in found]) * (x.astype(np.float64) - x0.astype(np.float64))
