"""`DeepExplainer`: a model and a background in, attributions out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deepshap_ir.converters.registry import Conversion, Settings, convert, find
from deepshap_ir.engine.attribution import Attributions, Layout, gather
from deepshap_ir.engine.backends import Backend, OnnxRuntime, Reference
from deepshap_ir.engine.diagnosis import describe_leaks, first_non_finite
from deepshap_ir.engine.evaluator import Evaluator, Rows
from deepshap_ir.engine.expand import expand_graph
from deepshap_ir.engine.memory import available_memory
from deepshap_ir.engine.program import Plan, build_plan
from deepshap_ir.engine.recurrence import affected, in_bodies, is_loop
from deepshap_ir.engine.registry import Resolver, RuleFunction, RuleSet, rule_set
from deepshap_ir.errors import AdditivityError, InputError, ModelError, NonFiniteError
from deepshap_ir.explanation import make_explanation
from deepshap_ir.graph import Array, Graph
from deepshap_ir.importing.feeds import as_array, columns
from deepshap_ir.importing.importer import Imported, import_model
from deepshap_ir.joins.canonical import canonicalise

TOLERANCE = 1e-4
"""Largest gap of the sum, relative to the largest of |f(x)|, mean |f(x0)| and the mean sum of |contributions|."""


@dataclass(frozen=True)
class RuleRow:
    """A line of `DeepExplainer.rules`: a node, its operator, the rule for it, and whether that sums to delta."""

    node: str
    operator: str
    rule: str
    exact: bool


class DeepExplainer:
    """Deep SHAP attributions: how much each input moved an output away from its mean over the background.

    Parameters
    ----------
    model
        An ONNX model: a path, bytes, a file object, an `onnx.ModelProto` or an `onnx_ir.Model`. A `torch.nn.Module`,
        or a pair ``(module, layer)``: then the attributions are at the inputs of that layer.
    data
        The background: ``[B, *features]``, a list of such arrays in the order of the inputs, or a mapping by input
        name; each a numpy array, a tensor of any framework or a DataFrame, whose columns name the features and are
        matched by name. Or a function that is given one sample (a list with one array per input, without batch axis)
        and returns its own references in one of these forms.
    session, learning_phase_flags
        Of TensorFlow 1 graphs; must be None for ONNX models.
    output
        Name or index of the explained output, or the name of any value of the graph. None: the only float output.
    inputs
        Names of the values that are fed and explained, model inputs or values in the middle of the graph. Model inputs
        left out are held: they take the sample's own value in both passes.
    at
        Names of the values that get the attributions, where these are not the fed ones.
    hold
        Names of values that take the sample's own value in both passes; ``{name: array}`` fixes one to a constant.
    rules
        Rules of this explainer alone: a `deepshap_ir.extend.RuleSet`, or ``{operator or node name: function}``.
    batch_axes
        ``{input: axis or None}`` where the batch is not axis 0, or where an input has none.
    backend
        "onnxruntime", or "reference": numpy, slow, the oracle.
    providers
        onnxruntime's execution providers, ``["CUDAExecutionProvider"]`` say.
    precision
        None: as the model; "float64": all in double precision, on the reference backend.
    memory_limit
        Bytes, or a string such as "2GB", for the values of a piece of the work; a quarter of what is free by default.
    progress
        True or False for a progress bar; None: for work of more than two seconds, on a terminal.
    threads
        How many; by default as many as there are cores. Pieces of the work run side by side, each on one thread.
    options
        Choices among rules: ``{"max_pooling": "shapley"}``.

    Raises
    ------
    ModelError, InputError, UnsupportedOperatorError, NonFiniteError
        See `deepshap_ir.errors`.

    Notes
    -----
    Lundberg and Lee, "A unified approach to interpreting model predictions" (2017), section "Deep SHAP".
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        session: Any = None,
        learning_phase_flags: Any = None,
        *,
        output: str | int | None = None,
        inputs: Sequence[str] | None = None,
        at: Sequence[str] | None = None,
        hold: Sequence[str] | Mapping[str, Any] = (),
        rules: RuleSet | Mapping[str, RuleFunction] | None = None,
        batch_axes: Mapping[str, int | None] | None = None,
        backend: str = "onnxruntime",
        providers: Sequence[Any] | None = None,
        precision: str | None = None,
        memory_limit: int | str | None = None,
        progress: bool | None = None,
        threads: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if backend not in ("onnxruntime", "reference"):
            raise InputError(f"backend={backend!r}: choose 'onnxruntime' or 'reference'")
        if precision not in (None, "float64"):
            raise InputError(f"precision={precision!r}: choose None (as the model) or 'float64'")
        if precision == "float64" and providers:
            raise InputError("precision='float64' runs on the reference backend, which takes no providers=")
        self.model = model
        self.data = data
        self._inputs = inputs
        self.at = tuple([at] if isinstance(at, str) else at or ())
        self._settings = Settings(output, self.at, hold, batch_axes or {}, session, learning_phase_flags)
        find(model, self._settings)
        self._resolver = Resolver([rule_set(rules)], options)
        self.precision = precision
        self._backend_name = "reference" if precision == "float64" else backend
        self._providers, self._threads = providers, threads
        self.memory_limit = _bytes(memory_limit) if memory_limit is not None else available_memory() // 4
        self.progress = progress
        self._conversion = Conversion(model)
        self._imported: Imported | None = None
        self._evaluators: dict[tuple[bool, ...], Evaluator] = {}
        self._expected: Array | None = None
        if not callable(data):
            self._import(data)
            self._evaluator()

    @property
    def graph(self) -> Graph:
        """The program of one example that is explained."""
        return self._require().graph

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the explained values, in the order of the attributions."""
        return self.at or self._require().explained

    @property
    def output_name(self) -> str:
        """Name of the explained output."""
        return self._require().output

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the explained output for one example; ``(1,)`` for a number."""
        return self._layout.output_shape

    @property
    def expected_value(self) -> Array | None:
        """The mean output over the background, ``[*output shape]``.

        ``[N, *output shape]`` of the last explained samples where it depends on them (references of their own, held
        inputs), None before there are any.
        """
        if self._expected is None and self._imported is not None:
            evaluator = self._evaluator()
            if not evaluator.plan.per_pair_base:
                held = {n: self._layout.rows(n, a) for n, a in self._imported.background.items()}
                base = evaluator.base(self._references, held, self._imported.rows)
                self._expected = base.reshape(self.output_shape)
        return self._expected

    def shap_values(
        self,
        X: Any,  # noqa: N803  (the name that callers of shap use)
        ranked_outputs: int | None = None,
        output_rank_order: str = "max",
        check_additivity: bool = True,
    ) -> Any:
        """Attributions of samples.

        Parameters
        ----------
        X : samples, in the form of the background.
        ranked_outputs : explain only so many outputs of each sample, those highest in `output_rank_order`.
        output_rank_order : "max", "min" or "max_abs".
        check_additivity : raise where the attributions do not sum to the output minus its mean.

        Returns
        -------
        float64 ``[N, *features, *output shape]``; one output keeps its axis. A list of these for several inputs. With
        `ranked_outputs`, a pair: ``[N, *features, r]`` and the indexes of the outputs, ``[N, r]``.

        Raises
        ------
        InputError, NonFiniteError, AdditivityError
        """
        found = self._explain(X, ranked_outputs, output_rank_order, check_additivity, details=False)
        values = found.values[0] if len(found.values) == 1 and not _is_listed(X) else found.values
        return values if ranked_outputs is None else (values, found.ranks)

    def __call__(
        self,
        X: Any,  # noqa: N803
        ranked_outputs: int | None = None,
        output_rank_order: str = "max",
        check_additivity: bool = True,
    ) -> Any:
        """An explanation of samples, with base values, data, names and standard errors; see `make_explanation`."""
        found = self._explain(X, ranked_outputs, output_rank_order, check_additivity, details=True)
        several = len(found.values) > 1
        names = self._column_names(X)
        return make_explanation(
            found.values if several else found.values[0],
            found.base,
            found.data if several else found.data[0],
            feature_names=names if several else names[0],
            standard_error=found.errors if several or found.errors is None else found.errors[0],
            unattributed=found.unattributed,
            output_indexes=found.ranks,
            outputs=found.output,
        )

    def explain_row(self, *row: Any, check_additivity: bool = True, **_: Any) -> dict[str, Any]:
        """The explanation of one sample, its inputs without batch axis, in the words that `shap.Explainer` uses."""
        listed = [np.asarray(as_array(a))[None] for a in row]
        found = self._explain(listed, None, "max", check_additivity, details=False)
        values = [a[0] for a in found.values]
        return {
            "values": values if len(values) > 1 else values[0],
            "expected_values": found.base[0],
            "mask_shapes": [a.shape[1:] for a in found.data],
            "main_effects": None,
            "clustering": None,
        }

    @staticmethod
    def supports_model_with_masker(model: Any, masker: Any) -> bool:
        """False: references are the background's rows, not masks; `shap.Explainer` asks."""
        return False

    def rules(self) -> list[RuleRow]:
        """The rule of every node between the explained inputs and the output, in the order of the graph.

        Those in the body of a loop follow the loop.
        """
        return list(self._rows(self.graph, self._require().explained))

    def _rows(self, graph: Graph, varying: Iterable[str]) -> Iterator[RuleRow]:
        """The rules of a graph and of the bodies of its loops."""
        reached = graph.downstream(varying)
        needed = reached & graph.upstream(graph.outputs)
        for node in graph.nodes:
            rule = self._resolver.rule(node)
            if rule is not None and needed.intersection(node.outputs):
                yield RuleRow(node.name, node.operator, rule.name, rule.exact)
                if is_loop(node):
                    body: Graph = node.attributes["body"]
                    positions = [i for i, name in enumerate(node.inputs) if name in reached]
                    yield from self._rows(body, [body.inputs[i] for i in affected(node, positions)])

    def ledger(self, X: Any) -> dict[str, Array]:  # noqa: N803
        """The residual of every node's rule, ``[N, *output shape]``, mean over the background.

        ``<m_y, dy> - sum_i <m_xi, dx_i>``: what the node fails to hand on. They add up to the gap of the whole.
        """
        samples, n = self._read(X)
        layout = self._layout
        parts, count = self._evaluate(self._evaluator(ledger=True), samples, layout.seeds())
        residuals = {}
        for _, name in (role for role in parts[0].sums if role[0] == "residual"):
            found = [part.sums["residual", name] for part in parts]
            outputs = np.concatenate([np.broadcast_to(a, (len(a), n)) for a in found])
            residuals[name] = (outputs.T / count).reshape(n, *layout.output_shape)
        return residuals

    def _require(self) -> Imported:
        if self._imported is None:
            raise InputError("the references are a function: explain some samples first, as they fix the shapes")
        return self._imported

    @property
    def _layout(self) -> Layout:
        imported = self._require()
        return Layout(imported.graph, imported.output)

    def _import(self, background: Any, what: str = "background") -> None:
        self._conversion = convert(self.model, background, self._settings)
        self.at = self._conversion.at or self.at
        imported = import_model(
            self._conversion.model,
            self._conversion.data(background, what),
            what=what,
            output=self._conversion.output,
            inputs=self._inputs,
            hold=self._conversion.hold,
            keep=self.at,
            batch_axes=self._settings.batch_axes,
            rewrite=lambda graph, protected: rewrite(graph, protected, self._resolver),
        )
        if self.precision == "float64":
            imported = replace(imported, graph=imported.graph.astype(np.float64))
        self._imported = imported

    @property
    def _references(self) -> dict[str, Array]:
        """The background by input name, ``[B, *shape]``."""
        imported = self._require()
        return self._explained_rows(imported.background, imported.rows)

    def _explained_rows(self, arrays: Mapping[str, Array], n: int) -> dict[str, Array]:
        """The explained inputs, ``[N, *shape]``, those without a batch axis as often as there are rows."""
        imported, layout = self._require(), self._layout
        rows = {name: layout.rows(name, arrays[name]) for name in imported.explained}
        return {name: np.broadcast_to(a, (n, *imported.graph.shapes[name])) for name, a in rows.items()}

    def _read(self, X: Any) -> tuple[dict[str, Array], int]:  # noqa: N803
        """Samples by input name, ``[N, *shape]``, and their number."""
        if self._imported is None:  # the references are a function: the samples fix the shapes
            self._import(X, "samples")
            self._evaluator()
        arrays, n = self._require().read(self._conversion.data(X, "samples"))
        return {name: self._layout.rows(name, a) for name, a in arrays.items()} | self._explained_rows(arrays, n), n

    def _column_names(self, X: Any) -> list[list[str] | None]:  # noqa: N803
        """Names of the columns of each explained place, where the background or else the samples are a DataFrame."""
        known = {spec.name: spec.columns or columns(X) for spec in self._require().specs}
        labels = [known.get(name) for name in self.input_names]
        return [None if found is None else list(map(str, found)) for found in labels]

    def _own_references(self, samples: Mapping[str, Array]) -> Callable[[int], dict[str, Array]]:
        """A function from a sample's position to its references by input name, ``[B, *shape]``."""
        imported, layout = self._require(), self._layout

        def references(i: int) -> dict[str, Array]:
            given = self.data([layout.features(name, samples[name][i]) for name in imported.explained])
            return self._explained_rows(*imported.read(given, f"references of sample {i}", imported.explained))

        return references

    def _evaluator(self, ranked: bool = False, details: bool = False, ledger: bool = False) -> Evaluator:
        key = (ranked, details, ledger)
        if key not in self._evaluators:
            self._evaluators[key] = self._made_evaluator(ranked, details, ledger)
        return self._evaluators[key]

    def _made_evaluator(self, ranked: bool, details: bool, ledger: bool) -> Evaluator:
        imported = self._require()
        try:
            plan = self._plan(ranked, details, ledger)
            return Evaluator(plan, self._backend(), self.memory_limit, self.progress)
        except ModelError as error:
            if self._backend_name != "onnxruntime" or np.float64 not in self.graph.dtypes.values():
                raise
            warnings.warn(
                f"onnxruntime lacks double-precision kernels for this model, so it is explained in float32 ({error}); "
                "precision='float64' uses the reference backend instead",
                stacklevel=4,
            )
            self._imported = replace(imported, graph=imported.graph.astype(np.float32))
            return Evaluator(self._plan(ranked, details, ledger), self._backend(), self.memory_limit, self.progress)

    def _backend(self) -> Backend:
        return Reference() if self._backend_name == "reference" else OnnxRuntime(self._providers, self._threads)

    def _plan(self, ranked: bool, details: bool, ledger: bool) -> Plan:
        own = callable(self.data)
        arguments = self._plan_arguments()
        return build_plan(self.graph, **arguments, ranked=ranked, details=details, ledger=ledger, own_references=own)

    def _plan_arguments(self) -> dict[str, Any]:
        imported = self._require()
        return {"resolver": self._resolver, "explained": imported.explained, "hold": imported.held, "at": self.at}

    def _evaluate(
        self, evaluator: Evaluator, samples: Mapping[str, Array], blocks: Sequence[Array]
    ) -> tuple[list[Rows], int]:
        """Sums for each block of seeds, and the number of references."""
        references: Any = self._own_references(samples) if callable(self.data) else self._references
        first = references(0) if callable(references) else references
        count = len(next(iter(first.values())))
        return [evaluator.evaluate(samples, references, seeds, count) for seeds in blocks], count

    def _explain(
        self,
        X: Any,  # noqa: N803
        ranked_outputs: int | None,
        order: str,
        check_additivity: bool,
        details: bool,
    ) -> Attributions:
        samples, n = self._read(X)
        layout, ranks = self._layout, None
        ranked = ranked_outputs is not None
        if ranked_outputs is not None:
            ranks = layout.ranks(self._evaluator(ranked=True).outputs(samples), ranked_outputs, order)
        blocks = layout.seeds() if ranks is None else layout.ranked_seeds(ranks)
        places = self.input_names
        bypassing = [name for name in self._require().explained if name not in places]

        def attributions(details: bool) -> Attributions:
            evaluator = self._evaluator(ranked, details)
            parts, count = self._evaluate(evaluator, samples, blocks)
            base = parts[0].base.reshape(-1, *layout.output_shape)
            self._expected = base if evaluator.plan.per_pair_base else base[0]
            return gather(layout, parts, count, samples, n, places, bypassing, ranks)

        found = attributions(details)
        if not found.finite().all():
            self._refuse_non_finite(samples, int(np.argmin(found.finite())))
        if check_additivity and (found.gap() > TOLERANCE * found.scale()).any():
            found = found if details else attributions(details=True)
            if (found.gap() > TOLERANCE * found.scale()).any():
                gap, scale = found.gap(), found.scale()
                raise AdditivityError(describe_leaks(gap, scale, found.output, self.graph, self.ledger(X)))
        return found

    def _refuse_non_finite(self, samples: Mapping[str, Array], row: int) -> None:
        """Raise the error that names what is not finite at a sample."""
        shared = set(samples) - set(self._require().explained)
        shared = {name for name in shared if self.graph.batch_axes[name] is None}
        one = {name: a if name in shared else a[row : row + 1] for name, a in samples.items()}
        references = self._own_references(samples)(row) if callable(self.data) else self._references
        raise NonFiniteError(first_non_finite(self.graph, self._plan_arguments(), one, references, row))


def rewrite(graph: Graph, protected: frozenset[str], resolver: Resolver) -> Graph:
    """Expand what has no rule and join what belongs together, but not nodes for which an explainer has its own rule."""
    graph = expand_graph(graph, resolver)
    return _joined(graph, protected, resolver)


def _joined(graph: Graph, protected: frozenset[str], resolver: Resolver) -> Graph:
    own = {node.name for node in graph.nodes if resolver.is_own(node)}
    return in_bodies(canonicalise(graph, protected, own), lambda body: _joined(body, frozenset(), resolver))


def _is_listed(data: Any) -> bool:
    return isinstance(data, list | tuple) and bool(data) and all(hasattr(a, "__array__") for a in data)


def _bytes(limit: int | str) -> int:
    """``2_000_000_000``, ``"2GB"``, ``"500 MiB"`` -> bytes."""
    if not isinstance(limit, str):
        if limit <= 0:
            raise InputError(f"memory_limit={limit}: it must be a positive number of bytes")
        return int(limit)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", limit, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise InputError(f"memory_limit={limit!r}: write a number of bytes such as '2GB' or '500MiB'")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
