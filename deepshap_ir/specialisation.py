"""A model taken for samples of one shape: its static graph, and what explains rows with it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from deepshap_ir.converters.registry import Conversion, convert
from deepshap_ir.engine.attribution import Attributions, Layout, gather
from deepshap_ir.engine.diagnosis import describe_leaks, first_non_finite
from deepshap_ir.engine.evaluator import Evaluator, Rows
from deepshap_ir.engine.expand import expand_graph
from deepshap_ir.engine.expansion_kernels import expansion_functions
from deepshap_ir.engine.memory import available_memory
from deepshap_ir.engine.program import build_plan
from deepshap_ir.engine.recurrence import in_bodies
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.seeds import Seeds
from deepshap_ir.errors import AdditivityError, InputError, ModelError, NonFiniteError
from deepshap_ir.graph import Array, Graph, Node
from deepshap_ir.hypothetical import check_one_hot, example_axes
from deepshap_ir.importing.feeds import columns
from deepshap_ir.importing.importer import Imported, import_model
from deepshap_ir.importing.verify import coarseness, floor
from deepshap_ir.joins.canonical import FIRST, PASSES, Pass, canonicalise
from deepshap_ir.joins.pooling import pool_first
from deepshap_ir.logits import before_squashing
from deepshap_ir.request import Request, Setup

TOLERANCE = 1e-4
"""Largest gap of the sum, relative to the largest of |f(x)|, mean |f(x0)| and the mean sum of |contributions|."""

References = Mapping[str, Array] | Callable[[int], dict[str, Array]]
"""Input name -> ``[B, *shape]``, or a function from a sample's position to that."""


