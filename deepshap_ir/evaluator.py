"""Run a plan over data, in pieces that fit the memory.

References are the outer loop and samples the inner one, so each reference's forward pass runs once. Sums over a piece's
references are in the model's dtype, sums over pieces in float64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnxruntime
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from tqdm.auto import tqdm

from deepshap_ir.batching import dimension
from deepshap_ir.emitter import AXES, BACKGROUND, OUTPUT, SAMPLE, Value
from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.graph import Array
from deepshap_ir.program import Plan, Program

Tensors = dict[str, Any]
"""Name -> array, in whatever form the backend keeps it."""

REFERENCES_PER_SUM = 50
"""Longest float32 sum over references: 1.5e-7 relative, before pieces are added up in float64."""
CACHE_BYTES = 1 << 21
"""Small models run in pieces whose widest value has about this size."""
SHOW_PROGRESS_AFTER = 2.0


class Backend(Protocol):
    """Runs programs and keeps their values where it likes."""

    def load(self, model: ModelProto) -> Any:
        """Prepare a model."""

    def run(self, session: Any, outputs: Sequence[str], feeds: Mapping[str, Any], odd: bool) -> list[Any]:
        """Run it; `odd` says that a piece of this size is rare."""

    def put(self, array: Array) -> Any:
        """An array in the backend's form."""

    def get(self, value: Any) -> Array:
        """A value as a numpy array."""


class OnnxRuntime:
    """The default backend."""

    def __init__(self, providers: Sequence[Any] | None = None, threads: int | None = None) -> None:
        available = onnxruntime.get_available_providers()
        wanted = list(providers) if providers else ["CPUExecutionProvider"]
        missing = [p for p in wanted if (p if isinstance(p, str) else p[0]) not in available]
        if missing:
            raise InputError(
                f"onnxruntime has no provider {missing}; it has {available}. For a GPU: pip uninstall onnxruntime; "
                "pip install onnxruntime-gpu"
            )
        self.providers = wanted
        self.options = onnxruntime.SessionOptions()
        self.options.enable_mem_pattern = False
        self.options.log_severity_level = 3
        if threads:
            self.options.intra_op_num_threads = threads
        self._shrink = onnxruntime.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def load(self, model: ModelProto) -> onnxruntime.InferenceSession:
        """A session; ModelError where onnxruntime has no kernel for it."""
        try:
            return onnxruntime.InferenceSession(model.SerializeToString(), self.options, providers=self.providers)
        except Exception as error:
            raise ModelError(
                f"onnxruntime cannot run this model's attribution program: {error}. backend='reference' can."
            ) from error

    def run(
        self, session: onnxruntime.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, Any], odd: bool
    ) -> list[Any]:
        """Run without copying inputs or outputs."""
        if not outputs:
            return []
        return list(session.run_with_ort_values(list(outputs), dict(feeds), self._shrink if odd else None))

    def put(self, array: Array) -> onnxruntime.OrtValue:
        """An array in onnxruntime's form."""
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

    def get(self, value: onnxruntime.OrtValue) -> Array:
        """A numpy array."""
        array: Array = value.numpy()
        return array


