"""The evaluator's sums as users see them: laid out by sample, feature and output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepshap_ir.engine.evaluator import Rows
from deepshap_ir.errors import InputError
from deepshap_ir.graph import Array, Graph

SEED_BYTES = 1 << 26
"""Outputs are explained in blocks whose seeds take at most this."""
ORDERS: dict[str, Callable[[Array], Array]] = {"max": np.negative, "min": np.positive, "max_abs": lambda y: -np.abs(y)}


@dataclass(frozen=True)
class Layout:
    """Between arrays as users lay them out and rows of one example, ``[N, *shape]``."""

    graph: Graph
    output: str

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the explained output without the batch axis; ``(1,)`` for a number."""
        shape = self.graph.shapes[self.output]
        return (shape[1:] if shape[:1] == (1,) else shape) or (1,)

    @property
    def n_outputs(self) -> int:
        """Number of explained scalars."""
        return math.prod(self.output_shape)

    @property
    def seed_dtype(self) -> np.dtype[Any]:
        """The floating-point dtype of the program."""
        return self.graph.float_dtype

    def rows(self, name: str, array: Array) -> Array:
        """``[N, *shape]`` in the graph's dtype; the array itself where the input has no batch axis."""
        axis = self.graph.batch_axes[name]
        array = array.astype(self.graph.dtypes[name], copy=False)
        return array if axis is None else np.expand_dims(np.moveaxis(array, axis, 0), axis + 1)

    def features(self, name: str, array: Array) -> Array:
        """``[..., *features]`` from ``[..., *shape]``: without the batch axis."""
        shape = self.graph.shapes[name]
        axis = self.graph.batch_axes.get(name, 0 if shape[:1] == (1,) else None)
        return array if axis is None else np.squeeze(array, axis - len(shape))

    def seeds(self) -> list[Array]:
        """One multiplier of 1 per output, in blocks ``[K, *shape]``."""
        k, shape = self.n_outputs, self.graph.shapes[self.output]
        step = max(1, SEED_BYTES // (8 * k))
        return [np.eye(min(step, k - s), k, s, self.seed_dtype).reshape(-1, *shape) for s in range(0, k, step)]

    def ranked_seeds(self, ranks: Array) -> list[Array]:
        """One multiplier of 1 per ranked output of each sample, ``[r, N, *shape]``."""
        n, r = ranks.shape
        seeds = np.zeros((r, n, self.n_outputs), self.seed_dtype)
        np.put_along_axis(seeds, ranks.T[:, :, None], 1, axis=2)
        return [seeds.reshape(r, n, *self.graph.shapes[self.output])]

    def ranks(self, y: Array, wanted: int, order: str) -> Array:
        """Indexes of the outputs that come first in `order`, ``[N, wanted]``, from outputs ``[N, *shape]``.

        Raises
        ------
        InputError : an unknown order, or more outputs than there are.
        """
        if order not in ORDERS:
            raise InputError(f"output_rank_order={order!r}: choose {', '.join(map(repr, ORDERS))}")
        if not 1 <= wanted <= self.n_outputs:
            raise InputError(f"ranked_outputs={wanted}: the model has {self.n_outputs} outputs")
        order_of: Array = np.argsort(ORDERS[order](y.reshape(-1, self.n_outputs)), axis=1, kind="stable")
        return order_of[:, :wanted]


@dataclass(frozen=True)
class Attributions:
    """Attributions and what they are checked against; N samples, outputs as the caller asked for them.

    Attributes
    ----------
    values : per place, ``[N, *features, *outputs]``.
    output, base, base_magnitude : ``f(x)``, mean ``f(x0)`` and mean ``|f(x0)|``, ``[N, *outputs]``.
    data : per place, the values at the samples, ``[N, *features]``.
    ranks : indexes of ranked outputs, ``[N, r]``.
    errors : per place, standard errors of `values`.
    unattributed : what reaches the output around the places, ``[N, *outputs]``.
    absolute : mean sum of the magnitudes of all contributions, ``[N, *outputs]``.
    """

    values: list[Array]
    output: Array
    base: Array
    base_magnitude: Array
    data: list[Array]
    ranks: Array | None
    errors: list[Array] | None
    unattributed: Array | None
    absolute: Array | None

    def gap(self) -> Array:
        """``|sum of attributions - (f(x) - E f)|``, ``[N, *outputs]``."""
        outputs = self.output.ndim - 1
        total = sum((sum_features(v, outputs) for v in self.values), np.zeros(()))
        if self.unattributed is not None:
            total = total + self.unattributed
        return np.asarray(np.abs(total - (self.output - self.base)))

    def scale(self) -> Array:
        """What the gap is relative to, ``[N, *outputs]``."""
        scale = np.maximum(np.abs(self.output), self.base_magnitude)
        return scale if self.absolute is None else np.maximum(scale, self.absolute)

    def finite(self) -> Array:
        """Whether all numbers of a sample are finite, ``[N]``."""
        arrays = (self.output, self.base, *self.values)
        return np.asarray(np.all([np.isfinite(a).reshape(len(a), -1).all(1) for a in arrays], axis=0))


def gather(
    layout: Layout,
    parts: Sequence[Rows],
    n_references: int,
    samples: Mapping[str, Array],
    n: int,
    places: Sequence[str],
    bypassing: Sequence[str],
    ranks: Array | None,
) -> Attributions:
    """Attributions from the sums of each block of seeds.

    Parameters
    ----------
    samples : input name -> ``[N, *shape]``.
    places : the values that get the attributions.
    bypassing : explained inputs that reach the output around the places.
    """
    b, rows = n_references, parts[0]
    shape = layout.output_shape if ranks is None else (ranks.shape[1],)

    def mean(role: str, name: str) -> Array:
        example = layout.graph.shapes[name]
        found = [part.sums[role, name] for part in parts if (role, name) in part.sums]
        blocks = [np.broadcast_to(a, (len(a), n, *example)) for a in found]
        stacked = np.concatenate(blocks) if blocks else np.zeros((math.prod(shape), n, *example))
        last = np.moveaxis(layout.features(name, stacked), 0, -1)
        return last.reshape(*last.shape[:-1], *shape) / b

    def per_output(array: Array, rank: int) -> Array:
        lead = array.shape[: array.ndim - rank]
        array = np.broadcast_to(array.reshape(*lead, layout.n_outputs), (n, layout.n_outputs))
        return (array if ranks is None else np.take_along_axis(array, ranks, 1)).reshape(n, *shape)

    rank = len(layout.graph.shapes[layout.output])
    values = [mean("sum", name) for name in places]
    unattributed = absolute = errors = None
    if bypassing:
        unattributed = sum((sum_features(mean("sum", name), len(shape)) for name in bypassing), np.zeros(()))
    if any(role[0] == "squares" for role in rows.sums):
        magnitudes = [sum_features(mean("absolute", name), len(shape)) for name in (*places, *bypassing)]
        absolute = sum(magnitudes, np.zeros(()))
        if b > 1:
            squares = [mean("squares", name) for name in places]
            errors = [np.sqrt(np.maximum(s - v**2, 0) / (b - 1)) for s, v in zip(squares, values, strict=True)]
    data = [samples[name] if name in samples else rows.sums.get(("place", name)) for name in places]
    return Attributions(
        values,
        per_output(rows.output, rank),
        per_output(rows.base, rank),
        per_output(rows.base_magnitude, rank),
        [layout.features(name, a) for name, a in zip(places, data, strict=True) if a is not None],
        ranks,
        errors,
        unattributed,
        absolute,
    )


def sum_features(values: Array, outputs: int) -> Array:
    """``[N, *outputs]`` from ``[N, *features, *outputs]``."""
    return np.asarray(values.sum(axis=tuple(range(1, values.ndim - outputs))))
