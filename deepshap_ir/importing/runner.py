"""Running ONNX models as they are: onnxruntime without graph optimisations, else ``onnx.reference``."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto, helper
from onnx.reference import ReferenceEvaluator

from deepshap_ir.custom_ops import known_custom_ops
from deepshap_ir.errors import ModelError
from deepshap_ir.reference.operators import REPAIRED

_MAX_PROTO_BYTES = 2**31 - 2**20


@lru_cache
def newest_ir_version() -> int:
    """Return the newest IR version that the installed onnxruntime loads."""
    for version in range(onnx.IR_VERSION, 7, -1):
        if _loads(7, version):
            return version
    return 8


@lru_cache
def newest_opset() -> int:
    """Return the newest standard opset that the installed onnxruntime loads."""
    for version in range(onnx.defs.onnx_opset_version(), 18, -1):
        if _loads(version, 8):
            return version
    return 18


def _loads(opset: int, ir_version: int) -> bool:
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    try:
        _session(model)
    except _ORT_ERRORS:
        return False
    return True


def _ort_errors() -> tuple[type[Exception], ...]:
    state = onnxruntime.capi.onnxruntime_pybind11_state
    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
        RuntimeError,
        ValueError,
    )


_ORT_ERRORS = _ort_errors()


def _session(model: ModelProto) -> onnxruntime.InferenceSession:
    """Open a session without graph optimisations, through a file where the model is over 2 GiB."""
    options = known_custom_ops().options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    if _fits_protobuf(model):
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        copy = ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, path, save_as_external_data=True, location="weights")
        return onnxruntime.InferenceSession(path, options, providers=providers)


def _fits_protobuf(model: ModelProto) -> bool:
    try:
        return bool(model.ByteSize() < _MAX_PROTO_BYTES)
    except EncodeError:  # which is how protobuf answers beyond 2 GiB
        return False


_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_LOCATION = re.compile(r"/onnxruntime_src/\S+:\d+ .*?\)(?: const)?(?: \[with [^\]]*\])? (?=\S)")


def one_line(error: BaseException) -> str:
    """Return the message of `error` on one line, without the codes and C++ signatures that onnxruntime puts in."""
    text = _CODE.sub("", " ".join(str(error).split()))
    text = _LOCATION.sub("", text)
    return text if len(text) <= 600 else f"{text[:600]} ..."


def _without_kernel(message: str) -> str:
    """What to do about an operator that onnxruntime does not know."""
    if not re.search(r"is not a registered function/op|No Op registered for|No opset import for domain", message):
        return ""
    return ". An operator of your own needs a kernel or an expansion: custom_ops=[...] (see rules/README.md)"


class Runner:
    """A model ready to run: by onnxruntime without graph optimisations, else by ``onnx.reference``.

    Parameters
    ----------
    model : the model; its outputs may be given by name alone.
    what : how an error message calls the model.
    reference : leave onnxruntime out.

    Attributes
    ----------
    engine : ``"onnxruntime"`` or ``"onnx.reference"``.

    Raises
    ------
    ModelError : neither of them loads the model.
    """

    def __init__(self, model: ModelProto, what: str = "the model", reference: bool = False) -> None:
        self.what = what
        self.outputs = [value.name for value in model.graph.output]
        self._inputs = {value.name for value in model.graph.input}
        self._session: onnxruntime.InferenceSession | None = None
        self._evaluator: ReferenceEvaluator | None = None
        self._model = model
        try:
            if reference:
                raise RuntimeError("not asked")
            self._session = _session(model)
        except _ORT_ERRORS as first:
            self._to_reference("loads", first)

    def _to_reference(self, does: str, first: Exception) -> None:
        """Go on with ``onnx.reference``, where onnxruntime failed with `first`."""
        try:
            self._evaluator = ReferenceEvaluator(self._model, new_ops=[*known_custom_ops().functions, *REPAIRED])
        except Exception as second:  # its loader raises bare exceptions of many classes
            raise ModelError(
                f"{self.what} {does} neither in onnxruntime ({one_line(first)}) "
                f"nor in onnx.reference ({one_line(second)}){_without_kernel(str(first))}"
            ) from None
        self._session = None

    @property
    def engine(self) -> str:
        """The name of what runs the model."""
        return "onnx.reference" if self._session is None else "onnxruntime"

    def output_dtypes(self) -> dict[str, np.dtype[Any]]:
        """Output name -> dtype, for the tensors among the outputs, as far as the engine knows them before a run."""
        if self._session is None:
            return {}
        types = {value.name: value.type for value in self._session.get_outputs()}
        return {name: _ORT_DTYPES[text] for name, text in types.items() if text in _ORT_DTYPES}

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run once: input name -> array to output name -> array.

        A sequence comes as a list, an absent optional as None.

        Parameters
        ----------
        outputs : the outputs to return, all by default.

        Raises
        ------
        ModelError : the model fails on these arrays.
        """
        wanted = list(self.outputs if outputs is None else outputs)
        known = {name: value for name, value in feeds.items() if name in self._inputs}
        try:
            if self._session is not None:
                try:
                    return dict(zip(wanted, self._session.run(wanted, known), strict=True))
                except _ORT_ERRORS as error:
                    if "does not support double" not in str(error):  # its recurrent layers load all the same
                        raise
                    self._to_reference("runs", error)
            assert self._evaluator is not None
            values = self._evaluator.run(wanted, known)
        except ModelError:
            raise
        except Exception as error:  # onnx.reference raises whatever numpy raised
            shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in known.items())
            raise ModelError(f"{self.what} does not run on {shapes}: {one_line(error)}") from None
        return dict(zip(wanted, values, strict=True))


_ORT_DTYPES: dict[str, np.dtype[Any]] = {
    f"tensor({name})": np.dtype(dtype)
    for name, dtype in {
        "float": np.float32,
        "double": np.float64,
        "float16": np.float16,
        "int8": np.int8,
        "int16": np.int16,
        "int32": np.int32,
        "int64": np.int64,
        "uint8": np.uint8,
        "uint16": np.uint16,
        "uint32": np.uint32,
        "uint64": np.uint64,
        "bool": np.bool_,
        "string": np.object_,
    }.items()
}
