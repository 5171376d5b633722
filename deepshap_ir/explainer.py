"""`DeepExplainer`: a model and a background in, attributions out."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from deepshap_ir import archive, saving
from deepshap_ir.converters import onnx_file
from deepshap_ir.converters.registry import Conversion, Settings, find
from deepshap_ir.custom_ops import CustomOp, CustomOps
from deepshap_ir.engine.attribution import Attributions, Layout
from deepshap_ir.engine.evaluator import Evaluator
from deepshap_ir.engine.memory import available_memory, number_of_bytes
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.rule_sets import Rules, rule_sets
from deepshap_ir.errors import InputError
from deepshap_ir.explanation import make_explanation
from deepshap_ir.graph import Array, Graph
from deepshap_ir.importing.feeds import as_array, is_list
from deepshap_ir.importing.interface import name_list
from deepshap_ir.request import Request, Setup
from deepshap_ir.rule_table import RuleRow, rule_rows
from deepshap_ir.specialisation import References, Specialisation

KEPT = 8
"""Shapes of samples that are remembered, the latest ones, where the references are a function."""


class DeepExplainer:
    """Deep SHAP attributions: how much each input moved an output away from its mean over the background.

    Parameters
    ----------
    model
        An ONNX model: a path, bytes, a file object, an `onnx.ModelProto` or an `onnx_ir.Model`. A `torch.nn.Module`,
        or a pair ``(module, layer)``: then the attributions are at the inputs of that layer. A Keras model, such a
        pair of one, or a pair of its tensors, ``(input or list of them, output)``; a TensorFlow module or function;
        a pair of tensors of a TensorFlow 1 graph. A fitted scikit-learn estimator or pipeline. The path of a Keras
        file, a SavedModel, or a file of TorchScript or torch.export.
    data
        The background: ``[B, *features]``, a list of such arrays, or a mapping by input name; each a numpy array, a
        tensor of any framework or a DataFrame, whose columns name the features and are matched by name. A list is in
        the order of `inputs` or, with held inputs in it, in that of the model. Or a function that is given one sample
        (a list with one array per input, without batch axis) and returns its own references in one of these forms.
    session, learning_phase_flags
        Of TensorFlow 1 graphs; must be None for ONNX models.
    output
        Name or index of the explained output, or the name of any value of the graph. None: the only float output.
    logits
        Explain the value before the Softmax, LogSoftmax or Sigmoid in which the output ends, in the output's shape.
    inputs
        Names of the values that are fed and explained, model inputs or values in the middle of the graph. Model inputs
        left out are held: they take the sample's own value in both passes.
    at
        Names of the values that get the attributions, where these are not the fed ones.
    hold
        Names of values that take the sample's own value in both passes; ``{name: array}`` fixes one to a constant.
    rules
        Rules of this explainer alone: ``{operator or node name: function}``, a `deepshap_ir.extend.RuleSet`, the name
        of a rule set ("reveal_cancel", "gradient", "integrated_gradients", "universal"), or a list of these, of which
        the first that has a rule for a node is asked.
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
        An eighth of it may stay in use between calls, for values at the background that the next call needs again.
    progress
        True or False for a progress bar; None: for work of more than two seconds, on a terminal.
    threads
        How many; by default as many as there are cores. Pieces of the work run side by side, each on one thread.
    options
        Choices among rules: ``{"max_pooling": "shapley"}``.
    custom_ops
        Kernels of operators that onnxruntime does not have: paths of libraries with custom operators, and classes
        derived from `onnx.reference.op_run.OpRun`, for the reference backend.

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
        logits: bool = False,
        inputs: Sequence[str] | None = None,
        at: Sequence[str] | None = None,
        hold: Sequence[str] | Mapping[str, Any] = (),
        rules: Rules | Sequence[Rules] | None = None,
        batch_axes: Mapping[str, int | None] | None = None,
        backend: str = "onnxruntime",
        providers: Sequence[Any] | None = None,
        precision: str | None = None,
        memory_limit: int | str | None = None,
        progress: bool | None = None,
        threads: int | None = None,
        options: Mapping[str, Any] | None = None,
        custom_ops: Sequence[CustomOp] = (),
    ) -> None:
        if backend not in ("onnxruntime", "reference"):
            raise InputError(f"backend={backend!r}: choose 'onnxruntime' or 'reference'")
        if precision not in (None, "float64"):
            raise InputError(f"precision={precision!r}: choose None (as the model) or 'float64'")
        if providers and (precision == "float64" or backend == "reference"):
            chosen = "precision='float64' runs on the reference backend, which" if precision else "backend='reference'"
            raise InputError(f"{chosen} takes no providers=")
        if output is not None and (isinstance(output, bool) or not isinstance(output, str | int | np.integer)):
            raise InputError(f"output={output!r}: expected a name or an index")
        if threads is not None and (not isinstance(threads, int | np.integer) or threads < 1):
            raise InputError(f"threads={threads}: expected at least 1, or None for as many as there are cores")
        if data is None:
            raise InputError("data=None: expected the background, rows that the samples are compared with")
        self.model = model.model if isinstance(model, Conversion) else model
        self.data = data
        places = tuple(name_list([at] if isinstance(at, str) else at or (), "at"))
        settings = Settings(output, places, hold, batch_axes or {}, session, learning_phase_flags)
        is_onnx = not isinstance(model, Conversion) and find(model, settings) is onnx_file
        self._given_limit = memory_limit
        self._rules = rules
        self._setup = Setup(
            settings=settings,
            inputs=None if inputs is None else tuple(name_list(inputs, "inputs")),
            logits=logits,
            own_references=callable(data),
            resolver=Resolver(rule_sets(rules), options),
            precision=precision,
            backend=backend,
            providers=providers,
            threads=threads,
            memory_limit=available_memory() // 4 if memory_limit is None else number_of_bytes(memory_limit),
            progress=progress,
            custom_ops=CustomOps.of(custom_ops),
        )
        self._source = saving.Source.of(model) if is_onnx else saving.Source(model)
        self._expected: Array | None = None
        self._known: list[Specialisation] = []
        if not callable(data):
            self._known = [Specialisation(self._source.model, self._setup, data)]

    @property
    def graph(self) -> Graph:
        """The program of one example that is explained."""
        return self._latest.graph

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the explained values, in the order of the attributions."""
        return self._latest.places

    @property
    def output_name(self) -> str:
        """Name of the explained output."""
        return self._latest.imported.output

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
        if self._expected is None and self._known and not callable(self.data):
            self._expected = self._latest.base()
        return self._expected

    @property
    def memory_limit(self) -> int:
        """Bytes that the values of the pieces at work may take."""
        return self._setup.memory_limit

    def shap_values(
        self,
        X: Any,  # noqa: N803  (the name that callers of shap use)
        ranked_outputs: int | None = None,
        output_rank_order: str = "max",
        check_additivity: bool = True,
        *,
        per_reference: bool = False,
        hypothetical: bool = False,
        hypothetical_axis: int | Mapping[str, int] = -1,
    ) -> Any:
        """Attributions of samples.

        Parameters
        ----------
        X : samples, in the form of the background.
        ranked_outputs : explain only so many outputs of each sample, those highest in `output_rank_order`.
        output_rank_order : "max", "min" or "max_abs".
        check_additivity : raise where the attributions do not sum to the output minus its mean.
        per_reference : give the contributions for each reference, of which the attributions are the mean.
        hypothetical : of one-hot samples, in place of the contributions those of every letter, had it been there:
            ``H[c] = m[c] - sum_c' m[c'] x0[c']`` by the multipliers `m`; see `deepshap_ir.hypothetical`.
        hypothetical_axis : where the letters are, counted as in `X`: 1 for ``[N, 4, L]``, 2 or -1 for ``[N, L, 4]``; or
            ``{input: axis}``, to leave the other inputs their contributions.

        Returns
        -------
        float64 ``[N, *features, *output shape]``; one output keeps its axis. A list of these for several inputs. With
        `per_reference`, ``[N, B, *features, *output shape]``: B references after the samples. With `ranked_outputs`, a
        pair: ``[N, *features, r]`` and the indexes of the outputs, ``[N, r]``.

        Raises
        ------
        InputError, NonFiniteError, AdditivityError
        """
        request = Request(ranked_outputs, output_rank_order, check_additivity, per_reference=per_reference)
        if hypothetical:
            request = replace(request, role="hypothetical", axes=hypothetical_axis)
        return self._arrays(X, request)

    def multipliers(
        self,
        X: Any,  # noqa: N803
        ranked_outputs: int | None = None,
        output_rank_order: str = "max",
        check_additivity: bool = True,
        *,
        per_reference: bool = False,
    ) -> Any:
        """Multipliers of samples: what each unit of difference from a reference contributes.

        Those for one reference, times the difference from it, are the contributions for it. The mean over the
        background is not a factor of the attributions, unless the multipliers are the same for all references.

        Parameters
        ----------
        X, ranked_outputs, output_rank_order, check_additivity : as for `shap_values`.
        per_reference : give them for each reference, not their mean.

        Returns
        -------
        As `shap_values`.

        Raises
        ------
        InputError, NonFiniteError, AdditivityError
        """
        request = Request(ranked_outputs, output_rank_order, check_additivity, role="multiplier")
        return self._arrays(X, replace(request, per_reference=per_reference))

    def __call__(
        self,
        X: Any,  # noqa: N803
        ranked_outputs: int | None = None,
        output_rank_order: str = "max",
        check_additivity: bool = True,
        *,
        per_reference: bool = False,
    ) -> Any:
        """An explanation of samples, with base values, data, names and standard errors; see `make_explanation`.

        With `per_reference`, of every pair of a sample and a reference, ``[N, B, *features, *outputs]``; base values
        are the outputs at the references, and ``explanation[i]`` has the pairs of sample i as its rows.
        """
        request = Request(ranked_outputs, output_rank_order, check_additivity, True, per_reference=per_reference)
        program, found = self._explain(X, request)
        several = len(found.values) > 1
        names = program.column_names(X)
        values, errors = found.asked["each sum"] if per_reference else found.values, found.errors
        return make_explanation(
            values if several else values[0],
            found.base if found.bases is None else found.bases,
            found.data if several else found.data[0],
            feature_names=names if several else names[0],
            standard_error=None if per_reference else errors if several or errors is None else errors[0],
            unattributed=found.each_around if per_reference else found.unattributed,
            output_indexes=found.ranks,
            outputs=found.output,
            per_reference=per_reference,
        )

    def explain_row(self, *row: Any, check_additivity: bool = True, **_: Any) -> dict[str, Any]:
        """The explanation of one sample, its inputs without batch axis, in the words that `shap.Explainer` uses."""
        listed = [np.asarray(as_array(a))[None] for a in row]
        found = self._explain(listed, Request(check=check_additivity))[1]
        values = [a[0] for a in found.values]
        return {
            "values": values if len(values) > 1 else values[0],
            "expected_values": found.base[0],
            "mask_shapes": [a.shape[: a.ndim - len(self.output_shape)] for a in values],
            "main_effects": None,
            "clustering": None,
        }

    def save(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the explainer to one file, whole or not at all, from which `load` makes it without any framework.

        The file is a zip archive of the ONNX model, the background and the settings. Rules other than names of rule
        sets, kernels, and a function in place of a background are not in it: give them again on `load`.

        Parameters
        ----------
        file : a path, or a binary file open for writing.

        Raises
        ------
        InputError : the references are a function and no samples have been explained, so that nothing is known of
            the model; or a setting cannot be written.
        ModelError : the model's file has changed since.
        """
        archive.write(file, self._contents())

    @classmethod
    def load(
        cls,
        file: str | os.PathLike[str] | BinaryIO,
        *,
        data: Any = None,
        rules: Rules | Sequence[Rules] | None = None,
        **settings: Any,
    ) -> DeepExplainer:
        """Read an explainer that `save` wrote.

        Parameters
        ----------
        file : a path, or a binary file open for reading.
        data : another background; needed where it was a function.
        rules : rules of your own; needed where the explainer had some.
        settings : of where and how it runs, if not as saved: `backend`, `providers`, `precision`, `memory_limit`,
            `progress`, `threads`, `options`, `custom_ops`.

        Raises
        ------
        InputError : what was not saved is not given again, or a setting cannot be changed.
        ModelError : the file is none of these, is damaged, or of a newer version.
        """
        return cls(**saving.arguments(archive.read(file), data, rules, settings))

    def __reduce__(self) -> tuple[Any, ...]:
        data = self.data if callable(self.data) else None
        kernels = self._setup.custom_ops
        again = {"rules": self._rules, "custom_ops": [*kernels.libraries, *kernels.functions]}
        return _loaded, (type(self), archive.to_bytes(self._contents()), data, again)

    @staticmethod
    def supports_model_with_masker(model: Any, masker: Any) -> bool:
        """False: references are the background's rows, not masks; `shap.Explainer` asks."""
        return False

    def rules(self) -> list[RuleRow]:
        """The rule of every node between the explained inputs and the output, in the order of the graph.

        Those in the body of a loop follow the loop.
        """
        program = self._latest
        return list(rule_rows(program.graph, program.imported.explained, self._setup.resolver))

    def ledger(self, X: Any) -> dict[str, Array]:  # noqa: N803
        """The residual of every node's rule, ``[N, *output shape]``, mean over the background.

        ``<m_y, dy> - sum_i <m_xi, dx_i>``: what the node fails to hand on. They add up to the gap of the whole.
        """
        program = self._program(X)
        samples, n = program.read(X)
        return program.ledger(samples, n, self._references(program, samples))

    @property
    def _latest(self) -> Specialisation:
        if not self._known:
            raise InputError("the references are a function: explain some samples first, as they fix the shapes")
        return self._known[-1]

    @property
    def _layout(self) -> Layout:
        return self._latest.layout

    def _evaluator(self) -> Evaluator:
        return self._latest.evaluator()

    def _program(self, X: Any) -> Specialisation:  # noqa: N803
        """The model for samples of the shapes of `X`, which only references by a function can follow."""
        if not callable(self.data):
            return self._latest
        for known in reversed(self._known):
            if known.fits(X):
                self._known.remove(known)
                self._known.append(known)
                return known
        self._known = [*self._known, Specialisation(self._source.model, self._setup, X, "samples")][-KEPT:]
        return self._latest

    def _references(self, program: Specialisation, samples: Mapping[str, Array]) -> References:
        return program.own_references(self.data, samples) if callable(self.data) else program.background

    def _explain(self, X: Any, request: Request) -> tuple[Specialisation, Attributions]:  # noqa: N803
        program = self._program(X)
        samples, n = program.read(X)
        found = program.explain(samples, n, self._references(program, samples), request)
        self._expected = found.expected
        return program, found

    def _arrays(self, X: Any, request: Request) -> Any:  # noqa: N803
        """What `shap_values` returns."""
        found = self._explain(X, request)[1]
        arrays = found.asked[request.roles[-1]] if request.roles else found.values
        values = arrays[0] if len(arrays) == 1 and not is_list(X) else arrays
        return values if request.ranked_outputs is None else (values, found.ranks)

    def _contents(self) -> archive.Contents:
        """What `save` writes."""
        return saving.contents(self._latest, self._source, self._rules, self._given_limit)


def _loaded(cls: type[DeepExplainer], content: bytes, data: Any, again: Mapping[str, Any]) -> DeepExplainer:
    return cls.load(io.BytesIO(content), data=data, **again)
