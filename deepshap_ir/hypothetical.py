"""Hypothetical contributions of one-hot samples: those that each letter would have had in place of the one there is.

``H[c] = m[c] - sum_c' m[c'] x0[c']``: the contributions of a position that has its one at `c`, by the multipliers `m`
of the sample as it is, added up over the letters. Where `c` is the sample's own letter this is the sum of the
position's contributions.

Shrikumar et al., "Technical note on Transcription Factor Motif Discovery from Importance Scores (TF-MoDISco)" (2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deepshap_ir.engine.attribution import Layout
from deepshap_ir.errors import InputError
from deepshap_ir.graph import Array, Graph
from deepshap_ir.importing.feeds import suggest

TOLERANCE = 1e-4


def example_axes(axes: int | Mapping[str, int], graph: Graph, places: Sequence[str]) -> dict[str, int]:
    """The axis of the letters in each place, counted in the shape of one example.

    Parameters
    ----------
    axes : counted in the data as they are given, ``2`` or ``-1`` for ``[N, L, 4]``: one for all places, or by name; the
        places that are not named get their contributions.

    Raises
    ------
    InputError : there is no such place or axis, or it is the batch.
    """
    given = dict(axes) if isinstance(axes, Mapping) else dict.fromkeys(places, axes)
    for name, axis in given.items():
        if name not in places:
            raise InputError(f"hypothetical_axis: nothing is attributed to {name!r}.{suggest(name, list(places))}")
        rank = len(graph.shapes[name])
        if not -rank <= axis < rank:
            raise InputError(f"hypothetical_axis={axis}: {name!r} has {rank} axes")
        given[name] = axis % rank
        if given[name] == graph.batch_axes.get(name, 0 if graph.shapes[name][:1] == (1,) else None):
            raise InputError(f"hypothetical_axis={axis}: this is the batch axis of {name!r}; name that of the letters")
    return given


def check_one_hot(layout: Layout, arrays: Mapping[str, Array], axes: Mapping[str, int], features: bool = False) -> None:
    """Check that the samples have numbers from 0 that add up to 1 along the axis, or zeros alone.

    Parameters
    ----------
    arrays : ``[N, *shape]`` by name, or with `features` ``[N, *features]``.

    Raises
    ------
    InputError : they are not, at which sample; with the axes along which they are.
    """
    for name, array in arrays.items():
        shape = layout.graph.shapes[name]
        rows = array.reshape(-1, *shape) if features else array
        if _is_one_hot(rows, axes[name]):
            continue
        fitting = [axis for axis, length in enumerate(shape) if length > 1 and _is_one_hot(rows, axis)]
        others = f"; along axis {' or '.join(map(str, fitting))} they are" if fitting else ""
        bad = int(np.argmin([_is_one_hot(rows[i : i + 1], axes[name]) for i in range(len(rows))]))
        raise InputError(
            f"hypothetical=True is for one-hot samples: those of {name!r} are not along axis {axes[name]} "
            f"(sample {bad}){others}. Say where the letters are: hypothetical_axis=, counted as in the data, or "
            f"{{input: axis}} to leave other inputs alone."
        )


def _is_one_hot(rows: Array, axis: int) -> bool:
    """Of ``[N, *shape]``, along an axis of the shape."""
    total = rows.sum(axis=axis + 1, dtype=np.float64)
    near = [np.abs(total - 1) < TOLERANCE, np.abs(total) < TOLERANCE]
    return bool(rows.min(initial=0) >= -TOLERANCE and np.all(near[0] | near[1]))
