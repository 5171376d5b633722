"""RNN, LSTM and GRU are loops over time: `deepshap_ir.rules.recurrence` differentiates their equations.

Gates go by rescale, and a gate times a signal by the midpoint rule, the rules of the operators in the loop. The product
of input and weights is in the loop too: outside it would be one product over all of time forward, but backward the
multipliers of all gates, ``[T, G H]`` per pair of rows, would have to be kept for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deepshap_ir.extend import Expansion, RuleError, Value, expand

Activation = Callable[[Value], Value]


@dataclass(frozen=True)
class Direction:
    """One direction of a layer.

    Attributes
    ----------
    r : ``[H, G H]``: the recurrent weights, transposed, the gates in the order of the operator.
    r_bias : ``[G H]`` or None.
    peepholes : ``[3 H]``, of input, output and forget gate, or None.
    f, g, h : activations, the clipping of what they get included.
    coupled : whether the forget gate is one minus the input gate (`input_forget`).
    rounded : what is done to a factor before it meets weights.
    """

    r: Value
    r_bias: Value | None
    peepholes: Value | None
    f: Activation
    g: Activation
    h: Activation
    coupled: bool
    rounded: Activation | None = None

    @property
    def hidden(self) -> int:
        """H."""
        return self.r.shape[0]


Cell = Callable[[Direction, Value, list[Value]], list[Value]]
"""Direction, what the input gives to the gates, ``[B, G H]``, and states ``[B, H]`` -> the next states."""


def rnn_cell(d: Direction, x: Value, states: list[Value]) -> list[Value]:
    """``h' = f(x + h R + b)``."""
    return [d.f(x + states[0] @ d.r)]


def lstm_cell(d: Direction, x: Value, states: list[Value]) -> list[Value]:
    """``c' = f c + i g``, ``h' = o h(c')``."""
    op, n = x.op, d.hidden
    h, c = states
    gates = x + (h if d.rounded is None else d.rounded(h)) @ d.r
    if d.peepholes is None:
        iof, g = op.Split(gates, [3 * n, n], outputs=2, axis=-1)
        i, o, f = op.Split(d.f(iof), [n, n, n], outputs=3, axis=-1)
        f = 1.0 - i if d.coupled else f
        c = f * c + i * d.g(g)
    else:
        i, o, f, g = op.Split(gates, [n] * 4, outputs=4, axis=-1)
        p_i, p_o, p_f = op.Split(d.peepholes, [n] * 3, outputs=3, axis=-1)
        i = d.f(i + p_i * c)
        f = 1.0 - i if d.coupled else d.f(f + p_f * c)
        c = f * c + i * d.g(g)
        o = d.f(o + p_o * c)
    return [o * d.h(c), c]


def gru_cell(d: Direction, x: Value, states: list[Value]) -> list[Value]:
    """``h' = (1 - z) g + z h``, ``g = g(x + (r h) R)``: the reset gate before the product."""
    op, n = x.op, d.hidden
    h = states[0]
    r_zr, r_h = op.Split(d.r, [2 * n, n], outputs=2, axis=-1)
    x_zr, x_h = op.Split(x, [2 * n, n], outputs=2, axis=-1)
    z, r = op.Split(d.f(x_zr + h @ r_zr), [n, n], outputs=2, axis=-1)
    g = d.g(x_h + (r * h) @ r_h)
    return [(1.0 - z) * g + z * h]


def gru_cell_linear_before_reset(d: Direction, x: Value, states: list[Value]) -> list[Value]:
    """``h' = (1 - z) g + z h``, ``g = g(x + r (h R + b))``: the reset gate after the product."""
    op, n = x.op, d.hidden
    h = states[0]
    recurrent = h @ d.r
    if d.r_bias is not None:
        recurrent = recurrent + d.r_bias
    h_zr, h_h = op.Split(recurrent, [2 * n, n], outputs=2, axis=-1)
    x_zr, x_h = op.Split(x, [2 * n, n], outputs=2, axis=-1)
    z, r = op.Split(d.f(x_zr + h_zr), [n, n], outputs=2, axis=-1)
    g = d.g(x_h + r * h_h)
    return [(1.0 - z) * g + z * h]


