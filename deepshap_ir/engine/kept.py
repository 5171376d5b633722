"""Values at the references that stay from one call to the next, which then starts where samples come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepshap_ir.engine.program import Plan, nbytes
from deepshap_ir.engine.value import BACKGROUND


class AtReferences:
    """What the program `background` of a plan made of the first references, as many blocks as there is room for.

    Parameters
    ----------
    limit : bytes of the blocks.
    """

    def __init__(self, plan: Plan, limit: int) -> None:
        self.plan = plan
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Keep nothing."""
        self._references: Mapping[str, Any] | None = None
        self._size = self._end = 0
        self._blocks: dict[tuple[int, int], dict[str, Any]] = {}

    def find(self, references: Mapping[str, Any], block: slice) -> dict[str, Any] | None:
        """The values at a block of this very mapping, None where they are not kept."""
        return self._blocks.get((block.start, block.stop)) if self._references is references else None

    def add(self, references: Mapping[str, Any], block: slice, values: dict[str, Any]) -> None:
        """Keep the values at a block if it follows the last one kept; another mapping or cut starts anew."""
        if self.find(references, block) is not None:
            return
        if self._references is not references or block.start < self._end:
            self.clear()
            self._references = references
        size = sum(nbytes(v, {BACKGROUND: block.stop - block.start}) for v in self.plan.background.outputs)
        if block.start == self._end and self._size + size <= self.limit:
            self._blocks[block.start, block.stop] = values
            self._size += size
            self._end = block.stop
