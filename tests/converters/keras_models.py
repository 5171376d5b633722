"""Small Keras models, data for them, and what their attributions add up to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

Array = NDArray[Any]
B, N = 6, 4


def rows(*shape: int, n: int = B, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def gap(phi: Any, model: Callable[[Any], Any], samples: Any, background: Any) -> float:
    """The largest |sum phi - (f(x) - mean f(x0))|, relative to the largest |f(x) - mean f(x0)|."""
    delta = _run(model, samples) - _run(model, background).mean(0)
    delta = delta.reshape(len(delta), -1)
    listed = phi if isinstance(phi, list) else [phi]
    total = sum(a.reshape(len(a), -1, delta.shape[1]).sum(1) for a in listed)
    return float(np.abs(total - delta).max() / np.abs(delta).max())


def _run(model: Callable[[Any], Any], data: Any) -> Array:
    return np.asarray(model(data)).astype(np.float64)