@expand("RNN")
def rnn(ctx: Expansion) -> list[Value]:
    """The plain recurrent layer: Y and Y_h."""
    return layer(ctx, rnn_cell, 1, ["Tanh"])


@expand("LSTM")
def lstm(ctx: Expansion) -> list[Value]:
    """Long short-term memory: Y, Y_h and Y_c."""
    return layer(ctx, lstm_cell, 2, ["Sigmoid", "Tanh", "Tanh"])


@expand("GRU")
def gru(ctx: Expansion) -> list[Value]:
    """The gated recurrent unit: Y and Y_h."""
    after = bool(ctx.attribute("linear_before_reset", 0))
    return layer(ctx, gru_cell_linear_before_reset if after else gru_cell, 1, ["Sigmoid", "Tanh"])


def layer(
    ctx: Expansion,
    cell: Cell,
    n_states: int,
    defaults: Sequence[str],
    weights: Mapping[int, Value] | None = None,
    rounded: Activation | None = None,
) -> list[Value]:
    """Both directions side by side: all hidden states ``[T, D, B, H]``, and the last of each state, ``[D, B, H]``.

    `weights` are taken for the inputs at these positions. Input and hidden states are `rounded` before they meet them.
    """
    op, batch_first = ctx.op, bool(ctx.attribute("layout", 0))
    x = op.Transpose(ctx.x(), perm=[1, 0, 2]) if batch_first else ctx.x()
    direction = ctx.attribute("direction", "forward")
    backward = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    activations = _activations(ctx, list(defaults) * len(backward))
    x = x if rounded is None else rounded(x)
    known = {i: ctx.x(i) for i in (1, 2)} | dict(weights or {})
    hidden, last = [], []
    for d, reverse in enumerate(backward):
        chosen = activations[d * len(defaults) : (d + 1) * len(defaults)]
        states = [_initial(ctx, 5 + k, d, x, batch_first) for k in range(n_states)]
        direction, w, bias = _weights(ctx, cell, d, chosen, known)
        ys, states = _run(ctx, cell, replace(direction, rounded=rounded), w, bias, x, states, reverse)
        hidden.append(op.Unsqueeze(ys, [1]))
        last.append([op.Unsqueeze(state, [0]) for state in states])
    y = op.Concat(*hidden, axis=1) if len(hidden) > 1 else hidden[0]
    ends = [op.Concat(*pair, axis=0) if len(pair) > 1 else pair[0] for pair in zip(*last, strict=True)]
    if batch_first:
        return [op.Transpose(y, perm=[2, 0, 1, 3]), *(op.Transpose(end, perm=[1, 0, 2]) for end in ends)]
    return [y, *ends]


def _run(
    ctx: Expansion,
    cell: Cell,
    direction: Direction,
    w: Value,
    bias: Value | None,
    x: Value,
    states: list[Value],
    reverse: bool,
) -> tuple[Value, list[Value]]:
    """A direction on ``x [T, B, I]``: hidden states ``[T, B, H]`` in the order of time, and the last states."""
    op, (length, batch, _) = ctx.op, x.shape
    mask = _mask(ctx, length, batch)
    sequences = [x] if mask is None else [x, mask]

    def step(states: list[Value], elements: list[Value]) -> tuple[list[Value], list[Value]]:
        g = elements[0] @ w
        g = g if bias is None else g + bias
        new = cell(direction, g, states)
        if mask is None:
            return new, [new[0]]
        kept = [op.Where(elements[1], after, before) for after, before in zip(new, states, strict=True)]
        return kept, [op.Where(elements[1], new[0], 0.0)]

    last, (ys,) = op.scan(step, states, sequences, reverse)
    return ys, last


