"""Functions of one number: their multipliers for many (sample, reference) pairs at once, and what must hold of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto

from deepshap_ir.engine.backends import OnnxRuntime, Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.graph import Graph, Node
from deepshap_ir.testing import Runner, check_rule, one_node_graph

Array = NDArray[Any]
Function = Callable[[Array], Any]

EXTREMES = np.array([-1000, -110, -88, -87.3, -50, -20, -9, -0.5, 0, 1e-3, 0.5, 9, 20, 50, 80.5, 88, 110, 1000])


@dataclass(frozen=True)
class Case:
    """An operator, its function and derivative, the range of its argument, and the opset where it appears.

    `within` : both points are in the range; else it is where one of them is.
    """

    operator: str
    f: Function
    derivative: Function
    low: float = -12.0
    high: float = 12.0
    within: bool = False
    opset: int = 18
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.operator + "".join(f"-{v}" for v in self.attributes.values())

    def obeys_the_laws(self) -> None:
        """`check_rule`, with the tolerances of a secant that subtracts nothing."""
        low, high = (self.low, self.high) if self.within else (-3.0, 3.0)
        margin = 0.05 * (high - low) if self.within else 0.0
        check_rule(
            self.operator,
            [(1, 3, 2, 2)],
            attributes=self.attributes,
            opset=self.opset,
            domain=(low + margin, high - margin),
            tolerance=1e-12,
            float32_tolerance=2e-6,
        )

    def is_accurate(self, x: Array, x0: Array) -> None:
        """A few roundings of float32 for every pair; where the delta is 0 the derivative."""
        found = multipliers(self.operator, x, x0, self.attributes, opset=self.opset)
        with np.errstate(over="ignore"):
            error, message = worst_error(found, self.f, self.derivative, x, x0)
        assert error < 1e-6, message

    def is_accurate_near_and_far(self) -> None:
        """`is_accurate` for deltas from 1e-7 to 10."""
        self.is_accurate(*grid(self.low, self.high, within=self.within))

    def is_accurate_up_to(self, largest: float) -> None:
        """`is_accurate` between any two of `EXTREMES`: saturated, overflowing, underflowing."""
        self.is_accurate(*every_pair(EXTREMES[abs(EXTREMES) <= largest]))


def every_pair(points: ArrayLike) -> tuple[Array, Array]:
    """Each point with each, in float32."""
    x, x0 = np.meshgrid(points, points)
    return x.ravel().astype(np.float32), x0.ravel().astype(np.float32)


def is_accurate_near_a_singularity(operator: str, f: Function, points: Sequence[float]) -> None:
    """Between any two points, relative to the secant, and finite for each with itself."""
    x, x0 = every_pair(points)
    apart = x != x0
    a, b = x[apart].astype(np.float64), x0[apart].astype(np.float64)
    found = multipliers(operator, x, x0)
    np.testing.assert_allclose(found[apart], (f(a) - f(b)) / (a - b), rtol=1e-6)
    assert np.isfinite(found).all()


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
    found = run.multipliers([x[None, None]], [x0[None, None]], np.full((1, 1, len(x)), seed))
    return np.asarray(found[0][0, 0, 0, 0])


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