class Reference:
    """`onnx.reference`: numpy, the oracle."""

    def __init__(self, new_ops: Sequence[Any] = ()) -> None:
        self.new_ops = list(new_ops)

    def load(self, model: ModelProto) -> ReferenceEvaluator:
        """An evaluator."""
        return ReferenceEvaluator(model, new_ops=self.new_ops or None)

    def run(
        self, session: ReferenceEvaluator, outputs: Sequence[str], feeds: Mapping[str, Any], odd: bool
    ) -> list[Any]:
        """Run in numpy."""
        if not outputs:
            return []
        with np.errstate(all="ignore"):
            return list(session.run(list(outputs), dict(feeds)))

    def put(self, array: Array) -> Array:
        """The array itself."""
        return array

    def get(self, value: Any) -> Array:
        """A numpy array."""
        return np.asarray(value)


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

    def __post_init__(self) -> None:
        self.sessions = {name: self.backend.load(p.model) for name, p in self.plan.programs().items() if p.outputs}

    def evaluate(
        self,
        samples: Mapping[str, Array],
        references: Mapping[str, Array] | Callable[[int], Mapping[str, Array]],
        seeds: Array,
        n_references: int,
    ) -> Rows:
        """Sums over the background.

        Parameters
        ----------
        samples : input name -> ``[N, *shape]``; without the leading axis where the input has no batch axis.
        references : input name -> ``[B, *shape]``; for own references a function from a sample's position.
        seeds : multipliers of the explained output, ``[K, *shape]``, or ``[K, N, *shape]`` where outputs are ranked.
        """
        n = max((len(a) for name, a in samples.items() if self._batched(name)), default=1)
        k = seeds.shape[0]
        pieces = self.pieces(k, n, n_references)
        sums: dict[tuple[str, ...], Array] = {}
        rounds = list(_ranges(n_references, pieces[BACKGROUND]))
        own = callable(references)
        outer = [(None, block) for block in _ranges(n, pieces[SAMPLE])] if own else [(b, None) for b in rounds]
        cache: dict[slice, Tensors] = {}
        room = self.memory_limit // 4
        bar = _Bar(self.progress, n * n_references * k)
        with bar:
            for references_block, only in outer:
                stored: Tensors = {}
                if references_block is not None and not own:
                    block = {f"background_{name}": a[references_block] for name, a in references.items()}
                    stored = self._run("background", block, {BACKGROUND: _length(references_block)})
                    self._collect(sums, "background", stored, k, n, slice(0, n), slice(0, k), references_block)
                for samples_block in [only] if only is not None else _ranges(n, pieces[SAMPLE]):
                    tile = self._samples(samples, samples_block, cache, room)
                    if references_block in (None, rounds[0]):
                        self._collect(sums, "sample", tile, k, n, samples_block, slice(0, k), None)
                    for b in rounds if own else [references_block]:
                        if own:
                            assert callable(references)
                            rows = [references(i) for i in range(samples_block.start, samples_block.stop)]
                            stored = {
                                f"background_{name}": self.backend.put(np.stack([row[name][b] for row in rows]))
                                for name in rows[0]
                            }
                        for outputs_block in _ranges(k, pieces[OUTPUT]):
                            seed = seeds[outputs_block]
                            if seeds.ndim > len(self._output_shape()) + 1:
                                seed = seed[:, samples_block]
                            sizes = {
                                OUTPUT: _length(outputs_block),
                                SAMPLE: _length(samples_block),
                                BACKGROUND: _length(b),
                            }
                            odd = any(sizes[a] != pieces[a] for a in AXES)
                            feeds = {**stored, **tile, "seed": self.backend.put(seed)}
                            found = self._run("explain", feeds, sizes, odd)
                            self._collect(sums, "explain", found, k, n, samples_block, outputs_block, b)
                        bar.update(_length(samples_block) * _length(b) * k)
        return self._rows(sums, n_references)

    def pieces(self, k: int, n: int, b: int) -> dict[str, int]:
        """Length of a piece along each batch axis, from the liveness of the programs and the memory limit."""
        explain = self.plan.explain
        sizes = {OUTPUT: k, SAMPLE: 1, BACKGROUND: min(b, REFERENCES_PER_SUM)}
        budget = self.memory_limit // 2
        while explain.peak_bytes(sizes) > budget and max(sizes.values()) > 1:
            axis = BACKGROUND if sizes[BACKGROUND] >= sizes[OUTPUT] else OUTPUT
            sizes[axis] = math.ceil(sizes[axis] / 2)
        sizes[BACKGROUND] = _even(b, sizes[BACKGROUND])
        if not explain.steps:
            return sizes
        widest = explain.widest()
        while sizes[SAMPLE] < n:
            more = sizes | {SAMPLE: min(n, 2 * sizes[SAMPLE])}
            if explain.peak_bytes(more) > budget or _bytes(widest, more) > CACHE_BYTES:
                break
            sizes = more
        sizes[SAMPLE] = _even(n, sizes[SAMPLE])
        return sizes

    def _output_shape(self) -> tuple[int, ...]:
        return self.plan.result["output",].shape

    def _batched(self, name: str) -> bool:
        inputs = [v for p in self.plan.programs().values() for v in p.inputs]
        return any(v.name == f"sample_{name}" and v.axes for v in inputs)

    def _samples(self, samples: Mapping[str, Array], block: slice, cache: dict[slice, Tensors], room: int) -> Tensors:
        """Values of the samples of a tile; kept while they fit in `room`."""
        key = (block.start, block.stop)
        if key in cache:  # type: ignore[comparison-overlap]
            return cache[key]  # type: ignore[index]
        feeds = {f"sample_{name}": a[block] if self._batched(name) else a for name, a in samples.items()}
        tile = self._run("sample", feeds, {SAMPLE: _length(block)})
        size = sum(_bytes(v, {SAMPLE: _length(block)}) for v in self.plan.sample.outputs)
        if size * (len(cache) + 1) <= room:
            cache[key] = tile  # type: ignore[index]
        return tile

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

    def _collect(
        self,
        sums: dict[tuple[str, ...], Array],
        stage: str,
        found: Tensors,
        k: int,
        n: int,
        samples: slice,
        outputs: slice,
        references: slice | None,
    ) -> None:
        """Add a program's results to `sums`, at the rows that they belong to."""
        made = {v.name for v in self.plan.programs()[stage].outputs}
        for role, value in self.plan.result.items():
            if value.name not in made:
                continue
            array = self.backend.get(found[value.name])
            if role == ("base",) and not self.plan.per_pair_base:
                sums["base_magnitude",] = sums.get(("base_magnitude",), 0) + np.abs(array.astype(np.float64)).sum(0)
                array = array.astype(np.float64).sum(0)
                sums[role] = sums.get(role, 0) + array
                continue
            shape = [{OUTPUT: k, SAMPLE: n}[a] for a in value.axes] + list(value.shape)
            total = sums.setdefault(role, np.zeros(shape))
            place = tuple({OUTPUT: outputs, SAMPLE: samples}[a] for a in value.axes)
            if role == ("output",):
                total[place] = array
            else:
                total[place] += array

    def _rows(self, sums: dict[tuple[str, ...], Array], n_references: int) -> Rows:
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


def available_memory() -> int:
    """Bytes of memory that can be had without swapping; the cgroup's limit where it is lower."""
    try:
        with open("/proc/meminfo") as lines:
            found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 1 << 31
    return found


def _ranges(length: int, piece: int) -> Iterator[slice]:
    for start in range(0, length, piece):
        yield slice(start, min(length, start + piece))


def _even(total: int, most: int) -> int:
    """The length of the pieces when `total` is cut as evenly as can be into pieces of at most `most`."""
    return math.ceil(total / math.ceil(total / most))


def _length(block: slice) -> int:
    return int(block.stop - block.start)


def _bytes(value: Value, sizes: Mapping[str, int]) -> int:
    return int(np.prod([sizes[a] for a in value.axes], dtype=np.int64)) * value.size * value.dtype.itemsize
