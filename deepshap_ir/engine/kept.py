"""Values at the references that stay from one call to the next, which then starts where samples come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepshap_ir.engine.program import Plan, nbytes
from deepshap_ir.engine.value import BACKGROUND


class AtReferences:
    """What the program `background` of a plan made of blocks of references.

    Parameters
    ----------
    limit : bytes of the blocks that are kept, in the order in which they come.
    """

    def __init__(self, plan: Plan, limit: int) -> None:
        self.plan = plan
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Keep nothing."""
        self._references: Mapping[str, Any] | None = None
        self._step = self._size = 0
        self._blocks: dict[int, dict[str, Any]] = {}

    def expect(self, references: Mapping[str, Any], step: int) -> None:
        """Keep what belongs to this very mapping, cut into blocks of length `step`, and nothing else."""
        if self._references is not references or self._step != step:
            self.clear()
            self._references, self._step = references, step

    def find(self, block: slice) -> dict[str, Any] | None:
        """The values at a block, None where they are not kept."""
        return self._blocks.get(block.start)

    def add(self, block: slice, values: dict[str, Any]) -> None:
        """Keep the values at a block, if there is room."""
        size = sum(nbytes(v, {BACKGROUND: block.stop - block.start}) for v in self.plan.background.outputs)
        if block.start not in self._blocks and self._size + size <= self.limit:
            self._blocks[block.start] = values
            self._size += size
