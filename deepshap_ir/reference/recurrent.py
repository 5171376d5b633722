"""RNN, GRU and LSTM for the reference evaluator.

onnx 1.23 knows no sequence lengths, no clipping, no coupled gates, and no other activations than Tanh and Sigmoid. In
what the standard leaves open or onnxruntime does otherwise (the cell state is not clipped on its way to h, the default
of ThresholdedRelu is 0), this is as onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from onnx.reference.op_run import OpRun

from deepshap_ir.graph import Array

Function = Callable[[Array], Array]

ACTIVATIONS: dict[str, tuple[Callable[..., Array], dict[str, float]]] = {
    "relu": (lambda x: np.maximum(x, 0), {}),
    "tanh": (np.tanh, {}),
    "sigmoid": (lambda x: 0.5 + 0.5 * np.tanh(0.5 * x), {}),
    "affine": (lambda x, alpha, beta: alpha * x + beta, {"alpha": 1.0, "beta": 0.0}),
    "leakyrelu": (lambda x, alpha: np.where(x >= 0, x, alpha * x), {"alpha": 0.01}),
    "thresholdedrelu": (lambda x, alpha: np.where(x > alpha, x, 0.0), {"alpha": 0.0}),
    "scaledtanh": (lambda x, alpha, beta: alpha * np.tanh(beta * x), {"alpha": 1.0, "beta": 1.0}),
    "hardsigmoid": (lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1), {"alpha": 0.2, "beta": 0.5}),
    "elu": (lambda x, alpha: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))), {"alpha": 1.0}),
    "softsign": (lambda x: x / (1 + np.abs(x)), {}),
    "softplus": (lambda x: np.logaddexp(x, 0), {}),
}
"""Name -> function, and the defaults of the parameters that it takes."""


class _Layer(OpRun):
    """What the three have in common; a subclass gives one step of time."""

    gates: ClassVar[int]
    activations_by_default: ClassVar[list[str]]
    states: ClassVar[int] = 1

    def step(
        self, x: Array, states: list[Array], r: Array, bias: Array, peepholes: Array, functions: Sequence[Function]
    ) -> list[Array]:
        """The next states ``[B, H]``, from what the input gives to the gates, ``[B, G H]``, without bias."""
        raise NotImplementedError

    def _run(
        self,
        x: Array,
        w: Array,
        r: Array,
        bias: Array | None = None,
        lengths: Array | None = None,
        initial_h: Array | None = None,
        initial_c: Array | None = None,
        peepholes: Array | None = None,
        **attributes: Any,
    ) -> tuple[Array, ...]:
        hidden = r.shape[2]
        reverse = {"reverse": [True], "bidirectional": [False, True]}.get(attributes.get("direction") or "", [False])
        initial = [initial_h, initial_c][: self.states]
        if attributes.get("layout"):
            x = x.swapaxes(0, 1)
            initial = [None if a is None else a.swapaxes(0, 1) for a in initial]
        t, b = x.shape[:2]
        bias = np.zeros((len(w), 2 * self.gates * hidden), x.dtype) if bias is None else bias
        peepholes = np.zeros((len(w), 3 * hidden), x.dtype) if peepholes is None else peepholes
        lengths = np.full(b, t) if lengths is None else lengths
        functions = list(self._functions(attributes, len(reverse)))
        y, ends = np.zeros((t, len(w), b, hidden), x.dtype), []
        for d, backward in enumerate(reverse):
            states = [np.zeros((b, hidden), x.dtype) if a is None else a[d] for a in initial]
            for k in range(t)[:: -1 if backward else 1]:
                inside = (k < lengths)[:, None]
                new = self.step(x[k] @ w[d].T, states, r[d], bias[d], peepholes[d], functions[3 * d : 3 * d + 3])
                states = [np.where(inside, after, before) for after, before in zip(new, states, strict=True)]
                y[k, d] = np.where(inside, new[0], 0)
            ends.append(states)
        last = [np.stack(column) for column in zip(*ends, strict=True)]
        if attributes.get("layout"):
            y, last = y.transpose(2, 0, 1, 3), [a.swapaxes(0, 1) for a in last]
        return tuple(a.astype(x.dtype) for a in (y, *last))[: len(self.onnx_node.output)]

    def _functions(self, attributes: dict[str, Any], directions: int) -> Iterator[Function]:
        """Three activations per direction, the last one repeated."""
        names = attributes.get("activations") or self.activations_by_default * directions
        parameters = {key: iter(attributes.get(f"activation_{key}") or ()) for key in ("alpha", "beta")}
        bound = attributes.get("clip") or np.inf
        count = len(self.activations_by_default)
        for position, name in enumerate(names[: count * directions]):
            function, defaults = ACTIVATIONS[name.lower()]
            given = {key: float(next(parameters[key], default)) for key, default in defaults.items()}

            limit = np.inf if position % count == 2 else bound

            def activation(x: Array, function: Any = function, given: Any = given, limit: float = limit) -> Array:
                return np.asarray(function(np.clip(x, -limit, limit), **given))

            for _ in range(4 - count if (position + 1) % count == 0 else 1):
                yield activation


class RNN(_Layer):
    """``h' = f(x W + h R + b)``."""

    gates = 1
    activations_by_default: ClassVar = ["Tanh"]

    def step(
        self, x: Array, states: list[Array], r: Array, bias: Array, peepholes: Array, functions: Sequence[Function]
    ) -> list[Array]:
        """One step of time."""
        return [functions[0](x + states[0] @ r.T + sum(np.split(bias, 2)))]


class GRU(_Layer):
    """``h' = (1 - z) g + z h``."""

    gates = 3
    activations_by_default: ClassVar = ["Sigmoid", "Tanh"]
    linear_before_reset: int

    def step(
        self, x: Array, states: list[Array], r: Array, bias: Array, peepholes: Array, functions: Sequence[Function]
    ) -> list[Array]:
        """One step of time."""
        f, g, _ = functions
        (h,) = states
        x_z, x_r, x_h = np.split(x, 3, -1)
        r_z, r_r, r_h = np.split(r, 3)
        w_bz, w_br, w_bh, r_bz, r_br, r_bh = np.split(bias, 6)
        z, reset = f(x_z + h @ r_z.T + w_bz + r_bz), f(x_r + h @ r_r.T + w_br + r_br)
        recurrent = reset * (h @ r_h.T + r_bh) if self.linear_before_reset else (reset * h) @ r_h.T + r_bh
        return [(1 - z) * g(x_h + recurrent + w_bh) + z * h]


class LSTM(_Layer):
    """``c' = f c + i g``, ``h' = o h(c')``."""

    gates = 4
    states = 2
    activations_by_default: ClassVar = ["Sigmoid", "Tanh", "Tanh"]
    input_forget: int

    def step(
        self, x: Array, states: list[Array], r: Array, bias: Array, peepholes: Array, functions: Sequence[Function]
    ) -> list[Array]:
        """One step of time."""
        f, g, h = functions
        hidden, cell = states
        i, o, forget, c = np.split(x + hidden @ r.T + sum(np.split(bias, 2)), 4, -1)
        p_i, p_o, p_f = np.split(peepholes, 3)
        i = f(i + p_i * cell)
        forget = 1 - i if self.input_forget else f(forget + p_f * cell)
        cell = forget * cell + i * g(c)
        return [f(o + p_o * cell) * h(cell), cell]


RECURRENT: list[type[OpRun]] = [GRU, LSTM, RNN]
