"""Multipliers of the explained output, with which the way back begins: one row for each output that is explained.

They are made piece by piece: all of them together are the square of the number of outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deepshap_ir.graph import Array


class Seeds(Protocol):
    """As many seeds as outputs are explained."""

    def __len__(self) -> int:
        """How many outputs of each sample are explained."""

    def rows(self, outputs: slice, samples: slice) -> Array:
        """Those of some outputs, ``[K, *shape]``, or of some outputs of some samples, ``[K, N, *shape]``."""


@dataclass(frozen=True)
class GivenSeeds:
    """An array ``[K, *shape]``, or with outputs of their own for each sample ``[K, N, *shape]``."""

    array: Array
    ranked: bool

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, outputs: slice, samples: slice) -> Array:
        """A part of the array."""
        return self.array[outputs, samples] if self.ranked else self.array[outputs]


@dataclass(frozen=True)
class EachOutput:
    """A multiplier of 1 at each element of an output of shape `shape`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return math.prod(self.shape)

    def rows(self, outputs: slice, samples: slice) -> Array:
        """Rows of the identity matrix."""
        k = len(self)
        return np.eye(outputs.stop - outputs.start, k, outputs.start, self.dtype).reshape(-1, *self.shape)


@dataclass(frozen=True)
class RankedOutputs:
    """A multiplier of 1 at each of the elements that `ranks`, ``[N, r]``, lists for each sample."""

    ranks: Array
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return int(self.ranks.shape[1])

    def rows(self, outputs: slice, samples: slice) -> Array:
        """``[r, N, *shape]`` for a part of the samples and their ranks."""
        chosen = self.ranks[samples, outputs].T[:, :, None]
        seeds = np.zeros((*chosen.shape[:2], math.prod(self.shape)), self.dtype)
        np.put_along_axis(seeds, chosen, 1, axis=2)
        return seeds.reshape(*chosen.shape[:2], *self.shape)
