"""What is measured: three explainers and the bare forward pass, each behind the same two calls.

An import stands in the method that needs it, so that the process of one side holds nothing of the others.
"""

from __future__ import annotations

import pickle
import time
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Attributions = NDArray[np.float64]


class Job(NamedTuple):
    """One function and one background, as they travel to the process of a side.

    Attributes
    ----------
    onnx : bytes of the ONNX file.
    module : the torch module, pickled; a side that does not use torch never opens it.
    background : ``[B, *features]``.
    threads : processor threads that a side may use.
    """

    onnx: bytes
    module: bytes
    background: Rows
    threads: int


class Explainer(ABC):
    """One library on one job."""

    @abstractmethod
    def load(self) -> None:
        """Import the library, so that time and memory are counted from there."""

    @abstractmethod
    def prepare(self, job: Job) -> None:
        """Open the model and build the library's explainer."""

    @abstractmethod
    def attribute(self, samples: Rows) -> Attributions:
        """Attributions ``[N, *features, K]`` of `samples` ``[N, *features]``; no check of their sum, on any side."""


class DeepShapIr(Explainer):
    """This library on the ONNX file."""

    def load(self) -> None:
        """Import this library."""
        from deepshap_ir import DeepExplainer

        self.make: type[DeepExplainer] = DeepExplainer

    def prepare(self, job: Job) -> None:
        """Import the graph and emit the program of its multipliers."""
        self.explainer = self.make(job.onnx, job.background)

    def attribute(self, samples: Rows) -> Attributions:
        """All samples and outputs in one call."""
        return np.asarray(self.explainer.shap_values(samples, check_additivity=False), np.float64)


class Shap(Explainer):
    """``shap.DeepExplainer`` on the torch module."""

    def load(self) -> None:
        """Import shap and torch."""
        import shap
        import torch

        self.library: Any = shap
        self.torch: Any = torch

    def prepare(self, job: Job) -> None:
        """Build the explainer, which runs the background once."""
        self.torch.set_num_threads(job.threads)
        self.explainer = self.library.DeepExplainer(pickle.loads(job.module), self.torch.from_numpy(job.background))

    def attribute(self, samples: Rows) -> Attributions:
        """All in one call, in which shap goes over samples and outputs one by one."""
        attributions = self.explainer.shap_values(self.torch.from_numpy(samples), check_additivity=False)
        return np.asarray(attributions, np.float64)


class Captum(Explainer):
    """``captum.attr.DeepLiftShap`` on the torch module."""

    def load(self) -> None:
        """Import Captum and torch."""
        import captum.attr
        import torch

        self.library: Any = captum.attr
        self.torch: Any = torch

    def prepare(self, job: Job) -> None:
        """Build the explainer and count the outputs."""
        self.torch.set_num_threads(job.threads)
        module = pickle.loads(job.module)
        self.background = self.torch.from_numpy(job.background)
        self.outputs = module(self.background[:1]).shape[1]
        self.explainer = self.library.DeepLiftShap(module)

    def attribute(self, samples: Rows) -> Attributions:
        """One call for each output: Captum explains one target at a time."""
        rows = self.torch.from_numpy(samples)
        targets = [
            self.explainer.attribute(rows, self.background, target=output).detach().numpy()
            for output in range(self.outputs)
        ]
        return np.stack(targets, axis=-1).astype(np.float64)


class Forward:
    """The same ONNX file run by onnxruntime: the unit in which the explainers are measured."""

    def __init__(self, job: Job) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        self.session = onnxruntime.InferenceSession(job.onnx, options, providers=["CPUExecutionProvider"])
        self.rows = job.background
        self.batch = 1

    def values(self, rows: Rows) -> Attributions:
        """Outputs ``[N, K]`` of `rows` ``[N, *features]``."""
        pieces = [self.session.run(["y"], {"x": rows[i : i + 100]})[0] for i in range(0, len(rows), 100)]
        return np.concatenate(pieces).astype(np.float64)

    def seconds(self, batch: int, at_least: float) -> float:
        """Mean seconds per row at one batch size, over three runs or more and `at_least` seconds in all."""
        rows = np.resize(self.rows, (batch, *self.rows.shape[1:]))
        self.session.run(["y"], {"x": rows})
        runs, started = 0, time.perf_counter()
        while runs < 3 or time.perf_counter() - started < at_least:
            self.session.run(["y"], {"x": rows})
            runs += 1
        return (time.perf_counter() - started) / (runs * batch)

    def find_best_batch(self) -> int:
        """Double the batch size until three sizes in a row are slower than the best, or one run takes a second."""
        best, batch, slower = float("inf"), 1, 0
        while slower < 3:
            per_row = self.seconds(batch, at_least=0.1)
            if per_row < best:
                best, self.batch, slower = per_row, batch, 0
            else:
                slower += 1
            if per_row * batch > 1.0:
                break
            batch *= 2
        return self.batch


EXPLAINERS: dict[str, type[Explainer]] = {"deepshap-ir": DeepShapIr, "shap": Shap, "captum": Captum}
