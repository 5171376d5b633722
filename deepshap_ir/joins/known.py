"""Recognise a function of one number by its values, however it is spelled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.graph import Array, Graph

TOLERANCE = 1e-6
"""Relative to 1 + |f|: files hold the functions' constants in float32."""

_SIZES = np.geomspace(1e-3, 40.0, 60)
POINTS = np.concatenate([-_SIZES[::-1], _SIZES])


def _sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _gelu(x: Array) -> Array:
    return np.array([0.5 * v * math.erfc(-v / math.sqrt(2.0)) for v in x])


def _gelu_tanh(x: Array) -> Array:
    return x * _sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))


FUNCTIONS: list[tuple[str, dict[str, Any], Callable[[Array], Array]]] = [
    ("Sigmoid", {}, _sigmoid),
    ("Tanh", {}, np.tanh),
    ("Softplus", {}, _softplus),
    ("Softsign", {}, lambda x: x / (1.0 + np.abs(x))),
    ("Mish", {}, lambda x: x * np.tanh(_softplus(x))),
    ("Gelu", {}, _gelu),
    ("Gelu", {"approximate": "tanh"}, _gelu_tanh),
]
"""Operator, attributes, function: those with a secant of their own in `rules.elementwise`."""


def recognise(body: Graph) -> tuple[str, dict[str, Any]] | None:
    """The operator and the attributes of the function that `body` computes, None where it is none of `FUNCTIONS`.

    ``x sigmoid(alpha x)`` is Swish, for any alpha.
    """
    if any(array.size != 1 for array in body.constants.values()):
        return None
    values = _values(body, np.append(POINTS, 1.0))
    if values is None:
        return None
    *found, at_one = values
    if 0.0 < at_one < 1.0:
        alpha = math.log(at_one / (1.0 - at_one))
        alpha = round(alpha) if abs(alpha - round(alpha)) < TOLERANCE else alpha
        if _same(np.array(found), POINTS * _sigmoid(alpha * POINTS)):
            return "Swish", {"alpha": float(alpha)}
    return next(((name, dict(given)) for name, given, f in FUNCTIONS if _same(np.array(found), f(POINTS))), None)


def _same(found: Array, expected: Array) -> bool:
    return bool(np.all(np.abs(found - expected) <= TOLERANCE * (1.0 + np.abs(expected))))


def _values(body: Graph, points: Array) -> Array | None:
    """What `body` makes of each of `points`, in float64."""
    op = Emitter(body.opsets, np.dtype(np.float64))
    (result,) = op.graph(body.astype(np.float64), [op.constant(points)])
    # a constant of shape [1, 1, 1] adds axes
    return None if result.data is None else result.data.reshape(points.shape)
