"""What runs the programs: onnxruntime, or numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from deepshap_ir.custom_ops import CustomOps
from deepshap_ir.engine.pieces import available_cores
from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.graph import Array
from deepshap_ir.reference.operators import REPAIRED


class Backend(Protocol):
    """Runs programs and keeps their values where it likes.

    Attributes
    ----------
    cores : how many programs it can run side by side.
    """

    cores: int

    def load(self, model: ModelProto, weights: Mapping[str, Array], alone: bool = True) -> Any:
        """Prepare a model.

        Parameters
        ----------
        weights : the initializers whose numbers it does not hold.
        alone : it has all cores to itself; otherwise it runs on one.
        """

    def run(self, session: Any, outputs: Sequence[str], feeds: Mapping[str, Any], odd: bool) -> list[Any]:
        """Run it; `odd` says that a piece of this size is rare."""

    def put(self, array: Array) -> Any:
        """An array in the backend's form."""

    def get(self, value: Any) -> Array:
        """A value as a numpy array."""


class OnnxRuntime:
    """The default backend."""

    def __init__(
        self,
        providers: Sequence[Any] | None = None,
        threads: int | None = None,
        custom_ops: CustomOps = CustomOps(),  # noqa: B008  (frozen)
    ) -> None:
        available = onnxruntime.get_available_providers()
        if isinstance(providers, str):
            raise InputError(f"providers: expected a list, given the text {providers!r}; write [{providers!r}].")
        wanted = list(providers) if providers else ["CPUExecutionProvider"]
        missing = [p for p in wanted if (p if isinstance(p, str) else p[0]) not in available]
        if missing:
            raise InputError(
                f"onnxruntime has no provider {missing}; it has {available}. For a GPU: pip uninstall onnxruntime; "
                "pip install onnxruntime-gpu"
            )
        self.providers = wanted
        names = [p if isinstance(p, str) else p[0] for p in wanted]
        self.cores = (threads or available_cores()) if names == ["CPUExecutionProvider"] else 1
        self.threads, self.custom_ops = threads, custom_ops
        self._weights: dict[int, tuple[Array, onnxruntime.OrtValue]] = {}
        self._shrink = onnxruntime.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def load(self, model: ModelProto, weights: Mapping[str, Array], alone: bool = True) -> onnxruntime.InferenceSession:
        """A session, which reads the weights where they are; ModelError where onnxruntime has no kernel for it."""
        options = self.custom_ops.options()
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        if self.threads or not alone:
            options.intra_op_num_threads = self.threads if self.threads and alone else 1
        values = [self._weights.setdefault(id(array), (array, self.put(array)))[1] for array in weights.values()]
        options.add_external_initializers(list(weights), values)
        try:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=self.providers)
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
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))

    def get(self, value: onnxruntime.OrtValue) -> Array:
        """A numpy array."""
        array: Array = value.numpy()
        return array


class Reference:
    """`onnx.reference`: numpy, the oracle."""

    cores = 1

    def __init__(self, new_ops: Sequence[Any] = ()) -> None:
        self.new_ops = list(new_ops)

    def load(self, model: ModelProto, weights: Mapping[str, Array], alone: bool = True) -> ReferenceEvaluator:
        """An evaluator."""
        whole = ModelProto()
        whole.CopyFrom(model)
        for tensor in whole.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(weights[tensor.name], order="C"), tensor.name))
        model = whole
        return ReferenceEvaluator(model, new_ops=[*self.new_ops, *REPAIRED])

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
