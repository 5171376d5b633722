"""A torch module, seen at its outputs and at the inputs of a layer, eagerly and exported."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto

from deepshap_ir.converters.compare import HALF_TOLERANCE, TOLERANCE
from deepshap_ir.converters.outputs import choose, leaves
from deepshap_ir.converters.quiet import quiet
from deepshap_ir.converters.registry import comes_from
from deepshap_ir.converters.torch_constants import folded
from deepshap_ir.converters.torch_failures import cause
from deepshap_ir.converters.torch_functions import spelled_out
from deepshap_ir.converters.torch_state import LOGGERS, unchanged
from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.importing.dependence import dependence
from deepshap_ir.importing.feeds import Array, InputSpec, as_array, take
from deepshap_ir.importing.runner import newest_opset
from deepshap_ir.importing.subgraphs import all_names, fresh, rename

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

OPSET = 18
"""The exporter's own; it writes newer ones by conversion."""

BFLOAT16_TOLERANCE = 5e-2
"""torch rounds each value of such a module to 8 binary digits, and ONNX is run in float32."""


@dataclass
class Subject:
    """A module, and how it is called.

    Attributes
    ----------
    layer : the layer whose inputs are kept, if any.
    positional, keyword : names of the inputs.
    constants : further arguments, by keyword.
    axes : input name -> axis of the batch, None where it has none.
    floats : whether the module wants whole numbers as floats.
    single : whether it takes one row alone.
    """

    module: nn.Module
    layer: nn.Module | None
    positional: Sequence[str]
    keyword: Sequence[str]
    constants: Mapping[str, Any]
    axes: Mapping[str, int | None]
    floats: bool = field(default=False, init=False)
    single: bool = field(default=False, init=False)

    @property
    def names(self) -> list[str]:
        """The inputs, in the order of the tensors of `call`."""
        return [*self.positional, *self.keyword]

    def call(self, tensors: Sequence[Tensor], constants: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the tensors among the module's outputs by name, and those that the last call of the layer was given.

        They are cloned, as layers may write over their inputs; export drops the clone, so that the exported value is
        the one that the layer reads. A tensor that is given twice is kept once.
        """
        kept: dict[int, Tensor] = {}

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = {id(t): t for _, t in leaves((args, kwargs), _is_tensor)}
            floats = {key: t for key, t in given.items() if t.is_floating_point()}
            kept.clear()
            kept.update({key: t.clone() for key, t in (floats or given).items()})

        named = dict(zip(self.keyword, tensors[len(self.positional) :], strict=True))
        handle = None if self.layer is None else self.layer.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            returned = self.module(*tensors[: len(self.positional)], **named, **constants)
        finally:
            if handle is not None:
                handle.remove()
        return dict(leaves(returned, _is_tensor)), list(kept.values())

    def tensors(self, arrays: Mapping[str, Array]) -> list[Tensor]:
        """Return arrays as tensors in the dtype and on the device of the module."""
        return [self._tensor(arrays[name]) for name in self.names]

    def _tensor(self, array: Array) -> Tensor:
        import torch

        tensor = torch.from_numpy(np.array(array))
        if tensor.is_floating_point() or self.floats:
            tensor = tensor.to(self.dtype)
        return tensor.to(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the module's floating-point parameters, torch's default where it has none."""
        import torch

        held = [t for t in (*self.module.parameters(), *self.module.buffers()) if t.is_floating_point()]
        return held[0].dtype if held else torch.get_default_dtype()

    @property
    def device(self) -> torch.device:
        """Of the module's first parameter or buffer, the CPU where it has none."""
        import torch

        held = next((t for t in (*self.module.parameters(), *self.module.buffers())), None)
        return torch.device("cpu") if held is None else held.device

    def baked(self) -> dict[str, Any]:
        """Return the constants, arrays as tensors."""
        return {
            name: self._tensor(as_array(value)) if hasattr(value, "__array__") else value
            for name, value in self.constants.items()
        }

    def evaluated(self, arrays: Mapping[str, Array]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Call the module, in evaluation mode; it is left as it was.

        Raises
        ------
        InputError : it fails on these arrays.
        """
        try:
            with unchanged(self.module):
                return self.call(self.tensors(arrays), self.baked())
        except Exception as error:  # whatever the module's own code raises
            shapes = ", ".join(f"{name} {list(a.shape)} of {a.dtype}" for name, a in arrays.items())
            raise InputError(
                f"{type(self.module).__name__} fails on rows of the background ({shapes}): {cause(error)}"
            ) from error

    def observe(self, rows: Mapping[str, Array], output: str | int | None) -> Observed:
        """Call the module once to learn what it returns, and choose the explained output.

        Raises
        ------
        InputError : the module fails, there is no such output, or the layer is not used.
        """
        found, kept = self._first_call(rows)
        if self.layer is not None and not kept:
            raise InputError(
                f"forward of {type(self.module).__name__} gives no tensor to the layer {type(self.layer).__name__}, "
                f"or does not call it."
            )
        chosen = choose(found, output, lambda value: value.is_floating_point(), "the module")
        inside = output if isinstance(output, str) and output not in found else None
        return Observed(self, chosen, len(kept), inside, len(found) == 1)

    def _first_call(self, rows: Mapping[str, Array]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Call the module, with whole numbers as such or as floats, with all rows or one."""
        whole = any(a.dtype.kind in "iub" for a in rows.values())
        failures = []
        for self.single in (False, True):
            for self.floats in (False, True) if whole else (False,):
                try:
                    return self.evaluated(self.first(rows) if self.single else rows)
                except InputError as error:
                    failures.append(error)
        raise failures[0]

    def first(self, rows: Mapping[str, Array], count: int = 1) -> dict[str, Array]:
        """Return the first of some rows."""
        specs = [InputSpec(name, a.dtype, batch_axis=self.axes[name]) for name, a in rows.items()]
        return take(rows, specs, range(count))


@dataclass(frozen=True)
class Observed:
    """A subject of which it is known what it returns.

    Attributes
    ----------
    chosen : the outputs that are exported, by the module's names.
    kept : how many inputs of the layer are.
    inside : a name that is no output of the module, left for the importer to find.
    only : whether the module returns one tensor.
    """

    subject: Subject
    chosen: Sequence[str]
    kept: int
    inside: str | None
    only: bool

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs in ONNX, which must not be those of inputs."""
        taken = set(self.subject.names)
        return [
            *(f"{name}_output" if name in taken else name for name in self.chosen),
            *(f"layer_input_{i}" for i in range(self.kept)),
        ]

    @property
    def tolerance(self) -> float:
        """Of a comparison with ONNX, relative to the largest output."""
        import torch

        if self.subject.dtype == torch.bfloat16:
            return BFLOAT16_TOLERANCE
        low = self.subject.dtype == torch.float16
        fast = self.subject.device.type != "cpu" and torch.get_float32_matmul_precision() != "highest"
        return HALF_TOLERANCE if low or fast else TOLERANCE

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Call the module: arrays by input name -> arrays by the names of `outputs`."""
        found, kept = self.subject.evaluated(arrays)
        values = [*(found[name] for name in self.chosen), *kept]
        return {name: as_array(value) for name, value in zip(self.outputs, values, strict=True)}


@dataclass(frozen=True)
class Exported:
    """An ONNX model, the name of the explained output, and the values that the layer is given."""

    model: ModelProto
    output: str | int | None
    at: tuple[str, ...]


def export(observed: Observed, rows: Mapping[str, Array]) -> Exported:
    """Export to ONNX with a free batch; for one row where the module does not export with one.

    Raises
    ------
    ModelError : the exporter fails.
    """
    import torch

    subject = observed.subject
    scripted = any(comes_from(layer, "torch", "ScriptModule") for layer in subject.module.modules())
    failures: list[Exception] = []
    for free in (False,) if subject.single else (True, False):
        tensors = subject.tensors(subject.first(rows, 2 if free else 1))
        try:
            with unchanged(subject.module), quiet(LOGGERS):
                program = _program(observed)
                if scripted:
                    model = _traced(program, tensors, observed, free)
                else:
                    dims = [
                        {axis: torch.export.Dim.DYNAMIC} if free and axis is not None else None
                        for axis in (subject.axes[name] for name in subject.names)
                    ]
                    model = _exported(program, tensors, observed, dims)
        except Exception as error:  # the exporter's stages have no error class in common
            failures.append(error)
            continue
        return _finished(model, observed)
    raise ModelError(
        f"torch cannot export {type(subject.module).__name__} to ONNX: {cause(failures[-1])}"
    ) from failures[-1]


def _program(observed: Observed) -> nn.Module:
    """Return a module from the tensors of a call to a tuple of the chosen outputs and the layer's inputs."""
    from torch import Tensor, nn

    constants = observed.subject.baked()

    class Program(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = observed.subject.module
            for name, value in constants.items():
                if isinstance(value, Tensor):
                    self.register_buffer(f"constant_{name}", value)

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            held = {
                name: getattr(self, f"constant_{name}") if isinstance(value, Tensor) else value
                for name, value in constants.items()
            }
            with spelled_out():
                found, kept = observed.subject.call(tensors, held)
            return (*(found[name] for name in observed.chosen), *kept)

    program = Program()
    program.training = False
    return program


def _exported(program: nn.Module, tensors: Sequence[Tensor], observed: Observed, dims: Sequence[Any]) -> ModelProto:
    from torch.onnx import OnnxExporterError

    try:
        return _written(program, tensors, observed, (tuple(dims),))
    except OnnxExporterError as error:
        if "ConversionError" not in type(error).__name__:
            raise
        constant = folded(program, tensors, dims)
        if constant is None:
            raise
        return _written(constant, tensors, observed, tuple(dims))


def _written(program: nn.Module, tensors: Sequence[Tensor], observed: Observed, dims: tuple[Any, ...]) -> ModelProto:
    import torch

    made = torch.onnx.export(
        program,
        tuple(tensors),
        dynamo=True,
        dynamic_shapes=dims,
        input_names=_placeholders("input", observed.subject.names),
        output_names=_placeholders("output", observed.outputs),
        opset_version=min(OPSET, newest_opset()),
        verbose=False,
    )
    assert made is not None
    return made.model_proto


def _traced(program: nn.Module, tensors: Sequence[Tensor], observed: Observed, free: bool) -> ModelProto:
    """Export TorchScript, which the newer exporter does not read."""
    import torch

    subject = observed.subject
    places = zip(_placeholders("input", subject.names), (subject.axes[name] for name in subject.names), strict=True)
    axes = {name: {axis: "batch"} for name, axis in places if axis is not None}
    # a frozen module cannot be part of another
    alone = comes_from(subject.module, "torch", "ScriptModule") and observed.only
    alone = alone and not subject.keyword and not subject.constants
    traced = subject.module if alone else torch.jit.trace(program, tuple(tensors), check_trace=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            traced,
            tuple(tensors),
            path,
            dynamo=False,
            dynamic_axes=axes if free else None,
            input_names=_placeholders("input", observed.subject.names),
            output_names=_placeholders("output", observed.outputs),
            opset_version=min(OPSET, newest_opset()),
            verbose=False,
        )
        return onnx.load(path)


def _placeholders(kind: str, names: Sequence[str]) -> list[str]:
    """Return names that the exporter gives to nothing else: it does not look whether a name is free."""
    return [f"deepshap_{kind}_{i}" for i in range(len(names))]


def _finished(model: ModelProto, observed: Observed) -> Exported:
    """Name inputs and outputs as the module does, and find the values that the layer reads."""
    subject = observed.subject
    wanted = [*subject.names, *observed.outputs]
    inside = all_names(model.graph)
    taken = {*inside, *wanted}
    mapping = {name: fresh(name, taken) for name in inside.intersection(wanted)}
    mapping |= zip(_placeholders("input", subject.names), subject.names, strict=True)
    mapping |= zip(_placeholders("output", observed.outputs), observed.outputs, strict=True)
    rename(model.graph, mapping)
    del model.graph.value_info[:]
    source = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    found = dependence(model.graph, [value.name for value in model.graph.input])
    places = []
    for name in observed.outputs[len(observed.chosen) :]:
        while name in source:
            name = source[name]
        if found.depends([name]) and name not in places:
            places.append(name)
    if observed.kept and not places:
        raise InputError(f"the inputs of the layer {type(subject.layer).__name__} do not depend on the data.")
    output = observed.outputs[0] if observed.inside is None else observed.inside
    return Exported(model, output, tuple(places))


def _is_tensor(value: Any) -> bool:
    from torch import Tensor

    return isinstance(value, Tensor)
