"""A function of TensorFlow tensors, seen at its outputs and at the inputs of a layer, eagerly and exported."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from deepshap_ir.converters.compare import TOLERANCE
from deepshap_ir.converters.outputs import choose
from deepshap_ir.converters.quiet import quiet
from deepshap_ir.converters.tensorflow_graph import LOGGERS, MARK, Frozen, to_onnx
from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.importing.dependence import dependence
from deepshap_ir.importing.feeds import Array, InputSpec, as_array, take
from deepshap_ir.importing.runner import one_line


@dataclass(frozen=True)
class Subject:
    """A function of tensors, and how it is called.

    Attributes
    ----------
    title : how messages call the model.
    names : of the inputs, in the order of the tensors that `call` is given.
    axes : input name -> axis of the batch, None where it has none.
    call : tensors -> the outputs by name, and what the layer is given.
    guard : what must not change while the model is called.
    exporting : what holds while it is exported, besides.
    """

    title: str
    names: Sequence[str]
    axes: Mapping[str, int | None]
    call: Callable[[Sequence[Any]], tuple[dict[str, Any], list[Any]]]
    guard: Callable[[], AbstractContextManager[Any]]
    exporting: Callable[[], AbstractContextManager[Any]]

    def tensors(self, arrays: Mapping[str, Array]) -> list[Any]:
        """Return arrays as tensors."""
        import tensorflow as tf

        return [tf.constant(arrays[name]) for name in self.names]

    def evaluated(self, arrays: Mapping[str, Array]) -> tuple[dict[str, Any], list[Any]]:
        """Call the model eagerly; it is left as it was.

        Raises
        ------
        InputError : it fails on these arrays.
        """
        try:
            with self.guard(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self.call(self.tensors(arrays))
        except InputError:
            raise
        except Exception as error:  # whatever the model's own code raises
            shapes = ", ".join(f"{name} {list(a.shape)} of {a.dtype}" for name, a in arrays.items())
            raise InputError(f"{self.title} fails on rows of the background ({shapes}): {_plain(error)}") from error

    def observe(self, rows: Mapping[str, Array], output: str | int | None, layer: str | None = None) -> Observed:
        """Call the model once to learn what it returns, and choose the explained output.

        Raises
        ------
        InputError : the model fails, there is no such output, or the layer is not used.
        """
        single = False
        try:
            found, kept = self.evaluated(rows)
        except InputError as error:
            try:
                found, kept = self.evaluated(self.first(rows))
            except InputError:
                raise error from None
            single = True
        if layer is not None and not kept:
            raise InputError(f"{self.title} gives no tensor to the layer {layer}, or does not call it.")
        chosen = choose(found, output, _is_float, self.title)
        return Observed(self, chosen, len(kept), output if output not in found else None, single)

    def first(self, rows: Mapping[str, Array]) -> dict[str, Array]:
        """Return the first of some rows."""
        specs = [InputSpec(name, a.dtype, batch_axis=self.axes[name]) for name, a in rows.items()]
        return take(rows, specs, [0])


@dataclass(frozen=True)
class Exported:
    """An ONNX model, the name of the explained output, and the values that the layer is given."""

    model: ModelProto
    output: str | int | None
    at: tuple[str, ...]


@dataclass(frozen=True)
class Observed:
    """A subject of which it is known what it returns.

    Attributes
    ----------
    chosen : the outputs that are exported, by the model's names.
    kept : how many inputs of the layer are.
    inside : a name that is no output of the model, left for the importer to find.
    single : whether the model takes one row alone.
    """

    subject: Subject
    chosen: Sequence[str]
    kept: int
    inside: str | int | None
    single: bool

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs in ONNX, which must not be those of inputs."""
        taken = set(self.subject.names)
        return [f"{name}_output" if name in taken else name for name in self.chosen]

    @property
    def tolerance(self) -> float:
        """Of a comparison with ONNX, relative to the largest output."""
        return TOLERANCE

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Call the model: arrays by input name -> arrays by the names of `outputs`."""
        found, _ = self.subject.evaluated(arrays)
        return {name: _numbers(found[theirs]) for name, theirs in zip(self.outputs, self.chosen, strict=True)}

    def export(self, rows: Mapping[str, Array]) -> Exported:
        """Export to ONNX with a free batch; for one row where the model does not take more.

        Raises
        ------
        ModelError : it cannot be traced, or has an operator without a counterpart.
        """
        import tensorflow as tf

        subject = self.subject
        failures: list[Exception] = []
        for free in (False,) if self.single else (True, False):
            specs = [self._spec(name, rows[name], free) for name in subject.names]
            try:
                with subject.guard(), subject.exporting(), quiet(LOGGERS):
                    program = tf.function(self._program, input_signature=specs, autograph=False)
                    frozen = Frozen.of_function(program.get_concrete_function(), len(subject.names), self.kept)
            except InputError:
                raise
            except Exception as error:  # whatever the model's own code raises
                failures.append(error)
                continue
            shapes = [spec.shape.as_list() for spec in specs]
            return self._finished(to_onnx(frozen, subject.names, self.outputs, shapes, subject.title))
        raise ModelError(f"TensorFlow cannot trace {subject.title}: {_plain(failures[0])}") from failures[0]

    def _spec(self, name: str, array: Array, free: bool) -> Any:
        import tensorflow as tf

        axis = self.subject.axes[name]
        shape = [(None if free else 1) if i == axis else length for i, length in enumerate(array.shape)]
        return tf.TensorSpec(shape, array.dtype)

    def _program(self, *tensors: Any) -> list[Any]:
        import tensorflow as tf

        found, kept = self.subject.call(tensors)
        if any(tensor.graph is not tf.compat.v1.get_default_graph() for tensor in kept):
            raise InputError(
                f"the layer is called in a loop or function within {self.subject.title}, where its inputs cannot be "
                f"told apart; explain the layer around it."
            )
        return [*(found[name] for name in self.chosen), *kept]

    def _finished(self, model: ModelProto) -> Exported:
        """Find the values that the layer reads, and take out what marks them."""
        graph = model.graph
        source: dict[str, str] = {}
        for node in graph.node:
            if node.op_type == "Identity" or node.domain == MARK:
                source[node.output[0]] = node.input[0]
        marked = [node for node in graph.node if node.domain == MARK]
        found = dependence(graph, [value.name for value in graph.input])
        places = []
        for node in marked:
            node.op_type, node.domain = "Identity", ""
            name = node.output[0]
            while name in source:
                name = source[name]
            if found.depends([name]) and name not in places:
                places.append(name)
        if self.kept and not places:
            raise InputError("the inputs of the layer do not depend on the data.")
        output = self.outputs[0] if self.inside is None or len(self.chosen) == 1 else self.inside
        return Exported(model, output, tuple(places))


def _plain(error: Exception) -> str:
    """Return the message of an error of Keras, which is set in bold, on one line."""
    return one_line(Exception(re.sub(r"\x1b\[\d*m", "", str(error))))


def _is_float(tensor: Any) -> bool:
    return bool(tensor.dtype.is_floating)


def _numbers(tensor: Any) -> Array:
    array = as_array(tensor)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
