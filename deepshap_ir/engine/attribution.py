"""The evaluator's sums as users see them: laid out by sample, feature and output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deepshap_ir.engine.evaluator import Rows
from deepshap_ir.engine.seeds import EachOutput, RankedOutputs, Seeds
from deepshap_ir.errors import InputError
from deepshap_ir.graph import Array, Graph

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

    def seeds(self, ranks: Array | None = None) -> Seeds:
        """One multiplier of 1 per output, or per ranked output of each sample, ``[N, r]``."""
        shape, dtype = self.graph.shapes[self.output], self.graph.float_dtype
        return EachOutput(shape, dtype) if ranks is None else RankedOutputs(ranks, shape, dtype)

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


FORGIVEN = 100.0
"""How often the size of the outputs goes into contributions whose rounding a check of sums forgives."""


@dataclass(frozen=True)
class Attributions:
    """Attributions and what they are checked against; N samples, B references, outputs as the caller asked for them.

    Attributes
    ----------
    values : per place, ``[N, *features, *outputs]``.
    asked : what else was asked for, by its role in the plan, per place: as `values`, or for each reference
        ``[N, B, *features, *outputs]``.
    output, base, base_magnitude : ``f(x)``, mean ``f(x0)`` and mean ``|f(x0)|``, ``[N, *outputs]``.
    expected : the mean of all outputs, ``[*output shape]``, ``[N, *output shape]`` where it depends on the sample.
    bases : ``f(x0)`` where it was asked for each reference, ``[N, B, *outputs]``.
    data : per place, the values at the samples, ``[N, *features]``.
    ranks : indexes of ranked outputs, ``[N, r]``.
    errors : per place, standard errors of `values`.
    unattributed : what reaches the output around the places, ``[N, *outputs]``; ``[N, B, *outputs]`` in `each_around`.
    absolute : mean sum of the magnitudes of all contributions, ``[N, *outputs]``.
    """

    values: list[Array]
    asked: dict[str, list[Array]]
    output: Array
    base: Array
    base_magnitude: Array
    expected: Array
    bases: Array | None
    data: list[Array]
    ranks: Array | None
    errors: list[Array] | None
    unattributed: Array | None
    each_around: Array | None
    absolute: Array | None

    def gap(self) -> Array:
        """``|sum of attributions - (f(x) - E f)|``, ``[N, *outputs]``."""
        outputs = self.output.ndim - 1
        total = sum((sum_features(v, outputs) for v in self.values), np.zeros(()))
        if self.unattributed is not None:
            total = total + self.unattributed
        return np.asarray(np.abs(total - (self.output - self.base)))

    def scale(self) -> Array:
        """What the gap is relative to, ``[N, *outputs]``; an output that is 0 at all points has the largest's size.

        Where large contributions cancel, theirs, as float32 rounds them, but not beyond `FORGIVEN` times the largest
        output: what is left of more is noise.
        """
        scale = np.asarray(np.maximum(np.abs(self.output), self.base_magnitude))
        largest = scale.reshape(len(scale), -1).max(1, initial=0).reshape(-1, *[1] * (scale.ndim - 1))
        scale = np.where(scale == 0, largest, scale)
        return scale if self.absolute is None else np.maximum(scale, np.minimum(self.absolute, FORGIVEN * largest))

    def finite(self) -> Array:
        """Whether all numbers of a sample are finite, ``[N]``."""
        arrays = [self.output, self.base, *self.values]
        arrays += [a for role, found in self.asked.items() if not role.startswith("each") for a in found]
        return np.asarray(np.all([np.isfinite(a).reshape(len(a), -1).all(1) for a in arrays], axis=0))


def gather(
    layout: Layout,
    rows: Rows,
    b: int,
    samples: Mapping[str, Array],
    n: int,
    places: Sequence[str],
    bypassing: Sequence[str],
    ranks: Array | None,
    asked: Sequence[str] = (),
) -> Attributions:
    """Attributions from the evaluator's sums.

    Parameters
    ----------
    b, n : how many references and samples.
    samples : input name -> ``[N, *shape]``.
    places : the values that get the attributions.
    bypassing : explained inputs that reach the output around the places.
    asked : roles of the plan to be given beside the contributions.
    """
    shape = layout.output_shape if ranks is None else (ranks.shape[1],)
    outputs, rank = len(shape), len(layout.graph.shapes[layout.output])
    roles = {role[0] for role in rows.sums}

    def per_feature(role: str, name: str) -> Array:
        """``[N, *features, *outputs]``, the mean over the references, or for each of these ``[N, B, ...]``."""
        example, each = layout.graph.shapes[name], role.startswith("each")
        whole = (math.prod(shape), n, *([b] if each else []), *example)
        found = np.broadcast_to(rows.sums.get((role, name), np.zeros(())), whole)
        last = np.moveaxis(layout.features(name, found), 0, -1)
        last = last.reshape(*last.shape[:-1], *shape)
        return last if each else last / b

    def per_output(array: Array, *lead: int) -> Array:
        """``[*lead, *outputs]`` from ``[*shape]`` with some of the leading axes."""
        flat = array.reshape(*array.shape[: array.ndim - rank], layout.n_outputs)
        flat = np.broadcast_to(flat, (*lead, layout.n_outputs))
        if ranks is not None:
            flat = np.take_along_axis(flat, ranks.reshape(n, *(1 for _ in lead[1:]), -1), -1)
        return flat.reshape(*lead, *shape)

    def around(role: str, lead: int = 1) -> Array:
        return sum((sum_features(per_feature(role, name), outputs, lead) for name in bypassing), np.zeros(()))

    values = [per_feature("sum", name) for name in places]
    absolute = errors = None
    if "squares" in roles:
        magnitudes = [sum_features(per_feature("absolute", name), outputs) for name in (*places, *bypassing)]
        absolute = np.asarray(sum(magnitudes, np.zeros(())))
        if b > 1:
            squares = [per_feature("squares", name) for name in places]
            errors = [np.sqrt(np.maximum(s - v**2, 0) / (b - 1)) for s, v in zip(squares, values, strict=True)]
    data = [samples[name] if name in samples else rows.sums.get(("place", name)) for name in places]
    bases = rows.sums.get(("each base",))
    return Attributions(
        values=values,
        asked={role: [per_feature(role, name) for name in places] for role in asked},
        output=per_output(rows.output, n),
        base=per_output(rows.base, n),
        base_magnitude=per_output(rows.base_magnitude, n),
        expected=rows.base.reshape(*rows.base.shape[: rows.base.ndim - rank], *layout.output_shape),
        bases=None if bases is None else per_output(bases, n, b),
        data=[layout.features(name, a) for name, a in zip(places, data, strict=True) if a is not None],
        ranks=ranks,
        errors=errors,
        unattributed=around("sum") if bypassing else None,
        each_around=around("each sum", 2) if bypassing and "each sum" in asked else None,
        absolute=absolute,
    )


def sum_features(values: Array, outputs: int, lead: int = 1) -> Array:
    """``[N, *outputs]`` from ``[N, *features, *outputs]``; with ``lead=2``, ``[N, B, *outputs]``."""
    return np.asarray(values.sum(axis=tuple(range(lead, values.ndim - outputs))))
