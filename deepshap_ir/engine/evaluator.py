"""Run a plan over data, in pieces that fit the memory.

References are the outer loop and samples the inner one, so each reference's forward pass runs once; where there is room
its values stay for the next call. Pieces run side by side, each on one thread; their results are added up in a fixed
order, so that none depends on which was first. Sums over a piece's references are in the model's dtype, sums over
pieces in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from deepshap_ir.engine.backends import Backend
from deepshap_ir.engine.kept import AtReferences
from deepshap_ir.engine.lowering import dimension
from deepshap_ir.engine.pieces import Pieces, Result, Submit, cut, given, in_order, length, ranges, workers
from deepshap_ir.engine.program import Plan, Program, nbytes
from deepshap_ir.engine.seeds import GivenSeeds, Seeds
from deepshap_ir.engine.value import BACKGROUND, OUTPUT, SAMPLE, Value
from deepshap_ir.errors import DeepShapError, InputError, ModelError
from deepshap_ir.graph import Array
from deepshap_ir.importing.runner import one_line

Tensors = dict[str, Any]
"""Name -> array, in whatever form the backend keeps it."""
OwnReferences = Callable[[int], Mapping[str, Array]]
"""A sample's position -> its own references, input name -> ``[B, *shape]``."""

SHOW_PROGRESS_AFTER = 2.0

