"""What a rule sees of the node that it is asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.value import Value
from deepshap_ir.errors import RuleError
from deepshap_ir.graph import Array, Graph, Node

if TYPE_CHECKING:
    from deepshap_ir.engine.registry import Rule

Backward = Callable[[Graph, Sequence[Value | None], Sequence[Value | None], Sequence[Value | None]], list[Value | None]]


MADE_FOR_NAN = frozenset(["deepshap_ir::Imputer", "deepshap_ir::Trees"])
"""Joined operators whose input may be NaN."""

MISSING = 1.0907e10
"""What NaN counts as in a delta, so that a contribution of it has a multiplier: far from all numbers in practice."""


ELEMENT_BY_ELEMENT = frozenset(["Abs", "Add", "Cast", "Clip", "Div", "Exp", "Log", "Mul", "Neg", "Pow", "Sqrt", "Sub"])
"""Operators that may stand before those, and hand NaN on."""


def without_nan(x: Value) -> Value:
    """`x` with `MISSING` for NaN."""
    return x.op.Where(x.op.IsNaN(x), x.op.constant(MISSING, x.dtype), x)


@dataclass(frozen=True)
class Parts:
    """A difference as a positive and a negative part, ``plus + minus``; or a multiplier for each of them.

    Attributes
    ----------
    terms : whether the parts are the sums of the positive and of the negative terms of a linear function; otherwise
        they are what the parts of an input did to a nonlinear one.
    """

    plus: Value
    minus: Value
    terms: bool = True

    def by_sign(self, delta: Value) -> Value:
        """The one multiplier where each element of `delta` counts as one part: that of its sign; at 0 their mean."""
        op = delta.op
        still = (self.plus + self.minus) * 0.5
        chosen: Value = op.Where(delta > 0.0, self.plus, op.Where(delta < 0.0, self.minus, still))
        return chosen


def parts_by_sign(delta: Value) -> Parts:
    """A difference each element of which is one part and 0 the other."""
    return Parts(delta.op.Max(delta, 0.0), delta.op.Min(delta, 0.0), terms=False)


class _NodeView:
    """A node, its attributes and its operands, for one example."""

    def __init__(self, node: Node, graph: Graph, op: Emitter) -> None:
        self.node = node
        self.graph = graph
        self.op = op

    @property
    def opset(self) -> int:
        """The opset under which the node is read."""
        return self.node.version

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the node's floating-point values; where it has none, of the program, which may mix them."""
        dtypes = (self.graph.dtypes.get(name) for name in (*self.node.outputs, *self.node.inputs))
        return next((dtype for dtype in dtypes if dtype is not None and dtype.kind == "f"), self.op.dtype)

    @property
    def n_inputs(self) -> int:
        """Number of the node's inputs, absent ones included."""
        return len(self.node.inputs)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute as int, float, str, list, array or graph; `default` where the node does not give it."""
        value = self.node.attributes.get(name)
        return default if value is None else value

    def has(self, i: int) -> bool:
        """Whether input `i` is present."""
        return i < len(self.node.inputs) and bool(self.node.inputs[i])

    def shape(self, i: int = 0) -> tuple[int, ...]:
        """The shape of input `i` for one example."""
        return self.graph.shapes[self.node.inputs[i]]


class Context(_NodeView):
    """A node in the backward pass.

    Every value is for one example. Sample values are ``x(i)``, ``y(j)``; reference values ``x0(i)``, ``y0(j)``. An
    input that does not vary has ``x(i) is x0(i)``.

    Attributes
    ----------
    hands_nan_on : whether the node does something to each element before an operator that is made for NaN.
    keeps_zeros : whether it is a product behind the branch of a choice, of which a factor may be no number.
    """

    hands_nan_on = False
    keeps_zeros = False

    def __init__(
        self,
        node: Node,
        graph: Graph,
        op: Emitter,
        xs: Sequence[Value | None],
        x0s: Sequence[Value | None],
        ys: Sequence[Value | None],
        y0s: Sequence[Value | None],
        options: Mapping[str, Any],
        backward: Backward,
        rule: Callable[[Context, Sequence[Any], Rule | None], list[Any]],
        parts: Callable[[str], Parts] | None = None,
        asked: Rule | None = None,
    ) -> None:
        super().__init__(node, graph, op)
        self.options = options
        self._parts, self._asked = parts, asked
        self._xs, self._x0s, self._ys, self._y0s = xs, x0s, ys, y0s
        self._backward = backward
        self._rule = rule

    @property
    def xs(self) -> list[Value | None]:
        """All inputs at the sample, None where one is absent."""
        return list(self._xs)

    @property
    def x0s(self) -> list[Value | None]:
        """All inputs at the reference."""
        return list(self._x0s)

    def is_computed(self, j: int) -> bool:
        """Whether output `j` is there."""
        return j < len(self._ys) and self._ys[j] is not None

    def x(self, i: int = 0) -> Value:
        """Input `i` at the sample."""
        return self._present(self._xs, i, "input")

    def x0(self, i: int = 0) -> Value:
        """Input `i` at the reference."""
        return self._present(self._x0s, i, "input")

    def y(self, j: int = 0) -> Value:
        """Output `j` at the sample."""
        return self._present(self._ys, j, "output")

    def y0(self, j: int = 0) -> Value:
        """Output `j` at the reference."""
        return self._present(self._y0s, j, "output")

    def varies(self, i: int = 0) -> bool:
        """Whether input `i` may differ between sample and reference."""
        return self.has(i) and self._xs[i] is not self._x0s[i]

    def constant(self, i: int) -> Array | None:
        """Input `i` as an array where it is a constant, else None (also where it is absent)."""
        value = self._xs[i] if self.has(i) else None
        return None if value is None else value.data

    def fixed(self, i: int, what: str) -> Array:
        """Input `i`, the node's `what`, as an array; RuleError where a model input determines it."""
        array = self.constant(i)
        if array is None:
            raise RuleError(f"its {what} are computed from a model input; only fixed {what} are supported")
        return array

    def moving(self) -> set[int]:
        """Of a loop node: the positions of the body's inputs that vary in some round, states among them."""
        from deepshap_ir.engine.recurrence import affected

        return affected(self.node, [i for i in range(self.n_inputs) if self.varies(i)])

    def delta_x(self, i: int = 0) -> Value:
        """``x(i) - x0(i)``, as floating-point numbers; NaN counts as `MISSING` where the operator is made for it."""
        x, x0 = self.as_float(self.x(i)), self.as_float(self.x0(i))
        if self.hands_nan_on or self.node.operator in MADE_FOR_NAN:
            x, x0 = without_nan(x), without_nan(x0)
        return self.op.Sub(x, x0)

    def delta_y(self, j: int = 0) -> Value:
        """``y(j) - y0(j)``, as floating-point numbers; NaN counts as `MISSING` where the node hands it on."""
        y, y0 = self.as_float(self.y(j)), self.as_float(self.y0(j))
        if self.hands_nan_on:
            y, y0 = without_nan(y), without_nan(y0)
        return self.op.Sub(y, y0)

    def mid_x(self, i: int = 0) -> Value:
        """``(x(i) + x0(i)) / 2``; ``x(i)`` where it does not vary. Halved per row: only the sum is per pair."""
        x = self.as_float(self.x(i))
        return x if not self.varies(i) else x * 0.5 + self.as_float(self.x0(i)) * 0.5

    def as_float(self, value: Value) -> Value:
        """`value` itself, or cast where it is an integer or Boolean."""
        return value if value.is_float else self.op.cast(value, self.op.dtype)

    def forward(self, *inputs: Value | None, j: int = 0) -> Value:
        """Output `j` of the same node on other inputs."""
        given = [*inputs, *[None] * (len(self.node.inputs) - len(inputs))]
        self._fits(given)
        result = self.op.node(self.node, given, self.graph)[j]
        if result is None:
            raise RuleError(f"output {j} is not computed")
        return result

    def _fits(self, given: Sequence[Value | None]) -> None:
        """Check inputs: the shapes of the outputs are those of the node, whatever it is given."""
        if len(given) > len(self.node.inputs):
            raise RuleError(f"{len(given)} inputs are given, the node has {len(self.node.inputs)}")
        for i, (name, value) in enumerate(zip(self.node.inputs, given, strict=True)):
            expected = self.graph.shapes.get(name)
            if value is not None and expected is not None and value.shape != expected:
                raise RuleError(f"input {i} is given in shape {value.shape}, the node has it in {expected}")
            if value is None and name and i == 0:
                raise RuleError("input 0 is not given")

    def at(self, xs: Sequence[Value | None], x0s: Sequence[Value | None] | None = None) -> Context:
        """The same node between other points; at one point where `x0s` is left out."""
        x0s = xs if x0s is None else x0s
        self._fits(xs)
        self._fits(x0s)
        # at one point every rule gives the derivative, but only of inputs that it is told vary
        apart = [_Twin.of(b) if b is a and self.varies(i) else b for i, (a, b) in enumerate(zip(xs, x0s, strict=True))]
        ys = self.op.node(self.node, xs, self.graph)
        y0s = ys if all(a is b for a, b in zip(xs, x0s, strict=True)) else self.op.node(self.node, x0s, self.graph)
        arguments = (self.node, self.graph, self.op, xs, apart, ys, y0s, self.options, self._backward, self._rule)
        return Context(*arguments, asked=self._asked)

    def asked_for(self, rule: Rule) -> Context:
        """The same for the rule that is asked."""
        same = copy(self)
        same._asked = rule
        return same

    def vjp(self, point: Sequence[Value | None], m: Sequence[Value | None]) -> list[Value | None]:
        """The derivative at `point`, transposed, times `m`: this node's rule at zero delta."""
        return self._rule(self.at(point), m, None)

    def usual(self, m: Sequence[Value | None]) -> list[Value | None]:
        """The multipliers by the rule that would be asked if there were not this one: often the built-in one.

        Raises
        ------
        UnsupportedOperatorError : there is no other.
        """
        return self._rule(self, m, self._asked)

    def parts(self, i: int = 0) -> Parts:
        """`delta_x` as a positive and a negative part: where a linear operator makes it, the sums of its terms.

        Elsewhere each element is one part, unless a nonlinear operator hands on what parts of its input did.
        """
        return parts_by_sign(self.delta_x(i)) if self._parts is None else self._parts(self.node.inputs[i])

    def backward(
        self, body: Graph, xs: Sequence[Value | None], x0s: Sequence[Value | None], m: Sequence[Value | None]
    ) -> list[Value | None]:
        """Multipliers of the inputs of the subgraph `body`, run on `xs` and `x0s`, from those of its outputs."""
        return self._backward(body, xs, x0s, m)

    def _present(self, values: Sequence[Value | None], i: int, what: str) -> Value:
        value = values[i] if i < len(values) else None
        if value is None:
            raise RuleError(f"{what} {i} is absent")
        return value


class _Twin(Value):
    """The same value under another identity: "varies, with delta zero"."""

    __slots__ = ()

    @classmethod
    def of(cls, value: Value | None) -> Value | None:
        """A twin of `value`."""
        if value is None:
            return None
        return cls(value.op, value.name, value.shape, value.dtype, value.axes, value.data)


class Expansion(_NodeView):
    """A node that is being rewritten with other operators: ``ctx.x(i)`` are its inputs, ``ctx.op`` the emitter."""

    def __init__(self, node: Node, graph: Graph, op: Emitter, xs: Sequence[Value | None]) -> None:
        super().__init__(node, graph, op)
        self._xs = xs

    def x(self, i: int = 0) -> Value:
        """Input `i`."""
        value = self._xs[i] if i < len(self._xs) else None
        if value is None:
            raise RuleError(f"{self.node}: input {i} is absent")
        return value

    def constant(self, i: int) -> Array | None:
        """Input `i` as an array where it is a constant, else None (also where it is absent)."""
        return self._xs[i].data if self.has(i) and self._xs[i] is not None else None  # type: ignore[union-attr]

    def wanted(self, j: int) -> bool:
        """Whether output `j` is used."""
        return j < len(self.node.outputs) and bool(self.node.outputs[j])
