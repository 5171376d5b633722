"""Run a plan over data, in pieces that fit the memory.

References are the outer loop and samples the inner one, so each reference's forward pass runs once. Sums over a piece's
references are in the model's dtype, sums over pieces in float64.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from deepshap_ir.backends import Backend
from deepshap_ir.batching import dimension
from deepshap_ir.emitter import AXES, BACKGROUND, OUTPUT, SAMPLE, Value
from deepshap_ir.errors import InputError
from deepshap_ir.graph import Array
from deepshap_ir.program import Plan, Program, nbytes

Tensors = dict[str, Any]
"""Name -> array, in whatever form the backend keeps it."""
OwnReferences = Callable[[int], Mapping[str, Array]]
"""A sample's position -> its own references, input name -> ``[B, *shape]``."""

REFERENCES_PER_SUM = 50
"""Longest float32 sum over references: 1.5e-7 relative, before pieces are added up in float64."""
CACHE_BYTES = 1 << 21
"""Small models run in pieces whose widest value has about this size."""
SHOW_PROGRESS_AFTER = 2.0


@dataclass
class Rows:
    """What `evaluate` adds up.

    Attributes
    ----------
    sums : the plan's role -> float64 sum over the background, axes output and sample leading as the value has them.
    output : the explained output at the samples, ``[N, *shape]``.
    base : its mean over the background, ``[*shape]`` or, where it depends on the sample, ``[N, *shape]``.
    """

    sums: dict[tuple[str, ...], Array]
    output: Array
    base: Array
    base_magnitude: Array