FAILS = {
    "background": "the model does not run on the references: ",
    "sample": "the model does not run on the samples: ",
    "explain": "the program of the multipliers does not run: ",
}
"""What a failure of each program means."""


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
    memory_limit : bytes that the values of the pieces at work may take.
    progress : show a bar: True, False, or None for work over two seconds on a terminal.
    at_references : the values at shared references, kept for the next call in an eighth of the limit.
    """

    plan: Plan
    backend: Backend
    memory_limit: int
    progress: bool | None = None
    _sessions: dict[tuple[str, bool], Any] = field(default_factory=dict)
    _pieces: dict[tuple[int, int, int], Pieces] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.at_references = AtReferences(self.plan, self.memory_limit // 8)
        for stage in self.plan.programs():
            self._session(stage, alone=self.backend.cores == 1)

    def evaluate(
        self,
        samples: Mapping[str, Array],
        references: Mapping[str, Array] | OwnReferences,
        seeds: Seeds | Array,
        n_references: int,
    ) -> Rows:
        """Sums over the background.

        Parameters
        ----------
        samples : input name -> ``[N, *shape]``; ``[*shape]`` of a held input without a batch axis.
        references : input name -> ``[B, *shape]``; for own references a function from a sample's position. Where the
            same mapping is given again its values are taken to be the same.
        seeds : multipliers of the explained output, ``[K, *shape]``, or ``[K, N, *shape]`` where outputs are ranked.
        """
        if isinstance(seeds, np.ndarray):
            seeds = GivenSeeds(seeds, self.plan.ranked)
        n, k = self._count(samples), len(seeds)
        pieces = self.pieces(k, n, n_references)
        total = _Totals(self.plan, k, n, n_references)
        with _Bar(self.progress, n * n_references * k) as bar, workers(pieces.workers) as submit:
            work = _Work(self, submit, pieces, samples, seeds, n, n_references)
            jobs = work.per_sample(references) if callable(references) else work.shared(references)
            for job in in_order(jobs, 0 if pieces.workers == 1 else 2 * pieces.workers):
                found = job.found()
                total.add(job, found, self.backend)
                if job.stage == "background" and not callable(references) and not self.fixed(samples):
                    self.at_references.add(references, job.references, found)
                bar.update(job.triples)
        return total.rows(n_references)

    def outputs(self, samples: Mapping[str, Array]) -> Array:
        """The explained output at samples, ``[N, *shape]``."""
        n = self._count(samples)
        total = _Totals(self.plan, 1, n, 1)
        for tile in ranges(n, self.pieces(1, n, 1).sizes[SAMPLE]):
            feeds = {f"sample_{name}": a[tile] if self.batched(name) else a for name, a in samples.items()}
            found = self.run("sample", feeds, {SAMPLE: length(tile)})
            total.add(_Job("sample", tile, slice(0, 1), slice(0, 1), given(found)), found, self.backend)
        return total.output()

    def base(self, references: Mapping[str, Array], samples: Mapping[str, Array], n_references: int) -> Array:
        """The mean output over the references, ``[*shape]``, where no input of `samples` has a batch axis."""
        one = slice(0, 1)
        total = _Totals(self.plan, 1, 1, n_references)
        for b in ranges(n_references, self.pieces(1, 1, n_references).sizes[BACKGROUND]):
            rows = {f"background_{name}": a[b] for name, a in references.items()}
            found = self.run("background", rows | self.fixed(samples), {BACKGROUND: length(b)})
            total.add(_Job("background", one, one, b, given(found)), found, self.backend)
        base: Array = total.sums["base",] / n_references
        return base

    def pieces(self, k: int, n: int, b: int) -> Pieces:
        """How the work is cut, from the liveness of the programs and the memory limit."""
        if (k, n, b) not in self._pieces:
            self._pieces[k, n, b] = cut(self.plan, self.memory_limit, self.backend.cores, k, n, b)
        return self._pieces[k, n, b]

    def batched(self, name: str) -> bool:
        """Whether a model input differs between samples."""
        return any(v.name == f"sample_{name}" and v.axes for v in self._inputs())

    def fixed(self, samples: Mapping[str, Array]) -> dict[str, Array]:
        """What is fed to every program, as all samples share it."""
        names = {v.name for v in self._inputs() if not v.axes}
        return {f"sample_{name}": a for name, a in samples.items() if f"sample_{name}" in names}

    def _count(self, samples: Mapping[str, Array]) -> int:
        return max((len(a) for name, a in samples.items() if self.batched(name)), default=1)

    def _inputs(self) -> list[Value]:
        return [v for p in self.plan.programs().values() for v in p.inputs]

    def _session(self, stage: str, alone: bool) -> Any:
        """The program `stage` on all threads, or on one."""
        program = self.plan.programs()[stage]
        if not program.outputs:
            return None
        if (stage, alone) not in self._sessions:
            self._sessions[stage, alone] = self.backend.load(program.model, program.weights, alone)
        return self._sessions[stage, alone]

    def run(
        self,
        stage: str,
        feeds: Mapping[str, Any],
        sizes: Mapping[str, int],
        usual: Pieces | None = None,
    ) -> Tensors:
        """Outputs of a program by value name, with the fed values passed through.

        Parameters
        ----------
        sizes : axis -> length here.
        usual : the pieces of this work.

        Raises
        ------
        ModelError : the program fails on these data, an index beyond its table say.
        """
        program: Program = self.plan.programs()[stage]
        values = {name: self.backend.put(a) if isinstance(a, np.ndarray) else a for name, a in feeds.items()}
        session = self._session(stage, alone=usual is None or usual.workers == 1)
        if session is None:
            return values
        fed = {v.name: values[v.name] for v in program.inputs}
        fed |= {dimension(a): self.backend.put(np.array([sizes[a]], np.int64)) for a in program.dimensions}
        names = [o.name for o in program.model.graph.output]
        odd = usual is not None and any(sizes[axis] != usual.sizes[axis] for axis in sizes)
        try:
            found = self.backend.run(session, names, fed, odd)
        except (DeepShapError, MemoryError):
            raise
        except Exception as error:  # onnx.reference and custom operators raise whatever they like
            raise ModelError(FAILS[stage] + one_line(error)) from error
        return values | {v.name: array for v, array in zip(program.outputs, found, strict=True)}


@dataclass
class _Job:
    """A run of a program, under way: `found` waits for its values. `triples` are done with it."""

    stage: str
    samples: slice
    outputs: slice
    references: slice
    found: Result[Tensors]
    triples: int = 0


@dataclass
class _Work:
    """The runs of an evaluation, in the order in which they are started and their results added up."""

    evaluator: Evaluator
    submit: Submit[Tensors]
    pieces: Pieces
    all_samples: Mapping[str, Array]
    seeds: Seeds
    n: int
    n_references: int
    _kept: dict[int, Result[Tensors]] = field(default_factory=dict)

    def shared(self, references: Mapping[str, Array]) -> Iterator[_Job]:
        """All samples meet the same references, as many blocks of these at a time as there are workers."""
        fixed, kept = self.evaluator.fixed(self.all_samples), self.evaluator.at_references
        for blocks in self._together(ranges(self.n_references, self.pieces.sizes[BACKGROUND])):
            at_references = []
            for b in blocks:
                known = kept.find(references, b)
                rows = {f"background_{name}": a[b] for name, a in references.items()} | fixed
                found = self._start("background", rows, {BACKGROUND: length(b)}) if known is None else given(known)
                at_references.append((b, found))
            for b, found in at_references:
                yield _Job("background", slice(0, self.n), self._every_output, b, found)
            for tiles in self._together(self._tiles()):
                at_samples = [(tile, self._samples(tile)) for tile in tiles]
                if blocks[0].start == 0:
                    for tile, values in at_samples:
                        yield self._at_samples(tile, values)
                for tile, values in at_samples:
                    for b, found in at_references:
                        yield from self._explained(tile, b, values, found)

    def per_sample(self, references: OwnReferences) -> Iterator[_Job]:
        """Each sample has references of its own."""
        for tiles in self._together(self._tiles()):
            at_samples = [(tile, self._samples(tile)) for tile in tiles]
            for tile, values in at_samples:
                yield self._at_samples(tile, values)
                own = _stacked(references, tile)  # asked once for each sample, as the answer may be random
                for b in ranges(self.n_references, self.pieces.sizes[BACKGROUND]):
                    rows = {name: self.evaluator.backend.put(a[:, b]) for name, a in own.items()}
                    yield from self._explained(tile, b, values, given(rows))

    def _together(self, blocks: Iterator[slice]) -> Iterator[list[slice]]:
        """As many at a time as there are workers, so that none waits for the first."""
        while some := list(islice(blocks, self.pieces.workers)):
            yield some

    def _explained(
        self, tile: slice, b: slice, at_samples: Result[Tensors], at_references: Result[Tensors]
    ) -> Iterator[_Job]:
        for outputs in ranges(len(self.seeds), self.pieces.sizes[OUTPUT]):
            sizes = {OUTPUT: length(outputs), SAMPLE: length(tile), BACKGROUND: length(b)}
            seed = self.evaluator.backend.put(self.seeds.rows(outputs, tile))
            task = partial(self._pairs, at_samples, at_references, seed, sizes)
            yield _Job("explain", tile, outputs, b, self.submit(task), math.prod(sizes.values()))

    def _at_samples(self, tile: slice, values: Result[Tensors]) -> _Job:
        return _Job("sample", tile, self._every_output, slice(0, self.n_references), values)

    def _pairs(
        self, at_samples: Result[Tensors], at_references: Result[Tensors], seed: Any, sizes: Mapping[str, int]
    ) -> Tensors:
        feeds = {**at_references(), **at_samples(), "seed": seed}
        return self.evaluator.run("explain", feeds, sizes, self.pieces)

    def _samples(self, tile: slice) -> Result[Tensors]:
        """Values of the samples of a tile; kept while they fit in a quarter of the limit."""
        if tile.start in self._kept:
            return self._kept[tile.start]
        sizes, batched = {SAMPLE: length(tile)}, self.evaluator.batched
        feeds = {f"sample_{name}": a[tile] if batched(name) else a for name, a in self.all_samples.items()}
        found = self._start("sample", feeds, sizes)
        size = sum(nbytes(v, sizes) for v in self.evaluator.plan.sample.outputs)
        if size * (len(self._kept) + 1) <= self.evaluator.memory_limit // 4:
            self._kept[tile.start] = found
        return found

    def _start(self, stage: str, feeds: Mapping[str, Any], sizes: Mapping[str, int]) -> Result[Tensors]:
        return self.submit(partial(self.evaluator.run, stage, feeds, sizes, self.pieces))

    def _tiles(self) -> Iterator[slice]:
        return ranges(self.n, self.pieces.sizes[SAMPLE])

    @property
    def _every_output(self) -> slice:
        return slice(0, len(self.seeds))


class _Totals:
    """Results of the pieces, put in their rows or added up in float64."""

    def __init__(self, plan: Plan, k: int, n: int, b: int) -> None:
        self.plan = plan
        self.lengths = {OUTPUT: k, SAMPLE: n, BACKGROUND: b}
        self.sums: dict[tuple[str, ...], Array] = {}

    def add(self, job: _Job, found: Tensors, backend: Backend) -> None:
        """Take in what a program made of some samples, outputs and references."""
        made = {v.name for v in self.plan.programs()[job.stage].outputs}
        slices = {OUTPUT: job.outputs, SAMPLE: job.samples, BACKGROUND: job.references}

        def number(role: tuple[str, ...]) -> Array:
            return backend.get(found[self.plan.result[role].name]).astype(np.float64)

        for role, value in self.plan.result.items():
            if value.name not in made:
                continue
            array = number(role)
            if role == ("base",) and not self.plan.per_pair_base:
                self.sums["base_magnitude",] = self.sums.get(("base_magnitude",), 0) + np.abs(array).sum(0)
                self.sums[role] = self.sums.get(role, 0) + array.sum(0)
                continue
            if role[0] == "squares":  # from 0, not from the mean of the piece
                array += number(("sum", *role[1:])) ** 2 / length(job.references)
            total = self.sums.setdefault(role, np.zeros([*(self.lengths[axis] for axis in value.axes), *value.shape]))
            place = tuple(slices[axis] for axis in value.axes)
            if role[0] in ("output", "place") or BACKGROUND in value.axes:
                total[place] = array
            elif OUTPUT in value.axes or job.outputs.start == 0:  # what all outputs share is there for each block
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