class Specialisation:
    """A model taken for samples of one shape.

    Parameters
    ----------
    model : of any framework, or a `Conversion`, which is ONNX already.
    data : rows that fix the shapes, the background where there is one.
    what : how messages call them.
    """

    def __init__(self, model: Any, setup: Setup, data: Any, what: str = "background") -> None:
        self.setup = setup
        self.conversion = model if isinstance(model, Conversion) else convert(model, data, setup.settings)
        self.at = self.conversion.at or setup.settings.at
        with setup.custom_ops.with_functions(expansion_functions(setup.resolver)).known():
            imported = import_model(
                self.conversion.model,
                self.conversion.data(data, what),
                what=what,
                output=self.conversion.output,
                inputs=setup.inputs,
                hold=self.conversion.hold,
                keep=self.at,
                batch_axes=setup.settings.batch_axes,
                rewrite=lambda graph, protected: rewrite(graph, protected, setup.resolver),
                calls=setup.resolver.is_called,
            )
        for sentence in imported.warnings:
            warnings.warn(sentence, stacklevel=4)
        if setup.logits:
            graph = before_squashing(imported.graph)
            imported = replace(imported, graph=graph, output=graph.outputs[0])
        if setup.precision == "float64":
            imported = replace(imported, graph=imported.graph.astype(np.float64))
        self.imported: Imported = imported
        self._evaluators: dict[Any, Evaluator] = {}
        self.evaluator()

    @property
    def graph(self) -> Graph:
        """The program of one example."""
        return self.imported.graph

    @property
    def layout(self) -> Layout:
        """Between the arrays of the user and those of the graph."""
        return Layout(self.graph, self.imported.output)

    @property
    def places(self) -> tuple[str, ...]:
        """The values that get the attributions."""
        return self.at or self.imported.explained

    @property
    def bypassing(self) -> list[str]:
        """Explained inputs that reach the output around the places."""
        return [name for name in self.imported.explained if name not in self.places]

    @cached_property
    def background(self) -> dict[str, Array]:
        """The references that all samples share, ``[B, *shape]`` by input name."""
        return self._explained_rows(self.imported.background, self.imported.rows)

    def base(self) -> Array | None:
        """The mean output over the background, ``[*output shape]``; None where it depends on the sample."""
        evaluator = self.evaluator()
        if evaluator.plan.per_pair_base:
            return None
        held = {name: self.layout.rows(name, a) for name, a in self.imported.background.items()}
        return evaluator.base(self.background, held, self.imported.rows).reshape(self.layout.output_shape)

    def fits(self, data: Any) -> bool:
        """Tell whether samples have the shapes that the graph is made for; also where something else is wrong."""
        try:
            given = self.imported.named(self.conversion.data(data, "samples"))
        except InputError:
            return True
        return all(
            len(shape) != len(spec.shape)
            or all(have == want or want is None for have, want in zip(shape, spec.shape, strict=True))
            for spec in self.imported.specs
            if spec.shape is not None and spec.name in given and (shape := np.shape(given[spec.name]))
        )

    def read(self, data: Any) -> tuple[dict[str, Array], int]:
        """Samples by input name, ``[N, *shape]``, and their number."""
        try:
            arrays, n = self.imported.read(self.conversion.data(data, "samples"))
        except InputError as error:
            if self.setup.own_references or self.fits(data):
                raise
            raise InputError(
                f"{error} The background fixes the shape; references by a function, data=function, may follow that of "
                "the samples, where the model takes any."
            ) from None
        return {name: self.layout.rows(name, a) for name, a in arrays.items()} | self._explained_rows(arrays, n), n

    def own_references(self, function: Callable[[Any], Any], samples: Mapping[str, Array]) -> OwnReferences:
        """What `function` gives for the samples."""

        def references(i: int) -> dict[str, Array]:
            given = function([self.layout.features(name, samples[name][i]) for name in self.imported.explained])
            what = f"references of sample {i}"
            return self._explained_rows(*self.imported.read(given, what, self.imported.explained))

        return OwnReferences(references, self.setup.memory_limit // 4)

    def column_names(self, data: Any) -> list[list[str] | None]:
        """Names of the columns of each place, where the background or else the samples `data` are a DataFrame."""
        known = {spec.name: spec.columns for spec in self.imported.specs}
        if None in known.values():
            given = self.imported.named(self.conversion.data(data, "samples"))
            known = {name: found or columns(given.get(name)) for name, found in known.items()}
        labels = [known.get(name) for name in self.places]
        return [None if found is None else list(map(str, found)) for found in labels]

    def evaluator(self, **wanted: Any) -> Evaluator:
        """What runs the plan with these options of `build_plan`."""
        key = tuple(sorted((name, tuple(v.items()) if isinstance(v, dict) else v) for name, v in wanted.items() if v))
        if key not in self._evaluators:
            self._evaluators[key] = self._made_evaluator(wanted)
        return self._evaluators[key]

    def explain(self, samples: Mapping[str, Array], n: int, references: References, request: Request) -> Attributions:
        """Attributions of samples.

        Raises
        ------
        InputError, NonFiniteError, AdditivityError
        """
        axes = example_axes(request.axes, self.graph, self.places) if request.role == "hypothetical" else {}
        inside = set(axes) - set(samples)
        wanted = {
            "details": request.details or bool(inside),
            "ranked": request.ranked_outputs is not None,
            "multipliers": request.role == "multiplier",
            "hypothetical": axes,
            "per_reference": request.per_reference,
        }
        check_one_hot(self.layout, {name: a for name, a in samples.items() if name in axes}, axes)
        layout, ranks = self.layout, None
        if request.ranked_outputs is not None:
            ranks = layout.ranks(self.evaluator(ranked=True).outputs(samples), request.ranked_outputs, request.order)
        seeds, roles = layout.seeds(ranks), request.roles
        if request.per_reference:
            self._check_room(n, _count(references), len(seeds))

        def attributions(wanted: Mapping[str, Any]) -> Attributions:
            rows, b = self._evaluate(self.evaluator(**wanted), samples, references, seeds)
            return gather(layout, rows, b, samples, n, self.places, self.bypassing, ranks, roles)

        found = attributions(wanted)
        if not found.finite().all():
            self._refuse_non_finite(samples, references, int(np.argmin(found.finite())))
        least = self._least_gap()
        if request.check and (found.gap() > np.maximum(TOLERANCE * found.scale(), least)).any():
            found = found if wanted["details"] else attributions({**wanted, "details": True})
            if (found.gap() > np.maximum(TOLERANCE * found.scale(), least)).any():
                ledger = self.ledger(samples, n, references)
                gap, scale = found.gap(), found.scale()
                raise AdditivityError(describe_leaks(gap, scale, found.output, self.graph, ledger, self.setup.resolver))
        if inside:
            data = dict(zip(self.places, found.data, strict=True))
            check_one_hot(layout, {name: data[name] for name in inside}, axes, features=True)
        return found

    def ledger(self, samples: Mapping[str, Array], n: int, references: References) -> dict[str, Array]:
        """The residual of every node's rule, ``[N, *output shape]``, mean over the background."""
        layout = self.layout
        rows, b = self._evaluate(self.evaluator(ledger=True), samples, references, layout.seeds())
        residuals = {}
        for _, name in (role for role in rows.sums if role[0] == "residual"):
            found = rows.sums["residual", name]
            residuals[name] = (np.broadcast_to(found, (len(found), n)).T / b).reshape(n, *layout.output_shape)
        return residuals

    def _evaluate(
        self, evaluator: Evaluator, samples: Mapping[str, Array], references: References, seeds: Seeds
    ) -> tuple[Rows, int]:
        for other in self._evaluators.values():
            if other is not evaluator:  # only one at a time keeps what it knows of the references
                other.at_references.clear()
        b = _count(references)
        return evaluator.evaluate(samples, references, seeds, b), b

    def _explained_rows(self, arrays: Mapping[str, Array], n: int) -> dict[str, Array]:
        """The explained inputs, ``[N, *shape]``, those without a batch axis as often as there are rows."""
        rows = {name: self.layout.rows(name, arrays[name]) for name in self.imported.explained}
        return {name: np.broadcast_to(a, (n, *self.graph.shapes[name])) for name, a in rows.items()}

    def _made_evaluator(self, wanted: Mapping[str, Any]) -> Evaluator:
        setup = self.setup

        def made() -> Evaluator:
            own = setup.own_references
            plan = build_plan(self.graph, **self._plan_arguments(), own_references=own, **wanted)
            return Evaluator(plan, setup.made_backend(), setup.memory_limit, setup.progress)

        try:
            return made()
        except ModelError as error:
            if setup.backend != "onnxruntime" or np.float64 not in self.graph.dtypes.values():
                raise
            warnings.warn(
                f"onnxruntime lacks double-precision kernels for this model, so it is explained in float32 ({error}); "
                "precision='float64' uses the reference backend instead",
                stacklevel=6,
            )
            self.imported = replace(self.imported, graph=self.graph.astype(np.float32))
            return made()

    def _plan_arguments(self) -> dict[str, Any]:
        imported = self.imported
        return {
            "resolver": self.setup.resolver,
            "explained": imported.explained,
            "hold": imported.held,
            "at": self.at,
        }

    def _least_gap(self) -> float:
        """The largest gap of a sum that says nothing, however small the outputs are."""
        dtype = self.graph.dtypes[self.imported.output]
        coarse = coarseness(self.imported.model, self.imported.output) if dtype == np.float32 else 0.0
        return max(floor(dtype), coarse)

    def _check_room(self, n: int, b: int, k: int) -> None:
        """Refuse to give more numbers for each reference than fit into the memory."""
        places = (*self.places, *self.bypassing)
        size = 2 * 8 * k * n * b * sum(math.prod(self.graph.shapes[name]) for name in places)
        free = available_memory()
        if size > free:
            raise InputError(
                f"per_reference=True: {k} outputs of {n} samples for each of {b} references take {size:,} bytes, more "
                f"than the {free:,} that are free. Explain fewer samples at a time, or fewer outputs: ranked_outputs=."
            )

    def _refuse_non_finite(self, samples: Mapping[str, Array], references: References, row: int) -> None:
        """Raise the error that names what is not finite at a sample."""
        shared = set(samples) - set(self.imported.explained)
        shared = {name for name in shared if self.graph.batch_axes[name] is None}
        one = {name: a if name in shared else a[row : row + 1] for name, a in samples.items()}
        own = references(row) if callable(references) else references
        with self.setup.custom_ops.known():
            raise NonFiniteError(first_non_finite(self.graph, self._plan_arguments(), one, own, row))


@dataclass
class OwnReferences:
    """A function from a sample's position to its references, asked once for each sample while the answers fit.

    Its answers may be random: what is computed in a second pass is then for the same references.

    Attributes
    ----------
    limit : bytes of the answers that are kept; the first is kept in any case.
    """

    answer: Callable[[int], dict[str, Array]]
    limit: int
    _kept: dict[int, dict[str, Array]] = field(default_factory=dict)
    _size: int = 0

    def __call__(self, i: int) -> dict[str, Array]:
        """The references of sample `i`, input name -> ``[B, *shape]``."""
        if i in self._kept:
            return self._kept[i]
        found = self.answer(i)
        self._size += sum(a.nbytes for a in found.values())
        if self._size <= self.limit or not self._kept:
            self._kept[i] = found
        return found


def _count(references: References) -> int:
    first = references(0) if callable(references) else references
    return len(next(iter(first.values())))


def rewrite(graph: Graph, protected: frozenset[str], resolver: Resolver) -> Graph:
    """Expand what has no rule and join what belongs together, but not nodes for which an explainer has its own rule."""
    graph = expand_graph(_joined(graph, protected, resolver, FIRST), resolver)
    graph = _joined(graph, protected, resolver, PASSES)
    if resolver.options.get("max_pooling") == "shapley":
        return graph
    return _joined(graph, protected, resolver, [pool_first], lambda node: not resolver.is_built_in(node))


def _joined(
    graph: Graph,
    protected: frozenset[str],
    resolver: Resolver,
    passes: Sequence[Pass],
    left: Callable[[Node], bool] | None = None,
) -> Graph:
    """`graph` and the bodies of its loops after `passes`, which leave nodes alone that have a rule of the user's."""
    left = left or resolver.is_own
    joined = canonicalise(graph, protected, {node.name for node in graph.nodes if left(node)}, passes)
    return in_bodies(joined, lambda body: _joined(body, frozenset(), resolver, passes, left))
