"""Arrays that run along the same axes and are cut together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

AxisIndex = int | slice | list[int]


class Track(NamedTuple):
    """An object and the axes of the attributions that its own axes run along."""

    content: Any
    axes: tuple[int, ...]

    def take(self, index: Sequence[AxisIndex]) -> Track:
        """The part of the object at `index`, which has one entry per axis of the attributions."""
        content = self.content
        for position, axis in reversed(list(enumerate(self.axes))):
            part = index[axis]
            if not isinstance(content, list):
                content = content[(slice(None),) * position + (part,)]
            elif isinstance(part, list):
                content = [content[i] for i in part]
            else:
                content = content[part]
        kept = [axis for axis, part in enumerate(index) if not isinstance(part, int)]
        return Track(content, tuple(kept.index(axis) for axis in self.axes if axis in kept))


class Tracks:
    """Parallel objects by attribute name, each with its axes; None for a name that is not there.

    It stands where `shap.Explanation` keeps its slicer, so the properties inherited from there read and write it.
    """

    def __init__(self, tracks: Mapping[str, Track]):
        self.__dict__["tracks"] = dict(tracks)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        track = self.__dict__["tracks"].get(name)
        return None if track is None else track.content

    def __setattr__(self, name: str, content: Any) -> None:
        old = self.__dict__["tracks"].get(name)
        rank = 0 if content is None or isinstance(content, str) else np.ndim(content)
        axes = old.axes if old is not None and len(old.axes) == rank else tuple(range(rank))
        self.__dict__["tracks"][name] = Track(content, axes)