def _weights(
    ctx: Expansion, cell: Cell, d: int, activations: Sequence[Activation], known: Mapping[int, Value]
) -> tuple[Direction, Value, Value | None]:
    """What direction `d` needs in the loop, and before it the input's weights ``[I, G H]`` and bias ``[G H]``."""
    op = ctx.op

    def of_direction(i: int) -> Value | None:
        return op.Gather(ctx.x(i), np.array(d), axis=0) if ctx.has(i) else None

    w, r = (op.Transpose(op.Gather(known[i], np.array(d), axis=0), perm=[1, 0]) for i in (1, 2))
    bias, r_bias, both = None, None, of_direction(3)
    if both is not None:
        bias, r_bias = op.Split(both, [w.shape[1]] * 2, outputs=2, axis=-1)
        if cell is not gru_cell_linear_before_reset:
            bias = bias + r_bias
    f, g, h = [*activations, *[activations[-1]] * 2][:3]
    coupled = bool(ctx.attribute("input_forget", 0))
    return Direction(r, r_bias, of_direction(7), f, g, h, coupled), w, bias


def _initial(ctx: Expansion, i: int, d: int, x: Value, batch_first: bool) -> Value:
    """The initial state ``[B, H]`` of direction `d`, zeros where it is absent."""
    if not ctx.has(i):
        return ctx.op.zeros((x.shape[1], ctx.attribute("hidden_size")), x.dtype)
    return ctx.op.Gather(ctx.x(i), np.array(d), axis=1 if batch_first else 0)


def _mask(ctx: Expansion, length: int, batch: int) -> Value | None:
    """``[T, B, 1]``: whether a time lies within the sequence's length; None where every time does."""
    if not ctx.has(4):
        return None
    times = np.arange(length, dtype=np.int32).reshape(-1, 1, 1)
    mask = ctx.op.Less(times, ctx.op.Reshape(ctx.x(4), [1, batch, 1]))
    return None if mask.data is not None and mask.data.all() else mask


def _activations(ctx: Expansion, defaults: Sequence[str]) -> list[Activation]:
    """The activations, which take alpha and beta from the node's lists in turn where they know them."""
    names = ctx.attribute("activations") or defaults
    rest = {key: iter(ctx.attribute(f"activation_{key}") or ()) for key in ("alpha", "beta")}
    clip = ctx.attribute("clip")
    found = []
    for position, name in enumerate(names):
        if name.lower() not in ACTIVATIONS:
            raise RuleError(f"no activation {name!r}; known are {', '.join(ACTIVATIONS)}")
        function, parameters = ACTIVATIONS[name.lower()]
        given = {key: next(rest[key], default) for key, default in parameters.items()}
        of_cell = len(defaults) % 3 == 0 and position % 3 == 2  # onnxruntime does not clip what h gets
        found.append(_clipped(function, given, None if of_cell else clip))
    return found


def _clipped(function: Callable[..., Value], parameters: dict[str, float], clip: float | None) -> Activation:
    def activation(x: Value) -> Value:
        if clip is not None:
            x = x.op.Clip(x, -clip, clip)
        return function(x, **parameters)

    return activation


ACTIVATIONS: dict[str, tuple[Callable[..., Value], dict[str, float]]] = {
    "relu": (lambda x: x.op.Relu(x), {}),
    "tanh": (lambda x: x.op.Tanh(x), {}),
    "sigmoid": (lambda x: x.op.Sigmoid(x), {}),
    "affine": (lambda x, alpha, beta: x * alpha + beta, {"alpha": 1.0, "beta": 0.0}),
    "leakyrelu": (lambda x, alpha: x.op.LeakyRelu(x, alpha=alpha), {"alpha": 0.01}),
    "thresholdedrelu": (lambda x, alpha: x.op.ThresholdedRelu(x, alpha=alpha), {"alpha": 0.0}),
    "scaledtanh": (lambda x, alpha, beta: x.op.Tanh(x * beta) * alpha, {"alpha": 1.0, "beta": 1.0}),
    "hardsigmoid": (
        lambda x, alpha, beta: x.op.HardSigmoid(x, alpha=alpha, beta=beta),
        {"alpha": 0.2, "beta": 0.5},
    ),
    "elu": (lambda x, alpha: x.op.Elu(x, alpha=alpha), {"alpha": 1.0}),
    "softsign": (lambda x: x.op.Softsign(x), {}),
    "softplus": (lambda x: x.op.Softplus(x), {}),
}
"""Name -> function, and the defaults of the parameters that it takes, as onnxruntime has them.

The standard's default for ThresholdedRelu is 1.
"""