@dataclass
class Evaluator:
    """A plan on a backend.

    Attributes
    ----------
    memory_limit : bytes that the values of a piece may take.
    progress : show a bar: True, False, or None for work over two seconds on a terminal.
    """

    plan: Plan
    backend: Backend
    memory_limit: int
    progress: bool | None = None
    sessions: dict[str, Any] = field(default_factory=dict)
    _pieces: dict[tuple[int, int, int], dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sessions = {
            name: self.backend.load(p.model, p.weights) for name, p in self.plan.programs().items() if p.outputs
        }

    def evaluate(
        self,
        samples: Mapping[str, Array],
        references: Mapping[str, Array] | OwnReferences,
        seeds: Array,
        n_references: int,
    ) -> Rows:
        """Sums over the background.

        Parameters
        ----------
        samples : input name -> ``[N, *shape]``; ``[*shape]`` of a held input without a batch axis.
        references : input name -> ``[B, *shape]``; for own references a function from a sample's position.
        seeds : multipliers of the explained output, ``[K, *shape]``, or ``[K, N, *shape]`` where outputs are ranked.
        """
        n, k = self._count(samples), seeds.shape[0]
        ranked = seeds.ndim > len(self.plan.result["output",].shape) + 1
        pieces = self.pieces(k, n, n_references)
        total = _Totals(self.plan, k, n)
        fixed = self._fixed(samples)
        cache: dict[int, Tensors] = {}
        own: tuple[slice, Tensors] | None = None
        with _Bar(self.progress, n * n_references * k) as bar:
            for b, tile_range in self._rounds(n, n_references, pieces, own=callable(references)):
                shared: Tensors = {}
                if not callable(references):
                    rows = {f"background_{name}": a[b] for name, a in references.items()}
                    shared = self._run("background", rows | fixed, {BACKGROUND: _length(b)})
                    total.add("background", shared, slice(0, n), slice(0, k), self.backend)
                for tile in _ranges(tile_range.stop, pieces[SAMPLE], tile_range.start):
                    at_samples = self._samples(samples, tile, cache)
                    if b.start == 0:
                        total.add("sample", at_samples, tile, slice(0, k), self.backend)
                    at_references = shared
                    if callable(references):
                        if own is None or own[0] != tile:  # asked once for each sample, as its answer may be random
                            own = (tile, _stacked(references, tile))
                        at_references = {name: self.backend.put(a[:, b]) for name, a in own[1].items()}
                    for outputs in _ranges(k, pieces[OUTPUT]):
                        sizes = {OUTPUT: _length(outputs), SAMPLE: _length(tile), BACKGROUND: _length(b)}
                        odd = any(sizes[axis] != pieces[axis] for axis in AXES)
                        seed = seeds[outputs, tile] if ranked else seeds[outputs]
                        feeds = {**at_references, **at_samples, "seed": self.backend.put(seed)}
                        found = self._run("explain", feeds, sizes, odd)
                        total.add("explain", found, tile, outputs, self.backend)
                    bar.update(_length(tile) * _length(b) * k)
        return total.rows(n_references)

    def outputs(self, samples: Mapping[str, Array]) -> Array:
        """The explained output at samples, ``[N, *shape]``."""
        n = self._count(samples)
        total = _Totals(self.plan, 1, n)
        for tile in _ranges(n, self.pieces(1, n, 1)[SAMPLE]):
            total.add("sample", self._samples(samples, tile, {}), tile, slice(0, 1), self.backend)
        return total.output()

    def base(self, references: Mapping[str, Array], samples: Mapping[str, Array], n_references: int) -> Array:
        """The mean output over the references, ``[*shape]``, where no input of `samples` has a batch axis."""
        total = _Totals(self.plan, 1, 1)
        for b in _ranges(n_references, self.pieces(1, 1, n_references)[BACKGROUND]):
            rows = {f"background_{name}": a[b] for name, a in references.items()}
            found = self._run("background", rows | self._fixed(samples), {BACKGROUND: _length(b)})
            total.add("background", found, slice(0, 1), slice(0, 1), self.backend)
        base: Array = total.sums["base",] / n_references
        return base

    def pieces(self, k: int, n: int, b: int) -> dict[str, int]:
        """Length of a piece along each batch axis, from the liveness of the programs and the memory limit."""
        if (k, n, b) not in self._pieces:
            self._pieces[k, n, b] = self._cut(k, n, b)
        return self._pieces[k, n, b]

    def _cut(self, k: int, n: int, b: int) -> dict[str, int]:
        def peak(sizes: Mapping[str, int]) -> int:
            return max(program.peak_bytes(sizes) for program in self.plan.programs().values())

        budget = self.memory_limit // 2  # onnxruntime's workspaces and fragmentation take the other half
        sizes = {OUTPUT: k, SAMPLE: 1, BACKGROUND: min(b, REFERENCES_PER_SUM)}
        while peak(sizes) > budget and max(sizes.values()) > 1:
            axis = BACKGROUND if sizes[BACKGROUND] >= sizes[OUTPUT] else OUTPUT
            sizes[axis] = math.ceil(sizes[axis] / 2)
        if peak(sizes) > self.memory_limit:
            warnings.warn(
                f"one triple of sample, reference and output takes {peak(sizes):,} bytes, more than "
                f"memory_limit={self.memory_limit:,}; it is run all the same",
                stacklevel=2,
            )
        sizes[BACKGROUND] = _even(b, sizes[BACKGROUND])
        if not self.plan.explain.steps:
            return sizes
        widest = self.plan.explain.widest(sizes)
        while sizes[SAMPLE] < n:
            more = sizes | {SAMPLE: min(n, 2 * sizes[SAMPLE])}
            if peak(more) > budget or nbytes(widest, more) > CACHE_BYTES:
                break
            sizes = more
        sizes[SAMPLE] = _even(n, sizes[SAMPLE])
        return sizes

    def _count(self, samples: Mapping[str, Array]) -> int:
        return max((len(a) for name, a in samples.items() if self._batched(name)), default=1)

    def _batched(self, name: str) -> bool:
        return any(v.name == f"sample_{name}" and v.axes for v in self._inputs())

    def _fixed(self, samples: Mapping[str, Array]) -> dict[str, Array]:
        """What is fed to every program, as all samples share it."""
        names = {v.name for v in self._inputs() if not v.axes}
        return {f"sample_{name}": a for name, a in samples.items() if f"sample_{name}" in names}

    def _inputs(self) -> list[Value]:
        return [v for p in self.plan.programs().values() for v in p.inputs]

    def _rounds(self, n: int, n_references: int, pieces: Mapping[str, int], own: bool) -> Iterator[tuple[slice, slice]]:
        """Which references meet which samples, in order: all samples per piece of references, unless these are own."""
        blocks = list(_ranges(n_references, pieces[BACKGROUND]))
        if own:
            yield from ((b, tile) for tile in _ranges(n, pieces[SAMPLE]) for b in blocks)
        else:
            yield from ((b, slice(0, n)) for b in blocks)

    def _samples(self, samples: Mapping[str, Array], tile: slice, cache: dict[int, Tensors]) -> Tensors:
        """Values of the samples of a tile; kept while they fit in a quarter of the limit."""
        if tile.start in cache:
            return cache[tile.start]
        sizes = {SAMPLE: _length(tile)}
        feeds = {f"sample_{name}": a[tile] if self._batched(name) else a for name, a in samples.items()}
        found = self._run("sample", feeds, sizes)
        if sum(nbytes(v, sizes) for v in self.plan.sample.outputs) * (len(cache) + 1) <= self.memory_limit // 4:
            cache[tile.start] = found
        return found

    def _run(self, stage: str, feeds: Mapping[str, Any], sizes: Mapping[str, int], odd: bool = False) -> Tensors:
        """Outputs of a program by value name, with the fed values passed through."""
        program: Program = self.plan.programs()[stage]
        values = {name: self.backend.put(a) if isinstance(a, np.ndarray) else a for name, a in feeds.items()}
        if stage not in self.sessions:
            return values
        given = {v.name: values[v.name] for v in program.inputs}
        given |= {dimension(a): self.backend.put(np.array([sizes[a]], np.int64)) for a in program.dimensions}
        names = [o.name for o in program.model.graph.output]
        found = self.backend.run(self.sessions[stage], names, given, odd)
        return values | {v.name: array for v, array in zip(program.outputs, found, strict=True)}


class _Totals:
    """Results of the pieces, put in their rows or added up in float64."""

    def __init__(self, plan: Plan, k: int, n: int) -> None:
        self.plan = plan
        self.lengths = {OUTPUT: k, SAMPLE: n}
        self.sums: dict[tuple[str, ...], Array] = {}

    def add(self, stage: str, found: Tensors, tile: slice, outputs: slice, backend: Backend) -> None:
        """Take in what the program `stage` made of some samples and outputs."""
        made = {v.name for v in self.plan.programs()[stage].outputs}
        for role, value in self.plan.result.items():
            if value.name not in made:
                continue
            array = backend.get(found[value.name]).astype(np.float64)
            if role == ("base",) and not self.plan.per_pair_base:
                self.sums["base_magnitude",] = self.sums.get(("base_magnitude",), 0) + np.abs(array).sum(0)
                self.sums[role] = self.sums.get(role, 0) + array.sum(0)
                continue
            shape = [*(self.lengths[axis] for axis in value.axes), *value.shape]
            total = self.sums.setdefault(role, np.zeros(shape))
            place = tuple({OUTPUT: outputs, SAMPLE: tile}[axis] for axis in value.axes)
            if role[0] in ("output", "place"):
                total[place] = array
            elif OUTPUT in value.axes or outputs.start == 0:  # a value that all outputs share is there for each block
                total[place] += array

    def output(self) -> Array:
        """The explained output at the samples."""
        return self.sums["output",]

    def rows(self, n_references: int) -> Rows:
        """Everything, once all pieces are in."""
        sums = dict(self.sums)
        output = sums.pop(("output",))
        base = sums.pop(("base",)) / n_references
        magnitude = sums.pop(("base_magnitude",), np.abs(base) * n_references) / n_references
        return Rows(sums, output, base, magnitude)


class _Bar:
    """A tqdm bar that appears only for long work."""

    def __init__(self, wanted: bool | None, total: int) -> None:
        delay = 0.0 if wanted else SHOW_PROGRESS_AFTER
        disable = None if wanted is None else not wanted
        self._bar = tqdm(total=total, desc="explaining", unit=" pairs", delay=delay, disable=disable, leave=False)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, pairs: int) -> None:
        """Count pairs done."""
        self._bar.update(pairs)


def _stacked(references: OwnReferences, tile: slice) -> Tensors:
    """References of the samples of a tile, ``[N, B, *shape]``."""
    rows = [references(i) for i in range(tile.start, tile.stop)]
    counts = {len(a) for row in rows for a in row.values()}
    if len(counts) > 1:
        raise InputError(f"the function for the references gave {sorted(counts)} rows; each sample needs as many")
    return {f"background_{name}": np.stack([row[name] for row in rows]) for name in rows[0]}


def _ranges(stop: int, piece: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, stop, piece):
        yield slice(first, min(stop, first + piece))


def _even(total: int, most: int) -> int:
    """The length of the pieces when `total` is cut as evenly as can be into pieces of at most `most`."""
    return math.ceil(total / math.ceil(total / most))


def _length(block: slice) -> int:
    return int(block.stop - block.start)
